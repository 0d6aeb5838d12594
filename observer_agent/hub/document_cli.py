"""`observer-hub apply`, `export` and `validate`: documents of definitions on the command line.

`apply` and `export` work on the database that the settings name, beside a hub that serves it; `validate` needs none.
Exit codes: 0 well, 1 invalid or failed, 2 wrong usage, 78 a wrong setting.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from observer_agent.document import Document, read_all
from observer_agent.errors import DocumentError, UsageError
from observer_agent.hub.asked import actor, as_json, guarded

STDIN = "-"

allow_partial = click.option("--allow-partial", is_flag=True, help="Go on without what must be left out.")
file_path = click.Path(dir_okay=False, allow_dash=True)


def register(main: click.Group) -> None:
    """Adds the commands to the front door."""
    for command in (apply, export, validate):
        main.add_command(command)


@click.command()
@click.option("-f", "--file", "files", type=file_path, multiple=True, required=True, help="A document; - is stdin.")
@click.option("--dry-run", is_flag=True, help="Shows the difference and changes nothing.")
@click.option("--prune", is_flag=True, help="Deletes what the documents no longer name.")
@allow_partial
@as_json
@guarded
def apply(files: Sequence[str], dry_run: bool, prune: bool, allow_partial: bool, as_json: bool) -> None:
    """Makes the hub what documents say: creates and changes by key, leaves alone what they do not name."""
    from observer_agent.hub import tell
    from observer_agent.hub.apply import Options
    from observer_agent.hub.apply import apply as reconcile

    found = _read(files)
    with _store() as (store, who):
        outcome = reconcile(store, found, Options(dry_run, prune, allow_partial, who))
    if as_json:
        click.echo(json.dumps(tell.as_objects(outcome), indent=2))
    else:
        for remark in outcome.remarks:
            click.echo(f"{remark.severity}: {tell.plain(str(remark))}", err=True)
        for line in tell.lines(outcome):
            click.echo(line)
    sys.exit(1 if outcome.refused else 0)


@click.command()
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
@guarded
def export(output: Path | None) -> None:
    """Writes what documents have made in the hub as a document; applied again it changes nothing."""
    from observer_agent.hub.form import held, to_text

    with _store() as (store, _), store.database.read() as conn:
        text = to_text(held(conn))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from None


@click.command()
@click.argument("files", type=file_path, nargs=-1, required=True, metavar="FILE...")
@allow_partial
@as_json
@guarded
def validate(files: Sequence[str], allow_partial: bool, as_json: bool) -> None:
    """Checks documents together, without a database."""
    from observer_agent.hub import tell
    from observer_agent.hub.references import within
    from observer_agent.sections import Severity

    found = within(_read(files))
    valid = allow_partial or not any(remark.severity is Severity.ERROR for remark in found.remarks)
    if as_json:
        click.echo(json.dumps({"valid": valid, **_counts(found), "remarks": tell.remarks(found.remarks)}, indent=2))
    else:
        for remark in found.remarks:
            click.echo(f"{remark.severity}: {tell.plain(str(remark))}")
        said = ", ".join(f"{n} {section}" for section, n in _counts(found).items())
        click.echo(f"{'valid' if valid else 'not valid'}: {said}")
    sys.exit(0 if valid else 1)


def _counts(found: Document) -> dict[str, int]:
    return {"metrics": len(found.metrics), "services": len(found.services), "pages": len(found.pages)}


def _read(files: Sequence[str]) -> Document:
    """The documents as one; raises UsageError where one is none, because that is not a wrong setting here."""
    from observer_agent.hub.apply import check

    if len(set(files)) < len(files):
        raise click.UsageError("a file is named twice")
    try:
        return read_all([_text(file) for file in files], check)
    except DocumentError as error:
        raise UsageError(str(error)) from None


def _text(file: str) -> tuple[str, str]:
    from observer_agent.hub.apply import read_file

    if file != STDIN:
        return file, read_file(Path(file))
    try:
        return "stdin", sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise DocumentError("stdin is not UTF-8 text") from None


@contextmanager
def _store() -> Iterator[tuple[Any, str]]:
    """The store that the settings name, and who asks."""
    from observer_agent.hub import cli

    with cli.opened() as (store, _):
        yield store, actor()
