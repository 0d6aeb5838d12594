"""What the vendored libraries and CHANGELOG.md say in; Debian's copyright file and changelog out."""

from __future__ import annotations

import calendar
import re
import textwrap
import time

from payload import BuildError, Library

MAINTAINER = "Observer agent maintainers <packages@use.observer>"
# In /usr/share/common-licenses of every Debian, and how each text is known.
COMMON = {"Apache-2.0": "TERMS AND CONDITIONS FOR USE, REPRODUCTION", "MPL-2.0": "Mozilla Public License, v. 2.0"}
# What the metadata says in words of its own, after reading the text.
BY_HAND = {"persist-queue": "BSD-3-Clause", "pg8000": "BSD-3-Clause", "hyperframe": "MIT"}
KNOWN = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0"}


def licence(library: Library) -> str:
    """The SPDX expression of a library; raises BuildError where its metadata gives none that is known."""
    says = library.metadata
    found = BY_HAND.get(library.name) or says["License-Expression"] or says["License"] or ""
    if not found or not set(re.split(r" (?:AND|OR|WITH) ", found)) <= KNOWN:
        raise BuildError(
            f"{library.name}: licence {found!r} is not known; read its text, then see packaging/notices.py"
        )
    return found


def copyright_file(libraries: list[Library]) -> str:
    """Debian's machine-readable form (DEP-5)."""
    head = "\n".join(
        (
            "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/",
            "Upstream-Name: observer-agent",
            "Source: https://use.observer",
            "",
            "Files: *",
            "Copyright: the authors of observer-agent",
            _licence_field("Apache-2.0", {}),
        )
    )
    return "\n\n".join([head, *(_stanza(library) for library in libraries)]) + "\n"


def _stanza(library: Library) -> str:
    places = [f"usr/lib/observer-agent/{place}" + ("" if place.endswith(".py") else "/*") for place in library.places]
    return "\n".join(
        (
            "Files: " + "\n ".join(places),
            "Copyright: " + "\n ".join(_holders(library)),
            _licence_field(licence(library), library.texts),
        )
    )


def _holders(library: Library) -> list[str]:
    lines = []
    for text in library.texts.values():
        lines += re.findall(r"(?m)^ *Copyright (?:\([cC]\) )?((?:\d{4}|[A-Z]).*)$", text)
    says = library.metadata
    return [line.strip() for line in lines] or [
        says["Author"] or says["Author-email"] or f"the authors of {library.name}"
    ]


def _licence_field(name: str, texts: dict[str, str]) -> str:
    """The text itself, or where every Debian has it; notices always."""
    out = [f"License: {name}"]
    for common in COMMON:
        if common in name.split():
            out.append(f" On Debian systems the text of {common} is in /usr/share/common-licenses/{common}.")
    for _, text in sorted(texts.items()):
        if not any(mark in text for mark in COMMON.values()):
            lines = text.strip().expandtabs().splitlines()
            out += [" .", *(f" {line}".rstrip() if line.strip() else " ." for line in lines)]
    return "\n".join(out)


def debian_changelog(text: str, version: str, epoch: int) -> str:
    """Keep-a-Changelog in, Debian's form out; what is unreleased is this version's."""
    entries = []
    for heading, date, body in re.findall(r"(?ms)^## \[([^\]]+)\](?: - (\S+))?\n(.*?)(?=^## |\Z)", text):
        stamp = epoch if heading == "Unreleased" else _seconds(date)
        name = version if heading == "Unreleased" else heading
        items = re.findall(r"(?ms)^- (.*?)(?=^- |^#|\Z)", body)
        if items:
            entries.append(_entry(name, stamp, items))
    if not entries:
        raise BuildError("CHANGELOG.md holds no entry")
    return "\n".join(entries)


def _seconds(date: str) -> int:
    return calendar.timegm(time.strptime(date, "%Y-%m-%d"))


def _entry(version: str, stamp: int, items: list[str]) -> str:
    lines = [f"observer-agent ({version}) unstable; urgency=medium", ""]
    for item in items:
        plain = " ".join(item.replace("`", "").split())
        lines += textwrap.wrap(plain, 74, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False)
    date = time.strftime("%a, %d %b %Y %H:%M:%S +0000", time.gmtime(stamp))
    return "\n".join([*lines, "", f" -- {MAINTAINER}  {date}", ""])
