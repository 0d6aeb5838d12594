"""The page about keys of agents: who has which, new ones, another one for an agent, an end to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import redirect, request, url_for
from werkzeug.wrappers import Response as Answer

from observer_agent.errors import UsageError
from observer_agent.hub.console.parts import ACTOR, Parts, cut, show


class Keyring:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._keys = parts.store.keys

    def page(self, fresh: tuple[str, str] | None = None, problem: str = "") -> str:
        """Every key, without the key itself; one that was just made is shown, this once."""
        said = "The key is revoked: it is refused from now on." if "revoked" in request.args else ""
        text, found = request.args.get("text", "").strip(), self._keys.list()
        rows = cut([each for each in found if _is_about(each, text.casefold())])
        return show("keys.html", rows=rows, any=bool(found), text=text, fresh=fresh, problem=problem, said=said)

    def create(self) -> str | tuple[str, int]:
        """A new agent and its key."""
        return self._make(lambda name: self._keys.create(name, ACTOR))

    def rotate(self) -> str | tuple[str, int]:
        """Another key for an agent; what it has stays good for a day."""
        return self._make(lambda name: self._keys.rotate(name, ACTOR))

    def revoke(self) -> Answer | tuple[str, int]:
        """The end of one key."""
        name, hint = request.form.get("name", ""), request.form.get("hint")
        try:
            if hint is None:  # which would be all of them
                raise UsageError("choose a key")
            self._keys.revoke(name, ACTOR, hint)
        except UsageError as error:
            return self.page(problem=str(error)), 400
        return redirect(url_for("console.keys", revoked=""), 303)

    def _make(self, make: Callable[[str], str]) -> str | tuple[str, int]:
        name = request.form.get("name", "")
        try:
            return self.page(fresh=(name, make(name)))
        except UsageError as error:
            return self.page(problem=str(error)), 400


def _is_about(key: Mapping[str, Any], text: str) -> bool:
    return any(text in str(key[name]).casefold() for name in ("name", "hint", "state"))
