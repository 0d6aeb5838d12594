"""Discovery against an API server on a real socket: what is sent, when, and what must not hide the rest."""

from __future__ import annotations

import json
import logging
import random
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent.clock import Clock
from observer_agent.clouds import DIALECTS
from observer_agent.clouds._lighthouse_wire import Discovered
from observer_agent.lighthouse import fanout, kube
from observer_agent.lighthouse.discovery import Discovery, discovery, scopes
from observer_agent.lighthouse.feed import Pace
from observer_agent.lighthouse.kube import Kube, KubeError, in_cluster
from observer_agent.logs import Redactor
from observer_agent.resolver import Resolver
from tests import kubeapi
from tests.lighthouse_golden import GOLDEN, answer_body, split
from tests.servers import Server, answer, scripted

QUICK = Pace(patience=0.4, hasty=0.1, refused=0.3, retry=0.1, quiet=0.1, resend=0.1)
INGRESS, SERVICE, HTTPROUTE = fanout.KINDS
WEB = Discovered("ingress", "prod", "web", "app.example.com", path="/", protocol="http")


class Console:
    """Takes snapshots, or refuses them."""

    def __init__(self):
        self.taken = []
        self.refused = []
        self.refuse = 0

    def send(self, items):
        if self.refuse:
            self.refuse -= 1
            self.refused.append(items)
            return False
        self.taken.append(items)
        return True

    @property
    def last(self):
        return {(item.kind, item.resource_name) for item in self.taken[-1]} if self.taken else None


class Stage:
    """A discovery that the test turns by hand."""

    def __init__(self, api):
        self.api = api
        self.console = Console()
        self.clock = Clock()
        self._made = []

    def discover(self, *namespaces, pace=QUICK):
        account = in_cluster(self.api.env, self.api.folder)
        client = Kube(account, clock=self.clock, resolver=Resolver(self.clock))
        self.discovery = Discovery(client, namespaces, self.console.send, clock=self.clock, pace=pace)
        self._made.append(self.discovery)
        return self.discovery

    def until(self, what, seconds=20.0):
        """Turns until `what()` is true; the seconds that it took."""
        begin = time.monotonic()
        while not what():
            assert time.monotonic() - begin < seconds, self.discovery.state()
            threading.Event().wait(min(self.discovery.step(), 0.05))
        return time.monotonic() - begin

    def turn_for(self, seconds):
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + 20)

    def close(self):
        for each in self._made:
            each.close()


@pytest.fixture
def api(tmp_path):
    with kubeapi.kube_api(tmp_path / "serviceaccount") as found:
        yield found


@pytest.fixture
def stage(api):
    found = Stage(api)
    yield found
    found.close()


def told(kind, thing):
    return [(i.host, i.path, i.port, i.protocol) for i in fanout.items_of(kind, thing)]


# What an object turns into


def test_an_ingress_is_one_item_for_each_host_and_path():
    thing = kubeapi.ingress("prod", "web", "a.example.com", "b.example.com", tls=("b.example.com",), path="/shop")
    assert told(INGRESS, thing) == [
        ("a.example.com", "/shop", None, "http"),
        ("b.example.com", "/shop", None, "https"),
    ]


@pytest.mark.parametrize(
    ("host", "path", "kind", "tls", "expected"),
    [
        ("", "/", "Prefix", (), []),
        ("a.example.com", "", "Prefix", (), []),
        ("a.example.com", "/x", "ImplementationSpecific", (), []),
        ("a.example.com", "/x", "Exact", ("*.example.com",), [("a.example.com", "/x", None, "http")]),
        ("*.example.com", "/", "Prefix", ("*.example.com",), [("*.example.com", "/", None, "https")]),
    ],
)
def test_which_rules_of_an_ingress_count(host, path, kind, tls, expected):
    thing = kubeapi.ingress("prod", "web", host, tls=tls, path=path)
    thing["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = kind
    assert told(INGRESS, thing) == expected


def test_a_service_is_one_item_for_each_port_but_sctp():
    ports = (
        ("https", 8443, "TCP"), ("http", 8080, "TCP"), ("a", 80, "TCP"), ("b", 443, "TCP"), ("db", 5432, "TCP"),
        ("dns", 53, "UDP"), ("sig", 2905, "SCTP"),
    )  # fmt: skip
    host = "db.prod.svc.cluster.local"
    assert told(SERVICE, kubeapi.service("prod", "db", *ports, kind="LoadBalancer")) == [
        (host, None, 8443, "https"),
        (host, None, 8080, "http"),
        (host, None, 80, "http"),
        (host, None, 443, "https"),
        (host, None, 5432, "tcp"),
        (host, None, 53, "udp"),
    ]


def test_a_service_that_is_not_published_yields_nothing():
    headless = kubeapi.service("prod", "db", ("", 1, "TCP"))
    headless["spec"]["clusterIP"] = "None"
    assert told(SERVICE, headless) == []
    for kind in ("ClusterIP", "ExternalName"):
        assert told(SERVICE, kubeapi.service("prod", "db", ("", 1, "TCP"), kind=kind)) == []


def test_an_httproute_is_one_https_item_for_each_host_and_match():
    thing = kubeapi.httproute("prod", "api", "api.example.com", "/v1", "/v2", "/v1")
    thing["spec"]["hostnames"] += ["*.example.com", "b.example.com"]
    thing["spec"]["rules"] += [{"matches": [{"path": {"type": "RegularExpression", "value": "/x.*"}}]}, {}]
    assert told(HTTPROUTE, thing) == [
        ("api.example.com", "/v1", None, "https"),
        ("api.example.com", "/v2", None, "https"),
        ("api.example.com", "/", None, "https"),
        ("b.example.com", "/v1", None, "https"),
        ("b.example.com", "/v2", None, "https"),
        ("b.example.com", "/", None, "https"),
    ]


@pytest.mark.parametrize("namespace", sorted(fanout.HIDDEN_NAMESPACES))
def test_the_namespaces_of_the_cluster_itself_are_left_out(namespace):
    assert told(INGRESS, kubeapi.ingress(namespace, "web", "a.example.com")) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "spec rules host http paths path pathType tls hosts type clusterIP ports port protocol name matches "
                "hostnames value".split()
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(JSON, st.sampled_from(fanout.KINDS))
def test_an_object_of_any_shape_yields_items_or_none(spec, kind):
    for item in fanout.items_of(kind, {"metadata": {"namespace": "a", "name": "b"}, "spec": spec}):
        assert item.host and item.protocol


def test_w12_the_order_is_total():
    base = Discovered("ingress", "a", "b", "c", "/d", 1, "http")
    others = [
        replace(base, **{name: value})
        for name, value in [
            ("kind", "service"), ("namespace", "b"), ("resource_name", "c"), ("host", "d"), ("path", "/e"),
            ("path", None), ("port", 2), ("port", None), ("protocol", "https"),
        ]
    ]  # fmt: skip
    items = [base, *others]
    first = sorted(items, key=fanout.order)
    for _ in range(20):
        random.shuffle(items)
        assert sorted(items, key=fanout.order) == first
    assert len({fanout.order(item) for item in items}) == len(items)


@pytest.mark.parametrize(
    ("given", "expected"),
    [((), ("",)), (("*",), ("",)), (("a", "*"), ("",)), ((" b ", "a", "b", ""), ("a", "b")), (("kube-system",), ())],
)
def test_which_namespaces_are_followed(given, expected):
    assert scopes(given) == expected


# What is sent, and when


@pytest.mark.slow
def test_w10_added_changed_and_deleted_are_sent_within_three_seconds(stage):
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.discover(pace=Pace(patience=1.0, hasty=0.2))
    stage.until(lambda: stage.console.taken)
    assert stage.console.taken == [(WEB,)]
    stage.api.put("services", kubeapi.service("prod", "db", ("", 5432, "TCP")))
    assert stage.until(lambda: ("service", "db") in stage.console.last) < 3.0
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "new.example.com"))
    assert stage.until(lambda: stage.console.taken[-1][0].host == "new.example.com") < 3.0
    stage.api.delete("services", "prod", "db")
    assert stage.until(lambda: stage.console.last == {("ingress", "web")}) < 3.0
    assert len(stage.api.lists("services")) == 1, "events were used, nothing was listed again"


def test_w10_steady_changes_do_not_hold_a_snapshot_back(stage):
    stage.discover(pace=replace(QUICK, quiet=5.0, longest=1.0))
    stage.until(lambda: stage.console.taken)
    begin = time.monotonic()
    for number in range(100):
        stage.api.put("ingresses", kubeapi.ingress("prod", f"web{number}", "a.example.com"))
        stage.turn_for(0.05)
        if len(stage.console.taken) > 1:
            break
    assert time.monotonic() - begin < 4.0


def test_w12_an_empty_snapshot_is_sent_once(stage):
    stage.discover()
    stage.until(lambda: stage.console.taken)
    stage.turn_for(0.5)
    assert stage.console.taken == [()]


def test_w12_nothing_is_sent_before_every_kind_has_been_listed(stage):
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.api.put("httproutes", kubeapi.httproute("prod", "api", "api.example.com", "/"))
    stage.api.rules.held.add("httproutes")
    stage.discover()
    stage.until(lambda: stage.api.watches("ingresses") and stage.api.watches("services"))
    stage.turn_for(0.7)
    assert stage.console.taken == [] and stage.discovery.state()["complete"] is False
    stage.api.rules.held.clear()
    stage.until(lambda: stage.console.taken)
    assert stage.console.last == {("ingress", "web"), ("httproute", "api")}
    assert len(stage.console.taken) == 1


def test_w12_a_snapshot_that_was_not_taken_is_tried_again_though_nothing_changes(stage, caplog):
    stage.console.refuse = 3
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.discover()
    stage.until(lambda: stage.console.taken)
    assert stage.console.refused == [(WEB,)] * 3 and stage.console.taken == [(WEB,)]
    stage.turn_for(0.3)
    assert len(stage.console.taken) == 1
    assert caplog.text.count("The console did not take 1 discoveries") == 3


def test_the_newest_is_what_is_tried_again(stage):
    stage.console.refuse = 1
    stage.discover()
    stage.until(lambda: stage.console.refused)
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.until(lambda: stage.console.last)
    assert stage.console.taken[-1] == (WEB,)


def test_a_change_that_shows_nowhere_is_not_sent(stage):
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.discover()
    stage.until(lambda: stage.console.taken)
    thing = kubeapi.ingress("prod", "web", "app.example.com")
    thing["metadata"]["labels"] = {"a": "b"}
    stage.api.put("ingresses", thing)
    stage.api.put("services", kubeapi.service("prod", "db", ("", 1, "TCP"), kind="ClusterIP"))
    stage.turn_for(0.6)
    assert len(stage.console.taken) == 1


def test_a_console_that_may_have_forgotten_is_told_again(stage):
    stage.discover()
    stage.until(lambda: stage.console.taken)
    stage.discovery.forget()
    stage.until(lambda: len(stage.console.taken) == 2)
    assert stage.console.taken == [(), ()]


def test_what_two_objects_offer_alike_is_sent_in_order_and_without_twins(stage):
    for name in ("zeta", "alpha"):
        stage.api.put("httproutes", kubeapi.httproute("prod", name, "api.example.com", "/b", "/a", "/a"))
    stage.discover()
    stage.until(lambda: stage.console.taken)
    assert [(i.resource_name, i.path) for i in stage.console.taken[0]] == [
        ("alpha", "/a"), ("zeta", "/a"), ("alpha", "/b"), ("zeta", "/b"),
    ]  # fmt: skip


def test_what_the_console_is_told_is_the_golden_message(stage):
    golden = GOLDEN["discoveries"]
    stage.api.put("services", kubeapi.service("prod", "postgres", ("pg", 5432, "TCP")))
    stage.api.put("ingresses", kubeapi.ingress("default", "web", "app.example.com", tls=("app.example.com",)))
    stage.api.put("httproutes", kubeapi.httproute("default", "api", "api.example.com", "/v1"))
    with Server(scripted(answer(answer_body(golden), 200))) as server:
        cloud = connected(server.url, stage.clock)
        stage.console.send = lambda items: cloud.discoveries(items).ok
        stage.discover()
        stage.until(lambda: stage.discovery.state()["items"] == 3)
        cloud.leave()
    _, headers, body = split(server.requests[0])
    assert json.loads(body) == golden["request"]["body"]
    assert headers["Authorization"] == f"Bearer {Settings.token}"
    assert len(server.requests) == 1


# RBAC


@pytest.mark.parametrize("denied", ["ingresses", "services", "httproutes"])
def test_w12_a_kind_that_is_denied_does_not_hide_the_others(stage, caplog, denied):
    fill(stage.api, "prod")
    stage.api.rules.denied.add(("*", denied, "*"))
    stage.discover()
    stage.until(lambda: stage.console.taken)
    kinds = {"ingresses": "ingress", "services": "service", "httproutes": "httproute"}
    assert {kind for kind, _ in stage.console.last} == set(kinds.values()) - {kinds[denied]}
    assert f"Discovery does not see {denied} in all namespaces (denied: {denied}" in caplog.text
    stage.api.put("services" if denied == "ingresses" else "ingresses", another(denied))
    assert stage.until(lambda: any(name == "another" for _, name in stage.console.last)) < 3.0


def test_w11_a_namespace_that_is_denied_does_not_hide_the_others(stage):
    for namespace in ("left", "right"):
        fill(stage.api, namespace)
    stage.api.rules.denied.add(("*", "*", ""))  # a Role by namespace: the cluster as a whole is never allowed
    stage.api.rules.denied.add(("*", "httproutes", "right"))
    stage.discover("left", "right")
    stage.until(lambda: stage.console.taken)
    seen = {(item.kind, item.namespace) for item in stage.console.taken[-1]}
    assert seen == {
        ("ingress", "left"), ("service", "left"), ("httproute", "left"), ("ingress", "right"), ("service", "right"),
    }  # fmt: skip
    assert {asked.namespace for asked in stage.api.requests} == {"left", "right"}


def test_w11_what_was_denied_or_absent_is_seen_once_it_is_there(stage):
    fill(stage.api, "prod")
    stage.api.rules.denied.add(("*", "ingresses", "*"))
    stage.api.rules.absent.add("httproutes")
    stage.discover()
    stage.until(lambda: stage.console.last == {("service", "db")})
    stage.api.rules.denied.clear()
    stage.api.rules.absent.clear()
    stage.until(lambda: stage.console.last == {("service", "db"), ("ingress", "web"), ("httproute", "api")})
    stage.until(lambda: stage.discovery.state()["unseen"] == {})


def test_a_role_that_is_not_in_force_yet_is_waited_for(stage):
    fill(stage.api, "prod")
    stage.api.rules.denied.add(("*", "*", "*"))
    stage.discover(pace=replace(QUICK, patience=20.0))
    stage.until(lambda: len(stage.api.lists("ingresses")) > 2)
    assert stage.console.taken == []
    stage.api.rules.denied.clear()
    stage.until(lambda: stage.console.taken)
    assert len(stage.console.taken[0]) == 3, "the first snapshot is whole"


@pytest.mark.slow
def test_what_was_seen_stays_when_it_is_denied_and_goes_when_it_is_absent(stage):
    fill(stage.api, "prod")
    stage.discover()
    stage.until(lambda: stage.console.taken)
    stage.api.rules.denied.add(("*", "services", "*"))
    stage.api.cut_watches()
    stage.until(lambda: "services in all namespaces" in stage.discovery.state()["unseen"])
    stage.turn_for(0.4)
    assert len(stage.console.taken) == 1
    stage.api.rules.absent.add("httproutes")
    stage.api.cut_watches()
    stage.until(lambda: stage.console.last == {("service", "db"), ("ingress", "web")})


def test_a_kind_that_may_be_listed_but_not_watched_is_listed_again_and_again(stage):
    stage.api.rules.denied.add(("watch", "ingresses", "*"))
    stage.discover()
    stage.until(lambda: stage.console.taken)
    stage.until(lambda: "ingresses in all namespaces" in stage.discovery.state()["unseen"])
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.until(lambda: stage.console.last == {("ingress", "web")})


# Lists, watches, tokens, faults


@pytest.mark.slow
def test_w24_five_thousand_objects_come_in_pages(stage):
    for number in range(5000):
        stage.api.put("ingresses", kubeapi.ingress("prod", f"web{number:04}", f"h{number:04}.example.com"))
    stage.discover()
    stage.until(lambda: stage.console.taken, 60)
    assert [item.host for item in stage.console.taken[0]] == [f"h{number:04}.example.com" for number in range(5000)]
    pages = stage.api.lists("ingresses")
    assert len(pages) == 10 and {asked.query["limit"] for asked in pages} == {"500"}
    assert sum("continue" in asked.query for asked in pages) == 9
    stage.api.delete("ingresses", "prod", "web4999")
    assert stage.until(lambda: len(stage.console.taken[-1]) == 4999) < 3.0


def test_a_list_whose_pages_expire_is_begun_again(stage):
    for number in range(30):
        stage.api.put("ingresses", kubeapi.ingress("prod", f"web{number:02}", f"h{number:02}.example.com"))
    stage.api.rules.expire_pages = 1
    stage.discover(pace=replace(QUICK, page=10))
    stage.until(lambda: stage.console.taken)
    assert len(stage.console.taken[0]) == 30
    assert len(stage.api.lists("ingresses")) == 5


@pytest.mark.slow
def test_what_changes_while_pages_are_read_is_not_missed(stage):
    for number in range(30):
        stage.api.put("ingresses", kubeapi.ingress("prod", f"web{number:02}", f"h{number:02}.example.com"))
    stage.discover(pace=replace(QUICK, page=1))
    stage.until(lambda: len(stage.api.lists("ingresses")) >= 3)
    stage.api.put("ingresses", kubeapi.ingress("prod", "aaa", "aaa.example.com"))
    stage.api.delete("ingresses", "prod", "web00")
    stage.until(lambda: stage.console.taken and len(stage.console.taken[-1]) == 30)
    assert stage.console.taken[-1][0].host == "aaa.example.com"


@pytest.mark.slow
def test_w10_a_watch_goes_on_from_its_bookmark(stage):
    stage.discover(pace=replace(QUICK, watch=2.0))
    stage.until(lambda: stage.console.taken)
    for number in range(5):
        stage.api.put("services", kubeapi.service("prod", f"db{number}", ("", 1, "TCP")))
    newest = stage.api._version
    stage.until(lambda: any(int(a.query["resourceVersion"]) >= newest for a in stage.api.watches("ingresses")))
    stage.api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.until(lambda: ("ingress", "web") in stage.console.last)
    assert len(stage.api.lists("ingresses")) == 1
    assert all(a.query["allowWatchBookmarks"] == "true" for a in stage.api.requests if a.watch)


@pytest.mark.parametrize("as_event", [True, False])
def test_w10_after_410_the_list_is_made_again_at_once(stage, as_event):
    api = stage.api
    api.rules.bookmark_seconds, api.rules.gone_as_event = 60.0, as_event
    fill(api, "prod")
    stage.discover(pace=replace(QUICK, retry=30.0, watch=1.0))
    stage.until(lambda: stage.console.taken and api.watches("services"))
    api.rules.held.add("services")
    stage.until(lambda: len(api.watches("services")) == 2)
    api.delete("services", "prod", "db")
    api.forget()
    api.rules.held.clear()
    stage.until(lambda: ("service", "db") not in stage.console.last, 5.0)
    assert len(api.lists("services")) == 2


@pytest.mark.slow
def test_w10_the_list_is_made_again_from_time_to_time(stage):
    stage.discover(pace=replace(QUICK, watch=1.0, relist=0.1))
    stage.until(lambda: len(stage.api.lists("ingresses")) >= 3)
    assert stage.console.taken == [()]


def test_w24_a_replaced_token_is_read_again(stage, caplog):
    caplog.set_level(logging.DEBUG)
    api = stage.api
    stage.discover(pace=replace(QUICK, watch=1.0))
    stage.until(lambda: stage.console.taken)
    api.rules.tokens = {"token-two"}
    api.cut_connections()
    stage.until(lambda: any("401" in text for text in stage.discovery.state()["unseen"].values()))
    (api.folder / "token").write_text("token-two\n")
    api.put("ingresses", kubeapi.ingress("prod", "web", "app.example.com"))
    stage.until(lambda: stage.console.last == {("ingress", "web")})
    assert api.requests[-1].token == "token-two"
    assert "token-one" not in caplog.text and "token-two" not in caplog.text


def test_each_token_is_told_to_whoever_hides_secrets(stage):
    seen = []
    account = in_cluster(stage.api.env, stage.api.folder, seen.append)
    list(Kube(account, clock=stage.clock, resolver=Resolver(stage.clock)).pages("/api/v1/services", 10.0))
    assert seen == ["token-one"]


def test_reset_connections_are_made_anew_and_nothing_is_listed_again(stage):
    fill(stage.api, "prod")
    stage.discover()
    stage.until(lambda: len(stage.console.taken) == 1 and len({a.resource for a in stage.api.requests if a.watch}) == 3)
    stage.api.cut_connections()
    stage.api.put("ingresses", kubeapi.ingress("prod", "late", "late.example.com"))
    assert stage.until(lambda: ("ingress", "late") in stage.console.last) < 3.0
    assert len(stage.api.lists("ingresses")) == 1


@pytest.mark.slow
def test_w24_a_list_that_is_not_answered_is_given_up_and_tried_again(stage):
    fill(stage.api, "prod")
    stage.api.rules.held.add("services")
    stage.discover(pace=replace(QUICK, answer=0.5))
    stage.until(lambda: stage.discovery.state()["unseen"] == {"services in all namespaces": "timed out"})
    assert stage.console.taken == []
    stage.api.rules.held.clear()
    stage.until(lambda: stage.console.taken)
    assert len(stage.console.taken[0]) == 3


def test_a_kind_that_fails_is_tried_again_and_nothing_partial_is_sent(stage):
    fill(stage.api, "prod")
    stage.api.rules.broken["ingresses"] = 500
    stage.discover()
    stage.until(lambda: stage.discovery.state()["unseen"])
    assert stage.discovery.state()["unseen"] == {
        "ingresses in all namespaces": "status 500: etcdserver: request timed out"
    }
    assert stage.console.taken == []
    stage.api.rules.broken.clear()
    stage.until(lambda: stage.console.taken)
    assert len(stage.console.taken[0]) == 3


def test_what_is_known_stays_while_the_api_server_fails(stage):
    fill(stage.api, "prod")
    stage.discover()
    stage.until(lambda: stage.console.taken)
    stage.api.rules.broken.update(ingresses=503, services=503, httproutes=503)
    stage.api.cut_connections()
    stage.until(lambda: len(stage.discovery.state()["unseen"]) == 3)
    assert len(stage.console.taken) == 1


def test_an_api_server_that_is_away_is_named_and_nothing_is_sent(stage):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    account = replace(in_cluster(stage.api.env, stage.api.folder), port=port)
    client = Kube(account, clock=stage.clock, resolver=Resolver(stage.clock))
    stage.discovery = Discovery(client, (), stage.console.send, clock=stage.clock, pace=QUICK)
    stage.until(lambda: len(stage.discovery.state()["unseen"]) == 3)
    assert set(stage.discovery.state()["unseen"].values()) == {"connection refused"}
    assert stage.console.taken == []


def test_another_authority_is_not_trusted(stage, tmp_path):
    with kubeapi.kube_api(tmp_path / "other"):
        shutil.copy(tmp_path / "other" / "ca.crt", stage.api.folder / "ca.crt")
    stage.discover()
    stage.until(lambda: len(stage.discovery.state()["unseen"]) == 3)
    assert all("certificate not verified" in text for text in stage.discovery.state()["unseen"].values())
    assert stage.api.requests == []


def test_no_proxy_is_used(stage, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    stage.discover()
    stage.until(lambda: stage.console.taken)


def test_no_thread_and_no_socket_is_left(stage):
    before = threading.active_count()
    stage.discover("left", "right")
    stage.until(lambda: stage.console.taken)
    served = [t for t in threading.enumerate() if "process_request_thread" in t.name]
    assert threading.active_count() - len(served) <= before
    connections = [feed.connection for feed in stage.discovery.feeds]
    stage.discovery.close()
    assert len(connections) == 6 and {connection.fileno() for connection in connections} == {-1}


@pytest.mark.parametrize(
    ("env", "files", "words"),
    [
        ({}, ("token", "ca.crt"), "not in a cluster"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "x"}, (), "not in a cluster"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}, ("ca.crt",), "no file token"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}, ("token",), "no file ca.crt"),
    ],
)
def test_outside_a_cluster_there_is_no_discovery_and_a_line_says_why(tmp_path, caplog, env, files, words):
    for name in files:
        (tmp_path / name).write_text("x")
    clock = Clock()
    assert discovery(env, (), lambda items: True, clock=clock, resolver=Resolver(clock), folder=tmp_path) is None
    assert words in caplog.text


def test_a_pod_discovers(api):
    clock, taken = Clock(), []
    found = discovery(
        api.env, (), lambda items: not taken.append(items), clock=clock, resolver=Resolver(clock), folder=api.folder
    )
    assert found is not None
    while not taken:
        found.step()
    found.close()
    assert api.agents == {f"observer-agent/{kube.__version__}"}


@pytest.mark.parametrize("content", ["", "two words", "line\nbreak: x"])
def test_a_file_without_a_token_is_named_and_not_shown(stage, content):
    (stage.api.folder / "token").write_text(content)
    client = Kube(in_cluster(stage.api.env, stage.api.folder), clock=stage.clock, resolver=Resolver(stage.clock))
    with pytest.raises(KubeError, match=r"^the token file holds no token$"):
        client.get("/api/v1/services", {}, 5.0)


def test_one_answer_is_waited_for_no_longer_than_asked(stage):
    stage.api.rules.held.add("services")
    client = Kube(in_cluster(stage.api.env, stage.api.folder), clock=stage.clock, resolver=Resolver(stage.clock))
    begin = time.monotonic()
    with pytest.raises(KubeError, match="timed out"):
        client.get("/api/v1/services", {}, 0.3)
    assert time.monotonic() - begin < 5.0


@pytest.mark.slow
def test_pages_that_are_too_large_are_asked_for_smaller(stage):
    for number in range(40):
        thing = kubeapi.ingress("prod", f"web{number:02}", f"h{number:02}.example.com")
        thing["metadata"]["annotations"] = {"large": "x" * (1 << 20)}
        stage.api.put("ingresses", thing)
    stage.discover()
    stage.until(lambda: stage.console.taken, 60)
    assert len(stage.console.taken[0]) == 40
    assert {asked.query["limit"] for asked in stage.api.lists("ingresses")} == {"500", "125", "31"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is the referee of the API server of these tests")
def test_kubectl_understands_the_api_server_of_these_tests(api, tmp_path):
    for number in range(5):
        api.put("ingresses", kubeapi.ingress("prod", f"web{number}", "a.example.com"))
    cluster = {"server": f"https://127.0.0.1:{api.port}", "certificate-authority": str(api.folder / "ca.crt")}
    settings = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "c", "cluster": cluster}], "users": [{"name": "u", "user": {"token": "token-one"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    (tmp_path / "config").write_text(json.dumps(settings))
    call = ["kubectl", "--kubeconfig", str(tmp_path / "config"), "--cache-dir", str(tmp_path / "cache")]

    def ask(*words):
        return subprocess.run([*call, *words], capture_output=True, text=True, timeout=60)

    listed = ask("get", "ingresses", "-A", "--chunk-size=2", "-o", "name").stdout.split()
    assert listed == [f"ingress.networking.k8s.io/web{number}" for number in range(5)]
    assert sum("continue" in asked.query for asked in api.lists("ingresses")) == 2
    api.rules.denied.add(("*", "services", "*"))
    refused = ask("get", "services", "-n", "prod").stderr
    assert "Error from server (Forbidden)" in refused and 'in the namespace "prod"' in refused


@dataclass(frozen=True)
class Settings:
    """What the dialect is made of."""

    url: str
    token: str = "lh_goldenTokenGoldenTokenGoldenTokenGolden01"
    wire: str = "current"
    instance_id: str = "3d9c5b3a-6f1e-4a53-9a80-5d5f6c7b8a90"
    verify: bool = True


def connected(url, clock):
    """A connection of the real dialect."""
    begun = "2026-05-09T15:58:00.000Z"
    return DIALECTS["lighthouse"](Settings(url), begun, "1.10.0", clock=clock, redact=Redactor()).connect()


def fill(api, namespace):
    api.put("ingresses", kubeapi.ingress(namespace, "web", "app.example.com"))
    api.put("services", kubeapi.service(namespace, "db", ("", 5432, "TCP")))
    api.put("httproutes", kubeapi.httproute(namespace, "api", "api.example.com", "/"))


def another(denied):
    if denied == "ingresses":
        return kubeapi.service("prod", "another", ("", 1, "TCP"))
    return kubeapi.ingress("prod", "another", "another.example.com")
