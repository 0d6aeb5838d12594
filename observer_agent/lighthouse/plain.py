"""What may leave of a text: one short line without credentials, queries or control characters.

The last belt for every message that goes to the console; the messages themselves are made of closed lists of words
(opinion.py). Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from observer_agent.logs import HIDDEN, Redactor
from observer_agent.probes._evidence import SECRETS

LONGEST: Final = 200  # characters
WORD: Final = 60  # characters of a check's own text inside a message

Redact = Callable[[str], str]


def plain(text: str, redact: Redact | None = None) -> str:
    """The text as it may leave, at most 200 characters; `redact` knows the agent's and the checks' secrets."""
    known = (redact or Redactor())(text)
    hidden = SECRETS.sub(lambda found: f"{found['line'] or found['name'] or ''}{HIDDEN}", known)
    line = "".join(char if char.isprintable() else " " for char in hidden)
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def word(text: str) -> str:
    """A check's own text as a part of a message: its beginning."""
    return text if len(text) <= WORD else text[: WORD - 1] + "…"
