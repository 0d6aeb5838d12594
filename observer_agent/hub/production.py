"""gunicorn as the server: several processes, each a hub of its own over one PostgreSQL.

`run` is `observer-hub serve --server gunicorn`; `app` is for an own command line,
`gunicorn --worker-class gthread --threads 8 'observer_agent.hub.production:app("observer.yaml", 2)'` (never with
`--preload`: what runs beside the server starts with the application, and threads do not survive a fork). Every process
follows the document; whoever sees a change first applies it, the others find nothing to do.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from observer_agent.errors import ConfigError, ObserverError
from observer_agent.hub.follow import Follower

log = logging.getLogger(__name__)

THREADS = 8
GRACEFUL_SECONDS = 10
IDLE_SECONDS = 120
STUCK_SECONDS = 60


def app(file: str | None = None, workers: int = 1) -> Any:
    """The application with everything beside it, as one of `workers` processes runs it; settings from the environment.

    `file` is the document to follow. Raises ConfigError, and UsageError while there is no database.
    """
    return _application(Follower(Path(file)) if file else None, workers)


def _application(follow: Follower | None, workers: int) -> Any:
    from observer_agent import logs
    from observer_agent.clock import Clock
    from observer_agent.hub import settings
    from observer_agent.hub.app import from_settings
    from observer_agent.hub.database import open_database
    from observer_agent.hub.store import Store
    from observer_agent.hub.ticker import Ticker

    found, clock, redact = settings.load(os.environ), Clock(), logs.Redactor()
    redact.add(found.token, found.remote_write.token if found.remote_write else None)
    logs.configure(found.log_format, found.verbose, clock, redact)
    database = open_database(found.database_url)
    store = Store(database, clock)
    ticker = Ticker(store, clock, found.remote_write, found.webhook_allow, keep=found.keep)
    if follow:
        follow.join(store)
        ticker.also("document", follow.step)
    ticker.start()
    atexit.register(database.close)
    atexit.register(ticker.stop)  # runs first
    return from_settings(store, clock, replace(found, limits=found.limits.shared(workers)))


def run(host: str, port: int, workers: int, follow: Follower | None = None) -> None:
    """Serves until SIGTERM and follows a document; SIGHUP has it read again by new processes, one by one in place of
    the old ones. Does not return. Raises ConfigError.
    """
    try:
        from gunicorn.app.base import BaseApplication
    except ImportError:
        fix = "needs the extra `production`: pip install 'observer-agent[hub,postgres,production]'"
        raise ConfigError("--server", "gunicorn", fix) from None

    class Application(BaseApplication):  # type: ignore[misc]
        """The settings of our own; nothing is read from files of the directory."""

        def load_config(self) -> None:
            """Hands each setting to gunicorn."""
            for name, value in _settings(host, port, workers).items():
                self.cfg.set(name, value)
            if follow:
                self.cfg.set("on_reload", lambda arbiter: follow.again())

        def load(self) -> Any:
            """The application of one worker process."""
            try:
                return _application(follow, workers)
            except ObserverError as error:
                # Gunicorn gives up altogether where a worker fails in its own words; so it tries again.
                log.error("%s", error)
                sys.exit(1)

    Application().run()


def _settings(host: str, port: int, workers: int) -> dict[str, Any]:
    from observer_agent.hub.server import room

    return {
        "bind": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"],
        "workers": workers,
        "worker_class": "gthread",
        "threads": THREADS,
        "worker_connections": room(),  # of each process; beyond it nobody is let in until another has left
        "keepalive": IDLE_SECONDS,
        "graceful_timeout": GRACEFUL_SECONDS,
        "timeout": STUCK_SECONDS,
        "loglevel": "warning",
        "proc_name": "observer-hub",
        "control_socket_disable": True,
        "when_ready": _say,
    }


def _say(arbiter: Any) -> None:
    host, port = arbiter.LISTENERS[0].sock.getsockname()[:2]
    sys.stdout.write(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}\n")
    sys.stdout.flush()


def check(database_url: str, workers: int) -> None:
    """Several processes need a database for several; raises ConfigError."""
    if workers > 1 and not database_url.startswith("postgres"):
        raise ConfigError("--workers", str(workers), "needs PostgreSQL: set DATABASE_URL, or leave --workers at 1")
