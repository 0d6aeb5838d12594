"""setup.cfg's ranges in; packaging/requirements.lock out: one pure wheel with one hash for each library.

Run by hand: python packaging/lock.py. pip resolves for Python 3.11 and for no platform at all: a library without
a pure wheel fails here and not in an installed package. No address of an index gets into the lock.
"""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "packaging" / "requirements.lock"
PURE = ("--only-binary", ":all:", "--platform", "any", "--implementation", "py", "--abi", "none")
FLOOR = "3.11"
LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")


def wanted(setup: Path) -> list[str]:
    """The agent's own requirements; the hub's are an extra."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(setup, encoding="utf-8")
    return parser["options"]["install_requires"].split("\n")[1:]


def read(lock: Path) -> dict[str, tuple[str, str]]:
    """Name to version and hash; raises ValueError for a line of another form."""
    out: dict[str, tuple[str, str]] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = LINE.fullmatch(line)
            if not match:
                raise ValueError(f"{lock.name}: not NAME==VERSION --hash=sha256:...: {line[:80]}")
            out[match["name"]] = (match["version"], match["sha256"])
    return out


def resolve(requirements: list[str]) -> list[str]:
    """The lines of the lock, by pip's own resolver."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += [*PURE, "--python-version", FLOOR, "--target", "unused", *requirements]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = []
    for item in json.loads(done.stdout)["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        sha256 = item["download_info"]["archive_info"]["hashes"]["sha256"]
        lines.append(f"{name}=={item['metadata']['version']} --hash=sha256:{sha256}")
    return sorted(lines)


def main() -> None:
    head = "# Made by packaging/lock.py from setup.cfg, for Python 3.11 and pure wheels alone.\n"
    LOCK.write_text(head + "".join(f"{line}\n" for line in resolve(wanted(ROOT / "setup.cfg"))), encoding="utf-8")
    sys.stdout.write(f"{LOCK.relative_to(ROOT)}: {len(read(LOCK))} libraries\n")


if __name__ == "__main__":
    main()
