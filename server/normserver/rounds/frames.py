"""The frames of SynchronizeStats: checked as they come in, and made to go out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from normcore.kernels import launch
from normcore.stack import MomentsStack
from normserver import codec, names
from normserver.errors import InvalidArgument
from normserver.rounds.group import Part, Terms
from normstats.v1 import normalization_service_pb2 as pb

MAX_SIZE = 4096
# Whoever joins again is far below it, and the rounds from there on are still int64.
MAX_ROUND = 2**53
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_TIMEOUT_SECONDS = 3600.0


class Join(NamedTuple):
    """Who joins which group, on what terms. `group_id` and `next_round` are what one who was in it before knows."""

    group: str
    member: bytes
    terms: Terms
    group_id: bytes
    next_round: int


def join(frame: pb.SynchronizeStatsRequest) -> Join:
    """The first frame.

    Raises:
        InvalidArgument: it is no join, or a field is wrong.
    """
    if frame.WhichOneof("frame") != "join":
        raise InvalidArgument("frame", "is no join; expected join first, then only parts")
    message = frame.join
    if not 1 <= message.size <= MAX_SIZE:
        raise InvalidArgument("join.size", f"is {message.size}; expected 1 to {MAX_SIZE}")
    if message.group_id and len(message.group_id) != names.PRODUCER_ID_BYTES:
        raise InvalidArgument("join.group_id", f"has {len(message.group_id)} bytes; expected those of Joined.group_id")
    if not 0 <= message.next_round <= MAX_ROUND:
        raise InvalidArgument("join.next_round", f"is {message.next_round}; expected 0 to {MAX_ROUND}")
    return Join(
        names.check_name(message.group, "join.group"),
        names.check_producer(message.member_id, "join.member_id"),
        Terms(
            message.size,
            _timeout(message),
            *_on_missing(message),
            names.check_name(message.normalizer, "join.normalizer") if message.normalizer else "",
        ),
        message.group_id,
        message.next_round,
    )


def _timeout(message: pb.SynchronizeStatsRequest.Join) -> float:
    if not message.HasField("round_timeout"):
        return DEFAULT_TIMEOUT_SECONDS
    seconds = message.round_timeout.seconds + message.round_timeout.nanos / 1e9
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise InvalidArgument("join.round_timeout", f"is {seconds:g} s; expected above 0, at most an hour")
    return seconds


def _on_missing(message: pb.SynchronizeStatsRequest.Join) -> tuple[bool, int]:
    request = pb.SynchronizeStatsRequest
    if message.on_missing not in (request.ON_MISSING_UNSPECIFIED, request.ON_MISSING_FAIL, request.ON_MISSING_PROCEED):
        raise InvalidArgument("join.on_missing", f"is {message.on_missing}; expected one of OnMissing")
    if message.on_missing != request.ON_MISSING_PROCEED:
        if message.quorum_count:
            raise InvalidArgument("join.quorum_count", "is given; expected only with ON_MISSING_PROCEED")
        return False, message.size
    if not 1 <= message.quorum_count <= message.size:
        raise InvalidArgument("join.quorum_count", f"is {message.quorum_count}; expected 1 to size, {message.size}")
    return True, message.quorum_count


def part(frame: pb.SynchronizeStatsRequest, num_features: int | None) -> tuple[int, Part]:
    """A member's part in a round, and which. `num_features` says how wide the group's normalizer is, if it has one.

    Raises:
        InvalidArgument: it is no part, or a field is wrong.
    """
    if frame.WhichOneof("frame") != "part":
        raise InvalidArgument("frame", "is no part; expected join first, then only parts")
    message = frame.part
    if len(message.vector) % 8:
        raise InvalidArgument("part.vector", f"has {len(message.vector)} bytes; expected a multiple of 8 (float64)")
    if not message.HasField("moments"):
        if num_features is not None:
            raise InvalidArgument("part.moments", "is not given; the group's rounds go into a normalizer")
        return message.round, Part(None, message.vector)
    width = len(message.moments.mean) // 8 if num_features is None else num_features
    if width == 0:
        raise InvalidArgument("part.moments.mean", "has no values; expected one for each feature")
    return message.round, Part(codec.decode_batches((message.moments,), "part.moments", width), message.vector)


def joined(round_number: int, group_id: bytes) -> pb.SynchronizeStatsResponse:
    """The answer to the first frame."""
    return pb.SynchronizeStatsResponse(joined=pb.SynchronizeStatsResponse.Joined(round=round_number, group_id=group_id))


class Merged(NamedTuple):
    """What all parts of a round give together: moments as a stack of one, and float64 bytes."""

    moments: MomentsStack | None
    vector: bytes


def merge(parts: Iterable[Part]) -> Merged:
    """All parts, in the order given, which decides the last bit of nothing: sums are exact to one rounding."""
    parts = list(parts)
    stacks = [one.moments for one in parts if one.moments is not None]
    moments = None
    if stacks:
        merged = launch.compose(MomentsStack.cat(stacks).values, None, between=True)
        moments = MomentsStack(merged[None])
    vector = b""
    if parts[0].vector:
        data = codec.float64_tensor(b"".join(one.vector for one in parts)).reshape(len(parts), -1)
        vector = codec.float64_bytes(launch.total(data))
    return Merged(moments, vector)


def merged(number: int, result: Merged, members: Iterable[bytes], version: int) -> bytes:
    """A completed round, serialized: the same for all members."""
    message = pb.SynchronizeStatsResponse.Merged(
        round=number, vector=result.vector, member_ids=members, version=version
    )
    if result.moments is not None:
        message.moments.CopyFrom(codec.encode_moments(result.moments[0]))
    return pb.SynchronizeStatsResponse(merged=message).SerializeToString()
