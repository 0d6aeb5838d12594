"""The sender: peek a batch, deliver it, settle it by the answer, say when next.

`step` runs on the thread `send`; `heartbeat` is called from the thread `beat`. The whole answer table of
docs/delivery.md is here but for the mapping of statuses, which the dialect does. Rows leave the queue only in `settle`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from observer_agent import backoff
from observer_agent.clock import Clock
from observer_agent.errors import QueueError
from observer_agent.logs import Throttle
from observer_agent.model import Answer, Batch, Fate, Loss

log = logging.getLogger(__name__)

BATCH = 100
IDLE = 30.0  # a put rings; this is only the longest silence
FENCED_PAUSE = 5.0
FENCED_WARN = 300.0
WARN = 60.0
DISK_PAUSE = 5.0
DOUBLE_AFTER = 10  # accepted batches after which a halved batch size doubles
POISON_AFTER = 10  # failures of the head batch after which it is suspected
SUSPECTS_MAX = 100


class Queue(Protocol):
    """What the sender asks of the queue."""

    depth: int

    def peek(self, limit: int, after: int = 0, upto: int | None = None) -> Batch | None:
        """The oldest rows, in flight until settled."""

    def settle(self, batch: Batch, answer: Answer, loss: Loss = Loss.REFUSED) -> None:
        """Closes a batch."""


class Cloud(Protocol):
    """What the sender asks of the cloud."""

    @property
    def batch_limit(self) -> int:
        """Most rows of the next request."""

    def cut(self, batch: Batch) -> Batch:
        """The first rows of a batch, as many as can go in one request."""

    def deliver(self, batch: Batch) -> Answer:
        """Posts a batch."""

    def hurry(self, seconds: float) -> None:
        """Calls from now on may take at most `seconds`."""


@dataclass
class Outage:
    """Failures in a row, and until when the sender waits."""

    attempt: int = 0
    since: float = 0.0
    until: float = 0.0
    deaf: bool = False  # only the end of the wait counts: a Retry-After, or the pause after a 409

    def wait(self, now: float, seconds: float, deaf: bool) -> None:
        """The next request not before `seconds` from now."""
        self.until, self.deaf = now + seconds, deaf


@dataclass
class Hunt:
    """The search for rows that the cloud will never take.

    `cuts` are row ids at which the batch is cut, the nearest last. `failures` counts those of the batch whose first
    row is `head`. `suspects`, one after the other from the head on, failed alone and wait for the row behind them to be
    accepted. Then they are tried once more (`trials`), because it may have been an outage; those that fail again are
    `convicted`, and go when yet another row is accepted.
    """

    head: int = 0
    failures: int = 0
    on: bool = False
    cuts: list[int] = field(default_factory=list)
    suspects: list[Batch] = field(default_factory=list)
    trials: list[Batch] = field(default_factory=list)
    convicted: list[Batch] = field(default_factory=list)

    def cut(self, batch: Batch) -> None:
        """Halves a batch of more than one row."""
        if not self.cuts:
            self.cuts.append(batch.rows[-1].id)
        self.cuts.append(batch.rows[len(batch) // 2 - 1].id)

    def passed(self, row_id: int) -> None:
        """Everything up to a row has left: cuts before it are done."""
        self.cuts = [cut for cut in self.cuts if cut > row_id]

    @property
    def alone(self) -> list[Batch]:
        """The rows that failed alone, whatever has become of them."""
        return [*self.convicted, *self.trials, *self.suspects]

    def after(self) -> int:
        """Where to peek: behind all that failed alone."""
        return max((batch.rows[0].id for batch in self.alone), default=0)

    def is_trial(self, batch: Batch) -> bool:
        """Whether this is the suspect's second chance."""
        return bool(self.trials) and self.trials[0].rows[0].id == batch.rows[0].id

    def is_over(self) -> bool:
        """Whether nothing is left to be found out."""
        return not (self.cuts or self.alone)


class Sender:
    """See the module. `random` returns 0 to 1.

    After a batch that was not full rows gather for `gather` seconds: a request a row would cost more than the probes.
    """

    def __init__(
        self, queue: Queue, cloud: Cloud, clock: Clock, random: Callable[[], float], *, gather: float = 0.0
    ) -> None:
        self._queue = queue
        self._cloud = cloud
        self._clock = clock
        self._random = random
        self._gather = gather
        self._outage = Outage()
        self._hunt = Hunt()
        self._limit = BATCH
        self._good = 0
        self._more = False  # the batch was cut: rows wait behind it
        self._beats = False
        self._warn = Throttle(clock, WARN)
        self._warn_fenced = Throttle(clock, FENCED_WARN)
        self._retired = False
        self.wake: Callable[[], object] = lambda: None
        self.on_accepted: Callable[[int], object] = lambda n: None
        self.last_push: float | None = None
        self.last_answer: Answer | None = None
        self.fenced_by: str | None = None
        self.refused = 0

    # -- what other threads may call

    def heartbeat(self, ok: bool) -> None:
        """The heartbeat's outcome; one that succeeds ends a wait that no Retry-After asked for."""
        self._beats = ok
        if ok and self._outage.attempt and not self._outage.deaf:
            self._outage.until = 0.0
            self.wake()

    @property
    def failing_since(self) -> float | None:
        """The monotonic moment of the first of the failures in a row; None while the cloud takes rows."""
        return self._outage.since if self._outage.attempt else None

    def flush(self, deadline: float) -> None:
        """Sends what it can until `deadline` (monotonic) or the first row that the cloud does not take.

        Called at the stop, when no thread runs `step` any more.
        """
        pause = 0.0
        while pause <= self._gather and self._queue.depth and not self._outage.attempt:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            self._cloud.hurry(left)
            pause = self.step()

    def successor(self, cloud: Cloud) -> Sender:
        """Another sender in place of this one, whose thread hangs: this one will touch no row any more."""
        self._retired = True
        fresh = Sender(self._queue, cloud, self._clock, self._random, gather=self._gather)
        fresh.wake, fresh.on_accepted = self.wake, self.on_accepted
        fresh.last_push, fresh.fenced_by, fresh.refused = self.last_push, self.fenced_by, self.refused
        return fresh

    def _is_retired(self) -> bool:
        return self._retired

    # -- the turn

    def step(self) -> float:
        """One request at most; returns the seconds until the next."""
        wait = self._outage.until - self._clock.monotonic()
        if wait > 0:
            return wait
        try:
            return self._turn()
        except QueueError as error:
            if self._warn.ready("queue"):
                log.error("The queue file refuses (%s); samples stay and are tried again", error)
            return DISK_PAUSE

    def _turn(self) -> float:
        batch = self._peek()
        batch = self._fitting(batch) if batch else None
        if batch is None or self._is_retired():
            return IDLE
        answer = self._cloud.deliver(batch)
        if self._is_retired():
            return IDLE  # it hung: the rows are another sender's now, and the cloud skips those that it has
        self.last_answer = answer
        return self._ANSWERS[answer.fate](self, batch, answer)

    def _peek(self) -> Batch | None:
        hunt = self._hunt
        while hunt.trials:
            row_id = hunt.trials[0].rows[0].id
            if trial := self._queue.peek(1, row_id - 1, row_id):
                return trial
            hunt.trials.pop(0)  # evicted meanwhile
        limit = 1 if hunt.alone else min(self._limit, self._cloud.batch_limit)
        batch = self._queue.peek(limit, hunt.after(), hunt.cuts[-1] if hunt.cuts else None)
        if batch is None and hunt.convicted:
            hunt.trials, hunt.convicted, hunt.suspects = hunt.alone, [], []  # nobody else is there: once more
            return self._peek()
        if batch is None and not hunt.is_over():
            self._hunt = Hunt()
            return self._peek()
        return batch

    def _fitting(self, batch: Batch) -> Batch | None:
        """What of a batch can go in one request; only that is in flight then."""
        fit = self._cloud.cut(batch)
        self._more = len(fit) < len(batch)
        if not self._more:
            return batch
        return self._queue.peek(len(fit), batch.rows[0].id - 1, fit.rows[-1].id)

    def _accepted(self, batch: Batch, answer: Answer) -> float:
        self._queue.settle(batch, answer)
        self._recovered()
        self.fenced_by = None
        full = self._more or len(batch) >= min(self._limit, self._cloud.batch_limit)
        self._good += 1
        if self._good >= DOUBLE_AFTER:
            self._limit, self._good = min(self._limit * 2, BATCH), 0
        if answer.rejects:
            self.refused += len(answer.rejects)
            first = "; ".join(f"row {r.index}: {r.field} {r.code}" for r in answer.rejects[:3])
            log.warning("The cloud rejected %d of %d rows (%s)", len(answer.rejects), len(batch), first)
        self.on_accepted(len(batch) - len(answer.rejects))
        self.last_push = self._clock.now()
        hunt = self._hunt
        if hunt.is_trial(batch):
            hunt.trials.pop(0)
        else:
            self._condemn()
            hunt.trials, hunt.suspects = hunt.suspects, []
            hunt.passed(batch.rows[-1].id)
        if not hunt.is_over():
            return 0.0
        self._hunt = Hunt()  # the head batch has left: what is blamed next begins at nought
        return 0.0 if full else self._gather

    def _refused(self, batch: Batch, answer: Answer) -> float:
        self._recovered()
        if len(batch) > 1:
            self._queue.settle(batch, Answer(Fate.LATER))
            self._hunt.cut(batch)
            return 0.0
        self._queue.settle(batch, answer)
        self._hunt.passed(batch.rows[-1].id)
        self.refused += 1
        if self._warn.ready("refused"):
            log.warning("The cloud refused a row (status %d: %r); it is kept as a dead letter", *_said(answer))
        return 0.0

    def _fenced(self, batch: Batch, answer: Answer) -> float:
        self._queue.settle(batch, answer)
        self._recovered()
        self._hunt = Hunt()
        self.fenced_by = answer.newer_started_at or "unknown"
        if self._warn_fenced.ready():
            log.warning(
                "Another process, started at %s, uses this agent's key; %d samples were dropped, and more will be. "
                "Stop one of the two, or give each a key of its own",
                self.fenced_by,
                len(batch),
            )
        self._outage.wait(self._clock.monotonic(), FENCED_PAUSE, deaf=True)
        return FENCED_PAUSE

    def _too_large(self, batch: Batch, answer: Answer) -> float:
        self._limit, self._good = max(1, len(batch) // 2), 0
        return self._later(batch, answer)

    def _later(self, batch: Batch, answer: Answer) -> float:
        self._queue.settle(batch, answer)
        now, outage = self._clock.monotonic(), self._outage
        outage.attempt += 1
        if outage.attempt == 1:
            outage.since = now
        self._suspect(batch, answer)
        asked = answer.retry_after or 0.0  # one of 0, or a date gone by, asks for nothing
        wait = asked or backoff.later(outage.attempt, now - outage.since, self._random())
        outage.wait(now, wait, deaf=asked > 0)
        if self._warn.ready(f"later {answer.status}"):
            log.warning(
                "The cloud did not take a batch (status %d: %r); %d samples wait, next try in %.1f s",
                *_said(answer),
                self._queue.depth,
                wait,
            )
        return wait

    def _again(self, batch: Batch, answer: Answer) -> float:
        self._queue.settle(batch, answer)
        return 0.0

    _ANSWERS = {  # noqa: RUF012  # a table, never changed
        Fate.ACCEPTED: _accepted,
        Fate.REFUSED: _refused,
        Fate.FENCED: _fenced,
        Fate.TOO_LARGE: _too_large,
        Fate.LATER: _later,
        Fate.AGAIN: _again,
    }

    # -- poison

    def _suspect(self, batch: Batch, answer: Answer) -> None:
        """Ten failures of the head batch while heartbeats succeed start a bisection (docs/delivery.md, "Poison")."""
        hunt = self._hunt
        if not (answer.blames and self._beats):
            self._hunt = Hunt()
            return
        if not hunt.on:
            head = batch.rows[0].id
            hunt.failures = hunt.failures + 1 if hunt.head == head else 1
            hunt.head = head
            hunt.on = hunt.failures >= POISON_AFTER
            return
        if hunt.is_trial(batch):
            hunt.convicted.append(hunt.trials.pop(0))
        elif len(batch) > 1:
            hunt.cut(batch)
        elif len(hunt.suspects) < SUSPECTS_MAX:
            hunt.suspects.append(batch)
            hunt.cuts = []
        else:
            self._hunt = Hunt()  # nothing gets through: an outage, every row stays

    def _condemn(self) -> None:
        """Another row was accepted after the last failure of these: they become dead letters."""
        convicted, self._hunt.convicted = self._hunt.convicted, []
        for batch in convicted:
            self._queue.settle(
                batch, Answer(Fate.REFUSED, text="failed alone, twice, while others passed"), Loss.POISON
            )
            self.refused += 1
            log.error("A row made the cloud fail, alone and twice, while others passed; it is kept as a dead letter")

    def _recovered(self) -> None:
        """The cloud answers for the rows: the outage is over."""
        if self._outage.attempt:
            seconds = self._clock.monotonic() - self._outage.since
            log.info("The cloud takes samples again after %.0f s; %d wait", seconds, self._queue.depth)
        self._outage = Outage()


def _said(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.text
