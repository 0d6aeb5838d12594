"""The pages about lighthouses, agents of the second dialect: the list, and one with its checks in full."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from flask import redirect, request, url_for
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as Answer

from observer_agent.errors import UsageError
from observer_agent.hub.console.parts import ACTOR, Parts, cut, show
from observer_agent.hub.lighthouse.look import Look
from observer_agent.hub.lighthouse.manage import Manage, Unknown

EVENTS_SHOWN = 100
SERIES_SHOWN = 200
ITEMS_SHOWN = 200
RANKS = {"offline": 0, "online": 1, "stopped": 2, "never": 3}
DONE = ("pause", "resume")


class Lighthouses:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._look = Look(parts.store.database, parts.clock)
        self._manage = Manage(parts.store.database, parts.clock)

    def index(self, fresh: tuple[str, str] | None = None, problem: str = "") -> str:
        """Every lighthouse, those with trouble first; a token that was just made is shown, this once."""
        found = sorted(self._look.all(), key=lambda each: (not _trouble(each), RANKS[each["state"]], each["name"]))
        return show("lighthouses.html", rows=cut(found), fresh=fresh, problem=problem)

    def create(self) -> str | tuple[str, int]:
        """A new lighthouse and its token."""
        name = request.form.get("name", "")
        return self._make(lambda: (name, self._manage.create(ACTOR, name, {})[1]))

    def act(self) -> Answer | str | tuple[str, int]:
        """Another token, a pause, or the end of one."""
        ref, what = request.form.get("lighthouse", ""), request.form.get("do", "")
        if what == "rotate":
            return self._make(lambda: (self._look.one(ref)["name"], self._manage.rotate(ACTOR, ref)))
        if what not in DONE:
            return self.index(problem="choose what is to be done"), 400
        try:
            made = self._manage.change(ACTOR, ref, {"paused": what == "pause"})
        except UsageError as error:
            return self.index(problem=str(error)), 400
        return redirect(url_for("console.lighthouse", id=made), 303)

    def detail(self) -> str:
        """One lighthouse: what it is, its checks, what its agent saw, what it has discovered and measured."""
        try:
            found = self._look.one(request.args.get("id", ""))
        except Unknown as error:
            raise NotFound(str(error)) from None
        checks = [{**each, "url": _target(each["url"])} for each in self._look.checks(found["id"])]
        names = {each["id"]: each["name"] for each in checks}
        events = [
            {**each, "name": names.get(each["check_id"])} for each in self._look.events(found["id"], EVENTS_SHOWN)
        ]
        discovered, series = self._look.discoveries(found["id"]), self._look.series(found["id"])
        return show(
            "lighthouse.html",
            lighthouse=found,
            checks=cut(sorted(checks, key=lambda each: (each["status"] != "down", each["name"].casefold()))),
            events=events,
            items=discovered["items"][:ITEMS_SHOWN],
            items_in_all=len(discovered["items"]),
            taken_at=discovered["taken_at"],
            series=series[:SERIES_SHOWN],
            series_in_all=len(series),
        )

    def _make(self, make: Callable[[], tuple[str, str]]) -> str | tuple[str, int]:
        try:
            return self.index(fresh=make())
        except UsageError as error:
            return self.index(problem=str(error)), 400


def _target(url: str) -> str:
    """What a check looks at, without credentials and query, which may be secrets."""
    bare, mark, _ = url.partition("?")
    return re.sub(r"//[^/]*@", "//", bare) + ("?…" if mark else "")


def _trouble(each: dict[str, Any]) -> bool:
    return bool(each["state"] == "offline" or each["rival"] or each["checks"]["down"])
