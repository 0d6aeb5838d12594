"""The loop under waitress on real sockets: silent connections, pipelined requests, long answers, idle ones closed."""

from __future__ import annotations

import gc
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

from observer_agent.hub.server import THREADS, Server

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
WAIT = 20.0


@contextmanager
def served(app: Any) -> Iterator[Server]:
    server = Server(app, "127.0.0.1", 0)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def said(text: bytes) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]

    return app


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=WAIT)


def answer(file: Any) -> bytes:
    """The body of the next answer."""
    assert file.readline() == b"HTTP/1.1 200 OK\r\n"
    length = 0
    while (line := file.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    body: bytes = file.read(length)
    return body


def test_a_kept_connection_is_answered_again_and_again() -> None:
    with served(said(b"yes")) as server, connect(server) as conn, conn.makefile("rb") as file:
        for _ in range(50):
            conn.sendall(GET)
            assert answer(file) == b"yes"


def test_requests_sent_at_once_are_answered_in_order() -> None:
    count = iter(range(100))

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        text = str(next(count)).encode()
        start_response("200 OK", [("Content-Length", str(len(text)))])
        return [text]

    with served(app) as server, connect(server) as conn, conn.makefile("rb") as file:
        conn.sendall(GET * 20)
        assert [answer(file) for _ in range(20)] == [str(n).encode() for n in range(20)]


def test_a_body_in_pieces_and_an_answer_longer_than_the_sockets_hold() -> None:
    long = b"x" * 30_000_000
    with served(said(long)) as server, connect(server) as conn, conn.makefile("rb") as file:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n"
        for piece in (head[:20], head[20:], b"y" * 100_000, b"y" * 100_000):
            conn.sendall(piece)
        assert answer(file) == long
        conn.sendall(GET)
        assert answer(file) == long


def test_silent_connections_do_not_hold_up_a_talking_one_and_the_end() -> None:
    with ExitStack() as stack:
        server = stack.enter_context(served(said(b"yes")))
        silent = [stack.enter_context(connect(server)) for _ in range(300)]
        with connect(server) as conn, conn.makefile("rb") as file:
            conn.sendall(GET)
            assert answer(file) == b"yes"
        silent[7].sendall(GET)
        with silent[7].makefile("rb") as file:
            assert answer(file) == b"yes"


def test_a_client_that_goes_in_the_middle_of_its_request_is_let_go() -> None:
    inside, go = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        inside.set()
        assert go.wait(WAIT)
        start_response("200 OK", [("Content-Length", "3")])
        return [b"yes"]

    with served(app) as server:
        conn = connect(server)
        conn.sendall(GET)
        assert inside.wait(WAIT)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
        conn.close()
        go.set()
        with connect(server) as other, other.makefile("rb") as file:
            other.sendall(GET)
            assert answer(file) == b"yes"


def test_the_file_of_a_body_that_was_cut_off_is_closed() -> None:
    """A large body waits in a temporary file; one that is left to the garbage collector warns, and that fails here."""
    before = temporary_files()
    with served(said(b"yes")) as server:
        with closing(connect(server)) as conn:
            conn.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + b"a" * 1_000_000)
            shown(lambda: temporary_files() == before + 1)
        shown(lambda: temporary_files() == before)
    gc.collect()


LARGE = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + b"a" * 1_000_000


def test_the_file_of_half_a_body_is_closed_when_the_server_ends() -> None:
    before = temporary_files()
    with ExitStack() as stack:
        with served(said(b"yes")) as server:
            conn = stack.enter_context(closing(connect(server)))
            conn.sendall(LARGE)
            shown(lambda: temporary_files() == before + 1)
        assert temporary_files() == before
    gc.collect()


def test_the_file_of_a_body_that_had_no_turn_is_closed_when_the_server_ends() -> None:
    before, go = temporary_files(), threading.Event()
    inside: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        inside.append(1)
        go.wait(WAIT)
        return said(b"yes")(environ, start_response)

    server = Server(app, "127.0.0.1", 0)
    server.start()
    with ExitStack() as stack:
        for _ in range(THREADS):
            stack.enter_context(closing(connect(server))).sendall(GET)
        shown(lambda: len(inside) == THREADS)
        stack.enter_context(closing(connect(server))).sendall(LARGE + b"a" * 1_000_000)
        tasks = server._server.task_dispatcher
        shown(lambda: len(tasks.queue) == 1)
        ending = threading.Thread(target=server.stop)
        ending.start()
        shown(lambda: tasks.stop_count == THREADS)
        go.set()
        ending.join(WAIT)
        assert temporary_files() == before
    gc.collect()


def test_the_file_of_an_answer_that_nobody_read_is_closed_when_the_server_ends() -> None:
    before = temporary_files()
    with ExitStack() as stack:
        with served(said(b"x" * 30_000_000)) as server:
            stack.enter_context(closing(connect(server))).sendall(GET)
            shown(lambda: temporary_files() == before + 1)
        assert temporary_files() == before
    gc.collect()


def test_the_file_of_an_answer_that_was_read_is_closed_when_the_server_ends() -> None:
    """A kept connection keeps the last answer's file until the next answer, or its end."""
    before, long = temporary_files(), b"x" * 30_000_000
    with ExitStack() as stack:
        with served(said(long)) as server:
            conn = stack.enter_context(connect(server))
            file = stack.enter_context(conn.makefile("rb"))
            conn.sendall(GET)
            assert answer(file) == long
            assert temporary_files() == before + 1
        assert temporary_files() == before
    gc.collect()


def temporary_files() -> int:
    """How many files without a name this process has open."""
    folder = "/proc/self/fd"
    names = [os.readlink(f"{folder}/{name}") for name in os.listdir(folder) if os.path.lexists(f"{folder}/{name}")]
    return sum(name.endswith(" (deleted)") and name.startswith(tempfile.gettempdir()) for name in names)


def shown(what: Callable[[], bool]) -> None:
    pause, end = threading.Event(), time.monotonic() + WAIT
    while not what():
        assert time.monotonic() < end
        pause.wait(0.01)


def test_a_connection_that_asks_for_its_end_gets_it() -> None:
    with served(said(b"yes")) as server, closing(connect(server)) as conn, conn.makefile("rb") as file:
        conn.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer(file) == b"yes"
        assert file.read() == b""


def test_idle_connections_are_closed_in_time() -> None:
    with served(said(b"yes")) as server, connect(server) as conn, conn.makefile("rb") as file:
        conn.sendall(GET)
        assert answer(file) == b"yes"
        shown(lambda: not any(each.requests for each in server._server.active_channels.values()))
        server._server.adj.channel_timeout = 0  # what follows is the upkeep of every 30 s, at once
        server._server.next_channel_cleanup = 0
        with connect(server):  # wakes the loop
            assert file.read() == b""
