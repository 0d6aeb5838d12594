"""The golden messages of the second dialect, as our hub answers them: in this process and over a real socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests

from tests.hub_lighthouses import Scene, body_of, golden, golden_names, hold, lighthouse_hub
from tests.test_hub_wire import matches
from tests.wire_hub import served

OURS = [name for name in golden_names() if golden(name)["hub"]]
EMPTY = ("", 0, False, [], None)


def prepare(scene: Scene, exchange: dict[str, Any]) -> None:
    hold(scene, golden("register")["answer"]["body"]["checks"])
    if exchange["request"]["path"].endswith("host-metrics"):
        scene.manage.change("test", "raspberry", {"host_metrics_enabled": True})


def full(check: dict[str, Any]) -> dict[str, Any]:
    """A check without its empty fields."""
    return {name: value for name, value in check.items() if value not in EMPTY}


def hold_answer(answer: dict[str, Any], status: int, headers: Any, body: Any, text: str) -> None:
    assert status == answer["status"], text
    for name, value in answer["headers"].items():
        assert matches(value, headers.get(name)), name
    if "text" in answer:
        assert text == answer["text"]
        return
    wanted, found = dict(answer["body"]), dict(body)
    for name in answer.get("free", ()):
        assert found.pop(name) is not None, name
        wanted.pop(name, None)
    if "checks" in wanted:
        assert [full(each) for each in found.pop("checks")] == [full(each) for each in wanted.pop("checks")]
    assert matches(wanted, found), found


@pytest.mark.parametrize("name", OURS)
def test_replayed_in_process(name: str, tmp_path: Path) -> None:
    exchange = golden(name)
    with lighthouse_hub(tmp_path) as scene:
        prepare(scene, exchange)
        client = scene.hub.client()
        for each in [*(golden(given)["request"] for given in exchange.get("given", [])), exchange["request"]]:
            answer = client.open(each["path"], method=each["method"], headers=each["headers"], data=body_of(each))
        hold_answer(exchange["answer"], answer.status_code, answer.headers, answer.get_json(silent=True), answer.text)


@pytest.mark.slow
def test_replayed_over_a_socket(tmp_path: Path) -> None:
    """One server, a database for each exchange: what a socket adds is the same for all of them."""
    for name in OURS:
        exchange = golden(name)
        folder = tmp_path / name
        folder.mkdir()
        with lighthouse_hub(folder) as scene, served(scene.hub.app) as url:
            prepare(scene, exchange)
            for each in [*(golden(given)["request"] for given in exchange.get("given", [])), exchange["request"]]:
                answer = requests.request(
                    each["method"],
                    url + each["path"],
                    headers=each["headers"],
                    data=body_of(each),
                    timeout=10,
                    allow_redirects=False,
                )
            is_json = answer.headers.get("Content-Type") == "application/json"
            body = answer.json() if is_json else None
            hold_answer(exchange["answer"], answer.status_code, answer.headers, body, answer.text)


def test_both_wire_shapes_and_every_endpoint_are_among_them() -> None:
    seen = {(golden(name)["wire"], golden(name)["request"]["path"].rpartition("/")[2]) for name in OURS}
    today = {"register", "heartbeat", "events", "discoveries", "shutdown", "host-metrics"}
    assert {path for wire, path in seen if wire == "current"} == today
    assert {path for wire, path in seen if wire == "seed"} == today - {"host-metrics"}
