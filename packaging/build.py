"""Makes the .deb, the .rpm, the wheel and the list of parts (SBOM): python packaging/build.py [--out DIR].

In goes the working tree, without what git ignores; out come five files with the same bytes whenever, wherever and by
whomever they are made. The only clock is SOURCE_DATE_EPOCH, else the time of the last commit. It needs the extra `dev`,
bash, and a package index or a folder of wheels that pip knows.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import notices
import payload
import sbom
from payload import BuildError

ROOT = Path(__file__).resolve().parent.parent
NAME = "observer-agent"
PLAIN = ("observer-agent.deb", "observer-agent.rpm", "launch.py", "config.toml", "agent.env")


class Build:
    """One build: `source` is the staged tree, `root` what nfpm.yaml names, `out` where the results go."""

    def __init__(self, work: Path, out: Path) -> None:
        self.work, self.out = work, out
        self.source, self.root, self.wheels = work / "source", work / "root", work / "wheels"
        self.epoch = epoch(ROOT)
        self.version = version(ROOT)
        self.lock = self.source / "packaging" / "requirements.lock"
        for folder in (self.source, self.root, self.wheels, out):
            folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Every step in its order."""
        say(f"{NAME} {self.version}, dated {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(self.epoch))} UTC")
        payload.stage(ROOT, self.source)
        say("wheel")
        wheel = payload.wheel(self.source, self.work / "own")
        say("libraries of packaging/requirements.lock")
        payload.download(self.lock, self.wheels)
        libraries = payload.vendor(self.lock, self.wheels, self.root / "lib")
        payload.unpack(wheel, self.root / "lib")
        say("manual pages, completions, notices")
        self.files()
        self.pages()
        self.completions()
        parts = sbom.document(self.version, self.epoch, wheel, libraries)
        self.notices(libraries, parts)
        payload.normalise(self.root, self.epoch)
        results = [self.out / wheel.name, self.out / f"{NAME}-{self.version}.spdx.json"]
        shutil.copyfile(wheel, results[0])
        results[1].write_text(parts, encoding="utf-8")
        for packager, name in (("deb", f"{NAME}_{self.version}_all.deb"), ("rpm", f"{NAME}-{self.version}.noarch.rpm")):
            say(name)
            results.append(self.package(packager, name))
        self.sums(results)

    def files(self) -> None:
        """What goes in as it is."""
        packaging, systemd = self.source / "packaging", self.source / "systemd"
        for name in PLAIN:
            shutil.copyfile(packaging / "files" / name, self.root / name)
        for file in (systemd / "observer-agent.service", systemd / "sysusers.conf", packaging / "lintian-overrides"):
            shutil.copyfile(file, self.root / file.name)
        for file in (self.source / "LICENSE", self.source / "CHANGELOG.md"):
            shutil.copyfile(file, self.root / file.name)
        shutil.copytree(packaging / "scripts", self.root / "scripts")
        shutil.copytree(systemd / "examples", self.root / "doc" / "examples" / "systemd")
        if (packaging / "monitoring").is_dir():
            target = self.root / "doc" / "examples" / "monitoring"
            shutil.copytree(packaging / "monitoring", target, ignore=shutil.ignore_patterns("*.test.yml"))

    def pages(self) -> None:
        """Manual pages, made by the vendored libraries from the commands themselves."""
        made = self.work / "pages"
        program = self.source / "packaging" / "manpages.py"
        date = time.strftime("%Y-%m-%d", time.gmtime(self.epoch))
        payload.run([sys.executable, "-IBS", program, self.root / "lib", made, date], self.source)
        for page in sorted(made.iterdir()):
            folder = self.root / f"man{page.suffix[1:]}"
            folder.mkdir(exist_ok=True)
            pack(page.read_bytes(), folder / f"{page.name}.gz")

    def completions(self) -> None:
        """What click generates for each shell."""
        for shell in ("bash", "zsh", "fish"):
            env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "_OBSERVER_AGENT_COMPLETE": f"{shell}_source"}
            text = payload.run([sys.executable, "-IBS", self._launcher(), self.root / "lib"], self.work, env)
            (self.root / f"completion.{shell}").write_text(text, encoding="utf-8")

    def _launcher(self) -> Path:
        launcher = self.work / "launcher.py"
        launcher.write_text(
            "import sys\n"
            "sys.path.insert(0, sys.argv.pop(1))\n"
            "from observer_agent.cli import main\n"
            f"main(prog_name={NAME!r})\n"
        )
        return launcher

    def notices(self, libraries: list[payload.Library], parts: str) -> None:
        """Copyright, licences, changelog and the list of parts."""
        for library in libraries:
            folder = self.root / "licences" / library.name
            folder.mkdir(parents=True)
            for name, text in library.texts.items():
                (folder / name).write_text(text, encoding="utf-8")
        doc = self.root / "doc"
        (doc / "copyright").write_text(notices.copyright_file(libraries), encoding="utf-8")
        (doc / "sbom.spdx.json").write_text(parts, encoding="utf-8")
        text = (self.source / "CHANGELOG.md").read_text(encoding="utf-8")
        changelog = notices.debian_changelog(text, self.version, self.epoch)
        pack(changelog.encode(), self.root / "changelog.gz")

    def package(self, packager: str, name: str) -> Path:
        """One package by nfpm."""
        shutil.copyfile(self.source / "packaging" / "nfpm.yaml", self.work / "nfpm.yaml")
        env = {**os.environ, "VERSION": distribution_version(self.version), "SOURCE_DATE_EPOCH": str(self.epoch)}
        target = self.out / name
        payload.run([tool("nfpm"), "package", "-f", "nfpm.yaml", "-p", packager, "-t", target], self.work, env)
        return target

    def sums(self, results: list[Path]) -> None:
        """SHA256SUMS, and a line for each result."""
        lines = []
        for file in sorted(results):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            lines.append(f"{digest}  {file.name}\n")
            say(f"{file.stat().st_size / 1e6:6.2f} MB  {digest[:16]}  {file.name}")
        (self.out / "SHA256SUMS").write_text("".join(lines))


def pack(content: bytes, file: Path) -> None:
    """gzip without name and time."""
    file.write_bytes(gzip.compress(content, 9, mtime=0))


def say(text: str) -> None:
    sys.stdout.write(f"packages: {text}\n")
    sys.stdout.flush()


def version(root: Path) -> str:
    """The version in the package's own text; nothing is imported."""
    text = (root / "observer_agent" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.M)
    if not match:
        raise BuildError("observer_agent/__init__.py names no __version__")
    return match[1]


def distribution_version(version: str) -> str:
    """As dpkg and rpm sort it: 1.0rc1 and 1.0.dev1 are before 1.0."""
    return re.sub(r"\.?(a|b|rc|dev)(?=\d)", r"~\1", version)


def epoch(root: Path) -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given.isdigit():
        return int(given)
    if given or not (root / ".git").exists():
        raise BuildError("without git the date is unknown: set SOURCE_DATE_EPOCH to the seconds of the release")
    return int(payload.run(["git", "log", "-1", "--format=%ct"], root))


def tool(name: str) -> str:
    """A program beside this Python, else on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise BuildError(f"{name} is missing: pip install -e '.[dev]'")
    return found


def prerequisites() -> None:
    """Names everything that is missing before the first step."""
    missing = [name for name in ("build", "pip") if importlib.util.find_spec(name) is None]
    missing += [name for name in ("bash",) if not shutil.which(name)]
    if missing:
        raise BuildError(f"missing: {', '.join(missing)}; pip install -e '.[dev]', and bash from the distribution")
    tool("nfpm")


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the packages.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the results go (dist/)")
    parser.add_argument("--version", action="store_true", help="print the version that would be built")
    asked = parser.parse_args()
    os.umask(0o022)
    try:
        if asked.version:
            sys.stdout.write(f"{version(ROOT)}\n")
            return 0
        prerequisites()
        os.environ["SOURCE_DATE_EPOCH"] = str(epoch(ROOT))
        with tempfile.TemporaryDirectory(prefix="observer-agent-build-") as work:
            Build(Path(work), asked.out.resolve()).run()
    except BuildError as error:
        sys.stderr.write(f"packages: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
