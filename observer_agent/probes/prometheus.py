"""The source type `prometheus`: the number that an instant query gives, or one sample of a scraped page.

Rules: docs/probes.md, mended by W7, W11, W13, W14 and W20; scrape mode (`_scrape.py`) is ours. A vector of one element
or a scalar is a value; the backend's sample time is detail only. Redirects are not followed (`prom_redirect`): the
agent's credentials go to the configured origin and nowhere else. The query's text reaches no log and no detail. Runs
on a probe thread.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from observer_agent.logs import query_label
from observer_agent.model import Reading
from observer_agent.probes import _scrape
from observer_agent.probes._config import Fields
from observer_agent.probes._extract import decimal
from observer_agent.probes._http import Request, exchange
from observer_agent.probes._promauth import auth_headers
from observer_agent.probes._promhttp import bad_response, check_status, renamed
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._scrape import ScrapeConfig
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url, parse_url

BODY_LIMIT: Final = 1_048_576
LONGEST_URL: Final = 2_000
LONGEST_QUERY: Final = 100_000
TIMEOUT_MS: Final = 10_000
WARNINGS: Final = 3

_QUOTED = re.compile(r"\"[^\"]*\"?|'[^']*'?|`[^`]*`?|\{[^}]*\}?")


@dataclass(frozen=True, slots=True)
class QueryConfig:
    """An instant query; `url` None means the agent-wide Prometheus. `timeout` is seconds."""

    query: str
    url: Url | None
    timeout: float


class Answer(NamedTuple):
    """What an instant query gave: the number as text, the backend's sample time, its warnings."""

    text: str
    sample_time: float | None
    warnings: tuple[str, ...]


def parse(raw: object) -> QueryConfig | ScrapeConfig:
    """The typed configuration of a query, or of a scrape where there is a `scrape_url`; raises InvalidConfig."""
    fields = Fields(raw)
    if "scrape_url" in fields:
        return _scrape.parse(fields, TIMEOUT_MS)
    query = fields.text("query", required=True, longest=LONGEST_QUERY)
    url = fields.parsed("prometheus_url", lambda text: parse_url(text) if text.strip() else None)
    timeout = fields.timeout(TIMEOUT_MS)
    fields.done()
    return QueryConfig(query or "", url, timeout)


def probe(config: QueryConfig | ScrapeConfig, deadline: float, tools: Tools) -> Reading:
    """One query or one scrape."""
    if isinstance(config, ScrapeConfig):
        return _scrape.probe(config, deadline, tools)
    run = Run(tools, deadline, Reason.AGENT_INTERNAL)
    known: dict[str, Any] = {"query": query_label(config.query)}
    try:
        request = _request(config, tools)
        run.restart()
        answer = _ask(request, run, known)
    except Failed as failure:
        return run.failed(renamed(failure), **known)
    value = decimal(answer.text)
    if answer.warnings:
        known["warnings"] = [_without_query(text, config.query) for text in answer.warnings[:WARNINGS]]
    if answer.sample_time is not None:
        known["sample_time"] = answer.sample_time
    if value is None:
        infinite = Failed(Reason.NO_DATA_FOR_QUERY, "the query gives no finite number (NaN, +Inf or -Inf)")
        return run.failed(infinite, **known)
    return run.gave(value, **known)


def query_url(url: Url) -> Url:
    """Where queries go: a path prefix and query parameters stay, `/api/v1/query` is never doubled."""
    path, _, rest = url.target.partition("?")
    path = path.rstrip("/")
    for tail in ("/api/v1/query", "/api/v1"):
        path = path.removesuffix(tail)
    return url._replace(target=f"{path}/api/v1/query" + (f"?{rest}" if rest else ""))


def _request(config: QueryConfig, tools: Tools) -> Request:
    own = _own_url(tools, needed=config.url is None)
    url = config.url or own
    if url is None:
        raise Failed(Reason.PROMETHEUS_URL_MISSING, "set PROMETHEUS_SERVER_URL or the metric's prometheus_url")
    headers = auth_headers(tools) if own and own.origin == url.origin else ()
    at = query_url(url)
    form = urlencode({"query": config.query})
    short = f"{at.target}{'&' if '?' in at.target else '?'}{form}"
    if len(at.authority) + len(short) <= LONGEST_URL:
        return Request("GET", at._replace(target=short), headers)
    headers = (*headers, ("Content-Type", "application/x-www-form-urlencoded"))
    return Request("POST", at, headers, form.encode())


def _own_url(tools: Tools, needed: bool) -> Url | None:
    """The agent-wide Prometheus; one that cannot be understood matters only where it is needed."""
    text = (tools.settings.prometheus_server_url or "").strip()
    if not text:
        return None
    try:
        return parse_url(text)
    except ValueError as error:
        if needed:
            raise Failed(Reason.INVALID_PROMETHEUS_URL, f"PROMETHEUS_SERVER_URL {error}") from None
        return None


def _ask(request: Request, run: Run, known: dict[str, Any]) -> Answer:
    tls = run.tools.contexts.system(True, run) if request.url.scheme == "https" else None
    with exchange(request, run, tls) as response:
        known["status"] = response.status
        check_status(response.status)
        body = response.plain_body(BODY_LIMIT + 1)
    if len(body) > BODY_LIMIT:
        raise Failed(Reason.BODY_TOO_LARGE, f"the answer has more than {BODY_LIMIT} bytes")
    return _understand(body)


def _understand(body: bytes) -> Answer:
    try:
        content = json.loads(body, parse_int=float)
    except (ValueError, RecursionError):
        raise bad_response("the answer is not JSON: is this a Prometheus?") from None
    if not isinstance(content, dict) or content.get("status") not in ("success", None):
        raise bad_response("the answer is not a query's success")
    data = content.get("data")
    data = data if isinstance(data, dict) else {}
    point = _point(data.get("resultType"), data.get("result"))
    warnings = [*_texts(content.get("warnings")), *_texts(content.get("infos"))]
    return Answer(point[1] if isinstance(point[1], str) else "", _time(point[0]), tuple(warnings))


def _point(kind: object, result: object) -> list[Any]:
    """The one [time, value] of a scalar or of a vector of one element; raises Failed."""
    if not isinstance(result, list) or not result or kind not in ("vector", "scalar", None):
        raise Failed(Reason.NO_DATA_FOR_QUERY, "the query gives nothing")
    if kind == "scalar":
        point: object = result
    elif len(result) > 1:
        raise Failed(
            Reason.PROM_MULTIPLE_SERIES, f"the query gives {len(result)} series: aggregate it", series=len(result)
        )
    else:
        point = result[0].get("value") if isinstance(result[0], dict) else None
    if not isinstance(point, list) or len(point) != 2:
        raise Failed(Reason.NO_DATA_FOR_QUERY, "the query gives no plain number")
    return point


def _time(value: object) -> float | None:
    return value if isinstance(value, float) else None


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _without_query(text: str, query: str) -> str:
    """A warning without what it quotes of the query."""
    return _QUOTED.sub("...", text.replace(query, query_label(query)))[:200]
