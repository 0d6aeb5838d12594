"""The source type `loki`: the number that an instant LogQL metric query gives.

Rules: docs/probes/loki.md, mended by W13, W14 and W36. A vector of one element or a scalar is a value; Loki's own
sample time is detail only. Redirects are not followed. The query's text reaches no log and no detail. Runs on a probe
thread.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from observer_agent.logs import query_label
from observer_agent.model import Reading
from observer_agent.probes._backend import (
    Auth,
    Words,
    ask,
    below,
    header_text,
    log_in,
    parse_auth,
    renamed,
    shown,
    trust,
)
from observer_agent.probes._config import Fields
from observer_agent.probes._extract import decimal
from observer_agent.probes._http import Request
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url, parse_url

LONGEST_QUERY: Final = 8_192
LONGEST_URL: Final = 2_000
TIMEOUT_MS: Final = 10_000
PATH: Final = "/loki/api/v1/query"

WORDS: Final = Words(
    auth_ref_missing=Reason.LOKI_AUTH_REF_MISSING,
    unauthorized=Reason.LOKI_UNAUTHORIZED,
    query_error=Reason.LOKI_QUERY_ERROR,
    server_error=Reason.LOKI_SERVER_ERROR,
    timeout=Reason.LOKI_TIMEOUT,
    unreachable=Reason.LOKI_UNREACHABLE,
    error=Reason.LOKI_ERROR,
    not_found=Reason.LOKI_ERROR,
)

# A text, or a comment; what stands in either computes nothing (W36). An open text runs to the end.
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\Z)|`[^`]*(?:`|\Z)|#[^\n]*', re.DOTALL)
_METRIC = re.compile(
    r"""(?<![\w.:]) (?:
        (?: rate | bytes_rate | rate_counter | count_over_time | bytes_over_time | absent_over_time
          | (?:sum|avg|min|max|stdvar|stddev|quantile|first|last)_over_time
          | sum | avg | min | max | count | topk | bottomk | approx_topk | stddev | stdvar | quantile | sort | sort_desc
          | vector | label_replace
        ) \s* \(
      | (?: sum | avg | min | max | count | topk | bottomk | stddev | stdvar ) \s+ (?:by|without) \s* \(
    )""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class LokiConfig:
    """What to ask and where; `timeout` is seconds."""

    base_url: Url
    query: str
    auth: Auth
    tenant_id: str | None
    ca_cert_ref: str | None
    timeout: float


def parse(raw: object) -> LokiConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    url = fields.parsed("base_url", parse_url, required=True)
    query = fields.parsed("query", metric_query, required=True)
    auth = parse_auth(fields, "bearer", "basic")
    tenant = fields.parsed("tenant_id", header_text)
    authority = fields.env_name("ca_cert_ref")  # ours
    timeout = fields.whole("timeout_ms", 100, 60_000, TIMEOUT_MS) / 1000
    fields.done()
    return LokiConfig(url or Url("http", "", 80, "/"), query or "", auth, tenant, authority, timeout)


def metric_query(text: str) -> str:
    """A query that gives numbers; raises ValueError for one that would give log lines."""
    if len(text) > LONGEST_QUERY:
        raise ValueError(f"must be at most {LONGEST_QUERY} characters long")
    if not _METRIC.search(_TEXT.sub(" ", text)):
        raise ValueError("must be a metric query: wrap the log query, as in sum(count_over_time({...}[5m]))")
    return text


def probe(config: LokiConfig, deadline: float, tools: Tools) -> Reading:
    """One instant query; the value is its one sample's."""
    run = Run(tools, deadline, Reason.LOKI_ERROR)
    known: dict[str, Any] = {"base_url": shown(config.base_url), "query": query_label(config.query)}
    try:
        request = _request(config, tools)
        tls = trust(config.base_url, config.ca_cert_ref, run)
        run.restart()
        text, known["sample_time"] = _sample(ask(request, run, WORDS, (config.query,), tls=tls), known)
        value = decimal(text)
        if value is None:
            raise Failed(Reason.LOKI_NO_DATA, "the query gives no finite number (NaN, +Inf or -Inf)")
    except Failed as failure:
        return run.failed(renamed(failure, WORDS), **known)
    return run.gave(value, **known)


def _request(config: LokiConfig, tools: Tools) -> Request:
    headers = log_in(config.auth, WORDS, tools)
    if config.tenant_id:
        headers = (*headers, ("X-Scope-OrgID", config.tenant_id))
    url = below(config.base_url, PATH)
    form = urlencode({"query": config.query, "limit": "1"})  # the limit is for log lines, should they come after all
    short = f"{url.target}{'&' if '?' in url.target else '?'}{form}"
    if len(url.authority) + len(short) <= LONGEST_URL:
        return Request("GET", url._replace(target=short), headers)
    headers = (*headers, ("Content-Type", "application/x-www-form-urlencoded"))
    return Request("POST", url, headers, form.encode())


def _sample(content: dict[str, Any], known: dict[str, Any]) -> tuple[str, float | None]:
    """The number as text and Loki's time for it; raises Failed."""
    data = content.get("data")
    data = data if isinstance(data, dict) else {}
    kind, result = data.get("resultType"), data.get("result")
    known["result_type"] = kind[:20] if isinstance(kind, str) else None
    if content.get("status") != "success" or not isinstance(result, list):
        raise Failed(Reason.LOKI_BAD_RESPONSE, "the answer is not a query's success")
    if kind == "streams":
        raise Failed(Reason.LOKI_NOT_AGGREGATION, "the query gives log lines, not a number: aggregate it")
    if kind == "scalar":
        return _point(result)
    if kind != "vector":
        raise Failed(Reason.LOKI_BAD_RESPONSE, "the query gives neither a vector nor a scalar")
    if not result:
        raise Failed(Reason.LOKI_NO_DATA, "the query gives nothing")
    if len(result) > 1:
        text = f"the query gives {len(result)} series: aggregate it"
        raise Failed(Reason.LOKI_MULTIPLE_SERIES, text, series=len(result))
    return _point(result[0].get("value") if isinstance(result[0], dict) else None)


def _point(point: object) -> tuple[str, float | None]:
    """A pair of time and text. A time that is none costs the detail, not the value (W36)."""
    if not isinstance(point, list) or len(point) != 2 or not isinstance(point[1], str):
        raise Failed(Reason.LOKI_NO_DATA, "the query gives no plain number")
    return point[1], point[0] if isinstance(point[0], float) else None
