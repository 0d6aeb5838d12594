"""Paths into JSON, and the numbers they lead to."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent.clock import Clock
from observer_agent.probes import _extract
from observer_agent.probes._jsonpath import find, parse_path
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run
from tests.servers import make_tools

DOCUMENT = {
    "a": {"b": [1, 2, 3]},
    "c d": 4,
    "it's": 5,
    'q"': 6,
    "deep": [{"x": 1}, {"x": 2}, {"y": 3}],
    "0": 7,
    "e-f": 8,
}


@pytest.fixture
def run():
    tools = make_tools()
    return Run(tools, tools.clock.monotonic() + 60, Reason.HTTP_ERROR)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("$", [DOCUMENT]),
        ("$.a.b[0]", [1]),
        ("a.b[1]", [2]),
        ("$.a.b[-1]", [3]),
        ("$.a.b[-4]", []),
        ("$.a.b[3]", []),
        ("$.a.b.1", [2]),
        ("$['c d']", [4]),
        ('$["c d"]', [4]),
        (r"$['it\'s']", [5]),
        (r'$["q\""]', [6]),
        ("$.a.b[*]", [1, 2, 3]),
        ("$.a.*", [[1, 2, 3]]),
        ("$.deep[*].x", [1, 2]),
        ("$[0]", [7]),
        ("$.e-f", [8]),
        ("$.missing.more", []),
        ("$.c d", None),
        ("$.a.b[1:2]", None),
        ("$..x", None),
        ("$[?(@.x)]", None),
        ("$.a.b.length", []),
        ("$" + ".a" * 128, None),
    ],
)
def test_w15_names_indexes_and_wildcards_and_nothing_else(path, found):
    if found is None:
        with pytest.raises(ValueError, match=r"must be|is not understood"):
            parse_path(path)
    else:
        assert find(parse_path(path), DOCUMENT) == found


@settings(deadline=None)
@given(st.text(max_size=30) | st.text("$.[]*'\"\\a0-?@(): ", max_size=30))
def test_any_text_is_a_path_or_a_complaint(text):
    try:
        path = parse_path(text)
    except ValueError:
        return
    find(path, DOCUMENT)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ('{"v": 1}', 1.0),
        ('{"v": -2.5e3}', -2500.0),
        ('{"v": true}', 1.0),
        ('{"v": false}', 0.0),
        ('{"v": " 12.5 "}', 12.5),
        ('{"v": "+.5"}', 0.5),
        ('{"v": 9007199254740993}', 9007199254740992.0),
        ("\ufeff" + '{"v": 1}', 1.0),
    ],
)
def test_numbers(run, body, value):
    assert _extract.number(body.encode(), parse_path("$.v"), run) == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "json_parse_failed"),
        ("<html>", "json_parse_failed"),
        ('{"v": NaN}', "json_parse_failed"),
        ('{"v": -Infinity}', "json_parse_failed"),
        ("[" * 100_000, "json_parse_failed"),
        ("\x80", "json_parse_failed"),
        ("{}", "json_path_no_match"),
        ('{"v": null}', "json_path_unsupported_type"),
        ('{"v": [1]}', "json_path_unsupported_type"),
        ('{"v": {}}', "json_path_unsupported_type"),
        ('{"v": "nan"}', "json_path_non_numeric"),
        ('{"v": "inf"}', "json_path_non_numeric"),
        ('{"v": "1_000"}', "json_path_non_numeric"),
        ('{"v": "0x10"}', "json_path_non_numeric"),
        ('{"v": "\u0661"}', "json_path_non_numeric"),
        ('{"v": "hunter2"}', "json_path_non_numeric"),
        ('{"v": ""}', "json_path_non_numeric"),
        ('{"v": 1e999}', "json_path_non_numeric"),
        ('{"v": ' + "9" * 5000 + "}", "json_path_non_numeric"),
    ],
)
def test_bodies_without_a_number(run, body, reason):
    with pytest.raises(Failed) as caught:
        _extract.number(body.encode("latin-1" if body == "\x80" else "utf-8"), parse_path("$.v"), run)
    assert caught.value.reason == reason
    assert "hunter2" not in str(caught.value.detail)


def test_several_matches_are_counted(run):
    with pytest.raises(Failed) as caught:
        _extract.number(b"[1,2]", parse_path("$[*]"), run)
    assert (caught.value.reason, caught.value.detail["count"]) == ("json_path_multi_match", 2)


def test_w14_ten_mebibytes_are_too_many(run):
    with pytest.raises(Failed) as caught:
        _extract.number(b" " * 10_485_760, parse_path("$"), run)
    assert caught.value.reason == "json_body_too_large"


def test_a_body_that_cannot_be_parsed_in_time_is_not_begun():
    tools = make_tools()
    run = Run(tools, Clock().monotonic() + 0.2, Reason.HTTP_ERROR)
    with pytest.raises(Failed) as caught:
        _extract.number(b"[" + b" " * 5_000_000 + b"]", parse_path("$"), run)
    assert caught.value.reason == "ETIMEDOUT"


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_survives(value):
    tools = make_tools()
    run = Run(tools, tools.clock.monotonic() + 60, Reason.HTTP_ERROR)
    assert _extract.number(json.dumps([value]).encode(), parse_path("$[0]"), run) == value
    assert _extract.number(json.dumps([repr(value)]).encode(), parse_path("$[0]"), run) == value
