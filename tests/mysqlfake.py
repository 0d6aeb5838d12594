"""A server that speaks MySQL's protocol far enough to sign in and to answer statements as told.

MySQL itself is in no package of Debian's; MariaDB is, and is what the real tests use. This one says that it is MySQL,
and can ask for things that no honest server asks for.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from tests.servers import Server

OK = b"\x00\x00\x00\x02\x00\x00\x00"
EOF = b"\xfe\x00\x00\x02\x00"
_CAPABILITIES = 0x00000200 | 0x00008000 | 0x00080000 | 0x00000001 | 0x00000008 | 0x00002000


class MySql:
    """`asked` holds the statements; `answer` what is sent for a query, `switches` what comes before the login's OK."""

    def __init__(self, version: str = "8.0.36", *switches: bytes, answer: Callable[[str], list[bytes]] | None = None):
        self.version = version
        self.switches = switches
        self.answer = answer or (lambda statement: table([b"42"]))
        self.asked: list[str] = []
        self.replies: list[bytes] = []
        self.silent_at = ""

    def __call__(self, conn: socket.socket, server: Server) -> None:
        """The handler of a connection."""
        send(conn, 0, greeting(self.version))
        number, _ = receive(conn)
        for each in self.switches:
            send(conn, number + 1, each)
            number, reply = receive(conn)
            self.replies.append(reply)
        send(conn, number + 1, OK)
        while True:
            _, packet = receive(conn)
            statement = packet[1:].decode()
            self.asked.append(statement)
            if packet[:1] != b"\x03":
                return
            if self.silent_at and statement.startswith(self.silent_at):
                server.stopping.wait()
            setting = statement.startswith(("SET", "START"))
            for n, part in enumerate([OK] if setting else self.answer(statement)):
                send(conn, n + 1, part)


def greeting(version: str) -> bytes:
    """The handshake, version 10."""
    low, high = _CAPABILITIES & 0xFFFF, _CAPABILITIES >> 16
    head = b"\x0a" + version.encode() + b"\0" + struct.pack("<I", 7) + b"12345678\0"
    tail = struct.pack("<HBHHB", low, 45, 2, high, 21) + b"\0" * 10 + b"123456789012\0mysql_native_password\0"
    return head + tail


def table(*rows: list[bytes], columns: int = 1) -> list[bytes]:
    """The packets of a result; values are texts of type LONGLONG."""
    column = b"".join(bytes([len(part)]) + part for part in (b"def", b"", b"", b"", b"n", b""))
    column += b"\x0c" + struct.pack("<HIBHB", 63, 20, 8, 0, 0) + b"\0\0"
    cells = [b"".join(bytes([len(cell)]) + cell for cell in row) for row in rows]
    return [bytes([columns]), *[column] * columns, EOF, *cells, EOF]


def error(code: int, text: str = "") -> list[bytes]:
    """An error packet."""
    return [b"\xff" + struct.pack("<H", code) + b"#HY000" + text.encode()]


def switch(plugin: bytes, data: bytes = b"12345678901234567890\0") -> bytes:
    """Asks to sign in another way."""
    return b"\xfe" + plugin + b"\0" + data


def send(conn: socket.socket, number: int, data: bytes) -> None:
    """One packet."""
    conn.sendall(struct.pack("<I", len(data))[:3] + bytes([number % 256]) + data)


def receive(conn: socket.socket) -> tuple[int, bytes]:
    """One packet's number and content."""
    head = _exactly(conn, 4)
    return head[3], _exactly(conn, int.from_bytes(head[:3], "little"))


def _exactly(conn: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = conn.recv(size - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data
