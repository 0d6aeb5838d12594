"""The few errors of the program, named by what happens next.

    ObserverError
    ├── ConfigError      the start stops with exit code 78 and one line for the operator
    ├── InvalidConfig    one definition is disabled with a `no_data` verdict, the others go on
    ├── DocumentError    a document of definitions cannot be read at all; the last good set stays
    ├── QueueError       the queue file refused an operation; the samples stay with the caller
    │   ├── DiskFull     ... because the disk has no room; what waits can still leave
    │   ├── Damaged      ... because the file is not what it was; it is rebuilt
    │   ├── NoPlace      ... because the directory takes no file; the queue goes elsewhere
    │   └── QueueHeld    ... because another process has it open
    └── UsageError       a command cannot do what it was asked: one line and an exit code

Everything that a network can do is an answer or a reading, never an exception.
"""

from __future__ import annotations


class ObserverError(Exception):
    """Base of all errors that this program raises on purpose."""


class ConfigError(ObserverError):
    """A setting is wrong: names the key, the value as it may be shown, and the fix."""

    def __init__(self, key: str, value: str, fix: str) -> None:
        super().__init__(f"{key}={value}: {fix}")
        self.key = key
        self.value = value
        self.fix = fix


class InvalidConfig(ObserverError):
    """A definition's configuration is not understood; the text is `field: message; ...`."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class DocumentError(ObserverError):
    """A document of definitions is not YAML, or not a document of definitions."""


class QueueError(ObserverError):
    """The queue could not store or read; nothing that it had accepted is lost by it."""


class DiskFull(QueueError):
    """The disk has no room for it; what waits in the queue is not touched."""


class Damaged(QueueError):
    """The queue file is damaged; what can be read of it is carried into a new one."""


class NoPlace(QueueError):
    """The directory of the queue file takes no file."""


class QueueHeld(QueueError):
    """Another process has the queue file open."""


class UsageError(ObserverError):
    """The command cannot do what it was asked to do."""
