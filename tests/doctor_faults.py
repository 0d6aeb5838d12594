"""Faults for the doctor, each a real one: servers that misbehave, files that are damaged, disks that are full.

`FAULTS` maps a name to a `Fault`: `bring` brings it about on a `Bench` whose host is otherwise in order, and `id` is
the finding that must be named first.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from email.utils import format_datetime
from functools import partial
from pathlib import Path

import pytest

from observer_agent import queuefile
from observer_agent.clock import Clock, iso
from observer_agent.resolver import ResolveError
from tests.conftest import eat
from tests.doctor_bench import KEY, Bench, behind, corrupt, definitions, fill, json_answer, proxy, row
from tests.servers import (
    Authority,
    Server,
    answer,
    days,
    hang_up,
    redirect,
    refused_port,
    says,
    scripted,
    self_signed,
    tarpit,
)

# -- faults


@dataclass(frozen=True)
class Fault:
    """`id` must be named first; `code` is the exit code; `slow` where something has to time out."""

    id: str
    code: int
    bring: Callable[[Bench], object]
    slow: bool = False


FAULTS: dict[str, Fault] = {}


def fault(name: str, id_: str, code: int = 2, slow: bool = False):
    def keep(bring):
        FAULTS[name] = Fault(id_, code, bring, slow)
        return bring

    return keep


def simple(name: str, id_: str, code: int = 2, **env: str) -> None:
    FAULTS[name] = Fault(id_, code, lambda bench: bench.env.update(env))


# settings

simple("a setting that is no number", "settings.wrong", BUFFER_MAX_ROWS="ten")
simple("a URL that is none", "settings.wrong", CLOUD_SERVER_URL="use.observer")
simple("a dialect that is not spoken", "settings.wrong", CLOUD_DIALECT="lighthouse")
simple("several wrong settings", "settings.wrong", BUFFER_MAX_AGE="soon", VERBOSE="perhaps", LOG_FORMAT="xml")
simple("an open local page", "settings.dashboard_open", DEBUG_DASHBOARD_HOST="0.0.0.0", ENABLE_DEBUG_DASHBOARD="true")
simple("a missing document", "settings.definitions_file", DEFINITIONS_FILE="/nonexistent/observer.yaml")


def toml(bench: Bench, text: str) -> None:
    bench.file = bench.etc / "config.toml"
    bench.file.write_text(text)


@fault("an unknown name in the file", "settings.unknown")
def _(bench):
    toml(bench, "BUFER_MAX_ROWS = 5\n")


@fault("a file that is not TOML", "settings.not_toml")
def _(bench):
    toml(bench, "BUFFER_MAX_ROWS = = 5\n")


@fault("a file of settings that is not there", "settings.unreadable")
def _(bench):
    bench.file = bench.etc / "other.toml"


@fault("a document of definitions that is none", "settings.definitions_file")
def _(bench):
    (bench.tmp / "d.yaml").write_text("- just\n- a list\n")
    bench.env["DEFINITIONS_FILE"] = str(bench.tmp / "d.yaml")


@fault("a policy with a rule that is none", "settings.policy_file")
def _(bench):
    (bench.etc / "policy.toml").write_text("[networks]\ndeny = ['everything']\n")


@fault("a name in agent.env that is almost a setting", "settings.unknown_env", 1)
def _(bench):
    (bench.etc / "agent.env").write_text("BUFFER_MAX_ROW=5\nPROBE_TOKEN=x\nHTTPS_PROXY_X=1\n")


@fault("plain http to another machine", "settings.plain_http", 1)
def _(bench):
    bench.answers(definitions(bench.target), host="good.test")
    bench.env["CLOUD_SERVER_URL"] = bench.env["CLOUD_SERVER_URL"].replace("127.0.0.1", "good.test")
    bench.env["NO_PROXY"] = "*"


@fault("no verification of TLS", "settings.no_verify", 1)
def _(bench):
    bench.cloud(scripted(definitions(bench.target)), "localhost", tls=self_signed(bench.tmp))
    bench.env["SKIP_SSL_VERIFICATION"] = "true"


# key


def key_file(bench: Bench, text: str, mode: int = 0o600) -> None:
    file = bench.tmp / "key"
    file.write_text(text)
    file.chmod(mode)
    del bench.env["AGENT_KEY"]
    bench.env["AGENT_KEY_FILE"] = str(file)


@fault("no key", "key.missing")
def _(bench):
    del bench.env["AGENT_KEY"]


@fault("an empty key file", "key.empty")
def _(bench):
    key_file(bench, "\n")


@fault("a key file that is not there", "key.unreadable")
def _(bench):
    key_file(bench, KEY)
    (bench.tmp / "key").unlink()


@fault("a key with a blank in it", "key.ill_formed")
def _(bench):
    key_file(bench, "my key\n")


@fault("a key that is longer than a key may be", "key.ill_formed")
def _(bench):
    bench.env["AGENT_KEY"] = "x" * 300


@fault("a key that all may read", "key.world_readable", 1)
def _(bench):
    key_file(bench, KEY, 0o644)


@fault("the package's key file holds nothing but `unset`", "key.empty")
def _(bench):
    del bench.env["AGENT_KEY"]
    (bench.etc / "agent_key").write_text("unset\n")


# disk


def mount(bench: Bench, options: str) -> None:
    place = bench.tmp / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the kernel lets us mount nothing here: {done.stderr.strip()}")
    bench.stack.callback(subprocess.run, ["umount", "-l", place], check=True)
    bench.state = place
    bench.hold(place)
    bench.env["BUFFER_PATH"] = str(bench.buffer)


@fault("a full disk", "disk.full")
def _(bench):
    mount(bench, "size=2m")
    eat(bench.state)


@fault("no inode left", "disk.no_inodes")
def _(bench):
    mount(bench, "size=200m,nr_inodes=20")
    try:
        for n in range(30):
            (bench.state / f"stranger{n}").touch()
    except OSError:
        pass


@fault("few inodes left", "disk.few_inodes", 1)
def _(bench):
    mount(bench, "size=200m,nr_inodes=60")


@fault("a directory mounted read-only", "disk.read_only")
def _(bench):
    mount(bench, "size=200m")
    subprocess.run(["mount", "-o", "remount,ro", bench.state], check=True)


@fault("little room left", "disk.low", 1)
def _(bench):
    mount(bench, "size=2m")


@fault("no such directory", "disk.missing")
def _(bench):
    bench.env["BUFFER_PATH"] = str(bench.tmp / "nowhere" / "buffer.db")


# queue


@fault("a corrupt queue file", "queue.damaged")
def _(bench):
    corrupt(bench)


@fault("a queue file that is no database", "queue.damaged")
def _(bench):
    bench.buffer.write_bytes(b"not a database at all" * 500)


@fault("a row whose checksum is wrong", "queue.damaged")
def _(bench):
    fill(bench, 5, 1000, f"UPDATE {queuefile.TABLE} SET crc = crc + 1 WHERE _id = 3")


@fault("a queue of a newer version", "queue.newer_format")
def _(bench):
    fill(bench, 5, 1000, f"PRAGMA user_version = {queuefile.VERSION + 1}")


@fault("another program's database", "queue.foreign")
def _(bench):
    with closing(sqlite3.connect(bench.buffer)) as conn, conn:
        conn.execute("CREATE TABLE songs (title TEXT)")


@fault("a damaged file moved aside", "queue.corrupt_aside", 1)
def _(bench):
    fill(bench, 0, 1000)
    (bench.state / "buffer.db.corrupt-1700000000").write_bytes(b"x")
    (bench.state / "buffer.db.corrupt-1700000000-wal").write_bytes(b"x")


@fault("a full queue", "queue.full")
def _(bench):
    fill(bench, 100, 100)


@fault("a nearly full queue", "queue.filling", 1)
def _(bench):
    fill(bench, 85, 100)


@fault("an old queue", "queue.old", 1)
def _(bench):
    fill(bench, 5, 100, f"UPDATE {queuefile.TABLE} SET timestamp = timestamp - 4000")


@fault("dead letters", "queue.dead_letters", 1)
def _(bench):
    fill(
        bench, 0, 100, "INSERT INTO rejected VALUES (1, 'q', 1, x'7b7d', 'value: missing', 200, 'no', 1700000000.0)"
    )  # fmt: skip


@fault("a queue file that cannot be read to its end, ever", "queue.hung", slow=True)
def _(bench):
    os.mkfifo(bench.buffer)  # as a network file system whose server is gone: an open that does not come back
    bench.stack.callback(release, bench.buffer)


def release(fifo: Path) -> None:
    """Lets the thread go that waits for a writer."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        pass


# unit and user


def unit(name: str, id_: str, code: int = 2, **facts: str) -> None:
    FAULTS[name] = Fault(id_, code, lambda bench: bench.unit.update(facts))


unit("a masked unit", "unit.masked", LoadState="masked", UnitFileState="masked", ActiveState="inactive")
unit("a unit that cannot be loaded", "unit.not_loaded", LoadState="bad-setting", ActiveState="inactive")
unit("a failed unit", "unit.failed", ActiveState="failed", SubState="failed", Result="exit-code", ExecMainStatus="1")
unit("a unit that restarts", "unit.looping", ActiveState="activating", SubState="auto-restart", NRestarts="17")
NOT_MET = {"ActiveState": "inactive", "ConditionResult": "no"}
unit("a unit whose condition is not met", "unit.condition", ConditionTimestampMonotonic="7", **NOT_MET)
unit("a unit that nobody has started yet", "unit.inactive", ConditionTimestampMonotonic="0", **NOT_MET)
unit("a unit that was not started", "unit.inactive", ActiveState="inactive", SubState="dead")
unit("a unit that is not enabled", "unit.disabled", 1, UnitFileState="disabled")
unit("a unit changed on disk", "unit.stale", 1, NeedDaemonReload="yes")
unit("a user that does not exist", "user.missing", User="no-such-user-here")


@fault("files that belong to root", "user.owner")
def _(bench):
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    bench.unit["User"] = "nobody"
    fill(bench, 0, 100)


# name, connection, proxy


@fault("a name that does not exist", "resolver.not_found")
def _(bench):
    bench.env["CLOUD_SERVER_URL"] = "https://use.observer.invalid"


@fault("name servers that do not answer", "resolver.failed")
def _(bench):
    bench.env["CLOUD_SERVER_URL"] = "https://cloud.test"

    def lookup(name):
        raise ResolveError("EAI_AGAIN", "try again")

    bench.lookup = lookup


@fault("a resolver that hangs", "resolver.silent", slow=True)
def _(bench):
    bench.env["CLOUD_SERVER_URL"] = "https://cloud.test"
    gate = threading.Event()
    bench.stack.callback(gate.set)

    def lookup(name):
        gate.wait()
        raise ResolveError("ENOTFOUND")

    bench.lookup = lookup


@fault("a closed port", "tcp.refused")
def _(bench):
    port = bench.stack.enter_context(refused_port())
    bench.env["CLOUD_SERVER_URL"] = f"http://127.0.0.1:{port}"


@fault("a port that swallows connections", "tcp.silent", slow=True)
def _(bench):
    listener = bench.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):  # fills the backlog: what comes then is not answered
        sock = bench.stack.enter_context(socket.socket())
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
    bench.env["CLOUD_SERVER_URL"] = f"http://127.0.0.1:{listener.getsockname()[1]}"


@fault("a proxy that is not there", "proxy.unreachable")
def _(bench):
    port = bench.stack.enter_context(refused_port())
    bench.env |= {"HTTPS_PROXY": f"http://127.0.0.1:{port}", "CLOUD_SERVER_URL": "https://cloud.test"}


@fault("a proxy whose name does not exist", "proxy.not_found")
def _(bench):
    bench.env |= {"HTTPS_PROXY": "http://proxy.invalid:3128", "CLOUD_SERVER_URL": "https://cloud.test"}


@fault("a proxy that refuses", "proxy.refused")
def _(bench):
    behind(bench, proxy(403))


@fault("a proxy that wants a login", "proxy.login")
def _(bench):
    behind(bench, proxy(407))


@fault("a proxy that wants a login for plain http", "proxy.login")
def _(bench):
    bench.env["HTTP_PROXY"] = bench.serve(proxy(407)).url
    bench.env["CLOUD_SERVER_URL"] = "http://127.0.0.2"


@fault("a proxy that is none", "proxy.not_a_proxy")
def _(bench):
    behind(bench, says(b"220 smtp.example.org ESMTP\r\n\r\n"))


@fault("a proxy of another kind", "proxy.unsupported")
def _(bench):
    bench.env |= {"HTTPS_PROXY": "socks5://127.0.0.1:1080", "CLOUD_SERVER_URL": "https://cloud.test"}


# TLS


def tls(bench: Bench, context: ssl.SSLContext, host: str = "localhost", **options) -> Server:
    return bench.cloud(scripted(definitions(bench.target)), host, tls=context, **options)


AUTHORITY = Authority()


@fault("a CA bundle that is not there", "tls.ca_missing")
def _(bench):
    tls(bench, AUTHORITY.server())
    bench.env["REQUESTS_CA_BUNDLE"] = str(bench.tmp / "missing.pem")


@fault("a CA bundle that is not PEM", "tls.ca_not_pem")
def _(bench):
    tls(bench, AUTHORITY.server())
    (bench.tmp / "ca.pem").write_text("hello\n")
    bench.env["REQUESTS_CA_BUNDLE"] = str(bench.tmp / "ca.pem")


@fault("a self-signed certificate", "tls.self_signed")
def _(bench):
    tls(bench, self_signed(bench.tmp))


@fault("an authority that nobody knows", "tls.unknown_issuer")
def _(bench):
    tls(bench, AUTHORITY.server())


@fault("an expired certificate", "tls.expired")
def _(bench):
    bench.trust(AUTHORITY)
    tls(bench, AUTHORITY.expired())


@fault("a certificate that is not valid yet", "tls.not_yet_valid")
def _(bench):
    bench.trust(AUTHORITY)
    tls(bench, AUTHORITY.server(not_before=days(2), not_after=days(9)))


@fault("a certificate for another name", "tls.wrong_name")
def _(bench):
    bench.trust(AUTHORITY)
    tls(bench, AUTHORITY.server("other.test"))


@fault("a port without TLS", "tls.not_tls", slow=True)
def _(bench):
    server = bench.answers(definitions(bench.target))
    bench.env["CLOUD_SERVER_URL"] = f"https://127.0.0.1:{server.port}"


@fault("a handshake that is refused", "tls.refused")
def _(bench):
    server = bench.serve(says(b"\x15\x03\x03\x00\x02\x02\x28"))
    bench.env["CLOUD_SERVER_URL"] = f"https://127.0.0.1:{server.port}"


@fault("a connection cut in the handshake", "tls.closed")
def _(bench):
    server = bench.serve(lambda conn, server: conn.recv(1000) and None)
    bench.env["CLOUD_SERVER_URL"] = f"https://127.0.0.1:{server.port}"


@fault("a handshake that is never answered", "tls.silent", slow=True)
def _(bench):
    server = bench.serve(tarpit)
    bench.env["CLOUD_SERVER_URL"] = f"https://127.0.0.1:{server.port}"


# clock


def dated(bench: Bench, ahead_days: float, **options) -> None:
    body = [row({"host": "127.0.0.1", "port": bench.target})]
    bench.answers(json_answer(body, Date=format_datetime(days(ahead_days), usegmt=True)), **options)


@fault("a clock that is an hour behind", "clock.wrong")
def _(bench):
    dated(bench, 1 / 24)


@fault("a clock that is an hour ahead", "clock.wrong")
def _(bench):
    dated(bench, -1 / 24)


@fault("a clock that is 20 s behind", "clock.off", 1)
def _(bench):
    dated(bench, 20 / 86400)


@fault("a clock that is two days behind, so that the certificate seems not valid yet", "clock.wrong")
def _(bench):
    bench.trust(AUTHORITY)
    dated(bench, 2, tls=AUTHORITY.server(not_before=days(1), not_after=days(9)))
    bench.env["CLOUD_SERVER_URL"] = bench.env["CLOUD_SERVER_URL"].replace("127.0.0.1", "localhost")


# the answer


def answered(name: str, id_: str, data: bytes | Callable[[], bytes], code: int = 2) -> None:
    """A cloud that answers so; what carries a date is made when it is wanted, not when this file is read."""
    FAULTS[name] = Fault(id_, code, lambda bench: bench.answers(data() if callable(data) else data))


HTML = b"<!doctype html><title>Welcome</title>"
answered("a key that is not known", "authentication.refused", partial(json_answer, {"error": "unauthorized"}, 401))
SUSPENDED = partial(json_answer, {"code": "agent_suspended_plan"}, 403)
answered("a suspended plan", "authentication.suspended", SUSPENDED)
answered("a request that is forbidden", "authentication.forbidden", answer(HTML, 403, Content_Type="text/html"))
answered("another program", "contract.missing", answer(HTML, 404, Content_Type="text/html"))
answered("a method that is not allowed", "contract.missing", answer(b"", 405))
answered("a web page", "contract.html", answer(HTML, Content_Type="text/html"))
answered("a JSON object", "contract.not_definitions", partial(json_answer, {"definitions": []}))
answered("a redirect", "contract.redirect", redirect("https://login.example.org/?next=x"))
answered("a server with a fault", "contract.server_error", answer(HTML, 502))
answered("a captive portal", "contract.captive_portal", answer(HTML, 511))
answered("a cloud that is busy", "contract.busy", answer(b"", 429, Retry_After="30"), 1)
answered("an answer without a word", "contract.not_http", b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n")


@fault("a cloud that hangs up", "contract.closed")
def _(bench):
    bench.cloud(hang_up)


@fault("a tarpit", "contract.silent", slow=True)
def _(bench):
    bench.cloud(tarpit)


# definitions and sources


def defined(name: str, id_: str, *rows: object, code: int = 2) -> None:
    FAULTS[name] = Fault(id_, code, lambda bench: bench.answers(json_answer(list(rows))))


def web(ref: str) -> dict:
    return row({"url": "http://127.0.0.1:1/", "header_refs": {"X-Token": ref}}, "http")


NO_RULES = {"id": "x", "source_type": "tcp", "source_config": {"host": "a", "port": 1}}
defined("a definition that is not understood", "definitions.invalid", row({"host": "127.0.0.1", "port": 99999}))
defined("a definition without thresholds", "definitions.invalid", NO_RULES)
defined("a source type that is not known", "definitions.unknown_type", row({}, "telepathy"))
defined("no definitions", "definitions.none", code=1)
defined("a missing variable", "definitions.missing_env", web("PROBE_NOT_SET"))
defined("a variable of the agent itself", "definitions.missing_env", web("AGENT_KEY"))


@fault("a definition without an id", "definitions.no_id", 1)
def _(bench):
    good = row({"host": "127.0.0.1", "port": bench.target})
    bench.answers(json_answer([good, {k: v for k, v in good.items() if k != "id"}]))


@fault("a target that hangs", "sources.target", 1, slow=True)
def _(bench):
    server = bench.serve(tarpit)
    bench.answers(json_answer([row({"url": server.url, "timeout_ms": 20_000}, "http")]))


@fault("a target that is down", "sources.target", 1)
def _(bench):
    port = bench.stack.enter_context(refused_port())
    bench.answers(json_answer([row({"host": "127.0.0.1", "port": port})]))


# the running agent


def page(bench: Bench, port: int) -> None:
    bench.env |= {"ENABLE_DEBUG_DASHBOARD": "true", "DEBUG_DASHBOARD_PORT": str(port)}


@fault("another program on the local page's port", "agent.other_program", 1)
def _(bench):
    page(bench, bench.serve(scripted(answer(HTML, 404))).port)


@fault("a local page that wants its token", "agent.token", 1)
def _(bench):
    page(bench, bench.serve(scripted(answer(b"no", 401))).port)


@fault("an agent that hangs", "agent.frozen")
def _(bench):
    page(bench, bench.serve(tarpit).port)


@fault("an agent without its local page", "agent.no_page", 1)
def _(bench):
    page(bench, bench.stack.enter_context(refused_port()))


def state(bench: Bench, **changes: dict) -> None:
    """The local page of an agent that is well but for `changes`."""
    parts = {
        "process": {"version": "0", "pid": 1, "started_at": iso(Clock().now() - 500), "uptime_seconds": 500.0},
        "cloud": {"delivering": True, "problem": None, "fenced_by": None, "last_heartbeat_at": iso(Clock().now() - 5)},
    }
    said = {name: {**part, **changes.pop(name, {})} for name, part in parts.items()}
    said |= {"queue": {}, "workers": [], "definitions": [], **changes}
    page(bench, bench.serve(scripted(json_answer(said))).port)


def told(name: str, id_: str, code: int = 2, **changes: object) -> None:
    FAULTS[name] = Fault(id_, code, lambda bench: state(bench, **changes))


REFUSED = {"delivering": False, "problem": "the cloud does not take this key (status 401: no)"}
told("a worker that died", "agent.dead_worker", workers=[{"name": "beat", "alive": False}])
told("a worker that hangs", "agent.hung_worker", workers=[{"name": "send", "alive": True, "hung": True}])
told("an agent that does not deliver", "agent.not_delivering", cloud=REFUSED)
told("an agent that was silenced", "agent.silent", cloud={"last_heartbeat_at": "2026-01-01T00:00:00.000Z"})
told(
    "an OTLP receiver that cannot listen", "agent.otlp", otlp={"listens_on": None, "problem": "Address already in use"}
)
told("a relay that cannot listen", "agent.relay", relay={"listens_on": None, "problem": "it cannot listen on here"})
told(
    "a custom probe that is refused", "agent.custom_probe", custom_probes={"refused": [{"origin": "a", "problem": "b"}]}
)
UNHEARD = {"listens_on": "127.0.0.1:10102", "waiting": 3, "problem": "the cloud does not take pings (status 404: no)"}
told("pings that the cloud does not take", "agent.relay_waits", 1, relay=UNHEARD)
told("a key that another process uses", "duplicate.fenced", cloud={**REFUSED, "fenced_by": "2030-01-01T00:00:00.000Z"})


def rotate(bench: Bench, handed: str, **cloud: object) -> None:
    """The package's key file, and the copy that systemd has handed to the agent."""
    del bench.env["AGENT_KEY"]
    bench.copies = (bench.tmp / "copy",)
    bench.copies[0].mkdir()
    for file, key in ((bench.etc / "agent_key", KEY), (bench.copies[0] / "agent_key", handed)):
        file.write_text(f"{key}\n")
        file.chmod(0o600)
    state(bench, cloud=cloud)


@fault("a key that was rotated, and the old one is refused", "key.not_reloaded")
def _(bench):
    rotate(bench, "obs_live_old", **REFUSED)


@fault("a key that was rotated, and the old one still works", "key.newer", 1)
def _(bench):
    rotate(bench, "obs_live_old")


@fault("a key file of one's own that is newer than an agent whose key is refused", "key.not_reloaded")
def _(bench):
    key_file(bench, KEY)
    state(bench, cloud=REFUSED)


@fault("no agent", "agent.not_running", 1)
def _(bench):
    page(bench, bench.stack.enter_context(refused_port()))
    bench.env["BUFFER_PATH"] = str(bench.tmp / "buffer.db")
