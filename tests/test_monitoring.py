"""The dashboard and the rules of packaging/monitoring/ parse and name what exists; each alert fires and rests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from observer_agent.demo.stage import end_process, free_port, get
from observer_agent.selfmetrics import SelfMetrics
from tests.site import Site, metric

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "packaging" / "monitoring"
RULES = FOLDER / "observer-agent.rules.yml"
OF_TARGETS = {"job", "instance"}  # the labels that Prometheus adds
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*", "${DS_PROMETHEUS}": "prometheus"}
SEVERITIES = {"critical", "warning", "info"}

# Panels that stay empty while nothing is wrong.
EMPTY = {
    "Lost by reason", "Worker restarts", "Turns skipped, late and missed", "Pings of jobs", "Host metrics for a console"
}  # fmt: skip


def program(name):
    found = shutil.which(name)
    if not found:
        said = f"{name} is not on the PATH (Debian: apt-get install prometheus)"
        pytest.fail(said) if os.environ.get("CI") == "true" else pytest.skip(said)
    return found


def promtool(*words):
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, timeout=60, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def yaml(name):
    return YAML(typ="safe").load((FOLDER / name).read_text())


def rules(kind):
    return [rule for group in yaml(RULES.name)["groups"] for rule in group["rules"] if kind in rule]


def dashboard():
    return json.loads((FOLDER / "observer-agent.dashboard.json").read_text())


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def plain(expr):
    """An expression as Grafana sends it."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def exposed(family):
    return family.name + ("_total" if family.type == "counter" else "")


def labels_of():
    """Each metric's own labels, by the name under which it is exposed."""
    metrics = SelfMetrics("0")
    known = {exposed(f): {name for sample in f.samples for name in sample.labels} for f in metrics.registry.collect()}
    for made in vars(metrics).values():
        if hasattr(made, "_labelnames"):  # those with labels have no samples yet
            (family,) = made.describe()
            known[exposed(family)] = set(made._labelnames)
    return {**known, "up": set()}


KNOWN = labels_of()
RECORDED = {rule["record"]: set(re.findall(r"by \(([^)]*)\)", rule["expr"])) for rule in rules("record")}


def check_names(expr, where):
    """Every metric exists; every label is one of theirs."""
    names = set(re.findall(r"\bobserver_agent[a-z0-9_:]+|\bprocess_[a-z_]+|\bup\b", expr))
    assert names, where
    allowed = set(OF_TARGETS)
    for name in names:
        assert name in KNOWN or name in RECORDED, f"{where}: {name}"
        allowed |= KNOWN.get(name, {each.strip() for by in RECORDED.get(name, ()) for each in by.split(",")})
    for name, inside in re.findall(r"([a-z_:0-9]+)\{([^}]*)\}", expr):
        for label in re.findall(r"([a-z_]+) *[=!]~?", inside):
            assert label in KNOWN[name] | OF_TARGETS, f"{where}: {name} has no label {label}"
    for inside in re.findall(r"\b(?:by|on|without|ignoring) *\(([^)]*)\)", expr):
        assert {label.strip() for label in inside.split(",")} <= allowed, f"{where}: {inside}"
    return allowed


# -- rules


def test_the_rules_are_valid():
    assert "SUCCESS" in promtool("check", "rules", RULES.name)


def test_the_example_of_a_configuration_is_valid():
    assert "is valid prometheus config" in promtool("check", "config", "prometheus.yml")


@pytest.mark.slow
def test_the_rules_do_what_their_tests_say():
    assert "SUCCESS" in promtool("test", "rules", "observer-agent.rules.test.yml")


def test_every_alert_is_seen_firing_and_resting():
    fires, rests = set(), set()
    for group in yaml("observer-agent.rules.test.yml")["tests"]:
        for case in group.get("alert_rule_test", ()):
            (fires if case["exp_alerts"] else rests).add(case["alertname"])
    names = [rule["alert"] for rule in rules("alert")]
    assert len(names) == len(set(names)) >= 15
    assert fires == rests == set(names)


@pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do(rule):
    said = rule["annotations"]
    assert rule["labels"]["severity"] in SEVERITIES
    assert set(said) == {"summary", "description", "runbook"}
    assert len(said["description"]) > 60
    page, _, anchor = said["runbook"].partition("#")
    assert anchor in anchors(ROOT / page), said["runbook"]
    labels = check_names(rule["expr"], rule["alert"])
    assert set(re.findall(r"\$labels\.([a-z_]+)", str(said))) <= labels


@pytest.mark.parametrize("rule", rules("record"), ids=lambda rule: rule["record"])
def test_a_recording_rule_names_what_exists(rule):
    check_names(rule["expr"], rule["record"])


def anchors(page):
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# -- dashboard


def expressions():
    return [
        pytest.param(panel, target, id=f"{panel['title']} {target['refId']}")
        for panel in panels()
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(("panel", "target"), expressions())
def test_an_expression_of_the_dashboard_names_what_exists(panel, target):
    labels = check_names(target["expr"], panel["title"])
    assert set(re.findall(r"\{\{ *([a-z_]+) *\}\}", target["legendFormat"])) <= labels
    assert 'instance=~"$instance"' in target["expr"]


def test_every_expression_of_the_dashboard_parses(tmp_path):
    listed = [plain(target["expr"]) for panel in panels() for target in panel["targets"]]
    assert not any("$" in expr for expr in listed)
    group = {"name": "dashboard", "rules": [{"record": f"x:{n}", "expr": expr} for n, expr in enumerate(listed)]}
    file = tmp_path / "dashboard.yml"
    file.write_text(json.dumps({"groups": [group]}))
    assert f"{len(listed)} rules found" in promtool("check", "rules", str(file))


def test_a_panel_explains_itself():
    board = dashboard()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    for panel in panels():
        defaults = panel["fieldConfig"]["defaults"]
        assert len(panel["description"]) > 15, panel["title"]
        assert defaults["unit"] and defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]
        for target in (panel, *panel["targets"]):
            assert target["datasource"] == {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}, panel["title"]


def test_the_panels_do_not_overlap():
    taken = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_dashboard_has_its_variables():
    listed = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert set(listed) == {"DS_PROMETHEUS", "instance"}
    assert listed["DS_PROMETHEUS"]["type"] == "datasource"
    name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", listed["instance"]["definition"]).groups()
    assert name in KNOWN and label in OF_TARGETS


def test_every_metric_is_used():
    text = json.dumps(dashboard()) + RULES.read_text()
    for name in {name for name in KNOWN if name.startswith("observer_agent_")}:
        assert re.search(rf"\b{name}\b", text), f"{name} stands in no panel and no rule"


# -- a real Prometheus


@pytest.fixture
def prometheus(tmp_path):
    """A Prometheus with the rules and the example's configuration, reading a real agent every second."""
    site = Site(tmp_path)
    config = yaml("prometheus.yml")
    config["global"].update(scrape_interval="1s", evaluation_interval="1s")
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{site.page}"]
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    command = [
        program("prometheus"),
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/tsdb",
    ]
    with (tmp_path / "prometheus.log").open("wb") as out:
        server = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=out, stderr=out)
    try:
        yield site, port
    finally:
        end_process(server)
        site.close()


@pytest.mark.slow
def test_a_real_prometheus_evaluates_everything(prometheus):
    site, port = prometheus
    target = site.listen()
    site.open_hub(
        [
            metric("up", "tcp", {"host": "127.0.0.1", "port": target}),
            metric("down", "tcp", {"host": "127.0.0.1", "port": free_port()}),
        ]
    )
    site.start_agent()

    def ask(expr):
        found = get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": plain(expr)}))
        return found and (found["status"] == "success" or pytest.fail(f"{expr}: {found}")) and found["data"]["result"]

    beats = 'observer_agent_requests_total{endpoint="heartbeat",status="200"} > 1'
    site.until(lambda: ask(beats), 60)  # the second one comes after 30 s
    site.until(lambda: ask("observer_agent_samples_accepted_total > 10"), 60)
    for panel in panels():
        for each in panel["targets"]:
            found = ask(each["expr"])
            assert found or panel["title"] in EMPTY, f"{panel['title']}: {each['expr']}"
    assert panels()[0]["title"] == "Delivering" and ask(panels()[0]["targets"][0]["expr"] + " == 1")
    site.until(lambda: ask("observer_agent:heartbeats_answered:increase5m > 0"), 20)

    states = {}
    for group in get(port, "/api/v1/rules")["data"]["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
            states[rule["name"]] = rule.get("state")
    assert set(states) == {rule["alert"] for rule in rules("alert")} | set(RECORDED)
    assert "firing" not in states.values()
