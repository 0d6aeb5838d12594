"""What the tests that install the hub begin with: a clone as a user has it, and a folder with what pip would fetch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLONE = ("observer_agent", "docs", "packaging", "systemd", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PIP = "[global]\nno-index = true\nfind-links = /opt/wheels\ndisable-pip-version-check = true\n"
SUITE = {(3, 11): "bookworm", (3, 13): "trixie"}.get(sys.version_info[:2])  # the release with the tests' own Python


def need_suite() -> str:
    """Debian's release whose Python takes the wheels that are fetched for this one."""
    if SUITE is None:
        pytest.skip(f"NOT TESTED: no Debian release has this Python ({sys.version.split()[0]}); 3.11 or 3.13 will do")
    return SUITE


def clone_into(folder: Path) -> Path:
    """What a clone holds, as far as an install uses it."""
    folder.mkdir()
    for name in CLONE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def fetch(clone: Path, folder: Path, words: list[str]) -> Path:
    """Everything that `pip install` with these words takes from outside, into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *words, "setuptools", "wheel"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"NOT TESTED: pip fetches nothing here: {done.stderr.strip()[-500:]}")
    return folder
