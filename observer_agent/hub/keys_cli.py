"""`observer-hub key ...`: keys of agents, straight on the database; every hub process knows at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from observer_agent.hub import asked
from observer_agent.hub.asked import as_json, guarded

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class Span(click.ParamType):  # type: ignore[type-arg]
    """A time like 90s, 30m, 24h or 7d; 0 is none."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds; anything else is wrong usage."""
        found = re.fullmatch(r"([0-9]{1,6})([smhd])", str(value).strip())
        if found is None and str(value).strip() != "0":
            self.fail("must be a time like 90s, 30m, 24h or 7d, or 0", param, ctx)
        return float(found[1]) * UNITS[found[2]] if found else 0.0


@click.group()
def key() -> None:
    """Keys of agents."""


@key.command()
@click.argument("name")
@as_json
@guarded
def create(name: str, as_json: bool) -> None:
    """Creates the agent NAME and prints its key, this once, as the last line."""
    with opened_keys() as (keys, actor):
        made = keys.create(name, actor)
    _show_key(name, made, as_json)


@key.command("list")
@as_json
@guarded
def list_(as_json: bool) -> None:
    """Lists every key by what may be shown of it, and what it is good for."""
    with opened_keys() as (keys, _):
        found = keys.list()
    if as_json:
        click.echo(json.dumps({"keys": found}, indent=2))
        return
    for each in found:
        until = f" until {each['expires_at']}" if each["state"] == "expiring" else ""
        click.echo(f"{each['hint'] or '(older than hints)':<18} {each['state'] + until:<42} {each['name']}")


@key.command()
@click.argument("name")
@click.option("--grace", type=Span(), default="24h", show_default=True, help="How long the keys before stay good.")
@as_json
@guarded
def rotate(name: str, grace: float, as_json: bool) -> None:
    """Makes another key for the agent NAME and prints it, this once, as the last line."""
    with opened_keys() as (keys, actor):
        made = keys.rotate(name, actor, grace)
    _show_key(name, made, as_json)


@key.command()
@click.argument("name")
@click.option("--hint", help="Only the key that `key list` shows so. Default: every key of the agent.")
@click.option("--dry-run", is_flag=True, help="Only says which keys that would end.")
@as_json
@guarded
def revoke(name: str, hint: str | None, dry_run: bool, as_json: bool) -> None:
    """Ends the keys of the agent NAME at once."""
    with opened_keys() as (keys, actor):
        ended = keys.revoke(name, actor, hint, dry_run=dry_run)
    if as_json:
        both = {"revoked": [] if dry_run else ended, "would_revoke": ended if dry_run else []}
        click.echo(json.dumps({"name": name, **both}, indent=2))
        return
    for each in ended:
        click.echo(f"{'would be revoked' if dry_run else 'revoked'}: {each or '(older than hints)'}")


@contextmanager
def opened_keys() -> Iterator[tuple[Any, str]]:
    """The keys, and who changes them."""
    from observer_agent.hub import cli

    with cli.opened() as (store, _):
        yield store.keys, asked.actor()


def _show_key(name: str, made: str, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"name": name, "key": made}, indent=2))
        return
    click.echo(f"The key of {name}; it is not kept here and cannot be shown again:")
    click.echo(made)
