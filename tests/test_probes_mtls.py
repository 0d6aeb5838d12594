"""Client certificates: each reason provoked, and what a server says to them."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observer_agent import probes
from observer_agent.model import Fault
from observer_agent.probes import _reasons
from tests import servers
from tests.servers import Authority, Server, answer, days, key_pem, make_prober, redirect, scripted

REFS = {"client_cert_ref": "PROBE_CERT", "client_key_ref": "PROBE_KEY", "ca_cert_ref": "PROBE_CA"}
URL = "https://127.0.0.1:9"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture(scope="module")
def stranger():
    return Authority()


@pytest.fixture(scope="module")
def pair(authority):
    return authority.issue("client.example")


@pytest.fixture(scope="module")
def rsa_key():
    return rsa.generate_private_key(65537, 2048)


def environment(authority, pair, **changes):
    env = {"PROBE_CERT": pair[0], "PROBE_KEY": pair[1], "PROBE_CA": authority.pem, **changes}
    return {name: value for name, value in env.items() if value is not None}


def look(env, url=URL, **config):
    typed = probes.parse("http", {"url": url, "timeout_ms": 2000, **REFS, **config})
    return make_prober(env).look("http", typed)


def failed(reading, reason):
    assert (reading.value, reading.reason, reading.fault) == (None, reason, Fault.CONFIG)
    assert _reasons.is_known(reason)
    assert "-----" not in str(reading)
    return reading.detail


def test_mtls_incomplete(authority, pair):
    typed = replace(probes.parse("http", {"url": URL, **REFS}), client_key_ref=None)
    failed(make_prober(environment(authority, pair)).look("http", typed), "mtls_incomplete")


@pytest.mark.parametrize("name", ["PROBE_CERT", "PROBE_KEY", "PROBE_CA"])
def test_mtls_ref_missing(name, authority, pair):
    assert failed(look(environment(authority, pair, **{name: None})), "mtls_ref_missing")["env"] == name


def test_w8_mtls_refs_obey_the_same_rule(authority, pair):
    env = environment(authority, pair, AGENT_KEY="x", OTHER=pair[0])
    for ref in ("AGENT_KEY", "OTHER"):
        assert "PROBE_ENV_ALLOW" in failed(look(env, client_cert_ref=ref), "mtls_ref_missing")["error"]


@pytest.mark.parametrize("name", ["PROBE_CERT", "PROBE_KEY", "PROBE_CA"])
@pytest.mark.parametrize("path", ["/nonexistent/file.pem", "/tmp", "/dev/zero", "\x00"])
def test_mtls_file_unreadable(name, path, authority, pair):
    assert failed(look(environment(authority, pair, **{name: path})), "mtls_file_unreadable")["env"] == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PROBE_CERT", "mtls_cert_parse_failed"),
        ("PROBE_KEY", "mtls_key_parse_failed"),
        ("PROBE_CA", "mtls_cert_parse_failed"),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "no PEM at all",
        "-----BEGIN NOTHING-----\nAAAA\n-----END NOTHING-----",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----\n!!\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----",
    ],
)
def test_pem_that_cannot_be_read(name, reason, text, authority, pair, tmp_path):
    file = tmp_path / "file.pem"
    file.write_text(text)
    assert failed(look(environment(authority, pair, **{name: str(file)})), reason)["env"] == name
    if "BEGIN" in text:
        failed(look(environment(authority, pair, **{name: text})), reason)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([0, 1]), st.floats(0, 1, exclude_max=True), st.integers(0, 255))
def test_a_damaged_certificate_or_key_has_a_reason(authority, pair, which, place, byte):
    head, *lines, tail = pair[which].strip().split("\n")
    der = bytearray(base64.b64decode("".join(lines)))
    der[int(place * len(der))] = byte
    text = f"{head}\n{base64.encodebytes(der).decode()}{tail}"
    reading = look(environment(authority, (text, pair[1]) if which == 0 else (pair[0], text)))
    assert reading.reason == "ECONNREFUSED" or reading.reason.startswith("mtls_")


def test_mtls_cert_expired(authority, pair):
    cert, key = authority.issue("client.example", not_before=days(-10), not_after=days(-1))
    detail = failed(look(environment(authority, (cert, key))), "mtls_cert_expired")
    assert detail["not_after"].endswith("Z")


def test_w39_a_certificate_that_is_not_valid_yet(authority):
    cert, key = authority.issue("client.example", not_before=days(1), not_after=days(10))
    failed(look(environment(authority, (cert, key))), "mtls_cert_not_yet_valid")


def test_w39_a_key_of_another_certificate(authority, pair, stranger):
    failed(look(environment(authority, (pair[0], stranger.issue("x.example")[1]))), "mtls_key_mismatch")


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_w39_an_encrypted_key_has_no_passphrase_and_asks_nobody(form, authority, pair, rsa_key):
    key = key_pem(rsa_key, b"hunter2", form)
    assert "encrypted" in failed(look(environment(authority, (pair[0], key))), "mtls_key_parse_failed")["error"]


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_mtls_weak_key(form, authority, pair):
    key = key_pem(rsa.generate_private_key(65537, 1024), form=form)
    assert "1024 bits" in failed(look(environment(authority, (pair[0], key))), "mtls_weak_key")["error"]


def test_a_key_of_another_kind(authority, pair):
    key = key_pem(dsa.generate_private_key(1024), form="TraditionalOpenSSL")
    failed(look(environment(authority, (pair[0], key))), "mtls_key_parse_failed")


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
def test_a_strong_rsa_key_is_read_and_then_compared(form, authority, pair, rsa_key):
    failed(look(environment(authority, (pair[0], key_pem(rsa_key, form=form)))), "mtls_key_mismatch")


# -- with a server


@pytest.mark.parametrize("inline", [True, False])
def test_a_client_certificate_is_shown(inline, authority, pair, tmp_path):
    env = environment(authority, pair)
    if not inline:
        for name, text in env.items():
            (tmp_path / name).write_text(text)
        env = {name: str(tmp_path / name) for name in env}
    with Server(scripted(answer()), tls=authority.server(require_client=True)) as server:
        reading = look(env, server.url)
    assert reading.value > 0
    assert "cert_expiry_warning" not in reading.detail


def test_w39_one_shape_for_the_expiry_warning(authority):
    soon = authority.issue("client.example", not_before=days(-10), not_after=days(5.5))
    with Server(scripted(answer()), tls=authority.server(require_client=True)) as server:
        warning = look(environment(authority, soon), server.url).detail["cert_expiry_warning"]
    assert set(warning) == {"not_after", "days_remaining"}
    assert warning["days_remaining"] == 5


def test_w39_a_renewed_file_is_picked_up(authority, tmp_path):
    env = environment(authority, ("", ""))
    env |= {"PROBE_CERT": str(tmp_path / "cert"), "PROBE_KEY": str(tmp_path / "key")}
    prober = make_prober(env)

    def write(*pair):
        for name, text in zip(("cert", "key"), pair, strict=True):
            (tmp_path / name).write_text(text)

    with Server(scripted(answer()), tls=authority.server(require_client=True)) as server:
        config = probes.parse("http", {"url": server.url, **REFS})
        write(*authority.issue("client.example", not_before=days(-10), not_after=days(-1)))
        assert prober.look("http", config).reason == "mtls_cert_expired"
        write(*authority.issue("client.example"))
        assert prober.look("http", config).value > 0


def test_the_server_rejects_a_stranger_s_certificate(authority, stranger):
    env = environment(authority, stranger.issue("client.example"))
    with Server(scripted(answer()), tls=authority.server(require_client=True)) as server:
        reading = look(env, server.url)
    assert (reading.reason, reading.fault) == ("mtls_client_cert_rejected", Fault.TARGET)


def test_a_server_that_wants_a_certificate_and_gets_none(authority, pair):
    with Server(scripted(answer()), tls=authority.server(require_client=True)) as server:
        reading = look(environment(authority, pair), server.url, client_cert_ref=None, client_key_ref=None)
    assert (reading.reason, reading.fault) == ("tls_handshake_failed", Fault.TARGET)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("expired", "mtls_server_cert_expired"),
        ("unknown", "mtls_server_verify_failed"),
        ("self_signed", "mtls_server_verify_failed"),
        ("wrong_host", "mtls_server_verify_failed"),
    ],
)
def test_the_server_s_certificate_does_not_hold(kind, reason, authority, stranger, pair, tmp_path):
    contexts = {
        "expired": authority.expired,
        "unknown": stranger.server,
        "self_signed": lambda: servers.self_signed(tmp_path),
        "wrong_host": lambda: authority.server("other.example"),
    }
    with Server(scripted(answer()), tls=contexts[kind]()) as server:
        reading = look(environment(authority, pair), server.url_of("localhost"))
    assert (reading.reason, reading.fault) == (reason, Fault.TARGET)


def test_no_tls_at_all(authority, pair):
    with Server(servers.says(b"hello, this is no TLS\r\n")) as server:
        reading = look(environment(authority, pair), server.url.replace("http", "https"))
    assert reading.reason == "mtls_handshake_failed"


def test_w10_the_certificate_is_not_shown_off_its_origin(authority, pair):
    env = environment(authority, pair)
    with Server(scripted(answer()), tls=authority.server(require_client=True)) as other:
        with Server(scripted(redirect(f"{other.url}/x")), tls=authority.server(require_client=True)) as server:
            reading = look(env, server.url)
    assert reading.reason == "tls_handshake_failed"
    assert other.requests == []
