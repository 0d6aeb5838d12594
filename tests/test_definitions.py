"""What a row of definitions means, when they are fetched, and the last good set on disk."""

from __future__ import annotations

import json
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent.definitions import (
    Definitions,
    DefinitionsFile,
    Store,
    cloud_side,
    fingerprint,
    number,
    seconds,
    understand,
    understand_all,
)
from observer_agent.errors import DocumentError, InvalidConfig
from observer_agent.model import DefinitionSet, Operation, Thresholds
from tests.fakes import FakeClock

KNOWN = {"prometheus", "http", "tcp"}
ROW = {
    "id": "m1",
    "source_type": "tcp",
    "source_config": {"host": "h", "port": 1},
    "interval": 1,
    "interval_agent_push": 5,
    "healthy_operation": "under",
    "healthy_value": 100,
    "unhealthy_operation": "over",
    "unhealthy_value": "500",
}


def parse(source_type, config):
    if "bad" in config:
        raise InvalidConfig("bad: unknown key")
    return dict(config)


def one(**changes):
    return understand({**ROW, **changes}, parse, KNOWN)


def test_a_whole_row():
    found = one(extra="ignored")
    assert found.problem is None
    assert (found.interval, found.push_interval) == (60, 300)
    assert found.thresholds == Thresholds(Operation.UNDER, 100, Operation.OVER, 500)
    assert found.config == {"host": "h", "port": 1}


@pytest.mark.parametrize(
    ("minutes", "default", "expected"),
    [
        (1, 1, 60), (0.5, 1, 30), (1 / 60, 1, 1), (0.001, 1, 1), (0, 1, 60), (-5, 5, 300), (None, 5, 300),
        (float("nan"), 1, 60), (float("inf"), 1, 60), ("2", 1, 120), ("x", 1, 60), (True, 1, 60), ([], 5, 300),
        (10**400, 1, 60), (1e308, 1, 366 * 86400), ("1e308", 1, 366 * 86400),
    ],
)  # fmt: skip
def test_intervals_are_minutes_with_a_default_and_a_floor_of_a_second(minutes, default, expected):
    assert seconds(minutes, default) == expected


@pytest.mark.parametrize("value", ["0x10", "1_000", "nan", "inf", "", " ", "1e999", "٣", None, True, [], {}])
def test_w4_a_threshold_that_is_no_plain_finite_number_is_refused(value):
    assert number(value) is None
    found = one(healthy_value=value)
    assert found.problem.reason == "invalid_config"
    assert "healthy_value" in found.problem.text


@pytest.mark.parametrize("operation", [None, "", "above", "OVER", 1, ["over"]])
def test_an_operator_that_is_none_is_refused(operation):
    assert "unhealthy_operation" in one(unhealthy_operation=operation).problem.text


def test_what_the_probe_does_not_understand_disables_that_one_metric():
    found = understand_all([{**ROW, "source_config": {"bad": 1}}, {**ROW, "id": "m2"}], parse, KNOWN)
    assert [each.problem and each.problem.reason for each in found] == ["invalid_config", None]


@pytest.mark.parametrize("kind", ["carrier_pigeon", "manual", 7, ["tcp"]])
def test_an_unknown_source_type(kind):
    assert one(source_type=kind).problem.reason == "unknown_source_type"


def test_what_the_cloud_evaluates_by_itself_is_left_out_without_a_word(caught):
    rows = [ROW, {**ROW, "id": "by-hand", "source_type": "manual"}, {"id": 5, "source_type": "heartbeat"}, "nothing"]
    assert [each.id for each in understand_all(rows[:3], parse, KNOWN)] == ["m1"]
    assert caught.text == ""
    assert cloud_side(rows) == ("5", "by-hand")


def test_prometheus_is_the_default_and_takes_the_query_from_its_old_place():
    row = {k: v for k, v in ROW.items() if k not in ("source_type", "source_config")} | {"query": "up"}
    assert understand(row, parse, KNOWN).config == {"query": "up"}
    assert understand({**row, "source_config": {"query": "down"}}, parse, KNOWN).config == {"query": "down"}
    assert one(query="up").config == ROW["source_config"]


@pytest.mark.parametrize("metric_id", [None, "", 5, "x" * 129, "\ud800"])
def test_a_row_without_a_usable_id_is_left_out_and_named(metric_id, caught):
    found = understand_all([{**ROW, "id": metric_id}, "no object", ROW], parse, KNOWN)
    assert [each.id for each in found] == ["m1"]
    assert caught.text.count("no usable id") == 2


def test_of_doubles_the_first_counts(caught):
    found = understand_all([ROW, {**ROW, "interval": 9}], parse, KNOWN)
    assert [each.interval for each in found] == [60]
    assert "comes twice" in caught.text


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"title": "t", "agent_id": "a", "whatever": 1}, True),
        ({"query": None}, True),
        ({"interval": 2}, False),
        ({"interval_agent_push": 2}, False),
        ({"source_type": "http"}, False),
        ({"source_config": {"host": "h", "port": 2}}, False),
        ({"source_config": {"port": 1, "host": "h"}}, True),
        ({"query": "up"}, False),
        ({"healthy_operation": "over"}, False),
        ({"healthy_value": 1}, False),
        ({"unhealthy_operation": "under"}, False),
        ({"unhealthy_value": 1}, False),
    ],
)
def test_the_fingerprint_covers_nine_fields_and_nothing_else(changes, same):
    assert (fingerprint({**ROW, **changes}) == fingerprint(ROW)) is same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROW, "x"]), inner, max_size=9),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=5))
def test_no_row_can_raise(rows):
    for each in understand_all(rows, parse, KNOWN):
        assert each.interval >= 1 and each.push_interval >= 1
        assert (each.problem is None) == (each.thresholds is not None)


# -- when


class Cloud:
    def __init__(self):
        self.answers = []
        self.default = DefinitionSet((ROW,), "v1", status=200)

    def definitions(self):
        return self.answers.pop(0) if self.answers else self.default


class Stage:
    def __init__(self, tmp_path):
        self.clock = FakeClock()
        self.cloud = Cloud()
        self.applied = []
        self.fetches = []
        self.rung = 0
        self.store = Store(tmp_path / "set.json")
        self.definitions = Definitions(self.cloud, self.store, self.clock, self.applied.append)
        self.start = self.clock.monotonic()
        fetch = self.cloud.definitions
        self.cloud.definitions = lambda: (self.fetches.append(self.clock.monotonic() - self.start), fetch())[1]

    def until(self, seconds):
        while (left := self.start + seconds - self.clock.monotonic()) > 0:
            self.clock.advance(min(self.definitions.step(), left))
        return self


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def test_at_the_start_and_every_five_minutes(stage):
    stage.until(901)
    assert stage.fetches == [0, 300, 600, 900]


def test_every_thirty_seconds_for_ten_minutes_until_the_first_answer_that_is_not_empty(stage):
    stage.cloud.default = DefinitionSet((), None, status=200)
    stage.until(1300)
    assert stage.fetches[:21] == [30 * n for n in range(21)]
    assert stage.fetches[21:] == [900, 1200]


def test_eagerness_ends_with_the_first_full_set(stage):
    stage.cloud.answers = [DefinitionSet((), None, status=200)] * 2
    stage.until(400)
    assert stage.fetches == [0, 30, 60, 360]


def test_failures_back_off_to_five_minutes_and_keep_the_set(stage):
    stage.until(1)
    stage.cloud.default = DefinitionSet(None, text="refused")
    stage.until(300 + 30 + 60 + 120 + 240 + 300 + 1)
    assert stage.fetches == [0, 300, 330, 390, 510, 750, 1050]
    assert len(stage.applied) == 1


def test_a_heartbeat_that_names_another_version_fetches_at_once(stage):
    stage.until(60)
    stage.cloud.default = DefinitionSet((ROW,), "v2", status=200)
    stage.definitions.signal("v1")
    stage.until(61)
    stage.definitions.signal("v2")
    stage.until(70)
    assert stage.fetches == [0, 61]


def test_but_not_within_ten_seconds_of_the_last_try(stage):
    stage.until(4)
    stage.definitions.signal("v2")
    stage.until(50)
    assert stage.fetches == [0, 10]


def test_what_is_asked_while_a_fetch_is_under_way_is_not_forgotten(stage):
    stage.until(20)
    fetch = stage.cloud.definitions

    def asked_meanwhile():
        stage.definitions.signal("v3")
        stage.cloud.definitions = fetch
        return fetch()

    stage.cloud.definitions = asked_meanwhile
    stage.definitions.refresh()
    stage.until(60)
    assert stage.fetches == [0, 20, 30]


def test_a_heartbeat_that_disagrees_for_ever_costs_one_fetch(stage):
    for at in range(30, 290, 30):
        stage.until(at)
        stage.definitions.signal("other")
    stage.until(299)
    assert stage.fetches == [0, 30]


def test_an_older_cloud_without_a_version_is_no_reason_to_fetch(stage):
    stage.until(30)
    stage.definitions.signal(None)
    stage.until(60)
    assert stage.fetches == [0]


# -- the last good set


def test_an_agent_that_starts_while_the_cloud_is_away_uses_the_last_good_set(stage, tmp_path):
    stage.until(1)
    later = Stage(tmp_path)
    later.cloud.default = DefinitionSet(None, text="refused")
    later.definitions.start()
    assert later.applied == [(ROW,)]
    assert stat.S_IMODE((tmp_path / "set.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"definitions": 7}', b"\xff"])
def test_a_broken_store_is_no_reason_not_to_start(stage, tmp_path, content):
    (tmp_path / "set.json").write_bytes(content)
    stage.definitions.start()
    assert stage.applied == []


def test_a_disk_that_refuses_costs_only_the_store(tmp_path, caught):
    Store(tmp_path / "missing" / "set.json").save([ROW])
    assert "could not be stored" in caught.text


def test_an_unchanged_set_is_not_written_again(stage, tmp_path):
    stage.until(1)
    first = (tmp_path / "set.json").stat().st_mtime_ns, (tmp_path / "set.json").stat().st_ino
    stage.until(1000)
    assert ((tmp_path / "set.json").stat().st_mtime_ns, (tmp_path / "set.json").stat().st_ino) == first


# -- a local document


def test_a_document_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(tmp_path, caught):
    file, applied = tmp_path / "o.json", []

    def read(path):
        try:
            return json.loads(path.read_text())
        except ValueError:
            raise DocumentError(f"{path} is broken") from None

    file.write_text("[1]")
    source = DefinitionsFile(file, read, applied.append)
    source.start()
    source.step()
    file.write_text("[1, 2]")
    source.step()
    file.write_text("[1, 2")
    source.step()
    source.signal("v9")
    assert applied == [(1,), (1, 2)]
    assert "is broken" in source.last_text and "stay as they were" in caught.text
    file.write_text("[3, 4, 5]")
    assert source.step() > 0
    assert applied[-1] == (3, 4, 5) and source.last_text == ""
