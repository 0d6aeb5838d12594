"""The operator's policy: the file, its rules, and forty ways round them that all end before a connection."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys

import pytest

from observer_agent import policy, probes
from observer_agent.agent import Agent
from observer_agent.clock import Clock
from observer_agent.config import load
from observer_agent.errors import ConfigError, InvalidConfig
from observer_agent.logs import Redactor, configure
from observer_agent.model import Definition, Fault
from observer_agent.policy import Policy, parse
from observer_agent.probes._secrets import may_refer
from observer_agent.resolver import Address, ResolveError, parse_literal, system_lookup
from tests.cloud import LocalCloud
from tests.fakes import FakeClock
from tests.servers import Server, answer, make_prober, redirect, scripted
from tests.test_agent import definition

RULES = """
[networks]
deny = ["127.0.0.2/32", "::1/128"]
[hosts]
deny = ["secret.test", "*.inner.test"]
"""


def rules(text):
    return Policy(parse(text))


# -- the file


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("x = ", ["is not TOML"]),
        ("networks = 1", ["networks: must be a table"]),
        ("[network]\n", ["network: is not known"]),
        ("[networks]\ndeni = []", ["networks.deni: is not known"]),
        ("[networks]\ndeny = '10.0.0.0/8'", ["networks.deny: must be a list"]),
        ("[networks]\ndeny = ['10.0.0.1/8']", ["networks.deny", "10.0.0.1/8", "loopback"]),
        ("[networks]\ndeny = [1]", ["networks.deny", "must be a text"]),
        ("[networks]\nallow_metadata = 'no'", ["allow_metadata: must be true or false"]),
        ("[ports]\nallow = ['a']", ["ports.allow", "such as 443"]),
        ("[ports]\nallow = [true]", ["ports.allow"]),
        ("[ports]\nallow = ['9-8']", ["1 to 65535"]),
        ("[ports]\nallow = [0]", ["1 to 65535"]),
        ("[hosts]\nallow = ['a b']", ["hosts.allow"]),
        ("[source_types]\ndeny = ['HTTP']", ["source_types.deny"]),
        ("[env]\nprefix = ''", ["env.prefix"]),
        ("[env]\nallow = ['a']", ["env.allow"]),
        ("[limits]\ndefinitions = 0", ["limits.definitions: must be a positive whole number"]),
        ("[limits]\nrate_per_target = true", ["limits.rate_per_target: must be a positive number"]),
    ],
)
def test_a_rule_that_is_none_is_named(text, parts):
    with pytest.raises(ConfigError) as caught:
        parse(text)
    for part in ("POLICY_FILE", *parts):
        assert part in str(caught.value)


def test_no_file_denies_metadata_alone(tmp_path):
    found = policy.load(None, tmp_path / "policy.toml")
    assert found.of_address(Address(socket.AF_INET, "169.254.169.254"), 80)
    assert found.of_address(Address(socket.AF_INET, "169.254.169.253"), 80) is None
    assert rules("[networks]\nallow_metadata = true").of_address(Address(socket.AF_INET, "169.254.169.254"), 80) is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(tmp_path, mode):
    file = tmp_path / "policy.toml"
    file.write_text("")
    file.chmod(mode)
    with pytest.raises(ConfigError, match="writable by others"):
        policy.load(str(file))


def test_a_file_of_another_user_is_refused(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    file = tmp_path / "policy.toml"
    file.write_text("")
    os.chown(file, 12345, 0)
    with pytest.raises(ConfigError, match="belong to root"):
        policy.load(str(file))


def test_a_file_that_is_named_and_missing_stops_the_start(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        policy.load(str(tmp_path / "none.toml"))


# -- rules


def test_allow_lists_shut_everything_else_out():
    found = rules(
        '[networks]\nallow = ["10.0.0.0/8", "loopback"]\ndeny = ["10.9.0.0/16"]\n[ports]\nallow = [80, "8000-8002"]'
    )
    wanted = {
        ("10.1.2.3", 80): True,
        ("10.9.0.1", 80): False,
        ("11.0.0.1", 80): False,
        ("127.9.9.9", 8001): True,
        ("127.0.0.1", 8003): False,
        ("::1", 80): True,
        ("::ffff:10.1.2.3", 80): True,
        ("2002:0a01:0203::1", 80): False,
        ("10.1.2.3", None): True,
    }
    seen = {key: found.of_address(parse_literal(key[0]), key[1]) is None for key in wanted}
    assert seen == wanted


def test_ports_can_be_denied():
    found = rules('[ports]\ndeny = [22, "6000-6010"]')
    at = Address(socket.AF_INET, "192.0.2.1")
    assert [found.of_address(at, port) is None for port in (22, 23, 6000, 6010, 6011)] == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_hosts_by_name():
    found = rules('[hosts]\nallow = ["*.example.com", "db1", "192.0.2.7", "2001:db8::1"]\ndeny = ["admin.example.com"]')
    wanted = {
        "a.example.com": True,
        "A.EXAMPLE.com.": True,
        "example.com": False,
        "admin.example.com": False,
        "Admin.Example.Com.": False,
        "db1": True,
        "db1.": True,
        "evilexample.com": False,
        "192.0.2.7": True,
        "192.0.2.8": False,
        "2001:db8:0:0::1": True,
        "3221225991": False,
    }
    assert {host: found.of_host(host) is None for host in wanted} == wanted


def test_the_rate_per_target_counts_each_address_and_port():
    found, clock = rules("[limits]\nrate_per_target = 2"), FakeClock()
    one, other = Address(socket.AF_INET, "192.0.2.1"), Address(socket.AF_INET, "192.0.2.2")
    assert [found.of_rate(one, 80, clock) is None for _ in range(4)] == [True, True, False, False]
    assert found.of_rate(one, 81, clock) is None
    assert found.of_rate(other, 80, clock) is None
    clock.advance(0.5)
    assert [found.of_rate(one, 80, clock) is None for _ in range(2)] == [True, False]


def test_a_redirect_to_the_same_origin_is_no_second_look():
    hops = [redirect("/one"), redirect("/two"), answer()]
    with Server(scripted(*hops * 2)) as server:
        prober = make_prober(policy=rules("[limits]\nrate_per_target = 0.001"))
        config = probes.parse("http", {"url": server.url, "timeout_ms": 2000})
        first, second = prober.look("http", config), prober.look("http", config)
        assert (first.reason, first.detail["hops"], len(server.requests)) == (None, 2, 3)
    assert (second.reason, second.fault) == ("policy_denied", Fault.POLICY)
    assert "limits.rate_per_target" in second.detail["error"]


def test_a_redirect_to_another_target_counts_there():
    with Server(scripted(answer())) as other, Server(scripted(redirect(other.url))) as first:
        prober = make_prober(policy=rules("[limits]\nrate_per_target = 0.001"))
        look = lambda url: prober.look("http", probes.parse("http", {"url": url, "timeout_ms": 2000}))  # noqa: E731
        assert look(first.url).reason is None
        assert (look(other.url).reason, other.connections) == ("policy_denied", 1)


def test_a_slow_rate_lets_one_look_through_in_its_time():
    found, clock = rules("[limits]\nrate_per_target = 0.1"), FakeClock()
    at, passed = Address(socket.AF_INET, "192.0.2.1"), 0
    for _ in range(100):
        passed += found.of_rate(at, 80, clock) is None
        clock.advance(1.0)
    assert passed == 10


def test_definitions_above_the_highest_number_give_no_data():
    found = [Definition(str(n), "tcp", 60, 300, "f") for n in range(5)]
    restricted = rules("[limits]\ndefinitions = 3").restricted(found)
    assert [d.problem and d.problem.reason for d in restricted] == [None, None, None, "policy_denied", "policy_denied"]
    assert Policy().restricted(found) == found


def test_source_types():
    found = rules('[source_types]\ndeny = ["tcp"]')
    prober = make_prober(policy=found)
    with Server(scripted(answer("ok"))) as server:
        reading = prober.look("tcp", probes.parse("tcp", {"host": "127.0.0.1", "port": server.port}))
        assert (reading.reason, reading.fault, server.connections) == ("policy_denied", Fault.POLICY, 0)
        assert prober.look("http", probes.parse("http", {"url": server.url})).value
    assert rules('[source_types]\nallow = ["http"]').of_type("tcp")


def test_env_references():
    found = parse('[env]\nprefix = "PROBE_WEB_"\nallow = ["GRAFANA_TOKEN", "AGENT_KEY"]')
    names = ("PROBE_WEB_A", "PROBE_DB_A", "GRAFANA_TOKEN", "AGENT_KEY", "PROMETHEUS_PASSWORD", "LISTED")
    assert [may_refer(name, ("LISTED",), found) for name in names] == [True, False, True, False, False, True]


# -- ways round


NAMES = {
    "rebind.test": ("203.0.113.9", "127.0.0.2"),  # another answer each time it is asked
    "two.test": ("127.0.0.2",),
    "alias.test": ("127.0.0.2",),
    "six.test": ("::1",),
    "mapped.test": ("::ffff:127.0.0.2",),
    "secret.test": ("127.0.0.1",),
    "a.inner.test": ("127.0.0.1",),
    "good.test": ("127.0.0.1",),
}


class Names:
    """A resolver whose answers for one name change with every question (TTL 0)."""

    def __init__(self):
        self.asked = 0

    def __call__(self, name):
        plain = name.lower().rstrip(".")
        if plain == "rebind.test":
            self.asked += 1
            host = NAMES[plain][self.asked % 2]
            return (parse_literal(host),)
        if plain in NAMES:
            return tuple(parse_literal(host) for host in NAMES[plain])
        if plain.endswith(".test"):
            raise ResolveError("ENOTFOUND", name)
        return system_lookup(name)


EVASIONS = [
    "127.0.0.2",
    "127.0.2",
    "127.2",
    "2130706434",
    "0x7f000002",
    "0x7F.0x0.0x0.0x2",
    "0177.0.0.2",
    "0177.0.0.02",
    "017700000002",
    "0x7f.2",
    "127.0.0x2",
    "127.0.0.2.",
    "[::ffff:127.0.0.2]",
    "[::ffff:7f00:2]",
    "[0:0:0:0:0:ffff:7f00:0002]",
    "[::127.0.0.2]",
    "[::ffff:0:127.0.0.2]",
    "[64:ff9b::127.0.0.2]",
    "[64:ff9b:1::127.0.0.2]",
    "[2002:7f00:2::1]",
    "[2001:0:7f00:2::1]",
    "[2001:0:cb00:7101::80ff:fffd]",
    "[fe80::5efe:127.0.0.2]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[0000:0000:0000:0000:0000:0000:0000:0001]",
    "[::1%25lo]",
    "[::1%251]",
    "[::]",
    "two.test",
    "TWO.test",
    "two.test.",
    "alias.test",
    "six.test",
    "mapped.test",
    "secret.test",
    "SECRET.TEST",
    "secret.test.",
    "a.inner.test",
    "A.Inner.Test.",
    "user:pass@127.0.0.2",
    "good.test@127.0.0.2",
    "127.0.0.2#@good.test",
    "127.0.0.2?@good.test",
    "127.0.0.2\\@good.test",
    "١٢٧.0.0.2",
    "①②⑦.0.0.2",
    "127。0。0。2",
]


@pytest.fixture(scope="module")
def forbidden():
    """One port, listened on at the allowed address and at both forbidden ones."""
    with Server(scripted(answer("ok")), host="127.0.0.1") as allowed:
        shut = []
        for family, host in ((socket.AF_INET, "127.0.0.2"), (socket.AF_INET6, "::1")):
            shut.append(socket.create_server((host, allowed.port), family=family, backlog=64))
        yield allowed, shut
        for listener in shut:
            listener.close()


def touched(listeners):
    """Connections that came to the forbidden listeners."""
    count = 0
    for listener in listeners:
        listener.setblocking(False)
        try:
            while True:
                listener.accept()[0].close()
                count += 1
        except BlockingIOError:
            pass
    return count


@pytest.mark.parametrize("host", EVASIONS)
def test_no_way_of_writing_a_target_leads_round(forbidden, host):
    allowed, shut = forbidden
    prober = make_prober(find=Names(), policy=rules(RULES))
    before = allowed.connections
    for config in (
        {"url": f"http://{host}:{allowed.port}/"},
        {"url": f"http://{host}:{allowed.port}/", "method": "HEAD"},
    ):
        try:
            typed = probes.parse("http", {**config, "timeout_ms": 2000})
        except InvalidConfig:
            continue
        reading = prober.look("http", typed)
        assert reading.value is None
        assert reading.reason in ("policy_denied", "ENOTFOUND", "EAI_AGAIN"), reading
    assert touched(shut) == 0
    assert allowed.connections == before


@pytest.mark.parametrize("host", [h.strip("[]") for h in EVASIONS if not set(h) & set("@#?\\")])
def test_nor_does_one_of_the_tcp_probe(forbidden, host):
    allowed, shut = forbidden
    prober = make_prober(find=Names(), policy=rules(RULES))
    before = allowed.connections
    try:
        typed = probes.parse("tcp", {"host": host.replace("%25", "%"), "port": allowed.port})
    except InvalidConfig:
        pass
    else:
        assert prober.look("tcp", typed).value is None
    assert touched(shut) == 0
    assert allowed.connections == before


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "two.test", "2130706434", "[::1]", "[::ffff:127.0.0.2]", "secret.test", "//127.0.0.2"]
)
def test_no_redirect_leads_round(forbidden, host):
    _, shut = forbidden
    port = shut[0].getsockname()[1]
    target = f"{host}:{port}/" if host.startswith("//") else f"http://{host}:{port}/"
    with Server(scripted(redirect(target))) as server:
        prober = make_prober(find=Names(), policy=rules(RULES))
        reading = prober.look("http", probes.parse("http", {"url": server.url}))
        assert reading.reason == "policy_denied"
        assert server.connections == 1
    assert touched(shut) == 0


def test_a_name_that_changes_its_mind_is_judged_by_the_address_that_is_used(forbidden):
    """The odd answers are allowed (and dead), the even ones forbidden: whichever came, no listener is touched."""
    allowed, shut = forbidden
    names = Names()
    prober = make_prober(find=names, policy=rules(RULES))
    reasons = set()
    for _ in range(6):
        typed = probes.parse("tcp", {"host": "rebind.test", "port": allowed.port, "timeout_ms": 100})
        reasons.add(prober.look("tcp", typed).reason)
    assert names.asked == 6
    assert "policy_denied" in reasons and len(reasons) > 1
    assert touched(shut) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "good.test", "2130706433", "[::ffff:127.0.0.1]"])
def test_what_is_allowed_is_reached(forbidden, host):
    allowed, _ = forbidden
    prober = make_prober(find=Names(), policy=rules(RULES))
    reading = prober.look("http", probes.parse("http", {"url": f"http://{host}:{allowed.port}/"}))
    assert reading.value, reading


def test_proxies_of_the_environment_are_not_used(forbidden, monkeypatch):
    allowed, shut = forbidden
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{allowed.port}")
    prober = make_prober(policy=rules(RULES))
    assert prober.look("http", probes.parse("http", {"url": allowed.url})).value
    assert touched(shut) == 0


def test_a_denied_address_beside_an_allowed_one_is_passed_over(forbidden):
    allowed, shut = forbidden
    both = (parse_literal("127.0.0.2"), parse_literal("127.0.0.1"))
    prober = make_prober(find=lambda name: both, policy=rules(RULES))
    assert prober.look("tcp", probes.parse("tcp", {"host": "both.test", "port": allowed.port})).value
    assert touched(shut) == 0


def test_the_complaint_names_the_rule(forbidden):
    allowed, _ = forbidden
    prober = make_prober(find=Names(), policy=rules(RULES))
    reading = prober.look("tcp", probes.parse("tcp", {"host": "127.0.0.2", "port": allowed.port}))
    assert (reading.fault, reading.detail["error"]) == (Fault.POLICY, "the address is denied (networks.deny)")


# -- the commands


@pytest.fixture
def command(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text(RULES)

    def run(*words):
        env = {**os.environ, "POLICY_FILE": str(file)}
        words = [sys.executable, "-m", "observer_agent", "policy", *words]
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60)

    run.file = file
    return run


def test_policy_show(command):
    shown = json.loads(command("show", "--json").stdout)
    assert shown["deny_networks"] == ["127.0.0.2/32", "::1/128"] and shown["file"] == str(command.file)
    assert "127.0.0.2/32" in command("show").stdout
    command.file.write_text("[networks]\nx = 1\n")
    done = command("show")
    assert done.returncode == 78 and "networks.x: is not known" in done.stderr


@pytest.mark.parametrize(
    ("target", "code", "port"),
    [
        ("http://127.0.0.1/", 0, 80),
        ("127.0.0.1:5432", 0, 5432),
        ("https://127.0.0.2/x?y", 1, 443),
        ("[::1]:80", 1, 80),
        ("::1", 1, None),
        ("127.0.0.1", 0, None),
        ("secret.test:80", 1, 80),
        ("postgres://127.0.0.2/db", 1, 5432),
    ],
)
def test_policy_test(command, target, code, port):
    done = command("test", target, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["port"], report["allowed"]) == (code, port, code == 0)
    assert ("allowed" if code == 0 else "denied") in command("test", target).stdout


@pytest.mark.parametrize("target", ["", "http://", "a:b:c:d", "host:99999", "a b"])
def test_a_target_that_is_none_is_wrong_usage(command, target):
    assert command("test", target).returncode == 2


# -- in a running agent


@pytest.fixture
def agent(tmp_path):
    file = tmp_path / "policy.toml"
    file.write_text("")
    cloud = LocalCloud()
    settings = load({
        "AGENT_KEY": "key-of-the-test", "CLOUD_SERVER_URL": cloud.url, "BUFFER_PATH": str(tmp_path / "b.db"),
        "POLICY_FILE": str(file),
    })  # fmt: skip
    clock = Clock()
    logs = configure("text", True, clock, Redactor(), io.StringIO())
    made = Agent(settings, clock, logs, {})
    made.file, made.cloud = file, cloud
    yield made
    made.stop()
    logs.close()
    cloud.close()


@pytest.mark.slow
def test_a_reload_reads_the_policy_again_and_a_wrong_one_changes_nothing(agent, forbidden, caught):
    allowed, _ = forbidden
    agent.cloud.definitions = [definition(name, allowed.port, interval_agent_push=1 / 60) for name in ("a", "b")]
    agent.start()
    agent.cloud.until(lambda: {row["status"] for row in agent.cloud.rows} == {"healthy"})
    agent.file.write_text("[limits]\ndefinitions = 1\n[networks]\ndeny = ['loopback']\n")
    agent.reload()
    agent.cloud.until(lambda: sum(row.get("reason") == "policy_denied" for row in agent.cloud.rows) >= 2)
    agent.file.write_text("[limits]\ndefinitions = 'all'\n")
    agent.reload()
    assert "limits.definitions: must be a positive whole number" in caught.text
    before = len(agent.cloud.rows)
    agent.cloud.until(lambda: len(agent.cloud.rows) >= before + 2)
    assert {row.get("reason") for row in agent.cloud.rows[before:]} == {"policy_denied"}


def test_a_wrong_policy_stops_the_start(command):
    command.file.write_text("[networks]\nx = 1\n")
    env = {**os.environ, "POLICY_FILE": str(command.file), "AGENT_KEY": "k"}
    done = subprocess.run([sys.executable, "-m", "observer_agent", "run"], env=env, capture_output=True, timeout=60)
    assert done.returncode == 78
