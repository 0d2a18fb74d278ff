"""What kernels do to a row: deviations of one in registers, moments and results along one that is longer."""

from __future__ import annotations

import triton.language as tl

from normcore.kernels.cuda.elements import about, jit, nonzero, raised, rounded


@jit
def deviations(
    value: tl.tensor,
    real: tl.tensor,
    n: tl.tensor,
    CENTER: tl.constexpr,
    REFINE: tl.constexpr,
    PARTIAL: tl.constexpr,
) -> tl.tensor:
    """x - mean (or x) of float64 rows (rows, columns), and their variance (mean square): two passes over registers.

    What is not real is 0 as loaded, or, where PARTIAL, anything. REFINE takes what rounding left out of the mean from
    the deviations, so that equal values give exactly 0 and the mean is as good as the values.
    """
    if PARTIAL:
        value = tl.where(real, value, 0.0)
    if not CENTER:
        return value, tl.sum(value * value, 1, keep_dims=True) / n
    mean = tl.sum(value, 1, keep_dims=True) / n
    deviation = tl.where(real, value - mean, 0.0)
    m2 = tl.sum(deviation * deviation, 1, keep_dims=True)
    if REFINE:
        off = tl.sum(deviation, 1, keep_dims=True)
        m2 -= off * (off / n)
        deviation -= off / n
    # A NaN stays one.
    return deviation, tl.where(m2 < 0, 0.0, m2) / n


@jit
def own(weight: tl.tensor, bias: tl.tensor, place: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """The weights and biases of these places, 1 and 0 where there are none."""
    scale, shift = 1.0, 0.0
    if weight is not None:
        scale = tl.load(weight + place, mask=inside, other=1.0)
    if bias is not None:
        shift = tl.load(bias + place, mask=inside, other=0.0)
    return scale, shift


@jit
def finished(
    value: tl.tensor,
    variance: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    DIVIDE: tl.constexpr,
) -> tl.tensor:
    """value / sqrt(variance) * weight + bias; only float64 results show, and have the time for, a true division."""
    deviation = nonzero(tl.sqrt(variance))
    value = value / deviation if DIVIDE else value * (1.0 / deviation)
    if WEIGHT:
        value = value * weight
    if BIAS:
        value = value + bias
    return value


@jit
def read_row(
    x: tl.tensor,
    mask: tl.tensor,
    mask_column: tl.tensor,
    width: tl.tensor,
    CENTER: tl.constexpr,
    T_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """Mean (0 if not CENTER), its low word and the variance (mean square) of the row at x.

    Sums are about the mean of the first tile that has anything real: see `column_moments`.
    """
    lane = tl.arange(0, T_C)
    near = tl.full((), 0.0, tl.float64)
    if CENTER:
        start = tl.zeros_like(width)
        unseen = start < width
        while unseen:
            inside = start + lane < width
            value = raised(tl.load(x + start + lane, mask=inside, other=0), tl.float64)
            if mask is not None:
                inside = inside & (tl.load(mask + (start + lane) * mask_column, mask=inside, other=0) != 0)
            count = tl.sum(inside.to(tl.int32), 0)
            if count > 0:
                smallest = tl.min(tl.where(inside, value, float("inf")), 0)
                near = smallest + tl.sum(tl.where(inside, value - smallest, 0.0), 0) / count
            start += T_C
            unseen = (start < width) & (count == 0)
    first = tl.zeros((T_C,), tl.float64)
    second = tl.zeros((T_C,), tl.float64)
    total = tl.zeros((T_C,), tl.int32)
    for start in tl.range(0, width, T_C, num_stages=STAGES):
        inside = start + lane < width
        value = raised(tl.load(x + start + lane, mask=inside, other=0), tl.float64)
        if mask is not None:
            inside = inside & (tl.load(mask + (start + lane) * mask_column, mask=inside, other=0) != 0)
            total += inside.to(tl.int32)
        deviation = tl.where(inside, value - near, 0.0)
        first += deviation
        second += deviation * deviation
    n = tl.full((), 0.0, tl.float64) + width
    if mask is not None:
        n = tl.sum(total, 0).to(tl.float64)
    n = tl.where(n > 0, n, 1.0)
    mean, rest, m2 = about(near, n, tl.sum(first, 0), tl.sum(second, 0))
    if not CENTER:
        return near, near, tl.sum(second, 0) / n
    return mean, rest, m2 / n


@jit
def write_row(
    x: tl.tensor,
    mask: tl.tensor,
    mask_column: tl.tensor,
    out: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    segment: tl.tensor,
    width: tl.tensor,
    mean: tl.tensor,
    rest: tl.tensor,
    variance: tl.tensor,
    DIVIDE: tl.constexpr,
    T_C: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """Results of the row at x, from its end to its start, as its end was read last and is still in the cache."""
    lane = tl.arange(0, T_C)
    tiles = tl.cdiv(width, T_C)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        column = (tiles - 1 - tile) * T_C + lane
        inside = column < width
        element = tl.load(x + column, mask=inside, other=0)
        value = raised(element, tl.float64) - mean - rest
        scale, shift = own(weight, bias, column // segment, inside)
        result = finished(value, variance, scale, shift, weight is not None, bias is not None, DIVIDE)
        result = rounded(result, out.dtype.element_ty)
        if mask is not None:
            real = tl.load(mask + column * mask_column, mask=inside, other=0) != 0
            result = tl.where(real, result, element.to(out.dtype.element_ty))
        tl.store(out + column, result, mask=inside)
