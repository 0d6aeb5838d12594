"""Text expositions, compared with prometheus_client's own reader."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from observer_agent.probes._exposition import Malformed, select

PAGE = rb"""# HELP up Whether it is up.
# TYPE up gauge
up 1
up_total 2
upper{up="3"} 3
  up{a="b"} 4
up{a="c",b="x\\y\"z\nw",} 5 1700000000000
up {a="d"} 6
up{ a = "e" , b = "f" } +Inf
up{a="nan"}	NaN
up{a="ex"} 7 # {trace_id="abc"} 0.5 1700000000.1
not up 8
up{a="}"} 9
up"""


def samples(text, metric, **labels):
    return [sample for sample in select(text, metric, labels) if sample]


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        ({"a": "b"}, [4.0]),
        ({"a": "c"}, [5.0]),
        ({"b": 'x\\y"z\nw'}, [5.0]),
        ({"a": "d"}, [6.0]),
        ({"a": "e", "b": "f"}, [math.inf]),
        ({"a": "ex"}, [7.0]),
        ({"a": "}"}, [9.0]),
        ({"a": "none"}, []),
        ({"c": ""}, []),
    ],
)
def test_a_subset_of_labels_picks(labels, values):
    assert [sample.value for sample in samples(PAGE, "up", **labels)] == values


def test_names_are_taken_as_written():
    assert len(samples(PAGE, "up")) == 8
    assert [s.value for s in samples(PAGE, "up_total")] == [2.0]
    assert samples(PAGE, "p") == []


def test_timestamps_and_the_last_line_without_an_end():
    assert samples(PAGE, "up", a="c")[0].timestamp == 1700000000000.0
    assert [s.value for s in samples(b'x 1\r\nx{l=""} 2', "x")] == [1.0, 2.0]
    assert math.isnan(samples(PAGE, "up", a="nan")[0].value)


@pytest.mark.parametrize(
    "line", [b"x ", b"x one", b'x{a="b" 1', b'x{a="b"}', b"x{a=b} 1", b"x 1 2 3", b"x 1_0", b"x 0x1"]
)
def test_a_malformed_line_is_not_passed_over(line):
    with pytest.raises(Malformed):
        samples(b"y 1\n" + line + b"\nx 2\n", "x")


def expected(text, metric):
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric
    ]


def found(text, metric):
    return [({k.decode(): v.decode() for k, v in s.labels.items()}, s.value) for s in samples(text.encode(), metric)]


VALUES = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(VALUES, VALUES, st.floats(allow_nan=False)), max_size=5))
def test_the_same_samples_as_prometheus_client(rows):
    registry = CollectorRegistry()
    gauge = Gauge("jobs", "Help with jobs in it\njobs 5", ("one", "two"), registry=registry)
    for one, two, value in rows:
        gauge.labels(one, two).set(value)
    Counter("jobs_done", "More.", registry=registry).inc(3)
    seconds = Histogram("seconds", "Time.", ("path",), registry=registry)
    seconds.labels("/").observe(0.3)
    text = generate_latest(registry).decode()
    for metric in ("jobs", "jobs_done_total", "seconds_bucket", "seconds_count", "seconds_sum"):
        assert sorted(map(str, found(text, metric))) == sorted(map(str, expected(text, metric)))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_page_gives_samples_or_a_complaint(page):
    try:
        list(select(page, "a", {}))
        list(select(page.replace(b"\x00", b"\na{"), "a", {"a": "a"}))
    except Malformed:
        pass


def test_a_hostile_page_without_line_ends_is_read_in_linear_time():
    assert samples(b"a " * 2_000_000, "a" * 3) == []
    with pytest.raises(Malformed):
        samples(b"a " * 2_000_000, "a")
