"""What a Prometheus, or a page in its format, says by HTTP status, as reasons (docs/probes.md, mended by W20). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from observer_agent.probes._reasons import Failed, Reason

_BY_STATUS: Final[Mapping[int, tuple[Reason, str]]] = MappingProxyType(
    {
        400: (Reason.BAD_QUERY, "the server does not understand the query"),
        401: (Reason.UNAUTHORIZED, "the server wants other credentials"),
        403: (Reason.UNAUTHORIZED, "the server wants other credentials"),
        404: (Reason.PROM_NOT_FOUND, "there is nothing at this URL: is a path prefix missing?"),
        422: (Reason.BAD_QUERY, "the server cannot execute the query"),
        429: (Reason.PROM_RATE_LIMITED, "the server is asked too often"),
    }
)
_OWN_NAMES: Final[Mapping[str, Reason]] = MappingProxyType(
    {
        Reason.NOT_FOUND: Reason.DNS,
        Reason.TRY_AGAIN: Reason.DNS,
        Reason.HTTP_ERROR: Reason.PROM_BAD_RESPONSE,
    }
)


def check_status(status: int) -> None:
    """Raises Failed for anything but a 2xx."""
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        raise Failed(Reason.PROM_REDIRECT, "the server redirects, which is not followed: use the final URL")
    if status >= 500:
        raise Failed(Reason.PROM_UPSTREAM, f"the server answered {status}")
    reason, text = _BY_STATUS.get(status, (Reason.PROM_BAD_RESPONSE, "the answer is not expected"))
    raise Failed(reason, f"{text} (status {status})")


def renamed(failure: Failed) -> Failed:
    """A failure under the name that this source type has for it; whose fault it is stays."""
    name = _OWN_NAMES.get(failure.reason)
    if name is None:
        return failure
    out = Failed(name, "", failure.fault, code=failure.reason)
    out.detail.update(failure.detail)
    return out


def bad_response(text: str) -> Failed:
    """The answer is not what such a server gives."""
    return Failed(Reason.PROM_BAD_RESPONSE, text)
