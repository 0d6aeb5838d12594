"""Secrets in definitions, settings, targets, pings and pushes around a real agent of the first dialect: none leaves, is
logged or kept.

Every source type that takes a secret, succeeding and failing, against servers of the tests that speak its protocol; a
cloud that answers with hostile errors; log lines broadcast at the lowest level.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import textwrap
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

import pytest

from observer_agent.clock import Clock
from observer_agent.demo.stage import free_port
from tests import aws, mongo
from tests.canaries import AWKWARD, Allowed, Canaries, Captured, Stay, echoing, hostile, saying, tee
from tests.cloud import LocalCloud
from tests.databases import SECRET as REDIS_PASSWORD
from tests.databases import redis_running
from tests.mongo import Mongo
from tests.mysqlfake import MySql, error, table
from tests.servers import Authority, Server, answer, read_request
from tests.test_probes_grpc import health, status
from tests.test_probes_websocket import TEXT, frame, opens
from tests.udp import UdpServer, answering

LOCAL = ("evidence", "page", "why ", "status ", "bundle state.json")
LEAVES = ("wire", "log", "record", "sent ")
ALLOWED = (
    Allowed("dns answer", LOCAL, "DNS answers are detail of a look and evidence: local alone"),
    Allowed("certificate", LOCAL, "a server's certificate is public; detail and evidence: local alone"),
    Allowed("last body", LOCAL, "the first 512 bytes of a target's answer are evidence: local alone"),
    Allowed("said by grpc", LOCAL, "the words of a gRPC server are detail: local alone, at most 200 characters"),
    Allowed("custom metadata", LOCAL, "what a custom probe gives as metadata and log is detail: local alone"),
    Allowed("ping body", (*LEAVES, *LOCAL), "a ping's body is what the job wants the cloud to have"),
    Allowed("prometheus tenant", ("check --json",), "a setting that is no credential, shown to whoever may read it"),
    Allowed(
        "ping token", ("wire",), "the cloud must know which job it was; nothing else may show more than 4 characters"
    ),
    Allowed("", ("stored",), "what was received is kept for the next start, for this user alone (mode 0600)"),
)
POSTGRES_ERROR = b"SERROR\0VERROR\0C28P01\0M%s\0\0"
PROBE = """
from observer_agent.probes.custom import CustomProbe


def run(look):
    secret = look.secret("PROBE_CUSTOM")
    look.log(f"the secret is {secret}, and {look.config['plain']}")
    if look.config.get("raise"):
        raise ValueError(f"{secret} does not fit")
    return {"value": 1, "metadata": {"echo": secret, "kept": look.config["plain"]}}


PROBES = [CustomProbe(name="mine", run=run, description="mine")]
"""


class Hostile(LocalCloud):
    """Answers the first requests to each path with errors that say everything that was sent, the key too."""

    # 400 is left out: a batch that is refused is taken apart and its rows are set aside, which is another test's.
    STATUSES: ClassVar = {"metrics-definitions": [500], "heartbeat": [403], "batch": [500, 503, 403, 302]}

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def finish_request(self, request, client_address):
        line = request.recv(65_536, socket.MSG_PEEK).split(b"\r\n")[0]
        name = line.split(b" ")[1].decode().rpartition("/")[2] if b" " in line else ""
        number, statuses = self.asked[name], self.STATUSES.get(name, [500])
        self.asked[name] += 1
        if number >= len(statuses):
            super().finish_request(request, client_address)
            return
        said = read_request(request)
        one = b" ".join(said.split())[:3000].decode("latin-1")
        request.sendall(answer(said, statuses[number], X_Echo=one, Location=f"/?{one[:200]}", Connection="close"))

    def handle_error(self, request, client_address):
        """A client may go away in the middle."""


class Definitions:
    """Makes definitions of every source type; `env` holds the secrets that they refer to."""

    def __init__(self, canaries: Canaries, stack: ExitStack, folder: Path) -> None:
        self.plant, self.canaries = canaries.plant, canaries
        self.stack, self.folder = stack, folder
        self.made: list[dict] = []
        self.told: list[Server] = []
        self.env: dict[str, str] = {}
        for make in (
            self.http, self.http_trouble, self.certificates, self.prometheus, self.queries, self.websocket, self.grpc,
            self.databases, self.documents, self.cloudwatch, self.others, self.broken,
        ):  # fmt: skip
            make()

    def add(self, source_type: str, config: dict, name: str = "") -> None:
        rules = {
            "healthy_operation": "under",
            "healthy_value": 5000,
            "unhealthy_operation": "over",
            "unhealthy_value": 9000,
        }
        common = {
            "id": f"m{len(self.made)}",
            "title": name or source_type,
            "interval": 1 / 60,
            "interval_agent_push": 1,
        }
        self.made.append({**common, **rules, "source_type": source_type, "source_config": config})

    def secret(self, place: str, make: Callable[[str], str] = str, **more: str) -> str:
        """The name of an environment variable that holds a new secret."""
        name = f"PROBE_{len(self.env)}"
        self.env[name] = make(self.plant(f"own {place}", **more))
        return name

    def serve(self, handler: object, **more: object) -> Server:
        self.told.append(self.stack.enter_context(Server(handler, **more)))
        return self.told[-1]

    # -- HTTP

    def http(self) -> None:
        for where, handler in (
            ("up", saying(hostile(self.canaries, "up", 200))),
            ("down", saying(hostile(self.canaries, "down", 500))),
            ("echo", echoing(500)),
            ("mismatch", echoing(200)),
        ):
            target = self.serve(handler)
            config = {
                "url": f"{target.url}/p?token={self.plant(f'{where} query')}&a=%20#{self.plant(f'{where} fragment')}",
                "headers": {"X-Trace": self.plant(f"{where} trace")},
                "header_refs": {
                    "Authorization": self.secret(f"{where} authorization", head="Bearer "),
                    "X-Api-Key": self.secret(f"{where} key", tail=AWKWARD[:7]),
                },
            }
            more = {"json_path": "$.n"} if where == "up" else {}
            if where == "mismatch":
                more = {"body_match": self.plant("body match")}
            self.add("http", {**config, **more}, where)

    def http_trouble(self) -> None:
        last = self.serve(saying(answer(self.plant("last body"), 418)))
        for name, target in (
            ("there", f"{last.url}/{self.plant('target path')}?x={self.plant('target query')}"),
            ("refused", f"http://127.0.0.1:1/?x={self.plant('refused target query')}"),
            ("nowhere", f"http://{self.plant('target host')}.invalid/"),
        ):
            first = self.serve(saying(answer("", 302, Location=target)))
            refs = {"X-Token": self.secret(f"{name} redirected header")}
            self.add("http", {"url": first.url, "header_refs": refs}, name)
        self.add("http", {"url": f"http://127.0.0.1:{free_port()}/?x={self.plant('refused query')}"})
        odd = f"{self.plant('odd status line')} nonsense\r\n\r\n".encode()
        self.add("http", {"url": f"{self.serve(saying(odd)).url}/?a={self.plant('odd query')}"})

    def certificates(self) -> None:
        ours, theirs = Authority(), Authority()
        cert, key = ours.issue(f"{self.plant('certificate of the client')}.test")
        self.canaries.at["private key"] = key.splitlines()[2]
        names = {"client_cert_ref": "PROBE_CERT", "client_key_ref": "PROBE_KEY", "ca_cert_ref": "PROBE_CA"}
        self.env |= {"PROBE_CERT": cert, "PROBE_KEY": key, "PROBE_CA": ours.pem, "PROBE_CA_2": theirs.pem}
        server = self.serve(saying(hostile(self.canaries, "mtls", 200)), tls=ours.server(require_client=True))
        refs = {"X-Key": self.secret("mtls header")}
        for source_type in ("mtls_http", "http"):
            url = f"{server.url}/?a={self.plant(f'{source_type} mtls query')}"
            self.add(source_type, {"url": url, **names, "header_refs": refs})
            self.add(source_type, {"url": url, **names, "ca_cert_ref": "PROBE_CA_2", "header_refs": refs})
        self.env["PROBE_NO_KEY"] = (
            f"-----BEGIN PRIVATE KEY-----\n{self.plant('broken key')}\n-----END PRIVATE KEY-----\n"
        )
        self.add("mtls_http", {"url": server.url, **names, "client_key_ref": "PROBE_NO_KEY"})
        self.env["PROBE_FILE"] = str(self.folder / self.plant("name of a file"))
        self.add("mtls_http", {"url": server.url, **names, "client_key_ref": "PROBE_FILE"})

    # -- queries over HTTP

    def prometheus(self) -> None:
        good = '{"status":"success","data":{"resultType":"vector","result":[{"metric":{"a":"%s"},"value":[1,"5"]}]}}'
        own = self.serve(saying(answer(good % self.plant("label of a series"))))
        self.env |= {
            "PROMETHEUS_SERVER_URL": own.url,  # it alone gets the agent's own credentials
            "PROMETHEUS_PASSWORD": self.plant("own prometheus password", tail="/+%&"),
            "PROMETHEUS_HEADERS": json.dumps({"X-Extra": self.plant("own prometheus header")}),
            "PROMETHEUS_TENANT_ID": self.plant("prometheus tenant"),
        }
        self.add("prometheus", {"query": f'up{{a="{self.plant("good query")}"}}'}, "prometheus")
        for name, handler in (("echo", echoing(422)), ("denied", saying(hostile(self.canaries, "prometheus", 403)))):
            query = f'up{{a="{self.plant(f"{name} prometheus query")}"}}'
            self.add("prometheus", {"query": query, "prometheus_url": self.serve(handler).url})
        scraped = f'a_metric{{token="{self.plant("scraped label")}"}} 3\n# HELP a_metric {self.plant("scraped help")}\n'
        self.add("prometheus", {"scrape_url": self.serve(saying(answer(scraped))).url, "metric": "a_metric"})
        user = f"{self.plant('user in a URL')}:{self.plant('password in a URL')}"
        self.add(
            "prometheus", {"query": "up", "prometheus_url": f"http://{user}@127.0.0.1:1/?a={self.plant('URL query')}"}
        )

    def queries(self) -> None:
        handlers = {"echo": echoing(400), "denied": saying(hostile(self.canaries, "denied", 401)), "junk": echoing(200)}
        for name, handler in handlers.items():
            url = self.serve(handler).url
            query = f'sum(count_over_time({{a="{self.plant(f"{name} loki query")}"}}[5m]))'
            tenant = {"tenant_id": self.plant(f"{name} tenant")}
            bearer = {"auth_mode": "bearer", "token_ref": self.secret(f"{name} loki token")}
            user = {"auth_mode": "basic", "username": self.plant(f"{name} user")}
            basic = {**user, "password_ref": self.secret(f"{name} password", tail=AWKWARD[:7])}
            api_key = {"auth_mode": "api_key", "api_key_ref": self.secret(f"{name} api key", encoded)}
            self.add("loki", {"base_url": url, "query": query, **tenant, **bearer})
            self.add("loki", {"base_url": url, "query": query, **basic})
            search = {"query": {"term": {"card": self.plant(f"{name} search")}}, "aggs": {"a": {"avg": {"field": "f"}}}}
            for auth in (bearer, basic, api_key):
                self.add("elasticsearch", {"base_url": url, "index": "i", "query": search, "agg_name": "a", **auth})

    # -- other protocols

    def websocket(self) -> None:
        greeting = frame(TEXT, self.plant("websocket greeting").encode())
        refused = saying(hostile(self.canaries, "websocket", 403))
        for name, handler in (("good", opens(greeting=greeting)), ("shut", opens()), ("open", refused)):
            url = self.serve(handler).url.replace("http", "ws")
            config = {
                "url": f"{url}/?token={self.plant(f'{name} websocket query')}",
                "header_refs": {"Authorization": self.secret(f"{name} websocket header")},
                "ping_mode": "message",
                "send_message": self.plant(f"{name} message"),
                "interpretation": "round_trip_latency",
                "timeout_ms": 700,
            }
            expected = (
                self.canaries.at["websocket greeting"] if name == "good" else self.plant(f"{name} expected message")
            )
            self.add("websocket", {**config, "expect_message": expected}, f"websocket {name}")

    def grpc(self) -> None:
        said = (("grpc-status", "16"), ("grpc-message", self.plant("said by grpc")))
        for name, handler in (("good", health(status(1))), ("denied", health(None, said)), ("none", saying(b"no"))):
            server = self.serve(handler)
            refs = {
                "authorization": self.secret(f"{name} grpc token", head="Bearer "),
                "x-key": self.secret(f"{name} grpc key"),
            }
            config = {"host": "127.0.0.1", "port": server.port, "metadata_refs": refs, "timeout_ms": 2000}
            if name == "denied":
                server_words = {"metadata": {"x-trace": self.plant("grpc metadata")}}
                config |= server_words
            self.add("grpc", config)

    def databases(self) -> None:
        redis = self.stack.enter_context(redis_running())
        self.canaries.at["redis password"] = REDIS_PASSWORD
        self.canaries.at["mongo password"] = mongo.SECRET
        secret = self.plant("words of a server").encode()
        refuse = lambda conn, server: self._refuse(conn, secret)  # noqa: E731
        sql = MySql(answer=lambda statement: table([b"42"]))
        bad = MySql(answer=lambda statement: error(1064, f"near {statement} {secret.decode()}"))
        store = f"127.0.0.1:{self.serve(Mongo({'orders': [{'a': 1}]})).port}/shop"
        find = {"db": "shop", "collection": "orders", "op": "countDocuments"}
        for kind, dsn, query in (
            ("redis", redis.dsn(), "DBSIZE"),
            ("redis", redis.dsn(f":{self.plant('wrong redis password')}@"), "DBSIZE"),
            ("redis", redis.dsn(), f"GET {self.plant('redis key')}"),
            ("mysql", self._dsn("mysql", self.serve(sql).port, "good mysql"), self._select("good mysql")),
            ("mysql", self._dsn("mysql", self.serve(bad).port, "bad mysql"), self._select("bad mysql")),
            ("postgres", self._dsn("postgres", self.serve(refuse).port, "postgres"), self._select("postgres")),
            ("postgres", f"postgres://u:{self.plant('DSN password')}@h1,h2/{self.plant('DSN database')}", "SELECT 1"),
            ("postgres", self._dsn("postgres", free_port(), "nobody"), f"DELETE FROM {self.plant('refused SQL')}"),
            ("mongodb", f"mongodb://{mongo.USER}:{mongo.SECRET}@{store}", json.dumps(find)),
            ("mongodb", f"mongodb://{mongo.USER}:{self.plant('wrong mongo password')}@{store}",
             json.dumps({**find, "filter": {"card": self.plant("mongo filter")}})),
        ):  # fmt: skip
            name = f"PROBE_DSN_{len(self.made)}"
            self.env[name] = dsn
            self.add(
                "database", {"kind": kind, "connection_string_ref": name, "query": query}, f"{kind} {len(self.made)}"
            )

    def _dsn(self, kind: str, port: int, name: str) -> str:
        user = f"{self.plant(f'own {name} user')}:{self.plant(f'own {name} password', tail='%2F%22%25')}"
        return f"{kind}://{user}@127.0.0.1:{port}/{self.plant(f'{name} database')}"

    def _select(self, name: str) -> str:
        return f"SELECT count(*) FROM orders WHERE card = '{self.plant(f'{name} query')}'"

    def _refuse(self, conn: object, secret: bytes) -> None:
        """A PostgreSQL without TLS that refuses everybody, with many words."""
        for _ in range(2):
            start = conn.recv(65_536)
            if start[4:8] == b"\x04\xd2\x16\x2f":
                conn.sendall(b"N")
                continue
            body = POSTGRES_ERROR % (secret + b" " + start.replace(b"\0", b" "))
            conn.sendall(b"E" + (len(body) + 4).to_bytes(4, "big") + body)

    def documents(self) -> None:
        """Custom probes and OTLP."""
        folder = self.folder / "probes.d"
        folder.mkdir(mode=0o755)
        (folder / "mine.py").write_text(textwrap.dedent(PROBE))
        (folder / "mine.py").chmod(0o644)
        self.env |= {"PROBE_CUSTOM_DIR": str(folder), "PROBE_CUSTOM": self.plant("own custom secret")}
        plain = {"plain": self.plant("custom metadata")}
        self.add("custom", {"probe_name": "mine", "probe_config": plain}, "custom")
        self.add("custom", {"probe_name": "mine", "probe_config": {**plain, "raise": True}}, "custom that raises")
        self.env["OBSERVER_OTLP_BEARER_TOKEN"] = self.plant("own otlp token")
        self.add("otlp", {"metric_name": "pushed", "attribute_filters": {"who": self.plant("otlp filter")}}, "otlp")

    def cloudwatch(self) -> None:
        secret = self.plant("own aws secret", head="wJalr/")
        point = aws.metric_data([(Clock().now() // 60 * 60 - 60, "41.5")], label=self.plant("aws label"))
        server = self.serve(
            aws.Cloud(
                {aws.ACCESS: secret},
                GetMetricData=[point],
                AssumeRole=[aws.error("AccessDenied", 403, f"{self.plant('words of aws')} {secret}")],
            )
        )
        self.env |= {"AWS_ACCESS_KEY_ID": aws.ACCESS, "AWS_SECRET_ACCESS_KEY": secret, "AWS_ENDPOINT_URL": server.url}
        config = {"region": aws.REGION, "namespace": "AWS/EC2", "metric_name": "CPUUtilization", "timeout_ms": 10000}
        self.add("cloudwatch", {**config, "dimensions": {"InstanceId": self.plant("aws dimension")}}, "cloudwatch")
        role = f"arn:aws:iam::123456789012:role/{self.plant('aws role')}"
        self.add("cloudwatch", {**config, "role_arn": role, "external_id": self.plant("aws external id")})

    def others(self) -> None:
        tls = self.serve(saying(answer("")), tls=Authority().expired())
        self.add("tls_cert", {"host": "127.0.0.1", "port": tls.port})
        self.add("http", {"url": f"{tls.url}/?x={self.plant('tls query')}"})
        self.add("tcp", {"host": "127.0.0.1", "port": free_port()})
        greeting = self.plant("tcp greeting").encode()
        self.add("tcp", {"host": "127.0.0.1", "port": self.serve(lambda conn, server: conn.sendall(greeting)).port})
        for name, kind in (("value", "TXT"), ("alias", "CNAME")):
            text = (
                f'"{self.plant(f"dns answer {name}")}"'
                if kind == "TXT"
                else f"{self.plant(f'dns answer {name}')}.example."
            )
            resolver = self.stack.enter_context(UdpServer(answering(f"{{}} 60 IN {kind} {text}")))
            expected = {"expected_value": self.plant(f"expected {name}")}
            self.add("dns", {"domain": "name.example", "record_type": "TXT", "resolver": resolver.at, **expected})
        self.add("dns", {"domain": "name.example", "record_type": "A", "resolver": self.plant("bad resolver")})

    def broken(self) -> None:
        plant = self.plant
        web = {"url": "http://127.0.0.1:1/"}
        for config in (
            {"url": f"ftp://x/{plant('bad url')}"},
            {"url": f"http://u:{plant('userinfo')}@127.0.0.1:1/"},
            {**web, "headers": {"Authorization": plant("an inline credential")}},
            {**web, "method": plant("a wrong method")},
            {**web, "timeout_ms": plant("a wrong timeout")},
            {**web, "password": plant("an unknown field")},
            {**web, "header_refs": {"X": plant("bad reference")}},
            {**web, "header_refs": {"X": self.secret("secret with a line break", head="a\r\nb")}},
        ):
            self.add("http", config)
        self.add("grpc", {"host": "127.0.0.1", "port": 1, "metadata": {"authorization": plant("inline metadata")}})
        self.add(
            "database",
            {"kind": "postgres", "connection_string": f"postgres://u:{plant('inline DSN')}@h/d", "query": "x"},
        )
        self.add("nonsense", {"url": f"http://x/{plant('unknown type')}"})


def encoded(secret: str) -> str:
    """An API key as Elasticsearch gives it."""
    return base64.b64encode(f"id:{secret}".encode()).decode()


@pytest.mark.slow
def test_none_of_them_leaves_an_agent_of_the_first_dialect(tmp_path):
    canaries, wire, cloud = Canaries(), [], Hostile()
    folder = tmp_path / "data"
    folder.mkdir()
    key = "obs_live_" + "0123456789abcdef" * 2
    proxy = f"{canaries.plant('own proxy user')}:{canaries.plant('own proxy password')}"
    relay, otlp = free_port(), free_port()
    with ExitStack() as stack:
        stack.callback(cloud.close)
        definitions = Definitions(canaries, stack, tmp_path)
        cloud.definitions = definitions.made
        front = stack.enter_context(Server(tee(cloud.server_port, wire)))
        settings = {
            "AGENT_KEY": key,
            "CLOUD_SERVER_URL": front.url,
            "BUFFER_PATH": str(folder / "buffer.db"),
            "DEBUG_DASHBOARD_TOKEN": canaries.plant("own page token"),
            "BROADCAST_LOGS": "true",
            "LOG_BROADCAST_LEVEL": "DEBUG",
            "HEARTBEAT_RELAY_ENABLED": "true",
            "HEARTBEAT_RELAY_PORT": str(relay),
            "OBSERVER_OTLP_LISTEN_ADDR": f"127.0.0.1:{otlp}",
            "HTTPS_PROXY": f"http://{proxy}@127.0.0.1:1",
            "CANARY": canaries.plant("own environment"),
            "LOG_FORMAT": "text",
            "HOME": str(tmp_path),
            **definitions.env,
        }
        stay = Stay(folder, settings)
        told = [each["id"] for each in definitions.made][::8]  # the file that `why` reads is searched as a whole
        stay.run(lambda: through(cloud, canaries, relay, otlp), lambda: told)
    Captured(folder, wire, key).check(canaries, ALLOWED)
    check_that_they_were_used(canaries, definitions, cloud)


def through(cloud: Hostile, canaries: Canaries, relay: int, otlp: int) -> None:
    """The course of a run: hostile errors, pushes and pings right and wrong, until each definition has a sample."""
    cloud.until(lambda: cloud.beats, 60)
    cloud.until(lambda: {row["metric_id"] for row in cloud.rows} >= {each["id"] for each in cloud.definitions}, 150)
    good, bad = canaries.at["own otlp token"], canaries.plant("wrong otlp token")
    point = {
        "asDouble": 5,
        "timeUnixNano": str(int(Clock().now() * 1e9)),
        "attributes": attributes(canaries, "otlp filter"),
    }
    more = {"attributes": attributes(canaries, "otlp attribute")}
    body = {
        "resourceMetrics": [
            {"resource": more, "scopeMetrics": [{"metrics": [{"name": "pushed", "gauge": {"dataPoints": [point]}}]}]}
        ]
    }
    assert post(otlp, "/v1/metrics", json.dumps(body), good) == 200
    assert post(otlp, "/v1/metrics", json.dumps(body), bad) == 401
    assert post(otlp, "/v1/metrics", f'{{"resourceMetrics": "{canaries.plant("malformed push")}"', good) == 400
    assert post(otlp, f"/{canaries.plant('wrong path of a push')}", "{}", good) == 404
    token, text = canaries.plant("ping token", head="abcd"), canaries.plant("ping body")
    assert (
        post(
            relay,
            f"/heartbeat/{token}/7?secret={canaries.plant('query of a ping')}",
            text,
            canaries.plant("ping header"),
        )
        == 202
    )
    assert post(relay, f"/heartbeat/{canaries.plant('token of no ping', head='ab!')}", text, "x") in (400, 404)
    cloud.until(lambda: cloud.pings, 60)
    ids = {each["id"] for each in cloud.definitions if each["title"] == "otlp"}
    cloud.until(lambda: any(row["metric_id"] in ids and row["status"] == "healthy" for row in cloud.rows), 60)
    cloud.until(lambda: cloud.lines, 60)


def attributes(canaries: Canaries, place: str) -> list[dict]:
    value = canaries.at.get(place) or canaries.plant(place)
    return [{"key": "who" if place == "otlp filter" else "other", "value": {"stringValue": value}}]


def post(port: int, path: str, body: str, token: str) -> int:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        line.request("POST", path, body, {"Content-Type": "application/json", "Authorization": f"Bearer {token}"})
        return line.getresponse().status
    finally:
        line.close()


def check_that_they_were_used(canaries: Canaries, definitions: Definitions, cloud: Hostile) -> None:
    """A secret that went nowhere proves nothing: those that are meant for targets have reached them."""
    assert len(canaries.at) >= 120
    said = [
        line if isinstance(line, bytes) else repr(line).encode() for each in definitions.told for line in each.requests
    ]
    told = {place.removeprefix("own ") for place in canaries.found_in(b"\n".join(said))}
    assert told >= {
        f"{where} {part}" for where in ("up", "down", "echo", "mismatch") for part in ("query", "authorization", "key")
    }
    assert told >= {
        "echo loki query",
        "junk loki token",
        "denied search",
        "echo password",
        "echo api key",
        "good query",
    }
    assert told >= {
        "prometheus password",
        "prometheus header",
        "prometheus tenant",
        "mtls header",
        "good websocket header",
    }
    assert told >= {"good grpc token", "denied grpc key"}
    titles = {each["id"]: each["title"] for each in cloud.definitions}
    healthy = {titles[row["metric_id"]] for row in cloud.rows if row["status"] == "healthy"}
    assert healthy >= {"up", "prometheus", "websocket good", "custom", "cloudwatch", "otlp"}
    assert {each.split()[0] for each in healthy} >= {"redis", "mysql", "mongodb"}
