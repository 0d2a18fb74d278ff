"""Messages that carry a tensor's bytes, without protobuf's copies of them.

`data` has the highest number, so it is written last: such a message is a small protobuf message, a tag, a length, and
the bytes. On the way out they are joined once, straight from the array's memory; on the way in a view of what was
received is handed on, and protobuf reads the rest. Both ends speak plain protobuf: what they write is, byte for byte,
what protobuf writes, and whatever is not of that form is left to protobuf to read, or to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
# The tag of an item, field 1 of wire type 2.
_ITEM = 0x0A
# The tag of an int64 of field 2; a negative one is written as the number that it is so much below.
_NUMBER, _INT64_VALUES = 0x10, 1 << 64
# Up to this size protobuf is faster than looking for the data here.
_SMALL_BYTES = 1 << 16
# What precedes the data is looked through field by field; a message of so many is left to protobuf.
_MOST_FIELDS = 64
# Beginnings of large messages that are remembered, and how long they may be.
_MOST_BEGINNINGS, _LONGEST_BEGINNING = 256, 1 << 10


class Carried(Generic[M]):
    """A message without its `data`, and that."""

    __slots__ = ("data", "message")

    def __init__(self, message: M, data: Data = b"") -> None:
        self.message = message
        self.data = data


class ManyCarried(NamedTuple):
    """Several such messages, or what there is in their stead, and the number that their sender gave them."""

    items: list[Any]
    number: int


class _Beginning(NamedTuple, Generic[M]):
    """What precedes a large message's data, read; where the data end."""

    sent: bytes
    message: M
    end: int


def serialize(carried: Carried[Any]) -> bytes:
    """The bytes of a message with its data. `data` may be anything that has its bytes in one dense buffer."""
    return join(carried.message.SerializeToString(), carried.data)


def join(header: bytes, data: Data) -> bytes:
    """The bytes of a message whose others are serialized already."""
    return b"".join((header, _prefix(size), data)) if (size := _size(data)) else header


def before(header: bytes, size: int) -> bytes:
    """What precedes so many bytes of data in a message whose other fields are serialized already."""
    return header + _prefix(size) if size else header


def serialize_items(items: Iterable[tuple[bytes, Data]], number: int = 0) -> bytes:
    """The bytes of a message with a repeated field 1, of whose items each is a header and data, and a number."""
    parts: list[Data] = []
    for header, data in items:
        parts += (_prefix(len(header) + _size(data), _ITEM), header, data)
    parts.append(numbered(number))
    return b"".join(parts)


def serialize_requests(requests: Sequence[Carried[Any]], number: int = 0) -> bytes:
    """The bytes of a message of several that carry tensors."""
    return serialize_items(
        [(before(one.message.SerializeToString(), _size(one.data)), one.data) for one in requests], number
    )


def prefix(field: int, size: int) -> bytes:
    """The tag and the length of a field below 16 that has so many bytes."""
    return _prefix(size, field << 3 | 2)


def around(header: bytes, size: int, depth: int) -> bytes:
    """A header with what goes before it where it and `size` bytes are the only item of an item, and so on."""
    for _ in range(depth):
        header = _prefix(len(header) + size, _ITEM) + header
    return header


def numbered(number: int) -> bytes:
    """What goes behind the items of a message that has a number: field 2, an integer, unless it is 0."""
    return _tagged(number % _INT64_VALUES, _NUMBER) if number else b""


def deserializer(message_type: type[M]) -> Callable[[bytes], Carried[M]]:
    """What reads messages of a type. Those that begin alike may share their `message`, which is not to be changed.

    It raises google.protobuf.message.DecodeError where protobuf would.
    """
    large = _Large(message_type, 0)

    def deserialize(received: bytes) -> Carried[M]:
        if len(received) > _SMALL_BYTES and (found := large.read(received)) is not None:
            return found[0]
        message = message_type.FromString(received)
        data: bytes = getattr(message, _FIELD)
        message.ClearField(_FIELD)
        return Carried(message, data)

    return deserialize


def deserializer_of_many(
    message_type: type[Message], item_type: type[Message], items: Callable[[Any], list[Any]], depth: int
) -> Callable[[bytes], ManyCarried]:
    """What reads a message of several of a type, which lie `depth` fields of number 1 deep, and its `id`.

    `items` gives them where protobuf has read the message, and copied their data. One that is large comes alone.
    """
    large = _Large(item_type, depth)
    has_number = "id" in message_type.DESCRIPTOR.fields_by_name

    def deserialize(received: bytes) -> ManyCarried:
        found = large.read(received) if len(received) > _SMALL_BYTES else None
        if found is not None and (has_number or not found[1]):
            return ManyCarried([found[0]], found[1])
        message: Any = message_type.FromString(received)
        return ManyCarried(items(message), message.id if has_number else 0)

    return deserialize


class _Large(Generic[M]):
    """Reads messages of one type that carry much data, as the only items of others, `depth` deep.

    What precedes the data is mostly what preceded others: it is read once.
    """

    def __init__(self, message_type: type[M], depth: int) -> None:
        self._message_type = message_type
        self._depth = depth
        self._known: dict[int, _Beginning[M]] = {}

    def read(self, received: bytes) -> tuple[Carried[M], int] | None:
        """The message and the number behind it; None if protobuf must say what this is."""
        known = self._known.get(len(received))
        if known is None or not received.startswith(known.sent):
            if (known := self._begin(received)) is None:
                return None
            if len(known.sent) <= _LONGEST_BEGINNING:
                if len(self._known) >= _MOST_BEGINNINGS:
                    self._known.clear()
                self._known[len(received)] = known
        number = 0
        if known.end < len(received):
            if not self._depth or received[known.end] != _NUMBER:
                return None
            number, place = _varint(received, known.end + 1)
            if place != len(received) or number >= _INT64_VALUES:
                return None
            number -= _INT64_VALUES if number >= _INT64_VALUES // 2 else 0
        return Carried(known.message, memoryview(received)[len(known.sent) : known.end]), number

    def _begin(self, received: bytes) -> _Beginning[M] | None:
        begin, end = 0, len(received)
        for level in range(self._depth):
            if begin >= end or received[begin] != _ITEM:
                return None
            length, begin = _varint(received, begin + 1)
            if not begin or begin + length > end or (level and begin + length != end):
                return None
            end = begin + length
        if not (start := find(received, begin, end)):
            return None
        message = self._message_type()
        message.ParseFromString(received[begin : start - len(_prefix(end - start))])
        return _Beginning(received[:start], message, end)


def _size(data: Data) -> int:
    return data.nbytes if isinstance(data, memoryview) else len(data)


def find(received: bytes, begin: int = 0, end: int | None = None) -> int:
    """Where the data begin of the message from `begin` to `end`, to which they reach; 0 if protobuf must say it.

    That is: fields before the data that are cut short, groups, data that are followed by anything, their length written
    in more bytes than it needs.
    """
    end, place = len(received) if end is None else end, begin
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
            canonical = received[begin:place].endswith(_prefix(length))
            return place if place + length == end and length and canonical else 0
        place += length
    return 0


@lru_cache(maxsize=4096)
def _prefix(size: int, tag: int = _DATA) -> bytes:
    """The tag and the length of data, or of another field below 16."""
    return _tagged(size, tag)


def _tagged(number: int, tag: int) -> bytes:
    """A tag and a varint."""
    out = bytearray((tag,))
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _varint(received: bytes, place: int) -> tuple[int, int]:
    """A number, and where it ends; (0, 0) if it does not within ten bytes."""
    value = 0
    for count, byte in enumerate(received[place : place + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, place + count + 1
    return 0, 0
