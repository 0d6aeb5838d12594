"""Scrape mode of the source type `prometheus`: one sample of a text exposition, for hosts without a Prometheus.

Ours. `scrape_url`, `metric`, `labels` (a subset match) and `header_refs` in; exactly one sample's value out. No other
credentials are sent and redirects are not followed. Runs on a probe thread.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

from observer_agent.model import Reading
from observer_agent.probes import _secrets
from observer_agent.probes._config import Fields
from observer_agent.probes._exposition import Malformed, Sample, select
from observer_agent.probes._headers import Pairs, parse_refs
from observer_agent.probes._http import Request, exchange
from observer_agent.probes._promhttp import bad_response, check_status, renamed
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._url import Url, parse_url

BODY_LIMIT: Final = 16_777_216
MOST_LABELS: Final = 64
MOST_COUNTED: Final = 100
LOOK_UP: Final = 256  # lines between two looks at the clock

_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,1023}")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,1023}")
_ACCEPT: Final = (("Accept", "text/plain;version=0.0.4;q=0.9,*/*;q=0.1"),)


@dataclass(frozen=True, slots=True)
class ScrapeConfig:
    """What to fetch and which sample to pick; `timeout` is seconds."""

    url: Url
    metric: str
    labels: tuple[tuple[str, str], ...]
    header_refs: Pairs
    timeout: float


def parse(fields: Fields, timeout_ms: int) -> ScrapeConfig:
    """The typed configuration; raises InvalidConfig."""
    url = fields.parsed("scrape_url", parse_url, required=True)
    metric = fields.text("metric", required=True)
    labels = fields.mapping("labels", MOST_LABELS)
    refs = parse_refs(fields)
    timeout = fields.timeout(timeout_ms)
    if metric and not _METRIC.fullmatch(metric):
        fields.problem("metric", "is not a metric's name (letters, digits, _ and :)")
    for name in labels:
        if not _LABEL.fullmatch(name):
            fields.problem(f"labels.{ascii(name)[1:-1][:64]}", "is not a label's name")
    fields.done()
    return ScrapeConfig(url or Url("http", "", 80, "/"), metric or "", tuple(labels.items()), refs, timeout)


def probe(config: ScrapeConfig, deadline: float, tools: Tools) -> Reading:
    """One scrape; the value is the sample's."""
    run = Run(tools, deadline, Reason.AGENT_INTERNAL)
    known: dict[str, Any] = {}
    try:
        headers = (*_ACCEPT, *_secrets.headers(config.header_refs, tools))
        run.restart()
        page = _fetch(Request("GET", config.url, headers), run, known)
        sample = _pick(config, page, run)
    except Failed as failure:
        return run.failed(renamed(failure), **known)
    if sample.timestamp is not None:
        known["sample_time"] = sample.timestamp
    return run.gave(sample.value, **known)


def _fetch(request: Request, run: Run, known: dict[str, Any]) -> bytes:
    tls = run.tools.contexts.system(True, run) if request.url.scheme == "https" else None
    with exchange(request, run, tls) as response:
        known["status"] = response.status
        check_status(response.status)
        body = response.plain_body(BODY_LIMIT + 1)
    known["body_bytes"] = len(body)
    if len(body) > BODY_LIMIT:
        raise Failed(Reason.BODY_TOO_LARGE, f"the page has more than {BODY_LIMIT} bytes")
    return body


def _pick(config: ScrapeConfig, page: bytes, run: Run) -> Sample:
    found: list[Sample] = []
    try:
        for n, sample in enumerate(select(page, config.metric, dict(config.labels))):
            if n % LOOK_UP == 0:
                run.left()
            if sample:
                found.append(sample)
            if len(found) == MOST_COUNTED:
                break
    except Malformed:
        raise bad_response(f"a line of {config.metric} is not understood") from None
    if not found:
        raise Failed(Reason.NO_DATA_FOR_QUERY, "no sample of this name and these labels is on the page")
    if len(found) > 1:
        text = f"{len(found)} samples match: add labels until one is left"
        raise Failed(Reason.PROM_MULTIPLE_SERIES, text, series=len(found))
    if not math.isfinite(found[0].value):
        raise Failed(Reason.NO_DATA_FOR_QUERY, "the sample is not a finite number")
    return found[0]
