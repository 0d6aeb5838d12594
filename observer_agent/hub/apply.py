"""A document of definitions to the store: read, validated by the agent's own parsers, applied by key."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observer_agent import document
from observer_agent.errors import DocumentError
from observer_agent.hub.store import Managed, Store

log = logging.getLogger(__name__)


def apply_file(store: Store, file: Path) -> bool:
    """Applies what the file holds and says whether anything changed; each fault is a warning. Raises DocumentError."""
    found = document.read(_text(file), str(file), check)
    for warning in found.warnings:
        log.warning("%s", warning)
    changed = store.apply(Managed(m.key, m.title, m.agent, m.wire) for m in found.metrics)
    said = "changed" if changed else "are as they were"
    log.info("The definitions %s: %d metrics in %s", said, len(found.metrics), file)
    return changed


def check(source_type: str, config: Mapping[str, Any]) -> None:
    """Holds a configuration against the parser of its source type; raises InvalidConfig."""
    from observer_agent import probes

    probes.parse(source_type, config)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not UTF-8 text"
        raise DocumentError(f"{file} cannot be read: {why}; name a readable document of definitions") from None
