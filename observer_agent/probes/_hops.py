"""The way of a request from its first URL over redirects to the answer that counts.

An `http` configuration in, the last response out, open, or Failed. Off the first origin nothing of the operator's goes:
neither headers nor body nor client certificate, even if a later hop returns. Runs on the probe's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from observer_agent.probes import _evidence, _mtls
from observer_agent.probes._headers import Pairs
from observer_agent.probes._http import Request, Response, exchange
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run
from observer_agent.probes._url import BadScheme, Url, follow

if TYPE_CHECKING:
    from observer_agent.probes.http import HttpConfig

STRICT, BROWSER = "strict", "browser"
_TO_GET: Final = (301, 302, 303)  # what makes a GET of another method, where browsers' rules hold
_HARMLESS: Final = frozenset(("user-agent", "accept", "accept-language"))  # a browser says these to everybody


class Hops:
    """See the module. Browsers' rules: another method than GET and HEAD becomes GET, from https to http is allowed, and
    the same host's https on the usual ports is no other origin."""

    def __init__(self, config: HttpConfig, secrets: Pairs, identity: _mtls.Identity, run: Run) -> None:
        self._config = config
        self._identity = identity
        self._run = run
        self._url = config.url
        self._headers = (*config.headers, *secrets)
        self._method, self._body = config.method, config.body
        self._home = True
        self._lax = config.redirect_rules == BROWSER

    def walk(self, known: dict[str, Any]) -> Response:
        """Follows redirects and returns the last response, open."""
        hops = 0
        while True:
            response = self._ask()
            location = response.headers.get("location")
            onward = location if self._config.follow_redirects and 300 <= response.status < 400 else None
            if onward or hops:
                _evidence.add_hop(response, self._run)
            if not onward:
                return response
            response.close()
            if hops == self._config.max_redirects:
                raise Failed(Reason.TOO_MANY_REDIRECTS, f"the server redirects more than {hops} times")
            self._move(onward, response.status)
            hops = known["hops"] = hops + 1

    def _ask(self) -> Response:
        tls = self._identity.tls(self._home, self._run) if self._url.scheme == "https" else None
        return exchange(Request(self._method, self._url, self._headers, self._body), self._run, tls)

    def _move(self, location: str, status: int) -> None:
        try:
            url = follow(self._url, location)
        except BadScheme:
            raise Failed(Reason.INVALID_URL_SCHEME, "the server redirects to something else than http(s)") from None
        except ValueError as error:
            raise Failed(Reason.INVALID_URL, str(error)) from None
        if self._url.scheme == "https" and url.scheme == "http" and not self._lax:
            raise Failed(Reason.REDIRECT_DOWNGRADE, "the server redirects from https to http")
        if self._lax and status in _TO_GET and self._method not in ("GET", "HEAD"):
            self._method, self._body = "GET", b""
        if self._home and not self._is_home(url):
            self._leave()
        self._url = url

    def _is_home(self, url: Url) -> bool:
        first = self._config.url
        secured = first._replace(scheme="https", port=443)
        return url.origin == first.origin or (self._lax and first.port == 80 and url.origin == secured.origin)

    def _leave(self) -> None:
        """From here on strangers are asked."""
        self._home, self._body = False, b""
        self._headers = tuple(pair for pair in self._headers if self._lax and pair[0].lower() in _HARMLESS)
