"""The hub as a Lighthouse console: histories, silence and planned stops, instances, tokens, what is refused."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from observer_agent.clock import iso
from observer_agent.hub import schema as hub_schema
from observer_agent.hub.app import create_app
from observer_agent.hub.lighthouse import schema
from observer_agent.hub.lighthouse.judge import RESYNC_AGAIN, Silence
from observer_agent.hub.lighthouse.wire import EVENTS_MAX, read_ns, show_ns
from observer_agent.hub.limits import Limits, Rate
from observer_agent.hub.webhooks import Wanted, Webhooks
from tests.hub_lighthouses import NOW, RIVAL, TOKEN, WEB, Scene, at, event, lighthouse_hub

OFFLINE, CHANGED = "lighthouse.offline", "check.state_changed"


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with lighthouse_hub(tmp_path) as made:
        yield made


# -- the history of a check


def test_every_event_is_stored_once_in_the_order_of_observation(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    first, second, third = (
        event(check, new, at(n), old) for n, new, old in ((1, "up", None), (2, "down", "up"), (3, "up", "down"))
    )
    assert scene.tell(third) == 1
    assert scene.tell(first, second, second, third) == 2
    assert scene.tell(first, second, third) == 0
    assert scene.history(check) == [(at(1), None, "up"), (at(2), "up", "down"), (at(3), "down", "up")]
    found = scene.look.one("raspberry")
    assert (found["taken"], found["duplicates"]) == (3, 5)


def test_two_events_of_one_nanosecond_apart_are_two(scene: Scene) -> None:
    check = scene.check()
    stamps = ["2026-05-09T16:00:01.000000001Z", "2026-05-09T16:00:01.000000002Z"]
    assert scene.tell(event(check, "up", stamps[0]), event(check, "down", stamps[1], "up")) == 2
    assert scene.tell(event(check, "up", "2026-05-09T18:00:01.000000001+02:00")) == 0  # the same moment
    assert [row[0] for row in scene.history(check)] == stamps


def test_an_event_that_comes_late_stands_in_the_history_and_changes_nothing(scene: Scene) -> None:
    check = scene.check()
    scene.tell(event(check, "up", at(10)))
    scene.tell(event(check, "down", at(5), "up"))
    assert [row[2] for row in scene.history(check)] == ["down", "up"]
    assert scene.look.check("raspberry", check)["state"] == "up"
    assert scene.told(CHANGED) == []


def test_a_clock_that_is_ahead_does_not_shut_out_what_follows(scene: Scene) -> None:
    check = scene.check()
    scene.tell(event(check, "up", "2026-05-09T23:00:00Z"))
    scene.hub.clock.advance(10)
    scene.tell(event(check, "down", iso(scene.hub.clock.now()), "up"))
    assert scene.look.check("raspberry", check)["state"] == "down"


def test_what_a_sync_says_is_silent_where_it_is_good(scene: Scene) -> None:
    good, bad = scene.check(name="good"), scene.check(name="bad")
    scene.tell(event(good, "up", at(1)), event(bad, "down", at(1), error_message="timeout"), sync="initial")
    assert [(each["check_name"], each["old_status"], each["new_status"]) for each in scene.told(CHANGED)] == [
        ("bad", None, "down")
    ]
    scene.tell(event(good, "up", at(2)), event(bad, "up", at(2)), sync="resync")
    assert [each["new_status"] for each in scene.told(CHANGED)] == ["down", "up"]
    scene.tell(event(good, "up", at(3)), event(bad, "up", at(3)), sync="resync")
    assert len(scene.told(CHANGED)) == 2


def test_each_transition_is_told_with_what_the_agent_saw(scene: Scene) -> None:
    check = scene.check()
    scene.tell(event(check, "up", at(1)), sync="initial")
    scene.tell(event(check, "down", at(2), "up", status_code=503, error_message="status 503, want 200"))
    (told,) = scene.told(CHANGED)
    assert told == {
        "lighthouse_id": scene.look.one("raspberry")["id"],
        "lighthouse_name": "raspberry",
        "check_id": check,
        "check_name": "shop",
        "old_status": "up",
        "new_status": "down",
        "status_code": 503,
        "error_message": "status 503, want 200",
        "observed_at": at(2),
    }
    found = scene.look.check("raspberry", check)
    assert (found["status"], found["status_code"], found["since"]) == ("down", 503, "2026-05-09T16:00:02.000Z")


def test_events_of_a_check_that_is_not_here_are_let_go(scene: Scene) -> None:
    check = scene.check()
    assert scene.tell(event("11111111-2222-4333-8444-555555555555", "down", at(1)), event(check, "up", at(1))) == 1


def test_nothing_of_a_refused_batch_is_stored(scene: Scene) -> None:
    check = scene.check()
    good = event(check, "up", at(1))
    wrong: list[Any] = [
        {**good, "new_state": "degraded"},
        {**good, "new_state": None},
        {**good, "prev_state": "sideways"},
        {**good, "agent_observed_at": "yesterday"},
        {**good, "agent_observed_at": "2026-05-09 16:00:00Z"},
        {**good, "agent_observed_at": "2300-01-01T00:00:00Z"},
        {**good, "check_id": 7},
        {**good, "check_id": "a\0b"},
        "text",
    ]
    for each in wrong:
        answer = scene.call("events", {"events": [good, each]})
        assert (answer.status_code, list(answer.json)) == (400, ["error"]), each
        assert "events[1]" in answer.json["error"]
    assert scene.call("events", {"events": [good] * (EVENTS_MAX + 1)}).status_code == 413
    assert scene.call("events", b"x" * 2**20 + b"x").status_code == 413
    assert scene.history(check) == []


def test_fields_that_only_describe_are_read_kindly(scene: Scene) -> None:
    check = scene.check()
    odd = {"response_time_ms": "fast", "status_code": True, "error_message": 7, "more": {}}
    assert scene.tell(event(check, "up", at(1), **odd)) == 1
    long = event(check, "down", at(2), error_message="\0" + "x" * 5000)
    assert scene.tell(long) == 1
    found = scene.look.events("raspberry", 10, check)
    assert (found[1]["response_time_ms"], found[1]["status_code"]) == (None, None)
    assert len(found[0]["error_message"]) == 1000 and "\0" not in found[0]["error_message"]


def test_instants_to_the_nanosecond() -> None:
    assert read_ns("1970-01-01T00:00:00.000000001Z") == 1
    assert read_ns("2026-05-09T16:00:00.5+02:00") == read_ns("2026-05-09T14:00:00.500Z")
    for wrong in (
        None,
        5,
        "",
        "2026-05-09T16:00:00",
        "1969-12-31T23:59:59Z",
        "2026-02-30T00:00:00Z",
        "٢026-05-09T16:00:00Z",
    ):
        assert read_ns(wrong) is None, wrong
    assert show_ns(read_ns("2026-05-09T16:00:00.123456789Z") or 0) == "2026-05-09T16:00:00.123456789Z"


# -- is it there


def test_it_is_online_until_a_minute_of_silence(scene: Scene) -> None:
    check = scene.check()
    assert scene.state() == "never"
    scene.register()
    scene.tell(event(check, "up", at(1)), sync="initial")
    assert scene.state() == "online"
    scene.wait(60)
    assert scene.state() == "online"
    scene.wait(5)
    assert scene.state() == "offline"
    assert scene.look.check("raspberry", check)["status"] == "down"  # nobody looks
    assert scene.look.one("raspberry")["checks"]["down"] == 1
    scene.wait(600)
    (told,) = scene.told(OFFLINE)
    assert (told["state"], told["lighthouse_name"], told["checks"]) == ("open", "raspberry", 1)
    assert scene.told(CHANGED) == []  # one alert, not one for each check


def test_after_an_offline_spell_the_answer_asks_for_a_resync(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    assert scene.beat()["request_full_resync"] is False
    scene.wait(120)
    assert scene.beat()["request_full_resync"] is True
    assert [each["state"] for each in scene.told(OFFLINE)] == ["open", "cleared"]
    assert scene.state() == "online"
    assert scene.beat()["request_full_resync"] is False  # asked already: it is under way
    scene.tell(event(check, "up", at(1)), sync="resync")
    scene.hub.clock.advance(RESYNC_AGAIN / 3)
    assert scene.beat()["request_full_resync"] is False


def test_an_answer_that_was_lost_is_asked_again(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    scene.wait(120)
    asked = []
    for _ in range(8):
        asked.append(scene.beat()["request_full_resync"])
        scene.hub.clock.advance(RESYNC_AGAIN / 3)
    assert asked == [True, False, False, True, False, False, True, False]
    scene.tell(event(check, "up", at(1)), sync="resync")
    assert scene.beat()["request_full_resync"] is False


def test_a_process_that_begins_anew_after_a_spell_syncs_without_being_asked(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    scene.wait(120)
    scene.register()
    assert scene.beat()["request_full_resync"] is False
    scene.tell(event(check, "up", at(1)), sync="initial")
    scene.hub.clock.advance(50)
    scene.beat()
    scene.hub.clock.advance(50)
    scene.beat()
    scene.hub.clock.advance(50)
    assert scene.beat()["request_full_resync"] is False


def test_a_spell_that_nobody_has_watched_asks_too(scene: Scene) -> None:
    """The hub itself was away: nobody is told of that, and a resync does no harm."""
    scene.check()
    scene.register()
    scene.hub.clock.advance(300)
    again = Silence(scene.hub.database, scene.hub.clock, 1e9)
    again.step()
    assert scene.state() == "online"
    assert scene.beat()["request_full_resync"] is True
    assert scene.told(OFFLINE) == []


def test_a_hub_that_starts_gives_a_minute_before_it_calls_anybody_silent(scene: Scene) -> None:
    scene.register()
    scene.hub.clock.advance(300)
    again = Silence(scene.hub.database, scene.hub.clock, 1e9)
    for _ in range(13):
        again.step()
        scene.hub.clock.advance(5)
    assert scene.state() == "offline"


def test_a_planned_stop_is_no_death(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    scene.tell(event(check, "up", at(1)), sync="initial")
    assert scene.call("shutdown", {"reason": "sigint"}).status_code == 204
    found = scene.look.one("raspberry")
    assert (found["state"], found["stop_reason"]) == ("stopped", "sigint")
    scene.wait(600)
    assert (scene.state(), scene.told(OFFLINE)) == ("stopped", [])
    assert scene.look.check("raspberry", check)["status"] == "up"  # what it was when the agent left
    scene.register()
    assert scene.state() == "online"


def test_a_stop_after_silence_ends_the_alert(scene: Scene) -> None:
    scene.register()
    scene.wait(120)
    scene.call("shutdown", {"reason": "sigterm"})
    assert [each["state"] for each in scene.told(OFFLINE)] == ["open", "cleared"]


def test_a_paused_lighthouse_is_not_asked_to_sync_before_it_goes_on(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    scene.manage.change("test", "raspberry", {"paused": True})
    scene.wait(120)
    answer = scene.beat()
    assert (answer["paused"], answer["request_full_resync"]) == (True, False)
    assert scene.look.check("raspberry", check)["status"] == "paused"
    scene.manage.change("test", "raspberry", {"paused": False})
    assert scene.beat()["request_full_resync"] is True


def test_webhooks_hear_of_it_unless_they_are_not_to(scene: Scene) -> None:
    hooks = Webhooks(scene.hub.database, scene.hub.clock)
    for kind in (OFFLINE, CHANGED):
        hooks.create("test", Wanted(kind.partition(".")[0], "https://hook.example/x", event_types=(kind,)))
    check = scene.check()
    scene.register()
    scene.tell(event(check, "down", at(1)), sync="initial")
    scene.wait(120)
    assert [(each["webhook"], each["event_type"]) for each in hooks.deliveries()] == [
        ("lighthouse", OFFLINE),
        ("check", CHANGED),
    ]
    scene.manage.change("test", "raspberry", {"notify_on_lifecycle": False})
    scene.beat()
    assert len(hooks.deliveries()) == 2
    assert [each["state"] for each in scene.told(OFFLINE)] == ["open", "cleared"]  # kept for people to see


# -- what it is told


def test_the_list_of_checks_goes_out_when_it_has_changed(scene: Scene) -> None:
    tag = scene.register()["config_etag"]
    assert "checks" not in scene.beat(tag)
    check = scene.check()
    answer = scene.beat(tag)
    assert [each["id"] for each in answer["checks"]] == [check] and answer["config_etag"] != tag
    assert "checks" not in scene.beat(answer["config_etag"])
    scene.manage.change_check("test", "raspberry", check, {"interval_seconds": 30})
    assert scene.beat(answer["config_etag"])["checks"][0]["interval_seconds"] == 30
    scene.manage.delete_check("test", "raspberry", check)
    emptied = scene.beat(answer["config_etag"])
    assert emptied["checks"] == [] and emptied["config_etag"] == tag


def test_settings_go_out_with_every_answer(scene: Scene) -> None:
    assert "host_metrics" not in scene.register()
    scene.manage.change(
        "test",
        "raspberry",
        {"flap_protection_threshold": 3, "heartbeat_interval_seconds": 5, "host_metrics_enabled": False},
    )
    assert scene.register()["heartbeat_interval_seconds"] == 5
    answer = scene.beat()
    assert answer["flap_protection_threshold"] == 3
    assert answer["host_metrics"] == {"enabled": False, "interval_seconds": 30}


def test_the_latest_figures_of_a_check_are_kept(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    scene.beat(
        check_latencies={
            check: {"last_observed_latency_ms": 87, "last_observed_at": at(5)},
            "nobody": {"last_observed_latency_ms": 1, "last_observed_at": at(5)},
        },
        cert_expiry={check: {"days_to_expiry": -3, "observed_at": at(5)}},
    )
    scene.beat(check_latencies={check: {"last_observed_latency_ms": 9, "last_observed_at": at(4)}})  # older
    found = scene.look.check("raspberry", check)
    assert (found["last_observed_latency_ms"], found["days_to_expiry"]) == (87, -3)
    scene.beat(check_latencies={check: {"last_observed_latency_ms": None, "last_observed_at": at(6)}})
    assert scene.look.check("raspberry", check)["last_observed_latency_ms"] is None


# -- one instance at a time


def test_a_rival_is_refused_until_the_first_one_is_silent(scene: Scene) -> None:
    check = scene.check()
    scene.register()
    for path in ("register", "heartbeat", "events", "discoveries", "shutdown"):
        body = {"events": [event(check, "down", at(1))], "items": []}
        answer = scene.call(path, body, X_Lighthouse_Instance_Id=RIVAL)
        assert answer.status_code == 409 and "another instance" in answer.json["error"], path
    assert scene.history(check) == [] and scene.look.one("raspberry")["rival"]
    assert scene.state() == "online"
    scene.hub.clock.advance(61)
    assert scene.call("register", {}, X_Lighthouse_Instance_Id=RIVAL).status_code == 200
    assert scene.call("heartbeat", {}).status_code == 409  # and now the first one is the rival


def test_after_a_planned_stop_another_one_may_come_at_once(scene: Scene) -> None:
    scene.register()
    scene.call("shutdown", {})
    assert scene.call("register", {}, X_Lighthouse_Instance_Id=RIVAL).status_code == 200


def test_several_may_come_where_that_is_allowed_and_kubernetes_always_may(scene: Scene) -> None:
    scene.manage.change("test", "raspberry", {"allow_multi_instance": True})
    for instance in (None, RIVAL, "third"):
        assert scene.call("heartbeat", {}, X_Lighthouse_Instance_Id=instance).status_code == 200
    scene.manage.change("test", "raspberry", {"allow_multi_instance": False})
    assert scene.call("heartbeat", {}, X_Lighthouse_Instance_Id="fourth").status_code == 409
    assert scene.call("register", {"runtime": "kubernetes"}, X_Lighthouse_Instance_Id="fourth").status_code == 200
    assert scene.call("heartbeat", {}).status_code == 200  # sticky
    assert scene.look.one("raspberry")["allow_multi_instance"]


def test_a_pod_for_host_metrics_alone_speaks_for_nobody(scene: Scene) -> None:
    scene.check()
    scene.manage.change("test", "raspberry", {"allow_multi_instance": True})
    scene.beat()
    pod = {"role": "host_metrics", "node_name": "node-1", "pod_hostname": "metrics-x1"}
    for _ in range(5):
        scene.wait(30)
        assert scene.call("heartbeat", pod, X_Lighthouse_Instance_Id=RIVAL).json["request_full_resync"] is False
    assert scene.state() == "offline"
    assert scene.call("shutdown", {}, X_Lighthouse_Instance_Id=RIVAL).status_code == 204
    assert scene.state() == "offline"
    assert scene.beat()["request_full_resync"] is True
    assert scene.call("heartbeat", pod, X_Lighthouse_Instance_Id=RIVAL).status_code == 200
    found = {each["instance_id"]: each for each in scene.look.one("raspberry")["instances"]}
    assert (found[RIVAL]["node_name"], found[RIVAL]["role"]) == ("node-1", "host_metrics")
    scene.call("shutdown", {}, X_Lighthouse_Instance_Id=RIVAL)
    assert scene.state() == "online"
    scene.call("shutdown", {"reason": "sigterm"})
    assert scene.state() == "stopped"


def test_an_older_process_under_the_same_instance_id_is_noticed(scene: Scene) -> None:
    assert scene.call("heartbeat", {}, X_Lighthouse_Process_Uptime="5").status_code == 200
    assert not scene.look.one("raspberry")["rival"]
    assert scene.call("heartbeat", {}, X_Lighthouse_Process_Uptime="500").status_code == 200
    assert scene.look.one("raspberry")["rival"]


# -- tokens


def test_who_has_no_good_token_is_refused(scene: Scene) -> None:
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        "Bearer " + "x" * 300,
        "Bearer \xe9",
    ):
        answer = scene.call("heartbeat", {}, Authorization=wrong)
        assert (answer.status_code, list(answer.json)) == (401, ["error"]), wrong
    assert scene.call("heartbeat", {}, Authorization=f"bearer {TOKEN}").status_code == 200


def test_another_token_ends_the_ones_before_at_once_or_after_a_grace(scene: Scene) -> None:
    second = scene.manage.rotate("test", "raspberry")
    assert scene.call("heartbeat", {}).status_code == 401
    third = scene.manage.rotate("test", "raspberry", 60.0)
    for token, seconds, status in ((second, 59, 200), (second, 2, 401), (third, 0, 200)):
        scene.hub.clock.advance(seconds)
        assert scene.call("heartbeat", {}, Authorization=f"Bearer {token}").status_code == status
    states = sorted(each["state"] for each in scene.look.one("raspberry")["tokens"])
    assert states == ["expired", "expired", "valid"]


def test_the_agent_of_a_deleted_lighthouse_is_told_so(scene: Scene) -> None:
    old, scene.token = scene.token, scene.manage.rotate("test", "raspberry")
    check = scene.check()
    scene.tell(event(check, "up", at(1)))
    assert scene.manage.delete("test", "raspberry", dry_run=True) == {
        "name": "raspberry",
        "checks": 1,
        "events": 1,
        "dry_run": True,
    }
    scene.manage.delete("test", "raspberry")
    for token in (scene.token, old):
        answer = scene.call("heartbeat", {}, Authorization=f"Bearer {token}")
        assert (answer.status_code, answer.json) == (410, {"error": "this lighthouse was deleted"})
    with scene.hub.database.read() as conn:
        for table in (schema.lighthouses, schema.checks, schema.events, schema.instances):
            assert conn.scalar(select(func.count()).select_from(table)) == 0
    scene.manage.create("test", "raspberry", {})  # the name is free again


def test_the_hubs_own_token_and_that_of_a_lighthouse_open_one_door_each(tmp_path: Path) -> None:
    with lighthouse_hub(tmp_path, "operator") as scene:
        client = scene.hub.client()
        assert scene.call("heartbeat", {}, Authorization="Bearer operator").status_code == 401
        assert client.get("/api/lighthouses", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 401
        assert client.get("/api/lighthouses", headers={"Authorization": "Bearer operator"}).status_code == 200


def test_a_token_that_comes_too_often_waits(scene: Scene) -> None:
    scene.hub.app = create_app(scene.hub.store, scene.hub.clock, limits=Limits(by_key=Rate(60.0, 3)))
    seen = [scene.call("heartbeat", {}) for _ in range(6)]
    assert [each.status_code for each in seen] == [200] * 4 + [429] * 2  # the first one was not known yet
    assert seen[-1].headers["Retry-After"] == "1" and list(seen[-1].json) == ["error"]


def test_an_address_that_is_refused_too_often_waits(scene: Scene) -> None:
    scene.hub.app = create_app(scene.hub.store, scene.hub.clock, limits=Limits())
    seen = [scene.call("heartbeat", {}, Authorization=f"Bearer lh_{n}").status_code for n in range(25)]
    assert seen == [401] * 20 + [429] * 5


# -- several at once


def test_the_same_events_from_many_threads_are_stored_once(scene: Scene) -> None:
    """An answer that was late: the sender tries again while the first request is still written."""
    check = scene.check()
    batches = [
        [event(check, "up" if n % 2 else "down", at(n)) for n in range(first, first + 10)] for first in range(0, 40, 5)
    ]
    gate = threading.Barrier(8)

    def send(batch: list[dict[str, Any]]) -> int:
        gate.wait(10)
        return scene.tell(*batch)

    with ThreadPoolExecutor(8) as pool:
        received = list(pool.map(send, batches))
    distinct = {each["agent_observed_at"] for batch in batches for each in batch}
    assert sum(received) == len(distinct) == len(scene.history(check))


def test_one_silence_is_told_once_whoever_sees_it(scene: Scene) -> None:
    scene.register()
    watchers = [Silence(scene.hub.database, scene.hub.clock, 1e9) for _ in range(4)]
    scene.hub.clock.advance(120)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda each: each.step(), watchers))
    assert [each["state"] for each in scene.told(OFFLINE)] == ["open"]


# -- what grows old


def test_old_events_go_and_what_is_known_of_the_check_stays(scene: Scene) -> None:
    check = scene.check()
    scene.tell(event(check, "up", at(1)))
    silence = Silence(scene.hub.database, scene.hub.clock, 86_400.0)
    scene.hub.clock.advance(86_401.0)
    scene.tell(event(check, "down", iso(NOW + 86_400), "up"))
    silence.step()
    assert [row[2] for row in scene.history(check)] == ["down"]
    assert scene.look.check("raspberry", check)["state"] == "down"


# -- discoveries


def item(name: str, **more: Any) -> dict[str, Any]:
    base = {"kind": "service", "namespace": "prod", "resource_name": name, "host": f"{name}.prod", "protocol": "tcp"}
    return {**base, "port": 80, **more}


def test_a_snapshot_is_all_there_is_and_anything_else_adds_to_it(scene: Scene) -> None:
    assert scene.call("discoveries", {"snapshot": True, "items": [item("b"), item("a")]}).json == {"count": 2}
    scene.call("discoveries", {"snapshot": False, "items": [item("c"), item("a")]})
    assert [each["resource_name"] for each in scene.look.discoveries("raspberry")["items"]] == ["a", "b", "c"]
    scene.call("discoveries", {"snapshot": True, "items": [item("c")]})
    assert [each["resource_name"] for each in scene.look.discoveries("raspberry")["items"]] == ["c"]
    for wrong in (item("d", kind="pod"), item("d", protocol="icmp"), item("d", host=None), "text"):
        assert scene.call("discoveries", {"snapshot": True, "items": [item("e"), wrong]}).status_code == 400
    assert [each["resource_name"] for each in scene.look.discoveries("raspberry")["items"]] == ["c"]


def test_a_large_cluster_fits_and_a_huge_one_is_refused(scene: Scene) -> None:
    many = [item(f"service-{n:05}") for n in range(12_000)]
    assert 2**20 < len(json.dumps(many)) < 2**22
    assert scene.call("discoveries", {"snapshot": True, "items": many}).json == {"count": 12_000}
    assert scene.call("discoveries", {"snapshot": True, "items": many + many}).status_code == 413
    assert scene.call("events", {"events": [], "more": "x" * 2**20}).status_code == 413  # the others stay at 1 MiB


# -- the audit log


def test_every_change_is_in_the_audit_log_without_a_secret(scene: Scene) -> None:
    headers = [{"key": "Authorization", "value": "canary-1"}]
    check = scene.check(request_headers=headers, request_body="canary-2")
    scene.manage.change_check("test", "raspberry", check, {"request_body": "canary-3"})
    scene.manage.change("test", "raspberry", {"paused": True})
    token = scene.manage.rotate("test", "raspberry")
    scene.manage.apply("test", "raspberry", [{**WEB, "name": "other"}])
    scene.manage.delete_check("test", "raspberry", check)
    scene.manage.delete("test", "raspberry")
    with scene.hub.database.read() as conn:
        rows = conn.execute(select(hub_schema.audit).order_by(hub_schema.audit.c.id)).all()
    assert [row.action for row in rows] == [
        *("lighthouse.create", "check.create", "check.change", "lighthouse.change", "lighthouse.rotate"),
        *("lighthouse.apply", "check.delete", "lighthouse.delete"),
    ]
    assert {row.actor for row in rows} == {"test"}
    said = str([tuple(row) for row in rows])
    assert "canary" not in said and token not in said
