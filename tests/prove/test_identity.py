"""Exactly once when a row's identity is at stake: other cuts of a batch, power cuts, snapshots, clones.

Each verdict has a value of its own, so that a row is known again under whatever queue id and row id it came: a value
that is twice in the hub was taken twice, and one that is missing was swallowed. A real queue file, sender and hub on
one fake clock; between them a line that loses answers or answers itself. Every case runs for many seeds.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import struct
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from observer_agent import __version__, queuefile
from observer_agent.clock import iso
from observer_agent.clouds.observer import Notice, Observer, headers
from observer_agent.diskqueue import Bounds, open_queue
from observer_agent.heartbeat import Heartbeat
from observer_agent.model import Health, Sample, Status
from observer_agent.sender import IDLE, Sender
from observer_agent.transport import Reply
from tests.wire_hub import TestHub, memory_hub

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("SEED") or random.randrange(2**32))
PASS, LOSE, AWAY = "pass", "lose", "away"
ROUGH = (PASS, PASS, LOSE, LOSE, AWAY, 404, 405, 413, 413, 429, 503)
PARTS = ("", "-wal")
WAL_HEAD, WAL_FRAME = 32, 24 + queuefile.PAGE_SIZE


class Line:
    """Observer's transport: the hub in this process behind a line that draws what becomes of each request."""

    def __init__(self, hub, started_at, chance):
        self.fates = (PASS,)
        self._hub = hub
        self._headers = headers(hub.key, started_at, __version__)
        self._chance = chance

    def call(self, method, path, body=None, extra=None, seconds=30.0):
        fate = self._chance.choice(self.fates)
        if isinstance(fate, int):
            return Reply(fate)
        if fate == AWAY:
            return Reply(0, error="connection refused")
        answer = self._hub.client().open(path, method=method, data=body, headers={**self._headers, **(extra or {})})
        if fate == LOSE:
            return Reply(0, error="connection closed by the other side")
        return Reply(answer.status_code, answer.headers, answer.data)

    def close(self):
        pass


@dataclass
class World:
    """The hub and what was ever put; `number` makes the values."""

    hub: TestHub
    folder: Path
    chance: random.Random
    number: itertools.count
    machines: list

    @property
    def clock(self):
        return self.hub.clock

    def boot(self, file="a.db"):
        self.machines.append(Machine(self, self.folder / file))
        return self.machines[-1]

    def values(self):
        """Every value in the hub, in the order of arrival."""
        with closing(sqlite3.connect(self.folder / "hub.db")) as conn:
            return [int(row[0]) for row in conn.execute("SELECT value FROM pushes ORDER BY id")]

    def check(self, expected=(), lost=0):
        """Nothing twice, nothing unexplained, order kept; of `expected`, no more than `lost` is missing."""
        values = self.values()
        assert [value for value, n in Counter(values).items() if n > 1] == []
        missing = set(expected) - set(values)
        assert len(missing) <= lost, f"{len(missing)} rows never arrived, {lost} were declared lost"
        with closing(sqlite3.connect(self.folder / "hub.db")) as conn:
            taken = dict(conn.execute("SELECT queue_id, sum(last_id - first_id + 1) FROM taken GROUP BY queue_id"))
            told = conn.execute("SELECT queue_id, accepted FROM deliveries").fetchall()
        assert [(queue_id, n) for queue_id, n in told if n > taken.get(queue_id, 0)] == []


class Machine:
    """One life of an agent on a queue file."""

    def __init__(self, world, file):
        self.world, self.file, clock = world, file, world.clock
        self.queue = open_queue(file, Bounds(10_000), clock)
        self.started_at = iso(self.queue.claim_start())
        self.line = Line(world.hub, self.started_at, world.chance)
        cloud = Observer(self.line, clock, Notice(clock))
        self.sender = Sender(self.queue, cloud, clock, lambda: 1.0)
        self.heartbeat = Heartbeat(cloud, self._health, clock, lambda orders: None)
        self.put_values = []

    def _health(self):
        return Health(__version__, self.started_at, 1, 0, 0, 1, (), "", self.queue.ledgers())

    def put(self, count):
        """Stores fresh verdicts of a few metrics; returns their values."""
        values = list(itertools.islice(self.world.number, count))
        stamp = iso(self.world.clock.now())
        self.queue.put([Sample(f"m{value % 3}", value, stamp, Status.HEALTHY) for value in values])
        self.put_values += values
        return values

    def turns(self, count, fates=(PASS,)):
        """So many turns of the sender, the time passing that each asks for; no rest where there is nothing to do."""
        self.line.fates = fates
        for _ in range(count):
            wait = self.sender.step()
            self.world.clock.advance(0.0 if wait == IDLE and self.queue.depth == 0 else wait)

    def drain(self):
        """Until nothing waits; then the hub hears the ledgers."""
        self.line.fates = (PASS,)
        for _ in range(5000):
            if not self.queue.depth:
                break
            self.world.clock.advance(self.sender.step())
        assert self.queue.depth == 0
        assert self.heartbeat.beat().ok
        assert all(one.given == one.accepted + one.pending + sum(one.lost.values()) for one in self.queue.ledgers())

    def waiting(self):
        """The values that wait in the file."""
        with closing(sqlite3.connect(self.file)) as conn:
            return [json.loads(row[0])["value"] for row in conn.execute("SELECT data FROM queue_default ORDER BY _id")]

    def photo(self, torn=None):
        """The file as it is now, and its `-wal`; with `torn`, only the first part of that reached the disk."""
        parts = {part: Path(f"{self.file}{part}") for part in PARTS}
        found = {part: path.read_bytes() for part, path in parts.items() if path.exists()}
        if torn is not None and "-wal" in found:
            found["-wal"] = found["-wal"][: torn.randint(self._synced(), len(found["-wal"]))]
        return found

    def _synced(self):
        """How much of the `-wal` is on the disk for certain: SQLite syncs what it copies into the file itself.

        The two numbers of frames are `nBackfill` and `nBackfillAttempted` of the wal-index.
        """
        index = Path(f"{self.file}-shm").read_bytes()
        frames = max(struct.unpack_from("=I", index, at)[0] for at in (96, 128))
        return WAL_HEAD + frames * WAL_FRAME if frames else 0

    def off(self):
        """The process is gone; what it leaves of the file is put back by `develop`."""
        self.queue.close()

    def kill(self):
        """SIGKILL: the file stays as it is, no clean end."""
        left = self.photo()
        self.off()
        develop(left, self.file)


def develop(photo, file):
    """Puts a photo in the place of a file."""
    for part in (*PARTS, "-shm"):
        Path(f"{file}{part}").unlink(missing_ok=True)
    for part, content in photo.items():
        Path(f"{file}{part}").write_bytes(content)


@contextmanager
def world_in(folder, n):
    print(f"SEED={SEED}, case {n}")
    with memory_hub(folder) as hub:
        world = World(hub, folder, random.Random(f"{SEED} {n}"), itertools.count(1), [])
        try:
            yield world
        finally:
            for machine in world.machines:
                machine.off()


@pytest.fixture
def world(tmp_path, request):
    with world_in(tmp_path, request.param) as made:
        yield made


def seeds(count):
    """So many seeds in CI, five times as many in `make prove`."""
    more = [pytest.param(n, marks=pytest.mark.prove) for n in range(count, 5 * count)]
    return pytest.mark.parametrize("world", [*range(count), *more], indirect=True)


@seeds(15)
def test_a_lost_answer_and_another_cut_of_the_batch_on_the_retry(world):
    chance, machine = world.chance, world.boot()
    put = []
    for _ in range(chance.randint(5, 15)):
        put += machine.put(chance.randint(1, 150))
        fates = (LOSE,) if chance.random() < 0.2 else ROUGH
        machine.turns(chance.randint(1, 8), fates)
        if chance.random() < 0.2:
            machine.kill()
            world.clock.advance(0.5)
            machine = world.boot()
    machine.drain()
    assert machine.queue.lost() == {}
    machine.off()
    world.check()
    assert world.values() == put


@pytest.mark.parametrize(("first", "then"), [(100, 413), (100, 404), (1, 404)])
def test_every_cut_after_a_lost_answer(tmp_path, first, then):
    with world_in(tmp_path, 0) as world:
        machine = world.boot()
        put = machine.put(250)
        if first == 1:
            machine.turns(1, (404,))
        machine.turns(1, (LOSE,))
        assert world.values() == put[:first]
        machine.turns(1, (then,))
        put += machine.put(30)
        machine.turns(1, (LOSE,))
        machine.drain()
        machine.off()
        world.check()
        assert world.values() == put
        agent = world.hub.agent()
        assert (agent["taken"], agent["duplicates"] >= first) == (280, True)


@seeds(15)
def test_a_power_cut_takes_committed_rows_back(world):
    chance, machine = world.chance, world.boot()
    for _ in range(4):
        for _ in range(chance.randint(1, 6)):
            machine.put(chance.randint(1, 120))
            machine.turns(chance.randint(0, 4), ROUGH)
        on_disk = machine.photo(torn=chance)
        for _ in range(chance.randint(0, 4)):
            machine.put(chance.randint(1, 120))
            machine.turns(chance.randint(0, 4), (PASS, LOSE))
        machine.off()
        develop(on_disk, machine.file)
        world.clock.advance(1.0)
        machine = world.boot()
        expected = machine.waiting() + machine.put(chance.randint(1, 200))
        machine.turns(chance.randint(0, 6), ROUGH)
        if chance.random() < 0.5:
            machine.drain()
            world.check(expected)
    expected = machine.waiting()
    machine.drain()
    assert machine.queue.lost() == {}
    machine.off()
    world.check(expected)


@seeds(10)
def test_a_snapshot_is_restored_again_and_again(world):
    chance, machine = world.chance, world.boot()
    machine.put(chance.randint(1, 300))
    machine.turns(chance.randint(0, 5), (PASS, LOSE, 413))
    running = chance.random() < 0.5
    snapshot = machine.photo()
    if not running:
        machine.off()
        snapshot = machine.photo()
        machine = world.boot()
    for _ in range(4):
        machine.put(chance.randint(1, 300))
        machine.turns(chance.randint(0, 8), (PASS, LOSE))
        machine.off()
        develop(snapshot, machine.file)
        world.clock.advance(chance.choice((0.0, 3600.0)))
        world.clock.advance(0.002)
        machine = world.boot()
        expected = machine.waiting() + machine.put(chance.randint(1, 300))
        if chance.random() < 0.5:
            machine.drain()
            world.check(expected)
    machine.drain()
    assert machine.queue.lost() == {}
    machine.off()
    world.check(expected)


def clone(machine):
    """A second machine's copy of a file, as it is now."""
    develop(machine.photo(), machine.world.folder / "b.db")


@seeds(10)
def test_a_cloned_machine_one_after_the_other(world):
    chance = world.chance
    put = []
    machine = world.boot()
    put += machine.put(chance.randint(1, 300))
    machine.turns(chance.randint(0, 4), ROUGH)
    clone(machine)
    for name in chance.sample(["a.db", "b.db"] * 3, 6):
        machine.kill()
        world.clock.advance(0.01)
        machine = world.boot(name)
        put += machine.put(chance.randint(0, 200))
        machine.turns(chance.randint(0, 8), ROUGH)
    for name in ("a.db", "b.db"):
        machine.kill()
        world.clock.advance(0.01)
        machine = world.boot(name)
        machine.drain()
        assert machine.queue.lost() == {}
    machine.off()
    world.check(put)
    assert len(world.values()) == len(put)


@seeds(15)
def test_a_cloned_machine_both_at_once(world):
    chance, older = world.chance, world.boot()
    shared = older.put(chance.randint(1, 300))
    older.turns(chance.randint(0, 4), ROUGH)
    clone(older)
    together = chance.random() < 0.3  # started in the same millisecond: neither is the newer one
    world.clock.advance(0.0 if together else chance.choice((0.001, 60.0)))
    if together:
        older.kill()
        older = world.boot()
    newer = world.boot("b.db")
    for _ in range(chance.randint(3, 12)):
        machine = chance.choice((older, newer))
        machine.put(chance.randint(0, 60))
        machine.turns(chance.randint(0, 3), (PASS, PASS, LOSE, 413, 503))
    for machine in chance.sample((older, newer), 2):
        machine.drain()
    print(f"together {together}, the older lost {older.queue.lost()} of {len(older.put_values)}")
    fenced = older.queue.lost().get("fenced", 0)
    assert set(older.queue.lost()) <= (set() if older.started_at >= newer.started_at else {"fenced"})
    assert newer.queue.lost() == {}
    older.off()
    newer.off()
    world.check([*shared, *newer.put_values])
    world.check(older.put_values, lost=fenced)
