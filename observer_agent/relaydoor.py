"""The relay's door: requests of jobs on this machine in, pings and a status for the answer out.

`GET|POST|HEAD /heartbeat/<token>[/start|/fail|/<exit code>]`, a body kept up to 10 KiB. What becomes of a ping is for
whoever is handed in as `take`. Runs on the listener's threads.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from observer_agent.clock import Clock
from observer_agent.listener import BadBody, Handler, Listener, TooLarge

HANDLERS = 4
BODY_MAX = 10 * 1024
ANYTHING = 1 << 40  # what is beyond BODY_MAX is not kept, whatever its length
PER_TOKEN, IN_ALL, WINDOW = 60, 600, 60.0
_PATH = re.compile(r"/heartbeat/([^/]*)(?:/([^/]*))?")
_TOKEN = re.compile(r"[A-Za-z0-9]{22,64}")
_EXIT = re.compile(r"[0-9]{1,3}")


class NoPing(Exception):
    """A request is no ping: the HTTP status, and a word."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Ping(NamedTuple):
    """What a request's address says."""

    token: str
    kind: str
    exit_code: int | None


def read_ping(target: str) -> Ping:
    """The ping that a request's target means; raises NoPing."""
    try:
        parts = urlsplit(target)
        found = _PATH.fullmatch(parts.path)
    except ValueError:
        found = None
    if not found:
        raise NoPing(404, "pings go to /heartbeat/<token>")
    token, word = found[1], found[2]
    if not _TOKEN.fullmatch(token):
        raise NoPing(400, "a token is 22 to 64 letters and digits")
    asked = parse_qs(parts.query, keep_blank_values=True).get("exit")
    if word in ("start", "fail"):
        return Ping(token, word, _exit(asked[-1]) if asked else None)
    if word is not None and not _EXIT.fullmatch(word):
        raise NoPing(404, "after the token comes start, fail or an exit code")
    text = word if word is not None else asked[-1] if asked else None
    code = None if text is None else _exit(text)
    return Ping(token, "fail" if code else "success", code)


def _exit(text: str) -> int:
    if not _EXIT.fullmatch(text) or int(text) > 255:
        raise NoPing(400, "an exit code is 0 to 255")
    return int(text)


Take = Callable[[Ping, bytes, str], int]


class Rates:
    """How often pings may come: 60 a minute for one token, 600 in all."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, str]] = deque()
        self._counts: dict[str, int] = {}

    def admit(self, token: str) -> bool:
        """Whether one more may pass; counts it if so."""
        now = self._clock.monotonic()
        with self._lock:
            while self._recent and now - self._recent[0][0] >= WINDOW:
                old = self._recent.popleft()[1]
                self._counts[old] -= 1
                if not self._counts[old]:
                    del self._counts[old]
            if len(self._recent) >= IN_ALL or self._counts.get(token, 0) >= PER_TOKEN:
                return False
            self._recent.append((now, token))
            self._counts[token] = self._counts.get(token, 0) + 1
            return True


class Door(Listener):
    """Where pings come in. Raises OSError where it cannot listen.

    `take` is told the ping, its body and who sent it, and returns a status; `turned_away` hears why one was none.
    """

    def __init__(self, place: tuple[str, int], take: Take, turned_away: Callable[[str], object], clock: Clock) -> None:
        self.take = take
        self.turned_away = turned_away
        super().__init__("relay-door", place, Request, clock=clock, handlers=HANDLERS)


class Request(Handler):
    """One request of a job."""

    server: Door

    def do_GET(self) -> None:
        """A ping, whatever the method."""
        server = self.server
        try:
            ping = read_ping(self.path)
            body = self._kept()
        except NoPing as error:
            server.turned_away("malformed")
            return self.say(error.status, f"{error}\n".encode())
        status = server.take(ping, body, self.headers.get("User-Agent", ""))
        more = {"Retry_After": "60"} if status == 429 else {}
        return self.say(status, _SAID[status], **more)

    do_HEAD = do_POST = do_GET

    def do_PUT(self) -> None:
        """No other method is a ping."""
        self.server.turned_away("malformed")
        self.say(405, b"pings are sent by GET, POST or HEAD\n", Allow="GET, POST, HEAD")

    do_PATCH = do_DELETE = do_OPTIONS = do_PUT

    def _kept(self) -> bytes:
        """The first 10 KiB of the body; raises NoPing where it ends early."""
        body = b""
        try:
            for piece in self.pieces(ANYTHING):
                body += piece
                if len(body) >= BODY_MAX:
                    break  # the rest is read away after the answer
        except (BadBody, TooLarge, OSError) as error:
            raise NoPing(400, f"the body cannot be read: {error}") from None
        return body[:BODY_MAX]


_SAID: Mapping[int, bytes] = {
    202: b"queued\n",
    429: b"too many pings\n",
    503: b"the ping could not be queued\n",
}
