"""No write through the source type `database`, whatever the query and whoever the user: real servers, superusers.

Each hostile statement is tried twice: as a definition would give it, and past the text check, so that the read-only
session alone has to hold. What a session cannot stop (files, other sessions, locks) the text check must refuse.
"""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.probes.database import DatabaseConfig
from tests.databases import SECRET, mariadb_running
from tests.postgres import postgres  # noqa: F401
from tests.servers import make_prober

POSTGRES = """
CREATE TABLE orders (id int PRIMARY KEY, note text);
INSERT INTO orders SELECT n, 'n' || n FROM generate_series(1, 5) n;
CREATE SEQUENCE tickets;
CREATE FUNCTION deletes() RETURNS int LANGUAGE plpgsql AS $$ BEGIN DELETE FROM orders; RETURN 1; END $$;
CREATE FUNCTION unlocks() RETURNS int LANGUAGE plpgsql AS $$
  BEGIN PERFORM set_config('transaction_read_only', 'off', true); DELETE FROM orders; RETURN 1; END $$;
CREATE FUNCTION unlocks_inside() RETURNS int LANGUAGE plpgsql AS $$
  BEGIN BEGIN SET LOCAL transaction_read_only = off; EXCEPTION WHEN OTHERS THEN NULL; END;
  DELETE FROM orders; RETURN 1; END $$;
CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$
  BEGIN COMMIT; SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; COMMIT; DELETE FROM orders; END $$;
CREATE VIEW trap AS SELECT deletes() AS n;
"""

# What a read-only transaction has to stop by itself.
POSTGRES_WRITES = """
INSERT INTO orders VALUES (9, 'x')
UPDATE orders SET note = 'x'
DELETE FROM orders
TRUNCATE orders
DROP TABLE orders
ALTER TABLE orders ADD COLUMN x int
CREATE TABLE x (id int)
CREATE TABLE x AS SELECT 1
SELECT 1 INTO x
CREATE INDEX ON orders (note)
CREATE ROLE thief SUPERUSER
ALTER ROLE CURRENT_USER SET work_mem = '1MB'
GRANT ALL ON orders TO PUBLIC
COPY orders FROM PROGRAM 'echo 9'
MERGE INTO orders o USING (SELECT 9 AS id) s ON o.id = s.id WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'x')
WITH gone AS (DELETE FROM orders RETURNING id) SELECT count(*) FROM gone
WITH new AS (INSERT INTO orders VALUES (9, 'x') RETURNING id) SELECT id FROM new
WITH new AS (UPDATE orders SET note = 'x' RETURNING id) SELECT count(*) FROM new
SELECT deletes()
SELECT n FROM trap
SELECT unlocks()
SELECT unlocks_inside()
CALL commits()
DO $$ BEGIN COMMIT; SET default_transaction_read_only = off; COMMIT; DELETE FROM orders; END $$
DO $$ BEGIN DELETE FROM orders; END $$
SELECT nextval('tickets')
SELECT setval('tickets', 99)
SELECT id FROM orders FOR UPDATE
SELECT '\\'; DROP TABLE orders; --'
SELECT 1; DELETE FROM orders
SELECT 1; COMMIT; DELETE FROM orders
COMMIT; DELETE FROM orders
COMMIT AND CHAIN
SET TRANSACTION READ WRITE
SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE
BEGIN; DELETE FROM orders; COMMIT
EXPLAIN ANALYZE DELETE FROM orders
PREPARE x AS DELETE FROM orders
SELECT lo_create(4711)
SELECT lo_from_bytes(4711, 'x')
COMMENT ON TABLE orders IS 'x'
REFRESH MATERIALIZED VIEW x
VACUUM orders
CLUSTER orders
REINDEX TABLE orders
LISTEN x
SELECT * FROM query_to_xml('DELETE FROM orders', true, false, '')
""".strip().splitlines()

# What such a transaction lets through, or may.
POSTGRES_REFUSED = """
SELECT set_config('transaction_read_only', 'off', false)
SELECT pg_sleep(60)
SELECT "pg_sleep"(60)
SELECT pg_catalog.pg_sleep (60)
SELECT pg_catalog./**/pg_sleep/**/(60)
SELECT U&"\\0070g_sleep"(60)
SELECT U&"!0070g_sleep" UESCAPE '!' (60)
SELECT pg_terminate_backend(1)
SELECT pg_cancel_backend(1)
SELECT pg_advisory_lock(1)
SELECT pg_try_advisory_lock(1)
SELECT pg_reload_conf()
SELECT pg_rotate_logfile()
SELECT pg_switch_wal()
SELECT pg_notify('a', 'b')
SELECT pg_read_file('/etc/passwd')
SELECT pg_read_binary_file('/etc/passwd')
SELECT pg_ls_dir('/')
SELECT pg_stat_file('/etc/passwd')
SELECT pg_file_write('/tmp/x', 'x', true)
SELECT pg_stat_reset()
SELECT pg_create_physical_replication_slot('x')
SELECT lo_export(1, '/tmp/x')
SELECT lo_import('/etc/passwd')
SELECT lo_unlink(1)
SELECT dblink_exec('dbname=postgres', 'DELETE FROM orders')
SELECT * FROM dblink('dbname=postgres', 'DELETE FROM orders') AS t(a text)
SELECT query_to_xml('DELETE FROM orders', true, false, '')
SELECT ts_stat('SELECT 1')
SELECT $$a$$
SELECT $1
SELECT 1$a$ pg_sleep(60)
SELECT $x$ ' $x$, pg_sleep(60)
SELECT E'\\'', pg_sleep(60) --'
SELECT 1 --\rDELETE
SELECT 1 /* /* */ , pg_sleep(60) -- */
SELECT 1 FROM orders FOR SHARE
SELECT 1 FROM orders FOR NO KEY UPDATE
SELECT 1 FROM orders FOR KEY SHARE
""".strip().split("\n")

MARIADB_WRITES = """
INSERT INTO orders VALUES (9, 'x')
INSERT INTO old VALUES (9)
REPLACE INTO orders VALUES (1, 'x')
UPDATE orders SET note = 'x'
DELETE FROM orders
DELETE orders FROM orders JOIN old
TRUNCATE orders
TRUNCATE old
DROP TABLE orders
DROP DATABASE shop
ALTER TABLE orders ADD COLUMN x INT
CREATE TABLE x (id INT)
CREATE TABLE x AS SELECT 1 AS id
CREATE TABLE x LIKE orders
CREATE VIEW x AS SELECT 1
CREATE INDEX x ON orders (note)
CREATE DATABASE x
CREATE USER thief IDENTIFIED BY 'x'
CREATE FUNCTION x() RETURNS INT RETURN 1
CREATE TRIGGER x BEFORE INSERT ON orders FOR EACH ROW SET @a = 1
CREATE EVENT x ON SCHEDULE EVERY 1 DAY DO DELETE FROM orders
GRANT ALL ON *.* TO clerk
REVOKE SELECT ON shop.old FROM clerk
RENAME TABLE orders TO x
RENAME USER clerk TO x
LOAD DATA INFILE '/etc/hostname' INTO TABLE orders
SELECT NEXTVAL(tickets)
SELECT NEXT VALUE FOR tickets
SELECT SETVAL(tickets, 99)
SELECT deletes()
SELECT writes()
SELECT unlocks()
WITH gone AS (SELECT deletes() AS n) SELECT n FROM gone
SELECT 1; DELETE FROM orders
SELECT 1; COMMIT; DELETE FROM orders
COMMIT; DELETE FROM orders
SELECT '\\'; DELETE FROM orders; -- '
BEGIN NOT ATOMIC COMMIT; DELETE FROM orders; END
OPTIMIZE TABLE orders
ANALYZE TABLE orders PERSISTENT FOR ALL
LOCK TABLES orders WRITE
EXECUTE IMMEDIATE 'DELETE FROM orders'
SET STATEMENT tx_read_only = 0 FOR DELETE FROM orders
CALL x()
INSERT DELAYED INTO old VALUES (9)
""".strip().splitlines()

MARIADB_REFUSED = """
SELECT SLEEP(60)
SELECT `sleep`(60)
SELECT SLEEP (60)
SELECT SLEEP/**/(60)
SELECT BENCHMARK(1000000000, SHA2('a', 512))
SELECT GET_LOCK('a', 60)
SELECT RELEASE_ALL_LOCKS()
SELECT LOAD_FILE('/etc/passwd')
SELECT MASTER_POS_WAIT('a', 1)
SELECT sys_exec('id')
SELECT note FROM orders INTO OUTFILE '/tmp/observer-stolen'
SELECT note INTO DUMPFILE '/tmp/observer-stolen' FROM orders
SELECT note FROM orders /*! INTO OUTFILE '/tmp/observer-stolen' */
SELECT note FROM orders /*!50000 INTO OUTFILE '/tmp/observer-stolen' */
SELECT note FROM orders /*M! INTO OUTFILE '/tmp/observer-stolen' */
SELECT note FROM orders /*m!100100 INTO OUTFILE '/tmp/observer-stolen' */
SELECT /*+ MAX_EXECUTION_TIME(0) */ 1
SELECT 1 --1 INTO OUTFILE '/tmp/observer-stolen'
SELECT 1 --\x0bINTO OUTFILE '/tmp/observer-stolen'
SELECT 1 --\u00a01 INTO OUTFILE '/tmp/observer-stolen'
SELECT '\\' INTO OUTFILE ' /tmp/observer-stolen'
SELECT 1 INTO @a
SELECT 1 FROM orders FOR UPDATE
SELECT 1 FROM orders LOCK IN SHARE MODE
SELECT 1 FROM orders FOR SHARE
SHUTDOWN
KILL 1
FLUSH TABLES
SET GLOBAL max_connections = 1
SET PASSWORD = ''
DO SLEEP(60)
HANDLER orders OPEN
SELECT 1 /* open
""".strip().split("\n")


def past_the_check(kind, query, dsn):
    return make_prober({"PROBE_DSN": dsn}).look("database", DatabaseConfig(kind, "PROBE_DSN", query, 5.0))


def as_a_definition(kind, query, dsn):
    raw = {"kind": kind, "connection_string_ref": "PROBE_DSN", "query": query}
    try:
        config = probes.parse("database", raw)
    except InvalidConfig as error:
        assert query not in str(error)
        return None
    return make_prober({"PROBE_DSN": dsn}).look("database", config)


# -- PostgreSQL


@pytest.fixture(scope="module")
def shop(postgres):  # noqa: F811
    with closing(psycopg.connect(f"{postgres.url}/postgres", autocommit=True)) as conn:
        conn.execute("CREATE DATABASE writes")
    url = f"{postgres.url}/writes"
    with closing(psycopg.connect(url, autocommit=True)) as conn:
        conn.execute(POSTGRES)
    return url


def postgres_state(url):
    """Everything that any of the statements would change."""
    with closing(psycopg.connect(url, autocommit=True)) as conn:
        return [
            conn.execute(question).fetchall()
            for question in (
                "SELECT * FROM orders ORDER BY id",
                "SELECT last_value, is_called FROM tickets",
                "SELECT relname, relfilenode, relacl::text FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace ORDER BY oid",
                "SELECT rolname, rolsuper FROM pg_authid ORDER BY oid",
                "SELECT setconfig::text FROM pg_db_role_setting",
                "SELECT count(*) FROM pg_largeobject_metadata",
                "SELECT count(*) FROM pg_description d JOIN pg_class c ON c.oid = d.objoid WHERE c.relname = 'orders'",
                "SELECT slot_name FROM pg_replication_slots",
            )
        ]


@pytest.mark.slow
def test_w16_no_statement_writes_on_postgresql_not_even_past_the_text_check(shop):
    before = postgres_state(shop)
    for query in [*POSTGRES_WRITES, *POSTGRES_REFUSED[:1]]:
        past_the_check("postgres", query, shop)
        assert postgres_state(shop) == before, query


@pytest.mark.slow
def test_w16_no_definition_writes_on_postgresql(shop):
    before = postgres_state(shop)
    for query in [*POSTGRES_WRITES, *POSTGRES_REFUSED]:
        reading = as_a_definition("postgres", query, shop)
        assert reading is None or reading.reason == "db_query_not_allowed", query
    assert postgres_state(shop) == before


@pytest.mark.parametrize("query", POSTGRES_REFUSED)
def test_w16_the_text_check_refuses_what_a_read_only_transaction_lets_through(query):
    assert as_a_definition("postgres", query, "") is None


# -- MariaDB


@pytest.fixture(scope="module")
def mariadb():
    with mariadb_running() as server:
        yield server


def mariadb_state(server):
    """Everything that any of the statements would change."""
    return [
        server.ask(question)
        for question in (
            "SELECT * FROM shop.orders ORDER BY id",
            "SELECT * FROM shop.old",
            "SELECT * FROM shop.tickets",
            "SELECT TABLE_NAME, CREATE_TIME FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'shop' ORDER BY 1",
            "SELECT TABLE_NAME, COLUMN_NAME, COLUMN_KEY FROM information_schema.COLUMNS "
            "WHERE TABLE_SCHEMA = 'shop' ORDER BY 1, 2",
            "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = 'shop' ORDER BY 1",
            "SELECT SCHEMA_NAME FROM information_schema.SCHEMATA ORDER BY 1",
            "SELECT User, Host, Priv FROM mysql.global_priv ORDER BY 1, 2",
            "SELECT Db, User, Table_name, Table_priv FROM mysql.tables_priv ORDER BY 1, 2, 3",
            "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = 'shop'",
            "SELECT EVENT_NAME FROM information_schema.EVENTS",
            "SELECT COUNT(*) FROM mysql.table_stats",
            "SELECT @@GLOBAL.max_connections",
        )
    ]


@pytest.mark.slow
def test_w17_no_statement_writes_on_mariadb_not_even_past_the_text_check(mariadb):
    before = mariadb_state(mariadb)
    for query in MARIADB_WRITES:
        past_the_check("mysql", query, mariadb.dsn())
        assert mariadb_state(mariadb) == before, query


@pytest.mark.slow
def test_w17_no_definition_writes_on_mariadb(mariadb):
    before = mariadb_state(mariadb)
    for query in [*MARIADB_WRITES, *MARIADB_REFUSED]:
        reading = as_a_definition("mysql", query, mariadb.dsn())
        assert reading is None or reading.reason == "db_query_not_allowed", query
    assert mariadb_state(mariadb) == before


@pytest.mark.parametrize("query", MARIADB_REFUSED)
def test_w17_the_text_check_refuses_what_a_read_only_session_lets_through(query):
    assert as_a_definition("mysql", query, "") is None


@pytest.mark.slow
def test_the_password_of_the_superuser_was_right(mariadb):
    """Else the tests above would show nothing."""
    reading = past_the_check("mysql", "SELECT COUNT(*) FROM orders", mariadb.dsn())
    assert reading.value == 5
    assert SECRET not in str(reading)
