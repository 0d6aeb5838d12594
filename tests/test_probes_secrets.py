"""References to secrets: which names may be used, and where their values go."""

from __future__ import annotations

import pytest

from observer_agent import probes
from observer_agent.config import VARIABLES
from observer_agent.model import Fault
from observer_agent.probes import Prober, _secrets
from tests.servers import Server, answer, make_prober, make_tools, scripted

OWN = [*VARIABLES, "AGENT_KEY_NEXT", "CREDENTIALS_DIRECTORY", "DATABASE_URL", "LIGHTHOUSE_TOKEN", "OBSERVER_HUB_TOKEN"]


def look(prober, url, ref, source_type="http"):
    config = {"url": url} if source_type == "http" else {"scrape_url": url, "metric": "up"}
    return prober.look(source_type, probes.parse(source_type, {**config, "header_refs": {"Authorization": ref}}))


@pytest.mark.parametrize("name", OWN)
def test_w8_the_agent_s_own_variables_never_even_when_they_are_listed(name):
    assert not _secrets.may_refer(name, (name,))


@pytest.mark.parametrize(
    ("name", "allowed", "may"),
    [
        ("PROBE_TOKEN", (), True),
        ("AWS_SECRET_ACCESS_KEY", (), False),
        ("AWS_SECRET_ACCESS_KEY", ("AWS_SECRET_ACCESS_KEY",), True),
        ("HOME", ("AWS_SECRET_ACCESS_KEY",), False),
        ("PROBE", (), False),
    ],
)
def test_w8_names_begin_with_probe_or_are_listed(name, allowed, may):
    assert _secrets.may_refer(name, allowed) is may


@pytest.mark.parametrize("source_type", ["http", "prometheus"])
def test_w8_nothing_is_sent_when_a_name_may_not_be_used(source_type):
    env = {"AGENT_KEY": "obs_live_abc", "OTHER": "value"}
    with Server(scripted(answer())) as server:
        for ref in env:
            reading = look(make_prober(env, PROBE_ENV_ALLOW="AGENT_KEY"), server.url, ref, source_type)
            assert (reading.reason, reading.fault) == ("header_ref_missing", Fault.CONFIG)
            assert "PROBE_ENV_ALLOW" in reading.detail["error"]
            assert reading.detail["header"] == "Authorization"
    assert server.connections == 0


def test_a_listed_name_is_sent():
    with Server(scripted(answer())) as server:
        look(make_prober({"OTHER": "value"}, PROBE_ENV_ALLOW="OTHER"), server.url, "OTHER")
    assert b"Authorization: value\r\n" in server.requests[0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "header_ref_missing"),
        ("", "header_ref_missing"),
        (" \t ", "header_ref_missing"),
        ("a\r\nX: y", "header_ref_invalid"),
        ("a\x00b", "header_ref_invalid"),
        ("a\x7fb", "header_ref_invalid"),
    ],
)
def test_values_that_cannot_be_sent(value, reason):
    env = {} if value is None else {"PROBE_X": value}
    with Server(scripted(answer())) as server:
        reading = look(make_prober(env), server.url, "PROBE_X")
    assert (reading.reason, reading.detail["env"]) == (reason, "PROBE_X")
    assert server.connections == 0


def test_values_are_trimmed_and_redacted_from_then_on():
    tools = make_tools({"PROBE_X": "  Bearer hunter2\t22 \n"})
    with Server(scripted(answer())) as server:
        look(Prober(tools), server.url, "PROBE_X")
    assert b"Authorization: Bearer hunter2\t22\r\n" in server.requests[0]
    assert "hunter2" not in tools.redact("it is Bearer hunter2\t22 indeed")


def test_a_secret_reaches_no_reading_and_no_line(caught):
    prober = make_prober({"PROBE_X": "hunter2-hunter2"})
    with Server(scripted(answer(status=500))) as server:
        reading = look(prober, server.url, "PROBE_X")
    assert reading.reason == "unexpected_status:500"
    assert "hunter2" not in str(reading) and "hunter2" not in caught.text
