"""Our own reading and writing of messages that carry tensors, beside protobuf's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import tensor_pb2
from normstats.wire import carried
from normstats.wire.carried import Carried

TYPES = (pb.NormalizeRequest, pb.NormalizeResponse, pb.NormalizeStreamRequest, pb.NormalizeStreamResponse)
SIZES = (0, 1, 127, 128, 4000, 16_383, 16_384, 65_000, 65_536, 70_000, 2_097_151, 2_097_152)


def example(message_type: Any) -> Any:
    description = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=[3, 1 << 40])
    if message_type is pb.NormalizeRequest:
        return message_type(
            normalizer="robot/obs", mode=pb.MODE_TRAIN, sequence=2**62, producer_id=bytes(16), input=description,
            style_tensor=description, style_data=b"z" * 200,
        )  # fmt: skip
    if message_type is pb.NormalizeStreamRequest:
        return message_type(chunk=pb.NormalizeStreamRequest.Chunk(input=description))
    return message_type(output=description, mode=pb.MODE_EVAL, version=7)


def of_protobuf(message_type: Any, received: bytes) -> tuple[Any, bytes]:
    message = message_type.FromString(received)
    data = message.data
    message.ClearField("data")
    return message, data


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("message_type", TYPES)
def test_what_is_written_is_what_protobuf_writes(message_type: Any, size: int) -> None:
    message, data = example(message_type), np.arange(size, dtype=np.uint8)
    whole = message_type()
    whole.CopyFrom(message)
    whole.data = data.tobytes()
    assert carried.serialize(Carried(message, data.data)) == whole.SerializeToString(deterministic=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("message_type", TYPES)
def test_what_protobuf_writes_is_read(message_type: Any, size: int) -> None:
    message = example(message_type)
    message.data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    received = carried.deserializer(message_type)(message.SerializeToString())
    assert (received.message, bytes(received.data)) == of_protobuf(message_type, message.SerializeToString())


@pytest.mark.parametrize("number", [0, 1, 127, 128, 2**63 - 1, -1, -(2**63)])
def test_a_number_is_written_as_protobuf_writes_it(number: int) -> None:
    request = example(pb.NormalizeRequest)
    whole = pb.NormalizeManyStreamRequest(requests=[request], id=number)
    assert carried.serialize_requests([Carried(request)], number) == whole.SerializeToString()


def test_large_data_are_not_copied() -> None:
    sent = carried.serialize(Carried(example(pb.NormalizeResponse), bytes(100_000)))
    received = carried.deserializer(pb.NormalizeResponse)(sent)
    assert isinstance(received.data, memoryview)
    assert received.data.obj is sent


def unusual() -> dict[str, bytes]:
    head = pb.NormalizeResponse(version=3).SerializeToString()
    data = b"\x7a\xf0\xa2\x04" + bytes(70_000)
    return {
        "data first": data + head,
        "data twice": head + data + data,
        "an empty one after it": head + data + b"\x7a\x00",
        "an unknown field before it": b"\x30\x05" + head + data,
        "an unknown field after it": head + data + b"\x30\x05",
        "a field from 16 on": b"\x82\x01\x01x" + head + data,
        "a group": b"\x33\x34" + head + data,
        "the length in more bytes": head + b"\x7a\xf0\xa2\x84\x00" + bytes(70_000),
        "cut short": head + data[:-1],
        "longer than it says": head + data + b"\x00",
        "no field 0": b"\x00" + head + data,
        "a varint without an end": b"\x18" + b"\xff" * 11 + data,
        "a length beyond it": b"\x0a\xff\xff\xff\xff\x0f" + data,
        "wrong wire type": b"\x78\x01" + data,
        "fixed fields": b"\x31" + bytes(8) + b"\x35" + bytes(4) + data,
        "many fields": b"\x18\x01" * 100 + data,
        "nothing but zeros": bytes(80_000),
        "nothing but data": data,
    }


@pytest.mark.parametrize("name", unusual())
def test_the_unusual_is_read_as_protobuf_reads_it(name: str) -> None:
    compare(pb.NormalizeResponse, unusual()[name])


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(message_type=st.sampled_from(TYPES), changes=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=12))))
def test_whatever_comes_is_read_as_protobuf_reads_it(message_type: Any, changes: list[tuple[int, bytes]]) -> None:
    sent = bytearray(carried.serialize(Carried(example(message_type), bytes(range(250)) * 280)))
    for place, other in changes:
        sent[place : place + max(1, len(other) - 3)] = other
    compare(message_type, bytes(sent))


def compare(message_type: Any, sent: bytes) -> None:
    deserialize = carried.deserializer(message_type)
    try:
        expected = of_protobuf(message_type, sent)
    except DecodeError:
        with pytest.raises(DecodeError):
            deserialize(sent)
        return
    for received in (deserialize(sent), deserialize(sent)):
        assert (received.message.SerializeToString(), bytes(received.data)) == (
            expected[0].SerializeToString(),
            expected[1],
        )


def test_what_begins_alike_is_read_once_and_has_its_own_data() -> None:
    deserialize = carried.deserializer(pb.NormalizeResponse)
    first = deserialize(carried.serialize(Carried(example(pb.NormalizeResponse), b"1" * 100_000)))
    second = deserialize(carried.serialize(Carried(example(pb.NormalizeResponse), b"2" * 100_000)))
    longer = deserialize(carried.serialize(Carried(example(pb.NormalizeResponse), b"3" * 100_001)))
    other = deserialize(carried.serialize(Carried(pb.NormalizeResponse(version=7), b"4" * 100_000)))
    assert first.message is second.message
    assert [bytes(one.data[:1]) + bytes(one.data[-1:]) for one in (first, second, longer, other)] == [
        b"11", b"22", b"33", b"44",
    ]  # fmt: skip
    assert other.message == pb.NormalizeResponse(version=7)


def reader(message_type: Any) -> Any:
    """Of messages of several, as both ends read them."""
    if message_type in (pb.NormalizeManyResponse, pb.NormalizeManyStreamResponse):
        return carried.deserializer_of_many(
            message_type, pb.NormalizeResponse, lambda message: [one.response for one in message.results], depth=2
        )
    return carried.deserializer_of_many(
        message_type, pb.NormalizeRequest, lambda message: list(message.requests), depth=1
    )


def with_one(message_type: Any, size: int, number: int = 0) -> Any:
    """A message with one tensor of so many bytes."""
    if message_type in (pb.NormalizeManyResponse, pb.NormalizeManyStreamResponse):
        response = example(pb.NormalizeResponse)
        response.data = bytes(size)
        message = message_type(results=[pb.NormalizeResult(response=response)])
    else:
        request = example(pb.NormalizeRequest)
        request.data = bytes(size)
        message = message_type(requests=[request])
    if number:
        message.id = number
    return message


MANY = (
    pb.NormalizeManyRequest,
    pb.NormalizeManyStreamRequest,
    pb.NormalizeManyResponse,
    pb.NormalizeManyStreamResponse,
)
NUMBERED = (pb.NormalizeManyStreamRequest, pb.NormalizeManyStreamResponse)


@pytest.mark.parametrize("number", [0, 1, 2**63 - 1, -1])
@pytest.mark.parametrize("message_type", MANY)
def test_one_large_tensor_of_a_message_of_several_is_not_copied(message_type: Any, number: int) -> None:
    number = number if message_type in NUMBERED else 0
    sent = with_one(message_type, 100_000, number).SerializeToString()
    read = reader(message_type)
    for received in (read(sent), read(sent)):
        assert received.number == number
        (one,) = received.items
        assert isinstance(one.data, memoryview)
        assert one.data.obj is sent
        assert len(one.data) == 100_000
        expected = with_one(message_type, 0, number)
        inner = expected.results[0].response if hasattr(expected, "results") else expected.requests[0]
        assert one.message == inner


def unusual_many() -> dict[str, bytes]:
    sent = with_one(pb.NormalizeManyStreamRequest, 70_000, 5).SerializeToString()
    one, number = sent[:-2], sent[-2:]
    assert number == b"\x10\x05"
    return {
        "the number first": number + one,
        "two numbers": sent + b"\x10\x07",
        "a number without an end": one + b"\x10\xff",
        "a number of ten bytes": one + b"\x10" + b"\xff" * 9 + b"\x01",
        "a number of more than 64 bits": one + b"\x10" + b"\xff" * 9 + b"\x7f",
        "no number": one + b"\x10\x00",
        "an unknown field behind it": sent + b"\x18\x01",
        "two tensors": one + sent,
        "an empty one before it": b"\x0a\x00" + sent,
        "cut short": sent[:-3],
        "nothing but an item's beginning": b"\x0a" + b"\xff" * 70_000,
        "an item that is empty, and much that is unknown": b"\x0a\x00\x7a\xf0\xa2\x04" + bytes(70_000),
        "an item in more bytes than it needs": b"\x0a"
        + bytes([len(one) - 4 & 0x7F | 0x80, len(one) - 4 >> 7 & 0x7F | 0x80, len(one) - 4 >> 14 & 0x7F | 0x80, 0])
        + one[4:]
        + number,
    }


@pytest.mark.parametrize("name", unusual_many())
def test_the_unusual_of_several_is_read_as_protobuf_reads_it(name: str) -> None:
    compare_many(pb.NormalizeManyStreamRequest, unusual_many()[name])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    message_type=st.sampled_from(MANY),
    changes=st.lists(st.tuples(st.integers(-6, 300), st.binary(max_size=12)), max_size=4),
)
def test_whatever_comes_of_several_is_read_as_protobuf_reads_it(
    message_type: Any, changes: list[tuple[int, bytes]]
) -> None:
    sent = bytearray(with_one(message_type, 70_000, 300 if message_type in NUMBERED else 0).SerializeToString())
    for place, other in changes:
        place %= len(sent)
        sent[place : place + max(1, len(other) - 3)] = other
    compare_many(message_type, bytes(sent))


def compare_many(message_type: Any, sent: bytes) -> None:
    read = reader(message_type)
    try:
        expected = message_type.FromString(sent)
    except DecodeError:
        with pytest.raises(DecodeError):
            read(sent)
        return
    plain = [one.response for one in expected.results] if hasattr(expected, "results") else expected.requests
    for received in (read(sent), read(sent)):
        assert received.number == getattr(expected, "id", 0)
        for one, other in zip(received.items, plain, strict=True):
            message, data = (one.message, bytes(one.data)) if isinstance(one, Carried) else (one, one.data)
            whole = type(other)()
            whole.CopyFrom(message)
            whole.data = data
            assert whole.SerializeToString() == other.SerializeToString()
