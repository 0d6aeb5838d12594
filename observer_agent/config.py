"""Environment, an optional TOML file and systemd's credential in; frozen `Settings` out.

Names, defaults and rules are in `variables.py`. The environment wins over the file, and that over the YAML file of the
original Lighthouse agent. A complaint names the key, the value as it may be shown, and the fix. Runs at the start and
at a reload.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from observer_agent import lighthousefile
from observer_agent.errors import ConfigError
from observer_agent.logs import Redactor
from observer_agent.variables import CUSTOM_DIR, FOLDER, LOOPBACK, VARIABLES, Variable

__all__ = [
    "CUSTOM_DIR", "EXIT_CONFIG", "FOLDER", "LIGHTHOUSE", "LOOPBACK", "VARIABLES", "Settings", "Variable",
    "environment", "load", "masked", "origin", "read_env_file", "read_key", "renewed", "usual_file",
]  # fmt: skip

EXIT_CONFIG = 78  # sysexits.h EX_CONFIG
LIGHTHOUSE = "lighthouse"
YAML = (".yaml", ".yml")
# What is another default in this dialect; the log is debug lines where LIGHTHOUSE_LOG_LEVEL says so.
LIGHTHOUSE_DEFAULTS = {"ENABLE_DEBUG_DASHBOARD": "false", "OBSERVER_OTLP_DISABLE": "true"}
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
    lighthouse_config: str | None
    lighthouse_token: str | None
    lighthouse_token_file: str | None
    lighthouse_url: str
    lighthouse_wire: str
    lighthouse_data_dir: Path
    lighthouse_log_level: str
    lighthouse_role: str
    lighthouse_max_concurrent_checks: int
    lighthouse_health_host: str
    lighthouse_health_port: int
    lighthouse_host_metrics: bool
    lighthouse_proc_root: Path
    lighthouse_host_root: Path | None
    lighthouse_discovery_enabled: bool
    lighthouse_discovery_namespaces: tuple[str, ...]
    node_name: str | None


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
    if any(os.access(folder / name, os.R_OK) for name in ("agent_key", "lighthouse_token")):
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
    given = _given(env, file)
    values: dict[str, Any] = {name.lower(): _value(name, given.get(name)) for name in VARIABLES}
    second = values["cloud_dialect"] == LIGHTHOUSE
    if second:
        values["cloud_server_url"] = values["lighthouse_url"]
        values["verbose"] = values["verbose"] or values["lighthouse_log_level"] == "debug"
    name = "LIGHTHOUSE_TOKEN" if second else "AGENT_KEY"
    values["agent_key"] = read_key(given, env, name) if to_run else ""
    settings = Settings(**values)
    if to_run:
        _cross_check(settings)
    return settings


def _given(env: Mapping[str, str], file: Path | None) -> dict[str, str]:
    """What is set, and by which text: the environment, then the file, then the original agent's YAML file."""
    own = {k: v for k, v in env.items() if k in VARIABLES}
    yaml = file if file and file.suffix in YAML else None
    given = {**({} if yaml else _read_file(file)), **own}
    if _value("CLOUD_DIALECT", given.get("CLOUD_DIALECT")) != LIGHTHOUSE:
        return given if yaml is None else {**_read_file(yaml), **own}
    if yaml:
        given["LIGHTHOUSE_CONFIG"] = str(yaml)
    if path := given.get("LIGHTHOUSE_CONFIG"):
        given = {**lighthousefile.read(Path(path)).values, **given}
    queue = Path(given.get("LIGHTHOUSE_DATA_DIR") or VARIABLES["LIGHTHOUSE_DATA_DIR"].default or "", "events.db")
    return {**LIGHTHOUSE_DEFAULTS, "BUFFER_PATH": str(queue), **{k: v for k, v in given.items() if v.strip()}}


def read_key(given: Mapping[str, str], env: Mapping[str, str], name: str = "AGENT_KEY") -> str:
    """The key from AGENT_KEY, AGENT_KEY_FILE or the credential `agent_key`, in this order, then from the file.

    `name` is LIGHTHOUSE_TOKEN in the other dialect. Raises ConfigError.
    """
    text, source = _find_key(env, name)
    credential = _find_credential(env, name.lower())
    if not text and credential:
        source = f"credential {name.lower()}"
        text = _read_key_file(source, credential)
        text = "" if text == "unset" else text
    if not text:
        text, source = _find_key(given, name)
    what = "token" if name == "LIGHTHOUSE_TOKEN" else "key"
    if not text:
        raise ConfigError(name, "(unset)", f"set {name}, or {name}_FILE to a file that holds the {what}")
    if not _KEY.fullmatch(text):
        raise ConfigError(source, "(hidden)", f"the {what} must be 1 to 256 printable ASCII characters without blanks")
    return text


def _find_credential(env: Mapping[str, str], name: str) -> Path | None:
    """systemd's credential, which it copies at a start; first the copy that a reload has brought, if there is one."""
    folders = [env[name] for name in ("RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY") if env.get(name)]
    files = [Path(folder, name) for folder in folders]
    return next((file for file in files if file.exists()), None)


def _find_key(given: Mapping[str, str], name: str) -> tuple[str, str]:
    """The key that AGENT_KEY or AGENT_KEY_FILE gives, and which of them did."""
    text = given.get(name, "").strip()
    if text or not given.get(f"{name}_FILE"):
        return text, name
    return _read_key_file(f"{name}_FILE", Path(given[f"{name}_FILE"])), f"{name}_FILE"


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
    if settings.cloud_dialect == LIGHTHOUSE:
        return  # its directory is made at the start
    folder = settings.buffer_path.parent
    if not folder.is_dir():
        raise ConfigError("BUFFER_PATH", str(settings.buffer_path), f"the directory {folder} does not exist: make it")
