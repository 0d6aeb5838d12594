"""What the hub does without being asked, each on a worker of its own: alerts that silence decides, statuses that
have held long enough, roll-ups, retention.

`start` is called by the front door with the hub's store; `stop` ends the workers. Several hub processes may do the same
things side by side: whoever changes a row locks it first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from observer_agent.clock import Clock
from observer_agent.errors import ConfigError
from observer_agent.hub import statuses
from observer_agent.hub.courier import Courier
from observer_agent.hub.guard import NOTHING_MORE, Allow, Guard
from observer_agent.hub.keep import Keep
from observer_agent.hub.lighthouse.judge import Silence
from observer_agent.hub.partitions import WEEK
from observer_agent.hub.patient import patient
from observer_agent.hub.post import Poster
from observer_agent.hub.remote import Exporter, Target
from observer_agent.hub.roller import Roller
from observer_agent.hub.settings import RemoteWrite
from observer_agent.hub.store import Store
from observer_agent.worker import Supervisor, Worker

log = logging.getLogger(__name__)

ALERTS_EVERY = 5.0
STATUSES_EVERY = 5.0
PARTS_EVERY = 3600.0
CLOCKS_EVERY = 900.0
CLOCKS_DIFFER = 5.0
STOP_SECONDS = 5.0


class Ticker:
    """The workers beside the server."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        remote: RemoteWrite | None = None,
        allow: Allow = NOTHING_MORE,
        *,
        keep: Keep | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._exporter = _exporter(store, clock, remote) if remote else None
        self._courier = Courier(store.database, clock, Poster(Guard(allow, clock), clock))
        self._roller = Roller(store.database, clock, keep)
        self._silence = Silence(store.database, clock, (keep or Keep()).events)
        self._supervisor = Supervisor()

    def also(self, name: str, step: Callable[[], float]) -> None:
        """One more step on a worker of its own."""
        self._supervisor.add(Worker(name, patient(step), self._clock))

    def start(self) -> None:
        """Starts every worker."""
        self.also("alerts", self._alerts)
        self.also("statuses", self._statuses)
        self.also("parts", self._parts)
        self.also("clocks", self._clocks)
        self.also("roll", self._roller.step)
        self.also("lighthouses", self._silence.step)
        self.also("jobs", self._store.jobs.step)
        self._supervisor.add(self._courier.worker)
        if self._exporter:
            self.also("export", self._exporter.step)

    def stop(self) -> None:
        """Ends the workers; waits for what they do at this moment, for all of them together `STOP_SECONDS`."""
        workers = list(self._supervisor.workers.values())
        for worker in workers:
            worker.stop()
        until = self._clock.monotonic() + STOP_SECONDS
        for worker in workers:
            worker.join(until - self._clock.monotonic())
        self._courier.stop()
        self._roller.stop()
        self._store.jobs.stop()
        if self._exporter:
            self._exporter.stop()

    def _alerts(self) -> float:
        self._store.judge.tick(self._store.database, self._clock)
        return ALERTS_EVERY

    def _parts(self) -> float:
        """The partitions of this week and of the next ones, long before a push needs them."""
        for weeks in (0, 1, 2):
            self._store.partitions.ensure(self._clock.now() + weeks * WEEK)
        return PARTS_EVERY

    def _clocks(self) -> float:
        """Each hub judges by its own clock, and they all look at the same instants."""
        ahead = self._store.database.ahead(self._clock.now)
        if abs(ahead) > CLOCKS_DIFFER:
            log.warning(
                "The clock here is %.0f s %s that of the database server; alerts and webhooks need clocks that agree",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
            )
        return CLOCKS_EVERY

    def _statuses(self) -> float:
        statuses.tick(self._store.database, self._clock.now())
        return STATUSES_EVERY


def _exporter(store: Store, clock: Clock, remote: RemoteWrite) -> Exporter:
    """Remote write; raises ConfigError where its libraries are missing."""
    headers = {"Authorization": f"Bearer {remote.token}"} if remote.token else {}
    try:
        return Exporter(store.database, clock, Target(remote.url, headers, remote.rows_max))
    except ImportError:
        fix = "needs the extra `export`: pip install 'observer-agent[hub,export]'"
        raise ConfigError("OBSERVER_HUB_REMOTE_WRITE_URL", "(set)", fix) from None
