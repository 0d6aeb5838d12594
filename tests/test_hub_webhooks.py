"""Webhooks: what may be subscribed and reached, the API and the commands, and that no secret ever leaves again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from observer_agent.clock import Clock
from observer_agent.errors import ConfigError, UsageError
from observer_agent.hub import schema
from observer_agent.hub.courier import Courier, sign
from observer_agent.hub.events import TEST, Event, emit
from observer_agent.hub.guard import Allow, Guard, Refused, check_url, is_public, parse_allow
from observer_agent.hub.post import Poster
from observer_agent.hub.webhooks import KINDS, SECRET_PREFIX, Wanted, Webhooks
from tests.receivers import Receiver
from tests.wire_hub import HubProcess, TestHub, memory_hub

SECRET = "whsec_of-the-tests-0123456789"
URL = "https://hook.example/in"
DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as made:
        yield made


@pytest.fixture
def webhooks(hub: TestHub) -> Webhooks:
    return Webhooks(hub.database, hub.clock)


def call(hub: TestHub, method: str, path: str = "", body: object = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body)
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return hub.client().open(f"/api/v1/webhooks{path}", method=method, data=data, headers=given)


def audit(hub: TestHub) -> list[tuple[str, str, str]]:
    with hub.database.read() as conn:
        rows = conn.execute(select(schema.audit).order_by(schema.audit.c.id)).all()
    return [(each.actor, each.action, each.subject) for each in rows]


# -- what may be reached


PUBLIC = ["1.1.1.1", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2001:4860::1"]
INSIDE = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8", "169.254.169.254"),
    *("168.63.129.16", "172.16.0.1", "172.31.255.255", "192.168.1.1", "192.0.0.192", "198.18.0.1", "224.0.0.1"),
    *("239.255.255.250", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254"),
    *("ff02::1", "fec0::1", "2001:db8::1", "2001::1", "100::1", "64:ff9b:1::a00:1"),
    # IPv4 inside IPv6: mapped, compatible, translated, NAT64, 6to4
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::"),
]


@pytest.mark.parametrize("text", [*PUBLIC, "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::"])
def test_public_addresses_may_be_reached(text: str) -> None:
    assert is_public(ip_address(text))
    guard = Guard(Allow(), Clock(), lambda _: [text])
    assert guard.addresses("hook.example", Clock().monotonic() + 5) == [ip_address(text)]


@pytest.mark.parametrize("text", INSIDE)
def test_inner_addresses_may_not(text: str) -> None:
    assert not is_public(ip_address(text))
    guard = Guard(Allow(), Clock(), lambda _: [text])
    with pytest.raises(Refused, match="not a public one"):
        guard.addresses("hook.example", Clock().monotonic() + 5)
    host = f"[{text}]" if ":" in text else text
    if text not in ("127.0.0.1", "127.8.8.8", "::1"):  # a URL that says loopback means it
        with pytest.raises(UsageError, match="not a public one"):
            check_url(f"https://{host}/")


@pytest.mark.parametrize(
    ("allow", "host", "address", "may"),
    [
        ("10.0.0.0/8", "hook.corp", "10.1.2.3", True),
        ("10.0.0.0/8", "hook.corp", "::ffff:10.1.2.3", True),
        ("10.0.0.0/8", "hook.corp", "192.168.1.1", False),
        ("192.168.1.7", "hook.corp", "192.168.1.7", True),
        ("192.168.1.7", "hook.corp", "192.168.1.8", False),
        ("fd12::/16", "hook.corp", "fd12::1", True),
        ("hook.corp", "hook.corp", "10.1.2.3", True),
        (" Hook.CORP. ,10.0.0.1", "hook.corp", "127.0.0.1", True),
        ("hook.corp", "other.corp", "10.1.2.3", False),
        ("hook.corp", "hook.corp", "169.254.169.254", False),  # a name never opens the metadata service
        ("hook.corp", "hook.corp", "64:ff9b::a9fe:a9fe", False),
        ("169.254.169.254", "hook.corp", "169.254.169.254", True),
        ("", "localhost", "127.0.0.1", True),
        ("", "localhost", "10.0.0.1", False),
        ("", "127.1", "127.0.0.1", False),
        ("", "2130706433", "127.0.0.1", False),
    ],
)
def test_what_the_operator_allows(allow: str, host: str, address: str, may: bool) -> None:
    guard, until = Guard(parse_allow(allow), Clock(), lambda _: [address]), Clock().monotonic() + 5
    if may:
        assert guard.addresses(host, until) == [ip_address(address)]
    else:
        with pytest.raises(Refused):
            guard.addresses(host, until)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "http://x", "10.0.0", "a b", "user@host", "*.corp", "10.0.0.1/8"])
def test_a_wrong_allowance_stops_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="OBSERVER_HUB_WEBHOOK_ALLOW"):
        parse_allow(text)


@pytest.mark.parametrize(
    "url",
    [
        *("http://hook.example/", "ftp://hook.example/", "hook.example", "https://", "https:///x", "https://a b/"),
        *("https://user@hook.example/", "https://user:pw@hook.example/", "https://:@hook.example/", "https://@x/"),
        *("https://hook.example/#part", "https://hook.example:0/", "https://hook.example:99999/", "https://h\\@x/"),
        *(
            "https://hook.example/\r\nX: y",
            "https://hook.example/ü",
            "https://zürich.example/",
            "https://[fe80::1%25a]/",
        ),
        *("https://10.0.0.1/", "https://[::ffff:10.0.0.1]/", "http://10.0.0.1/", "https://[::1/", "http://127.1/"),
        "https://hook.example/" + "x" * 2048,
    ],
)
def test_urls_that_are_refused_without_being_repeated(webhooks: Webhooks, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        webhooks.create("test", Wanted("ops", url))
    assert "pw" not in str(caught.value) and (len(url) < 10 or url not in str(caught.value))


@pytest.mark.parametrize(
    ("url", "allow"),
    [
        (URL, ""),
        ("https://hook.example:8443/a?b=c", ""),
        ("http://127.0.0.1:9000/", ""),
        ("http://localhost:9000/", ""),
        ("http://[::1]:9000/", ""),
        ("http://hook.corp/", "hook.corp"),
        ("http://10.1.1.1/", "10.0.0.0/8"),
        ("https://[2606:4700::1111]/", ""),
    ],
)
def test_urls_that_are_taken(hub: TestHub, url: str, allow: str) -> None:
    Webhooks(hub.database, hub.clock, parse_allow(allow)).create("test", Wanted("ops", url))


# -- the API


def test_a_secret_is_shown_once(hub: TestHub) -> None:
    made = call(hub, "POST", "", {"name": "ops", "url": URL + "?token=hidden", "event_types": ["agent.offline"]})
    assert made.status_code == 201
    secret = made.json["secret"]
    assert re.fullmatch(re.escape(SECRET_PREFIX) + r"[A-Za-z0-9_-]{43}", secret)
    listed = call(hub, "GET").json["webhooks"]
    assert listed == [
        {
            "id": made.json["id"],
            "name": "ops",
            "url": URL + "?[redacted]",
            "secret": "********",
            "event_types": ["agent.offline"],
            "active": True,
            "created_at": "2026-05-09T12:00:10.000Z",
            "deliveries": {"pending": 0, "delivered": 0, "failed": 0},
        }
    ]
    assert call(hub, "GET", "/ops").json == call(hub, "GET", f"/{made.json['id']}").json == listed[0]


def test_change_and_delete(hub: TestHub) -> None:
    call(hub, "POST", "", {"name": "ops", "url": URL, "secret": None})
    changed = call(hub, "PATCH", "/ops", {"active": False, "secret": SECRET, "name": "ops 2"})
    assert (changed.status_code, changed.json["active"], changed.json["secret"]) == (200, False, "********")
    assert changed.json["url"] == URL, "what is not named stays"
    assert SECRET not in changed.text
    assert call(hub, "PATCH", "/ops 2", {"url": "http://10.0.0.1/"}).status_code == 400
    would = call(hub, "DELETE", "/ops 2?dry_run=true").json
    assert would == {"name": "ops 2", "pending": 0, "deliveries": 0, "dry_run": True}
    assert len(call(hub, "GET").json["webhooks"]) == 1
    assert call(hub, "DELETE", "/ops 2").json["dry_run"] is False
    assert call(hub, "GET").json["webhooks"] == []
    assert audit(hub) == [
        ("api", "webhook.create", "ops"),
        ("api", "webhook.change", "ops"),
        ("api", "webhook.delete", "ops 2"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "word"),
    [
        ("POST", "", {"name": "ops", "url": URL}, 409, "conflict"),
        ("POST", "", {"name": "new"}, 400, "bad_request"),
        ("POST", "", {"name": 1, "url": URL}, 400, "bad_request"),
        ("POST", "", {"name": "a/b", "url": URL}, 400, "bad_request"),
        ("POST", "", {"name": "deliveries", "url": URL}, 400, "bad_request"),
        ("POST", "", {"name": "new", "url": URL, "secret": "short"}, 400, "bad_request"),
        ("POST", "", {"name": "new", "url": URL, "secret": 5}, 400, "bad_request"),
        ("POST", "", {"name": "new", "url": URL, "event_types": ["agent.ofline"]}, 400, "bad_request"),
        ("POST", "", {"name": "new", "url": URL, "event_types": "agent.offline"}, 400, "bad_request"),
        ("POST", "", {"name": "new", "url": URL, "active": "yes"}, 400, "bad_request"),
        ("POST", "", {"name": "new", "url": URL, "id": "mine"}, 400, "bad_request"),
        ("POST", "", [], 400, "bad_request"),
        ("PATCH", "/nobody", {"active": True}, 404, "not_found"),
        ("DELETE", "/nobody", {}, 404, "not_found"),
        ("DELETE", "/ops?dry_run=perhaps", {}, 400, "bad_request"),
        ("POST", "/nobody/test", {}, 404, "not_found"),
        ("POST", "/redeliver", {"event_id": "x"}, 404, "not_found"),
        ("POST", "/redeliver", {"event_id": 5}, 400, "bad_request"),
        ("GET", "/deliveries?limit=0", None, 400, "bad_request"),
        ("GET", "/nobody/deliveries", None, 404, "not_found"),
    ],
)
def test_what_is_refused_changes_nothing(
    hub: TestHub, webhooks: Webhooks, method: str, path: str, body: object, code: int, word: str
) -> None:
    webhooks.create("test", Wanted("ops", URL))
    before = webhooks.all()
    answer = call(hub, method, path, body)
    assert (answer.status_code, answer.json["error"]) == (code, word)
    assert set(answer.json) == {"error", "message"}
    assert webhooks.all() == before and len(audit(hub)) == 1


def test_a_form_of_another_site_can_write_nothing(hub: TestHub, webhooks: Webhooks) -> None:
    webhooks.create("test", Wanted("ops", URL))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        for method, path in (("POST", ""), ("POST", "/ops/test"), ("DELETE", "/ops"), ("PATCH", "/ops")):
            answer = call(hub, method, path, {"name": "new", "url": URL}, Content_Type=kind)
            assert (answer.status_code, answer.json["error"]) == (415, "unsupported_media_type"), (kind, method)
    assert len(webhooks.all()) == 1


def test_who_may_come_in(tmp_path: Path) -> None:
    with memory_hub(tmp_path) as hub:
        assert call(hub, "GET", Host="hub.example").status_code == 403
        assert call(hub, "POST", "", {"name": "a", "url": URL}, Host="hub.example").status_code == 403
    with memory_hub(tmp_path, token="t" * 20) as hub:
        body = {"name": "a", "url": URL}
        assert call(hub, "GET").status_code == call(hub, "POST", "", body).status_code == 401
        assert call(hub, "POST", "", body, Authorization="Bearer wrong").status_code == 401
        assert call(hub, "POST", "", body, Authorization="Bearer " + "t" * 20).status_code == 201


# -- test, redelivery, log


def served(hub: TestHub, ref: str) -> None:
    clock = Clock()
    courier = Courier(hub.database, hub.clock, Poster(Guard(Allow(), clock), clock))
    courier.serve(ref)
    courier.stop()


def test_a_test_goes_to_one_webhook_alone(hub: TestHub, webhooks: Webhooks) -> None:
    with Receiver() as receiver:
        ref = webhooks.create("test", Wanted("ops", receiver.url, SECRET, ("agent.offline",)))
        webhooks.create("test", Wanted("other", receiver.url))
        event_id = call(hub, "POST", "/ops/test", {}).json["event_id"]
        served(hub, ref)
    (got,) = receiver.got
    assert (got.headers["x-observer-event"], got.event_id) == (TEST, event_id)
    (row,) = call(hub, "GET", "/deliveries").json["deliveries"]
    assert (row["webhook"], row["state"], row["event_id"]) == ("ops", "delivered", event_id)
    assert [each["status"] for each in row["attempts"]] == [200]
    assert audit(hub)[-1] == ("api", "webhook.test", "ops")


def test_redelivery_lays_the_same_event_out_anew(hub: TestHub, webhooks: Webhooks) -> None:
    with Receiver() as receiver:
        refs = [webhooks.create("test", Wanted(name, receiver.url + f"/{name}")) for name in ("a", "b")]
        webhooks.create("test", Wanted("picky", receiver.url + "/picky", None, ("agent.lag_high",)))
        event = Event("agent.offline", hub.clock.now(), {"state": "open"})
        with hub.database.write() as conn:
            emit(conn, event)
        for ref in refs:
            served(hub, ref)
        hub.clock.advance(100_000)
        assert call(hub, "POST", "/redeliver", {"event_id": event.id}).json == {"webhooks": ["a", "b"]}
        assert call(hub, "POST", "/redeliver", {"event_id": event.id, "webhook": "b"}).json == {"webhooks": ["b"]}
        for ref in refs:
            served(hub, ref)
    assert [len(receiver.of(path)) for path in ("/a", "/b", "/picky")] == [2, 3, 0]
    assert len({each.body for each in receiver.got}) == 1
    rows = call(hub, "GET", "/b/deliveries?limit=2").json["deliveries"]
    assert [each["webhook"] for each in rows] == ["b", "b"]
    assert len(call(hub, "GET", f"/deliveries?event_id={event.id}").json["deliveries"]) == 5


def test_what_is_switched_off_is_not_tested(hub: TestHub, webhooks: Webhooks) -> None:
    webhooks.create("test", Wanted("ops", URL, active=False))
    answer = call(hub, "POST", "/ops/test", {})
    assert answer.status_code == 400 and "switched off" in answer.json["message"]


# -- the commands


@pytest.fixture
def process(tmp_path: Path) -> Iterator[HubProcess]:
    found = HubProcess(tmp_path)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.end()


def given(process: HubProcess, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A command with something on its stdin."""
    return subprocess.run(
        [sys.executable, "-m", "observer_agent.hub.cli", *words],
        env=process._env,
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
    )


def out(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_life_of_a_webhook_by_commands(process: HubProcess) -> None:
    with Receiver() as receiver:
        created = given(process, SECRET + "\n", "webhook", "create", "ops", receiver.url, "--secret", "-")
        assert (created.returncode, created.stdout) == (0, "Webhook ops made.\n"), created.stderr
        process.start()
        told = out(process.command("webhook", "test", "ops", "--json"))
        assert (told["state"], told["event_type"]) == ("delivered", TEST)
        assert receiver.got[0].headers["x-observer-signature"] == sign(SECRET, receiver.got[0].body)
        again = process.command("webhook", "redeliver", told["event_id"], "--webhook", "ops")
        assert again.stdout == "Laid out for ops.\n"
        assert receiver.wait_for(2)
        shown = process.command("webhook", "log", "ops").stdout
        assert told["event_id"] in shown and "status 200" in shown
        assert process.command("webhook", "change", "ops", "--off", "--event", "agent.offline").returncode == 0
        (one,) = out(process.command("webhook", "list", "--json"))["webhooks"]
        assert (one["active"], one["event_types"], one["secret"]) == (False, ["agent.offline"], "********")
        assert " OFF " in process.command("webhook", "list").stdout
        dry = process.command("webhook", "remove", "ops", "--dry-run")
        assert dry.stdout.startswith("Webhook ops would go")
        assert process.command("webhook", "remove", "ops").returncode == 0
        assert process.command("webhook", "list").stdout == ""
        process.end()
    said = process.log() + created.stdout + created.stderr + shown
    assert SECRET not in said and "Traceback" not in said


@pytest.mark.slow
def test_a_test_that_fails_says_why(process: HubProcess) -> None:
    made = process.command("webhook", "create", "ops", "https://no-such-host.invalid/")
    assert made.stdout.splitlines()[-1].startswith(SECRET_PREFIX)
    process.start()
    done = process.command("webhook", "test", "ops")
    assert done.returncode == 1
    assert done.stdout.startswith("Not delivered: the name ")


def test_a_secret_is_not_taken_from_the_command_line(process: HubProcess) -> None:
    done = process.command("webhook", "create", "ops", URL, "--secret", SECRET)
    assert (done.returncode, done.stdout) == (1, "")
    assert "stdin" in done.stderr and SECRET not in done.stderr


def test_a_wrong_allowance_is_a_wrong_setting(tmp_path: Path) -> None:
    done = HubProcess(tmp_path, OBSERVER_HUB_WEBHOOK_ALLOW="10.0.0.0/99").command("webhook", "list")
    assert done.returncode == 78 and "OBSERVER_HUB_WEBHOOK_ALLOW" in done.stderr


# -- the docs


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / "webhooks.md").read_text(), re.S)


@pytest.fixture
def message(hub: TestHub, webhooks: Webhooks) -> tuple[Mapping[str, str], bytes]:
    with Receiver() as receiver:
        ref = webhooks.create("test", Wanted("ops", receiver.url, SECRET))
        webhooks.test("test", "ops")
        served(hub, ref)
    return receiver.got[0].headers, receiver.got[0].body


def test_the_python_example_verifies(message: tuple[Mapping[str, str], bytes]) -> None:
    headers, body = message
    names: dict[str, Any] = {}
    exec(examples("python")[0], names)
    stamp, signature = headers["x-observer-timestamp"], headers["x-observer-signature-timestamped"]
    at = int(stamp) + 10
    assert names["is_genuine"](SECRET, body, stamp, signature, at)
    assert not names["is_genuine"](SECRET, body + b" ", stamp, signature, at)
    assert not names["is_genuine"](SECRET + "x", body, stamp, signature, at)
    assert not names["is_genuine"](SECRET, body, str(int(stamp) + 1), signature, at)
    assert not names["is_genuine"](SECRET, body, stamp, signature, at + 600)


def test_the_shell_example_verifies(message: tuple[Mapping[str, str], bytes], tmp_path: Path) -> None:
    headers, body = message
    (tmp_path / "body").write_bytes(body)
    (tmp_path / "secret").write_text(SECRET)
    script = examples("sh")[0]

    def run(signature: str) -> int:
        env = {"PATH": "/usr/bin:/bin", "signature": signature}
        return subprocess.run(["sh", "-c", script], cwd=tmp_path, env=env, capture_output=True).returncode

    assert run(headers["x-observer-signature"]) == 0
    assert run("sha256=" + "0" * 64) != 0


def test_every_kind_of_event_is_documented() -> None:
    text = (DOCS / "webhooks.md").read_text()
    assert all(f"`{kind}`" in text for kind in KINDS)
