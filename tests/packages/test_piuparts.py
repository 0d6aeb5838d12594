"""piuparts: install, remove and purge in a bare root leave nothing that was not there before."""

from __future__ import annotations

import subprocess

import pytest

from tests.packages.fixtures import bookworm
from tests.packages.roots import need

pytestmark = pytest.mark.slow


@bookworm
def test_piuparts_passes(root, deb, tmp_path):
    command = [need("piuparts", "piuparts"), "--warn-on-others", "--no-eatmydata", "--tmpdir", tmp_path]
    done = subprocess.run(
        [*command, "--existing-chroot", root, "--distribution", "bookworm", deb],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "PASS: All tests." in said
