"""The rooms of kernels, each with the reference's parameters and on its own device.

CUDA's kernels run on the device where there is one, and else in Triton's interpreter.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from normcore.kernels import reference
from normcore.kernels.base import ChannelMoments, Coefficients, Rule

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported


T = TypeVar("T")


@dataclass(frozen=True)
class Room:
    """Operations on views (A, C, B) and (R, K). All moments come without a count of what is not finite."""

    name: str
    _kernels: Any
    _device: str = "cpu"

    @property
    def is_interpreted(self) -> bool:
        """Whether a call takes a hundredth of a second."""
        return self.name == "cuda" and self._device == "cpu"

    def some(self, of: Iterable[T]) -> list[T]:
        """All of these; every second one where kernels are interpreted."""
        return list(of)[:: 2 if self.is_interpreted else 1]

    def reads(self, x: Tensor) -> bool:
        """Whether a kernel sees x as it is: Triton's interpreter misreads subnormal bfloat16."""
        subnormal = (x != 0) & (x.abs() < torch.finfo(torch.bfloat16).smallest_normal)
        return not (self.is_interpreted and x.dtype == torch.bfloat16 and bool(subnormal.any()))

    def _here(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(self._device)

    def _shape(self, x: Tensor) -> tuple[tuple[int, ...], ...]:
        """The CPU's functions are told the view beside the memory."""
        return (tuple(x.shape),) if self.name == "cpu" else ()

    def channel_moments(
        self, x: Tensor, mask: Tensor | None = None, weights: Tensor | None = None, *, omit: bool = False
    ) -> Tensor:
        """Packed moments (7, C)."""
        masked, weighted = self._here(mask), self._here(weights)
        found: ChannelMoments = self._kernels.channel_moments(
            self._here(x), *self._shape(x), masked, weighted, omit=omit
        )
        return found.values.cpu()

    def channel_norm(self, x: Tensor, rule: Rule, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output and packed moments."""
        if self._device != "cpu" and hasattr(rule, "weight"):
            rule = rule._replace(weight=self._here(rule.weight), bias=self._here(rule.bias))
        y, found = self._kernels.channel_norm(self._here(x), *self._shape(x), rule, self._here(mask))
        return y.cpu(), found.values.cpu()

    def channel_apply(self, x: Tensor, by: Coefficients, mask: Tensor | None = None) -> Tensor:
        """Output."""
        by = by._replace(values=by.values.to(self._device))
        return self._kernels.channel_apply(self._here(x), *self._shape(x), by, self._here(mask)).cpu()

    def row_norm(
        self,
        x: Tensor,
        *,
        eps: float,
        center: bool = True,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Output."""
        per: dict[str, Any] = {}
        if self.name == "cpu":
            per["per"] = next((tuple(one.shape) for one in (weight, bias) if one is not None), (1, 1))
        affine = {"weight": self._here(weight), "bias": self._here(bias)}
        return self._kernels.row_norm(
            self._here(x), *self._shape(x), eps=eps, center=center, mask=self._here(mask), **affine, **per
        ).cpu()

    def row_norm_ragged(
        self,
        x: Tensor,
        starts: Tensor,
        lengths: Tensor,
        *,
        eps: float,
        center: bool = True,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Output."""
        affine = {"weight": self._here(weight), "bias": self._here(bias)}
        where = self._here(starts), self._here(lengths)
        return self._kernels.row_norm_ragged(self._here(x), *where, eps=eps, center=center, **affine).cpu()

    def power_norm(self, x: Tensor, p: float, eps: float, mask: Tensor | None = None) -> Tensor:
        """Output."""
        return self._kernels.power_norm(self._here(x), *self._shape(x), p, eps, self._here(mask)).cpu()


def of(name: str) -> Room:
    """A room by its name, or a skipped test where it cannot be."""
    if name == "reference":
        return Room(name, reference)
    needed = {"cpu": "numba", "cuda": "triton"}[name]
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    device = "cuda" if name == "cuda" and torch.cuda.is_available() else "cpu"
    return Room(name, importlib.import_module(f"normcore.kernels.{name}"), device)
