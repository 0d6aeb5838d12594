"""A fleet: simulated agents with a planned life, processes of them that should be gone, and the time that they make.

An agent behaves as docs/wire.md says: rows keep their queue id and row id for life, go out in order, one queue id to a
request, again and again until they are answered. The plan says what the hub must find; `Agent.expected` counts it.
"""

from __future__ import annotations

import json
import random
import threading
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

from observer_agent.clock import Clock, iso
from tests.prove.fleet_hub import SharedClock

ROUND = 30.0  # seconds between two heartbeats
SLOT = 8  # rounds: what a slot brings is over after five of them
SLOTS = 5
MAIN = SLOT * SLOTS + 4
LONG = 170  # further rounds of the few that stay
AWAY = range(MAIN + 60, MAIN + 70)  # when those are silent: more than 5 % of the minutes that were seen by then
STAY = 25  # one agent in so many stays
THREADS = 8
KINDS = ("lag", "relapse", "old rows", "silence", "blink", "silent double", "double", "restart", "nothing")
DISTURBING = ("silence", "blink", "silent double")
PATIENCE = 300.0


@dataclass
class Agent:
    """One of the fleet, and what must be known of it in the end."""

    number: int
    key: str
    chance: random.Random
    clock: Clock
    started: float = 0.0
    queue: str = ""
    row_id: int = 0
    waiting: deque[tuple[str, int]] = field(default_factory=deque)
    given: Counter[tuple[str, int]] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)  # events by type: an even number where the last one clears
    restarts: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    doubled: tuple[float, str, int] | None = None  # the start of the old process, its queue id, its last row

    def __post_init__(self) -> None:
        self.slots = self._plan()
        self._open_queue()
        self.started = self.clock.now()

    @property
    def stays(self) -> bool:
        """Whether it goes on when most have left."""
        return self.number % STAY == 0

    def _plan(self) -> list[str]:
        kinds = [kind for kind in KINDS if not (self.stays and kind in DISTURBING)]
        slots = [self.chance.choice(kinds) for _ in range(SLOTS)]
        doubles = [n for n, kind in enumerate(slots) if "double" in kind]
        for n in doubles[1:]:  # two that lie close together would be one episode or two
            slots[n] = "restart"
        count = Counter(slots)
        self.expected["agent.lag_high"] = 2 * (count["lag"] + count["relapse"] + count["old rows"])
        self.expected["agent.offline"] = 2 * (count["silence"] + count["silent double"]) + 1
        self.expected["agent.duplicate_key"] = 2 * len(doubles[:1])
        self.expected["agent.uptime_degraded"] = 1
        if self.stays:
            self.expected["agent.offline"] += 2
            self.expected["agent.uptime_degraded"] += 2
        return slots

    def at(self, turn: int) -> tuple[str, int]:
        """What a round brings, and the how manieth of its slot it is."""
        slot, place = divmod(turn - 2, SLOT)
        return (self.slots[slot], place) if 0 <= slot < SLOTS else ("nothing", 0)

    def silent(self, turn: int) -> bool:
        """Whether its process is away in this round."""
        if turn >= MAIN:
            return not self.stays or turn in AWAY
        kind, place = self.at(turn)
        return (kind in ("silence", "silent double") and place < 4) or (kind == "blink" and place == 0)

    def comes_back(self, turn: int) -> bool:
        """Whether it is heard for the first time after a silence that is an episode."""
        return self.silent(turn - 1) and self.silent(turn - 2) and not self.silent(turn)

    # -- what it does

    def turn(self, turn: int, lines: Any) -> None:
        """One round: rows, a push, a heartbeat; now and then another process takes over in the middle of a push."""
        if self.silent(turn):
            return
        kind, place = self.at(turn)
        self._put(self.chance.randint(0, 3))
        if place == 0 and (kind in ("restart", "double") or (kind == "lag" and self.chance.random() < 0.5)):
            self._crash(lines)
        if (turn == 1 and "silent double" in self.slots) or (kind == "silence" and place == 4):
            self._crash(lines)
        while self.waiting:
            self._settle(self._batch(), lines)
        depth, age = self._backlog(kind, place)
        beat = {"version": "1", "uptime_seconds": 1, "queue_depth": depth, "queue_oldest_age_seconds": age}
        while self._post(lines, "heartbeat", beat, self.started) != 200:
            pass

    def haunt(self, turn: int, lines: Any) -> None:
        """A process of it that should be gone: it pushes and beats as if nothing had happened."""
        kind, place = self.at(turn)
        if "double" not in kind or not 0 < place < 4 or self.doubled is None:
            return
        started, queue, last = self.doubled
        rows = [self._row(last + n) for n in (1, 2)]
        sequence = f"{queue};{last + 1}-{last + 2}"
        while (answer := self._post(lines, "receiver/batch", rows, started, sequence)) in (0, 503):
            pass
        assert answer == 409, answer
        while self._post(lines, "heartbeat", {"queue_depth": 99999}, started) != 200:
            pass

    @staticmethod
    def _backlog(kind: str, place: int) -> tuple[int, int]:
        if (kind == "lag" and place < 3) or (kind == "relapse" and place in (0, 2)):
            return 1500, 10
        return (10, 400) if kind == "old rows" and place < 2 else (0, 0)

    def _put(self, count: int) -> None:
        for _ in range(count):
            self.row_id += 1
            self.waiting.append((self.queue, self.row_id))
            self.given[self.queue, self.row_id] += 1

    def _open_queue(self) -> None:
        self.queue = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    def _crash(self, lines: Any) -> None:
        """Ends in the middle of a push; the next process has its rows, another queue id and a newer start."""
        self._put(2)
        queue, ids = self._batch()
        self._post(lines, "receiver/batch", [self._row(n) for n in ids], self.started, _sequence(queue, ids))
        self.doubled = (self.started, queue, self.row_id)
        self._open_queue()
        self.row_id = self.chance.choice((0, self.row_id))  # a copied file may count from anywhere
        self.started = self.clock.now()
        self.restarts += 1

    def _batch(self) -> tuple[str, list[int]]:
        queue = self.waiting[0][0]
        return queue, [row_id for each, row_id in list(self.waiting)[:100] if each == queue]

    def _settle(self, batch: tuple[str, list[int]], lines: Any) -> None:
        queue, ids = batch
        rows = [self._row(n) for n in ids]
        answer = self._post(lines, "receiver/batch", rows, self.started, _sequence(queue, ids))
        if answer == 200:
            for _ in ids:
                self.waiting.popleft()

    def _row(self, row_id: int) -> dict[str, Any]:
        stamp = iso(self.clock.now())
        return {"metric_id": f"fleet-{self.number}", "value": row_id, "timestamp": stamp, "status": "healthy"}

    def _post(self, lines: Any, path: str, body: object, started: float, sequence: str = "") -> int:
        """The status of the answer; 0 where there is none."""
        head = {"Agent-Key": self.key, "Agent-Started-At": iso(started), "Content-Type": "application/json"}
        if sequence:
            head["Push-Sequence"] = sequence
        status = lines.post(self.chance.randrange(len(lines.ports)), path, json.dumps(body), head)
        self.answers[status] += 1
        return status


def _sequence(queue: str, ids: Sequence[int]) -> str:
    return f"{queue};{ids[0]}-{ids[-1]}" if len(ids) > 1 else f"{queue};{ids[0]}"


class Lines:
    """The connections of one thread, one to each port."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.ports = ports
        self._open = [HTTPConnection("127.0.0.1", port, timeout=PATIENCE) for port in ports]

    def post(self, which: int, path: str, body: str, head: dict[str, str]) -> int:
        """The status of the answer; 0 where the connection ended before it."""
        line = self._open[which]
        try:
            line.request("POST", f"/api/agent/{path}", body, head)
            answer = line.getresponse()
            answer.read()
            return answer.status
        except (OSError, HTTPException):
            line.close()
            return 0

    def close(self) -> None:
        """Ends them."""
        for line in self._open:
            line.close()


class Fleet:
    """All agents, and the time: within a round it moves as far as the slowest of them has come."""

    def __init__(self, agents: Sequence[Agent], ports: Sequence[int], clock: SharedClock) -> None:
        self._agents = agents
        self._clock = clock
        self._local = threading.local()
        self._all: list[Lines] = []
        self._ports = ports
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)

    def round(self, turn: int) -> None:
        """Every agent that is there has its turn, and so have the processes that should be gone."""
        begin = self._clock.now()
        going = [each for each in self._agents if not (turn > MAIN and not each.stays)]
        left = set(range(len(going)))

        def one(place: int) -> None:
            going[place].turn(turn, self._lines())
            with self._lock:
                left.discard(place)
                # A few that are all under way at once would come now early, now late: for them it moves at the end.
                done = 0 if left and len(going) < 4 * THREADS else min(left, default=len(going))
                self._clock.move(begin + ROUND * done / len(going))

        haunting = [self._pool.submit(lambda a=a: a.haunt(turn, self._lines())) for a in going]
        for done in [*haunting, *[self._pool.submit(one, place) for place in range(len(going))]]:
            done.result(PATIENCE)

    def close(self) -> None:
        """Ends the threads and connections."""
        self._pool.shutdown()
        for lines in self._all:
            lines.close()

    def _lines(self) -> Lines:
        if not hasattr(self._local, "lines"):
            self._local.lines = Lines(self._ports)
            with self._lock:
                self._all.append(self._local.lines)
        found: Lines = self._local.lines
        return found


def given(agents: Iterable[Agent], ids: dict[str, str]) -> Counter[tuple[str, str, int]]:
    """What must be stored, by agent id, queue id and row id."""
    return Counter({(ids[a.key], *row): n for a in agents for row, n in a.given.items()})
