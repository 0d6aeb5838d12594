"""The source type `icmp`: round trip in milliseconds, packet loss in percent, or whether anybody answers at all.

Rules: docs/probes/icmp.md, mended by W21 and W22. Sockets of our own where the system allows them, else its `ping`;
never another protocol instead. Runs on a probe thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from observer_agent.model import Fault, Reading
from observer_agent.probes import _echo, _ping
from observer_agent.probes._config import Fields, host_name
from observer_agent.probes._echo import Denied, Echoes, Plan
from observer_agent.probes._net import admit, resolve
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.resolver import Address

INTERPRETATIONS: Final = ("latency", "packet_loss", "reachability")
RESOLVING: Final = 2.0  # seconds for the name
PING_SPACING: Final = 1.0  # seconds from packet to packet where the system's ping has to do it


@dataclass(frozen=True, slots=True)
class IcmpConfig:
    """Whom to ask and how often; `wait` is seconds for one packet's answer."""

    host: str
    count: int
    wait: float
    interpretation: str

    @property
    def timeout(self) -> float:
        """Seconds in which a look ends, however it is done: the name, the packets in their turn, the last answer."""
        return RESOLVING + (self.count - 1) * PING_SPACING + self.wait


def parse(raw: object) -> IcmpConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    config = IcmpConfig(
        host=fields.parsed("host", host_name, required=True) or "",
        count=fields.whole("count", 1, 10, 3),
        wait=fields.whole("timeout_ms", 100, 5_000, 1_000) / 1000,
        interpretation=fields.choice("interpretation", INTERPRETATIONS, "latency"),
    )
    fields.done()
    return config


def probe(config: IcmpConfig, deadline: float, tools: Tools) -> Reading:
    """Some packets to the first address that can be sent to."""
    run = Run(tools, deadline, Reason.ICMP_ERROR)
    known: dict[str, Any] = {"host": config.host, "interpretation": config.interpretation}
    try:
        address, echoes = _ask(config, run)
        known |= _facts(address, echoes)
        value = _value(config.interpretation, echoes)
    except Failed as failure:
        return run.failed(failure, **known)
    return run.gave(value, **known)


def _ask(config: IcmpConfig, run: Run) -> tuple[Address, Echoes]:
    failures: list[Failed] = []
    for address in _resolve(config.host, run):
        run.enter("first_byte")
        try:
            admit(config.host, address, None, run)
            return address, _exchange(address, Plan(config.count, config.wait), run)
        except Failed as failure:
            failures.append(failure)
    raise next((failure for failure in failures if failure.fault is not Fault.POLICY), failures[-1])


def _resolve(host: str, run: Run) -> tuple[Address, ...]:
    try:
        return resolve(host, run)
    except Failed as failure:
        if failure.reason not in (Reason.NOT_FOUND, Reason.TRY_AGAIN):
            raise
        raise Failed(Reason.ICMP_DNS_FAILED, failure.detail.get("error", ""), failure.fault) from None


def _exchange(address: Address, plan: Plan, run: Run) -> Echoes:
    run.left()
    try:
        return _echo.exchange(address, plan, run)
    except Denied:
        return _ping.exchange(address, plan, run)


def _value(interpretation: str, echoes: Echoes) -> float:
    if interpretation == "packet_loss":
        return _loss(echoes)
    if interpretation == "reachability":
        return 1.0 if echoes.trips else 0.0
    if not echoes.trips:
        raise Failed(Reason.ICMP_ALL_TIMEOUT, "no answer to any packet in time")
    return round(sum(echoes.trips) / len(echoes.trips), 3)


def _loss(echoes: Echoes) -> float:
    return round(100 * (1 - len(echoes.trips) / echoes.sent), 1) if echoes.sent else 100.0


def _facts(address: Address, echoes: Echoes) -> dict[str, Any]:
    """What is shown locally; round trips are milliseconds."""
    trips = echoes.trips
    return {
        "address": address.host,
        "method": echoes.method,
        "transmitted": echoes.sent,
        "received": len(trips),
        "packet_loss_pct": _loss(echoes),
        "min_rtt_ms": min(trips, default=None),
        "avg_rtt_ms": round(sum(trips) / len(trips), 3) if trips else None,
        "max_rtt_ms": max(trips, default=None),
        "icmp_errors": list(echoes.errors),
    }
