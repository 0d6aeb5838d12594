"""Figures to the body of a remote write 1.0 request: protobuf, then a snappy block. Pure, any thread.

Both formats are written out here, so that the agent needs neither of the two libraries. Equal figures give equal bytes:
series are sorted by name, then by labels, and the compressor has no memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import Final

from observer_agent.lighthouse.figures import Figure, Labels

BLOCK: Final = 65_536  # no copy reaches further back than its block, so that two bytes hold every offset
_SHORTEST: Final = 4
_LONGEST: Final = 64
_ZERO: Final = struct.pack("<d", 0.0)


def body(figures: Iterable[Figure], at: float, stamped: Mapping[str, str] | None = None) -> bytes:
    """The compressed request for figures of the moment `at`; `stamped` are labels of those that lack them."""
    return compress(encode(figures, at, stamped))


def encode(figures: Iterable[Figure], at: float, stamped: Mapping[str, str] | None = None) -> bytes:
    """A `prometheus.WriteRequest`; of two figures with equal name and labels the last one counts."""
    series = {_labels(figure, stamped or {}): figure.value for figure in figures}
    stamp = max(0, round(at * 1000))
    return b"".join(_field(1, _one(labels, series[labels], stamp)) for labels in sorted(series))


def _labels(figure: Figure, stamped: Mapping[str, str]) -> Labels:
    """The name first, then sorted; a label without a value is none."""
    found = {**stamped, **dict(figure.labels)}
    return (("__name__", figure.name), *sorted((name, value) for name, value in found.items() if value))


def _one(labels: Labels, value: float, stamp: int) -> bytes:
    pairs = (_field(1, _field(1, _utf8(name)) + _field(2, _utf8(text))) for name, text in labels)
    return b"".join(pairs) + _field(2, _sample(value, stamp))


def _sample(value: float, stamp: int) -> bytes:
    """As the format has it, a field that is zero is left out."""
    double = struct.pack("<d", value)
    return (b"\x09" + double if double != _ZERO else b"") + (b"\x10" + _varint(stamp) if stamp else b"")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # half a surrogate pair, as JSON may hold it, must not stop the rest


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def compress(data: bytes) -> bytes:
    """A snappy block: the length, then literals and copies of what was seen within the same 64 KiB."""
    out = bytearray(_varint(len(data)))
    for start in range(0, len(data), BLOCK):
        _squeeze(data[start : start + BLOCK], out)
    return bytes(out)


def _squeeze(block: bytes, out: bytearray) -> None:
    """What repeats nothing is looked at in ever larger steps, so that it costs little."""
    seen: dict[bytes, int] = {}
    at = done = 0
    stride = 32
    while at <= len(block) - _SHORTEST:
        four = block[at : at + _SHORTEST]
        before = seen.get(four)
        seen[four] = at
        if before is None:
            at += stride >> 5
            stride += 1
            continue
        length = _common(block, before, at)
        _literal(block[done:at], out)
        _copy(at - before, length, out)
        at += length
        done, stride = at, 32
    _literal(block[done:], out)


def _common(block: bytes, before: int, at: int) -> int:
    """How many bytes are the same from both places on; the first four are known to be."""
    length, most = _SHORTEST, len(block) - at
    while length < most and block[before + length] == block[at + length]:
        length += 1
    return length


def _literal(part: bytes, out: bytearray) -> None:
    if not part:
        return
    last = len(part) - 1
    if last < 60:
        out.append(last << 2)
    elif last < 256:
        out += bytes((60 << 2, last))
    else:
        out += bytes((61 << 2, last & 0xFF, last >> 8))
    out += part


def _copy(offset: int, length: int, out: bytearray) -> None:
    while length > 0:
        part = min(length, _LONGEST)
        if _SHORTEST <= part < 12 and offset < 2048:
            out += bytes(((offset >> 8) << 5 | (part - _SHORTEST) << 2 | 1, offset & 0xFF))
        else:
            out += bytes(((part - 1) << 2 | 2, offset & 0xFF, offset >> 8))
        length -= part
