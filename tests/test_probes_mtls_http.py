"""The source type `mtls_http`: `http` with a client certificate that must be there."""

from __future__ import annotations

import pytest

from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.probes import http, mtls_http
from tests.contracts.test_probe import look, nothing_left
from tests.servers import Authority, Server, answer, make_prober, scripted

REFS = {"client_cert_ref": "PROBE_CERT", "client_key_ref": "PROBE_KEY"}
ALL = {
    "url": "https://a/", "method": "POST", "expected_status": [200, 204], "timeout_ms": 70, "headers": {"X": "1"},
    "header_refs": {"Y": "PROBE_Y"}, "body_match": "x", "follow_redirects": False, "verify_tls": False,
    "json_path": "$.a", "ca_cert_ref": "PROBE_CA",
}  # fmt: skip


def test_the_configuration_is_that_of_http():
    for config in ({"url": "https://a/", **REFS}, {**ALL, **REFS}):
        assert mtls_http.parse(config) == http.parse(config)


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        ({"url": "https://a/"}, ["client_cert_ref: is required", "client_key_ref: is required"]),
        ({"url": "https://a/", "client_cert_ref": "PROBE_C"}, ["client_key_ref: is required"]),
        ({"url": "https://a/", "client_key_ref": "PROBE_C", "client_cert_ref": None}, ["client_cert_ref: is required"]),
        ({"url": "ftp://a/", **REFS}, ["url: must be an http or https URL"]),
        (
            {"url": 7, "what": 1},
            ["client_cert_ref: is required", "client_key_ref: is required", "url: must be a text",
             "what: is not a known field"],
        ),
        (None, ["source_config: must be an object"]),
    ],
)  # fmt: skip
def test_what_a_configuration_may_not_hold(config, problems):
    with pytest.raises(InvalidConfig) as caught:
        mtls_http.parse(config)
    assert list(caught.value.problems) == problems


def test_a_request_with_a_client_certificate_and_without_a_good_one():
    authority = Authority()
    cert, key = authority.issue("client")
    env = {"PROBE_CERT": cert, "PROBE_KEY": key, "PROBE_CA": authority.pem}
    with nothing_left(), Server(scripted(answer()), tls=authority.server(require_client=True)) as server:
        config = {"url": server.url_of("localhost"), "ca_cert_ref": "PROBE_CA", "timeout_ms": 2000, **REFS}
        good = look(make_prober(env), "mtls_http", config)
        env["PROBE_KEY"] = authority.issue("other")[1]
        bad = look(make_prober(env), "mtls_http", config)
        none = look(make_prober({"PROBE_CA": authority.pem}), "mtls_http", config)
    assert good.value > 0
    assert (bad.reason, bad.fault) == ("mtls_key_mismatch", Fault.CONFIG)
    assert (none.reason, none.fault) == ("mtls_ref_missing", Fault.CONFIG)
