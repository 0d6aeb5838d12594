"""`observer-hub lighthouse ...`: the second dialect, straight on the database, beside a hub that serves it.

Exit codes: 0 well, 1 refused or failed, 2 wrong usage, 78 a wrong setting or a document that cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from observer_agent.errors import UsageError
from observer_agent.hub import asked
from observer_agent.hub.asked import as_json, guarded
from observer_agent.hub.keys_cli import Span

STDIN = "-"


@click.group()
def lighthouse() -> None:
    """Lighthouses: agents of the second dialect, their tokens and their checks."""


@lighthouse.command()
@click.argument("name")
@click.option("--host", help="What people call its machine.")
@as_json
@guarded
def create(name: str, host: str | None, as_json: bool) -> None:
    """Creates the lighthouse NAME and prints its token, this once, as the last line."""
    with opened() as (manage, look, actor):
        made, token = manage.create(actor, name, {} if host is None else {"host": host})
        said = look.one(made)
    if as_json:
        click.echo(json.dumps({**said, "token": token}, indent=2))
        return
    _show_token(name, token)


@lighthouse.command("list")
@as_json
@guarded
def list_(as_json: bool) -> None:
    """Lists every lighthouse: its state, how its checks are, when it was last heard."""
    with opened() as (_, look, _actor):
        found = look.all()
    if as_json:
        click.echo(json.dumps({"lighthouses": found}, indent=2))
        return
    for each in found:
        counts = ", ".join(f"{n} {word}" for word, n in each["checks"].items() if n) or "no checks"
        state = "paused" if each["paused"] and each["state"] == "online" else each["state"]
        click.echo(f"{state:<8} {each['last_heartbeat_at'] or 'never':<26} {each['name']}: {counts}")


@lighthouse.command()
@click.argument("name")
@as_json
@guarded
def show(name: str, as_json: bool) -> None:
    """Shows the lighthouse NAME and each of its checks."""
    with opened() as (_, look, _actor):
        found, checks = look.one(name), look.checks(name)
    if as_json:
        click.echo(json.dumps({**found, "checks": checks}, indent=2))
        return
    for field, value in found.items():
        if not isinstance(value, dict | list):
            click.echo(f"{field:<30} {'-' if value is None else value}")
    for each in checks:
        since = f" since {each['since']}" if each["since"] else ""
        why = f": {each['error_message']}" if each["status"] == "down" and each["error_message"] else ""
        click.echo(f"{each['status']:<8} {each['name']} ({each['type']} {each['id']}){since}{why}")


@lighthouse.command()
@click.argument("name")
@click.option("--host", help="What people call its machine; an empty text takes it away.")
@click.option("--flap", type=int, help="So many looks in a row that differ make a change; 1 is each one.")
@click.option("--heartbeat", type=int, help="Seconds from one heartbeat to the next.")
@click.option("--host-metrics/--no-host-metrics", default=None, help="Whether its agent is asked for host metrics.")
@click.option("--metrics-interval", type=int, help="Seconds from one set of host metrics to the next.")
@click.option("--several/--one", default=None, help="Whether several instances may use its token at a time.")
@click.option("--notify/--no-notify", default=None, help="Whether webhooks hear that it is offline.")
@as_json
@guarded
def change(name: str, as_json: bool, **given: Any) -> None:
    """Changes the settings of the lighthouse NAME that are named."""
    names = {
        "host": "host",
        "flap": "flap_protection_threshold",
        "heartbeat": "heartbeat_interval_seconds",
        "host_metrics": "host_metrics_enabled",
        "metrics_interval": "host_metrics_interval_seconds",
        "several": "allow_multi_instance",
        "notify": "notify_on_lifecycle",
    }
    settings = {names[option]: value for option, value in given.items() if value is not None}
    if not settings:
        raise UsageError("name a setting to change; --help lists them")
    _change(name, settings, as_json)


@lighthouse.command()
@click.argument("name")
@as_json
@guarded
def pause(name: str, as_json: bool) -> None:
    """The agent of the lighthouse NAME stops looking, from its next heartbeat on."""
    _change(name, {"paused": True}, as_json)


@lighthouse.command()
@click.argument("name")
@as_json
@guarded
def resume(name: str, as_json: bool) -> None:
    """The end of a pause."""
    _change(name, {"paused": False}, as_json)


@lighthouse.command()
@click.argument("name")
@click.option("--grace", type=Span(), default="0", show_default=True, help="How long the tokens before stay good.")
@as_json
@guarded
def rotate(name: str, grace: float, as_json: bool) -> None:
    """Makes another token for the lighthouse NAME and prints it, this once, as the last line."""
    with opened() as (manage, _, actor):
        token = manage.rotate(actor, name, grace)
    if as_json:
        click.echo(json.dumps({"name": name, "token": token}, indent=2))
        return
    _show_token(name, token)


@lighthouse.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only says what would go.")
@as_json
@guarded
def delete(name: str, dry_run: bool, as_json: bool) -> None:
    """Deletes the lighthouse NAME with its checks and their history; its agent is told that it is gone."""
    with opened() as (manage, _, actor):
        said = manage.delete(actor, name, dry_run)
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    done = "would be deleted" if dry_run else "deleted"
    click.echo(f"{done}: {said['name']}, {said['checks']} checks, {said['events']} events")


@lighthouse.command()
@click.option("-f", "--file", required=True, type=click.Path(dir_okay=False, allow_dash=True), help="- is stdin.")
@click.option("--name", help="The lighthouse, where the document does not name it.")
@click.option("--prune", is_flag=True, help="Deletes what documents made before and this one does not name.")
@click.option("--dry-run", is_flag=True, help="Shows the difference and changes nothing.")
@as_json
@guarded
def apply(file: str, name: str | None, prune: bool, dry_run: bool, as_json: bool) -> None:
    """Makes the checks of a lighthouse what a document says, by their names."""
    from observer_agent.hub.lighthouse import document

    read = document.read(_text(file), "(stdin)" if file == STDIN else file)
    wanted = name or read.lighthouse
    if wanted is None:
        raise UsageError("the document names no lighthouse: write `lighthouse: NAME` into it, or give --name")
    with opened() as (manage, _, actor):
        said = manage.apply(actor, wanted, read.checks, prune=prune, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    for mark, word in (("+", "created"), ("~", "changed"), ("-", "pruned")):
        for each in said[word]:
            click.echo(f"{mark} {each}")
    counts = ", ".join(f"{len(said[word])} {word}" for word in ("created", "changed", "pruned"))
    click.echo(f"{counts}, {said['unchanged']} unchanged{'; a dry run: nothing was applied' if dry_run else ''}")


@lighthouse.command()
@click.argument("name")
@click.option("--check", "check", help="Only the check of this name or id, as it was observed.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@as_json
@guarded
def events(name: str, check: str | None, limit: int, as_json: bool) -> None:
    """Lists what the agent of the lighthouse NAME saw, newest first."""
    with opened() as (_, look, _actor):
        names = {each["id"]: each["name"] for each in look.checks(name)}
        wanted = next((key for key, word in names.items() if check in (key, word)), check)
        found = look.events(name, limit, wanted)
    if as_json:
        click.echo(json.dumps({"events": found}, indent=2))
        return
    for each in found:
        kind = each["sync_kind"] or f"from {each['prev_state'] or 'nothing'}"
        why = f" {each['error_message']}" if each["error_message"] else ""
        click.echo(f"{each['agent_observed_at']} {each['new_state']:<5} {names.get(each['check_id'])} ({kind}){why}")


@contextmanager
def opened() -> Iterator[tuple[Any, Any, str]]:
    """What changes lighthouses, what reads them, and who asks."""
    from observer_agent.clock import Clock
    from observer_agent.hub import cli
    from observer_agent.hub.lighthouse.look import Look
    from observer_agent.hub.lighthouse.manage import Manage

    clock = Clock()
    with cli.opened(clock) as (store, _):
        yield Manage(store.database, clock), Look(store.database, clock), asked.actor()


def _change(name: str, settings: Mapping[str, Any], as_json: bool) -> None:
    with opened() as (manage, look, actor):
        said = look.one(manage.change(actor, name, settings))
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    click.echo(", ".join(f"{field} {str(said[field]).lower()}" for field in settings))


def _text(file: str) -> str:
    try:
        return sys.stdin.read() if file == STDIN else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from None


def _show_token(name: str, token: str) -> None:
    click.echo(f"The token of {name}; it is not kept here and cannot be shown again:")
    click.echo(token)
