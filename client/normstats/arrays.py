"""What callers hand in, as a description and bytes, and back in kind: numpy in, numpy out; torch in, torch out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from normstats.errors import Internal, InvalidArgument
from normstats.kept import RESULTS
from normstats.v1 import tensor_pb2
from normstats.wire import tensor
from normstats.wire.carried import Data
from normstats.wire.dtypes import BY_NAME, FLOATING

if TYPE_CHECKING:
    import torch


# numpy's own types that travel as they are. Its `dtype.name` is made anew each time.
_NATIVE = {np.dtype(name): name for name in BY_NAME if name != "bfloat16" and sys.byteorder == "little"}


@dataclass(frozen=True, slots=True)
class Payload:
    """A dense array: its dtype's name, its shape, its elements in a C-ordered little-endian numpy array.

    bfloat16 from torch is held as its bits (uint16). `like` is the torch tensor it came from, if it did.
    """

    name: str
    values: npt.NDArray[Any]
    like: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.values.shape

    @property
    def row_bytes(self) -> int:
        """The bytes of one slice of axis 0; 0 for a scalar or an empty array."""
        return self.values.nbytes // self.values.shape[0] if self.values.ndim and self.values.shape[0] else 0

    def describe(self) -> tensor_pb2.Tensor:
        """The description on the wire.

        Raises:
            InvalidArgument: the dtype is none that travels, or there are too many dimensions.
        """
        try:
            return tensor.describe(self.name, self.shape)
        except tensor.InvalidTensor as error:
            raise InvalidArgument(f"{error.field} {error}", field=error.field) from None

    def data(self) -> Data:
        """The bytes on the wire: the array's own memory."""
        return self.values.reshape(-1).view(np.uint8).data if self.values.size else b""

    def rows(self, start: int, stop: int) -> Payload:
        """Some slices of axis 0."""
        return Payload(self.name, self.values[start:stop], self.like)


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def payload_of(value: Any) -> Payload:
    """A numpy array, torch tensor or sequence as a payload; copied only where its memory is not dense already."""
    if type(value) is np.ndarray and value.dtype in _NATIVE and value.flags.c_contiguous:
        return Payload(_NATIVE[value.dtype], value)
    if is_torch(value):
        import torch

        dense = value.detach().cpu().contiguous()
        if dense.dtype is torch.bfloat16:
            return Payload("bfloat16", dense.view(torch.int16).numpy().view(np.uint16), value)
        array = dense.numpy()
        return Payload(array.dtype.name, array, value)
    array = _array(value, "input")
    if array.dtype == object:
        raise InvalidArgument("input is no array of numbers", field="input")
    dense = np.ascontiguousarray(array).reshape(array.shape)
    return Payload(array.dtype.name, dense.astype(dense.dtype.newbyteorder("<"), copy=False))


def numbers_of(value: Any, field: str = "batch") -> npt.NDArray[Any]:
    """A numpy array of a caller's values whose arithmetic numpy can do: bfloat16 becomes float32, exactly.

    Raises:
        InvalidArgument: they are no real numbers.
    """
    if is_torch(value):
        import torch

        value = value.detach().cpu()
        value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    array = _array(value, field)
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind not in "biuf":  # numpy would drop an imaginary part, and count seconds of dates
        raise InvalidArgument(f"{field} is {array.dtype}; expected real numbers", field=field)
    return array


def _array(value: Any, field: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise InvalidArgument(f"{field} is no array of numbers: {error}", field=field) from None


def output_of(like: Payload, description: tensor_pb2.Tensor, data: Data) -> Any:
    """The result of a normalization that came whole, in the kind that the input came in.

    Raises:
        Internal: the server sent more or less than that, or something else.
    """
    if like.like is None and like.name in FLOATING and like.name != "bfloat16":
        element = BY_NAME[like.name]
        if description.dtype == element.number and len(data) == like.values.nbytes:
            return np.frombuffer(data, like.values.dtype).reshape(like.values.shape).copy()
    output = Output(like)
    output.add(description, data)
    return output.value()


class Output:
    """The result of a normalization, filled from one reply or several, in the kind that the input came in."""

    def __init__(self, like: Payload, out: Any = None) -> None:
        """`out`, if given, is what is filled and returned.

        Raises:
            InvalidArgument: it is of another kind, shape or dtype than the result, or its memory is not dense.
        """
        self._like = like
        self._out = out
        self._element = BY_NAME[like.name if like.name in FLOATING else "float32"]
        self.size_bytes = like.values.size * self._element.size_bytes
        self.memory = None if out is None else self._memory_of(out)
        self._bytes: npt.NDArray[np.uint8] | None = None
        self._offset, self._wrong = 0, ""

    @property
    def overwrites(self) -> bool:
        """Whether it goes where the input is."""
        return self.memory is not None and np.may_share_memory(self.memory, self._like.values)

    def add(self, description: tensor_pb2.Tensor, data: Data) -> None:
        """The next rows, or all of them."""
        if self._bytes is None:
            # What is overwritten may be needed again, for another attempt.
            self._bytes = RESULTS.array(self.size_bytes) if self.memory is None or self.overwrites else self.memory
        if description.dtype != self._element.number:
            self._wrong = f"dtype {description.dtype}"
        end = self._offset + len(data)
        if end <= self.size_bytes:  # what is more than that, `value` reports
            self._bytes.data[self._offset : end] = data
        self._offset = end

    def lies_in(self, memory: npt.NDArray[np.uint8]) -> None:
        """All of it is there already."""
        self._bytes, self._offset = memory, self.size_bytes

    def value(self) -> Any:
        """The whole.

        Raises:
            Internal: the server sent more or less than that, or something else.
        """
        if self._bytes is None or self._offset != self.size_bytes or self._wrong:
            got = self._wrong or f"{self._offset} bytes"
            raise Internal(f"the server's answer has {got}; expected {self.size_bytes} bytes of {self._element.name}")
        if self.memory is not None:
            if self._bytes is not self.memory:
                self.memory[:] = self._bytes
            return self._out
        if self._like.like is not None:
            return self._torch(self._bytes.data)
        return self._bytes.view(tensor.numpy_dtype(self._element)).reshape(self._like.shape)

    def _memory_of(self, out: Any) -> npt.NDArray[np.uint8]:
        """The memory of an array that the result goes into."""
        payload, wanted = payload_of(out), self._element.name
        if (payload.name, payload.shape, is_torch(out)) != (wanted, self._like.shape, self._like.like is not None):
            kind = "numpy array" if self._like.like is None else "torch tensor"
            raise InvalidArgument(
                f"out is {payload.name} of shape {payload.shape}; expected a {kind}, {wanted} of shape "
                f"{self._like.shape}",
                field="out",
            )
        address = out.data_ptr() if is_torch(out) else address_of(out)
        if not payload.values.flags.writeable or (payload.values.size and address_of(payload.values) != address):
            raise InvalidArgument("out is read-only or not dense, or on a device", field="out")
        return payload.values.reshape(-1).view(np.uint8)

    def _torch(self, buffer: memoryview) -> torch.Tensor:
        import torch

        like = self._like.like
        assert like is not None
        dtype = getattr(torch, self._element.name)
        if not buffer:
            return torch.empty(self._like.shape, dtype=dtype, device=like.device)
        return torch.frombuffer(buffer, dtype=dtype).reshape(self._like.shape).to(like.device)


def address_of(values: npt.NDArray[Any]) -> int:
    """Where an array's first byte is in this process."""
    address: int = values.__array_interface__["data"][0]
    return address
