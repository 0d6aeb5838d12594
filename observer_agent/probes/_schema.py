"""The schemas of custom probes' configurations: a small part of JSON Schema, strict, with its defaults applied (W38).

A schema and a value in, the value with its defaults and what is wrong with it out. Keywords: type, properties,
required, additionalProperties, items, enum, minimum, maximum, minLength, maxLength, minItems, maxItems, pattern,
default, title, description. Any other is refused when the probe is loaded, never passed over. Unknown keys of a
configuration are refused unless additionalProperties is true. Pure.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

DEEPEST: Final = 8

_TYPES: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {
        "object": (dict,),
        "array": (list,),
        "string": (str,),
        "boolean": (bool,),
        "integer": (int,),
        "number": (int, float),
    }
)
_NUMBERS: Final = ("minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
_KEYWORDS: Final = frozenset(
    (
        "type", "properties", "required", "additionalProperties", "items", "enum", "pattern", "default", "title",
        "description", *_NUMBERS,
    )
)  # fmt: skip


def check(schema: object, at: str = "config_schema", depth: int = 0) -> None:
    """Raises ValueError for a schema that is not understood."""
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        raise ValueError(f"{at} must be an object, and not too deep")
    for keyword in schema:
        if keyword not in _KEYWORDS:
            raise ValueError(f"{at}: the keyword {ascii(keyword)[:40]} is not known")
    if schema.get("type") not in _TYPES:
        raise ValueError(f"{at}.type must be one of {', '.join(_TYPES)}")
    if not all(_is_number(schema.get(name, 0)) for name in _NUMBERS):
        raise ValueError(f"{at}: a bound is no number")
    _check_texts(schema, at)
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise ValueError(f"{at}.properties must be an object")
    for name, inner in properties.items():
        check(inner, f"{at}.{name}", depth + 1)
    if "items" in schema:
        check(schema["items"], f"{at}.items", depth + 1)
    if "default" in schema and list(problems(schema, filled(schema, schema["default"]), "default")):
        raise ValueError(f"{at}.default does not fit its own schema")


def _check_texts(schema: Mapping[str, Any], at: str) -> None:
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise ValueError(f"{at}.required must be a list of names")
    if not isinstance(schema.get("enum", []), list):
        raise ValueError(f"{at}.enum must be a list")
    try:
        re.compile(schema.get("pattern", ""))
    except (re.error, TypeError):
        raise ValueError(f"{at}.pattern must be a regular expression") from None


def filled(schema: Mapping[str, Any], value: Any) -> Any:
    """The value with every default that it lacks; null equals absent in objects. The value itself is left alone."""
    if isinstance(value, dict) and schema.get("type") == "object":
        out = {name: each for name, each in value.items() if each is not None}
        for name, inner in schema.get("properties", {}).items():
            if name not in out and "default" in inner:
                out[name] = copy.deepcopy(inner["default"])
            if name in out:
                out[name] = filled(inner, out[name])
        return out
    if isinstance(value, list) and "items" in schema:
        return [filled(schema["items"], each) for each in value]
    return value


def problems(schema: Mapping[str, Any], value: Any, at: str = "") -> Iterator[str]:
    """What is wrong with a filled value, as `field: message`; values are never quoted."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{at or 'probe_config'}: must be of type {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: is none of the values that it may have"
    yield from _bounds(schema, value, at)
    if isinstance(value, dict):
        yield from _members(schema, value, at)
    elif isinstance(value, list) and "items" in schema:
        for n, each in enumerate(value):
            yield from problems(schema["items"], each, f"{at}[{n}]")


def _members(schema: Mapping[str, Any], value: dict[str, Any], at: str) -> Iterator[str]:
    dot = f"{at}." if at else ""
    properties = schema.get("properties", {})
    for name in schema.get("required", []):
        if name not in value:
            yield f"{dot}{name}: is required"
    for name, each in value.items():
        if name in properties:
            yield from problems(properties[name], each, f"{dot}{name}")
        elif schema.get("additionalProperties") is not True:
            yield f"{dot}{ascii(name)[1:-1][:64]}: is not a known field"


def _bounds(schema: Mapping[str, Any], value: Any, at: str) -> Iterator[str]:
    if isinstance(value, int | float):
        if not math.isfinite(value):
            yield f"{at}: must be a finite number"
        size, low, high = value, "minimum", "maximum"
    elif isinstance(value, str | list):
        low, high = ("minLength", "maxLength") if isinstance(value, str) else ("minItems", "maxItems")
        size = len(value)
    else:
        return
    if size < schema.get(low, size):
        yield f"{at}: {low} is {schema[low]}"
    if size > schema.get(high, size):
        yield f"{at}: {high} is {schema[high]}"
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        yield f"{at}: does not match its pattern"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
