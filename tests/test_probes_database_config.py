"""The source type `database`: configurations, the check of a query's text, connection strings."""

from __future__ import annotations

import json

import pytest

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes.database import DatabaseConfig
from tests.contracts.test_probe import nothing_left
from tests.servers import make_prober
from tests.test_probes_database import SECRET, ask, raw

# -- configuration


def test_w1_defaults_are_filled_in():
    config = probes.parse("database", {"kind": "postgres", "connection_string_ref": "PROBE_DSN", "query": "SELECT 1"})
    assert config == DatabaseConfig("postgres", "PROBE_DSN", "SELECT 1", 5.0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"kind": None}, "kind"),
        ({"kind": "oracle"}, "kind"),
        ({"connection_string_ref": None}, "connection_string_ref"),
        ({"connection_string_ref": "postgres://u:p@h/d"}, "connection_string_ref"),
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": "SELECT " + "1" * 8_192}, "query"),
        ({"statement_timeout_ms": 99}, "statement_timeout_ms"),
        ({"statement_timeout_ms": 30_001}, "statement_timeout_ms"),
        ({"statement_timeout_ms": True}, "statement_timeout_ms"),
        ({"more": 1}, "more"),
    ],
)
def test_a_configuration_that_is_wrong(change, field):
    with pytest.raises(InvalidConfig, match=f"^{field}: "):
        probes.parse("database", {**raw("postgres"), **change})


def refused(kind, query):
    try:
        probes.parse("database", raw(kind, query=query))
    except InvalidConfig as error:
        assert len(query) < 8 or query not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize(
    "query",
    [
        "select 1",
        "SELECT count(*) FROM orders;",
        "SELECT 1 ; ; -- done",
        "WITH a AS (SELECT 1 AS n) SELECT n FROM a",
        "SELECT count(*) FROM orders WHERE note = 'INSERT; DELETE /* -- into'",
        "SELECT count(*) /* a comment; DROP */ FROM orders -- DELETE",
        "SELECT replace('a', 'b', 'c') || 'it''s'",
        "WITH a AS (SELECT 'delete' AS word) SELECT count(*) FROM a",
    ],
)
def test_w17_harmless_statements_are_let_through(query):
    assert refused("postgres", query) == refused("mysql", query) == ""


@pytest.mark.parametrize(
    ("kind", "query"),
    [
        ("postgres", 'SELECT "a;b" FROM t'),
        ("postgres", "SELECT pg_database_size('shop'), pg_is_in_recovery()"),
        ("postgres", "SELECT data #>> '{a}' FROM t"),
        ("postgres", "SELECT a - -1 FROM t WHERE b @> '{}' AND c ? 'x'"),
        ("mysql", 'SELECT `a;b` FROM t WHERE c = "x;y" # DELETE'),
        ("mysql", "SELECT 5--1"),
        ("mysql", "SELECT count(*) FROM t WHERE a = 1 -- into"),
    ],
)
def test_what_one_engine_alone_writes_so(kind, query):
    assert refused(kind, query) == ""


@pytest.mark.parametrize(
    "query",
    ["", ";", "-- only a comment", "SELECT 1; SELECT 2", "WITH a AS (VALUES (1)) TABLE a", "SELECT 'open", "SELECT\x00"]
    + [
        f"{word} x"
        for word in "INSERT UPDATE DELETE TRUNCATE DROP ALTER CREATE GRANT REVOKE COPY CALL DO MERGE".split()
    ]
    + [f"{word} x" for word in "EXEC EXECUTE SET LOCK UNLOCK BEGIN COMMIT ROLLBACK VACUUM REINDEX CLUSTER".split()]
    + ["REFRESH x", "REPLACE x", "SELECT 1 INTO x", "WITH a AS (DELETE FROM t RETURNING 1) SELECT * FROM a"],
)
def test_statements_that_neither_engine_gets(query):
    assert refused("postgres", query) and refused("mysql", query)


@pytest.mark.parametrize(
    "query",
    "/SET a 1/DEL a/FLUSHALL/EVAL x 0/CONFIG GET */GET 'a/GET a\r\nFLUSHALL/GET/GET a b/DBSIZE x/EXISTS/GETDEL a/"
    "GETEX a/KEYS */OBJECT FREQ a/DEBUG SLEEP 1".split("/"),
)
def test_redis_commands_that_are_not_on_the_list(query):
    assert refused("redis", query)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("get 'a b' ", ("GET", "a b")),
        (r'GET "a\"b\\c"', ("GET", 'a"b\\c')),
        (r"GET a\b", ("GET", r"a\b")),
        (r"GET 'a\'", ("GET", "a\\")),
        ("GET ''", ("GET", "")),
        ("""GET a'b'"c"d""", ("GET", "abcd")),
        ("EXISTS a  b", ("EXISTS", "a", "b")),
    ],
)
def test_redis_words(query, words):
    assert probes.parse("database", raw("redis", query=query)).query == words


@pytest.mark.parametrize(
    "change",
    [
        {"db": "admin"}, {"db": "config"}, {"db": "local"}, {"db": "a b"}, {"db": 1}, {"collection": "system.users"},
        {"collection": "$cmd"}, {"op": "deleteMany"}, {"op": None}, {"op": "estimatedDocumentCount", "filter": {}},
        {"filter": []}, {"filter": {"$where": "1"}}, {"filter": {"a": [{"$expr": {}}]}}, {"more": 1},
        {"filter": {"$or": [{"a": {"$function": {}}}]}}, {"filter": {"a": {"$code": "x"}}},
        {"filter": {"a": {"$accumulator": {}}}},
    ],
)  # fmt: skip
def test_mongodb_questions_that_are_refused(change):
    good = {"db": "shop", "collection": "orders", "op": "countDocuments"}
    assert refused("mongodb", json.dumps({**good, **change}))
    assert not refused("mongodb", json.dumps(good))


@pytest.mark.parametrize("text", ["", "[]", "{", "NaN", '{"db": NaN}', "[" * 5000])
def test_mongodb_questions_that_are_no_object(text):
    assert refused("mongodb", text)


def test_a_mongodb_filter_may_be_32_deep():
    def nested(depth):
        value: object = 1
        for _ in range(depth):
            value = {"a": value}
        return json.dumps({"db": "shop", "collection": "orders", "op": "countDocuments", "filter": value})

    assert not refused("mongodb", nested(32))
    assert refused("mongodb", nested(34))


# -- connection strings


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("postgres", f"mysql://u:{SECRET}@h/d"),
        ("postgres", SECRET),
        ("postgres", f"host=h password={SECRET}"),
        ("postgres", f"postgres://u:{SECRET}#@h/d"),
        ("postgres", f"postgres://u:{SECRET}/x@h/d"),
        ("postgres", f"postgres://u:{SECRET}@a,b/d"),
        ("postgres", f"postgres://u:{SECRET}@/d"),
        ("postgres", f"postgres://u:{SECRET}@%2Ftmp%2Fpg.sock/d"),
        ("postgres", f"postgres://u:{SECRET}@h:99999/d"),
        ("postgres", f"postgres://u%00:{SECRET}@h/d"),
        ("postgres", f"postgres://u:{SECRET}%ff@h/d"),
        ("postgres", "postgres://h/d"),
        ("postgres", f"postgres://u:{SECRET}@h/d?host=other"),
        ("postgres", f"postgres://u:{SECRET}@h/d?options=-c%20default_transaction_read_only%3Doff"),
        ("postgres", f"postgres://u:{SECRET}@h/d?sslmode=perhaps"),
        ("postgres", f"postgres://u:{SECRET}@h/d?sslkey=/etc/key"),
        ("mysql", f"mysql://u:{SECRET}@h/d?ssl=%7B%22rejectUnauthorized%22%3Atrue%7D"),
        ("mysql", f"mysql://u:{SECRET}@h/d?unix_socket=/run/mysqld.sock"),
        ("redis", f"redis://:{SECRET}@h/name"),
        ("redis", f"rediss://:{SECRET}@h/?ssl=false"),
        ("redis", f"redis+unix://:{SECRET}@/run/redis.sock"),
        ("mongodb", f"mongodb+srv://u:{SECRET}@h/d"),
        ("mongodb", f"mongodb://u:{SECRET}@a,b/d"),
        ("mongodb", f"mongodb://u:{SECRET}@h/d?authMechanism=PLAIN"),
    ],
)
def test_connection_strings_that_are_refused(kind, text):
    with nothing_left():
        reading = ask(kind, text)
    assert (reading.reason, reading.fault) == ("db_dsn_invalid", Fault.CONFIG)
    assert "srv" not in text or "srv" in reading.detail["error"]


@pytest.mark.parametrize("ref", ["PROBE_NOT_THERE", "AGENT_KEY", "DATABASE_URL", "AWS_SECRET_ACCESS_KEY"])
def test_w8_a_connection_string_that_may_not_be_had(ref):
    prober = make_prober(
        {"PROBE_BLANK": " ", "AGENT_KEY": SECRET, "DATABASE_URL": SECRET, "AWS_SECRET_ACCESS_KEY": "x"}
    )
    reading = ask("postgres", "", prober, connection_string_ref=ref)
    assert (reading.reason, reading.fault) == ("db_dsn_missing", Fault.CONFIG)
