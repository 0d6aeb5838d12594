"""Host metrics as they come: Prometheus remote write 1.0, protobuf in a snappy block. Pure: bytes in, samples out.

The libraries are those of the extra `export`; without them `decode` raises ImportError, and the hub says that it has no
relay. Whatever the bytes are, what is made of them is bounded: the size that the block announces, series, labels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from observer_agent.hub.lighthouse.wire import TooMany
from observer_agent.hub.wire import Malformed, clean

BODY_MAX = 1024 * 1024
RAW_MAX = 8 * 1024 * 1024
SAMPLES_MAX = 20_000
LABELS_MAX = 30
NAME_MAX = 128
VALUE_MAX = 1024
NAME = "__name__"
_LATEST_MS = 253_402_300_799_000


class Sample(NamedTuple):
    """The newest value of one series; `at` in seconds since 1970."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float
    at: float


def decode(body: bytes) -> list[Sample]:
    """The newest sample of every series. Raises Malformed, TooMany, and ImportError without the extra."""
    import cramjam
    from google.protobuf.message import DecodeError

    from observer_agent.hub.remote_format import request_class

    if _announced(body) > RAW_MAX:
        raise TooMany(f"host metrics hold at most {RAW_MAX} bytes")
    request = request_class()()
    try:
        request.ParseFromString(bytes(cramjam.snappy.decompress_raw(body)))
    except (cramjam.DecompressionError, DecodeError):
        raise Malformed("the body is not a remote write request in a snappy block") from None
    if sum(len(each.samples) for each in request.timeseries) > SAMPLES_MAX or len(request.timeseries) > SAMPLES_MAX:
        raise TooMany(f"host metrics hold at most {SAMPLES_MAX} samples")
    return [found for each in request.timeseries if (found := _newest(each)) is not None]


def _announced(body: bytes) -> int:
    """The size that a snappy block says it has: a number of 7 bits a byte at its beginning."""
    size = 0
    for at, byte in enumerate(body[:5]):
        size |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            return size
    raise Malformed("the body is not a snappy block")


def _newest(series: Any) -> Sample | None:
    """None where there is no number: a stale marker, or no sample at all."""
    labels = {each.name: each.value for each in series.labels}
    name = labels.pop(NAME, "")
    if not 1 <= len(name) <= NAME_MAX or len(labels) > LABELS_MAX:
        raise Malformed("a series needs a name, and at most 30 labels")
    good = [each for each in series.samples if math.isfinite(each.value) and 0 <= each.timestamp <= _LATEST_MS]
    if not good:
        return None
    newest = max(good, key=lambda each: each.timestamp)
    kept = tuple(sorted((clean(n, NAME_MAX), clean(v, VALUE_MAX)) for n, v in labels.items()))
    return Sample(clean(name, NAME_MAX), kept, newest.value, newest.timestamp / 1000)
