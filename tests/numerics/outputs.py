"""What outputs are held to, by the type they are rounded to.

All is computed in float64, rounded once: half an ulp, and of float64's own few errors what is left of them. Those are
some 16 eps of the terms that add up to an output, at most: 2 ** -25 of a float32's ulp of them. An output that nearly
cancels has a smaller ulp; it is measured by that of 2 ** -12 of its terms, which leaves 2 ** -13: 0.51. bfloat16 and
float16 are rounded by way of float32, a 2 ** -13 of their ulp at most: 0.51 too. So each is at most 1 ulp from the
correctly rounded. float64 itself: 4 eps of an output and its terms, which is what is demanded, without the factor
mean / deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.numerics.conftest import Worst
from tests.numerics.exact import Line, epsilons, ulps

ROUNDED_ONCE = 0.51
FLOAT64 = 4.0


def hold(worst: Worst, kernel: str, y: Tensor, line: Line, of: torch.dtype | None = None) -> None:
    """Hold outputs, of inputs of a type, to the exact ones."""
    if y.dtype == torch.float64:
        worst(kernel, of or y.dtype, epsilons(y, line), "eps of y and its terms", FLOAT64)
    else:
        worst(kernel, of or y.dtype, ulps(y, line, 2.0**-12), "ulp", ROUNDED_ONCE)


def hold_far(worst: Worst, kernel: str, y: Tensor, line: Line, ratio: float) -> None:
    """The same at mean / deviation = ratio: half an ulp of 1 + |y|, and the mean rounded to float64 for narrow types.

    That costs ratio * 2 ** -53 of a deviation, 2 ** -29 * ratio of a float32's ulp of it: 0.19 at 1e8. float64 has the
    mean in two words, and no more to lose than otherwise.
    """
    if y.dtype == torch.float64:
        worst(f"{kernel}, far", y.dtype, epsilons(y, line), "eps of y and its terms", FLOAT64)
    else:
        bound = ROUNDED_ONCE + (0.19 if ratio > 1e6 else 0.0)
        worst(f"{kernel}, far", y.dtype, ulps(y, line, 1.0), "ulp of 1 + |y|", bound)
