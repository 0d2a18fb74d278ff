"""The one table from the domain's errors to gRPC's: code, sentence and google.rpc details. Bugs get an id."""

from __future__ import annotations

import logging
import secrets
from functools import lru_cache

from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from normserver import errors

log = logging.getLogger(__name__)

DOMAIN = "normstats"

# How long callers are asked to wait where waiting helps; their own backoff takes over from there.
_RETRY_SECONDS = 1

_CODES: dict[type[errors.ServiceError], int] = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.OutOfRange: code_pb2.OUT_OF_RANGE,
    errors.DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    errors.ResourceExhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
}
_RETRYABLE = (errors.ResourceExhausted, errors.Unavailable)


def told(error: Exception, method: str) -> status_pb2.Status:
    """What the caller of a method is told: all about the domain's errors; of a bug an id to find it by in the log."""
    if isinstance(error, errors.ServiceError):
        code, helps = _CODES[type(error)], isinstance(error, _RETRYABLE)
        return _of_error(code, error.sentence, error.field, error.reason, tuple(error.metadata.items()), helps)
    incident = secrets.token_hex(8)
    log.error("bug", exc_info=error, extra={"method": method, "incident": incident})
    return _of_bug(incident)


def name_of(told: status_pb2.Status) -> str:
    """The name of its code, such as NOT_FOUND."""
    return str(code_pb2.Code.Name(told.code))


# An overloaded server says the same again and again, and has better things to do than to say it anew.
@lru_cache(maxsize=256)
def _of_error(
    code: int, sentence: str, field: str, reason: str, metadata: tuple[tuple[str, str], ...], waiting_helps: bool
) -> status_pb2.Status:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=dict(metadata))]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=sentence)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if waiting_helps:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = _RETRY_SECONDS
        details.append(retry)
    return _status(code, sentence, details)


def _of_bug(incident: str) -> status_pb2.Status:
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"incident": incident})
    return _status(code_pb2.INTERNAL, f"internal error {incident}; the server's log has the details", [info])


def _status(code: int, sentence: str, details: list[Message]) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=sentence, details=packed)
