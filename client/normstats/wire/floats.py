"""Arrays of float64 as bytes: weights, moments, statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def to_bytes(values: Any) -> bytes:
    """The little-endian float64 bytes of an array; of None, nothing."""
    return b"" if values is None else np.ascontiguousarray(values, dtype="<f8").tobytes()


def from_bytes(data: bytes) -> npt.NDArray[np.float64]:
    """A read-only view of little-endian float64 bytes.

    Raises:
        ValueError: the number of bytes is not a multiple of 8.
    """
    if len(data) % 8:
        raise ValueError(f"has {len(data)} bytes; expected a multiple of 8 (float64)")
    return np.frombuffer(data, dtype="<f8")
