"""Settings of the Lighthouse dialect: where the token comes from, the original's file, the instance id."""

from __future__ import annotations

import json
import logging
import stat
import uuid
from pathlib import Path

import pytest

from observer_agent import lighthousefile
from observer_agent.clouds._lighthouse_wire import State
from observer_agent.config import load, masked
from observer_agent.errors import ConfigError
from observer_agent.lighthouse.flap import Track
from observer_agent.lighthouse.identity import instance_id
from observer_agent.lighthouse.settings import runtime
from observer_agent.lighthouse.store import Configuration, Store

TOKEN = "lh_" + "t" * 40
ORIGINAL = """\
token: lh_from_the_file
agent:
  data_dir: /somewhere
  max_concurrent_checks: 4
  log_level: debug
  health_port: 9093
  proc_root: /host/proc
  host_root: /host/root
  role: host_metrics
  colour: blue
discovery:
  enabled: true
  namespaces: [shop, billing]
extra: 1
"""


def env(**more):
    return {"CLOUD_DIALECT": "lighthouse", "LIGHTHOUSE_TOKEN": TOKEN, **more}


def test_the_defaults_are_those_of_the_original_but_for_the_page():
    found = load(env())
    assert found.agent_key == TOKEN and found.cloud_server_url == "https://lighthouse.statusharbor.io"
    assert found.lighthouse_data_dir == Path("/var/lib/lighthouse")
    assert found.buffer_path == Path("/var/lib/lighthouse/events.db")
    assert not found.enable_debug_dashboard and found.observer_otlp_disable, "nothing listens unless it is asked for"
    assert (
        found.lighthouse_health_port == 0 and not found.lighthouse_host_metrics and found.lighthouse_wire == "current"
    )
    assert load(env(ENABLE_DEBUG_DASHBOARD="true", BUFFER_PATH="/tmp/q.db")).enable_debug_dashboard


def test_the_observer_dialect_does_not_see_any_of_it(tmp_path):
    found = load({"AGENT_KEY": "k", "LIGHTHOUSE_TOKEN": TOKEN, "BUFFER_PATH": str(tmp_path / "q.db")})
    assert found.agent_key == "k" and found.enable_debug_dashboard and found.cloud_server_url == "https://use.observer"
    assert masked(found)["LIGHTHOUSE_TOKEN"] == "(set)"


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("LIGHTHOUSE_URL", "http://console.example.com", "https"),
        ("LIGHTHOUSE_URL", "console.example.com", "URL"),
        ("LIGHTHOUSE_URL", "https://user:pass@console.example.com", "credentials"),
        ("LIGHTHOUSE_WIRE", "old", "current or seed"),
        ("LIGHTHOUSE_ROLE", "captain", "central or host_metrics"),
        ("LIGHTHOUSE_LOG_LEVEL", "loud", "debug"),
        ("LIGHTHOUSE_HEALTH_PORT", "99999", "port"),
        ("LIGHTHOUSE_HOST_METRICS", "maybe", "true or false"),
        ("LIGHTHOUSE_DISCOVERY_NAMESPACES", "Shop", "namespaces"),
        ("LIGHTHOUSE_MAX_CONCURRENT_CHECKS", "many", "whole number"),
        ("LIGHTHOUSE_TOKEN", "a b", "token must be"),
    ],
)
def test_a_wrong_value_names_its_key_and_the_fix(name, value, part):
    with pytest.raises(ConfigError) as complaint:
        load(env(**{name: value}))
    assert complaint.value.key == name and part in str(complaint.value)


def test_plain_http_is_for_this_machine_alone():
    assert load(env(LIGHTHOUSE_URL="http://127.0.0.1:8080/")).cloud_server_url == "http://127.0.0.1:8080"
    assert load(env(LIGHTHOUSE_URL="http://[::1]:8080")).cloud_server_url == "http://[::1]:8080"


def test_debug_lines_are_asked_for_as_in_the_original():
    assert load(env(LIGHTHOUSE_LOG_LEVEL="debug")).verbose and not load(env()).verbose


def test_the_token_comes_from_the_variable_then_its_file_then_the_credential(tmp_path):
    (tmp_path / "token").write_text("lh_file\n")
    (tmp_path / "lighthouse_token").write_text("lh_credential\n")
    from_file = {"LIGHTHOUSE_TOKEN_FILE": str(tmp_path / "token")}
    credential = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    bare = {"CLOUD_DIALECT": "lighthouse"}
    assert load({**env(), **from_file, **credential}).agent_key == TOKEN
    assert load({**bare, **from_file, **credential}).agent_key == "lh_file"
    assert load({**bare, **credential}).agent_key == "lh_credential"
    with pytest.raises(ConfigError, match="LIGHTHOUSE_TOKEN"):
        load(bare)


@pytest.mark.parametrize("way", ["variable", "config option"])
def test_the_originals_file_is_read_as_it_is_and_variables_win(tmp_path, way):
    file = tmp_path / "lighthouse.yaml"
    file.write_text(ORIGINAL)
    given = {"CLOUD_DIALECT": "lighthouse", "LIGHTHOUSE_ROLE": "central"}
    if way == "variable":
        found = load({**given, "LIGHTHOUSE_CONFIG": str(file)})
    else:
        found = load(given, file)
    assert found.agent_key == "lh_from_the_file" and found.lighthouse_role == "central"
    assert found.lighthouse_data_dir == Path("/somewhere") and found.buffer_path == Path("/somewhere/events.db")
    assert found.lighthouse_max_concurrent_checks == 4 and found.verbose and found.lighthouse_health_port == 9093
    assert (found.lighthouse_proc_root, found.lighthouse_host_root) == (Path("/host/proc"), Path("/host/root"))
    assert found.lighthouse_discovery_enabled and found.lighthouse_discovery_namespaces == ("shop", "billing")


def test_keys_that_nobody_knows_are_named_with_their_line(tmp_path):
    file = tmp_path / "lighthouse.yaml"
    file.write_text(ORIGINAL)
    assert lighthousefile.read(file).unknown == (
        "line 10: 'agent.colour' is not a key of the Lighthouse agent",
        "line 14: 'extra' is not a key of the Lighthouse agent",
    )


@pytest.mark.parametrize(
    ("text", "part"), [("a: [", "line 1"), ("- a\n", "mapping"), ("agent:\n  data_dir: {}\n", "text")]
)
def test_a_broken_file_stops_the_start(tmp_path, text, part):
    file = tmp_path / "lighthouse.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=part):
        load(env(LIGHTHOUSE_CONFIG=str(file)))


def test_a_file_that_is_missing_and_an_empty_one_set_nothing(tmp_path):
    assert load(env(LIGHTHOUSE_CONFIG=str(tmp_path / "none.yaml"))).agent_key == TOKEN
    (tmp_path / "empty.yaml").write_text("agent:\ndiscovery:\n")
    assert load(env(LIGHTHOUSE_CONFIG=str(tmp_path / "empty.yaml"))).agent_key == TOKEN
    assert lighthousefile.read(tmp_path / "empty.yaml").unknown == ()


def test_the_numbers_of_the_original_mean_what_they_mean_there():
    assert load(env(LIGHTHOUSE_MAX_CONCURRENT_CHECKS="0")).lighthouse_max_concurrent_checks == 96
    assert load(env(LIGHTHOUSE_MAX_CONCURRENT_CHECKS="-3")).lighthouse_max_concurrent_checks == 1
    assert load(env(LIGHTHOUSE_DISCOVERY_NAMESPACES="shop,*")).lighthouse_discovery_namespaces == ()


def test_the_runtime_is_told_by_the_clusters_variable():
    assert runtime({}) == "bare_metal" and runtime({"KUBERNETES_SERVICE_HOST": ""}) == "bare_metal"
    assert runtime({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) == "kubernetes"


# -- the instance id


def test_the_instance_id_is_made_once_and_kept_for_this_user_alone(tmp_path):
    folder = tmp_path / "deep" / "data"
    made = instance_id(folder)
    assert uuid.UUID(made).version == 4 and (folder / "instance.id").read_text() == made + "\n"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "instance.id").stat().st_mode) == 0o600
    assert instance_id(folder) == made and sorted(p.name for p in folder.iterdir()) == ["instance.id"]


@pytest.mark.parametrize("content", [b"", b"not a uuid\n", b"\xff\xfe\x00"])
def test_an_id_that_is_none_is_replaced_with_a_warning(tmp_path, content, caplog):
    (tmp_path / "instance.id").write_bytes(content)
    (tmp_path / "instance.id.tmp").write_text("left behind by a crash")
    logging.getLogger("observer_agent").propagate = True
    with caplog.at_level(logging.WARNING, "observer_agent"):
        made = instance_id(tmp_path)
    assert "is replaced" in caplog.text and (tmp_path / "instance.id").read_text().strip() == made


def test_an_agent_without_a_place_for_its_id_runs_with_one_for_now(tmp_path):
    (tmp_path / "file").write_text("no directory")
    assert uuid.UUID(instance_id(tmp_path / "file"))


# -- what outlives a restart


def test_the_configuration_and_the_states_come_back_as_they_were(tmp_path):
    store = Store(tmp_path / "q.db")
    assert store.load() is None and store.load_states() == {}
    known = Configuration("lh", "n", "e", True, 20.0, 3, ({"id": "a", "type": "tcp"},))
    tracks = {"a": Track(State.UP, State.DOWN, 2), "b": Track(State.DOWN)}
    store.save(known)
    store.save_states(tracks)
    assert (store.load(), store.load_states()) == (known, tracks)
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"checks": 3, "paused": "yes", "etag": null}', '{"checks": [1, {"id": "a"}]}']
)
def test_w8_a_stored_file_that_is_damaged_is_only_not_believed(tmp_path, text):
    store = Store(tmp_path / "q.db")
    (tmp_path / "q.db.console").write_text(text)
    (tmp_path / "q.db.states").write_text(text)
    known = store.load()
    assert known is None or (known.paused is False and known.etag == "" and len(known.checks) <= 1)
    assert store.load_states() == {}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "0.0", "-1e300"])
def test_w21_a_stored_interval_that_is_none_is_not_the_last_heartbeat(tmp_path, number):
    file = tmp_path / "q.db.console"
    file.write_text(f'{{"heartbeat_interval": {number}, "flap_threshold": 1000000, "etag": "e"}}')
    assert Store(tmp_path / "q.db").load() == Configuration(etag="e")


@pytest.mark.parametrize("row", [None, [], ["up"], ["left", "down", 1], ["up", "down", True], [["up"], None, 0]])
def test_w21_a_state_that_cannot_be_understood_is_not_believed(tmp_path, row):
    (tmp_path / "q.db.states").write_text(json.dumps({"checks": {"a": row}}))
    assert Store(tmp_path / "q.db").load_states()["a"].committed is None
