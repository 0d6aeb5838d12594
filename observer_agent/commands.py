"""What each command does; `cli.py` only parses and prints. Results are returned, never printed here.

Imported by the command that needs it: `--help` and `--version` stay quick.
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from observer_agent import __version__, config
from observer_agent.clock import Clock
from observer_agent.config import Settings
from observer_agent.definitions import number, understand, understand_all
from observer_agent.errors import DocumentError, UsageError
from observer_agent.logs import Redactor, configure
from observer_agent.model import Definition, Operation, Reading, Status, Thresholds
from observer_agent.verdict import judge

if TYPE_CHECKING:
    from observer_agent.agent import Agent
    from observer_agent.lighthouse.agent import LighthouseAgent

RULES = ("healthy_operation", "healthy_value", "unhealthy_operation", "unhealthy_value")
NOT_RUNNING = 3


def run(file: Path | None) -> int:
    """Runs the agent until a signal; returns the exit code. Raises ConfigError."""
    from observer_agent import dashboard
    from observer_agent.notify import Notifier
    from observer_agent.status import line

    env = dict(os.environ)
    clock, redact = Clock(), Redactor()
    notifier = Notifier(env, clock)

    def reread() -> tuple[Settings, Mapping[str, str]]:
        fresh = config.renewed(env)
        settings = config.load(fresh, file or config.usual_file())
        redact.add(*secrets(settings))
        return settings, fresh

    settings, _ = reread()
    logs = configure(settings.log_format, settings.verbose, clock, redact)
    agent = agent_class(settings)(settings, clock, logs, env, reread=reread)
    page = dashboard.serve(agent)
    try:
        return agent.run(notifier, lambda: line(agent))
    finally:
        if page:
            page.stop()


def agent_class(settings: Settings) -> type[Agent] | type[LighthouseAgent]:
    """The agent of the dialect; the other one is not even imported."""
    if settings.cloud_dialect == config.LIGHTHOUSE:
        from observer_agent.lighthouse.agent import LighthouseAgent

        return LighthouseAgent
    from observer_agent.agent import Agent

    return Agent


def look_at(file: Path | None) -> Settings:
    """The settings of the installed service, for a command that only looks; raises ConfigError."""
    join_service()
    return config.load(os.environ, file or config.usual_file(), to_run=False)


def join_service(folder: Path = config.FOLDER) -> None:
    """Takes on the installed service's environment: its proxies, its file of CAs and its secrets count here too."""
    os.environ.update(config.environment(os.environ, folder))


def secrets(settings: Settings) -> list[str]:
    """The values of this configuration that nobody may see."""
    names = [name for name, row in config.VARIABLES.items() if row.secret]
    return [value for value in (getattr(settings, name.lower()) for name in names) if value]


def check(file: Path | None, connect: bool) -> dict[str, Any]:
    """Reads the configuration and, with `connect`, asks the cloud; raises ConfigError for a wrong setting.

    Returns `{ok, settings, definitions?, cloud?}`.
    """
    join_service()
    settings = config.load(os.environ, file or config.usual_file())
    report: dict[str, Any] = {"ok": True, "settings": config.masked(settings)}
    if settings.definitions_file:
        rows = _read_rows(Path(settings.definitions_file))
        report["definitions"] = _describe_rows(rows)
    if connect:
        report["cloud"] = _ask_cloud(settings)
        report["ok"] = report["cloud"]["ok"]
    return report


def probe(source_type: str, pairs: tuple[str, ...], file: Path | None) -> dict[str, Any]:
    """Runs one probe from `key=value` pairs; raises UsageError."""
    given = dict(_pair(text) for text in pairs)
    row = {"id": "probe", "source_type": source_type, **{k: given.pop(k) for k in RULES if k in given}}
    row["source_config"] = given
    return _probe_row(row, file)


def probe_key(document_file: Path, key: str, file: Path | None) -> dict[str, Any]:
    """Runs the probe that a document defines under `key`; raises UsageError."""
    from observer_agent import document

    try:
        found = document.read(document_file.read_text(encoding="utf-8"), str(document_file))
    except (OSError, UnicodeDecodeError, DocumentError) as error:
        raise UsageError(str(error)) from None
    for metric in found.metrics:
        if metric.key == key:
            return _probe_row(metric.wire, file)
    known = ", ".join(metric.key for metric in found.metrics) or "none"
    raise UsageError(f"{document_file} has no metric {key!r}; it has: {known}")


def status(file: Path | None) -> dict[str, Any] | None:
    """The state of the running agent, from its local page; None when none answers. Raises UsageError."""
    settings = look_at(file)
    conn = _page_of(settings)
    token = settings.debug_dashboard_token
    try:
        conn.request("GET", "/api/state", headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = conn.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        _refuse_silence(settings)
        return None
    finally:
        conn.close()
    if answer.status == 401:
        raise UsageError("the local page wants its token: set DEBUG_DASHBOARD_TOKEN as the agent has it")
    try:
        state = json.loads(body)
    except ValueError:
        state = None
    if answer.status != 200 or not isinstance(state, dict) or "queue" not in state:
        where = f"{settings.debug_dashboard_host}:{settings.debug_dashboard_port}"
        raise UsageError(f"another program listens on {where}; set DEBUG_DASHBOARD_PORT as the agent has it")
    return state


def _page_of(settings: Settings) -> http.client.HTTPConnection:
    if settings.cloud_dialect == config.LIGHTHOUSE and not settings.enable_debug_dashboard:
        from observer_agent.dashboard.private import PrivateConnection, path_of

        return PrivateConnection(path_of(settings.buffer_path), 5.0)
    return http.client.HTTPConnection(settings.debug_dashboard_host, settings.debug_dashboard_port, timeout=5.0)


def _refuse_silence(settings: Settings) -> None:
    """No local page answers: nothing runs, or an agent runs without one. Raises UsageError for the latter."""
    from observer_agent.queuefile import is_held

    if is_held(settings.buffer_path):
        raise UsageError(
            f"an agent uses {settings.buffer_path}, but no local page answers on "
            f"{settings.debug_dashboard_host}:{settings.debug_dashboard_port}: is ENABLE_DEBUG_DASHBOARD off?"
        )


def queue_stats(file: Path | None) -> dict[str, Any]:
    """The queue file's account, whether an agent runs or not; raises QueueError."""
    from observer_agent.queuefile import read_stats

    settings = look_at(file)
    return read_stats(settings.buffer_path, Clock().now(), settings.buffer_max_rows)


def custom_probes(file: Path | None) -> dict[str, Any]:
    """The custom probes that an agent with these settings would load: `{directory, probes, refused}`."""
    from observer_agent.probes import Registry

    settings = look_at(file)
    registry = Registry(Clock())
    registry.load(settings.probe_custom_dir)
    refused = [{"origin": origin, "problem": text} for origin, text in registry.complaints]
    return {"directory": settings.probe_custom_dir, "probes": list(registry.descriptors()), "refused": refused}


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{text!r} is not key=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _probe_row(row: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    from observer_agent import policy, probes
    from observer_agent.resolver import Resolver

    settings = look_at(file)
    definition = understand({**_fill_rules(row), "id": "probe"}, probes.parse, probes.SOURCES)
    if definition.problem and definition.problem.reason == "unknown_source_type":
        raise UsageError(f"{definition.problem.text}; known: {', '.join(sorted(probes.SOURCES))}")
    clock, redact = Clock(), Redactor()
    redact.add(*secrets(settings))
    if definition.problem:
        raise UsageError(definition.problem.text)
    rules, registry = policy.load(settings.policy_file), probes.Registry(clock)
    if definition.source_type == "custom":
        registry.load(settings.probe_custom_dir)
    tools = probes.Tools(
        clock=clock,
        resolver=Resolver(clock),
        env=os.environ,
        redact=redact,
        settings=settings,
        policy=rules,
        custom=registry,
    )
    reading = probes.Prober(tools).look(definition.source_type, definition.config)
    return _result(definition, reading, _rules(row), Status(settings.probe_failure_status))


def _rules(row: Mapping[str, Any]) -> Thresholds | None:
    """The thresholds of a row, None where it has none at all."""
    if not any(name in row for name in RULES):
        return None
    values = [number(row.get(f"{side}_value")) for side in ("healthy", "unhealthy")]
    try:
        first, second = Operation(row.get("healthy_operation", "")), Operation(row.get("unhealthy_operation", ""))
    except ValueError:
        raise UsageError("healthy_operation and unhealthy_operation must be over, under or equal") from None
    if values[0] is None or values[1] is None:
        raise UsageError("healthy_value and unhealthy_value must be numbers")
    return Thresholds(first, values[0], second, values[1])


def _fill_rules(row: Mapping[str, Any]) -> dict[str, Any]:
    """Thresholds that `understand` accepts, where a command line gave none."""
    if any(name in row for name in RULES):
        return dict(row)
    rules = {"healthy_operation": "over", "healthy_value": 0, "unhealthy_operation": "under", "unhealthy_value": 0}
    return {**row, **rules}


def _result(definition: Definition, reading: Reading, rules: Thresholds | None, fault: Status) -> dict[str, Any]:
    return {
        "source_type": definition.source_type,
        "status": judge(reading, rules, fault).status.value if rules else None,
        "value": reading.value,
        "reason": reading.reason,
        "fault": reading.fault.value if reading.fault else None,
        "duration_ms": reading.duration_ms,
        "phases": dict(reading.phases),
        "detail": dict(reading.detail),
    }


def _read_rows(file: Path) -> list[Any]:
    from observer_agent.agent import read_document
    from observer_agent.errors import ConfigError

    try:
        return read_document(file)
    except DocumentError as error:
        raise ConfigError("DEFINITIONS_FILE", str(file), str(error)) from None


def _describe_rows(rows: list[Any]) -> dict[str, Any]:
    from observer_agent import probes

    found = understand_all(rows, probes.parse, probes.SOURCES)
    broken = [{"id": d.id, "title": d.title, "problem": d.problem.text} for d in found if d.problem]
    return {"count": len(found), "broken": broken}


def _ask_cloud(settings: Settings) -> dict[str, Any]:
    """Fetches the definitions: it needs the network, TLS and the key, and changes nothing."""
    from observer_agent.clouds import ObserverDialect

    if settings.cloud_dialect == config.LIGHTHOUSE:
        raise UsageError("a console cannot be asked without registering this machine: run the agent and see its log")
    clock, redact = Clock(), Redactor()
    redact.add(*secrets(settings))
    # Without a start time: one of its own would be newer than the running agent's, and fence it out of its own key.
    cloud = ObserverDialect(settings, None, __version__, clock=clock, redact=redact).connect()
    answer = cloud.definitions()
    cloud.leave()
    found: dict[str, Any] = {"ok": answer.rows is not None, "status": answer.status, "text": answer.text}
    found["url"] = config.origin(settings.cloud_server_url)
    if answer.rows is not None:
        found["definitions"] = _describe_rows(list(answer.rows))
    return found
