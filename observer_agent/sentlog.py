"""The record of what has left: a line for each request before it is sent, a line for its answer; both dialects.

In two files beside the queue, `<queue>.sent` and the older `<queue>.sent.1`, together at most MOST_BYTES. A line is
JSON, written with one system call by the thread that calls the cloud: what was written survives the process, however
it ends, and no request leaves before its line. Secrets are masked; the SHA-256 is that of the bytes as they were sent.
What cannot be written is counted, and never keeps a request from leaving. With debug lines on, each body is logged
as well, here, before it is sent. `read` and `Tail` are for commands, in another process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from observer_agent.clock import Clock, iso, parse_iso
from observer_agent.logs import HIDDEN, Throttle

log = logging.getLogger(__name__)

MOST_BYTES = 8 * 1024 * 1024
LEAST_FREE = 32 * 1024 * 1024  # bytes that are left to the queue: on a disk with less nothing is written here
BODY_MAX = 64 * 1024  # characters of a body that are kept
LINE_MAX = 16 * 1024  # characters of a body in one debug line; a longer one takes several
WARN = 3600.0
_NAMES = ("token", "secret", "password", "passwd", "apikey", "api_key", "authorization", "cookie")
_NAMED = re.compile(rf'''("[\w-]*(?:{"|".join(_NAMES)})"\s*:\s*)"(?:[^"\\]|\\.)*"''', re.I)


def path_of(buffer: Path) -> Path:
    """Where the newer of the two files lies."""
    return buffer.with_name(buffer.name + ".sent")


def older(file: Path) -> Path:
    """Where the older one lies."""
    return file.with_name(file.name + ".1")


def masked(body: bytes, redact: Callable[[str], str]) -> str:
    """A body as it may be shown: secrets that are known, and values whose names say that they are some, are hidden.

    Bytes that are no text are shown in hexadecimal digits, unless a secret can be read in them.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        readable = body.decode("latin-1")
        return f"{len(body)} bytes, hex: {body.hex()}" if redact(readable) == readable else f"{len(body)} bytes, hidden"
    text, folded = redact(text), text.casefold()
    return _NAMED.sub(rf'\1"{HIDDEN}"', text) if any(name in folded for name in _NAMES) else text


class SentLog:
    """The record, open for writing; any thread. Without a file it only writes debug lines."""

    def __init__(
        self,
        file: Path | None,
        clock: Clock,
        redact: Callable[[str], str],
        *,
        most: int = MOST_BYTES,
        least_free: int = LEAST_FREE,
    ) -> None:
        self._file = file
        self._clock = clock
        self._redact = redact
        self._most = most // 2
        self._least_free = least_free
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size = 0
        self._number = int(clock.now() * 1000)  # apart from those of the processes before
        self._warn = Throttle(clock, WARN)
        self.missed = 0

    def begin(self, method: str, to: str, path: str, body: bytes | None) -> int:
        """A request is about to leave; returns its number."""
        sent = body or b""
        text = masked(sent, self._redact)
        with self._lock:
            self._number += 1
            number = self._number
            self._write(
                {
                    "id": number,
                    "time": iso(self._clock.now()),
                    "to": to,
                    "request": f"{method} {path}",
                    "bytes": len(sent),
                    "sha256": hashlib.sha256(sent).hexdigest(),
                    "body": text[:BODY_MAX],
                    **({"cut": len(text) - BODY_MAX} if len(text) > BODY_MAX else {}),
                    **({"missed": self.missed} if self.missed else {}),
                },
            )
        if log.isEnabledFor(logging.DEBUG):
            _print(number, f"{method} {path}", text)
        return number

    def end(self, number: int, status: int, seconds: float, error: str = "") -> None:
        """The request has been answered; status 0 where it was not, and `error` says why."""
        line = {"id": number, "status": status, "seconds": round(seconds, 3), **({"error": error} if error else {})}
        with self._lock:
            self._write(line)

    def close(self) -> None:
        """Closes the file; a request after this opens it again."""
        with self._lock:
            self._shut()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            return
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        try:
            fd = self._fd
            if fd is None or self._size + len(data) > self._most:
                fd = self._open(self._file, len(data))
            room = os.fstatvfs(fd)
            if room.f_bavail * room.f_frsize < self._least_free:
                raise OSError("the room that is left on the disk is the queue's")
            written = os.write(fd, data)
            self._size += written
            if written < len(data):
                raise OSError("the disk is full")
        except OSError as error:
            self.missed += "request" in line
            self._shut()
            if self._warn.ready():
                log.warning("What is sent cannot be recorded (%s); it is sent all the same", error.strerror or error)

    def _open(self, file: Path, more: int) -> int:
        """Goes on with the file; one that has no place for so many bytes more becomes the older one."""
        self._shut()
        with suppress(FileNotFoundError):
            if file.stat().st_size + more > self._most:
                os.replace(file, older(file))
        self._fd = fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(fd).st_size
        if self._size and os.pread(fd, 1, self._size - 1) != b"\n":
            self._size += os.write(fd, b"\n")  # the line before was torn
        return fd

    def _shut(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = None


def _print(number: int, request: str, text: str) -> None:
    """One debug line for a body, or several; the number keeps equal bodies from being held back as repeats."""
    parts = [text[at : at + LINE_MAX] for at in range(0, len(text), LINE_MAX)] or ["(no body)"]
    for at, part in enumerate(parts, 1):
        piece = f" (part {at} of {len(parts)})" if len(parts) > 1 else ""
        log.debug("Request %d, %s%s: %s", number, request, piece, part, extra={"local": True})


# -- reading


@dataclass(frozen=True, slots=True)
class Sent:
    """One request that was sent. `status` is None where no answer is on record, 0 where there was none."""

    id: int
    time: str
    to: str
    request: str
    bytes: int
    sha256: str
    body: str
    cut: int = 0
    missed: int = 0
    status: int | None = None
    seconds: float | None = None
    error: str = ""


def read(file: Path, since: float = 0.0, last: int | None = None) -> list[Sent]:
    """The requests on record, oldest first: those since a moment (seconds since 1970), the last so many of them."""
    found: deque[Sent] = deque(maxlen=last)
    waiting = Joined()
    for each in (older(file), file):
        with suppress(FileNotFoundError), each.open("rb") as lines:
            found.extend(sent for line in lines for sent in waiting.take(line) if _at(sent) >= since)
    found.extend(sent for sent in waiting.left() if _at(sent) >= since)
    return sorted(found, key=lambda sent: sent.id)


class Joined:
    """Brings the two lines of a request together."""

    def __init__(self) -> None:
        self._open: dict[int, Sent] = {}

    def take(self, line: bytes) -> Iterator[Sent]:
        """A line in, the request out that it completes; a torn line is passed over."""
        try:
            row = json.loads(line)
            number = row["id"]
            if "request" in row:
                self._open[number] = Sent(**row)
            elif number in self._open:
                yield replace(self._open.pop(number), **{k: row[k] for k in ("status", "seconds", "error") if k in row})
        except (ValueError, TypeError, KeyError):
            return

    def left(self, before: float | None = None) -> Iterator[Sent]:
        """The requests without an answer, those before a moment alone if one is given; they are let go."""
        for number, sent in list(self._open.items()):
            if before is None or _at(sent) < before:
                yield self._open.pop(number)


class Tail:
    """What is added to the record from now on; follows it into the next file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._joined = Joined()
        self._rest = b""
        self._lines: Any = None
        with suppress(FileNotFoundError):
            self._lines = file.open("rb", buffering=0)
            self._lines.seek(0, os.SEEK_END)

    def more(self, patience_before: float) -> Iterator[Sent]:
        """The requests that have been answered since the last call, and those from before a moment that never were."""
        for data in self._chunks():
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                yield from self._joined.take(line)
        yield from self._joined.left(patience_before)

    def close(self) -> None:
        """Closes the file."""
        if self._lines:
            self._lines.close()

    def _chunks(self) -> Iterable[bytes]:
        while True:
            if self._lines:
                yield self._lines.read()
            try:
                now = self._file.stat()
            except FileNotFoundError:
                return
            if self._lines and os.fstat(self._lines.fileno()).st_ino == now.st_ino:
                return
            if self._lines:
                yield self._lines.read()  # what came between the read and the change of files
            self.close()
            self._lines = self._file.open("rb", buffering=0)


def _at(sent: Sent) -> float:
    return parse_iso(sent.time) or 0.0
