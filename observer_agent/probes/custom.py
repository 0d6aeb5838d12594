"""The source type `custom`: the number that a function of the operator's returns.

Rules: docs/probes/custom.md and docs/custom-probes.md, mended by W38. The function runs on a helper thread with one
slot for each name: one that hangs holds up neither the agent nor other probes. What it raises is told by its class;
the text stays in the local detail, redacted. Runs on a probe thread.
"""

from __future__ import annotations

import json
import math
import numbers
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from observer_agent.model import Fault, Reading
from observer_agent.probes import _schema
from observer_agent.probes._config import Fields
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._registry import CustomProbe
from observer_agent.probes._secrets import look_up
from observer_agent.probes._slots import Late, NoThread, Taken
from observer_agent.probes._tools import Run, Tools
from observer_agent.worker import outcome_of

__all__ = ["CustomConfig", "CustomProbe", "Look", "parse", "probe"]

TIMEOUT_MS: Final = 30_000
LINES: Final = 10
ENTRIES: Final = 20
TEXT_MAX: Final = 200


@dataclass(frozen=True, slots=True)
class CustomConfig:
    """Which function, and its own configuration as JSON; `timeout` is seconds."""

    probe_name: str
    probe_config: str
    timeout: float


class Look:
    """What a function is handed for one look. `config` is its own configuration, checked, with its defaults."""

    def __init__(self, config: dict[str, Any], run: Run) -> None:
        self.config = config
        self._tools = run.tools
        self._deadline = run.deadline
        self._lines: deque[str] = deque(maxlen=LINES)
        self._lock = threading.Lock()

    def left(self) -> float:
        """Seconds until the deadline, 0 when it has passed: hand it to whatever takes a timeout."""
        return max(0.0, self._deadline - self._tools.clock.monotonic())

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the result any more."""
        return self.left() == 0.0

    def secret(self, name: str) -> str:
        """The trimmed value of an environment variable that definitions may refer to; shown nowhere."""
        value = look_up(name, self._tools, Reason.CUSTOM_PROBE_ERROR)
        self._tools.redact.add(value)
        return value

    def log(self, text: object) -> None:
        """Keeps a line for the local detail; the last ten are shown."""
        line = self._tools.redact(str(text))[:TEXT_MAX]
        with self._lock:
            self._lines.append(line)

    def lines(self) -> list[str]:
        """The lines that are kept."""
        with self._lock:
            return list(self._lines)


class _Gave(NamedTuple):
    """What a function returned, checked."""

    value: float
    metadata: dict[str, Any]


class _Raised(NamedTuple):
    """What a function raised: the class, the text, and where."""

    name: str
    text: str
    place: str


def parse(raw: object) -> CustomConfig:
    """The typed configuration; raises InvalidConfig. The function's own part is checked where the function is known."""
    fields = Fields(raw)
    name = fields.text("probe_name", required=True, longest=128)
    config = fields.json_object("probe_config")
    timeout = fields.whole("timeout_ms", 100, 30_000, TIMEOUT_MS) / 1000
    fields.done()
    return CustomConfig(name or "", json.dumps(config), timeout)


def probe(config: CustomConfig, deadline: float, tools: Tools) -> Reading:
    """One call of the function, or of nothing where an earlier one still hangs."""
    run = Run(tools, deadline, Reason.CUSTOM_PROBE_ERROR)
    known: dict[str, Any] = {"probe_name": config.probe_name}
    look = None
    try:
        function = tools.custom.find(config.probe_name)
        if function is None:
            raise Failed(Reason.CUSTOM_PROBE_NOT_FOUND, "no such probe is loaded: observer-agent probes lists them")
        look = Look(_own_config(function, config), run)
        run.enter("function")
        gave = _call(function, look, run, config)
    except Failed as failure:
        return run.failed(failure, **known, **_said(look))
    known["metadata"] = gave.metadata
    return run.gave(gave.value, **{name: value for name, value in known.items() if value}, **_said(look))


def _own_config(function: CustomProbe, config: CustomConfig) -> dict[str, Any]:
    """The function's configuration with its defaults, a fresh copy each time; raises Failed."""
    given: dict[str, Any] = json.loads(config.probe_config)
    schema = function.config_schema
    if schema is None:
        return given
    filled: dict[str, Any] = _schema.filled(schema, given)
    wrong = list(_schema.problems(schema, filled))
    if wrong:
        raise Failed(Reason.CUSTOM_PROBE_CONFIG_INVALID, "; ".join(wrong[:ENTRIES]))
    return filled


def _call(function: CustomProbe, look: Look, run: Run, config: CustomConfig) -> _Gave:
    try:
        outcome = run.tools.custom.slots.run(config.probe_name, lambda: _inside(function, look), run.deadline)
    except Late:
        raise _late("the function did not return in time", config) from None
    except Taken:
        text = "an earlier call of this function still runs; nothing was called"
        raise _late(text, config) from None
    except NoThread:
        raise Failed(Reason.NO_MEMORY, "no thread could be started", Fault.AGENT) from None
    gave = outcome.value
    if isinstance(gave, _Gave):
        return gave
    if isinstance(gave, Failed):
        raise gave
    raised = gave if isinstance(gave, _Raised) else _Raised(type(outcome.error).__name__, "", "")
    failure = Failed(Reason.CUSTOM_PROBE_ERROR, f"the function raised {raised.name}")
    detail = {"message": run.tools.redact(raised.text)[:TEXT_MAX], "at": raised.place}
    failure.detail.update({name: text for name, text in detail.items() if text})
    raise failure


def _late(text: str, config: CustomConfig) -> Failed:
    return Failed(Reason.CUSTOM_PROBE_TIMEOUT, text, timeout_ms=round(config.timeout * 1000))


def _said(look: Look | None) -> dict[str, Any]:
    lines = look.lines() if look else []
    return {"log": lines} if lines else {}


# -- on the helper thread, where whatever a stranger's object does costs nobody else


def _inside(function: CustomProbe, look: Look) -> _Gave | Failed | _Raised:
    outcome = outcome_of(lambda: _understand(function.run(look), look))
    error = outcome.error
    if error is None:
        gave: _Gave = outcome.value
        return gave
    if isinstance(error, Failed):
        return error
    return _Raised(type(error).__name__[:64], str(error), _place(error))


def _understand(returned: Any, look: Look) -> _Gave:
    """A number, or an object with value and metadata; raises Failed."""
    if not isinstance(returned, Mapping):
        return _Gave(_number(returned), {})
    if not set(returned) <= {"value", "metadata"}:
        raise _bad("an object with other keys than value and metadata")
    metadata = returned.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise _bad("metadata that is no object")
    shown = {str(name)[:64]: _shown(value, look) for name, value in list(metadata.items())[:ENTRIES]}
    return _Gave(_number(returned.get("value")), shown)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _bad(f"{type(value).__name__[:64]}, not a number")
    try:
        number = float(value)
    except OverflowError:
        raise _bad("a number that is too large") from None
    if not math.isfinite(number):
        raise _bad("no finite number")
    return number


def _shown(value: Any, look: Look) -> str | float | bool | None:
    if value is None or isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    return look._tools.redact(str(value))[:TEXT_MAX]


def _bad(text: str) -> Failed:
    return Failed(Reason.CUSTOM_PROBE_BAD_RETURN, f"the function returned {text}")


def _place(error: BaseException) -> str:
    """File and line of the innermost frame, without the directory."""
    at = error.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    return f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}" if at else ""
