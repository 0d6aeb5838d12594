"""The `expected_headers` of a configuration: raw fields in, typed expectations out, and whether an answer meets them.

What an answer's header holds is said nowhere: only the name, and what was expected of it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from observer_agent.probes._config import Fields, encodable
from observer_agent.probes._headers import LONGEST, MOST, is_token
from observer_agent.probes._reasons import Failed, Reason

PRESENT, EXACT, CONTAINS = "present", "exact", "contains"
MATCHES: Final = (PRESENT, EXACT, CONTAINS)


class ExpectedHeader(NamedTuple):
    """A header that an answer must have, with any value, with this one, or with one that holds this text."""

    name: str
    match: str = PRESENT
    value: str = ""

    def met(self, headers: Mapping[str, str]) -> bool:
        """Whether an answer's headers, whose names are in lower case, have it; of doubles the first counts."""
        found = headers.get(self.name.lower())
        if found is None or self.match == PRESENT:
            return found is not None
        return found == self.value if self.match == EXACT else self.value in found


def check_headers(expected: Iterable[ExpectedHeader], headers: Mapping[str, str]) -> None:
    """Raises Failed for the first expectation that is not met."""
    for each in expected:
        if not each.met(headers):
            there = each.name.lower() in headers
            text = f"the header {each.name} {'is not as expected' if there else 'is missing'}"
            match = each.match if there else PRESENT
            raise Failed(Reason.HEADER_MISMATCH, text, header=each.name, expected=match)


def parse_expected(fields: Fields) -> tuple[ExpectedHeader, ...]:
    """The field `expected_headers`: a list of objects `{name, match, value}`."""
    found = []
    for n, row in enumerate(fields.objects("expected_headers", MOST)):
        problem = _problem(row)
        if problem:
            fields.problem(f"expected_headers[{n}]", problem)
        else:
            found.append(ExpectedHeader(row["name"], row.get("match") or PRESENT, row.get("value") or ""))
    return tuple(found)


def _problem(row: Mapping[str, Any]) -> str:
    name, match, value = row.get("name"), row.get("match"), row.get("value")
    if set(row) - {"name", "match", "value"}:
        return "may hold name, match and value"
    if not isinstance(name, str) or not is_token(name):
        return "name is not a header's name"
    if match is not None and match not in MATCHES:
        return f"match must be one of {', '.join(MATCHES)}"
    if value is not None and not (isinstance(value, str) and encodable(value) and len(value) <= LONGEST):
        return f"value must be a text of at most {LONGEST} characters"
    return "value is required with this match" if not value and match in (EXACT, CONTAINS) else ""
