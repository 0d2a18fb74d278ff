"""Many moments in one tensor: what a commit takes in, and one kernel composes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from normcore.errors import InvalidParameter, ShapeMismatch
from normcore.moments import ROWS, Moments, rows_of


@dataclass(frozen=True, eq=False, slots=True)
class MomentsStack:
    """K moments of the same C features, in order: values (K, 7, C), float64, contiguous, in the order of ROWS.

    Where a count is 0, the rest of that feature is not looked at.

    Raises:
        ShapeMismatch: values has another shape.
        InvalidParameter: values is not float64.
    """

    values: Tensor

    def __post_init__(self) -> None:
        if self.values.dim() != 3 or self.values.shape[1] != len(ROWS):
            raise ShapeMismatch("values", f"has shape {list(self.values.shape)}; expected (K, {len(ROWS)}, C)")
        if self.values.dtype != torch.float64:
            raise InvalidParameter("values", f"is {self.values.dtype}; expected torch.float64")

    @classmethod
    def of(cls, moments: Sequence[Moments]) -> MomentsStack:
        """Moments, one after another.

        Raises:
            ShapeMismatch: they are of different numbers of features.
            InvalidParameter: there are none.
        """
        return cls(rows_of(moments))

    @classmethod
    def empty(cls, num_features: int) -> MomentsStack:
        """No moments at all."""
        return cls(torch.empty(0, len(ROWS), num_features, dtype=torch.float64))

    @classmethod
    def cat(cls, stacks: Sequence[MomentsStack]) -> MomentsStack:
        """All of them, one after another."""
        return stacks[0] if len(stacks) == 1 else cls(torch.cat([stack.values for stack in stacks]))

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, index: int) -> Moments:
        return Moments(self.values[index])

    def __iter__(self) -> Iterator[Moments]:
        return (self[index] for index in range(len(self)))

    @property
    def num_features(self) -> int:
        """C."""
        return self.values.shape[2]

    @property
    def counts(self) -> Tensor:
        """(K, C)."""
        return self.values[:, 0]
