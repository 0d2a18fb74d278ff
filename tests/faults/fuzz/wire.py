"""What the wire's parsers must do with any bytes: read what protobuf reads, as it reads it, or refuse.

`python -m tests.faults.fuzz CORPUS` looks for bytes that they do something else with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from normstats.specs import InvalidSpec
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2, tensor_pb2
from normstats.wire import carried, spec, tensor
from normstats.wire.carried import Carried

CARRYING = (pb.NormalizeRequest, pb.NormalizeResponse, pb.NormalizeStreamRequest, pb.NormalizeStreamResponse)
CARRYING_MANY = (pb.NormalizeManyRequest, pb.NormalizeManyStreamRequest)
ANSWERING_MANY = (pb.NormalizeManyResponse, pb.NormalizeManyStreamResponse)


def check(data: bytes) -> None:
    """Hold what a parser makes of bytes against what protobuf does. The first byte chooses the parser.

    Raises:
        AssertionError: they differ; whatever else is raised is a parser's mistake as well.
    """
    if data:
        parser = PARSERS[data[0] % len(PARSERS)]
        parser(data[1:])


def check_carried(kind: Any, data: bytes) -> None:
    """A message that carries a tensor."""
    expected = parsed(kind, data)
    for found in readings(carried.deserializer(kind), data):
        assert (found is None) == (expected is None)
        if found is not None:
            check_same(found, expected)


def check_requests(kind: Any, data: bytes) -> None:
    """A message of several such."""
    check_many(kind, pb.NormalizeRequest, lambda message: [Carried(one, one.data) for one in message.requests], 1, data)


def check_answers(kind: Any, data: bytes) -> None:
    """A message of what became of several."""

    def items(message: Any) -> list[Any]:
        return [Carried(one.response, one.response.data) for one in message.results]

    check_many(kind, pb.NormalizeResponse, items, 2, data)


def check_many(kind: Any, item: Any, items: Callable[[Any], list[Carried[Any]]], depth: int, data: bytes) -> None:
    """A message of several, of which one may be large."""
    expected = parsed(kind, data)
    each = [] if expected is None else [(one.data, without_data(one.message)) for one in items(expected)]
    for found in readings(carried.deserializer_of_many(kind, item, items, depth), data):
        assert (found is None) == (expected is None)
        if found is not None:
            assert found.number == getattr(expected, "id", 0)
            assert [(bytes(one.data), without_data(one.message)) for one in found.items] == each


def without_data(message: Any) -> bytes:
    """A message's bytes but for its data."""
    message.ClearField("data")
    return written(message)


def readings(deserialize: Callable[[bytes], Any], data: bytes) -> Iterator[Any]:
    """What is read as small messages are, by protobuf, as large ones are, and as those that begin like one before."""
    for small_bytes in (len(data), -1, -1):
        with patch.object(carried, "_SMALL_BYTES", small_bytes):
            try:
                yield deserialize(data)
            except DecodeError:
                yield None


def check_same(found: Carried[Any], expected: Any) -> None:
    """The message and its data are those that protobuf reads, and are written as protobuf writes them."""
    data = bytes(found.data)
    assert data == expected.data
    assert not found.message.data
    again = carried.serialize(found)
    assert written(type(expected).FromString(again)) == written(expected)
    if not len(UnknownFieldSet(expected)):  # protobuf writes those last
        assert again == expected.SerializeToString()


def check_tensor(data: bytes) -> None:
    """A tensor's description: refused, or exactly as many bytes as it says."""
    if (message := parsed(tensor_pb2.Tensor, data)) is None:
        return
    try:
        found = tensor.check(message)
    except tensor.InvalidTensor:
        return
    assert list(found.shape) == list(message.shape)
    assert len(found.shape) <= tensor.MAX_RANK
    assert min(found.shape, default=0) >= 0
    assert found.size_bytes == math.prod(message.shape) * found.element.size_bytes < tensor.MAX_STRIDE_BYTES
    assert tensor.describe(found.element.name, found.shape) == tensor_pb2.Tensor(dtype=message.dtype, shape=found.shape)


def check_spec(data: bytes) -> None:
    """A spec: refused, or one that is the same after another journey."""
    if (message := parsed(resources_pb2.Spec, data)) is None:
        return
    try:
        found = spec.from_proto(message)
    except InvalidSpec:
        return
    sent = spec.to_proto(found)
    assert spec.from_proto(sent) == found
    assert written(spec.to_proto(spec.from_proto(sent))) == written(sent)


def parsed(kind: Any, data: bytes) -> Any:
    """What protobuf reads; None if it refuses."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def written(message: Any) -> bytes:
    """A message's bytes, by which two are compared: NaN is not equal to itself."""
    return bytes(message.SerializeToString(deterministic=True))


PARSERS: tuple[Callable[[bytes], None], ...] = (
    *(partial(check_carried, kind) for kind in CARRYING),
    *(partial(check_requests, kind) for kind in CARRYING_MANY),
    check_tensor,
    check_spec,
    # Behind the others, as the first bytes of what was found before choose those.
    *(partial(check_answers, kind) for kind in ANSWERING_MANY),
)
