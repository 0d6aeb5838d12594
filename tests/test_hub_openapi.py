"""The OpenAPI document: whole, valid, and true under requests made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import validate
from sqlalchemy import insert

from observer_agent.hub import schema
from observer_agent.hub.openapi import LIGHTHOUSE, OPERATIONS, TOKEN, document
from observer_agent.hub.roller import Roller
from tests import hub_lighthouses as lighthouses
from tests.wire_hub import STARTED, TestHub, define, golden, memory_hub, row

SECRET = "token-of-the-operator"
BEARER = {"Authorization": f"Bearer {SECRET}"}
CONSOLE = "console."
HOOK = {"name": "two", "url": "https://hook.example/y", "event_types": ["agent.offline"]}
LIMITS = {"healthy_operation": "under", "healthy_value": 1, "unhealthy_operation": "over", "unhealthy_value": 2}
TCP = {"source_type": "tcp", "source_config": {"host": "h.example", "port": 1}}
METRIC = {"key": "t", "title": "T", **TCP, "thresholds": LIMITS}
BODIES: dict[str, Any] = {
    "push": row(5),
    "push_batch": [row(6), row(7, status="splendid")],
    "beat": golden("heartbeat-full")["request"]["body"],
    "relay": golden("relay-not-found")["request"]["body"],
    "log": golden("log-line")["request"]["body"],
    "apply": {"apiVersion": "observer/v1", "metrics": [METRIC]},
    "create_webhook": HOOK,
    "change_webhook": {"active": False},
    "delete_webhook": {},
    "test_webhook": {},
    "create_key": {"name": "another"},
    "rotate_key": {"grace_seconds": 60},
    "revoke_key": {"dry_run": True},
    **{name: lighthouses.golden(exchange)["request"]["body"] for name, exchange in lighthouses.GOOD.items()},
    "create_lighthouse": {"name": "another"},
    "change_lighthouse": {"host": "rack 7"},
    "delete_lighthouse": {},
    "rotate_token": {},
    "apply_checks": {"checks": [lighthouses.WEB, {**lighthouses.WEB, "name": "two"}], "prune": True},
    "create_check": {**lighthouses.WEB, "name": "one more"},
    "change_check": {"interval_seconds": 30},
    "delete_check": {},
}
# Lists that hold nothing here, because of what was asked
HOLLOW = {
    "push": {"rejected"},
    "apply": {"changed", "pruned", "remarks"},
    "webhooks": {"event_types"},
    "webhook": {"event_types"},
    "change_webhook": {"event_types"},
    "revoke_key": {"revoked"},
    "apply_checks": {"changed", "pruned"},
    "create_lighthouse": {"instances"},
}
DEFINITION = golden("definitions")["answer"]["body"][0]


def rules(hub: TestHub) -> set[tuple[str, str]]:
    """Every method and path of the application outside the console, as the document writes them."""
    found = set()
    for rule in hub.app.url_map.iter_rules():
        if not rule.endpoint.startswith(CONSOLE):
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)
            found |= {(method.lower(), path) for method in rule.methods - {"HEAD", "OPTIONS"}}
    return found


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path, SECRET) as made:
        yield made


def test_every_url_rule_is_in_the_document_and_the_other_way_round(hub: TestHub) -> None:
    described = {(method, path) for path, item in document()["paths"].items() for method in item}
    assert described == rules(hub)
    assert len({op.name for op in OPERATIONS}) == len(OPERATIONS)


def test_it_is_valid() -> None:
    validate(json.loads(json.dumps(document())))


def test_every_shape_is_used() -> None:
    text = json.dumps(document())
    unused = [name for name in document()["components"]["schemas"] if f'schemas/{name}"' not in text]
    assert unused == []


def test_it_is_served_behind_the_token(hub: TestHub) -> None:
    assert hub.client().get("/api/v1/openapi.json").status_code == 401
    answer = hub.client().get("/api/v1/openapi.json", headers=BEARER)
    assert answer.status_code == 200
    assert answer.json == json.loads(json.dumps(document()))


def test_every_guard_is_as_described(hub: TestHub) -> None:
    for op in OPERATIONS:
        path = re.sub(r"{\w+}", "x", op.path)
        wrong = {"Agent-Key": hub.key} if op.guard == TOKEN else BEARER
        answer = hub.client().open(path, method=op.method.upper(), headers=wrong)
        assert answer.status_code == (401 if op.guard else 200), op.name


# -- requests made from the document


def fill(hub: TestHub) -> None:
    """One of everything, so that answers hold something."""
    fill_lighthouse(hub)
    define(hub.store, golden("definitions")["answer"]["body"])
    client, json_type = hub.client(), {**BEARER, "Content-Type": "application/json"}
    hook = {"name": "ops", "url": "https://hook.example/x"}
    assert client.post("/api/v1/webhooks", json=hook, headers=json_type).status_code == 201
    assert client.post("/api/v1/webhooks/ops/test", headers=json_type).status_code == 202
    rows = [row(n, metric_id=each) for n, each in enumerate((DEFINITION["id"], "m"))]
    assert hub.push([*rows, row(reason="timeout", status="no_data")], "1-3").status_code == 200
    assert hub.beat(golden("heartbeat-full")["request"]["body"]).status_code == 200
    hub.clock.advance(60)
    roller = Roller(hub.database, hub.clock)
    while roller.roll():
        pass
    with hub.database.write() as conn:
        attempt = {"at": hub.clock.now(), "status": 503, "error": "status 503", "duration_ms": 12.5}
        conn.execute(insert(schema.attempts), [{"outbox_id": each, **attempt} for each in (1, 2)])
    assert hub.push([row(1)], None, "2026-05-09T11:00:00.000Z").status_code == 409  # a duplicate key: an alert


def fill_lighthouse(hub: TestHub) -> None:
    """A lighthouse `ops` with a check that has a past, discoveries and host metrics."""
    scene = lighthouses.add_lighthouse(hub, "ops")
    scene.manage.change("test", "ops", {"host_metrics_enabled": True})
    for name in ("register", "heartbeat-minimal", "events-down", "discoveries", "host-metrics"):
        if name == "events-down":
            lighthouses.hold(scene, lighthouses.golden("register")["answer"]["body"]["checks"][:1])
        request = lighthouses.golden(name)["request"]
        sent = hub.client().post(request["path"], headers=request["headers"], data=lighthouses.body_of(request))
        assert sent.status_code == lighthouses.golden(name)["answer"]["status"], sent.text


def whole_and_closed(found: dict[str, Any]) -> dict[str, Any]:
    """The document where an answer may hold no field that it does not name."""
    taken = {op.takes for op in OPERATIONS} | {"Definition"}
    loose = {"Empty", "Document"}
    found = json.loads(json.dumps(found))
    for name, shape in found["components"]["schemas"].items():
        if name not in taken | loose:
            close(shape)
    return found


def close(shape: Any) -> None:
    if isinstance(shape, dict):
        if "properties" in shape:
            shape.setdefault("additionalProperties", False)
        for each in shape.values():
            close(each)
    elif isinstance(shape, list):
        for each in shape:
            close(each)


@contextmanager
def filled(folder: Path) -> Iterator[TestHub]:
    with memory_hub(folder, SECRET) as made:
        fill(made)
        yield made


def test_a_field_nobody_described_is_seen(tmp_path: Path) -> None:
    """The check itself: closed shapes refuse what is too much and what is missing."""
    import jsonschema

    shapes = whole_and_closed(document())
    schema = {"$ref": "#/components/schemas/Tested", "components": shapes["components"]}
    jsonschema.validate({"event_id": "x"}, schema)
    for wrong in ({"event_id": "x", "more": 1}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def good(op: Any, hub: TestHub) -> Any:
    """A request that each operation takes, and its answer."""
    client, bodies = hub.client(), {**BODIES, "redeliver": {"event_id": hub_event(hub)}}
    path = op.path.format(metric_id="m", ref="ops", name="agent", check_id=lighthouses.CHECK)
    headers = keys_of(op, hub)
    if op.takes == "WriteRequest":
        request = lighthouses.golden("host-metrics")["request"]
        return client.post(path, headers=request["headers"], data=lighthouses.body_of(request))
    if op.method == "get":
        return client.get(path, headers=headers)
    return client.open(path, method=op.method.upper(), headers=headers, json=bodies[op.name])


def keys_of(op: Any, hub: TestHub) -> dict[str, str]:
    """The header that lets a request of this operation in."""
    agent = {"Agent-Key": hub.key, "Agent-Started-At": STARTED}
    lighthouse = {"Authorization": f"Bearer {lighthouses.TOKEN}", "X-Lighthouse-Instance-Id": lighthouses.INSTANCE}
    return {TOKEN: BEARER, LIGHTHOUSE: lighthouse}.get(op.guard, agent)


def hub_event(hub: TestHub) -> str:
    events: list[dict[str, Any]] = hub.client().get("/api/v1/events", headers=BEARER).json["events"]
    return next(str(each["event_id"]) for each in events if each["event_type"] == "webhook.test")


def empty(found: Any, name: str = "") -> set[str]:
    """The names of lists that hold nothing: of their items the test has seen none."""
    if isinstance(found, dict):
        return set().union(*(empty(each, key) for key, each in found.items()))
    if isinstance(found, list):
        return set().union(*(empty(each, name) for each in found)) if found else {name}
    return set()


def conforms(op: Any, answer: Any) -> None:
    """The answer's code, type and body are in the document, and nothing else is in the body."""
    import jsonschema

    found = whole_and_closed(document())
    content = found["paths"][op.path][op.method]["responses"][str(answer.status_code)].get("content")
    if content is None:
        assert answer.data == b""
        return
    assert list(content) == [answer.mimetype]
    if answer.mimetype == "application/json":
        schema = {**content[answer.mimetype]["schema"], "components": found["components"]}
        jsonschema.validate(answer.json, schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.slow
@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_good_answers_are_as_described(op: Any, tmp_path: Path) -> None:
    with filled(tmp_path) as hub:
        answer = good(op, hub)
        assert answer.status_code == op.status, answer.text
        conforms(op, answer)
        if op.name not in ("openapi", "definitions") and answer.is_json:
            assert empty(answer.json) <= HOLLOW.get(op.name, set())


@pytest.mark.parametrize("step", ["day", "raw"])
def test_the_past_in_every_form(step: str, tmp_path: Path) -> None:
    with filled(tmp_path) as hub:
        op = next(op for op in OPERATIONS if op.name == "history")
        answer = hub.client().get(f"/api/v1/metrics/m/history?step={step}", headers=BEARER)
        conforms(op, answer)
        assert empty(answer.json) == set()


# -- what was found by asking


@pytest.mark.parametrize(
    "path", ["metrics/a%00b/pushes", "metrics/m/uptime?x=%00", "events?agent_id=%00", "webhooks/%00"]
)
def test_a_nul_in_the_url_is_refused_before_any_database_sees_it(path: str, hub: TestHub) -> None:
    answer = hub.client().get(f"/api/v1/{path}", headers=BEARER)
    assert (answer.status_code, answer.json["message"]) == (400, "the URL holds a NUL")


@pytest.mark.parametrize(
    "body", ['{"event_id": "\\ud800"}', '{"event_id": "a\\u0000b"}', '{"event_id": "x", "webhook": "\\udc00"}']
)
def test_an_event_no_database_can_be_asked_for_is_not_there(body: str, hub: TestHub) -> None:
    headers = {**BEARER, "Content-Type": "application/json"}
    assert hub.client().post("/api/v1/webhooks/redeliver", data=body, headers=headers).status_code == 404


def test_a_character_beyond_unicode_is_not_yaml(hub: TestHub) -> None:
    body = 'apiVersion: observer/v1\na: "\\U99999999"'
    answer = hub.client().post("/api/v1/apply", data=body, headers={**BEARER, "Content-Type": "application/yaml"})
    assert (answer.status_code, answer.json["error"]) == (422, "invalid_document")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestHub]:
    """One hub for all that schemathesis asks; writes of one operation are there for the next."""
    with filled(tmp_path_factory.mktemp("schemathesis")) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("op", OPERATIONS, ids=lambda op: op.name)
def test_requests_made_from_it_are_answered_as_it_says(op: Any, shared: TestHub) -> None:
    """Good and bad requests: no 5xx, no code, type, header or body that the document does not name."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode
    from schemathesis import checks as known

    schemathesis.serializer("application/x-protobuf")(lambda _, value: value if isinstance(value, bytes) else b"\x00")
    whole = schemathesis.openapi.from_dict(whole_and_closed(document()))
    whole.app = shared.app
    operation = whole[op.path][op.method]
    wanted = (
        known.not_a_server_error,
        *(
            getattr(schemathesis.specs.openapi.checks, name)
            for name in (
                "status_code_conformance",
                "content_type_conformance",
                "response_headers_conformance",
                "response_schema_conformance",
            )
        ),
    )
    headers = keys_of(op, shared)
    if op.guard not in (TOKEN, LIGHTHOUSE):
        del headers["Agent-Started-At"]
    if op.method != "get" and op.takes is None:
        headers = {**headers, "Content-Type": "application/json"}
    seen: set[int] = set()

    def ask(case: Any) -> None:
        response = case.call(headers=headers)
        seen.add(response.status_code)
        case.validate_response(response, checks=list(wanted))

    # What has neither a parameter nor a guard cannot be asked wrongly.
    for mode in GenerationMode if op.guard else (GenerationMode.POSITIVE,):
        quiet = settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        strategy = operation.as_strategy(generation_mode=mode)
        quiet(given(strategy)(ask))()
    assert seen and max(seen) < 500
