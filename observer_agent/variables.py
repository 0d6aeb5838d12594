"""The one table of settings: their names, defaults and rules, and the rules themselves.

Pure: a text in, a value out, or ValueError; one whose text begins with `!` says itself what is wrong. The parser, the
docs, `doctor` and `check` all read the table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

FOLDER = Path("/etc/observer-agent")  # where the packages keep config.toml, agent.env and agent_key
CUSTOM_DIR = str(FOLDER / "probes.d")  # the operator's own probes
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CONSOLE = "https://lighthouse.statusharbor.io"
THREADS = 96  # of probes
DATA_DIR = "/var/lib/lighthouse"


class Variable(NamedTuple):
    """One row of the table: how a text becomes a value; `fix` ends the sentence of a complaint."""

    parse: Callable[[str], Any]
    default: str | None
    fix: str
    secret: bool = False


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


def _console(text: str) -> str:
    url = _url(text)
    if not url.startswith("https://") and urlsplit(url).hostname not in LOOPBACK:
        raise ValueError("!must be https, or an address of this machine")
    return url


def _log_level(text: str) -> str:
    return "warn" if text.lower() == "warning" else _one_of("debug", "info", "warn", "error")(text)


def _concurrency(text: str) -> int:
    """As the original: 0 is the default, a negative number counts as 1; ours never has more than 96."""
    value = int(text)
    if not text.isascii() or "_" in text:
        raise ValueError
    return max(1, min(value or THREADS, THREADS))


def _namespaces(text: str) -> tuple[str, ...]:
    """Names of namespaces; none, and `*`, mean all of them."""
    names = tuple(dict.fromkeys(name for name in re.split(r"[\s,]+", text) if name))
    if "*" in names:
        return ()
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in names):
        raise ValueError
    return names


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
    "CLOUD_DIALECT": Variable(_one_of("observer", "lighthouse"), "observer", "must be observer or lighthouse"),
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
    "LIGHTHOUSE_CONFIG": Variable(_text, None, "must be the path of the original agent's YAML file"),
    "LIGHTHOUSE_TOKEN": Variable(_text, None, "must be the token that the console gave you", secret=True),
    "LIGHTHOUSE_TOKEN_FILE": Variable(_text, None, "must be the path of a file that holds the token"),
    "LIGHTHOUSE_URL": Variable(_console, CONSOLE, f"must be a URL such as {CONSOLE}"),
    "LIGHTHOUSE_WIRE": Variable(_one_of("current", "seed"), "current", "must be current or seed"),
    "LIGHTHOUSE_DATA_DIR": Variable(Path, DATA_DIR, "must be the path of a directory"),
    "LIGHTHOUSE_LOG_LEVEL": Variable(_log_level, "info", "must be debug, info, warn or error"),
    "LIGHTHOUSE_ROLE": Variable(_one_of("central", "host_metrics"), "central", "must be central or host_metrics"),
    "LIGHTHOUSE_MAX_CONCURRENT_CHECKS": Variable(_concurrency, "96", "must be a whole number"),
    "LIGHTHOUSE_HEALTH_HOST": Variable(_text, "0.0.0.0", "must be an address to listen on"),
    "LIGHTHOUSE_HEALTH_PORT": Variable(_port, "0", _PORT_FIX),
    "LIGHTHOUSE_HOST_METRICS": Variable(_bool, "false", _BOOL_FIX),
    "LIGHTHOUSE_PROC_ROOT": Variable(Path, "/proc", "must be the path of a procfs"),
    "LIGHTHOUSE_HOST_ROOT": Variable(Path, None, "must be the path of a directory"),
    "LIGHTHOUSE_DISCOVERY_ENABLED": Variable(_bool, "false", _BOOL_FIX),
    "LIGHTHOUSE_DISCOVERY_NAMESPACES": Variable(_namespaces, "", "must be names of namespaces, separated by commas"),
    "NODE_NAME": Variable(_text, None, "must be the name of this node"),
}
