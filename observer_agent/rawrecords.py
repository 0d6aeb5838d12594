"""The records of a queue file, read from its pages without SQLite.

Enters: an `Image`, and where tables begin. Leaves: `Record`s, plain values with their key and how little is known of
their page; what they mean is not known here, save that the list of tables says where tables begin. Runs on the thread
that opens the queue. Bytes of any kind raise nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from observer_agent.rawpages import BRANCH, FREE, ROOT, Image

SURE, ORPHAN, UNPROVEN = 0, 1, 2  # a tree leads to the page; it is in use; it may be

_LEAVES, _INNER = (0x0D, 0x0A), (0x05, 0x02)  # of tables, of indexes
_WIDTHS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)
_TOO_WIDE = 2**53

Value = int | float | str | bytes | None


class Record(NamedTuple):
    """A record whose layout is sound; its values may still be anything. `key` is 0 in an index."""

    key: int
    values: tuple[Value, ...]
    doubt: int


class Reader:
    """Reads an image: first along the trees, then the pages in use that no tree leads to any more."""

    def __init__(self, image: Image, roots: Collection[int], tables: Collection[str]) -> None:
        """`roots` are where `tables` begin in a new file, so in every file; its own list may be damaged."""
        self._image = image
        self._roots = frozenset(roots)
        self._tables = frozenset(tables)
        self._listed: set[int] = set()  # where the file's own list says that tables begin
        self._seen: set[int] = set()
        self._broken = False
        self._patience = 8 * image.count + 1000  # overflow pages to be looked at: crossed chains end

    def records(self) -> Iterator[Record]:
        """Every sound record, the best-founded copies first; to be asked for once."""
        yield from self._walk(1)
        for root in sorted(self._listed | self._roots):
            agreed = root in self._listed and root in self._roots
            if agreed or (self._image.owner(root)[0] in (0, ROOT) and root not in self._image.free):
                yield from self._walk(root)
        for doubt in (ORPHAN, UNPROVEN):
            for number in range(2, self._image.count + 1):
                if number not in self._seen and self._doubt(number) == doubt:
                    yield from self._leaf(number, doubt)

    # -- pages

    def _walk(self, root: int) -> Iterator[Record]:
        """Reads the leaves below a page, as far as the way there can be believed."""
        stack = [(root, -(2**63) - 1, 2**63)]
        while stack:
            number, low, high = stack.pop()
            if number in self._seen:
                continue
            page, start = self._open(number)
            kind = page[start] if len(page) > start else 0
            if kind not in _LEAVES + _INNER or not (number == root or self._belongs(number, low, high)):
                self._broken = True
                continue
            self._seen.add(number)
            if kind in _INNER:
                stack += self._children(number, low, high)
            if kind != 0x05:
                yield from self._leaf(number, SURE)

    def _open(self, number: int) -> tuple[bytes, int]:
        return (self._image.page(number), 100 if number == 1 else 0) if number > 0 else (b"", 0)

    def _belongs(self, number: int, low: int, high: int) -> bool:
        """Whether a page that a parent names is really its child: its keys fit, or the pointer map calls it in use."""
        kind = self._image.owner(number)[0]
        fits = self._open(number)[0][0] in (0x0A, 0x02) or low < self._first_key(number) <= high
        return not (kind == FREE and number in self._image.free) if fits else kind in (ROOT, BRANCH)

    def _pointers(self, number: int) -> tuple[bytes, list[int]]:
        """A page, and where its cells are: those of its pointer array and no others."""
        page, start = self._open(number)
        begin = start + (12 if page[start] in _INNER else 8)
        length = min(int.from_bytes(page[start + 3 : start + 5], "big"), (len(page) - begin) // 2)
        cells = struct.unpack_from(f">{length}H", page, begin) if length > 0 else ()
        inside = [cell for cell in cells if begin + 2 * length <= cell < len(page)]
        self._broken |= len(inside) < len(cells)
        return page, inside

    def _first_key(self, number: int) -> int:
        """The lowest row id on a page of a table; one that no row has when there is none."""
        page, cells = self._pointers(number)
        try:
            at = cells[0] + 4 if page[0] == 0x05 else _varint(page, cells[0])[1]
            return _varint(page, at)[0]
        except IndexError:
            return 2**64

    def _children(self, number: int, low: int, high: int) -> list[tuple[int, int, int]]:
        """The pages below an inner page, each with the bounds of its keys."""
        page, cells = self._pointers(number)
        start = 100 if number == 1 else 0
        found = []
        for cell in cells:
            child = int.from_bytes(page[cell : cell + 4], "big")
            try:
                key = _varint(page, cell + 4)[0] if page[start] == 0x05 else high
            except IndexError:
                continue
            found.append((child, low, key))
            low = key if page[start] == 0x05 else low
        return [*found, (int.from_bytes(page[start + 8 : start + 12], "big"), low, high)]

    def _doubt(self, number: int) -> int:
        """What to think of a page that no tree leads to; -1 when it is certainly not in use."""
        kind, parent = self._image.owner(number)
        if number in self._image.free or self._image.page(number)[:1] not in (b"\x0d", b"\x0a", b"\x02"):
            return -1
        if kind == ROOT or (kind == BRANCH and 0 < parent <= self._image.count):
            return ORPHAN
        if kind and (self._image.torn or not self._image.free_known):
            return -1
        if self._image.free_known:
            return ORPHAN
        return UNPROVEN if self._broken else -1

    # -- records

    def _leaf(self, number: int, doubt: int) -> Iterator[Record]:
        page, cells = self._pointers(number)
        kind = page[100 if number == 1 else 0]
        for cell in cells:
            try:
                key, values = self._record(page, kind, cell)
            except (IndexError, struct.error):
                continue
            match values:
                case ():
                    pass
                case (str("table"), str(name), str(), int(root), str()) if name in self._tables:
                    self._listed.add(root)
                case _:
                    yield Record(key, values, doubt)

    def _record(self, page: bytes, kind: int, cell: int) -> tuple[int, tuple[Value, ...]]:
        """A cell's key and values; no values when it is no sound record."""
        at, key, size = cell + 4 if kind == 0x02 else cell, 0, self._image.size
        length, at = _varint(page, at)
        if kind == 0x0D:
            key, at = _varint(page, at)
        most, least = size - 35 if kind == 0x0D else (size - 12) * 64 // 255 - 23, (size - 12) * 32 // 255 - 23
        here = length
        if length > most:
            here = least + (length - least) % (size - 4)
            here = here if here <= most else least
        payload = page[at : at + here]
        kinds, start = _kinds(payload)
        if start < 0 or start + sum(map(_width, kinds)) != length or len(payload) != here:
            return key, ()
        if length > here:
            payload += self._overflow(int.from_bytes(page[at + here : at + here + 4], "big"), length - here)
        return key, tuple(_values(payload, kinds, start)) if len(payload) == length else ()

    def _overflow(self, number: int, length: int) -> bytes:
        """The rest of a long record; too short when the chain is broken."""
        parts, left = [], length
        while left > 0 and 1 < number <= self._image.count and self._patience > 0:
            self._patience -= 1
            page = self._image.page(number)
            parts.append(page[4 : 4 + left])
            left -= len(parts[-1]) or left
            number = int.from_bytes(page[:4], "big")
        return b"".join(parts)


# -- the encoding of a record


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """SQLite's integer of 1 to 9 bytes, and where it ends; IndexError beyond the data."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for place in range(at + 1, at + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    value = value << 8 | data[at + 8]
    return (value - (1 << 64) if value >> 63 else value), at + 9


def _kinds(payload: bytes) -> tuple[list[int], int]:
    """The column types of a record, and where its values begin; IndexError beyond the data."""
    start, at = _varint(payload, 0)
    kinds = []
    while at < start:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    return kinds, start if at == start else -1


def _width(kind: int) -> int:
    """Bytes of a value of this type; of an impossible one more than any record has."""
    if kind >= 12:
        return (kind - 12) >> 1
    return _WIDTHS[kind] if 0 <= kind < len(_WIDTHS) else _TOO_WIDE


def _values(payload: bytes, kinds: Sequence[int], at: int) -> Iterator[Value]:
    for kind in kinds:
        width = _width(kind)
        part, at = payload[at : at + width], at + width
        if kind >= 12:
            yield part if kind % 2 == 0 else part.decode("utf-8", "replace")
        elif kind == 7:
            yield float(struct.unpack(">d", part)[0])
        elif kind == 0:
            yield None
        else:
            yield kind - 8 if kind >= 8 else int.from_bytes(part, "big", signed=True)
