"""Tensor descriptions, checked: what the bytes must be before anyone touches them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from normstats.v1 import tensor_pb2 as pb
from normstats.wire.dtypes import BY_NAME, BY_NUMBER, ElementType

MAX_RANK = 8
MAX_STRIDE_BYTES = 2**60


class InvalidTensor(ValueError):
    """A tensor's description does not hold; `field` says which part of it: dtype, shape or data."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


class Description(NamedTuple):
    """A checked description."""

    element: ElementType
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """How many bytes the tensor has, exactly."""
        return math.prod(self.shape) * self.element.size_bytes


def describe(name: str, shape: Sequence[int]) -> pb.Tensor:
    """The description of a tensor of dtype `name`.

    Raises:
        InvalidTensor: the dtype is none that travels, or there are too many dimensions.
    """
    if name not in BY_NAME:
        raise InvalidTensor("dtype", f"is {name}; expected one of {', '.join(BY_NAME)}")
    if len(shape) > MAX_RANK:
        raise InvalidTensor("shape", f"has {len(shape)} dimensions; expected at most {MAX_RANK}")
    return pb.Tensor(dtype=BY_NAME[name].number, shape=shape)


def check(tensor: pb.Tensor) -> Description:
    """Check a description without allocating anything.

    Raises:
        InvalidTensor: the dtype is unknown, there are more than 8 dimensions, one is negative, or they are too large.
    """
    element = BY_NUMBER.get(tensor.dtype)
    if element is None:
        raise InvalidTensor("dtype", f"is {tensor.dtype}; expected one of the contract's DType")
    if len(tensor.shape) > MAX_RANK:
        raise InvalidTensor("shape", f"has {len(tensor.shape)} dimensions; expected at most {MAX_RANK}")
    for axis, size in enumerate(tensor.shape):
        if size < 0:
            raise InvalidTensor("shape", f"[{axis}] is {size}; expected at least 0")
    # A size of 0 makes the bytes 0, however large the others are; strides are still the product of those.
    if math.prod(max(size, 1) for size in tensor.shape) * element.size_bytes >= MAX_STRIDE_BYTES:
        raise InvalidTensor("shape", f"is {list(tensor.shape)}, which no memory can index")
    return Description(element, tuple(tensor.shape))


def check_bytes(description: Description, received_bytes: int) -> None:
    """Check that the bytes received are the bytes described.

    Raises:
        InvalidTensor: they are more or fewer.
    """
    if received_bytes != description.size_bytes:
        shape = ", ".join(str(size) for size in description.shape)
        raise InvalidTensor(
            "data",
            f"has {received_bytes} bytes; {description.element.name} of shape ({shape}) takes {description.size_bytes}",
        )


def numpy_dtype(element: ElementType) -> np.dtype[Any]:
    """The numpy dtype of an element type; bfloat16 needs the ml_dtypes package.

    Raises:
        TypeError: it is bfloat16 and ml_dtypes is not installed.
    """
    if element.name != "bfloat16":
        return np.dtype(element.name).newbyteorder("<")
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError("numpy has no bfloat16 of its own: pip install ml_dtypes, or use torch tensors") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
