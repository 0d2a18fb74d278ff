"""What holds of all that a store keeps, whatever happened to it: what `normstats verify` checks. Pure."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from normcore.errors import NormcoreError
from normcore.moments import ROWS, Moments, broken
from normcore.running import Running
from normserver import codec
from normserver.errors import InvalidArgument
from normserver.names import PRODUCER_ID_BYTES, check_name, check_tag
from normserver.producers import WINDOW
from normserver.records import PIECE_FEATURES, rows
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
    """What statistics are held against: the version, spec and counts of their normalizer or snapshot.

    `spec` is None where it cannot be read.
    """

    version: int
    spec: Spec | None
    num_rows: float
    num_batches: int


def of_normalizer(
    name: str, spec: bytes, parameters: bytes | None, version: int, times: Sequence[float]
) -> Iterator[Violation]:
    """What does not hold of a normalizer: its name, spec, parameters and version, and its times in seconds."""
    subject = ("normalizer", name)
    yield from _of_name(subject, name)
    yield from _of_version(subject, version)
    yield from _of_times(subject, times)
    try:
        decoded = spec_of(spec)
    except (InvalidSpec, DecodeError) as error:
        yield Violation(*subject, "spec", f"cannot be read: {error}")
        return
    if parameters is None:
        return
    try:
        whole = spec_wire.from_proto(pb.Spec.FromString(parameters))
    except (InvalidSpec, DecodeError) as error:
        yield Violation(*subject, "parameters", f"cannot be read: {error}")
        return
    if not whole.same_structure(decoded):
        yield Violation(*subject, "parameters", f"are of another {type(whole).__name__}; expected those of the spec")


def kept_by(spec: bytes, version: int, num_rows: float, num_batches: int) -> Kept:
    """What the statistics and snapshots of a normalizer are held against."""
    try:
        return Kept(version, spec_of(spec), num_rows, num_batches)
    except (InvalidSpec, DecodeError):
        return Kept(version, None, num_rows, num_batches)


def of_snapshot(normalizer: str, tag: str, version: int, created_at: float, kept: Kept | None) -> Iterator[Violation]:
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


def of_statistics(
    normalizer: str, tag: str, pieces: Iterable[tuple[int, bytes, int]], kept: Kept | None
) -> Iterator[Violation]:
    """What does not hold of statistics: pieces of bytes, each with its first feature and checksum, in order.

    No piece: nothing seen.

    `kept` is what their normalizer or snapshot says; None if there is none.
    """
    subject = ("snapshot", f"{normalizer}@{tag}") if tag else ("normalizer", normalizer)
    if kept is None:
        yield Violation(*subject, "running", "is there; expected a normalizer or snapshot that it belongs to")
        return
    if kept.spec is None:
        return
    width = kept.spec.num_features if isinstance(kept.spec, RunningSpec) else 0
    expected, num_rows, num_batches = 0, 0.0, 0
    for start, data, checksum in pieces:
        if not width:
            yield Violation(*subject, "running", f"is there; expected none of {type(kept.spec).__name__}")
            return
        if start != expected or start >= width:
            yield Violation(*subject, "running", f"has a piece at {start!r}; expected one at {expected} of {width}")
            return
        found = yield from _of_piece(subject, data, start, min(PIECE_FEATURES, width - start))
        if found is None:
            return
        if (now := crc32(data)) != checksum:
            yield Violation(*subject, "running", f"has the checksum {now}; expected {checksum!r}: bits have changed")
            return
        expected += PIECE_FEATURES
        num_rows, num_batches = max(num_rows, rows(found)), found.num_batches
    if expected < width and (expected or kept.num_rows or kept.num_batches):
        yield Violation(*subject, "running", f"is missing from feature {expected} on; expected {width} features")
        return
    if kept.num_rows != num_rows:
        yield Violation(*subject, "num_rows", f"is {kept.num_rows!r}; expected {num_rows!r}, as its statistics")
    if kept.num_batches != num_batches:
        yield Violation(*subject, "num_batches", f"is {kept.num_batches!r}; expected {num_batches}, as its statistics")


def of_window(identity: str, producer_id: bytes, highest: int, seen: bytes, used_at: float) -> Iterator[Violation]:
    """What does not hold of a producer's window, but for its checksum."""
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
        return
    if bits >> min(highest, WINDOW):
        yield Violation(*subject, "seen", f"has bit {bits.bit_length() - 1}; expected none of sequences below 1")


def bits_changed(kind: str, name: str) -> Violation:
    """The violation of a row that says something else than what was written."""
    return Violation(kind, name, "checksum", "is not that of the row: bits have changed since it was written")


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


def _of_piece(
    subject: tuple[str, str], data: bytes, start: int, width: int
) -> Generator[Violation, None, Running | None]:
    """What does not hold of a piece of running statistics; returns it, if it can be read."""
    try:
        message = pb.RunningState.FromString(data)
    except DecodeError as error:
        yield Violation(*subject, "running", f"cannot be read: {error}")
        return None
    try:
        return codec.decode_running(message, width, "running")
    except InvalidArgument as error:
        for one in list(_of_features(subject, message, width)) or [_told(subject, error)]:
            yield one if one.feature is None else one._replace(feature=start + one.feature)
    except NormcoreError as error:
        yield Violation(*subject, "running", f"cannot be read: {error}")
    return None


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
