"""What a call can raise, by the code that the server answered with.

NormstatsError             .message the server's sentence, .field the path of what is wrong, .reason a constant,
                           .metadata facts that a program acts on
├── InvalidArgument        a field is wrong (also a ValueError)
├── NotFound               no such normalizer or snapshot
├── AlreadyExists          the name or tag is taken by something else
├── FailedPrecondition     right in itself, not in this state: frozen, nothing seen, keeps no statistics
├── OutOfRange             a sequence older than its producer's window
├── ResourceExhausted      a limit of the server is reached; later is better
├── Unavailable            no server, its store is down, or it is stopping; a retry is safe (also a ConnectionError)
├── DeadlineExceeded       the timeout is over (also a TimeoutError)
├── Cancelled              the call was cancelled
├── Unauthenticated        who are you
├── PermissionDenied       not yours
├── Unimplemented          the server does not offer it
└── Internal               a bug of the server's; its log has the details under the id in the message
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


class NormstatsError(Exception):
    """A call failed. `code` is gRPC's name of it; `field`, `reason` and `metadata` are empty where there are none."""

    code = "UNKNOWN"

    def __init__(
        self, message: str, *, field: str = "", reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.reason = reason
        self.metadata = dict(metadata or {})


class InvalidArgument(NormstatsError, ValueError):
    """A field of the request is wrong; `field` is its path."""

    code = "INVALID_ARGUMENT"


class NotFound(NormstatsError):
    """There is no normalizer or snapshot of that name."""

    code = "NOT_FOUND"


class AlreadyExists(NormstatsError):
    """The name or tag is taken."""

    code = "ALREADY_EXISTS"


class FailedPrecondition(NormstatsError):
    """Right in itself, not in this state."""

    code = "FAILED_PRECONDITION"


class OutOfRange(NormstatsError):
    """The sequence is older than what the server remembers."""

    code = "OUT_OF_RANGE"


class ResourceExhausted(NormstatsError):
    """A limit of the server is reached."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(NormstatsError, ConnectionError):
    """No server, its store is down, or it is stopping; a retry is safe."""

    code = "UNAVAILABLE"


class DeadlineExceeded(NormstatsError, TimeoutError):
    """The timeout is over."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(NormstatsError):
    """The call was cancelled."""

    code = "CANCELLED"


class Unauthenticated(NormstatsError):
    """The server does not know who calls."""

    code = "UNAUTHENTICATED"


class PermissionDenied(NormstatsError):
    """The caller may not do this."""

    code = "PERMISSION_DENIED"


class Unimplemented(NormstatsError):
    """The server does not offer it."""

    code = "UNIMPLEMENTED"


class Internal(NormstatsError):
    """A bug of the server's."""

    code = "INTERNAL"


# gRPC's own words for a message that the server does not read.
_TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")

_BY_CODE = {kind.code: kind for kind in NormstatsError.__subclasses__()}
_BY_NUMBER = {code_pb2.Code.Value(name): kind for name, kind in _BY_CODE.items()}


def from_grpc(error: grpc.RpcError) -> NormstatsError:
    """The error that a failed call, of either kind of channel, amounts to."""
    kind = _BY_CODE.get(error.code().name, NormstatsError)
    field, reason, facts = _details(error)
    if not reason and (too_large := _TOO_LARGE.search(error.details() or "")):
        size, limit = too_large.groups()
        return ResourceExhausted(
            f"the request takes {size} bytes, and the server accepts {limit} in a message; send fewer features or rows "
            f"at a time, or start the server with --max-message-bytes {size}",
            reason="MESSAGE_TOO_LARGE",
            metadata={"size_bytes": size, "max_message_bytes": limit},
        )
    return kind(error.details() or error.code().name, field=field, reason=reason, metadata=facts)


def from_status(serialized: bytes) -> NormstatsError:
    """The error that a serialized google.rpc.Status amounts to."""
    status = status_pb2.Status.FromString(serialized)
    kind = _BY_NUMBER.get(status.code, NormstatsError)
    field, reason, facts = _of_status(status)
    return kind(status.message, field=field, reason=reason, metadata=facts)


def connection_broke(error: grpc.RpcError) -> bool:
    """Whether a stream ended because its connection did, or its server is stopping: another attempt may succeed.

    grpc.aio reports a write to a broken connection as INTERNAL; the server's own INTERNAL carries details. A call that
    a stopping server has not begun ends as CANCELLED without a word (grpc/grpc#41785); one that was cancelled here says
    so.
    """
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return True
        case grpc.StatusCode.INTERNAL:
            return not _details(error)[1]
        case grpc.StatusCode.CANCELLED:
            return error.details() in ("", "CANCELLED")
    return False


def may_begin_again(error: grpc.RpcError) -> bool:
    """Whether a stream ended because its connection broke, or because other streams had taken the server's memory."""
    was_full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _details(error)[1] == "MEMORY_FULL"
    return was_full or connection_broke(error)


def _details(error: grpc.RpcError) -> tuple[str, str, dict[str, str]]:
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == _DETAILS:
            return _of_status(status_pb2.Status.FromString(value))
    return "", "", {}


def _of_status(status: status_pb2.Status) -> tuple[str, str, dict[str, str]]:
    """The field's path, the reason and the facts in a status's details."""
    field = reason = ""
    facts: dict[str, str] = {}
    for packed in status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(packed.value)
            reason, facts = info.reason, dict(info.metadata)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            violations = error_details_pb2.BadRequest.FromString(packed.value).field_violations
            field = violations[0].field if violations else ""
    return field, reason, facts
