"""Keys: made, rotated with a grace, revoked at once; by command, by the API; each change in the audit log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from observer_agent.errors import UsageError
from observer_agent.hub import schema
from observer_agent.hub.keys import GRACE, GRACE_MAX, digest, hint
from tests.wire_hub import HubProcess, TestHub, memory_hub

TOKEN = "token-of-the-operator"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


def status(hub: TestHub, key: str) -> int:
    answer = hub.client().post("/api/agent/heartbeat", data="{}", headers={"Agent-Key": key})
    found: int = answer.status_code
    return found


def states(hub: TestHub, name: str) -> list[str]:
    """Newest first."""
    return [each["state"] for each in hub.store.keys.list() if each["name"] == name]


def audited(hub: TestHub) -> list[tuple[str, str, str]]:
    audit = schema.audit
    with hub.database.read() as conn:
        rows = conn.execute(select(audit).order_by(audit.c.id)).all()
    return [(row.actor, row.action, row.subject) for row in rows]


def test_two_keys_are_good_until_the_grace_ends(hub: TestHub) -> None:
    old = hub.store.keys.create("web", "cli:me")
    hub.clock.advance(1)
    new = hub.store.keys.rotate("web", "cli:me")
    assert (status(hub, old), status(hub, new)) == (200, 200)
    assert states(hub, "web") == ["valid", "expiring"]
    hub.clock.advance(GRACE - 0.001)
    assert (status(hub, old), status(hub, new)) == (200, 200)
    hub.clock.advance(0.001)
    assert (status(hub, old), status(hub, new)) == (401, 200)
    assert states(hub, "web") == ["valid", "expired"]
    assert audited(hub) == [("cli:me", "key.create", "web"), ("cli:me", "key.rotate", "web")]


def test_without_a_grace_the_old_key_ends_at_once(hub: TestHub) -> None:
    old = hub.store.keys.create("web", "api")
    new = hub.store.keys.rotate("web", "api", 0)
    assert (status(hub, old), status(hub, new)) == (401, 200)


def test_a_second_rotation_prolongs_no_grace(hub: TestHub) -> None:
    first = hub.store.keys.create("web", "api")
    hub.store.keys.rotate("web", "api", 60)
    hub.store.keys.rotate("web", "api", GRACE_MAX)
    hub.clock.advance(60)
    assert status(hub, first) == 401


@pytest.mark.parametrize("grace", [-1, GRACE_MAX + 1, float("nan")])
def test_a_grace_is_at_most_seven_days(hub: TestHub, grace: float) -> None:
    hub.store.keys.create("web", "api")
    with pytest.raises(UsageError, match="7 days"):
        hub.store.keys.rotate("web", "api", grace)


def test_a_revoked_key_is_refused_at_once_and_one_can_be_named(hub: TestHub) -> None:
    old = hub.store.keys.create("web", "api")
    other = hub.store.keys.create("other", "api")
    new = hub.store.keys.rotate("web", "api")
    assert hub.store.keys.revoke("web", "api", hint(old)) == [hint(old)]
    assert [status(hub, each) for each in (old, new, other)] == [401, 200, 200]
    assert hub.store.keys.revoke("web", "api") == [hint(new)]
    assert [status(hub, each) for each in (old, new, other)] == [401, 401, 200]
    with pytest.raises(UsageError, match="no such key"):
        hub.store.keys.revoke("web", "api")


def test_a_dry_run_changes_nothing(hub: TestHub) -> None:
    key = hub.store.keys.create("web", "api")
    before = audited(hub)
    assert hub.store.keys.revoke("web", "api", dry_run=True) == [hint(key)]
    assert (status(hub, key), audited(hub)) == (200, before)


def test_only_a_hash_and_a_hint_are_kept(hub: TestHub) -> None:
    key = hub.store.keys.create("web", "api")
    assert hint(key) == f"{key[:13]}…{key[-2:]}"
    with hub.database.read() as conn:
        kept = conn.execute(select(schema.keys).where(schema.keys.c.digest == digest(key))).one()
        logged = conn.execute(select(schema.audit)).all()
    assert kept.hint == hint(key)
    assert key[:14] not in f"{kept}{logged}"


def test_an_unknown_agent_is_a_complaint(hub: TestHub) -> None:
    for change in (hub.store.keys.rotate, hub.store.keys.revoke):
        with pytest.raises(UsageError, match="no agent 'nobody'"):
            change("nobody", "api")


def test_the_api_does_the_same(tmp_path: Path) -> None:
    with memory_hub(tmp_path, token=TOKEN) as hub:
        made = post(hub, "", {"name": "a/b c"})
        assert made.status_code == 201 and status(hub, made.json["key"]) == 200
        new = post(hub, "/a/b%20c/rotate", {"grace_seconds": 0}).json["key"]
        assert (status(hub, made.json["key"]), status(hub, new)) == (401, 200)
        assert post(hub, "/a/b%20c/revoke", {"dry_run": True}).json["would_revoke"] == [hint(new)]
        assert status(hub, new) == 200
        assert post(hub, "/a/b%20c/revoke", {}).json["revoked"] == [hint(new)]
        assert status(hub, new) == 401
        listed = hub.client().get("/api/v1/keys", headers={"Authorization": f"Bearer {TOKEN}"})
        found = [each["state"] for each in listed.json["keys"] if each["name"] == "a/b c"]
        assert sorted(found) == ["expired", "revoked"]
        assert new not in listed.text and digest(new) not in listed.text
        assert {action for _, action, _ in audited(hub)} == {"key.create", "key.rotate", "key.revoke"}


def post(hub: TestHub, path: str, body: Any, **headers: str) -> Any:
    head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **headers}
    return hub.client().post(f"/api/v1/keys{path}", data=json.dumps(body), headers=head)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", {}),
        ("", {"name": 5}),
        ("", {"name": "web", "colour": 1}),
        ("", []),
        ("/agent/rotate", {"grace_seconds": "1"}),
        ("/agent/rotate", {"grace_seconds": True}),
        ("/agent/rotate", {"grace_seconds": 10**9}),
        ("/nobody/rotate", {}),
        ("/agent/revoke", {"hint": "x"}),
        ("/agent/revoke", {"dry_run": 1}),
    ],
)
def test_a_bad_body_is_400_and_changes_nothing(tmp_path: Path, path: str, body: Any) -> None:
    with memory_hub(tmp_path, token=TOKEN) as hub:
        assert post(hub, path, body).status_code == 400
        assert audited(hub) == [] and status(hub, hub.key) == 200


def test_writes_need_the_token_and_say_that_they_are_json(tmp_path: Path) -> None:
    with memory_hub(tmp_path, token=TOKEN) as hub:
        assert post(hub, "", {"name": "x"}, Authorization="Bearer wrong").status_code == 401
        assert post(hub, "", {"name": "x"}, Authorization=f"Bearer {hub.key}").status_code == 401
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            assert post(hub, "", {"name": "x"}, **{"Content-Type": kind}).status_code == 415
        assert audited(hub) == []


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path)
    old = hub.key("web")
    new = hub.command("key", "rotate", "web", "--grace", "30m").stdout.splitlines()[-1]
    listed = json.loads(hub.command("key", "list", "--json").stdout)["keys"]
    assert [(each["hint"], each["state"]) for each in listed] == [(hint(new), "valid"), (hint(old), "expiring")]
    tried = hub.command("key", "revoke", "web", "--hint", hint(old), "--dry-run")
    assert tried.stdout == f"would be revoked: {hint(old)}\n"
    assert hub.command("key", "revoke", "web", "--hint", hint(old)).stdout == f"revoked: {hint(old)}\n"
    text = hub.command("key", "list").stdout
    assert "revoked" in text and "valid" in text and old not in text and new not in text
    for grace in ("8d", "-1s", "soon"):
        assert hub.command("key", "rotate", "web", "--grace", grace).returncode in (1, 2)
    assert hub.command("key", "revoke", "nobody").returncode == 1
