"""Client certificates and private authorities for http probes (docs/probes.md, mended by W9 and W39).

Enters: the names of environment variables that hold PEM text or the path of a file with it. Leaves: an `Identity` that
knows which TLS context each hop gets, or Failed before any connection. Files are looked at anew by every probe and
read only when they have changed; nothing is written to disk. Runs on the probe's thread.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from observer_agent.clock import iso
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._secrets import look_up
from observer_agent.probes._tls import HTTP1, Tls, new_context
from observer_agent.probes._tools import Run, Tools

WARN_DAYS: Final = 30
LEAST_BITS: Final = 2_048
LARGEST: Final = 1_048_576
DAY: Final = 86_400

_MARKER: Final = "-----BEGIN"
_KEY = re.compile(r"-----BEGIN ((?:[A-Z0-9]+ )*)PRIVATE KEY-----.*?-----END \1PRIVATE KEY-----", re.DOTALL)
_CERT = re.compile(r"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----.*?-----END [A-Z0-9 ]*CERTIFICATE-----", re.DOTALL)
_KEY_KINDS: Final = ("", "RSA ", "EC ")
_MALFORMED: Final = (ssl.SSLError, ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


class Refs(Protocol):
    """The fields of a configuration that matter here."""

    @property
    def verify_tls(self) -> bool: ...
    @property
    def client_cert_ref(self) -> str | None: ...
    @property
    def client_key_ref(self) -> str | None: ...
    @property
    def ca_cert_ref(self) -> str | None: ...


class Given(NamedTuple):
    """The same fields, for configurations that have not all of them."""

    client_cert_ref: str | None = None
    client_key_ref: str | None = None
    ca_cert_ref: str | None = None
    verify_tls: bool = True


class Pem(NamedTuple):
    """Where PEM text comes from; `mark` changes when the text does. `text` is None for a file that is not read yet."""

    ref: str
    mark: tuple[Any, ...]
    text: str | None
    path: str = ""

    def read(self, reason: Reason) -> str:
        """The text; raises Failed with `reason` where it is no PEM."""
        text = _read(self) if self.text is None else self.text
        if _MARKER not in text:
            raise Failed(reason, f"the file that {self.ref} names holds no PEM", env=self.ref)
        return text


class Pair(NamedTuple):
    """A client certificate with its key, checked: PEM text, and when it is valid (seconds since 1970)."""

    pem: str
    not_before: float
    not_after: float


class Identity(NamedTuple):
    """What a probe shows and whom it trusts. `warning` is set when the certificate ends within 30 days."""

    verify: bool
    mark: tuple[Any, ...] = ()
    pair: Pair | None = None
    authorities_mark: tuple[Any, ...] = ()
    authorities: str | None = None
    warning: dict[str, Any] | None = None

    def tls(self, home: bool, run: Run, alpn: str = HTTP1) -> Tls:
        """The context for a hop; away from home the client certificate is not shown."""
        pair = self.pair if home else None
        contexts = run.tools.contexts
        if pair is None and self.authorities is None:
            return contexts.system(self.verify, run, alpn)
        key = ("context", self.verify, self.mark if pair else (), self.authorities_mark, alpn)
        found: Tls = contexts.own.get(key, lambda: self._build(pair, alpn), run)
        return found

    def _build(self, pair: Pair | None, alpn: str) -> Tls:
        context = new_context(self.verify, self.authorities, alpn)
        if pair:
            with _in_memory(pair.pem) as path:
                context.load_cert_chain(path, password="")
        return Tls(context, mtls=pair is not None)


def load(refs: Refs, run: Run) -> Identity:
    """The identity that a configuration asks for; raises Failed, in the order of docs/probes.md."""
    identity = Identity(refs.verify_tls)
    if refs.client_cert_ref or refs.client_key_ref:
        identity = _with_pair(identity, refs, run)
    if refs.ca_cert_ref:
        pem = _locate(refs.ca_cert_ref, run.tools)
        text = run.tools.contexts.own.get(("ca", *pem.mark), lambda: _check_authorities(pem), run)
        identity = identity._replace(authorities=text, authorities_mark=pem.mark)
    return identity


def _with_pair(identity: Identity, refs: Refs, run: Run) -> Identity:
    if not (refs.client_cert_ref and refs.client_key_ref):
        raise Failed(Reason.MTLS_INCOMPLETE, "a client certificate needs its key and the other way round")
    cert, key = _locate(refs.client_cert_ref, run.tools), _locate(refs.client_key_ref, run.tools)
    now = run.tools.clock.now()
    mark = ("pair", *cert.mark, *key.mark)
    pair: Pair = run.tools.contexts.own.get(mark, lambda: _check_pair(cert, key, now), run)
    _check_dates(pair.not_before, pair.not_after, now)
    days = math.floor((pair.not_after - now) / DAY)
    warning = {"not_after": iso(pair.not_after), "days_remaining": days} if days <= WARN_DAYS else None
    return identity._replace(mark=mark, pair=pair, warning=warning)


def _locate(ref: str, tools: Tools) -> Pem:
    value = look_up(ref, tools, Reason.MTLS_REF_MISSING)
    if _MARKER in value:
        digest = hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()
        return Pem(ref, ("inline", digest), value)
    try:
        facts = os.stat(value)
    except (OSError, ValueError):
        raise _unreadable(ref) from None
    return Pem(ref, (value, facts.st_mtime_ns, facts.st_size, facts.st_ino), None, value)


def _read(pem: Pem) -> str:
    try:
        # Not blocking: the path may lead to a pipe.
        handle = os.open(pem.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _unreadable(pem.ref)
            return file.read(LARGEST).decode("latin-1")
    except OSError:
        raise _unreadable(pem.ref) from None


def _unreadable(ref: str) -> Failed:
    return Failed(Reason.MTLS_FILE_UNREADABLE, f"the file that {ref} names cannot be read", env=ref)


def _check_pair(cert: Pem, key: Pem, now: float) -> Pair:
    cert_text = cert.read(Reason.MTLS_CERT_PARSE_FAILED)
    key_text = key.read(Reason.MTLS_KEY_PARSE_FAILED)
    dates = _dates(cert, cert_text)
    _check_dates(*dates, now)
    # Blocks alone: a certificate's file may hold a key as well, and OpenSSL takes the first.
    pem = "\n".join((*_CERT.findall(cert_text), _check_key(key, key_text), ""))
    _check_match(pem, cert.ref, key.ref)
    return Pair(pem, *dates)


def _dates(cert: Pem, text: str) -> tuple[float, float]:
    from asn1crypto import pem, x509

    try:
        blocks = pem.unarmor(text.encode("latin-1"), multiple=True)
        der = next(der for kind, _, der in blocks if kind.endswith("CERTIFICATE"))
        new_context(True, ssl.DER_cert_to_PEM_cert(der))  # OpenSSL reads more of it, and must be content too
        validity = x509.Certificate.load(der)["tbs_certificate"]["validity"]
        return validity["not_before"].native.timestamp(), validity["not_after"].native.timestamp()
    except (*_MALFORMED, StopIteration):
        text = f"{cert.ref} holds no certificate that can be read"
        raise Failed(Reason.MTLS_CERT_PARSE_FAILED, text, env=cert.ref) from None


def _check_dates(not_before: float, not_after: float, now: float) -> None:
    if not_after < now:
        at = iso(not_after)
        raise Failed(Reason.MTLS_CERT_EXPIRED, f"the client certificate ended at {at}", not_after=at)
    if not_before > now:
        at = iso(not_before)
        raise Failed(Reason.MTLS_CERT_NOT_YET_VALID, f"the client certificate begins at {at}", not_before=at)


def _check_key(key: Pem, text: str) -> str:
    """The PEM block of the key alone; raises Failed where it is encrypted, of an unknown kind or weak."""
    match = _KEY.search(text)
    if not match or match[1] not in (*_KEY_KINDS, "ENCRYPTED "):
        raise _bad_key(key, "holds no private key of a known kind (PKCS #8, RSA, EC)")
    if match[1] == "ENCRYPTED " or "ENCRYPTED" in match[0]:
        raise _bad_key(key, "holds an encrypted key, and there is no way to give a passphrase: decrypt it")
    try:
        bits = _rsa_bits(match[0], match[1])
    except _MALFORMED:
        raise _bad_key(key, "holds a private key that cannot be read") from None
    if bits is not None and bits < LEAST_BITS:
        text = f"the RSA key has {bits} bits; at least {LEAST_BITS} are needed"
        raise Failed(Reason.MTLS_WEAK_KEY, text, env=key.ref)
    return match[0]


def _rsa_bits(block: str, kind: str) -> int | None:
    from asn1crypto import keys, pem

    _, _, der = pem.unarmor(block.encode("latin-1"))
    if kind == "RSA ":
        return int(keys.RSAPrivateKey.load(der)["modulus"].native.bit_length())
    if kind == "EC ":
        return None
    info = keys.PrivateKeyInfo.load(der)
    return int(info["private_key"].parsed["modulus"].native.bit_length()) if info.algorithm == "rsa" else None


def _bad_key(key: Pem, text: str) -> Failed:
    return Failed(Reason.MTLS_KEY_PARSE_FAILED, f"{key.ref} {text}", env=key.ref)


def _check_match(pem: str, cert_ref: str, key_ref: str) -> None:
    """Has OpenSSL load both, which compares them."""
    try:
        with _in_memory(pem) as path:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(path, password="")
    except ssl.SSLError as error:
        name = error.reason or ""
        if "MISMATCH" in name or name == "NO_CERTIFICATE_ASSIGNED":  # the latter: RSA against EC
            text = f"the key of {key_ref} does not belong to the certificate of {cert_ref}"
            raise Failed(Reason.MTLS_KEY_MISMATCH, text, env=key_ref) from None
        if "TOO_SMALL" in name or "TOO_WEAK" in name:
            raise Failed(Reason.MTLS_WEAK_KEY, f"OpenSSL finds {cert_ref} too weak", env=cert_ref) from None
        raise Failed(Reason.MTLS_KEY_PARSE_FAILED, f"OpenSSL cannot load {key_ref}", env=key_ref) from None


def _check_authorities(pem: Pem) -> str:
    text = pem.read(Reason.MTLS_CERT_PARSE_FAILED)
    try:
        new_context(True, text)
    except (ssl.SSLError, ValueError):
        text = f"{pem.ref} holds no certificate of an authority that can be read"
        raise Failed(Reason.MTLS_CERT_PARSE_FAILED, text, env=pem.ref) from None
    return text


@contextmanager
def _in_memory(text: str) -> Iterator[str]:
    """A path for functions that insist on a file; the bytes never touch a disk and are gone at the end."""
    handle = os.memfd_create("pem", os.MFD_CLOEXEC)
    with open(handle, "wb") as file:
        file.write(text.encode("latin-1", "replace"))
        file.flush()
        yield f"/proc/self/fd/{handle}"
