"""Framing: what the reader makes of an answer's bytes, however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent.probes import _http, _reasons
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run
from tests.servers import make_tools


class Pieces:
    """A stream whose bytes come in the pieces that a test has cut."""

    def __init__(self, pieces):
        tools = make_tools()
        self.run = Run(tools, tools.clock.monotonic() + 60, Reason.HTTP_ERROR)
        self._pieces = list(pieces)

    def receive(self):
        return self._pieces.pop(0) if self._pieces else b""

    def close(self):
        pass


def read(pieces, limit=1000):
    """What the reader makes of an answer: status and body, or the reason."""
    try:
        response = _http._read_response(Pieces(pieces))
        return response.status, response.body(limit)
    except Failed as failure:
        return failure.reason, str(failure)


ANSWERS = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", (200, b"hello")),
    "close": (b"HTTP/1.0 200 OK\r\n\r\nhello", (200, b"hello")),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nhel\r\n02\r\nlo\r\n0\r\nTrailer: x\r\n\r\nmore",
        (200, b"hello"),
    ),
    "continue": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 A\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        (200, b"ok"),
    ),
    "bare line feeds": (b"HTTP/1.1 404 Not Found\nContent-Length: 2\n\nno", (404, b"no")),
    "no reason phrase": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", (200, b"")),
    "no content": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", (204, b"")),
    "chunked wins": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        (200, b"x"),
    ),
    "the same length twice": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", (200, b"x")),
    "limit": (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, (200, b"x" * 1000)),
    "limit in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"2BC\r\n"
        + b"x" * 700
        + b"\r\n2bc\r\n"
        + b"x" * 700,
        (200, b"x" * 1000),
    ),
    "short": (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", ("ECONNRESET", "the body ended early")),
    "short chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ("ECONNRESET", "the body ended early"),
    ),
    "no end of headers": (
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        ("ECONNRESET", "the connection was closed before an answer came"),
    ),
    "nothing": (b"", ("ECONNRESET", "the connection was closed before an answer came")),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        ("http_error", "the Content-Length is malformed"),
    ),
    "negative length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ("http_error", "the Content-Length is malformed"),
    ),
    "bad chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
        ("http_error", "a chunk's size is malformed"),
    ),
    "long chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n",
        ("http_error", "a chunk is longer than its size"),
    ),
    "no colon": (b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", ("http_error", "a header line is malformed")),
    "http/2": (b"HTTP/2 200\r\n\r\n", ("http_error", "the answer is not HTTP/1")),
    "upgrade": (b"HTTP/1.1 101 Switching\r\n\r\n", ("http_error", "the server switches to another protocol")),
    "long headers": (
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        ("http_error", "the headers are too long"),
    ),
    "many continues": (b"HTTP/1.1 100 X\r\n\r\n" * 10_000, ("http_error", "the headers are too long")),
    "long line in a body": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        ("http_error", "a line of the body is too long"),
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_framing(name):
    data, expected = ANSWERS[name]
    assert read([data]) == expected


@settings(deadline=None)
@given(st.sampled_from([data for data, _ in ANSWERS.values() if len(data) < 3000]), st.data())
def test_w31_how_the_network_cuts_an_answer_changes_nothing(data, draw):
    cuts = sorted(draw.draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=12)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if a < b]
    assert read(pieces) == read([data])


@settings(deadline=None)
@given(st.binary(max_size=300) | st.binary(max_size=100).map(b"HTTP/1.1 200 OK\r\n".__add__))
def test_any_bytes_are_an_answer_or_a_failure(data):
    result = read([data])
    assert isinstance(result[0], int) or _reasons.is_known(result[0])


def test_byte_by_byte():
    for data, expected in ANSWERS.values():
        if len(data) < 3000:
            assert read([bytes((b,)) for b in data]) == expected
