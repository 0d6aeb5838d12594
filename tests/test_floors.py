"""Imports go down, never up; floor 3 is handed the ends of floor 2; the hub knows little of the agent."""

from __future__ import annotations

import ast
from pathlib import Path

import observer_agent

ROOT = Path(observer_agent.__file__).parent
FLOORS = {
    0: ("errors", "clock", "model"),
    1: (
        "variables lighthousefile config logs notify selfmetrics backoff transport resolver verdict worker "
        "queuefile evidencefile accounts rows space rawpages rawrecords salvage nodes sections document policy job "
        "bursts lead pulse witness listener sentlog"
    ).split(),
    2: ("probes", "diskqueue", "clouds", "relayqueue", "relaydoor"),
    3: ("collector", "sender", "heartbeat", "definitions", "broadcast", "keeper"),
    4: ("whole", "looking", "agent", "pools", "tally", "lookout", "evidence", "relay", "lighthouse"),
    5: (
        "status dashboard hub commands why policyshow queuerows queueaccess queuelook queuechange show watching "
        "doctor demo sentshow"
    ).split(),
    6: ("cli", "__main__"),
}
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}
HUB_MAY = {"errors", "clock", "model", "worker", "logs", "notify", "nodes", "sections", "document", "probes"}


def edges() -> list[tuple[str, str, Path]]:
    found = []
    for file in ROOT.rglob("*.py"):
        place = file.relative_to(ROOT).parts
        here = place[0].removesuffix(".py")
        if here == "__init__":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            for name in _imported(node):
                found.append((here, name, file))
    return found


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == "observer_agent":
        names = [f"observer_agent.{alias.name}" for alias in node.names if alias.name != "__version__"]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name the whole path"
        names = [node.module or ""]
    else:
        return []
    return [name.split(".")[1] for name in names if name.startswith("observer_agent.")]


def test_every_file_has_a_floor():
    present = {p.name.removesuffix(".py") for p in ROOT.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert present - {"__init__"} == set(FLOOR_OF)


def test_no_import_goes_up():
    wrong = [f"{file.name}: {a} -> {b}" for a, b, file in edges() if FLOOR_OF[b] > FLOOR_OF[a]]
    assert wrong == []


def test_the_ends_and_the_line_do_not_know_one_another():
    apart = {2, 3}
    wrong = [
        f"{file.name}: {a} -> {b}" for a, b, file in edges() if a != b and FLOOR_OF[a] in apart and FLOOR_OF[b] in apart
    ]
    assert wrong == []


def test_words_use_the_standard_library_alone():
    for name in FLOORS[0]:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            assert _imported(node) in ([], ["clock"], ["errors"], ["model"])


def test_the_hub_knows_only_words_and_a_few_tools():
    assert {b for a, b, _ in edges() if a == "hub" and b != "hub"} <= HUB_MAY


def test_threads_start_in_worker_alone_and_nothing_sleeps():
    for file in ROOT.rglob("*.py"):
        text = file.read_text()
        if file.name != "worker.py":
            assert "threading.Thread(" not in text, file
        if file.name != "clock.py":
            assert "time.sleep(" not in text, file
