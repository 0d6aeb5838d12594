"""A server that speaks MongoDB's protocol as far as counting goes: OP_MSG, hello, SCRAM, count and aggregate.

MongoDB is in no distribution's packages, so this stands in for it; `test_probes_database.py` holds it against pymongo's
own client, which signs in and counts here with the same outcome. `answers` makes it misbehave.
"""

from __future__ import annotations

import socket
import struct
from typing import Any

import bson
import scramp

from tests.servers import Server

SECRET = "mongo-Secret-77"
USER = "reader"


class Mongo:
    """`documents` by collection of the database `shop`; `asked` holds the commands that came, in order."""

    def __init__(self, documents: dict[str, list[dict[str, Any]]], mechanism: str = "SCRAM-SHA-256") -> None:
        self.documents = documents
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self.mechanism = mechanism

    def __call__(self, conn: socket.socket, server: Server) -> None:
        """The handler of a connection."""
        session = _Session(self)
        while True:
            head = _exactly(conn, 16)
            length, number, _, code = struct.unpack("<iiii", head)
            body = _exactly(conn, length - 16)
            assert code == 2013, code
            command = bson.decode(body[5:])
            self.asked.append(command)
            name = next(iter(command))
            answer = self.answers[name] if name in self.answers else session.answer(name, command)
            data = bson.encode({"ok": 1.0, **answer})
            conn.sendall(struct.pack("<iiiiIB", 21 + len(data), 1, number, 2013, 0, 0) + data)


class _Session:
    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._scram: Any = None
        self._signed_in = False

    def answer(self, name: str, command: dict[str, Any]) -> dict[str, Any]:
        if name in ("hello", "ismaster", "isMaster"):
            return {
                "isWritablePrimary": True, "helloOk": True, "maxWireVersion": 21, "minWireVersion": 0,
                "maxBsonObjectSize": 16_777_216, "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000,
                "saslSupportedMechs": [self._mongo.mechanism],
            }  # fmt: skip
        if name in ("endSessions", "ping"):
            return {}
        if name == "saslStart":
            return self._start(command)
        if name == "saslContinue":
            return self._finish(command)
        if not self._signed_in:
            return {"ok": 0.0, "code": 13, "codeName": "Unauthorized", "errmsg": f"{command} wants {SECRET}"}
        return self._count(name, command)

    def _start(self, command: dict[str, Any]) -> dict[str, Any]:
        if command["mechanism"] != self._mongo.mechanism:
            return _denied()
        mechanism = scramp.ScramMechanism(self._mongo.mechanism)
        info = mechanism.make_auth_info(_password(self._mongo.mechanism))
        self._scram = mechanism.make_server({USER: info}.__getitem__)
        try:
            self._scram.set_client_first(bytes(command["payload"]).decode())
        except KeyError:
            return _denied()
        first = self._scram.get_server_first()
        return {"conversationId": 1, "done": False, "payload": first.encode()}

    def _finish(self, command: dict[str, Any]) -> dict[str, Any]:
        if not command["payload"]:
            self._signed_in = True
            return {"conversationId": 1, "done": True, "payload": b""}
        try:
            self._scram.set_client_final(bytes(command["payload"]).decode())
        except scramp.ScramException:
            return _denied()
        return {"conversationId": 1, "done": False, "payload": self._scram.get_server_final().encode()}

    def _count(self, name: str, command: dict[str, Any]) -> dict[str, Any]:
        assert command["$db"] == "shop"
        documents = self._mongo.documents.get(command[name], [])
        if name == "count":
            return {"n": len(documents)}
        assert name == "aggregate"
        match = command["pipeline"][0]["$match"]
        found = [each for each in documents if _matches(each, match)]
        batch = [{"_id": 1, "n": len(found)}] if found else []
        return {"cursor": {"firstBatch": batch, "id": 0, "ns": f"shop.{command[name]}"}}


def _matches(document: dict[str, Any], wanted: dict[str, Any]) -> bool:
    for key, value in wanted.items():
        if isinstance(value, dict) and "$gte" in value:
            if not document[key] >= value["$gte"]:
                return False
        elif document.get(key) != value:
            return False
    return True


def _password(mechanism: str) -> str:
    import hashlib

    return SECRET if mechanism.endswith("256") else hashlib.md5(f"{USER}:mongo:{SECRET}".encode()).hexdigest()


def _denied() -> dict[str, Any]:
    return {"ok": 0.0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": f"{USER} {SECRET} is wrong"}


def _exactly(conn: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data
