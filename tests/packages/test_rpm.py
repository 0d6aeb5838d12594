"""The .rpm: its scriptlets under real rpm and real systemd, and dnf's choice among the packages of EL 9 and 10.

Debian's rpm installs it into a booted Debian, without dependencies, which have other names there. No RPM distribution
is needed: dnf resolves against repositories of empty packages with the names and provisions of EL.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.packages.fixtures import bookworm
from tests.packages.machine import UNIT
from tests.packages.repack import empty_rpm, newer_rpm, query
from tests.packages.roots import need
from tests.packages.scene import BUFFER, CONF, KEY, SETTINGS, Scene
from tests.site import metric

pytestmark = pytest.mark.slow

CODE = "/usr/lib/observer-agent"
SAME = {
    "bash": ("5.1.8", ["/bin/sh"]),
    "systemd": ("252", []),
    "ca-certificates": ("2024", []),
    "coreutils": ("8.32", []),
    "findutils": ("4.8.0", []),
    "shadow-utils": ("4.9", []),
}
EL9 = {
    "python3": ("3.9.18", ["python(abi) = 3.9"]),
    "python3.11": ("3.11.7", ["python(abi) = 3.11"]),
    "python3.12": ("3.12.1", ["python(abi) = 3.12"]),
}
EL10 = {"python3": ("3.12.5", ["python(abi) = 3.12"])}
OLD = {"python3": ("3.9.18", ["python(abi) = 3.9"])}


@pytest.fixture(scope="module")
def rpm(built):
    """The package."""
    (file,) = built.glob("*.rpm")
    return file


@pytest.fixture
def scene(boot, root, tmp_path):
    """A booted Debian with rpm, and a hub outside that nobody has started yet."""
    made = Scene(boot((root,)), tmp_path / "hub")
    yield made
    made.close()


@pytest.fixture
def watch(scene):
    return [metric("tcp", "tcp", {"host": "127.0.0.1", "port": scene.site.listen()})]


def run_rpm(machine, option, file):
    (machine.tree.path / "root" / file.name).write_bytes(file.read_bytes())
    done = machine.run("rpm", option, "--nodeps", f"/root/{file.name}")
    complaints = [line for line in done.stderr.splitlines() if "warning" in line or "error" in line]
    assert [line for line in complaints if not line.endswith(".rpmnew")] == [], done.stderr
    return done.stdout


@bookworm
def test_install_upgrade_and_erase(scene, watch, rpm, tmp_path):
    machine = scene.machine
    said = run_rpm(machine, "--install", rpm)
    assert "agent_key" in said, "the install says where the key belongs"
    assert machine.ask("stat", "-c", "%U:%G %a", CONF) == "root:observer-agent 750"
    assert machine.ask("systemctl", "is-enabled", UNIT) == "enabled", "Debian's presets enable"
    assert machine.show("ActiveState") == "inactive" and machine.failed() == ""
    assert machine.run("rpm", "--verify", "--nodeps", "observer-agent", check=False).stdout.split()[1::2] == [CONF]

    before = scene.deliver(watch)
    scene.site.hub.kill()
    depth = scene.until(lambda: scene.depth() >= 3 and scene.depth(), "rows wait")
    settings = machine.ask("cat", SETTINGS)
    run_rpm(machine, "--upgrade", newer_rpm(rpm, tmp_path, "99.1", settings="# another file of the package\n"))
    assert machine.ask("cat", SETTINGS) == settings
    assert machine.ask("cat", f"{SETTINGS}.rpmnew") == "# another file of the package"
    machine.until(lambda: "observer-agent 99.1 started" in machine.journal("-u", UNIT), "the new version runs")
    assert machine.main_pid() != before
    assert scene.until(scene.depth, "the page answers") >= depth
    assert machine.ask("find", CODE, "-name", "__init__.cpython-*.pyc", "-path", "*observer_agent/__pycache__*")
    scene.open_hub(watch)
    scene.stop_and_count()

    run_rpm(machine, "--upgrade", newer_rpm(rpm, tmp_path, "99.2"))
    assert machine.show("ActiveState") == "inactive", "what was stopped is not started by an upgrade"

    machine.systemctl("start", UNIT)
    machine.run("rpm", "--erase", "observer-agent")
    assert machine.run("pgrep", "-u", "observer-agent", check=False).stdout == "", "nothing of it runs"
    assert not machine.has(CODE) and not machine.has("/usr/bin/observer-agent")
    assert machine.has(KEY) and machine.has(BUFFER)
    assert machine.ask("cat", f"{SETTINGS}.rpmsave") == settings and not machine.has(SETTINGS)
    assert machine.show("LoadState") == "not-found" and machine.failed() == ""
    assert machine.ask("find", "/etc/systemd", "-name", "observer-agent*") == ""


@bookworm
def test_an_upgrade_leaves_a_disabled_unit_disabled(scene, watch, rpm, tmp_path):
    machine = scene.machine
    run_rpm(machine, "--install", rpm)
    scene.deliver(watch)
    machine.systemctl("disable", "--now", UNIT)
    run_rpm(machine, "--upgrade", newer_rpm(rpm, tmp_path, "99.3"))
    assert machine.systemctl("is-enabled", UNIT, check=False).stdout.strip() == "disabled"
    assert machine.show("ActiveState") == "inactive"


def test_its_header_is_whole(rpm):
    assert (query(rpm, "%{NAME}"), query(rpm, "%{ARCH}"), query(rpm, "%{LICENSE}")) == (
        "observer-agent",
        "noarch",
        "Apache-2.0",
    )
    requires = query(rpm, "[%{REQUIRENAME} %{REQUIREFLAGS:depflags} %{REQUIREVERSION}\n]").splitlines()
    assert "python(abi) >= 3.11" in requires
    for needed in ("/bin/sh", "coreutils", "findutils", "systemd", "ca-certificates"):
        assert any(line.split()[0] == needed for line in requires)


def repository(folder, packages):
    """A repository of empty packages."""
    for name, (version, provides) in {**SAME, **packages}.items():
        made = empty_rpm(folder / "made", name, version, provides)
        made.rename(folder / made.name)
    command = [need("createrepo_c", "createrepo-c"), "--quiet", "--excludes=made/*", folder]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def install(folder, rpm, release):
    """dnf in a new root, with this repository alone; what it said, and what is installed."""
    root = folder / "root"
    (folder / "log").mkdir()
    options = [
        f"--installroot={root}", f"--releasever={release}", "--setopt=reposdir=/nonexistent", "--setopt=gpgcheck=0",
        "--setopt=tsflags=noscripts", f"--setopt=cachedir={folder}/cache", f"--setopt=logdir={folder}/log",
        f"--repofrompath=fake,file://{folder}/repo", "--repo=fake", "--assumeyes",
    ]  # fmt: skip
    command = [need("dnf", "dnf"), *options, "install", rpm]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    listed = subprocess.run(
        ["rpm", "--root", root, "--query", "--all", "--queryformat", "%{NAME}\n"], capture_output=True, text=True
    )
    return done, set(listed.stdout.split())


@pytest.mark.parametrize(("release", "packages", "python"), [("9", EL9, "python3.12"), ("10", EL10, "python3")])
def test_dnf_resolves_it(rpm, tmp_path, release, packages, python):
    repository(tmp_path / "repo", packages)
    done, names = install(tmp_path, rpm, release)
    assert done.returncode == 0, done.stdout + done.stderr
    assert names >= {"observer-agent", python, "systemd", "ca-certificates"}


def test_dnf_refuses_it_where_every_python_is_too_old(rpm, tmp_path):
    repository(tmp_path / "repo", OLD)
    done, names = install(tmp_path, rpm, "9")
    assert done.returncode != 0 and "observer-agent" not in names
    assert "python(abi) >= 3.11" in done.stdout + done.stderr
