"""What the doctor says: findings, checks, and the report as facts, text and exit code. Pure.

Every text passes the redactor on its way into the report, and is one line: a name may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from observer_agent import __version__
from observer_agent.doctor._catalog import CHECKS, FINDINGS, Severity, blame

TEXT_MAX = 400
PLAIN = {"ok": "ok  ", "skipped": "skip", Severity.WARNING: "warn", Severity.BROKEN: "BAD "}
SIGNS = {"ok": "✓", "skipped": "-", Severity.WARNING: "!", Severity.BROKEN: "✗"}
COLOURS = {"ok": "32", "skipped": "2", Severity.WARNING: "33", Severity.BROKEN: "31"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong: its id in the catalogue, one line of cause, one line of fix."""

    id: str
    cause: str
    fix: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def check(self) -> str:
        """The check that it belongs to."""
        return self.id.partition(".")[0]

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return FINDINGS[self.id]


@dataclass(frozen=True, slots=True)
class Check:
    """One step of the walk: `fact` is what was seen, or why it was skipped."""

    name: str
    outcome: str  # ok, found, skipped
    fact: str = ""
    ms: float = 0.0
    findings: tuple[Finding, ...] = ()


def skipped(name: str, why: str) -> Check:
    """A step that was not taken."""
    return Check(name, "skipped", why)


def checked(name: str, fact: str, findings: Iterable[Finding] = (), ms: float = 0.0) -> Check:
    """A step that was taken."""
    found = tuple(findings)
    return Check(name, "found" if found else "ok", fact, ms, found)


class Report:
    """The whole walk. `redact` sees every text once."""

    def __init__(self, checks: Sequence[Check], seconds: float, redact: Callable[[str], str]) -> None:
        self.seconds = seconds
        self._redact = redact
        self.checks = sorted(checks, key=lambda each: CHECKS.index(each.name))
        found = [finding for each in self.checks for finding in each.findings]
        self.findings = sorted(found, key=lambda each: blame(each.id))

    def _line(self, text: str) -> str:
        return self._redact(one_line(text))[:TEXT_MAX]

    @property
    def code(self) -> int:
        """The exit code: 0 no finding, 1 warnings only, 2 something is broken."""
        return max((2 if each.severity is Severity.BROKEN else 1 for each in self.findings), default=0)

    @property
    def facts(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "version": __version__,
            "ok": self.code == 0,
            "exit_code": self.code,
            "seconds": round(self.seconds, 3),
            "checks": [self._check(each) for each in self.checks],
            "findings": [self._finding(each) for each in self.findings],
        }

    def _check(self, check: Check) -> dict[str, Any]:
        ids = [each.id for each in check.findings]
        return {
            "name": check.name,
            "outcome": check.outcome,
            "fact": self._line(check.fact),
            "ms": round(check.ms, 3),
            "findings": ids,
        }

    def _finding(self, finding: Finding) -> dict[str, Any]:
        found: dict[str, Any] = {"check": finding.check, "id": finding.id, "severity": finding.severity.value}
        found |= {"cause": self._line(finding.cause), "fix": self._line(finding.fix)}
        if finding.detail:
            found["detail"] = {name: self._line(str(value)) for name, value in finding.detail.items()}
        return found

    def text(self, *, signs: bool = False, colour: bool = False) -> str:
        """One line a check, then cause and fix of every finding, then the sum."""
        lines = []
        for each in self.checks:
            worst = min((f.severity for f in each.findings), key=list(Severity).index, default=each.outcome)
            mark = paint(SIGNS[worst] if signs else PLAIN[worst], COLOURS[worst], colour)
            lines.append(f"{mark} {each.name:<14} {self._line(each.fact)}".rstrip())
        for finding in self.findings:
            head = paint(f"{finding.severity.value}:", COLOURS[finding.severity], colour)
            lines += ["", f"{head} {self._line(finding.cause)}", f"  fix: {self._line(finding.fix)}"]
        return "\n".join([*lines, "", self.total()])

    def total(self) -> str:
        """The last line."""
        broken = sum(each.severity is Severity.BROKEN for each in self.findings)
        warnings = len(self.findings) - broken
        noun = "warning" if warnings == 1 else "warnings"
        return f"{broken} broken, {warnings} {noun} in {self.seconds:.1f} s"


def one_line(text: str) -> str:
    """A text without line breaks and control characters."""
    return "".join(c if c.isprintable() else " " if c in "\r\n\t" else ascii(c)[1:-1] for c in text)


def paint(text: str, code: str, colour: bool) -> str:
    """The text in a terminal's colour."""
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text
