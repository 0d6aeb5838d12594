"""How a figure is taken: interleaved runs, medians, CPU of this process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Figure(NamedTuple):
    """One run: operations, seconds of wall time, seconds of CPU of this process (user and system)."""

    count: int
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        return self.count / self.wall

    @property
    def cpu_us(self) -> float:
        return self.cpu / self.count * 1e6


def once(job: Callable[[], int]) -> Figure:
    """Runs a job, which returns how many operations it did."""
    begin, cpu = time.perf_counter(), time.process_time()
    count = job()
    return Figure(count, time.perf_counter() - begin, time.process_time() - cpu)


def interleaved(jobs: dict[str, Callable[[], int]], rounds: int = 5) -> dict[str, Figure]:
    """Every job in turn, `rounds` times after a warm-up; the run with the median rate of each."""
    runs: dict[str, list[Figure]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            figure = once(job)
            if turn:
                runs[name].append(figure)
    return {name: sorted(figures, key=lambda f: f.rate)[len(figures) // 2] for name, figures in runs.items()}


def median(values: list[float]) -> float:
    return statistics.median(values)
