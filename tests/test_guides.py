"""The guides lead somewhere: links, anchors, commands and settings exist; shell, TOML and documents parse."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from observer_agent import document, probes
from observer_agent.cli import main
from observer_agent.config import VARIABLES
from observer_agent.hub.cli import main as hub_main
from tests.test_monitoring import anchors

ROOT = Path(__file__).parent.parent
INSTALL = sorted((ROOT / "docs" / "install").glob("*.md"))
GUIDES = [
    *INSTALL,
    *(ROOT / "docs" / f"{name}.md" for name in ("operate", "troubleshoot", "log-lines", "what-we-send")),
]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "packaging").rglob("*.md")]

# What looks like a setting and belongs to others.
NOT_OURS = {
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "REQUESTS_CA_BUNDLE",
    "CHANGELOG",
    "PROBE_SHOP_TOKEN",
    "POST",
    "WARN",
}
HUBS = set(re.findall(r"`([A-Z_]{4,})`", (ROOT / "docs" / "hub.md").read_text())) | {"HUB_OPTIONS"}
NOT_OURS |= HUBS
NOT_OURS |= {"DEBUG", "INFO", "ERROR", *(reason.value for reason in probes.Reason)}

SAID = ("observer-agent is not running", "observer-agent waits for its key")  # no commands, but what they say


def words(path):
    return re.sub(r"\\\n", " ", path.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page):
    for target in re.findall(r"\]\(([^):]+?)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def known_command(listed):
    """Whether words lead to a command, from `main` down; options and arguments end the walk."""
    group = {"observer-agent": main, "observer-hub": hub_main}[listed[0]]
    for word in listed[1:]:
        if not isinstance(group, click.Group) or not re.fullmatch(r"[a-z]+", word):
            return not isinstance(group, click.Group) or word.startswith("-")
        if word not in group.commands:
            return False
        group = group.commands[word]
    return True


@pytest.mark.parametrize("guide", GUIDES, ids=lambda page: page.name)
def test_a_guide_names_commands_and_settings_that_exist(guide):
    text = words(guide)
    code = re.findall(r"`([^`]+)`", text) + re.findall(r"^ {4,}(.*)$", text, re.M)
    code += re.findall(r"```sh\n(.*?)```", text, re.S)
    for line in "\n".join(code).replace("sudo -u observer-agent ", "").splitlines():
        found = re.match(r"(?:\$ )?(?:sudo )?(observer-(?:agent|hub)(?: +[a-z-]+)+)", line.partition(" #")[0])
        assert not found or line.startswith(SAID) or known_command(found[1].split()), line
    for name in re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)+\b", text):
        assert name in VARIABLES or name in NOT_OURS or any(v.startswith(name) for v in VARIABLES), name


@pytest.mark.parametrize("guide", INSTALL, ids=lambda page: page.name)
def test_the_shell_of_a_guide_parses(guide):
    for block in re.findall(r"```sh\n(.*?)```", guide.read_text(), re.S):
        done = subprocess.run(["sh", "-n"], input=block, capture_output=True, text=True, timeout=10)
        assert not done.returncode and not done.stderr, f"{block}\n{done.stderr}"


def test_settings_in_the_guides_are_toml_that_is_taken():
    seen = 0
    for guide in GUIDES:
        for line in re.findall(r"^(?: {4}|echo ')([A-Z_]+ = [^'\n]*)", guide.read_text(), re.M):
            ((name, value),) = tomllib.loads(line).items()
            VARIABLES[name].parse(str(value))
            seen += 1
    assert seen >= 6


def test_the_document_of_the_first_metric_is_one():
    text = (ROOT / "docs" / "operate.md").read_text()
    (block,) = re.findall(r"^    apiVersion:.*\n(?:    .*\n)+", text, re.M)
    found = document.read(re.sub("^    ", "", block, flags=re.M), "operate.md")
    assert [metric.key for metric in found.metrics] == ["shop"] and not found.warnings
