"""The two messages of grpc.health.v1 and gRPC's framing around them, by hand: bytes in, numbers out, and back.

Request: field 1, a text. Response: field 1, a number; what else it holds is skipped. The caller bounds it: he hands in
at most LARGEST bytes. Pure; raises ValueError for what is malformed.
"""

from __future__ import annotations

from typing import Final

LARGEST: Final = 4_096

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)
NAMES: Final = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT: Final = 10


def framed_request(service: str) -> bytes:
    """A HealthCheckRequest with the five bytes in front that gRPC wants; an empty name is the whole server."""
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def framed_status(data: bytes) -> int:
    """The status in a framed HealthCheckResponse; 0 where the field is absent."""
    if len(data) < 5:
        raise ValueError("the answer holds no message")
    if data[0] != 0:
        raise ValueError("the message is compressed though plain was asked for")
    if int.from_bytes(data[1:5], "big") != len(data) - 5:
        raise ValueError("the message's length is not what its frame says")
    return _status(data[5:])


def _status(message: bytes) -> int:
    status = at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _read_varint(message, at)
            status = value if field == 1 else status
        else:
            at = _skip(message, at, kind)
        if field == 0 or at > len(message):
            raise ValueError("the message is malformed")
    return status


def _skip(message: bytes, at: int, kind: int) -> int:
    """Where the field after this one begins."""
    if kind == _BYTES:
        length, at = _read_varint(message, at)
        return at + length
    if kind == _FIXED64:
        return at + 8
    if kind == _FIXED32:
        return at + 4
    raise ValueError("the message is malformed")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends."""
    number = 0
    for n, byte in enumerate(data[at : at + _LONGEST_VARINT]):
        number |= (byte & 0x7F) << (7 * n)
        if byte < 0x80:
            return number, at + n + 1
    raise ValueError("the message is malformed")
