"""The local page's server: requests of known paths in, pages out, under headers that keep a browser from harm.

It accepts on the thread `dashboard` and answers each connection on a thread `page`, at most twelve at a time; a
connection that takes too long is cut. Without a token only the names of this machine are served: a web page elsewhere
may point a name of its own at 127.0.0.1, and its requests still carry that name.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from observer_agent.clock import Clock
from observer_agent.config import LOOPBACK
from observer_agent.dashboard.access import Access, Entry, set_cookie
from observer_agent.worker import attempt, spawn

log = logging.getLogger(__name__)

SLOWEST_CLIENT = 5.0  # for one read or write
LONGEST_REQUEST = 15.0  # for all of it
POLL = 0.1  # how soon the server notices that it shall stop
HANDLERS_MAX = 12
BODY_MAX = 4096
DRAINED_MAX = 16 * BODY_MAX
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
    "X-Content-Type-Options": "nosniff",
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


class Server(HTTPServer):
    """The listening server; `url` says where. With a token, `pages` holds the form under `/login`."""

    request_queue_size = 32

    def __init__(self, host: str, port: int, pages: Pages, token: str | None, *, clock: Clock | None = None) -> None:
        self.pages = pages
        self.clock = clock or Clock()
        self.access = Access(token, self.clock) if token else None
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        super().__init__((host, port), Handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        host = str(self.server_address[0])
        return f"http://[{host}]:{self.server_port}" if ":" in host else f"http://{host}:{self.server_port}"

    def start(self) -> None:
        """Serves on a thread of its own until `stop`."""
        spawn("dashboard", lambda: self.serve_forever(poll_interval=POLL))

    def stop(self) -> None:
        """Stops serving and closes the socket."""
        self.shutdown()
        self.server_close()

    def server_bind(self) -> None:
        """As the base class, without its look-up of the host's name, which may wait for a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, or a short no where twelve are busy."""
        with self._lock:
            full = len(self._open) >= HANDLERS_MAX
            if not full:
                self._open[request] = self.clock.monotonic()
        if full:
            _refuse(request)
            self.shutdown_request(request)
            return
        spawn("page", lambda: attempt("Answering the local page", lambda: self._serve(request, client_address)))

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection; its place is free for another."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Cuts connections that have taken too long; the base class calls this ten times a second."""
        now = self.clock.monotonic()
        with self._lock:
            for request, since in self._open.items():
                if now - since > LONGEST_REQUEST:
                    _cut(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nobody's fault."""
        log.debug("A client of the local page went away")

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of a known path, POST of the two forms, nothing else."""

    timeout = SLOWEST_CLIENT
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
            if not self._is_local():
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
            self._send(_text(401, "a bearer token is needed"), **{"WWW-Authenticate": 'Bearer realm="observer-agent"'})
        return entry is Entry.OPEN

    def _is_local(self) -> bool:
        host = self.headers.get("Host", "").strip()
        name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        return name.lower() in LOOPBACK

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
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._send(_text(411, "the length is missing"))
        elif len(length) > 9 or int(length) > BODY_MAX:
            self.rfile.read(
                min(int(length[:9]), DRAINED_MAX)
            )  # a connection closed with unread bytes would take the answer with it
            self._send(_text(413, "the form is too large"))
        elif self.headers.get_content_type() != FORM:
            self._send(_text(415, f"a form is sent as {FORM}"))
        else:
            return self.rfile.read(int(length))
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
        self._send(page, **{"Retry-After": str(max(1, access.retry_after()))})

    def _redirect(self, to: str, cookie: str | None = None) -> None:
        headers = {"Location": to} | ({"Set-Cookie": cookie} if cookie else {})
        self._send(_text(303, "see " + to), **headers)

    def _send(self, page: Page, **more: str) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", f"{page.content_type}; charset=utf-8")
        self.send_header("Content-Length", str(len(page.body)))
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)

    def end_headers(self) -> None:
        """Every answer, the base class's own included, carries the protecting headers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        return "observer-agent"

    def log_message(self, format: str, *args: object) -> None:
        """Requests of the local page are not logged."""


def _text(status: int, line: str) -> Page:
    return Page(status, "text/plain", f"{line}\n".encode())


def _refuse(request: socket.socket) -> None:
    """Says 503 as far as that needs no waiting."""
    body = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
    try:
        request.setblocking(False)
        request.send(body)
    except OSError:
        log.debug("A client of the local page went away")


def _cut(request: socket.socket) -> None:
    """Ends both directions; the thread that waits for the connection goes on at once."""
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("A client of the local page went away")
