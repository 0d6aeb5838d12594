"""Checks of the console as definitions: what becomes of each field, and what cannot be looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from observer_agent.clouds._lighthouse_wire import CheckDef, ExpectedHeader, HeaderDef
from observer_agent.lighthouse import checks
from observer_agent.probes._url import parse_url


def made(type="http", **fields):
    fields.setdefault("url", "http://good.test/" if type.lower().startswith("http") else "good.test:80")
    definition = checks.definition(CheckDef(id="c1", type=type, **fields))
    assert definition.problem is None, definition.problem
    return definition


def problem(type="http", **fields):
    fields.setdefault("url", "http://good.test/" if type.lower().startswith("http") else "good.test:80")
    definition = checks.definition(CheckDef(id="c1", type=type, **fields))
    assert definition.problem is not None and definition.config is None
    return definition.problem.text


# -- every kind


def test_what_every_check_has():
    definition = made("tcp", name="The database", interval_seconds=30, timeout_seconds=7)
    assert (definition.id, definition.source_type, definition.title) == ("c1", "tcp", "The database")
    assert (definition.interval, definition.config.timeout) == (30.0, 7.0)
    assert definition.push_interval > 10_000_000


@pytest.mark.parametrize(
    ("type", "source_type"),
    [
        ("http", "http"),
        ("https", "http"),
        ("tcp", "tcp"),
        ("udp", "udp"),
        ("ssl", "tls_cert"),
        ("dns", "dns"),
        ("DNS", "dns"),
    ],
)
def test_the_types(type, source_type):
    assert made(type).source_type == source_type


@pytest.mark.parametrize("type", ["", "icmp", "quic", 'h"t\ntp', "x" * 64])
def test_an_unknown_type_is_named(type):
    text = problem(type)
    assert text.startswith('unknown check type "')
    assert text.count('"') == 2 and text.isprintable() and len(text) < 64


@pytest.mark.parametrize(("given", "taken"), [(0, 60), (-5, 60), (1, 5), (4, 5), (5, 5), (3600, 3600)])
def test_intervals(given, taken):
    assert made(interval_seconds=given).interval == taken


@pytest.mark.parametrize(("given", "taken"), [(0, 5), (-1, 5), (1, 1), (60, 60), (300, 60)])
def test_timeouts(given, taken):
    assert made(timeout_seconds=given).config.timeout == taken


def test_the_fingerprint_changes_with_everything_but_the_name():
    check = CheckDef(id="c1", type="http", url="http://good.test/")
    first = checks.definition(check).fingerprint
    assert checks.definition(replace(check, name="another")).fingerprint == first
    changes = [
        {"type": "https"},
        {"url": "http://good.test/x"},
        {"method": "POST"},
        {"expected_status_code": 201},
        {"interval_seconds": 61},
        {"timeout_seconds": 6},
        {"keyword_check": "x"},
        {"keyword_present": True},
        {"request_headers": (HeaderDef("A", "1"),)},
        {"request_body": "x"},
        {"expected_headers": (ExpectedHeader("A", "", "present"),)},
        {"skip_tls_verify": True},
        {"dns_record_type": "MX"},
        {"dns_expected_ips": ("203.0.113.1",)},
        {"dns_resolver": "192.0.2.1"},
    ]
    assert len({checks.definition(replace(check, **change)).fingerprint for change in changes} | {first}) == 16


# -- http


def test_an_http_check_with_defaults():
    config = made().config
    assert (config.url, config.method, config.expected_status) == (parse_url("http://good.test/"), "GET", {200})
    assert (config.timeout, config.body, config.body_match, config.body_absent) == (5.0, b"", b"", b"")
    assert (config.follow_redirects, config.max_redirects, config.verify_tls) == (True, 10, True)
    assert config.headers == (("User-Agent", "Lighthouse-Agent"),)
    assert config.body_limit == 1_048_576


def test_an_http_check_with_everything():
    config = made(
        "https",
        url="https://good.test/a?b=c",
        method="post",
        expected_status_code=204,
        keyword_check="ok",
        keyword_present=True,
        request_headers=(HeaderDef("X-Mine", "1"),),
        request_body="grüße",
        expected_headers=(ExpectedHeader("A", "", ""), ExpectedHeader("B", "x", "contains")),
        skip_tls_verify=True,
    ).config
    assert (config.method, config.expected_status, config.body) == ("POST", {204}, "grüße".encode())
    assert (config.body_match, config.body_absent, config.verify_tls) == (b"ok", b"", False)
    assert [(e.name, e.match, e.value) for e in config.expected_headers] == [
        ("A", "present", ""),
        ("B", "contains", "x"),
    ]
    assert ("X-Mine", "1") in config.headers


def test_a_keyword_must_be_absent_unless_it_is_to_be_there():
    config = made(keyword_check="error").config
    assert (config.body_match, config.body_absent) == (b"", b"error")


def test_w16_host_and_user_agent_are_the_checks():
    config = made(request_headers=(HeaderDef("host", "virtual.example"), HeaderDef("USER-AGENT", "me"))).config
    assert config.headers == (("USER-AGENT", "me"), ("host", "virtual.example"))


@pytest.mark.parametrize("match", ["regex", "equals", "Exact!", "absent"])
def test_w16_an_unknown_match_is_named(match):
    text = problem(expected_headers=(ExpectedHeader("A", "x", "exact"), ExpectedHeader("B", "secret", match)))
    assert text == "expected_headers[1].match: is not known: write one of present, exact, contains"


def test_credentials_of_the_console_are_sent():
    headers = (HeaderDef("Authorization", "Bearer abcdefgh"), HeaderDef("X-Api-Key", "12345678"))
    assert made(request_headers=headers).config.headers[1:] == headers


def test_a_user_in_the_url_becomes_a_header():
    config = made(url="https://me:p%40ss@good.test:8443/x?y#z").config
    assert config.url == parse_url("https://good.test:8443/x?y")
    assert ("Authorization", "Basic bWU6cEBzcw==") in config.headers


def test_a_header_of_the_check_wins_over_the_user_in_the_url():
    config = made(url="http://me:pass@good.test/", request_headers=(HeaderDef("authorization", "Bearer x"),)).config
    assert [value for name, value in config.headers if name.lower() == "authorization"] == ["Bearer x"]


def test_doubles_are_joined_and_empty_names_left_away():
    headers = [("Cookie", "a=1"), ("cookie", "b=2"), ("", "x"), ("Accept", "text/a"), ("accept", "text/b"), (" ", "")]
    config = made(request_headers=tuple(HeaderDef(*pair) for pair in headers)).config
    assert config.headers[1:] == (("cookie", "a=1; b=2"), ("accept", "text/a, text/b"))


def test_headers_about_framing_are_the_agents_own():
    headers = tuple(HeaderDef(name, "secret") for name in ("Connection", "content-length", "Transfer-Encoding"))
    assert made(request_headers=headers).config.headers == (("User-Agent", "Lighthouse-Agent"),)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": ""}, "url"),
        ({"url": "good.test/path"}, "url"),
        ({"url": "ftp://good.test/secret"}, "url"),
        ({"url": "http://good test/"}, "url"),
        ({"url": "http://good.test:99999/"}, "url"),
        ({"method": "BREW"}, "method"),
        ({"method": "HEAD", "keyword_check": "secret", "keyword_present": True}, "keyword_check"),
        ({"method": "HEAD", "keyword_check": "secret"}, "keyword_check"),
        ({"request_headers": (HeaderDef("a b", "secret"),)}, "request_headers[0]"),
        ({"request_headers": (HeaderDef("A", "x"), HeaderDef("B", "sec\r\nret: x"))}, "request_headers[1]"),
        ({"expected_headers": (ExpectedHeader("a b", "secret", "exact"),)}, "expected_headers[0].key"),
    ],
)
def test_what_cannot_be_asked_names_the_field_and_no_value(fields, field):
    text = problem(**fields)
    assert text.startswith(f"{field}: ")
    assert "secret" not in text and "good" not in text


# -- tcp, udp, ssl


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("good.test:80", "good.test", 80),
        ("tcp://Good.test:80", "good.test", 80),
        ("tcp://good.test:80/path?q", "good.test", 80),
        ("192.0.2.1:80", "192.0.2.1", 80),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
        ("  good.test:80 ", "good.test", 80),
    ],
)
@pytest.mark.parametrize("type", ["tcp", "udp", "ssl"])
def test_hosts_and_ports(type, url, host, port):
    config = made(type, url=url).config
    assert (config.host, config.port) == (host, port)


@pytest.mark.parametrize("type", ["tcp", "udp"])
@pytest.mark.parametrize("url", ["good.test", "", ":80", "tcp://", "good.test:0", "good.test:x", "http://[::1"])
def test_a_port_is_needed(type, url):
    said = problem(type, url=url)
    assert said.startswith("url: ") and said.count("url: ") == 1


def test_a_certificate_has_a_usual_port_and_needs_no_trust():
    config = made("ssl", url="https://good.test/x").config
    assert (config.host, config.port, config.verify_tls) == ("good.test", 443, False)


def test_w16_payloads_of_tcp_and_udp():
    talk = {"request_body": "hello", "keyword_check": "welcome", "keyword_present": True}
    for type in ("tcp", "udp"):
        config = made(type, **talk).config
        assert (config.send, config.expect) == (b"hello", b"welcome")
        assert problem(type, **{**talk, "keyword_present": False}).startswith("keyword_present: must be true")


def test_a_udp_check_sends_one_byte_and_takes_silence_for_well():
    config = made("udp").config
    assert (config.send, config.silence_ok, config.attempts) == (b"\0", True, 1)


def test_a_udp_check_that_expects_something_does_not():
    config = made("udp", keyword_check="x", keyword_present=True).config
    assert (config.silence_ok, config.attempts) == (False, 3)


# -- dns


@pytest.mark.parametrize(
    "url", ["good.test", "good.test.", "dns://good.test", "https://Good.test:443/x?y", "good.test:53", "good.test/x"]
)
def test_domains(url):
    config = made("dns", url=url).config
    assert (config.domain, config.record_type, config.resolver_name) == ("good.test.", "A", None)
    assert config.search is not url.endswith("t.")


def test_a_dns_check_with_everything():
    config = made(
        "dns", url="good.test", dns_record_type="mx", dns_expected_ips=("Mail.Test.", ""), dns_resolver="192.0.2.1"
    ).config
    assert (config.record_type, config.expected_values, config.expected_parts) == ("MX", ("mail.test",), ())
    assert config.resolver_name == ("192.0.2.1", 53)


@pytest.mark.parametrize(
    ("text", "resolver"),
    [
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("dns.test", ("dns.test", 53)),
        ("dns.test:54", ("dns.test", 54)),
    ],
)
def test_resolvers(text, resolver):
    assert made("dns", url="good.test", dns_resolver=text).config.resolver_name == resolver


def test_w16_a_part_is_enough_only_where_it_is_asked_for():
    config = made(
        "dns", url="good.test", dns_record_type="TXT", dns_expected_ips=('"v=spf1 -all"', "contains:spf1")
    ).config
    assert (config.expected_values, config.expected_parts) == (("v=spf1 -all",), ("spf1",))


@pytest.mark.parametrize(
    ("record_type", "text", "value"),
    [
        ("AAAA", "2001:DB8:0::1", "2001:db8::1"),
        ("CNAME", "Target.Test.", "target.test"),
        ("MX", "mail.test. (priority 10)", "mail.test (priority 10)"),
        ("SRV", "sip.test.:5060 (priority 1, weight 2)", "sip.test:5060 (priority 1, weight 2)"),
        ("SOA", "ns.test. admin.test. 7", "ns.test admin.test 7"),
        ("CAA", '0 issue "letsencrypt.org"', "0 issue letsencrypt.org"),
    ],
)
def test_expected_records_as_the_original_writes_them(record_type, text, value):
    config = made("dns", url="good.test", dns_record_type=record_type, dns_expected_ips=(text,)).config
    assert config.expected_values == (value,)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"url": ""}, "url"),
        ({"url": "https://"}, "url"),
        ({"dns_record_type": "HINFO"}, "dns_record_type"),
        ({"dns_expected_ips": ("203.0.113",)}, "dns_expected_ips"),
        ({"dns_record_type": "AAAA", "dns_expected_ips": ("203.0.113.1",)}, "dns_expected_ips"),
        ({"dns_resolver": "a b"}, "dns_resolver"),
        ({"dns_resolver": "192.0.2.1:99999"}, "dns_resolver"),
    ],
)
def test_dns_checks_that_cannot_be_asked(fields, field):
    text = problem("dns", **{"url": "good.test", **fields})
    assert text.startswith(f"{field}: ")
    assert "203" not in text and "192" not in text


# -- secrets


def test_what_must_never_be_shown():
    check = CheckDef(
        id="c1",
        type="http",
        url="https://me:url-password@good.test/",
        request_headers=(
            HeaderDef("Authorization", "Bearer header-token"),
            HeaderDef("X-Customer", "customer-number-7"),
            HeaderDef("Content-Type", "application/json"),
        ),
        request_body='{"password": "in-the-body"}',
    )
    found = checks.secrets(check)
    for secret in ("url-password", "Bearer header-token", "header-token", "customer-number-7", check.request_body):
        assert secret in found
    assert "application/json" not in found
    assert checks.secrets(CheckDef(id="c2")) == ()
