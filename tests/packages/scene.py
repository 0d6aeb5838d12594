"""A scene for the tests of the installed agent: a machine with the package in it, and a hub outside the machine.

Enters: a booted `Machine`, a folder. Leaves: what the hub holds and what the agent says of itself. The machine shares
the host's loopback, where the hub listens; nothing inside the machine belongs to the hub.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from observer_agent.demo.stage import get
from tests.packages.machine import UNIT, Machine
from tests.site import Site

CONF = "/etc/observer-agent"
KEY = f"{CONF}/agent_key"
SETTINGS = f"{CONF}/config.toml"
BUFFER = "/var/lib/observer-agent/buffer.db"


class Scene:
    """One agent as a package installs it, and its hub."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.machine = machine
        self.site = Site(folder)
        self.settings: dict[str, Any] = {"BUFFER_PATH": BUFFER, "DEBUG_DASHBOARD_PORT": self.site.page}

    def close(self) -> None:
        """Ends the hub."""
        self.site.close()

    # -- set up

    def open_hub(self, metrics: list[dict]) -> None:
        """Starts the hub, again after `site.hub.kill()`, and gives the agent its address."""
        self.site.open_hub(metrics)
        self.settings["CLOUD_SERVER_URL"] = f"http://127.0.0.1:{self.site.hub.port}"

    def configure(self, key: str | None = None, **settings: Any) -> None:
        """Writes the two files that an administrator writes. A setting of None goes."""
        self.settings.update(settings)
        given = {name: value for name, value in self.settings.items() if value is not None}
        self.machine.write(SETTINGS, "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
        self.machine.write(KEY, (self.site.key if key is None else key) + "\n", mode=0o600)

    def start(self) -> int:
        """Starts the unit, which must then be up; its process."""
        self.machine.systemctl("start", UNIT)
        assert self.machine.show("ActiveState") == "active"
        return self.machine.main_pid()

    def deliver(self, metrics: list[dict]) -> int:
        """From nothing to the first verdict at the hub; the unit's process."""
        self.open_hub(metrics)
        self.configure()
        pid = self.start()
        self.until(self.pushes, "the first verdict is at the hub")
        return pid

    def create_key(self, name: str) -> str:
        """One more agent's key."""
        hub = self.site.hub
        made = subprocess.run(
            hub._command("key", "create", name), env=hub._env(), capture_output=True, text=True, check=True
        )
        return made.stdout.strip().splitlines()[-1]

    # -- look

    def until(self, what, text: str, seconds: float = 30.0) -> Any:
        """Waits for something that the hub or the agent says."""
        return self.machine.until(what, text, seconds)

    def pushes(self) -> list[dict]:
        """What the hub holds; nothing while it is away."""
        return self.site.pushes() if self.agents() else []

    def agents(self) -> dict[str, dict]:
        """The hub's agents by name, without those that it has never heard."""
        found = (get(self.site.hub.port, "/api/v1/agents") or {}).get("agents", [])
        return {agent["name"]: agent for agent in found if agent["last_heartbeat_at"]}

    def metrics(self) -> dict[str, dict]:
        """The hub's metrics by key."""
        return {m["key"]: m for m in (get(self.site.hub.port, "/api/v1/metrics") or {}).get("metrics", [])}

    def state(self) -> dict:
        """What the agent says of itself; empty while its page does not answer."""
        return self.site.state() or {}

    def depth(self) -> int:
        """How many rows wait; -1 while nobody says."""
        return self.state().get("queue", {}).get("depth", -1)

    def status(self) -> str:
        """The unit's line of status."""
        return self.machine.show("StatusText")

    # -- hold to account

    def stop_and_count(self) -> int:
        """Stops the unit, holds every row against the hub's account; how many rows there were."""
        self.until(lambda: self.depth() == 0, "the queue is empty")
        self.machine.systemctl("stop", UNIT)
        assert self.machine.show("Result") == "success"
        rows = [(row["queue_id"], row["row_id"]) for row in self.pushes()]
        assert len(rows) == len(set(rows)), "a row is there twice"
        accounts = [account for agent in self.agents().values() for account in agent["delivery"]]
        assert accounts, "the last heartbeat has brought the hub an account"
        assert [each for each in accounts if each["unexplained"] or each["pending"] or any(each["lost"].values())] == []
        assert sum(each["given"] for each in accounts) == len(rows)
        return len(rows)
