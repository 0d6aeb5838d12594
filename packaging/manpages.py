"""The vendored libraries and docs/configuration.md in; a manual page for each command, and one for the settings, out.

Run by build.py as: python3 -IS manpages.py LIB OUT DATE. Commands are walked, never listed.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import click

import observer_agent
from observer_agent.cli import main
from observer_agent.config import VARIABLES

OUT, DATE = Path(sys.argv[2]), sys.argv[3]
HERE = Path(__file__).resolve().parent


def roff(text: str) -> str:
    """Text as roff shows it: no line is a request, hyphens can be copied."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("–", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in escaped.split("\n"))


def markdown(text: str) -> str:
    """One paragraph of the docs: `code` and names bold, links by their words."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    return re.sub(r"`([^`]+)`", "\\\\fB\\1\\\\fR", roff(text))


def head(name: str, section: int) -> str:
    """Title; words are not split and lines not stretched, so that names can be copied."""
    return (
        f'.TH "{roff(name.upper())}" "{section}" "{DATE}" "observer\\-agent {observer_agent.__version__}"\n.nh\n.ad l'
    )


def page(context: click.Context) -> list[str]:
    """One command's page."""
    command, path = context.command, context.command_path
    name = path.replace(" ", "-")
    help_text = " ".join((command.help or "").split())
    lines = [head(name, 1), ".SH NAME", f"{roff(name)} \\- {roff(_summary(help_text))}"]
    lines += [".SH SYNOPSIS", f"\\fB{roff(path)}\\fR {roff(' '.join(command.collect_usage_pieces(context)))}"]
    lines += [".SH DESCRIPTION", roff(help_text)]
    options = [p.get_help_record(context) for p in command.get_params(context)]
    if any(options):
        lines.append(".SH OPTIONS")
    for record in filter(None, options):
        lines += [".TP", f"\\fB{roff(record[0])}\\fR", roff(record[1])]
    children = _children(command)
    if children:
        lines.append(".SH COMMANDS")
    for child, sub in sorted(children.items()):
        lines += [".TP", f"\\fB{roff(child)}\\fR", roff(" ".join((sub.help or "").split()))]
    if context.parent is None:
        lines.append((HERE / "man" / "observer-agent.1.part").read_text(encoding="utf-8").rstrip())
    return [*lines, ".SH SEE ALSO", _see_also(context, children)]


def _summary(help_text: str) -> str:
    """What NAME says: the first sentence, as a phrase."""
    first = re.split(r"[.;:](?: |$)", help_text)[0]
    return first[:1].lower() + first[1:]


def _children(command: click.Command) -> dict[str, click.Command]:
    if not isinstance(command, click.Group):
        return {}
    return {name: sub for name, sub in command.commands.items() if not sub.hidden}


def _see_also(context: click.Context, children: dict[str, click.Command]) -> str:
    name = context.command_path.replace(" ", "-")
    pages = [(f"{name}-{child}", 1) for child in sorted(children)]
    if context.parent is not None:
        pages.insert(0, (context.parent.command_path.replace(" ", "-"), 1))
    pages.append(("observer-agent-config", 5))
    return ",\n".join(f".BR {roff(name)} ({section})" for name, section in pages)


def walk(command: click.Command, name: str, parent: click.Context | None) -> None:
    """Writes the page of a command, then its children's."""
    context = click.Context(command, info_name=name, parent=parent, **command.context_settings)
    (OUT / f"{context.command_path.replace(' ', '-')}.1").write_text("\n".join(page(context)) + "\n", encoding="utf-8")
    for child, sub in _children(command).items():
        walk(sub, child, context)


def settings() -> str:
    """observer-agent-config(5): the frame by hand, the settings from the table of the docs."""
    docs = (HERE.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", docs, re.M)}
    lines = []
    for name in VARIABLES:
        default, meaning = rows[name]
        lines += [".TP", f"\\fB{name}\\fR", markdown(f"{meaning[:1].upper()}{meaning[1:]}. Default: {default}.")]
    frame = (HERE / "man" / "observer-agent-config.5.part").read_text(encoding="utf-8")
    return head("observer-agent-config", 5) + "\n" + frame.replace("@SETTINGS@", "\n".join(lines))


if __name__ == "__main__":
    OUT.mkdir()
    walk(main, "observer-agent", None)
    (OUT / "observer-agent-config.5").write_text(settings(), encoding="utf-8")
