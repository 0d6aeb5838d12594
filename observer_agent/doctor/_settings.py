"""The steps `settings` and `key`: every wrong setting at once, and the key without ever showing it.

A `Place` and the unit's facts enter; what all later steps start from leaves as `Known`, with the findings.
"""

from __future__ import annotations

import difflib
import os
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from observer_agent import config, document, policy
from observer_agent.config import LOOPBACK, VARIABLES, Settings
from observer_agent.doctor._place import Known, Place, is_hidden
from observer_agent.doctor._report import Check, Finding, checked, skipped
from observer_agent.errors import ConfigError, DocumentError
from observer_agent.policy import Policy

NOT_THE_SERVICE_S = frozenset(
    "http_proxy https_proxy all_proxy no_proxy requests_ca_bundle curl_ca_bundle ssl_cert_file ssl_cert_dir".split()
)
FIX_RESTART = "then: systemctl restart observer-agent"


# -- what the service is given


def environment(place: Place, unit: Mapping[str, str]) -> dict[str, str]:
    """The environment as the service has it: agent.env, the files and variables of drop-ins, the caller's own last."""
    out: dict[str, str] = {}
    for file in _env_files(unit):
        if os.access(file, os.R_OK):
            out.update(config.read_env_file(file))
    try:
        words = shlex.split(unit.get("Environment", ""))
    except ValueError:
        words = []
    for word in words:
        name, equals, value = word.partition("=")
        out.update({name: value} if equals else {})
    mine = place.env
    if unit.get("LoadState") == "loaded":  # the service does not see the caller's proxies and authorities
        mine = {name: text for name, text in mine.items() if name.lower() not in NOT_THE_SERVICE_S}
    return {**config.environment({}, place.folder), **out, **mine}


def _env_files(unit: Mapping[str, str]) -> list[Path]:
    """The paths of `EnvironmentFiles=PATH (ignore_errors=yes)`."""
    return [
        Path(line.partition(" (")[0])
        for line in unit.get("EnvironmentFiles", "").splitlines()
        if line.startswith("/") and "*" not in line
    ]


def learn(place: Place, unit: Mapping[str, str]) -> tuple[Known, Check]:
    """Reads the settings as the agent would, and names everything that is wrong with them."""
    if is_hidden(place) and place.file is None:
        known = Known(env=place.env, given={}, settings=None, unit=unit)
        return known, skipped("settings", f"this user cannot read those in {place.folder}")
    findings: list[Finding] = []
    file = place.file or config.usual_file(place.folder)
    try:
        env = environment(place, unit)
    except ConfigError as error:
        findings.append(_unreadable(error.value, str(error)))
        env = dict(place.env)
    content = _read_toml(file, findings)
    given = {**_texts(content or {}, findings), **{k: v for k, v in env.items() if k in VARIABLES}}
    wrong = {name: why for name, text in given.items() if (why := _complaint(name, text))}
    findings += [_wrong(name, why, env, file) for name, why in wrong.items()]
    if content is None:
        return Known(env=env, given=given, settings=None, file=file), checked("settings", str(file), findings)
    good = {name: text for name, text in given.items() if name not in wrong}
    settings = config.load(good, None, to_run=False)
    findings += [*_unknown_names(place, env), *_together(settings)]
    rows = _document(settings, findings)
    rules = _policy(settings, place.folder, findings)
    known = Known(
        env=env,
        given=given,
        settings=settings,
        file=file,
        wrong=frozenset(wrong),
        unit=unit,
        rows=rows,
        policy=rules,
        told=frozenset(each.id for each in findings),
    )
    return known, checked("settings", f"from {file or 'the environment'}, {len(given)} set", findings)


def _unreadable(where: str, why: str) -> Finding:
    return Finding("settings.unreadable", f"the settings in {where} cannot be read: {why}", f"ls -l {where}")


def _read_toml(file: Path | None, findings: list[Finding]) -> dict[str, Any] | None:
    """The content of the file of settings; None, with a finding, where there is nothing to be had of it."""
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        findings.append(_unreadable(str(file), error.strerror or "no access"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # Only the place: the line itself may hold a secret.
        where = str(error).rpartition("(at ")[2].rstrip(")") if "(at " in str(error) else "not UTF-8"
        fix = f'mend that line: NAME = "text", NAME = 1 or NAME = true; {FIX_RESTART}'
        findings.append(Finding("settings.not_toml", f"{file} is not TOML: {where}", fix))
    return None


def _texts(content: Mapping[str, Any], findings: list[Finding]) -> dict[str, str]:
    """The settings of the file as texts; names that are none and values of a wrong kind become findings."""
    out: dict[str, str] = {}
    for name, value in content.items():
        if name not in VARIABLES:
            near = difflib.get_close_matches(name.upper(), VARIABLES, 1, 0.7)
            advice = f"rename it to {near[0]}" if near else "remove it"
            cause = f"{name} in the file of settings is not a setting"
            findings.append(Finding("settings.unknown", cause, f"{advice}; {FIX_RESTART}"))
        elif isinstance(value, bool):
            out[name] = str(value).lower()
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            out[name] = ",".join(value)
        elif isinstance(value, str | int | float):
            out[name] = str(value)
        else:
            fix = f"give it as a text, a number, true or false; {FIX_RESTART}"
            findings.append(Finding("settings.wrong", f"{name} in the file of settings has a value of no use", fix))
    return out


def _complaint(name: str, text: str) -> ConfigError | None:
    try:
        config.load({name: text}, None, to_run=False)
    except ConfigError as error:
        return error
    if name == "CLOUD_DIALECT" and text.strip().lower() == "lighthouse":
        return ConfigError(name, repr(text), "only `observer` is spoken by this version")
    return None


def _wrong(name: str, error: ConfigError, env: Mapping[str, str], file: Path | None) -> Finding:
    where = "the environment (or agent.env)" if name in env else str(file)
    return Finding("settings.wrong", f"{name}={error.value} is wrong", f"{name}: {error.fix}; mend it in {where}")


def _unknown_names(place: Place, env: Mapping[str, str]) -> Iterator[Finding]:
    """Names of agent.env that are almost those of settings."""
    for name in config.read_env_file(place.folder / "agent.env") if _readable(place.folder / "agent.env") else ():
        near = difflib.get_close_matches(name, VARIABLES, 1, 0.85)
        if near and name not in VARIABLES and not name.startswith("PROBE_"):
            cause = f"{name} in {place.folder}/agent.env is not a setting"
            yield Finding("settings.unknown_env", cause, f"rename it to {near[0]}; {FIX_RESTART}")


def _together(settings: Settings) -> Iterator[Finding]:
    """What is wrong or unwise about the settings as a whole."""
    host, url = settings.debug_dashboard_host, settings.cloud_server_url
    if settings.enable_debug_dashboard and host not in LOOPBACK and not settings.debug_dashboard_token:
        fix = "set DEBUG_DASHBOARD_TOKEN, or DEBUG_DASHBOARD_HOST=127.0.0.1"
        yield Finding("settings.dashboard_open", f"DEBUG_DASHBOARD_HOST={host} is not loopback and has no token", fix)
    if url.startswith("http://") and not _is_loopback(url):
        cause = f"{config.origin(url)} is spoken to without TLS: anybody on the way can read the key and all samples"
        yield Finding("settings.plain_http", cause, "set CLOUD_SERVER_URL to https://...")
    if settings.skip_ssl_verification:
        cause = "SKIP_SSL_VERIFICATION is on: anybody on the way can read the key and all samples"
        fix = "set SKIP_SSL_VERIFICATION=false; for an authority of your own set REQUESTS_CA_BUNDLE to its PEM file"
        yield Finding("settings.no_verify", cause, fix)


def _is_loopback(url: str) -> bool:
    host = config.origin(url).partition("://")[2]
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    return name in LOOPBACK or name.startswith("127.")


def _policy(settings: Settings, folder: Path, findings: list[Finding]) -> Policy:
    try:
        return policy.load(settings.policy_file, folder / policy.USUAL.name)
    except ConfigError as error:
        fix = f"{error.fix}; observer-agent policy show checks it; {FIX_RESTART}"
        findings.append(Finding("settings.policy_file", f"the policy in {error.value} is wrong", fix))
        return Policy()


def _document(settings: Settings, findings: list[Finding]) -> tuple[Any, ...] | None:
    """The rows of DEFINITIONS_FILE; None where there is none, and with a finding none at all."""
    if not settings.definitions_file:
        return None
    file = Path(settings.definitions_file)
    try:
        found = document.read(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not UTF-8"
        findings.append(Finding("settings.definitions_file", f"DEFINITIONS_FILE={file}: {why}", f"ls -l {file}"))
    except DocumentError as error:
        fix = f"mend it: docs/hub.md has the form; {FIX_RESTART}"
        findings.append(Finding("settings.definitions_file", f"DEFINITIONS_FILE: {error}", fix))
    else:
        return tuple(metric.wire for metric in found.metrics if metric.wire.get("source_type") != document.NO_PROBE)
    return ()


# -- the key


def key_file(place: Place, known: Known) -> Path | None:
    """The file that the key comes from; None where a variable holds it."""
    if known.env.get("AGENT_KEY", "").strip():
        return None
    if known.env.get("AGENT_KEY_FILE"):
        return Path(known.env["AGENT_KEY_FILE"])
    credential = Path(known.env.get("CREDENTIALS_DIRECTORY") or place.folder, "agent_key")
    if not known.env.get("CREDENTIALS_DIRECTORY") and not _readable(credential) and os.geteuid() != 0:
        credential = Path("/nonexistent")
    if os.path.exists(credential) or known.given.get("AGENT_KEY", "").strip():
        return credential if os.path.exists(credential) else None
    return Path(known.given["AGENT_KEY_FILE"]) if known.given.get("AGENT_KEY_FILE") else None


def find_key(place: Place, known: Known) -> tuple[str, Check]:
    """The key, empty where there is none of use."""
    file = key_file(place, known)
    usual = place.folder / "agent_key"
    unseen = is_hidden(place) or (os.path.lexists(usual) and not _readable(usual))
    if unseen and file is None and "AGENT_KEY" not in known.given and os.geteuid() != 0:
        return "", skipped("key", f"this user cannot read {usual}")
    try:
        key = config.read_key(known.given, known.env)
    except ConfigError as error:
        return "", checked("key", "no key of use", [_no_key(error, file, usual)])
    where = str(file) if file else "AGENT_KEY"
    return key, checked("key", f"from {where}, {len(key)} characters", _open_files(place, known, file))


def _no_key(error: ConfigError, file: Path | None, usual: Path) -> Finding:
    where = file or usual
    give = f"install -m 0400 /dev/stdin {where} and paste the key that the cloud gave you; {FIX_RESTART}"
    if "cannot be read" in error.fix:
        return Finding("key.unreadable", f"the key file {where} {error.fix}", f"ls -l {where}, then: {give}")
    if error.fix.startswith("set AGENT_KEY"):
        if file and os.path.exists(file):
            return Finding("key.empty", f"the key file {where} holds no key", give)
        return Finding("key.missing", "there is no key: neither AGENT_KEY nor a key file", give)
    cause = f"the key from {where if file else error.key} is not a key: 1 to 256 printable ASCII characters, no blanks"
    return Finding("key.ill_formed", cause, give)


def _open_files(place: Place, known: Known, file: Path | None) -> Iterator[Finding]:
    """Files with the key that everybody on this machine can read."""
    holders = [file] if file else []
    if "AGENT_KEY" in known.given and "AGENT_KEY" not in place.env:
        holders += [place.folder / "agent.env"] if "AGENT_KEY" in known.env else [known.file or place.folder]
    for each in holders:
        if os.path.isfile(each) and each.stat().st_mode & 0o004:
            yield Finding(
                "key.world_readable", f"every user of this machine can read the key in {each}", f"chmod o= {each}"
            )


def reloaded(place: Place, known: Known, state: Mapping[str, Any] | None) -> Finding | None:
    """Whether the running agent still has an older key than the file: the file is newer than what it was handed."""
    file = key_file(place, known)
    if file is None or state is None or not os.path.exists(file):
        return None
    copies = [copy / "agent_key" for copy in place.copies if _readable(copy / "agent_key")]
    started = config_time(state)
    if file == place.folder / "agent_key" and copies:
        newer = copies[0].read_bytes().strip() != known.key.encode()  # what a reload has brought goes first
    else:
        newer = started is not None and file.stat().st_mtime > started
    refused = "this key" in str(state["cloud"].get("problem")) or "status 401" in str(state["cloud"].get("problem"))
    fix = "systemctl reload observer-agent (without systemd: kill -HUP its process)"
    if newer and refused:
        return Finding("key.not_reloaded", f"the agent runs with an older key than {file} holds", fix)
    if newer and copies:
        return Finding("key.newer", f"{file} was changed after the agent was handed its key", fix)
    return None


def config_time(state: Mapping[str, Any]) -> float | None:
    """When the running agent was started, in seconds since 1970."""
    from observer_agent.clock import parse_iso

    return parse_iso(str(state["process"].get("started_at")))


def _readable(file: Path) -> bool:
    return os.access(file, os.R_OK)
