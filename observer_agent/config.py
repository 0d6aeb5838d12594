"""Environment, an optional TOML file and systemd's credential in; frozen `Settings` out.

`VARIABLES` is the one table of names, defaults and rules: the parser, the docs and `check` all read it. The environment
wins over the file. A complaint names the key, the value as it may be shown, and the fix. Runs once, at the start.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from observer_agent.errors import ConfigError
from observer_agent.logs import Redactor

EXIT_CONFIG = 78  # sysexits.h EX_CONFIG
FOLDER = Path("/etc/observer-agent")  # where the packages keep config.toml, agent.env and agent_key
CUSTOM_DIR = str(FOLDER / "probes.d")  # the operator's own probes
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_KEY = re.compile(r"[\x21-\x7e]{1,256}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting, typed and checked; the names are the environment's in lower case. Sizes in bytes, ages in s."""

    agent_key: str
    agent_key_file: str | None
    cloud_server_url: str
    cloud_dialect: str
    definitions_file: str | None
    prometheus_server_url: str | None
    prometheus_basic_auth_enabled: bool
    prometheus_username: str
    prometheus_password: str
    prometheus_bearer_token: str | None
    prometheus_tenant_id: str | None
    prometheus_headers: str | None
    probe_failure_status: str
    probe_env_allow: tuple[str, ...]
    policy_file: str | None
    probe_custom_dir: str
    buffer_path: Path
    buffer_max_rows: int
    buffer_max_bytes: int | None
    buffer_max_age: float | None
    buffer_sync: str
    skip_ssl_verification: bool
    verbose: bool
    log_format: str
    broadcast_logs: bool
    log_broadcast_level: str
    enable_debug_dashboard: bool
    debug_dashboard_host: str
    debug_dashboard_port: int
    debug_dashboard_token: str | None
    heartbeat_relay_enabled: bool
    heartbeat_relay_host: str
    heartbeat_relay_port: int
    observer_otlp_disable: bool
    observer_otlp_listen_addr: str
    observer_otlp_bearer_token: str | None
    observer_otlp_max_body_bytes: int
    observer_otlp_max_buffer_points: int


class Variable(NamedTuple):
    """One row of the table: how a text becomes a value; `fix` ends the sentence of a complaint."""

    parse: Callable[[str], Any]
    default: str | None
    fix: str
    secret: bool = False


def usual_file(folder: Path = FOLDER) -> Path | None:
    """The file of settings that an installed package has; None where there is none to be read."""
    file = folder / "config.toml"
    return file if os.access(file, os.R_OK) else None


def environment(env: Mapping[str, str], folder: Path = FOLDER) -> dict[str, str]:
    """The environment as the installed service has it, for commands that look at it from outside.

    What the caller's own environment says wins. Files that the caller may not read are left out.
    """
    out: dict[str, str] = {}
    if os.access(folder / "agent.env", os.R_OK):
        out.update(read_env_file(folder / "agent.env"))
    if os.access(folder / "agent_key", os.R_OK):
        out["CREDENTIALS_DIRECTORY"] = str(folder)
    return {**out, **env}


def renewed(env: Mapping[str, str]) -> dict[str, str]:
    """The environment at a reload: what `agent.env` says by now, which the unit's ExecReload hands over, wins."""
    folder = env.get("RUNTIME_DIRECTORY", "")
    file = Path(folder, "agent.env")
    return {**env, **read_env_file(file)} if folder and file.exists() else dict(env)


def read_env_file(file: Path) -> dict[str, str]:
    """The assignments of a file in the form of systemd's EnvironmentFile; raises ConfigError where it is unreadable."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("agent.env", str(file), f"cannot be read: {error}") from None
    out: dict[str, str] = {}
    for line in text.replace("\\\n", "").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            out[name.strip()] = _unquoted(value.strip())
    return out


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        inner = value[1:-1]
        return re.sub(r"\\([\\\"$`])", r"\1", inner) if value[0] == '"' else inner
    return value


def load(env: Mapping[str, str], file: Path | None = None, *, to_run: bool = True) -> Settings:
    """The settings of this start; raises ConfigError for the first that is wrong.

    With `to_run` false (a command that looks, not an agent that runs) the key and the queue's directory may be missing.
    """
    given = {**_read_file(file), **{k: v for k, v in env.items() if k in VARIABLES}}
    values: dict[str, Any] = {name.lower(): _value(name, given.get(name)) for name in VARIABLES}
    values["agent_key"] = read_key(given, env) if to_run else ""
    settings = Settings(**values)
    if to_run:
        _cross_check(settings)
    return settings


def read_key(given: Mapping[str, str], env: Mapping[str, str]) -> str:
    """The key from AGENT_KEY, AGENT_KEY_FILE or the credential `agent_key`, in this order, then from the file.

    Raises ConfigError.
    """
    text, source = _find_key(env)
    credential = _find_credential(env)
    if not text and credential:
        source = "credential agent_key"
        text = _read_key_file(source, credential)
        text = "" if text == "unset" else text
    if not text:
        text, source = _find_key(given)
    if not text:
        raise ConfigError("AGENT_KEY", "(unset)", "set AGENT_KEY, or AGENT_KEY_FILE to a file that holds the key")
    if not _KEY.fullmatch(text):
        raise ConfigError(source, "(hidden)", "the key must be 1 to 256 printable ASCII characters without blanks")
    return text


def _find_credential(env: Mapping[str, str]) -> Path | None:
    """systemd's credential, which it copies at a start; first the copy that a reload has brought, if there is one."""
    folders = [env[name] for name in ("RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY") if env.get(name)]
    files = [Path(folder, "agent_key") for folder in folders]
    return next((file for file in files if file.exists()), None)


def _find_key(given: Mapping[str, str]) -> tuple[str, str]:
    """The key that AGENT_KEY or AGENT_KEY_FILE gives, and which of them did."""
    text = given.get("AGENT_KEY", "").strip()
    if text or not given.get("AGENT_KEY_FILE"):
        return text, "AGENT_KEY"
    return _read_key_file("AGENT_KEY_FILE", Path(given["AGENT_KEY_FILE"])), "AGENT_KEY_FILE"


def masked(settings: Settings) -> dict[str, str]:
    """Every setting as it may be shown: secrets as set or unset, credentials in URLs never."""
    shown: dict[str, str] = {}
    for field in fields(settings):
        name, value = field.name.upper(), getattr(settings, field.name)
        secret = VARIABLES[name].secret
        shown[name] = ("(set)" if value else "(unset)") if secret else "" if value is None else _plain(value)
    return shown


def origin(url: str) -> str:
    """Scheme, host and port of a URL, for people: no path, no query, no credentials."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return Redactor()(",".join(value) if isinstance(value, tuple) else str(value))


def _value(name: str, text: str | None) -> Any:
    row = VARIABLES[name]
    text = row.default if text is None or not text.strip() else text.strip()
    if text is None:
        return None
    try:
        return row.parse(text)
    except ValueError as error:
        shown = "(hidden)" if row.secret else repr(Redactor()(text)[:80])
        reason = str(error) if error.args and str(error).startswith("!") else ""
        raise ConfigError(name, shown, reason[1:] or row.fix) from None


def _read_file(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("--config", str(file), f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--config", str(file), f"is not TOML: {error}") from None
    out: dict[str, str] = {}
    for name, value in content.items():
        if name not in VARIABLES:
            raise ConfigError(name, "(in the file)", f"is not a setting; remove it from {file} or mend its name")
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = ",".join(value)
        if not isinstance(value, str | int | float | bool):
            raise ConfigError(name, "(in the file)", "must be a text, a number or true or false")
        out[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return out


def _read_key_file(source: str, path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(source, str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(source, str(path), "must hold the key alone, in ASCII") from None


def _cross_check(settings: Settings) -> None:
    host = settings.debug_dashboard_host
    if settings.enable_debug_dashboard and host not in LOOPBACK and not settings.debug_dashboard_token:
        raise ConfigError("DEBUG_DASHBOARD_HOST", repr(host), "is not loopback: set DEBUG_DASHBOARD_TOKEN as well")
    if settings.cloud_dialect != "observer":
        raise ConfigError("CLOUD_DIALECT", repr(settings.cloud_dialect), "only `observer` is spoken by this version")
    folder = settings.buffer_path.parent
    if not folder.is_dir():
        raise ConfigError("BUFFER_PATH", str(settings.buffer_path), f"the directory {folder} does not exist: make it")


def _text(text: str) -> str:
    return text


def _bool(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError


def _exactly_true(text: str) -> bool:
    """The original's rule for basic auth: only the exact text `true` turns it on."""
    return text == "true"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1 or not text.isascii() or "_" in text:
        raise ValueError
    return value


def _port(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= value <= 65535:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if not match:
        raise ValueError
    value = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if not math.isfinite(value) or value <= 0:
        raise ValueError
    return value


def _optional(rule: Callable[[str], Any]) -> Callable[[str], Any]:
    """`off` means none."""
    return lambda text: None if text.lower() == "off" else rule(text)


def _one_of(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for name in names:
            if text.lower() == name.lower():
                return name
        raise ValueError

    return parse


def _url(text: str) -> str:
    parts = urlsplit(text)
    port = parts.port  # raises ValueError when it is none
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or re.search(r"\s", text):
        raise ValueError
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("!must not hold credentials, a query or a fragment")
    return text.rstrip("/")


def _prometheus_url(text: str) -> str:
    return text  # judged by the probe, with the wire's reason `invalid_prometheus_url`


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name for name in re.split(r"[\s,]+", text) if name)
    if not all(re.fullmatch(r"[A-Z][A-Z0-9_]{0,255}", name) for name in names):
        raise ValueError
    return names


_BOOL_FIX = "must be true or false"
_PORT_FIX = "must be a port number, 0 to 65535"
_COUNT_FIX = "must be a positive whole number"

VARIABLES: Mapping[str, Variable] = {
    "AGENT_KEY": Variable(_text, "", "must be the key that the cloud gave you", secret=True),
    "AGENT_KEY_FILE": Variable(_text, None, "must be the path of a file that holds the key"),
    "CLOUD_SERVER_URL": Variable(_url, "https://use.observer", "must be a URL such as https://use.observer"),
    "CLOUD_DIALECT": Variable(_one_of("observer", "lighthouse"), "observer", "must be observer"),
    "DEFINITIONS_FILE": Variable(_text, None, "must be the path of a document of definitions"),
    "PROMETHEUS_SERVER_URL": Variable(_prometheus_url, None, "must be a URL such as http://127.0.0.1:9090"),
    "PROMETHEUS_BASIC_AUTH_ENABLED": Variable(_exactly_true, "true", _BOOL_FIX),
    "PROMETHEUS_USERNAME": Variable(_text, "admin", "must be a user name"),
    "PROMETHEUS_PASSWORD": Variable(_text, "", "must be a password", secret=True),
    "PROMETHEUS_BEARER_TOKEN": Variable(_text, None, "must be a token", secret=True),
    "PROMETHEUS_TENANT_ID": Variable(_text, None, "must be a tenant id"),
    "PROMETHEUS_HEADERS": Variable(_text, None, "must be a JSON object or Name: value items", secret=True),
    "PROBE_FAILURE_STATUS": Variable(_one_of("no_data", "unhealthy"), "no_data", "must be no_data or unhealthy"),
    "PROBE_ENV_ALLOW": Variable(_names, "", "must be names of environment variables, separated by commas"),
    "POLICY_FILE": Variable(_text, None, "must be the path of a file with the operator's policy"),
    "PROBE_CUSTOM_DIR": Variable(_text, CUSTOM_DIR, "must be the path of a directory with custom probes"),
    "BUFFER_PATH": Variable(Path, "./observer-agent-buffer.db", "must be the path of the queue file"),
    "BUFFER_MAX_ROWS": Variable(_positive, "10000", _COUNT_FIX),
    "BUFFER_MAX_BYTES": Variable(_optional(_positive), "off", "must be a positive number of bytes, or off"),
    "BUFFER_MAX_AGE": Variable(_optional(_seconds), "off", "must be a time such as 3600, 90m or 7d, or off"),
    "BUFFER_SYNC": Variable(_one_of("normal", "full"), "normal", "must be normal or full"),
    "SKIP_SSL_VERIFICATION": Variable(_bool, "false", _BOOL_FIX),
    "VERBOSE": Variable(_bool, "false", _BOOL_FIX),
    "LOG_FORMAT": Variable(_one_of("auto", "text", "json", "journald"), "auto", "must be auto, text, json or journald"),
    "BROADCAST_LOGS": Variable(_bool, "false", _BOOL_FIX),
    "LOG_BROADCAST_LEVEL": Variable(
        _one_of("DEBUG", "INFO", "WARN", "ERROR"), "WARN", "must be DEBUG, INFO, WARN or ERROR"
    ),
    "ENABLE_DEBUG_DASHBOARD": Variable(_bool, "true", _BOOL_FIX),
    "DEBUG_DASHBOARD_HOST": Variable(_text, "127.0.0.1", "must be an address to listen on"),
    "DEBUG_DASHBOARD_PORT": Variable(_port, "10101", _PORT_FIX),
    "DEBUG_DASHBOARD_TOKEN": Variable(_text, None, "must be a token", secret=True),
    "HEARTBEAT_RELAY_ENABLED": Variable(_bool, "false", _BOOL_FIX),
    "HEARTBEAT_RELAY_HOST": Variable(_text, "127.0.0.1", "must be an address to listen on"),
    "HEARTBEAT_RELAY_PORT": Variable(_port, "10102", _PORT_FIX),
    "OBSERVER_OTLP_DISABLE": Variable(_bool, "false", _BOOL_FIX),
    "OBSERVER_OTLP_LISTEN_ADDR": Variable(_text, "127.0.0.1:4318", "must be host:port"),
    "OBSERVER_OTLP_BEARER_TOKEN": Variable(_text, None, "must be a token", secret=True),
    "OBSERVER_OTLP_MAX_BODY_BYTES": Variable(_positive, "16777216", _COUNT_FIX),
    "OBSERVER_OTLP_MAX_BUFFER_POINTS": Variable(_positive, "1000", _COUNT_FIX),
}
