"""The body of a remote write request: protobuf, then snappy, both by libraries of the extra `export`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import cramjam
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from observer_agent.hub.remote import Labels, Point

_TEXT, _DOUBLE, _INT, _MESSAGE = 9, 1, 3, 11  # FieldDescriptorProto.Type
_ONE, _MANY = 1, 3  # FieldDescriptorProto.Label


def encode(series: Mapping[Labels, Sequence[Point]]) -> bytes:
    """A `prometheus.WriteRequest` of these series, compressed as a snappy block."""
    request = request_class()()
    for labels, points in series.items():
        one = request.timeseries.add()
        for name, value in labels:
            one.labels.add(name=name, value=value)
        for point in points:
            one.samples.add(value=point.value, timestamp=round(point.at * 1000))
    return bytes(cramjam.snappy.compress_raw(request.SerializeToString()))


@cache
def request_class() -> Any:
    """The class of `prometheus.WriteRequest`, described here as prompb/remote.proto numbers its fields."""
    file = descriptor_pb2.FileDescriptorProto(name="observer/remote.proto", package="prometheus", syntax="proto3")
    label = file.message_type.add(name="Label")
    label.field.add(name="name", number=1, type=_TEXT, label=_ONE)
    label.field.add(name="value", number=2, type=_TEXT, label=_ONE)
    sample = file.message_type.add(name="Sample")
    sample.field.add(name="value", number=1, type=_DOUBLE, label=_ONE)
    sample.field.add(name="timestamp", number=2, type=_INT, label=_ONE)
    one = file.message_type.add(name="TimeSeries")
    one.field.add(name="labels", number=1, type=_MESSAGE, label=_MANY, type_name=".prometheus.Label")
    one.field.add(name="samples", number=2, type=_MESSAGE, label=_MANY, type_name=".prometheus.Sample")
    request = file.message_type.add(name="WriteRequest")
    request.field.add(name="timeseries", number=1, type=_MESSAGE, label=_MANY, type_name=".prometheus.TimeSeries")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("prometheus.WriteRequest"))
