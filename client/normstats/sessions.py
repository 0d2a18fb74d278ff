"""Small normalizations on a stream that stays open: what its two ends say, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def serialize(message: Message) -> bytes:
    """The bytes of a message."""
    return carried.serialize_requests(message.requests, message.number)


def results(
    reply: pb.NormalizeManyResponse | pb.NormalizeManyStreamResponse,
) -> list[Reply | NormstatsError]:
    """What became of each request of a message."""
    return [
        Carried(one.response, one.response.data) if one.HasField("response") else from_status(one.status)
        for one in reply.results
    ]


def deserialize(received: bytes) -> Any:
    """An answer."""
    return pb.NormalizeManyStreamResponse.FromString(received)
