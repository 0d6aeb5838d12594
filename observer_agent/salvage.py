"""Salvage: a damaged queue file goes in, a sound one with every row that could be proved good comes out.

Enters: a queue file that SQLite cannot be trusted with, and its `-wal`. Leaves: a new file of format 1 and a `Report`.
Runs on the thread that opens the queue; nobody else has either file.

Nothing is asked of SQLite about the damaged file. A row is believed when its CRC is right *and* its page is in use: the
table's tree leads there, or the pointer map (which an auto-vacuum file keeps of every page's owner) says so. Pages that
were given back still hold rows that have long been delivered; those must stay dead. What has no checksum (openings,
counters, runs) is believed when it is plausible, and bent to the rows where the two disagree.
"""

from __future__ import annotations

import bisect
import itertools
import json
import os
import re
import sqlite3
import struct
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from operator import mul
from pathlib import Path
from typing import NamedTuple

from observer_agent.accounts import TOTAL
from observer_agent.errors import QueueError
from observer_agent.model import Loss, Status
from observer_agent.queuefile import PAGE_SIZE, TABLE, checksum, connect, create, transaction

ID_MAX = 2**53
TEN_YEARS = 10 * 366 * 86400.0
CHUNK = 65536

_TABLES = (TABLE, "meta", "openings", "counters", "runs", "rejected")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COUNTERS = {"accepted", "given", *(loss.value for loss in Loss)}
_IN_ORDER = {"accepted", Loss.REFUSED.value, Loss.FENCED.value}  # rows leave for these from the lowest id on
_STATUSES = {status.value for status in Status}
_LEAVES, _INNER = (0x0D, 0x0A), (0x05, 0x02)  # of tables, of indexes
_ROOT, _FREE, _BRANCH = 1, 2, 5  # what the pointer map calls a page; 3 and 4 are overflow
_HEADER = b"SQLite format 3\x00"

Value = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a rescue did: rows saved, ids counted as `damaged`, and a line for the log."""

    rows: int
    damaged: int
    text: str


def rescue(damaged: Path, fresh: Path, now: float) -> Report:
    """Writes what can be read of `damaged` and its `-wal` to `fresh`, which must not exist yet.

    `now` is seconds since 1970. Bytes of any kind raise nothing. QueueError says that `fresh` could not be written;
    what is there of it is then of no use. `damaged` is only read.
    """
    main, wal = _read(damaged), _read(damaged.with_name(damaged.name + "-wal"))
    try:
        with closing(connect(fresh, 5.0, "normal")) as conn:
            create(conn)
            roots = [row[0] for row in conn.execute("SELECT rootpage FROM sqlite_master")]
            image = _Image(main, wal)
            books = _Books(_Reader(image, roots, now).found, image.torn, now)
            with transaction(conn) as tx:
                _write(tx, books)
    except sqlite3.Error as error:
        raise QueueError(f"{fresh}: {error}") from error
    return Report(len(books.rows), books.damaged, books.text())


def _read(file: Path) -> bytes:
    """A file's bytes; a block that the disk does not give is zeros."""
    parts = []
    try:
        with file.open("rb", buffering=0) as handle:
            for at in range(0, os.fstat(handle.fileno()).st_size, CHUNK):
                try:
                    parts.append(os.pread(handle.fileno(), CHUNK, at))
                except OSError:
                    parts.append(bytes(CHUNK))
    except OSError:
        return b""
    return b"".join(parts)


# -- pages


class _Image:
    """The pages as the last commit left them: the file with the frames of its `-wal` laid over."""

    def __init__(self, main: bytes, wal: bytes) -> None:
        declared = int.from_bytes(main[16:18], "big") if main.startswith(_HEADER) else 0
        self.size = declared if 512 <= declared <= 32768 and declared.bit_count() == 1 else PAGE_SIZE
        self._main = main
        self._frames, committed, self.torn = _frames(wal, self.size)
        head = self.page(1)
        held = -(-len(main) // self.size)
        said = int.from_bytes(head[28:32], "big") if head.startswith(_HEADER) else 0
        self.count = committed or (said if 0 < said <= held else held)
        self._mapped = not head.startswith(_HEADER) or head[52:56] != bytes(4)
        self.free, self.free_known = self._freelist(head)

    def page(self, number: int) -> bytes:
        """A page's bytes, filled up with zeros; empty where there is none."""
        found = self._frames.get(number) or self._main[(number - 1) * self.size : number * self.size]
        return found if len(found) in (0, self.size) else found.ljust(self.size, b"\0")

    def owner(self, number: int) -> tuple[int, int]:
        """What the pointer map says of a page: its kind, and its parent; kind 0 when it says nothing usable."""
        each = self.size // 5 + 1
        place = (number - 2) // each * each + 2
        entry = self.page(place)[5 * (number - place - 1) :][:5] if self._mapped and number > place else b""
        return (entry[0], int.from_bytes(entry[1:5], "big")) if len(entry) == 5 and entry[0] <= _BRANCH else (0, 0)

    def _freelist(self, head: bytes) -> tuple[set[int], bool]:
        """The free pages, and whether that is surely all of them."""
        if not head.startswith(_HEADER):
            return set(), False
        trunk, count = struct.unpack_from(">2I", head, 32)
        free: set[int] = set()
        while 1 < trunk <= self.count and trunk not in free:
            free.add(trunk)
            page = self.page(trunk) or bytes(8)
            trunk, length = struct.unpack_from(">2I", page)
            leaves = struct.unpack_from(f">{min(length, self.size // 4 - 2)}I", page.ljust(self.size, b"\0"), 8)
            free.update(leaf for leaf in leaves if 1 < leaf <= self.count)
        return free, trunk == 0 and len(free) == count


def _frames(wal: bytes, size: int) -> tuple[dict[int, bytes], int, bool]:
    """The newest copy of each page up to the last good commit, the page count there, and whether a frame was bad.

    A frame's checksum starts from the one stored in the frame before. So a frame that is damaged does not take those
    behind it along: they prove themselves. Its own bytes are still the newest there are of its page. Only frames of
    this round of the log count (its salts); what lies behind the last good commit never happened.
    """
    header = wal[:32].ljust(32, b"\0")
    if not any(header):
        return {}, 0, False
    fields = struct.unpack(">8I", header)
    order = ">" if fields[0] & 1 else "<"
    trusted = _wal_sum((0, 0), struct.unpack(f"{order}6I8x", header)) == fields[6:]
    seed, salts = fields[6:], fields[4:6] if trusted else struct.unpack(">2I", wal[40:48].ljust(8, b"\0"))
    words = struct.Struct(f"{order}2I16x{size // 4}I")
    pages: dict[int, bytes] = {}
    waiting: dict[int, bytes] = {}
    count, torn, bad = 0, False, not trusted
    for at in range(32, len(wal) - words.size + 1, words.size):
        number, commit, *salt_and_sum = struct.unpack_from(">6I", wal, at)
        ours = tuple(salt_and_sum[:2]) == tuple(salts)
        good = (trusted or ours) and _wal_sum(seed, words.unpack_from(wal, at)) == tuple(salt_and_sum[2:])
        seed, trusted, bad = tuple(salt_and_sum[2:]), good, bad or not good
        if good or ours:
            waiting[number] = wal[at + 24 : at + words.size]
        if good and commit:
            pages.update(waiting)
            count, torn, bad = commit, torn or bad, False
            waiting.clear()
    return pages, count, torn


def _wal_sum(seed: tuple[int, ...], words: tuple[int, ...]) -> tuple[int, int]:
    """The checksum of the log: each word adds to the sum of the last two sums, so words weigh as Fibonacci numbers."""
    first, second = seed
    values = (first, second - first, *words)
    weights = _weights(len(values))
    return sum(map(mul, weights[1:], values)) & 0xFFFFFFFF, sum(map(mul, weights, values)) & 0xFFFFFFFF


def _weights(length: int) -> list[int]:
    return _FIBONACCI[-length - 1 :]


def _fibonacci(length: int) -> list[int]:
    """Descending, down to 1 and 0, modulo 2**32."""
    found = [0, 1]
    while len(found) < length:
        found.append((found[-1] + found[-2]) & 0xFFFFFFFF)
    return found[::-1]


_FIBONACCI = _fibonacci(32768 // 4 + 5)


# -- records


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


_WIDTHS = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)


def _width(kind: int) -> int:
    """Bytes of a value of this type; of an impossible one more than any record has."""
    if kind >= 12:
        return (kind - 12) >> 1
    return _WIDTHS[kind] if 0 <= kind < len(_WIDTHS) else ID_MAX


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


class _Saved(NamedTuple):
    """A row with a good CRC. `status` is what its data says; `doubt` is how little is known of its page."""

    id: int
    data: bytes
    timestamp: float
    metric_id: str
    redundant: int
    status: str
    doubt: int


_SURE, _ORPHAN, _UNPROVEN = 0, 1, 2


@dataclass(slots=True)
class _Found:
    """Everything plausible that was read, the best-founded copy of each."""

    rows: dict[int, _Saved] = field(default_factory=dict)
    meta: tuple[int, float] = (0, 0.0)  # next id, started at
    openings: dict[str, int] = field(default_factory=dict)
    counters: dict[tuple[str, str], int] = field(default_factory=dict)
    runs: dict[str, tuple[str, int]] = field(default_factory=dict)
    rejected: dict[int, tuple[Value, ...]] = field(default_factory=dict)
    roots: set[int] = field(default_factory=set)


class _Reader:
    """Reads an image: first along the trees, then the pages in use that no tree leads to any more."""

    def __init__(self, image: _Image, roots: Sequence[int], now: float) -> None:
        """`roots` are where the tables of a new file begin, so of every file; its own list may be damaged."""
        self.found = _Found()
        self._image = image
        self._now = now
        self._seen: set[int] = set()
        self._broken = False
        self._patience = 8 * image.count + 1000  # overflow pages to be looked at: crossed chains end
        self._walk(1)
        listed = self.found.roots
        for root in sorted(listed | set(roots)):
            agreed = root in listed and root in roots
            if agreed or (image.owner(root)[0] in (0, _ROOT) and root not in image.free):
                self._walk(root)
        for doubt in (_ORPHAN, _UNPROVEN):
            for number in range(2, image.count + 1):
                if number not in self._seen and self._doubt(number) == doubt:
                    self._leaf(number, doubt)

    # -- pages

    def _walk(self, root: int) -> None:
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
                self._leaf(number, _SURE)

    def _open(self, number: int) -> tuple[bytes, int]:
        return (self._image.page(number), 100 if number == 1 else 0) if number > 0 else (b"", 0)

    def _belongs(self, number: int, low: int, high: int) -> bool:
        """Whether a page that a parent names is really its child: its keys fit, or the pointer map calls it in use."""
        kind = self._image.owner(number)[0]
        fits = self._open(number)[0][0] in (0x0A, 0x02) or low < self._first_key(number) <= high
        return not (kind == _FREE and number in self._image.free) if fits else kind in (_ROOT, _BRANCH)

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
        if kind == _ROOT or (kind == _BRANCH and 0 < parent <= self._image.count):
            return _ORPHAN
        if kind and (self._image.torn or not self._image.free_known):
            return -1
        if self._image.free_known:
            return _ORPHAN
        return _UNPROVEN if self._broken else -1

    # -- records

    def _leaf(self, number: int, doubt: int) -> None:
        page, cells = self._pointers(number)
        kind = page[100 if number == 1 else 0]
        for cell in cells:
            try:
                key, values = self._record(page, kind, cell)
            except (IndexError, struct.error):
                continue
            if values:
                self._take(key, values, doubt)

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

    def _take(self, key: int, values: tuple[Value, ...], doubt: int) -> None:
        """Tells the tables apart by the shape of the record."""
        match values:
            case (None, bytes(data), int() | float() as stamp, int(crc), str(metric), int(redundant), *_):
                if key not in self.found.rows and 0 < key < ID_MAX and checksum(key, data) == crc:
                    metric, status = _meaning(data, metric)
                    row = _Saved(key, data, self._plausible(stamp), metric, int(redundant == 1), status, doubt)
                    self.found.rows[key] = row
            case (None, int(next_id), int(), int(), int(), int() | float() as started, int()) if key == 1:
                if self.found.meta == (0, 0.0):
                    started = float(started) if 0 <= started < self._now + TEN_YEARS else 0.0
                    self.found.meta = (next_id if 0 < next_id < ID_MAX else 0, started)
            case (None, str(owner), int(), bytes(), str(), int(), str(), int() | float() as stamp):
                if _UUID.fullmatch(owner):
                    self.found.rejected.setdefault(key, (key, *values[1:-1], self._plausible(stamp)))
            case (str("table"), str(name), str(), int(root), str()) if name in _TABLES:
                self.found.roots.add(root)
            case (str(owner), int(first)) if _UUID.fullmatch(owner) and 0 < first < ID_MAX:
                self.found.openings.setdefault(owner, first)
            case (str(owner), str(name), int(n)) if name in _COUNTERS and 0 <= n < ID_MAX:
                if owner == TOTAL or _UUID.fullmatch(owner):
                    self.found.counters.setdefault((owner, name), n)
            case (str(metric), str(status), int(head)) if status in _STATUSES and 0 < head < ID_MAX:
                self.found.runs.setdefault(metric, (status, head))

    def _plausible(self, stamp: float) -> float:
        """A wall time as it was stored, or now where that cannot be."""
        return float(stamp) if 0 <= stamp < self._now + TEN_YEARS else self._now


def _meaning(data: bytes, metric: str) -> tuple[str, str]:
    """Metric and status by the data, for which the CRC stands, rather than by the columns."""
    try:
        sample = json.loads(data)
        found, status = sample["metric_id"], sample["status"]
        found.encode()
        return found, status if status in _STATUSES else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return metric, ""


# -- accounts


class _Books:
    """What will be written: `given == accepted + pending + lost` for every opening."""

    def __init__(self, found: _Found, torn: bool, now: float) -> None:
        self.rows = dict(sorted(found.rows.items()))
        self.rejected = list(found.rejected.values())
        self.counters: Counter[tuple[str, str]] = Counter()
        self.damaged = 0
        self._torn = torn
        highest = max(self.rows, default=0)
        self.started_at = found.meta[1]
        self.openings = self._openings(found, highest)
        self.next_id = max(found.meta[0], highest + 1, *(first for first, _ in self.openings), 1)
        known = {owner for _, owner in self.openings}
        for (owner, name), n in found.counters.items():
            whose = owner if owner in known else TOTAL
            self.counters[whose, name] = min(self.counters[whose, name] + n, ID_MAX)
        for (first, owner), (end, _) in itertools.pairwise([*self.openings, (self.next_id, "")]):
            self._balance(owner, first, end)
        self.runs = self._runs(found)

    def text(self) -> str:
        """One line for the log."""
        line = f"{len(self.rows)} samples were saved, {self.damaged} are lost"
        if self._nameless:
            line += f"; the queue id of {self._nameless} could not be read, they have a new one"
        return line

    def _openings(self, found: _Found, highest: int) -> list[tuple[int, str]]:
        """First row id and queue id, ascending; rows before all that is known get a queue id of their own."""
        limit = max(found.meta[0], highest + 1) if found.meta[0] else ID_MAX
        by_first: dict[int, str] = {}
        for owner, first in found.openings.items():
            if first <= limit:
                by_first.setdefault(first, owner)
        ids = list(self.rows)
        lowest = min(by_first, default=ID_MAX)
        self._nameless = bisect.bisect_left(ids, lowest)
        if self._nameless:
            by_first[ids[0]] = str(uuid.uuid4())
        return sorted(by_first.items())

    def _balance(self, owner: str, first: int, end: int) -> None:
        """Makes an opening's account true: rows that must have left go, what is missing is `damaged`."""
        names = {name: n for (each, name), n in self.counters.items() if each == owner}
        gone = sum(names.values())
        ids = list(self.rows)
        ids = ids[bisect.bisect_left(ids, first) : bisect.bisect_left(ids, end)]
        in_order = set(names) <= _IN_ORDER
        stale = {i for i in ids if self._is_stale(self.rows[i], first + gone, in_order)}
        ids = [i for i in ids if i not in stale]
        over = len(ids) + gone - (end - first)
        doubtful = [i for i in ids if self._torn or self.rows[i].doubt]
        stale.update(doubtful[: max(0, over)])
        for i in stale:
            self.rows.pop(i)
        over -= min(len(doubtful), max(0, over))
        for name in sorted(names):  # `accepted` first
            cut = min(max(0, over), names[name])
            self.counters[owner, name] -= cut
            over -= cut
        if over < 0:
            self.counters[owner, Loss.DAMAGED.value] -= over
            self.damaged -= over

    def _is_stale(self, row: _Saved, floor: int, in_order: bool) -> bool:
        """Whether a row whose page is in doubt has left: where rows leave in order, those below the floor have."""
        if row.doubt == _UNPROVEN and not in_order:
            return True
        return in_order and row.id < floor and (self._torn or row.doubt > _SURE)

    def _runs(self, found: _Found) -> dict[str, tuple[str, int]]:
        """The runs as they were, or, when rows are lost, only those whose head is here.

        A row may stay redundant only while the row that it repeats is known not to be lost.
        """
        runs: dict[str, tuple[str, int]] = {}
        for i, row in self.rows.items():
            status, head = runs.get(row.metric_id, (row.status if not self.damaged else "", 0))
            if row.redundant and status != row.status:
                self.rows[i] = row._replace(redundant=0)
            runs[row.metric_id] = (row.status, head if self.rows[i].redundant else i)
        if self.damaged:
            return {metric: run for metric, run in runs.items() if all(run)}
        before = {metric: run for metric, run in found.runs.items() if run[1] < self.next_id}
        return {metric: run for metric, run in (runs | before).items() if all(run)}


def _write(tx: sqlite3.Connection, books: _Books) -> None:
    rows = [
        (row.id, row.data, row.timestamp, checksum(row.id, row.data), row.metric_id, row.redundant)
        for row in books.rows.values()
    ]
    tx.executemany(f"INSERT INTO {TABLE} VALUES (?, ?, ?, ?, ?, ?)", rows)
    tx.executemany("INSERT INTO openings VALUES (?, ?)", [(owner, first) for first, owner in books.openings])
    tx.executemany("INSERT INTO counters VALUES (?, ?, ?)", [(*key, n) for key, n in books.counters.items() if n])
    tx.executemany("INSERT INTO runs VALUES (?, ?, ?)", [(metric, *run) for metric, run in books.runs.items()])
    tx.executemany("INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?, ?, ?)", books.rejected)
    sums = (sum(len(row[1]) for row in rows), sum(row[5] for row in rows))
    tx.execute(
        "UPDATE meta SET next_id = ?, rows = ?, bytes = ?, redundant = ?, started_at = ?, clean = 1",
        (books.next_id, len(rows), *sums, books.started_at),
    )
