"""The agent's own credentials for its own Prometheus (docs/probes.md), and nobody else's (W11).

Settings in, headers out, or Failed before any request. Texts name variables and header names, never a value.
Runs on the probe's thread.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from typing import Any, Final

from observer_agent.probes._config import encodable
from observer_agent.probes._headers import Pairs
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Settings, Tools

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TENANT: Final = "X-Scope-OrgID"
_EXTRA: Final = "PROMETHEUS_HEADERS"


def auth_headers(tools: Tools) -> Pairs:
    """The headers for the configured Prometheus; raises Failed where the settings contradict one another."""
    settings = tools.settings
    extra = _extra(settings.prometheus_headers or "")
    names = {name.lower() for name, _ in extra}
    login, token, tenant = _basic(settings), _clean(settings.prometheus_bearer_token), _tenant(settings)
    if login and token:
        raise _conflict("PROMETHEUS_BEARER_TOKEN and basic auth are both set: unset one")
    if (login or token) and "authorization" in names:
        raise _conflict(f"{_EXTRA} holds Authorization, and so do the other settings: unset one")
    if tenant and _TENANT.lower() in names:
        raise _conflict(f"{_EXTRA} holds {_TENANT}, and PROMETHEUS_TENANT_ID is set: unset one")
    out = list(extra)
    if login or token:
        out.append(("Authorization", f"Basic {login}" if login else f"Bearer {token}"))
    if tenant:
        out.append((_TENANT, tenant))
    tools.redact.add(*(value for name, value in out if name != _TENANT), login, token, settings.prometheus_password)
    return tuple(out)


def _basic(settings: Settings) -> str:
    user, password = settings.prometheus_username, settings.prometheus_password
    if not (settings.prometheus_basic_auth_enabled and user and password):
        return ""
    return base64.b64encode(f"{user}:{password}".encode("utf-8", "surrogateescape")).decode()


def _tenant(settings: Settings) -> str:
    return _clean(settings.prometheus_tenant_id)


def _clean(value: str | None) -> str:
    text = (value or "").strip()
    if _FORBIDDEN.search(text):
        raise _invalid("a token or tenant holds control characters")
    return text


def _extra(text: str) -> Pairs:
    text = text.strip()
    items = _from_object(text) if text.startswith("{") else _from_lines(text)
    out = []
    for name, value in items:
        if not _TOKEN.fullmatch(name) or name.lower() in ("content-length", "transfer-encoding", "connection"):
            raise _invalid(f"{_EXTRA}: {ascii(name)[1:65]} is not a header's name")
        if _FORBIDDEN.search(value) or not encodable(value):
            raise _invalid(f"{_EXTRA}: the value of {name[:64]} holds control characters")
        out.append((name, value))
    return tuple(out)


def _from_object(text: str) -> Iterable[tuple[str, str]]:
    try:
        given: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise _invalid(f"{_EXTRA} begins with {{ but is not JSON") from None
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _invalid(f"{_EXTRA}: the value of {ascii(name)[1:65]} is neither a text nor a number")
        yield name, str(value).strip()


def _from_lines(text: str) -> Iterable[tuple[str, str]]:
    for item in re.split(r"[;\n]", text):
        if not item.strip():
            continue
        name, colon, value = item.partition(":")
        if not colon:
            raise _invalid(f"{_EXTRA}: an item has no colon")
        yield name.strip(), value.strip()


def _conflict(text: str) -> Failed:
    return Failed(Reason.PROMETHEUS_AUTH_CONFLICT, text)


def _invalid(text: str) -> Failed:
    return Failed(Reason.PROMETHEUS_HEADERS_INVALID, text)
