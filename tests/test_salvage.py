"""Salvage: what can be proved good is saved, what had left stays away, and the accounts hold.

`build` makes a real queue file and keeps a `Truth` about it, read from the undamaged copy by a small reader of its own;
`DAMAGES` spoil the copy; `check` compares. `tests/prove/test_damage.py` runs the same over hundreds of seeds.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
import time
import uuid
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observer_agent import queuefile
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.errors import QueueError
from observer_agent.model import Answer, Fate, Reject, Sample, Status
from observer_agent.salvage import rescue
from tests.fakes import FakeClock

SIZE = queuefile.PAGE_SIZE
FRAME = SIZE + 24
OK = Answer(Fate.ACCEPTED, 200)
STATUSES = list(Status)
IN_ORDER = {"accepted", "refused", "fenced"}


@dataclass
class Truth:
    """What an undamaged queue file holds, and where: pages, and the frames of the `-wal` that are their newest copy."""

    main: bytes
    wal: bytes
    now: float
    put: dict[int, bytes]
    rows: dict[int, tuple] = field(default_factory=dict)
    tables: dict[str, list] = field(default_factory=dict)
    frame_of: dict[int, int] = field(default_factory=dict)
    commits: list[int] = field(default_factory=list)
    pages_of: dict[int, set[int]] = field(default_factory=dict)
    path_of: dict[int, set[int]] = field(default_factory=dict)
    books: set[int] = field(default_factory=set)
    trunks: set[int] = field(default_factory=set)

    def page(self, number: int) -> bytes:
        at = self.frame_of.get(number)
        if at is None:
            return self.main[(number - 1) * SIZE : number * SIZE]
        return self.wal[32 + at * FRAME + 24 : 32 + (at + 1) * FRAME]


def build(folder: Path, seed: int, live: bool, rows: int = 0, cap: int = 400) -> Truth:
    """A queue file with a history; `live` copies it while it is open, as kill -9 would leave it."""
    rng, clock, file = random.Random(seed), FakeClock(), folder / "source.db"
    put: dict[int, bytes] = {}
    often = rng.choice((8, 30, 100, 1000))

    def opened():
        queue = open_queue(file, Bounds(cap), clock)
        queue._putter.execute(f"PRAGMA wal_autocheckpoint = {often}")
        return queue

    queue = opened()
    for _ in range(rng.randrange(20, 120)):
        turn = rng.random()
        if turn < 0.65 or (rows and turn < 0.8):
            queue.put([_sample(rng) for _ in range(rng.choice((1, 3, 10, 40)) if not rows else 150)])
            put.update(queue._putter.execute(f"SELECT _id, data FROM {queuefile.TABLE}"))
        elif turn < 0.95:
            _settle(queue, rng)
        else:
            queue.close()
            queue = opened()
        clock.advance(rng.uniform(0, 30))
    queue.claim_start()
    if not live:
        queue.close()
    wal = file.with_name("source.db-wal")
    truth = Truth(file.read_bytes(), wal.read_bytes() if wal.exists() else b"", clock.now(), put)
    queue.close()
    _learn(truth, folder)
    return truth


def _sample(rng: random.Random) -> Sample:
    name = f"metric-{rng.randrange(30)}" + "x" * rng.choice((0, 0, 20, 200, 3000 if rng.random() < 0.1 else 0))
    return Sample(name, rng.random(), "2026-01-01T00:00:00.000Z", rng.choice((Status.HEALTHY, rng.choice(STATUSES))))


def _settle(queue, rng: random.Random) -> None:
    if batch := queue.peek(rng.choice((1, 10, 100))):
        refused = Answer(Fate.ACCEPTED, 200, rejects=(Reject(0, "value", "invalid"),))
        queue.settle(batch, rng.choice((OK, OK, OK, refused, Answer(Fate.REFUSED, 400), Answer(Fate.LATER, 503))))


def _learn(truth: Truth, folder: Path) -> None:
    copy = folder / "copy.db"
    write(copy, truth.main, truth.wal)
    with closing(sqlite3.connect(copy)) as conn:
        truth.tables = {
            t: conn.execute(f"SELECT * FROM {t}").fetchall()
            for t in ("meta", "openings", "counters", "runs", "rejected")
        }
        truth.rows = {row[0]: row for row in conn.execute(f"SELECT * FROM {queuefile.TABLE}")}
        roots = dict(conn.execute("SELECT name, rootpage FROM sqlite_master").fetchall())
    for at in range((len(truth.wal) - 32) // FRAME):
        if truth.wal[32 + at * FRAME + 8 :][:8] == truth.wal[16:24] and truth.wal[32 + at * FRAME + 4 :][:4] != bytes(
            4
        ):
            truth.commits.append(at)
    for at in range(truth.commits[-1] + 1 if truth.commits else 0):
        truth.frame_of[struct.unpack_from(">I", truth.wal, 32 + at * FRAME)[0]] = at
    _map(truth, roots[queuefile.TABLE], frozenset())
    assert set(truth.pages_of) == set(truth.rows)
    truth.books = {roots[name] for name in ("meta", "openings", "counters")}
    for page in list(truth.books):
        inner = truth.page(page)
        if inner[0] in (2, 5):
            cells = struct.unpack_from(f">{struct.unpack_from('>H', inner, 3)[0]}H", inner, 12)
            truth.books |= {struct.unpack_from(">I", inner, at)[0] for at in (8, *cells)}
    trunk = struct.unpack_from(">I", truth.page(1), 32)[0]
    while trunk:
        truth.trunks.add(trunk)
        trunk = struct.unpack_from(">I", truth.page(trunk))[0]


def _map(truth: Truth, number: int, path: frozenset[int]) -> None:
    """Which pages hold a row, and which lead there; for sound files only."""
    page = truth.page(number)
    begin = 12 if page[0] == 5 else 8
    cells = struct.unpack_from(f">{struct.unpack_from('>H', page, 3)[0]}H", page, begin)
    if page[0] == 5:
        for at in (8, *cells):
            _map(truth, struct.unpack_from(">I", page, at)[0], path | {number})
        return
    for at in cells:
        length, at = _varint(page, at)
        row_id, at = _varint(page, at)
        truth.pages_of[row_id], truth.path_of[row_id] = {number}, set(path)
        least = (SIZE - 12) * 32 // 255 - 23
        if length > SIZE - 35:
            here = least + (length - least) % (SIZE - 4)
            here = here if here <= SIZE - 35 else least
            chain = struct.unpack_from(">I", page, at + here)[0]
            while chain:
                truth.pages_of[row_id].add(chain)
                chain = struct.unpack_from(">I", truth.page(chain))[0]


def _varint(page: bytes, at: int) -> tuple[int, int]:
    value = 0
    while True:
        value, at = value << 7 | page[at] & 0x7F, at + 1
        if page[at - 1] < 0x80:
            return value, at


def write(file: Path, main: bytes, wal: bytes | None) -> None:
    file.write_bytes(main)
    file.with_name(file.name + "-wal").unlink(missing_ok=True)
    if wal:
        file.with_name(file.name + "-wal").write_bytes(wal)


# -- damages: (rng, main, wal) to what is left of them


def bits_main(rng, main, wal):
    return _flip(rng, main, rng.choice((1, 1, 4, 16))), wal


def bits_wal(rng, main, wal):
    return main, _flip(rng, wal, rng.choice((1, 1, 4, 16)))


def bits_both(rng, main, wal):
    return _flip(rng, main, 8), _flip(rng, wal, 4)


def _flip(rng, data, n):
    spoiled = bytearray(data)
    for _ in range(n if data else 0):
        spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
    return bytes(spoiled)


def truncated(rng, main, wal):
    return main[: rng.randrange(len(main))], wal


def wal_truncated(rng, main, wal):
    return main, wal[: rng.randrange(len(wal) + 1)]


def wal_lost(rng, main, wal):
    return main, b""


def wal_garbage(rng, main, wal):
    at = rng.randrange(len(wal) + 1)
    return main, wal[:at] + rng.randbytes(min(4096, len(wal) - at)) + wal[at + 4096 :]


def wal_all_garbage(rng, main, wal):
    return main, rng.randbytes(max(len(wal), 5000))


def page_zeroed(rng, main, wal):
    return _over(main, rng.randrange(len(main) // SIZE) * SIZE, bytes(SIZE)), wal


def block_zeroed(rng, main, wal):
    return _over(main, rng.randrange(len(main) // 4096 + 1) * 4096, bytes(4096)), wal


def block_garbage(rng, main, wal):
    return _over(main, rng.randrange(len(main) // 4096 + 1) * 4096, rng.randbytes(4096)), wal


def header_gone(rng, main, wal):
    return _over(main, 0, rng.randbytes(rng.choice((16, 100, SIZE)))), wal


def map_gone(rng, main, wal):
    return _over(main, SIZE, rng.choice((bytes(SIZE), rng.randbytes(SIZE)))), wal


def trunk_gone(rng, main, wal):
    trunk = struct.unpack_from(">I", main, 32)[0]
    return (_over(main, (trunk - 1) * SIZE, rng.randbytes(SIZE)) if trunk else main), wal


def root_gone(rng, main, wal):
    return _over(main, 2 * SIZE, rng.randbytes(SIZE)), wal


def inner_gone(rng, main, wal):
    """The ways to the leaves, all of them: only the pointer map still knows."""
    for at in range(2 * SIZE, len(main), SIZE):
        if main[at : at + 1] in (b"\x05", b"\x02"):
            main = _over(main, at, rng.choice((bytes(SIZE), rng.randbytes(SIZE))))
    return main, wal


def bits_of_structure(rng, main, wal):
    """Flips in the header, the pointer map, inner pages, trunks, and the heads of leaves."""
    spoiled = bytearray(main)
    for _ in range(rng.choice((1, 3, 10))):
        pages = [at for at in range(0, len(main), SIZE) if at < 3 * SIZE or main[at] in (0, 2, 5, 13)]
        at = rng.choice(pages)
        spoiled[at + rng.randrange(30 if main[at] == 13 else SIZE)] ^= 1 << rng.randrange(8)
    return bytes(spoiled), wal


def many_pages(rng, main, wal):
    for _ in range(rng.randrange(3, 12)):
        main, _ = rng.choice((page_zeroed, page_garbage))(rng, main, wal)
    return main, wal


def page_garbage(rng, main, wal):
    return _over(main, rng.randrange(len(main) // SIZE) * SIZE, rng.randbytes(SIZE)), wal


def two_things(rng, main, wal):
    for damage in rng.sample((bits_main, bits_wal, truncated, wal_garbage, block_zeroed, many_pages, header_gone), 2):
        main, wal = damage(rng, main, wal) if main else (main, wal)
    return main, wal


def newer_version(rng, main, wal):
    return _over(main, 60, struct.pack(">I", 99)), wal


def _over(data, at, part):
    return (data[:at] + part[: max(0, len(data) - at)] + data[at + len(part) :])[: len(data)]


def random_bytes(rng, main, wal):
    return rng.randbytes(len(main)), rng.randbytes(len(wal))


def emptied(rng, main, wal):
    return b"", b""


DAMAGES = (
    bits_main, bits_wal, bits_both, truncated, wal_truncated, wal_lost, wal_garbage, wal_all_garbage, page_zeroed,
    block_zeroed, block_garbage, header_gone, map_gone, trunk_gone, root_gone, newer_version, random_bytes, emptied,
    inner_gone, bits_of_structure, many_pages, two_things, bits_of_structure, many_pages,
)  # fmt: skip


# -- the judge


@dataclass
class Harm:
    """What a damage touched, and so which rows have to be there and whether rows may be back."""

    truth: Truth
    main: bytes
    wal: bytes

    def __post_init__(self) -> None:
        truth = self.truth
        whole, spoiled = truth.wal.ljust(32, b"\0"), self.wal.ljust(32, b"\0")
        head = whole[:32] != spoiled[:32]
        frames = range((len(truth.wal) - 32) // FRAME if len(truth.wal) > 32 else 0)
        cut = [(data[32 + at * FRAME :][:FRAME]) for data in (whole, spoiled) for at in frames]
        self.frames = {at for at in frames if cut[at] != cut[at + len(frames)]}
        if head and (not any(spoiled[:32]) or 0 in self.frames):
            self.frames |= set(frames)
        before = {at + 1 for at in self.frames} | ({0} if head else set())
        good = [at for at in truth.commits if at not in self.frames and at not in before]
        self.end = good[-1] if good else -1
        self.torn = any(at <= self.end for at in self.frames) or head
        self.rolled_back = bool(truth.commits) and self.end < truth.commits[-1]
        named = {int.from_bytes(self.wal[32 + at * FRAME :][:4], "big") for at in self.frames}
        newest = truth.frame_of
        self.pages = named | {n for n, at in newest.items() if at in self.frames or at > self.end}
        for n in range(1, len(truth.main) // SIZE + 1):
            at = slice((n - 1) * SIZE, n * SIZE)
            if n not in newest and truth.main[at] != self.main[at]:
                self.pages.add(n)

    def must(self) -> set[int]:
        return {row_id for row_id in self.truth.rows if self._reachable(row_id)}

    def _reachable(self, row_id: int) -> bool:
        truth = self.truth
        if truth.pages_of[row_id] & self.pages:
            return False
        led = not truth.path_of[row_id] & self.pages
        if led and not self.torn:
            return True
        if truth.books & self.pages:
            return False
        (leaf,) = [n for n in truth.pages_of[row_id] if truth.page(n)[0] == 13][:1]
        mapped = (leaf - 2) // 205 * 205 + 2
        return led or not ({mapped, 1} | truth.trunks) & self.pages

    def may(self) -> dict[int, bytes]:
        """Rows that may be there: the waiting ones; those that had left only where their leaving is not on record."""
        waiting = {row_id: row[1] for row_id, row in self.truth.rows.items()}
        return waiting | self.truth.put if self.rolled_back or self._unprovable() else waiting

    def _unprovable(self) -> bool:
        in_order = {name for _, name, _ in self.truth.tables["counters"]} <= IN_ORDER
        return self.torn and (not in_order or bool(self.truth.books & self.pages))


def check(truth: Truth, main: bytes, wal: bytes, folder: Path) -> dict[int, tuple]:
    """Rescues and judges; returns the saved rows."""
    write(folder / "damaged.db", main, wal)
    fresh = folder / f"{uuid.uuid4()}.db"
    report = rescue(folder / "damaged.db", fresh, truth.now)
    assert not fresh.with_name(fresh.name + "-wal").exists()
    harm = Harm(truth, main, wal)
    saved = accounts_hold(fresh, report, truth.now)
    missing, may = harm.must() - set(saved), harm.may()
    assert not missing, f"{len(missing)} of {len(truth.rows)} rows missed: {sorted(missing)[:5]}"
    back = {row_id for row_id in saved if row_id not in may}
    assert not back, f"{len(back)} rows are back: {sorted(back)[:5]}"
    for row_id, row in saved.items():
        assert row[1] == may[row_id]
        assert row[3] == queuefile.checksum(row_id, row[1])
    drains(fresh, saved, truth.now)
    return saved


def accounts_hold(fresh: Path, report, now: float) -> dict[int, tuple]:
    with closing(sqlite3.connect(fresh)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        rows = {row[0]: row for row in conn.execute(f"SELECT * FROM {queuefile.TABLE}")}
        ((next_id, *held, started_at, _),) = conn.execute(
            "SELECT next_id, rows, bytes, redundant, started_at, clean FROM meta"
        ).fetchall()
        openings = conn.execute("SELECT first_row_id, queue_id FROM openings ORDER BY 1").fetchall()
        counters = conn.execute("SELECT queue_id, n FROM counters").fetchall()
    assert held == [len(rows), sum(len(row[1]) for row in rows.values()), sum(row[5] for row in rows.values())]
    assert next_id > max(rows, default=0)
    assert 0 <= started_at < now + 11 * 366 * 86400
    assert report.rows == len(rows)
    assert report.damaged >= 0
    ends = ([first for first, _ in openings] + [next_id])[1:]
    assert not rows or openings[0][0] <= min(rows)
    for (first, owner), end in zip(openings, ends, strict=True):
        assert str(uuid.UUID(owner)) == owner
        gone = sum(n for each, n in counters if each == owner)
        assert end - first == gone + sum(first <= row_id < end for row_id in rows)
    assert all(n > 0 for _, n in counters)
    assert {owner for owner, _ in counters} <= {owner for _, owner in openings} | {"total"}
    return rows


def drains(fresh: Path, saved: dict[int, tuple], now: float) -> None:
    queue = open_queue(fresh, Bounds(100_000), FakeClock(now))
    try:
        assert not list(fresh.parent.glob(f"{fresh.name}.corrupt-*"))
        before = queue.ledgers()
        assert sum(each.pending for each in before) == queue.depth == len(saved)
        for each in before:
            assert each.given == each.accepted + each.pending + sum(each.lost.values())
            assert min(each.given, each.accepted, each.pending, *each.lost.values(), 0) >= 0
        drained = {}
        while batch := queue.peek(1000):
            drained.update(batch.rows)
            queue.settle(batch, OK)
        assert drained == {row_id: row[1] for row_id, row in saved.items()}
        assert queue.put([Sample("new", 1.0, "2026-01-01T00:00:00.000Z", Status.HEALTHY)]) == 0
    finally:
        queue.close()


def damage_case(folder: Path, seed: int) -> None:
    """One seed: a history, then each damage in turn over the seeds."""
    rng = random.Random(seed)
    truth = build(folder, seed, live=rng.random() < 0.6, cap=rng.choice((60, 400, 5000)))
    damage = DAMAGES[seed % len(DAMAGES)]
    check(truth, *damage(rng, truth.main, truth.wal), folder)


# -- the tests


@pytest.fixture(scope="module")
def truths(tmp_path_factory):
    """Two histories, killed and closed."""
    return [build(tmp_path_factory.mktemp("q"), seed, live) for seed, live in ((11, True), (12, False))]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
def test_good_rows_are_saved_and_settled_ones_stay_away(truths, tmp_path, damage):
    for seed, truth in enumerate(truths * 2):
        check(truth, *damage(random.Random(seed), truth.main, truth.wal), tmp_path)


@pytest.mark.parametrize("live", [True, False])
def test_a_sound_file_comes_out_as_it_went_in(tmp_path, live):
    truth = build(tmp_path, 5, live)
    assert truth.rows
    write(tmp_path / "damaged.db", truth.main, truth.wal)
    report = rescue(tmp_path / "damaged.db", tmp_path / "fresh.db", truth.now)
    assert (report.rows, report.damaged) == (len(truth.rows), 0)
    with closing(sqlite3.connect(tmp_path / "fresh.db")) as conn:
        assert {row[0]: row for row in conn.execute(f"SELECT * FROM {queuefile.TABLE}")} == truth.rows
        for name, rows in truth.tables.items():
            found = conn.execute(f"SELECT * FROM {name}").fetchall()
            assert found == rows if name != "meta" else found[0][:-1] == rows[0][:-1]


def small(tmp_path, count=300, settled=100):
    """A closed file with plain rows, and its queue id."""
    clock = FakeClock()
    queue = open_queue(tmp_path / "source.db", Bounds(10_000), clock)
    queue.put([Sample(f"m{n}", float(n), "2026-01-01T00:00:00.000Z", Status.HEALTHY) for n in range(count)])
    for _ in range(settled // 100):
        queue.settle(queue.peek(100), OK)
    queue.close()
    truth = Truth((tmp_path / "source.db").read_bytes(), b"", clock.now(), {})
    _learn(truth, tmp_path)
    return truth, queue.queue_id


def ledger_of(tmp_path, main, now):
    write(tmp_path / "damaged.db", main, b"")
    report = rescue(tmp_path / "damaged.db", tmp_path / "fresh.db", now)
    queue = open_queue(tmp_path / "fresh.db", Bounds(10_000), FakeClock(now))
    queue.close()
    return report, queue.ledgers()[0]


def test_a_lost_page_is_declared_with_its_queue_id(tmp_path):
    truth, queue_id = small(tmp_path)
    leaf = min(truth.pages_of[200])
    gone = sum(leaf in pages for pages in truth.pages_of.values())
    main = _over(truth.main, (leaf - 1) * SIZE, bytes(SIZE))
    report, ledger = ledger_of(tmp_path, main, truth.now)
    assert (report.rows, report.damaged) == (200 - gone, gone)
    assert ledger == (queue_id, 300, 100, 200 - gone, {"damaged": gone})
    assert str(gone) in report.text


def test_without_counters_every_missing_id_is_damaged(tmp_path):
    truth, queue_id = small(tmp_path)
    page = next(n for n in truth.books if b"accepted" in truth.page(n))
    report, ledger = ledger_of(tmp_path, _over(truth.main, (page - 1) * SIZE, bytes(SIZE)), truth.now)
    assert report.damaged == 100
    assert ledger == (queue_id, 300, 0, 200, {"damaged": 100})


def test_without_openings_the_rows_get_a_new_queue_id_and_sums_go_to_the_total(tmp_path):
    truth, queue_id = small(tmp_path)
    page = next(n for n in truth.books if queue_id.encode() in truth.page(n) and b"accepted" not in truth.page(n))
    report, ledger = ledger_of(tmp_path, _over(truth.main, (page - 1) * SIZE, bytes(SIZE)), truth.now)
    assert ledger.queue_id != queue_id
    assert (ledger.given, ledger.pending, report.damaged) == (200, 200, 0)
    assert "queue id" in report.text
    with closing(sqlite3.connect(tmp_path / "fresh.db")) as conn:
        assert conn.execute("SELECT * FROM counters").fetchall() == [("total", "accepted", 100)]


def test_the_first_block_gone_loses_no_row(tmp_path):
    truth, queue_id = small(tmp_path)
    _, ledger = ledger_of(tmp_path, _over(truth.main, 0, bytes(4096)), truth.now)
    assert (ledger.queue_id, ledger.accepted, ledger.pending) == (queue_id, 100, 200)


def stale_leaf(truth):
    """A page that was given back and still holds settled rows."""
    live = set().union(*truth.pages_of.values(), *truth.path_of.values())
    for n in range(9, len(truth.main) // SIZE + 1):
        if n not in live and truth.page(n)[0] == 13 and b"m50" in truth.page(n):
            return n
    raise AssertionError("no such page: the test tests nothing")


def saved_ids(tmp_path, main, now):
    write(tmp_path / "damaged.db", main, b"")
    report = rescue(tmp_path / "damaged.db", tmp_path / "fresh.db", now)
    return set(accounts_hold(tmp_path / "fresh.db", report, now))


def spoil(main, pages):
    for n in pages:
        main = _over(main, (n - 1) * SIZE, b"\xff" * SIZE)
    return main


def test_a_tree_that_leads_to_a_page_given_back_is_not_followed(tmp_path):
    truth, _ = small(tmp_path)
    (root,) = set().union(*truth.path_of.values())
    (cell,) = struct.unpack_from(">H", truth.page(root), 12)
    at = (root - 1) * SIZE + cell
    main = _over(truth.main, at, struct.pack(">I", stale_leaf(truth)))
    assert saved_ids(tmp_path, main, truth.now) == set(truth.rows)


def test_a_list_of_tables_that_names_a_page_given_back_is_not_followed(tmp_path):
    truth, _ = small(tmp_path)
    entry = b"queue_default" * 2
    assert entry + b"\x03" in truth.main
    main = truth.main.replace(entry + b"\x03", entry + bytes([stale_leaf(truth)]))
    assert saved_ids(tmp_path, main, truth.now) == set(truth.rows)


@pytest.mark.parametrize("known", ["the pointer map", "the freelist", "the counters"])
def test_settled_rows_on_pages_given_back_stay_away_by_what_is_left_alone(tmp_path, known):
    truth, _ = small(tmp_path)
    assert stale_leaf(truth)
    gone = set().union(*truth.path_of.values())
    gone |= truth.trunks if known != "the freelist" else set()
    gone |= {2, 207} if known != "the pointer map" else set()
    assert saved_ids(tmp_path, spoil(truth.main, gone), truth.now) == set(truth.rows)


def test_what_lies_behind_the_end_of_the_database_is_not_read(tmp_path):
    truth, _ = small(tmp_path)
    main = truth.main + truth.page(stale_leaf(truth)) * 3
    assert saved_ids(tmp_path, main, truth.now) == set(truth.rows)


def test_rows_that_the_counters_deny_are_believed(tmp_path):
    truth, queue_id = small(tmp_path)
    at = truth.main.index(b"accepted", SIZE * 3) + len("accepted")
    assert truth.main[at] == 100
    report, ledger = ledger_of(tmp_path, _over(truth.main, at, b"\x7f"), truth.now)
    assert (report.rows, report.damaged) == (200, 0)
    assert ledger == (queue_id, 300, 100, 200, {})


def test_a_frame_that_is_damaged_does_not_take_the_later_ones_along(tmp_path):
    clock = FakeClock()
    queue = open_queue(tmp_path / "source.db", Bounds(10_000), clock)
    for n in range(30):
        queue.put([Sample(f"m{n}", 0.0, "2026-01-01T00:00:00.000Z", Status.HEALTHY)])
    queue.settle(queue.peek(10), OK)
    wal = bytearray((tmp_path / "source.db-wal").read_bytes())
    wal[32 + 10 * FRAME + 500] ^= 4
    write(tmp_path / "damaged.db", (tmp_path / "source.db").read_bytes(), bytes(wal))
    queue.close()
    assert rescue(tmp_path / "damaged.db", tmp_path / "fresh.db", clock.now()).rows == 20


def test_what_stays_redundant_repeats_a_row_that_is_here(tmp_path):
    clock = FakeClock()
    queue = open_queue(tmp_path / "source.db", Bounds(10_000), clock)
    filler = [Sample(f"filler-{n}", 0.0, "2026-01-01T00:00:00.000Z", Status.HEALTHY) for n in range(40)]
    for status in (Status.HEALTHY, Status.HEALTHY, Status.UNHEALTHY, Status.UNHEALTHY):
        queue.put([Sample("m", 0.0, "2026-01-01T00:00:00.000Z", status), *filler])
    queue.close()
    truth = Truth((tmp_path / "source.db").read_bytes(), b"", clock.now(), {})
    _learn(truth, tmp_path)
    assert [truth.rows[n][5] for n in (1, 42, 83, 124)] == [0, 1, 0, 1]
    leaf = min(truth.pages_of[83])
    write(tmp_path / "damaged.db", _over(truth.main, (leaf - 1) * SIZE, bytes(SIZE)), b"")
    rescue(tmp_path / "damaged.db", tmp_path / "fresh.db", clock.now())
    with closing(sqlite3.connect(tmp_path / "fresh.db")) as conn:
        found = conn.execute(f"SELECT _id, redundant FROM {queuefile.TABLE} WHERE metric_id = 'm'").fetchall()
        assert found == [(1, 0), (42, 1), (124, 0)]
        assert conn.execute("SELECT * FROM runs WHERE metric = 'm'").fetchall() == [("m", "unhealthy", 124)]


def test_a_foreign_database_gives_an_empty_queue(tmp_path):
    with closing(sqlite3.connect(tmp_path / "damaged.db")) as conn, conn:
        conn.execute("CREATE TABLE stranger (a INTEGER PRIMARY KEY, b BLOB, c REAL, d INT, e TEXT, f INT)")
        conn.executemany("INSERT INTO stranger VALUES (?, 'x', 1.0, 7, 'y', 0)", [(n,) for n in range(500)])
    report = rescue(tmp_path / "damaged.db", tmp_path / "fresh.db", 0.0)
    assert (report.rows, report.damaged) == (0, 0)
    assert accounts_hold(tmp_path / "fresh.db", report, 0.0) == {}


def test_a_missing_file_gives_an_empty_queue_and_an_unwritable_place_says_so(tmp_path):
    assert rescue(tmp_path / "none.db", tmp_path / "fresh.db", 0.0).rows == 0
    with pytest.raises(QueueError, match="nowhere"):
        rescue(tmp_path / "none.db", tmp_path / "nowhere" / "fresh.db", 0.0)


@pytest.mark.slow
def test_ten_thousand_rows_take_well_under_a_second(tmp_path):
    truth = build(tmp_path, 3, True, rows=10_000, cap=10_000)
    write(tmp_path / "damaged.db", _over(truth.main, 0, bytes(4096)), truth.wal)
    began = time.perf_counter()
    rescue(tmp_path / "damaged.db", tmp_path / "fresh.db", truth.now)
    assert time.perf_counter() - began < 2.0, "the aim is 0.2 s; the rest is for a busy machine"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(main=st.binary(max_size=4000), wal=st.binary(max_size=3000), at=st.integers(0, 40_000), real=st.booleans())
@pytest.mark.slow
def test_no_bytes_raise(truths, tmp_path_factory, main, wal, at, real):
    folder = tmp_path_factory.mktemp("f")
    if real:
        main, wal = _over(truths[0].main, at, main), _over(truths[0].wal, at, wal)
    write(folder / "damaged.db", main, wal)
    report = rescue(folder / "damaged.db", folder / "fresh.db", 1e9)
    accounts_hold(folder / "fresh.db", report, 1e9)
    shutil.rmtree(folder)


def test_spoiled_pages_neither_raise_nor_loop(truths, tmp_path):
    """Dense damage of structure: page types, cell counts and pointers at random, overflow chains crossed."""
    for seed in range(30):
        rng, main = random.Random(seed), bytearray(truths[0].main)
        for page in range(len(main) // SIZE):
            at = page * SIZE + rng.choice((0, 3, 5, 8, 12, 20, rng.randrange(SIZE - 8)))
            main[at : at + 4] = rng.choice((rng.randbytes(4), bytes(3) + bytes([rng.randrange(256)])))
        write(tmp_path / "damaged.db", bytes(main), truths[0].wal)
        fresh = tmp_path / f"{seed}.db"
        accounts_hold(fresh, rescue(tmp_path / "damaged.db", fresh, truths[0].now), truths[0].now)
