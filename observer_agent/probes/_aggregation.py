"""The one number of an aggregation in a search's answer (docs/probes/elasticsearch.md, mended by W25). Pure.

A path is names of aggregations joined by `>`, which no name can hold, as in the engine's own `buckets_path`; the last
part may be `_count`, or end in `.metric` of an aggregation with several numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from observer_agent.probes._extract import decimal
from observer_agent.probes._reasons import Failed, Reason

MOST_NAMES: Final = 20
_NOT_FINITE: Final = ("NaN", "Infinity", "-Infinity")


def value(aggregations: object, path: str, percentile: str | None) -> float:
    """The number that a path leads to; raises Failed."""
    if not isinstance(aggregations, dict) or not aggregations:
        raise Failed(Reason.ES_AGG_NOT_FOUND, "the answer has no aggregations", available=[])
    found = _walk(aggregations, path)
    return _number(_of(found, percentile) if isinstance(found, dict) else found)


def _walk(node: dict[str, Any], path: str) -> Any:
    *parents, last = [part.strip() for part in path.split(">")] if path not in node else [path]
    for name in parents:
        child = node.get(name)
        if not isinstance(child, dict):
            raise _absent(node)
        if "buckets" in child:
            raise _unsupported("the path leads through an aggregation with many buckets")
        node = child
    if last == "_count" and parents:
        return node.get("doc_count")
    if last in node:
        return node[last]
    name, dot, metric = last.rpartition(".")
    child = node.get(name) if dot else None
    if not isinstance(child, dict):
        raise _absent(node)
    if metric not in child:
        raise _unsupported("the aggregation has no such number")
    return child[metric]


def _of(found: dict[str, Any], percentile: str | None) -> Any:
    """What stands for an aggregation: its value, a percentile of its values, or its documents' number."""
    if "value" in found:
        return found["value"]
    if "values" in found:
        return _percentile(_keyed(found["values"]), percentile)
    if "buckets" in found or "doc_count" not in found:
        raise _unsupported("the aggregation has no single number: name one with .metric, or use another")
    return found["doc_count"]


def _keyed(values: Any) -> dict[float, Any]:
    """Percentiles by number, from the keyed form or the list; `95.0_as_string` and its like are left out."""
    if isinstance(values, dict):
        pairs = [(decimal(key), each) for key, each in values.items()]
    elif isinstance(values, list):
        pairs = [(each.get("key"), each.get("value")) for each in values if isinstance(each, dict)]
    else:
        pairs = []
    return {key: each for key, each in pairs if isinstance(key, float)}


def _percentile(values: Mapping[float, Any], wanted: str | None) -> Any:
    if wanted is None and len(values) != 1:
        raise _unsupported(f"the aggregation has {len(values)} percentiles: set percentile")
    key = float(wanted) if wanted is not None else next(iter(values))
    if key not in values:
        raise _unsupported("the aggregation has no such percentile")
    return values[key]


def _number(found: Any) -> float:
    if found is None or found in _NOT_FINITE:
        raise Failed(Reason.ES_NO_DATA, "the aggregation is empty: no document has a value")
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise _unsupported("what the path leads to is no number")
    if not math.isfinite(found):
        raise Failed(Reason.ES_NO_DATA, "the aggregation gives no finite number")
    return float(found)


def _absent(node: Mapping[str, Any]) -> Failed:
    names = [str(name)[:64] for name, each in node.items() if isinstance(each, dict)][:MOST_NAMES]
    return Failed(Reason.ES_AGG_NOT_FOUND, "the answer has no aggregation of this name", available=names)


def _unsupported(text: str) -> Failed:
    return Failed(Reason.ES_AGG_UNSUPPORTED, text)
