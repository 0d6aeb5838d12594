"""The local page's server: what it answers, to whom, and how much it bears."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from contextlib import ExitStack

import pytest

from observer_agent.dashboard import Page, Server, static_pages
from observer_agent.dashboard.access import FAILURES_MAX, SESSION_SECONDS, SESSIONS_MAX, Access, Entry, set_cookie
from observer_agent.dashboard.history import EVERY, POINTS_MAX, History
from observer_agent.dashboard.server import BODY_MAX, FORM, HANDLERS
from observer_agent.model import Ledger
from tests.fakes import FakeClock

PAGES = {"/api/state": lambda: Page(200, "application/json", b"{}")}
TOKEN = "s3cret"


@pytest.fixture
def serve():
    made = []

    def start(token=None, pages=None, clock=None):
        pages = {**static_pages(guarded=bool(token)), **PAGES} if pages is None else pages
        made.append(Server("127.0.0.1", 0, pages, token, clock=clock))
        made[-1].start()
        return made[-1]

    yield start
    for server in made:
        server.stop()


def ask(server, path, method="GET", body=None, **headers):
    conn = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        conn.request(method, path, body, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = conn.getresponse()
        return answer.status, answer.read(), answer
    finally:
        conn.close()


def log_in(server, token=TOKEN, **headers):
    headers = {"Content-Type": FORM, **headers}
    return ask(server, "/login", "POST", f"token={token}", **headers)


# -- paths and headers


def test_known_paths_and_no_others(serve):
    server = serve()
    assert ask(server, "/api/state?x=1")[:2] == (200, b"{}")
    assert ask(server, "/api/state", "HEAD")[:2] == (200, b"")
    assert b"<title>observer-agent</title>" in ask(server, "/")[1]
    assert ask(server, "/etc/passwd")[0] == 404
    assert ask(server, "/login")[0] == 404
    assert ask(server, "/api/state", "POST")[0] == 405
    assert ask(server, "/api/state", "PUT")[0] == 405


@pytest.mark.parametrize(("path", "method"), [("/", "GET"), ("/none", "GET"), ("/", "POST"), ("/", "PUT")])
def test_every_answer_carries_the_protecting_headers(serve, path, method):
    headers = ask(serve(), path, method)[2].headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )
    assert "Python" not in headers["Server"]


@pytest.mark.parametrize("name", ["/", "/login"])
def test_the_pages_hold_no_inline_script_style_or_handler(name):
    html = static_pages(guarded=True)[name]().body.decode()
    assert re.findall(r"<script(?! src=\"/page\.js\"></script>)|<style|\sstyle=|\son[a-z]+=|javascript:", html) == []


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:10101", 200), ("localhost", 200), ("[::1]:10101", 200), ("evil.example", 403), ("", 403)],
)
def test_without_a_token_only_names_of_this_machine_are_served(serve, host, status):
    assert ask(serve(), "/api/state", Host=host)[0] == status
    assert ask(serve(token="t"), "/api/state", Host=host, Authorization="Bearer t")[0] == 200


# -- the token


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic s3cret", 401), ("Bearer s3cret", 200), ("Bearer s3cretx", 401)],
)
def test_the_token_as_a_header(serve, header, status):
    server = serve(token=TOKEN)
    headers = {"Authorization": header} if header else {}
    assert ask(server, "/api/state", **headers)[0] == status
    assert ask(server, "/", "HEAD", **headers)[0] == (200 if status == 200 else 303 if header is None else 401)


def test_without_the_token_a_browser_is_sent_to_the_form_and_a_program_is_told(serve):
    server = serve(token=TOKEN)
    status, _, answer = ask(server, "/")
    assert (status, answer.headers["Location"]) == (303, "/login")
    status, _, answer = ask(server, "/api/state")
    assert (status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="observer-agent"')
    assert ask(server, "/none")[0] == 401
    for path in ("/login", "/page.css", "/page.js"):
        assert ask(server, path)[0] == 200


def test_the_form_opens_a_session_that_logging_out_ends(serve):
    server = serve(token=TOKEN)
    status, _, answer = log_in(server)
    assert (status, answer.headers["Location"]) == (303, "/")
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith("observer_agent=") and TOKEN not in cookie
    assert "; HttpOnly; SameSite=Strict; Path=/; Max-Age=43200" in cookie
    cookie = "theme=dark; " + cookie.partition(";")[0]
    assert ask(server, "/api/state", Cookie=cookie)[0] == 200
    assert b'action="/logout"' in ask(server, "/", Cookie=cookie)[1]
    status, _, answer = ask(server, "/logout", "POST", Cookie=cookie)
    assert (status, answer.headers["Location"]) == (303, "/login")
    assert "observer_agent=; " in answer.headers["Set-Cookie"] and "Max-Age=0" in answer.headers["Set-Cookie"]
    assert ask(server, "/api/state", Cookie=cookie)[0] == 401


def test_a_wrong_token_in_the_form(serve):
    status, body, answer = log_in(serve(token=TOKEN), "wrong")
    assert status == 401 and b"This is not the token" in body and "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_a_form_that_another_site_sends_is_refused(serve, headers):
    server = serve(token=TOKEN)
    assert log_in(server, **headers)[0] == 403
    own = {"Origin": f"http://127.0.0.1:{server.server_port}", "Sec_Fetch_Site": "same-origin"}
    assert log_in(server, **own)[0] == 303


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"token=" + b"x" * BODY_MAX, {"Content-Type": FORM}, 413),
        (b"token=s3cret", {"Content-Type": "application/json"}, 415),
        (b"token=s3cret", {"Content-Type": FORM, "Content-Length": "-1"}, 400),
        (b"token=%ff%00&token=s3cret", {"Content-Type": FORM}, 401),
        (b"&" * 100, {"Content-Type": FORM}, 401),
        (b"", {"Content-Type": FORM}, 401),
    ],
)
def test_forms_of_other_shapes(serve, body, headers, status):
    assert ask(serve(token=TOKEN), "/login", "POST", body, **headers)[0] == status


def test_guessing_is_slowed_down_for_everybody_but_those_who_are_in(serve, caught):
    clock = FakeClock()
    server = serve(token=TOKEN, clock=clock)
    cookie = log_in(server)[2].headers["Set-Cookie"].partition(";")[0]
    for n in range(FAILURES_MAX):
        assert (log_in(server, "wrong") if n % 2 else ask(server, "/", Authorization="Bearer wrong"))[0] == 401
        clock.advance(1)
    status, body, answer = log_in(server)
    assert (status, answer.headers["Retry-After"]) == (429, "55") and b"55 seconds" in body
    assert ask(server, "/api/state", Authorization=f"Bearer {TOKEN}")[0] == 429
    assert ask(server, "/api/state", Cookie=cookie)[0] == 200
    clock.advance(55)
    assert log_in(server)[0] == 303
    warnings = [record.getMessage() for record in caught.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and TOKEN not in warnings[0] and "wrong token" in warnings[0]


def test_sessions_end_by_the_clock_and_are_bounded():
    clock = FakeClock()
    access = Access(TOKEN, clock)
    first = set_cookie(access.open_session())
    assert access.ask("", first) is Entry.OPEN
    clock.advance(SESSION_SECONDS)
    assert access.ask("", first) is Entry.CLOSED
    cookies = [set_cookie(access.open_session()) for _ in range(SESSIONS_MAX + 1)]
    assert len(set(cookies)) == SESSIONS_MAX + 1
    assert access.ask("", cookies[0]) is Entry.CLOSED
    assert all(access.ask("", cookie) is Entry.OPEN for cookie in cookies[1:])


@pytest.mark.parametrize("given", ["Bearer", "Bearer \N{SNOWMAN}", "Bearer " + "x" * 9000, "s3cret", "Bearer s3cret x"])
def test_odd_headers_open_nothing(given):
    assert Access(TOKEN, FakeClock()).ask(given, "observer_agent; =; observer_agent=") is not Entry.OPEN


# -- what it bears


def test_a_client_that_says_nothing_holds_up_nobody(serve):
    server = serve()
    with socket.create_connection(("127.0.0.1", server.server_port)) as mute:
        mute.sendall(b"GET /api")
        assert ask(server, "/api/state")[0] == 200


def test_connections_beyond_eight_wait_and_threads_stay_bounded(serve):
    server = serve()
    with ExitStack() as stack:
        mute = [socket.create_connection(("127.0.0.1", server.server_port), 10) for _ in range(HANDLERS)]
        for each in mute:
            stack.enter_context(each)
            each.sendall(b"GET /api")
        until(lambda: answering() == HANDLERS)
        late = stack.enter_context(socket.create_connection(("127.0.0.1", server.server_port), 10))
        late.sendall(b"GET /api/state HTTP/1.0\r\nHost: localhost\r\n\r\n")
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.recv(1)
        assert answering() == HANDLERS
        mute[0].sendall(b"/state HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert mute[0].makefile("rb").read().startswith(b"HTTP/1.0 200")
        late.settimeout(10)
        assert late.makefile("rb").read().startswith(b"HTTP/1.0 200")


def answering():
    return sum(thread.name == "dashboard-request" for thread in threading.enumerate())


def test_a_connection_that_takes_too_long_is_cut(serve):
    clock = FakeClock()
    server = serve(clock=clock)
    with socket.create_connection(("127.0.0.1", server.server_port), 10) as slow:
        slow.sendall(b"GET /api")
        assert ask(server, "/api/state")[0] == 200  # accepted after the slow one, so that one has its thread
        slow.settimeout(4)
        clock.advance(16)
        assert slow.recv(100) == b""  # before the five seconds that one read may take


def test_a_page_that_fails_is_logged_and_the_next_is_served(serve, caught):
    def fail():
        raise RuntimeError("nobody caught this")

    server = serve(pages={"/": fail, **PAGES})
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        ask(server, "/")
    until(lambda: "Answering on dashboard failed" in caught.text)
    assert ask(server, "/api/state")[0] == 200


def until(what):
    pause = threading.Event()
    for _ in range(200):
        if what():
            return
        pause.wait(0.05)
    raise AssertionError("not within ten seconds")


# -- the last half hour


class Figures:
    def __init__(self):
        self.depth, self.accepted, self.gone = 0, 100, 7

    def ledgers(self):
        return (Ledger("a", 500, 100, 0, {}), Ledger("b", 500, self.accepted - 100, 0, {}))

    def lost(self):
        return {"cap": self.gone}


def test_the_history_holds_what_came_between_two_points():
    queue, clock = Figures(), FakeClock()
    history = History(queue, clock)
    assert history.columns()["depth"] == []
    queue.depth, queue.accepted = 4, 130
    assert history.step() == EVERY
    queue.depth, queue.gone = 2, 10
    clock.advance(EVERY)
    history.step()
    found = history.columns()
    assert (found["depth"], found["accepted"], found["lost"]) == ([4, 2], [30, 0], [0, 3])
    assert found["interval_seconds"] == 10.0 and json.dumps(found)


def test_the_history_is_bounded_and_never_negative():
    queue = Figures()
    history = History(queue, FakeClock())
    for n in range(POINTS_MAX + 20):
        queue.depth = n
        history.step()
    queue.accepted -= 20  # an old opening of the queue file was forgotten
    history.step()
    found = history.columns()
    assert len(found["depth"]) == POINTS_MAX and found["depth"][-2] == POINTS_MAX + 19
    assert min(found["accepted"]) == 0
