"""Messages of any type of the contract, made from its descriptor; and messages that were right, a little changed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

INTEGERS = (0, 1, 2, 3, 4, 7, 16, 64, 1000, -1, -2, -64)
INT32 = (2**31 - 1, -(2**31))
INT64 = (2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))
DOUBLES = (0.0, -0.0, 1.0, 2.0, 1e-5, 0.1, -1.0, 5e-324, 2.0**53, 1e140, 1e308, math.inf, -math.inf, math.nan)
ODD_STRINGS = ("", "a\nb", "\x1b[31m", "a//b", "../../etc/passwd", "é", "\U0001f600", "a" * 201, "%s{0}", "' OR 1=1 --")
ODD_SIZES = (0, 1, 7, 8, 15, 16, 17, 23, 24, 25, 47, 48, 49, 200)


class Words(NamedTuple):
    """What a caller may know: names of what is there, tags, page tokens; ids of producers and regions."""

    strings: tuple[str, ...]
    ids: tuple[bytes, ...]


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, words: Words) -> Message:
    """Messages of a type with most of its fields, of a oneof with at most one."""
    message = GetMessageClass(descriptor)()
    fields = [field for field in descriptor.fields if field.containing_oneof is None]
    fields += [draw(st.sampled_from(list(oneof.fields))) for oneof in descriptor.oneofs]
    for field in fields:
        if draw(st.integers(0, 5)):
            _set(message, field, draw(_value(field, words)))
    return message


@st.composite
def changed(draw: st.DrawFn, message: Message, words: Words) -> Message:
    """A message with one to three of its fields, or of those of the messages in it, set to something else."""
    out = type(message)()
    out.CopyFrom(message)
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        nodes = [node for node in _nodes(out) if node.DESCRIPTOR.fields]
        if not nodes:
            break
        node = draw(st.sampled_from(nodes))
        field = draw(st.sampled_from(list(node.DESCRIPTOR.fields)))
        node.ClearField(field.name)
        if draw(st.integers(0, 5)):
            _set(node, field, draw(_value(field, words)))
    return out


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes cut short, with bits turned, or followed by others."""
    match draw(st.sampled_from(("cut", "turned", "followed", "other"))):
        case "cut" if data:
            return data[: draw(st.integers(0, len(data) - 1))]
        case "turned" if data:
            out = bytearray(data)
            for place in draw(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=8)):
                out[place // 8] ^= 1 << place % 8
            return bytes(out)
        case "followed":
            return data + draw(st.binary(min_size=1, max_size=24))
    return draw(st.binary(max_size=64))


def _nodes(message: Message) -> Iterator[Message]:
    """A message, and all that it holds."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                yield from _nodes(one)


@lru_cache(maxsize=4096)
def _value(field: FieldDescriptor, words: Words) -> st.SearchStrategy[Any]:
    one = _single(field, words)
    return st.lists(one, max_size=4) if field.is_repeated else one


def _single(field: FieldDescriptor, words: Words) -> st.SearchStrategy[Any]:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_MESSAGE:
            return messages(field.message_type, words)
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.sampled_from([*field.enum_type.values_by_number, -1, 99, 2**31 - 1])
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_INT32:
            return _mostly(st.sampled_from(INTEGERS + INT32), st.integers(-(2**31), 2**31 - 1))
        case FieldDescriptor.CPPTYPE_INT64:
            return _mostly(st.sampled_from(INTEGERS + INT32 + INT64), st.integers(-(2**63), 2**63 - 1))
        case FieldDescriptor.CPPTYPE_DOUBLE:
            return _mostly(st.sampled_from(DOUBLES), st.floats())
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_STRING:
            return _strings(words)
        case FieldDescriptor.CPPTYPE_STRING:
            return _bytes(words)
    raise TypeError(f"{field.full_name}: the contract has had no such field so far; say how to make one")


def _strings(words: Words) -> st.SearchStrategy[str]:
    odd = st.sampled_from(ODD_STRINGS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    return _mostly(st.sampled_from(words.strings), odd)


def _bytes(words: Words) -> st.SearchStrategy[bytes]:
    arrays = st.lists(st.sampled_from(DOUBLES) | st.floats(0, 10), min_size=1, max_size=4)
    return (
        st.sampled_from(words.ids)
        | arrays.map(lambda values: np.array(values, "<f8").tobytes())
        | st.sampled_from(ODD_SIZES).map(bytes)
        | st.binary(max_size=32)
    )


def _mostly(these: st.SearchStrategy[Any], those: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from((these,) * 5 + (those,)).flatmap(lambda chosen: chosen)


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, value)
