"""What every view of the console is handed, and how a page is made of a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from flask import render_template, request

from observer_agent.clock import Clock
from observer_agent.hub.history import History
from observer_agent.hub.look import Look
from observer_agent.hub.store import Store
from observer_agent.hub.webhooks import Webhooks

ACTOR = "console"  # in the audit log
FRAGMENT = "Observer-Fragment"
PAGE_ROWS = 200
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Parts:
    """The hub, as the views see it."""

    store: Store
    look: Look
    clock: Clock
    webhooks: Webhooks
    history: History


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """One page of a long list; `number` counts from 1."""

    rows: Sequence[T]
    number: int
    pages: int
    total: int
    first: int

    def link(self, number: int) -> str:
        """This address with another page number."""
        return f"{request.path}?{urlencode({**request.args.to_dict(), 'page': number})}"


def cut(rows: Sequence[T], size: int = PAGE_ROWS) -> Slice[T]:
    """The page that the address asks for, the nearest one that there is."""
    pages = max(1, -(-len(rows) // size))
    asked = request.args.get("page", "1")
    number = min(max(int(asked), 1), pages) if asked.isascii() and asked.isdigit() and len(asked) < 7 else 1
    start = (number - 1) * size
    return Slice(rows[start : start + size], number, pages, len(rows), start + 1 if rows else 0)


def show(template: str, **facts: Any) -> str:
    """A page, or only its live part where the script asks for that."""
    layout = "fragment.html" if FRAGMENT in request.headers else "base.html"
    return render_template(template, layout=layout, **facts)
