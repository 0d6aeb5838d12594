"""What the hub does without being asked, each on a worker of its own: alerts that silence decides.

`start` is called by the front door with the hub's store; `stop` ends the workers. Several hub processes may do the same
things side by side: whoever changes a row locks it first.
"""

from __future__ import annotations

from observer_agent.clock import Clock
from observer_agent.hub.store import Store
from observer_agent.worker import Supervisor, Worker

ALERTS_EVERY = 5.0
STOP_SECONDS = 5.0


class Ticker:
    """The workers beside the server."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._supervisor = Supervisor()

    def start(self) -> None:
        """Starts every worker."""
        self._supervisor.add(Worker("alerts", self._alerts, self._clock))

    def stop(self) -> None:
        """Ends the workers; waits for what they do at this moment."""
        workers = list(self._supervisor.workers.values())
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.join(STOP_SECONDS)

    def _alerts(self) -> float:
        self._store.judge.tick(self._store.database, self._clock.now())
        return ALERTS_EVERY
