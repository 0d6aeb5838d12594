"""What definitions of the type `otlp` look at: for each of them the freshest point that was pushed, and no other.

Points come from the receiver's threads, definitions from the agent, looks from the probe threads; one lock. A point's
time is the sender's, but never later than its arrival; its age goes on by the monotonic clock.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from observer_agent.clock import Clock
from observer_agent.probes._otlppoints import Batch, Point


class Want(NamedTuple):
    """What one definition looks at: a metric's name, and attributes that a stream must have."""

    metric_name: str
    filters: tuple[tuple[str, str], ...] = ()

    def fits(self, point: Point) -> bool:
        """Whether a point of this name belongs to it."""
        return all(point.attributes.get(name) == value for name, value in self.filters)


@dataclass(frozen=True, slots=True)
class Kept:
    """A point, when it was measured (wall clock), and when it came (monotonic)."""

    point: Point
    at: float
    arrived: float
    lag: float  # seconds that the sender's stamp was behind our clock on arrival; negative where it was ahead

    def age(self, now: float) -> float:
        """Seconds since it was measured; `now` is of the monotonic clock."""
        return max(0.0, self.lag) + now - self.arrived

    def fresher(self, other: Kept) -> bool:
        """Whether it was measured later; of two that claim the future, by what they claim."""
        return (self.at, self.point.time) >= (other.at, other.point.time)


class Requests(NamedTuple):
    """How many requests came, as the heartbeat tells it."""

    authenticated: int = 0
    rejected_auth: int = 0
    rejected_payload: int = 0


class Store:
    """See the module. `most` streams are told apart; the one longest without a point is forgotten first."""

    def __init__(self, clock: Clock, most: int) -> None:
        self._clock = clock
        self._most = most
        self._lock = threading.Lock()
        self._wants: Mapping[str, tuple[Want, ...]] = {}
        self._newest: dict[Want, Kept] = {}
        self._streams: OrderedDict[tuple[Want, bytes], None] = OrderedDict()
        self._of_want: Counter[Want] = Counter()
        self.subscriptions = 0
        self.received = 0
        self.dropped = 0
        self.requests = Requests()

    @property
    def streams(self) -> int:
        """How many streams are known."""
        return len(self._streams)

    def subscribe(self, wants: Iterable[Want]) -> None:
        """These are all there are; what belongs to no one any more is forgotten."""
        with self._lock:
            found = dict.fromkeys(wants)
            by_name: dict[str, tuple[Want, ...]] = {}
            for want in found:
                by_name[want.metric_name] = (*by_name.get(want.metric_name, ()), want)
            self._wants, self.subscriptions = by_name, len(found)
            self._newest = {want: kept for want, kept in self._newest.items() if want in found}
            for stream in [each for each in self._streams if each[0] not in found]:
                self._forget(stream)

    def wants(self, name: str) -> bool:
        """Whether anybody looks at a metric of this name."""
        return name in self._wants

    def keep(self, batch: Batch) -> None:
        """Takes the points of one request."""
        arrived, now = self._clock.monotonic(), self._clock.now()
        with self._lock:
            used = sum(self._take(_kept(point, arrived, now)) for point in batch.points)
            self.received += batch.seen
            self.dropped += batch.seen - used

    def count(self, authenticated: int = 0, rejected_auth: int = 0, rejected_payload: int = 0) -> None:
        """One more request of a kind."""
        with self._lock:
            was = self.requests
            self.requests = Requests(
                was.authenticated + authenticated,
                was.rejected_auth + rejected_auth,
                was.rejected_payload + rejected_payload,
            )

    def newest(self, want: Want) -> Kept | None:
        """The freshest point of a definition."""
        with self._lock:
            return self._newest.get(want)

    def streams_of(self, want: Want) -> int:
        """How many streams belong to a definition."""
        with self._lock:
            return self._of_want[want]

    def _take(self, kept: Kept) -> bool:
        """Whether the point is the freshest for anybody."""
        used = False
        for want in self._wants.get(kept.point.name, ()):
            if not want.fits(kept.point):
                continue
            self._note(want, _digest(kept.point.attributes))
            before = self._newest.get(want)
            if before is None or kept.fresher(before):
                self._newest[want] = kept
                used = True
        return used

    def _note(self, want: Want, digest: bytes) -> None:
        stream = want, digest
        if stream not in self._streams:
            self._of_want[want] += 1
        self._streams[stream] = None
        self._streams.move_to_end(stream)
        while len(self._streams) > self._most:
            self._forget(next(iter(self._streams)))

    def _forget(self, stream: tuple[Want, bytes]) -> None:
        del self._streams[stream]
        self._of_want[stream[0]] -= 1
        if not self._of_want[stream[0]]:
            del self._of_want[stream[0]]


def _kept(point: Point, arrived: float, now: float) -> Kept:
    time = point.time or now
    return Kept(point, min(time, now), arrived, now - time)


def _digest(attributes: Mapping[str, str]) -> bytes:
    text = repr(sorted(attributes.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
