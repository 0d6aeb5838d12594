"""The door of the console: who may come in, that a form was ours, and the headers that every page carries.

With a token people log in and hold a session in a cookie, programs show the token as bearer; without one only this
machine is let in. Every form carries a token that belongs to the cookie of whoever asked for it.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from flask import Request, Response, g, redirect, render_template, request, url_for
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response as Answer

from observer_agent.clock import Clock
from observer_agent.hub.access import admit_reader
from observer_agent.hub.database import Database
from observer_agent.hub.limits import household
from observer_agent.hub.sessions import SESSION_SECONDS, Attempts, Sessions, form_token, new_id

COOKIE = "observer_hub"
COOKIE_MAX = 100
FIELD = "form_token"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
OPEN = ("console.static", "console.login", "console.enter")
PUBLIC = ("console.status_page",)


class Door:
    """See the module; `public_pages` lets everybody see status pages."""

    def __init__(self, database: Database, clock: Clock, token: str | None, public_pages: bool) -> None:
        self._token = token
        self._sessions = Sessions(database, clock, token) if token is not None else None
        self._attempts = Attempts(clock)
        self.public_pages = public_pages
        self._public = (*PUBLIC, "console.static") if public_pages else ()

    @property
    def guarded(self) -> bool:
        """Whether there is a token, and so a way out."""
        return self._sessions is not None

    def admit(self) -> Answer | None:
        """Before every request: lets it in, sends it to the login, or refuses it."""
        if request.endpoint in self._public:
            return None
        if self._sessions is None or request.endpoint not in OPEN:
            if not (self._sessions and self._sessions.holds(_cookie())):
                if self._sessions and wants_html(request) and "Authorization" not in request.headers:
                    return redirect(url_for("console.login", next=_here()), 303)
                admit_reader(self._token)
        if request.method == "POST":
            _check_form()
        return None

    def login(self) -> Answer | str:
        """The form; who is in already goes on."""
        if self._sessions is None or self._sessions.holds(_cookie()):
            return redirect(_inside(request.args.get("next")), 303)
        return render_template("login.html", next=_inside(request.args.get("next")), problem="")

    def enter(self) -> Answer | tuple[str, int] | tuple[str, int, dict[str, str]]:
        """The form, sent: a session for the token."""
        where = _inside(request.form.get("next"))
        if self._sessions is None:
            return redirect(where, 303)
        address = household(request.remote_addr)
        if wait := self._attempts.wait(address):
            problem = f"Too many wrong tokens; try again in {wait} s."
            return render_template("login.html", next=where, problem=problem), 429, {"Retry-After": str(wait)}
        if not self._sessions.is_token(request.form.get("token", "").strip()):
            self._attempts.wrong(address)
            return render_template("login.html", next=where, problem="This is not the token."), 403
        answer = redirect(where, 303)
        _give(answer, self._sessions.open(), SESSION_SECONDS)
        return answer

    def leave(self) -> Answer:
        """Ends the session."""
        if self._sessions is None:
            return redirect(url_for("console.overview"), 303)
        self._sessions.close(_cookie())
        answer = redirect(url_for("console.login"), 303)
        _give(answer, "", 0)
        return answer

    def finish(self, response: Response) -> Response:
        """After every request: the headers, and the cookie that a form of this page belongs to."""
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "same-origin"  # with `no-referrer` a form's Origin would be null
        if fresh := g.get("fresh_cookie"):
            _give(response, fresh, None)
        return response


def own_form_token() -> str:
    """The token for a form on the page that is being made; whoever has no cookie yet gets one with it."""
    cookie: str = _cookie() or g.get("fresh_cookie", "")
    if not cookie:
        cookie = g.fresh_cookie = new_id()
    return form_token(cookie)


def wants_html(given: Request) -> bool:
    """Whether a person looks, with a browser."""
    return "text/html" in given.headers.get("Accept", "")


def _check_form() -> None:
    """Refuses what was not sent by a form of ours; the browser's own word on where it came from counts first."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
    foreign = site not in ("same-origin", "none") if site else origin is not None and not _is_ours(origin)
    given, cookie = request.form.get(FIELD, ""), _cookie()
    same = hmac.compare_digest(given.encode("utf-8", "replace"), form_token(cookie).encode()) if cookie else False
    if foreign or not same:
        raise Forbidden("this form does not belong to this browser: load the page again, then send it again")


def _is_ours(origin: str) -> bool:
    try:
        return urlsplit(origin).netloc == request.host
    except ValueError:
        return False


def _cookie() -> str:
    value = request.cookies.get(COOKIE, "")
    return value if len(value) <= COOKIE_MAX else ""


def _give(response: Answer, value: str, seconds: float | None) -> None:
    """Sets the cookie. A proxy may have taken TLS off: then the browser's Origin says that it sees HTTPS."""
    origin, forwarded = request.headers.get("Origin", ""), request.headers.get("X-Forwarded-Proto", "")
    secure = request.is_secure or origin.startswith("https:") or forwarded == "https"
    age = None if seconds is None else int(seconds)
    response.set_cookie(COOKIE, value, max_age=age, httponly=True, secure=secure, samesite="Strict")


def _here() -> str | None:
    path = request.full_path.rstrip("?")
    return path if request.method == "GET" and path != "/" else None


def _inside(where: str | None) -> str:
    """A path of this hub; anything else leads to the overview."""
    ours = where is not None and where[:1] == "/" and where[1:2] not in ("/", "\\") and where.isprintable()
    return where if ours and where is not None else url_for("console.overview")
