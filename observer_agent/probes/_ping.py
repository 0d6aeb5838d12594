"""The system's `ping`, for a process that may open no ICMP socket itself.

It is given the address that was admitted, never a name, without a shell and in the C locale. What it prints for each
answer is read, not its summary: that one differs between kinds of ping, and is missing when it is killed. Runs on the
probe's thread; the process is gone when it returns.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
from typing import Final

from observer_agent.probes._echo import Echoes, Plan
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run
from observer_agent.resolver import Address

_ANSWER: Final = re.compile(rb"^\d+ bytes from .*?seq=(\d+) .*?time[=<]([0-9.]+) ?ms(?!.*DUP)", re.MULTILINE)
_SENT: Final = re.compile(rb"^(\d+) packets transmitted", re.MULTILINE)
_RIGHTS: Final = re.compile(
    rb"not permitted|permission denied|must be superuser|cap_net_raw|are you root", re.IGNORECASE
)


def command(address: Address, plan: Plan) -> list[str]:
    """The words of the command. It sends a packet a second, and waits whole seconds for the last answer."""
    host = f"{address.host.partition('%')[0]}%{address.scope}" if address.scope else address.host
    return ["ping", "-n", "-c", str(plan.packets), "-W", str(math.ceil(plan.wait)), host]


def exchange(address: Address, plan: Plan, run: Run) -> Echoes:
    """Runs it to its end or to the run's deadline, whichever is first; raises Failed."""
    env = {"LC_ALL": "C", "PATH": run.tools.env.get("PATH") or os.defpath}
    try:
        process = subprocess.Popen(
            command(address, plan), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError:
        raise Failed(Reason.ICMP_UNAVAILABLE, "no right to open an ICMP socket, and there is no ping here") from None
    except PermissionError:
        raise _denied() from None  # also where ping has capabilities that this process may not be given
    except OSError as error:
        raise Failed(Reason.ICMP_UNAVAILABLE, f"ping does not start: {error.strerror}") from None
    with process:
        try:
            out, err = process.communicate(timeout=run.left())
        except (subprocess.TimeoutExpired, Failed):
            process.kill()
            out, err = process.communicate()
    return understand(out, err, plan)


def understand(out: bytes, err: bytes, plan: Plan) -> Echoes:
    """What ping printed; an answer that took longer than the plan allows is a lost one. Raises Failed."""
    trips = {int(seq): float(ms) for seq, ms in _ANSWER.findall(out) if float(ms) <= plan.wait * 1000}
    sent = _SENT.search(out)
    if not sent and not trips and not out.startswith(b"PING"):
        if _RIGHTS.search(err):
            raise _denied()
        words = err.decode("utf-8", "replace").strip()[:200] or "it printed nothing"
        raise Failed(Reason.ICMP_ERROR, f"ping failed: {words}")
    return Echoes("ping", int(sent[1]) if sent else plan.packets, tuple(trips.values()))


def _denied() -> Failed:
    return Failed(Reason.ICMP_PRIVILEGE_DENIED, "neither this process nor ping may open an ICMP socket")
