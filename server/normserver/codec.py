"""Between the contract's messages and the engine's values: float64 arrays, moments, running states, tensors."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from google.protobuf.timestamp_pb2 import Timestamp
from torch import Tensor

from normcore.kernels import launch
from normcore.moments import ROWS, Moments, violations
from normcore.running import Running
from normcore.stack import MomentsStack
from normserver.errors import InvalidArgument
from normserver.records import PIECE_FEATURES, Head, Initial, LazyRunning, SnapshotHead, part
from normstats.specs import RunningSpec, Spec
from normstats.v1 import normalization_service_pb2 as service_pb2
from normstats.v1 import resources_pb2 as pb
from normstats.v1 import tensor_pb2
from normstats.wire import carried, floats, tensor
from normstats.wire.carried import Data
from normstats.wire.dtypes import BY_NAME, ElementType

# Tensors share the bytes that were received or read. Those may not be written to, and nothing here does.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

NO_TIME = 0.0

_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_copy = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)(
    ("memcpy", ctypes.CDLL(None))
)
_new_bytes.argtypes, _new_bytes.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object


class Reply(NamedTuple):
    """A message that carries a normalized tensor, but for the tensor: its type, and its fields `mode` and `version`."""

    message: type[service_pb2.NormalizeResponse | service_pb2.NormalizeStreamResponse]
    mode: service_pb2.Mode.ValueType
    version: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A reply with a normalized tensor as it is sent, and the batch's own moments where they were taken."""

    sent: bytes
    size_bytes: int
    batches: Sequence[Moments] = ()


# Squared, and times 2^53 rows, such values still stay below float64's largest.
MAX_MAGNITUDE = 1e140
MAX_COUNT = 2.0**53
MAX_TOTAL = 1e300
MAX_M2 = MAX_COUNT * (2 * MAX_MAGNITUDE) ** 2


def float64_tensor(data: bytes) -> Tensor:
    """A float64 tensor of its bytes, which it shares."""
    return torch.frombuffer(data, dtype=torch.float64) if data else torch.empty(0, dtype=torch.float64)


def float64_bytes(values: Tensor) -> bytes:
    """The little-endian float64 bytes of a tensor."""
    return floats.to_bytes(values.cpu().numpy())


def decode_array(data: bytes, sizes: Iterable[int], field: str) -> Tensor:
    """A float64 array of one of the sizes that are allowed.

    Raises:
        InvalidArgument: it has another size.
    """
    allowed = tuple(sizes)
    if len(data) & 7 or len(data) >> 3 not in allowed:
        expected = " or ".join(str(8 * size) for size in dict.fromkeys(allowed))
        raise InvalidArgument(field, f"has {len(data)} bytes; expected {expected} (float64)")
    return float64_tensor(data)


def decode_count(data: bytes, num_features: int, field: str) -> Tensor:
    """A count: one number for all features (shape ()), or one for each (shape (C,))."""
    count = decode_array(data, (1, num_features), field)
    return count.reshape(()) if count.numel() == 1 else count


def decode_batches(messages: Sequence[pb.Moments], field: str, num_features: int | None = None) -> MomentsStack:
    """Moments of C features, one after another, checked: sizes, finite, count >= 0, m2 >= 0, min <= mean <= max.

    Where C is not given it is as the first says.

    Raises:
        InvalidArgument: they do not hold; the field is that of the first that is wrong.
    """
    if num_features is None:
        num_features = len(messages[0].mean) // 8 if messages else 0
    rows = [_row(message, num_features, f"{field}[{index}]") for index, message in enumerate(messages)]
    return _checked(b"".join(rows), num_features, [f"{field}[{index}]" for index in range(len(rows))])


def decode_moments(message: pb.Moments, num_features: int, field: str) -> Moments:
    """Moments of C features, checked likewise.

    Raises:
        InvalidArgument: they do not hold.
    """
    return _checked(_row(message, num_features, field), num_features, (field,))[0]


def _totals(message: pb.Moments, num_features: int, field: str) -> Moments:
    """Moments of any number of contributions."""
    stack = _stack(_row(message, num_features, field), 1, num_features)
    if not launch.within(stack.values, max_count=MAX_TOTAL, max_magnitude=MAX_MAGNITUDE, max_m2=sys.float_info.max):
        _check_real(stack[0], field)
    return stack[0]


def _checked(data: bytes, num_features: int, paths: Sequence[str]) -> MomentsStack:
    stack = _stack(data, len(paths), num_features)
    check_mergeable(stack, paths)
    return stack


def _stack(data: bytes, size: int, num_features: int) -> MomentsStack:
    return MomentsStack(float64_tensor(data).reshape(size, len(ROWS), num_features))


def _row(message: pb.Moments, num_features: int, field: str) -> bytes:
    """The bytes of one row of a stack."""
    size = 8 * num_features
    count, mean, mean_low, m2 = message.count, message.mean, message.mean_low, message.m2
    m2_low, low, high = message.m2_low, message.min, message.max
    if len(count) == 8:
        count = count * num_features
    row = b"".join((count, mean, mean_low or bytes(size), m2, m2_low or bytes(size), low, high))
    if len(row) != len(ROWS) * size or not len(count) == len(mean) == len(m2) == len(low) == len(high) == size:
        for name in ROWS:
            expected = (1, num_features) if name == "count" else (num_features,)
            if getattr(message, name) or not name.endswith("_low"):
                decode_array(getattr(message, name), expected, f"{field}.{name}")
    return row


def check_mergeable(batches: MomentsStack, paths: Sequence[str]) -> None:
    """Check that moments are those of real values, and that no merge of them can overflow.

    Raises:
        InvalidArgument: those that the first wrong one came in are not.
    """
    if launch.within(batches.values, max_count=MAX_COUNT, max_magnitude=MAX_MAGNITUDE, max_m2=MAX_M2):
        return
    for field, moments in zip(paths, batches, strict=True):
        _check_one(moments, field)


def _check_real(moments: Moments, field: str) -> None:
    if problem := violations(moments):
        raise InvalidArgument(field, f"cannot be merged: {problem}", reason="INVALID_MOMENTS")


def _check_one(moments: Moments, field: str) -> None:
    """The same, one after another, and with sentences."""
    _check_real(moments, field)
    if bool((moments.count > MAX_COUNT).any()):
        raise InvalidArgument(
            f"{field}.count", "exceeds 2^53, beyond which float64 cannot count", reason="INVALID_MOMENTS"
        )
    seen = moments.count > 0
    if bool((seen & (moments.m2 > MAX_M2)).any()):
        raise InvalidArgument(
            field, "cannot be merged: m2 is more than its values could give", reason="INVALID_MOMENTS"
        )
    if bool((seen & ((moments.min < -MAX_MAGNITUDE) | (moments.max > MAX_MAGNITUDE))).any()):
        raise InvalidArgument(
            field,
            f"cannot be merged: some values are beyond {MAX_MAGNITUDE:g} in magnitude, where squares overflow float64",
            reason="INVALID_MOMENTS",
        )


def encode_moments(moments: Moments) -> pb.Moments:
    """The contract's form of moments."""
    data, size = float64_bytes(moments.values), 8 * moments.num_features
    fields = {name: data[index * size : (index + 1) * size] for index, name in enumerate(ROWS)}
    if moments.count.dim() == 0:
        fields["count"] = fields["count"][:8]
    return pb.Moments(**fields)


def decode_running(message: pb.RunningState, num_features: int, field: str) -> Running:
    """A running state of C features, checked: sizes, finite, and so on. Its totals may exceed what can be contributed.

    Raises:
        InvalidArgument: it does not hold.
    """
    count = decode_count(message.count, num_features, f"{field}.count")
    if not (0 <= float(count) <= MAX_TOTAL if count.dim() == 0 else ((count >= 0) & (count <= MAX_TOTAL)).all()):
        raise InvalidArgument(f"{field}.count", "has values that are negative or not finite")
    if message.num_batches < 0:
        raise InvalidArgument(f"{field}.num_batches", f"is {message.num_batches}; expected at least 0")
    return Running(
        moments=_totals(message.moments, num_features, f"{field}.moments"),
        count=count,
        num_batches=message.num_batches,
        time=decode_time(message.reference_time, f"{field}.reference_time")
        if message.HasField("reference_time")
        else NO_TIME,
    )


def decode_time(message: Timestamp, field: str) -> float:
    """Seconds since the epoch, to the microsecond.

    Raises:
        InvalidArgument: it is no time since 1970.
    """
    if not (0 <= message.seconds < 2**33 and 0 <= message.nanos < 1_000_000_000):
        raise InvalidArgument(field, f"is {message.seconds} s and {message.nanos} ns; expected a time since 1970")
    return message.ToMicroseconds() / 1e6


class StoredRunning(LazyRunning):
    """Running statistics as they were stored, in pieces, decoded when they are first read: most are never."""

    __slots__ = ("_num_features", "_pieces")

    _pieces: Sequence[bytes]
    _num_features: int

    def __init__(self, pieces: Sequence[bytes], num_features: int, num_rows: float, num_batches: int) -> None:
        fields = {"_pieces": pieces, "_num_features": num_features, "num_rows": num_rows, "num_batches": num_batches}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def piece(self, start: int) -> Running:
        """The piece that begins at a feature; the others stay as they are."""
        if pieces := self._pieces:
            return decode_piece(pieces[start // PIECE_FEATURES], start, self._num_features)
        return part(Running(self.moments, self.count, self.num_batches, self.time), start)

    def _made(self, name: str) -> Any:
        pieces, starts = self._pieces, range(0, self._num_features, PIECE_FEATURES)
        if not pieces:  # another thread has decoded them meanwhile
            return object.__getattribute__(self, name)
        found = [decode_piece(piece, at, self._num_features) for piece, at in zip(pieces, starts, strict=True)]
        decoded = found[0] if len(found) == 1 else _joined(found)
        for field in ("moments", "count", "time"):
            object.__setattr__(self, field, getattr(decoded, field))
        object.__setattr__(self, "_pieces", ())  # the arrays are copies of it
        return getattr(decoded, name)


def stored(spec: Spec, head: Head | SnapshotHead, pieces: Sequence[bytes]) -> Running | None:
    """The statistics that pieces hold, of a normalizer of this spec or of a snapshot."""
    if not isinstance(spec, RunningSpec):
        return None
    if not pieces:
        return Initial(spec)
    return StoredRunning(pieces, spec.num_features, head.num_rows, head.num_batches)


def decode_piece(data: bytes, start: int, num_features: int) -> Running:
    """The piece of running statistics, of so many features in all, that begins at a feature.

    Raises:
        DecodeError, InvalidArgument: it does not hold.
    """
    width = min(PIECE_FEATURES, num_features - start)
    return decode_running(pb.RunningState.FromString(data), width, "running")


def encode_pieces(running: Running) -> Iterator[tuple[int, bytes]]:
    """Running statistics in pieces as they are stored, each with its first feature."""
    width = running.moments.num_features  # of what was stored: decoded once, not piece by piece
    for start in range(0, width, PIECE_FEATURES):
        yield start, encode_running(part(running, start)).SerializeToString()


def _joined(pieces: Sequence[Running]) -> Running:
    moments = Moments(torch.cat([piece.moments.values for piece in pieces], dim=1))
    counts = [piece.count for piece in pieces]
    if all(count.dim() == 0 and count == counts[0] for count in counts):
        count = counts[0]
    else:
        count = torch.cat([one.expand(piece.moments.num_features) for one, piece in zip(counts, pieces, strict=True)])
    return Running(moments, count, pieces[0].num_batches, pieces[0].time)


def encode_running(running: Running) -> pb.RunningState:
    """The contract's form of a running state. Times are kept to the microsecond, which a float64 holds exactly."""
    message = pb.RunningState(
        moments=encode_moments(running.moments),
        count=float64_bytes(running.count),
        num_batches=running.num_batches,
    )
    if running.time != NO_TIME:
        message.reference_time.FromMicroseconds(round(running.time * 1e6))
    return message


def dtype_of(element: ElementType) -> torch.dtype:
    """torch's name of an element type."""
    dtype: torch.dtype = getattr(torch, element.name)
    return dtype


def decode_tensor(description: tensor.Description, data: Data) -> Tensor:
    """The tensor that checked bytes hold; it shares them, and must not be written to."""
    dtype = dtype_of(description.element)
    if not data:
        return torch.empty(description.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(description.shape)


@lru_cache(maxsize=1024)
def _header(reply: Reply, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """The bytes of a reply but for its data; most replies differ in those alone."""
    number = BY_NAME[str(dtype).removeprefix("torch.")].number
    output = tensor_pb2.Tensor(dtype=number, shape=shape)
    return reply.message(output=output, mode=reply.mode, version=reply.version).SerializeToString()


def describe(reply: Reply, values: Tensor) -> bytes:
    """A reply with a tensor's description, whose bytes go another way."""
    return _header(reply, values.dtype, tuple(values.shape))


def before(reply: Reply, dtype: torch.dtype, shape: tuple[int, ...], size: int) -> bytes:
    """What goes before a tensor's bytes in a reply."""
    return carried.before(_header(reply, dtype, shape), size)


def room(reply: Reply, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[bytes, Tensor]:
    """A reply as it is sent, and the tensor in it, which is still to be written."""
    return room_for(dtype, shape, before(reply, dtype, shape, prod(shape) * dtype.itemsize))


def room_for(dtype: torch.dtype, shape: tuple[int, ...], header: bytes = b"") -> tuple[bytes, Tensor]:
    """Bytes that begin with a header, and the tensor that follows it, which is still to be written.

    Nobody else has the bytes yet, so they may be: see PyBytes_FromStringAndSize in Python's C API.
    """
    size = prod(shape) * dtype.itemsize
    if not size:
        return header, torch.empty(shape, dtype=dtype)
    whole = unwritten(size, header)
    return whole, torch.frombuffer(whole, dtype=dtype, offset=len(header)).reshape(shape)


def unwritten(size: int, header: bytes = b"", footer: bytes = b"") -> bytes:
    """Bytes that begin with a header and end with a footer, and `size` between them that are still to be written."""
    whole: bytes = _new_bytes(None, len(header) + size + len(footer))
    _copy(address_of(whole), header, len(header))
    if footer:
        _copy(address_of(whole) + len(header) + size, footer, len(footer))
    return whole


def address_of(data: Data) -> int:
    """Where the first byte is: good while they are held."""
    if type(data) is bytes:
        return id(data) + _BYTES_BEGIN
    address: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return address


# How far behind its object's own beginning the first of bytes is; the last is followed by one more.
_BYTES_BEGIN = bytes.__basicsize__ - 1


def encode_tensor(reply: Reply, values: Tensor) -> bytes:
    """A reply with a tensor's description, and its row-major bytes, which are copied once."""
    data: Data = b""
    if values.numel():
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return carried.join(describe(reply, values), data)
