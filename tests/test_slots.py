"""The account of slots: every slot that was due ran, was late, was skipped or was missed, and nothing else."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from dataclasses import replace
from itertools import islice

import pytest

from observer_agent.clock import Alarm, Clock
from observer_agent.collector import SLOW_MAX, Collector, Listener
from observer_agent.model import Definition, Fault, Operation, Reading, Thresholds
from observer_agent.verdict import first_delay
from tests.fakes import FakeClock

RULES = Thresholds(Operation.UNDER, 10, Operation.OVER, 20)
DAY = 86_400.0


def definition(name, interval=60.0):
    return Definition(name, "tcp", interval, 5 * interval, "1", config=object(), thresholds=RULES)


class Standing(FakeClock):
    """A clock whose waits can be made to last longer than they should: the process is stopped meanwhile."""

    still = nap = 0.0

    def alarm(self):
        clock = self

        class Late(Alarm):
            def wait(self, seconds):
                rung = super().wait(0)
                if not rung:
                    clock.advance(seconds + clock.still)
                    clock.sleep(clock.nap)
                    clock.still = clock.nap = 0.0
                return rung

        return Late()


class Stage(Listener):
    """One collector of many definitions on the fake clock, and what was heard of it."""

    def __init__(self, definitions, takes=lambda definition: 0.0):
        self.clock = Standing()
        self.takes = takes
        self.begun, self.recent = [], {}
        self.sums = {"ran": 0, "late": 0, "skipped": 0, "missed": 0}
        self.stood_for = []
        self.open(definitions)

    def open(self, definitions):
        """A start of the agent: a new collector, new accounts."""
        self.recent.clear()
        self.learnt = self.clock.monotonic()
        self.slept_before = self.clock.slept()
        self.collector = Collector(self.look, lambda samples: 0, self.clock, listener=self)
        self.collector.apply(definitions)

    def look(self, definition):
        now = self.clock.monotonic()
        self.begun.append(now)
        # A late run and the one of the next slot may be near, three in one interval are a catching up.
        recent = self.recent.setdefault(definition.id, deque(maxlen=3))
        recent.append(now)
        assert len(recent) < 3 or recent[2] - recent[0] >= 0.999 * definition.interval, definition.id
        self.clock.advance(self.takes(definition))
        return Reading(1.0)

    def ran(self, definition, reading, late, in_time):
        self.sums["ran" if in_time else "late"] += 1

    def skipped(self, definition, slots, starved):
        self.sums["skipped"] += slots

    def missed(self, definition, slots):
        self.sums["missed"] += slots

    def stood(self, seconds):
        self.stood_for.append(seconds)

    def until(self, seconds):
        while self.clock.monotonic() - self.learnt < seconds:
            self.collector.step()

    def accounts(self):
        return {job.definition.id: job.slots for job in self.collector.jobs()}

    def due(self, definition):
        """The slots that have begun, by the clock alone."""
        passed = self.clock.monotonic() + self.clock.slept() - self.slept_before - self.learnt
        first = first_delay(definition.id)
        return math.floor((passed - first + 0.001) / definition.interval) + 1 if passed + 0.001 >= first else 0

    def check(self, definitions):
        """Each account against the clock; the one slot that may be open right now is not counted yet."""
        accounts = self.accounts()
        for each in definitions:
            jobs = [job for job in self.collector.jobs() if job.definition.id == each.id]
            waiting = sum(job.poll.is_due(self.clock.monotonic()) for job in jobs)
            account = accounts[each.id]
            assert account.ran + account.late + account.skipped + account.missed == account.due
            # One that waits has its slot open, and perhaps some that have passed unseen behind it.
            if waiting:
                assert account.due < self.due(each)
            else:
                assert account.due == self.due(each), each.id


def test_a_quiet_day():
    each = definition("a", 600.0)
    stage = Stage([each])
    stage.until(DAY)
    stage.check([each])
    account = stage.accounts()["a"]
    assert (account.late, account.skipped, account.missed) == (0, 0, 0)
    assert account.ran == len(stage.begun) == 145


def test_a_run_that_begins_late_in_its_slot_is_late_and_one_after_it_is_skipped():
    slow, quick = definition("slow", 100.0), definition("quick", 10.0)
    stage = Stage([slow, quick], lambda d: 34.0 if d.id == "slow" else 0.0)
    stage.until(1000)
    stage.check([slow, quick])
    account = stage.accounts()["quick"]
    # One thread: each slow run takes the turns of 34 s from the quick one; it wakes late in the last of them.
    assert account.missed == 0 and account.skipped >= 20 and account.late >= 5
    assert stage.accounts()["slow"].skipped == 0


def test_a_run_longer_than_its_interval_skips_its_own_turns():
    each = definition("a", 10.0)
    stage = Stage([each], lambda d: 25.0)
    stage.until(1000)
    stage.check([each])
    account = stage.accounts()["a"]
    assert account.skipped >= 2 * (account.ran - 1)
    assert account.late == account.missed == 0


def test_a_sleep_of_the_machine_is_missed_and_not_caught_up():
    many = [definition(f"m{n}", 60.0) for n in range(100)]
    stage = Stage(many)
    stage.until(3600)
    stage.clock.sleep(6 * 3600)
    before, at = len(stage.begun), stage.clock.monotonic()
    stage.until(3600 + 120)
    stage.check(many)
    assert stage.stood_for == [6 * 3600]
    assert {account.missed for account in stage.accounts().values()} <= {360, 361}
    # Two minutes after the sleep every definition has run twice or thrice, at its own phase and not all at once.
    after = [moment - at for moment in stage.begun[before:]]
    assert 190 <= len(after) <= 300
    assert sum(moment < 1.0 for moment in after) <= 100 * 1.0 / 7.5 * 2


def test_an_agent_that_stood_still_has_missed_those_turns():
    many = [definition(f"m{n}", 1.0) for n in range(50)]
    stage = Stage(many)
    stage.until(60)
    stage.clock.still = 5.0
    stage.until(120)
    stage.check(many)
    assert all(account.missed in (5, 6) and account.skipped == 0 for account in stage.accounts().values())


def test_a_daily_look_that_fell_into_a_sleep_is_done_late_not_a_day_later():
    each = definition("a", DAY)
    stage = Stage([each])
    stage.until(1)
    stage.clock.nap = DAY - 1800  # falls into the first hour's wait
    stage.until(3000)
    account = stage.accounts()["a"]
    assert (account.ran, account.late, account.missed) == (1, 1, 0), account


def test_a_look_that_hangs_for_good_is_skipped_and_its_reading_repeated():
    clock, hang, entered, heard, rows = FakeClock(), threading.Event(), threading.Event(), [], []

    class Ears(Listener):
        def ran(self, definition, reading, late, in_time):
            heard.append(reading)

    def look(each):
        entered.set()
        hang.wait(20)
        return Reading(1.0)

    collector = Collector(look, lambda samples: rows.extend(samples), clock, listener=Ears())
    collector.apply([definition("a")])
    thread = threading.Thread(target=collector.step, daemon=True)
    thread.start()
    assert entered.wait(10)
    collector.give_up(thread, Reading(None, "source_threw", Fault.AGENT))
    for _ in range(10):
        collector.step()
    (job,) = collector.jobs()
    assert (job.slots.ran, job.slots.skipped, heard) == (1, 10, [])
    assert [row.reason for row in rows] == ["source_threw"] * 3  # the first, and two forced pushes
    hang.set()
    thread.join()
    collector.step()
    assert job.slots.ran == 2 and heard == [Reading(1.0)]


def month(days, seed=7):
    """Hangs, sleeps, standstills and restarts over `days`, 500 definitions of 1 min to 6 h on one thread."""
    chance = random.Random(seed)
    intervals = [60.0, 300.0, 900.0, 3600.0, 6 * 3600.0]
    many = [definition(f"m{n}", intervals[chance.randrange(20) // 4] if n % 10 else 60.0) for n in range(500)]
    hanging = {f"m{n}" for n in range(0, 500, 97)}

    def takes(each):
        return 30.0 if each.id in hanging and chance.random() < 0.05 else 0.0005

    stage = Stage(many, takes)
    restarts = sorted(chance.uniform(0, days * DAY) for _ in range(20))
    asleep, stopped = days * DAY * 0.4, [chance.uniform(0, days * DAY) for _ in range(30)]
    events = sorted(
        [(at, "restart") for at in restarts]
        + [(asleep, "sleep")]
        + [(at, "still") for at in stopped]
        + [(days * DAY, "end")]
    )
    origin = stage.clock.monotonic()
    for at, what in events:
        stage.until(origin + at - stage.learnt)
        stage.check(many)
        if what == "restart":
            stage.open(many)
        elif what == "sleep":
            stage.clock.sleep(6 * 3600)
        elif what == "still":
            stage.clock.still = chance.choice([3.0, 90.0, 4000.0])
    return stage, many


@pytest.mark.slow
def test_two_days_of_five_hundred_definitions_add_up():
    stage, _ = month(2)
    heard = stage.sums
    assert heard["missed"] > 0 and heard["skipped"] > 0 and heard["late"] > 0
    assert heard["ran"] > 50_000


@pytest.mark.prove
def test_thirty_days_of_five_hundred_definitions_add_up():
    stage, _ = month(30)
    assert stage.sums["missed"] > 0 and stage.sums["skipped"] > 0


def early(kind, count):
    """Definitions of one second that are due within 0.6 s of being learnt."""
    names = (f"{kind}{n}" for n in range(100_000))
    return [definition(name, 1.0) for name in islice((name for name in names if first_delay(name) < 0.6), count)]


def play(definitions, look, most, enough):
    """Runs a collector on real threads, `most` of them, until `enough(jobs)`; returns the accounts at that moment."""
    clock, stop, threads = Clock(), threading.Event(), []

    def grow():
        if len(threads) < most:
            threads.append(threading.Thread(target=work, daemon=True))
            threads[-1].start()
        return True

    def work():
        while not stop.is_set():
            collector.step()

    collector = Collector(look, lambda samples: 0, clock, grow=grow)
    collector.apply(definitions)
    grow()
    until, pause = clock.monotonic() + 20, clock.alarm()
    while clock.monotonic() < until and not enough(collector.jobs()):
        pause.wait(0.05)
    accounts = {job.definition.id: replace(job.slots) for job in collector.jobs()}
    stop.set()
    collector.stop()
    return accounts, threads


@pytest.mark.slow
def test_no_stuck_definition_delays_another():
    release = threading.Event()
    stuck, others = early("stuck", 2), early("m", 20)

    def look(each):
        if each in stuck:
            release.wait(20)
        return Reading(1.0)

    accounts, threads = play([*stuck, *others], look, 8, lambda jobs: sum(job.slots.due for job in jobs) >= 100)
    release.set()
    for thread in threads:
        thread.join(10)
    assert all(accounts[d.id].ran >= 3 and accounts[d.id].skipped == 0 for d in others)
    assert all(accounts[d.id].ran == 1 for d in stuck)


@pytest.mark.slow
def test_slow_definitions_that_wait_keep_their_places():
    """All slow places are taken; runs of quick ones end meanwhile, which frees none."""
    slow, others, gates, known, begun = early("slow", SLOW_MAX + 4), early("m", 20), threading.Semaphore(0), set(), []

    def look(each):
        if each in slow and each.id in known:
            begun.append(each.id)
            gates.acquire(timeout=20)
        known.add(each.id)
        return Reading(1.0, duration_ms=1500.0 if each in slow else 1.0)

    def enough(jobs):
        if len(begun) >= SLOW_MAX and min(job.slots.ran for job in jobs if job.definition in others) >= 4:
            gates.release()
        return len(begun) >= len(slow)

    _, threads = play([*slow, *others], look, 32, enough)
    gates.release(100)
    for thread in threads:
        thread.join(10)
    places = [each.id for each in sorted(slow, key=lambda each: first_delay(each.id))]
    assert begun[SLOW_MAX : len(slow)] == places[SLOW_MAX:]


@pytest.mark.slow
def test_many_slow_definitions_leave_threads_for_those_that_answer():
    """Sixty looks of 1.5 s would hold all 32 threads for good; a quarter is kept for the others."""
    slow, others, never = early("slow", 60), early("m", 20), threading.Event()

    def look(each):
        if each in slow:
            never.wait(1.5)
            return Reading(None, "ETIMEDOUT", Fault.TARGET, duration_ms=1500.0)
        return Reading(1.0, duration_ms=1.0)

    quick = {each.id for each in others}
    settled = {}

    def enough(jobs):
        if not settled and all(job.slots.due >= 4 for job in jobs if job.definition.id in quick):
            settled.update({job.definition.id: job.slots.skipped for job in jobs})
        return bool(settled) and all(job.slots.due >= 11 for job in jobs if job.definition.id in quick)

    accounts, threads = play([*slow, *others], look, 32, enough)
    for thread in threads:
        thread.join(10)
    assert len(threads) == 32
    assert sum(accounts[each.id].skipped - settled[each.id] for each in others) == 0
    assert sum(accounts[each.id].skipped for each in slow) > 100
    assert all(accounts[each.id].ran + accounts[each.id].late >= 2 for each in slow)
