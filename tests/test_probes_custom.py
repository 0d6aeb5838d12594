"""The source type `custom`: functions of the operator's, where they are found, and what they cannot do to the agent."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner

from observer_agent import probes
from observer_agent.agent import Agent
from observer_agent.cli import main
from observer_agent.clock import Clock
from observer_agent.config import load as load_settings
from observer_agent.errors import InvalidConfig
from observer_agent.logs import Redactor, configure
from observer_agent.model import Fault
from observer_agent.probes import _registry, _schema
from observer_agent.probes.custom import CustomProbe
from tests.cloud import LocalCloud
from tests.contracts.test_probe import GRACE, nothing_left
from tests.servers import make_tools
from tests.watch import Watch

HEAD = "from observer_agent.probes.custom import CustomProbe\n"
DOC = (Path(__file__).parent.parent / "docs" / "custom-probes.md").read_text()


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "probes.d"
    place.mkdir(mode=0o755)
    return place


def write(folder, body, name="p.py", mode=0o644):
    file = folder / name
    file.write_text(HEAD + body)
    file.chmod(mode)
    return file


def load(folder, uid=None):
    registry = probes.Registry(Clock(), uid)
    registry.load(str(folder))
    return registry


def serving(*found, env=None):
    """A prober that knows these functions."""
    return probes.Prober(make_tools(env, custom=probes.Registry(Clock(), known=found)))


def look(prober, name="p", timeout_ms=2000, **config):
    whole = {"probe_name": name, "timeout_ms": timeout_ms, "probe_config": config}
    return prober.look("custom", probes.parse("custom", whole))


def give(function, **config):
    return look(serving(CustomProbe("p", function)), **config)


# -- values


@pytest.mark.parametrize(("returned", "value"), [(0, 0.0), (7, 7.0), (-1.5, -1.5), ({"value": 3}, 3.0)])
def test_numbers(returned, value):
    with nothing_left():
        reading = give(lambda look: returned)
    assert (reading.value, reading.reason) == (value, None)
    assert set(reading.phases) == {"function"}


def test_metadata_and_lines_are_detail_bounded_and_redacted():
    def run(look):
        look.secret("PROBE_TOKEN")
        for n in range(15):
            look.log(f"line {n} hunter2-secret" + "x" * 500)
        return {"value": 1, "metadata": {"a": "hunter2-secret", "n": 2, "t": True, "o": object, "f": float("inf")}}

    reading = look(serving(CustomProbe("p", run), env={"PROBE_TOKEN": " hunter2-secret "}))
    metadata = reading.detail["metadata"]
    assert (metadata["a"], metadata["n"], metadata["t"], metadata["f"]) == ("[redacted]", 2, True, "inf")
    assert len(reading.detail["log"]) == 10 and reading.detail["log"][0].startswith("line 5 [redacted]")
    assert max(map(len, reading.detail["log"])) == 200
    assert "hunter2" not in str(reading)
    json.dumps(reading.detail)


@pytest.mark.parametrize(
    "returned",
    [
        None,
        True,
        "5",
        float("nan"),
        float("inf"),
        10**400,
        [1],
        {},
        {"value": None},
        {"value": False},
        {"value": 1, "metadata": [1]},
        {"value": 1, "more": 2},
        object(),
    ],
)
def test_what_is_no_number_is_a_bad_return(returned):
    reading = give(lambda look: returned)
    assert (reading.value, reading.reason, reading.fault) == (None, "custom_probe_bad_return", Fault.CONFIG)


def test_a_probe_that_nobody_knows():
    reading = look(serving(), "none")
    assert (reading.reason, reading.fault) == ("custom_probe_not_found", Fault.CONFIG)


# -- functions that raise


class Evil(Exception):
    def __str__(self):
        raise RuntimeError("not even this")


@pytest.mark.parametrize("error", [ValueError("hunter2-text"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_only_the_class_of_what_is_raised_is_told(error, caught):
    def run(look):
        raise error

    with nothing_left():
        reading = give(run)
    assert (reading.reason, reading.fault) == ("custom_probe_error", Fault.TARGET)
    assert reading.detail["error"] == f"the function raised {type(error).__name__}"
    assert reading.detail.get("message", "") == str(error)
    assert re.fullmatch(r"test_probes_custom\.py:\d+", reading.detail["at"])
    assert "hunter2" not in caught.text


def test_an_exception_that_cannot_even_be_shown():
    def run(look):
        raise Evil

    assert give(run).reason == "custom_probe_error"


def test_the_text_of_an_exception_is_redacted_and_bounded():
    def run(look):
        raise ValueError(look.secret("PROBE_TOKEN") + "x" * 500)

    reading = look(serving(CustomProbe("p", run), env={"PROBE_TOKEN": "hunter2-secret"}))
    assert reading.detail["message"].startswith("[redacted]xxx")
    assert len(reading.detail["message"]) == 200


@pytest.mark.parametrize("name", ["PROBE_NONE", "AGENT_KEY", "PROBE_CUSTOM_DIR", "HOME"])
def test_w8_secrets_that_are_not_to_be_had(name):
    env = {"AGENT_KEY": "obs_live_hunter2", "HOME": "hunter2", "PROBE_CUSTOM_DIR": "hunter2"}
    reading = look(serving(CustomProbe("p", lambda look: look.secret(name)), env=env))
    assert reading.reason == "custom_probe_error"
    assert name in reading.detail["error"] and "hunter2" not in str(reading)


# -- functions that do not return


def spin(stop):
    """Computes without end, as Python code that never waits does."""
    while not stop.is_set():
        sum(range(100))
    return 1


def hang(stop):
    stop.wait()
    return 1


@pytest.mark.parametrize("kind", [spin, hang])
def test_w38_a_function_that_does_not_return_ends_at_its_deadline_and_keeps_its_slot(kind):
    stop, calls = threading.Event(), []

    def run(look):
        calls.append(look)
        return kind(stop)

    with nothing_left():
        prober = serving(CustomProbe("p", run), CustomProbe("q", lambda look: 5))
        before = set(threading.enumerate())
        try:
            watch = Watch()
            first = look(prober, timeout_ms=300)
            assert watch.seconds <= 0.3 + GRACE
            again = [look(prober, timeout_ms=300) for _ in range(5)]
            other = look(prober, "q")
            assert calls[0].cancelled and calls[0].left() == 0.0
            helpers = set(threading.enumerate()) - before
        finally:
            stop.set()
        for helper in helpers:
            helper.join(10)
    assert (first.reason, first.fault) == ("custom_probe_timeout", Fault.TARGET)
    assert first.detail["timeout_ms"] == 300
    assert {reading.reason for reading in again} == {"custom_probe_timeout"}
    assert max(reading.duration_ms for reading in again) < 50
    assert (len(calls), len(helpers)) == (1, 1)
    assert other.value == 5.0
    assert look(prober).value == 1.0  # the slot is free again


def test_w38_four_functions_that_compute_without_end_do_not_hold_up_a_fifth():
    stop = threading.Event()
    spinning = [CustomProbe(f"s{n}", lambda look: spin(stop)) for n in range(4)]
    prober = serving(*spinning, CustomProbe("q", lambda look: 5))
    with nothing_left():
        before = set(threading.enumerate())
        try:
            for n in range(4):
                look(prober, f"s{n}", timeout_ms=100)
            assert look(prober, "q", timeout_ms=1000).value == 5.0
        finally:
            stop.set()
            for helper in set(threading.enumerate()) - before:
                helper.join(10)


def test_w38_two_definitions_of_one_probe_take_turns():
    running, most, lock = [], [], threading.Lock()

    def run(look):
        with lock:
            running.append(1)
            most.append(len(running))
        Clock().alarm().wait(0.01)
        with lock:
            running.pop()
        return 1

    prober = serving(CustomProbe("p", run))
    with nothing_left(), ThreadPoolExecutor(8) as pool:
        readings = list(pool.map(lambda n: look(prober, timeout_ms=5000), range(24)))
    assert [reading.value for reading in readings] == [1.0] * 24
    assert max(most) == 1


def test_w38_who_waits_for_a_slot_learns_that_its_holder_hangs():
    stop, began = threading.Event(), threading.Event()

    def run(look):
        began.set()
        return hang(stop)

    prober = serving(CustomProbe("p", run))
    with nothing_left(), ThreadPoolExecutor(1) as pool:
        first = pool.submit(look, prober, timeout_ms=300)
        began.wait()
        waited = look(prober, timeout_ms=20_000)
        assert first.result().reason == "custom_probe_timeout"
        helpers = [t for t in threading.enumerate() if t.name == "custom-p"]
        stop.set()
        for helper in helpers:
            helper.join(10)
    assert waited.reason == "custom_probe_timeout"
    assert waited.duration_ms < 1000


def test_a_hung_function_is_not_forgotten_by_a_reload(folder):
    write(folder, "import threading\nstop = threading.Event()\nPROBES = CustomProbe('p', lambda look: stop.wait())\n")
    tools = make_tools()
    tools.custom.load(str(folder))
    prober = probes.Prober(tools)
    stop = tools.custom.find("p").run.__globals__["stop"]
    with nothing_left():
        look(prober, timeout_ms=100)
        tools.custom.load(str(folder))
        assert look(prober, timeout_ms=5000).duration_ms < 50
        helpers = [t for t in threading.enumerate() if t.name == "custom-p"]
        stop.set()
        helpers[0].join(10)
    assert len(helpers) == 1


# -- the function's own configuration

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
        "n": {"type": "integer", "minimum": 1, "maximum": 9, "default": 4},
        "x": {"type": "number"},
        "on": {"type": "boolean"},
        "kind": {"type": "string", "enum": ["a", "b"]},
        "list": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2},
        "inner": {"type": "object", "properties": {"deep": {"type": "integer", "default": 1}}, "default": {}},
        "free": {"type": "object", "additionalProperties": True},
    },
    "required": ["name"],
}


def test_w38_the_function_gets_its_defaults_and_a_fresh_copy():
    got = []

    def run(look):
        got.append(json.loads(json.dumps(look.config)))
        look.config["inner"]["deep"] = 99
        look.config.clear()
        return 1

    prober = serving(CustomProbe("p", run, config_schema=SCHEMA))
    for _ in range(2):
        whole = {"probe_name": "p", "probe_config": {"name": "ab", "x": None, "free": {"z": 1}}}
        assert prober.look("custom", probes.parse("custom", whole)).value == 1.0
    assert got == [{"name": "ab", "n": 4, "inner": {"deep": 1}, "free": {"z": 1}}] * 2


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "name: is required"),
        ({"name": 5}, "name: must be of type string"),
        ({"name": "a"}, "name: minLength is 2"),
        ({"name": "abcde"}, "name: maxLength is 4"),
        ({"name": "AB"}, "name: does not match"),
        ({"n": 0}, "n: minimum is 1"),
        ({"n": 10}, "n: maximum is 9"),
        ({"n": True}, "n: must be of type integer"),
        ({"n": 1.5}, "n: must be of type integer"),
        ({"x": "1"}, "x: must be of type number"),
        ({"on": 1}, "on: must be of type boolean"),
        ({"kind": "c"}, "kind: is none of"),
        ({"list": []}, "list: minItems is 1"),
        ({"list": [1, 2, 3]}, "list: maxItems is 2"),
        ({"list": [1, "a"]}, r"list\[1\]: must be of type integer"),
        ({"inner": {"deep": "x"}}, "inner.deep: must be of type integer"),
        ({"inner": {"more": 1}}, "inner.more: is not a known field"),
        ({"more": "hunter2"}, "more: is not a known field"),
    ],
)
def test_configurations_that_do_not_fit(config, field):
    prober = serving(CustomProbe("p", lambda look: 1, config_schema=SCHEMA))
    whole = {"probe_name": "p", "probe_config": {"name": "ab", **config} if config else {}}
    reading = prober.look("custom", probes.parse("custom", whole))
    assert (reading.reason, reading.fault) == ("custom_probe_config_invalid", Fault.CONFIG)
    assert re.search(field, reading.detail["error"])
    assert "hunter2" not in str(reading)


@pytest.mark.parametrize(
    "schema",
    [
        5,
        {},
        {"type": "any"},
        {"type": "object", "oneOf": []},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {"a": {"type": "string", "format": "uri"}}},
        {"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        {"type": "object", "properties": {"a": {"type": "string", "minLength": "2"}}},
        {"type": "object", "required": "name"},
        {"type": "string", "enum": 5},
        {"type": "array", "items": 5},
    ],
)
def test_schemas_that_are_not_understood_are_refused_when_they_are_loaded(schema):
    with pytest.raises(ValueError, match="config_schema"):
        _schema.check(schema)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("probe_name", {}),
        ("probe_name", {"probe_name": ""}),
        ("probe_name", {"probe_name": "x" * 129}),
        ("probe_config", {"probe_name": "p", "probe_config": [1]}),
        ("probe_config", {"probe_name": "p", "probe_config": {"a": float("nan")}}),
        ("probe_config", {"probe_name": "p", "probe_config": {"a": "x" * 65_536}}),
        ("timeout_ms", {"probe_name": "p", "timeout_ms": 99}),
        ("timeout_ms", {"probe_name": "p", "timeout_ms": 30_001}),
        ("more", {"probe_name": "p", "more": 1}),
    ],
)
def test_definitions_that_are_refused(field, config):
    with pytest.raises(InvalidConfig, match=f"{field}: "):
        probes.parse("custom", config)


def test_w1_defaults_of_the_definition():
    config = probes.parse("custom", {"probe_name": "p"})
    assert (config.timeout, config.probe_config) == (30.0, "{}")


# -- where functions are found


def test_files_are_loaded_in_order_and_others_are_left_alone(folder):
    write(folder, "PROBES = CustomProbe('one', lambda look: 1, 'The first')\n", "b.py")
    write(folder, "PROBES = (CustomProbe('two', lambda look: 2, config_schema={'type': 'object'}),)\n", "a.py")
    write(folder, "PROBES = [CustomProbe('one', lambda look: 9), CustomProbe('three', lambda look: 3)]\n", "c.py")
    write(folder, "raise SystemExit\n", "notes.txt")
    registry = load(folder)
    assert registry.descriptors() == (
        {"name": "one", "description": "The first", "has_config_schema": False},
        {"name": "two", "has_config_schema": True},
    )
    ((origin, text),) = registry.complaints
    assert origin == str(folder / "c.py") and "there is a probe one already" in text


def test_no_bytecode_is_written(folder):
    write(folder, "PROBES = []\n")
    load(folder)
    assert [file.name for file in folder.iterdir()] == ["p.py"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("PROBES = [", "SyntaxError in line 2"),
        ("\n1 / 0\n", "ZeroDivisionError in line 3"),
        ("raise SystemExit(3)\n", "SystemExit in line 2"),
        ("import no_such_module_anywhere\n", "ModuleNotFoundError"),
        ("raise ValueError('hunter2')\n", "ValueError in line 2"),
        ("", "has no PROBES"),
        ("PROBES = 5\n", "neither a CustomProbe nor a list"),
        ("PROBES = ['a']\n", "no CustomProbe"),
        ("PROBES = CustomProbe('', lambda look: 1)\n", "name must be"),
        ("PROBES = CustomProbe('a\\nb', lambda look: 1)\n", "name must be"),
        ("PROBES = CustomProbe('x' * 129, lambda look: 1)\n", "name must be"),
        ("PROBES = CustomProbe('x', 5)\n", "not callable"),
        ("PROBES = CustomProbe('x', print, 5)\n", "description"),
        ("PROBES = CustomProbe('x', print, '', {'type': 'object', 'oneOf': []})\n", "oneOf"),
        ("PROBES = CustomProbe('x', print, '', {'type': 'string'})\n", "must be object"),
        ("#" + "x" * 1_048_577, "has more than"),
    ],
)
def test_files_that_are_refused_cost_nobody_else_anything(folder, body, text, caught):
    write(folder, body, "a.py")
    write(folder, "PROBES = CustomProbe('good', lambda look: 1)\n", "b.py")
    registry = probes.Registry(Clock())
    registry.renew(str(folder))
    assert [each["name"] for each in registry.descriptors()] == ["good"]
    ((origin, said),) = registry.complaints
    assert origin == str(folder / "a.py") and text in said
    assert f"Custom probes of {origin} are not used: {said}" in caught.text
    assert "hunter2" not in caught.text


def test_a_file_that_hangs_is_refused_and_not_tried_again(folder):
    write(folder, "import tests.test_probes_custom as t\nt.WAITING.wait()\nPROBES = []\n", "z.py")
    write(folder, "PROBES = CustomProbe('good', lambda look: 1)\n", "a.py")
    registry = probes.Registry(Clock(), loading=0.2)
    try:
        registry.load(str(folder))
        assert "did not end within" in registry.complaints[0].text
        registry.load(str(folder))
        assert "still hangs" in registry.complaints[0].text
        assert registry.find("good")
        helpers = [t for t in threading.enumerate() if t.name.startswith("custom-load")]
        assert len(helpers) == 1
    finally:
        WAITING.set()
    helpers[0].join(10)


WAITING = threading.Event()  # what the file above waits for


def test_the_thirty_third_probe_is_refused(folder):
    write(folder, "PROBES = [CustomProbe(f'p{n:02}', lambda look: 1) for n in range(33)]\n")
    registry = load(folder)
    assert len(registry.descriptors()) == 32
    assert "32 custom probes already" in registry.complaints[0].text


# -- who may write there

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622, 0o666])
def test_a_file_that_others_can_write_is_refused(folder, mode):
    file = write(folder, "PROBES = CustomProbe('p', lambda look: 1)\n")
    file.chmod(mode)
    registry = load(folder)
    assert registry.find("p") is None
    assert f"can be written by others than its owner: chmod go-w {file}" in registry.complaints[0].text


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_directory_that_others_can_write_is_refused(folder, mode):
    write(folder, "PROBES = CustomProbe('p', lambda look: 1)\n")
    folder.chmod(mode)
    registry = load(folder)
    assert registry.find("p") is None
    assert registry.complaints[0].origin == str(folder)


def test_a_directory_above_that_others_can_write_is_refused(folder):
    write(folder, "PROBES = CustomProbe('p', lambda look: 1)\n")
    folder.parent.chmod(0o777)
    assert load(folder).find("p") is None
    folder.parent.chmod(0o1777)  # in a sticky one nobody can rename what is another's
    assert load(folder).find("p")


@ROOT_ONLY
@pytest.mark.parametrize(
    ("owner", "agent", "used"),
    [(0, 0, True), (4242, 0, False), (4242, 4242, True), (0, 4242, True), (4243, 4242, False)],
)
@pytest.mark.parametrize("what", ["file", "folder"])
def test_owners(folder, owner, agent, used, what):
    file = write(folder, "PROBES = CustomProbe('p', lambda look: 1)\n")
    os.chown(file if what == "file" else folder, owner, owner)
    registry = load(folder, uid=agent)
    assert bool(registry.find("p")) is used
    assert bool(registry.complaints) is not used
    if not used:
        assert f"belongs to uid {owner}" in registry.complaints[0].text


@ROOT_ONLY
def test_a_directory_above_that_is_another_s_is_refused_even_if_it_is_sticky(folder):
    write(folder, "PROBES = CustomProbe('p', lambda look: 1)\n")
    folder.parent.chmod(0o1755)
    os.chown(folder.parent, 4242, 4242)
    assert load(folder).find("p") is None


def test_a_link_to_the_directory_is_followed_once(folder, tmp_path):
    write(folder, "PROBES = CustomProbe('p', lambda look: 1)\n")
    (tmp_path / "link").symlink_to(folder)
    registry = load(tmp_path / "link")
    assert registry.find("p").run.__code__.co_filename == str(folder / "p.py")


def test_links_and_what_is_no_file_are_refused(folder, tmp_path):
    elsewhere = write(tmp_path, "PROBES = CustomProbe('p', lambda look: 1)\n", "elsewhere.py")
    (folder / "link.py").symlink_to(elsewhere)
    os.mkfifo(folder / "pipe.py")
    (folder / "sub.py").mkdir()
    registry = load(folder)
    assert registry.descriptors() == ()
    texts = dict(registry.complaints)
    assert "symbolic link" in texts[str(folder / "link.py")]
    assert "not a regular file" in texts[str(folder / "pipe.py")]
    assert "not a regular file" in texts[str(folder / "sub.py")]


def test_a_directory_that_is_missing_or_none(tmp_path):
    assert load(tmp_path / "none").complaints[0].text == "it cannot be read: No such file or directory"
    (tmp_path / "file").write_text("")
    assert "not a directory" in load(tmp_path / "file").complaints[0].text
    usual = probes.Registry(Clock())
    if not Path(_registry.CUSTOM_DIR).exists():
        usual.load(_registry.CUSTOM_DIR)
        assert usual.complaints == ()


# -- entry points


def test_entry_points_of_installed_packages(tmp_path, monkeypatch):
    place = tmp_path / "site"
    (place / "theirs-1.0.dist-info").mkdir(parents=True)
    (place / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (place / "theirs-1.0.dist-info" / "entry_points.txt").write_text(
        "[observer_agent.probes]\n"
        "plain = theirs_probes:plain\nlisted = theirs_probes:LISTED\nbroken = theirs_probes:no\n"
    )
    (place / "theirs_probes.py").write_text(
        f'{HEAD}def plain(look):\n    """Says eleven.\n\n    More."""\n    return 11\n\n'
        "LISTED = [CustomProbe('other', lambda look: 12)]\n"
    )
    monkeypatch.syspath_prepend(str(place))
    tools = make_tools()
    tools.custom.load(_registry.CUSTOM_DIR)
    assert tools.custom.descriptors() == (
        {"name": "other", "has_config_schema": False},
        {"name": "plain", "description": "Says eleven.", "has_config_schema": False},
    )
    assert [each.origin for each in tools.custom.complaints] == ["entry point broken"]
    assert look(probes.Prober(tools), "plain").value == 11.0


# -- the front door, and the documented example


@pytest.fixture
def example(folder, monkeypatch):
    """The file of docs/custom-probes.md, word for word, and a spool with jobs."""
    code = re.search(r"```python\n(.*?)```", DOC, re.S)[1]
    (folder / "queue_length.py").write_text(code)
    (folder / "queue_length.py").chmod(0o644)
    spool = folder.parent / "spool"
    spool.mkdir()
    for name in ("1.job", "2.job", "3.job", "note.txt"):
        (spool / name).touch()
    monkeypatch.setenv("PROBE_CUSTOM_DIR", str(folder))
    return spool


def test_the_documented_example_works(example):
    runner = CliRunner()
    listed = runner.invoke(main, ["probes"])
    assert (listed.exit_code, listed.stdout) == (0, "queue_length  Jobs that wait\n")
    config = json.dumps({"folder": str(example)})
    once = runner.invoke(main, ["probe", "custom", "probe_name=queue_length", f"probe_config={config}", "--json"])
    result = json.loads(once.stdout)
    assert (once.exit_code, result["value"]) == (0, 3.0)
    assert result["detail"]["metadata"] == {"folder": str(example)}
    assert result["detail"]["log"] == [f"{example} holds 3 jobs"]
    definition = json.loads(re.search(r"```json\n(.*?)```", DOC, re.S)[1])
    assert probes.parse(definition["source_type"], definition["source_config"]).timeout == 2.0


def test_the_list_as_json_and_with_something_refused(example, folder):
    write(folder, "1 / 0\n", "broken.py")
    done = CliRunner().invoke(main, ["probes", "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found["directory"] == str(folder)
    assert found["probes"] == [{"name": "queue_length", "description": "Jobs that wait", "has_config_schema": True}]
    assert found["refused"] == [
        {"origin": str(folder / "broken.py"), "problem": "loading it raised ZeroDivisionError in line 2"}
    ]
    assert "refused: " in CliRunner().invoke(main, ["probes"]).stdout


def test_an_empty_list(tmp_path, monkeypatch):
    monkeypatch.setenv("PROBE_CUSTOM_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["probes"])
    assert (done.exit_code, done.stdout) == (0, f"no custom probes in {tmp_path} or in installed packages\n")


# -- the whole agent


def test_a_reload_loads_again_and_the_heartbeat_tells(folder, tmp_path):
    write(folder, "PROBES = CustomProbe('one', lambda look: 1, 'The first')\n")
    cloud = LocalCloud()
    env = {"CLOUD_SERVER_URL": cloud.url, "BUFFER_PATH": str(tmp_path / "b.db"), "ENABLE_DEBUG_DASHBOARD": "false"}
    settings = load_settings({"AGENT_KEY": "key-of-the-test", "PROBE_CUSTOM_DIR": str(folder), **env})
    clock = Clock()
    logs = configure("text", True, clock, Redactor(), io.StringIO())
    agent = Agent(settings, clock, logs, {})
    try:
        agent.start()
        assert agent.health().custom_probes == (
            {"name": "one", "description": "The first", "has_config_schema": False},
        )
        write(folder, "PROBES = CustomProbe('two', lambda look: 2)\n")
        agent.reload()
        assert [each["name"] for each in agent.health().custom_probes] == ["two"]
    finally:
        agent.stop()
        logs.close()
        cloud.close()
