"""What an agent of this dialect does besides its checks, where it is asked for: host metrics, discovery.

Their modules are imported only when they are wanted. Called at the start, and when the console has answered first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from observer_agent.lighthouse.hostmetrics import HostMetrics
from observer_agent.lighthouse.settings import in_cluster, looks

if TYPE_CHECKING:
    from observer_agent.lighthouse.agent import LighthouseAgent


class Follower(Protocol):
    """A part that follows something on a worker of its own."""

    def step(self) -> float:
        """One turn; returns the seconds until the next."""

    def close(self) -> None:
        """Lets go of everything."""


def host_metrics(agent: LighthouseAgent) -> HostMetrics:
    """What hears of the console's orders; without LIGHTHOUSE_HOST_METRICS=true it looks at nothing."""
    settings = agent.settings
    allowed = settings.lighthouse_host_metrics
    host = agent.hostname if looks(settings) else agent.node_name
    send = agent.link("host-metrics").host_metrics if allowed else _nowhere
    return HostMetrics(
        send, _collectors(agent) if allowed else (), agent.clock, allowed=allowed, host=host, metrics=agent.metrics
    )


def _nowhere(body: bytes) -> int:
    return 0


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
