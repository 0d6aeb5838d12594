"""What every dialect asks of the line under it: one request and its answer. Used on the thread whose line it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from observer_agent.transport import CALL_SECONDS, Reply


class Calls(Protocol):
    """What carries the calls: a `Transport`, or a line that follows a changing access."""

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = CALL_SECONDS,
    ) -> Reply:
        """One request and its answer within `seconds`."""

    def close(self) -> None:
        """Closes the kept connection."""
