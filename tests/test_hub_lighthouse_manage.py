"""Lighthouses made and changed: the API for programs, documents of checks, the commands of an operator."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from observer_agent.errors import DocumentError, UsageError
from observer_agent.hub.lighthouse import document
from observer_agent.hub.lighthouse.checks import FIELDS, read_check
from tests.hub_lighthouses import WEB, Scene, at, event, lighthouse_hub
from tests.wire_hub import HubProcess

TCP = {"name": "db", "type": "tcp", "url": "db.internal:5432"}
DNS = {"name": "names", "type": "dns", "url": "shop.example.com", "dns_record_type": "aaaa"}
SECRETS = {"request_headers": [{"key": "Authorization", "value": "canary-1"}], "request_body": "canary-2"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with lighthouse_hub(tmp_path) as made:
        yield made


def ask(scene: Scene, method: str, path: str, body: Any = None) -> Any:
    return scene.hub.client().open(f"/api/lighthouses{path}", method=method, json=body)


# -- the API


def test_a_lighthouse_from_its_making_to_its_end(scene: Scene) -> None:
    made = ask(scene, "POST", "", {"name": "prod", "host": "rack 7"})
    assert made.status_code == 201 and made.json["token"].startswith("lh_")
    path = f"/{made.json['id']}"
    assert "token" not in ask(scene, "GET", path).json
    assert [each["name"] for each in ask(scene, "GET", "").json["lighthouses"]] == ["prod", "raspberry"]
    changed = ask(scene, "PATCH", path, {"paused": True, "host": ""}).json
    assert (changed["paused"], changed["host"]) == (True, None)
    other = ask(scene, "POST", f"{path}/rotate", {})
    assert other.status_code == 201 and other.json["token"] != made.json["token"]
    assert ask(scene, "DELETE", path).status_code == 204
    assert ask(scene, "GET", path).status_code == 404


def test_what_is_not_understood_is_refused_by_name(scene: Scene) -> None:
    for method, path, body, status, word in (
        ("POST", "", {"name": "raspberry"}, 409, "already"),
        ("POST", "", {"name": " x"}, 400, "name"),
        ("POST", "", {"name": 7}, 400, "name"),
        ("POST", "", {}, 400, "name"),
        ("POST", "", {"name": "x", "flap_protection_threshold": 0}, 400, "flap_protection_threshold"),
        ("PATCH", "/raspberry", {"heartbeat_interval_seconds": 60}, 400, "heartbeat_interval_seconds"),
        ("PATCH", "/raspberry", {"paused": 1}, 400, "paused"),
        ("PATCH", "/raspberry", {"name": "other"}, 400, "unknown field"),
        ("PATCH", "/nobody", {"paused": True}, 404, "no such lighthouse"),
        ("POST", "/raspberry/rotate", {"grace_seconds": 8 * 86400}, 400, "grace"),
        ("POST", "/raspberry/rotate", {"grace_seconds": True}, 400, "grace_seconds"),
        ("GET", "/raspberry/checks/nothing", None, 404, "no such check"),
        ("GET", "/raspberry/events?limit=0", None, 400, "limit"),
        ("POST", "/raspberry/apply", {"checks": {}}, 400, "checks"),
        ("POST", "/raspberry/apply", {"checks": [], "prune": "yes"}, 400, "prune"),
        ("PUT", "/raspberry", {}, 405, "method"),
    ):
        answer = ask(scene, method, path, body)
        assert answer.status_code == status and list(answer.json) == ["error"], (path, body, answer.text)
        assert word in answer.json["error"], answer.text
    plain = scene.hub.client().post("/api/lighthouses", data='{"name": "x"}', content_type="text/plain")
    assert plain.status_code == 415


def test_a_check_from_its_making_to_its_end(scene: Scene) -> None:
    made = ask(scene, "POST", "/raspberry/checks", {**WEB, **SECRETS})
    assert made.status_code == 201 and made.json["interval_seconds"] == 60
    path = f"/raspberry/checks/{made.json['id']}"
    assert ask(scene, "POST", "/raspberry/checks", WEB).status_code == 409
    assert ask(scene, "PATCH", path, {"interval_seconds": 10, "request_body": None}).json["interval_seconds"] == 10
    scene.tell(event(made.json["id"], "up", at(1)))
    stored = ask(scene, "GET", f"/raspberry/events?check_id={made.json['id']}").json["events"]
    assert [each["new_state"] for each in stored] == ["up"]
    assert ask(scene, "DELETE", path).status_code == 204
    assert ask(scene, "GET", path).status_code == 404
    assert ask(scene, "GET", "/raspberry/events").json["events"] == []


def test_secrets_of_a_check_are_hidden_and_what_is_hidden_is_kept(scene: Scene) -> None:
    check = scene.check(**SECRETS)
    seen = ask(scene, "GET", f"/raspberry/checks/{check}").json
    assert "canary" not in json.dumps(seen)
    again = {name: seen[name] for name in ("request_headers", "request_body")}
    more = [*again["request_headers"], {"key": "X-More", "value": "canary-3"}]
    ask(scene, "PATCH", f"/raspberry/checks/{check}", {**again, "request_headers": more})
    (told,) = scene.register()["checks"]
    assert told["request_body"] == "canary-2"
    assert [each["value"] for each in told["request_headers"]] == ["canary-1", "canary-3"]
    for path in ("", "/raspberry", "/raspberry/checks", f"/raspberry/checks/{check}"):
        assert "canary" not in ask(scene, "GET", path).text


@pytest.mark.parametrize(
    ("check", "word"),
    [
        ({}, "name"),
        ({**WEB, "type": "ftp"}, "type"),
        ({**WEB, "url": "shop.example.com"}, "url"),
        ({**WEB, "url": ""}, "url"),
        ({**WEB, "url": "https://x\ud800"}, "url"),
        ({**WEB, "interval_seconds": 4}, "interval_seconds"),
        ({**WEB, "interval_seconds": 60.5}, "interval_seconds"),
        ({**WEB, "timeout_seconds": True}, "timeout_seconds"),
        ({**WEB, "expected_status_code": 99}, "expected_status_code"),
        ({**WEB, "keyword_present": "yes"}, "keyword_present"),
        ({**WEB, "method": "BREW"}, "method"),
        ({**WEB, "request_headers": {"a": "b"}}, "request_headers"),
        ({**WEB, "request_headers": [{"key": "a"}]}, "request_headers[0]"),
        ({**WEB, "expected_headers": [{"key": "a", "match": "regex"}]}, "expected_headers[0].match"),
        ({**WEB, "keyword": "x"}, "unknown field"),
        ({**TCP, "method": "GET"}, "method means nothing"),
        ({**DNS, "dns_record_type": "HINFO"}, "dns_record_type"),
        ("text", "an object"),
    ],
)
def test_a_check_that_is_wrong_names_its_field(check: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word.replace("[", r"\[")):
        read_check(check)


def test_words_of_a_check_are_written_as_agents_know_them() -> None:
    assert read_check({**DNS, "type": "DNS"})["dns_record_type"] == "AAAA"
    assert read_check({**WEB, "type": "HTTPS", "method": "head"})["method"] == "HEAD"


def test_a_check_with_every_field_is_told_whole(scene: Scene) -> None:
    whole = {
        **WEB,
        "method": "POST",
        "expected_status_code": 201,
        "interval_seconds": 30,
        "timeout_seconds": 3,
        "keyword_check": "ok",
        "keyword_present": True,
        "request_headers": [{"key": "A", "value": "b"}],
        "request_body": "{}",
        "expected_headers": [{"key": "C", "value": "d", "match": "exact"}],
        "skip_tls_verify": True,
    }
    names = {"name": "n", "type": "dns", "url": "x", "dns_expected_ips": ["192.0.2.1"], "dns_resolver": "192.0.2.53"}
    whole_dns = {**names, "dns_record_type": "A", "interval_seconds": 5, "timeout_seconds": 1}
    assert set(whole) | set(whole_dns) == set(FIELDS)
    ids = [scene.manage.create_check("test", "raspberry", each) for each in (whole, whole_dns)]
    assert scene.register()["checks"] == [{"id": ids[0], **whole}, {"id": ids[1], **whole_dns}]


# -- documents


def test_a_document_makes_changes_and_prunes_by_name(scene: Scene) -> None:
    by_hand = scene.check(name="by hand")
    first = scene.manage.apply("test", "raspberry", [WEB, TCP])
    assert (first["created"], first["unchanged"]) == (["shop", "db"], 0)
    ids = {each["name"]: each["id"] for each in scene.look.checks("raspberry")}
    scene.tell(event(ids["db"], "up", at(1)))
    tag = scene.register()["config_etag"]
    again = scene.manage.apply("test", "raspberry", [WEB, TCP])
    assert again == {"created": [], "changed": [], "pruned": [], "unchanged": 2, "dry_run": False}
    dry = scene.manage.apply("test", "raspberry", [{**TCP, "interval_seconds": 9}], prune=True, dry_run=True)
    assert (dry["changed"], dry["pruned"]) == (["db"], ["shop"])
    assert scene.register()["config_etag"] == tag
    done = scene.manage.apply("test", "raspberry", [{**TCP, "interval_seconds": 9}], prune=True)
    assert {**dry, "dry_run": False} == done
    left = {each["name"]: each["id"] for each in scene.look.checks("raspberry")}
    assert left == {"by hand": by_hand, "db": ids["db"]}  # a check of the same name is the same check, with its past
    assert len(scene.history(ids["db"])) == 1
    scene.manage.apply("test", "raspberry", [WEB])
    assert {each["name"]: each["id"] for each in scene.look.checks("raspberry")}["shop"] == ids["shop"]


def test_a_document_is_applied_whole_or_not_at_all(scene: Scene) -> None:
    for wrong in ([WEB, {**TCP, "url": ""}], [WEB, WEB]):
        with pytest.raises(UsageError):
            scene.manage.apply("test", "raspberry", wrong)
    assert scene.look.checks("raspberry") == []


def test_a_complaint_about_a_document_names_its_line() -> None:
    text = "lighthouse: prod\nchecks:\n  - name: shop\n    type: tcp\n    url: x.example:80\n    timeout_seconds: 0"
    with pytest.raises(DocumentError, match=r"^f\.yaml:6: check 'shop': timeout_seconds must be"):
        document.read(text, "f.yaml")
    for wrong, line in (
        ("- a", 1),
        ("checks: x", 1),
        ("lighthouse: [1]\nchecks: []", 1),
        ("\nmetrics: []", 2),
        ("checks: [3]", 1),
    ):
        with pytest.raises(DocumentError, match=rf"^f:{line}: "):
            document.read(wrong, "f")
    assert document.read(text.replace("0", "5"), "f").lighthouse == "prod"


# -- the commands


@pytest.mark.slow
def test_an_operator_with_nothing_but_the_commands(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path)
    made = hub.command("lighthouse", "create", "prod", "--host", "rack 7")
    assert made.returncode == 0, made.stderr
    token = made.stdout.splitlines()[-1]
    assert hub.command("lighthouse", "create", "prod").returncode == 1
    file = tmp_path / "checks.yaml"
    file.write_text(f"lighthouse: prod\nchecks:\n  - {json.dumps(WEB)}\n  - {json.dumps(TCP)}\n")
    dry = hub.command("lighthouse", "apply", "-f", str(file), "--dry-run")
    assert dry.stdout.splitlines()[-1] == "2 created, 0 changed, 0 pruned, 0 unchanged; a dry run: nothing was applied"
    assert hub.command("lighthouse", "apply", "-f", str(file)).stdout.startswith("+ shop\n+ db\n")
    file.write_text("checks: [{name: 7}]")
    wrong = hub.command("lighthouse", "apply", "--name", "prod", "-f", str(file))
    assert wrong.returncode == 78 and "checks.yaml:1" in wrong.stderr
    url = hub.start()
    try:
        headers = {"Authorization": f"Bearer {token}", "X-Lighthouse-Instance-Id": "i"}
        answer = requests.post(f"{url}/api/lighthouse/v1/register", json={}, headers=headers, timeout=10)
        assert [each["name"] for each in answer.json()["checks"]] == ["shop", "db"]
        check = answer.json()["checks"][0]["id"]
        told = {"events": [event(check, "down", at(1), "up", error_message="timeout")]}
        assert (
            requests.post(f"{url}/api/lighthouse/v1/events", json=told, headers=headers, timeout=10).status_code == 202
        )
        shown = hub.command("lighthouse", "show", "prod").stdout
        assert "down     shop (https" in shown and ": timeout" in shown and "rack 7" in shown
        assert "1 down, 1 nothing" in hub.command("lighthouse", "list").stdout
        listed = hub.command("lighthouse", "events", "prod", "--check", "shop").stdout
        assert listed == f"{at(1)} down  shop (from up) timeout\n"
        assert hub.command("lighthouse", "pause", "prod").stdout == "paused true\n"
        changed = hub.command("lighthouse", "change", "prod", "--flap", "3", "--host-metrics")
        assert changed.stdout == "flap_protection_threshold 3, host_metrics_enabled true\n"
        assert hub.command("lighthouse", "change", "prod").returncode == 1
        beat = requests.post(f"{url}/api/lighthouse/v1/heartbeat", json={}, headers=headers, timeout=10).json()
        assert (beat["paused"], beat["flap_protection_threshold"], beat["host_metrics"]["enabled"]) == (True, 3, True)
        assert hub.command("lighthouse", "resume", "prod").returncode == 0
        other = hub.command("lighthouse", "rotate", "prod", "--json")
        assert (
            requests.post(f"{url}/api/lighthouse/v1/heartbeat", json={}, headers=headers, timeout=10).status_code == 401
        )
        headers["Authorization"] = f"Bearer {json.loads(other.stdout)['token']}"
        assert "would be deleted" in hub.command("lighthouse", "delete", "prod", "--dry-run").stdout
        assert hub.command("lighthouse", "delete", "prod").stdout == "deleted: prod, 2 checks, 1 events\n"
        assert (
            requests.post(f"{url}/api/lighthouse/v1/heartbeat", json={}, headers=headers, timeout=10).status_code == 410
        )
        assert hub.end(signal.SIGTERM) == 0
        assert token not in hub.log() and "Traceback" not in hub.log()
    finally:
        hub.kill()
