"""What an X.509 certificate says: names, dates, key, and what is weak about it.

DER bytes in, a `Certificate` out, or Failed. Read with asn1crypto, which is imported inside functions. Nothing is
verified here: that is OpenSSL's part. Runs on the probe's thread.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from observer_agent.clock import iso
from observer_agent.model import Fault
from observer_agent.probes._reasons import Failed, Reason

DAY: Final = 86_400
RSA_LEAST: Final = 2_048
EC_LEAST: Final = 224
MOST_NAMES: Final = 20
LONGEST: Final = 256

_MALFORMED: Final = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


class Certificate(NamedTuple):
    """The facts; times are seconds since 1970."""

    subject: str | None
    issuer: str | None
    not_before: float
    not_after: float
    names: tuple[str, ...]
    key: str
    weak: tuple[str, ...]
    self_signed: bool
    serial: str

    def days(self, now: float) -> int:
        """Whole days until the end, rounded down: negative once it has ended."""
        return math.floor((self.not_after - now) / DAY)

    def shown(self, now: float) -> dict[str, Any]:
        """The facts for a reading's detail."""
        return {
            "subject": self.subject,
            "issuer": self.issuer,
            "valid_from": iso(self.not_before),
            "valid_to": iso(self.not_after),
            "days": self.days(now),
            "key": self.key,
        }


def read(der: bytes) -> Certificate:
    """The certificate in DER bytes; raises Failed (`bad_cert_date`, or `tls_error` where it cannot be read at all)."""
    from asn1crypto import x509

    try:
        cert = x509.Certificate.load(der)
        validity = cert["tbs_certificate"]["validity"]
    except _MALFORMED as error:
        raise _unreadable(error) from None
    try:
        dates = validity["not_before"].native.timestamp(), validity["not_after"].native.timestamp()
    except _MALFORMED:
        raise Failed(Reason.BAD_CERT_DATE, "the certificate's dates cannot be read") from None
    try:
        self_signed = bool(cert.subject == cert.issuer)
        key, weak = _key(cert)
        return Certificate(
            _common_name(cert.subject), _common_name(cert.issuer), *dates, _names(cert), key,
            (*weak, *(() if self_signed else _signature(cert))), self_signed, format(cert.serial_number, "x")[:64],
        )  # fmt: skip
    except _MALFORMED as error:
        raise _unreadable(error) from None


def fits(der: bytes, name: str) -> bool:
    """Whether a certificate was made for a host's name or address."""
    from asn1crypto import x509

    try:
        return bool(x509.Certificate.load(der).is_valid_domain_ip(name.partition("%")[0].removesuffix(".")))
    except (*_MALFORMED, OSError):
        return False


def _unreadable(error: Exception) -> Failed:
    return Failed(Reason.TLS_ERROR, f"the certificate cannot be read ({type(error).__name__})", Fault.TARGET)


def _common_name(name: Any) -> str | None:
    value = name.native.get("common_name")
    first = value[0] if isinstance(value, list) else value
    return str(first)[:LONGEST] if first is not None else None


def _names(cert: Any) -> tuple[str, ...]:
    return tuple(str(name)[:LONGEST] for name in (*cert.valid_domains, *cert.valid_ips))


def _key(cert: Any) -> tuple[str, tuple[str, ...]]:
    """The key in words, and the complaint about it."""
    algorithm = cert.public_key.algorithm
    if algorithm not in ("rsa", "rsassa_pss", "ec", "dsa"):
        return str(algorithm), ()
    bits = cert.public_key.bit_size
    words = f"{'RSA' if algorithm.startswith('rsa') else algorithm.upper()} {bits}"
    least = EC_LEAST if algorithm == "ec" else RSA_LEAST
    return words, (f"the key is {words}",) if bits < least or algorithm == "dsa" else ()


def _signature(cert: Any) -> tuple[str, ...]:
    """The complaint about how it was signed; a root's own signature means nothing, and is not asked about."""
    algorithm = str(cert["signature_algorithm"]["algorithm"].native)
    weak = ("md2", "md5", "sha1")
    return (f"signed with {algorithm}",) if any(word in algorithm for word in weak) else ()
