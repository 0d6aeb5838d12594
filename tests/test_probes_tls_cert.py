"""The tls_cert probe: days, what is told about trust, servers that fail, and OpenSSL's own server."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from observer_agent import probes
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault
from observer_agent.policy import Policy, Rules
from observer_agent.probes import _certificate
from observer_agent.probes._reasons import Failed
from tests import servers
from tests.servers import Authority, Server, days, key_pem, make_prober
from tests.watch import Watch

TIMEOUT_MS = 1_500


def look(port, prober=None, host="localhost", **config):
    config = {"host": host, "port": port, "timeout_ms": TIMEOUT_MS, **config}
    return (prober or make_prober()).look("tls_cert", probes.parse("tls_cert", config))


def show(context, **config):
    """A look at a server that shakes hands and says nothing."""
    with Server(servers.tarpit, tls=context) as server:
        return look(server.port, **config)


@pytest.fixture(scope="module")
def authority():
    return Authority()


@pytest.fixture
def trusted(authority, tmp_path, monkeypatch):
    """The authority is one of the system's."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    return authority


def make(name, key, *, issuer=None, signer=None, begin=-1.0, end=100.5, ca=False):
    """A certificate by hand."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(issuer.subject if issuer else subject, subject, key.public_key(), 4711)
    builder = builder.not_valid_before(days(begin)).not_valid_after(days(end))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    return builder.sign(signer or key, hashes.SHA256())


def context_of(folder, key, *certs):
    """A server's context that shows these certificates; weak ones too."""
    file = folder / "chain.pem"
    pems = [cert if isinstance(cert, bytes) else cert.public_bytes(serialization.Encoding.PEM) for cert in certs]
    file.write_bytes(b"".join(pems) + key_pem(key).encode())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(file)
    return context


# -- the configuration


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "host"),
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"host": "h", "port": 0}, "port"),
        ({"host": "h", "warn_days": 0}, "warn_days"),
        ({"host": "h", "warn_days": 366}, "warn_days"),
        ({"host": "h", "critical_days": 0}, "critical_days"),
        ({"host": "h", "warn_days": 5}, "warn_days"),
        ({"host": "h", "warn_days": 6, "critical_days": 7}, "warn_days"),
        ({"host": "h", "server_name": "a b"}, "server_name"),
        ({"host": "h", "verify": True}, "verify"),
    ],
)
def test_configurations_that_are_refused(config, field):
    with pytest.raises(InvalidConfig) as caught:
        probes.parse("tls_cert", config)
    assert str(caught.value).startswith(f"{field}: ")


def test_w1_the_defaults():
    config = probes.parse("tls_cert", {"host": "Good.Test"})
    assert (config.host, config.port, config.server_name) == ("good.test", 443, "good.test")
    assert (config.warn_days, config.critical_days, config.timeout) == (30, 7, 10.0)


# -- days


@pytest.mark.parametrize(
    ("end", "value", "level"),
    [(100.5, 100, "ok"), (30.5, 30, "ok"), (29.5, 29, "warning"), (6.5, 6, "critical"), (0.5, 0, "critical"),
     (-0.5, -1, "expired"), (-9.5, -10, "expired")],
)  # fmt: skip
def test_w24_days_are_rounded_down_and_negative_once_it_has_ended(end, value, level, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    reading = show(context_of(tmp_path, key, make("localhost", key, begin=-20, end=end)))
    assert (reading.value, reading.detail["days"], reading.detail["level"]) == (value, value, level)
    assert reading.detail["verified"] is False
    assert set(reading.phases) == {"resolve", "connect", "tls"}


# -- trust, as detail


def test_w24_a_certificate_that_holds_takes_one_connection(trusted):
    with Server(servers.tarpit, tls=trusted.server()) as server:
        reading = look(server.port)
        assert server.connections == 1
    assert reading.value > 0
    assert reading.detail["verified"] is True
    assert "verify_error" not in reading.detail
    assert (reading.detail["host_match"], reading.detail["sni"]) == (True, "localhost")
    assert reading.detail["names"] == ["localhost", "127.0.0.1"]
    assert (reading.detail["protocol"], reading.detail["key"], reading.detail["weak"]) == ("TLSv1.3", "EC 256", [])


@pytest.mark.parametrize("context", ["server", "expired"])
def test_without_trust_one_connection_is_enough(context, authority):
    with Server(servers.tarpit, tls=getattr(authority, context)()) as server:
        reading = look(server.port, verify_tls=False)
        assert server.connections == 1
        assert (look(server.port).value, server.connections) == (reading.value, 3)
    assert reading.value is not None
    assert "verified" not in reading.detail
    assert reading.detail["host_match"] is True


def test_without_trust_a_handshake_that_fails_is_not_repeated():
    with Server(servers.says(b"plain text, no TLS\r\n")) as server:
        assert look(server.port, verify_tls=False).reason == "tls_handshake_failed"
        assert server.connections == 1


def test_an_authority_of_ones_own_takes_the_place_of_the_systems(authority, tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text(Authority().pem)
    prober = make_prober({"PROBE_CA": str(file)})
    with Server(servers.tarpit, tls=authority.server()) as server:
        assert look(server.port, prober).detail["verified"] is False
        assert look(server.port, prober, ca_cert_ref="PROBE_CA").detail["verified"] is False
        file.write_text(authority.pem + "\n")
        seen = server.connections
        reading = look(server.port, prober, ca_cert_ref="PROBE_CA")
        assert (reading.detail["verified"], server.connections) == (True, seen + 1)
        file.unlink()
        reading = look(server.port, prober, ca_cert_ref="PROBE_CA")
        assert (reading.value, reading.reason, reading.fault) == (None, "mtls_file_unreadable", Fault.CONFIG)
        assert look(server.port, prober, ca_cert_ref="PROBE_CA", verify_tls=False).value is not None
        assert server.connections == seen + 2


def test_an_address_sends_no_server_name(trusted):
    reading = show(trusted.server(), host="127.0.0.1")
    assert (reading.detail["verified"], reading.detail["sni"], reading.detail["host_match"]) == (True, None, True)


def test_w24_a_certificate_for_another_host(trusted):
    reading = show(trusted.server("other.example"))
    assert reading.value > 0
    assert (reading.detail["verified"], reading.detail["host_match"]) == (False, False)
    assert (reading.detail["verify_code"], reading.detail["self_signed"]) == (62, False)


def test_w24_the_server_name_can_be_chosen(trusted):
    asked = []
    context = trusted.server("other.example")
    context.sni_callback = lambda sock, name, context: asked.append(name)
    reading = show(context, server_name="other.example")
    assert asked == ["other.example"]
    assert (reading.detail["verified"], reading.detail["sni"]) == (True, "other.example")


def test_w24_not_yet_valid(trusted):
    reading = show(trusted.server(not_before=days(10), not_after=days(20)))
    assert reading.value == 19
    assert (reading.detail["verified"], reading.detail["not_yet_valid"]) == (False, True)
    assert "not yet valid" in reading.detail["verify_error"]


def test_w24_expired_and_self_signed_and_unknown(trusted, tmp_path):
    expired = show(trusted.expired())
    assert expired.value == -2
    assert "expired" in expired.detail["verify_error"]
    lone = show(servers.self_signed(tmp_path))
    assert (lone.detail["self_signed"], lone.detail["verify_code"]) == (True, 18)
    unknown = show(Authority().server())
    assert (unknown.detail["self_signed"], unknown.detail["verify_code"]) == (False, 20)


def test_a_new_bundle_counts_at_once(trusted, tmp_path):
    prober = make_prober()
    other = Authority()
    assert show(other.server(), prober=prober).detail["verified"] is False
    (tmp_path / "bundle.pem").write_text(trusted.pem + other.pem)
    assert show(other.server(), prober=prober).detail["verified"] is True


def test_w24_the_chain_that_the_server_sends(tmp_path):
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(14)]
    certs = [make("root", keys[0], ca=True)]
    for n in range(1, 13):
        end = 3.5 if n == 6 else 100.5
        certs.append(make(f"ca-{n}", keys[n], issuer=certs[-1], signer=keys[n - 1], ca=True, end=end))
    certs.append(make("localhost", keys[13], issuer=certs[-1], signer=keys[12]))
    reading = show(context_of(tmp_path, keys[13], *reversed(certs)))
    chain = reading.detail["chain"]
    assert [row["subject"] for row in chain] == [f"ca-{n}" for n in range(12, 3, -1)]
    assert [row["issuer"] for row in chain] == [f"ca-{n}" for n in range(11, 2, -1)]
    assert (reading.value, reading.detail["chain_days"]) == (100, 3)
    assert reading.detail["issuer"] == "ca-12"


def test_w24_weak_keys_are_told_and_need_no_strength(tmp_path):
    key = rsa.generate_private_key(65_537, 1_024)
    reading = show(context_of(tmp_path, key, make("localhost", key)))
    assert reading.value == 100
    assert (reading.detail["key"], reading.detail["weak"]) == ("RSA 1024", ["the key is RSA 1024"])


def test_a_server_that_speaks_something_else_is_asked_for_nothing(authority):
    context = authority.server()
    context.set_alpn_protocols(["http/1.1"])
    chosen = []

    def handler(conn, server):
        chosen.append(conn.selected_alpn_protocol())
        server.stopping.wait()

    with Server(handler, tls=context) as server:
        assert look(server.port).value > 0
    assert chosen[-1] is None


# -- failures


def test_a_server_without_a_certificate():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    reading = show(context)
    assert (reading.reason, reading.fault) == ("no_cert", Fault.TARGET)
    assert reading.detail["protocol"] == "TLSv1.2"


def test_a_date_that_is_none(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    der = make("localhost", key).public_bytes(serialization.Encoding.DER)
    at = der.index(b"Z", der.index(b"Z") + 1)
    der = der[: at - 12] + b"991399999999" + der[at:]
    reading = show(context_of(tmp_path, key, ssl.DER_cert_to_PEM_cert(der).encode()))
    assert (reading.reason, reading.fault) == ("bad_cert_date", Fault.TARGET)


def test_a_certificate_that_cannot_be_read():
    with pytest.raises(Failed) as caught:
        _certificate.read(b"\x30\x03abc")
    assert (caught.value.reason, caught.value.fault) == ("tls_error", Fault.TARGET)


def test_every_damaged_certificate_is_read_or_refused():
    key = ec.generate_private_key(ec.SECP256R1())
    der = make("localhost", key).public_bytes(serialization.Encoding.DER)
    outcomes = set()
    for at in range(len(der)):
        for bit in (1, 16, 128):
            data = der[:at] + bytes((der[at] ^ bit,)) + der[at + 1 :]
            try:
                outcomes.add(_certificate.read(data).key)
            except Failed as failure:
                outcomes.add(failure.reason)
            _certificate.fits(data, "localhost")
    assert {"EC 256", "tls_error", "bad_cert_date"} <= outcomes


def test_a_server_that_does_not_speak_tls():
    with Server(servers.says(b"220 mail.example ESMTP\r\n")) as server:
        reading = look(server.port)
    assert (reading.reason, reading.fault) == ("tls_handshake_failed", Fault.TARGET)


def test_w24_a_dripping_handshake_ends_at_the_deadline(authority):
    hello = bytes((22, 3, 3, 64, 0))

    def drip(conn, server):
        conn.sendall(hello)
        while not server.stopping.wait(0.01):
            conn.sendall(b"\x02")

    with Server(drip) as server:
        watch = Watch()
        reading = look(server.port, timeout_ms=400)
        assert watch.seconds < 0.45
    assert reading.reason == "ETIMEDOUT"


def test_w24_the_second_handshake_has_what_the_first_one_left(authority):
    """The first handshake is answered with a certificate nobody trusts, the second one with silence."""
    context = authority.server()
    first = []

    def handler(conn, server):
        if first:
            server.stopping.wait()
        first.append(conn)
        with context.wrap_socket(conn, server_side=True) as tls:
            tls.recv(1)

    with Server(handler) as server:
        watch = Watch()
        reading = look(server.port, timeout_ms=400)
        assert watch.seconds < 0.45
    assert (reading.reason, reading.fault) == ("ETIMEDOUT", Fault.TARGET)
    assert reading.duration_ms >= 400


def test_one_look_counts_once_against_the_rate_of_the_policy(authority):
    prober = make_prober(policy=Policy(Rules(rate=1.0)))
    with Server(servers.tarpit, tls=authority.server()) as server:
        assert look(server.port, prober).value > 0
        assert look(server.port, prober).reason == "policy_denied"


def test_an_operating_system_s_error_without_a_name():
    reading = look(9, host="255.255.255.255")
    assert reading.fault is Fault.PATH
    from observer_agent.probes._reasons import Reason, from_os_error

    assert from_os_error(OSError(95, "not supported"), "x", Reason.TLS_ERROR).reason == "tls_error"


# -- the real thing


@pytest.fixture
def s_server(tmp_path):
    """Starts `openssl s_server` with some options; gives its port."""
    program = shutil.which("openssl")
    if not program:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("openssl is not here: apt-get install openssl")
    running = []

    def start(*options):
        with servers.refused_port() as port:
            pass
        command = [program, "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", *map(str, options)]
        log = (tmp_path / "log").open("wb")
        running.append((subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log), log))
        deadline = servers.Clock().monotonic() + 10
        while servers.Clock().monotonic() < deadline and running[-1][0].poll() is None:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    return port
        pytest.fail((tmp_path / "log").read_text())

    yield start
    for process, log in running:
        process.kill()
        process.communicate()
        log.close()


def files(folder, cert, key, *more):
    """Options of s_server for a certificate, its key and the chain behind it."""
    (folder / "leaf.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_text(key_pem(key))
    options = ["-cert", folder / "leaf.pem", "-key", folder / "key.pem"]
    if more:
        (folder / "more.pem").write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in more))
        options += ["-cert_chain", folder / "more.pem"]
    return options


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "begin", "end", "value", "word"),
    [
        ("localhost", -1, 90.5, 90, None),
        ("localhost", -20, -3.5, -4, "expired"),
        ("other.example", -1, 90.5, 90, "mismatch"),
        ("localhost", 5, 90.5, 90, "not yet valid"),
    ],
)
def test_openssl_s_server(name, begin, end, value, word, s_server, tmp_path, monkeypatch):
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(5)]
    certs = [make("root", keys[0], ca=True, begin=-30)]
    for n in range(1, 4):
        certs.append(make(f"ca-{n}", keys[n], issuer=certs[-1], signer=keys[n - 1], ca=True, begin=-30))
    leaf = make(name, keys[4], issuer=certs[-1], signer=keys[3], begin=begin, end=end)
    (tmp_path / "bundle.pem").write_bytes(certs[0].public_bytes(serialization.Encoding.PEM))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))
    reading = look(s_server(*files(tmp_path, leaf, keys[4], *reversed(certs[1:]))))
    assert reading.value == value
    assert reading.detail["verified"] is (word is None)
    assert (word or "") in reading.detail.get("verify_error", "")
    assert [row["subject"] for row in reading.detail["chain"]] == ["ca-3", "ca-2", "ca-1"]


@pytest.mark.slow
def test_openssl_s_server_self_signed_and_without_a_certificate(s_server, tmp_path):
    key = rsa.generate_private_key(65_537, 2_048)
    options = files(tmp_path, make("localhost", key), key)
    lone = look(s_server(*options, "-tls1_2"))
    assert (lone.value, lone.detail["self_signed"], lone.detail["protocol"]) == (100, True, "TLSv1.2")
    demanding = look(s_server(*options, "-Verify", "1", "-tls1_3"))
    assert demanding.value == 100
    bare = look(s_server("-nocert", "-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"))
    assert bare.reason == "no_cert"
