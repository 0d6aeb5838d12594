"""The docs name everything that there is: commands, settings, metrics, source types, reasons, files."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

import observer_agent
from observer_agent import probes
from observer_agent.cli import main
from observer_agent.config import VARIABLES
from observer_agent.hub.cli import main as hub_main
from observer_agent.model import Loss
from observer_agent.selfmetrics import SelfMetrics

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def read(name):
    return (ROOT / name).read_text()


def commands(group, path):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


@pytest.mark.parametrize(
    ("group", "program", "page"),
    [(main, "observer-agent", "docs/commands.md"), (hub_main, "observer-hub", "docs/hub.md")],
)
def test_every_command_and_option_is_documented(group, program, page):
    text = read(page)
    for path, command in commands(group, program):
        assert path in text, path
        assert command.help, path
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "file":
                assert option.opts[0] in text, f"{path} {option.opts[0]}"


def test_every_setting_is_documented_with_its_default():
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", read("docs/configuration.md"), re.M))
    assert set(rows) == set(VARIABLES)
    for name, variable in VARIABLES.items():
        if variable.default:
            assert variable.default in rows[name], name


def test_every_metric_is_documented():
    text = read("docs/metrics.md")
    for family in SelfMetrics("0").registry.collect():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"`{name}`" in text, name
    named = set(re.findall(r"`(observer_agent_[a-z_]+)`", text))
    known = {f.name + ("_total" if f.type == "counter" else "") for f in SelfMetrics("0").registry.collect()}
    assert named == {name for name in known if not name.startswith("process_")}


def test_every_loss_has_its_word_in_the_docs():
    text = read("docs/delivery.md")
    for reason in Loss:
        assert f"`{reason.value}`" in text, reason


def test_every_source_type_is_documented():
    text = read("docs/probes.md")
    for name in probes.SOURCES:
        page = f"probes/{name}.md"
        linked = f"({page})" in text and (DOCS / page).read_text().startswith(f"# `{name}`")
        assert linked or re.search(rf"^## `{name}`", text, re.M), name


def test_every_reason_code_is_documented():
    pages = [DOCS / "probes.md", *(DOCS / "probes").glob("*.md")]
    text = "".join(page.read_text() for page in pages)
    named = set(re.findall(r"`([A-Za-z_]+)(?::<code>)?`", text))
    assert {reason.value for reason in probes.Reason} <= named


def test_the_map_of_the_package_equals_the_directory():
    listed = set(re.findall(r"^([a-z_]+(?:\.py|/)) ", observer_agent.__doc__, re.M))
    package = Path(observer_agent.__file__).parent
    present = {p.name for p in package.glob("*.py")} - {"__init__.py"}
    present |= {f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()}
    assert listed == present


def test_links_inside_the_docs_lead_somewhere():
    for page in [ROOT / "README.md", *DOCS.glob("*.md"), *(DOCS / "probes").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_target_has_a_word_of_help():
    makefile = read("Makefile")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M).group(1).split()
    assert set(phony) == set(re.findall(r"^([a-z]+):.*## ", makefile, re.M))
