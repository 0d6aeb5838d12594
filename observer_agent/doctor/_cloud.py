"""The steps from the resolver to the cloud's answer, in the order of the way; the first that fails is the cause.

Two connections are made: one that goes as far as TLS, and the agent's own transport, which fetches the definitions.
That request carries the key and no `Agent-Started-At`: with a newer one the cloud would take this command for the
agent's successor, and would refuse the running agent's samples from then on. Nothing is changed at the cloud.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

from observer_agent import __version__
from observer_agent.clouds.observer import headers, is_suspended
from observer_agent.config import Settings
from observer_agent.doctor import _tls, _way
from observer_agent.doctor._place import Known, Place
from observer_agent.doctor._report import Check, Finding, checked, skipped
from observer_agent.doctor._way import Stopped, Way
from observer_agent.resolver import ResolveError, Resolver
from observer_agent.transport import Reply, Transport

DEFINITIONS = "/api/agent/metrics-definitions"
STEPS = ("resolver", "tcp", "proxy", "tls", "clock", "contract", "authentication")
SLOW_NAME = 1.0
SECOND_LOOK = 0.7  # seconds that are kept to find out why a handshake failed
URL_FIX = "check CLOUD_SERVER_URL: it must be the address of an Observer cloud or hub, without a path"


def agent_headers(key: str, started_at: str | None = None) -> dict[str, str]:
    """The agent's headers, without a start time unless it is the running agent's own."""
    return headers(key, started_at, __version__)


def make_transport(place: Place, known: Known, settings: Settings, started_at: str | None = None) -> Transport:
    """The agent's transport with the service's environment; call inside `proxies_of`."""
    return Transport(
        settings.cloud_server_url,
        agent_headers(known.key, started_at),
        clock=place.clock,
        resolver=Resolver(place.clock, place.lookup),
        verify=not settings.skip_ssl_verification,
        env=known.env,
    )


class Cloud:
    """One walk to the cloud until a moment of the monotonic clock. `checks` grows as it goes."""

    def __init__(self, place: Place, known: Known, settings: Settings, until: float) -> None:
        self._place = place
        self._known = known
        self._settings = settings
        self._clock = place.clock
        self._until = until
        self._resolver = Resolver(place.clock, place.lookup)
        self._sock: socket.socket | None = None
        self._addresses: tuple[Any, ...] = ()
        self.checks: list[Check] = []
        self.doing = ""
        self.rows: tuple[Any, ...] | None = None
        with _way.proxies_of(known.env):
            self._way: Way = _way.find_way(settings.cloud_server_url)
            self._transport = make_transport(place, known, settings)

    def walk(self) -> Cloud:
        """Goes as far as the way goes."""
        try:
            steps = (self._resolve, self._connect, self._proxy, self._shake)
            went = all(self._step(name, step) for name, step in zip(STEPS, steps, strict=False))
            self._drop()
            if went:
                self.doing = "contract"
                self._ask()
        finally:
            self._drop()
            self._transport.close()
        return self

    def rest(self, why: str) -> list[Check]:
        """The steps that were not taken."""
        taken = {each.name for each in self.checks}
        return [skipped(name, why) for name in STEPS if name not in taken]

    def _step(self, name: str, step: Callable[[], Check]) -> bool:
        self.doing = name
        began = self._clock.monotonic()
        try:
            found, went = step(), True
        except Stopped as stopped:
            found, went = checked(name, "failed", stopped.findings), False
        ms = (self._clock.monotonic() - began) * 1000
        self.checks.append(Check(found.name, found.outcome, found.fact, ms, found.findings))
        return went

    def _left(self) -> float:
        return max(self._until - self._clock.monotonic(), 0.05)

    def _drop(self) -> None:
        if self._sock:
            self._sock.close()
            self._sock = None

    # -- name, connection, proxy, TLS

    def _resolve(self) -> Check:
        host = self._way.cloud.host
        if self._way.proxy:
            return skipped("resolver", "the proxy looks the name up")
        began, seconds = self._clock.monotonic(), 0.0
        try:
            self._addresses, seconds = _way.resolve(host, self._resolver, self._until, self._clock)
        except ResolveError as error:
            raise Stopped(_no_name(host, error.reason, self._clock.monotonic() - began)) from None
        fact = f"{host} is {', '.join(str(each.host) for each in self._addresses[:3])}"
        slow = []
        if seconds > SLOW_NAME:
            cause = f"the resolver took {seconds:.1f} s for {host}"
            slow = [
                Finding("resolver.slow", cause, "resolvectl status (or /etc/resolv.conf): mend or reorder the servers")
            ]
        return checked("resolver", fact, slow)

    def _connect(self) -> Check:
        if self._way.proxy:
            return skipped("tcp", "the proxy makes the connection")
        name = self._way.cloud.name
        try:
            self._sock = self._open()
        except TimeoutError:
            fix = f"have {name} opened in the firewall; try: nc -vz {self._way.cloud.host} {self._way.cloud.port}"
            raise Stopped(Finding("tcp.silent", f"{name} does not answer to a connection", fix)) from None
        except ConnectionRefusedError:
            fix = f"check host and port of CLOUD_SERVER_URL: nc -vz {self._way.cloud.host} {self._way.cloud.port}"
            raise Stopped(Finding("tcp.refused", f"{name} refuses the connection: nobody listens there", fix)) from None
        except OSError as error:
            why = (error.strerror or "no connection").lower()
            fix = "ip route; ip address: see whether this machine has a way out"
            raise Stopped(Finding("tcp.unreachable", f"{name} is not reached: {why}", fix)) from None
        return checked("tcp", f"connected to {name}")

    def _proxy(self) -> Check:
        if not self._way.proxy:
            return skipped("proxy", "none is set")
        self._sock = self._open()
        return checked("proxy", f"through {self._way.proxy.name}")

    def _open(self) -> socket.socket:
        """A connection as far as TLS begins."""
        if self._way.proxy:
            return _way.through_proxy(self._way, self._resolver, self._until, self._clock)
        return _way.connect(self._addresses, self._way.cloud.port, self._until, self._clock)

    def _shake(self) -> Check:
        if not self._way.tls:
            return skipped("tls", "the cloud's URL is http://")
        context = _tls.make_context(self._known.env, not self._settings.skip_ssl_verification)
        if self._way.proxy and self._way.proxy.scheme == "https":
            return skipped("tls", "the proxy speaks TLS itself")
        sock, self._sock = self._sock, None
        assert sock is not None
        try:
            with _tls.shake(sock, context, self._way.cloud.host, self._left() - SECOND_LOOK) as done:
                fact = f"{done.version()}, certificate " + (
                    "not looked at" if not context.check_hostname else "trusted"
                )
        except OSError as error:
            sock.close()
            raise _tls.explain(error, self._way, self._open, self._clock) from None
        return checked("tls", fact)

    # -- the request

    def _ask(self) -> None:
        began, sent = self._clock.monotonic(), self._clock.now()
        reply = self._transport.call("GET", DEFINITIONS, seconds=self._left())
        ms = (self._clock.monotonic() - began) * 1000
        middle = (sent + self._clock.now()) / 2
        if reply.status == 407 and self._way.proxy:
            found = [_way.login_needed(self._way.proxy.name, bool(self._way.proxy.login))]
        else:
            found = list(self._judge(reply))
        where = found[0].check if found else "contract"
        said = f"status {reply.status}" if reply.status else reply.error
        # Of an answer that is not the cloud's the date is not the cloud's either.
        own = not found or where == "authentication"
        self.checks.append(_clock_by(reply, middle) if own else skipped("clock", f"because of {where}"))
        if where not in ("contract", "authentication"):
            self.checks = [each for each in self.checks if each.name != where]
            self.checks.append(checked(where, said, found, ms))
            return
        if where == "authentication":
            self.checks.append(checked("contract", f"{said}, the endpoint is there"))
            self.checks.append(checked("authentication", said, found, ms))
            return
        self.checks.append(checked("contract", said, found, ms))
        if not found and self._known.key:
            self.checks.append(checked("authentication", "the cloud takes this key"))

    def _judge(self, reply: Reply) -> Iterator[Finding]:
        """What is wrong with the answer to the fetch of the definitions; the rows are kept."""
        name, status = self._way.cloud.name, reply.status
        if status == 0:
            yield _no_answer(name, reply.error)
        elif 300 <= status < 400:
            yield _redirect(name, reply)
        elif status in (401, 403):
            yield from self._refused(name, reply)
        elif status in (404, 405):
            cause = f"{name} knows no {DEFINITIONS} (status {status}): it is no Observer cloud, or a very old one"
            yield Finding("contract.missing", cause, URL_FIX)
        elif status == 511:
            yield Finding(
                "contract.captive_portal", "the network wants a login first (status 511)", "log in to the network"
            )
        elif status in (408, 425, 429):
            yield Finding(
                "contract.busy", f"{name} asks to come later (status {status})", "wait; the agent does by itself"
            )
        elif status >= 500:
            cause = f"{name} has a fault of its own (status {status})"
            yield Finding(
                "contract.server_error", cause, "ask who runs the cloud; the agent keeps samples and goes on trying"
            )
        elif not reply.ok:
            yield Finding("contract.unexpected", f"{name} answers with status {status}", URL_FIX)
        else:
            yield from self._content(name, reply)

    def _refused(self, name: str, reply: Reply) -> Iterator[Finding]:
        if reply.status == 401 and not self._known.key:
            return  # the missing key is named elsewhere
        if reply.status == 401:
            cause = f"{name} does not know this key: it is wrong, or was revoked (status 401)"
            fix = "put the right key into the key file, then: systemctl reload observer-agent"
            yield Finding("authentication.refused", cause, fix)
        elif is_suspended(reply):
            cause = "the plan of this account is suspended (status 403): samples wait and go out once it is resumed"
            yield Finding("authentication.suspended", cause, "resume the plan at the cloud")
        else:
            cause = (
                f"{name} forbids the request (status 403): the key may not do this, or something in between forbids it"
            )
            yield Finding(
                "authentication.forbidden", cause, "check the key's agent at the cloud, and firewalls on the way"
            )

    def _content(self, name: str, reply: Reply) -> Iterator[Finding]:
        kind = reply.headers.get("Content-Type", "").lower()
        try:
            rows = json.loads(reply.body)
        except (ValueError, RecursionError):
            rows = None
        if isinstance(rows, list):
            self.rows = tuple(rows)
        elif "html" in kind or reply.body.lstrip()[:1] == b"<":
            cause = f"{name} answers with a web page: it is no Observer cloud, or the network wants a login first"
            yield Finding("contract.html", cause, URL_FIX)
        else:
            cause = f"{name} answers, but not with definitions (a JSON array): it speaks another contract"
            yield Finding("contract.not_definitions", cause, URL_FIX)


def _clock_by(reply: Reply, middle: float) -> Check:
    """The cloud's `Date` against our clock in the middle of the call."""
    date = _tls.read_date(reply.headers.get("Date"))
    if date is None or reply.headers.get("Age", "0") != "0":
        return skipped("clock", "the cloud told no date of its own")
    offset = date + 0.5 - middle
    found = _tls.judge_clock(offset)
    return checked("clock", f"{offset:+.1f} s from the cloud's", [found] if found else [])


def _no_name(host: str, reason: str, seconds: float) -> Finding:
    fix = f"getent hosts {host}; check CLOUD_SERVER_URL and /etc/resolv.conf"
    if reason == "ETIMEDOUT":
        return Finding("resolver.silent", f"the resolver did not answer for {host} within {seconds:.1f} s", fix)
    if reason == "EAI_AGAIN":
        return Finding("resolver.failed", f"no name server answers for {host} ({reason})", fix)
    return Finding("resolver.not_found", f"the name {host} does not exist ({reason})", fix)


def _no_answer(name: str, error: str) -> Finding:
    try_it = f"try from here: curl -v https://{name}/"
    if error.startswith("TLS"):
        return Finding("tls.failed", f"TLS with {name} fails: {error.removeprefix('TLS: ')}", try_it)
    if error == "timed out":
        return Finding("contract.silent", f"{name} took the connection and did not answer in time", try_it)
    if "closed" in error or "reset" in error:
        return Finding("contract.closed", f"{name} closes the connection without an answer", URL_FIX)
    return Finding("contract.not_http", f"{name} does not answer in HTTP ({error})", URL_FIX)


def _redirect(name: str, reply: Reply) -> Finding:
    target = reply.headers.get("Location", "")
    where = f" to {_origin(target)}" if "://" in target else ""
    cause = f"{name} leads elsewhere{where} (status {reply.status}); redirects are not followed, the key stays here"
    return Finding(
        "contract.redirect", cause, f"set CLOUD_SERVER_URL to the final address{where.replace(' to ', ', perhaps ')}"
    )


def _origin(url: str) -> str:
    from observer_agent.config import origin

    try:
        return origin(url)
    except ValueError:
        return "a broken address"
