"""Who comes in to the console: the login, its throttle, sessions that several processes share, forms that are ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import select

from observer_agent.hub import schema
from observer_agent.hub.database import open_database
from observer_agent.hub.sessions import ADDRESSES_MAX, Attempts, Sessions, form_token
from tests.fakes import FakeClock
from tests.wire_hub import HubProcess, TestHub, database_url, memory_hub

TOKEN = "token-of-the-operator"
HTML = {"Accept": "text/html"}
PAGES = ["/", "/console/agents", "/console/metrics", "/console/events", "/console/webhooks", "/console/keys"]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path, token=TOKEN) as found:
        yield found


@pytest.fixture
def local(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        yield found


def hidden(page: str, name: str = "form_token") -> str:
    """The value of a hidden field."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, page
    return found[1]


def log_in(client: Any, token: str = TOKEN, where: str = "/", **more: Any) -> Any:
    form = client.get(f"/login?next={where}", headers=HTML)
    assert form.status_code == 200
    data = {"form_token": hidden(form.text), "next": hidden(form.text, "next"), "token": token}
    return client.post("/login", data=data, headers=HTML, **more)


def cookie_of(answer: Any) -> str:
    return str(answer.headers["Set-Cookie"])


def test_a_person_is_led_to_the_login_and_back(hub: TestHub) -> None:
    client = hub.client()
    answer = client.get("/console/metrics?status=wrong", headers=HTML)
    assert answer.status_code == 303
    assert answer.headers["Location"] == "/login?next=/console/metrics?status%3Dwrong"
    form = client.get(answer.headers["Location"], headers=HTML)
    data = {"form_token": hidden(form.text), "next": hidden(form.text, "next"), "token": f" {TOKEN} "}
    answer = client.post("/login", data=data, headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/console/metrics?status=wrong")
    for path in PAGES:
        assert client.get(path, headers=HTML).status_code == 200, path
    assert client.get("/login", headers=HTML).status_code == 303


@pytest.mark.parametrize("path", PAGES)
def test_without_a_session_nothing_is_shown(hub: TestHub, path: str) -> None:
    assert hub.client().get(path, headers=HTML).status_code == 303
    assert hub.client().get(path).status_code == 401
    client = hub.client()
    client.set_cookie("observer_hub", "x" * 43)
    assert client.get(path, headers=HTML).status_code == 303
    client.set_cookie("observer_hub", "x" * 3000)
    assert client.get(path, headers=HTML).status_code == 303


def test_what_a_login_needs_is_open_to_everybody(hub: TestHub) -> None:
    for name in ("console.css", "console.js", "icon.svg"):
        with hub.client().get(f"/static/{name}") as answer:
            assert answer.status_code == 200
    assert hub.client().get("/status/shop", headers=HTML).status_code == 303


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cookie(hub: TestHub, scheme: str) -> None:
    answer = log_in(hub.client(), base_url=f"{scheme}://hub.example")
    assert answer.status_code == 403, "the first cookie was for another address"
    client = hub.client()
    form = client.get("/login", headers=HTML, base_url=f"{scheme}://hub.example")
    data = {"form_token": hidden(form.text), "token": TOKEN}
    cookie = cookie_of(client.post("/login", data=data, base_url=f"{scheme}://hub.example"))
    assert {"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"} <= set(cookie.split("; "))
    assert ("Secure" in cookie.split("; ")) == (scheme == "https")
    assert TOKEN not in cookie


@pytest.mark.parametrize("header", [{"Origin": "https://localhost"}, {"X-Forwarded-Proto": "https"}])
def test_a_proxy_that_takes_tls_off_does_not_take_secure_off(hub: TestHub, header: dict[str, str]) -> None:
    client = hub.client()
    form = client.get("/login", headers=HTML)
    data = {"form_token": hidden(form.text), "token": TOKEN}
    answer = client.post("/login", data=data, headers={**HTML, **header, "Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303 and "Secure" in cookie_of(answer)


def test_a_session_is_kept_as_a_digest_and_is_another_one_than_before_the_login(hub: TestHub) -> None:
    client = hub.client()
    client.get("/login", headers=HTML)
    before = client.get_cookie("observer_hub").value
    log_in(client)
    name = client.get_cookie("observer_hub").value
    assert name != before
    with hub.database.read() as conn:
        (kept,) = conn.execute(select(schema.sessions))
    assert re.fullmatch("[0-9a-f]{64}", kept.digest) and name not in kept.digest
    assert kept.expires_at - kept.created_at == 12 * 3600


def test_a_session_ends_after_twelve_hours(hub: TestHub) -> None:
    client = hub.client()
    log_in(client)
    hub.clock.advance(12 * 3600 - 1)
    assert client.get("/", headers=HTML).status_code == 200
    hub.clock.advance(1)
    assert client.get("/", headers=HTML).status_code == 303
    log_in(hub.client())
    with hub.database.read() as conn:
        assert len(list(conn.execute(select(schema.sessions)))) == 1


def test_logging_out_ends_the_session_itself(hub: TestHub) -> None:
    client = hub.client()
    log_in(client)
    name = client.get_cookie("observer_hub").value
    page = client.get("/", headers=HTML).text
    assert client.post("/logout", headers=HTML).status_code == 403
    assert client.get("/", headers=HTML).status_code == 200
    answer = client.post("/logout", data={"form_token": hidden(page)}, headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/login")
    assert client.get_cookie("observer_hub") is None
    client.set_cookie("observer_hub", name)
    assert client.get("/", headers=HTML).status_code == 303


@pytest.mark.parametrize(
    "where", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:x", "x", ""]
)
def test_the_login_leads_nowhere_else(hub: TestHub, where: str) -> None:
    client = hub.client()
    assert log_in(client, where=where).headers["Location"] == "/"
    assert client.get(f"/login?next={where}", headers=HTML).headers["Location"] == "/"


def test_five_wrong_tokens_a_minute_and_none_is_looked_at(hub: TestHub, caught: pytest.LogCaptureFixture) -> None:
    client = hub.client()
    for _ in range(5):
        answer = log_in(client, "wrong-secret")
        assert answer.status_code == 403 and "This is not the token" in answer.text
        hub.clock.advance(5)
    answer = log_in(client)
    assert answer.status_code == 429 and int(answer.headers["Retry-After"]) == 35
    assert "Too many wrong tokens; try again in 35 s" in answer.text
    assert log_in(client, environ_base={"REMOTE_ADDR": "192.0.2.7"}).status_code == 303
    hub.clock.advance(35)
    assert log_in(hub.client()).status_code == 303
    assert caught.text.count("wrong tokens at the console's login from 127.0.0.1") == 1
    assert "wrong-secret" not in caught.text and TOKEN not in caught.text


def test_fifty_wrong_tokens_from_anywhere_are_enough() -> None:
    clock = FakeClock()
    attempts = Attempts(clock)
    for n in range(50):
        assert attempts.wait("192.0.2.1") == 0, n
        attempts.wrong(f"198.51.100.{n}")
    assert attempts.wait("192.0.2.1") == 60
    clock.advance(60)
    assert attempts.wait("192.0.2.1") == 0


def test_addresses_are_forgotten(caught: pytest.LogCaptureFixture) -> None:
    attempts = Attempts(FakeClock())
    for n in range(ADDRESSES_MAX + 10):
        attempts.wrong(str(n))
    assert len(attempts._by) == ADDRESSES_MAX


def test_a_new_token_ends_every_session(hub: TestHub) -> None:
    name = Sessions(hub.database, hub.clock, TOKEN).open()
    assert Sessions(hub.database, hub.clock, TOKEN).holds(name)
    assert not Sessions(hub.database, hub.clock, TOKEN + "2").holds(name)
    assert not Sessions(hub.database, hub.clock, TOKEN).holds("")


# -- forms


FORMS = ["/console/keys", "/console/webhooks", "/console/webhooks/act", "/logout"]


@pytest.mark.parametrize("path", [*FORMS, "/login"])
@pytest.mark.parametrize("given", [None, "", "0" * 64, "é", "x" * 100_000])
def test_a_form_without_its_token_is_refused(local: TestHub, path: str, given: str | None) -> None:
    client = local.client()
    client.get("/console/keys", headers=HTML)
    data = {"name": "forged", **({} if given is None else {"form_token": given})}
    answer = client.post(path, data=data, headers=HTML)
    assert answer.status_code == 403 and "does not belong to this browser" in answer.text
    assert [agent["name"] for agent in local.get("agents")["agents"]] == ["agent"]


def test_a_token_belongs_to_one_cookie(local: TestHub) -> None:
    first, second = local.client(), local.client()
    stolen = hidden(first.get("/console/keys", headers=HTML).text)
    second.get("/console/keys", headers=HTML)
    assert second.post("/console/keys", data={"form_token": stolen, "name": "x"}).status_code == 403
    assert local.client().post("/console/keys", data={"form_token": stolen, "name": "x"}).status_code == 403
    assert local.client().post("/console/keys", data={"form_token": form_token(""), "name": "x"}).status_code == 403
    assert first.post("/console/keys", data={"form_token": stolen, "name": "x"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://proxied.example"}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
    ],
)
def test_where_a_form_comes_from_is_looked_at_too(local: TestHub, headers: dict[str, str], status: int) -> None:
    client = local.client()
    data = {"form_token": hidden(client.get("/console/keys", headers=HTML).text), "name": "other"}
    assert client.post("/console/keys", data=data, headers={**HTML, **headers}).status_code == status


def test_the_token_as_bearer_reads_and_sends_no_form(hub: TestHub) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert hub.client().get("/console/keys", headers=bearer).status_code == 200
    assert hub.client().post("/console/keys", data={"name": "x"}, headers=bearer).status_code == 403


def test_without_a_token_there_is_no_login_and_only_this_machine(local: TestHub) -> None:
    assert local.client().get("/login", headers=HTML).headers["Location"] == "/"
    assert "Log out" not in local.client().get("/", headers=HTML).text
    for path in ("/login", "/static/console.js", "/console/keys", "/status/shop"):
        assert local.client().get(path, headers={**HTML, "Host": "rebound.example"}).status_code == 403


# -- several processes


@pytest.mark.slow
def test_several_processes_share_sessions(tmp_path: Path) -> None:
    with database_url(tmp_path) as url:
        hubs = [HubProcess(tmp_path, OBSERVER_HUB_TOKEN=TOKEN, DATABASE_URL=url) for _ in range(2)]
        first, second = (hub.start() for hub in hubs)
        try:
            walk_through(first, second)
        finally:
            assert [hub.end() for hub in hubs] == [0, 0]
        assert TOKEN not in hubs[0].log()
        with closing(open_database(url)) as database, database.read() as conn:
            assert list(conn.execute(select(schema.sessions))) == []


def walk_through(first: str, second: str) -> None:
    """Logs in at one process, looks and logs out at the other."""
    with requests.Session() as person:
        form = person.get(first, headers=HTML, timeout=10)
        assert form.url.startswith(f"{first}/login")
        data = {"form_token": hidden(form.text), "token": TOKEN}
        assert person.post(f"{first}/login", data=data, timeout=10).url == f"{first}/"
        page = person.get(second, headers=HTML, timeout=10)
        assert page.url == f"{second}/" and "No agents yet" in page.text
        left = person.post(f"{second}/logout", data={"form_token": hidden(page.text)}, timeout=10)
        assert left.url == f"{second}/login"
        assert person.get(first, headers=HTML, timeout=10).url.startswith(f"{first}/login")
