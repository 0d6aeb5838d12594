"""Points to SVG path data and bars. Pure; what is drawn is said in words beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Point = tuple[float, float]


class Frame(NamedTuple):
    """What a drawing shows: from when to when, from which value to which, on how many units."""

    start: float
    end: float
    low: float
    high: float
    width: float = 600.0
    height: float = 100.0

    def x(self, at: float) -> float:
        """Where an instant lies."""
        return (at - self.start) / max(self.end - self.start, 1e-9) * self.width

    def y(self, value: float) -> float:
        """Where a value lies; two units are left free above and below."""
        share = (value - self.low) / max(self.high - self.low, 1e-300)
        return self.height - 2 - min(max(share, 0.0), 1.0) * (self.height - 4)


class Curve(NamedTuple):
    """The path data of a curve and of the area under it."""

    line: str
    area: str


def curve(points: Sequence[Point], frame: Frame, gap: float = float("inf")) -> Curve:
    """Straight lines between points; a pause longer than `gap` seconds is left empty."""
    runs: list[list[Point]] = []
    last: float | None = None
    for at, value in points:
        if last is None or at - last > gap:
            runs.append([])
        runs[-1].append((frame.x(at), frame.y(value)))
        last = at
    lines, areas = [], []
    for run in runs:
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in (run if len(run) > 1 else [*run, (run[0][0] + 1, run[0][1])]))
        lines.append(f"M{line}")
        areas.append(f"M{run[0][0]:.1f} {frame.height:g}L{line}L{max(run[-1][0], run[0][0] + 1):.1f} {frame.height:g}Z")
    return Curve("".join(lines), "".join(areas))


def bounds(values: Sequence[float], zero: bool = True) -> tuple[float, float]:
    """The lowest and highest value to show, from zero where that is wanted; never the same."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return low - (0.0 if zero and low == 0 else abs(low) / 2 or 0.5), high + (abs(high) / 2 or 1.0)
    return low, high


def spark(points: Sequence[Point], width: float = 100.0, height: float = 20.0) -> str:
    """The path data of a small curve that fills its frame; empty for less than two points."""
    if len(points) < 2:
        return ""
    values = [value for _, value in points]
    low, high = bounds(values, zero=False)
    return curve(points, Frame(points[0][0], points[-1][0], low, high, width, height)).line


class Bar(NamedTuple):
    """A day, or an hour: `bad` is the height from the top that was not up; `kind` names its class."""

    x: float
    bad: float
    kind: str


def strip(bars: Iterable[Bar], height: float = 30.0, width: float = 8.0) -> tuple[str, str]:
    """The path data of the days of which something is known and of those of which nothing is, each as one path."""
    known, empty = [], []
    for each in bars:
        if each.kind in ("none", "unknown"):
            empty.append(f"M{each.x:g} {height * 0.8:g}h{width:g}v{height * 0.2:g}h-{width:g}z")
        else:
            known.append(f"M{each.x:g} 0h{width:g}v{height:g}h-{width:g}z")
    return "".join(known), "".join(empty)


def bar(x: float, shares: tuple[float, float, float, float], height: float = 30.0) -> Bar:
    """A bar of the seconds up, degraded, down and unknown; the smallest trouble is still to be seen."""
    up, degraded, down, unknown = shares
    known = up + degraded + down
    if known <= 0:
        return Bar(x, 0, "none" if unknown <= 0 else "unknown")
    trouble = (degraded + down) / known
    bad = 0.0 if trouble <= 0 else max(trouble, 0.35) * height
    return Bar(x, round(bad, 1), "down" if down > 0 else "degraded" if degraded > 0 else "up")
