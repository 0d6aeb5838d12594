"""The record of what has left: complete, bounded, masked, alive after a kill; `observer-agent sent`; debug lines."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from observer_agent.cli import main
from observer_agent.clock import Clock, iso
from observer_agent.clouds import DIALECTS
from observer_agent.config import load
from observer_agent.demo.stage import clean_env
from observer_agent.logs import Redactor, configure
from observer_agent.sentlog import BODY_MAX, LINE_MAX, SentLog, Tail, masked, older, path_of, read
from tests.fakes import FakeClock
from tests.servers import Server, answer, refused_port, scripted

KEY = "obs_live_" + "k" * 43
ROWS = b'[{"metric_id":"m1","value":1.0}]'


@pytest.fixture
def file(tmp_path):
    return path_of(tmp_path / "buffer.db")


@pytest.fixture
def made(file):
    """Makes records, and closes them."""
    opened = []

    def make(clock=None, redact=str, **bounds):
        opened.append(SentLog(bounds.pop("file", file), clock or FakeClock(), redact, **{"least_free": 0, **bounds}))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def one(log, body=ROWS, path="/api/agent/receiver/batch", status=200):
    number = log.begin("POST", "https://cloud.test", path, body)
    log.end(number, status, 0.0123)
    return number


# -- the file


def test_a_request_and_its_answer_are_one_record(made, file):
    clock = FakeClock()
    number = one(made(clock))
    (found,) = read(file)
    assert (found.id, found.time, found.to) == (number, iso(clock.now()), "https://cloud.test")
    assert (found.request, found.bytes, found.body) == ("POST /api/agent/receiver/batch", len(ROWS), ROWS.decode())
    assert found.sha256 == hashlib.sha256(ROWS).hexdigest()
    assert (found.status, found.seconds, found.error, found.cut, found.missed) == (200, 0.012, "", 0, 0)
    assert os.stat(file).st_mode & 0o777 == 0o600


def test_a_request_is_on_record_before_it_leaves(made, file):
    made().begin("POST", "https://cloud.test", "/x", b"{}")
    (found,) = read(file)
    assert (found.status, found.seconds) == (None, None)


def test_two_requests_that_overlap_are_told_apart(made, file):
    log = made()
    first, second = (log.begin("POST", "u", path, None) for path in ("/a", "/b"))
    log.end(second, 503, 1.0)
    log.end(first, 0, 2.0, "timed out")
    assert [(s.id, s.request, s.status, s.error) for s in read(file)] == [
        (first, "POST /a", 0, "timed out"),
        (second, "POST /b", 503, ""),
    ]


def test_another_process_goes_on_in_the_same_file_behind_a_torn_line(made, file):
    clock = FakeClock()
    one(made(clock))
    with file.open("ab") as torn:
        torn.write(b'{"id":5,"request":"POST /torn","bo')
    clock.advance(1)
    one(made(clock), path="/later")
    assert [s.request for s in read(file)] == ["POST /api/agent/receiver/batch", "POST /later"]


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"7", b"{}", b'{"id":1}', b'{"id":1,"request":"x"}', b'{"id":[],"request":1}']
)
def test_lines_that_are_none_are_passed_over(made, file, line):
    one(made())
    with file.open("ab") as more:
        more.write(line + b"\n\xff\xfe\n")
    one(made())
    assert len(read(file)) == 2


def test_the_files_never_hold_more_than_their_bound(made, file):
    log, body = made(most=100_000), b'{"a":"' + b"x" * 900 + b'"}'
    sizes = []
    for _ in range(500):
        one(log, body)
        sizes.append(sum(f.stat().st_size for f in (file, older(file)) if f.exists()))
    assert 50_000 < sizes[-1] <= max(sizes) <= 100_000
    found = read(file)
    assert len(found) > 35 and all(s.status == 200 for s in found)
    assert [s.id for s in found] == list(range(found[0].id, found[0].id + len(found))), "none is missing between"


def test_an_answer_in_the_newer_file_finds_its_request_in_the_older_one(made, file):
    log = made(most=4000)
    number = log.begin("POST", "u", "/first", b"x" * 1000)
    one(log, b"y" * 1500)
    log.end(number, 204, 1.0)
    assert older(file).exists()
    assert next((s.request, s.status) for s in read(file)) == ("POST /first", 204)


def test_a_body_is_cut_and_says_so_but_not_its_sum(made, file):
    body = b"z" * (BODY_MAX + 7)
    one(made(), body)
    (found,) = read(file)
    assert (len(found.body), found.cut, found.bytes) == (BODY_MAX, 7, BODY_MAX + 7)
    assert found.sha256 == hashlib.sha256(body).hexdigest()


def test_what_cannot_be_recorded_is_counted_and_sent_all_the_same(made, tmp_path, caught):
    folder = tmp_path / "later"
    file = folder / "buffer.db.sent"
    log = made(file=file)
    one(log)
    one(log)
    assert [r.getMessage() for r in caught.records if r.levelno >= logging.WARNING] == [
        "What is sent cannot be recorded (No such file or directory); it is sent all the same"
    ]
    folder.mkdir()
    one(log)
    assert [s.missed for s in read(file)] == [2]


def test_the_last_room_of_a_disk_is_the_queues(made, file):
    log = made(least_free=2**62)
    one(log)
    assert log.missed == 1 and file.read_bytes() == b""


def test_many_threads_write_whole_lines(made, file):
    log = made()
    threads = [threading.Thread(target=lambda: [one(log) for _ in range(100)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = read(file)
    assert len(found) == len({s.id for s in found}) == 500 and all(s.status == 200 for s in found)


KILLED = """
import os, signal, sys
from pathlib import Path
from observer_agent.clock import Clock
from observer_agent.sentlog import SentLog
log = SentLog(Path(sys.argv[1]), Clock(), str, least_free=0)
for n in range(200):
    number = log.begin("POST", "u", f"/{n}", b"{}")
    if n == 199:
        os.kill(os.getpid(), signal.SIGKILL)
    log.end(number, 200, 0.0)
"""


@pytest.mark.slow
def test_nothing_of_it_is_lost_by_a_kill(file):
    done = subprocess.run([sys.executable, "-c", KILLED, str(file)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    found = read(file)
    assert [s.request for s in found] == [f"POST /{n}" for n in range(200)]
    assert [s.status for s in found] == [200] * 199 + [None]


def test_since_and_last(made, file):
    clock = FakeClock()
    log = made(clock)
    for n in range(5):
        one(log, path=f"/{n}")
        clock.advance(60)
    assert [s.request for s in read(file, clock.now() - 125)] == ["POST /3", "POST /4"]
    assert [s.request for s in read(file, last=2)] == ["POST /3", "POST /4"]
    assert read(file, clock.now()) == []


# -- masks


@pytest.mark.parametrize("secret", ["s3cr3t-value", 'quo"te\\slash', "pässword-ünicode", "with blank & more?"])
@pytest.mark.parametrize("form", [str, quote, lambda s: json.dumps(s)[1:-1], lambda s: quote(s, safe="")])
def test_a_known_secret_is_masked_however_it_is_written(secret, form):
    redact = Redactor()
    redact.add(secret)
    shown = masked(f'{{"text":"before {form(secret)} after"}}'.encode(), redact)
    assert form(secret) not in shown and "before [redacted] after" in shown


@pytest.mark.parametrize("name", ["token", "Password", "api_key", "apiKey", "client_secret", "x-auth-token", "cookie"])
def test_a_value_whose_name_says_that_it_is_a_secret_is_masked(name):
    shown = masked(json.dumps({"a": 1, name: 'un"known', "z": "shown"}).encode(), Redactor())
    assert json.loads(shown) == {"a": 1, name: "[redacted]", "z": "shown"}


def test_bytes_that_are_no_text_are_shown_in_hexadecimal_unless_they_hold_a_secret():
    redact = Redactor()
    redact.add("a-known-secret")
    assert masked(b"\xff\x00up", redact) == "4 bytes, hex: ff007570"
    assert masked(b"\xff\x00a-known-secret", redact) == "16 bytes, hidden"


# -- both dialects


class Asked:
    """Settings of the second dialect."""

    token, wire, instance_id, verify = "lh_the-secret-token", "current", "", True

    def __init__(self, url):
        self.url = url


def calls(dialect, url, log, clock):
    """A call of a dialect that sends its secrets, and the secrets."""
    if dialect == "observer":
        settings = load({"AGENT_KEY": KEY, "CLOUD_SERVER_URL": url})
        link = DIALECTS["observer"](settings, None, "1", clock=clock, redact=log._redact, sent=log).connect()
        return link, lambda: link.relay([b'{"token":"k3yOfAJob","body":"%s"}' % KEY.encode()]), (KEY, "k3yOfAJob")
    link = DIALECTS["lighthouse"](Asked(url), None, "1", clock=clock, redact=log._redact, sent=log).connect()
    return link, lambda: link.register("1", f"host-{Asked.token}"), (Asked.token,)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_request_of_a_dialect_is_on_record_as_it_was_sent(made, file, dialect):
    redact = Redactor()
    log = made(Clock(), redact)
    with Server(scripted(answer("{}", 503))) as server:
        link, call, secrets = calls(dialect, server.url, log, Clock())
        call()
        link.leave()
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
    (found,) = read(file)
    assert found.request == " ".join(head.decode().split(" ")[:2]) and found.to == server.url
    assert (found.status, found.bytes, found.sha256) == (503, len(body), hashlib.sha256(body).hexdigest())
    text = file.read_text()
    assert not [secret for secret in secrets if secret in text]
    assert "[redacted]" in found.body


def test_no_answer_is_on_record_with_its_reason(made, file):
    log = made(Clock(), Redactor())
    with refused_port() as port:
        _, call, _ = calls("lighthouse", f"http://127.0.0.1:{port}", log, Clock())
        call()
    (found,) = read(file)
    assert (found.status, found.error) == (0, "connection refused")


def test_a_request_that_is_repeated_with_another_key_is_there_twice(made, file):
    log = made(Clock(), Redactor())
    with Server(scripted(answer("", 401), answer("{}"))) as server:
        settings = load({"AGENT_KEY": KEY, "CLOUD_SERVER_URL": server.url})
        link = DIALECTS["observer"](
            settings, None, "1", clock=Clock(), redact=log._redact, read_key=lambda: "obs_live_new", sent=log
        ).connect()
        link.log({"message": "hello"})
        link.leave()
    assert [s.status for s in read(file)] == [401, 200]


# -- debug lines


@pytest.fixture
def lines():
    """What is logged, at debug, as a person sees it; and what would be broadcast."""
    import io

    out, told = io.StringIO(), []
    logs = configure("text", True, FakeClock(), Redactor(), out)
    logs.listen(lambda level, line: told.append(line))
    yield logs, out, told
    logs.verbose(False)
    logs.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_body_is_printed_masked_before_it_is_sent(made, lines, dialect):
    logs, out, told = lines
    log = made(Clock(), logs.redact, file=None)
    seen = []

    with Server(lambda conn, server: (seen.append(out.getvalue()), scripted(answer("{}"))(conn, server))) as server:
        link, call, secrets = calls(dialect, server.url, log, Clock())
        call()
        link.leave()
    path = "/api/agent/heartbeat-relay" if dialect == "observer" else "/api/lighthouse/v1/register"
    assert f"POST {path}: " in seen[0] and "[redacted]" in seen[0], "it is printed before the connection is made"
    assert not [secret for secret in secrets if secret in out.getvalue()]
    assert told == [], "a line about a request is never sent itself"


def test_the_same_body_again_is_printed_again(made, lines):
    logs, out, _ = lines
    log = made(redact=logs.redact, file=None)
    one(log), one(log)
    assert out.getvalue().count(ROWS.decode()) == 2


def test_a_long_body_is_printed_in_parts(made, lines):
    logs, out, _ = lines
    body = "".join(f"{n:07d}," for n in range(2 * LINE_MAX // 8 + 1))
    one(made(redact=logs.redact, file=None), body.encode())
    assert "(part 1 of 3)" in out.getvalue() and "(part 3 of 3)" in out.getvalue()
    printed = "".join(line.partition("): ")[2] for line in out.getvalue().splitlines())
    assert printed == body


def test_without_debug_nothing_is_printed(made, lines):
    logs, out, _ = lines
    logs.verbose(False)
    one(made(redact=logs.redact, file=None))
    assert out.getvalue() == ""


# -- the command


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.setenv("BUFFER_PATH", str(tmp_path / "buffer.db"))
    return lambda *words: CliRunner().invoke(main, ["sent", *words])


def test_the_command_shows_each_request(made, file, ask):
    clock = Clock()
    log = made(clock)
    one(log)
    log.begin("POST", "https://cloud.test", "/unanswered", b"\x1b[31m" + b"x" * 3000)
    done = ask()
    assert done.exit_code == 0
    head, body, second, long = done.output.splitlines()
    assert "POST /api/agent/receiver/batch  https://cloud.test  200  12 ms  32 bytes  sha256 " in head
    assert body.strip() == ROWS.decode()
    assert "/unanswered" in second and "no answer on record" in second
    assert long.endswith("x ... 1005 more characters") and "\x1b" not in done.output
    rows = [json.loads(line) for line in ask("--json").output.splitlines()]
    assert [row["status"] for row in rows] == [200, None] and len(rows[1]["body"]) == 3005
    assert ask("--last", "1", "--json").output.count("\n") == 1


def test_the_command_with_a_time(made, ask):
    one(made(FakeClock(Clock().now() - 5000)))
    assert ask("--since", "1h").exit_code == 1
    assert ask("--since", "2h").exit_code == 0
    done = ask("--since", "yesterday")
    assert done.exit_code == 2 and "--since 'yesterday': must be a time" in done.output


def test_the_command_where_nothing_was_sent(ask):
    done = ask()
    assert done.exit_code == 2 and "does not exist: no agent with this queue file has sent anything yet" in done.output


def test_a_tail_follows_into_the_next_file(made, file):
    clock = FakeClock()
    log = made(clock, most=8000)
    one(log, path="/before")
    tail = Tail(file)
    found = []
    for n in range(40):
        one(log, b"x" * 300, path=f"/{n}")
        found += tail.more(0.0)
    assert [s.request for s in found] == [f"POST /{n}" for n in range(40)]
    log.begin("POST", "u", "/unanswered", None)
    assert list(tail.more(clock.now())) == []
    assert [s.request for s in tail.more(clock.now() + 1)] == ["POST /unanswered"]
    tail.close()


def test_a_tail_waits_for_the_file(made, file):
    tail = Tail(file)
    assert list(tail.more(0.0)) == []
    one(made())
    assert len(list(tail.more(0.0))) == 1
    tail.close()


@pytest.mark.slow
def test_the_command_follows_until_a_signal(made, file, tmp_path):
    env = clean_env({"BUFFER_PATH": str(tmp_path / "buffer.db")})
    command = [sys.executable, "-m", "observer_agent", "sent", "--follow", "--json", "--last", "1"]
    log = made(Clock())
    one(log, path="/before"), one(log, path="/last")
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert json.loads(process.stdout.readline())["request"] == "POST /last"
        one(log, path="/after")
        assert json.loads(process.stdout.readline())["request"] == "POST /after"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "" and process.returncode == 0
    finally:
        process.kill()
        process.communicate()
