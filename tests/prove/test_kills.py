"""`kill -9` at random moments over puts, settles and evictions, the hub behind a proxy that loses its answers.

Nothing here knows what the queue holds but from its file and from what `put` has returned for. In `roomy` nothing is
ever evicted: then the hub must hold exactly the rows that were committed. In `tight` the cap evicts all the time, and
triggers in the file note, in the very transaction, which row left for which reason: a row that was declared lost may be
in the hub all the same only if the answer to it never reached the writer.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from observer_agent import queuefile
from observer_agent.clock import Clock
from observer_agent.demo.stage import get
from observer_agent.diskqueue import Bounds, open_queue
from tests.prove.lossy import Lossy
from tests.prove.writer import ACKED_BYTES, LIFE, METRICS
from tests.wire_hub import HubProcess

HUB_KILL_EVERY = 25
EARLY = 0.2  # of the kills come at any moment from the fork on, opening included; the others after the first put
PATIENCE = 60.0
PATIENCE_DRAIN = 300.0  # a thousand lives leave more than 200,000 rows behind
WATCHER = f"""
CREATE TABLE left_file (row_id INTEGER NOT NULL, reason TEXT);
CREATE TRIGGER leaves AFTER DELETE ON {queuefile.TABLE} BEGIN INSERT INTO left_file VALUES (OLD._id, NULL); END;
CREATE TRIGGER first_of_reason AFTER INSERT ON counters BEGIN
    UPDATE left_file SET reason = NEW.name WHERE reason IS NULL; END;
CREATE TRIGGER more_of_reason AFTER UPDATE ON counters BEGIN
    UPDATE left_file SET reason = NEW.name WHERE reason IS NULL; END;
CREATE INDEX not_yet ON left_file (row_id) WHERE reason IS NULL;
"""


class Zygote:
    """The writer's process, forked anew for each life."""

    def __init__(self, folder, url, key):
        self._acked = folder / "acked"
        self._acked.write_bytes(bytes(ACKED_BYTES))
        with self._acked.open("r+b") as handle:
            self._memory = mmap.mmap(handle.fileno(), ACKED_BYTES)
        self._errors = (folder / "writer.log").open("wb")
        words = [sys.executable, "-X", "dev", "-W", "error", "-m", "tests.prove.writer", str(folder), url, key]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self._said = b""
        self._pid = 0

    def begin(self, **orders):
        self._memory[:] = bytes(ACKED_BYTES)
        self._process.stdin.write(json.dumps(orders).encode() + b"\n")
        self._process.stdin.flush()
        self._pid = int(self._hear("begun"))

    def until_put(self):
        """Returns once something was stored."""
        _until(lambda: self.acked()[0])

    def kill(self):
        """SIGKILL; returns how many rows of each metric `put` had returned for."""
        os.kill(self._pid, signal.SIGKILL)
        assert self.ended() == signal.SIGKILL
        return self.acked()[1:]

    def ended(self, seconds=PATIENCE):
        """Waits for the end of the life; the wait status."""
        status, self._pid = int(self._hear("ended", seconds)), 0
        return status

    def acked(self):
        return struct.unpack(f"={METRICS + 1}I", self._memory[:])

    def _hear(self, word, seconds=PATIENCE):
        while b"\n" not in self._said:
            assert select.select([self._process.stdout], [], [], seconds)[0], f"no {word!r} within {seconds} s"
            heard = os.read(self._process.stdout.fileno(), 4096)
            assert heard, "the writer is gone"
            self._said += heard
        line, _, self._said = self._said.partition(b"\n")
        first, _, rest = line.decode().partition(" ")
        assert first == word
        return rest

    def close(self):
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()
        self._errors.close()
        self._memory.close()


@dataclass
class Proof:
    """Everything that a run needs; `acked` is rows that `put` returned for, by life and metric."""

    folder: object
    seed: int
    hub: HubProcess
    lossy: Lossy
    zygote: Zygote
    chance: random.Random
    acked: dict = field(default_factory=dict)
    hub_kills: int = 0

    def kills(self, count, caps):
        for life in range(1, count + 1):
            self.one_life(life, caps)

    def one_life(self, life, caps):
        chance, zygote = self.chance, self.zygote
        seed, threads = chance.randrange(2**32), chance.randint(2, 4)
        zygote.begin(life=life, cap=chance.choice(caps), seed=seed, threads=threads)
        early = chance.random() < EARLY
        if not early:
            zygote.until_put()
        threading.Event().wait(chance.uniform(0.0 if early else 0.005, 0.08))
        if life % HUB_KILL_EVERY == 0:
            self.hub.end(signal.SIGKILL)
            self.hub.start()
            self.hub_kills += 1
        for number, count in enumerate(zygote.kill()):
            self.acked[life, number] = count

    def drain(self, cap):
        self.zygote.begin(life=0, cap=cap, seed=self.seed, drain=True)
        assert self.zygote.ended(PATIENCE_DRAIN) == 0, (self.folder / "writer.log").read_text()[-3000:]

    def held(self):
        """(row id, queue id, metric, value) of every row of the hub, in the order of arrival."""
        with closing(sqlite3.connect(self.folder / "hub.db")) as conn:
            found = conn.execute("SELECT row_id, queue_id, metric_id, value FROM pushes ORDER BY id")
            return [(i, q, m, int(v)) for i, q, m, v in found]

    def figures(self, took, kills):
        print(
            f"{kills} kills in {took:.1f} s ({60 * kills / took:.0f} a minute), {self.hub_kills} of the hub;"
            f" answers passed {self.lossy.passed}, lost {self.lossy.lost}, 503 {self.lossy.refused};"
            f" {sum(self.acked.values())} rows acknowledged by put"
        )


@pytest.fixture
def proof(tmp_path):
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"SEED={seed}")
    hub = HubProcess(tmp_path, OBSERVER_HUB_TOKEN="")
    key = hub.key("writer")
    hub.start()
    lossy = Lossy(hub.port, seed)
    zygote = Zygote(tmp_path, lossy.url, key)
    try:
        yield Proof(tmp_path, seed, hub, lossy, zygote, random.Random(seed))
    finally:
        zygote.close()
        lossy.close()
        hub.end(signal.SIGKILL)


def run(proof, kills, caps):
    begin = time.monotonic()
    proof.kills(kills, caps)
    proof.figures(time.monotonic() - begin, kills)
    proof.drain(max(caps))
    assert "Traceback" not in (proof.folder / "writer.log").read_text()


def ledger(proof):
    """Given, accepted, and lost by reason, over all queue ids, from the file; nothing waits."""
    with closing(sqlite3.connect(proof.folder / "buffer.db")) as conn:
        given, rows = conn.execute("SELECT next_id - 1, rows FROM meta").fetchone()
        assert (rows, conn.execute(f"SELECT count(*) FROM {queuefile.TABLE}").fetchone()[0]) == (0, 0)
        lost = dict(conn.execute("SELECT name, sum(n) FROM counters GROUP BY name"))
    return given, lost.pop("accepted", 0), lost


def check_hub(proof, held):
    """No row twice, order kept, nothing unexplained."""
    arrived = [row_id for row_id, *_ in held]
    assert arrived == sorted(set(arrived)), "a row is there twice, or out of order"
    by_metric = defaultdict(list)
    for _, _, metric, value in held:
        by_metric[metric].append(value)
    assert all(values == sorted(values) for values in by_metric.values())
    (agent,) = get(proof.hub.port, "/api/v1/agents")["agents"]
    assert agent["taken"] == len(held)
    assert [one["unexplained"] for one in agent["delivery"]] == [0] * len(agent["delivery"])
    stored = Counter(queue_id for _, queue_id, *_ in held)
    with closing(sqlite3.connect(proof.folder / "hub.db")) as conn:
        taken = dict(conn.execute("SELECT queue_id, sum(last_id - first_id + 1) FROM taken GROUP BY queue_id"))
        told = conn.execute("SELECT queue_id, accepted FROM deliveries").fetchall()
    assert taken == stored
    assert [(queue_id, n) for queue_id, n in told if n > stored[queue_id]] == []
    return by_metric


def roomy(proof, kills):
    run(proof, kills, [1_000_000])
    held = proof.held()
    by_metric = check_hub(proof, held)
    given, accepted, lost = ledger(proof)
    assert (accepted, lost) == (given, {})
    assert [row_id for row_id, *_ in held] == list(range(1, given + 1))
    for number in range(METRICS):
        lives = Counter(value // LIFE for value in by_metric[f"m{number:02}"])
        expected = [life * LIFE + n for life, count in sorted(lives.items()) for n in range(1, count + 1)]
        assert by_metric[f"m{number:02}"] == expected
        assert all(lives[life] >= count for (life, n), count in proof.acked.items() if n == number)


def tight(proof, kills):
    caps = [30, 60, 200]
    open_queue(proof.folder / "buffer.db", Bounds(caps[0]), Clock()).close()
    with closing(sqlite3.connect(proof.folder / "buffer.db")) as conn:
        conn.executescript(WATCHER)
    run(proof, kills, caps)
    held = proof.held()
    check_hub(proof, held)
    given, accepted, lost = ledger(proof)
    with closing(sqlite3.connect(proof.folder / "buffer.db")) as conn:
        gone = conn.execute("SELECT row_id, reason FROM left_file ORDER BY row_id").fetchall()
    reasons = Counter(reason for _, reason in gone)
    print(f"given {given}, accepted {accepted}, lost {lost}; the hub holds {len(held)}")
    assert sum(proof.acked.values()) <= given == accepted + sum(lost.values())
    assert [row_id for row_id, _ in gone] == list(range(1, given + 1))
    assert reasons == {"accepted": accepted, **lost} and set(lost) == {"cap"}
    evicted = {row_id for row_id, reason in gone if reason == "cap"}
    arrived = {row_id for row_id, *_ in held}
    assert arrived | evicted == set(range(1, given + 1))
    assert arrived & evicted <= proof.lossy.unheard


@pytest.mark.slow
@pytest.mark.parametrize("what", [roomy, tight])
def test_a_hundred_kills(proof, what):
    what(proof, 100)


@pytest.mark.prove
@pytest.mark.parametrize("what", [roomy, tight])
def test_a_thousand_kills(proof, what):
    what(proof, 1000)


def _until(what):
    end = time.monotonic() + PATIENCE
    pause = threading.Event()
    while not what():
        assert time.monotonic() < end, f"not within {PATIENCE} s"
        pause.wait(0.002)
