"""What `make packages` makes: the same bytes twice, the right files, nothing compiled, nothing of the machine."""

from __future__ import annotations

import calendar
import configparser
import hashlib
import json
import os
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import zipfile
from contextlib import closing, suppress
from email.parser import Parser
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

import observer_agent
from observer_agent import config
from observer_agent.cli import main
from tests.packages.roots import need

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
VERSION = observer_agent.__version__
LIB = "/usr/lib/observer-agent"
DOC = "/usr/share/doc/observer-agent"
SHIPPED = {  # besides libraries, manual pages, monitoring and licences: path to mode
    "/etc/observer-agent/agent.env": "-rw-------",
    "/etc/observer-agent/config.toml": "-rw-r--r--",
    "/usr/bin/observer-agent": "-rwxr-xr-x",
    "/usr/lib/sysusers.d/observer-agent.conf": "-rw-r--r--",
    "/usr/share/bash-completion/completions/observer-agent": "-rw-r--r--",
    "/usr/share/fish/vendor_completions.d/observer-agent.fish": "-rw-r--r--",
    f"{DOC}/copyright": "-rw-r--r--",
    f"{DOC}/sbom.spdx.json": "-rw-r--r--",
    f"{DOC}/examples/systemd/host-metrics.conf": "-rw-r--r--",
    f"{DOC}/examples/systemd/ping.conf": "-rw-r--r--",
}
DEB_ONLY = {
    "/lib/systemd/system/observer-agent.service": "-rw-r--r--",
    "/usr/share/lintian/overrides/observer-agent": "-rw-r--r--",
    "/usr/share/zsh/vendor-completions/_observer-agent": "-rw-r--r--",
    f"{DOC}/changelog.gz": "-rw-r--r--",
}
RPM_ONLY = {
    "/usr/lib/systemd/system/observer-agent.service": "-rw-r--r--",
    "/usr/share/licenses/observer-agent/LICENSE": "-rw-r--r--",
    "/usr/share/zsh/site-functions/_observer-agent": "-rw-r--r--",
    f"{DOC}/CHANGELOG.md": "-rw-r--r--",
}


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


def pages(command, path):
    """Names of the manual pages that there must be, from the commands themselves."""
    yield f"/usr/share/man/man1/{path}.1.gz"
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            if child.hidden:
                continue
            yield from pages(child, f"{path}-{name}")


def locked():
    """Name to (version, hash), read without the code under test."""
    lines = (PACKAGING / "requirements.lock").read_text().splitlines()
    parts = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:(\w{64})", line) for line in lines if not line.startswith("#")]
    return {m[1]: (m[2], m[3]) for m in parts}


def folded(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="session")
def rpm(built):
    return built / f"observer-agent-{VERSION}.noarch.rpm"


@pytest.fixture(scope="session")
def tree(deb, tmp_path_factory):
    """The .deb's files, unpacked into a folder."""
    folder = tmp_path_factory.mktemp("tree")
    run(need("dpkg", "dpkg"), "-x", deb, folder)
    return folder


def deb_files(deb):
    """Path to (mode, owner) of everything in a .deb."""
    out = {}
    for line in run(need("dpkg-deb", "dpkg"), "-c", deb).splitlines():
        mode, owner, _, _, _, path = line.split(None, 5)
        out[path.lstrip(".")] = (mode, owner)
    return out


def rpm_files(rpm):
    """Path to (mode, owner) of everything in a .rpm."""
    form = "[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} %{FILENAMES}\n]"
    rows = (line.split(None, 2) for line in run(need("rpm", "rpm"), "-qp", "--qf", form, rpm).splitlines())
    return {path: (mode, owner) for mode, owner, path in rows}


# -- without a build


def test_the_lock_satisfies_the_ranges_of_setup_cfg():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    pins = locked()
    wanted = [Requirement(line) for line in parser["options"]["install_requires"].split("\n")[1:]]
    assert len(wanted) >= 6
    for requirement in wanted:
        assert pins[folded(requirement.name)][0] in requirement.specifier, requirement


def test_the_lock_names_no_index():
    text = (PACKAGING / "requirements.lock").read_text()
    assert not re.search(r"://|index|find-links|/opt|file:", text)


def test_the_shipped_settings_are_read_and_put_the_queue_where_the_service_may_write():
    settings = config.load({}, PACKAGING / "files" / "config.toml", to_run=False)
    assert str(settings.buffer_path) == "/var/lib/observer-agent/buffer.db"


def test_every_example_of_the_shipped_settings_is_one_that_the_parser_takes(tmp_path):
    """Each commented line on its own, and all of them at once."""
    text = (PACKAGING / "files" / "config.toml").read_text()
    active = re.sub(r"^# ([A-Z][A-Z_]+ = )", r"\1", text, flags=re.M)
    names = set(tomllib.loads(active))
    assert {"CLOUD_SERVER_URL", "PROMETHEUS_SERVER_URL", "DEFINITIONS_FILE", "BUFFER_MAX_ROWS"} <= names
    assert "AGENT_KEY" not in names
    (tmp_path / "config.toml").write_text(active)
    config.load({}, tmp_path / "config.toml", to_run=False)


def test_the_environment_file_ships_empty():
    assert (PACKAGING / "files" / "agent.env").read_bytes() == b""  # else the unit would think it is configured


@pytest.mark.parametrize("script", sorted((PACKAGING / "scripts").iterdir()), ids=lambda p: p.name)
def test_scriptlets_are_shell(script):
    run("sh", "-n", script)
    if shutil.which("shellcheck"):
        run("shellcheck", "--shell=dash", script)


def test_both_lists_of_pythons_are_the_same():
    """What runs the agent on the rpm's systems is what has compiled it."""
    lists = [
        re.search(r"^for python in (.*); do$", (PACKAGING / name).read_text(), re.M)[1]
        for name in ("files/observer-agent.rpm", "scripts/rpm-posttrans")
    ]
    assert lists[0] == lists[1]


def test_a_version_before_a_release_sorts_before_it():
    code = "import build; print(*map(build.distribution_version, ['1.0', '1.0rc1', '1.0.dev2', '1.0a3']))"
    out = run(sys.executable, "-c", code, cwd=PACKAGING).split()
    assert out == ["1.0", "1.0~rc1", "1.0~dev2", "1.0~a3"]


def test_without_git_and_without_a_date_the_build_says_what_to_do(tmp_path):
    copy_of_sources(tmp_path / "copy")
    env = {k: v for k, v in os.environ.items() if k != "SOURCE_DATE_EPOCH"}
    command = [sys.executable, tmp_path / "copy/packaging/build.py", "--out", tmp_path / "out"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "SOURCE_DATE_EPOCH" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_with_compiled_code_ends_the_build(tmp_path):
    """The check that keeps the packages pure can fail."""
    with zipfile.ZipFile(tmp_path / "x-1-py3-none-any.whl", "w") as archive:
        archive.writestr("x-1.dist-info/WHEEL", "Root-Is-Purelib: true\n")
        archive.writestr("x-1.dist-info/METADATA", "Name: x\n")
        archive.writestr("x/_speedups.cpython-311-x86_64-linux-gnu.so", b"\x7fELF")
    code = "import sys, pathlib, payload; payload.unpack(*map(pathlib.Path, sys.argv[1:]))"
    command = [sys.executable, "-c", code, tmp_path / "x-1-py3-none-any.whl", tmp_path / "lib"]
    done = subprocess.run(command, cwd=PACKAGING, capture_output=True, text=True)
    assert "BuildError" in done.stderr
    assert "is compiled" in done.stderr


def copy_of_sources(to):
    skipped = shutil.ignore_patterns(
        ".git", "build", "dist", ".venv", "*.egg-info", ".*_cache", ".hypothesis", "__pycache__"
    )
    shutil.copytree(ROOT, to, ignore=skipped)


# -- with the packages


@pytest.mark.slow
def test_a_build_elsewhere_and_by_another_user_has_the_same_bytes(built, tmp_path):
    created = json.loads((built / f"observer-agent-{VERSION}.spdx.json").read_text())["creationInfo"]["created"]
    epoch = calendar.timegm(time.strptime(created, "%Y-%m-%dT%H:%M:%SZ"))
    copy_of_sources(tmp_path / "another place")
    stray = tmp_path / "another place" / "observer_agent" / "__pycache__"
    stray.mkdir(exist_ok=True)
    (stray / "stray.pyc").write_bytes(b"not ours")
    (stray.parent / "stray.db").write_bytes(b"ignored by git")
    (stray.parent / "cli.py").chmod(0o600)
    env = {
        **os.environ,
        "SOURCE_DATE_EPOCH": str(epoch),
        "TZ": "Pacific/Auckland",
        "LC_ALL": "C",
        "HOME": str(tmp_path),
    }
    program = tmp_path / "another place" / "packaging" / "build.py"
    command = ["sh", "-c", 'umask 077; exec "$@"', "sh", sys.executable, program, "--out", tmp_path / "out"]
    run(*command, env=env, cwd=tmp_path)
    names = sorted(p.name for p in built.iterdir())
    assert names == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(names) == 5
    for name in names:
        assert (built / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name


@pytest.mark.slow
def test_the_sums_are_right(built):
    lines = (built / "SHA256SUMS").read_text().splitlines()
    assert len(lines) == 4
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((built / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_the_files_and_their_modes(kind, deb, rpm):
    """Every file outside the library folder is named here, and everything is root's."""
    found = deb_files(deb) if kind == "deb" else rpm_files(rpm)
    assert {owner for _, owner in found.values()} == {"root/root"}
    libraries = {p: m for p, (m, _) in found.items() if p.startswith(f"{LIB}/")}
    assert len(libraries) > 300
    assert set(libraries.values()) == {"-rw-r--r--", "drwxr-xr-x"}
    free = (f"{LIB}/", f"{DOC}/examples/monitoring/", "/usr/share/licenses/observer-agent/libraries/")
    others = {p: m for p, (m, _) in found.items() if not m.startswith("d") and not p.startswith(free)}
    expected = {**SHIPPED, **(DEB_ONLY if kind == "deb" else RPM_ONLY)}
    expected |= dict.fromkeys(pages(main, "observer-agent"), "-rw-r--r--")
    expected["/usr/share/man/man5/observer-agent-config.5.gz"] = "-rw-r--r--"
    assert others == expected
    folder = "/etc/observer-agent/" if kind == "deb" else "/etc/observer-agent"
    assert found[folder][0] == "drwxr-x---"


@pytest.mark.slow
def test_the_rpm_owns_no_folder_of_the_system(rpm):
    folders = {p for p, (mode, _) in rpm_files(rpm).items() if mode.startswith("d")}
    assert all("observer-agent" in p for p in folders), folders


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_nothing_is_compiled_and_nothing_is_left_of_pip(kind, deb, rpm):
    found = deb_files(deb) if kind == "deb" else rpm_files(rpm)
    names = [Path(p).name for p in found if p.startswith(LIB)]
    assert not [n for n in names if re.search(r"\.(so|pyd|pyc|a|o)($|\.)", n)]
    assert not {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json", "bin", "tests", "agent_key"} & set(names)


@pytest.mark.slow
def test_the_payload_names_nothing_of_the_machine_that_built_it(tree):
    secrets = {str(ROOT), sys.prefix, "observer-agent-build-", os.uname().nodename, "file://" + str(ROOT)}
    needles = [text.encode() for text in secrets if len(text) > 4]
    assert len(needles) >= 3
    for file in tree.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [n for n in needles if n in content], file


@pytest.mark.slow
def test_the_deb_says_what_it_needs_and_what_is_configuration(deb):
    fields = Parser().parsestr(run("dpkg-deb", "-f", deb))
    assert fields["Architecture"] == "all"
    assert fields["Version"] == VERSION
    assert fields["Depends"] == "python3 (>= 3.11), init-system-helpers (>= 1.54), passwd, ca-certificates"
    conffiles = run("dpkg-deb", "-I", deb, "conffiles").split()
    assert conffiles == ["/etc/observer-agent/agent.env", "/etc/observer-agent/config.toml"]


@pytest.mark.slow
def test_the_rpm_says_what_it_needs_and_what_is_configuration(rpm):
    needs = set(run(need("rpm", "rpm"), "-qp", "--requires", rpm).splitlines())
    assert {"/bin/sh", "systemd", "ca-certificates", "python(abi) >= 3.11"} <= needs
    assert run("rpm", "-qpc", rpm).split() == ["/etc/observer-agent/agent.env", "/etc/observer-agent/config.toml"]
    scripts = run("rpm", "-qp", "--scripts", rpm)
    for kind in ("postinstall", "preuninstall", "postuninstall", "posttrans"):
        assert f"{kind} scriptlet (using /bin/sh)" in scripts


@pytest.mark.slow
def test_what_every_library_needs_is_in_the_lock(tree):
    pins = locked()
    folders = {p for p in (tree / LIB.lstrip("/")).glob("*.dist-info") if not p.name.startswith("observer_agent-")}
    assert len(folders) == len(pins)
    for folder in folders:
        metadata = Parser().parsestr((folder / "METADATA").read_text())
        assert pins[folded(metadata["Name"])][0] == metadata["Version"]
        for text in metadata.get_all("Requires-Dist") or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert pins[folded(requirement.name)][0] in requirement.specifier, f"{folder.name}: {text}"


@pytest.mark.slow
def test_the_list_of_parts_is_valid_and_equals_the_lock(built, tree):
    file = built / f"observer-agent-{VERSION}.spdx.json"
    run(Path(sys.executable).parent / "pyspdxtools", "-i", file)
    assert (tree / DOC.lstrip("/") / "sbom.spdx.json").read_bytes() == file.read_bytes()
    own, *parts = json.loads(file.read_text())["packages"]
    assert own["versionInfo"] == VERSION
    assert {p["name"]: (p["versionInfo"], p["checksums"][0]["checksumValue"]) for p in parts} == locked()
    for part in parts:
        assert part["externalRefs"][0]["referenceLocator"] == f"pkg:pypi/{part['name']}@{part['versionInfo']}"
        assert part["licenseDeclared"] not in ("", "NOASSERTION")


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(built):
    [file] = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        package = ROOT / "observer_agent"
        files = (each for each in package.rglob("*") if each.is_file() and "__pycache__" not in each.parts)
        assert {str(each.relative_to(ROOT)) for each in files} <= set(archive.namelist())
    assert tops == {"observer_agent", f"observer_agent-{VERSION}.dist-info"}


@pytest.mark.slow
def test_manual_pages_are_clean(tree):
    found = sorted((tree / "usr/share/man").rglob("*.gz"))
    assert len(found) > 10
    for page in found:
        text = run("gzip", "-dc", page)
        run(need("mandoc", "mandoc"), "-Tlint", "-W", "error", input=text)
        env = {**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"}
        command = [need("man", "man-db"), "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(page)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), page.name


@pytest.mark.slow
def test_the_page_of_the_settings_has_every_setting(tree):
    text = run("gzip", "-dc", tree / "usr/share/man/man5/observer-agent-config.5.gz")
    assert re.findall(r"^\.TP\n\\fB(\w+)\\fR$", text, re.M) == list(config.VARIABLES)


@pytest.mark.slow
def test_lintian_finds_no_error(deb):
    command = [need("lintian", "lintian"), "--allow-root", "--tag-display-limit", "0", deb]
    out = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stdout + out.stderr
    assert not re.search(r"^[EW]:", out.stdout, re.M), out.stdout


@pytest.mark.slow
def test_the_launcher_runs_from_the_unpacked_package(tree, tmp_path):
    """With the distribution's Python, without its packages, and with an environment that would mislead it."""
    program = tree / "usr/bin/observer-agent"
    assert program.read_text().startswith("#!/usr/bin/python3 -IS\n")
    (tmp_path / "click.py").write_text("raise SystemExit('read from the current folder')")
    here = {"cwd": tmp_path, "env": {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "AGENT_KEY": "obs_test"}}
    here["env"]["BUFFER_PATH"] = str(tmp_path / "queue.db")
    python = [sys.executable, "-IBS", program]
    assert run(*python, "--version", **here) == f"observer-agent {VERSION}\n"
    assert "BUFFER_PATH" in run(*python, "check", "--config", tree / "etc/observer-agent/config.toml", **here)
    assert "Usage: observer-agent " in run(*python, "--help", **here)
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        pair = f"port={server.getsockname()[1]}"
        seen = json.loads(run(*python, "probe", "--json", "tcp", "host=127.0.0.1", pair, **here))
    assert seen["value"] is not None
    bad = subprocess.run([*python, "no-such-command"], capture_output=True, text=True, **here)
    assert bad.returncode == 2


COMPLETE = {
    "bash": (["--norc", "--noprofile", "-i"], ". {share}/bash-completion/completions/observer-agent"),
    "zsh": (
        ["-f", "-i"],
        "fpath=({share}/zsh/vendor-completions $fpath); autoload -Uz compinit; compinit -u -d {scratch}/dump",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", sorted(COMPLETE))
def test_a_shell_completes_a_command(shell, tree, tmp_path):
    """A person at a terminal types `observer-agent stat<TAB>`."""
    words, prepare = COMPLETE[shell]
    prepare = prepare.format(share=tree / "usr/share", scratch=tmp_path)
    path = f"{tree / 'usr/bin'}:/usr/bin:/bin"
    env = {"PATH": path, "HOME": str(tmp_path), "TERM": "dumb", "PS1": "$ ", "PYTHONDONTWRITEBYTECODE": "1"}
    with closing(Terminal([need(shell, shell), *words], env)) as terminal:
        terminal.type(f"{prepare}; echo rea''dy\n")
        terminal.wait_for("ready")
        terminal.type("observer-agent stat\t")
        terminal.wait_for("observer-agent status")


@pytest.mark.slow
def test_fish_completes_a_command(tree, tmp_path):
    """fish says itself what it would complete."""
    source = tree / "usr/share/fish/vendor_completions.d/observer-agent.fish"
    path = f"{tree / 'usr/bin'}:/usr/bin:/bin"
    env = {"PATH": path, "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    out = run(need("fish", "fish"), "--no-config", "-c", f"source {source}; complete -C 'observer-agent stat'", env=env)
    assert out.split("\t")[0].strip() == "status"


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, command, env):
        self._ours, theirs = pty.openpty()
        self._program = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        os.close(theirs)
        self.said = ""

    def type(self, text):
        os.write(self._ours, text.encode())

    def wait_for(self, text, seconds=20.0):
        """Reads until `text` is on the screen; control sequences are left out."""
        end = time.monotonic() + seconds
        while text not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][A-Z0-9]?|[\r\x08]", "", self.said):
            left = end - time.monotonic()
            assert left > 0 and select.select([self._ours], [], [], left)[0], f"no {text!r} in {self.said!r}"
            self.said += os.read(self._ours, 4096).decode(errors="replace")

    def close(self):
        self._program.kill()
        self._program.wait()
        with suppress(OSError):
            os.close(self._ours)
