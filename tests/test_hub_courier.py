"""Deliveries of webhooks to real receivers: format, order, retries, claims, kills, and whom they may reach."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import re
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from observer_agent import __version__
from observer_agent.clock import Clock, iso
from observer_agent.hub import outbox, schema
from observer_agent.hub.courier import THREADS, Courier
from observer_agent.hub.database import Database, open_database
from observer_agent.hub.events import Event, emit
from observer_agent.hub.guard import Allow, Guard, parse_allow
from observer_agent.hub.post import Poster, Reply
from observer_agent.hub.webhooks import Wanted, Webhooks
from tests import servers
from tests.receivers import OK, Receiver, Request
from tests.wire_hub import HubProcess, TestHub, database_url, memory_hub

SECRET = "whsec_of-the-tests-0123456789"
KIND = "agent.offline"
NO = servers.answer("no", 503)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


def poster(allow: str = "", seconds: float = 10.0, **more: Any) -> Poster:
    clock = Clock()
    return Poster(Guard(parse_allow(allow), clock), clock, seconds=seconds, **more)


@contextmanager
def courier_of(hub: TestHub, post: Poster | None = None, dice: Callable[[], float] = lambda: 1.0) -> Iterator[Courier]:
    courier = Courier(hub.database, hub.clock, post or poster(), dice)
    try:
        yield courier
    finally:
        courier.stop()


def subscribe(hub: TestHub, url: str, name: str = "ops", **more: Any) -> str:
    return Webhooks(hub.database, hub.clock).create("test", Wanted(name, url, SECRET, **more))


def tell(database: Database, now: float, count: int = 1) -> list[str]:
    """Emits events, each in a transaction of its own; returns their ids in order."""
    made = [Event(KIND, now, {"state": "open", "n": n, "name": "Zürich ☃"}) for n in range(count)]
    for event in made:
        with database.write() as conn:
            emit(conn, event)
    return [event.id for event in made]


def entries(hub: TestHub) -> list[Any]:
    with hub.database.read() as conn:
        return list(conn.execute(select(schema.outbox).order_by(schema.outbox.c.id)))


def attempts(hub: TestHub) -> list[Any]:
    with hub.database.read() as conn:
        return list(conn.execute(select(schema.attempts).order_by(schema.attempts.c.id)))


def skip_to_due(hub: TestHub) -> float:
    """Moves the clock to the moment at which the first head is due; returns the seconds."""
    with hub.database.read() as conn:
        due = outbox.heads(conn, hub.clock.now())[0].due
    pause = max(0.0, due - hub.clock.now())
    hub.clock.advance(pause)
    return pause


# -- the message


def test_a_request_is_what_the_contract_says(hub: TestHub) -> None:
    with Receiver() as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url + "/in?x=1")
        (event_id,) = tell(hub.database, hub.clock.now())
        hub.clock.advance(7.5)
        assert courier.serve(ref) == 1
    (got,) = receiver.got
    assert got.path == "/in?x=1"
    assert json.loads(got.body) == {
        "event_type": KIND,
        "event_id": event_id,
        "occurred_at": iso(hub.clock.now() - 7.5),
        "data": {"state": "open", "n": 0, "name": "Zürich ☃"},
    }
    stamp = got.headers["x-observer-timestamp"]
    assert stamp == str(int(hub.clock.now()))

    def mac(data: bytes) -> str:
        return "sha256=" + hmac.new(SECRET.encode(), data, hashlib.sha256).hexdigest()

    expected = {
        "host": f"127.0.0.1:{receiver.port}",
        "content-type": "application/json",
        "x-observer-event": KIND,
        "x-observer-delivery": event_id,
        "x-observer-signature": mac(got.body),
        "x-observer-signature-timestamped": mac(stamp.encode() + b"." + got.body),
        "user-agent": f"observer-hub/{__version__}",
    }
    assert expected.items() <= got.headers.items()


def test_without_a_secret_nothing_is_signed(hub: TestHub) -> None:
    with Receiver() as receiver, courier_of(hub) as courier:
        ref = Webhooks(hub.database, hub.clock).create("test", Wanted("ops", receiver.url))
        tell(hub.database, hub.clock.now())
        courier.serve(ref)
    headers = receiver.got[0].headers
    assert "x-observer-timestamp" in headers
    assert not [name for name in headers if "signature" in name]


# -- order and retries


@pytest.mark.slow
def test_a_receiver_that_fails_half_the_time_gets_every_event_in_order(hub: TestHub) -> None:
    dice = random.Random(5)
    answers = [OK, NO, servers.answer(status=404), servers.redirect("http://127.0.0.1:1/"), b""]
    weights = [4, 1, 1, 1, 1]
    flaky = Receiver(lambda _: dice.choices(answers, weights)[0])
    with flaky as receiver, courier_of(hub, dice=dice.random) as courier:
        ref = subscribe(hub, receiver.url)
        told = tell(hub.database, hub.clock.now(), 60)
        while any(each.state == outbox.PENDING for each in entries(hub)) and len(receiver.got) < 1000:
            skip_to_due(hub)
            assert courier.serve(ref) > 0
    assert receiver.acknowledged == told
    assert len(receiver.got) == len(attempts(hub)) > 90
    order = list(dict.fromkeys(each.event_id for each in receiver.got))
    assert order == told, "nothing went before its turn, failed attempts included"
    assert {each.state for each in entries(hub)} == {"delivered"}


def test_while_the_head_waits_nothing_behind_it_goes(hub: TestHub) -> None:
    with Receiver(lambda _: NO) as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url)
        told = tell(hub.database, hub.clock.now(), 3)
        assert courier.serve(ref) == 1
        assert courier.serve(ref) == 0
        hub.clock.advance(9.9)
        assert courier.serve(ref) == 0
        hub.clock.advance(0.2)
        assert courier.serve(ref) == 1
    assert {each.event_id for each in receiver.got} == {told[0]}
    assert [each.attempts for each in entries(hub)] == [2, 0, 0]


def test_a_day_of_retries_then_the_queue_goes_on(hub: TestHub, caught: pytest.LogCaptureFixture) -> None:
    with Receiver(lambda _: NO) as receiver, courier_of(hub) as courier:
        ref, began = subscribe(hub, receiver.url + "/path-secret"), hub.clock.now()
        first, second = tell(hub.database, began, 2)
        pauses = []
        courier.serve(ref)
        while entries(hub)[0].state == outbox.PENDING and len(pauses) < 100:
            pauses.append(skip_to_due(hub))
            courier.serve(ref)
        gave_up = entries(hub)[0]
        assert pauses[:10] == pytest.approx([10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600])
        assert pauses[10:-1] == pytest.approx([3600] * len(pauses[10:-1]))
        assert gave_up.state == "failed" and gave_up.ended_at - began == pytest.approx(86_400)
        assert gave_up.attempts == len(pauses) + 1 == 33
    assert [each.status for each in attempts(hub)][:33] == [503] * 33
    assert [each.event_id for each in receiver.got] == [first] * 33 + [second]
    assert entries(hub)[1].state == "failed", "as old as the first: one attempt each is all that is left"
    said = [each for each in caught.records if each.name.endswith("courier")]
    assert [each.levelname for each in said] == ["WARNING", "ERROR", "ERROR"]
    assert "path-secret" not in caught.text and SECRET not in caught.text


def test_jitter_only_shortens() -> None:
    assert outbox.wait(1, None, 0.0) == 7.5
    assert outbox.wait(1, None, 1.0) == 10
    assert outbox.wait(5000, None, 0.0) == 2700
    assert outbox.wait(5000, None, 1.0) == 3600


@pytest.mark.parametrize(
    ("text", "pause"),
    [
        ("120", 120),
        ("0", 10),
        ("7200", 3600),
        ("99999999999999999999", 3600),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 10),
        ("soon", 20),
        ("-5", 20),
        ("", 20),
    ],
)
def test_retry_after_is_honoured_up_to_an_hour(hub: TestHub, text: str, pause: float) -> None:
    with Receiver(lambda _: servers.answer(status=429, Retry_After=text)) as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url)
        tell(hub.database, hub.clock.now())
        courier.serve(ref)
        skip_to_due(hub)
        courier.serve(ref)
    assert entries(hub)[0].next_at - hub.clock.now() == pytest.approx(pause)


def test_retry_after_may_be_a_date() -> None:
    assert outbox.retry_after("Sat, 09 May 2026 12:01:00 GMT", 1778328000.0) == 60


def test_gone_switches_the_webhook_off(hub: TestHub, caught: pytest.LogCaptureFixture) -> None:
    answers = iter([servers.answer(status=410), OK, OK])
    webhooks = Webhooks(hub.database, hub.clock)
    with Receiver(lambda _: next(answers)) as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url)
        told = tell(hub.database, hub.clock.now(), 2)
        assert courier.serve(ref) == 1
        assert [each.state for each in entries(hub)] == ["failed", "pending"]
        assert webhooks.one("ops")["active"] is False
        hub.clock.advance(90_000)
        assert courier.serve(ref) == 0
        tell(hub.database, hub.clock.now())
        assert len(entries(hub)) == 2, "what happens while it is off is not laid out"
        webhooks.change("test", "ops", {"active": True})
        assert courier.serve(ref) == 1
    assert receiver.acknowledged == told[1:]
    assert "Webhook ops answered 410 Gone" in caught.text


def test_an_event_that_was_deleted_holds_nothing_up(hub: TestHub) -> None:
    with Receiver() as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url)
        gone, there = tell(hub.database, hub.clock.now(), 2)
        with hub.database.write() as conn:
            conn.execute(delete(schema.events).where(schema.events.c.event_id == gone))
        courier.serve(ref)
    assert [each.state for each in entries(hub)] == ["failed", "delivered"]
    assert attempts(hub)[0].error == "the event has been deleted"
    assert receiver.acknowledged == [there]


# -- receivers that behave badly


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (servers.tarpit, "timed out"),
        (servers.drip, "timed out"),
        (servers.hang_up, "connection closed by the other side"),
        (servers.half_close, "connection closed by the other side"),
        (servers.endless_headers, "not an HTTP answer"),
        (servers.says(b"SSH-2.0-OpenSSH_9.2\r\n"), "not an HTTP answer"),
    ],
)
def test_no_answer_is_a_failed_attempt(hub: TestHub, handler: servers.Handler, error: str) -> None:
    with servers.Server(handler) as server, courier_of(hub, poster(seconds=0.5)) as courier:
        ref = subscribe(hub, server.url)
        tell(hub.database, hub.clock.now())
        begun = Clock().monotonic()
        assert courier.serve(ref) == 1
        assert Clock().monotonic() - begun < 3
    (made,) = attempts(hub)
    assert (made.status, made.error) == (0, error)
    assert entries(hub)[0].state == outbox.PENDING


@pytest.mark.parametrize("handler", [servers.drip_body, servers.endless])
def test_the_status_decides_however_the_body_comes(hub: TestHub, handler: servers.Handler) -> None:
    with servers.Server(handler) as server, courier_of(hub, poster(seconds=5)) as courier:
        ref = subscribe(hub, server.url)
        tell(hub.database, hub.clock.now())
        begun = Clock().monotonic()
        courier.serve(ref)
        assert Clock().monotonic() - begun < 3, "the body gets a second, not the deadline"
    assert entries(hub)[0].state == "delivered"


def test_a_refused_connection_is_a_failed_attempt(hub: TestHub) -> None:
    with servers.refused_port() as port, courier_of(hub) as courier:
        ref = subscribe(hub, f"http://127.0.0.1:{port}/")
        tell(hub.database, hub.clock.now())
        courier.serve(ref)
    assert attempts(hub)[0].error == "connection refused"


def test_a_redirect_is_a_failed_attempt_and_never_followed(hub: TestHub) -> None:
    with Receiver() as target:
        places = iter(["http://169.254.169.254/latest/meta-data/", target.url + "/inside"])
        with Receiver(lambda _: servers.redirect(next(places), 307)) as receiver, courier_of(hub) as courier:
            ref = subscribe(hub, receiver.url)
            tell(hub.database, hub.clock.now())
            courier.serve(ref)
            skip_to_due(hub)
            courier.serve(ref)
    assert [(each.status, each.error) for each in attempts(hub)] == [(307, "redirects are not followed")] * 2
    assert target.connections == 0


# -- TLS and addresses


def trusting(authority: servers.Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem)


def to_loopback(_name: str) -> list[str]:
    return ["127.0.0.1"]


def guarded(allow: Allow, lookup: Callable[[str], list[str]] = to_loopback, **more: Any) -> Poster:
    clock = Clock()
    return Poster(Guard(allow, clock, lookup), clock, **more)


def test_tls_is_verified_against_the_host_of_the_url() -> None:
    authority, allow = servers.Authority(), parse_allow("127.0.0.0/8")
    with Receiver(tls=authority.server("hook.test")) as receiver:
        post = guarded(allow, context=trusting(authority), seconds=5)
        body = b'{"event_id":"1"}'
        assert post.post(receiver.url_of("hook.test"), {}, body) == Reply(200)
        other = post.post(receiver.url_of("other.test"), {}, body)
        by_address = post.post(receiver.url, {}, body)
        stranger = guarded(allow, seconds=5).post(receiver.url_of("hook.test"), {}, body)
    assert other.status == by_address.status == stranger.status == 0
    assert "Hostname mismatch" in other.error and "IP address mismatch" in by_address.error
    assert "certificate not verified" in stranger.error
    assert len(receiver.got) == 1


def test_a_name_that_leads_inside_is_refused_at_the_moment_of_connecting(hub: TestHub) -> None:
    asked = []

    def rebinding(name: str) -> list[str]:
        asked.append(name)
        return ["127.0.0.1"]

    with Receiver() as receiver, courier_of(hub, guarded(Allow(), rebinding)) as courier:
        ref = subscribe(hub, f"https://evil.test:{receiver.port}/")
        tell(hub.database, hub.clock.now())
        courier.serve(ref)
        assert receiver.connections == 0
    assert asked == ["evil.test"], "looked up once: nothing can change between the check and the connection"
    assert "not a public one" in attempts(hub)[0].error


def test_the_address_that_was_checked_is_the_one_that_is_reached() -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    with Receiver() as receiver:
        post = guarded(Allow(frozenset(["hook.test"])), lambda _: next(answers), seconds=2)
        assert post.post(receiver.url_of("hook.test"), {}, b'{"event_id":"1"}') == Reply(200)
    assert receiver.got[0].headers["host"] == f"hook.test:{receiver.port}"


def test_forbidden_addresses_of_a_name_are_passed_over() -> None:
    authority, allow = servers.Authority(), parse_allow("127.0.0.1")
    with Receiver(tls=authority.server("hook.test")) as receiver:
        mixed = ["169.254.169.254", "10.1.1.1", "127.0.0.1"]
        post = guarded(allow, lambda _: mixed, context=trusting(authority), seconds=2)
        assert post.post(receiver.url_of("hook.test"), {}, b'{"event_id":"1"}') == Reply(200)


def test_a_lookup_that_hangs_ends_with_the_deadline() -> None:
    hold = threading.Event()

    def hangs(_name: str) -> list[str]:
        hold.wait(10)
        return []

    try:
        reply = guarded(Allow(), hangs, seconds=0.3).post("https://slow.test/", {}, b"")
    finally:
        hold.set()
    assert reply == Reply(0, "the name was not resolved in time")


def test_proxies_of_the_environment_are_not_used(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver, courier_of(hub) as courier:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        ref = subscribe(hub, receiver.url)
        tell(hub.database, hub.clock.now())
        courier.serve(ref)
        assert (proxy.connections, len(receiver.got)) == (0, 1)


# -- claims


def test_a_claim_holds_for_a_while_and_then_ends(hub: TestHub) -> None:
    with Receiver() as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url)
        tell(hub.database, hub.clock.now(), 2)
        with hub.database.write() as conn:
            assert outbox.claim(conn, ref, hub.clock.now())  # by a process that is killed now
        hub.clock.advance(outbox.LEASE_SECONDS - 1)
        assert courier.serve(ref) == 0, "neither the claimed entry nor the one behind it"
        hub.clock.advance(1)
        assert courier.serve(ref) == 2


def test_who_comes_too_late_changes_nothing(hub: TestHub) -> None:
    ref = subscribe(hub, "https://hook.example/")
    tell(hub.database, hub.clock.now())

    def claim() -> outbox.Job:
        with hub.database.write() as conn:
            job = outbox.claim(conn, ref, hub.clock.now())
        assert job is not None
        return job

    def settle(job: outbox.Job, state: str) -> bool:
        now = hub.clock.now()
        with hub.database.write() as conn:
            return outbox.settle(conn, job, (now, now, Reply(200)), outbox.Settled(state))

    late = claim()
    hub.clock.advance(outbox.LEASE_SECONDS)
    owner = claim()
    assert settle(late, "failed") is False
    assert entries(hub)[0].state == outbox.PENDING and entries(hub)[0].claimed_until == owner.claim
    assert settle(owner, "delivered") is True
    assert settle(late, "failed") is False
    assert (entries(hub)[0].state, len(attempts(hub))) == ("delivered", 3)


def test_a_clock_that_was_set_back_stops_nothing(hub: TestHub) -> None:
    with Receiver() as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url)
        tell(hub.database, hub.clock.now())
        with hub.database.write() as conn:
            far = {"next_at": hub.clock.now() + 90_000, "claimed_until": hub.clock.now() + 90_000}
            conn.execute(update(schema.outbox).values(**far))
        assert courier.serve(ref) == 1


def test_no_transaction_is_open_while_a_request_is_under_way(hub: TestHub) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(_: Request) -> bytes:
        inside.set()
        go_on.wait(10)
        return OK

    with Receiver(slow) as receiver, courier_of(hub) as courier:
        subscribe(hub, receiver.url)
        tell(hub.database, hub.clock.now())
        courier.step()
        assert inside.wait(10)
        with hub.database.write() as conn:
            conn.execute(insert(schema.counters).values(name="x", n=1))
        go_on.set()
        assert receiver.wait_for(1)


def test_webhooks_are_served_side_by_side(hub: TestHub) -> None:
    both = threading.Barrier(2, timeout=10)

    def meet(_: Request) -> bytes:
        both.wait()
        return OK

    with Receiver(meet) as receiver, courier_of(hub) as courier:
        subscribe(hub, receiver.url + "/a", "a")
        subscribe(hub, receiver.url + "/b", "b")
        tell(hub.database, hub.clock.now())
        courier.step()
        assert receiver.wait_for(2), "each waits for the other: one after the other would never end"


@pytest.mark.slow
def test_two_couriers_on_one_database_never_overlap(tmp_path: Path) -> None:
    clock = Clock()
    sent: dict[str, int] = {"one": 0, "two": 0}

    class Counting(Poster):
        def __init__(self, name: str) -> None:
            super().__init__(Guard(Allow(), clock), clock)
            self.name = name

        def post(self, *args: Any) -> Reply:
            sent[self.name] += 1
            return super().post(*args)

    pause = threading.Event()

    def slow(_: Request) -> bytes:
        pause.wait(0.005)
        return OK

    with (
        database_url(tmp_path) as url,
        Receiver(slow) as receiver,
        closing(open_database(url)) as first,
        closing(open_database(url)) as second,
    ):
        paths = ["/a", "/b", "/c"]
        hooks = Webhooks(first, clock)
        refs = [hooks.create("test", Wanted(path[1:], receiver.url + path)) for path in paths]
        couriers = [Courier(first, clock, Counting("one")), Courier(second, clock, Counting("two"))]
        done = threading.Event()

        def keep_serving(courier: Courier, ref: str) -> None:
            while not done.is_set():
                if not courier.serve(ref):
                    done.wait(0.005)

        with ThreadPoolExecutor(6) as pool:
            jobs = [pool.submit(keep_serving, courier, ref) for courier in couriers for ref in refs]
            try:
                told = []
                for n in range(20):  # both have nothing to do and wait for the same moment, again and again
                    told += tell((first, second)[n % 2], clock.now())
                    assert receiver.wait_for(3 * len(told))
                told += tell(first, clock.now(), 20)
                assert receiver.wait_for(40 * 3, 60)
            finally:
                done.set()
        for job in jobs:
            job.result()
        for courier in couriers:
            courier.stop()
    assert all(receiver.of(path) == told for path in paths), "every event once, in order"
    assert all(receiver.most[path] == 1 for path in paths)
    assert receiver.most[""] > 1 and min(sent.values()) > 0, "or the test has shown nothing"


@contextmanager
def working(hub: TestHub) -> Iterator[Courier]:
    """A courier at work on the real clock that has looked once and found nothing."""
    clock = Clock()
    courier = Courier(hub.database, clock, poster())
    courier.worker.start()
    try:
        until = clock.monotonic() + 5
        while not courier.worker.turns and clock.monotonic() < until:
            clock.alarm().wait(0.01)
        assert courier.worker.turns
        yield courier
    finally:
        courier.worker.stop()
        courier.worker.join(5)
        courier.stop()


def test_an_event_wakes_the_courier(hub: TestHub) -> None:
    with Receiver() as receiver:
        subscribe(hub, receiver.url)
        with working(hub):
            tell(hub.database, Clock().now())
            assert receiver.wait_for(1, 3), "long before it would look by itself"


def test_more_webhooks_than_threads_do_not_wait_for_the_next_look(hub: TestHub) -> None:
    full = threading.Barrier(THREADS, timeout=10)

    def hold(_: Request) -> bytes:
        if len(receiver.got) <= THREADS:
            full.wait()
        return OK

    with Receiver(hold) as receiver:
        for n in range(THREADS + 3):
            subscribe(hub, f"{receiver.url}/{n}", f"hook {n}")
        with working(hub):
            tell(hub.database, Clock().now())
            assert receiver.wait_for(THREADS + 3, 4)
    assert receiver.most[""] == THREADS


def test_old_deliveries_are_deleted_in_bounded_pieces(hub: TestHub) -> None:
    with Receiver() as receiver, courier_of(hub) as courier:
        ref = subscribe(hub, receiver.url)
        tell(hub.database, hub.clock.now(), 3)
        courier.serve(ref)
        hub.clock.advance(outbox.KEEP_SECONDS - 1)
        tell(hub.database, hub.clock.now())
        courier.serve(ref)
        hub.clock.advance(2)
        courier.step()
    assert (len(entries(hub)), len(attempts(hub))) == (1, 1)


# -- a hub that is killed


@pytest.mark.slow
def test_killed_in_the_middle_everything_arrives_in_order(tmp_path: Path) -> None:
    kill_at, reached, hold = 7, threading.Event(), threading.Event()

    def slow(_: Request) -> bytes:
        if len(receiver.got) == kill_at:
            reached.set()
            hold.wait(30)  # the answer to this one reaches nobody
        return OK

    clock = Clock()
    with database_url(tmp_path) as url, Receiver(slow) as receiver:
        hub = HubProcess(tmp_path, DATABASE_URL=url)
        with closing(open_database(url)) as database:
            Webhooks(database, clock).create("test", Wanted("ops", receiver.url, SECRET))
            told = tell(database, clock.now(), 20)
            hub.start()
            assert reached.wait(20)
            hub.end(signal.SIGKILL)
            hold.set()
            hub.start()
            try:
                assert receiver.wait_for(21, outbox.LEASE_SECONDS + 20)
            finally:
                hub.end()
            with database.read() as conn:
                states = list(conn.scalars(select(schema.outbox.c.state)))
    assert states == ["delivered"] * 20
    came = [each.event_id for each in receiver.got]
    assert came == [*told[:kill_at], *told[kill_at - 1 :]], "only what was under way comes twice"
    assert not re.search("ERROR|Traceback", hub.log()) and SECRET not in hub.log()
