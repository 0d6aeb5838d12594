"""The source type `loki`, against a local server that answers as Loki's HTTP API documents it, errors included."""

from __future__ import annotations

import base64
import errno
import json
import re
from urllib.parse import parse_qs, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import loki
from observer_agent.probes._backend import renamed
from observer_agent.probes._reasons import Failed, Reason, from_os_error, timed_out
from tests import servers
from tests.contracts.test_probe import nothing_left
from tests.servers import Authority, Server, answer, make_prober, refused_port, scripted

QUERY = 'sum(count_over_time({app="hunter2"} |= "error" [5m]))'
STATS = {"summary": {"bytesProcessedPerSecond": 0, "execTime": 0.0004}}


def vector(*values, at=1700000000.123):
    return result("vector", [{"metric": {"app": "x"}, "value": [at, value]} for value in values])


def result(kind, content, status="success"):
    data = {"resultType": kind, "result": content, "stats": STATS}
    return answer(json.dumps({"status": status, "data": data}), Content_Type="application/json; charset=UTF-8")


def look(prober, timeout_ms=2000, **config):
    return prober.look("loki", probes.parse("loki", {"query": QUERY, "timeout_ms": timeout_ms, **config}))


def ask(*replies, env=None, **config):
    with nothing_left(), Server(scripted(*replies)) as server:
        reading = look(make_prober(env), base_url=server.url, **config)
    return reading, server


# -- values


def test_a_vector_of_one_and_a_scalar_are_values():
    reading, server = ask(vector("17"))
    assert (reading.value, reading.detail["sample_time"], reading.detail["result_type"]) == (
        17,
        1700000000.123,
        "vector",
    )
    wanted = urlencode({"query": QUERY, "limit": "1"})
    assert server.requests[0].startswith(f"GET /loki/api/v1/query?{wanted} HTTP/1.1\r\n".encode())
    assert ask(result("scalar", [1700000000, "2.5"]), query="vector(2.5)")[0].value == 2.5


def test_a_prefix_and_a_query_of_the_base_stay_and_the_query_is_not_shown():
    with Server(scripted(vector("1"))) as server:
        reading = look(make_prober(), base_url=f"{server.url}/gateway/?tenant=hunter2")
    assert server.requests[0].startswith(b"GET /gateway/loki/api/v1/query?tenant=hunter2&query=")
    assert reading.detail["base_url"] == f"{server.url}/gateway/"


def test_long_queries_are_posted():
    query = " + ".join([QUERY] * 60)
    reading, server = ask(vector("3"), query=query)
    head, _, form = server.requests[0].partition(b"\r\n\r\n")
    assert reading.value == 3.0
    assert head.startswith(b"POST /loki/api/v1/query HTTP/1.1\r\n")
    assert parse_qs(form.decode()) == {"query": [query], "limit": ["1"]}


@pytest.mark.parametrize("at", [None, "soon", True, [], {}])
def test_w36_a_bad_timestamp_costs_the_detail_not_the_value(at):
    reading, _ = ask(vector("5", at=at))
    assert (reading.value, reading.reason) == (5.0, None)
    assert reading.detail["sample_time"] is None


# -- reasons

PARSE_ERROR = 'parse error at line 1, col 8: syntax error: unexpected IDENTIFIER, expecting "hunter2"'


@pytest.mark.parametrize(
    ("reply", "reason", "fault"),
    [
        (answer(PARSE_ERROR, 400), "loki_query_error", Fault.CONFIG),
        (answer(status=422), "loki_query_error", Fault.CONFIG),
        (answer("no org id", 401), "loki_unauthorized", Fault.CONFIG),
        (answer(status=403), "loki_unauthorized", Fault.CONFIG),
        (answer("too many outstanding requests", 429), "loki_error", Fault.TARGET),
        (answer("404 page not found", 404), "loki_error", Fault.TARGET),
        (answer(status=302, Location="/x"), "loki_error", Fault.TARGET),
        (answer("context deadline exceeded", 504), "loki_server_error", Fault.TARGET),
        (answer(status=500), "loki_server_error", Fault.TARGET),
        (result("streams", [{"stream": {}, "values": [["1", "a line"]]}]), "loki_not_aggregation", Fault.CONFIG),
        (result("streams", []), "loki_not_aggregation", Fault.CONFIG),
        (result("vector", []), "loki_no_data", Fault.CONFIG),
        (result("vector", [{"metric": {}}]), "loki_no_data", Fault.CONFIG),
        (result("vector", [5]), "loki_no_data", Fault.CONFIG),
        (vector("NaN"), "loki_no_data", Fault.CONFIG),
        (vector("+Inf"), "loki_no_data", Fault.CONFIG),
        (vector("-Inf"), "loki_no_data", Fault.CONFIG),
        (vector("0x10"), "loki_no_data", Fault.CONFIG),
        (vector(5), "loki_no_data", Fault.CONFIG),
        (vector("1", "2"), "loki_multiple_series", Fault.CONFIG),
        (result("matrix", []), "loki_bad_response", Fault.TARGET),
        (result("tensor", []), "loki_bad_response", Fault.TARGET),
        (result("vector", {}), "loki_bad_response", Fault.TARGET),
        (result("vector", [], status="error"), "loki_bad_response", Fault.TARGET),
        (answer("{}"), "loki_bad_response", Fault.TARGET),
        (answer("[]"), "loki_error", Fault.TARGET),
        (answer("<html>"), "loki_error", Fault.TARGET),
        (answer('{"a": NaN}'), "loki_error", Fault.TARGET),
        (answer("[" * 100_000), "loki_error", Fault.TARGET),
        (answer("{}", Content_Encoding="gzip"), "loki_error", Fault.TARGET),
        (answer(b" " * 1_048_577), "body_too_large", Fault.TARGET),
    ],
)
def test_reasons(reply, reason, fault):
    reading, _ = ask(reply)
    assert (reading.value, reading.reason, reading.fault) == (None, reason, fault), reading.detail
    assert "hunter2" not in str(reading)
    assert reading.detail["query"].startswith("#")


def test_several_series_are_counted():
    assert ask(vector("1", "2", "3"))[0].detail["series"] == 3


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("parse error at line 1, col 8: syntax error", "parse error at line 1, col 8: syntax error"),
        ('{"status":"error","errorType":"bad_data","error":"too long"}', "too long"),
        ('{"code":400,"message":"queries require at least one matcher","status":"error"}', "queries require at least"),
        (f"cannot parse {QUERY}", "cannot parse ..."),
        ("bad selector {app=`hunter2`} here", "bad selector ... here"),
        ("", ""),
    ],
)
def test_a_server_s_words_without_the_query(body, said):
    reading, _ = ask(answer(body, 400))
    assert reading.detail.get("said", "").startswith(said)
    assert reading.detail["error"] == "the server answered 400"
    assert "hunter2" not in str(reading)
    assert reading.detail["http_status"] == 400


def test_a_server_s_words_are_bounded_and_not_waited_for():
    assert len(ask(answer("x" * 100_000, 500))[0].detail["said"]) == 500

    def slow(conn, server):
        servers.read_request(conn)
        conn.sendall(b"HTTP/1.1 503 X\r\nContent-Length: 100\r\n\r\nbusy")
        server.stopping.wait()

    with nothing_left(), Server(slow) as server:
        reading = look(make_prober(), base_url=server.url, timeout_ms=5000)
    assert reading.reason == "loki_server_error"
    assert reading.duration_ms < 1500


def test_w36_unreachable_slow_and_broken_are_told_apart():
    with refused_port() as port:
        reading = look(make_prober(), base_url=f"http://127.0.0.1:{port}")
    assert (reading.reason, reading.detail["code"]) == ("loki_unreachable", "ECONNREFUSED")
    reading = look(make_prober(), base_url="http://nowhere.test")
    assert (reading.reason, reading.detail["code"], reading.fault) == ("loki_unreachable", "ENOTFOUND", Fault.TARGET)
    for handler, reason in ((servers.tarpit, "loki_timeout"), (servers.half_close, "loki_error")):
        with nothing_left(), Server(handler) as server:
            assert look(make_prober(), base_url=server.url, timeout_ms=300).reason == reason


def test_w36_the_kernel_s_own_timeout_says_unreachable_and_ours_says_slow():
    theirs = from_os_error(OSError(errno.ETIMEDOUT, "Connection timed out"), "connecting", Reason.LOKI_ERROR)
    assert renamed(theirs, loki.WORDS).reason == "loki_unreachable"
    assert renamed(timed_out("connecting"), loki.WORDS).reason == "loki_timeout"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.sampled_from(["vector", "scalar", "success"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["status", "data", "resultType", "result", "value"]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(["status", "data"]), JSON)
    | st.fixed_dictionaries(
        {"status": st.just("success"), "data": st.fixed_dictionaries({"resultType": JSON, "result": JSON})}
    )
)
def test_any_json_is_an_answer_or_a_failure(content):
    try:
        text, at = loki._sample(content, {})
    except Failed:
        return
    assert isinstance(text, str) and (at is None or isinstance(at, float))


# -- logging in


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"auth_mode": "bearer", "token_ref": "PROBE_SECRET"}, b"Authorization: Bearer hunter2-secret\r\n"),
        (
            {"auth_mode": "basic", "username": "me", "password_ref": "PROBE_SECRET"},
            b"Authorization: Basic " + base64.b64encode(b"me:hunter2-secret") + b"\r\n",
        ),
        ({"tenant_id": "team-a"}, b"X-Scope-OrgID: team-a\r\n"),
    ],
)
def test_w36_auth_with_trimmed_secrets(config, wanted):
    reading, server = ask(vector("1"), env={"PROBE_SECRET": " hunter2-secret\n"}, **config)
    assert reading.value == 1.0
    assert wanted in server.requests[0]
    assert "hunter2-secret" not in str(reading)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_nothing_of_the_request_is_shown_whatever_form_a_server_repeats_it_in(status):
    def repeat(conn, server):
        request = servers.read_request(conn)
        conn.sendall(answer(b"sorry: " + request + base64.b64encode(request), status))

    env = {"PROBE_SECRET": "hunter2-secret"}
    more = {
        "auth_mode": "basic",
        "username": "ann-of-ops",
        "password_ref": "PROBE_SECRET",
        "tenant_id": "tenant-hunter2",
    }
    with Server(repeat) as server:
        query = 'sum(rate({app="hunter2"} |= "ünder §3"[5m]))'
        reading = look(make_prober(env), base_url=server.url, query=query, **more)
    text = str(reading.detail)
    plain = text + "".join(base64.b64decode(run + "==="[: -len(run) % 4]).decode("latin-1") for run in _runs(text))
    assert "sorry" in reading.detail["said"] and reading.detail["error"] == f"the server answered {status}"
    for word in ("hunter2", "ann-of-ops", "%22", "nder", "sum"):
        assert word not in plain


def _runs(text):
    found = re.findall(r"[A-Za-z0-9+/]{12,}", text)
    return [run[skip:][: len(run[skip:]) // 4 * 4] for run in found for skip in range(4)]


def test_a_secret_that_a_server_gives_back_is_redacted():
    reading, _ = ask(
        answer("you sent hunter2-secret", 403),
        env={"PROBE_SECRET": "hunter2-secret"}, auth_mode="bearer", token_ref="PROBE_SECRET",
    )  # fmt: skip
    assert reading.detail["said"] == "you sent [redacted]"


@pytest.mark.parametrize(
    ("env", "ref", "reason"),
    [
        ({}, "PROBE_SECRET", "loki_auth_ref_missing"),
        ({"PROBE_SECRET": " \n"}, "PROBE_SECRET", "loki_auth_ref_missing"),
        ({"AGENT_KEY": "obs"}, "AGENT_KEY", "loki_auth_ref_missing"),
        ({"HOME": "x"}, "HOME", "loki_auth_ref_missing"),
        ({"PROBE_SECRET": "a\r\nX-Evil: 1"}, "PROBE_SECRET", "header_ref_invalid"),
    ],
)
def test_w8_secrets_that_are_not_to_be_had(env, ref, reason):
    reading, server = ask(vector("1"), env=env, auth_mode="bearer", token_ref=ref)
    assert (reading.reason, reading.fault, reading.detail["auth_ref"]) == (reason, Fault.CONFIG, ref)
    assert server.connections == 0


def test_w13_a_url_with_credentials_is_refused():
    with pytest.raises(InvalidConfig, match="base_url: must not hold a user name") as caught:
        probes.parse("loki", {"base_url": "http://u:hunter2@loki", "query": QUERY})
    assert "hunter2" not in str(caught.value)


# -- configuration


@pytest.mark.parametrize(
    "query",
    [
        'count_over_time({a="b"}[5m])',
        'sum by (app) (rate({a="b"}[5m]))',
        'sum without(app)(rate({a="b"}[5m]))',
        'SUM(rate({a="b"}[5m]))',
        'sort_desc(sum(rate({a="b"}[1m])))',
        "vector(1)",
        'label_replace(rate({a="b"}[1m]), "x", "$1", "y", "(.*)")',
        '1 + quantile_over_time(0.99, {a="b"} | json | unwrap ms [1m]) by (x)',
        'approx_topk(1, sum by (a) (rate({a="b"}[1m])))',
        '# a comment\nabsent_over_time({a="b"}[5m])',
    ],
)
def test_w36_metric_queries_pass_the_guard(query):
    assert loki.metric_query(query) == query


@pytest.mark.parametrize(
    "query",
    [
        '{a="b"}',
        '{a="b"} |= "sum(rate(x))"',
        '{a="b"} |= `count_over_time(`',
        '{a="b"} |= "quoted \\" sum(" ',
        '{a="b"} # sum(rate())',
        '{a="sum("} | json',
        '{a="b"} |= "open sum(',
        '{a="b"} | line_format "{{.sum}}" ',
        "checksum(x)",
        "1 + 1",
        "",
        "sum(" * 2049,
    ],
)
def test_w36_what_gives_log_lines_does_not(query):
    with pytest.raises(InvalidConfig, match="query"):
        probes.parse("loki", {"base_url": "http://loki", "query": query})


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("base_url", {"base_url": None}),
        ("base_url", {"base_url": "ftp://loki"}),
        ("token_ref", {"auth_mode": "bearer"}),
        ("token_ref", {"auth_mode": "bearer", "token_ref": "lower"}),
        ("password_ref", {"auth_mode": "basic", "username": "me"}),
        ("username", {"auth_mode": "basic", "password_ref": "PROBE_X"}),
        ("username", {"auth_mode": "basic", "password_ref": "PROBE_X", "username": "a:b"}),
        ("auth_mode", {"auth_mode": "api_key"}),
        ("tenant_id", {"tenant_id": "a\r\nb"}),
        ("tenant_id", {"tenant_id": ""}),
        ("tenant_id", {"tenant_id": "x" * 257}),
        ("timeout_ms", {"timeout_ms": 99}),
        ("timeout_ms", {"timeout_ms": 60_001}),
        ("more", {"more": 1}),
    ],
)
def test_configurations_that_are_refused(field, config):
    with pytest.raises(InvalidConfig, match=f"{field}: "):
        probes.parse("loki", {"base_url": "http://loki", "query": QUERY, **config})


def test_defaults_are_filled_in():
    config = probes.parse("loki", {"base_url": "http://loki", "query": QUERY})
    assert (config.timeout, config.auth.mode, config.tenant_id) == (10.0, "none", None)


# -- trust


def test_an_authority_of_ones_own():
    authority, other = Authority(), Authority()
    prober = make_prober({"PROBE_CA": authority.pem, "PROBE_OTHER": other.pem, "PROBE_BAD": "-----BEGIN nothing"})
    with nothing_left(), Server(scripted(vector("17")), tls=authority.server()) as server:
        assert look(prober, base_url=server.url).reason == "tls_verify_failed"
        assert look(prober, base_url=server.url, ca_cert_ref="PROBE_OTHER").reason == "tls_verify_failed"
        assert look(prober, base_url=server.url, ca_cert_ref="PROBE_CA").value == 17
        tried = server.connections
        for ref, reason in (("PROBE_NONE", "mtls_ref_missing"), ("PROBE_BAD", "mtls_cert_parse_failed")):
            reading = look(prober, base_url=server.url, ca_cert_ref=ref)
            assert (reading.reason, reading.fault) == (reason, Fault.CONFIG)
        assert server.connections == tried
