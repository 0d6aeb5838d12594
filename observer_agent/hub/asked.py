"""What the commands of the hub share: errors as one line and an exit code, and who asks.

Imported by every file of commands, before the hub itself; runs on the main thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from observer_agent.errors import ConfigError, DocumentError, ObserverError

EXIT_CONFIG = 78

as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


def guarded(command: Callable[..., object]) -> Callable[..., None]:
    """Turns the errors of this program into one line and an exit code."""

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except ObserverError as error:
            click.echo(f"observer-hub: {error}", err=True)
            sys.exit(EXIT_CONFIG if isinstance(error, ConfigError | DocumentError) else 1)

    return call


def actor() -> str:
    """Who runs this, for the audit log: the process's own user, because the environment may say anything."""
    import pwd

    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"
