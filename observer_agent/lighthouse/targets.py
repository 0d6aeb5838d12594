"""What a check's `url` names: host and port, a domain, or a URL without its user and password.

Texts in, parts out, or Unusable with a text that never quotes the value. Pure.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote, urlsplit

from observer_agent.probes._url import parse_authority

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?P<user>[^/?#]*)@(?P<rest>.*)", re.DOTALL)


class Unusable(ValueError):
    """A field of a check cannot be used: its name, and what to write instead."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}")


def host_port(url: str, usual: int | None) -> tuple[str, int]:
    """`host:port` or `scheme://host:port`, a path behind it left away; `usual` is the port where there is none."""
    try:
        host, port = parse_authority(_authority(url))
    except Unusable:
        raise
    except ValueError as error:
        raise Unusable("url", f"{error}: write host:port") from None
    if port is None and usual is None:
        raise Unusable("url", "must have a port: write host:port")
    return host, port or usual or 0


def domain(url: str) -> str:
    """A bare name; scheme, port and path are left away."""
    text = _authority(url)
    name, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and ":" not in name:
        text = name
    if not text:
        raise Unusable("url", "is empty: write the name to look up")
    return text


def split_user(url: str) -> tuple[str, str]:
    """A URL without user and password, and the value of the header Authorization that says them; empty without any."""
    found = _USERINFO.fullmatch(url.strip())
    if not found:
        return url.strip(), ""
    pair = unquote(found["user"]).partition(":")
    coded = base64.b64encode(f"{pair[0]}:{pair[2]}".encode("utf-8", "surrogateescape")).decode()
    return found["scheme"] + found["rest"], f"Basic {coded}"


def passwords(url: str) -> tuple[str, str]:
    """The password in a URL as it is written and as it is meant; empty where there is none."""
    found = _USERINFO.fullmatch(url.strip())
    written = found["user"].partition(":")[2] if found else ""
    return written, unquote(written)


def _authority(url: str) -> str:
    text = url.strip()
    if not _SCHEME.match(text):
        text = f"//{text}"
    try:
        return urlsplit(text).netloc.rpartition("@")[2]
    except ValueError:
        raise Unusable("url", "is not an address: write host:port") from None
