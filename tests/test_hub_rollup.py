"""Roll-ups against a count second by second, whatever the order in which rows arrive and however often a step dies."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, func, insert, select

from observer_agent.hub import partitions, roller, schema
from observer_agent.hub.database import Database
from observer_agent.hub.keep import Keep, forget
from observer_agent.hub.roller import Roller
from observer_agent.hub.rollup import DAY, HOUR, SECONDS, Held, Seen, fold, patience, roll
from tests.wire_hub import TestHub, memory_hub

WAIT = 900
WORDS = {"healthy": "up", "degraded": "degraded", "unhealthy": "down", "no_data": "unknown"}
STATUSES = tuple(WORDS)
MIDNIGHT = 1_778_284_800  # 2026-05-09, the day on which the clock of a test hub stands
AGENT = "a" * 36

Push = tuple[int, str, float]  # when, status, value


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


def counted(rows: list[Push], wait: int = WAIT) -> dict[int, dict[str, float]]:
    """The same by brute force: every second from the first row to the last, one by one."""
    found: dict[int, dict[str, float]] = {}
    ordered = sorted(rows, key=lambda row: row[0])
    for (at, status, _), (end, _, _) in pairwise(ordered):
        for second in range(at, end):
            word = WORDS[status] if second < at + wait else "unknown"
            hour = found.setdefault(second // HOUR * HOUR, dict.fromkeys(SECONDS, 0.0))
            hour[word] += 1
    return found


def without_silent_days(hours: dict[int, dict[str, float]], rows: list[Push], wait: int = WAIT) -> Any:
    """A day in which no row stands and no status holds is not kept."""
    kept = {day for at, _, _ in rows for second in (at, at + wait) for day in (second // DAY,)}
    return {start: sums for start, sums in hours.items() if start // DAY in kept}


def put(hub: TestHub, rows: list[Push], received: float | None = None, metric: str = "m") -> None:
    """Rows as a push leaves them, received long enough ago to be settled."""
    at = hub.clock.now() - 100 if received is None else received
    base = {"metric_id": metric, "agent_id": AGENT, "queue_id": None, "row_id": None, "reason": None}
    with hub.database.write() as conn:
        partitions.make(conn, at)
        conn.execute(
            insert(schema.pushes),
            [{**base, "value": v, "timestamp": float(t), "status": s, "received_at": at} for t, s, v in rows],
        )


def kept(hub: TestHub, name: str = "hours") -> dict[int, dict[str, float]]:
    table = schema.metadata.tables[name]
    with hub.database.read() as conn:
        rows = conn.execute(select(table).order_by(table.c.start)).mappings().all()
    assert len({row["start"] for row in rows}) == len(rows)
    return {row["start"]: {word: row[word] for word in SECONDS} for row in rows if any(row[w] for w in SECONDS)}


def everything(hub: TestHub) -> list[tuple[Any, ...]]:
    with hub.database.read() as conn:
        return [tuple(r) for t in ("hours", "days", "rolled") for r in conn.execute(select(schema.metadata.tables[t]))]


TIMES = st.integers(MIDNIGHT - 3 * DAY, MIDNIGHT + 11 * HOUR)
NEAR = st.integers(MIDNIGHT - 2 * HOUR, MIDNIGHT + 2 * HOUR)
ROWS = st.lists(
    st.tuples(st.one_of(NEAR, TIMES), st.sampled_from(STATUSES), st.integers(-5, 5).map(float)),
    min_size=1,
    max_size=25,
    unique_by=lambda row: row[0],
)


@given(ROWS)
@settings(max_examples=20, deadline=None)
@pytest.mark.slow
def test_hours_are_what_a_count_second_by_second_finds(rows: list[Push]) -> None:
    ordered = sorted(rows)
    hours, held = roll(None, [Seen(t, s, v) for t, s, v in ordered], WAIT)
    assert held == Held(ordered[-1][0], ordered[-1][1], ordered[-1][0] + WAIT)
    wanted = without_silent_days(counted(rows), rows)
    found = {h: {w: getattr(sums, w) for w in SECONDS} for h, sums in hours.items() if sums.seconds}
    assert {h: s for h, s in found.items() if h in wanted} == wanted
    assert all(s["unknown"] == HOUR for h, s in found.items() if h not in wanted)
    assert all(sums.seconds <= HOUR for sums in hours.values())
    assert sum(sums.n for sums in hours.values()) == len(rows)


@given(ROWS, st.randoms(use_true_random=False), st.integers(1, 6))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_in_any_order_and_in_any_pieces_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Push], chance: random.Random, pieces: int
) -> None:
    shuffled = list(rows)
    chance.shuffle(shuffled)
    with memory_hub(tmp_path_factory.mktemp("hub")) as hub:
        made = Roller(hub.database, hub.clock)
        size = max(1, len(shuffled) // pieces)
        for begin in range(0, len(shuffled), size):
            put(hub, shuffled[begin : begin + size])
            made.roll()
        wanted = without_silent_days(counted(rows), rows)
        found = kept(hub)
        assert {h: s for h, s in found.items() if h in wanted} == wanted
        assert all(s["unknown"] == HOUR for h, s in found.items() if h not in wanted)
        days: dict[int, dict[str, float]] = {}
        for start, sums in found.items():
            day = days.setdefault(start // DAY * DAY, dict.fromkeys(SECONDS, 0.0))
            for word in SECONDS:
                day[word] += sums[word]
        assert kept(hub, "days") == days
        values = [v for _, s, v in rows if s != "no_data"]
        with hub.database.read() as conn:
            for table in (schema.hours, schema.days):
                columns = (func.sum(table.c.n), func.sum(table.c.total), func.min(table.c.low), func.max(table.c.high))
                n, total, low, high = conn.execute(select(*columns)).one()
                expected = (len(values), sum(values), min(values, default=None), max(values, default=None))
                assert (n, total, low, high) == expected


def test_hours_between_the_first_and_the_last_are_whole(hub: TestHub) -> None:
    rows = [(MIDNIGHT + n * 300, "healthy", 1.0) for n in range(12 * 10 + 1)]
    put(hub, rows)
    assert Roller(hub.database, hub.clock).roll() == len(rows)
    found = kept(hub)
    assert len(found) == 10 and all(sums["up"] == HOUR for sums in found.values())
    with hub.database.read() as conn:
        first = conn.execute(select(schema.hours).order_by(schema.hours.c.start)).first()
    assert first is not None and (first.n, first.total, first.low, first.high) == (12, 12.0, 1.0, 1.0)


def test_patience_follows_the_push_interval_and_has_bounds() -> None:
    assert [patience(0), patience(5), patience(10), patience(1e300)] == [900, 900, 1800, 31 * DAY]


def test_silence_for_years_writes_two_days_and_not_every_hour(hub: TestHub) -> None:
    put(hub, [(1000, "healthy", 1.0), (MIDNIGHT + 60, "healthy", 1.0)])
    Roller(hub.database, hub.clock).roll()
    assert len(kept(hub)) <= 48 and sorted(kept(hub, "days")) == [0, MIDNIGHT]


def test_a_stamp_of_the_future_counts_as_of_the_moment_it_came(hub: TestHub) -> None:
    now = int(hub.clock.now())
    put(hub, [(now - 1000, "healthy", 1.0)])
    put(hub, [(250_000_000_000, "unhealthy", 1.0)], received=now - 900)
    put(hub, [(now - 800, "healthy", 1.0)])
    Roller(hub.database, hub.clock).roll()
    totals = {word: sum(sums[word] for sums in kept(hub).values()) for word in SECONDS}
    assert totals == {"up": 100.0, "degraded": 0.0, "down": 100.0, "unknown": 0.0}


def test_what_came_just_now_waits_and_holds_up_what_stands_behind_it(hub: TestHub) -> None:
    made, now = Roller(hub.database, hub.clock), hub.clock.now()
    put(hub, [(MIDNIGHT, "healthy", 1.0)])
    put(hub, [(MIDNIGHT + 60, "healthy", 1.0)], received=now - 1)
    put(hub, [(MIDNIGHT + 120, "healthy", 1.0)], received=now - 60)
    assert made.roll() == 1
    hub.clock.advance(10)
    assert made.roll() == 2
    assert kept(hub) == {MIDNIGHT: {"up": 120.0, "degraded": 0.0, "down": 0.0, "unknown": 0.0}}


def test_a_step_that_is_done_twice_counts_once(hub: TestHub) -> None:
    """A second process read the same rows and writes after the first: its work is let go."""
    put(hub, [(MIDNIGHT + n * 60, "healthy", 1.0) for n in range(5)])
    first = Roller(hub.database, hub.clock)
    Roller(Overtaken(hub.database, first), hub.clock).roll()
    before = everything(hub)
    assert first.roll() == 0 and everything(hub) == before
    assert kept(hub)[MIDNIGHT]["up"] == 240.0


class Overtaken(Database):
    """Between the read and the write of a step another process rolls up."""

    def __init__(self, database: Database, other: Roller) -> None:
        super().__init__(database._engine)
        self._others = [other]

    @contextmanager
    def write(self) -> Iterator[Connection]:
        if self._others:
            assert self._others.pop().roll() == 5
        with super().write() as conn:
            yield conn


def test_only_the_holder_of_the_lease_rolls(hub: TestHub) -> None:
    put(hub, [(MIDNIGHT, "healthy", 1.0), (MIDNIGHT + 60, "healthy", 1.0)])
    first, second = Roller(hub.database, hub.clock), Roller(hub.database, hub.clock)
    first.step()
    put(hub, [(MIDNIGHT + 120, "healthy", 1.0)])
    assert second.step() == roller.PAUSE
    assert kept(hub)[MIDNIGHT]["up"] == 60.0
    first.stop()
    second.step()
    assert kept(hub)[MIDNIGHT]["up"] == 120.0


def test_more_rows_than_a_step_takes_are_rolled_up_step_by_step(hub: TestHub) -> None:
    rows = [(MIDNIGHT + n * 10, "healthy", 1.0) for n in range(roller.ROWS + 500)]
    put(hub, rows)
    made = Roller(hub.database, hub.clock)
    assert made.step() == roller.BREATH
    assert made.step() != roller.BREATH
    assert sum(sums["up"] for sums in kept(hub).values()) == (len(rows) - 1) * 10


def test_a_row_older_than_what_is_kept_changes_nothing(hub: TestHub) -> None:
    made = Roller(hub.database, hub.clock, Keep(rows=2 * DAY))
    put(hub, [(MIDNIGHT + n * 60, "healthy", 1.0) for n in range(5)])
    made.roll()
    before = everything(hub)
    put(hub, [(MIDNIGHT - 3 * DAY, "unhealthy", 1.0)])
    assert made.roll() == 1
    assert everything(hub) == before


def test_what_is_old_is_forgotten_in_bites_and_never_before_it_was_rolled(hub: TestHub) -> None:
    made = Roller(hub.database, hub.clock, Keep(rows=DAY, hours=2 * DAY, days=3 * DAY, events=DAY))
    now = hub.clock.now()
    for n in range(7):
        put(hub, [(int(now) - (9 - n) * DAY + k, "healthy", 1.0) for k in range(1000)], now - (9 - n) * DAY)
    old = {"event_type": "x", "data": "{}"}
    with hub.database.write() as conn:
        conn.execute(
            insert(schema.events),
            [{**old, "event_id": str(n), "occurred_at": now - n * DAY} for n in (5, 2, 0)],
        )
        conn.execute(delete(schema.counters))
    assert made.step() == roller.BREATH
    assert number(hub, schema.pushes) == 7000, "not all are rolled up yet"
    for _ in range(20):
        made.step()
        hub.clock.advance(30)
    if hub.database.dialect == "sqlite":  # on PostgreSQL whole weeks go
        assert number(hub, schema.pushes) == 0
    assert number(hub, schema.events) == 1
    assert number(hub, schema.rolled) == 1
    assert min(kept(hub, "days"), default=now) >= now - 3 * DAY - 600
    assert min(kept(hub), default=now) >= now - 2 * DAY - 600


def test_an_event_that_is_forgotten_takes_what_was_to_be_told_of_it_along(hub: TestHub) -> None:
    now = hub.clock.now()
    with hub.database.write() as conn:
        for n, days in enumerate((5, 4, 0)):
            event = {"event_type": "x", "data": "{}", "event_id": f"e{n}", "occurred_at": now - days * DAY}
            conn.execute(insert(schema.events), event)
            entry = {"event_id": f"e{n}", "created_at": now, "next_at": now}
            # One that was sent, and one of a webhook that was switched off: nobody ends it.
            for state, webhook in (("delivered", "a"), ("pending", "b")):
                conn.execute(insert(schema.outbox), {**entry, "state": state, "webhook_id": webhook})
        attempt = {"at": now, "status": 503, "duration_ms": 1.0}
        conn.execute(insert(schema.attempts), [{**attempt, "outbox_id": each} for each in (1, 1, 2, 5, 6)])
    assert forget(hub.database, Keep(events=DAY), now, rolled=0) == 2
    with hub.database.read() as conn:
        assert conn.scalars(select(schema.events.c.event_id)).all() == ["e2"]
        assert conn.scalars(select(schema.outbox.c.event_id)).all() == ["e2", "e2"]
        assert sorted(conn.scalars(select(schema.attempts.c.outbox_id))) == [5, 6]
    assert forget(hub.database, Keep(events=DAY), now, rolled=0) == 0


def test_rows_that_were_not_rolled_up_stay_however_old(hub: TestHub) -> None:
    now = hub.clock.now()
    put(hub, [(int(now) - 9 * DAY + n, "healthy", 1.0) for n in range(10)], now - 9 * DAY)
    put(hub, [(int(now) - 8 * DAY + n, "healthy", 1.0) for n in range(10)], now - 8 * DAY)
    forget(hub.database, Keep(rows=DAY), now, rolled=0)
    assert number(hub, schema.pushes) == 20
    forget(hub.database, Keep(rows=DAY), now, rolled=10)
    if hub.database.dialect == "sqlite":  # on PostgreSQL whole weeks go
        assert number(hub, schema.pushes) == 10


def test_a_late_row_leaves_what_held_over_midnight(hub: TestHub) -> None:
    made = Roller(hub.database, hub.clock)
    put(hub, [(MIDNIGHT - 100, "degraded", 1.0), (MIDNIGHT + 500, "healthy", 1.0)])
    made.roll()
    put(hub, [(MIDNIGHT + 300, "unhealthy", 1.0)])
    made.roll()
    assert kept(hub)[MIDNIGHT - HOUR] == {"up": 0.0, "degraded": 100.0, "down": 0.0, "unknown": 0.0}
    assert kept(hub)[MIDNIGHT] == {"up": 0.0, "degraded": 300.0, "down": 200.0, "unknown": 0.0}


def number(hub: TestHub, table: Any) -> int:
    with hub.database.read() as conn:
        return conn.scalar(select(func.count()).select_from(table)) or 0


def test_days_are_the_sums_of_their_hours() -> None:
    hours, _ = roll(None, [Seen(MIDNIGHT - 60 + n * 60, "healthy", float(n)) for n in range(100)], WAIT)
    days = fold(hours)
    assert sorted(days) == [MIDNIGHT - DAY, MIDNIGHT]
    assert (days[MIDNIGHT].n, days[MIDNIGHT].low, days[MIDNIGHT].high, days[MIDNIGHT].up) == (99, 1.0, 99.0, 98 * 60)
