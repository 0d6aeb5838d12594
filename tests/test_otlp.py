"""The source type `otlp`: what senders push, what is kept of it, and which number a definition gets."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import math
import random
import socket
import struct
import threading
import time
import zlib

import pytest

from observer_agent import probes
from observer_agent.clouds.observer import encode_health
from observer_agent.config import load
from observer_agent.errors import InvalidConfig
from observer_agent.model import Fault, Health
from observer_agent.probes import Prober, Receiver, _otlppoints, _otlpwire
from observer_agent.probes._otlp import Unusable, listen_place
from observer_agent.probes._otlpserver import HANDLERS
from tests.fakes import FakeClock
from tests.servers import make_tools
from tests.test_agent import cloud, definition, start  # noqa: F401  fixtures

NOW = 1_800_000_000.0
DELTA, CUMULATIVE = 1, 2


class Bench:
    """A receiver that listens on a free port, and a prober that reads it."""

    def __init__(self, clock=None, **env):
        self.settings = load({"OBSERVER_OTLP_LISTEN_ADDR": "127.0.0.1:0", **env}, to_run=False)
        self.tools = make_tools(clock=clock)
        self.receiver = self.tools.otlp = Receiver(self.settings, self.tools.clock)
        self.prober = Prober(self.tools)
        self.wants = []

    def want(self, name="m", **config):
        config = probes.parse("otlp", {"metric_name": name, **config})
        self.wants.append(config.want)
        self.receiver.want(self.wants)
        return config

    def look(self, name="m", **config):
        return self.prober.look("otlp", self.want(name, **config))

    @property
    def place(self):
        host, _, port = self.receiver.stats()["listen_addr"].rpartition(":")
        return host.strip("[]"), int(port)

    def send(self, body, kind="application/json", path="/v1/metrics", method="POST", **headers):
        body = json.dumps(body).encode() if isinstance(body, dict | list) else body
        line = http.client.HTTPConnection(*self.place, timeout=20)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            line.request(method, path, body, {"Content-Type": kind, **names})
            answer = line.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            line.close()

    def push(self, *metrics, resource=None, scope=None):
        assert self.send(request(*metrics, resource=resource, scope=scope))[0] == 200


@pytest.fixture
def bench():
    made = []

    def _bench(clock=None, **env):
        made.append(Bench(clock, **env))
        return made[-1]

    before = set(threading.enumerate())
    yield _bench
    for each in made:
        each.receiver.stop()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread.name


def attributes(**found):
    return [{"key": key, "value": value} for key, value in found.items()]


def words(**found):
    return attributes(**{key: {"stringValue": value} for key, value in found.items()})


def request(*metrics, resource=None, scope=None):
    scoped = {"scope": {"name": "s", "attributes": scope or []}, "metrics": list(metrics)}
    return {"resourceMetrics": [{"resource": {"attributes": resource or []}, "scopeMetrics": [scoped]}]}


def point(at=NOW, **fields):
    return {"timeUnixNano": str(int(at * 1e9)), **fields}


def gauge(*points, name="m"):
    return {"name": name, "gauge": {"dataPoints": list(points)}}


def histogram(*points, name="m", temporality=CUMULATIVE):
    return {"name": name, "histogram": {"dataPoints": list(points), "aggregationTemporality": temporality}}


def buckets(counts, bounds, **more):
    return point(bucketCounts=[str(n) for n in counts], explicitBounds=bounds, count=str(sum(counts)), **more)


def exponential(**fields):
    fields = point(**{"count": "0", "scale": 0, **fields})
    return {"name": "m", "exponentialHistogram": {"dataPoints": [fields], "aggregationTemporality": DELTA}}


# -- configuration


def test_the_defaults():
    config = probes.parse("otlp", {"metric_name": "m"})
    assert (config.want.metric_name, config.want.filters) == ("m", ())
    assert (config.aggregation, config.staleness) == ("latest", 120.0)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({}, "metric_name: is required"),
        ({"metric_name": ""}, "metric_name: must not be empty"),
        ({"metric_name": "x" * 257}, "metric_name: must be at most 256"),
        ({"attribute_filters": {"": "x"}}, "attribute_filters: keys have 1 to 128"),
        ({"attribute_filters": {"k" * 129: "x"}}, "attribute_filters: keys have 1 to 128"),
        ({"attribute_filters": {"k": "x" * 513}}, "attribute_filters: keys have 1 to 128"),
        ({"attribute_filters": {"k": 7}}, "attribute_filters.k: must be a text"),
        ({"aggregation": "p90"}, "aggregation: must be one of"),
        ({"staleness_ms": 999}, "staleness_ms: must be a whole number"),
        ({"staleness_ms": 86_400_001}, "staleness_ms: must be a whole number"),
        ({"url": "http://x"}, "url: is not a known field"),
    ],
)
def test_a_wrong_configuration_names_its_field(config, field):
    config = config if "metric_name" in config or not config else {"metric_name": "m", **config}
    with pytest.raises(InvalidConfig, match=field):
        probes.parse("otlp", config)


def test_the_longest_that_may_be():
    probes.parse("otlp", {"metric_name": "x" * 256, "attribute_filters": {"k" * 128: "x" * 512, "e": ""}})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:4318", ("127.0.0.1", 4318)),
        (":4318", ("127.0.0.1", 4318)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:4318", ("::1", 4318)),
        ("0.0.0.0:4318", ("0.0.0.0", 4318)),
    ],
)
def test_where_to_listen(text, place):
    assert listen_place(text) == place


@pytest.mark.parametrize("text", ["4318", "127.0.0.1", "host.example:4318", "127.0.0.1:70000", "1:-1", "[::1]", ""])
def test_where_nothing_can_listen(text):
    with pytest.raises(Unusable, match="OBSERVER_OTLP_LISTEN_ADDR"):
        listen_place(text)


# -- reasons


def test_otlp_receiver_disabled(bench):
    made = bench(OBSERVER_OTLP_DISABLE="true")
    reading = made.look()
    assert (reading.reason, reading.fault) == ("otlp_receiver_disabled", Fault.CONFIG)
    assert made.receiver.stats() is None


def test_otlp_no_samples(bench):
    made = bench()
    assert (made.look().reason, made.look().fault) == ("otlp_no_samples", Fault.CONFIG)
    made.push(gauge(point(asDouble=1), name="another"))
    assert made.look().reason == "otlp_no_samples"


def test_a_command_has_no_receiver():
    reading = Prober(make_tools()).look("otlp", probes.parse("otlp", {"metric_name": "m"}))
    assert reading.reason == "otlp_no_samples"
    assert "running agent" in reading.detail["error"]


def test_otlp_stale(bench):
    clock = FakeClock(NOW)
    made = bench(clock)
    made.want(staleness_ms=60_000)
    made.push(gauge(point(NOW - 10, asDouble=1)))
    clock.advance(50)
    assert made.look(staleness_ms=60_000).value == 1
    clock.advance(0.5)
    reading = made.look(staleness_ms=60_000)
    assert (reading.reason, reading.fault) == ("otlp_stale", Fault.TARGET)
    assert (reading.detail["age_ms"], reading.detail["staleness_ms"]) == (60_500, 60_000)


@pytest.mark.parametrize(
    ("metric", "aggregation", "kind"),
    [
        (gauge(point()), "latest", "gauge"),
        (gauge(point(asDouble=5, flags=1)), "latest", "gauge"),
        (histogram(point(count="0", sum=0)), "mean", "histogram"),
        (histogram(point(count="3")), "sum", "histogram"),
        (histogram(point(count="3", sum=1)), "p50", "histogram"),
        (exponential(scale=-2000, positive={"offset": 1, "bucketCounts": [1]}), "p50", "exponential_histogram"),
        ({"name": "m", "summary": {"dataPoints": [point(count="4", sum=8)]}}, "p50", "summary"),
    ],
)  # fmt: skip
def test_otlp_aggregation_unavailable(bench, metric, aggregation, kind):
    made = bench(FakeClock(NOW))
    made.want(aggregation=aggregation)
    made.push(metric)
    reading = made.look(aggregation=aggregation)
    assert (reading.reason, reading.fault) == ("otlp_aggregation_unavailable", Fault.CONFIG)
    assert (reading.detail["data_point_kind"], reading.detail["aggregation"]) == (kind, aggregation)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("0.0.0.0:0", "OBSERVER_OTLP_BEARER_TOKEN"),
        ("[::]:0", "OBSERVER_OTLP_BEARER_TOKEN"),
        ("nonsense", "LISTEN_ADDR"),
    ],
)
def test_push_source_init_failed(bench, caught, address, text):
    made = bench(OBSERVER_OTLP_LISTEN_ADDR=address)
    reading = made.look()
    assert (reading.reason, reading.fault) == ("push_source_init_failed", Fault.AGENT)
    assert text in reading.detail["error"]
    assert made.receiver.stats() is None
    made.look()
    assert (
        len([line for line in caught.messages if line.startswith(f"OTLP metrics cannot be received on {address}")]) == 1
    )


def test_an_empty_token_is_none_and_is_not_reported_as_one(bench):
    """W28."""
    made = bench(OBSERVER_OTLP_LISTEN_ADDR="0.0.0.0:0", OBSERVER_OTLP_BEARER_TOKEN="  ")
    assert made.look().reason == "push_source_init_failed"
    made = bench(OBSERVER_OTLP_BEARER_TOKEN="")
    made.look()
    assert made.receiver.stats()["bearer_required"] is False


def test_a_port_in_use_is_tried_again(bench):
    clock = FakeClock(NOW)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made = bench(clock, OBSERVER_OTLP_LISTEN_ADDR=f"127.0.0.1:{taken.getsockname()[1]}")
        reading = made.look()
        assert (reading.reason, reading.detail["error"]) == ("push_source_init_failed", "Address already in use")
    clock.advance(5)
    assert made.look().reason == "otlp_no_samples"


# -- values


@pytest.mark.parametrize("aggregation", ["latest", "count", "sum", "mean", "p50", "p95", "p99"])
def test_a_gauge_is_its_number_whatever_the_aggregation(bench, aggregation):
    made = bench(FakeClock(NOW))
    made.want(aggregation=aggregation)
    made.push(gauge(point(asDouble=2.5)))
    assert made.look(aggregation=aggregation).value == 2.5


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"asInt": "-7"}, -7), ({"asInt": 7}, 7), ({"asDouble": "1e3"}, 1000), ({"value": 3}, 3),
        ({"asDouble": "Infinity"}, math.inf), ({"asDouble": None, "asInt": "9007199254740993"}, 9007199254740992),
    ],
)  # fmt: skip
def test_numbers_in_json(bench, fields, value):
    made = bench(FakeClock(NOW))
    made.want()
    made.push(gauge(point(**fields)))
    assert made.look().value == value


@pytest.mark.parametrize(
    ("aggregation", "value"),
    [("count", 10), ("sum", 40), ("mean", 4), ("latest", 4), ("p50", 5), ("p95", 10), ("p99", 10)],
)
def test_a_histogram(bench, aggregation, value):
    made = bench(FakeClock(NOW))
    made.want(aggregation=aggregation)
    made.push(histogram(buckets([4, 2, 3, 1], [4, 6, 10], sum=40)))
    assert made.look(aggregation=aggregation).value == value


def test_the_middle_of_a_bucket(bench):
    made = bench(FakeClock(NOW))
    made.want(aggregation="p50")
    made.push(histogram(buckets([0, 10, 0], [100, 200], sum=1500)))
    assert made.look(aggregation="p50").value == 150


@pytest.mark.parametrize(
    ("aggregation", "value"), [("count", 8), ("sum", -4), ("mean", -0.5), ("p50", 0.25), ("p95", 3.2), ("p99", 3.84)]
)
def test_an_exponential_histogram(bench, aggregation, value):
    """Scale 0: one in [-2, -1], four in [-0.5, 0.5], two in (1, 2], one in (2, 4]."""
    made = bench(FakeClock(NOW))
    made.want(aggregation=aggregation)
    half = {"positive": {"offset": 0, "bucketCounts": ["2", "1"]}, "negative": {"offset": 0, "bucketCounts": [1]}}
    made.push(exponential(count="8", sum=-4, zeroCount=4, zeroThreshold=0.5, **half))
    assert made.look(aggregation=aggregation).value == pytest.approx(value)


def test_zeros_alone(bench):
    made = bench(FakeClock(NOW))
    made.want(aggregation="p99")
    made.push(exponential(count="3", zeroCount=3, zeroThreshold=0.5))
    assert made.look(aggregation="p99").value == 0


@pytest.mark.parametrize("scale", [-3, 0, 1, 5, 7])
def test_quantiles_of_exponential_histograms_are_within_their_bucket(bench, scale):
    made = bench(FakeClock(NOW))
    made.want(aggregation="p95")
    chance, base = random.Random(scale), 2 ** (2**-scale)
    values = sorted(chance.uniform(1, 50) for _ in range(500))
    at = [math.ceil(math.log(value, base)) - 1 for value in values]
    counts = [0] * (max(at) - min(at) + 1)
    for each in at:
        counts[each - min(at)] += 1
    made.push(exponential(count="500", scale=scale, positive={"offset": min(at), "bucketCounts": counts}))
    true = values[474]
    assert true / base <= made.look(aggregation="p95").value <= true * base


# -- W26


def test_w26_a_histogram_without_a_sum_has_no_mean(bench):
    made = bench(FakeClock(NOW))
    made.want(aggregation="mean")
    made.push(histogram(buckets([4, 2], [4])))
    assert made.look(aggregation="mean").reason == "otlp_aggregation_unavailable"
    assert made.look(aggregation="count").value == 6


@pytest.mark.parametrize(("least", "value"), [({}, -5), ({"min": -9.0}, -7), ({"min": 3}, -5)])
def test_w26_the_first_bucket_of_negative_bounds_does_not_begin_at_0(bench, least, value):
    made = bench(FakeClock(NOW))
    made.want(aggregation="p50")
    made.push(histogram(buckets([10, 0, 0], [-5, 5], **least)))
    assert made.look(aggregation="p50").value == value


@pytest.mark.parametrize(
    ("temporality", "word"), [(1, "delta"), (2, "cumulative"), ("AGGREGATION_TEMPORALITY_DELTA", "delta")]
)
def test_w26_a_sum_is_as_it_was_sent_and_the_detail_says_of_what(bench, temporality, word):
    made = bench(FakeClock(NOW))
    made.want()
    made.push({"name": "m", "sum": {"dataPoints": [point(asInt="41")], "aggregationTemporality": temporality}})
    reading = made.look()
    assert (reading.value, reading.detail["temporality"], reading.detail["data_point_kind"]) == (41, word, "sum")


# -- W27


def test_w27_an_older_point_that_comes_later_does_not_win(bench):
    made = bench(FakeClock(NOW))
    made.want()
    made.push(gauge(point(NOW - 5, asDouble=1)))
    made.push(gauge(point(NOW - 9, asDouble=2)))
    assert made.look().value == 1
    made.push(gauge(point(NOW - 4, asDouble=3), point(NOW - 6, asDouble=4)))
    assert made.look().value == 3
    assert made.receiver.stats()["data_points_dropped"] == 2


def test_w27_the_far_future_counts_as_now(bench):
    clock = FakeClock(NOW)
    made = bench(clock)
    made.want()
    made.push(gauge(point(NOW + 86_400 * 365, asDouble=1)))
    reading = made.look()
    assert (reading.value, reading.detail["sample_time"]) == (1, "2027-01-15T08:00:00.000Z")
    assert reading.detail["sender_clock_seconds"] == 86_400 * 365
    clock.advance(1)
    made.push(gauge(point(NOW + 1, asDouble=2)))
    assert made.look().value == 2
    made.push(gauge(point(NOW + 9e8, asDouble=3)))
    clock.advance(121)
    assert made.look().reason == "otlp_stale"


def test_w27_of_two_points_of_the_future_the_later_one_wins(bench):
    made = bench(FakeClock(NOW))
    made.want()
    made.push(gauge(point(NOW + 9000, asDouble=1), point(NOW + 8000, asDouble=2)))
    assert made.look().value == 1


def test_w27_age_goes_by_the_monotonic_clock(bench):
    clock = FakeClock(NOW)
    made = bench(clock)
    made.want()
    made.push(gauge(point(NOW, asDouble=1)))
    clock.step_wall(-3600)
    clock.advance(60)
    assert made.look().value == 1
    clock.step_wall(+9000)
    assert made.look().value == 1
    clock.step_wall(-90_000)
    clock.advance(61)
    assert made.look().reason == "otlp_stale"


def test_w27_a_sender_whose_clock_is_behind_is_named(bench):
    made = bench(FakeClock(NOW))
    made.want()
    made.push(gauge(point(NOW - 600, asDouble=1)))
    reading = made.look()
    assert (reading.reason, reading.detail["sender_clock_seconds"]) == ("otlp_stale", -600)


def test_w27_streams_that_nobody_wants_take_no_room(bench):
    made = bench(FakeClock(NOW), OBSERVER_OTLP_MAX_BUFFER_POINTS="3")
    made.want()
    made.push(gauge(point(asDouble=1)))
    made.push(*[gauge(point(asDouble=n), name=f"other-{n}") for n in range(50)])
    assert made.look().value == 1
    stats = made.receiver.stats()
    assert (stats["unique_streams"], stats["data_points_received"], stats["data_points_dropped"]) == (1, 51, 50)


def test_w27_however_many_streams_the_freshest_point_stays(bench):
    made = bench(FakeClock(NOW), OBSERVER_OTLP_MAX_BUFFER_POINTS="3")
    made.want()
    made.want("busy")
    made.push(gauge(point(NOW - 1, asDouble=1, attributes=words(pod="old"))))
    made.push(*[gauge(point(NOW - 2, asDouble=2, attributes=words(pod=str(n))), name="busy") for n in range(50)])
    assert made.look().value == 1
    assert made.receiver.stats()["unique_streams"] == 3


def test_streams_of_a_definition_are_counted(bench):
    made = bench(FakeClock(NOW))
    made.want()
    for pod in ("a", "b", "a"):
        made.push(gauge(point(asDouble=1, attributes=words(pod=pod))))
    assert made.look().detail["streams"] == 2
    assert "streams" not in made.look(attribute_filters={"pod": "a"}).detail


def test_what_is_not_wanted_any_more_is_forgotten(bench):
    made = bench(FakeClock(NOW))
    first, second = made.want(), made.want("n")
    made.push(gauge(point(asDouble=1)), gauge(point(asDouble=2), name="n"))
    made.receiver.want([second.want])
    made.receiver.want([first.want, second.want])
    assert made.prober.look("otlp", first).reason == "otlp_no_samples"
    assert made.prober.look("otlp", second).value == 2
    assert made.receiver.stats()["unique_streams"] == 1


# -- attributes


def test_attributes_are_texts_and_the_inner_ones_win(bench):
    made = bench(FakeClock(NOW))
    found = attributes(
        text={"stringValue": "x"}, yes={"boolValue": True}, no={"boolValue": False}, whole={"intValue": "-12"},
        real={"doubleValue": 1.5}, round={"doubleValue": 2.0}, none={}, list={"arrayValue": {"values": [
            {"intValue": 1}, {"stringValue": "b"}, {"arrayValue": {"values": [{"intValue": 9}]}}]}},
        map={"kvlistValue": {"values": []}}, bytes={"bytesValue": "AAEC"}, nothing=None, level={"stringValue": "point"},
    )  # fmt: skip
    filters = {
        "text": "x", "yes": "true", "no": "false", "whole": "-12", "real": "1.5", "round": "2", "none": "",
        "list": "1,b,", "map": "", "bytes": "", "nothing": "", "level": "point", "both": "scope", "outer": "resource",
    }  # fmt: skip
    made.want(attribute_filters=filters)
    outer = words(level="resource", both="resource", outer="resource")
    made.push(gauge(point(asDouble=7, attributes=found)), resource=outer, scope=words(level="scope", both="scope"))
    assert made.look(attribute_filters=filters).value == 7
    for key in filters:
        assert made.look(attribute_filters={key: "something else"}).reason == "otlp_no_samples"


# -- HTTP


def protobuf(*metrics, resource=None):
    """The same request in protobuf, by the official library."""
    from google.protobuf import json_format
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    message = ExportMetricsServiceRequest()
    json_format.ParseDict(request(*metrics, resource=resource), message)
    return message.SerializeToString()


PROTOBUF = "application/x-protobuf"


@pytest.mark.parametrize("form", ["json", "protobuf"])
@pytest.mark.parametrize("encoding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("path", ["/v1/metrics", "/", "/v1/metrics?x=1"])
def test_w28_both_forms_plain_and_compressed(bench, form, encoding, path):
    made = bench(FakeClock(NOW))
    made.want()
    metric = gauge(point(asDouble=7.5))
    body = json.dumps(request(metric)).encode() if form == "json" else protobuf(metric)
    body = {"gzip": gzip.compress, "deflate": zlib.compress, None: bytes}[encoding](body)
    headers = {"Content_Encoding": encoding} if encoding else {}
    kind = "application/json; charset=utf-8" if form == "json" else PROTOBUF
    status, answer, told = made.send(body, kind, path, **headers)
    assert (status, answer, told["Content-Type"]) == (200, b"{}" if form == "json" else b"", kind.partition(";")[0])
    assert made.look().value == 7.5


def test_a_body_in_chunks(bench):
    made = bench(FakeClock(NOW))
    made.want()
    body = json.dumps(request(gauge(point(asDouble=7.5)))).encode()
    assert made.send(iter([body[:10], body[10:50], body[50:]]))[0] == 200
    assert made.look().value == 7.5


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "FROB"])
def test_405(bench, method):
    made = bench()
    made.want()
    assert made.send(b"", method=method)[0] == 405


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs", "/metrics", "/v1/metrics/"])
def test_404(bench, path):
    made = bench()
    made.want()
    assert made.send(request(), path=path)[0] == 404


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/grpc", ""])
def test_415_of_a_type(bench, kind):
    made = bench()
    made.want()
    assert made.send(b"{}", kind=kind)[0] == 415


@pytest.mark.parametrize("encoding", ["zstd", "snappy", "br", "gzip, gzip"])
def test_415_of_an_encoding(bench, encoding):
    made = bench()
    made.want()
    status, body, _ = made.send(b"x", Content_Encoding=encoding)
    assert (status, json.loads(body)["message"]) == (415, "otlp_unsupported_encoding")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe\xfd", b'{"a": NaN}', b'{"a": Infinity}', b"[" * 100_000, b'{"a":1' + b"0" * 5000 + b"}"],
)
def test_otlp_invalid_json(bench, body):
    made = bench()
    made.want()
    status, answer, _ = made.send(body)
    assert (status, json.loads(answer)) == (400, {"code": 3, "message": "otlp_invalid_json"})


def wrapped(node):
    return request({"name": "m", "gauge": {"dataPoints": [node]}})


@pytest.mark.parametrize(
    "body",
    [
        [],
        {"resourceMetrics": {}},
        {"resourceMetrics": [7]},
        {"resourceMetrics": [{"scopeMetrics": "x"}]},
        {"resourceMetrics": [{"scopeMetrics": [{"metrics": [None]}]}]},
        request({"name": 7, "gauge": {}}),
        request({"name": "m", "gauge": []}),
        request({"name": "m", "gauge": {"dataPoints": {}}}),
        wrapped([]),
        wrapped({"asDouble": "one"}),
        wrapped({"asDouble": True}),
        wrapped({"asDouble": "1_0"}),
        wrapped({"asInt": 10**400}),
        wrapped({"timeUnixNano": -1}),
        wrapped({"timeUnixNano": 2**64}),
        wrapped({"timeUnixNano": 1.5}),
        wrapped({"asInt": 1, "attributes": [{"key": 7}]}),
        wrapped({"asInt": 1, "attributes": [{"key": "a", "value": 7}]}),
        request(histogram(buckets([1, 2], [1, 2]))),
        request(histogram(buckets([1, 2, 3], [2, 1]))),
        request(histogram(buckets([1, -2], [1]))),
        request(histogram(buckets([1, 1], ["NaN"]))),
        request(histogram(point(count=0, bucketCounts=[0] * 10_001, explicitBounds=list(range(10_000))))),
        request(exponential(scale="x")),
    ],
)
def test_otlp_malformed_payload(bench, body):
    made = bench()
    made.want()
    status, answer, _ = made.send(body)
    assert status == 400
    assert json.loads(answer)["message"].startswith("otlp_malformed_payload: ")
    assert made.receiver.stats()["requests_rejected_payload"] == 1
    assert made.look().reason == "otlp_no_samples"


@pytest.mark.parametrize("body", [{}, {"resourceMetrics": []}, {"resourceMetrics": None}, {"unknown": 1}])
def test_a_request_without_points(bench, body):
    made = bench()
    made.want()
    assert made.send(body)[0] == 200


def test_errors_in_protobuf_are_a_status(bench):
    made = bench()
    made.want()
    status, body, told = made.send(b"\x0a\xff", PROTOBUF)
    assert (status, told["Content-Type"]) == (400, PROTOBUF)
    assert body[:3] == b"\x08\x03\x12" and body[4:].startswith(b"otlp_malformed_payload") and body[3] == len(body) - 4


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic right-token"}, {"Authorization": "right-token"},
     {"Authorization": "Bearer"}, {"Authorization": "Bearer right-token-and-more"}, {"Authorization": "Bearer \xe9"}],
)  # fmt: skip
def test_401(bench, headers):
    made = bench(OBSERVER_OTLP_BEARER_TOKEN="right-token")
    made.want()
    status, _, told = made.send(request(), **headers)
    assert (status, told["WWW-Authenticate"]) == (401, "Bearer")
    stats = made.receiver.stats()
    assert (stats["requests_rejected_auth"], stats["requests_authenticated"], stats["bearer_required"]) == (1, 0, True)


def test_a_token_opens_from_everywhere(bench):
    made = bench(OBSERVER_OTLP_BEARER_TOKEN="right-token", OBSERVER_OTLP_LISTEN_ADDR="0.0.0.0:0")
    made.want()
    assert made.send(request(), Authorization="bearer right-token", Host="agent.internal:4318")[0] == 200
    assert made.receiver.stats()["requests_authenticated"] == 1


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4318", "127.0.0.1.evil.example", ""])
def test_a_web_page_that_points_its_own_name_here_is_refused(bench, host):
    made = bench()
    made.want()
    assert made.send(request(), Host=host)[0] == 403
    assert made.send(request(), Host="localhost:1")[0] == 200


def test_413_as_sent_and_as_unpacked(bench):
    made = bench(OBSERVER_OTLP_MAX_BODY_BYTES="1000")
    made.want()
    assert made.send(b" " * 1001)[0] == 413
    assert made.send(iter([b" " * 600, b" " * 600]))[0] == 413
    assert made.send(gzip.compress(b" " * 100_000), Content_Encoding="gzip")[0] == 413
    padded = json.dumps(request()).encode()
    assert made.send(padded + b" " * (1000 - len(padded)))[0] == 200
    assert made.receiver.stats()["requests_rejected_payload"] == 3


def test_w28_a_small_limit_counts(bench):
    made = bench(OBSERVER_OTLP_MAX_BODY_BYTES="10")
    made.want()
    assert made.send(b" " * 11)[0] == 413


def test_a_bomb_is_not_unpacked(bench):
    import resource

    made = bench()
    made.want()
    bomb = gzip.compress(bytes(300_000_000), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert made.send(bomb, PROTOBUF, Content_Encoding="gzip")[0] == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@pytest.mark.parametrize(
    "body",
    [b"", b"no gzip", gzip.compress(b"{}")[:-4], gzip.compress(b"{}") + b"more", gzip.compress(b"{}") * 2],
)
def test_broken_compression(bench, body):
    made = bench()
    made.want()
    status, answer, _ = made.send(body, Content_Encoding="gzip")
    assert status == 400 and json.loads(answer)["message"].startswith("otlp_malformed_payload")


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Length: x\r\n\r\n",
        b"Content-Length: -5\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX",
        b"Content-Length: 50\r\n\r\n{}",
    ],
)
def test_bodies_that_cannot_be_read(bench, raw):
    made = bench()
    made.want()
    with socket.create_connection(made.place, 10) as line:
        line.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + raw)
        line.shutdown(socket.SHUT_WR)
        assert b"".join(iter(lambda: line.recv(4096), b"")).startswith(b"HTTP/1.0 400 ")


@pytest.mark.slow
def test_slow_clients_hold_up_nobody_for_long(bench):
    made = bench()
    made.want()
    lines = [socket.create_connection(made.place, 10) for _ in range(HANDLERS + 3)]
    try:
        begun = time.monotonic()
        assert made.send(request())[0] == 200
        assert time.monotonic() - begun < 13
        assert len([t for t in threading.enumerate() if t.name == "otlp-request"]) <= HANDLERS
    finally:
        for line in lines:
            line.close()


def test_a_stop_does_not_wait_for_slow_clients(bench):
    made = bench()
    made.want()
    with socket.create_connection(made.place, 10) as line:
        line.sendall(b"POST / HTTP/1.1\r\n")
        begun = time.monotonic()
        made.receiver.stop()
        assert time.monotonic() - begun < 3
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(10) == b""


def test_it_listens_only_while_somebody_wants_points(bench):
    made = bench()
    assert made.receiver.stats() is None
    made.want()
    place = made.place
    made.receiver.want([])
    assert made.receiver.stats()["running"] is False
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place, 5)
    made.receiver.want(made.wants)
    assert made.receiver.stats()["running"] is True


def test_who_is_refused_is_told_once(bench, caught):
    made = bench()
    made.want()
    for _ in range(3):
        made.send(b"{")
    lines = [record.getMessage() for record in caught.records if record.levelname == "WARNING"]
    assert lines == ["A sender of OTLP metrics is refused (status 400: otlp_invalid_json)"]


# -- protobuf


def test_the_schema_is_that_of_the_official_descriptors():
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
    from opentelemetry.proto.common.v1 import common_pb2
    from opentelemetry.proto.metrics.v1 import metrics_pb2
    from opentelemetry.proto.resource.v1 import resource_pb2

    files = [metrics_service_pb2, common_pb2, metrics_pb2, resource_pb2]
    messages = {name: m for file in files for name, m in file.DESCRIPTOR.message_types_by_name.items()}
    messages["Buckets"] = messages["ExponentialHistogramDataPoint"].nested_types_by_name["Buckets"]
    types = {1: "double", 3: "int64", 4: "uint64", 6: "fixed64", 8: "bool", 9: "string", 12: "bytes", 13: "uint64"}
    types |= {14: "uint64", 16: "sfixed64", 17: "sint32"}
    for name, fields in _otlpwire.SCHEMA.items():
        official = {field.number: field for field in messages[name].fields}
        for number, (json_name, kind, many) in fields.items():
            field = official[number]
            assert json_name == field.json_name
            assert kind == (field.message_type.name if field.message_type else types[field.type])
            assert many is field.is_repeated, (name, json_name)


def test_both_forms_give_the_same_points():
    metrics = [
        gauge(point(asDouble=-1.5, attributes=words(a="ü"), flags=1), point(asInt="-9", attributes=words(b=""))),
        {"name": "s", "sum": {"dataPoints": [point(asInt=str(-(2**63)))], "aggregationTemporality": 2}},
        histogram(buckets([1, 2, 3], [-1.5, 2], sum=4.5, min=-3.0, attributes=attributes(n={"intValue": "-3"}))),
        exponential(
            count="9", sum=1.25, scale=-3, zeroCount="2", zeroThreshold=0.25,
            positive={"offset": -4, "bucketCounts": ["1", "300"]}, negative={"offset": 5, "bucketCounts": ["7"]},
            attributes=attributes(list={"arrayValue": {"values": [{"boolValue": True}]}}),
        ),
        {"name": "q", "summary": {"dataPoints": [point(count="3", sum=9.0)]}},
    ]  # fmt: skip
    resource = attributes(r={"doubleValue": 0.1})
    plain = _otlppoints.read(json.loads(json.dumps(request(*metrics, resource=resource))), lambda name: True)
    view = memoryview(protobuf(*metrics, resource=resource))
    packed = _otlppoints.read(_otlpwire.Packed(view, "ExportMetricsServiceRequest"), lambda name: True)
    assert len(plain.points) == plain.seen == 6
    assert packed == plain


def test_bytes_that_are_no_request_are_malformed_and_nothing_worse():
    chance = random.Random(7)
    good = protobuf(gauge(point(asDouble=1, attributes=words(a="b"))), histogram(buckets([1, 2], [1], sum=3)))
    refused = 0
    for _ in range(20_000):
        body = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            body[chance.randrange(len(body))] = chance.randrange(256)
        body = body[: chance.randint(0, len(body))]
        try:
            _otlppoints.read(_otlpwire.Packed(memoryview(body), "ExportMetricsServiceRequest"), lambda name: True)
        except _otlpwire.Malformed:
            refused += 1
    assert refused > 5_000


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a",  # no length
        b"\x0a\x05abc",  # longer than the rest
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # a number that does not end
        b"\x0b",  # a group
        b"\x08\x01",  # a wrong wire type for a known field
        b"\x11\x00\x00",  # a short fixed64
        b"\x0a\x06\x12\x04\x12\x02\x0a\x00"[:-1],
        b"\x0a\x09\x12\x07\x12\x05\x0a\x03\xff\xfe\xfd",  # a name that is no UTF-8
    ],
)
def test_malformed_protobuf(body):
    with pytest.raises(_otlpwire.Malformed):
        _otlppoints.read(_otlpwire.Packed(memoryview(body), "ExportMetricsServiceRequest"), lambda name: True)


def test_unknown_fields_are_skipped():
    strange = b"\xf8\x01\x05" + b"\xfd\x01" + b"\x00" * 4 + b"\xf9\x01" + b"\x00" * 8 + b"\xfa\x01\x02ab"
    view = memoryview(strange + protobuf(gauge(point(asDouble=1))) + strange)
    assert _otlppoints.read(_otlpwire.Packed(view, "ExportMetricsServiceRequest"), lambda name: True).seen == 1


def test_repeated_numbers_one_by_one():
    """Older senders do not pack them."""
    body = b"".join(b"\x31" + struct.pack("<Q", n) for n in (1, 2)) + b"\x39" + struct.pack("<d", 0.5)
    found = _otlpwire.opened(_otlpwire.Packed(memoryview(body), "HistogramDataPoint"))
    assert found == {"bucketCounts": [1, 2], "explicitBounds": [0.5]}


# -- the heartbeat, and the agent


def test_the_stats_of_the_heartbeat(bench):
    made = bench(FakeClock(NOW))
    made.want()
    made.push(gauge(point(asDouble=1)), gauge(point(asDouble=1), name="other"))
    made.send(b"{")
    host, port = made.place
    stats = {
        "running": True, "listen_addr": f"{host}:{port}", "bearer_required": False, "data_points_received": 2,
        "data_points_dropped": 1, "requests_authenticated": 2, "requests_rejected_auth": 0,
        "requests_rejected_payload": 1, "unique_streams": 1, "active_subscriptions": 1,
    }  # fmt: skip
    assert made.receiver.stats() == stats
    health = Health("1", "2026-05-09T12:00:00.000Z", 0, 0, 0, 1, (), otlp_stats=stats)
    assert json.loads(encode_health(health))["otlp_stats"] == stats


@pytest.mark.slow
def test_an_agent_receives_from_the_first_definition_to_the_last(start, cloud):  # noqa: F811
    config = {"metric_name": "m", "staleness_ms": 60_000}
    cloud.definitions = [definition("otlp", 1, source_type="otlp", source_config=config)]
    agent = start(OBSERVER_OTLP_LISTEN_ADDR="127.0.0.1:0")
    stats = lambda: agent.health().otlp_stats  # noqa: E731
    cloud.until(lambda: any(row["status"] == "no_data" for row in cloud.rows))
    assert cloud.rows[0]["reason"] == "otlp_no_samples"
    host, _, port = stats()["listen_addr"].rpartition(":")
    line = http.client.HTTPConnection(host, int(port), timeout=10)
    body = json.dumps(request(gauge(point(time.time(), asDouble=42.5))))
    line.request("POST", "/v1/metrics", body, {"Content-Type": "application/json"})
    assert line.getresponse().status == 200
    line.close()
    (row, *_) = cloud.until(lambda: [row for row in cloud.rows if row["status"] == "healthy"])
    assert row["value"] == 42.5
    cloud.definitions, cloud.version = [], "v2"
    agent.definitions.refresh()
    agent.definitions.wake()
    cloud.until(lambda: True)
    for _ in range(200):
        if not stats()["running"]:
            break
        cloud.changed.acquire()
        cloud.changed.wait(0.05)
        cloud.changed.release()
    assert stats()["running"] is False


# -- the real thing


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["none", "gzip", "deflate"])
def test_the_sdk_of_opentelemetry(bench, packing):
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as exporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
    from opentelemetry.sdk.resources import Resource

    made = bench(OBSERVER_OTLP_BEARER_TOKEN="right-token")
    made.want("requests", attribute_filters={"service.name": "shop", "code": "200"})
    for name in ("latency", "size"):
        made.want(name)
    url = "http://{}:{}/v1/metrics".format(*made.place)
    sender = exporter.OTLPMetricExporter(
        url, headers={"authorization": "Bearer right-token"}, compression=exporter.Compression(packing)
    )
    reader = PeriodicExportingMetricReader(sender, export_interval_millis=600_000)
    views = [View(instrument_name="size", aggregation=ExponentialBucketHistogramAggregation())]
    provider = MeterProvider([reader], resource=Resource({"service.name": "shop"}), views=views)
    try:
        meter = provider.get_meter("test")
        meter.create_counter("requests").add(3, {"code": 200})
        latency, size = meter.create_histogram("latency"), meter.create_histogram("size")
        for n in range(1, 101):
            latency.record(n)
            size.record(n)
        assert provider.force_flush()
    finally:
        provider.shutdown()
    reading = made.look("requests", attribute_filters={"service.name": "shop", "code": "200"})
    assert (reading.value, reading.detail["temporality"]) == (3, "cumulative")
    assert made.look("latency", aggregation="mean").value == 50.5
    assert made.look("latency", aggregation="p95").value == pytest.approx(95, abs=5)
    assert made.look("size", aggregation="count").value == 100
    assert made.look("size", aggregation="p95").value == pytest.approx(95, rel=0.05)
    assert made.receiver.stats()["requests_rejected_payload"] == 0
