"""The body of a remote write request, against the two libraries that the agent does without."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import cramjam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent.hub.remote_format import request_class
from observer_agent.lighthouse.figures import Figure
from observer_agent.lighthouse.remotewrite import BLOCK, body, compress, encode

AT = 1_800_000_000.123
STAMP = 1_800_000_000_123


def expand(data: bytes) -> bytes:
    return bytes(cramjam.snappy.decompress_raw(data))


def read(data: bytes) -> list[tuple[dict[str, str], list[tuple[float, int]]]]:
    """The series of a request, as protobuf itself reads it."""
    request = request_class().FromString(data)
    return [
        ({each.name: each.value for each in one.labels}, [(each.value, each.timestamp) for each in one.samples])
        for one in request.timeseries
    ]


def written(figures: list[Figure], stamped: dict[str, str]) -> bytes:
    """The same request, written by protobuf itself."""
    request = request_class()()
    rows = {(f.name, tuple(sorted({**stamped, **dict(f.labels)}.items()))): f.value for f in figures}
    for (name, labels), value in sorted(rows.items()):
        one = request.timeseries.add()
        one.labels.add(name="__name__", value=name)
        for pair in labels:
            one.labels.add(name=pair[0], value=pair[1])
        one.samples.add(value=value, timestamp=STAMP)
    return bytes(request.SerializeToString())


FIGURES = [
    Figure("load1", 0.25),
    Figure("disk_used_percent", 0.0, (("mount", "/"),)),
    Figure("cpu_busy_percent", 12.5, (("core", "1"),)),
    Figure("cpu_busy_percent", 11.0, (("core", "0"),)),
    Figure("cpu_busy_percent", -0.0),
]
STAMPED = {"host": "vm-1", "lighthouse_id": "5f4d"}


def test_a_request_is_what_protobuf_writes_byte_for_byte() -> None:
    data = encode(FIGURES, AT, STAMPED)
    assert data == written(FIGURES, STAMPED)
    names = [labels["__name__"] for labels, _ in read(data)]
    assert names == ["cpu_busy_percent"] * 3 + ["disk_used_percent", "load1"]
    assert [labels.get("core") for labels, _ in read(data)][:3] == ["0", "1", None]
    assert read(data)[-1] == ({"__name__": "load1", **STAMPED}, [(0.25, STAMP)])


def test_the_order_of_the_figures_makes_no_difference() -> None:
    mixed = FIGURES[:]
    random.Random(7).shuffle(mixed)
    assert body(mixed, AT, STAMPED) == body(FIGURES, AT, STAMPED)


def test_a_label_that_is_there_is_not_overwritten_and_an_empty_one_is_none() -> None:
    data = encode([Figure("a", 1.0, (("host", "mine"), ("none", "")))], AT, {"host": "other", "empty": ""})
    assert read(data) == [({"__name__": "a", "host": "mine"}, [(1.0, STAMP)])]


def test_half_a_surrogate_pair_does_not_stop_the_rest() -> None:
    data = encode([Figure("a", 1.0, (("node", "x\ud800"),)), Figure("b", 2.0)], AT)
    assert [labels for labels, _ in read(data)] == [{"__name__": "a", "node": "x?"}, {"__name__": "b"}]


def test_of_two_equal_series_the_last_one_counts() -> None:
    data = encode([Figure("a", 1.0), Figure("a", 2.0)], AT)
    assert read(data) == [({"__name__": "a"}, [(2.0, STAMP)])]


def test_the_golden_request_is_written_so() -> None:
    file = Path(__file__).parent / "wire" / "lighthouse" / "host-metrics.json"
    plain = expand(base64.b64decode(json.loads(file.read_text())["request"]["base64"]))
    ((labels, ((value, stamp),)),) = read(plain)
    stamped = {name: labels[name] for name in ("host", "lighthouse_id")}
    figures = [Figure(labels["__name__"], value)]
    assert encode(figures, stamp / 1000, stamped) == plain
    assert expand(body(figures, stamp / 1000, stamped)) == plain


TEXT = st.text(max_size=12)
LABELS = st.dictionaries(st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=9), TEXT.filter(bool), max_size=4)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.builds(Figure, TEXT.filter(bool), st.floats(), LABELS.map(lambda d: tuple(d.items())))))
def test_any_figures_are_written_as_protobuf_writes_them(figures: list[Figure]) -> None:
    figures = [figure for figure in figures if not {"__name__"} & dict(figure.labels).keys()]
    assert encode(figures, AT) == written(figures, {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a",
        b"abc",
        b"abcd" * 3,
        b"\0" * 70,
        b"\0" * 200_000,
        bytes(range(256)) * 300,
        b"x" * 59 + b"y",
        random.Random(1).randbytes(61),
        random.Random(2).randbytes(257),
        random.Random(3).randbytes(3 * BLOCK + 5),
        b"0123456789" + bytes(2047 - 10) + b"0123456789!",
        b"0123456789" + bytes(2048 - 10) + b"0123456789!",
    ],
    ids=lambda data: f"{len(data)}",
)
def test_what_was_squeezed_comes_back(data: bytes) -> None:
    assert expand(compress(data)) == data
    assert compress(data) == compress(data)
    assert len(compress(data)) <= 8 + len(data) + len(data) // 1000, "what repeats nothing grows by no more than tags"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"label", b"host", b"\0" * 9])), max_size=80))
def test_anything_that_was_squeezed_comes_back(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert expand(compress(data)) == data


def test_labels_that_repeat_are_squeezed_well() -> None:
    figures = [
        Figure(f"net_{way}_{what}_total", random.Random(n).random() * 1e12, (("device", f"eth{n}"),))
        for n in range(8)
        for way in ("rx", "tx")
        for what in ("bytes", "packets", "errors")
    ]
    plain = encode(figures, AT, {"host": "node-1", "lighthouse_id": "0b0d4a3e-6f4e-4d8e-9a52-1f6a8f1f2a11"})
    ours, theirs = len(compress(plain)), len(cramjam.snappy.compress_raw(plain))
    assert ours < len(plain) / 3
    assert ours < 1.25 * theirs
