"""A cheap target: one process that takes connections on every address of 127.0.0.0/8 and answers HTTP at once."""

from __future__ import annotations

import multiprocessing
import select
import socket
import ssl
from contextlib import suppress
from typing import Any

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def _serve(ready: Any) -> None:
    listener = socket.create_server(("0.0.0.0", 0), backlog=4096)
    listener.setblocking(False)
    ready.send(listener.getsockname()[1])
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    open_: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                with suppress(OSError):
                    for _ in range(64):
                        conn = listener.accept()[0]
                        conn.setblocking(False)
                        open_[conn.fileno()] = conn
                        poll.register(conn, select.EPOLLIN)
                continue
            conn = open_.pop(fd)
            with suppress(OSError):
                if conn.recv(65536):
                    conn.sendall(ANSWER)
            poll.unregister(fd)
            conn.close()


def _serve_tls(ready: Any, cert: str, key: str) -> None:
    """The same over TLS, a connection at a time: the handshake costs more than the waiting."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    listener = socket.create_server(("0.0.0.0", 0), backlog=4096)
    ready.send(listener.getsockname()[1])
    while True:
        conn = listener.accept()[0]
        with suppress(OSError), conn:
            conn.settimeout(2)
            with context.wrap_socket(conn, server_side=True) as sock:
                if sock.recv(65536):
                    sock.sendall(ANSWER)


def start(tls: tuple[str, str] | None = None) -> tuple[Any, int]:
    """The process and its port; `tls` is the certificate's and the key's file."""
    ours, theirs = multiprocessing.Pipe()
    serve, more = (_serve_tls, tls) if tls else (_serve, ())
    process = multiprocessing.Process(target=serve, args=(theirs, *more), daemon=True)
    process.start()
    return process, ours.recv()
