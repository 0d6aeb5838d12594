"""How often one may come: by key, by refused address, behind proxies; and where the admin token comes from."""

from __future__ import annotations

from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import pytest

from observer_agent.errors import ConfigError
from observer_agent.hub import settings
from observer_agent.hub.app import create_app
from observer_agent.hub.limits import Buckets, Limits, Rate, household, networks, peer
from tests.fakes import FakeClock
from tests.wire_hub import HubProcess, TestHub, memory_hub, row, served

TOKEN = "token-of-the-operator"
PROXIES = networks("10.0.0.0/8, 2001:db8::1")


def test_a_bucket_gives_a_burst_and_then_its_rate() -> None:
    clock = FakeClock()
    buckets = Buckets(Rate(60.0, 5), clock)
    assert [buckets.take("a") for _ in range(6)] == [0] * 5 + [1]
    assert buckets.take("b") == 0
    clock.advance(1)
    assert [buckets.take("a") for _ in range(2)] == [0, 1]
    clock.advance(3600)
    assert [buckets.take("a") for _ in range(6)] == [0] * 5 + [1]


def test_the_memory_is_bounded() -> None:
    buckets = Buckets(Rate(60.0, 1), FakeClock(), names_max=100)
    for n in range(1000):
        buckets.take(str(n))
    assert len(buckets) == 100


@pytest.mark.parametrize(
    ("remote", "forwarded", "counts"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.7", "192.0.2.1"),
        ("10.1.1.1", "198.51.100.7", "198.51.100.7"),
        ("10.1.1.1", "1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("10.1.1.1", "198.51.100.7, 10.2.2.2", "198.51.100.7"),
        ("10.1.1.1", "1.1.1.1, nonsense, 10.2.2.2", "10.2.2.2"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("::ffff:10.1.1.1", "198.51.100.7", "198.51.100.7"),
        ("2001:db8::1", "[2001:db8:5::9]", "2001:db8:5::9"),
        ("", "198.51.100.7", "unknown"),
    ],
)
def test_whose_address_counts(remote: str, forwarded: str, counts: str) -> None:
    assert peer(remote, forwarded, PROXIES) == counts


def test_a_subscriber_has_a_network_of_ipv6() -> None:
    assert household("2001:db8:1:2:3::4") == household("2001:db8:1:2:ffff::1") != household("2001:db8:1:3::1")
    assert household("192.0.2.1") != household("192.0.2.2")


def test_a_key_that_comes_too_often_waits_and_others_do_not(tmp_path: Path) -> None:
    with memory_hub(tmp_path) as hub:
        hub.app = create_app(hub.store, hub.clock, limits=Limits(by_key=Rate(60.0, 10)))
        answers = [hub.push([row(n)], str(n + 1)) for n in range(15)]
        # The first request is what makes the key known, and is not counted.
        assert [each.status_code for each in answers] == [200] * 11 + [429] * 4
        assert answers[-1].json["error"] == "too_many_requests"
        assert int(answers[-1].headers["Retry-After"]) == 1
        other = hub.store.create_key("other")
        assert beat(hub, other) == 200
        hub.clock.advance(1)
        assert hub.push([row(99)], "99").status_code == 200


def beat(hub: TestHub, key: str, address: str = "192.0.2.1") -> int:
    answer = hub.client().post(
        "/api/agent/heartbeat", data="{}", headers={"Agent-Key": key}, environ_base={"REMOTE_ADDR": address}
    )
    if answer.status_code == 429:
        assert int(answer.headers["Retry-After"]) >= 1
    found: int = answer.status_code
    return found


def test_guessing_is_stopped_and_does_not_shut_out_who_was_let_in(tmp_path: Path) -> None:
    with memory_hub(tmp_path) as hub:
        hub.app = create_app(hub.store, hub.clock, limits=Limits())
        assert beat(hub, hub.key) == 200
        assert [beat(hub, f"guess-{n}") for n in range(22)] == [401] * 20 + [429] * 2
        assert beat(hub, hub.key) == 200, "an agent behind the same address goes on"
        assert beat(hub, "guess", "192.0.2.2") == 401, "another address is another matter"
        fresh = hub.store.create_key("fresh")
        assert beat(hub, fresh) == 429
        hub.clock.advance(3)
        assert beat(hub, fresh) == 200
        hub.clock.advance(60)
        assert beat(hub, "guess") == 401


def test_a_revoked_key_is_not_let_in_by_what_was_remembered(tmp_path: Path) -> None:
    with memory_hub(tmp_path) as hub:
        hub.app = create_app(hub.store, hub.clock, limits=Limits())
        key = hub.store.create_key("web")
        assert beat(hub, key) == 200
        hub.store.keys.revoke("web", "api")
        assert [beat(hub, key) for _ in range(21)] == [401] * 20 + [429]


def test_guessing_the_token_is_stopped(tmp_path: Path) -> None:
    with memory_hub(tmp_path, token=TOKEN) as hub:
        hub.app = create_app(hub.store, hub.clock, TOKEN, limits=Limits())
        tried = [hub.client().get("/api/v1/agents", headers={"Authorization": f"Bearer {n}"}) for n in range(21)]
        assert [each.status_code for each in tried] == [401] * 20 + [429]


@pytest.mark.parametrize(("trusted", "blocked"), [("127.0.0.0/8", False), ("", True)])
def test_over_a_socket_only_a_trusted_proxy_is_believed(tmp_path: Path, trusted: str, blocked: bool) -> None:
    with memory_hub(tmp_path) as hub:
        app = create_app(hub.store, hub.clock, limits=Limits(trusted=networks(trusted)))
        with served(app) as url, closing(HTTPConnection(url.removeprefix("http://"), timeout=5)) as conn:
            codes = []
            for n in range(25):
                head = {"Agent-Key": "guess", "X-Forwarded-For": f"192.0.2.{n}"}
                conn.request("POST", "/api/agent/heartbeat", "{}", head)
                answer = conn.getresponse()
                answer.read()
                codes.append(answer.status)
    assert (429 in codes) is blocked


def test_the_token_from_a_file_and_from_systemd(tmp_path: Path) -> None:
    file = tmp_path / "hub_token"
    file.write_text(f"{TOKEN}\n")
    assert settings.load({"OBSERVER_HUB_TOKEN_FILE": str(file)}).token == TOKEN
    assert settings.load({"CREDENTIALS_DIRECTORY": str(tmp_path)}).token == TOKEN
    assert settings.load({"CREDENTIALS_DIRECTORY": str(tmp_path), "OBSERVER_HUB_TOKEN": "other"}).token == "other"
    file.write_text("unset")
    assert settings.load({"CREDENTIALS_DIRECTORY": str(tmp_path)}).token is None
    assert settings.load({"CREDENTIALS_DIRECTORY": "/nowhere"}).token is None


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ({"OBSERVER_HUB_TOKEN_FILE": "/nowhere"}, "OBSERVER_HUB_TOKEN_FILE"),
        ({"OBSERVER_HUB_TOKEN_FILE": "/dev/null"}, "OBSERVER_HUB_TOKEN_FILE"),
        ({"OBSERVER_HUB_TOKEN_FILE": "/x", "OBSERVER_HUB_TOKEN": "y"}, "OBSERVER_HUB_TOKEN_FILE"),
        ({"OBSERVER_HUB_TRUSTED_PROXIES": "10.0.0.1/8"}, "OBSERVER_HUB_TRUSTED_PROXIES"),
        ({"OBSERVER_HUB_TRUSTED_PROXIES": "proxy.example"}, "OBSERVER_HUB_TRUSTED_PROXIES"),
        ({"OBSERVER_HUB_KEY_RATE": "-1"}, "OBSERVER_HUB_KEY_RATE"),
        ({"OBSERVER_HUB_KEY_RATE": "many"}, "OBSERVER_HUB_KEY_RATE"),
    ],
)
def test_a_wrong_setting_names_itself(env: dict[str, str], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        settings.load(env)


@pytest.mark.slow
def test_the_rate_of_a_process_is_a_setting(tmp_path: Path) -> None:
    assert settings.load({}).limits.by_key == Rate(6000.0, 3000)
    assert settings.load({"OBSERVER_HUB_KEY_RATE": "0"}).limits.by_key is None
    hub = HubProcess(tmp_path, OBSERVER_HUB_KEY_RATE="60")
    key = hub.key("web")
    hub.start()
    with closing(HTTPConnection("127.0.0.1", hub.port, timeout=5)) as conn:
        codes = []
        for _ in range(70):
            conn.request("GET", "/api/agent/metrics-definitions", headers={"Agent-Key": key})
            answer = conn.getresponse()
            answer.read()
            codes.append(answer.status)
    assert hub.end() == 0
    assert codes[:61] == [200] * 61 and 429 in codes
