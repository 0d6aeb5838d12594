"""Bad input at the endpoints for agents: no 500, nothing stored of a refused request, nothing of a body in a log.

Requests are made by a seeded generator: golden messages with something changed, random JSON, random bytes, and headers
of the same sorts.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
from sqlalchemy import text

from observer_agent.clock import iso
from observer_agent.hub.openapi import OPERATIONS
from observer_agent.hub.wire import BATCH_MAX
from tests.wire_hub import GOLDEN_NOW, QUEUE, STARTED, TestHub, golden, golden_names, memory_hub, row

pytestmark = pytest.mark.slow

CANARY = "canary-7f3a91"
KEY = "obs_live_" + "Fuzz" * 10 + "key"
NEWEST = iso(GOLDEN_NOW + 299)  # as far ahead as counts: no start time that is made up can fence this one out
REQUESTS = [golden(name)["request"] for name in golden_names()]
PATHS = sorted({request["path"] for request in REQUESTS})
CODES = {(op.method.upper(), op.path): {op.status, *op.refusals} for op in OPERATIONS}
ODD_PATHS = ["/api/agent", "/api/agent/", "/api/agent/receiver/", "/api/agent/%00", "/api/agent/receiver%2fbatch"]
STATE = text("SELECT (SELECT max(id) FROM pushes), (SELECT count(*) FROM metrics), (SELECT sum(taken) FROM agents)")
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, -1e308, 5e-324, float("inf"), float("nan")),
    *(2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, -(10**400)),
    *("", " ", "\0", "a\0b", "\ud800", "\udfff\ud800", "\U0010ffff", "é" * 128, "a" * 129, "a" * 5000, CANARY),
    *("healthy", "no_data", "UNHEALTHY", "1", "NaN", "m", "m2", QUEUE, QUEUE.upper(), "' OR 1=1 --", "${jndi:x}"),
    *("2026-05-09T12:00:01.000Z", "2026-05-09T12:00:01+14:00", "2026-05-09T12:00:01", "1969-12-31T23:59:59Z"),
    *("9999-12-31T23:59:59.999Z", "0001-01-01T00:00:00+23:59", "2026-02-30T00:00:00Z", "20260509T120001Z", "now"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": [{}]}}, [1] * 200, {"metric_id": CANARY}),
]
SEQUENCES = [
    *("1", "1-2", "1-9", "1-100", "5-1", "1,1", "2,1", "0", "-1", "1-", "a", "01", "1, 2", "", ",", "1-999999999999"),
    *("9223372036854775807", "9223372036854775808", "9223372036854775800-9223372036854775807", "1" * 5000, "1," * 5000),
]


class Ask(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Maker:
    """Requests from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def asks(self, count: int) -> Iterator[Ask]:
        """So many."""
        return (self._ask() for _ in range(count))

    def _ask(self) -> Ask:
        dice = self._random
        base = dice.choice(REQUESTS)
        method = base["method"] if dice.random() < 0.97 else dice.choice(["GET", "POST", "PUT", "DELETE", "HEAD"])
        path = base["path"] if dice.random() < 0.9 else dice.choice([*PATHS, *ODD_PATHS])
        return Ask(method, path, self._headers(base["headers"]), self._body(base))

    def _body(self, base: dict[str, Any]) -> bytes:
        dice, kind = self._random, self._random.random()
        if kind < 0.7:
            value = json.loads(json.dumps(base.get("body")))
            for _ in range(dice.choice([0, 1, 1, 2, 5])):
                value = self._changed(value)
        elif kind < 0.9:
            value = self._value(4)
        else:
            return dice.randbytes(dice.choice([0, 1, 10, 1000])) + CANARY.encode()
        return self._bytes(json.dumps(value))

    def _bytes(self, told: str) -> bytes:
        """Mostly as it is; else cut, spoiled, or written in another way."""
        dice, kind = self._random, self._random.random()
        data = told.encode()
        if kind < 0.7:
            return data
        at = dice.randrange(len(data) + 1)
        if kind < 0.85:
            return (
                data[:at] + dice.choice([b"", b"\0", b"\xff", b'"', b"[", b"}", b",", b"\\u", b"NaN"]) + data[at + 1 :]
            )
        ways = (
            lambda: data[:at],
            lambda: data + data,
            lambda: b"\xef\xbb\xbf" + data,
            lambda: told.encode("utf-16"),
            lambda: told.encode("utf-32-be"),
            lambda: gzip.compress(data),
            lambda: b"[" * 50_000 + data,
            lambda: b'{"a":' * 2000 + data + b"}" * 2000,
            lambda: b"[" + b",".join([data] * (BATCH_MAX + 1)) + b"]",
        )
        return dice.choice(ways)()

    def _changed(self, value: Any) -> Any:
        """The same with one thing changed, somewhere."""
        dice = self._random
        if isinstance(value, dict) and value and dice.random() < 0.8:
            name = dice.choice(list(value))
            action = dice.random()
            if action < 0.2:
                return {each: held for each, held in value.items() if each != name}
            if action < 0.3:
                return {**value, dice.choice(["", "\0", "\ud800", CANARY, "metric_id", "a" * 300]): value[name]}
            return {**value, name: self._changed(value[name])}
        if isinstance(value, list) and value and dice.random() < 0.8:
            at = dice.randrange(len(value))
            action = dice.random()
            if action < 0.2:
                return value[:at] + value[at + 1 :]
            if action < 0.3:
                return value * dice.choice([2, 40])
            return [*value[:at], self._changed(value[at]), *value[at + 1 :]]
        return self._value(2)

    def _value(self, depth: int) -> Any:
        dice = self._random
        kind = dice.random()
        if depth == 0 or kind < 0.6:
            return dice.choice(VALUES)
        if kind < 0.8:
            return [self._value(depth - 1) for _ in range(dice.randrange(5))]
        names = [
            "metric_id",
            "value",
            "timestamp",
            "status",
            "reason",
            "delivery",
            "queue_id",
            "lost",
            "build",
            "version",
        ]
        return {dice.choice(names): self._value(depth - 1) for _ in range(dice.randrange(6))}

    def _headers(self, base: dict[str, str]) -> dict[str, str]:
        dice = self._random
        found = {**base, "Agent-Key": KEY, "Agent-Started-At": NEWEST}
        if "Push-Sequence" in base:
            first = dice.randrange(1, 10_000)
            found["Push-Sequence"] = f"{QUEUE};{first}-{first + dice.randrange(10)}"
        if dice.random() < 0.2:
            found["Push-Sequence"] = f"{dice.choice([QUEUE, QUEUE.upper(), '', 'x'])};{dice.choice(SEQUENCES)}"
        if dice.random() < 0.03:
            found["Agent-Started-At"] = STARTED
        if dice.random() < 0.1:
            found[dice.choice(["Agent-Started-At", "Content-Type", "Content-Encoding", "Expect"])] = self._line()
        if dice.random() < 0.05:
            found["Agent-Key"] = dice.choice([KEY[:-1], KEY + "x", "", "\xe9", KEY * 10, self._line()])
        if dice.random() < 0.02:
            del found[dice.choice(list(found))]
        return found

    def _line(self) -> str:
        """What a header can hold at all."""
        dice = self._random
        texts = [each for each in VALUES if isinstance(each, str) and each.isascii() and each.isprintable()]
        noise = "".join(map(chr, (dice.choice([*range(32, 127), *range(160, 256)]) for _ in range(dice.randrange(80)))))
        return dice.choice([*texts, "application/json; charset=utf-7", "gzip", noise])


class Heard(logging.Handler):
    """Every line of every logger, as it would be written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def listening() -> Iterator[Heard]:
    """Hears the root logger and the hub's own at DEBUG."""
    heard, loggers = Heard(), [logging.getLogger(), logging.getLogger("observer_agent")]
    before = [(each, each.level, each.propagate) for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
        each.propagate = True
    loggers[0].addHandler(heard)
    try:
        yield heard
    finally:
        loggers[0].removeHandler(heard)
        for each, level, propagate in before:
            each.setLevel(level)
            each.propagate = propagate


def tells_nothing(lines: list[str]) -> bool:
    return not any(secret in line for line in lines for secret in (KEY, KEY[:20], CANARY))


def state(hub: TestHub) -> tuple[int, int, int]:
    """The newest row's id, how many metrics are listed, how many rows were counted as taken."""
    with hub.database.read() as conn:
        newest, metrics, taken = conn.execute(STATE).one()
    return newest or 0, metrics, int(taken or 0)


def hold(ask: Ask, status: int, answer: Any, before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
    """What must be true of one answer."""
    method = "GET" if ask.method == "HEAD" else ask.method
    assert status in CODES.get((method, unquote(ask.path)), {308, 400, 404, 405}), (status, ask)
    if status != 200 or "/receiver" not in ask.path:
        assert after == before, (status, ask)
        return
    stored = answer["accepted"] - answer["duplicates"]
    assert after[2] - before[2] == stored, ask
    assert (after[0] > before[0]) == (stored > 0), ask


def one_by_one() -> Iterator[Ask]:
    """Good rows and heartbeats where one field, or one header, holds each of the bad values in its turn."""
    beat = golden("heartbeat-full")["request"]["body"]
    headers = {"Agent-Key": KEY, "Agent-Started-At": NEWEST}
    bodies = [*(("receiver/batch", [row(reason="timeout", status=status)]) for status in ("healthy", "no_data"))]
    for path, good in [*bodies, ("heartbeat", beat)]:
        fields = good[0] if isinstance(good, list) else good
        for name in fields:
            for value in VALUES:
                changed = {**fields, name: value}
                body = [changed] if isinstance(good, list) else changed
                yield Ask("POST", f"/api/agent/{path}", headers, json.dumps(body).encode())
    for sequence in SEQUENCES:
        body = json.dumps([row(n) for n in range(9)]).encode()
        yield Ask("POST", "/api/agent/receiver/batch", {**headers, "Push-Sequence": f"{QUEUE};{sequence}"}, body)


def storm(hub: TestHub, asks: Iterable[Ask]) -> Counter[int]:
    """Each request judged; how often each status was answered."""
    client, seen = hub.client(), Counter[int]()
    before = state(hub)
    with listening() as heard:
        for ask in asks:
            answer = client.open(ask.path, method=ask.method, headers=ask.headers, data=ask.body)
            after = state(hub)
            hold(ask, answer.status_code, answer.get_json(silent=True), before, after)
            seen[answer.status_code] += 1
            before = after
        assert tells_nothing(heard.lines)
    with hub.database.read() as conn:
        assert conn.scalar(text("SELECT count(*) FROM pushes")) == before[2]
    return seen


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[TestHub]:
    with memory_hub(tmp_path, key=KEY) as made:
        yield made


def test_bad_requests_by_the_thousand(hub: TestHub) -> None:
    seen = storm(hub, Maker(20260509).asks(2000))
    assert set(seen) >= {200, 400, 401, 405, 409, 413}, seen
    assert seen[200] > 200 and seen[409] > 10, seen


def test_every_field_with_every_bad_value(hub: TestHub) -> None:
    assert storm(hub, one_by_one()).keys() == {200}  # bad rows are rejects, bad fields of a heartbeat count as absent


@pytest.mark.prove
@pytest.mark.parametrize("seed", range(4))
def test_a_hundred_thousand_bad_requests(seed: int, hub: TestHub) -> None:
    print(storm(hub, Maker(seed).asks(25_000)))


def test_a_body_that_is_too_large_is_refused_whole(hub: TestHub) -> None:
    big = json.dumps([row(metric_id=CANARY, reason="x" * 2**20)])
    before = state(hub)
    for path in PATHS:
        answer = hub.client().post(path, data=big, headers={"Agent-Key": KEY})
        assert answer.status_code in (405, 413), path
    assert state(hub) == before


def test_a_database_that_refuses_tells_nothing_of_a_body(hub: TestHub) -> None:
    """The one line that bad weather writes; it also shows that the listener hears."""
    with hub.database.write() as conn:
        conn.execute(text("ALTER TABLE pushes RENAME TO elsewhere"))
    with listening() as heard:
        answer = hub.push([row(metric_id=CANARY, reason=CANARY, status="no_data")], "1")
        assert answer.status_code == 503
    assert any("The database refused" in line for line in heard.lines)
    assert tells_nothing(heard.lines)
    assert not tells_nothing([f"row {CANARY}"])
