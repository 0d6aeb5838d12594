"""A hub that holds a lighthouse, for tests: made as its operator would, asked as its agent would."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from observer_agent.clock import parse_iso
from observer_agent.hub.keys import digest
from observer_agent.hub.lighthouse import schema
from observer_agent.hub.lighthouse.checks import FIELDS, etag, wired
from observer_agent.hub.lighthouse.judge import Silence
from observer_agent.hub.lighthouse.look import Look
from observer_agent.hub.lighthouse.manage import Manage
from tests.wire_hub import TestHub, memory_hub

GOLDEN = Path(__file__).parent / "wire" / "lighthouse"
TOKEN = "lh_goldenTokenGoldenTokenGoldenTokenGolden01"
NOW = parse_iso("2026-05-09T16:01:00.000Z") or 0.0
INSTANCE = "3d9c5b3a-6f1e-4a53-9a80-5d5f6c7b8a90"
RIVAL = "9b1deb4d-3b7d-4bad-9bdd-2b0d7b3dcb6d"
PATH = "/api/lighthouse/v1"
CHECK = "0b0f3a44-6c0e-4a39-8f0e-1f6f3a1d0c01"
GOOD = {  # a good exchange for each operation of agents
    "lighthouse_register": "register",
    "lighthouse_beat": "heartbeat-minimal",
    "lighthouse_events": "events-down",
    "lighthouse_discoveries": "discoveries",
    "lighthouse_shutdown": "shutdown",
}
WEB = {"name": "shop", "type": "https", "url": "https://shop.example.com/health"}


def golden(name: str) -> dict[str, Any]:
    """One exchange of `tests/wire/lighthouse/`."""
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def golden_names() -> list[str]:
    """All of them."""
    return sorted(file.stem for file in GOLDEN.glob("*.json"))


def body_of(request: dict[str, Any]) -> bytes | None:
    """The bytes of a golden request."""
    if "base64" in request:
        return base64.b64decode(request["base64"])
    if "text" in request:
        return str(request["text"]).encode()
    return json.dumps(request["body"]).encode() if "body" in request else None


@dataclass
class Scene:
    """A hub with one lighthouse."""

    hub: TestHub
    manage: Manage
    look: Look
    silence: Silence
    name: str = "raspberry"
    token: str = TOKEN

    def call(self, path: str, body: Any = None, **more: str | None) -> Any:
        """A request of the agent; header names with underscores, None takes a header away."""
        headers: dict[str, str | None] = {
            "Authorization": f"Bearer {self.token}",
            "Content-Type": "application/json",
            "X-Lighthouse-Instance-Id": INSTANCE,
            "X-Lighthouse-Process-Uptime": "125",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        kept = {name: value for name, value in headers.items() if value is not None}
        return self.hub.client().post(f"{PATH}/{path}", data=data, headers=kept)

    def register(self, **more: Any) -> Any:
        """What register answers."""
        answer = self.call("register", {"agent_version": "1.10.0", "agent_hostname": "vm-7", **more})
        assert answer.status_code == 200, answer.text
        return answer.json

    def beat(self, etag: str = "", **more: Any) -> Any:
        """What a heartbeat answers."""
        answer = self.call("heartbeat", {"agent_version": "1.10.0", "config_etag": etag, **more})
        assert answer.status_code == 200, answer.text
        return answer.json

    def tell(self, *events: dict[str, Any], sync: str | None = None) -> int:
        """Sends events; how many were new."""
        answer = self.call("events", {**({"sync_kind": sync} if sync else {}), "events": list(events)})
        assert answer.status_code == 202, answer.text
        return int(answer.json["received"])

    def check(self, **more: Any) -> str:
        """A new check; its id."""
        return self.manage.create_check("test", "raspberry", {**WEB, **more})

    def history(self, check_id: str) -> list[tuple[str, str | None, str]]:
        """The history of a check, oldest first: when, from, to."""
        found = self.look.events("raspberry", 1000, check_id)
        return [(each["agent_observed_at"], each["prev_state"], each["new_state"]) for each in reversed(found)]

    def told(self, kind: str) -> list[dict[str, Any]]:
        """What the hub's events of a kind say, oldest first."""
        found = self.hub.get("events?limit=1000")["events"]
        return [each["data"] for each in reversed(found) if each["event_type"] == kind]

    def state(self) -> str:
        """Of the lighthouse."""
        return str(self.look.one("raspberry")["state"])

    def wait(self, seconds: float, step: float = 5.0) -> None:
        """Lets time pass while the hub looks who is silent."""
        for _ in range(int(seconds // step)):
            self.hub.clock.advance(step)
            self.silence.step()


def event(check_id: str, new: str, at: str, before: str | None = None, **more: Any) -> dict[str, Any]:
    """One event of the wire."""
    return {"check_id": check_id, "prev_state": before, "new_state": new, "agent_observed_at": at, **more}


def at(seconds: float) -> str:
    """A moment of the day."""
    return f"2026-05-09T16:{int(seconds // 60):02d}:{seconds % 60:012.9f}Z"


@contextmanager
def lighthouse_hub(folder: Path, token: str | None = None) -> Iterator[Scene]:
    """A hub at 16:01 on the golden day."""
    with memory_hub(folder, token) as hub:
        hub.clock.step_wall(NOW - hub.clock.now())
        yield add_lighthouse(hub)


def add_lighthouse(hub: TestHub, name: str = "raspberry") -> Scene:
    """A lighthouse with the golden token."""
    manage = Manage(hub.database, hub.clock)
    _, made = manage.create("test", name, {})
    tokens = schema.tokens
    with hub.database.write() as conn:
        conn.execute(update(tokens).where(tokens.c.digest == digest(made)).values(digest=digest(TOKEN)))
    silence = Silence(hub.database, hub.clock, 400 * 86_400.0)
    return Scene(hub, manage, Look(hub.database, hub.clock), silence, name)


def hold(scene: Scene, checks: list[dict[str, Any]]) -> None:
    """Gives the lighthouse these checks of the wire, with their ids."""
    table = schema.checks
    for each in checks:
        made = scene.manage.create_check("test", scene.name, {n: v for n, v in each.items() if n in FIELDS})
        with scene.hub.database.write() as conn:
            conn.execute(update(table).where(table.c.id == made).values(id=each["id"]))
    with scene.hub.database.write() as conn:
        rows = conn.execute(select(table).order_by(table.c.position)).all()
        tag = etag([wired(row.id, json.loads(row.definition)) for row in rows])
        conn.execute(update(schema.lighthouses).values(etag=tag))
