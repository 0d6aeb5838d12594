"""What an agent of this dialect does besides its checks, where it is asked for: host metrics, discovery.

Their modules are imported only when they are wanted. Called at the start, and when the console has answered first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from observer_agent.clouds._lighthouse_wire import HostMetricsOrder
from observer_agent.lighthouse.settings import in_cluster, looks

if TYPE_CHECKING:
    from observer_agent.lighthouse.agent import LighthouseAgent
    from observer_agent.lighthouse.hostmetrics import HostMetrics

log = logging.getLogger(__name__)

IDLE = 3600.0


class Follower(Protocol):
    """A part that follows something on a worker of its own."""

    def step(self) -> float:
        """One turn; returns the seconds until the next."""

    def close(self) -> None:
        """Lets go of everything."""


class Unwanted:
    """Hears of the console's orders in place of host metrics where this machine has not allowed them: says so once."""

    interval = None

    def __init__(self) -> None:
        self.wake: Callable[[], object] = lambda: None
        self._said = False

    def registered(self, lighthouse_id: str, order: HostMetricsOrder | None) -> None:
        """The console has answered a registration."""
        self.orders(order)

    def orders(self, order: HostMetricsOrder | None) -> None:
        """The console has answered a heartbeat."""
        if order is not None and order.enabled and not self._said:
            self._said = True
            log.info("The console asks for host metrics; none leave unless LIGHTHOUSE_HOST_METRICS=true is set here")

    def step(self) -> float:
        """There is never anything to do."""
        return IDLE


def host_metrics(agent: LighthouseAgent) -> HostMetrics | Unwanted:
    """What hears of the console's orders; without LIGHTHOUSE_HOST_METRICS=true it looks at nothing."""
    settings = agent.settings
    if not settings.lighthouse_host_metrics:
        return Unwanted()
    from observer_agent.lighthouse.hostmetrics import HostMetrics

    host = agent.hostname if looks(settings) else agent.node_name
    send = agent.link("host-metrics").host_metrics
    return HostMetrics(send, _collectors(agent), agent.clock, allowed=True, host=host, metrics=agent.metrics)


def _collectors(agent: LighthouseAgent) -> list[Any]:
    from observer_agent.lighthouse.hostmetrics import collectors
    from observer_agent.lighthouse.mounts import Places

    settings = agent.settings
    places = Places(settings.lighthouse_proc_root, settings.lighthouse_host_root)
    inside = in_cluster(agent.env)
    api = _kube(agent, agent.env) if inside and looks(settings) else None
    return collectors(agent.clock, places, role=settings.lighthouse_role, in_cluster=inside, api=api)


def _kube(agent: LighthouseAgent, env: Mapping[str, str]) -> Any:
    from observer_agent.lighthouse import kube

    account = kube.in_cluster(env)
    return None if isinstance(account, str) else kube.Kube(account, clock=agent.clock, resolver=agent.looking.resolver)


def discovery(agent: LighthouseAgent) -> Follower | None:
    """What follows the cluster's objects, if it is asked for and can be done; not on an agent for host metrics."""
    settings = agent.settings
    if not settings.lighthouse_discovery_enabled or not looks(settings):
        return None
    from observer_agent.lighthouse.discovery import discovery as follow

    cloud = agent.link("discovery")
    return follow(
        agent.env,
        settings.lighthouse_discovery_namespaces,
        lambda snapshot: bool(cloud.discoveries(snapshot).ok),
        clock=agent.clock,
        resolver=agent.looking.resolver,
    )
