"""The source type `database` against PostgreSQL, MariaDB and Redis themselves: signing in, TLS, values, reasons."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from observer_agent.clock import Clock
from tests.contracts.test_probe import look, nothing_left
from tests.databases import SECRET, mariadb_running, redis_running
from tests.postgres import started
from tests.servers import Authority, make_prober

pytestmark = pytest.mark.slow

POSTGRES = f"""
ALTER SYSTEM SET ssl = on;
CREATE ROLE scram LOGIN SUPERUSER PASSWORD '{SECRET}';
CREATE ROLE clear LOGIN PASSWORD '{SECRET}';
CREATE ROLE clerk LOGIN PASSWORD '{SECRET}';
SET password_encryption = md5;
CREATE ROLE md5 LOGIN PASSWORD '{SECRET}';
CREATE TABLE orders (id int PRIMARY KEY, at timestamptz, note text);
INSERT INTO orders SELECT n, now(), 'n' || n FROM generate_series(1, 5) n;
GRANT SELECT ON orders TO scram, clear, md5;
"""
HBA = """
hostssl all secure 127.0.0.1/32 scram-sha-256
host all scram,clerk 127.0.0.1/32 scram-sha-256
host all clear 127.0.0.1/32 password
host all md5 127.0.0.1/32 md5
"""


def ask(kind, dsn, query, **more):
    raw = {"kind": kind, "connection_string_ref": "PROBE_DSN", "query": query, **more}
    with nothing_left():
        reading = look(make_prober({"PROBE_DSN": dsn}), "database", raw)
    assert SECRET not in str(reading) and query not in str(reading)
    return reading


def value(*args, **more):
    reading = ask(*args, **more)
    assert reading.value is not None, reading
    return reading.value


def reason(*args, **more):
    return ask(*args, **more).reason


# -- PostgreSQL


@pytest.fixture(scope="module")
def pg():
    with started() as server, closing(psycopg.connect(f"{server.url}/postgres", autocommit=True)) as conn:
        data = Path(conn.execute("SHOW data_directory").fetchone()[0])
        authority = Authority()
        cert, key = authority.issue("127.0.0.1", "localhost")
        for name, text, mode in (("server.crt", cert, 0o644), ("server.key", key, 0o600)):
            (data / name).write_text(text)
            (data / name).chmod(mode)
            shutil.chown(data / name, data.owner())
        hba = data / "pg_hba.conf"
        hba.write_text(HBA + hba.read_text())
        for statement in POSTGRES.strip().split(";\n"):
            conn.execute(statement)
        server.stop()
        server.start()
        server.ca = data / "ca.pem"
        server.ca.write_text(authority.pem)
        yield server


def pg_dsn(pg, user="scram", options="", secret=SECRET, host="127.0.0.1"):
    return f"postgresql://{user}:{secret}@{host}:{pg.port}/postgres{options}"


@pytest.mark.parametrize("mode", ["", "?sslmode=disable", "?sslmode=prefer", "?sslmode=require"])
@pytest.mark.parametrize("user", ["scram", "md5"])
def test_postgresql_lets_us_in(pg, user, mode):
    reading = ask("postgres", pg_dsn(pg, user, mode), "SELECT count(*) FROM orders")
    assert reading.value == 5
    assert ("tls" in reading.phases) == (mode != "?sslmode=disable")
    assert (reading.detail["row_count"], reading.detail["column_count"]) == (1, 1)


def test_postgresql_and_certificates(pg):
    query = "SELECT 1"
    assert value("postgres", pg_dsn(pg, options=f"?sslmode=verify-full&sslrootcert={pg.ca}"), query) == 1
    assert (
        value("postgres", pg_dsn(pg, options=f"?sslmode=verify-ca&sslrootcert={pg.ca}", host="good.test"), query) == 1
    )
    wrong_name = pg_dsn(pg, options=f"?sslmode=verify-full&sslrootcert={pg.ca}", host="good.test")
    assert reason("postgres", wrong_name, query) == "tls_verify_failed"
    assert reason("postgres", pg_dsn(pg, options="?sslmode=verify-full"), query) == "tls_verify_failed"
    assert reason("postgres", pg_dsn(pg, options="?sslmode=verify-ca&sslrootcert=/nowhere"), query) == "db_dsn_invalid"


def test_postgresql_gets_no_password_in_clear(pg):
    assert reason("postgres", pg_dsn(pg, "clear", "?sslmode=disable"), "SELECT 1") == "db_auth_failed"
    assert value("postgres", pg_dsn(pg, "clear", "?sslmode=require"), "SELECT 1") == 1


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("SELECT 42", 42), ("SELECT -1.5::numeric", -1.5), ("SELECT 2.5e3::float8", 2500), ("SELECT true", 1),
        ("SELECT false", 0), ("SELECT ' 12.5 '", 12.5), ("SELECT 9007199254740991", 9007199254740991),
        ("WITH a AS (SELECT 7 AS n) SELECT n FROM a;", 7),
        ("SELECT count(*) FROM orders WHERE at > now() - '1 h'::interval", 5),
    ],
)  # fmt: skip
def test_values_of_postgresql(pg, query, wanted):
    assert value("postgres", pg_dsn(pg), query) == wanted


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("SELECT 1 WHERE false", "db_empty_result"), ("SELECT", "db_empty_result"),
        ("SELECT id FROM orders", "db_multi_row"), ("SELECT 1, 2", "db_multi_column"),
        ("SELECT null", "db_null_value"), ("SELECT 'NaN'::float8", "db_non_numeric"),
        ("SELECT note FROM orders LIMIT 1", "db_non_numeric"),
        ("SELECT 9007199254740992", "db_non_numeric"), ("SELECT now()", "db_non_numeric"), ("SELECT '0x10'",
        "db_non_numeric"),
        ("SELECT * FROM nowhere", "db_syntax_error"), ("SELECT FROM WHERE", "db_syntax_error"), ("SELECT 1 / 0",
        "db_error"),
    ],
)  # fmt: skip
def test_reasons_of_postgresql(pg, query, wanted):
    assert reason("postgres", pg_dsn(pg), query) == wanted


def test_postgresql_refusals(pg):
    assert reason("postgres", pg_dsn(pg, secret="wrong-wrong"), "SELECT 1") == "db_auth_failed"
    assert reason("postgres", pg_dsn(pg, "clerk"), "SELECT count(*) FROM orders") == "db_access_denied"
    assert reason("postgres", pg_dsn(pg).replace("/postgres?", "/") + "x", "SELECT 1") == "db_error"


def test_w14_postgresql_sends_two_rows_of_a_billion(pg):
    reading = ask("postgres", pg_dsn(pg), "SELECT generate_series(1, 1000000000)")
    assert (reading.reason, reading.detail["row_count"]) == ("db_multi_row", 2)
    assert reading.duration_ms < 2_000


def test_w33_postgresql_ends_a_slow_statement_itself(pg):
    query = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"
    reading = ask("postgres", pg_dsn(pg), query, statement_timeout_ms=1_500)
    assert (reading.reason, reading.detail["sqlstate"]) == ("db_timeout", "57014")


def test_postgresql_is_left_in_order(pg):
    """No session stays, and its log has no complaint about how we hung up."""
    ask("postgres", pg_dsn(pg), "SELECT 1")
    ask("postgres", pg_dsn(pg), "SELECT nowhere")
    with closing(psycopg.connect(f"{pg.url}/postgres", autocommit=True)) as conn:
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'observer-agent' AND state <> 'idle'"
        until(lambda: conn.execute(left).fetchone() == (0,))
        data = Path(conn.execute("SHOW data_directory").fetchone()[0])
    assert "unexpected EOF" not in (data.parent / "log").read_text()


def until(true):
    """Asks again until it is so, for ten seconds at most; the server's answers are the clock."""
    clock = Clock()
    end = clock.monotonic() + 10
    while not true():
        assert clock.monotonic() < end


# -- MariaDB


@pytest.fixture(scope="module")
def mariadb():
    with mariadb_running() as server:
        yield server


@pytest.mark.parametrize("mode", ["", "?ssl-mode=DISABLED", "?sslmode=require", "?ssl-mode=REQUIRED"])
def test_mariadb_lets_us_in(mariadb, mode):
    reading = ask("mysql", mariadb.dsn(options=mode), "SELECT COUNT(*) FROM orders")
    assert reading.value == 5
    assert ("tls" in reading.phases) == ("DIS" not in mode)
    assert value("mysql", mariadb.dsn("bare", "", options=mode), "SELECT 1") == 1


def test_mariadb_and_certificates(mariadb):
    ca = f"&ssl-ca={mariadb.folder}/ca.pem"
    assert value("mysql", mariadb.dsn(options=f"?ssl-mode=VERIFY_IDENTITY{ca}"), "SELECT 1") == 1
    elsewhere = mariadb.dsn(options=f"?ssl-mode=VERIFY_IDENTITY{ca}").replace("127.0.0.1", "good.test")
    assert reason("mysql", elsewhere, "SELECT 1") == "tls_verify_failed"
    assert value("mysql", elsewhere.replace("IDENTITY", "CA"), "SELECT 1") == 1
    assert reason("mysql", mariadb.dsn(options="?sslmode=verify-ca"), "SELECT 1") == "tls_verify_failed"


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("SELECT 42", 42), ("SELECT -1.50", -1.5), ("SELECT 2.5e3", 2500), ("SELECT TRUE", 1),
        ("SELECT ' 12.5 '", 12.5),
        ("SELECT 9007199254740991", 9007199254740991), ("SELECT CAST('7' AS BINARY)", 7),
        ("SELECT SUM(id) FROM orders;", 15),
        ("SELECT yes FROM bits", 1), ("WITH a AS (SELECT 7 AS n) SELECT n FROM a", 7), ("SELECT 5--1", 6),
    ],
)  # fmt: skip
def test_values_of_mariadb(mariadb, query, wanted):
    mariadb.ask("CREATE TABLE IF NOT EXISTS shop.bits AS SELECT CAST(1 AS INT) AS id")
    mariadb.ask("ALTER TABLE shop.bits ADD COLUMN IF NOT EXISTS yes BIT(1) DEFAULT b'1'")
    assert value("mysql", mariadb.dsn(), query) == wanted


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("SELECT 1 FROM orders WHERE FALSE", "db_empty_result"), ("SELECT id FROM orders", "db_multi_row"),
        ("SELECT 1, 2", "db_multi_column"), ("SELECT NULL", "db_null_value"), ("SELECT note FROM orders LIMIT 1",
        "db_non_numeric"),
        ("SELECT 9007199254740992", "db_non_numeric"), ("SELECT NOW()", "db_non_numeric"),
        ("SELECT nothing FROM orders", "db_syntax_error"), ("SELECT * FROM nowhere", "db_syntax_error"),
        ("SELECT FROM WHERE", "db_syntax_error"), ("SELECT deletes()", "db_query_not_allowed"),
        ("SELECT ST_GeomFromText('x') + POW(10, 1000)", "db_error"),
    ],
)  # fmt: skip
def test_reasons_of_mariadb(mariadb, query, wanted):
    assert reason("mysql", mariadb.dsn(), query) == wanted


def test_mariadb_refusals(mariadb):
    assert reason("mysql", mariadb.dsn(password="wrong-wrong"), "SELECT 1") == "db_auth_failed"
    assert reason("mysql", mariadb.dsn("clerk"), "SELECT COUNT(*) FROM orders") == "db_access_denied"
    assert reason("mysql", mariadb.dsn("clerk", database="/mysql"), "SELECT 1") == "db_auth_failed"


def test_w14_mariadb_rows_are_not_read_to_the_end(mariadb):
    reading = ask("mysql", mariadb.dsn(), "SELECT seq FROM seq_1_to_100000000")
    assert (reading.reason, reading.detail["row_count"]) == ("db_multi_row", 2)
    assert reading.duration_ms < 2_000


def test_w33_mariadb_ends_a_slow_statement_itself(mariadb):
    query = "SELECT SUM(a.seq * b.seq) FROM seq_1_to_1000000 a, seq_1_to_1000000 b"
    reading = ask("mysql", mariadb.dsn(), query, statement_timeout_ms=1_500)
    assert (reading.reason, reading.detail["code"]) == ("db_timeout", 1969)


def test_mariadb_is_left_in_order(mariadb):
    mariadb.ask("FLUSH STATUS")
    for query in ("SELECT 1", "SELECT nowhere", "SELECT COUNT(*) FROM orders"):
        ask("mysql", mariadb.dsn(), query)
    assert mariadb.ask("SHOW GLOBAL STATUS LIKE 'Aborted_clients'") == (("Aborted_clients", "0"),)


# -- Redis


@pytest.fixture(scope="module")
def redis():
    with redis_running() as server:
        for words in (
            "SET number 12.5",
            "SET text abc",
            "RPUSH list a b c",
            "SADD set a b",
            "HSET hash a 1",
            "ZADD z 1 a",
        ):
            server.ask(*words.split())
        server.ask("SET", "with space", "3")
        server.ask("SET", "huge", "9" * 2_000)
        yield server


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("GET number", 12.5), ("get 'with space'", 3), ('GET "with space"', 3), ("DBSIZE", 8), ("LLEN list", 3),
        ("SCARD set", 2),
        ("ZCARD z", 1), ("HLEN hash", 1), ("STRLEN text", 3), ("TTL number", -1), ("TTL nothing", -2),
        ("PTTL nothing", -2),
        ("EXISTS number text nothing", 2), ("BITCOUNT text", 10), ("BITCOUNT text 0 0", 3),
    ],
)  # fmt: skip
def test_values_of_redis(redis, query, wanted):
    assert value("redis", redis.dsn(), query) == wanted


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("GET nothing", "db_null_value"), ("GET text", "db_non_numeric"), ("GET huge", "db_non_numeric"),
        ("GET list", "db_error"),
        ("BITCOUNT text 1", "db_syntax_error"),
    ],
)  # fmt: skip
def test_reasons_of_redis(redis, query, wanted):
    assert reason("redis", redis.dsn(), query) == wanted


def test_redis_users_and_databases(redis):
    assert value("redis", redis.dsn(path="/3"), "DBSIZE") == 0
    assert value("redis", redis.dsn(f"clerk:{SECRET}@"), "GET open:x".replace("GET", "TTL")) == -2
    assert reason("redis", redis.dsn(f"clerk:{SECRET}@"), "GET number") == "db_access_denied"
    assert reason("redis", redis.dsn(f"clerk:{SECRET}@"), "LLEN list") == "db_access_denied"
    assert reason("redis", redis.dsn(":wrong-wrong@"), "DBSIZE") == "db_auth_failed"
    assert reason("redis", redis.dsn(""), "DBSIZE") == "db_auth_failed"
    assert reason("redis", redis.dsn(path="/99"), "DBSIZE") == "db_error"


def test_redis_over_tls(redis):
    dsn = f"rediss://:{SECRET}@localhost:{redis.tls_port}/?ssl_ca_certs={redis.folder}/ca.pem"
    assert value("redis", dsn, "DBSIZE") == 8
    assert reason("redis", dsn.replace("localhost", "good.test"), "DBSIZE") == "tls_verify_failed"
    assert value("redis", dsn.partition("?")[0] + "?ssl_cert_reqs=none", "DBSIZE") == 8
    assert reason("redis", dsn.replace("rediss:", "redis:"), "DBSIZE") == "db_connection_failed"


def test_no_command_of_a_definition_writes_to_redis(redis):
    from observer_agent.errors import InvalidConfig

    before = redis.ask("DEBUG", "DIGEST"), redis.ask("DBSIZE")
    for query in (
        "SET a 1", "DEL number", "FLUSHALL", "FLUSHDB", "EXPIRE number 1", "PERSIST number", "INCR n", "APPEND text x",
        "GETSET text x", "GETDEL text", "GETEX text EX 1", "EVAL 'return 1' 0", "FCALL x 0", "SCRIPT FLUSH",
        "RENAME text x",
        "MOVE text 1", "LPOP list", "SPOP set", "SORT list STORE x", "BITOP NOT x text", "SETBIT text 1 1",
        "CONFIG SET save ''",
        "DEBUG SLEEP 1", "SHUTDOWN", "SAVE", "REPLICAOF h 1", "MIGRATE h 1 k 0 1", "CLIENT KILL x",
        "ACL SETUSER x", "MULTI",
        "GET a\r\nSET b 1", "GET a\nFLUSHALL", "'GET' a b", "COPY text x", "RESTORE x 0 y", "XADD s * a 1",
        "PUBLISH a b",
        "DBSIZE x", "TOUCH text", "OBJECT FREQ text",
    ):  # fmt: skip
        with pytest.raises(InvalidConfig):
            reason("redis", redis.dsn(), query)
    assert (redis.ask("DEBUG", "DIGEST"), redis.ask("DBSIZE")) == before
