"""What can go wrong, in the domain's own words; `status.py` alone knows what gRPC calls it.

    ServiceError
    ├── InvalidArgument      a field is wrong; `field` is its path in the request
    ├── NotFound             no such normalizer or snapshot
    ├── AlreadyExists        the name or tag is taken by something else
    ├── FailedPrecondition   right in itself, not in this state: frozen, nothing seen, keeps no statistics
    ├── OutOfRange           a sequence older than its producer's window
    ├── DeadlineExceeded     a round missed members when its time was over
    ├── ResourceExhausted    a queue is full, a limit or a quota is reached
    ├── Unauthenticated      who calls is not known
    ├── PermissionDenied     who calls may not do this
    └── Unavailable          the store is down, or the server is stopping

Each has a `reason`, a constant a program can rely on, and a sentence: what was received, what was expected, the remedy.
`metadata` are facts that a program acts on: the round to go on with, the address to go to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from normcore.errors import NormcoreError, NothingSeen
from normstats.specs import InvalidSpec
from normstats.wire.tensor import InvalidTensor


class ServiceError(Exception):
    """Something the caller is told."""

    reason = "UNSPECIFIED"

    def __init__(
        self, sentence: str, *, field: str = "", reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.field = field
        self.metadata = dict(metadata or {})
        if reason:
            self.reason = reason


class InvalidArgument(ServiceError):
    """A field of the request is wrong."""

    reason = "INVALID_FIELD"

    def __init__(self, field: str, sentence: str, *, reason: str = "") -> None:
        if sentence.startswith((".", "[")):  # the sentence goes further into the field
            further, _, sentence = sentence.partition(" ")
            field += further
        super().__init__(f"{field} {sentence}", field=field, reason=reason)


class NotFound(ServiceError):
    """There is nothing of that name."""

    reason = "NOT_FOUND"


class AlreadyExists(ServiceError):
    """The name is taken."""

    reason = "NAME_TAKEN"


class FailedPrecondition(ServiceError):
    """The request is right in itself, not in this state."""

    reason = "FAILED_PRECONDITION"


class OutOfRange(ServiceError):
    """The sequence is older than what is remembered of its producer."""

    reason = "SEQUENCE_TOO_OLD"


class DeadlineExceeded(ServiceError):
    """A round missed members when its time was over."""

    reason = "ROUND_TIMED_OUT"


class ResourceExhausted(ServiceError):
    """A limit of this server is reached; later is better."""

    reason = "QUEUE_FULL"


class Unauthenticated(ServiceError):
    """Who calls is not known."""

    reason = "CREDENTIALS_MISSING"


class PermissionDenied(ServiceError):
    """Who calls may not do this."""

    reason = "SCOPE_MISSING"


class Unavailable(ServiceError):
    """Nothing acknowledged was lost; a retry is safe."""

    reason = "STORE_UNAVAILABLE"


def no_such_normalizer(name: str) -> NotFound:
    """The error for a name that nobody has created."""
    return NotFound(f"there is no normalizer {name!r}; create it first", reason="NORMALIZER_NOT_FOUND")


def no_such_snapshot(name: str, tag: str) -> NotFound:
    """The error for a tag that nobody has made."""
    return NotFound(f"normalizer {name!r} has no snapshot {tag!r}", reason="SNAPSHOT_NOT_FOUND")


def keeps_no_statistics(name: str) -> FailedPrecondition:
    """The error for asking statistics of a normalization that has none."""
    return FailedPrecondition(
        f"normalizer {name!r} keeps no running statistics: its normalization uses each sample's own",
        reason="KEEPS_NO_STATISTICS",
    )


def lost_lease(group: str) -> Unavailable:
    """The error for rounds that another server may be running by now."""
    return Unavailable(f"group {group!r} may live on another server by now; join again", reason="LEASE_LOST")


def too_many_producers(payer: str) -> ResourceExhausted:
    """The error for a producer id that is not known, of an identity that has had its new ones."""
    return ResourceExhausted(
        f"{payer} has had its new producer ids of this hour, and this one is new; contribute under one that is known, "
        "try again later, or ask for a larger quota (producers_per_hour in the credentials file, "
        "--max-new-producers-per-hour)",
        reason="PRODUCER_QUOTA",
    )


# The engine's arguments under the names that the contract gives them.
_FIELDS = {"x": "input", "mask": "padding.mask", "lengths": "padding.lengths.values", "weights": "sample_weights"}


def from_engine(error: NormcoreError, prefix: str = "") -> ServiceError:
    """What the caller is told of an error that the engine found in the caller's values."""
    if isinstance(error, NothingSeen):
        return FailedPrecondition(str(error), reason="NOTHING_SEEN")
    sentence = re.sub(r"\bx\b", f"{prefix}input", error.sentence)
    return InvalidArgument(prefix + _FIELDS.get(error.argument, error.argument), sentence)


def from_spec(error: InvalidSpec, prefix: str) -> InvalidArgument:
    """What the caller is told of a wrong spec found below the field `prefix`."""
    return InvalidArgument(f"{prefix}.{error.argument}", str(error).partition(" ")[2])


def from_tensor(error: InvalidTensor, field: str, data_field: str) -> InvalidArgument:
    """What the caller is told of a tensor whose description is `field` and whose bytes are `data_field`."""
    return InvalidArgument(data_field if error.field == "data" else f"{field}.{error.field}", str(error))
