"""What holds of all that a store keeps, whatever happened to it: what `normstats verify` checks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from normcore.errors import NormcoreError
from normcore.moments import ROWS, Moments, broken
from normserver import codec
from normserver.errors import InvalidArgument
from normserver.names import PRODUCER_ID_BYTES, check_name, check_tag
from normserver.producers import WINDOW
from normstats.specs import InvalidSpec, RunningSpec, Spec
from normstats.v1 import resources_pb2 as pb
from normstats.wire import spec as spec_wire


class Violation(NamedTuple):
    """Something that does not hold.

    `kind` is "normalizer", "snapshot" (whose name is NORMALIZER@TAG), "producer" or "database". `feature` is the first
    that is wrong, and `value` what it has; None where it is not about features.
    """

    kind: str
    name: str
    field: str
    sentence: str
    feature: int | None = None
    value: float | None = None

    def __str__(self) -> str:
        place = self.field if self.feature is None else f"{self.field}[{self.feature}]"
        return f"{self.kind} {self.name}: {place} {self.sentence}"


class Kept(NamedTuple):
    """What a normalizer's snapshots are held against: its version, and its features where it keeps statistics."""

    version: int
    num_features: int | None


def of_normalizer(
    name: str, spec: bytes, version: int, running: bytes | None, times: Sequence[float]
) -> Iterator[Violation]:
    """What does not hold of a normalizer: its name, spec, version and statistics, and its times in seconds."""
    subject = ("normalizer", name)
    yield from _of_name(subject, name)
    yield from _of_version(subject, version)
    yield from _of_times(subject, times)
    try:
        decoded = spec_of(spec)
    except (InvalidSpec, DecodeError) as error:
        yield Violation(*subject, "spec", f"cannot be read: {error}")
        return
    if not isinstance(decoded, RunningSpec):
        if running is not None:
            yield Violation(*subject, "running", f"is there; expected none of {type(decoded).__name__}")
    elif running is None:
        yield Violation(*subject, "running", f"is missing; expected {decoded.num_features} features")
    else:
        yield from _of_running(subject, running, decoded.num_features)


def kept_by(spec: bytes, version: int) -> Kept:
    """What the snapshots of a normalizer are held against; any number of features, where its spec cannot be read."""
    try:
        decoded = spec_of(spec)
    except (InvalidSpec, DecodeError):
        return Kept(version, None)
    return Kept(version, decoded.num_features if isinstance(decoded, RunningSpec) else None)


def of_snapshot(
    normalizer: str, tag: str, version: int, running: bytes, created_at: float, kept: Kept | None
) -> Iterator[Violation]:
    """What does not hold of a snapshot, whose normalizer is `kept`; None if there is none."""
    subject = ("snapshot", f"{normalizer}@{tag}")
    try:
        check_tag(tag, "tag")
    except InvalidArgument as error:
        yield _told(subject, error)
    yield from _of_version(subject, version)
    yield from _of_times(subject, (created_at,))
    if kept is None:
        yield Violation(*subject, "normalizer", f"is {normalizer!r}; expected one that there is")
        return
    if version > kept.version:
        yield Violation(*subject, "version", f"is {version}; expected at most its normalizer's, {kept.version}")
    yield from _of_running(subject, running, kept.num_features)


def of_window(identity: str, producer_id: bytes, highest: int, seen: bytes, used_at: float) -> Iterator[Violation]:
    """What does not hold of a producer's window."""
    subject = ("producer", f"{identity} {producer_id.hex()}")
    yield from _of_times(subject, (used_at,))
    if len(producer_id) != PRODUCER_ID_BYTES:
        yield Violation(*subject, "producer_id", f"has {len(producer_id)} bytes; expected {PRODUCER_ID_BYTES}")
    if not isinstance(highest, int) or highest < 0:
        yield Violation(*subject, "highest", f"is {highest!r}; expected a sequence, at least 0")
        return
    if len(seen) != WINDOW // 8:
        yield Violation(*subject, "seen", f"has {len(seen)} bytes; expected {WINDOW // 8}")
        return
    bits = int.from_bytes(seen, "little")
    if bits & 1 != (highest > 0):
        yield Violation(*subject, "seen", f"has bit 0 {'set' if bits & 1 else 'clear'}, which stands for {highest}")
    elif bits >> min(highest, WINDOW):
        yield Violation(*subject, "seen", f"has bit {bits.bit_length() - 1}; expected none of sequences below 1")


@lru_cache(maxsize=1024)
def spec_of(data: bytes) -> Spec:
    """The spec that a store has as bytes.

    Raises:
        DecodeError, InvalidSpec: they are none.
    """
    return spec_wire.from_proto(pb.Spec.FromString(data))


def _of_name(subject: tuple[str, str], name: str) -> Iterator[Violation]:
    try:
        check_name(name, "name")
    except InvalidArgument as error:
        yield _told(subject, error)


def _of_version(subject: tuple[str, str], version: int) -> Iterator[Violation]:
    if not isinstance(version, int) or version < 1:
        yield Violation(*subject, "version", f"is {version!r}; expected an integer, at least 1")


def _of_times(subject: tuple[str, str], times: Sequence[float]) -> Iterator[Violation]:
    for time in times:
        if not isinstance(time, float | int) or not math.isfinite(time):
            yield Violation(*subject, "time", f"is {time!r}; expected seconds, finite")


def _of_running(subject: tuple[str, str], data: bytes, num_features: int | None) -> Iterator[Violation]:
    """What does not hold of running statistics, of any number of features if None is given."""
    try:
        message = pb.RunningState.FromString(data)
    except DecodeError as error:
        yield Violation(*subject, "running", f"cannot be read: {error}")
        return
    if num_features is None:
        num_features = len(message.moments.mean) // 8
    try:
        codec.decode_running(message, num_features, "running")
    except InvalidArgument as error:
        yield from list(_of_features(subject, message, num_features)) or [_told(subject, error)]
    except NormcoreError as error:
        yield Violation(*subject, "running", f"cannot be read: {error}")


def _of_features(subject: tuple[str, str], message: pb.RunningState, num_features: int) -> Iterator[Violation]:
    """The same, feature by feature, as far as there are any."""
    try:
        moments = _moments(message.moments, num_features)
        count = codec.decode_count(message.count, num_features, "count").expand(num_features)
    except InvalidArgument:
        return
    for one in broken(moments):
        yield _of_feature(subject, f"moments.{one.field}", one.feature, one.value, one.expected, one.features)
    wrong = ~((count >= 0) & torch.isfinite(count))
    if bool(wrong.any()):
        feature = int(wrong.nonzero()[0])
        value = float(count[feature])
        yield _of_feature(subject, "count", feature, value, "finite and at least 0", int(wrong.sum()))


def _moments(message: pb.Moments, num_features: int) -> Moments:
    """Moments as they stand, whatever they are."""

    def row(name: str) -> Tensor:
        data = getattr(message, name)
        if name == "count":
            return codec.decode_count(data, num_features, name)
        if name.endswith("_low") and not data:
            return torch.zeros(num_features, dtype=torch.float64)
        return codec.decode_array(data, (num_features,), name)

    return Moments.of(**{name: row(name) for name in ROWS})


def _of_feature(
    subject: tuple[str, str], field: str, feature: int, value: float, expected: str, features: int
) -> Violation:
    more = f"; {features - 1} more features likewise" if features > 1 else ""
    return Violation(*subject, field, f"is {value!r}; expected {expected}{more}", feature, value)


def _told(subject: tuple[str, str], error: InvalidArgument) -> Violation:
    return Violation(*subject, error.field, str(error).removeprefix(error.field).strip())
