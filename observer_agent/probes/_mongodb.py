"""MongoDB for the source type `database`: two counting commands by OP_MSG, BSON by the package `pymongo`.

The guard is that nothing else is ever sent than hello, the SCRAM exchange, count and an aggregate of $match and a
count, with maxTimeMS, on names and filters that were checked. pymongo's own client is not used: it starts threads and
connects by itself. Runs on the probe's thread.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple, NoReturn

from observer_agent import __version__
from observer_agent.probes._dbwire import BROKEN, Table, Wire, broken, check_iterations, unavailable
from observer_agent.probes._dsn import DISABLE, Dsn
from observer_agent.probes._reasons import Failed, Reason

DEEPEST: Final = 32
_OP_MSG: Final = 2013
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")
_NOT_READ: Final = ("admin", "config", "local")
_FORBIDDEN: Final = ("$where", "$function", "$accumulator", "$expr", "$code", "$scope")
_OPERATIONS: Final = ("countDocuments", "estimatedDocumentCount")
_STEPS: Final = 6  # of a SCRAM exchange, at most

_REASONS: Final[Mapping[int, Reason]] = MappingProxyType(
    {
        13: Reason.DB_ACCESS_DENIED,
        18: Reason.DB_AUTH_FAILED,
        50: Reason.DB_TIMEOUT,
        2: Reason.DB_SYNTAX_ERROR,
        9: Reason.DB_SYNTAX_ERROR,
        26: Reason.DB_SYNTAX_ERROR,
        91: Reason.DB_CONNECTION_FAILED,
        11600: Reason.DB_CONNECTION_FAILED,
    }
)


class Count(NamedTuple):
    """A question that only counts; `filter` is JSON text, empty where everything counts."""

    database: str
    collection: str
    operation: str
    filter: str


def parse_count(text: str) -> Count:
    """A JSON object {db, collection, op, filter?}; raises ValueError."""
    try:
        raw = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ValueError("must be a JSON object") from None
    if not isinstance(raw, dict) or raw.keys() - {"db", "collection", "op", "filter"}:
        raise ValueError("must be a JSON object with db, collection, op and perhaps filter")
    database, collection = _name(raw, "db"), _name(raw, "collection")
    if database in _NOT_READ or collection.startswith("system."):
        raise ValueError("must not look into admin, config, local or a system collection")
    operation = raw.get("op")
    if operation not in _OPERATIONS:
        raise ValueError(f"op must be {' or '.join(_OPERATIONS)}")
    wanted = raw.get("filter")
    if wanted is not None and operation != "countDocuments":
        raise ValueError("an estimatedDocumentCount takes no filter")
    if wanted is not None and not isinstance(wanted, dict):
        raise ValueError("filter must be an object")
    _check_filter(wanted, DEEPEST)
    return Count(database, collection, operation, json.dumps(wanted) if wanted else "")


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _name(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{key} must be a name")
    return value


def _check_filter(value: object, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"filter is deeper than {DEEPEST}")
    if isinstance(value, dict):
        if not value.keys().isdisjoint(_FORBIDDEN):
            raise ValueError(f"filter must not use {', '.join(_FORBIDDEN)}")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_filter(item, depth - 1)


def login(dsn: Dsn, wire: Wire) -> Callable[[Count, float], Table]:
    """Signs in; what it returns runs one count with a number of seconds for it. Raises Failed."""
    try:
        import bson.json_util  # noqa: F401
        import scramp  # noqa: F401
    except ImportError:
        raise unavailable("pymongo", "observer-agent[mongodb]") from None
    if dsn.tls != DISABLE:
        wire.secure(dsn)
    _guarded(lambda: _sign_in(dsn, wire))
    return lambda count, seconds: _guarded(lambda: _run(wire, count, seconds))


def _guarded(step: Callable[[], Any]) -> Any:
    from bson.errors import BSONError

    try:
        return step()
    except (BSONError, *BROKEN):
        raise broken("the server does not speak MongoDB's protocol as expected") from None


def _sign_in(dsn: Dsn, wire: Wire) -> None:
    source = dsn.options.get("authsource") or dsn.database or "admin"
    client = {"application": {"name": "observer-agent"}, "driver": {"name": "observer-agent", "version": __version__}}
    hello: dict[str, Any] = {"hello": 1, "client": {**client, "os": {"type": "Linux"}}}
    if dsn.user:
        hello["saslSupportedMechs"] = f"{source}.{dsn.user}"
    answer = _command(wire, "admin", hello)
    if dsn.user:
        named = dsn.options.get("authmechanism", "").upper()
        offered = answer.get("saslSupportedMechs")
        strong = named == "SCRAM-SHA-256" if named else "SCRAM-SHA-256" in (offered or ("SCRAM-SHA-256",))
        _scram(dsn, wire, source, "SCRAM-SHA-256" if strong else "SCRAM-SHA-1")


def _scram(dsn: Dsn, wire: Wire, source: str, mechanism: str) -> None:
    import scramp

    client = scramp.ScramClient([mechanism], dsn.user, _password(dsn, mechanism))
    first = client.get_client_first().encode()
    start = {"saslStart": 1, "mechanism": mechanism, "payload": first, "options": {"skipEmptyExchange": True}}
    try:
        answer = _command(wire, source, start)
        check_iterations(answer["payload"], wire.run)
        client.set_server_first(answer["payload"].decode())
        answer = _command(wire, source, _next(answer, client.get_client_final().encode()))
        client.set_server_final(answer["payload"].decode())
    except scramp.ScramException:
        raise Failed(Reason.DB_AUTH_FAILED, "the server's SCRAM answers do not hold: is it the right server?") from None
    for _ in range(_STEPS):
        if answer.get("done"):
            return
        answer = _command(wire, source, _next(answer, b""))
    raise broken("the server does not end the exchange")


def _next(answer: Mapping[str, Any], payload: bytes) -> dict[str, Any]:
    return {"saslContinue": 1, "conversationId": answer["conversationId"], "payload": payload}


def _password(dsn: Dsn, mechanism: str) -> str:
    """SCRAM-SHA-1 hashes the password once more, for it is older than the mechanism."""
    import hashlib

    if mechanism == "SCRAM-SHA-256":
        return dsn.password
    return hashlib.md5(f"{dsn.user}:mongo:{dsn.password}".encode(), usedforsecurity=False).hexdigest()


def _run(wire: Wire, count: Count, seconds: float) -> Table:
    ms = max(1, int(seconds * 1000))
    reading = {"maxTimeMS": ms, "$readPreference": {"mode": "primaryPreferred"}}
    if count.operation == "estimatedDocumentCount":
        answer = _command(wire, count.database, {"count": count.collection, **reading})
        return Table(1, [(answer["n"],)])
    steps: list[dict[str, Any]] = [{"$match": _filter(count)}, {"$group": {"_id": 1, "n": {"$sum": 1}}}]
    answer = _command(wire, count.database, {"aggregate": count.collection, "pipeline": steps, "cursor": {}, **reading})
    batch = answer["cursor"]["firstBatch"]
    return Table(1, [(batch[0]["n"] if batch else 0,)])


def _filter(count: Count) -> Any:
    """The filter with its dates, ObjectIds and the like (Extended JSON) as what they are."""
    from bson import json_util
    from bson.errors import BSONError

    try:
        return json_util.loads(count.filter) if count.filter else {}
    except (BSONError, *BROKEN, RecursionError):
        text = "the filter's Extended JSON ($date, $oid, ...) is malformed"
        raise Failed(Reason.DB_SYNTAX_ERROR, text) from None


def _command(wire: Wire, database: str, command: Mapping[str, Any]) -> dict[str, Any]:
    import bson

    body = bson.encode({**command, "$db": database})
    wire.sendall(struct.pack("<iiiiIB", 21 + len(body), 1, 0, _OP_MSG, 0, 0) + body)
    length, _, _, code, _, kind = struct.unpack("<iiiiIB", wire.read(21))
    if code != _OP_MSG or kind != 0:
        raise broken("the server does not speak OP_MSG: is it older than MongoDB 4.4?")
    answer: dict[str, Any] = bson.decode(wire.read(length - 21))
    if not answer.get("ok"):
        raise _refused(answer.get("code"), "saslStart" in command or "saslContinue" in command)
    return answer


def _refused(code: object, signing_in: bool) -> Failed:
    reason = _REASONS.get(code, Reason.DB_ERROR) if isinstance(code, int) else Reason.DB_ERROR
    number = code if isinstance(code, int) else 0
    if signing_in and reason is not Reason.DB_TIMEOUT:
        reason = Reason.DB_AUTH_FAILED
    return Failed(reason, f"the server refused it (code {number})", code=number)
