"""The source type `elasticsearch` (and OpenSearch): one number of one aggregation of a search.

Rules: docs/probes/elasticsearch.md, mended by W13, W14 and W25. The search is sent with size 0. A null is no data, not
0; a search that timed out or that some shards could not answer gives no value. Redirects are not followed. The
query's text reaches no log and no detail. Runs on a probe thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from observer_agent.logs import query_label
from observer_agent.model import Reading
from observer_agent.probes import _aggregation
from observer_agent.probes._backend import (
    Auth,
    Words,
    ask,
    below,
    log_in,
    masker,
    parse_auth,
    renamed,
    shown,
    trust,
)
from observer_agent.probes._config import Fields
from observer_agent.probes._http import Request
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url, parse_url

FLAVORS: Final = ("elasticsearch", "opensearch")
LONGEST_NAME: Final = 256
TIMEOUT_MS: Final = 10_000

WORDS: Final = Words(
    auth_ref_missing=Reason.ES_AUTH_REF_MISSING,
    unauthorized=Reason.ES_UNAUTHORIZED,
    query_error=Reason.ES_QUERY_ERROR,
    server_error=Reason.ES_SERVER_ERROR,
    timeout=Reason.ES_TIMEOUT,
    unreachable=Reason.ES_UNREACHABLE,
    error=Reason.ES_ERROR,
    not_found=Reason.ES_INDEX_NOT_FOUND,
)

_PERCENTILE = re.compile(r"\d{1,3}(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class ElasticsearchConfig:
    """What to search for and which number to take; `body` is the search as JSON, `timeout` is seconds."""

    base_url: Url
    index: str
    body: str
    agg_name: str
    percentile: str | None
    flavor: str
    auth: Auth
    ca_cert_ref: str | None
    timeout: float


def parse(raw: object) -> ElasticsearchConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    url = fields.parsed("base_url", parse_url, required=True)
    index = fields.parsed("index", _index, required=True)
    body = _search(fields)
    agg_name = fields.text("agg_name", required=True, longest=LONGEST_NAME)
    percentile = fields.parsed("percentile", _percentile)
    flavor = fields.choice("flavor", FLAVORS, FLAVORS[0])
    auth = parse_auth(fields, "bearer", "basic", "api_key")
    authority = fields.env_name("ca_cert_ref")  # ours
    timeout = fields.whole("timeout_ms", 100, 60_000, TIMEOUT_MS) / 1000
    fields.done()
    base = url or Url("http", "", 80, "/")
    return ElasticsearchConfig(base, index or "", body, agg_name or "", percentile, flavor, auth, authority, timeout)


def probe(config: ElasticsearchConfig, deadline: float, tools: Tools) -> Reading:
    """One search; the value is the aggregation's."""
    run = Run(tools, deadline, Reason.ES_ERROR)
    known: dict[str, Any] = {
        "base_url": shown(config.base_url),
        "index": config.index,
        "agg_name": config.agg_name,
        "query": query_label(config.body),
    }
    try:
        url = below(config.base_url, f"/{quote(config.index, safe='')}/_search")
        headers = (*log_in(config.auth, WORDS, tools), ("Content-Type", "application/json"))
        tls = trust(config.base_url, config.ca_cert_ref, run)
        run.restart()
        hide = set(_texts(json.loads(config.body)))
        request = Request("POST", url, headers, config.body.encode())
        content = ask(request, run, WORDS, hide, tls=tls)
        _check_whole(content, masker(request, run, hide))
        value = _aggregation.value(content.get("aggregations"), config.agg_name, config.percentile)
    except Failed as failure:
        return run.failed(renamed(failure, WORDS), **known)
    return run.gave(value, **known)


def _search(fields: Fields) -> str:
    query = fields.json_object("query", required=True)
    if "query" in fields and not any(isinstance(query.get(name), Mapping) for name in ("aggs", "aggregations")):
        fields.problem("query", "must have aggs or aggregations")
    return json.dumps({**query, "size": 0}, separators=(",", ":"))


def _index(text: str) -> str:
    if not 1 <= len(text) <= LONGEST_NAME:
        raise ValueError(f"must be 1 to {LONGEST_NAME} characters long")
    if text in (".", ".."):
        raise ValueError("must be the name of an index, several with commas, or a pattern")
    return text


def _percentile(text: str) -> str:
    if not _PERCENTILE.fullmatch(text) or not text.isascii():
        raise ValueError("must be a number such as 95 or 99.9")
    return text


def _texts(value: Any) -> Iterator[str]:
    """Every text that a search holds, names of fields left out: they are what its errors speak of."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _check_whole(content: dict[str, Any], mask: Callable[[str], str]) -> None:
    """Raises Failed where the answer speaks for a part of the documents alone (W25)."""
    if content.get("timed_out") is True:
        raise Failed(Reason.ES_TIMEOUT, "the search timed out at the server: its numbers are partial", timed_out=True)
    shards = content.get("_shards")
    if not isinstance(shards, dict):
        return
    failed, total = shards.get("failed"), shards.get("total")
    if failed:
        text, said = "some shards could not answer", mask(_cause(shards))
        raise Failed(Reason.ES_SHARDS_FAILED, text, shards_failed=_count(failed), shards_total=_count(total), said=said)
    if total == 0:
        raise Failed(Reason.ES_INDEX_NOT_FOUND, "no index matches")


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, float) and value < 1e9 else None


def _cause(shards: dict[str, Any]) -> str:
    failures = shards.get("failures")
    first = failures[0] if isinstance(failures, list) and failures else None
    reason = first.get("reason") if isinstance(first, dict) else None
    kind = reason.get("type") if isinstance(reason, dict) else None
    return kind if isinstance(kind, str) else "the answer does not say why"
