"""Settings: defaults, the order of sources, and complaints that name key, value and fix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observer_agent import config
from observer_agent.config import VARIABLES, load, masked
from observer_agent.errors import ConfigError

KEY = "obs_live_" + "k" * 43


def env(**more):
    return {"AGENT_KEY": KEY, **more}


def test_the_defaults_are_those_of_the_contract():
    found = load(env())
    assert (found.cloud_server_url, found.buffer_max_rows) == ("https://use.observer", 10000)
    assert (found.debug_dashboard_host, found.debug_dashboard_port) == ("127.0.0.1", 10101)
    assert (found.prometheus_basic_auth_enabled, found.prometheus_username, found.prometheus_password) == (
        True,
        "admin",
        "",
    )
    assert found.probe_failure_status == "no_data" and found.buffer_sync == "normal"
    assert found.buffer_max_bytes is None and found.buffer_max_age is None


def test_every_variable_is_a_setting_and_the_other_way_round():
    assert {name.lower() for name in VARIABLES} == {field for field in config.Settings.__dataclass_fields__}


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("BUFFER_MAX_ROWS", "0", "positive whole number"),
        ("BUFFER_MAX_ROWS", "-5", "positive whole number"),
        ("BUFFER_MAX_ROWS", "1e4", "positive whole number"),
        ("BUFFER_MAX_ROWS", "1_0", "positive whole number"),
        ("BUFFER_MAX_ROWS", "ten", "positive whole number"),
        ("BUFFER_MAX_BYTES", "-1", "or off"),
        ("BUFFER_MAX_AGE", "week", "7d"),
        ("BUFFER_SYNC", "sometimes", "normal or full"),
        ("BUFFER_PATH", "/nonexistent/buffer.db", "does not exist"),
        ("CLOUD_SERVER_URL", "use.observer", "must be a URL"),
        ("CLOUD_SERVER_URL", "ftp://use.observer", "must be a URL"),
        ("CLOUD_SERVER_URL", "https://:443", "must be a URL"),
        ("CLOUD_SERVER_URL", "https://h:99999", "must be a URL"),
        ("CLOUD_SERVER_URL", "https://user:hunter22@h", "credentials"),
        ("CLOUD_DIALECT", "klingon", "must be"),
        ("SKIP_SSL_VERIFICATION", "maybe", "true or false"),
        ("VERBOSE", "2", "true or false"),
        ("LOG_FORMAT", "xml", "auto, text, json or journald"),
        ("LOG_BROADCAST_LEVEL", "LOUD", "DEBUG, INFO, WARN or ERROR"),
        ("PROBE_FAILURE_STATUS", "healthy", "no_data or unhealthy"),
        ("PROBE_ENV_ALLOW", "lower-case", "names of environment variables"),
        ("DEBUG_DASHBOARD_PORT", "70000", "port number"),
        ("DEBUG_DASHBOARD_PORT", "1_0", "port number"),
        ("CLOUD_SERVER_URL", "https://my cloud/", "must be a URL"),
        ("DEBUG_DASHBOARD_HOST", "0.0.0.0", "DEBUG_DASHBOARD_TOKEN"),
        ("OBSERVER_OTLP_MAX_BODY_BYTES", "0", "positive whole number"),
    ],
)
def test_a_wrong_value_is_named_with_its_fix_in_one_line(name, value, part):
    with pytest.raises(ConfigError) as caught:
        load(env(**{name: value}))
    text = str(caught.value)
    assert text.startswith(name + "=") and part in text and "\n" not in text
    assert "hunter22" not in text


@pytest.mark.parametrize("value", ["", "   "])
def test_an_empty_value_is_the_default(value):
    assert load(env(BUFFER_MAX_ROWS=value)).buffer_max_rows == 10000


def test_off_is_no_bound_and_ages_have_units():
    found = load(env(BUFFER_MAX_BYTES="off", BUFFER_MAX_AGE="90m"))
    assert found.buffer_max_bytes is None and found.buffer_max_age == 5400


# -- the key


def test_the_key_from_a_file_or_a_credential(tmp_path):
    (tmp_path / "key").write_text(KEY + "\n")
    assert load({"AGENT_KEY_FILE": str(tmp_path / "key")}).agent_key == KEY
    (tmp_path / "agent_key").write_text("from-systemd\n")
    assert load({"CREDENTIALS_DIRECTORY": str(tmp_path)}).agent_key == "from-systemd"
    assert load(env(CREDENTIALS_DIRECTORY=str(tmp_path))).agent_key == KEY


def test_any_key_of_the_environment_wins_over_the_file(tmp_path):
    (tmp_path / "agent.toml").write_text('AGENT_KEY = "from-the-file"\n')
    (tmp_path / "agent_key").write_text("from-systemd\n")
    (tmp_path / "key").write_text("from-a-key-file\n")
    assert load({}, tmp_path / "agent.toml").agent_key == "from-the-file"
    assert load({"CREDENTIALS_DIRECTORY": str(tmp_path)}, tmp_path / "agent.toml").agent_key == "from-systemd"
    assert load({"AGENT_KEY_FILE": str(tmp_path / "key")}, tmp_path / "agent.toml").agent_key == "from-a-key-file"


def test_a_credential_that_is_unset_is_no_key(tmp_path):
    (tmp_path / "agent_key").write_text("unset\n")
    with pytest.raises(ConfigError, match="AGENT_KEY_FILE"):
        load({"CREDENTIALS_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize("key", ["two words", "k" * 257, "schlüssel", "line\nbreak"])
def test_a_key_that_is_none_is_refused_and_never_shown(key):
    with pytest.raises(ConfigError) as caught:
        load({"AGENT_KEY": key})
    assert key not in str(caught.value) and "(hidden)" in str(caught.value)


def test_a_key_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"AGENT_KEY_FILE=.*cannot be read"):
        load({"AGENT_KEY_FILE": str(tmp_path / "missing")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="ASCII"):
        load({"AGENT_KEY_FILE": str(tmp_path / "binary")})


def test_a_command_that_only_looks_needs_no_key():
    assert load({}, to_run=False).agent_key == ""


# -- the file


def test_the_environment_wins_over_the_file(tmp_path):
    file = tmp_path / "agent.toml"
    file.write_text(f'AGENT_KEY = "{KEY}"\nBUFFER_MAX_ROWS = 5\nVERBOSE = true\nPROBE_ENV_ALLOW = ["A", "B"]\n')
    found = load({"BUFFER_MAX_ROWS": "7"}, file)
    assert (found.buffer_max_rows, found.verbose, found.probe_env_allow) == (7, True, ("A", "B"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("BUFFER_MAX_ROW = 5", "BUFFER_MAX_ROW=.*not a setting"),
        ("this is not toml", "is not TOML"),
        ("[section]\nx = 1", "not a setting"),
        ("VERBOSE = [1]", "VERBOSE=.*must be a text"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, part):
    (tmp_path / "agent.toml").write_text(text)
    with pytest.raises(ConfigError, match=part):
        load(env(), tmp_path / "agent.toml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--config=.*cannot be read"):
        load(env(), tmp_path / "missing.toml")


# -- showing


def test_masked_shows_every_setting_and_no_secret():
    secrets = {name: f"canary-{name}" for name, row in VARIABLES.items() if row.secret and name != "AGENT_KEY"}
    shown = masked(load(env(**secrets, PROMETHEUS_SERVER_URL="http://u:canary@p:9090")))
    assert set(shown) == set(VARIABLES)
    assert "canary" not in str(shown) and KEY not in str(shown)
    assert shown["PROMETHEUS_PASSWORD"] == "(set)" and shown["BUFFER_MAX_ROWS"] == "10000"


@given(st.sampled_from(sorted(VARIABLES)), st.text(max_size=60))
def test_no_text_of_a_variable_raises_anything_else(name, value):
    try:
        load(env(**{name: value}))
    except ConfigError as error:
        assert "\n" not in str(error)
