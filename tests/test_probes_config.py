"""Configurations: strict, typed, with their defaults; every problem named, no value quoted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.probes._headers import looks_like_credential
from observer_agent.probes._url import follow, parse_url

MINIMAL = {
    "tcp": {"host": "good.test", "port": 80},
    "http": {"url": "http://good.test"},
    "prometheus": {"query": "up"},
}
SCRAPE = {"scrape_url": "http://good.test/metrics", "metric": "up"}


def problems(source_type, config):
    with pytest.raises(InvalidConfig) as caught:
        probes.parse(source_type, config)
    return str(caught.value)


def test_w1_defaults_are_filled_in_by_the_parse():
    tcp, http, prometheus = (probes.parse(name, config) for name, config in MINIMAL.items())
    assert (tcp.host, tcp.port, tcp.timeout) == ("good.test", 80, 2.0)
    assert (http.method, http.expected_status, http.timeout) == ("GET", frozenset({200}), 5.0)
    assert (http.follow_redirects, http.verify_tls, http.body_match, http.json_path) == (True, True, b"", None)
    assert (prometheus.query, prometheus.url, prometheus.timeout) == ("up", None, 10.0)
    assert probes.parse("prometheus", SCRAPE).timeout == 10.0


@pytest.mark.parametrize("source_type", MINIMAL)
def test_null_equals_absent(source_type):
    config = MINIMAL[source_type]
    assert probes.parse(source_type, {**config, "timeout_ms": None}) == probes.parse(source_type, config)


@pytest.mark.parametrize(
    ("source_type", "config", "field"),
    [
        ("tcp", {"port": 80}, "host: is required"),
        ("tcp", {"host": "good.test"}, "port: is required"),
        ("tcp", {"host": "", "port": 80}, "host: must not be empty"),
        ("tcp", {"host": "a b", "port": 80}, "host: "),
        ("tcp", {"host": "a..b", "port": 80}, "host: "),
        ("tcp", {"host": "good.test", "port": True}, "port: must be a whole number"),
        ("tcp", {"host": "good.test", "port": "80"}, "port: "),
        ("tcp", {"host": "good.test", "port": 80.5}, "port: "),
        ("tcp", {"host": "good.test", "port": 0}, "port: must be a whole number from 1 to 65535"),
        ("tcp", {"host": "good.test", "port": 80, "timeout_ms": 60_001}, "timeout_ms: "),
        ("tcp", {"host": "good.test", "port": 80, "tiemout_ms": 1}, "tiemout_ms: is not a known field"),
        ("tcp", {"host": 5, "port": 80}, "host: must be a text"),
        ("tcp", {"host": "\ud800", "port": 80}, "host: must be a text"),
        ("http", {}, "url: is required"),
        ("http", {"url": "file:///etc/passwd"}, "url: must be an http or https URL"),
        ("http", {"url": "good.test"}, "url: "),
        ("http", {"url": "http://"}, "url: must name a host"),
        ("http", {"url": "http://good.test:0"}, "url: must have a port"),
        ("http", {"url": "http://good.test/\r\nX: y"}, "url: must not hold control characters"),
        ("http", {"url": "http://good.test", "method": "TRACE"}, "method: must be one of GET"),
        ("http", {"url": "http://good.test", "method": ["GET"]}, "method: "),
        ("http", {"url": "http://good.test", "expected_status": []}, "expected_status: "),
        ("http", {"url": "http://good.test", "expected_status": [200, 700]}, "expected_status: "),
        ("http", {"url": "http://good.test", "expected_status": [True]}, "expected_status: "),
        ("http", {"url": "http://good.test", "verify_tls": "no"}, "verify_tls: must be true or false"),
        ("http", {"url": "http://good.test", "client_cert_ref": "PROBE_CERT"}, "client_cert_ref: needs"),
        ("http", {"url": "http://good.test", "ca_cert_ref": "lower"}, "ca_cert_ref: must be the name"),
        ("prometheus", {}, "query: is required"),
        ("prometheus", {"query": ""}, "query: must not be empty"),
        ("prometheus", {"query": "up", "prometheus_url": "ftp://x"}, "prometheus_url: "),
        ("prometheus", {"scrape_url": "http://good.test"}, "metric: is required"),
        ("prometheus", {**SCRAPE, "metric": "no such"}, "metric: is not a metric's name"),
        ("prometheus", {**SCRAPE, "labels": {"a-b": "c"}}, "labels.a-b: is not a label's name"),
        ("prometheus", {**SCRAPE, "labels": {"a": 1}}, "labels.a: must be a text"),
        ("prometheus", {**SCRAPE, "query": "up"}, "query: is not a known field"),
        ("prometheus", {**SCRAPE, "headers": {"A": "b"}}, "headers: is not a known field"),
    ],
)
def test_w2_problems_name_their_field(source_type, config, field):
    assert field in problems(source_type, config)


def test_problems_are_collected_and_bounded():
    text = problems("http", {"url": "x", "method": "y", "timeout_ms": 0, "z": 1})
    assert [part.partition(":")[0] for part in text.split("; ")] == ["url", "method", "timeout_ms", "z"]
    assert problems("tcp", {f"key{n}": n for n in range(1000)}).endswith("and 982 more")


def test_an_unknown_source_type_has_an_error_of_its_own():
    with pytest.raises(probes.UnknownSourceType, match="source_type: 'quic'"):
        probes.parse("quic", {})
    assert {"tcp", "http", "prometheus", "dns", "database"} <= set(probes.SOURCES)
    with pytest.raises(TypeError):
        probes.SOURCES["quic"] = None


@pytest.mark.parametrize(
    ("source_type", "config"),
    [
        ("http", {"url": "http://user:hunter2@good.test/"}),
        ("http", {"url": "http://hunter2@good.test/"}),
        ("prometheus", {"query": "up", "prometheus_url": "http://user:hunter2@good.test/"}),
        ("prometheus", {**SCRAPE, "scrape_url": "http://user:hunter2@good.test/"}),
    ],
)
def test_w13_credentials_in_urls_are_refused_and_not_quoted(source_type, config):
    text = problems(source_type, config)
    assert "must not hold a user name or password" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    "path", ["$..a", "$[?(@.a)]", "$[(@.length-1)]", "$[0:2]", "$['a','b']", "$.a^", "$.", "", "$[", "$a"]
)
def test_w15_json_paths_that_compute_are_refused(path):
    assert problems("http", {"url": "http://good.test", "json_path": path}).startswith("json_path: ")


@pytest.mark.parametrize(
    ("headers", "text"),
    [
        ({"X-Evil": "a\r\nHost: b"}, "headers.X-Evil: must not hold control characters"),
        ({"X Evil": "a"}, "headers.X Evil: is not a header's name"),
        ({"": "a"}, "is not a header's name"),
        ({"Content-Length": "5"}, "headers.Content-Length: is set by the agent itself"),
        ({"Transfer-Encoding": "chunked"}, "is set by the agent itself"),
        ({"Host": "a/b"}, "headers.Host: must be a host"),
        ({"X-Api-Key": "hunter2"}, "looks like a credential"),
        ({f"X-{n}": "a" for n in range(33)}, "headers: must have at most 32 entries"),
        ({"X-A": "1", "x-a": "2"}, "headers: names a header twice"),
        ({"X-A": 5}, "headers.X-A: must be a text"),
    ],
)
def test_w18_inline_headers_are_checked(headers, text):
    found = problems("http", {"url": "http://good.test", "headers": headers})
    assert text in found
    assert "hunter2" not in found


@pytest.mark.parametrize(
    "name",
    "Authorization Proxy-Authorization Cookie Set-Cookie X-Api-Key Api-Key ApiKey X-Auth-Token X-Auth X-Session-Id "
    "X-Secret X-Password X-Passwd Ocp-Apim-Subscription-Key X-Authentication authtoken X-My-Token".split(),
)
def test_w18_credentials_are_recognised(name):
    assert looks_like_credential(name)


@pytest.mark.parametrize("name", ["X-Author", "X-Monkey", "X-Authors", "Accept", "X-Keyboard", "Host", "X-Turkey"])
def test_w18_harmless_names_are_not(name):
    assert not looks_like_credential(name)


@pytest.mark.parametrize(
    ("refs", "text"),
    [
        ({"Authorization": "lower"}, "header_refs.Authorization: must be the name"),
        ({"X-Plain": "PROBE_X"}, "header_refs.X-Plain: stands in headers too"),
        ({"X-A": "PROBE_X", "x-a": "PROBE_Y"}, "header_refs: names a header twice"),
        ({"Host": "PROBE_X"}, "header_refs.Host: "),
        ({"Connection": "PROBE_X"}, "is set by the agent itself"),
    ],
)
def test_header_refs_are_checked(refs, text):
    assert text in problems("http", {"url": "http://good.test", "headers": {"x-plain": "1"}, "header_refs": refs})


@pytest.mark.parametrize("extra", [{"body_match": "x"}, {"json_path": "$.a"}])
def test_w31_head_has_no_body_to_look_into(extra):
    assert "method HEAD" in problems("http", {"url": "http://good.test", "method": "HEAD", **extra})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    "url host port timeout_ms method expected_status headers header_refs body_match follow_redirects verify_tls "
    "json_path client_cert_ref client_key_ref ca_cert_ref query prometheus_url scrape_url metric labels"
).split()
LIKELY = st.sampled_from(["http://a", "https://[::1]:1/?q#f", "$.a", "PROBE_X", "GET", "a.b", "127.0.0.1", "up"])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*MINIMAL, "other"]), st.dictionaries(st.sampled_from(FIELDS) | st.text(), JSON | LIKELY) | JSON)
def test_parse_raises_nothing_but_invalid_config(source_type, config):
    try:
        typed = probes.parse(source_type, config)
    except InvalidConfig as error:
        str(error).encode()
    else:
        assert 0 < typed.timeout <= 60


@settings(max_examples=1000, deadline=None)
@given(st.text(st.characters(codec=None)) | st.text("htps:/.@[]%:?#\\ab1 ", max_size=20).map("http://".__add__))
def test_whatever_parses_as_a_url_is_safe_to_send(text):
    try:
        url = parse_url(text)
    except ValueError:
        return
    line = f"GET {url.target} HTTP/1.1\r\nHost: {url.authority}"
    assert line.isascii() and line.count(" ") == 3 and line.count("\n") == 1
    assert url.target.startswith("/") and "@" not in url.authority
    if "%" not in url.host:
        assert parse_url(url.text) == url


@given(st.text(st.characters(codec=None)))
def test_a_location_leads_to_a_url_or_nowhere(location):
    try:
        url = follow(parse_url("https://good.test/a/b"), location)
    except ValueError:
        return
    assert url.scheme in ("http", "https") and url.target.isascii()


@pytest.mark.parametrize(
    ("text", "host", "port", "target", "authority"),
    [
        ("http://Good.TEST", "good.test", 80, "/", "good.test"),
        ("https://good.test:8443/a b?c=d#e", "good.test", 8443, "/a%20b?c=d", "good.test:8443"),
        ("http://[::1]:9090/x", "::1", 9090, "/x", "[::1]:9090"),
        ("http://good.test?x", "good.test", 80, "/?x", "good.test"),
        ("http://bücher.example/ü", "xn--bcher-kva.example", 80, "/%C3%BC", "xn--bcher-kva.example"),
        ("http://good.test:/%2F", "good.test", 80, "/%2F", "good.test"),
    ],
)
def test_urls_in_parts(text, host, port, target, authority):
    url = parse_url(text)
    assert (url.host, url.port, url.target, url.authority) == (host, port, target, authority)
