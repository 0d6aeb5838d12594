"""The objects of one kind in one namespace, kept as the items that they turn into: listed once, then watched.

Enters: pages of lists and events of watches from a `Connection`; leaves: `items`, `changed`, `answered`. A watch that
ends goes on where it was (bookmarks keep that place fresh); 410 means that the place is gone and the list is made
again. Items stay as they were while the API server cannot be asked. Runs on the thread of `Discovery`; never waits
longer than `kube.REACH_SECONDS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from observer_agent.clock import Clock
from observer_agent.clouds._lighthouse_wire import Discovered
from observer_agent.lighthouse import fanout
from observer_agent.lighthouse.kube import (
    BODY_MAX,
    PAGE,
    Connection,
    Kube,
    KubeError,
    TooLarge,
    metadata_of,
    objects_of,
    parsed,
)

GONE: Final = 410
DENIED: Final = 403
ABSENT: Final = 404
SETTLED_SECONDS: Final = 5.0  # a watch that lived so long was a good one
RETRY_MAX: Final = 30.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take, in seconds. Only tests want others."""

    answer: float = 30.0  # one page of a list
    watch: float = 300.0  # after which the server is asked to end a watch
    late: float = 15.0  # how much longer it may take to do so
    relist: float = 1800.0  # a full list at the end of the first watch after this long
    refused: float = 60.0  # between two tries of what is denied or absent
    patience: float = 10.0  # for which a refusal may be a role or a CRD that is not in force yet
    hasty: float = 2.0  # between two tries meanwhile
    retry: float = 1.0  # after the first failure; doubled up to RETRY_MAX
    quiet: float = 0.5  # without a change, before a snapshot leaves
    longest: float = 2.0  # since the first change that has not left
    resend: float = 2.0  # after the first snapshot that was not taken; doubled up to a minute
    page: int = PAGE


class Feed:
    """See the module. `answered` means that the API server has said what there is, or for long that we may not see."""

    def __init__(
        self, kind: fanout.Kind, namespace: str, kube: Kube, *, clock: Clock, random: Callable[[], float], pace: Pace
    ) -> None:
        self.kind, self.namespace = kind, namespace
        self.items: dict[tuple[str, str], tuple[Discovered, ...]] = {}
        self.answered = False
        self.changed = False
        self.problem = ""
        self.due = clock.monotonic()
        self.connection: Connection | None = None
        self._kube, self._clock, self._random, self._pace = kube, clock, random, pace
        self._fresh: dict[tuple[str, str], tuple[Discovered, ...]] = {}
        self._version = ""  # where the watch goes on; empty while a list is to be made
        self._continue = ""
        self._limit = pace.page
        self._body = bytearray()
        self._begun = self._until = self._relist_at = 0.0
        self._failures = 0
        self._refused_since: float | None = None

    @property
    def scope(self) -> str:
        """What it follows, for a log line."""
        return f"{self.kind.resource} in {f'namespace {self.namespace}' if self.namespace else 'all namespaces'}"

    @property
    def wake_at(self) -> float:
        """The monotonic moment at which `turn` has something to do even if nothing comes."""
        return self._until if self.connection else self.due

    def turn(self) -> None:
        """Asks what is due, or gives up what takes too long."""
        now = self._clock.monotonic()
        if self.connection and now >= self._until:
            self._failed(KubeError(0, "timed out"))
        elif not self.connection and now >= self.due:
            self._ask(None)

    def pump(self) -> None:
        """Takes what has come."""
        if not self.connection:
            return
        try:
            self._body += self.connection.pump()
            if len(self._body) > BODY_MAX:
                raise TooLarge(self.connection.status, f"more than {BODY_MAX >> 20} MiB in one answer")
            if self._version and self.connection.status == 200:
                self._take_events()
            if self.connection.ended:
                self._ended(self.connection)
        except KubeError as error:
            self._failed(error)

    def close(self) -> None:
        """Closes the connection."""
        if self.connection:
            self.connection.close()
        self.connection = None
        self._body.clear()

    def _ask(self, kept: Connection | None) -> None:
        """Asks for the next page of the list, or for the watch."""
        self._body.clear()
        self._begun = now = self._clock.monotonic()
        if self._version:
            query = {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": self._version,
                "timeoutSeconds": str(max(1, round(self._pace.watch))),
            }
            self._until = now + self._pace.watch + self._pace.late
        else:
            query = {"limit": str(self._limit)} | ({"continue": self._continue} if self._continue else {})
            self._until = now + self._pace.answer
        try:
            self.connection = self._kube.ask(self.kind.path(self.namespace), query, kept)
        except KubeError as error:
            self._failed(error)

    def _ended(self, connection: Connection) -> None:
        """An answer is complete."""
        if self._version:
            self._watch_ended(connection)
        else:
            self._take_page(parsed(connection.status, bytes(self._body)))
        if connection.reusable:
            self._ask(connection)
        else:
            self.close()
            self.due = self._clock.monotonic()

    def _watch_ended(self, connection: Connection) -> None:
        if connection.status != 200:
            parsed(connection.status, bytes(self._body))
        now = self._clock.monotonic()
        if now - self._begun < min(SETTLED_SECONDS, self._pace.watch / 2):
            raise KubeError(0, "the watch ended at once")
        self._failures = 0
        if now >= self._relist_at:
            self._version = ""

    def _take_page(self, answer: Mapping[str, Any]) -> None:
        for thing in objects_of(answer):
            if items := fanout.items_of(self.kind, thing):
                self._fresh[fanout.name_of(thing)] = items
        found = metadata_of(answer)
        self._continue = str(found.get("continue") or "")
        if self._continue:
            return
        version = found.get("resourceVersion")
        if not isinstance(version, str) or not version:
            raise KubeError(0, "the list has no resourceVersion")
        fresh, self._fresh = self._fresh, {}
        self._replace(fresh)
        self._version, self._limit = version, self._pace.page
        self._relist_at = self._clock.monotonic() + self._pace.relist * (0.9 + 0.2 * self._random())
        self.answered = True

    def _take_events(self) -> None:
        """Every complete line is an event; what is left of the last one stays. The watch is allowed and open."""
        self.problem, self._refused_since = "", None
        *lines, rest = bytes(self._body).split(b"\n")
        self._body[:] = rest
        for line in filter(None, lines):
            try:
                event = json.loads(line)
            except ValueError:
                raise KubeError(0, "an event is not JSON") from None
            if isinstance(event, dict) and isinstance(event.get("object"), dict):
                self._take_event(str(event.get("type")), event["object"])

    def _take_event(self, kind: str, thing: Mapping[str, Any]) -> None:
        if kind == "ERROR":
            self._version = ""  # nobody knows what was missed
            code = thing.get("code")
            raise KubeError(code if isinstance(code, int) else 0, str(thing.get("message") or "ERROR event")[:200])
        version = metadata_of(thing).get("resourceVersion")
        if isinstance(version, str) and version:
            self._version = version
        self._failures = 0
        if kind in ("ADDED", "MODIFIED", "DELETED"):
            key = fanout.name_of(thing)
            items = () if kind == "DELETED" else fanout.items_of(self.kind, thing)
            self.changed = self.changed or self.items.get(key, ()) != items
            self.items.pop(key, None)
            if items:
                self.items[key] = items

    def _replace(self, items: dict[tuple[str, str], tuple[Discovered, ...]]) -> None:
        self.changed = self.changed or items != self.items
        self.items = items

    def _failed(self, error: KubeError) -> None:
        """What was asked did not come: when it is asked again, and from where."""
        now = self._clock.monotonic()
        if self._version and self.connection and now - self._begun >= SETTLED_SECONDS:
            self._failures = 0
        self.close()
        self._fresh, self._continue = {}, ""
        self._failures += 1
        if error.status in (DENIED, ABSENT):
            self._refused(error, now)
            return
        if error.status == GONE:
            self._version = ""
        elif isinstance(error, TooLarge) and not self._version:
            self._limit = max(self._limit // 4, 1)
        elif self._failures > 1:  # one cut watch is nothing to speak of
            self.problem = f"status {error.status}: {error}" if error.status else str(error)
        at_once = error.status == GONE and self._failures == 1
        pause = min(self._pace.retry * 2.0 ** min(self._failures - 1, 10), RETRY_MAX)
        self.due = now if at_once else now + pause * (0.75 + 0.25 * self._random())

    def _refused(self, error: KubeError, now: float) -> None:
        """RBAC says no, or there is no such kind. Said for long enough it is an answer, and the others go on.

        What was seen before a denial stays: nobody knows that it is gone. What is absent is gone.
        """
        self._version = ""
        since = self._refused_since = now if self._refused_since is None else self._refused_since
        patient = now - since < self._pace.patience
        self.due = now + (self._pace.hasty if patient else self._pace.refused)
        if patient:
            return
        self.answered = True
        if error.status == ABSENT:
            self._replace({})
        self.problem = f"denied: {error}" if error.status == DENIED else ""
