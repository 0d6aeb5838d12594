"""The page about webhooks: where events go, what became of the last ones; new ones, a test, on and off, once more."""

from __future__ import annotations

from collections.abc import Callable

from flask import redirect, request, url_for
from werkzeug.wrappers import Response as Answer

from observer_agent.errors import UsageError
from observer_agent.hub.console.parts import ACTOR, Parts, show
from observer_agent.hub.webhooks import KINDS, Wanted, new_secret

DELIVERIES = 50
DONE = {
    "test": "A test event is on its way, behind what waits already; its delivery is listed below.",
    "redeliver": "The event is on its way once more.",
    "on": "The webhook is switched on.",
    "off": "The webhook is switched off; what waits goes on waiting.",
}


class Hooks:
    """The views."""

    def __init__(self, parts: Parts) -> None:
        self._webhooks = parts.webhooks
        self._acts: dict[str, Callable[[str], object]] = {
            "test": lambda ref: self._webhooks.test(ACTOR, ref),
            "redeliver": lambda ref: self._webhooks.redeliver(ACTOR, request.form.get("event", ""), ref),
            "on": lambda ref: self._webhooks.change(ACTOR, ref, {"active": True}),
            "off": lambda ref: self._webhooks.change(ACTOR, ref, {"active": False}),
        }

    def page(self, fresh: tuple[str, str] | None = None, problem: str = "") -> str:
        """Every webhook and the last deliveries of all of them; a secret that was just made is shown, this once."""
        said = "" if fresh or problem else DONE.get(request.args.get("done", ""), "")
        deliveries = self._webhooks.deliveries(limit=DELIVERIES)
        facts = {"fresh": fresh, "problem": problem, "said": said, "kinds": KINDS, "form": request.form}
        return show("webhooks.html", hooks=self._webhooks.all(), deliveries=deliveries, **facts)

    def create(self) -> str | tuple[str, int]:
        """A new webhook and its secret."""
        given, secret = request.form, new_secret()
        name, kinds = given.get("name", "").strip(), tuple(given.getlist("kind"))
        try:
            self._webhooks.create(ACTOR, Wanted(name, given.get("url", "").strip(), secret, kinds))
        except UsageError as error:
            return self.page(problem=str(error)), 400
        return self.page(fresh=(name, secret))

    def act(self) -> Answer | tuple[str, int]:
        """One of the buttons beside a webhook or a delivery."""
        what = request.form.get("act", "")
        try:
            if what not in self._acts:
                raise UsageError("this page knows no such thing to do")
            self._acts[what](request.form.get("webhook", ""))
        except UsageError as error:
            return self.page(problem=str(error)), 400
        return redirect(url_for("console.webhooks", done=what), 303)
