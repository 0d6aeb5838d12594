"""Connection strings of databases: a URL in, a `Dsn` out, or ValueError with a text that quotes nothing of it.

postgres://, postgresql://, mysql://, mariadb://, redis://, rediss:// and mongodb:// with one host over TCP. What would
change where or how we connect and is not understood here is refused instead of overlooked; settings of pools and the
like are ignored. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote

from observer_agent.probes._url import parse_authority

DISABLE, PREFER, REQUIRE, VERIFY_CA, VERIFY_FULL = "disable", "prefer", "require", "verify-ca", "verify-full"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REFUSED: Final = frozenset(
    "host hostaddr port user username password passfile dbname service servicefile options replication "
    "socket unix_socket unixsocket socketpath target_session_attrs gssencmode krbsrvname "
    "sslcert sslkey sslpassword sslcrl sslcrldir sslnegotiation require_auth channel_binding "
    "ssl-cert ssl_cert ssl-key ssl_key ssl-capath ssl-crl ssl_certfile ssl_keyfile ssl_ca_path ssl_ca_data "
    "tlscertificatekeyfile tlscertificatekeyfilepassword tlscrlfile sslclientcertificatekeyfile "
    "authmechanismproperties autoencryption proxyhost".split()
)
_MODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "disable": DISABLE, "disabled": DISABLE, "false": DISABLE, "0": DISABLE,
        "allow": PREFER, "prefer": PREFER, "preferred": PREFER,
        "require": REQUIRE, "required": REQUIRE,
        "verify-ca": VERIFY_CA, "verify_ca": VERIFY_CA,
        "verify-full": VERIFY_FULL, "verify_full": VERIFY_FULL, "verify_identity": VERIFY_FULL, "true": VERIFY_FULL,
        "1": VERIFY_FULL,
    }
)  # fmt: skip
_MODE_NAMES: Final = ("sslmode", "ssl-mode", "ssl_mode", "ssl", "tls")
_CA_NAMES: Final = ("sslrootcert", "ssl-ca", "ssl_ca", "ssl_ca_certs", "tlscafile")


class _Kind(NamedTuple):
    schemes: tuple[str, ...]
    port: int
    tls: str


_KINDS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        "postgres": _Kind(("postgres", "postgresql"), 5432, PREFER),
        "mysql": _Kind(("mysql", "mariadb"), 3306, PREFER),
        "redis": _Kind(("redis", "rediss"), 6379, DISABLE),
        "mongodb": _Kind(("mongodb",), 27017, DISABLE),
    }
)
KINDS: Final = tuple(_KINDS)


@dataclass(frozen=True, slots=True)
class Dsn:
    """A connection string in parts; `ca` is the path of a PEM file. Its repr shows no secret."""

    host: str
    port: int
    user: str = field(repr=False)
    password: str = field(repr=False)
    database: str = field(repr=False)
    tls: str
    ca: str
    options: Mapping[str, str] = field(repr=False)


def parse_dsn(kind: str, text: str) -> Dsn:
    """The connection string of a database of this kind; raises ValueError."""
    rules = _KINDS[kind]
    scheme, _, rest = text.strip().partition("://")
    scheme = scheme.lower()
    if scheme == "mongodb+srv":
        raise ValueError("mongodb+srv is not supported: it lets DNS choose hosts and options; name one host")
    if scheme not in rules.schemes:
        raise ValueError(f"must begin with {' or '.join(f'{name}://' for name in rules.schemes)}")
    if "#" in rest or _CONTROL.search(rest):
        raise ValueError("must not hold # or control characters: write them as %XX")
    place, _, query = rest.partition("?")
    authority, _, path = place.partition("/")
    userinfo, _, where = authority.rpartition("@")
    host, port = _where(where)
    user, _, password = userinfo.partition(":")
    options = _options(query)
    tls, ca = _tls(scheme, options, rules.tls)
    dsn = Dsn(host, port or rules.port, _plain(user), _plain(password), _plain(path), tls, ca, options)
    _check(kind, dsn)
    return dsn


def _where(text: str) -> tuple[str, int | None]:
    if "," in text:
        raise ValueError("must name one host, not several")
    if not text or text.lower().startswith(("%2f", "/", "unix(")) or text.lower().endswith(".sock"):
        raise ValueError("must name a host: unix sockets are not supported")
    try:
        return parse_authority(text)
    except ValueError:
        raise ValueError("names no host: special characters of a password are written as %XX") from None


def _plain(text: str) -> str:
    try:
        plain = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("holds a %XX that is not UTF-8") from None
    if _CONTROL.search(plain):
        raise ValueError("must not hold control characters")
    return plain


def _options(query: str) -> Mapping[str, str]:
    options = {name.lower(): value for name, value in parse_qsl(query, keep_blank_values=True)}
    for name in options:
        if name in _REFUSED:
            raise ValueError(f"the option {name} is not supported")
    return MappingProxyType(options)


def _tls(scheme: str, options: Mapping[str, str], mode: str) -> tuple[str, str]:
    """How far TLS goes, and the path of the authorities' file."""
    if scheme == "rediss":
        mode = VERIFY_FULL
    for name in _MODE_NAMES:
        if name in options:
            mode = _MODES.get(options[name].lower(), "")
            if not mode or (scheme == "rediss" and mode == DISABLE):
                raise ValueError(f"the option {name} has a value that is not known")
    if mode == VERIFY_FULL and _on(options, "tlsinsecure", "tlsallowinvalidcertificates"):
        mode = REQUIRE
    if mode == VERIFY_FULL and _on(options, "tlsallowinvalidhostnames"):
        mode = VERIFY_CA
    if mode == VERIFY_FULL and options.get("ssl_cert_reqs", "").lower() == "none":
        mode = REQUIRE
    return mode, next((options[name] for name in _CA_NAMES if options.get(name)), "")


def _on(options: Mapping[str, str], *names: str) -> bool:
    return any(options.get(name, "").lower() in ("true", "1") for name in names)


def _check(kind: str, dsn: Dsn) -> None:
    if kind in ("postgres", "mysql") and not dsn.user:
        raise ValueError("must name a user")
    number = dsn.options.get("db", dsn.database) or "0"
    if kind == "redis" and not re.fullmatch(r"[0-9]{1,4}", number):
        raise ValueError("must name the database by its number")
    if kind in ("redis", "mongodb") and dsn.tls == PREFER:
        raise ValueError("TLS is on or off here, it cannot be preferred")
    mechanism = dsn.options.get("authmechanism", "").upper()
    if kind == "mongodb" and mechanism not in ("", "SCRAM-SHA-1", "SCRAM-SHA-256"):
        raise ValueError("authMechanism must be SCRAM-SHA-256 or SCRAM-SHA-1")
