"""Finds what could be watched in the cluster, and sends the whole of it whenever it has changed.

Enters: Ingresses, Services and HTTPRoutes of the API server, by a `Feed` for each kind and namespace; leaves: snapshots
of `Discovered` items, through `send`. A snapshot is what there is: the console takes away what it does not name. So
none leaves before every feed is `answered`, an empty one is sent as well, and one that was not taken is tried again.
Everything here runs on the thread of one worker, whose step is `Discovery.step`.
"""

from __future__ import annotations

import logging
import random as chance
import select
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from observer_agent.clock import Clock
from observer_agent.clouds._lighthouse_wire import Discovered
from observer_agent.lighthouse import fanout
from observer_agent.lighthouse.feed import Feed, Pace
from observer_agent.lighthouse.kube import REACH_SECONDS, SERVICE_ACCOUNT, Kube, in_cluster
from observer_agent.resolver import Resolver

log = logging.getLogger(__name__)

Snapshot = tuple[Discovered, ...]
LONGEST_WAIT: Final = 1.0  # a step ends after it at the latest, so that a stop is heard
RESEND_MAX: Final = 60.0
ALL: Final = "*"


class Discovery:
    """See the module. `namespaces` without any, or with `*`, are all; `send` says whether the console took it."""

    def __init__(
        self,
        kube: Kube,
        namespaces: Iterable[str],
        send: Callable[[Snapshot], bool],
        *,
        clock: Clock,
        random: Callable[[], float] = chance.random,
        pace: Pace | None = None,
    ) -> None:
        self._clock, self._random, self._send = clock, random, send
        self._pace = pace = pace or Pace()
        self.feeds = tuple(
            Feed(kind, namespace, kube, clock=clock, random=random, pace=pace)
            for namespace in scopes(namespaces)
            for kind in fanout.KINDS
        )
        self._said: dict[str, str] = {}
        self._sent: Snapshot | None = None
        self._changed_first = self._changed_last = 0.0
        self._pending = False
        self._complete = False
        self._refusals = 0
        self._resend_at = 0.0

    def step(self) -> float:
        """One turn: asks what is due, waits a moment for what comes, sends what has changed."""
        self._turn_feeds()
        pause = self._listen()
        self._note_changes()
        self._offer()
        return pause

    def forget(self) -> None:
        """The console is told again what there is, though nothing has changed: it may have lost it."""
        self._sent, self._pending = None, True

    def close(self) -> None:
        """Closes every connection; called once the worker has ended."""
        for feed in self.feeds:
            feed.close()

    def state(self) -> dict[str, object]:
        """What it sees and what it does not, for a page or a command. From any thread."""
        return {
            "complete": self._complete,
            "items": len(self._sent or ()),
            "unseen": {feed.scope: feed.problem for feed in self.feeds if feed.problem},
        }

    def _turn_feeds(self) -> None:
        """No longer than the API server may take to be reached, or a dead one would hang the turn for each feed."""
        until = self._clock.monotonic() + REACH_SECONDS / 2
        for feed in sorted(self.feeds, key=lambda feed: feed.wake_at):
            feed.turn()
            if self._clock.monotonic() > until:
                break

    def _listen(self) -> float:
        """Waits for events, as long as nothing else is to be done; the seconds that are left where none can come."""
        now = self._clock.monotonic()
        moments = [feed.wake_at for feed in self.feeds] + self._moments()
        wait = min(max(min(moments, default=now + LONGEST_WAIT) - now, 0.0), LONGEST_WAIT)
        poll, by_fd = select.poll(), {}
        for feed in self.feeds:
            connection = feed.connection  # `close` of another thread may take it away
            if connection and (fd := connection.fileno()) >= 0:
                by_fd[fd] = feed
                poll.register(fd, select.POLLIN)
        if not by_fd:
            return wait
        for fd, _ in poll.poll(wait * 1000):
            by_fd[fd].pump()
        return 0.0

    def _moments(self) -> list[float]:
        """When a snapshot is to leave."""
        if not (self._pending and self._complete):
            return []
        quiet = min(self._changed_last + self._pace.quiet, self._changed_first + self._pace.longest)
        return [max(quiet, self._resend_at)]

    def _note_changes(self) -> None:
        now = self._clock.monotonic()
        for feed in self.feeds:
            if feed.changed:
                feed.changed = False
                self._changed_last = now
                if not self._pending:
                    self._pending, self._changed_first = True, now
            if feed.problem != self._said.get(feed.scope, ""):
                self._say(feed)
        if not self._complete and all(feed.answered for feed in self.feeds):
            self._complete = self._pending = True

    def _say(self, feed: Feed) -> None:
        self._said[feed.scope] = feed.problem
        if feed.problem:
            log.warning(
                "Discovery does not see %s (%s); the other kinds and namespaces go on", feed.scope, feed.problem
            )
        else:
            log.info("Discovery sees %s again", feed.scope)

    def _offer(self) -> None:
        """Sends a snapshot where one is due and differs from what the console has."""
        moments = self._moments()
        if not moments or self._clock.monotonic() < moments[0]:
            return
        self._pending = False
        snapshot = self._snapshot()
        if snapshot == self._sent:
            return
        if self._send(snapshot):
            log.info("The console has %d discoveries", len(snapshot))
            self._sent, self._refusals, self._resend_at = snapshot, 0, 0.0
            return
        self._pending, self._refusals = True, self._refusals + 1
        pause = min(self._pace.resend * 2.0 ** min(self._refusals - 1, 10), RESEND_MAX) * (0.75 + 0.25 * self._random())
        self._resend_at = self._clock.monotonic() + pause
        log.warning("The console did not take %d discoveries; next try in %.0f s", len(snapshot), pause)

    def _snapshot(self) -> Snapshot:
        found = {item for feed in self.feeds for items in feed.items.values() for item in items}
        return tuple(sorted(found, key=fanout.order))


def scopes(namespaces: Iterable[str]) -> tuple[str, ...]:
    """The namespaces to follow, each once and in order; the empty one stands for all."""
    wanted = sorted({name.strip() for name in namespaces} - {""})
    if not wanted or ALL in wanted:
        return ("",)
    return tuple(name for name in wanted if name not in fanout.HIDDEN_NAMESPACES)


def discovery(
    env: Mapping[str, str],
    namespaces: Iterable[str],
    send: Callable[[Snapshot], bool],
    *,
    clock: Clock,
    resolver: Resolver,
    folder: Path = SERVICE_ACCOUNT,
    tell: Callable[[str], object] = lambda token: None,
) -> Discovery | None:
    """The discovery of the cluster that this process runs in; None, and a line that says why, where it cannot be.

    `tell` hears each token of the service account, to hide it.
    """
    account = in_cluster(env, folder, tell)
    if isinstance(account, str):
        log.warning("Discovery is asked for but cannot be done: %s", account)
        return None
    return Discovery(Kube(account, clock=clock, resolver=resolver), namespaces, send, clock=clock)
