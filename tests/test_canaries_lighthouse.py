"""Secrets in checks, tokens, targets and a cluster around a real agent of the second dialect: none leaves or is logged.

Every type of check, succeeding and failing in each of its ways, in both forms of the wire, on a machine with host
metrics and in a pod with discovery; a console that answers with hostile errors; checks that change and go away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from observer_agent.demo.stage import free_port
from tests import kubeapi
from tests.canaries import AWKWARD, Allowed, Canaries, Captured, Stay, echoing, hostile, saying, tee
from tests.console import Console
from tests.servers import Authority, Server, answer, self_signed, tarpit
from tests.udp import UdpServer, answering

LOCAL = ("evidence", "page", "why ", "status ", "bundle state.json")
ALLOWED = (
    Allowed("dns answer", LOCAL, "DNS answers are detail of a look and evidence: local alone"),
    Allowed("certificate", LOCAL, "a server's certificate is public; detail and evidence: local alone"),
    Allowed("last body", LOCAL, "the first 512 bytes of a target's answer are evidence: local alone"),
    Allowed(
        "said",
        (*LOCAL, "wire", "log", "record", "queue", "sent "),
        "a keyword's first 60 characters, expected DNS values, names of headers and an unknown type are in messages",
    ),
    Allowed("", ("stored",), "what was received is kept for the next start, for this user alone (mode 0600)"),
)


class Hostile(Console):
    """Answers the first requests of each endpoint with errors that say everything that was sent, headers too."""

    STATUSES = {  # noqa: RUF012
        "register": [500, 403, 302],
        "heartbeat": [500, 401, 404],
        "events": [503, 413, 400, 500],
        "discoveries": [500, 403],
        "host-metrics": [500, 413],
        "shutdown": [500],
    }

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.secrets: list[str] = []

    def _answer(self, endpoint: str, headers: dict, body: dict) -> tuple[int, object, dict]:
        number = self.asked[endpoint]
        self.asked[endpoint] += 1
        if number >= len(self.STATUSES[endpoint]):
            return super()._answer(endpoint, headers, body)
        known = self.secrets if self.bodies("register") else []  # an agent cannot know what it was never given
        turn = self.asked.total()
        first = known[turn % len(known) :] if known and turn % 2 else [str(headers)]
        said = {"error": f"{' '.join(first)} {headers} {body}"[:4000], "headers": headers, "secrets": known}
        extra = {"X-Echo": headers["Authorization"], "Location": f"http://127.0.0.1:1/?{headers['Authorization'][7:]}"}
        return self.STATUSES[endpoint][number], said, extra


class Checks:
    """Makes checks of every type, with secrets wherever one can be; `told` are the servers that are told some."""

    def __init__(self, canaries: Canaries, stack: ExitStack, folder: Path) -> None:
        self.plant, self.canaries = canaries.plant, canaries
        self._stack, self._folder = stack, folder
        self.made: list[dict] = []
        self.told: list[Server] = []
        self.wanted: dict[str, str] = {}
        for make in (
            self.http,
            self.assertions,
            self.https,
            self.trouble,
            self.sockets,
            self.ssl,
            self.dns,
            self.broken,
        ):
            make()

    def add(self, name: str, state: str, kind: str, url: str, **more: object) -> None:
        common = {"id": name, "name": name, "interval_seconds": 5, "timeout_seconds": 2}
        self.made.append({**common, "type": kind, "url": url, **more})
        self.wanted[name] = state

    def serve(self, handler: object, **more: object) -> Server:
        self.told.append(self._stack.enter_context(Server(handler, **more)))
        return self.told[-1]

    def udp_server(self, reply: object) -> UdpServer:
        return self._stack.enter_context(UdpServer(reply))

    def full(self, name: str, port: int) -> dict:
        """A check's fields with secrets in each of them."""
        plant = self.plant
        user = f"{plant(f'{name} user')}:{plant(f'{name} password', tail='%22%5C%2F+')}"
        headers = {
            # A header counts more than user and password in the URL: one check of these goes without.
            "X-Bearer" if name == "echo" else "Authorization": f"Bearer {plant(f'{name} bearer')}",
            "X-Api-Key": plant(f"{name} key", head=AWKWARD[:5], tail=AWKWARD[:7]),
            "Cookie": f"session={plant(f'{name} cookie')}; b=c",
            "X-Custom": plant(f"{name} header"),
        }
        return {
            "url": f"http://{user}@127.0.0.1:{port}/p?token={plant(f'{name} query')}&b=%20#{plant(f'{name} fragment')}",
            "method": "POST",
            "request_body": f'{{"password":"{plant(f"{name} request body", tail="é")}"}}',
            "request_headers": [{"key": k, "value": v} for k, v in headers.items()],
        }

    def secrets(self) -> list[str]:
        """Values of headers, and bodies: a console may name any of them when it complains."""
        full = [each for each in self.made if isinstance(each.get("request_headers"), list) and "request_body" in each]
        values = [header["value"] for each in full for header in each["request_headers"]]
        return [*values, *(each["request_body"] for each in full)]

    # -- HTTP

    def http(self) -> None:
        for name, state, status in (("up", "up", 200), ("down", "down", 503)):
            target = self.serve(saying(hostile(self.canaries, name, status)))
            self.add(name, state, "http", **self.full(name, target.port))
        self.add("echo", "down", "http", **self.full("echo", self.serve(echoing(500)).port))

    def assertions(self) -> None:
        plant, long = self.plant, "x" * 60
        actual = {"key": "X-Internal", "value": plant("exact expected header"), "match": "exact"}
        part = {"key": "X-Internal", "value": plant("contains expected header"), "match": "contains"}
        holds = {"key": "X-Held", "value": plant("held header"), "match": "exact"}
        for name, more in {
            "keyword": {
                "keyword_check": f"{plant('said keyword')}{long}{plant('end of a keyword')}",
                "keyword_present": True,
            },
            "unwanted": {"keyword_check": "secret", "keyword_present": False},
            "header missing": {
                "expected_headers": [{"key": plant("said header", "X-"), "value": "", "match": "present"}]
            },
            "header exact": {"expected_headers": [actual]},
            "header contains": {"expected_headers": [part]},
        }.items():
            target = self.serve(saying(hostile(self.canaries, name, 200)))
            self.add(name, "down", "http", f"{target.url}/?a={plant(f'{name} query')}", **more)
        good = answer(f"yes {plant('found keyword')}", X_Held=self.canaries.at["held header"])
        more = {
            "keyword_check": self.canaries.at["found keyword"],
            "keyword_present": True,
            "expected_headers": [holds],
        }
        self.add("assertions", "up", "http", f"{self.serve(saying(good)).url}/", **more)

    def https(self) -> None:
        context = self_signed(self._folder, f"{self.plant('certificate name')}.test")
        server = self.serve(saying(hostile(self.canaries, "tls", 200)), tls=context)
        self.add("https", "down", "https", f"{server.url}/?q={self.plant('https query')}")
        self.add("https any", "up", "https", f"{server.url}/?q={self.plant('https any query')}", skip_tls_verify=True)
        self.tls_port = server.port

    def trouble(self) -> None:
        plant = self.plant
        last = self.serve(saying(answer(plant("last body"), 418)))
        there = f"{last.url}/{plant('target path')}?x={plant('target query')}"
        for name, target in {
            "redirect": f"http://127.0.0.1:1/?x={plant('refused target query')}",
            "redirect there": there,
            "redirect user": f"http://{plant('target user')}:{plant('target password')}@127.0.0.1:{last.port}/",
            "redirect name": f"http://{plant('target host')}.invalid/",
        }.items():
            first = self.serve(saying(answer("", 302, Location=target)))
            self.add(name, "down", "http", **self.full(name, first.port))
        self.add("refused", "down", "http", f"http://127.0.0.1:{free_port()}/?x={plant('refused query')}")
        self.add("silent", "down", "http", **self.full("silent", self.serve(tarpit).port))
        odd = f"{plant('odd status line')} nonsense\r\n\r\n".encode()
        self.add("odd", "down", "http", **self.full("odd", self.serve(saying(odd)).port))
        self.add("no name", "down", "http", f"http://name.invalid/{plant('no name path')}?x={plant('no name query')}")

    # -- the others

    def sockets(self) -> None:
        plant = self.plant
        for kind, serve in (("tcp", self._tcp_port), ("udp", self._udp_port)):
            said = {"request_body": plant(f"{kind} payload"), "keyword_present": True}
            self.add(f"{kind} up", "up", kind, f"127.0.0.1:{serve(plant(f'{kind} greeting'))}")
            word = plant(f"{kind} word")
            self.add(f"{kind} word", "up", kind, f"127.0.0.1:{serve(word)}", keyword_check=word, request_body="x",
                     keyword_present=True)  # fmt: skip
            self.add(f"{kind} other", "down", kind, f"127.0.0.1:{serve(plant(f'{kind} answer'))}", **said,
                     keyword_check=plant(f"{kind} expected"))  # fmt: skip
            user = f"{plant(f'{kind} user')}:{plant(f'{kind} password')}"
            url = f"{kind}://{user}@127.0.0.1:{free_port()}/{plant(f'{kind} path')}"
            self.add(f"{kind} refused", "down", kind, url, request_body=plant(f"refused {kind} payload"))

    def _tcp_port(self, text: str) -> int:
        return self.serve(lambda conn, server: conn.sendall(text.encode())).port

    def _udp_port(self, text: str) -> int:
        return self.udp_server(lambda data: [text.encode()]).port

    def ssl(self) -> None:
        ended = self.serve(saying(answer("")), tls=Authority().expired())
        plain = self._tcp_port(self.plant("no TLS greeting") * 10)
        self.add(
            "ssl", "up", "ssl", f"https://127.0.0.1:{self.tls_port}/{self.plant('ssl path')}?{self.plant('ssl query')}"
        )
        self.add("ssl ended", "down", "ssl", f"127.0.0.1:{ended.port}")
        self.add("ssl plain", "down", "ssl", f"127.0.0.1:{plain}")
        self.add("ssl refused", "down", "ssl", f"127.0.0.1:{free_port()}")

    def dns(self) -> None:
        plant = self.plant
        for name, state, reply, more in (
            ("dns up", "up", answering(f'{{}} 60 IN TXT "{plant("dns answer up")}"'), {}),
            (
                "dns down",
                "down",
                answering(f'{{}} 60 IN TXT "{plant("dns answer down")}"'),
                {"dns_expected_ips": ["other"]},
            ),
            ("dns cname", "down", answering(f"{{}} 60 IN CNAME {plant('dns answer cname')}.example."), {}),
            ("dns nx", "down", answering(code="NXDOMAIN"), {"dns_expected_ips": [plant("said expected record")]}),
            ("dns refused", "down", answering(f'{{}} 60 IN TXT "{plant("dns answer refused")}"', code="REFUSED"), {}),
        ):
            resolver = self.udp_server(reply).at
            self.add(name, state, "dns", f"https://name.example/{plant(f'{name} path')}", dns_record_type="TXT",
                     dns_resolver=resolver, **more)  # fmt: skip
        self.add("dns nobody", "down", "dns", "name.example", dns_resolver=f"{plant('resolver name')}.invalid")

    def broken(self) -> None:
        plant = self.plant
        bad = {"key": "X-Bad", "value": f"{plant('bad header')}\r\nX: y"}
        match = {"key": "X-A", "value": plant("value of a strange match"), "match": plant("strange match")}
        for name, kind, url, more in (
            ("unknown", plant("said unknown type"), f"gopher://x/{plant('unknown type url')}", {}),
            ("bad url", "http", f"http://[{plant('bad url')}/", {}),
            ("bad scheme", "http", f"ftp://u:{plant('bad scheme password')}@x/?a={plant('bad scheme query')}", {}),
            ("bad tcp", "tcp", f"127.0.0.1:{plant('bad port')}", {}),
            ("bad ssl", "ssl", f"https://u:{plant('bad ssl password')}@", {}),
            ("bad dns", "dns", "", {"dns_record_type": plant("bad record type")}),
            ("bad header", "http", "http://127.0.0.1/", {"request_headers": [bad]}),
            ("bad match", "http", "http://127.0.0.1/", {"expected_headers": [match]}),
            ("bad method", "http", "http://127.0.0.1/", {"method": plant("bad method")}),
            ("bad body", "http", "http://127.0.0.1:1/", {"request_body": {"x": plant("bad body")}}),
            ("bad headers", "http", "http://127.0.0.1:1/", {"request_headers": plant("bad headers")}),
            ("bad timeout", "http", "http://127.0.0.1:1/", {"timeout_seconds": plant("bad timeout")}),
        ):
            self.add(name, "down", kind, url, **more)


def changed(checks: Checks) -> list[dict]:
    """The list again: the first check with other secrets, the echoing one gone, a new one."""
    up = next(each for each in checks.made if each["id"] == "up")
    target = checks.serve(saying(hostile(checks.canaries, "changed", 503)))
    again = {**up, **checks.full("changed", target.port)}
    fresh = {**up, **checks.full("fresh", checks.serve(echoing(200)).port), "id": "fresh", "name": "fresh"}
    return [again, *[each for each in checks.made if each["id"] not in ("up", "echo")], fresh]


def cluster(canaries: Canaries, api: kubeapi.KubeApi) -> None:
    """Objects with secrets in all that is not asked for."""
    token = canaries.plant("own service account token")
    (api.folder / "token").write_text(token)
    api.rules.tokens = {token}
    api.rules.denied = {("list", "httproutes", "*"), ("list", "httproutes", "")}
    for resource, thing in (
        ("ingresses", kubeapi.ingress("prod", "web", "app.example.com", tls=("app.example.com",))),
        ("services", kubeapi.service("prod", "db", ("pg", 5432, "TCP"))),
        ("httproutes", kubeapi.httproute("prod", "route", "route.example.com", "/")),
    ):
        meta, spec = thing["metadata"], thing["spec"]
        meta["annotations"] = {"auth-secret": canaries.plant(f"{resource} annotation")}
        meta["labels"] = {"token": canaries.plant(f"{resource} label")}
        meta["uid"] = canaries.plant(f"{resource} uid")
        spec["externalName"] = canaries.plant(f"{resource} external name")
        spec["rules" if resource == "nothing" else "secretName"] = canaries.plant(f"{resource} secret name")
        thing["status"] = {"loadBalancer": {"ingress": [{"hostname": canaries.plant(f"{resource} status")}]}}
        api.put(resource, thing)


def pod(api: kubeapi.KubeApi) -> tuple[str, ...]:
    """The words before a command that runs it with the service account of a pod where a pod has it."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs a mount namespace of its own")
    made = 'mount -t tmpfs tmpfs /run && mkdir -p "$1" && mount --bind "$0" "$1" && shift && exec "$@"'
    words = ("unshare", "-m", "sh", "-c", made, str(api.folder), "/run/secrets/kubernetes.io/serviceaccount")
    done = subprocess.run([*words, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounts are not allowed here: {done.stderr.strip()}")
    return words


@pytest.mark.slow
@pytest.mark.parametrize(("wire_form", "place"), [("current", "machine"), ("current", "pod"), ("seed", "pod")])
def test_none_of_them_leaves_an_agent_of_the_second_dialect(tmp_path, wire_form, place):
    canaries, wire, console = Canaries(), [], Hostile()
    folder = tmp_path / "data"
    folder.mkdir()
    key = canaries.plant("token", "lh_")
    (tmp_path / "token").write_text(f"{key}\n")
    del canaries.at["token"]  # it has a place of its own on the wire: Captured looks for it
    with ExitStack() as stack:
        stack.callback(console.close)
        checks = Checks(canaries, stack, tmp_path)
        console.checks = checks.made
        console.more = {"host_metrics": {"enabled": True, "interval_seconds": 5}}
        console.secrets = checks.secrets()
        front = stack.enter_context(Server(tee(console.server_port, wire)))
        settings = settings_of(canaries, tmp_path, front.url, wire_form)
        before: tuple[str, ...] = ()
        if place == "pod":
            api = stack.enter_context(kubeapi.kube_api(tmp_path / "account"))
            cluster(canaries, api)
            settings |= {**api.env, "LIGHTHOUSE_DISCOVERY_ENABLED": "true"}
            before = pod(api)
        stay = Stay(folder, settings, before)
        stay.run(lambda: through(console, checks, place, wire_form), lambda: [each["id"] for each in checks.made[:3]])
    told = canaries.found_in(b"".join(request for target in checks.told for request in target.requests))
    parts = ("query", "bearer", "key", "cookie", "header", "request body")
    used = {f"{where} {part}" for where in ("up", "down", "echo", "fresh") for part in parts}
    assert used | {"echo user", "echo password"} <= set(told), "they were used"
    assert len(canaries.at) >= 150
    assert console.asked["shutdown"] == 1
    Captured(folder, wire, key).check(canaries, ALLOWED)


def settings_of(canaries: Canaries, folder: Path, url: str, wire_form: str) -> dict[str, str]:
    """The environment of the agent."""
    plant = canaries.plant
    return {
        "CLOUD_DIALECT": "lighthouse",
        "LIGHTHOUSE_TOKEN_FILE": str(folder / "token"),
        "LIGHTHOUSE_URL": url,
        "LIGHTHOUSE_WIRE": wire_form,
        "LIGHTHOUSE_DATA_DIR": str(folder / "data"),
        "LIGHTHOUSE_HOST_METRICS": "true",
        "ENABLE_DEBUG_DASHBOARD": "true",
        "DEBUG_DASHBOARD_TOKEN": plant("own page token"),
        "CANARY": plant("own environment"),
        "PROMETHEUS_PASSWORD": plant("own password in the environment"),
        "PROBE_SECRET": plant("own a reference in the environment"),
        "HTTPS_PROXY": f"http://{plant('own proxy user')}:{plant('own proxy password')}@127.0.0.1:1",
        "LOG_FORMAT": "text",
    }


def through(console: Hostile, checks: Checks, place: str, wire_form: str) -> None:
    """The course of a run: hostile errors, the first states, changed checks, a resync, and what the place adds."""

    def states() -> dict[str, str]:
        return {row["check_id"]: {"ok": "up"}.get(row["new_state"], row["new_state"]) for row in console.events()}

    console.until(lambda: len(console.bodies("register")) == 1, 60)
    console.until(lambda: set(states()) >= set(checks.wanted), 120)
    assert states() == checks.wanted
    console.checks = changed(checks)
    with console.changed:
        console.etag = "etag-2"
        console.once = {"checks": console.checks, "request_full_resync": True}
    console.until(lambda: states().get("fresh") == "up" and states()["up"] == "down", 60)
    console.until(lambda: console.asked["heartbeat"] > len(Hostile.STATUSES["heartbeat"]), 60)
    if place == "pod":
        console.until(lambda: console.bodies("discoveries"), 60)
        key = "items" if wire_form == "current" else "discoveries"
        assert {each["resource_name"] for each in console.bodies("discoveries")[-1][key]} >= {"web", "db"}
    elif wire_form == "current":
        console.until(lambda: console.bodies("host-metrics"), 60)
