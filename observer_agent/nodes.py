"""YAML text to plain values that remember their lines.

ruamel.yaml's pure parser composes nodes, and the values are read from those: no tag of the text ever makes an object,
every complaint can name its line, aliases are followed up to a bound. Used by `document`; runs on the caller's thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

VALUES_MAX = 200_000
DEPTH_MAX = 40


class Map(dict[str, Any]):
    """A mapping that remembers its line, and that of each key."""

    line = 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}

    def at(self, name: str) -> int:
        """The line of a field, or that of the mapping where the field is absent."""
        return self.lines.get(name, self.line)


class Complaint(Exception):
    """Something at a line is not understood."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line
        self.text = text


class Values:
    """Makes values of nodes; `warn(line, text)` hears of what is passed over."""

    def __init__(self, warn: Callable[[int, str], object]) -> None:
        self._warn = warn
        self._values = 0

    def read(self, text: str) -> Any:
        """The text's one value, None for an empty text. Raises Complaint."""
        node = _compose(text)
        return self._value(node, ()) if node is not None else None

    def _value(self, node: Any, above: tuple[int, ...]) -> Any:
        """A node as plain data; refuses what contains itself, is too deep or grows too large through aliases."""
        line = node.start_mark.line + 1
        self._values += 1
        if self._values > VALUES_MAX:
            raise Complaint(line, f"more than {VALUES_MAX} values, aliases followed: write it with fewer aliases")
        if id(node) in above or len(above) > DEPTH_MAX:
            raise Complaint(line, f"nested deeper than {DEPTH_MAX}, or in itself: write it without that alias")
        above = (*above, id(node))
        if node.id == "mapping":
            return self._map(node, line, above)
        if node.id == "sequence":
            return [self._value(each, above) for each in node.value]
        return _scalar(node)

    def _map(self, node: Any, line: int, above: tuple[int, ...]) -> Map:
        found = Map()
        found.line = line
        merged: list[Any] = []
        for key, value in node.value:
            at = key.start_mark.line + 1
            if key.id != "scalar":
                self._warn(at, "a key that is not a plain text is ignored")
            elif key.tag == "tag:yaml.org,2002:merge":
                merged += value.value if value.id == "sequence" else [value]
            elif (name := _mended(key.value)) in found:
                self._warn(at, f"the field {shown(name)} comes twice; the first one counts")
            else:
                found[name] = self._value(value, above)
                found.lines[name] = at
        for each in merged:
            self._merge(found, each, above)
        return found

    def _merge(self, found: Map, node: Any, above: tuple[int, ...]) -> None:
        """`<<`: fields of another mapping where this one has none of its own."""
        other = self._value(node, above)
        if not isinstance(other, Map):
            raise Complaint(node.start_mark.line + 1, "`<<` takes a mapping or a list of mappings")
        for name, value in other.items():
            if name not in found:
                found[name], found.lines[name] = value, other.at(name)


def _compose(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise Complaint(line, f"not YAML ({error.problem or error.context}): correct this line") from None
    except (YAMLError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise Complaint(1, f"not YAML ({type(error).__name__}): correct the text") from None
    except RecursionError:
        raise Complaint(1, "nested too deeply: write it flatter") from None


def _scalar(node: Any) -> Any:
    """None, a bool, an int, a finite float, or the text as it was written."""
    text, kind = _mended(node.value), str(node.tag).rpartition(":")[2]
    if node.style is not None or kind not in ("null", "bool", "int", "float"):
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on", "y")
    try:
        return _integer(text.replace("_", "")) if kind == "int" else _finite(text.replace("_", ""))
    except (ValueError, OverflowError):
        return text


def _mended(text: str) -> str:
    """JSON writes a character beyond 16 bits as two escapes; halves that stay alone, and NUL, cannot be stored."""
    if text.isascii() and "\0" not in text:
        return text
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")


def _integer(text: str) -> int:
    return int(text, 0) if text.lstrip("+-")[:2].lower() in ("0x", "0o", "0b") else int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def shown(value: object) -> str:
    """A name in a warning: short, on one line; no more of a value than that."""
    return "without a key" if value is None else repr(str(value)[:64])
