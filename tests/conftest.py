"""Fixtures that many tests share."""

from __future__ import annotations

import logging
import subprocess

import pytest


@pytest.fixture
def caught(caplog):
    """The program's log lines, even where another test has configured its handlers."""
    logger = logging.getLogger("observer_agent")
    before = logger.propagate, logger.level
    # pytest listens at a logger that does not propagate; at both places it would hear everything twice.
    logger.propagate = caplog.handler not in logger.handlers
    logger.setLevel(logging.DEBUG)
    yield caplog
    logger.propagate, level = before
    logger.setLevel(level)


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB of its own; skipped where the kernel lets us mount nothing."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the kernel lets us mount nothing here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def eat(disk):
    """A stranger takes every byte that is left of a disk."""
    with open(disk / "stranger", "ab", buffering=0) as handle:
        while True:
            try:
                if not handle.write(b"x" * 512):
                    return
            except OSError:
                return
