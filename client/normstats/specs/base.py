"""What all specs share: how arguments are checked, and what makes two specs the same."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class InvalidSpec(ValueError):
    """A spec's argument is wrong.

    `argument` is its name; the sentence says what was received and what was expected.
    """

    def __init__(self, argument: str, sentence: str) -> None:
        super().__init__(f"{argument} {sentence}")
        self.argument = argument


def check(condition: bool, argument: str, sentence: str) -> None:
    """Raise InvalidSpec for an argument unless the condition holds."""
    if not condition:
        raise InvalidSpec(argument, sentence)


# Features that running statistics are kept of.
MAX_FEATURES = 1 << 22


def check_positive_int(spec: Any, *names: str) -> None:
    """Check that arguments are integers from 1 on."""
    for name in names:
        value = getattr(spec, name)
        check(
            isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31,
            name,
            f"is {value!r}; expected an integer from 1 to 2^31 - 1",
        )


def check_eps(spec: Any) -> None:
    """Check that eps is finite and not negative."""
    check(
        math.isfinite(spec.eps) and spec.eps >= 0,
        "eps",
        f"is {spec.eps!r}; expected a finite number, at least 0",
    )


def float64_array(value: Any) -> Array:
    """A new read-only float64 array of a numpy array, torch tensor or sequence; any shape."""
    if hasattr(value, "detach"):  # a torch tensor, on whatever device and of whatever float type
        value = value.detach().cpu().double().numpy()
    array = np.array(value, dtype=np.float64)
    array.flags.writeable = False
    return array


def check_parameter(spec: Any, name: str, size: int) -> None:
    """Check that an affine parameter or statistic, if given, has `size` finite values; keep it as flat float64."""
    value = getattr(spec, name)
    if value is None:
        return
    array = float64_array(value).reshape(-1)
    check(array.size == size, name, f"has {array.size} values; expected {size}")
    check(bool(np.isfinite(array).all()), name, "has values that are not finite")
    object.__setattr__(spec, name, array)


class SpecBase:
    """What all specs share."""

    # Arguments that may change in a normalizer's life: they do not make it another normalizer.
    PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var"})

    def with_parameters(self, **parameters: Any) -> Self:
        """The same spec with other parameters.

        Raises:
            InvalidSpec: one of them does not fit.
        """
        return replace(self, **parameters)  # type: ignore[type-var]

    def same_structure(self, other: object) -> bool:
        """Whether both compute the same thing, affine parameters and initial statistics left out."""
        return type(self) is type(other) and all(
            getattr(self, f.name) == getattr(other, f.name)
            for f in fields(self)  # type: ignore[arg-type]
            if f.name not in self.PARAMETERS
        )

    def __eq__(self, other: object) -> bool:
        return self.same_structure(other) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in self.PARAMETERS if hasattr(self, name)
        )

    def __hash__(self) -> int:
        return hash((type(self), *(repr(getattr(self, f.name)) for f in fields(self))))  # type: ignore[arg-type]
