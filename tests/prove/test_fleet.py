"""Three hub processes on one PostgreSQL under a fleet: answers lost, agents restarted and doubled, hubs killed.

What is shown, with exact counts: every row is stored once; every episode of every alert of an agent is one `open` and
one `cleared`, in turn; every event is laid out once for each webhook that asks for it and delivered; a receiver sees
the events for the first time in the order of the outbox, whatever it answers and whoever is killed. An event that was
acknowledged may come again: only where a hub was killed before it could write that down, or its claim had ended.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from observer_agent.clock import Clock
from observer_agent.hub import outbox, schema
from observer_agent.hub.database import Database, open_database
from observer_agent.hub.store import Store
from observer_agent.hub.webhooks import Wanted, Webhooks
from tests import servers
from tests.postgres import Server, drop_database, fresh_database, postgres
from tests.prove.fleet import LONG, MAIN, ROUND, Agent, Fleet, given
from tests.prove.fleet_hub import SharedClock
from tests.prove.lossy import Lossy
from tests.receivers import OK, Receiver, Request
from tests.wire_hub import HubProcess

__all__ = ["postgres"]
AHEAD = (0.0, 4.0, -3.0)  # the hubs' clocks
PACE = 150.0  # the time moves at most so many times as fast as it is: claims and deadlines need some of it
KILL_EVERY = 6  # rounds
STALL = 1.0  # real seconds without any progress, after which the time is moved
FAILS = 0.62  # the first and the second attempt fail so often, the third never: half of all
PATIENCE = 300.0
HANGS = 8
# What the webhooks ask for; in one queue the waits of so many events would take more than the day that each has.
KINDS = {
    "steady": (),
    "silence": ("agent.offline", "agent.duplicate_key"),
    "burden": ("agent.lag_high", "agent.uptime_degraded"),
}


class Hub(HubProcess):
    """A process of the fleet's hub; killed and started again at any time."""

    def _words(self, *words: str) -> list[str]:
        return [word.replace("observer_agent.hub.cli", "tests.prove.fleet_hub") for word in super()._words(*words)]


class Flaky:
    """Half of its answers are refusals, cuts, cuts after it has taken the event, and a few hangs."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._tries: Counter[str] = Counter()
        self._hangs = HANGS
        self._lock = threading.Lock()
        self.receiver = Receiver(self._answer)
        self.answers: Counter[str] = Counter()

    def _answer(self, request: Request) -> bytes:
        with self._lock:
            self._tries[request.event_id] += 1
            fails = self._tries[request.event_id] < 3 and self._chance.random() < FAILS
            how = self._chance.choices(("500", "cut", "hang"), (10, 9, 1))[0] if fails else "taken"
            self._hangs -= how == "hang"
            how = "cut" if self._hangs < 0 and how == "hang" else how
            self.answers[how] += 1
        if how == "hang":
            self.receiver.stopping.wait(PATIENCE)
        return {"taken": OK, "500": servers.answer(status=500)}.get(how, b"")


class World:
    """Everything that a run needs."""

    def __init__(self, database: Database, clock: SharedClock, hubs: list[Hub], agents: list[Agent]) -> None:
        self.database = database
        self.clock = clock
        self.hubs = hubs
        self.agents = agents
        self.kills = 0
        self._killer = ThreadPoolExecutor(1)
        self._killing: Future[None] | None = None
        self._real = Clock()

    def kill_one(self) -> None:
        """Kills a hub in the middle of whatever it does, and starts it again, while everything goes on."""
        if self._killing is None or self._killing.done():
            self.settle()
            self._killing = self._killer.submit(self._kill, self.hubs[self.kills % len(self.hubs)])
            self.kills += 1

    def settle(self) -> None:
        """Waits for the hub that is being started."""
        if self._killing:
            self._killing.result(PATIENCE)

    def close(self) -> None:
        """Ends the thread."""
        self._killer.shutdown()

    @staticmethod
    def _kill(hub: Hub) -> None:
        hub.kill()
        hub.start()

    def pace(self, since: float, moved: float) -> None:
        """The time may not have moved faster than `PACE`."""
        threading.Event().wait(max(0.0, since + moved / PACE - self._real.monotonic()))

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Waits, in real time, until a look at the database says so."""
        end = self._real.monotonic() + PATIENCE
        while not holds():
            assert self._real.monotonic() < end, what
            threading.Event().wait(0.02)

    def unchanged(self, look: Callable[[], Any]) -> bool:
        """Whether nothing moves for a while; says so at once when something does."""
        before, end = look(), self._real.monotonic() + STALL
        while self._real.monotonic() < end:
            if look() != before:
                return False
            threading.Event().wait(0.01)
        return True

    def offline(self) -> set[str]:
        """The agents whose silence stands as an alert."""
        alerts = schema.alerts
        with self.database.read() as conn:
            return set(conn.scalars(select(alerts.c.agent_id).where(alerts.c.signal == "agent.offline")))


@contextmanager
def world(url: str, folder: Path, count: int, ending: ExitStack) -> Iterator[World]:
    """Hubs that run and agents that have a key."""
    clock = SharedClock.made(folder / "clock", Clock().now())
    database = ending.enter_context(closing(open_database(url)))
    store = Store(database, clock)
    agents = [Agent(n, store.create_key(f"vm-{n}"), random.Random(n), clock) for n in range(count)]
    hubs = []
    for n, ahead in enumerate(AHEAD):
        (folder / str(n)).mkdir()
        hub = Hub(folder / str(n), DATABASE_URL=url, FLEET_CLOCK=str(folder / "clock"), FLEET_AHEAD=str(ahead))
        ending.callback(hub.kill)
        hub.start()
        hubs.append(hub)
    made = World(database, clock, hubs, agents)
    ending.callback(made.close)
    yield made


def live(found: World, fleet: Fleet, ids: dict[str, str]) -> None:
    """The planned rounds; a silence that is an episode ends only after a hub has noticed it."""
    real = Clock()
    for turn in range(MAIN + LONG):
        begun = real.monotonic()
        back = {ids[agent.key] for agent in found.agents if agent.comes_back(turn)}
        found.until(lambda back=back: back <= found.offline(), f"nobody found out about {back}")
        if turn % KILL_EVERY == KILL_EVERY - 1:
            found.kill_one()
        fleet.round(turn)
        found.pace(begun, ROUND)


def drain(found: World) -> None:
    """All agents are gone; the time goes from one attempt to the next until everything is delivered."""
    begun, entries, attempts = found.clock.now(), schema.outbox, schema.attempts

    def look() -> Any:
        with found.database.read() as conn:
            waiting = select(func.count(entries.c.claimed_until), func.count()).where(entries.c.state == "pending")
            return tuple(conn.execute(waiting).one()), conn.scalar(select(func.count()).select_from(attempts))

    steps = 0
    while (state := look())[0][1] or found.clock.now() < begun + 3600:
        with found.database.read() as conn:
            due = max((each.due for each in outbox.heads(conn, found.clock.now())), default=begun + 3600)
        now = found.clock.now()
        if due > now and state[0][0] == 0:
            found.clock.move(min(due, now + 30.0))
        elif found.unchanged(look):
            found.clock.move(now + 5.0)
        steps += 1
        if steps % 400 == 0:
            found.kill_one()


@pytest.mark.parametrize(
    "count", [pytest.param(50, marks=pytest.mark.slow), pytest.param(500, marks=pytest.mark.prove)]
)
def test_a_fleet_on_three_hubs(postgres: Server, tmp_path: Path, count: int) -> None:
    url = fresh_database(postgres.url)
    with ExitStack() as ending:
        found = ending.enter_context(world(url, tmp_path, count, ending))
        flaky = {name: Flaky(n) for n, name in enumerate(KINDS) if name != "steady"}
        receivers = {name: each.receiver for name, each in flaky.items()} | {"steady": Receiver()}
        webhooks, hooks = Webhooks(found.database, found.clock), {}
        for name, receiver in receivers.items():
            ending.enter_context(receiver)
            hooks[name] = webhooks.create("test", Wanted(name, receiver.url, event_types=KINDS[name]))
        lossy = [Lossy(hub.port, n) for n, hub in enumerate(found.hubs)]
        for each in lossy:
            ending.callback(each.close)
        fleet = Fleet(found.agents, [each.server_port for each in lossy], found.clock)
        ending.callback(fleet.close)
        ids = {agent.key: agent_of(found, agent) for agent in found.agents}
        live(found, fleet, ids)
        drain(found)
        found.settle()
        assert [hub.end() for hub in found.hubs] == [0, 0, 0]
        for hub in found.hubs:
            assert "Traceback" not in hub.log(), hub.log()[-4000:]
        rows = rows_are_stored_once(found, ids)
        events = episodes_are_told_once(found, ids)
        for name, receiver in receivers.items():
            told = in_order(found, hooks[name], receiver)
            assert told == sum(n for (_, kind), n in events.items() if not KINDS[name] or kind in KINDS[name])
        again = repeats(found, receivers)
        report(found, lossy, flaky, {"rows": rows, "events": sum(events.values()), "acknowledged again": again})
    drop_database(url)


def agent_of(found: World, agent: Agent) -> str:
    known = Store(found.database, found.clock).agent_of(agent.key)
    assert known
    return known.id


# -- what must hold


def rows_are_stored_once(found: World, ids: dict[str, str]) -> int:
    """In the history, in the ranges of what was taken, in the totals and in the roll-ups; restarts are counted."""
    pushes, agents, taken = schema.pushes, schema.agents, schema.taken
    with found.database.read() as conn:
        here = conn.execute(select(pushes.c.agent_id, pushes.c.queue_id, pushes.c.row_id, pushes.c.value)).all()
        totals = {row.id: row for row in conn.execute(select(agents))}
        ranges = conn.execute(select(taken.c.agent_id, taken.c.queue_id, taken.c.first_id, taken.c.last_id)).all()
        rolled = conn.scalar(select(func.sum(schema.hours.c.n)))
    wanted = given(found.agents, ids)
    assert Counter((row.agent_id, row.queue_id, row.row_id) for row in here) == wanted
    assert all(row.value == row.row_id for row in here)
    held = Counter((row[0], row[1], n) for row in ranges for n in range(row.first_id, row.last_id + 1))
    assert held == wanted
    assert rolled == len(here)
    for agent in found.agents:
        row = totals[ids[agent.key]]
        assert (row.taken, row.restarts) == (sum(agent.given.values()), agent.restarts)
    return len(here)


def episodes_are_told_once(found: World, ids: dict[str, str]) -> Counter[tuple[str, str]]:
    """By agent and type: open and cleared in turn, as many as were planned; what is left open stands as an alert."""
    states: dict[tuple[str, str], list[str]] = {}
    with found.database.read() as conn:
        for row in conn.execute(select(schema.events).order_by(schema.events.c.id)):
            states.setdefault((row.agent_id, row.event_type), []).append(json.loads(row.data)["state"])
        standing = {(row.agent_id, row.signal) for row in conn.execute(select(schema.alerts))}
    planned = {(ids[a.key], kind): n for a in found.agents for kind, n in a.expected.items() if n}
    assert {key: len(each) for key, each in states.items()} == planned
    for key, each in states.items():
        assert each == [("open", "cleared")[n % 2] for n in range(len(each))], key
    assert standing == {key for key, n in planned.items() if n % 2}
    return Counter(planned)


def in_order(found: World, webhook_id: str, receiver: Receiver) -> int:
    """One entry for each event, all delivered, seen for the first time and acknowledged in their order."""
    entries = schema.outbox
    with found.database.read() as conn:
        rows = conn.execute(select(entries).where(entries.c.webhook_id == webhook_id).order_by(entries.c.id)).all()
    laid_out = [row.event_id for row in rows]
    assert len(set(laid_out)) == len(laid_out)
    assert {row.state for row in rows} == {"delivered"}
    assert list(dict.fromkeys(each.event_id for each in receiver.got)) == laid_out
    assert list(dict.fromkeys(receiver.acknowledged)) == laid_out
    return len(laid_out)


def repeats(found: World, receivers: dict[str, Receiver]) -> int:
    """How many acknowledgements came again: not more than hubs were killed, and claims ended, before they were kept."""
    again = sum(len(each.acknowledged) - len(set(each.acknowledged)) for each in receivers.values())
    with found.database.read() as conn:
        made = conn.scalar(select(func.count()).select_from(schema.attempts)) or 0
        kept = conn.scalar(select(func.sum(schema.outbox.c.attempts))) or 0
    assert again <= found.kills * len(receivers) + (made - kept), (again, found.kills, made, kept)
    return again


def report(found: World, lossy: list[Lossy], flaky: dict[str, Flaky], more: dict[str, int]) -> None:
    """The figures, and that what was to happen has happened."""
    answers = sum((agent.answers for agent in found.agents), Counter[int]())
    lost, passed = sum(each.lost for each in lossy), sum(each.passed for each in lossy)
    failed = {name: 1 - each.answers["taken"] / sum(each.answers.values()) for name, each in flaky.items()}
    print(f"{len(found.agents)} agents, {more}, hubs killed {found.kills}, answers {dict(answers)}")
    print(f"answers lost {lost / (lost + passed):.2f}, receivers failed {failed}")
    print(f"restarts {sum(a.restarts for a in found.agents)}, {Counter(k for a in found.agents for k in a.slots)}")
    assert found.kills > 10 and answers[409] > 0 and lost > 0.25 * (lost + passed)
    assert all(0.4 < each < 0.6 for each in failed.values())
