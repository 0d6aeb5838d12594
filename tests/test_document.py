"""Documents of definitions: what is understood, what is named and left out, what is refused, and garbage."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observer_agent.document import Document, Remark, metric_id, read, read_all
from observer_agent.errors import DocumentError, InvalidConfig
from observer_agent.sections import Severity

RULES = "{healthy_operation: under, healthy_value: 50, unhealthy_operation: over, unhealthy_value: 200}"
HEAD = "apiVersion: observer/v1\n"
DEMO = f"""{HEAD}
metrics:
  - key: page            # line 4
    title: Shop page
    description: The way in.
    source_type: http
    source_config:
      url: https://shop.example/health
      expected_status: 200
    thresholds:
      healthy_operation: under
      healthy_value: 500
      unhealthy_operation: over
      unhealthy_value: "2000.5"
    interval: 1
    interval_agent_push: 5
    agent: prod-01
  - key: sold
    source_type: manual
services:
  - key: shop
    name: Shop
    slos:
      - {{key: fast, metric: page, target_pct: 99.9, window_days: 30}}
pages:
  - key: public
    subdomain: status
    title: Status
    metrics:
      - {{metric: page, group: Web, order: 1}}
"""


def one(fields: str = "", rules: str = RULES, check: Any = None) -> Document:
    return read(f"{HEAD}metrics:\n- key: a\n  thresholds: {rules}\n{fields}", "f", check)


def test_a_document_as_people_write_it() -> None:
    found = read(DEMO, "observer.yaml")
    assert found.warnings == ()
    page, sold = found.metrics
    assert (page.key, page.title, page.agent, page.line) == ("page", "Shop page", ("prod-01",), 4)
    assert page.wire == {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, "observer:metric:page")),
        "title": "Shop page",
        "source_type": "http",
        "source_config": {"url": "https://shop.example/health", "expected_status": 200},
        "interval": 1.0,
        "interval_agent_push": 5.0,
        "healthy_operation": "under",
        "healthy_value": 500,
        "unhealthy_operation": "over",
        "unhealthy_value": "2000.5",
    }
    assert (sold.key, sold.title, sold.agent, sold.wire["source_config"]) == ("sold", "sold", (), {})
    shop, public = found.services[0], found.pages[0]
    assert (shop.kind, shop.key, shop.source) == ("service", "shop", "observer.yaml")
    slo = {"key": "fast", "metric": "page", "target_pct": 99.9, "window_days": 30}
    assert shop.body == {"key": "shop", "name": "Shop", "slos": [slo]}
    entry = {"metric": "page", "group": "Web", "order": 1}
    assert public.body == {"key": "public", "subdomain": "status", "title": "Status", "metrics": [entry]}
    assert page.description == "The way in."
    assert found.sections == {"metrics", "services", "pages"}


def test_json_is_yaml() -> None:
    document = {"apiVersion": "observer/v1", "metrics": [{"key": "a", "source_type": "manual"}]}
    assert read(json.dumps(document, indent=1), "f").metrics[0].wire["id"] == metric_id("a")


@pytest.mark.parametrize(
    ("written", "minutes"),
    [
        ("1s", 1 / 60),
        ("90s", 1.5),
        ("5m", 5),
        ("1h", 60),
        ("1.5m", 1.5),
        ("2 m", 2),
        ("0.5", 0.5),
        ("7", 7),
        ("'7'", 7),
        ("0x10", 16),
        ("1_0", 10),
    ],
)
def test_intervals_are_minutes_or_text(written: str, minutes: float) -> None:
    found = one(f"  interval: {written}\n  interval_agent_push: {written}")
    assert found.warnings == ()
    assert found.metrics[0].wire["interval"] == pytest.approx(minutes)
    assert found.metrics[0].wire["interval_agent_push"] == pytest.approx(minutes)


@pytest.mark.parametrize("written", ["0.5s", "0.001", "0.1s"])
def test_no_interval_is_below_a_second(written: str) -> None:
    found = one(f"  interval: {written}")
    assert found.metrics[0].wire["interval"] == pytest.approx(1 / 60)
    assert found.warnings == (f"f:5: interval: {written!r} is below one second; one second is used",)


@pytest.mark.parametrize("written", ["0", "-1", "soon", "1d", "true", "[1]", ".inf", ".nan", "1e99", "5m5", "''"])
def test_what_is_no_interval_leaves_the_metric_out(written: str) -> None:
    found = one(f"  interval: {written}")
    assert found.metrics == ()
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith("f:5: metric 'a' is left out: interval: ")


LEFT_OUT = [
    ("- title: x", 3, "without a key is left out: key is missing"),
    ("- key: ''", 3, "key must be a text"),
    ("- key: true", 3, "key must be a text"),
    (f"- key: {'x' * 129}", 3, "key must be a text"),
    ("- key: [a]", 3, "key must be a text"),
    ("- key: b\n  id: ''", 4, "id must be a text"),
    ("- key: b\n  source_type: 5.5", 4, "source_type must be a text"),
    ("- key: b\n  source_config: []", 4, "source_config must be a mapping"),
    ("- key: b\n  thresholds: 5", 4, "thresholds must be a mapping"),
    ("- key: b", 3, "thresholds: healthy_operation must be over, under or equal"),
    ("- key: b\n  thresholds: {healthy_operation: '>'}", 4, "healthy_operation must be"),
    (f"- key: b\n  thresholds: {RULES.replace('50', 'x')}", 4, "healthy_value must be a number"),
    (f"- key: b\n  thresholds: {RULES.replace('50', '.inf')}", 4, "healthy_value must be a number"),
    (f"- key: b\n  thresholds: {RULES.replace('50', 'true')}", 4, "healthy_value must be a number"),
    (f"- key: b\n  thresholds: {RULES}\n  agent: []", 5, "agent must be"),
    (f"- key: b\n  thresholds: {RULES}\n  agent: [1]", 5, "agent must be"),
    (f"- key: b\n  thresholds: {RULES}\n  title: {{}}", 5, "title must be a text"),
    ("- 5", 2, "number 1 of metrics is not a mapping"),
]


@pytest.mark.parametrize(("written", "line", "said"), LEFT_OUT)
def test_what_is_not_understood_is_named_and_the_rest_stands(written: str, line: int, said: str) -> None:
    found = read(f"{HEAD}metrics:\n{written}\n- key: good\n  source_type: manual\n", "f")
    assert [metric.key for metric in found.metrics] == ["good"]
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith(f"f:{line}: ")
    assert said in found.warnings[0]


def test_the_first_of_doubles_counts() -> None:
    manual = "source_type: manual"
    found = read(
        f"{HEAD}metrics:\n- {{key: a, {manual}}}\n- {{key: a, {manual}}}\n- {{key: b, id: x, {manual}}}\n"
        f"- {{key: c, id: x, {manual}}}\n- {{key: d, key: e, {manual}}}\n",
        "f",
    )
    assert [metric.key for metric in found.metrics] == ["a", "b", "d"]
    assert found.warnings == (
        "f:4: metric 'a' is left out: the key comes twice, the one at f:3 counts",
        "f:6: metric 'c' is left out: the id comes twice, the one at f:5 counts",
        "f:7: the field 'key' comes twice; the first one counts",
    )


def test_unknown_fields_and_sections_are_named_with_their_lines() -> None:
    text = DEMO.replace("    agent:", "    colour: red\n    agent:").replace("    slos:", "    owner: me\n    slos:")
    text = text.replace("{key: fast", "{days: 9, key: fast").replace("group", "groop") + "teams: []\n"
    text = text.replace("      healthy_value: 500", "      healthy_value: 500\n      degraded_value: 700")
    assert read(text, "f").warnings == (
        "f:14: unknown field of thresholds 'degraded_value' is ignored",
        "f:19: unknown field 'colour' is ignored",
        "f:26: unknown field of services 'owner' is ignored",
        "f:28: unknown field of slos 'days' is ignored",
        "f:34: unknown field of metrics 'groop' is ignored",
        "f:35: unknown section 'teams' is ignored",
    )


@pytest.mark.parametrize("section", ["metrics", "services", "pages"])
def test_a_section_must_be_a_list(section: str) -> None:
    found = read(f"{HEAD}{section}:\n  key: a\n", "f")
    assert found == Document(remarks=(Remark(Severity.ERROR, "f", 2, f"{section} must be a list; it is left out"),))


LEFT_OUT_BESIDE = [
    ("services:\n- name: x", 3, "service without a key is left out: key is missing"),
    ("services:\n- key: a\n  name: []", 4, "service 'a' is left out: name must be a text"),
    ("services:\n- key: a\n  description: {}", 4, "description must be a text"),
    ("services:\n- key: a\n  slos: {}", 4, "slos must be a list"),
    ("services:\n- key: a\n  slos: [5]", 4, "number 1 of slos is not a mapping"),
    ("pages: [5]", 2, "number 1 of pages is not a mapping"),
    ("pages:\n- key: a", 3, "page 'a' is left out: subdomain is missing"),
    ("pages:\n- key: a\n  subdomain: a.b", 4, "subdomain must be one label"),
    ("pages:\n- key: a\n  subdomain: -a", 4, "subdomain must be one label"),
    ("pages:\n- key: a\n  subdomain: Status", 4, "subdomain must be one label"),
    (f"pages:\n- key: a\n  subdomain: {'a' * 64}", 4, "subdomain must be one label"),
    ("pages:\n- key: a\n  subdomain: s\n- key: b\n  subdomain: s", 6, "the subdomain comes twice, the one at f:4"),
    ("services:\n- key: a\n- key: a", 4, "service 'a' is left out: the key comes twice, the one at f:3 counts"),
]


@pytest.mark.parametrize(("written", "line", "said"), LEFT_OUT_BESIDE)
def test_services_and_pages_are_held_against_their_form(written: str, line: int, said: str) -> None:
    (remark,) = read(f"{HEAD}{written}\n", "f").remarks
    assert (remark.severity, remark.line) == (Severity.ERROR, line)
    assert said in remark.text


SLOS = [
    ("metric: m, target_pct: 9, window_days: 3", "slo without a key is left out: key is missing"),
    ("key: s, target_pct: 9, window_days: 3", "slo 's' is left out: metric is missing"),
    ("key: s, metric: m, window_days: 3", "target_pct is missing"),
    ("key: s, metric: m, target_pct: 100.1, window_days: 3", "target_pct must be a number from 0 to 100"),
    ("key: s, metric: m, target_pct: -1, window_days: 3", "target_pct must be a number from 0 to 100"),
    ("key: s, metric: m, target_pct: '9', window_days: 3", "target_pct must be a number from 0 to 100"),
    ("key: s, metric: m, target_pct: true, window_days: 3", "target_pct must be a number from 0 to 100"),
    ("key: s, metric: m, target_pct: .inf, window_days: 3", "target_pct must be a number from 0 to 100"),
    ("key: s, metric: m, target_pct: 9", "window_days is missing"),
    ("key: s, metric: m, target_pct: 9, window_days: 0", "window_days must be a whole number from 1 to 366"),
    ("key: s, metric: m, target_pct: 9, window_days: 367", "window_days must be a whole number from 1 to 366"),
    ("key: s, metric: m, target_pct: 9, window_days: 1.5", "window_days must be a whole number from 1 to 366"),
    ("key: s, metric: m, target_pct: 9, window_days: 3, name: []", "name must be a text"),
    ("key: good, metric: m, target_pct: 9, window_days: 3", "slo 'good' is left out: the key comes twice"),
]
GOOD_SLO = "{key: good, metric: m, target_pct: 0, window_days: 366}"


@pytest.mark.parametrize(("written", "said"), SLOS)
def test_a_bad_objective_is_left_out_and_the_others_stay(written: str, said: str) -> None:
    found = read(f"{HEAD}services:\n- key: a\n  slos:\n  - {GOOD_SLO}\n  - {{{written}}}\n", "f")
    (remark,) = found.remarks
    assert (remark.severity, remark.line) == (Severity.ERROR, 6)
    assert remark.text.startswith("service 'a': slo ") and said in remark.text
    assert [slo["key"] for slo in found.services[0].body["slos"]] == ["good"]
    assert found.services[0].lines == (5,)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("group: g", "entry without a metric is left out: metric is missing"),
        ("metric: x, group: []", "entry 'x' is left out: group must be a text"),
        ("metric: x, order: first", "order must be a number from -1000000 to 1000000"),
        ("metric: x, order: true", "order must be a number"),
        ("metric: m, group: g", "entry 'm' is left out: the metric comes twice"),
    ],
)
def test_a_bad_entry_of_a_page_is_left_out_and_the_others_stay(written: str, said: str) -> None:
    entries = f"  - {{metric: m, group: g}}\n  - {{metric: m}}\n  - {{{written}}}\n"
    found = read(f"{HEAD}pages:\n- key: a\n  subdomain: s\n  metrics:\n{entries}", "f")
    (remark,) = found.remarks
    assert (remark.severity, remark.line) == (Severity.ERROR, 8)
    assert remark.text.startswith("page 'a': entry ") and said in remark.text
    assert found.pages[0].body["metrics"] == [{"metric": "m", "group": "g"}, {"metric": "m"}]


def test_several_documents_are_one_and_no_key_counts_twice() -> None:
    one = f"{HEAD}metrics:\n- {{key: a, source_type: manual}}\npages: [{{key: p, subdomain: s}}]\n"
    two = f"{HEAD}services: []\nmetrics:\n- {{key: b, source_type: manual}}\n- {{key: a, source_type: manual}}\n"
    found = read_all([("one.yaml", one), ("two.yaml", two + "pages: [{key: q, subdomain: s}]\n")])
    assert [(metric.key, metric.source) for metric in found.metrics] == [("a", "one.yaml"), ("b", "two.yaml")]
    assert [page.key for page in found.pages] == ["p"]
    assert found.sections == {"metrics", "services", "pages"}
    assert found.warnings == (
        "two.yaml:5: metric 'a' is left out: the key comes twice, the one at one.yaml:3 counts",
        "two.yaml:6: page 'q' is left out: the subdomain comes twice, the one at one.yaml:4 counts",
    )


def test_the_caller_may_add_a_note() -> None:
    found = one("  source_type: x", check=lambda source_type, config: "is " + source_type)
    assert found.remarks == (Remark(Severity.NOTE, "f", 5, "metric 'a': is x"),)
    assert len(found.metrics) == 1


def test_the_caller_may_refuse_a_configuration() -> None:
    def check(source_type: str, config: Mapping[str, Any]) -> None:
        if source_type != "tcp":
            raise InvalidConfig("source_type: not known")
        if config.get("port") != 80:
            raise InvalidConfig("port: must be 80", "host: is missing")

    source = "  source_type: tcp\n  source_config:\n    timeout: 5\n    port: "
    assert one(source + "80", check=check).warnings == ()
    assert one(source + "81", check=check).warnings == (
        "f:8: metric 'a' is left out: source_config: port: must be 80; host: is missing",
    )
    assert one("  source_type: tcp", check=check).warnings[0].startswith("f:3: ")
    assert one("  title: t\n  source_type: x", check=check).warnings[0].startswith("f:6: ")
    assert read(f"{HEAD}metrics: [{{key: a, source_type: manual}}]", "f", check).warnings == ()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "not a mapping: begin with"),
        ("[]", 1, "not a mapping"),
        ("just text", 1, "not a mapping"),
        ("metrics: []", 1, "apiVersion is missing: write `apiVersion: observer/v1`"),
        ("\n\napiVersion: observer/v2", 3, "apiVersion is 'observer/v2': write"),
        ("apiVersion: 1", 1, "apiVersion is '1'"),
        (HEAD + "metrics: [", 2, "not YAML"),
        (HEAD + "a: 'b", 2, "not YAML"),
        (HEAD + "\tmetrics: x", 2, "not YAML"),
        (HEAD + "a: *nobody", 2, "not YAML"),
        (HEAD + "---\n" + HEAD, 2, "not YAML"),
        ("a\0b", 1, "not YAML"),
        ("x" * (8 * 1024 * 1024 + 1), 1, "larger than"),
        ("[" * 5000, 1, "nested too deeply"),
    ],
)
def test_what_is_no_document(text: str, line: int, said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(text, "observer.yaml")
    assert str(caught.value).startswith(f"observer.yaml:{line}: ")
    assert said in str(caught.value)


def test_aliases_and_merges_are_followed() -> None:
    found = read(
        f"{HEAD}x: &r {RULES}\nmetrics:\n- {{key: a, thresholds: *r}}\n"
        "- {key: b, thresholds: {<<: *r, healthy_value: 7}}\n- {key: c, thresholds: {<<: [{healthy_value: 8}, *r]}}\n",
        "f",
    )
    assert [metric.wire["healthy_value"] for metric in found.metrics] == [50, 7, 8]
    assert [metric.wire["unhealthy_value"] for metric in found.metrics] == [200, 200, 200]


BOMBS = [
    HEAD
    + "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    HEAD
    + "a: &a {x: 1}\n"
    + "".join(f"{b}: &{b} {{<<: [{','.join(['*' + a] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    HEAD + "a: &a [*a]",
    HEAD + "a: &a {b: *a}",
    HEAD + "a: &a {<<: *a}",
    HEAD + "a: &a {<<: [*a]}",
    HEAD + "a: " + "[" * 60 + "]" * 60,
]


@pytest.mark.parametrize("text", BOMBS)
def test_aliases_have_a_bound(text: str) -> None:
    with pytest.raises(DocumentError, match="alias"):
        read(text, "f")


def test_tags_make_no_objects() -> None:
    found = one(
        "  source_config: {a: !!python/object/apply:os.system [x], b: !mine y, c: 2026-01-01, d: .inf,"
        " e: !!binary QQ==, f: ~, g: 0o17, h: -1.5e3, i: 'true', j: true, k: 1234567890123456789012345, 5: five}"
    )
    assert found.warnings == ()
    config = found.metrics[0].wire["source_config"]
    assert config == {
        "a": ["x"],
        "b": "y",
        "c": "2026-01-01",
        "d": ".inf",
        "e": "QQ==",
        "f": None,
        "g": 15,
        "h": -1500.0,
        "i": "true",
        "j": True,
        "k": 1234567890123456789012345,
        "5": "five",
    }
    json.dumps(found.metrics[0].wire, allow_nan=False)


def test_escapes_of_json_become_whole_characters() -> None:
    titles = ["ü", "\U0001f4a1", "\ud83d", "a\0b"]
    metrics = [{"key": str(n), "title": title, "source_type": "manual"} for n, title in enumerate(titles)]
    found = read(json.dumps({"apiVersion": "observer/v1", "metrics": metrics}), "f")
    assert [metric.title for metric in found.metrics] == ["ü", "\U0001f4a1", "\ufffd", "a\ufffdb"]


def test_a_number_too_long_stays_text() -> None:
    assert one(f"  source_config: {{a: {'9' * 5000}}}").metrics[0].wire["source_config"]["a"] == "9" * 5000


Words = st.sampled_from(
    "apiVersion: observer/v1 metrics - key a : , [ ] { } & * << ! !!int !!map | > ' \" # % @ ` ? --- ... ~ null .inf "
    "0x 1e5 thresholds interval 5m \n \t".split(" ")
)
Garbage = st.text(max_size=120) | st.lists(Words, max_size=40).map(" ".join) | st.binary(max_size=80).map(repr)
FIELDS = "key id title source_type thresholds interval agent slos metrics subdomain metric target_pct order".split()
FIELD = st.sampled_from([*FIELDS, "x"])
Anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELD, inner, max_size=5),
    max_leaves=15,
)


@settings(max_examples=300, deadline=None)
@given(Garbage, st.booleans())
def test_garbage_is_refused_in_words(text: str, headed: bool) -> None:
    try:
        found = read(HEAD + text if headed else text, "f")
    except DocumentError as error:
        assert str(error).startswith("f:")
    else:
        json.dumps([metric.wire for metric in found.metrics], allow_nan=False)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["metrics", "services", "pages", "x"]), st.lists(Anything, max_size=3) | Anything)
)
@pytest.mark.slow
def test_any_structure_is_read(sections: dict[str, Any]) -> None:
    text = json.dumps({"apiVersion": "observer/v1", **sections})
    found = read(text, "f")
    json.dumps([metric.wire for metric in found.metrics], allow_nan=False)
    json.dumps([item.body for item in (*found.services, *found.pages)], allow_nan=False)
    assert all(warning.startswith("f:1: ") for warning in found.warnings)
