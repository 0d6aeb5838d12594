"""A UDP server that answers as it is told, and DNS messages to answer with.

A `UdpServer` hands each datagram to `reply`, which gives the datagrams that go back, from the server's own socket or
from another one; leaving the `with` block joins its thread.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Reply = Callable[[bytes], Iterable[bytes]]


class UdpServer:
    """Listens on `host` while the block runs. `questions` holds what came in; `stranger` is another socket."""

    def __init__(self, reply: Reply, *, host: str = "127.0.0.1", port: int = 0, strange: bool = False) -> None:
        self._reply = reply
        self._host = host
        self._port = port
        self._strange = strange
        self.questions: list[bytes] = []

    def __enter__(self) -> UdpServer:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.bind((self._host, self._port))
        self._stranger = socket.socket(family, socket.SOCK_DGRAM)
        self._stranger.bind((self._host, 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name=f"udp-{self.port}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # An empty datagram from ourselves ends it: a closed socket would leave its recvfrom() waiting.
        self._stranger.sendto(b"", self._socket.getsockname())
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._socket.close()
        self._stranger.close()

    @property
    def at(self) -> str:
        """The server as a definition's `resolver`."""
        return f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"

    def _serve(self) -> None:
        while True:
            try:
                data, peer = self._socket.recvfrom(65_535)
            except ConnectionRefusedError:
                continue
            if not data:
                return
            self.questions.append(data)
            with contextlib.suppress(OSError):
                for out in self._reply(data):
                    (self._stranger if self._strange else self._socket).sendto(out, peer)


def silence(question: bytes) -> list[bytes]:
    """Says nothing."""
    return []


def answering(*records: str, code: str = "NOERROR", flags: int = 0) -> Reply:
    """Answers with records as a zone file writes them, `{}` being the name that was asked for."""

    def reply(question: bytes) -> list[bytes]:
        return [build(question, *records, code=code, flags=flags)]

    return reply


def build(question: bytes, *records: str, code: str = "NOERROR", flags: int = 0) -> bytes:
    """One answer's bytes."""
    asked = dns.message.from_wire(question)
    answer = dns.message.make_response(asked)
    answer.set_rcode(dns.rcode.from_text(code))
    answer.flags |= flags
    for record in records:
        name, ttl, _, kind, data = record.format(asked.question[0].name).split(maxsplit=4)
        rrset = dns.rrset.from_text(name, int(ttl), "IN", kind, data)
        answer.find_rrset(answer.answer, rrset.name, rrset.rdclass, rrset.rdtype, create=True).update(rrset)
    return answer.to_wire(max_size=65_535)


def over_tcp(*records: str, code: str = "NOERROR", flags: int = 0) -> Callable[..., None]:
    """A handler for tests.servers.Server that answers one question with its length in front."""

    def handler(conn: socket.socket, server: object) -> None:
        head = conn.recv(2, socket.MSG_WAITALL)
        question = conn.recv(int.from_bytes(head), socket.MSG_WAITALL)
        out = build(question, *records, code=code, flags=flags)
        conn.sendall(len(out).to_bytes(2) + out)

    return handler
