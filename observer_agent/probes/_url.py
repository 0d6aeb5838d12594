"""URLs of http and https as parts that are safe to write into a request.

A text in, a `Url` out, or ValueError with a text that never quotes the URL: it may hold a secret. Userinfo is refused
everywhere (docs/probes.md, W13). Pure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from observer_agent.probes._config import encodable, host_name

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)(?:%(?:25)?([\w.-]+))?\]|([^\[\]:@%\\]+))(?::([0-9]{0,5}))?")
_SAFE: Final = "%/?:@!$&'()*+,;=~-._[]"
_PORTS: Final = {"http": 80, "https": 443}


class BadScheme(ValueError):
    """A URL of another scheme than http or https."""


class Url(NamedTuple):
    """`host` is ASCII, IPv6 without brackets; `target` is path and query, percent-encoded."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> tuple[str, str, int]:
        """What two URLs must share for a secret of one to be sent to the other."""
        return self[:3]

    @property
    def authority(self) -> str:
        """The value of the header Host: IPv6 in brackets, the port only where it is not the scheme's own."""
        host = self.host
        if ":" in host:
            host = f"[{host.partition('%')[0]}]"
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def text(self) -> str:
        """The URL again, without a fragment."""
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str) -> Url:
    """A URL as its parts, the fragment dropped; raises ValueError (BadScheme)."""
    if _CONTROL.search(text) or not encodable(text):
        raise ValueError("must not hold control characters")
    try:
        parts = urlsplit(text.strip())
    except ValueError:
        raise ValueError("must be a URL") from None
    if parts.scheme not in _PORTS:
        raise BadScheme("must be an http or https URL")
    if "@" in parts.netloc:
        raise ValueError("must not hold a user name or password")
    host, port = parse_authority(parts.netloc)
    target = quote(parts.path or "/", _SAFE) + (f"?{quote(parts.query, _SAFE)}" if parts.query else "")
    return Url(parts.scheme, host, port or _PORTS[parts.scheme], target if target[0] == "/" else "/" + target)


def parse_authority(text: str) -> tuple[str, int | None]:
    """`host`, `host:port` or `[v6]:port` as host and port; raises ValueError."""
    match = _AUTHORITY.fullmatch(text)
    if not match:
        raise ValueError("must name a host")
    v6, zone, name, port = match.groups()
    host = host_name(f"{v6}%{zone}" if zone else v6 or name)
    if v6 and ":" not in host:
        raise ValueError("must name a host")
    if port and not 1 <= int(port) <= 65_535:
        raise ValueError("must have a port from 1 to 65535")
    return host, int(port) if port else None


def follow(base: Url, location: str) -> Url:
    """Where a redirect leads; raises ValueError (BadScheme)."""
    if not location or _CONTROL.search(location):
        raise ValueError("the redirect's Location is not a URL")
    try:
        return parse_url(urljoin(base.text, _as_utf8(location.strip())))
    except BadScheme:
        raise
    except ValueError:
        raise ValueError("the redirect's Location is not a URL") from None


def _as_utf8(text: str) -> str:
    """Header text is read as Latin-1; servers write UTF-8."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text
