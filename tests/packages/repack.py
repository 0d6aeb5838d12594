"""The built packages under a higher version with the same content, and packages of nothing. Files in, files out."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.packages.roots import need

SCRIPTLETS = {"post": "POSTIN", "preun": "PREUN", "postun": "POSTUN", "posttrans": "POSTTRANS"}
HEAD = """\
%global __os_install_post %{{nil}}
%global _build_id_links none
%global debug_package %{{nil}}
Name: {name}
Version: {version}
Release: 1
Summary: {name}
License: Apache-2.0
BuildArch: noarch
AutoReqProv: no
{more}
%description
{name}
"""


def newer_deb(deb: Path, folder: Path, version: str, settings: str | None = None) -> Path:
    """A .deb of a higher version with the same content; `settings` replaces the package's config.toml."""
    tree = folder / f"deb-{version}"
    subprocess.run([need("dpkg-deb", "dpkg"), "--raw-extract", deb, tree], check=True)
    control = tree / "DEBIAN" / "control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", control.read_text()))
    _set_version(tree, version)
    if settings is not None:
        (tree / "etc/observer-agent/config.toml").write_text(settings)
    out = folder / f"observer-agent_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, out], check=True, capture_output=True)
    return out


def newer_rpm(rpm: Path, folder: Path, version: str, settings: str | None = None) -> Path:
    """The same for an .rpm: its files with their modes and flags, its scriptlets as they are."""
    tree = folder / f"rpm-{version}"
    tree.mkdir()
    copy = Path(shutil.copy(rpm, tree / "in.rpm"))
    subprocess.run([need("rpm2archive", "rpm"), copy], check=True, capture_output=True)
    subprocess.run(["tar", "-xzf", f"{copy}.tgz", "--one-top-level=files", "-C", tree], check=True)
    _set_version(tree / "files", version)
    if settings is not None:
        (tree / "files/etc/observer-agent/config.toml").write_text(settings)
    spec = HEAD.format(name="observer-agent", version=version, more="")
    spec += f"%install\ncp -a {tree}/files/. %{{buildroot}}/\n"
    for scriptlet, tag in SCRIPTLETS.items():
        spec += f"%{scriptlet}\n{query(rpm, f'%{{{tag}}}').replace('%', '%%')}\n"
    return _rpmbuild(tree, spec + "%files\n" + _files(rpm))


def empty_rpm(folder: Path, name: str, version: str, provides: Sequence[str] = ()) -> Path:
    """An .rpm of nothing that provides what a distribution's package of that name does."""
    place = folder / f"{name}-{version}"
    place.mkdir(parents=True)
    spec = HEAD.format(name=name, version=version, more="".join(f"Provides: {each}\n" for each in provides))
    return _rpmbuild(place, spec + "%files\n")


def query(rpm: Path, form: str) -> str:
    """What the header of an .rpm says."""
    command = [need("rpm", "rpm"), "--query", "--package", "--queryformat", form, rpm]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _files(rpm: Path) -> str:
    out = ""
    for line in query(rpm, "[%{FILEFLAGS:fflags}|%{FILEMODES:octal}|%{FILENAMES}\n]").splitlines():
        flags, mode, path = line.split("|", 2)
        kind = "%dir " if mode.startswith("40") else "%config(noreplace) " if flags == "cn" else ""
        out += f'{kind}%attr({mode[-4:]}, root, root) "{path}"\n'
    return out


def _rpmbuild(folder: Path, spec: str) -> Path:
    (folder / "package.spec").write_text(spec)
    defines = ["--define", f"_topdir {folder}/build", "--define", "_binary_payload w0.gzdio"]
    command = [need("rpmbuild", "rpm"), "-bb", "--quiet", *defines, folder / "package.spec"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (out,) = folder.glob("build/RPMS/noarch/*.rpm")
    return out


def _set_version(tree: Path, version: str) -> None:
    file = tree / "usr/lib/observer-agent/observer_agent/__init__.py"
    text, n = re.subn(r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"', file.read_text())
    assert n == 1
    file.write_text(text)
