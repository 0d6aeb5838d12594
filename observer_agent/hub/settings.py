"""Environment and options to frozen settings; a complaint names its key, the value and the fix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from observer_agent.errors import ConfigError
from observer_agent.hub.access import is_loopback

LOG_FORMATS = ("auto", "text", "json", "journald")
DATABASE_URL = "sqlite:///observer-hub.db"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the environment says; `token` None means that only this machine is served pages and /api/v1."""

    database_url: str
    token: str | None
    log_format: str
    verbose: bool


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
    )


def check_bind(host: str, settings: Settings) -> None:
    """Refuses to show everything to a network without a token; raises ConfigError."""
    if settings.token is None and not is_loopback(host):
        raise ConfigError(
            "--host", host, "is not a loopback address: set OBSERVER_HUB_TOKEN, or leave --host at 127.0.0.1"
        )
