"""The source type `elasticsearch`, against a local server that answers as Elasticsearch and OpenSearch document it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import _aggregation
from observer_agent.probes._reasons import Failed
from tests import servers
from tests.contracts.test_probe import nothing_left
from tests.servers import Authority, Server, answer, make_prober, refused_port, scripted

QUERY = {
    "query": {"query_string": {"query": "hunter2-customer AND status:500"}},
    "size": 50,
    "aggs": {"load": {"percentiles": {"field": "load_time", "percents": [95]}}},
}
WHOLE = {"total": 5, "successful": 5, "skipped": 0, "failed": 0}


def found(aggregations, shards=WHOLE, **more):
    hits = {"total": {"value": 10000, "relation": "gte"}, "max_score": None, "hits": []}
    body = {"took": 3, "timed_out": False, "_shards": shards, "hits": hits, **more}
    if aggregations is not None:
        body["aggregations"] = aggregations
    return answer(json.dumps(body), Content_Type="application/json")


def error(kind, reason, status):
    cause = {"type": kind, "reason": reason}
    body = {"error": {"root_cause": [cause], **cause}, "status": status}
    return answer(json.dumps(body), status, Content_Type="application/json")


def look(prober, timeout_ms=2000, **config):
    whole = {"index": "logs-*", "query": QUERY, "agg_name": "load", "timeout_ms": timeout_ms, **config}
    return prober.look("elasticsearch", probes.parse("elasticsearch", whole))


def ask(reply, env=None, **config):
    with nothing_left(), Server(scripted(reply)) as server:
        reading = look(make_prober(env), base_url=server.url, **config)
    return reading, server


# -- the request


def test_the_search_is_posted_with_size_0():
    reading, server = ask(found({"load": {"value": 4.5}}), index="logs-a,logs-*/x")
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert reading.value == 4.5
    assert head.startswith(b"POST /logs-a%2Clogs-%2A%2Fx/_search HTTP/1.1\r\n")
    assert b"Content-Type: application/json\r\n" in head
    assert json.loads(body) == {**QUERY, "size": 0}


def test_a_prefix_of_the_base_stays():
    with Server(scripted(found({"load": {"value": 1}}))) as server:
        look(make_prober(), base_url=f"{server.url}/es/")
    assert server.requests[0].startswith(b"POST /es/logs-%2A/_search ")


# -- values

PERCENTILES = {"values": {"50.0": 12.0, "95.0": 80.5, "99.9": 100.0, "95.0_as_string": "80.5"}}
LIST = {"values": [{"key": 50.0, "value": 12.0}, {"key": 95.0, "value": 80.5}]}
STATS = {"count": 3, "min": 1.0, "max": 9.0, "avg": 4.0, "sum": 12.0}
NESTED = {"errors": {"doc_count": 7, "load": {"value": 3.5}, "deep": {"doc_count": 2, "p": PERCENTILES}}}


@pytest.mark.parametrize(
    ("aggregations", "name", "percentile", "value"),
    [
        ({"load": {"value": 0.0}}, "load", None, 0.0),
        ({"load": {"value": 4, "value_as_string": "4"}}, "load", None, 4.0),
        ({"load": PERCENTILES}, "load", "95", 80.5),
        ({"load": PERCENTILES}, "load", "95.0", 80.5),
        ({"load": PERCENTILES}, "load", "99.9", 100.0),
        ({"load": {"values": {"95.0": 80.5}}}, "load", None, 80.5),
        ({"load": LIST}, "load", "95", 80.5),
        ({"load": STATS}, "load.max", None, 9.0),
        ({"a.b": {"value": 1}}, "a.b", None, 1.0),
        ({"a.b": STATS}, "a.b.avg", None, 4.0),
        (NESTED, "errors", None, 7.0),
        (NESTED, "errors>_count", None, 7.0),
        (NESTED, "errors>load", None, 3.5),
        (NESTED, "errors > deep > p", "50", 12.0),
        (NESTED, "errors>deep>_count", None, 2.0),
    ],
)
def test_w25_values_of_every_shape(aggregations, name, percentile, value):
    reading, _ = ask(found(aggregations), agg_name=name, percentile=percentile)
    assert (reading.value, reading.reason) == (value, None)


@pytest.mark.parametrize(
    "aggregation",
    [
        {"values": {"95.0": None}},
        {"values": [{"key": 95.0, "value": None}]},
        {"values": {"95.0": "NaN"}},
        {"value": None},
        {"value": "Infinity"},
        {"value": 10**400},
    ],
)
def test_w25_a_null_is_no_data_and_no_zero(aggregation):
    reading, _ = ask(found({"load": aggregation}), percentile="95")
    assert (reading.value, reading.reason) == (None, "es_no_data")


@pytest.mark.parametrize("name", ["load.min", "load.avg"])
def test_w25_the_minimum_of_nothing_is_no_data(name):
    empty = {"count": 0, "min": None, "max": None, "avg": None, "sum": 0.0}
    assert ask(found({"load": empty}), agg_name=name)[0].reason == "es_no_data"


def test_w25_a_search_that_timed_out_has_no_value():
    reading, _ = ask(found({"load": {"value": 3}}, timed_out=True))
    assert (reading.value, reading.reason, reading.fault) == (None, "es_timeout", Fault.TARGET)
    assert reading.detail["timed_out"] is True


def test_w25_a_search_that_some_shards_could_not_answer_has_no_value():
    cause = {"shard": 0, "index": "logs-1", "reason": {"type": "circuit_breaking_exception", "reason": "hunter2"}}
    shards = {"total": 5, "successful": 4, "skipped": 0, "failed": 1, "failures": [cause]}
    reading, _ = ask(found({"load": {"value": 3}}, shards))
    assert (reading.value, reading.reason, reading.fault) == (None, "es_shards_failed", Fault.TARGET)
    assert "circuit_breaking_exception" in reading.detail["said"]
    assert (reading.detail["shards_failed"], reading.detail["shards_total"]) == (1, 5)
    assert "hunter2" not in str(reading)


def test_shards_that_were_skipped_are_well():
    assert ask(found({"load": {"value": 3}}, {**WHOLE, "skipped": 3}))[0].value == 3.0


# -- reasons

NO_INDEX = error("index_not_found_exception", "no such index [logs-x]", 404)


@pytest.mark.parametrize(
    ("reply", "reason", "fault"),
    [
        (error("security_exception", "missing authentication credentials", 401), "es_unauthorized", Fault.CONFIG),
        (answer("Forbidden", 403), "es_unauthorized", Fault.CONFIG),
        (NO_INDEX, "es_index_not_found", Fault.CONFIG),
        (found(None, {"total": 0, "successful": 0, "skipped": 0, "failed": 0}), "es_index_not_found", Fault.CONFIG),
        (error("parsing_exception", "[hunter2-customer AND status:500]", 400), "es_query_error", Fault.CONFIG),
        (answer(status=422), "es_query_error", Fault.CONFIG),
        (error("search_phase_execution_exception", "all shards failed", 503), "es_server_error", Fault.TARGET),
        (error("es_rejected_execution_exception", "rejected execution", 429), "es_error", Fault.TARGET),
        (answer(status=301, Location="/x"), "es_error", Fault.TARGET),
        (answer("<html>"), "es_error", Fault.TARGET),
        (answer("[]"), "es_error", Fault.TARGET),
        (answer(b" " * 1_048_577), "body_too_large", Fault.TARGET),
        (found(None), "es_agg_not_found", Fault.CONFIG),
        (found({}), "es_agg_not_found", Fault.CONFIG),
        (found([]), "es_agg_not_found", Fault.CONFIG),
        (found({"other": {"value": 1}}), "es_agg_not_found", Fault.CONFIG),
        (found({"load": PERCENTILES}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": {"values": {}}}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": {"values": "x"}}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": {"buckets": []}}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": {"value": True}}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": {"value": "12"}}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": {"value": {"lat": 1}}}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": STATS}), "es_agg_unsupported", Fault.CONFIG),
        (found({"load": {"value": None}}), "es_no_data", Fault.CONFIG),
    ],
)
def test_reasons(reply, reason, fault):
    reading, _ = ask(reply)
    assert (reading.value, reading.reason, reading.fault) == (None, reason, fault), reading.detail
    assert "hunter2" not in str(reading)
    assert reading.detail["index"] == "logs-*"


@pytest.mark.parametrize(
    ("aggregations", "name", "percentile", "reason"),
    [
        ({"load": PERCENTILES}, "load", "42", "es_agg_unsupported"),
        ({"load": {"values": {"50.0": 1.0}}}, "load", "95", "es_agg_unsupported"),
        ({"load": STATS}, "load.median", None, "es_agg_unsupported"),
        ({"t": {"buckets": [{"key": "a", "doc_count": 1}]}}, "t>x", None, "es_agg_unsupported"),
        (NESTED, "errors>none", None, "es_agg_not_found"),
        (NESTED, "none>load", None, "es_agg_not_found"),
        (NESTED, "errors>load>more", None, "es_agg_not_found"),
        (NESTED, "_count", None, "es_agg_not_found"),
    ],
)
def test_paths_that_lead_nowhere(aggregations, name, percentile, reason):
    assert ask(found(aggregations), agg_name=name, percentile=percentile)[0].reason == reason


def test_the_names_that_there_are_are_told_at_most_20():
    reading, _ = ask(found({f"a{n}": {"value": 1} for n in range(30)}))
    assert reading.detail["available"] == [f"a{n}" for n in range(20)]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (NO_INDEX, "index_not_found_exception: no such index ..."),
        (error("parsing_exception", "unknown query [hunter2]", 400), "parsing_exception: unknown query ..."),
        (
            error("x_content_parse_exception", "[1:17] [bool] failed", 400),
            "x_content_parse_exception: [1:17] ... failed",
        ),
        (error("a", "Cannot parse hunter2-customer AND status:500 now", 400), "a: Cannot parse ... now"),
        (answer('{"error": "alias is missing", "status": 400}', 400), "alias is missing"),
        (answer('{"message": "no"}', 400), "no"),
        (answer("<html>busy</html>", 502), "<html>busy</html>"),
        (answer('{"error": 5}', 500), "..."),
    ],
)
def test_a_server_s_words_without_the_query(reply, said):
    reading, _ = ask(reply)
    assert reading.detail["said"] == said
    assert reading.detail["error"] == f"the server answered {reading.detail['http_status']}"
    assert reading.detail["http_status"] >= 400


def test_unreachable_and_slow_are_told_apart():
    with refused_port() as port:
        reading = look(make_prober(), base_url=f"http://127.0.0.1:{port}")
    assert (reading.reason, reading.detail["code"]) == ("es_unreachable", "ECONNREFUSED")
    with nothing_left(), Server(servers.tarpit) as server:
        assert look(make_prober(), base_url=server.url, timeout_ms=300).reason == "es_timeout"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["load", "value", "values", "buckets", "doc_count", "95.0", "key"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON, st.sampled_from(["load", "load>load", "load.value", "load>_count"]), st.sampled_from([None, "95"]))
def test_any_json_is_a_number_or_a_failure(content, path, percentile):
    try:
        assert isinstance(_aggregation.value(content, path, percentile), float)
    except Failed:
        pass


# -- logging in


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"auth_mode": "bearer", "token_ref": "PROBE_SECRET"}, b"Authorization: Bearer hunter2-secret\r\n"),
        ({"auth_mode": "api_key", "api_key_ref": "PROBE_SECRET"}, b"Authorization: ApiKey hunter2-secret\r\n"),
        (
            {"auth_mode": "basic", "username": "elastic", "password_ref": "PROBE_SECRET"},
            b"Authorization: Basic ZWxhc3RpYzpodW50ZXIyLXNlY3JldA==\r\n",
        ),
    ],
)
def test_auth_with_trimmed_secrets(config, wanted):
    reading, server = ask(found({"load": {"value": 1}}), {"PROBE_SECRET": "hunter2-secret\n"}, **config)
    assert reading.value == 1.0
    assert wanted in server.requests[0]
    assert "hunter2-secret" not in str(reading)


@pytest.mark.parametrize("ref", ["PROBE_NONE", "AGENT_KEY", "PROMETHEUS_PASSWORD"])
def test_w8_secrets_that_are_not_to_be_had(ref):
    env = {"AGENT_KEY": "obs_live_1", "PROMETHEUS_PASSWORD": "hunter2"}
    reading, server = ask(found({}), env, auth_mode="api_key", api_key_ref=ref)
    assert (reading.reason, reading.detail["auth_ref"]) == ("es_auth_ref_missing", ref)
    assert server.connections == 0


# -- configuration

BASE = {"base_url": "http://es", "index": "i", "query": QUERY, "agg_name": "load"}


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return {"aggs": value}


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("base_url", {"base_url": "http://u:hunter2@es"}),
        ("index", {"index": ""}),
        ("index", {"index": ".."}),
        ("index", {"index": "x" * 257}),
        ("query", {"query": None}),
        ("query", {"query": {}}),
        ("query", {"query": []}),
        ("query", {"query": {"aggs": 5}}),
        ("query", {"query": {"size": 0}}),
        ("query", {"query": {"aggs": {"a": float("nan")}}}),
        ("query", {"query": {"aggs": {"a": "\ud800"}}}),
        ("query", {"query": {"aggs": {"a": "x" * 65_536}}}),
        ("query", {"query": deep(100_000)}),
        ("agg_name", {"agg_name": ""}),
        ("agg_name", {"agg_name": "x" * 257}),
        ("percentile", {"percentile": "p95"}),
        ("percentile", {"percentile": 95}),
        ("flavor", {"flavor": "solr"}),
        ("auth_mode", {"auth_mode": "digest"}),
        ("api_key_ref", {"auth_mode": "api_key"}),
        ("token_ref", {"auth_mode": "bearer"}),
        ("username", {"auth_mode": "basic", "password_ref": "PROBE_X"}),
        ("timeout_ms", {"timeout_ms": 99}),
        ("more", {"more": 1}),
    ],
)
def test_configurations_that_are_refused(field, config):
    with pytest.raises(InvalidConfig, match=f"{field}: "):
        probes.parse("elasticsearch", {**BASE, **config})


def test_defaults_are_filled_in():
    config = probes.parse("elasticsearch", BASE)
    assert (config.timeout, config.auth.mode, config.flavor, config.percentile) == (10.0, "none", "elasticsearch", None)
    assert probes.parse("elasticsearch", {**BASE, "flavor": "opensearch"}).flavor == "opensearch"
    assert probes.parse("elasticsearch", {**BASE, "query": {"aggregations": {"load": {}}}})


# -- trust


def test_an_authority_of_ones_own():
    authority, other = Authority(), Authority()
    prober = make_prober({"PROBE_CA": authority.pem, "PROBE_OTHER": other.pem, "PROBE_BAD": "-----BEGIN nothing"})
    with nothing_left(), Server(scripted(found({"load": {"value": 17}})), tls=authority.server()) as server:
        assert look(prober, base_url=server.url).reason == "tls_verify_failed"
        assert look(prober, base_url=server.url, ca_cert_ref="PROBE_OTHER").reason == "tls_verify_failed"
        assert look(prober, base_url=server.url, ca_cert_ref="PROBE_CA").value == 17
        tried = server.connections
        for ref, reason in (("PROBE_NONE", "mtls_ref_missing"), ("PROBE_BAD", "mtls_cert_parse_failed")):
            reading = look(prober, base_url=server.url, ca_cert_ref=ref)
            assert (reading.reason, reading.fault) == (reason, Fault.CONFIG)
        assert server.connections == tried
