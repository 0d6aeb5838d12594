"""Log lines: their forms, what is taken out of them, and how repeats are held back."""

from __future__ import annotations

import hashlib
import io
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent.logs import Redactor, Throttle, configure, query_label
from tests.fakes import FakeClock

KEY = "obs_live_" + "A1-_b" * 8 + "xyz"


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def stage(clock):
    made = []

    def make(form="text", verbose=False, redact=None):
        stream = io.StringIO()
        made.append(configure(form, verbose, clock, redact or Redactor(), stream))
        return logging.getLogger("observer_agent.sender"), stream, made[-1]

    yield make
    for logs in made:
        logs.close()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("GET http://user:pass@h/x", "GET http://[redacted]@h/x"),
        ("GET http://user:p@ss@h/x", "GET http://[redacted]@h/x"),
        ("see https://h/p?token=abc&x=1 now", "see https://h/p?[redacted] now"),
        (f"key {KEY} refused", "key obs_live_[redacted] refused"),
        ("Authorization: Bearer abcdef.ghi", "Authorization: Bearer [redacted]"),
        ("Basic YWRtaW46c2VjcmV0", "Basic [redacted]"),
        ("nothing secret here", "nothing secret here"),
    ],
)
def test_what_never_stays_in_a_line(text, clean):
    assert Redactor()(text) == clean


def test_known_secrets_are_taken_out_the_longest_first():
    redact = Redactor()
    redact.add("hunter2", "hunter2-and-more", None, "", "abc")
    assert redact("hunter2-and-more hunter2 abc") == "[redacted] [redacted] abc"


@given(st.text(min_size=4, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_a_known_secret_is_gone_wherever_it_stands(secret, before, after):
    redact = Redactor()
    redact.add(secret)
    if secret not in "[redacted]":
        assert secret not in redact(before + secret + after).replace("[redacted]", "") or secret in before + after


def test_a_query_is_named_by_its_hash():
    assert query_label("up") == f"#{hashlib.sha256(b'up').hexdigest()[:12]}(len=2)"
    assert "rate(" not in query_label("rate(x[5m])")
    assert query_label(None) == "#<invalid>"


def test_text_json_and_journald(stage):
    log, stream, _ = stage("text")
    log.warning("three %s wait", "samples")
    assert stream.getvalue().rstrip().endswith("WARN  sender: three samples wait")
    log, stream, logs = stage("json")
    log.error("bad")
    logs.close()
    line = json.loads(stream.getvalue().splitlines()[0])
    assert (line["level"], line["part"], line["message"]) == ("ERROR", "sender", "bad")
    log, stream, _ = stage("journald")
    log.warning("two\nlines")
    assert stream.getvalue() == "<4>sender: two\\nlines\n", "a name with a line break forges no line"
    try:
        raise ValueError
    except ValueError:
        log.exception("broken")
    assert all(line.startswith("<3>") for line in stream.getvalue().splitlines()[1:])


def test_a_stream_that_is_no_terminal_gets_json_lines(stage):
    log, stream, _ = stage("auto")
    log.info("hello")
    assert json.loads(stream.getvalue())["message"] == "hello"


def test_debug_only_when_asked(stage):
    log, stream, logs = stage()
    log.debug("fine print")
    assert stream.getvalue() == ""
    logs.close()
    log, stream, _ = stage(verbose=True)
    log.debug("fine print")
    assert "fine print" in stream.getvalue()


def test_tracebacks_are_redacted_too(stage):
    redact = Redactor()
    redact.add("s3cr3t-value")
    log, stream, _ = stage(redact=redact)
    try:
        raise ValueError("s3cr3t-value")
    except ValueError:
        log.exception("it broke")
    assert "ValueError" in stream.getvalue() and "s3cr3t-value" not in stream.getvalue()


def test_the_same_line_comes_once_a_minute_and_says_how_often_it_was_held_back(stage, clock):
    log, stream, _ = stage()
    for _ in range(5):
        log.warning("again")
    clock.advance(61)
    log.warning("again")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and lines[1].endswith("again (4 more since)")


def test_the_tail_and_the_listener_see_redacted_lines(stage):
    log, _, logs = stage()
    heard = []
    logs.listen(lambda level, line: heard.append((level, line)))
    log.warning("key %s", KEY)
    log.info("quiet")
    assert [line["message"] for line in logs.tail()] == ["sender: key obs_live_[redacted]", "sender: quiet"]
    assert [level for level, _ in heard] == [logging.WARNING, logging.INFO]
    assert set(heard[0][1]) == {"level", "message", "timestamp"} and heard[0][1]["level"] == "WARN"


def test_a_throttle_is_ready_once_a_while_for_each_key(clock):
    throttle = Throttle(clock, 300)
    assert [throttle.ready("a"), throttle.ready("a"), throttle.ready("b")] == [True, False, True]
    clock.advance(299)
    assert not throttle.ready("a")
    clock.advance(1)
    assert throttle.ready("a")
    throttle.reset("a")
    assert throttle.ready("a")
