"""Names of normalizers, tags of snapshots, ids of producers: what they may look like."""

from __future__ import annotations

import re

from normserver.errors import InvalidArgument

_SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_TAG = re.compile(_SEGMENT)

MAX_NAME = 200
MAX_TAG = 100
PRODUCER_ID_BYTES = 16


def check_name(value: str, field: str) -> str:
    """A normalizer's name, checked.

    Raises:
        InvalidArgument: it is empty, too long, or has other characters.
    """
    if not (1 <= len(value) <= MAX_NAME and _NAME.fullmatch(value)):
        raise InvalidArgument(
            field,
            f"is {_shown(value)}; expected 1 to {MAX_NAME} letters, digits, '.', '_' or '-', in segments joined by '/'",
            reason="INVALID_NAME",
        )
    return value


def check_prefix(value: str, field: str, *, expected: str = "the beginning of a name") -> str:
    """The beginning of a name, or another part of one, checked; may be empty."""
    if len(value) > MAX_NAME or not re.fullmatch(r"[A-Za-z0-9._/-]*", value):
        raise InvalidArgument(field, f"is {_shown(value)}; expected {expected}", reason="INVALID_NAME")
    return value


def check_tag(value: str, field: str) -> str:
    """A snapshot's tag, checked."""
    if not (1 <= len(value) <= MAX_TAG and _TAG.fullmatch(value)):
        raise InvalidArgument(
            field,
            f"is {_shown(value)}; expected 1 to {MAX_TAG} letters, digits, '.', '_' or '-'",
            reason="INVALID_NAME",
        )
    return value


def check_producer(value: bytes, field: str) -> bytes:
    """A producer's id, checked."""
    if len(value) != PRODUCER_ID_BYTES:
        raise InvalidArgument(field, f"has {len(value)} bytes; expected {PRODUCER_ID_BYTES} random ones, drawn once")
    return value


def check_sequence(value: int, field: str) -> int:
    """A contribution's sequence, checked."""
    if value < 1:
        raise InvalidArgument(field, f"is {value}; expected a producer's contributions counted from 1")
    return value


def _shown(value: str) -> str:
    return ascii(value if len(value) <= 60 else value[:57] + "...")
