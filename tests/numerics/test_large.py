"""Tensors of more than 2 ** 31 elements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from normcore.kernels.base import COUNT, M2, M2_LOW, MAX, MEAN, MIN
from tests.numerics import rooms

ELEMENTS = 2**31 + 5000
NEEDED = 8 << 30


def available() -> int:
    """Bytes of memory that are free; 0 where that cannot be read."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)


@pytest.fixture(scope="module")
def memory() -> Iterator[Tensor]:
    """Ones, and the last values another each."""
    if available() < NEEDED:
        pytest.skip(f"{available() >> 20} MiB of memory are available; {NEEDED >> 20} MiB are needed")
    x = torch.ones(ELEMENTS, dtype=torch.uint8)
    x[-8:] = torch.arange(200, 208, dtype=torch.uint8)
    yield x
    del x


def test_columns_beyond_2_to_the_31_are_indexed_in_64_bits(memory: Tensor) -> None:
    rows = ELEMENTS // 8
    found = rooms.of("cpu").channel_moments(memory.reshape(rows, 8, 1))
    for channel, value in enumerate(range(200, 208)):
        assert_one_among_ones(found[:, channel], rows, value)


def test_long_channels_beyond_2_to_the_31_are_indexed_in_64_bits(memory: Tensor) -> None:
    length = ELEMENTS // 2
    found = rooms.of("cpu").channel_moments(memory[: 2 * length].reshape(1, 2, length))
    assert found[:, 0].tolist() == [length, 1, 0, 0, 0, 1, 1]
    assert found[[COUNT, MIN, MAX], 1].tolist() == [length, 1, 207]
    far = list(range(199, 207))
    assert found[MEAN, 1].item() == pytest.approx(1 + sum(far) / length, rel=1e-15)
    m2 = sum(one * one for one in far) - sum(far) ** 2 / length
    assert (found[M2, 1] + found[M2_LOW, 1]).item() == pytest.approx(m2, rel=1e-14)


def assert_one_among_ones(found: Tensor, count: int, value: int) -> None:
    """Moments of count - 1 ones and one other value."""
    assert found[[COUNT, MIN, MAX]].tolist() == [count, 1, value]
    assert found[MEAN].item() == pytest.approx(1 + (value - 1) / count, rel=1e-15)
    assert (found[M2] + found[M2_LOW]).item() == pytest.approx((value - 1) ** 2 * (1 - 1 / count), rel=1e-14)
