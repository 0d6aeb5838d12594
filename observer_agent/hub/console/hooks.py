"""The pages about webhooks: where events go and what became of the last ones; one webhook, changed or deleted there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import redirect, request, url_for
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as Answer

from observer_agent.errors import UsageError
from observer_agent.hub.console.parts import ACTOR, Parts, show
from observer_agent.hub.events import TEST
from observer_agent.hub.webhooks import KINDS, Unknown, Wanted, Webhooks, new_secret

DELIVERIES = 50
DONE = {
    "test": "A test event is on its way, behind what waits already; its delivery is listed below.",
    "redeliver": "The event is on its way once more.",
    "on": "The webhook is switched on.",
    "off": "The webhook is switched off; what waits goes on waiting.",
    "delete": "The webhook is deleted, with what waited for it and its log.",
    "change": "The webhook is changed.",
}


class Hooks:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._webhooks: Webhooks = parts.webhooks
        self._acts: dict[str, Callable[[str], object]] = {
            "test": lambda ref: self._webhooks.test(ACTOR, ref),
            "redeliver": lambda ref: self._webhooks.redeliver(ACTOR, request.form.get("event", ""), ref),
            "on": lambda ref: self._webhooks.change(ACTOR, ref, {"active": True}),
            "off": lambda ref: self._webhooks.change(ACTOR, ref, {"active": False}),
            "delete": lambda ref: self._webhooks.delete(ACTOR, ref),
        }

    def page(self, fresh: tuple[str, str] | None = None, problem: str = "") -> str:
        """Every webhook and the last deliveries of all of them; a secret that was just made is shown, this once."""
        said = "" if fresh or problem else DONE.get(request.args.get("done", ""), "")
        deliveries = self._webhooks.deliveries(limit=DELIVERIES)
        facts = {"fresh": fresh, "problem": problem, "said": said, "kinds": KINDS, "form": request.form}
        return show("webhooks.html", hooks=self._webhooks.all(), deliveries=deliveries, **facts)

    def detail(self, fresh: tuple[str, str] | None = None, problem: str = "") -> str:
        """One webhook: what it is, its deliveries, a form that changes it and a button that deletes it."""
        ref = request.form.get("webhook") or request.args.get("id", "")
        try:
            hook = self._webhooks.one(ref)
        except Unknown as error:
            raise NotFound(str(error)) from None
        said = "" if fresh or problem else DONE.get(request.args.get("done", ""), "")
        deliveries = self._webhooks.deliveries(hook["id"], DELIVERIES)
        facts = {"fresh": fresh, "problem": problem, "said": said, "kinds": KINDS, "form": request.form}
        return show("webhook.html", hook=hook, deliveries=deliveries, **facts)

    def create(self) -> str | tuple[str, int]:
        """A new webhook and its secret."""
        given, secret = request.form, new_secret()
        name, kinds = given.get("name", "").strip(), tuple(given.getlist("kind"))
        try:
            self._webhooks.create(ACTOR, Wanted(name, given.get("url", "").strip(), secret, kinds))
        except UsageError as error:
            return self.page(problem=str(error)), 400
        return self.page(fresh=(name, secret))

    def change(self) -> Answer | str | tuple[str, int]:
        """The form of one webhook, sent; an address that is left empty stays, because it is not shown whole."""
        given = request.form
        changes: dict[str, Any] = {"name": given.get("name", "").strip(), "event_types": _kinds(given.getlist("kind"))}
        if url := given.get("url", "").strip():
            changes["url"] = url
        if secret := new_secret() if given.get("secret") else None:
            changes["secret"] = secret
        try:
            made = self._webhooks.change(ACTOR, given.get("webhook", ""), changes)
        except Unknown as error:
            raise NotFound(str(error)) from None
        except UsageError as error:
            return self.detail(problem=str(error)), 400
        if secret:
            return self.detail(fresh=(changes["name"], secret))
        return redirect(url_for("console.webhook", id=made, done="change"), 303)

    def act(self) -> Answer | tuple[str, int]:
        """One of the buttons beside a webhook or a delivery; it leads back to the page that it stood on."""
        what, ref, on_own = request.form.get("act", ""), request.form.get("webhook", ""), "own" in request.form
        try:
            if what not in self._acts:
                raise UsageError("this page knows no such thing to do")
            self._acts[what](ref)
        except UsageError as error:
            return self.page(problem=str(error)), 400
        if on_own and what != "delete":
            return redirect(url_for("console.webhook", id=ref, done=what), 303)
        return redirect(url_for("console.webhooks", done=what), 303)


def _kinds(chosen: list[str]) -> tuple[str, ...]:
    """The event types of a form; a test always comes through, so it is offered nowhere and never alone."""
    return tuple(each for each in chosen if each != TEST)
