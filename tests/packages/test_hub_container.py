"""The hub's Containerfile: built by buildah and run by podman, over Debian's Python in the place of the image it names.

Nothing is pulled: an image of that name is made of a root that mmdebstrap has made, and wheels lie in a folder. Not in
CI, which has no engine; where the engine refuses to run anything the test is skipped and says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.packages.hub import PIP, clone_into, fetch, need_suite
from tests.packages.machine import until
from tests.packages.roots import cache_folder, root_of

pytestmark = pytest.mark.slow

HUB_USER = 991
PYTHON = ("ca-certificates", "python3", "python3-pip", "python3-venv")
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ASK = """
import os, urllib.request
token = open(os.environ["OBSERVER_HUB_TOKEN_FILE"]).read().strip()
asked = urllib.request.Request("http://127.0.0.1:8080/api/v1/agents", headers={"Authorization": "Bearer " + token})
print(urllib.request.urlopen(asked, timeout=10).read().decode())
"""


class Engine:
    """buildah and podman over a store of their own."""

    def __init__(self, folder):
        for program in ("buildah", "podman"):
            if shutil.which(program) is None:
                pytest.skip(f"NOT TESTED: {program} is not on the PATH (Debian: apt-get install buildah podman runc)")
        self._store = ["--root", str(folder / "store"), "--runroot", str(folder / "run")]
        runtime = ["--runtime", "runc"] if shutil.which("runc") else []  # crun refuses mixed trees of cgroups
        self._podman = ["podman", *self._store, "--cgroup-manager", "cgroupfs", *runtime]
        self._folder = folder

    def buildah(self, *words):
        return self._run(["buildah", *self._store], words)

    def podman(self, *words, check=True):
        return self._run(self._podman, words, check)

    def _run(self, command, words, check=True):
        done = subprocess.run(
            [*command, *map(str, words)], cwd=self._folder, env={**os.environ, "STORAGE_DRIVER": "vfs"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done


@pytest.fixture
def engine():
    folder = tempfile.mkdtemp(prefix="hub-")  # podman takes no path of more than 50 characters
    try:
        made = Engine(Path(folder))
        yield made
        made.podman("rm", "--all", "--force", "--time", "1", check=False)
    finally:
        until(
            lambda: cleared(folder), f"{folder} is taken away", 60.0, lambda: Path("/proc/self/mountinfo").read_text()
        )


def cleared(folder):
    """Whether a store is gone. podman binds it to itself, and does so again while it clears up behind a container."""
    for each in [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]:
        if each.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", each], check=False)
    shutil.rmtree(folder, ignore_errors=True)
    return not os.path.lexists(folder)


def stand_in(engine, root, name):
    """An image of Debian's Python under another's name."""
    made = engine.buildah("from", "scratch").stdout.strip()
    engine.buildah("add", "--quiet", made, root, "/")
    engine.buildah("config", "--env", PATH, made)
    # The image it stands for lets pip install into its Python.
    engine.buildah("run", "--isolation", "chroot", made, "sh", "-c", "rm -f /usr/lib/python3*/EXTERNALLY-MANAGED")
    engine.buildah("commit", "--quiet", "--rm", made, name)


def test_it_builds_and_serves_and_keeps_what_it_knows(engine, tmp_path, tmp_path_factory):
    root = root_of(cache_folder(tmp_path_factory), need_suite(), PYTHON)
    clone = clone_into(tmp_path / "clone")
    recipe = (clone / "packaging" / "hub.Containerfile").read_text()
    extras = re.search(r"/tmp/source\[([a-z,]+)\]", recipe)[1]
    (tmp_path / "wheels").mkdir()
    wheels = fetch(clone, tmp_path / "wheels", [f".[{extras}]", "psycopg[binary]"])
    (tmp_path / "pip.conf").write_text(PIP)

    stand_in(engine, root, re.search(r"^FROM (\S+)$", recipe, re.MULTILINE)[1])
    mounts = ["-v", f"{wheels}:/opt/wheels:ro", "-v", f"{tmp_path}/pip.conf:/etc/pip.conf:ro"]
    command = ["build", "--pull-never", "--isolation", "chroot", *mounts]
    engine.buildah(*command, "-f", clone / "packaging" / "hub.Containerfile", "-t", "observer-hub", clone)

    token = tmp_path / "token"
    token.write_text("token-of-the-operator\n")
    token.chmod(0o400)
    os.chown(token, HUB_USER, HUB_USER)
    started = engine.podman(
        "run", "--detach", "--name", "hub", "--network", "none", "--ulimit", "nofile=8192:8192", "--ulimit",
        "nproc=4096:4096", "-v", f"{token}:/run/secrets/hub_token:ro", "-e",
        "OBSERVER_HUB_TOKEN_FILE=/run/secrets/hub_token", "-v", "observer-hub:/var/lib/observer-hub", "observer-hub",
        check=False,
    )  # fmt: skip
    if started.returncode:
        pytest.skip(f"NOT TESTED: podman runs nothing here: {started.stderr.strip()[-500:]}")
    until(lambda: agents(engine) == [], "the hub answers", 30.0, lambda: logs(engine))
    key = engine.podman("exec", "hub", "observer-hub", "key", "create", "web-1").stdout.splitlines()[-1]
    assert re.fullmatch(r"obs_live_[A-Za-z0-9_-]{43}", key)
    assert engine.podman("exec", "hub", "id", "-u").stdout.strip() == str(HUB_USER)

    engine.podman("stop", "--time", "10", "hub")
    assert engine.podman("inspect", "--format", "{{.State.ExitCode}}", "hub").stdout.strip() == "0"
    engine.podman("start", "hub")
    until(lambda: agents(engine) == ["web-1"], "the volume holds what was made", 30.0, lambda: logs(engine))
    assert key not in logs(engine) and "token-of" not in logs(engine)


def agents(engine):
    asked = engine.podman("exec", "hub", "python3", "-c", ASK, check=False)
    return [each["name"] for each in json.loads(asked.stdout)["agents"]] if asked.returncode == 0 else None


def logs(engine):
    done = engine.podman("logs", "hub", check=False)
    return done.stdout + done.stderr
