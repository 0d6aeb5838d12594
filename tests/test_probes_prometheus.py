"""The prometheus probe: queries, credentials, reasons, and scrape mode."""

from __future__ import annotations

import json
from urllib.parse import parse_qs

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent import probes
from observer_agent.model import Fault
from observer_agent.probes import prometheus
from observer_agent.probes._reasons import Failed
from observer_agent.probes._url import parse_url
from observer_agent.probes.prometheus import query_url
from tests.servers import Server, answer, make_prober, refused_port, scripted

SECRET_QUERY = 'sum(rate(http_requests_total{customer="hunter2"}[5m]))'
AUTH = {"PROMETHEUS_PASSWORD": "hunter2-password"}


def vector(*values, **more):
    result = [{"metric": {}, "value": [1700000000.5, value]} for value in values]
    return body({"resultType": "vector", "result": result}, **more)


def body(data, status="success", **more):
    return answer(json.dumps({"status": status, "data": data, **more}))


def look(prober, timeout_ms=2000, **config):
    return prober.look("prometheus", probes.parse("prometheus", {"timeout_ms": timeout_ms, **config}))


def ask(reply, query="up", **settings):
    with Server(scripted(reply)) as server:
        reading = look(make_prober(PROMETHEUS_SERVER_URL=server.url, **settings), query=query)
    return reading, server


# -- values


def test_a_vector_of_one_and_a_scalar_are_values():
    reading, server = ask(vector("1.5"))
    assert (reading.value, reading.fault) == (1.5, None)
    assert server.requests[0].startswith(b"GET /api/v1/query?query=up HTTP/1.1\r\n")
    reading, _ = ask(body({"resultType": "scalar", "result": [1700000000, "42"]}))
    assert reading.value == 42.0


def test_w7_the_backend_s_time_is_detail_only():
    reading, _ = ask(vector("1"))
    assert reading.detail["sample_time"] == 1700000000.5


def test_w20_warnings_are_kept_without_the_query():
    said = ['metric "hunter2_total" is odd', f"bad: {SECRET_QUERY}", "plain", "fourth"]
    reading, _ = ask(vector("1", warnings=said[:1], infos=said[1:]), query=SECRET_QUERY)
    assert reading.value == 1.0
    assert len(reading.detail["warnings"]) == 3 and "plain" in reading.detail["warnings"]
    assert "hunter2" not in str(reading)


@pytest.mark.parametrize(
    ("reply", "reason", "fault"),
    [
        (answer(status=400), "BadQuery", Fault.CONFIG),
        (answer(status=401), "Unauthorized", Fault.CONFIG),
        (answer(status=403), "Unauthorized", Fault.CONFIG),
        (answer(status=404), "prom_not_found", Fault.CONFIG),
        (answer(status=422), "BadQuery", Fault.CONFIG),
        (answer(status=429), "prom_rate_limited", Fault.TARGET),
        (answer(status=418), "prom_bad_response", Fault.TARGET),
        (answer(status=500), "PromUpstream", Fault.TARGET),
        (answer(status=503), "PromUpstream", Fault.TARGET),
        (answer(status=307, Location="/x"), "prom_redirect", Fault.TARGET),
        (answer("<html>"), "prom_bad_response", Fault.TARGET),
        (answer("[]"), "prom_bad_response", Fault.TARGET),
        (answer(b"\x80"), "prom_bad_response", Fault.TARGET),
        (answer("[" * 100_000), "prom_bad_response", Fault.TARGET),
        (answer(vector("1"), Content_Encoding="gzip"), "prom_bad_response", Fault.TARGET),
        (answer(status=204), "prom_bad_response", Fault.TARGET),
        (body({}, status="error"), "prom_bad_response", Fault.TARGET),
        (body(None), "no_data_for_query", Fault.CONFIG),
        (body({"resultType": "vector"}), "no_data_for_query", Fault.CONFIG),
        (body({"resultType": "vector", "result": {}}), "no_data_for_query", Fault.CONFIG),
        (body({"resultType": "vector", "result": [{"metric": {}}]}), "no_data_for_query", Fault.CONFIG),
        (body({"resultType": "vector", "result": [{"value": [1]}]}), "no_data_for_query", Fault.CONFIG),
        (body({"resultType": "matrix", "result": [{"values": [[1, "2"]]}]}), "no_data_for_query", Fault.CONFIG),
        (body({"resultType": "string", "result": [1, "2"]}), "no_data_for_query", Fault.CONFIG),
        (vector(), "no_data_for_query", Fault.CONFIG),
        (vector("NaN"), "no_data_for_query", Fault.CONFIG),
        (vector("+Inf"), "no_data_for_query", Fault.CONFIG),
        (vector("-Inf"), "no_data_for_query", Fault.CONFIG),
        (vector("junk"), "no_data_for_query", Fault.CONFIG),
        (vector("1", "2"), "prom_multiple_series", Fault.CONFIG),
        (answer(b" " * 1_048_577), "body_too_large", Fault.TARGET),
    ],
)
def test_w20_reasons(reply, reason, fault):
    reading, _ = ask(reply, query=SECRET_QUERY)
    assert (reading.value, reading.reason, reading.fault) == (None, reason, fault)
    assert "hunter2" not in str(reading)
    assert reading.detail["query"].startswith("#")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["vector", "scalar", "success"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "data", "resultType", "result", "value", "warnings"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(JSON | st.fixed_dictionaries({"data": st.fixed_dictionaries({"resultType": JSON, "result": JSON})}))
def test_any_json_is_an_answer_or_a_failure(content):
    try:
        found = prometheus._understand(json.dumps(content).encode())
    except Failed:
        return
    assert isinstance(found.text, str)


def test_w14_the_largest_answer_is_one_mebibyte():
    reading, _ = ask(answer(vector("1").partition(b"\r\n\r\n")[2].ljust(1_048_576)))
    assert reading.value == 1.0


def test_several_series_are_counted():
    assert ask(vector("1", "2", "3"))[0].detail["series"] == 3


def test_a_network_s_failures_keep_their_documented_names():
    with refused_port() as port:
        reading = look(make_prober(PROMETHEUS_SERVER_URL=f"http://127.0.0.1:{port}"), query="up")
    assert reading.reason == "ECONNREFUSED"
    reading = look(make_prober(PROMETHEUS_SERVER_URL="http://nowhere.test"), query="up")
    assert (reading.reason, reading.detail["code"]) == ("DNS", "ENOTFOUND")


# -- where to ask


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("http://p", "/api/v1/query"),
        ("http://p/", "/api/v1/query"),
        ("http://p/prefix//", "/prefix/api/v1/query"),
        ("http://p/prefix/api/v1", "/prefix/api/v1/query"),
        ("http://p/api/v1/query/", "/api/v1/query"),
        ("http://p/x?dedup=true#f", "/x/api/v1/query?dedup=true"),
    ],
)
def test_urls_are_joined(given, target):
    assert query_url(parse_url(given)).target == target


def test_query_parameters_stay():
    with Server(scripted(vector("1"))) as server:
        look(make_prober(), query="a b", prometheus_url=f"{server.url}/p?dedup=true")
    assert server.requests[0].startswith(b"GET /p/api/v1/query?dedup=true&query=a+b HTTP/1.1\r\n")


def test_w20_long_queries_are_posted():
    query = "+".join(["up"] * 1000)
    reading, server = ask(vector("7"), query=query, PROMETHEUS_TENANT_ID="me")
    head, _, form = server.requests[0].partition(b"\r\n\r\n")
    assert reading.value == 7.0
    assert head.startswith(b"POST /api/v1/query HTTP/1.1\r\n")
    assert b"Content-Type: application/x-www-form-urlencoded\r\n" in head and b"X-Scope-OrgID: me\r\n" in head
    assert parse_qs(form.decode()) == {"query": [query]}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "prometheus_url_missing"),
        ("  ", "prometheus_url_missing"),
        ("nonsense", "invalid_prometheus_url"),
        ("ftp://p", "invalid_prometheus_url"),
        ("http://u:hunter2@p", "invalid_prometheus_url"),
    ],
)
def test_w13_the_agent_s_own_url(url, reason):
    reading = look(make_prober(**({"PROMETHEUS_SERVER_URL": url} if url else {})), query="up")
    assert (reading.reason, reading.fault) == (reason, Fault.CONFIG)
    assert "hunter2" not in str(reading)


def test_an_empty_url_of_a_metric_means_the_agent_s():
    with Server(scripted(vector("1"))) as server:
        assert look(make_prober(PROMETHEUS_SERVER_URL=server.url), query="up", prometheus_url="").value == 1.0


# -- credentials


def headers_of(server):
    lines = server.requests[0].partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, {}),
        (AUTH, {"authorization": "Basic YWRtaW46aHVudGVyMi1wYXNzd29yZA=="}),
        ({**AUTH, "PROMETHEUS_BASIC_AUTH_ENABLED": "false"}, {}),
        ({"PROMETHEUS_BEARER_TOKEN": " token-token "}, {"authorization": "Bearer token-token"}),
        ({"PROMETHEUS_TENANT_ID": " me "}, {"x-scope-orgid": "me"}),
        (
            {"PROMETHEUS_HEADERS": "X-A: 1; X-B: 2:3\nAuthorization: Custom x"},
            {"x-b": "2:3", "authorization": "Custom x"},
        ),
        ({"PROMETHEUS_HEADERS": '{"X-A": "a", "X-N": 5}'}, {"x-a": "a", "x-n": "5"}),
    ],
)
def test_credentials_go_to_the_configured_prometheus(settings, sent):
    _, server = ask(vector("1"), **settings)
    expected = {"authorization": None, "x-scope-orgid": None, **sent}
    found = headers_of(server)
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({**AUTH, "PROMETHEUS_BEARER_TOKEN": "hunter2"}, "prometheus_auth_conflict"),
        ({**AUTH, "PROMETHEUS_HEADERS": "authorization: hunter2"}, "prometheus_auth_conflict"),
        ({"PROMETHEUS_BEARER_TOKEN": "x", "PROMETHEUS_HEADERS": "Authorization: hunter2"}, "prometheus_auth_conflict"),
        ({"PROMETHEUS_TENANT_ID": "x", "PROMETHEUS_HEADERS": "x-scope-orgid: hunter2"}, "prometheus_auth_conflict"),
        ({"PROMETHEUS_HEADERS": "{hunter2"}, "prometheus_headers_invalid"),
        ({"PROMETHEUS_HEADERS": '{"X-A": ["hunter2"]}'}, "prometheus_headers_invalid"),
        ({"PROMETHEUS_HEADERS": '{"X-A": true}'}, "prometheus_headers_invalid"),
        ({"PROMETHEUS_HEADERS": '{"X-A": "a\\nhunter2: b"}'}, "prometheus_headers_invalid"),
        ({"PROMETHEUS_HEADERS": '{"X A": "hunter2"}'}, "prometheus_headers_invalid"),
        ({"PROMETHEUS_HEADERS": "no colon"}, "prometheus_headers_invalid"),
        ({"PROMETHEUS_HEADERS": "Content-Length: 5"}, "prometheus_headers_invalid"),
    ],
)
def test_credentials_that_contradict_one_another_stop_the_request(settings, reason):
    reading, server = ask(vector("1"), **settings)
    assert (reading.reason, reading.fault) == (reason, Fault.CONFIG)
    assert "hunter2" not in str(reading)
    assert server.connections == 0


def test_w11_credentials_go_to_no_other_origin():
    settings = {**AUTH, "PROMETHEUS_TENANT_ID": "me", "PROMETHEUS_HEADERS": "X-Extra: 1"}
    with Server(scripted(vector("1"))) as own, Server(scripted(vector("2"))) as other:
        prober = make_prober(PROMETHEUS_SERVER_URL=own.url, **settings)
        assert look(prober, query="up", prometheus_url=other.url).value == 2.0
        assert look(prober, query="up", prometheus_url=f"{own.url}/prefix").value == 1.0
    assert not {"authorization", "x-scope-orgid", "x-extra"} & set(headers_of(other))
    assert {"authorization", "x-scope-orgid", "x-extra"} <= set(headers_of(own))


def test_w11_without_a_configured_prometheus_nobody_gets_credentials():
    with Server(scripted(vector("1"))) as server:
        look(make_prober(**AUTH), query="up", prometheus_url=server.url)
    assert "authorization" not in headers_of(server)


def test_the_query_reaches_no_line(caught):
    ask(answer(status=400), query=SECRET_QUERY)
    assert "hunter2" not in caught.text


# -- scrape mode

PAGE = 'jobs{queue="a",state="x"} 3\njobs{queue="b"} 4 1700000000000\njobs{queue="n"} NaN\n' + "up 1\nbad{ 1\n"


def scrape(page=PAGE, metric="up", env=None, **config):
    reply = page if isinstance(page, bytes) else answer(page)
    with Server(scripted(reply)) as server:
        reading = look(make_prober(env), scrape_url=f"{server.url}/metrics?x=y", metric=metric, **config)
    return reading, server


def test_scrape_picks_one_sample():
    reading, server = scrape(metric="jobs", labels={"queue": "b"})
    assert (reading.value, reading.detail["sample_time"]) == (4.0, 1700000000000.0)
    assert server.requests[0].startswith(b"GET /metrics?x=y HTTP/1.1\r\n")
    assert headers_of(server)["accept"].startswith("text/plain;version=0.0.4")
    assert scrape(metric="jobs", labels={"state": "x"})[0].value == 3.0


@pytest.mark.parametrize(
    ("metric", "labels", "reason"),
    [
        ("jobs", None, "prom_multiple_series"),
        ("jobs", {"queue": "none"}, "no_data_for_query"),
        ("jobs", {"queue": "n"}, "no_data_for_query"),
        ("job", None, "no_data_for_query"),
        ("jobs_total", None, "no_data_for_query"),
        ("bad", None, "prom_bad_response"),
    ],
)
def test_scrape_reasons(metric, labels, reason):
    reading, _ = scrape(metric=metric, labels=labels)
    assert (reading.value, reading.reason) == (None, reason)
    assert reading.fault is (Fault.TARGET if reason == "prom_bad_response" else Fault.CONFIG)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "Unauthorized"), (404, "prom_not_found"), (500, "PromUpstream"), (302, "prom_redirect")],
)
def test_scrape_statuses(status, reason):
    assert scrape(answer(status=status, Location="/x"))[0].reason == reason


def test_w14_a_page_has_at_most_16_mib():
    assert scrape(answer(b"up 1\n".ljust(16_777_216, b"\n")))[0].value == 1.0
    assert scrape(answer(b"up 1\n".ljust(16_777_217, b"\n")))[0].reason == "body_too_large"


def test_scrape_sends_its_refs_and_no_other_credentials():
    reading, server = scrape(env={"PROBE_T": "token"}, header_refs={"Authorization": "PROBE_T"})
    assert reading.value == 1.0
    assert headers_of(server)["authorization"] == "token"
    with Server(scripted(answer("up 1"))) as server:
        look(make_prober(PROMETHEUS_SERVER_URL=server.url, **AUTH), scrape_url=server.url, metric="up")
    assert "authorization" not in headers_of(server)
