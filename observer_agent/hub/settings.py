"""Environment and options to frozen settings; a complaint names its key, the value and the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from observer_agent.errors import ConfigError
from observer_agent.hub.access import is_loopback
from observer_agent.hub.guard import NOTHING_MORE, SETTING, Allow, parse_allow
from observer_agent.hub.keep import Keep
from observer_agent.hub.limits import Limits, Rate, networks

LOG_FORMATS = ("auto", "text", "json", "journald")
KEY_RATE = 6000  # requests a minute of one key: an agent needs ten, one that catches up or probes each second hundreds
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
    keep: Keep = field(default_factory=Keep)
    public_pages: bool = False
    limits: Limits = field(default_factory=Limits)
    webhook_allow: Allow = NOTHING_MORE


def load(env: Mapping[str, str]) -> Settings:
    """Reads DATABASE_URL, OBSERVER_HUB_TOKEN, LOG_FORMAT and VERBOSE; raises ConfigError."""
    form = env.get("LOG_FORMAT", "").strip().lower() or "auto"
    if form not in LOG_FORMATS:
        raise ConfigError("LOG_FORMAT", form, f"must be one of {', '.join(LOG_FORMATS)}")
    return Settings(
        database_url=env.get("DATABASE_URL", "").strip() or DATABASE_URL,
        token=_token(env),
        log_format=form,
        verbose=env.get("VERBOSE", "").strip().lower() in ("1", "true", "yes", "on"),
        remote_write=_remote_write(env),
        keep=_keep(env),
        limits=_limits(env),
        public_pages=env.get("OBSERVER_HUB_PUBLIC_PAGES", "").strip().lower() in ("1", "true", "yes", "on"),
        webhook_allow=parse_allow(env.get(SETTING, "")),
    )


def _token(env: Mapping[str, str]) -> str | None:
    """The variable, the file that `_FILE` names, or systemd's credential `hub_token` (`unset` means none)."""
    given, file = env.get("OBSERVER_HUB_TOKEN", "").strip(), env.get("OBSERVER_HUB_TOKEN_FILE", "").strip()
    if given and file:
        raise ConfigError("OBSERVER_HUB_TOKEN_FILE", file, "stands beside OBSERVER_HUB_TOKEN: set one of the two")
    if given:
        return given
    if file:
        found = _first_line("OBSERVER_HUB_TOKEN_FILE", Path(file))
        if not found:
            raise ConfigError("OBSERVER_HUB_TOKEN_FILE", file, "is empty: write the token into it")
        return found
    credential = Path(env.get("CREDENTIALS_DIRECTORY", "") or "/nonexistent", "hub_token")
    found = _first_line("hub_token", credential) if credential.exists() else ""
    return found if found not in ("", "unset") else None


def _first_line(key: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise ConfigError(key, str(file), f"cannot be read ({why})") from None


def _limits(env: Mapping[str, str]) -> Limits:
    text = env.get("OBSERVER_HUB_KEY_RATE", "").strip() or str(KEY_RATE)
    if not re.fullmatch(r"[0-9]{1,7}", text):
        raise ConfigError("OBSERVER_HUB_KEY_RATE", repr(text[:40]), "must be requests a minute of a key; 0 is no limit")
    rate = Rate(float(text), max(60, int(text) // 2)) if int(text) else None
    listed = env.get("OBSERVER_HUB_TRUSTED_PROXIES", "").strip()
    try:
        return Limits(by_key=rate, trusted=networks(listed))
    except ValueError:
        fix = "must be networks like 10.0.0.0/8 or addresses, separated by commas"
        raise ConfigError("OBSERVER_HUB_TRUSTED_PROXIES", repr(listed[:80]), fix) from None


def _keep(env: Mapping[str, str]) -> Keep:
    given = {}
    for part in ("rows", "hours", "days", "events"):
        name = f"OBSERVER_HUB_KEEP_{part.upper()}"
        text = env.get(name, "").strip()
        found = re.fullmatch(r"([1-9][0-9]{0,5})([dwy])", text)
        if found:
            given[part] = int(found[1]) * {"d": 1.0, "w": 7.0, "y": 365.25}[found[2]] * 86_400.0
        elif text:
            raise ConfigError(name, repr(text[:40]), "must be a time like 30d, 8w or 5y, at least one day")
    return Keep(**given)


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
