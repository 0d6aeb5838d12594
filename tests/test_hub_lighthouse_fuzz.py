"""Bad input at the second dialect's endpoints: no 500, nothing stored of a refused request, nothing of a body in a log.

Requests are golden ones with something changed, random JSON, random bytes, and headers of the same sorts, from a seed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import text

from observer_agent.hub.openapi import OPERATIONS
from tests import hub_lighthouses as lighthouses
from tests.hub_lighthouses import INSTANCE, PATH, RIVAL, TOKEN, Scene, at, event, lighthouse_hub
from tests.test_hub_fuzz import CANARY, VALUES, Ask, Maker, listening

pytestmark = pytest.mark.slow

# But for the one that makes the lighthouse open to several instances for good.
NAMES = [each for each in lighthouses.golden_names() if lighthouses.golden(each)["hub"] and each != "register-runtime"]
REQUESTS = [request for request in (lighthouses.golden(name)["request"] for name in NAMES) if "body" in request]
METRICS = lighthouses.body_of(lighthouses.golden("host-metrics")["request"]) or b""
CODES = {(op.method.upper(), op.path): {op.status, *op.refusals} for op in OPERATIONS}
NAMES = [
    "check_id",
    "new_state",
    "prev_state",
    "agent_observed_at",
    "events",
    "items",
    "kind",
    "host",
    "role",
    "reason",
]
STATE = text(
    "SELECT (SELECT max(id) FROM lighthouse_events), (SELECT sum(taken) FROM lighthouses), "
    "(SELECT max(listed) FROM lighthouse_discoveries), (SELECT count(*) FROM lighthouse_series), "
    "(SELECT count(*) FROM lighthouse_checks WHERE state IS NOT NULL), (SELECT count(*) FROM events)"
)


class Lighthouse(Maker):
    """Requests of this dialect, and bodies made as those of the first one."""

    def _ask(self) -> Ask:
        dice = self._random
        base = dice.choice(REQUESTS)
        method = base["method"] if dice.random() < 0.97 else dice.choice(["GET", "PUT", "DELETE", "HEAD"])
        path = base["path"] if dice.random() < 0.9 else dice.choice([*(each["path"] for each in REQUESTS), f"{PATH}/x"])
        if dice.random() < 0.1:
            return Ask("POST", f"{PATH}/host-metrics", self._headers(base["headers"], "x-protobuf"), self._block())
        return Ask(method, path, self._headers(base["headers"]), self._body(base))

    def _block(self) -> bytes:
        """A snappy block with a few bytes changed."""
        dice, data = self._random, bytearray(METRICS)
        for _ in range(dice.choice([0, 1, 3])):
            data[dice.randrange(len(data))] = dice.randrange(256)
        return bytes(data[: dice.choice([len(data), dice.randrange(len(data))])])

    def _headers(self, base: dict[str, str], kind: str = "json") -> dict[str, str]:
        dice = self._random
        found = {**base, "Authorization": f"Bearer {TOKEN}", "Content-Type": f"application/{kind}"}
        found |= {"X-Lighthouse-Instance-Id": INSTANCE, "X-Lighthouse-Process-Uptime": "125"}
        if kind == "x-protobuf":
            found["Content-Encoding"] = "snappy"
        if dice.random() < 0.1:
            named = ["X-Lighthouse-Instance-Id", "X-Lighthouse-Process-Uptime", "Content-Type", "Content-Encoding"]
            found[dice.choice([*named, "Expect"])] = self._line()
        if dice.random() < 0.05:
            found["Authorization"] = dice.choice([f"Bearer {TOKEN}x", "", TOKEN, "Bearer \xe9", self._line()])
        if dice.random() < 0.05:
            found["X-Lighthouse-Instance-Id"] = RIVAL
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with lighthouse_hub(tmp_path) as made:
        lighthouses.hold(made, lighthouses.golden("register")["answer"]["body"]["checks"])
        made.manage.change("test", "raspberry", {"host_metrics_enabled": True})
        made.beat()
        yield made


def state(scene: Scene) -> tuple[Any, ...]:
    with scene.hub.database.read() as conn:
        return tuple(conn.execute(STATE).one())


def storm(scene: Scene, asks: Iterable[Ask]) -> Counter[int]:
    """Each request judged; how often each status was answered."""
    client, seen, before = scene.hub.client(), Counter[int](), state(scene)
    with listening() as heard:
        for ask in asks:
            answer = client.open(ask.path, method=ask.method, headers=ask.headers, data=ask.body)
            after = state(scene)
            method = "GET" if ask.method == "HEAD" else ask.method
            wanted = CODES.get((method, unquote(ask.path)), {308, 400, 401, 404, 405})
            assert answer.status_code in wanted, (answer.status_code, ask)
            if answer.status_code >= 300:
                assert after == before, (answer.status_code, ask)
                assert ask.method == "HEAD" or list(answer.json) == ["error"], ask
            elif ask.path.endswith("/events"):
                assert (after[1] or 0) - (before[1] or 0) == answer.json["received"], ask
            seen[answer.status_code] += 1
            before = after
            client.post(f"{PATH}/heartbeat", json={}, headers=_good())  # ours stays the active instance
    assert not any(secret in line for line in heard.lines for secret in (TOKEN, TOKEN[:20], CANARY))
    with scene.hub.database.read() as conn:
        assert conn.scalar(text("SELECT count(*) FROM lighthouse_events")) == (before[1] or 0)
    return seen


def _good() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}", "X-Lighthouse-Instance-Id": INSTANCE}


def one_by_one() -> Iterator[Ask]:
    """Good requests where one field holds each of the bad values in its turn."""
    headers = {**_good(), "Content-Type": "application/json"}
    whole = event(lighthouses.CHECK, "up", at(1), "down", response_time_ms=1, status_code=200, error_message="x")
    item = {"kind": "ingress", "namespace": "n", "resource_name": "r", "host": "h", "path": "/", "protocol": "http"}
    latency = {"last_observed_latency_ms": 5, "last_observed_at": at(1)}
    expiry = {"days_to_expiry": 5, "observed_at": at(1)}
    beat = lighthouses.golden("heartbeat")["request"]["body"]
    for value in VALUES:
        for name in whole:
            yield _post("events", {"events": [{**whole, name: value}]}, headers)
        for name in ("sync_kind", "events"):
            yield _post("events", {"sync_kind": "initial", "events": [whole], name: value}, headers)
        for name in [*item, "port"]:
            yield _post("discoveries", {"snapshot": True, "items": [{**item, name: value}]}, headers)
        for name in ("snapshot", "items"):
            yield _post("discoveries", {"snapshot": True, "items": [item], name: value}, headers)
        for name in beat:
            yield _post("heartbeat", {**beat, name: value}, headers)
        for figures, good in (("check_latencies", latency), ("cert_expiry", expiry)):
            yield from (_post("heartbeat", {figures: {lighthouses.CHECK: {**good, n: value}}}, headers) for n in good)
        for name in ("agent_version", "agent_hostname", "runtime"):
            yield _post("register", {name: value}, headers)
        yield _post("shutdown", {"reason": value}, headers)
        yield _post("shutdown", value, headers)


def _post(path: str, body: Any, headers: dict[str, str]) -> Ask:
    return Ask("POST", f"{PATH}/{path}", headers, json.dumps(body).encode())


def test_bad_requests_by_the_thousand(scene: Scene) -> None:
    seen = storm(scene, Lighthouse(20260509).asks(2000))
    assert set(seen) >= {200, 202, 204, 400, 401, 405, 409, 415}, seen
    assert seen[202] > 100, seen


def test_every_field_with_every_bad_value(scene: Scene) -> None:
    seen = storm(scene, one_by_one())
    assert seen.keys() <= {200, 202, 204, 400} and min(seen.values()) > 50, seen


def test_the_settings_of_lighthouses_and_checks_with_every_bad_value(scene: Scene) -> None:
    """The operator's side: a good value is taken, anything else is named."""
    client, seen = scene.hub.client(), Counter[int]()
    check = {**lighthouses.WEB, "request_headers": [{"key": "a", "value": "b"}], "expected_headers": [{"key": "a"}]}
    fields = [*check, "method", "keyword_check", "request_body", "skip_tls_verify", "dns_expected_ips", "dns_resolver"]
    with listening() as heard:
        for n, value in enumerate(VALUES):
            for name in ("name", "host", "paused", "flap_protection_threshold", "host_metrics_enabled", "x"):
                seen[client.patch("/api/lighthouses/raspberry", json={name: value}).status_code] += 1
            for name in fields:
                body = {**check, "name": f"check-{n}-{name}", name: value}
                seen[client.post("/api/lighthouses/raspberry/checks", json=body).status_code] += 1
            seen[client.post("/api/lighthouses", json={"name": value}).status_code] += 1
            seen[client.post("/api/lighthouses/raspberry/apply", json={"checks": [value]}).status_code] += 1
    assert seen.keys() <= {200, 201, 400, 409}, seen
    assert not any(CANARY in line for line in heard.lines)
    assert scene.register()["checks"]
