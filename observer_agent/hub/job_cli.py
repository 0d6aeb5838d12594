"""`observer-hub job ...`: tokens of jobs, and how the jobs are, straight on the database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from observer_agent.hub import asked
from observer_agent.hub.asked import as_json, guarded


@click.group()
def job() -> None:
    """Jobs that tell by pings that they ran."""


@job.command()
@click.argument("key")
@as_json
@guarded
def token(key: str, as_json: bool) -> None:
    """Makes the token of the job KEY and prints it, this once, as the last line; the one before ends."""
    with _opened() as (jobs, actor):
        made = jobs.create_token(actor, key)
    if as_json:
        click.echo(json.dumps({"key": key, "token": made}, indent=2))
        return
    click.echo(f"The token of {key}; it is not kept here and cannot be shown again:")
    click.echo(made)


@job.command("list")
@as_json
@guarded
def list_(as_json: bool) -> None:
    """Every job: its status, its last ping, the beginning of its token."""
    with _opened() as (jobs, _):
        found = jobs.all()
    if as_json:
        click.echo(json.dumps({"jobs": found}, indent=2))
        return
    for each in found:
        status = f"{each['status'] or 'not yet'}{', ' + each['reason'] if each['reason'] else ''}"
        last = f"{each['last_kind']} at {each['last_ping_at']}" if each["last_ping_at"] else "no ping yet"
        click.echo(f"{each['key']:<24} {status:<32} {last:<40} {each['token'] or 'no token'}")


@contextmanager
def _opened() -> Iterator[tuple[Any, str]]:
    """The jobs, and who changes them."""
    from observer_agent.hub import cli

    with cli.opened() as (store, _):
        yield store.jobs, asked.actor()
