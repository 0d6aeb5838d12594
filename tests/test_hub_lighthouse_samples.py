"""Host metrics at the hub: what is kept, what is refused, how little a hostile body can cost."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cramjam
import pytest

from observer_agent.hub.lighthouse import intake, samples
from observer_agent.hub.lighthouse.wire import TooMany
from observer_agent.hub.remote_format import request_class
from observer_agent.hub.wire import Malformed
from tests.hub_lighthouses import RIVAL, Scene, lighthouse_hub

HEADERS = {"Content_Type": "application/x-protobuf", "Content_Encoding": "snappy"}
NOON = 1_778_328_000_000


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with lighthouse_hub(tmp_path) as made:
        made.manage.change("test", "raspberry", {"host_metrics_enabled": True})
        yield made


def written(*series: tuple[dict[str, str], Sequence[tuple[float, int]]]) -> bytes:
    """A remote write request, by the libraries' own hand."""
    request = request_class()()
    for labels, points in series:
        one = request.timeseries.add()
        for name, value in labels.items():
            one.labels.add(name=name, value=value)
        for value, at in points:
            one.samples.add(value=value, timestamp=at)
    return bytes(cramjam.snappy.compress_raw(request.SerializeToString()))


def send(scene: Scene, body: bytes, **more: str | None) -> Any:
    return scene.call("host-metrics", body, **{**HEADERS, **more})


def load(value: float, at: int = NOON, **labels: str) -> tuple[dict[str, str], list[tuple[float, int]]]:
    return {"__name__": "load1", "host": "vm-7", **labels}, [(value, at)]


def test_the_newest_value_of_each_series_is_kept(scene: Scene) -> None:
    assert send(scene, written(load(0.5), load(0.25, core="1"))).status_code == 204
    both = ({"__name__": "load1", "host": "vm-7"}, [(9.0, NOON + 2000), (7.0, NOON + 1000)])
    answer = send(scene, written(both))
    assert (answer.status_code, answer.data) == (204, b"")
    assert scene.look.series("raspberry") == [
        {"name": "load1", "labels": {"core": "1", "host": "vm-7"}, "value": 0.25, "at": "2026-05-09T12:00:00.000Z"},
        {"name": "load1", "labels": {"host": "vm-7"}, "value": 9.0, "at": "2026-05-09T12:00:02.000Z"},
    ]


def test_what_is_no_number_is_left_out(scene: Scene) -> None:
    body = written(load(math.nan), load(math.inf, core="1"), load(1.0, -5, core="2"), load(2.0, core="3"))
    assert send(scene, body).status_code == 204
    assert [each["value"] for each in scene.look.series("raspberry")] == [2.0]


def test_they_are_taken_only_where_they_are_wanted(scene: Scene) -> None:
    scene.manage.change("test", "raspberry", {"host_metrics_enabled": False})
    assert send(scene, written(load(1.0))).status_code == 403
    assert scene.look.series("raspberry") == []


def test_only_the_active_instance_may_send_them(scene: Scene) -> None:
    scene.register()
    assert send(scene, written(load(1.0)), X_Lighthouse_Instance_Id=RIVAL).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff" * 10,
        b"\x80\x80\x80\x80\x80\x01",
        b"\x05abc",
        bytes(cramjam.snappy.compress_raw(b"not protobuf at all")),
        written(({"host": "x"}, [(1.0, NOON)])),
        written(({"__name__": "x" * 200}, [(1.0, NOON)])),
        written(({"__name__": "m", **{f"l{n}": "" for n in range(40)}}, [(1.0, NOON)])),
    ],
)
def test_what_cannot_be_read_is_refused_whole(body: bytes, scene: Scene) -> None:
    answer = send(scene, body)
    assert (answer.status_code, list(answer.json)) == (400, ["error"])
    assert scene.look.series("raspberry") == []


def test_a_small_body_that_would_grow_huge_is_not_unpacked() -> None:
    huge = bytes(cramjam.snappy.compress_raw(bytes(samples.RAW_MAX + 1)))
    assert len(huge) < samples.RAW_MAX / 10
    with pytest.raises(TooMany):
        samples.decode(huge)
    lying = b"\x05" + huge[4:]  # it says that it is five bytes long
    with pytest.raises(Malformed):
        samples.decode(lying)


def test_too_many_samples_or_series_are_413(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = {"__name__": "m"}
    assert send(scene, written((labels, [(1.0, NOON + n) for n in range(samples.SAMPLES_MAX + 1)]))).status_code == 413
    many = [({"__name__": "m", "n": f"{n:05}"}, [(1.0, NOON)]) for n in range(intake.SERIES_MAX)]
    assert send(scene, written(*many)).status_code == 204
    assert send(scene, written(*many[:5])).status_code == 204
    assert send(scene, written(load(1.0))).status_code == 413
    assert len(scene.look.series("raspberry")) == intake.SERIES_MAX


def test_other_types_of_body_are_415(scene: Scene) -> None:
    assert send(scene, written(load(1.0)), Content_Type="application/json").status_code == 415
    assert send(scene, written(load(1.0)), Content_Encoding=None).status_code == 415


@pytest.mark.slow
def test_without_the_libraries_the_relay_is_not_configured(tmp_path: Path) -> None:
    """In a process of its own that cannot import them."""
    code = (
        "import sys\n"
        "sys.modules['cramjam'] = None\n"
        "from pathlib import Path\n"
        "from tests.hub_lighthouses import lighthouse_hub\n"
        f"with lighthouse_hub(Path({str(tmp_path)!r})) as scene:\n"
        "    scene.manage.change('test', 'raspberry', {'host_metrics_enabled': True})\n"
        "    more = {'Content_Type': 'application/x-protobuf', 'Content_Encoding': 'snappy'}\n"
        "    answer = scene.call('host-metrics', b'abc', **more)\n"
        "    print(answer.status_code, answer.json)\n"
        "    assert scene.call('heartbeat', {}).status_code == 200\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "503 {'error': 'relay not configured'}\n", done.stderr
