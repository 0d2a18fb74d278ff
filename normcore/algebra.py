"""The monoid of moments on bare float64 tensors of any broadcastable shape, so that many merge in one operation.

`moments.py` gives its elements a shape and checks them; here is the arithmetic alone. After Chan, Golub, LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances", STAN-CS-79-773 (1979), in double-double
throughout: plain float64 gave 465 bit patterns for 8 partials merged in 500 orders, this gives one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normcore import twofold
from normcore.twofold import Twofold


class Parts(NamedTuple):
    """Count n (the sum of weights), mean, sum of squared deviations, smallest and largest value."""

    n: Tensor
    mean: Twofold
    m2: Twofold
    min: Tensor
    max: Tensor


def identity(count: Tensor, like: Tensor) -> Parts:
    """Moments of nothing: count 0, mean 0, m2 0, min +inf, max -inf, in the shapes of `count` and `like`."""
    zero = twofold.from_double(torch.zeros_like(like))
    inf = torch.full_like(like, torch.inf)
    return Parts(torch.zeros_like(count), zero, zero, inf, -inf)


def unpacked(values: Tensor) -> Parts:
    """Views of values (..., 7, C), whose rows are count, mean and its low word, m2 and its low word, min, max."""
    count, mean, mean_low, m2, m2_low, low, high = values.unbind(-2)
    return Parts(count, Twofold(mean, mean_low), Twofold(m2, m2_low), low, high)


def packed(parts: Parts) -> Tensor:
    """The values (..., 7, C) of parts (..., C); a count may be one for all features."""
    return torch.stack((parts.n.expand_as(parts.min), *parts.mean, *parts.m2, parts.min, parts.max), -2)


def each(function: Callable[..., Tensor], *parts: Parts) -> Parts:
    """The function of each of their tensors in turn."""
    return Parts(
        function(*(p.n for p in parts)),
        Twofold(function(*(p.mean.hi for p in parts)), function(*(p.mean.lo for p in parts))),
        Twofold(function(*(p.m2.hi for p in parts)), function(*(p.m2.lo for p in parts))),
        function(*(p.min for p in parts)),
        function(*(p.max for p in parts)),
    )


def stacked(parts: Sequence[Parts]) -> Parts:
    """Parts of one shape along a new first axis; counts of shape () stand beside counts of shape (C,)."""
    width = max((part.n for part in parts), key=Tensor.dim).shape or torch.Size((1,))
    return each(lambda *rows: torch.stack(rows), *(part._replace(n=part.n.expand(width)) for part in parts))


def reduce(stack: Parts, *, between: bool = True) -> Parts:
    """All K along the first axis at once. With d_k = mean_k - mean_r, where r is the heaviest, and D = sum n d / n:

        mean = mean_r + D
        m2   = sum m2 + (sum n d^2 - n D^2)      (the second part only if `between`)

    The difference cancels at most a factor of K, since n_r D^2 is in it and n_r is at least n / K: 10 of 106 bits for
    a thousand. What counts 0 adds 0, to the bit. Sums go in the order of the stack, as the compiled kernels add them:
    both give the same bits.
    """
    count = torch.zeros_like(stack.n[0])
    for n in stack.n:
        count = count + n
    heaviest = stack.n.argmax(0, keepdim=True).expand(1, *stack.min.shape[1:])
    mean = twofold.each(lambda t: t.gather(0, heaviest)[0], stack.mean)
    delta = twofold.sub(stack.mean, mean)
    weighted = twofold.mul(delta, twofold.from_double(stack.n.expand_as(stack.min)))
    off, m2 = twofold.total(weighted), twofold.total(stack.m2)
    shift = twofold.div(off, twofold.from_double(torch.where(count == 0, 1.0, count).expand_as(m2.hi)))
    if between:
        squares = twofold.total(twofold.mul(weighted, delta))
        spread = twofold.at_least_0(twofold.sub(squares, twofold.mul(off, shift)))
        # Squares beyond float64 are infinite, and inf - inf must not make them NaN.
        spread = twofold.each(lambda t: torch.where(squares.hi == torch.inf, squares.hi, t), spread)
        m2 = twofold.add(m2, spread)
    return Parts(count, twofold.add(mean, shift), m2, stack.min.amin(0), stack.max.amax(0))


def scale(parts: Parts, factor: Tensor) -> Parts:
    """Every weight times a factor >= 0: count and m2 scale, the rest stays."""
    return parts._replace(n=parts.n * factor, m2=twofold.mul(parts.m2, twofold.from_double(factor)))


def normalised(parts: Parts) -> Parts:
    """The identity wherever the count is 0."""
    empty = parts.n == 0
    if not bool(empty.any()):
        return parts
    nothing = identity(parts.n, parts.min)
    return each(lambda zero, value: torch.where(empty, zero, value), nothing, parts)
