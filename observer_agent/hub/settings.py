"""Environment and options to frozen settings; a complaint names its key, the value and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from observer_agent.errors import ConfigError
from observer_agent.hub.access import is_loopback

LOG_FORMATS = ("auto", "text", "json", "journald")
DATABASE_URL = "sqlite:///observer-hub.db"


@dataclass(frozen=True, slots=True)
class RemoteWrite:
    """Where verdicts go besides: a URL, a bearer token for it, and how many rows it may fall behind."""

    url: str
    token: str | None
    rows_max: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says; `token` None means that only this machine is served pages and /api/v1."""

    database_url: str
    token: str | None
    log_format: str
    verbose: bool
    remote_write: RemoteWrite | None = None


def load(env: Mapping[str, str]) -> Settings:
    """Reads DATABASE_URL, OBSERVER_HUB_TOKEN, LOG_FORMAT and VERBOSE; raises ConfigError."""
    form = env.get("LOG_FORMAT", "").strip().lower() or "auto"
    if form not in LOG_FORMATS:
        raise ConfigError("LOG_FORMAT", form, f"must be one of {', '.join(LOG_FORMATS)}")
    return Settings(
        database_url=env.get("DATABASE_URL", "").strip() or DATABASE_URL,
        token=env.get("OBSERVER_HUB_TOKEN", "").strip() or None,
        log_format=form,
        verbose=env.get("VERBOSE", "").strip().lower() in ("1", "true", "yes", "on"),
        remote_write=_remote_write(env),
    )


def _remote_write(env: Mapping[str, str]) -> RemoteWrite | None:
    name = "OBSERVER_HUB_REMOTE_WRITE_URL"
    url = env.get(name, "").strip()
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ConfigError(name, "(not shown)", "must be an http or https URL without credentials")
    rows = env.get("OBSERVER_HUB_REMOTE_WRITE_MAX_ROWS", "").strip() or "1000000"
    if not rows.isascii() or not rows.isdecimal() or int(rows) < 1:
        raise ConfigError("OBSERVER_HUB_REMOTE_WRITE_MAX_ROWS", repr(rows[:40]), "must be a positive whole number")
    return RemoteWrite(url, env.get("OBSERVER_HUB_REMOTE_WRITE_TOKEN", "").strip() or None, int(rows))


def check_bind(host: str, settings: Settings) -> None:
    """Refuses to show everything to a network without a token; raises ConfigError."""
    if settings.token is None and not is_loopback(host):
        raise ConfigError(
            "--host", host, "is not a loopback address: set OBSERVER_HUB_TOKEN, or leave --host at 127.0.0.1"
        )
