"""Messages that carry a tensor's bytes, without protobuf's copies of them.

`data` has the highest number, so it is written last: such a message is a small protobuf message, a tag, a length, and
the bytes. On the way out they are joined once, straight from the array's memory; on the way in a view of what was
received is handed on, and protobuf reads the rest. Both ends speak plain protobuf: what they write is, byte for byte,
what protobuf writes, and whatever is not of that form is left to protobuf to read, or to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
Data = bytes | memoryview

# The largest HTTP/2 frame that either end takes; by default 16 KiB. Many callers of large tensors are a fifth faster
# so; on a link of 1 Gbit/s another stream waits half a millisecond for a frame.
MAX_FRAME_BYTES = 1 << 16

# The tag of `data`, field 15 of wire type 2 (length-delimited), which is one byte.
_DATA, _FIELD = 0x7A, "data"
# The tag of an int64 of field 2; a negative one is written as the number that it is so much below.
_NUMBER, _INT64_VALUES = 0x10, 1 << 64
# Up to this size protobuf is faster than looking for the data here.
_SMALL_BYTES = 1 << 16
# What precedes the data is looked through field by field; a message of so many is left to protobuf.
_MOST_FIELDS = 64


class Carried(Generic[M]):
    """A message without its `data`, and that."""

    __slots__ = ("data", "message")

    def __init__(self, message: M, data: Data = b"") -> None:
        self.message = message
        self.data = data


class ManyCarried(NamedTuple):
    """Several such messages, and the number that their sender gave them."""

    requests: list[Carried[Any]]
    number: int


def serialize(carried: Carried[Any]) -> bytes:
    """The bytes of a message with its data. `data` may be anything that has its bytes in one dense buffer."""
    return join(carried.message.SerializeToString(), carried.data)


def join(header: bytes, data: Data) -> bytes:
    """The bytes of a message whose others are serialized already."""
    size = data.nbytes if isinstance(data, memoryview) else len(data)
    return b"".join((header, _prefix(size), data)) if size else header


def before(header: bytes, size: int) -> bytes:
    """What precedes so many bytes of data in a message whose other fields are serialized already."""
    return header + _prefix(size) if size else header


def serialize_many(messages: Sequence[bytes], field: int = 1, *, number: int = 0) -> bytes:
    """The bytes of a message that has a repeated field of serialized items, and field 2, an integer, unless it is 0."""
    tag = field << 3 | 2
    parts = [part for message in messages for part in (_prefix(len(message), tag), message)]
    if number:
        parts.append(_prefix(number % _INT64_VALUES, _NUMBER))
    return b"".join(parts)


def serialize_requests(requests: Sequence[Carried[Any]], number: int = 0) -> bytes:
    """The bytes of a message of several that carry tensors."""
    return serialize_many([serialize(request) for request in requests], number=number)


def deserializer(message_type: type[M]) -> Callable[[bytes], Carried[M]]:
    """What reads messages of a type.

    It raises google.protobuf.message.DecodeError where protobuf would.
    """

    def deserialize(received: bytes) -> Carried[M]:
        if len(received) > _SMALL_BYTES and (start := find(received)):
            message = message_type()
            message.ParseFromString(received[: start - len(_prefix(len(received) - start))])
            return Carried(message, memoryview(received)[start:])
        message = message_type.FromString(received)
        data: bytes = getattr(message, _FIELD)
        message.ClearField(_FIELD)
        return Carried(message, data)

    return deserialize


def deserializer_of_many(message_type: type[Message]) -> Callable[[bytes], ManyCarried]:
    """What reads a message whose `requests` carry tensors: small ones, which protobuf may copy. Likewise its `id`."""
    has_number = "id" in message_type.DESCRIPTOR.fields_by_name

    def deserialize(received: bytes) -> ManyCarried:
        message: Any = message_type.FromString(received)
        requests = [Carried(request, request.data) for request in message.requests]
        return ManyCarried(requests, message.id if has_number else 0)

    return deserialize


def find(received: bytes) -> int:
    """Where the data of a message begins, which reach to its end; 0 if protobuf must say what this is.

    That is: fields before the data that are cut short, groups, data that are followed by anything, their length written
    in more bytes than it needs.
    """
    end, place = len(received), 0
    for _ in range(_MOST_FIELDS):
        if place >= end:
            return 0
        tag = received[place]
        if tag >= 0x80 or tag < 8:  # fields from 16 on, or no field at all
            return 0
        length, place = 0, place + 1
        match tag & 7:
            case 0:  # a varint
                place = _varint(received, place)[1]
            case 1:  # eight bytes
                length = 8
            case 2:  # a length, and so many bytes
                length, place = _varint(received, place)
            case 5:  # four bytes
                length = 4
            case _:
                return 0
        if place == 0:
            return 0
        if tag == _DATA:
            canonical = received[:place].endswith(_prefix(length))
            return place if place + length == end and length and canonical else 0
        place += length
    return 0


@lru_cache(maxsize=4096)
def _prefix(size: int, tag: int = _DATA) -> bytes:
    """The tag and the length of data, or of another field below 16."""
    out = bytearray((tag,))
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out)


def _varint(received: bytes, place: int) -> tuple[int, int]:
    """A number, and where it ends; (0, 0) if it does not within ten bytes."""
    value = 0
    for count, byte in enumerate(received[place : place + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place + count + 1
    return 0, 0
