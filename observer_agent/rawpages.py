"""The pages of a queue file as they lie on the disk, read without SQLite.

Enters: the path of a file that may be damaged anywhere, and its `-wal`. Leaves: an `Image`, the pages as the last
commit left them, with what the file says of each: who owns it, whether it is free. Runs on the thread that opens the
queue. Bytes of any kind raise nothing.
"""

from __future__ import annotations

import os
import struct
from operator import mul
from pathlib import Path

from observer_agent.queuefile import PAGE_SIZE

CHUNK = 65536
ROOT, FREE, BRANCH = 1, 2, 5  # what the pointer map calls a page; 3 and 4 are overflow

_HEADER = b"SQLite format 3\x00"


def load(file: Path) -> Image:
    """The pages of a file with its `-wal` laid over; only reads."""
    return Image(_read(file), _read(file.with_name(file.name + "-wal")))


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


class Image:
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
        return (entry[0], int.from_bytes(entry[1:5], "big")) if len(entry) == 5 and entry[0] <= BRANCH else (0, 0)

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
