"""The local page's server: what it answers, to whom."""

from __future__ import annotations

import http.client
import socket

import pytest

from observer_agent.dashboard import Page, Server

PAGES = {"/api/state": lambda: Page(200, "application/json", b"{}")}


@pytest.fixture
def serve():
    made = []

    def start(token=None, pages=PAGES):
        made.append(Server("127.0.0.1", 0, pages, token))
        made[-1].start()
        return made[-1]

    yield start
    for server in made:
        server.stop()


def ask(server, path, method="GET", **headers):
    conn = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        conn.request(method, path, headers=headers)
        answer = conn.getresponse()
        return answer.status, answer.read(), answer
    finally:
        conn.close()


def test_known_paths_and_no_others(serve):
    server = serve()
    assert ask(server, "/api/state?x=1")[:2] == (200, b"{}")
    assert ask(server, "/api/state", "HEAD")[:2] == (200, b"")
    assert ask(server, "/etc/passwd")[0] == 404
    assert ask(server, "/api/state", "POST")[0] == 501
    answer = ask(server, "/api/state")[2]
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Python" not in answer.headers["Server"]


@pytest.mark.parametrize(
    ("header", "status"),
    [(None, 401), ("Bearer wrong", 401), ("Basic s3cret", 401), ("Bearer s3cret", 200), ("Bearer s3cretx", 401)],
)
def test_the_token(serve, header, status):
    server = serve(token="s3cret")
    headers = {"Authorization": header} if header else {}
    assert ask(server, "/api/state", **headers)[0] == status


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:10101", 200), ("localhost", 200), ("[::1]:10101", 200), ("evil.example", 403), ("", 403)],
)
def test_without_a_token_only_names_of_this_machine_are_served(serve, host, status):
    assert ask(serve(), "/api/state", Host=host)[0] == status
    assert ask(serve(token="t"), "/api/state", Host=host, Authorization="Bearer t")[0] == 200


def test_a_client_that_says_nothing_holds_up_nobody(serve):
    server = serve()
    with socket.create_connection(("127.0.0.1", server.server_port)) as mute:
        mute.sendall(b"GET /api")
        assert ask(server, "/api/state")[0] == 200
