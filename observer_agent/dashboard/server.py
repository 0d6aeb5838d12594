"""The local page's server: requests of known paths in, pages out, under headers that keep a browser from harm.

A `Listener` with at most eight connections at a time. Without a token only the names of this machine are served: a web
page elsewhere may point a name of its own at 127.0.0.1, and its requests still carry that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs

from observer_agent import listener
from observer_agent.clock import Clock
from observer_agent.dashboard.access import Access, Entry, set_cookie
from observer_agent.listener import BadBody, Listener, TooLarge

HANDLERS = 8
BODY_MAX = 4096
FORM = "application/x-www-form-urlencoded"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Page(NamedTuple):
    """What a path answers."""

    status: int
    content_type: str
    body: bytes


Pages = Mapping[str, Callable[[], Page]]
LOGIN, LOGOUT, HOME = "/login", "/logout", "/"
OPEN = frozenset((LOGIN, "/page.css", "/page.js"))  # what the form needs: nothing in it tells of this agent
NOTICE = b"<!-- notice -->"


class Server(Listener):
    """The listening server; `url` says where. With a token, `pages` holds the form under `/login`."""

    def __init__(self, host: str, port: int, pages: Pages, token: str | None, *, clock: Clock | None = None) -> None:
        clock = clock or Clock()
        self.pages = pages
        self.access = Access(token, clock) if token else None
        super().__init__("dashboard", (host, port), Handler, clock=clock, handlers=HANDLERS)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.at}"


class Handler(listener.Handler):
    """GET and HEAD of a known path, POST of the two forms, nothing else."""

    server: Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self._may_see(path):
            return
        make = self.server.pages.get(path)
        self._send(make() if make else _text(404, "not found"))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path, access = self.path.partition("?")[0], self.server.access
        if access is None or path not in (LOGIN, LOGOUT):
            return self._send(_text(405, "only GET is answered here"), Allow="GET, HEAD")
        if not self._is_own():
            return self._send(_text(403, "this form is sent from its own page only"))
        if path == LOGOUT:
            access.close_session(self.headers.get("Cookie", ""))
            return self._redirect(LOGIN, set_cookie(""))
        body = self._body()
        return self._log_in(access, body) if body is not None else None

    def _may_see(self, path: str) -> bool:
        """Whether the request may pass; where not, the answer has been sent."""
        access = self.server.access
        if access is None:
            if not self.is_local():
                self._send(_text(403, "this page is served under the names of this machine only"))
                return False
            return True
        if path in OPEN:
            return True
        entry = access.ask(self.headers.get("Authorization", ""), self.headers.get("Cookie", ""))
        if entry is Entry.LATER:
            self._later(access, _text(429, "too many wrong tokens: try again later"))
        elif entry is Entry.CLOSED and path == HOME:
            self._redirect(LOGIN)
        elif entry is not Entry.OPEN:
            self._send(_text(401, "a bearer token is needed"), WWW_Authenticate='Bearer realm="observer-agent"')
        return entry is Entry.OPEN

    def _is_own(self) -> bool:
        """Whether a form comes from a page of ours, as far as the browser says; others send no such headers.

        Under `no-referrer` a browser would say `Origin: null` for our own forms as well: the pages that hold one relax
        it to `same-origin` for themselves.
        """
        if self.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return False
        origin = self.headers.get("Origin")
        return origin is None or origin.partition("://")[2] == self.headers.get("Host")

    def _body(self) -> bytes | None:
        """The form's body; None where it is none of ours, and the answer has been sent."""
        if self.headers.get_content_type() != FORM:
            self._send(_text(415, f"a form is sent as {FORM}"))
            return None
        try:
            return b"".join(self.pieces(BODY_MAX))
        except TooLarge:
            self._send(_text(413, "the form is too large"))
        except (BadBody, OSError) as error:
            self._send(_text(400, f"the form cannot be read: {error}"))
        return None

    def _log_in(self, access: Access, body: bytes) -> None:
        token = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        entry = access.try_token(token)
        if entry is Entry.OPEN:
            return self._redirect(HOME, set_cookie(access.open_session()))
        if entry is Entry.LATER:
            seconds = access.retry_after()
            return self._later(access, self._form(429, f"Too many wrong tokens. Try again in {seconds} seconds."))
        return self._send(self._form(401, "This is not the token."))

    def _form(self, status: int, notice: str) -> Page:
        """The login form with a line above it."""
        page = self.server.pages[LOGIN]()
        return Page(status, page.content_type, page.body.replace(NOTICE, f'<p role="alert">{notice}</p>'.encode()))

    def _later(self, access: Access, page: Page) -> None:
        self._send(page, Retry_After=str(max(1, access.retry_after())))

    def _redirect(self, to: str, cookie: str | None = None) -> None:
        headers = {"Location": to} | ({"Set_Cookie": cookie} if cookie else {})
        self._send(_text(303, "see " + to), **headers)

    def _send(self, page: Page, **more: str) -> None:
        self.say(page.status, page.body, f"{page.content_type}; charset=utf-8", **more)

    def end_headers(self) -> None:
        """Every answer carries the protecting headers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()


def _text(status: int, line: str) -> Page:
    return Page(status, "text/plain", f"{line}\n".encode())
