"""Documents in the hub: the difference, pruning, references, what is refused, the way back, and who is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from observer_agent.document import Metric, metric_id, read, read_all
from observer_agent.hub import schema
from observer_agent.hub.apply import SOURCE_TYPES, Options, Outcome, apply, check
from observer_agent.hub.difference import Difference, Field, differing
from observer_agent.hub.follow import Follower
from observer_agent.hub.form import METRIC, held, metric_form, period, to_text
from observer_agent.hub.references import within
from observer_agent.probes import SOURCES
from tests.site import Site, metric
from tests.watch import Watch
from tests.wire_hub import HubProcess, TestHub, memory_hub, row

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "observer.yaml"
HEAD = "apiVersion: observer/v1\n"
RULES = "thresholds: {healthy_operation: under, healthy_value: 50, unhealthy_operation: over, unhealthy_value: 200}"
PORT = f"- {{key: port, source_type: tcp, source_config: {{host: h, port: 80}}, {RULES}}}\n"
PAGE = f"- {{key: page, source_type: http, source_config: {{url: 'http://h/'}}, {RULES}, interval: 30s}}\n"
BAD = "- {key: bad, source_type: tcp, source_config: {host: h, port: 99999}, " + RULES + "}\n"
SHOP = "services:\n- key: shop\n  slos:\n  - {key: fast, metric: port, target_pct: 99, window_days: 30}\n"
PUBLIC = "pages:\n- key: public\n  subdomain: status\n  metrics:\n  - metric: page\n"
BOTH = f"{HEAD}metrics:\n{PORT}{PAGE}"
ALL = BOTH + SHOP + PUBLIC


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path) as found:
        yield found


def put(hub: TestHub, *texts: str, **options: Any) -> Outcome:
    found = read_all([(f"{n}.yaml", text) for n, text in enumerate(texts)], check)
    return apply(hub.store, found, Options(**options))


def names(difference: Difference) -> dict[str, list[str]]:
    lists = {"created": difference.created, "changed": difference.changed, "pruned": difference.pruned}
    return {word: [f"{each.kind} {each.key}" for each in changes] for word, changes in lists.items() if changes}


def exported(hub: TestHub) -> str:
    with hub.database.read() as conn:
        return to_text(held(conn))


def table(hub: TestHub, name: str) -> list[dict[str, Any]]:
    with hub.database.read() as conn:
        return [dict(each) for each in conn.execute(select(schema.metadata.tables[name])).mappings()]


def fetched(hub: TestHub) -> tuple[list[dict[str, Any]], str]:
    answer = hub.client().get("/api/agent/metrics-definitions", headers={"Agent-Key": hub.key})
    return answer.json, answer.headers["x-observer-definitions-version"]


# -- the difference


def test_a_document_is_created_then_unchanged_then_changed(hub: TestHub) -> None:
    everything = ["metric port", "metric page", "service shop", "page public"]
    assert names(put(hub, ALL).difference) == {"created": everything}
    again = put(hub, ALL)
    assert (bool(again.difference), again.difference.unchanged, again.applied) == (False, 4, True)
    text = ALL.replace("port: 80", "port: 81").replace("interval: 30s", "interval: 1m, agent: agent")
    changed = put(hub, text.replace("target_pct: 99", "target_pct: 99.5")).difference
    assert names(changed) == {"changed": ["metric port", "metric page", "service shop"]}
    assert changed.changed[0].fields == (Field("source_config.port", 80, 81),)
    assert changed.changed[1].fields == (Field("interval", "30s", "1m"), Field("agent", None, "agent"))
    assert changed.changed[2].fields[0].field == "slos"
    assert changed.unchanged == 1
    assert {each["title"]: each["source_config"] for each in fetched(hub)[0]}["port"]["port"] == 81


def test_a_dry_run_says_the_same_and_changes_nothing(hub: TestHub, tmp_path: Path) -> None:
    put(hub, BOTH)
    before = exported(hub), table(hub, "counters"), table(hub, "audit"), fetched(hub)
    changing = f"{HEAD}metrics:\n{PORT.replace('80', '81')}{SHOP}"
    planned = put(hub, changing, dry_run=True, prune=True)
    assert (exported(hub), table(hub, "counters"), table(hub, "audit"), fetched(hub)) == before
    assert (planned.applied, planned.refused, planned.dry_run) == (False, False, True)
    assert put(hub, changing, prune=True).difference == planned.difference
    assert names(planned.difference) == {
        "created": ["service shop"],
        "changed": ["metric port"],
        "pruned": ["metric page"],
    }


def test_what_is_not_named_is_left_alone(hub: TestHub) -> None:
    put(hub, ALL)
    before = exported(hub)
    assert names(put(hub, f"{HEAD}metrics:\n{PORT}").difference) == {}
    assert exported(hub) == before


def test_true_and_one_are_different() -> None:
    assert differing({"a": {"b": True}}, {"a": {"b": 1}}) == (Field("a.b", True, 1),)
    assert differing({"a": {}, "c": 1}, {"a": {"b": [1]}}) == (
        Field("a.b", None, [1]),
        Field("a", {}, None),
        Field("c", 1, None),
    )
    assert differing({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}) == ()


def test_a_metric_may_keep_its_id_under_another_key(hub: TestHub) -> None:
    put(hub, BOTH)
    hub.push([row(metric_id=metric_id("port"))])
    renamed = PORT.replace("key: port", f"key: gate, id: {metric_id('port')}")
    outcome = put(hub, f"{HEAD}metrics:\n{renamed}{PAGE}", prune=True)
    assert names(outcome.difference) == {"changed": ["metric gate"]}
    fields = {field.field: (field.old, field.new) for field in outcome.difference.changed[0].fields}
    assert fields["key"] == ("port", "gate")
    assert len(hub.pushes(metric_id("port"))) == 1
    assert [each["key"] for each in hub.get("metrics")["metrics"]] == ["gate", "page"]


def test_an_id_of_a_metric_that_stays_is_not_taken_over(hub: TestHub) -> None:
    put(hub, BOTH)
    outcome = put(hub, f"{HEAD}metrics:\n{PORT.replace('key: port', 'key: port, id: ' + metric_id('page'))}")
    assert outcome.refused
    assert str(outcome.remarks[0]) == (
        "0.yaml:3: metric 'port' is left out: its id is that of the metric 'page' of the hub"
    )


# -- pruning


def test_pruning_takes_what_is_no_longer_named(hub: TestHub) -> None:
    put(hub, ALL)
    outcome = put(hub, f"{HEAD}metrics:\n{PAGE}services: []\n{PUBLIC}", prune=True)
    assert names(outcome.difference) == {"pruned": ["metric port", "service shop"]}
    assert [each["key"] for each in hub.get("metrics")["metrics"]] == ["page"]
    assert [each["key"] for each in table(hub, "objects")] == ["public"]
    assert [each["title"] for each in fetched(hub)[0]] == ["page"]


def test_a_pruned_metric_keeps_its_history_and_comes_back_to_it(hub: TestHub) -> None:
    put(hub, BOTH)
    port = metric_id("port")
    hub.push([row(7, metric_id=port)])
    before = fetched(hub)
    put(hub, f"{HEAD}metrics:\n{PAGE}", prune=True)
    assert fetched(hub)[1] != before[1]
    listed = {each["id"]: each for each in hub.get("metrics")["metrics"]}
    assert (listed[port]["unmanaged"], listed[port]["title"], listed[port]["key"]) == (True, "port", None)
    hub.push([row(8, metric_id=port)])
    assert [each["value"] for each in hub.pushes(port)] == [8, 7]
    assert names(put(hub, BOTH).difference) == {"created": ["metric port"]}
    assert fetched(hub) == before
    assert len(hub.pushes(port)) == 2


def test_only_sections_that_are_there_are_pruned(hub: TestHub) -> None:
    put(hub, ALL)
    assert not put(hub, HEAD + "metric: []\nservices:\n", prune=True).difference
    assert names(put(hub, HEAD + "services: []\n", prune=True).difference) == {"pruned": ["service shop"]}


def test_pruning_touches_no_metric_that_agents_brought(hub: TestHub) -> None:
    hub.push([row(metric_id="theirs")])
    put(hub, f"{HEAD}metrics: []\n", prune=True)
    assert [each["id"] for each in hub.get("metrics")["metrics"]] == ["theirs"]


def test_nothing_that_stays_loses_a_metric(hub: TestHub) -> None:
    put(hub, ALL)
    pruning = put(hub, f"{HEAD}metrics:\n{PORT}", prune=True)
    assert pruning.refused
    said = "hub: the page 'public' stays and names the metric 'page', which would go"
    assert [str(each) for each in pruning.remarks] == [said]
    renaming = put(hub, f"{HEAD}metrics:\n{PAGE.replace('key: page', 'key: shop, id: ' + metric_id('page'))}")
    assert renaming.refused and [str(each) for each in renaming.remarks] == [said]
    assert put(hub, f"{HEAD}metrics:\n{PORT}pages: []\n", prune=True).applied


def test_pruning_is_never_done_with_half_a_document(hub: TestHub) -> None:
    put(hub, BOTH)
    outcome = put(hub, f"{HEAD}metrics:\n{PAGE}{BAD}", prune=True, partial=True)
    assert outcome.refused
    assert [each["key"] for each in hub.get("metrics")["metrics"]] == ["page", "port"]


# -- what is refused


def test_nothing_is_applied_when_something_would_be_left_out(hub: TestHub) -> None:
    outcome = put(hub, f"{HEAD}metrics:\n{PORT}{BAD}")
    assert (outcome.refused, outcome.applied) == (True, False)
    assert str(outcome.remarks[0]).startswith("0.yaml:4: metric 'bad' is left out: source_config: port")
    assert hub.get("metrics") == {"metrics": []}
    assert put(hub, f"{HEAD}metrics:\n{PORT}{BAD}", partial=True).applied
    assert [each["key"] for each in hub.get("metrics")["metrics"]] == ["port"]


def test_references_are_looked_for_in_documents_and_hub(hub: TestHub) -> None:
    alone = put(hub, HEAD + SHOP + PUBLIC)
    assert alone.refused
    assert [str(each) for each in alone.remarks] == [
        "0.yaml:5: service 'shop': slo 'fast' is left out: it names the metric 'port' that neither the documents nor "
        "the hub have",
        "0.yaml:10: page 'public': entry 'page' is left out: it names the metric 'page' that neither the documents nor "
        "the hub have",
    ]
    assert put(hub, HEAD + SHOP + PUBLIC, BOTH, dry_run=True).remarks == ()
    put(hub, BOTH)
    assert put(hub, HEAD + SHOP + PUBLIC).applied
    pruning = put(hub, f"{HEAD}metrics:\n{PORT}{PUBLIC}", prune=True)
    assert pruning.refused and "page 'public': entry 'page' is left out" in str(pruning.remarks[0])


def test_a_partial_service_goes_without_its_unknown_metric(hub: TestHub) -> None:
    put(hub, f"{HEAD}metrics:\n{PAGE}{SHOP}{PUBLIC}", partial=True)
    bodies = {each["key"]: json.loads(each["body"]) for each in table(hub, "objects")}
    assert bodies["shop"]["slos"] == []
    assert bodies["public"]["metrics"] == [{"metric": "page"}]


def test_a_subdomain_is_one_pages(hub: TestHub) -> None:
    put(hub, HEAD + "pages: [{key: a, subdomain: status}]\n")
    outcome = put(hub, HEAD + "pages: [{key: b, subdomain: status}]\n")
    assert outcome.refused
    assert str(outcome.remarks[0]).endswith("page 'b' is left out: its subdomain is that of the page 'a' of the hub")
    swapped = HEAD + "pages: [{key: a, subdomain: other}, {key: b, subdomain: status}]\n"
    assert put(hub, swapped).applied
    assert put(hub, HEAD + "pages: [{key: c, subdomain: status}]\n", prune=True).applied


def test_agents_without_a_key_are_named(hub: TestHub) -> None:
    outcome = put(hub, f"{HEAD}metrics:\n{PORT.replace('key: port', 'key: port, agent: [agent, nobody]')}")
    assert outcome.applied
    assert [str(each) for each in outcome.remarks] == [
        "0.yaml:3: metric 'port' is for the agent 'nobody', which has no key yet"
    ]


def test_every_source_type_of_the_contract_has_a_parser() -> None:
    assert set(SOURCE_TYPES) <= set(SOURCES)


def test_a_source_type_of_ours_is_held_against_its_parser_and_taken_with_a_note(hub: TestHub) -> None:
    """The sixteen of the contract are what another make's agent knows; `udp` is not among them."""
    assert len(SOURCE_TYPES) == 16
    assert set(SOURCES) - set(SOURCE_TYPES) == {"udp"}
    text = f"{HEAD}metrics:\n- {{key: a, source_type: udp, source_config: {{host: a.test, port: PORT}}, {RULES}}}\n"
    outcome = put(hub, text.replace("PORT", "53"))
    assert outcome.applied
    (note,) = outcome.remarks
    assert note.severity == "note"
    assert "the source type udp is ours: agents of other makes, and older ones, do not know it" in note.text
    assert fetched(hub)[0][0]["source_config"] == {"host": "a.test", "port": 53}
    assert put(hub, text.replace("PORT", "none")).refused


@pytest.mark.parametrize(
    ("source_type", "hint"),
    [
        ("htp", "did you mean http?"),
        ("tls-cert", "did you mean tls_cert?"),
        ("upd", "did you mean udp?"),
        ("telepathy", "write one of prometheus,"),
    ],
)
def test_another_source_type_is_refused_with_the_nearest_one(hub: TestHub, source_type: str, hint: str) -> None:
    outcome = put(hub, f"{HEAD}metrics:\n- {{key: a, source_type: {source_type}, {RULES}}}\n")
    assert outcome.refused
    assert f"source_type: '{source_type}' is not known: {hint}" in str(outcome.remarks[0])


# -- the way back


def test_the_example_has_every_kind_and_is_accepted(hub: TestHub) -> None:
    text = EXAMPLE.read_text()
    found = read(text, "observer.yaml", check)
    assert len(found.metrics) == 17
    kinds = {each.wire["source_type"] for each in found.metrics}
    assert kinds == set(SOURCE_TYPES) - {"icmp", "cloudwatch", "custom", "mtls_http"} | {"manual", "heartbeat"}
    assert put(hub, text, dry_run=True).difference.unchanged == 0
    outcome = put(hub, text)
    noted = {each.text.split("'")[1] for each in outcome.remarks if "is not evaluated" in each.text}
    assert noted == {m.key for m in found.metrics if m.wire["source_type"] not in (*SOURCES, "manual", "heartbeat")}
    assert len(outcome.difference.created) == 21
    assert all(each.line and each.severity != "error" for each in outcome.remarks)


def test_what_nobody_looks_at_is_noted_with_its_objectives(hub: TestHub) -> None:
    """In the example, whatever this version's agents evaluate; and for a metric that nobody ever looks at."""
    found = read(EXAMPLE.read_text(), "observer.yaml", check)
    types = {each.key: each.wire["source_type"] for each in found.metrics}
    unwatched = {
        slo["key"] for item in found.services for slo in item.body["slos"] if types[slo["metric"]] not in SOURCES
    }
    noted = {each.text.split("'")[3] for each in put(hub, EXAMPLE.read_text()).remarks if "stored and not" in each.text}
    assert noted == unwatched
    text = f"{HEAD}metrics:\n- {{key: port, source_type: manual}}\n{SHOP}"
    (note,) = put(hub, text).remarks
    assert note == (
        "note",
        "0.yaml",
        7,
        "service 'shop': slo 'fast' is stored and not evaluated: its metric 'port' is manual: no agent looks at it",
    )
    assert put(hub, f"{HEAD}{SHOP}").remarks[0].text == note.text, "the hub knows what the document does not say"
    assert within(read(text, "0.yaml", check)).remarks == (note,)


def test_an_export_applied_changes_nothing(hub: TestHub) -> None:
    hub.push([row(metric_id="theirs")])
    put(hub, EXAMPLE.read_text())
    text = exported(hub)
    assert "theirs" not in text and "interval: 30s\n" in text and "description: What Prometheus thinks" in text
    again = put(hub, text, dry_run=True, prune=True)
    assert (bool(again.difference), again.difference.unchanged) == (False, 21)
    put(hub, text, prune=True)
    assert exported(hub) == text


def test_the_export_of_nothing_is_a_document(hub: TestHub) -> None:
    assert exported(hub) == HEAD + "metrics: []\nservices: []\npages: []\n"
    assert read(exported(hub), "f").sections == {"metrics", "services", "pages"}


def test_a_description_goes_when_it_is_taken_out_and_is_no_part_of_the_definition(hub: TestHub) -> None:
    described = PORT.replace("key: port", "key: port, description: 'A: gate'")
    put(hub, f"{HEAD}metrics:\n{described}")
    before = fetched(hub)
    assert "description: 'A: gate'" in exported(hub)
    assert "description" not in before[0][0]
    outcome = put(hub, f"{HEAD}metrics:\n{PORT}")
    assert outcome.difference.changed[0].fields == (Field("description", "A: gate", None),)
    assert "description" not in exported(hub)
    assert fetched(hub) == before


@pytest.mark.parametrize("minutes", [1 / 60, 0.5, 1.0, 1.5, 5.0, 60.0, 90.0, 1440.0, 1 / 7, 0.02, 527040.0])
def test_intervals_are_readable_and_exact(minutes: float) -> None:
    text = json.dumps({"apiVersion": "observer/v1", "metrics": [{"key": "a", "interval": period(minutes)}]})
    found = read(text.replace('"key"', '"source_type": "manual", "key"'), "f")
    assert found.metrics[0].wire["interval"] == minutes
    known = {1 / 60: "1s", 0.5: "30s", 1.5: "90s", 60.0: "1h", 90.0: "90m", 1440.0: "24h"}
    assert period(minutes) == known.get(minutes, period(minutes))


Texts = st.text(max_size=20).map(lambda text: text.replace("\0", "").encode("utf-8", "ignore").decode())
Tricky = st.sampled_from(
    "yes no on off null ~ 1 1.0 1e3 0x10 0o7 1_000 .inf .nan true <<: = - ? : # & * ! | > ' \" % @ ` 2026-01-01 ..."
    " 12:30:00 --- [a] {a} a:b a#b".split(" ")
)
Odd = st.sampled_from(
    ["<<", " a", "a ", "a\nb", "a\n", "\t", "\x85", "\u2028", "\x7f", "\ufeff", "", "\u202e", "a  \n b"]
)
Words = Texts | Tricky | Odd
Plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | Words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(Words, inner, max_size=3),
    max_leaves=8,
)
Keys = (Texts | Tricky).filter(lambda text: 0 < len(text) <= 128)


@settings(max_examples=200, deadline=None)
@given(Keys, Words, st.dictionaries(Words, Plain, max_size=4), st.floats(1 / 60, 1e5))
@pytest.mark.slow
def test_any_metric_comes_back_from_its_export(key: str, text: str, config: dict[str, Any], minutes: float) -> None:
    wire = {"id": "x", "title": text, "source_type": "manual", "source_config": config}
    wire |= {"interval": minutes, "interval_agent_push": minutes}
    form = metric_form(Metric(key, text, (), wire, description=text))
    found = read(to_text({METRIC: {key: form}}), "f")
    assert found.remarks == ()
    assert metric_form(found.metrics[0]) == form
    assert json.dumps(found.metrics[0].wire["source_config"]) == json.dumps(config)


# -- who is told


def test_a_change_bumps_the_revision_once_and_nothing_else_does(hub: TestHub) -> None:
    def revision() -> int:
        return next((each["n"] for each in table(hub, "counters")), 0)

    put(hub, ALL)
    first = revision()
    for text in (ALL, f"{HEAD}metrics:\n{BAD}"):
        put(hub, text)
    put(hub, ALL.replace("80", "81"), dry_run=True)
    assert revision() == first
    put(hub, ALL.replace("80", "81").replace("target_pct: 99", "target_pct: 98"))
    assert revision() == first + 1


def test_every_write_is_in_the_audit_log(hub: TestHub) -> None:
    put(hub, ALL, actor="cli:me")
    put(hub, f"{HEAD}metrics:\n{PORT.replace('80', '81')}pages: []\n", prune=True, actor="cli:you")
    found = [(each["actor"], each["action"], each["subject"], each["detail"]) for each in table(hub, "audit")]
    assert sorted(found) == [
        ("cli:me", "metric.create", "page", ""),
        ("cli:me", "metric.create", "port", ""),
        ("cli:me", "page.create", "public", ""),
        ("cli:me", "service.create", "shop", ""),
        ("cli:you", "metric.change", "port", "source_config.port"),
        ("cli:you", "metric.prune", "page", ""),
        ("cli:you", "page.prune", "public", ""),
    ]


def test_two_that_apply_at_once_do_so_one_after_the_other(hub: TestHub) -> None:
    metrics = ["".join(PORT.replace("key: port", f"key: {who}{n}") for n in range(40)) for who in "ab"]
    start = threading.Barrier(2)

    def one(text: str) -> Outcome:
        start.wait()
        return put(hub, f"{HEAD}metrics:\n{text}", prune=True)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(one, metrics))
    assert sorted(len(each.difference.pruned) for each in outcomes) == [0, 40]
    assert len(hub.get("metrics")["metrics"]) == 40


# -- the API


def post(hub: TestHub, text: str | bytes, query: str = "", **headers: str) -> Any:
    given = {"Content-Type": "application/yaml", **headers}
    return hub.client().post(f"/api/v1/apply{query}", data=text, headers=given)


def test_the_api_applies_and_exports(hub: TestHub) -> None:
    planned = post(hub, ALL, "?dry_run=true")
    assert (planned.status_code, planned.json["applied"], planned.json["dry_run"]) == (200, False, True)
    assert hub.get("metrics") == {"metrics": []}
    done = post(hub, ALL)
    assert (done.status_code, done.json["applied"], len(done.json["created"])) == (200, True, 4)
    changed = post(hub, f"{HEAD}metrics:\n{PORT.replace('80', '81')}pages: []\n", "?prune=true").json
    field = {"field": "source_config.port", "old": 80, "new": 81}
    assert changed["changed"] == [{"kind": "metric", "key": "port", "fields": [field]}]
    assert changed["pruned"] == [{"kind": "metric", "key": "page"}, {"kind": "page", "key": "public"}]
    answer = hub.client().get("/api/v1/export")
    assert answer.mimetype == "application/yaml"
    again = post(hub, answer.text, "?dry_run=true&prune=true").json
    assert (again["created"], again["changed"], again["pruned"], again["unchanged"]) == ([], [], [], 2)
    assert {each["actor"] for each in table(hub, "audit")} == {"api"}


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (f"{HEAD}metrics:\n{BAD}", 422, "something would be left out"),
        ("metrics: [", 422, "document:1: not YAML"),
        (b"\xff\xfe", 400, "the body is not UTF-8 text"),
        (b"", 422, "not a mapping"),
        (b"x" * (4 * 1024 * 1024 + 1), 413, ""),
    ],
)
def test_the_api_refuses_in_words(hub: TestHub, text: str | bytes, status: int, said: str) -> None:
    answer = post(hub, text)
    assert answer.status_code == status
    assert said in answer.json["message"]
    assert hub.get("metrics") == {"metrics": []}


def test_the_api_names_the_line_and_goes_on_if_asked(hub: TestHub) -> None:
    (remark,) = post(hub, f"{HEAD}metrics:\n{PORT}{BAD}").json["remarks"]
    assert (remark["line"], remark["severity"], remark["source"]) == (4, "error", "document")
    assert post(hub, f"{HEAD}metrics:\n{PORT}{BAD}", "?allow_partial=true").status_code == 200
    assert post(hub, BOTH, "?prune=yes").status_code == 400


@pytest.mark.slow
def test_the_api_takes_more_than_a_batch_may_have(hub: TestHub) -> None:
    assert post(hub, BOTH + "#" * 2_000_000).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_no_page_of_another_site_can_post_a_document(hub: TestHub, kind: str) -> None:
    assert post(hub, BOTH, **{"Content-Type": kind}).status_code == 415
    assert hub.get("metrics") == {"metrics": []}


def test_the_api_asks_for_the_token(tmp_path: Path) -> None:
    with memory_hub(tmp_path, token="secret") as hub:
        assert post(hub, BOTH).status_code == 401
        assert hub.client().get("/api/v1/export").status_code == 401
        assert post(hub, BOTH, Authorization="Bearer secret").status_code == 200
        assert post(hub, BOTH, **{"Agent-Key": hub.key}).status_code == 401


# -- the document of `serve --config`


def test_the_served_document_is_read_again_when_it_changes(
    hub: TestHub, tmp_path: Path, caught: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "observer.yaml"
    file.write_text(BOTH)
    follower = Follower(file)
    follower.begin(hub.store)
    assert follower.step() == 5.0
    assert len(caught.records) == 1
    file.write_text(f"{HEAD}metrics:\n{PORT.replace('80', '8080')}{BAD}")
    follower.step()
    assert {each["title"]: each for each in fetched(hub)[0]}["port"]["source_config"]["port"] == 8080
    assert f"{file}:4: metric 'bad' is left out" in caught.text
    assert [each["key"] for each in hub.get("metrics")["metrics"]] == ["page", "port"]


def test_a_broken_document_is_named_once_and_the_definitions_stay(
    hub: TestHub, tmp_path: Path, caught: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "observer.yaml"
    file.write_text(BOTH)
    follower = Follower(file)
    follower.begin(hub.store)
    before = fetched(hub)
    for broken in (lambda: file.write_text("metrics: ["), file.unlink):
        caught.clear()
        broken()
        for _ in range(3):
            follower.step()
        assert [each.levelname for each in caught.records] == ["ERROR"]
        assert "the definitions stay as they were" in caught.text
        assert fetched(hub) == before
    file.write_text(f"{HEAD}metrics:\n{PAGE.replace('30s', '40s')}")
    follower.step()
    assert fetched(hub) != before


def test_an_unchanged_document_is_read_again_when_asked(
    hub: TestHub, tmp_path: Path, caught: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "observer.yaml"
    file.write_text(BOTH)
    follower = Follower(file)
    follower.begin(hub.store)
    put(hub, BOTH.replace("80", "81"))
    follower.again()
    follower.step()
    assert {each["title"]: each for each in fetched(hub)[0]}["port"]["source_config"]["port"] == 80
    caught.clear()
    follower.step()
    assert caught.records == []


# -- the command line


@pytest.fixture
def line(tmp_path: Path) -> HubProcess:
    return HubProcess(tmp_path)


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.slow
def test_commands_apply_export_and_validate(line: HubProcess, tmp_path: Path) -> None:
    file = written(tmp_path, "observer.yaml", ALL)
    planned = line.command("apply", "-f", file, "--dry-run")
    assert planned.returncode == 0
    assert planned.stdout.splitlines() == [
        "+ metric port",
        "+ metric page",
        "+ service shop",
        "+ page public",
        "4 created, 0 changed, 0 pruned, 0 unchanged; a dry run: nothing was applied",
    ]
    assert line.command("apply", "-f", file).stdout.endswith("4 created, 0 changed, 0 pruned, 0 unchanged\n")
    newer = written(tmp_path, "newer.yaml", f"{HEAD}metrics:\n{PORT.replace('80', '81')}")
    changed = line.command("apply", "--file", newer, "--prune", "--dry-run")
    assert changed.stdout.splitlines()[:3] == ["~ metric port", "    source_config.port: 80 -> 81", "- metric page"]
    out = tmp_path / "out.yaml"
    assert line.command("export", "--output", str(out)).returncode == 0
    assert line.command("export").stdout == out.read_text()
    again = line.command("apply", "-f", str(out), "--prune", "--json")
    assert json.loads(again.stdout)["unchanged"] == 4
    assert line.command("validate", file, newer).returncode == 1
    assert line.command("validate", str(out)).stdout == "valid: 2 metrics, 1 services, 1 pages\n"


@pytest.mark.slow
def test_faults_on_the_command_line_have_their_exit_codes(line: HubProcess, tmp_path: Path) -> None:
    good = written(tmp_path, "good.yaml", f"{HEAD}metrics:\n{PORT}")
    bad = written(tmp_path, "bad.yaml", f"{HEAD}metrics:\n{BAD}{PORT}")
    refused = line.command("apply", "-f", bad)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {bad}:3: metric 'bad' is left out: source_config: port")
    assert refused.stdout.endswith("nothing was applied, because something would be left out\n")
    both = line.command("validate", good, bad, "--json")
    assert both.returncode == 1
    remarks = json.loads(both.stdout)["remarks"]
    assert remarks[1]["text"] == f"metric 'port' is left out: the key comes twice, the one at {good}:3 counts"
    assert line.command("validate", bad, "--allow-partial").returncode == 0
    assert line.command("apply", "-f", bad, "--allow-partial").returncode == 0
    for words, code in [
        (("apply",), 2),
        (("validate",), 2),
        (("apply", "-f", good, "--prone"), 2),
        (("apply", "-f", good, "-f", good), 2),
        (("apply", "-f", str(tmp_path / "none.yaml")), 1),
        (("validate", written(tmp_path, "no.yaml", "metrics: [")), 1),
        (("export", "--output", str(tmp_path / "none" / "x")), 1),
    ]:
        found = line.command(*words)
        assert (found.returncode, "Traceback" in found.stderr) == (code, False), words


@pytest.mark.slow
def test_validate_needs_no_database_and_knows_what_it_cannot_know(tmp_path: Path) -> None:
    line = HubProcess(tmp_path, DATABASE_URL="nonsense")
    file = written(tmp_path, "services.yaml", HEAD + SHOP)
    found = line.command("validate", file)
    assert found.returncode == 0
    assert found.stdout.splitlines() == [
        f"note: {file}:5: service 'shop': slo 'fast': it names the metric 'port' that these documents do not have; "
        "`apply` asks the hub",
        "valid: 0 metrics, 1 services, 0 pages",
    ]
    assert line.command("apply", "-f", file).returncode == 78


@pytest.mark.slow
def test_a_document_comes_from_stdin_and_moves_no_cursor(tmp_path: Path) -> None:
    text = json.dumps({"apiVersion": "observer/v1", "metrics": [{"key": "a\u001b[2J", "source_type": "manual"}]})
    command = [sys.executable, "-m", "observer_agent.hub.cli", "apply", "-f", "-"]
    env = {**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path}/hub.db"}
    done = subprocess.run(command, env=env, input=text, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "+ metric a\\x1b[2J"


# -- processes


def applied(url: str, text: str, query: str = "") -> Any:
    headers = {"Content-Type": "application/yaml"}
    answer = requests.post(f"{url}/api/v1/apply{query}", data=text.encode(), headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.slow
def test_what_one_process_applies_another_hands_out(hub: TestHub, tmp_path: Path) -> None:
    put(hub, BOTH)
    first = fetched(hub)
    url = hub.database._engine.url.render_as_string(hide_password=False)
    line = HubProcess(tmp_path, DATABASE_URL=url)
    assert line.command("apply", "-f", written(tmp_path, "f.yaml", BOTH.replace("80", "81"))).returncode == 0
    definitions, version = fetched(hub)
    assert version != first[1]
    assert {each["title"]: each for each in definitions}["port"]["source_config"]["port"] == 81


@pytest.mark.slow
def test_a_served_document_is_read_again_on_sighup_and_when_it_changes(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path)
    file = tmp_path / "observer.yaml"
    file.write_text(BOTH)
    url = hub.start("--config", str(file))
    try:
        applied(url, f"{HEAD}metrics:\n{PORT.replace('80', '81')}")
        assert "port: 81" in requests.get(f"{url}/api/v1/export", timeout=10).text
        assert hub.process is not None
        hub.process.send_signal(signal.SIGHUP)
        until(lambda: "port: 80" in requests.get(f"{url}/api/v1/export", timeout=10).text)
        file.write_text(BOTH.replace("80", "82"))
        until(lambda: "port: 82" in requests.get(f"{url}/api/v1/export", timeout=10).text)
    finally:
        assert hub.end() == 0


def until(what: Any, seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not what():
        assert time.monotonic() < end
        pause.wait(0.1)


@pytest.mark.slow
def test_an_agent_probes_a_changed_document_within_one_heartbeat(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        site.open_hub([metric("door", "tcp", {"host": "127.0.0.1", "port": site.listen()})])
        site.start_agent()
        site.until(lambda: site.pushes())
        url = f"http://127.0.0.1:{site.hub.port}"
        new = metric("gate", "tcp", {"host": "127.0.0.1", "port": site.listen()})
        text = json.dumps({"apiVersion": "observer/v1", "metrics": [new]})
        assert applied(url, text, "?prune=true")["pruned"] == [{"kind": "metric", "key": "door"}]
        watch = Watch()
        gate = metric_id("gate")
        site.until(lambda: any(each["metric_id"] == gate for each in site.pushes()), 45.0)
        took = watch.seconds
        assert took < 33.0, took  # a heartbeat every 30 s, and the first look and push
    finally:
        site.close()
