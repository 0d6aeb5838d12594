"""The YAML file of the original Lighthouse agent, read as it is: its keys become settings of ours.

A path in, texts by the names of our settings out, with the keys that nobody knows. Read at the start and at a reload.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from observer_agent.errors import ConfigError
from observer_agent.nodes import Complaint, Map, Values, shown

KEYS = {
    "token": "LIGHTHOUSE_TOKEN",
    "agent.data_dir": "LIGHTHOUSE_DATA_DIR",
    "agent.max_concurrent_checks": "LIGHTHOUSE_MAX_CONCURRENT_CHECKS",
    "agent.log_level": "LIGHTHOUSE_LOG_LEVEL",
    "agent.health_port": "LIGHTHOUSE_HEALTH_PORT",
    "agent.proc_root": "LIGHTHOUSE_PROC_ROOT",
    "agent.host_root": "LIGHTHOUSE_HOST_ROOT",
    "agent.role": "LIGHTHOUSE_ROLE",
    "discovery.enabled": "LIGHTHOUSE_DISCOVERY_ENABLED",
    "discovery.namespaces": "LIGHTHOUSE_DISCOVERY_NAMESPACES",
}
SECTIONS = frozenset(name.partition(".")[0] for name in KEYS if "." in name)


class Found(NamedTuple):
    """What the file sets, and what it holds besides, each as `line N: key`."""

    values: Mapping[str, str]
    unknown: tuple[str, ...]


def read(file: Path) -> Found:
    """The file's settings; one that does not exist sets nothing, as in the original. Raises ConfigError."""
    unknown: list[str] = []
    try:
        text = file.read_text(encoding="utf-8")
        tree = Values(lambda line, text: unknown.append(f"line {line}: {text}")).read(text)
    except FileNotFoundError:
        return Found({}, ())
    except OSError as error:
        raise ConfigError("LIGHTHOUSE_CONFIG", str(file), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("LIGHTHOUSE_CONFIG", str(file), "must be UTF-8") from None
    except Complaint as error:
        raise ConfigError("LIGHTHOUSE_CONFIG", str(file), f"line {error.line}: {error.text}") from None
    if tree is not None and not isinstance(tree, Map):
        raise ConfigError("LIGHTHOUSE_CONFIG", str(file), "must be a mapping of keys")
    values: dict[str, str] = {}
    for name, line, value in _leaves(tree or Map()):
        if name not in KEYS:
            unknown.append(f"line {line}: {shown(name)} is not a key of the Lighthouse agent")
        elif value is not None:
            values[KEYS[name]] = _text(name, value, f"{file}, line {line}")
    return Found(values, tuple(unknown))


def _leaves(tree: Map) -> Iterator[tuple[str, int, Any]]:
    for name, value in tree.items():
        if name in SECTIONS and isinstance(value, Map):
            for inner, leaf in value.items():
                yield f"{name}.{inner}", value.at(inner), leaf
        elif name not in SECTIONS or value is not None:
            yield name, tree.at(name), value


def _text(name: str, value: object, where: str) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise ConfigError(name, f"(in {where})", "must be a text, a number, true or false, or a list of texts")
    if name == "agent.log_level" and value != "debug":
        return "info"  # as the original: nothing else changes anything
    return str(value)
