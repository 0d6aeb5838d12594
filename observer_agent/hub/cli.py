"""The front door of the hub: commands that parse, call, print and choose the exit code.

Exit codes: 0 well, 1 not well, 2 wrong usage, 78 a wrong setting or a document that cannot be read.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from observer_agent import __version__
from observer_agent.hub.asked import guarded
from observer_agent.hub.document_cli import register
from observer_agent.hub.job_cli import job
from observer_agent.hub.keys_cli import key
from observer_agent.hub.lighthouse.cli import lighthouse
from observer_agent.hub.webhook_cli import webhook

FOR_EVER = 3600.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="observer-hub", message="%(prog)s %(version)s")
def main() -> None:
    """The cloud that you host yourself: hands out definitions, takes verdicts and heartbeats, shows a page."""


main.add_command(webhook)
main.add_command(key)
main.add_command(job)
main.add_command(lighthouse)


@main.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="A document of definitions.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Other than loopback needs OBSERVER_HUB_TOKEN.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: a free one.")
@click.option("--server", type=click.Choice(["waitress", "gunicorn"]), default="waitress", show_default=True)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Processes of gunicorn.")
@guarded
def serve(file: Path | None, host: str, port: int, server: str, workers: int) -> None:
    """Serves until SIGTERM."""
    from observer_agent.clock import Clock, Signals
    from observer_agent.hub import settings
    from observer_agent.hub.follow import Follower
    from observer_agent.notify import Notifier

    settings.check_bind(host, settings.load(os.environ))
    follow = Follower(file) if file else None
    if server == "gunicorn":
        return by_gunicorn(follow, host, port, workers)
    with Signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)) as signals, serving(follow, host, port) as url:
        click.echo(f"listening on {url}")
        Notifier(os.environ, Clock()).ready()  # gunicorn says it by itself
        while not {signal.SIGTERM, signal.SIGINT} & set(came := signals.wait(FOR_EVER)):
            if follow and signal.SIGHUP in came:
                follow.again()


def by_gunicorn(follow: Any, host: str, port: int, workers: int) -> None:
    """Applies the document once, and lets gunicorn's processes serve."""
    from observer_agent.hub import production

    with opened() as (store, found):
        production.check(found.database_url, workers)
        if follow:
            follow.begin(store)
    production.run(host, port, workers, follow)


@contextmanager
def opened(clock: Any = None) -> Iterator[tuple[Any, Any]]:
    """The store and the settings, with logs going to stderr."""
    from observer_agent import logs
    from observer_agent.clock import Clock
    from observer_agent.hub import settings
    from observer_agent.hub.database import open_database
    from observer_agent.hub.store import Store

    found, clock, redact = settings.load(os.environ), clock or Clock(), logs.Redactor()
    redact.add(found.token, found.remote_write.token if found.remote_write else None)
    with closing(logs.configure(found.log_format, found.verbose, clock, redact)):
        with closing(open_database(found.database_url)) as database:
            yield Store(database, clock), found


@contextmanager
def serving(follow: Any, host: str, port: int, clock: Any = None) -> Iterator[str]:
    """A hub that serves while the block runs, on the machine's clock or the one handed in; gives its URL."""
    from observer_agent.clock import Clock
    from observer_agent.hub import server
    from observer_agent.hub.app import from_settings
    from observer_agent.hub.ticker import Ticker

    clock = clock or Clock()
    with opened(clock) as (store, found):
        if follow:
            follow.begin(store)
        server.adopt_log()
        running, ticker = (
            server.Server(from_settings(store, clock, found), host, port),
            Ticker(store, clock, found.remote_write, found.webhook_allow, keep=found.keep),
        )
        running.start()
        if follow:
            ticker.also("document", follow.step)
        ticker.start()
        try:
            yield running.url
        finally:
            running.stop()
            ticker.stop()


register(main)

if __name__ == "__main__":
    main()
