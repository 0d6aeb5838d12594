"""The source type `cloudwatch`: the newest complete point of one AWS CloudWatch metric.

Rules: docs/probes/cloudwatch.md, mended by W7 and W35: the period in progress is left out, pages and partial answers
are read, all under one deadline. Needs the extra `cloudwatch` (botocore). Runs on a probe thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from observer_agent.clock import parse_iso
from observer_agent.model import Reading
from observer_agent.probes._aws import MONITORING, WORDS, Answer, call, library
from observer_agent.probes._awskeys import keys_for
from observer_agent.probes._backend import renamed
from observer_agent.probes._config import Fields
from observer_agent.probes._extract import decimal
from observer_agent.probes._reasons import Failed, Reason
from observer_agent.probes._tools import Run, Tools
from observer_agent.probes._wallet import Keys

TIMEOUT_MS: Final = 15_000
PERIODS: Final = (60, 300, 900, 3600)
LOOK_BACK: Final = 5  # periods
LOOK_BACK_LEAST: Final = 600  # seconds
PAGES: Final = 5
MOST_DIMENSIONS: Final = 30  # CloudWatch's own limit

_REGION = re.compile(r"[a-z0-9-]{1,64}")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]{1,1024}", re.ASCII)
_EXTERNAL_ID = re.compile(r"[\w+=,.@:/-]{2,1224}", re.ASCII)
_NUMBER: Final = r"(?:100(?:\.0{1,10})?|\d{1,2}(?:\.\d{1,10})?)"
_BOUND: Final = r"(?:\d{1,15}(?:\.\d{1,10})?%?)?"
_STATISTIC = re.compile(
    rf"Average|Sum|Minimum|Maximum|SampleCount|IQM|(?:p|tm|wm|tc|ts){_NUMBER}|(?:PR|TM|WM|TC|TS)\({_BOUND}:{_BOUND}\)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudwatchConfig:
    """Which metric; `period` and `timeout` are seconds."""

    region: str
    namespace: str
    metric_name: str
    dimensions: tuple[tuple[str, str], ...]
    statistic: str
    period: int
    role_arn: str | None
    external_id: str | None
    timeout: float


def parse(raw: object) -> CloudwatchConfig:
    """The typed configuration; raises InvalidConfig."""
    fields = Fields(raw)
    region = fields.parsed("region", _matches(_REGION, "must be a region such as eu-central-1"), required=True)
    namespace = fields.text("namespace", required=True, longest=255)
    metric_name = fields.text("metric_name", required=True, longest=255)
    dimensions = fields.mapping("dimensions", MOST_DIMENSIONS)
    for name, value in dimensions.items():
        if not 1 <= len(name) <= 255 or len(value) > 255:
            fields.problem("dimensions", "names must be 1 to 255 characters long, values at most 255")
    statistic = fields.parsed("statistic", _statistic) or "Average"
    period = fields.whole("period_seconds", 60, 3600, 60)
    if period not in PERIODS:
        fields.problem("period_seconds", "must be 60, 300, 900 or 3600")
    role_arn = fields.parsed("role_arn", _matches(_ROLE, "must be the ARN of an IAM role"))
    external_id = fields.parsed("external_id", _matches(_EXTERNAL_ID, "must be 2 to 1224 letters, digits and +=,.@:/-"))
    timeout = fields.whole("timeout_ms", 100, 60_000, TIMEOUT_MS) / 1000
    fields.done()
    return CloudwatchConfig(
        region=region or "", namespace=namespace or "", metric_name=metric_name or "",
        dimensions=tuple(sorted(dimensions.items())), statistic=statistic, period=period,
        role_arn=role_arn, external_id=external_id, timeout=timeout,
    )  # fmt: skip


def probe(config: CloudwatchConfig, deadline: float, tools: Tools) -> Reading:
    """The newest point of the last complete periods."""
    run = Run(tools, deadline, Reason.CLOUDWATCH_ERROR)
    known: dict[str, Any] = {
        "region": config.region,
        "namespace": config.namespace,
        "metric_name": config.metric_name,
        "statistic": config.statistic,
        "period_seconds": config.period,
    }
    try:
        library(run)
        keys = keys_for(config.region, config.role_arn, config.external_id, run)
        run.restart()
        known["sample_time"], value = _newest(config, keys, run)
    except Failed as failure:
        return run.failed(renamed(failure, WORDS), **known)
    return run.gave(value, **known)


def question(config: CloudwatchConfig, now: float) -> dict[str, str]:
    """The parameters of GetMetricData. The period that `now` falls into is not complete, and left out (W35)."""
    end = int(now // config.period * config.period)
    start = end - max(LOOK_BACK * config.period, LOOK_BACK_LEAST)
    stat = "MetricDataQueries.member.1.MetricStat"
    asked = {
        "Action": "GetMetricData",
        "StartTime": _stamp(start),
        "EndTime": _stamp(end),
        "ScanBy": "TimestampDescending",
        "MetricDataQueries.member.1.Id": "m1",
        "MetricDataQueries.member.1.ReturnData": "true",
        f"{stat}.Metric.Namespace": config.namespace,
        f"{stat}.Metric.MetricName": config.metric_name,
        f"{stat}.Period": str(config.period),
        f"{stat}.Stat": config.statistic,
    }
    for n, (name, value) in enumerate(config.dimensions, 1):
        asked[f"{stat}.Metric.Dimensions.member.{n}.Name"] = name
        asked[f"{stat}.Metric.Dimensions.member.{n}.Value"] = value
    return asked


def _newest(config: CloudwatchConfig, keys: Keys, run: Run) -> tuple[float, float]:
    """Time and value of the newest finite point; pages are followed until there is one. Raises Failed."""
    now = run.tools.clock.now()
    asked = question(config, now)
    for _ in range(PAGES):
        answer = call(MONITORING, asked, keys, config.region, run)
        points = [point for point in _points(answer) if point[0] + config.period <= now]
        if points:
            return max(points)
        token = answer.text("GetMetricDataResult/NextToken")
        if not token:
            _check_status(answer)
            break
        asked["NextToken"] = token
    raise Failed(Reason.CLOUDWATCH_NO_DATA, "no complete period has a point: is it the right metric, region, period?")


def _points(answer: Answer) -> Iterator[tuple[float, float]]:
    for result in answer.all("MetricDataResults/member")[:1]:
        times, values = result.all("Timestamps/member"), result.all("Values/member")
        for at, value in zip(times, values, strict=False):
            moment, number = parse_iso(at.root.text or ""), decimal((value.root.text or "").strip())
            if moment is not None and number is not None:
                yield moment, number


def _check_status(answer: Answer) -> None:
    """Raises Failed where CloudWatch says why there are no points."""
    status = answer.text("MetricDataResults/member/StatusCode")
    if status == "Forbidden":
        raise Failed(Reason.CLOUDWATCH_ACCESS_DENIED, "these credentials may not read this metric")
    if status == "InternalError":
        raise Failed(Reason.CLOUDWATCH_SERVER_ERROR, "CloudWatch had an error of its own with this metric")


def _stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _statistic(text: str) -> str:
    if not _STATISTIC.fullmatch(text):
        raise ValueError(
            "must be Average, Sum, Minimum, Maximum, SampleCount or one such as p99.9, tm90, IQM, PR(:300)"
        )
    return text


def _matches(pattern: re.Pattern[str], text: str) -> Any:
    def parse_text(given: str) -> str:
        if not pattern.fullmatch(given):
            raise ValueError(text)
        return given

    return parse_text
