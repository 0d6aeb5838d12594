"""`observer-hub webhook ...`: subscriptions, a test, a redelivery and the log, straight on the database.

What is laid out here is delivered by the hub that serves the same database.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from observer_agent.errors import UsageError
from observer_agent.hub import asked
from observer_agent.hub.asked import as_json, guarded

TEST_SECONDS = 15.0
LOOK_SECONDS = 0.2


secret_option = click.option("--secret", metavar="-", help="`-` reads the secret from stdin; never the secret itself.")


@click.group()
def webhook() -> None:
    """Webhooks: who is told of events."""


@webhook.command()
@click.argument("name")
@click.argument("url")
@click.option("--event", "events", multiple=True, help="Only this event type; may be given again. Default: all.")
@secret_option
@click.option("--no-secret", is_flag=True, help="Requests are not signed.")
@as_json
@guarded
def create(name: str, url: str, events: tuple[str, ...], secret: str | None, no_secret: bool, as_json: bool) -> None:
    """Creates the webhook NAME for URL; a secret that was made for it is printed, this once, as the last line."""
    from observer_agent.hub.webhooks import Wanted, new_secret

    given = _read_secret(secret, no_secret)
    signing = None if no_secret else given or new_secret()
    with managed() as (webhooks, actor):
        found = webhooks.one(webhooks.create(actor, Wanted(name, url, signing, events)))
    made = signing if not given else None
    if as_json:
        _print_json({**found, "secret": made} if made else found)
        return
    click.echo(f"Webhook {name} made." + (" Its secret; it cannot be shown again:" if made else ""))
    if made:
        click.echo(made)


@webhook.command()
@click.argument("name")
@click.option("--url", help="Another URL.")
@click.option("--event", "events", multiple=True, help="Only this event type from now on; may be given again.")
@click.option("--all-events", is_flag=True, help="All event types from now on.")
@secret_option
@click.option("--on/--off", "active", default=None, help="Switches it on or off; what waits goes on waiting.")
@as_json
@guarded
def change(name: str, as_json: bool, **given: Any) -> None:
    """Changes what the options name."""
    changes = {each: given[each] for each in ("url", "active") if given[each] is not None}
    if given["events"] and given["all_events"]:
        raise UsageError("choose one of --event and --all-events")
    if given["events"] or given["all_events"]:
        changes["event_types"] = given["events"]
    if secret := _read_secret(given["secret"]):
        changes["secret"] = secret
    if not changes:
        raise UsageError("nothing to change: name --url, --event, --all-events, --secret -, --on or --off")
    with managed() as (webhooks, actor):
        found = webhooks.one(webhooks.change(actor, name, changes))
    _print_json(found) if as_json else click.echo(f"Webhook {name} changed.")


@webhook.command("list")
@as_json
@guarded
def list_(as_json: bool) -> None:
    """Every webhook and how many deliveries wait, have arrived, were given up."""
    with managed() as (webhooks, _):
        found = webhooks.all()
    if as_json:
        _print_json({"webhooks": found})
        return
    for each in found:
        counts = ", ".join(f"{n} {state}" for state, n in each["deliveries"].items())
        signed = "signed" if each["secret"] else "not signed"
        types = ", ".join(each["event_types"]) or "all events"
        click.echo(f"{each['name']}  {'on' if each['active'] else 'OFF'}  {each['url']}  {types}  {signed}  {counts}")


@webhook.command()
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Only says what would go.")
@as_json
@guarded
def remove(name: str, dry_run: bool, as_json: bool) -> None:
    """Deletes the webhook NAME, what waits for it and its log."""
    with managed() as (webhooks, actor):
        said = webhooks.delete(actor, name, dry_run)
    if as_json:
        _print_json(said)
        return
    verb = "would go" if dry_run else "is deleted"
    counts = f"{said['deliveries']} deliveries, {said['pending']} of them waiting"
    click.echo(f"Webhook {said['name']} {verb}, with {counts}.")


@webhook.command()
@click.argument("name")
@as_json
@guarded
def test(name: str, as_json: bool) -> None:
    """Sends the event `webhook.test` to NAME and waits up to 15 seconds for its outcome; exit code 1 if it failed."""
    from observer_agent.clock import Clock

    clock = Clock()
    alarm, until = clock.alarm(), clock.monotonic() + TEST_SECONDS
    with managed() as (webhooks, actor):
        event_id = webhooks.test(actor, name)
        found = webhooks.deliveries(name, 1, event_id)[0]
        while not found["attempts"] and clock.monotonic() < until:
            alarm.wait(LOOK_SECONDS)
            found = webhooks.deliveries(name, 1, event_id)[0]
    if as_json:
        _print_json(found)
    else:
        click.echo(_outcome(found))
    sys.exit(0 if found["state"] == "delivered" else 1)


@webhook.command()
@click.argument("event_id")
@click.option("--webhook", "name", help="Only to this one; default: every active one that asks for its kind.")
@as_json
@guarded
def redeliver(event_id: str, name: str | None, as_json: bool) -> None:
    """Lays the event EVENT_ID out anew, behind what waits."""
    with managed() as (webhooks, actor):
        names = webhooks.redeliver(actor, event_id, name)
    _print_json({"webhooks": names}) if as_json else click.echo(f"Laid out for {', '.join(names)}.")


@webhook.command("log")
@click.argument("name", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many deliveries.")
@as_json
@guarded
def log_(name: str | None, limit: int, as_json: bool) -> None:
    """The last deliveries, newest first, with their attempts; of NAME alone where it is given."""
    with managed() as (webhooks, _):
        found = webhooks.deliveries(name, limit)
    if as_json:
        _print_json({"deliveries": found})
        return
    for each in found:
        click.echo(
            f"{each['created_at']}  {each['webhook']}  {each['event_type']}  {each['event_id']}  {each['state']}"
        )
        for attempt in each["attempts"]:
            click.echo(f"    {attempt['at']}  {_attempt(attempt)}")


@contextmanager
def managed() -> Iterator[tuple[Any, str]]:
    """The webhooks of the database that the settings name, and who asks."""
    from observer_agent.clock import Clock
    from observer_agent.hub.cli import opened
    from observer_agent.hub.webhooks import Webhooks

    with opened() as (store, found):
        yield Webhooks(store.database, Clock(), found.webhook_allow), asked.actor()


def _read_secret(given: str | None, unwanted: bool = False) -> str | None:
    if given is None:
        return None
    if given != "-" or unwanted:
        raise UsageError("use --secret - and give the secret on stdin: what stands in a command can be seen by others")
    return sys.stdin.readline().strip()


def _print_json(found: object) -> None:
    click.echo(json.dumps(found, indent=2))


def _attempt(attempt: Mapping[str, Any]) -> str:
    why = attempt["error"] or f"status {attempt['status']}"
    return f"{why}, {attempt['duration_ms']:.0f} ms"


def _outcome(found: Mapping[str, Any]) -> str:
    if not found["attempts"]:
        return "Nobody has tried within 15 s: earlier events wait, or no `observer-hub serve` runs on this database."
    last = _attempt(found["attempts"][-1])
    said = "Delivered" if found["state"] == "delivered" else "Not delivered"
    return f"{said}: {last}."
