"""The collector on the fake clock, where its sleep moves the time, and its pool on real threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from observer_agent.clock import Clock, iso
from observer_agent.collector import BREATH_MOST, BREATH_SHARE, Collector, Listener
from observer_agent.errors import QueueError
from observer_agent.lead import GRACE, Lead
from observer_agent.model import Definition, Fault, Operation, Reading, Status, Thresholds
from observer_agent.verdict import first_delay
from tests.fakes import FakeClock

RULES = Thresholds(Operation.UNDER, 10, Operation.OVER, 20)


def definition(name="m", interval=60.0, push=300.0, fingerprint="1"):
    return Definition(name, "tcp", interval, push, fingerprint, config=object(), thresholds=RULES)


class Stage(Listener):
    """A collector with a scripted target; `runs` and `rows` keep the seconds since the start."""

    def __init__(self, value=1.0, takes=0.0):
        self.clock = FakeClock()
        self.start = self.clock.monotonic()
        self.value = value
        self.takes = takes
        self.full = False
        self.runs, self.rows, self.lost = [], [], 0
        self.collector = Collector(self.look, self.put, self.clock, listener=self)

    def skipped(self, definition, slots, starved):
        self.lost += slots

    def look(self, definition):
        self.runs.append((definition.id, round(self.clock.monotonic() - self.start, 3)))
        value = self.value(self.at) if callable(self.value) else self.value
        self.clock.advance(self.takes)
        return value if isinstance(value, Reading) else Reading(value)

    def put(self, samples):
        if self.full:
            raise QueueError("no room")
        self.rows += [(round(self.at, 3), s) for s in samples]

    @property
    def at(self):
        return self.clock.monotonic() - self.start

    def until(self, seconds):
        while self.at < seconds:
            self.collector.step()
        return self


def test_first_probe_after_its_stable_offset_then_every_interval():
    stage = Stage()
    stage.collector.apply([definition(interval=60)])
    stage.until(300)
    first = first_delay("m")
    assert [at for _, at in stage.runs] == [pytest.approx(first + 60 * n, abs=0.002) for n in range(len(stage.runs))]


def test_a_row_for_the_first_verdict_each_change_and_each_forced_push():
    stage = Stage(value=lambda at: 1.0 if at < 130 else 30.0)
    stage.collector.apply([definition(interval=10, push=100)])
    stage.until(330)
    first = first_delay("m")
    changed = first + 10 * -(-(130 - first) // 10)
    expected = [first, first + 100, changed, first + 200, first + 300]
    assert [at for at, _ in stage.rows] == [pytest.approx(at, abs=0.01) for at in expected]
    assert [s.status for _, s in stage.rows] == ["healthy", "healthy", "unhealthy", "unhealthy", "unhealthy"]


def test_one_run_serves_a_poll_and_a_forced_push_that_are_due_together():
    stage = Stage()
    stage.collector.apply([definition(interval=1, push=5)])
    stage.until(61)
    assert len({at for _, at in stage.runs}) == len(stage.runs)
    assert len(stage.rows) == len({s.timestamp for _, s in stage.rows})
    assert len(stage.rows) == 1 + int((61 - first_delay("m")) // 5)


def test_a_forced_push_uses_a_young_reading_that_is_no_row_yet():
    stage = Stage()
    stage.collector.apply([definition(interval=60, push=130)])
    stage.until(200)
    first = first_delay("m")
    assert [at for _, at in stage.runs][:4] == [pytest.approx(first + 60 * n, abs=0.01) for n in range(4)]
    (_, (at, sample)) = stage.rows
    assert at == pytest.approx(first + 130, abs=0.01)
    assert sample.timestamp == iso(1_800_000_000.0 + first + 120)


def test_a_forced_push_probes_when_the_last_reading_is_old():
    stage = Stage()
    stage.collector.apply([definition(interval=60, push=100)])
    stage.until(110)
    first = first_delay("m")
    assert [at for _, at in stage.runs][:3] == [pytest.approx(first + n, abs=0.01) for n in (0, 60, 100)]


def test_a_forced_push_probes_when_the_last_reading_is_a_row_already():
    stage = Stage(value=lambda at: 1.0 if at < 100 else 30.0)
    stage.collector.apply([definition(interval=60, push=130)])
    stage.until(145)
    stamps = [s.timestamp for _, s in stage.rows]
    assert len(stamps) == len(set(stamps)) == 3


def test_turns_that_were_missed_are_skipped_and_counted():
    stage = Stage(takes=35.0)
    stage.collector.apply([definition(interval=10, push=10_000)])
    stage.until(150)
    first = first_delay("m")
    assert [at for _, at in stage.runs][:3] == [pytest.approx(first + n, abs=0.01) for n in (0, 40, 80)]
    assert stage.lost == 3 * len(stage.runs)


def test_an_unchanged_definition_keeps_its_phase_and_status_a_changed_one_starts_afresh():
    stage = Stage()
    stage.collector.apply([definition("a"), definition("b")])
    stage.until(70)
    rows = len(stage.rows)
    now = stage.at
    assert stage.collector.apply([definition("a"), definition("b", fingerprint="2"), definition("c")]) == (1, 1, 0)
    stage.until(140)
    fresh = [(s.metric_id, at) for at, s in stage.rows[rows:]]
    assert sorted(fresh) == [(n, pytest.approx(now + first_delay(n), abs=0.01)) for n in ("b", "c")]
    runs_a = [at for name, at in stage.runs if name == "a"]
    assert runs_a == [pytest.approx(first_delay("a") + 60 * n, abs=0.01) for n in range(len(runs_a))]


def test_a_vanished_definition_stops():
    stage = Stage()
    stage.collector.apply([definition("a"), definition("b")])
    stage.until(70)
    assert stage.collector.apply([definition("b")]) == (0, 0, 1)
    runs = len(stage.runs)
    stage.until(300)
    assert {name for name, _ in stage.runs[runs:]} == {"b"}


def test_a_definition_that_vanishes_while_it_runs_gives_no_row():
    stage = Stage()
    look = stage.look

    def vanishing(definition):
        stage.collector.apply([])
        return look(definition)

    stage.collector._look = vanishing
    stage.collector.apply([definition()])
    stage.collector.step()
    assert stage.runs and not stage.rows
    assert stage.collector.jobs() == []


def test_a_verdict_that_could_not_be_queued_is_tried_at_the_next_probe(caught):
    stage = Stage()
    stage.full = True
    stage.collector.apply([definition(interval=10)])
    stage.until(30)
    assert stage.rows == [] and "could not be queued" in caught.text
    stage.full = False
    stage.until(45)
    assert len(stage.rows) == 1


def test_a_forced_push_that_could_not_be_queued_does_not_wait_for_the_next(caught):
    stage = Stage()
    stage.collector.apply([definition(interval=10, push=300)])
    stage.until(first_delay("m") + 285)
    stage.full = True
    stage.until(first_delay("m") + 299)
    stage.full = False
    stage.until(first_delay("m") + 325)
    assert [round(at - first_delay("m")) for at, _ in stage.rows] == [0, 310]


def test_a_definition_that_changes_while_it_runs_waits_for_that_run():
    stage, seen = Stage(), []
    look = stage.look

    def changing(found):
        seen.append(found.fingerprint)
        if len(seen) == 1:
            stage.collector.apply([definition(fingerprint="2")])
            assert stage.collector._heap == []
        return look(found)

    stage.collector._look = changing
    stage.collector.apply([definition()])
    stage.until(70)
    assert seen[:2] == ["1", "2"] and {s.metric_id for _, s in stage.rows} == {"m"}


def test_no_data_is_a_verdict_with_its_reason_and_is_logged_once_per_change(caught):
    stage = Stage(value=Reading(None, "ECONNREFUSED", Fault.TARGET, detail={"error": "port 1"}))
    stage.collector.apply([definition(interval=10, push=25)])
    stage.until(60)
    assert {(s.status, s.value, s.reason) for _, s in stage.rows} == {(Status.NO_DATA, 0, "ECONNREFUSED")}
    assert caught.text.count("gives no value") == 1


def test_a_look_that_raises_leaves_the_job_on_its_grid():
    stage = Stage(value=lambda at: 1 / 0)
    stage.collector.apply([definition(interval=10)])
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            stage.collector.step()
    assert len(stage.runs) == 3
    assert stage.runs[2][1] - stage.runs[1][1] == pytest.approx(10, abs=0.01)


@pytest.mark.slow
def test_a_day_of_five_hundred_definitions_gives_exactly_its_rows():
    stage = Stage()
    stage.collector.apply([replace(definition(f"m{n}", 600, 3600)) for n in range(500)])
    stage.until(86400)
    due = sum(1 + int((86400 - first_delay(f"m{n}")) // 3600) for n in range(500))
    assert abs(len(stage.rows) - due) <= 1
    assert stage.lost == 0


@pytest.mark.slow
def test_w3_a_slow_target_holds_up_one_thread_and_never_runs_twice_at_once():
    clock = Clock()
    release, running, most = threading.Event(), {"a": 0, "b": 0}, []
    ran_b = threading.Semaphore(0)
    lock = threading.Lock()

    def look(definition):
        with lock:
            running[definition.id] += 1
            most.append(running[definition.id])
        if definition.id == "a":
            assert release.wait(20)
        with lock:
            running[definition.id] -= 1
        if definition.id == "b":
            ran_b.release()
        return Reading(1.0)

    collector = Collector(look, lambda samples: 0, clock)
    collector.apply([definition("a", 1), definition("b", 1)])
    stop = threading.Event()

    def work():
        while not stop.is_set():
            collector.step()

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(work)
        for _ in range(3):
            assert ran_b.acquire(timeout=20)
        stop.set()
        release.set()
        collector.stop()
    assert set(most) == {1}


@pytest.mark.slow
def test_a_look_that_blocks_though_it_was_quick_before_keeps_no_other_waiting():
    clock, release, blocked, behind = Clock(), threading.Event(), threading.Event(), threading.Semaphore(0)

    def look(definition):
        if definition.id == "a" and collector.jobs()[0].slots.ran > 3:
            blocked.set()
            release.wait(20)
        elif blocked.is_set():
            behind.release()
        return Reading(1.0)

    collector = Collector(look, lambda samples: 0, clock)
    collector.apply([definition("a", 0.05), definition("b", 0.05)])
    stop = threading.Event()

    def work():
        while not stop.is_set():
            collector.step()

    with ThreadPoolExecutor(2) as pool:
        done = [pool.submit(work) for _ in range(2)]
        times = sum(behind.acquire(timeout=10) for _ in range(5))
        stop.set()
        release.set()
        collector.stop()
    assert times == 5
    assert [each.result() for each in done] == [None, None]


@pytest.mark.parametrize(("interval", "breath"), [(1.0, BREATH_SHARE), (60.0, BREATH_MOST)])
def test_looks_that_are_due_near_one_another_are_taken_at_one_waking(interval, breath):
    clock, late, moments = FakeClock(), [], []

    class Ears(Listener):
        def ran(self, definition, reading, late_by, in_time):
            late.append(late_by)

    def look(definition):
        moments.append(clock.monotonic())
        return Reading(1.0)

    collector = Collector(look, lambda samples: 0, clock, listener=Ears())
    collector.apply([definition(f"m{n}", interval) for n in range(1000)])
    while len(moments) < 8000:
        collector.step()
    moments, late = moments[-900:], late[-900:]
    assert len(set(moments)) <= (moments[-1] - moments[0]) / breath + 1.5
    assert 0.0 < max(late) <= breath + 0.001


def test_the_lead_lies_free_during_a_quick_job_and_the_deputy_takes_it_up():
    clock, now = Clock(), Clock().monotonic()
    due = [now + 3600]
    lock = threading.Lock()
    lead = Lead(lock, clock, lambda: due[0])
    lead.take()
    with ThreadPoolExecutor(1) as pool:
        deputy = pool.submit(lead.take)
        while not lead.waiting:
            pass
        due[0] = clock.monotonic() + 0.2
        with lock:
            lead.pass_on(quick=True)
            assert lead.held, "the deputy would sleep too long: it was woken"
        assert deputy.result(20) == 0.0
        deputy = pool.submit(lead.take)
        while not lead.waiting:
            pass
        with lock:
            lead.pass_on(quick=True)
            assert not lead.held
        assert 0.0 <= deputy.result(20) < 1.0
    assert lead.held and clock.monotonic() >= due[0] + GRACE


def test_the_thread_that_came_last_leads_next():
    clock, by = FakeClock(), {}

    def look(definition):
        by[definition.id] = threading.current_thread().name
        return Reading(1.0)

    def come(name, waiting):
        thread = threading.Thread(target=collector.step, name=name)
        thread.start()
        while not (collector._lead.held and len(collector._lead.waiting) == waiting):
            pass
        return thread

    collector = Collector(look, lambda samples: 0, clock)
    threads = [come("first", 0), come("second", 1), come("third", 2)]
    collector.apply([definition(name, 1e9) for name in "abc"])
    for thread in threads:
        thread.join(20)
    assert [by[name] for name in sorted("abc", key=first_delay)] == ["first", "third", "second"]


def test_the_pool_grows_when_all_threads_are_busy():
    grown = []
    stage = Stage()
    stage.collector._grow = lambda: grown.append(True) or True
    stage.collector.apply([definition()])
    stage.collector.step()
    assert grown == [True]
