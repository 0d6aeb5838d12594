"""The source type `database` against servers that behave as told: deadlines, bounds, secrets, reasons."""

from __future__ import annotations

import json
import struct
from contextlib import contextmanager
from datetime import datetime

import bson
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pymongo import MongoClient
from pymongo.server_api import ServerApi

from observer_agent.model import Fault
from observer_agent.resolver import ResolveError, parse_literal
from tests import mysqlfake, servers
from tests.contracts.test_probe import look as contract_look
from tests.contracts.test_probe import nothing_left
from tests.mongo import SECRET as MONGO_SECRET
from tests.mongo import USER, Mongo
from tests.mysqlfake import MySql
from tests.servers import Server, make_prober, refused_port

SECRET = "pa55-of-the-database"
MARK = "query_text_41"
TIMEOUT_MS = 300
QUERIES = {
    "postgres": f"SELECT 1 AS {MARK}",
    "mysql": f"SELECT 1 AS {MARK}",
    "redis": f"GET {MARK}",
    "mongodb": json.dumps({"db": "shop", "collection": MARK, "op": "countDocuments"}),
}
SCHEMES = {"postgres": "postgres", "mysql": "mysql", "redis": "redis", "mongodb": "mongodb"}
KINDS = list(QUERIES)


def dsn_of(kind, port, host="127.0.0.1", options="", user="user", secret=SECRET):
    path = "" if kind == "redis" else "/shop"
    return f"{SCHEMES[kind]}://{user}:{secret}@{host}:{port}{path}{options}"


def raw(kind, **more):
    return {
        "kind": kind,
        "connection_string_ref": "PROBE_DSN",
        "query": QUERIES[kind],
        "statement_timeout_ms": TIMEOUT_MS,
        **more,
    }


def ask(kind, dsn, prober=None, **more):
    """One look, held against what every reading must fulfil; no secret and no query in it."""
    reading = contract_look(prober or make_prober({"PROBE_DSN": dsn}), "database", raw(kind, **more))
    assert SECRET not in str(reading) and MONGO_SECRET not in str(reading) and MARK not in str(reading)
    assert {"kind", "connection_string_ref", "statement_timeout_ms"} <= set(reading.detail)
    return reading


@pytest.fixture(autouse=True)
def _nothing_in_the_log(caplog):
    yield
    assert not any(secret in caplog.text for secret in (SECRET, MONGO_SECRET, MARK))


# -- the network, every kind


def drip(conn, server):
    """The beginning of a long answer, for each protocol, then a byte now and then."""
    first = conn.recv(8) if server.speaks_second else b""
    start = {b"\x00\x00\x00\x08\x04\xd2\x16\x2f": b"NS\x00\x00\x10\x00"}.get(first, server.begins)
    conn.sendall(start)
    while not server.stopping.wait(0.01):
        conn.sendall(b"1")


BEGINS = {
    "postgres": b"",
    "mysql": b"\x00\x10\x00\x00",
    "redis": b":",
    "mongodb": struct.pack("<iiiiIB", 4096, 1, 1, 2013, 0, 0),
}


@contextmanager
def serving(kind, handler):
    with nothing_left(), Server(handler) as server:
        server.speaks_second, server.begins = kind != "mysql", BEGINS[kind]
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_port(kind):
    with nothing_left(), refused_port() as port:
        reading = ask(kind, dsn_of(kind, port))
    assert (reading.reason, reading.fault) == ("db_connection_failed", Fault.TARGET)
    assert reading.detail["code"] == "ECONNREFUSED"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("handler", [servers.tarpit, drip])
def test_w33_a_tarpit_and_a_drip_while_signing_in(kind, handler):
    with serving(kind, handler) as server:
        reading = ask(kind, dsn_of(kind, server.port))
    assert (reading.reason, reading.fault) == ("db_connection_failed", Fault.TARGET)
    assert reading.detail["code"] == "ETIMEDOUT"
    assert reading.phases["login"] > TIMEOUT_MS / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_hangs_up(kind):
    with serving(kind, servers.hang_up) as server:
        reading = ask(kind, dsn_of(kind, server.port))
    assert (reading.reason, reading.detail["code"]) == ("db_connection_failed", "ECONNRESET")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad\r\n\r\n", b"\xff" * 300, b"\x00" * 300, b"N" * 300, b"S" + b"E" * 40]
)
def test_garbage(kind, garbage):
    with serving(kind, servers.says(garbage)) as server:
        reading = ask(kind, dsn_of(kind, server.port))
    assert reading.reason in ("db_error", "db_connection_failed", "tls_handshake_failed"), reading


def flood(conn, server):
    """A valid beginning and then bytes without end."""
    if server.speaks_second:
        conn.recv(8)
    conn.sendall({b"": b"NS\x00\x7f\xff\xff"}.get(server.begins, server.begins))
    while not server.stopping.is_set():
        conn.sendall(b"1" * 65536)


@pytest.mark.parametrize("kind", KINDS)
def test_w14_a_flood(kind):
    with serving(kind, flood) as server:
        reading = ask(kind, dsn_of(kind, server.port), statement_timeout_ms=2_000)
    assert reading.reason == "db_error"
    assert reading.duration_ms < 1_900


def notices(conn, server):
    """Notices without end, each of them proper."""
    conn.recv(1024)
    while not server.stopping.is_set():
        conn.sendall(message(b"N", b"SNOTICE\0C00000\0Mx\0\0") * 1_000)


def test_w14_a_flood_of_small_messages():
    with serving("postgres", notices) as server:
        reading = ask(
            "postgres", dsn_of("postgres", server.port, options="?sslmode=disable"), statement_timeout_ms=5_000
        )
    assert reading.reason == "db_error"


@pytest.mark.parametrize("kind", KINDS)
def test_a_handshake_with_no_tls(kind):
    options = {"postgres": "?sslmode=require", "mysql": "?sslmode=require", "redis": "?ssl=1", "mongodb": "?tls=true"}
    greeting = {"postgres": b"S", "mysql": b""}.get(kind, b"")
    handler = MySql() if kind == "mysql" else servers.says(greeting or b"this is no TLS\r\n")
    with serving(kind, handler) as server:
        patience = TIMEOUT_MS if kind == "postgres" else 5_000  # the system's authorities take a while to load
        dsn = dsn_of(kind, server.port, options=options[kind])
        reading = ask(kind, dsn, statement_timeout_ms=patience)
    wanted = ("db_connection_failed", "ETIMEDOUT") if kind == "postgres" else ("tls_handshake_failed", None)
    assert (reading.reason, reading.detail.get("code")) in (wanted, ("tls_handshake_failed", 2026))


def test_bytes_before_the_handshake_are_not_taken_for_protected_ones():
    with serving("postgres", servers.says(b"SR\x00\x00\x00\x08\x00\x00\x00\x00")) as server:
        reading = ask("postgres", dsn_of("postgres", server.port, options="?sslmode=require"))
    assert reading.reason == "db_error"
    assert "before the handshake" in reading.detail["error"]


@pytest.mark.parametrize("kind", KINDS)
def test_names(kind):
    def again(name):
        raise ResolveError("EAI_AGAIN", "Temporary failure in name resolution")

    prober = make_prober({"PROBE_DSN": dsn_of(kind, 1, host="nowhere.test")})
    reading = ask(kind, "", prober)
    assert (reading.reason, reading.detail["code"], reading.fault) == (
        "db_connection_failed",
        "ENOTFOUND",
        Fault.TARGET,
    )
    prober = make_prober({"PROBE_DSN": dsn_of(kind, 1, host="nowhere.test")}, find=again)
    reading = ask(kind, "", prober)
    assert (reading.reason, reading.fault) == ("db_connection_failed", Fault.RESOLVER)


@pytest.mark.parametrize("kind", KINDS)
def test_w12_metadata_addresses_are_denied(kind):
    for host in ("169.254.169.254", "[::ffff:169.254.169.254]", "innocent.test"):
        prober = make_prober(
            {"PROBE_DSN": dsn_of(kind, 80, host=host)}, find=lambda name: (parse_literal("169.254.169.254"),)
        )
        assert ask(kind, "", prober).reason == "policy_denied"


@pytest.mark.parametrize(
    ("kind", "modules", "hint"),
    [
        ("postgres", ["pg8000", "pg8000.core"], "observer-agent"),
        ("mysql", ["pymysql", "pymysql.connections"], "observer-agent"),
        ("mongodb", ["bson", "bson.json_util"], "observer-agent[mongodb]"),
    ],
)
def test_a_driver_that_is_not_installed(kind, modules, hint, monkeypatch):
    import sys

    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with serving(kind, servers.tarpit) as server:
        reading = ask(kind, dsn_of(kind, server.port))
    assert (reading.reason, reading.fault) == ("source_unavailable", Fault.AGENT)
    assert f"pip install '{hint}'" in reading.detail["error"]


# -- PostgreSQL's protocol


def message(code, data=b""):
    return code + struct.pack(">I", len(data) + 4) + data


READY = message(b"Z", b"I")
SIGNED_IN = message(b"R", struct.pack(">I", 0)) + READY


def postgres_says(*answers):
    """Answers each thing that is sent with the next of `answers`; an empty one is silence."""

    def handler(conn, server):
        for answer in answers:
            server.requests.append(conn.recv(65536))
            if not answer:
                server.stopping.wait()
            conn.sendall(answer)
        server.stopping.wait()

    return handler


def failure(code):
    return message(b"E", f"SERROR\0C{code}\0M{SECRET} {MARK} is wrong\0\0".encode()) + READY


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("57014", "db_timeout"), ("42501", "db_access_denied"), ("42601", "db_syntax_error"), ("28P01",
        "db_auth_failed"),
        ("08006", "db_connection_failed"), ("57P01", "db_connection_failed"), ("25006", "db_query_not_allowed"),
        ("XX000", "db_error"), ("", "db_error"), (MARK, "db_error"),
    ],
)  # fmt: skip
def test_reasons_by_sqlstate(code, reason):
    done = message(b"C", b"BEGIN\0") + READY
    with serving("postgres", postgres_says(SIGNED_IN, done, failure(code))) as server:
        reading = ask("postgres", dsn_of("postgres", server.port, options="?sslmode=disable"))
    assert reading.reason == reason


@pytest.mark.parametrize("answers", [(SIGNED_IN, b""), (SIGNED_IN, message(b"C", b"BEGIN\0") + READY, b"")])
def test_w33_a_postgresql_that_falls_silent_at_the_query(answers):
    with serving("postgres", postgres_says(*answers)) as server:
        reading = ask("postgres", dsn_of("postgres", server.port, options="?sslmode=disable"))
    assert (reading.reason, reading.fault) == ("db_timeout", Fault.TARGET)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (struct.pack(">I", 3), "db_auth_failed"),
        (struct.pack(">I", 7), "db_error"),
        (struct.pack(">I", 99), "db_error"),
        (struct.pack(">I", 10) + b"SCRAM-SHA-256\0\0", "db_connection_failed"),
    ],
)
def test_what_a_postgresql_may_not_ask_for(request_, reason):
    """In clear without TLS, by GSS, by an unknown way; and more hashing than there is time for."""
    slow = message(b"R", struct.pack(">I", 11) + b"r=x,s=AAAAAAAAAAAAAAAAAAAAAA==,i=999999999")
    with serving("postgres", postgres_says(message(b"R", request_), slow)) as server:
        reading = ask("postgres", dsn_of("postgres", server.port, options="?sslmode=disable"))
    assert reading.reason == reason
    assert all(SECRET.encode() not in request for request in server.requests)


def test_a_password_that_is_not_there():
    with serving("postgres", postgres_says(message(b"R", struct.pack(">I", 3)))) as server:
        reading = ask("postgres", f"postgres://u@127.0.0.1:{server.port}/d?sslmode=disable")
    assert reading.reason == "db_auth_failed"


# -- MySQL's protocol


def mysql(handler, **more):
    with serving("mysql", handler) as server:
        return ask("mysql", dsn_of("mysql", server.port), **more)


def test_w33_mysql_and_mariadb_have_each_their_own_timeout():
    for version, name in (("8.0.36", "MAX_EXECUTION_TIME = "), ("5.5.5-10.11.6-MariaDB", "max_statement_time = 0.2")):
        server = MySql(version)
        assert mysql(server).value == 42
        assert any(name in statement for statement in server.asked), server.asked
        assert server.asked[-4:-1] == [
            "SET SESSION TRANSACTION READ ONLY",
            "START TRANSACTION READ ONLY",
            QUERIES["mysql"],
        ]


@pytest.mark.parametrize("at", ["SET NAMES", "SET SESSION MAX", "START", "SELECT"])
def test_w33_a_mysql_that_falls_silent(at):
    server = MySql()
    server.silent_at = at
    reading = mysql(server)
    assert reading.reason == ("db_connection_failed" if at == "SET NAMES" else "db_timeout")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3024, "db_timeout"), (1317, "db_timeout"), (1969, "db_timeout"), (1045, "db_auth_failed"),
        (1044, "db_auth_failed"),
        (1142, "db_access_denied"), (1143, "db_access_denied"), (1227, "db_access_denied"), (1064, "db_syntax_error"),
        (1054, "db_syntax_error"), (1146, "db_syntax_error"), (1792, "db_query_not_allowed"),
        (2013, "db_connection_failed"),
        (1040, "db_connection_failed"), (1105, "db_error"),
    ],
)  # fmt: skip
def test_reasons_by_mysql_code(code, reason):
    reading = mysql(MySql(answer=lambda statement: mysqlfake.error(code, f"{SECRET} near {statement}")))
    assert reading.reason == reason


@pytest.mark.parametrize("plugin", [b"mysql_clear_password", b"dialog", b"sha256_password"])
def test_a_mysql_that_wants_the_password_in_clear(plugin):
    server = MySql("8.0.36", mysqlfake.switch(plugin))
    assert mysql(server).reason == "db_auth_failed"
    assert server.replies == []


def test_a_mysql_that_offers_a_public_key_of_its_own():
    """caching_sha2_password without TLS: whoever is in between could offer a key and read the password."""
    key = b"\x01" + rsa.generate_private_key(65537, 2048).public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    server = MySql("8.0.36", mysqlfake.switch(b"caching_sha2_password"), b"\x01\x04", key)
    assert mysql(server).reason == "db_auth_failed"
    assert len(server.replies) == 1  # the scramble, neither a request for the key nor anything made with it


def test_a_mysql_that_wants_a_file_of_ours():
    assert mysql(MySql(answer=lambda statement: [b"\xfb/etc/passwd"])).reason == "db_error"


def test_w14_two_rows_are_read_and_no_more():
    rows = [[b"1"]] * 200_000
    reading = mysql(MySql(answer=lambda statement: mysqlfake.table(*rows)), statement_timeout_ms=5_000)
    assert (reading.reason, reading.detail["row_count"]) == ("db_multi_row", 2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (mysqlfake.table(), "db_empty_result"),
        (mysqlfake.table([b"1", b"2"], columns=2), "db_multi_column"),
        (mysqlfake.table([b"9007199254740992"]), "db_non_numeric"),
        (mysqlfake.table([b"x"]), "db_error"),
        ([b"\x01", *mysqlfake.table([b""])[1:3], b"\xfb", mysqlfake.EOF], "db_null_value"),
        ([mysqlfake.OK], "db_empty_result"),
        ([b"\x01", b"\x00"], "db_error"),
    ],
)
def test_shapes(answer, reason):
    assert mysql(MySql(answer=lambda statement: answer)).reason == reason


# -- Redis's protocol


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-NOAUTH Authentication required.\r\n", "db_auth_failed"),
        (b"-WRONGPASS x\r\n", "db_auth_failed"),
        (b"-ERR invalid password\r\n", "db_auth_failed"),
        (b"-NOPERM this user has no permissions\r\n", "db_access_denied"),
        (b"-ERR unknown command\r\n", "db_syntax_error"),
        (b"-ERR wrong number of arguments\r\n", "db_syntax_error"),
        (b"-LOADING Redis is loading\r\n", "db_connection_failed"),
        (b"-WRONGTYPE " + SECRET.encode() + b"\r\n", "db_error"),
        (b"$-1\r\n", "db_null_value"),
        (b"$1\r\nx\r\n", "db_non_numeric"),
        (b"$4\r\n0x10\r\n", "db_non_numeric"),
        (b"$3\r\nnan\r\n", "db_non_numeric"),
        (b"$536870912\r\n", "db_non_numeric"),
        (b"*1\r\n:1\r\n", "db_non_numeric"),
        (b":x\r\n", "db_error"),
        (b"$-7\r\n", "db_non_numeric"),
    ],
)
def test_reasons_of_redis(answer, reason):
    with serving("redis", servers.says(b"+OK\r\n" + answer)) as server:
        assert ask("redis", dsn_of("redis", server.port)).reason == reason


def test_w19_a_value_is_described_by_its_length_alone():
    with serving("redis", servers.says(b"+OK\r\n$%d\r\n%s\r\n" % (len(SECRET), SECRET.encode()))) as server:
        reading = ask("redis", dsn_of("redis", server.port))
    assert f"text, len={len(SECRET)}" in reading.detail["error"]


def test_w32_the_first_command_after_connecting_has_its_answer():
    with serving("redis", servers.says(b"+OK\r\n$4\r\n12.5\r\n")) as server:
        assert ask("redis", dsn_of("redis", server.port)).value == 12.5


# -- MongoDB's protocol

DOCUMENTS = {
    "orders": [
        {"_id": bson.ObjectId(f"{n:024x}"), "at": datetime(2026, 1, n), "kind": "ab"[n % 2]} for n in range(1, 8)
    ]
}


def count(mongo, question=None, options="", secret=MONGO_SECRET, **more):
    question = {"db": "shop", "collection": "orders", "op": "countDocuments", **(question or {})}
    with serving("mongodb", mongo) as server:
        dsn = dsn_of("mongodb", server.port, user=USER, secret=secret, options=options)
        return ask("mongodb", dsn, query=json.dumps(question), **more)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-1"])
@pytest.mark.parametrize(
    ("question", "value"),
    [
        ({}, 7),
        ({"op": "estimatedDocumentCount"}, 7),
        ({"filter": {"kind": "a"}}, 3),
        ({"filter": {"kind": "c"}}, 0),
        ({"collection": "nothing"}, 0),
        ({"filter": {"at": {"$gte": {"$date": "2026-01-05T00:00:00Z"}}}}, 3),
        ({"filter": {"_id": {"$oid": f"{3:024x}"}}}, 1),
    ],
)
def test_w34_counts_with_dates_and_object_ids(mechanism, question, value):
    mongo = Mongo(DOCUMENTS, mechanism)
    assert count(mongo, question).value == value
    assert 0 < mongo.asked[-1]["maxTimeMS"] <= TIMEOUT_MS
    assert {next(iter(command)) for command in mongo.asked} <= {
        "hello",
        "saslStart",
        "saslContinue",
        "aggregate",
        "count",
    }


def test_the_server_of_these_tests_satisfies_pymongo_itself():
    with Server(Mongo(DOCUMENTS)) as server:
        url = dsn_of("mongodb", server.port, user=USER, secret=MONGO_SECRET)
        with MongoClient(url, server_api=ServerApi("1"), directConnection=True) as client:
            assert client.shop.orders.count_documents({"kind": "a"}) == 3
            assert client.shop.orders.estimated_document_count() == 7


@pytest.mark.parametrize(
    ("command", "answer", "reason"),
    [
        ("aggregate", {"ok": 0.0, "code": 13, "errmsg": SECRET}, "db_access_denied"),
        ("aggregate", {"ok": 0.0, "code": 50, "errmsg": SECRET}, "db_timeout"),
        ("aggregate", {"ok": 0.0, "code": 26}, "db_syntax_error"),
        ("aggregate", {"ok": 0.0, "code": 2}, "db_syntax_error"),
        ("aggregate", {"ok": 0.0, "code": 91}, "db_connection_failed"),
        ("aggregate", {"ok": 0.0, "code": 8000}, "db_error"),
        ("aggregate", {"ok": 0.0, "code": SECRET}, "db_error"),
        ("aggregate", {}, "db_error"),
        ("aggregate", {"cursor": {"firstBatch": [{"n": SECRET}]}}, "db_non_numeric"),
        ("saslStart", {"ok": 0.0, "code": 18}, "db_auth_failed"),
        ("saslStart", {"conversationId": 1, "payload": b"r=other,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096"}, "db_auth_failed"),
        ("hello", {"ok": 0.0, "code": 59}, "db_error"),
    ],
)
def test_reasons_of_mongodb(command, answer, reason):
    mongo = Mongo(DOCUMENTS)
    mongo.answers[command] = answer
    assert count(mongo).reason == reason


def test_mongodb_sign_in_failures():
    assert count(Mongo(DOCUMENTS), secret="wrong-wrong").reason == "db_auth_failed"
    assert count(Mongo(DOCUMENTS), options="?authMechanism=SCRAM-SHA-1").reason == "db_auth_failed"
    slow = Mongo(DOCUMENTS)
    slow.answers["saslStart"] = {"conversationId": 1, "payload": b"r=x,s=AAAA,i=500000000"}
    assert count(slow).reason == "db_connection_failed"


def test_w34_extended_json_that_is_malformed():
    assert count(Mongo(DOCUMENTS), {"filter": {"_id": {"$oid": "zz"}}}).reason == "db_syntax_error"
