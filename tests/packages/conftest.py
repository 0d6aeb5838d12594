"""The packages, built once for every test that looks at them; beside them the fixtures that boot machines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packages.fixtures import boot, deb, installed, machine, root, scene, suite  # noqa: F401

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A folder with what `make packages` makes."""
    out = tmp_path_factory.mktemp("packages")
    env = dict(os.environ)
    if not (ROOT / ".git").exists():
        env.setdefault("SOURCE_DATE_EPOCH", "1700000000")  # sources without git: any date is as good
    command = [sys.executable, "packaging/build.py", "--out", out]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return out
