"""Normalizations on a stream that stays open: what its two ends say, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from normstats.chunking import TENSORS_AT_ONCE
from normstats.errors import NormstatsError, from_status
from normstats.v1 import normalization_service_pb2 as pb
from normstats.wire import carried
from normstats.wire.carried import Carried

# A stream is used for so long, then another, which may reach another server: else a new one would get no work.
LIFE_SECONDS = 10.0

Request = Carried[pb.NormalizeRequest]
Reply = Carried[pb.NormalizeResponse]


class Message(NamedTuple):
    """Requests, and the number under which they are answered."""

    requests: Sequence[Request]
    number: int


class Asked(Protocol):
    """A request that waits to be sent."""

    @property
    def request(self) -> Request:
        """The request."""


A = TypeVar("A", bound=Asked)


def first_message(asked: Sequence[A]) -> Sequence[A]:
    """Those that go in the first message: a large one, which lies in shared memory, by itself."""
    count = 0
    for one in asked[:TENSORS_AT_ONCE]:
        if one.request.message.HasField("input_place"):
            break
        count += 1
    return asked[: max(1, count)]


def serialize(message: Message) -> bytes:
    """The bytes of a message."""
    return carried.serialize_requests(message.requests, message.number)


def _results(reply: pb.NormalizeManyResponse | pb.NormalizeManyStreamResponse) -> list[Reply | NormstatsError]:
    """What became of each request of a message."""
    return [
        Carried(one.response, one.response.data) if one.HasField("response") else from_status(one.status)
        for one in reply.results
    ]


# What reads an answer of each method.
deserialize = carried.deserializer_of_many(pb.NormalizeManyStreamResponse, pb.NormalizeResponse, _results, depth=2)
deserialize_unary = carried.deserializer_of_many(pb.NormalizeManyResponse, pb.NormalizeResponse, _results, depth=2)
