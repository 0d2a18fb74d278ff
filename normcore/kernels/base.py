"""What every room of kernels takes and gives: one set of names for the reference, the CPU and CUDA.

Shape letters: a channel view is (A, C, B), A all before the channel axis and B all after it; a row view is (R, K).
Views are contiguous. Masks are bool and broadcast to the view without being copied. Parameters are float64 or float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Rows of packed moments (7, C): see normcore.algebra.packed.
COUNT, MEAN, MEAN_LOW, M2, M2_LOW, MIN, MAX = range(7)


class NotCompiled(Exception):
    """A compiled kernel is not there yet: another process compiles it. The reference gives the result meanwhile."""


class Variant(NamedTuple):
    """A kernel's name, and the types of input and parameters that it is compiled for."""

    kernel: str
    x: torch.dtype
    parameters: torch.dtype

    def __str__(self) -> str:
        return f"{self.kernel} {_short(self.x)} {_short(self.parameters)}"

    @classmethod
    def parse(cls, text: str) -> Variant:
        """The variant whose `str` this is.

        Raises:
            ValueError: it is of no variant.
        """
        kernel, *types = text.split()
        found = [one for name in types if isinstance(one := getattr(torch, name, None), torch.dtype)]
        if not len(found) == len(types) == 2:
            raise ValueError(f"{text!r} is no variant of a kernel; expected KERNEL TYPE TYPE")
        return cls(kernel, found[0], found[1])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class ChannelMoments(NamedTuple):
    """Packed moments (7, C), float64, and how many NaN and infinities each channel has, float64 (C,); None for none.

    Where those are not left out, all but the count of such a channel is NaN. `plain` are moments that are known,
    without another look, to be finite, and of at least one value in each channel.
    """

    values: Tensor
    nonfinite: Tensor | None
    plain: bool = False


class Coefficients(NamedTuple):
    """(x - offset - offset_low) / divisor * factor + shift, then kept within low and high.

    values are these five in this order, float64 (5, C). A divisor of 0 divides as 1. low and high are one number for
    all channels, infinite where nothing is clipped.
    """

    values: Tensor
    low: float = -torch.inf
    high: float = torch.inf

    @classmethod
    def of(
        cls,
        offset: Tensor,
        offset_low: Tensor,
        divisor: Tensor,
        factor: Tensor,
        shift: Tensor,
        low: float = -torch.inf,
        high: float = torch.inf,
    ) -> Coefficients:
        """Of float64 tensors (C,)."""
        return cls(torch.stack((offset, offset_low, divisor, factor, shift)), low, high)

    @property
    def offset(self) -> Tensor:
        """(C,)."""
        return self.values[0]

    @property
    def offset_low(self) -> Tensor:
        """(C,)."""
        return self.values[1]

    @property
    def divisor(self) -> Tensor:
        """(C,)."""
        return self.values[2]

    @property
    def factor(self) -> Tensor:
        """(C,)."""
        return self.values[3]

    @property
    def shift(self) -> Tensor:
        """(C,)."""
        return self.values[4]


class ToUnit(NamedTuple):
    """(x - mean) / (sqrt(var + eps) + std_eps) * weight + bias, within plus and minus clip: var is the population's."""

    eps: float
    std_eps: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None
    clip: float = torch.inf


class ToRange(NamedTuple):
    """(x - min) / (max - min) * (high - low) + low, within low and high if clip."""

    low: float
    high: float
    clip: bool = False


Rule = ToUnit | ToRange


def coefficients(rule: Rule, values: Tensor) -> Coefficients:
    """What a rule makes of packed moments (7, C)."""
    if isinstance(rule, ToRange):
        low, span = values[MIN], values[MAX] - values[MIN]
        factor, shift = torch.full_like(low, rule.high - rule.low), torch.full_like(low, rule.low)
        ends = (rule.low, rule.high) if rule.clip else (-torch.inf, torch.inf)
        return Coefficients.of(low, torch.zeros_like(low), span, factor, shift, *ends)
    count, mean = values[COUNT], values[MEAN]
    # An empty channel has nothing to be divided by.
    std = (values[M2] / torch.where(count > 0, count, 1.0) + rule.eps).sqrt() + rule.std_eps
    factor = torch.ones_like(mean) if rule.weight is None else rule.weight
    shift = torch.zeros_like(mean) if rule.bias is None else rule.bias
    return Coefficients.of(mean, values[MEAN_LOW], std, factor, shift, -rule.clip, rule.clip)


# A kernel made ready for tensors of one shape and dtype: run with the address of an input and that of an output, dense.
Launch = Callable[[int, int], None]


def output_dtype(x: Tensor) -> torch.dtype:
    """The dtype of x's output: see `output_type`."""
    return output_type(x.dtype)


def output_type(dtype: torch.dtype) -> torch.dtype:
    """Floating types stay; integers and bool become float32."""
    return dtype if dtype.is_floating_point else torch.float32
