"""The golden messages, as our hub answers them: in this process and over a real socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.wire_hub import define as put_definitions
from tests.wire_hub import golden, golden_names, memory_hub, send, served

OURS = [name for name in golden_names() if golden(name)["hub"]]
ENDPOINTS = {"metrics-definitions", "receiver", "receiver/batch", "heartbeat", "heartbeat-relay", "log"}


def matches(expected: object, found: object) -> bool:
    """Equal, where `*` stands for any text."""
    if expected == "*":
        return isinstance(found, str) and found != ""
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(matches(expected[name], found[name]) for name in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(matches, expected, found))
    return expected == found


def prepare(hub: Any, exchange: dict[str, Any]) -> None:
    if exchange.get("definitions"):
        put_definitions(hub.store, golden("definitions")["answer"]["body"])


def check(answer: dict[str, Any], status: int, headers: Any, body: Any) -> None:
    assert status == answer["status"], body
    assert matches(answer["body"], body), body
    for name, value in answer["headers"].items():
        assert matches(value, headers.get(name)), name


@pytest.mark.parametrize("name", OURS)
def test_replayed_in_process(name: str, tmp_path: Path) -> None:
    exchange = golden(name)
    with memory_hub(tmp_path, key=golden("log-line")["request"]["headers"]["Agent-Key"]) as hub:
        prepare(hub, exchange)
        client = hub.client()
        for each in [*(golden(given)["request"] for given in exchange.get("given", [])), exchange["request"]]:
            data = json.dumps(each["body"]) if "body" in each else None
            answer = client.open(each["path"], method=each["method"], headers=each["headers"], data=data)
        check(exchange["answer"], answer.status_code, answer.headers, answer.json)


@pytest.mark.parametrize("name", OURS)
def test_replayed_over_a_socket(name: str, tmp_path: Path) -> None:
    exchange = golden(name)
    with memory_hub(tmp_path, key=golden("log-line")["request"]["headers"]["Agent-Key"]) as hub, served(hub.app) as url:
        prepare(hub, exchange)
        for given in exchange.get("given", []):
            assert send(url, golden(given)["request"]).status_code == golden(given)["answer"]["status"]
        answer = send(url, exchange["request"])
        check(exchange["answer"], answer.status_code, answer.headers, answer.json())


def test_every_file_has_the_form_of_the_readme() -> None:
    for name in golden_names():
        exchange = golden(name)
        assert exchange["name"] == name
        assert exchange.keys() <= {"name", "about", "hub", "given", "definitions", "request", "answer"}
        assert exchange["request"]["path"].removeprefix("/api/agent/") in ENDPOINTS
        assert set(exchange.get("given", [])) <= set(golden_names())
        assert ("body" in exchange["answer"]) != ("text" in exchange["answer"])


def test_every_endpoint_and_every_kind_of_answer_is_there() -> None:
    seen = {(golden(name)["request"]["path"], golden(name)["answer"]["status"]) for name in golden_names()}
    assert {path for path, _ in seen} == {f"/api/agent/{each}" for each in ENDPOINTS}
    batch = {status for path, status in seen if path.endswith("/batch")}
    assert batch >= {200, 302, 400, 401, 403, 404, 405, 409, 413, 422, 429, 500, 503}
