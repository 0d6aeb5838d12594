"""A cloud that keeps what it is given: for dry runs and tests. Answers from a script, else accepts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from observer_agent.model import Answer, Batch, DefinitionSet, Fate, Health, Orders


class Memory:
    """Keeps batches, heartbeats and log lines in lists. `answers` are given out first, one a batch."""

    def __init__(self, answers: Iterable[Answer] = (), definitions: Iterable[Any] = ()) -> None:
        self.answers = deque(answers)
        self.rows = tuple(definitions)
        self.orders: deque[Orders] = deque()
        self.tried: list[Batch] = []
        self.batches: list[Batch] = []
        self.beats: list[Health] = []
        self.lines: list[Mapping[str, str]] = []
        self.batch_limit = 100

    def cut(self, batch: Batch) -> Batch:
        """All of it: any rows may go together."""
        return batch

    def deliver(self, batch: Batch) -> Answer:
        """The next scripted answer, else accepted."""
        self.tried.append(batch)
        answer = self.answers.popleft() if self.answers else Answer(Fate.ACCEPTED, 200)
        if answer.fate is Fate.ACCEPTED:
            self.batches.append(batch)
        return answer

    def beat(self, health: Health) -> Orders:
        """The next scripted orders, else none."""
        self.beats.append(health)
        return self.orders.popleft() if self.orders else Orders(True, 200)

    def definitions(self) -> DefinitionSet:
        """The rows it was made with."""
        return DefinitionSet(self.rows, None, status=200)

    def log(self, line: Mapping[str, str]) -> bool:
        """Keeps the line."""
        self.lines.append(line)
        return True

    def hurry(self, seconds: float) -> None:
        """Answers at once anyway."""

    def leave(self) -> None:
        """Nothing to close."""
