"""The pages about lighthouses: what they say, what they hide, what their forms do."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import hub_lighthouses as lighthouses
from tests.hub_lighthouses import Scene, at, event, lighthouse_hub
from tests.hub_scene import HOSTILE

HTML = {"Accept": "text/html", "Host": "localhost", "Origin": "http://localhost"}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with lighthouse_hub(tmp_path) as made:
        yield made


def see(scene: Scene, path: str = "lighthouses", status: int = 200) -> str:
    answer = scene.hub.client().get(f"/console/{path}", headers=HTML)
    assert answer.status_code == status, answer.text
    return str(answer.text)


def said(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page.replace("<wbr>", ""))))


def one(scene: Scene) -> str:
    return f"lighthouse?id={scene.look.one('raspberry')['id']}"


def act(scene: Scene, path: str, **form: str) -> Any:
    client = scene.hub.client()
    page = client.get("/console/lighthouses", headers=HTML).text
    found = re.search(r'name="form_token" value="([^"]+)"', page)
    assert found
    return client.post(f"/console/{path}", data={"form_token": found[1], **form}, headers=HTML)


def test_a_lighthouse_with_nothing_says_what_to_do(scene: Scene) -> None:
    assert "never heard" in said(see(scene))
    assert "observer-hub lighthouse apply" in said(see(scene, one(scene)))
    scene.manage.delete("test", "raspberry")
    assert "observer-hub lighthouse create NAME" in said(see(scene))
    assert "no such lighthouse" in see(scene, "lighthouse?id=nobody", 404)


def test_what_is_down_is_said_with_its_reason(scene: Scene) -> None:
    shop, db = scene.check(), scene.check(name="db", type="tcp", url="db.internal:5432")
    scene.register()
    scene.tell(event(shop, "up", at(1)), event(db, "down", at(1), error_message="timeout"), sync="initial")
    scene.beat(
        check_latencies={shop: {"last_observed_latency_ms": 1234, "last_observed_at": at(2)}},
        cert_expiry={shop: {"days_to_expiry": 12, "observed_at": at(2)}},
    )
    page = said(see(scene, one(scene)))
    assert "✕ down db timeout tcp db.internal:5432" in page
    assert "✓ up shop https https://shop.example.com/health 1 min 1,234 ms 12 days" in page
    assert "initial: timeout" in page
    scene.wait(120)
    page = said(see(scene, one(scene)))
    assert "its checks count as down" in page and "✕ down shop" in page
    assert "✕ offline raspberry" in said(see(scene))
    scene.beat()
    scene.manage.change("test", "raspberry", {"paused": True})
    assert "– paused raspberry" in said(see(scene))


def test_discoveries_and_host_metrics_are_shown(scene: Scene) -> None:
    scene.manage.change("test", "raspberry", {"host_metrics_enabled": True})
    for name in ("register", "discoveries", "host-metrics"):
        request = lighthouses.golden(name)["request"]
        headers, data = request["headers"], lighthouses.body_of(request)
        assert scene.hub.client().post(request["path"], headers=headers, data=data).status_code < 300
    page = said(see(scene, one(scene)))
    assert "3 endpoints in its cluster" in page and "prod/postgres" in page
    assert "The newest value of 1 series" in page and "lighthouse_agent_up 1 host lighthouse-0" in page


def test_nothing_from_outside_becomes_markup_and_no_secret_is_shown(scene: Scene) -> None:
    for text in HOSTILE:
        if text.isprintable():
            scene.manage.create("test", text, {})
        check = scene.check(
            name=text,
            url=f"https://user:canary-1@shop.example/{text}?token=canary-2",
            request_headers=[{"key": "A", "value": "canary-3"}],
            request_body="canary-4",
        )
        scene.tell(event(check, "down", at(1), error_message=text))
    items = [
        {"kind": "ingress", "namespace": text, "resource_name": text, "host": text, "path": text, "protocol": "http"}
        for text in HOSTILE
    ]
    assert scene.call("discoveries", {"items": items}).status_code == 200
    for path in ("lighthouses", one(scene)):
        page = see(scene, path)
        assert "<img src=x" not in page and "<script>window" not in page and "<h1>out" not in page
        assert "canary" not in page and "\N{RIGHT-TO-LEFT OVERRIDE}" not in page


def test_the_forms_make_rotate_and_pause(scene: Scene) -> None:
    page = act(scene, "lighthouses", name="new").text
    token = re.search(r"lh_[\w-]{43}", page)
    assert token and token[0] not in see(scene)
    assert act(scene, "lighthouses", name="new").status_code == 400
    identity = scene.look.one("raspberry")["id"]
    done = act(scene, "lighthouses/act", lighthouse=identity, do="pause")
    assert (done.status_code, done.headers["Location"]) == (303, f"/console/lighthouse?id={identity}")
    assert scene.look.one("raspberry")["paused"]
    act(scene, "lighthouses/act", lighthouse=identity, do="resume")
    assert not scene.look.one("raspberry")["paused"]
    page = act(scene, "lighthouses/act", lighthouse=identity, do="rotate").text
    assert re.search(r"lh_[\w-]{43}", page)
    assert scene.call("heartbeat", {}).status_code == 401
    for wrong in ({"lighthouse": identity, "do": "burn"}, {"lighthouse": "nobody", "do": "pause"}, {"do": "rotate"}):
        assert act(scene, "lighthouses/act", **wrong).status_code == 400
    bare = scene.hub.client().post("/console/lighthouses", data={"name": "x"}, headers=HTML)
    assert bare.status_code == 403
