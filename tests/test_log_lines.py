"""docs/log-lines.md names every line at WARNING or ERROR that the agent can write, and no other.

To add a log line: write it with a constant text and `%` arguments, and give it a row in a table, a placeholder as `…`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import observer_agent

PACKAGE = Path(observer_agent.__file__).parent
PAGE = Path(__file__).parent.parent / "docs" / "log-lines.md"
LEVELS = {"warning": "WARN", "error": "ERROR", "exception": "ERROR", "critical": "ERROR"}
ELSEWHERE = {"hub", "demo"}  # programs of their own
PLACEHOLDER = re.compile(r"%(?:%|[-#0 +]*\d*(?:\.\d+)?[a-zA-Z])")


def modules():
    return [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] not in ELSEWHERE]


def part_of(file):
    """The word with which the lines of a module begin: the last of its logger's name."""
    return file.parent.name if file.stem == "__init__" else file.stem


def normal(text):
    return PLACEHOLDER.sub(lambda found: "%" if found[0] == "%%" else "…", text)


def lines_of(tree, part):
    """(level, part, text) of every call that logs at WARNING or above."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS):
            continue
        if not ast.unparse(node.func.value).lower().endswith(("log", "logger")):
            continue
        text = node.args[0] if node.args else None
        assert isinstance(text, ast.Constant) and isinstance(text.value, str), f"{part}:{node.lineno}: no constant text"
        yield LEVELS[node.func.attr], part, normal(text.value)


def written():
    return {line for file in modules() for line in lines_of(ast.parse(file.read_text()), part_of(file))}


def documented():
    rows = re.findall(r"^\| (WARN|ERROR) \| `(\w+)` \| `(.*?)` \| (.*?) \| (.*?) \|$", PAGE.read_text(), re.M)
    assert rows
    return rows


def test_every_line_is_documented_and_no_other():
    named = {(level, part, text) for level, part, text, _, _ in documented()}
    assert written() - named == set(), "these are missing from docs/log-lines.md"
    assert named - written() == set(), "these are in docs/log-lines.md and nowhere else"


def test_every_row_is_read_and_there_once():
    rows = documented()
    assert len(rows) == len({row[:3] for row in rows})
    assert len(rows) == len(re.findall(r"^\| (?:WARN|ERROR)\b", PAGE.read_text(), re.M))


@pytest.mark.parametrize("row", documented(), ids=lambda row: f"{row[1]} {row[2][:40]}")
def test_a_row_says_what_it_means_and_what_to_do(row):
    assert all(len(said) > 15 or said in ("as above", "report it") for said in row[3:])


def test_no_line_hides_behind_another_call():
    """`log.log(level, ...)` and aliases would not be seen."""
    for file in modules():
        text = file.read_text()
        assert not re.search(r"\b_?log(ger)?\.(log|warn|fatal)\(", text), file
        assert not re.search(r"= *_?log(ger)?\.(warning|error|exception)\b", text), file


def test_placeholders_of_every_form_become_dots():
    assert normal("%s of %d (%r) in %.1f s, %5d, 5%%") == "… of … (…) in … s, …, 5%"


def test_the_walk_sees_every_form_of_a_call():
    code = "log.warning('a %s', x)\nself._log.error('b')\nlogger.exception('c')\nlog.info('d')\nwarnings.warning('e')"
    assert set(lines_of(ast.parse(code), "p")) == {("WARN", "p", "a …"), ("ERROR", "p", "b"), ("ERROR", "p", "c")}
