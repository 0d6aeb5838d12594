"""AWS credentials in memory: those that end are kept until five minutes before they do.

One `Wallet` in an agent's tools; safe from any thread. Knows nothing of where credentials come from.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

KEPT: Final = 64
EARLY: Final = 300.0  # seconds before their end at which credentials are renewed


class Keys(NamedTuple):
    """Credentials; `expires` is seconds since 1970, None for those that do not."""

    access: str
    secret: str
    token: str | None = None
    expires: float | None = None


class Wallet:
    """Temporary credentials by what they were made for; safe from any thread."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, ...], Keys] = OrderedDict()
        self._lock = threading.Lock()
        self.library: Any = None  # what signs, once it has been imported

    def get(self, key: tuple[str, ...], make: Callable[[], Keys], now: float) -> Keys:
        """The keys for `key`, made if need be; two threads may make them at once, which does no harm."""
        with self._lock:
            found = self._kept.get(key)
            if found and (found.expires is None or now < found.expires - EARLY):
                self._kept.move_to_end(key)
                return found
        made = make()
        with self._lock:
            self._kept[key] = made
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return made
