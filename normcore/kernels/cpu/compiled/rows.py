"""Normalization of each row of x (R, K): a row is read into the first-level cache once, summed, and written.

Sums are float64, about the row's first value where its mean is far from 0; what needs more than float32 is summed a
second time about its mean. Elements take their weight and bias from (P, S): element (r, k) that of
[r % P, k // (K / S)].
"""

from __future__ import annotations

import math
from typing import Any

from normcore.kernels.cpu.compiled.apply import AT_ONCE, flush
from normcore.kernels.cpu.compiled.lanes import (
    LANES,
    before_line,
    fused,
    get_lanes,
    load_lanes,
    spread_lanes,
    store_lanes,
    stream_lanes,
    sum_of,
)
from normcore.kernels.cpu.compiled.language import (
    BYTES,
    F64,
    FLAG,
    INT,
    INTS,
    REAL,
    P,
    X,
    Y,
    added,
    address,
    at,
    begin,
    copied,
    flag,
    float64,
    follow,
    get,
    inlined,
    is_wide,
    kernel,
    larger,
    load,
    plus,
    put,
    store,
    streamed,
    times,
    whole,
)
from normcore.kernels.cpu.compiled.masked import masked_run_sums
from normcore.kernels.cpu.compiled.sums import NOT_FAR, fetch_ahead, well_shifted


@inlined
def sums(x: Any, length: int, shift: float, shifted: bool) -> Any:
    """Sum and sum of squares of a row, about a shift if it is to be."""
    total, squares, first = 0.0, 0.0, 0
    if length >= LANES:
        totals, squared = spread_lanes(0.0), spread_lanes(0.0)
        more_totals, more_squared = spread_lanes(0.0), spread_lanes(0.0)
        while first + 2 * LANES <= length:
            fetch_ahead(x, first, 2 * LANES)
            values, more = load_lanes(x, first) + 0.0, load_lanes(x, first + LANES) + 0.0
            if shifted:
                values, more = values - shift, more - shift
            totals, more_totals = totals + values, more_totals + more
            squared, more_squared = fused(values, values, squared), fused(more, more, more_squared)
            first += 2 * LANES
        if first + LANES <= length:
            values = load_lanes(x, first) + 0.0
            if shifted:
                values = values - shift
            totals, squared = totals + values, fused(values, values, squared)
            first += LANES
        total, squares = sum_of(totals + more_totals), sum_of(squared + more_squared)
    for i in range(first, length):
        value = float64(load(x, i))
        if shifted:
            value -= shift
        total += value
        squares = plus(squares, times(value, value))
    return total, squares


@inlined
def deviations(x: Any, length: int, center: bool) -> Any:
    """Mean, what rounding left out of it, and population variance of a row; about 0 if not centred."""
    if not is_wide(x) or not center:
        total, squares = sums(x, length, 0.0, False)
        if not center:
            return 0.0, 0.0, squares / length
        # As they are: squares of float32 are exact. Enough where the mean is within four deviations of 0; constants are
        # never, and go on.
        part = total / length
        m2 = squares - total * part
        if well_shifted(total * part, m2, NOT_FAR):
            return part, 0.0, m2 / length
    shift = float64(load(x, 0))
    total, squares = sums(x, length, shift, True)
    part = total / length
    mean = shift + part
    if not is_wide(x):
        return mean, 0.0, max((squares - total * part) / length, 0.0)
    off, squares = sums(x, length, mean, True)
    rest = off / length
    return mean, rest, max((squares - off * rest) / length, 0.0)


@inlined
def std(var: float, eps: float) -> float:
    """What to divide by: 1 instead of 0."""
    found = math.sqrt(var + eps)
    return 1.0 if found == 0.0 else found


@inlined
def real_deviations(x: Any, length: int, center: bool, mask: Any, mask_one: int) -> Any:
    """The same of what the mask leaves; 0 of nothing."""
    if mask_one == 1 and not is_wide(x):
        first = 0
        while first < length - 1 and not flag(mask, first):
            first += 1
        shift = float64(load(x, first)) if center else 0.0
        count, total, squares, _, _ = masked_run_sums(x, length, shift, mask)
        count = max(count, 1.0)
        if not center:
            return 0.0, 0.0, squares / count
        part = total / count
        m2 = squares - total * part
        if well_shifted(total * part, m2, NOT_FAR):
            return shift + part, 0.0, max(m2, 0.0) / count
    count, shift, total = 0.0, 0.0, 0.0
    for i in range(length):
        if get(mask, i * mask_one) != 0:
            value = float64(load(x, i))
            shift = value if count == 0.0 and center else shift
            total += value - shift
            count += 1.0
    count = max(count, 1.0)
    mean = shift + total / count if center else 0.0
    off, squares = 0.0, 0.0
    for i in range(length):
        if get(mask, i * mask_one) != 0:
            deviation = load(x, i) - mean
            off += deviation
            squares += deviation * deviation
    if not center:
        return 0.0, 0.0, squares / count
    rest = off / count
    return mean, rest, max((squares - off * rest) / count, 0.0)


@inlined
def scaled(
    x: Any, y: Any, length: int, mean: float, rest: float, divisor: float, weight: Any, bias: Any, weighted: bool,
    biased: bool, run: int, start: int, streaming: bool,
) -> None:  # fmt: skip
    """Part of a row from `start`, whose elements take a weight and a bias each, or `run` of them one.

    Past the caches if streaming.
    """
    if run == 1 or not (weighted or biased):
        affine(
            x, y, length, mean, rest, divisor, False, at(weight, start), at(bias, start), 1, weighted, biased, streaming
        )
        return
    first = 0
    while first < length:
        segment = (start + first) // run
        last = min(length, (segment + 1) * run - start)
        affine(
            at(x, first), at(y, first), last - first, mean, rest, divisor, False, at(weight, segment),
            at(bias, segment), 0, weighted, biased, streaming,
        )  # fmt: skip
        first = last


@inlined
def affine(
    x: Any, y: Any, length: int, mean: float, rest: float, divisor: float, near: bool, weight: Any, bias: Any,
    step: int, weighted: bool, biased: bool, streaming: bool,
) -> None:  # fmt: skip
    """(x - mean - rest) / divisor * weight + bias, with one weight and bias for all where step is 0.

    If the mean is near 0 in deviations, x / divisor - mean / divisor is as good: to some eps, and faster.
    """
    inverse, factor, shift = 1.0 / divisor, 1.0, 0.0
    offset = -mean * inverse
    if step == 0:
        factor, shift = float64(get(weight, 0)) if weighted else 1.0, float64(get(bias, 0)) if biased else 0.0
        inverse = inverse * factor
    head = min(length, before_line(y)) if streaming else 0
    end = head + (length - head) // LANES * LANES
    for i in range(head, end, LANES):
        if is_wide(x):
            values = ((load_lanes(x, i) - mean) - rest) / divisor
            if step == 0:
                values = values * factor + shift
        elif near:
            values = fused(load_lanes(x, i), inverse, offset)
        else:
            values = (load_lanes(x, i) - mean) * inverse
            values = values + shift if step == 0 else values
        if step == 1 and weighted:
            values = (
                fused(values, get_lanes(weight, i), get_lanes(bias, i)) if biased else values * get_lanes(weight, i)
            )
        elif step == 1 and biased:
            values = values + get_lanes(bias, i)
        if streaming:
            stream_lanes(y, i, values)
        else:
            store_lanes(y, i, values)
    for i in range(head + length - end):  # what is left at both sides
        k = i if i < head else end + (i - head)
        if is_wide(x):
            value = ((load(x, k) - mean) - rest) / divisor
            value = value * factor + shift if step == 0 else value
        elif near:
            value = plus(times(load(x, k), inverse), offset)
        else:
            value = times(load(x, k) - mean, inverse)
            value = plus(value, shift) if step == 0 else value
        value = times(value, get(weight, k)) if step == 1 and weighted else value
        store(y, k, plus(value, get(bias, k)) if step == 1 and biased else value)


@inlined
def write(
    x: Any, y: Any, length: int, mean: float, rest: float, divisor: float, weight: Any, bias: Any, weighted: bool,
    biased: bool, run: int, start: int, mask: Any, mask_one: int, masked: bool, scratch: Any, staged: bool,
    streaming: bool,
) -> None:  # fmt: skip
    """Part of a row from `start` by its statistics; padding stays."""
    if not masked:
        scaled(x, y, length, mean, rest, divisor, weight, bias, weighted, biased, run, start, streaming)
        return
    if not staged:
        scaled(x, y, length, mean, rest, divisor, weight, bias, weighted, biased, run, start, False)
        for i in range(length):
            if get(mask, i * mask_one) == 0:
                store(y, i, load(x, i))
        return
    for at_once in range(0, length, AT_ONCE):
        count, source, target = min(AT_ONCE, length - at_once), at(x, at_once), at(y, at_once)
        scaled(source, scratch, count, mean, rest, divisor, weight, bias, weighted, biased, run, start + at_once, False)
        for i in range(count):
            if get(mask, (at_once + i) * mask_one) == 0:
                store(scratch, i, load(source, i))
        if streaming:
            flush(target, scratch, count)
        else:
            for i in range(count):
                copied(target, scratch, i)


@inlined
def is_padding(mask: Any, length: int, mask_one: int) -> bool:
    """Whether nothing of a row is real."""
    real = 0
    for i in range(1 if mask_one == 0 else length):
        real |= get(mask, i * mask_one) != 0
    return real == 0


@kernel(X, Y, INTS, INTS, INT, REAL, P, P, BYTES, Y)
def row_norm(
    x: Any, y: Any, plan: Any, turns: Any, total: int, eps: float, weight: Any, bias: Any, mask: Any, scratch: Any
) -> None:  # fmt: skip
    """The rows, in turns; no weight or bias where its address is 0.

    plan is K, P, S, the mask's strides, and whether there is one, whether to centre, whether the output goes by way of
    scratch, and whether from there past the caches.
    """
    length, period, segments, mask_row, mask_one = (
        whole(plan, 0), whole(plan, 1), whole(plan, 2), whole(plan, 3), whole(plan, 4),
    )  # fmt: skip
    masked, center, staged, streaming = (
        whole(plan, 5) != 0, whole(plan, 6) != 0, whole(plan, 7) != 0, whole(plan, 8) != 0,
    )  # fmt: skip
    weighted, biased, run = address(weight) != 0, address(bias) != 0, length // segments
    partly = masked and mask_one != 0
    row = begin(turns, total)
    while row < total:
        source, target, real = at(x, row * length), at(y, row * length), at(mask, row * mask_row)
        own = (row % period) * segments if period > 1 else 0
        if masked and is_padding(real, length, mask_one):
            for i in range(length):
                store(target, i, load(source, i))
        else:
            if partly:
                mean, rest, var = real_deviations(source, length, center, real, mask_one)
            else:
                mean, rest, var = deviations(source, length, center)
            write(
                source, target, length, mean, rest, std(var, eps), at(weight, own), at(bias, own), weighted, biased,
                run, 0, real, mask_one, partly, scratch, staged, streaming,
            )  # fmt: skip
        row = follow(turns, row, total)
    if streaming:
        streamed()


# Weights and biases up to this length are made float64 once for all rows; statistics of so many rows are made at once.
SHORT, TOGETHER = 4096, 16
WORK = 2 * SHORT + 3 * TOGETHER


def together(length: int) -> int:
    """How many short rows of a length are normalized at once: such as the first-level cache holds."""
    return max(1, min(TOGETHER, SHORT // length))


_together = inlined(together)


@kernel(X, Y, INTS, INT, INT, REAL, FLAG, FLAG, P, P, F64)
def short_rows(
    x: Any, y: Any, turns: Any, rows: int, length: int, eps: float, center: bool, streaming: bool, weight: Any,
    bias: Any, work: Any,
) -> None:  # fmt: skip
    """Short rows, `together` in turns, the same weight and bias in each: none where its address is 0.

    Past the caches if streaming. What a row's statistics take long for is done for several at once.
    """
    weighted, biased = address(weight) != 0, address(bias) != 0
    if weighted:
        for i in range(length):
            put(work, i, get(weight, i))
    if biased:
        for i in range(length):
            put(work, SHORT + i, get(bias, i))
    means = at(work, 2 * SHORT)
    stds, bad = at(means, TOGETHER), at(means, 2 * TOGETHER)
    size = _together(length)
    groups = (rows + size - 1) // size
    group = begin(turns, groups)
    while group < groups:
        first = group * size
        count = min(size, rows - first)
        simple = not is_wide(x) or not center
        for r in range(count if simple else 0):
            total, squares = sums(at(x, (first + r) * length), length, 0.0, False)
            put(means, r, total)
            put(stds, r, squares)
        for r in range(count if simple else 0):
            total, squares = get(means, r) if center else 0.0, get(stds, r)
            part = total / length
            m2 = squares - total * part
            put(bad, r, 0.0 if well_shifted(total * part, m2, NOT_FAR) or not center else 1.0)
            put(means, r, part)
            put(stds, r, std(m2 / length, eps))
        for r in range(count):
            source, target = at(x, (first + r) * length), at(y, (first + r) * length)
            if simple and get(bad, r) == 0.0:
                affine(
                    source, target, length, get(means, r), 0.0, get(stds, r), True, work, at(work, SHORT), 1, weighted,
                    biased, streaming,
                )  # fmt: skip
            else:
                mean, rest, var = deviations(source, length, center)
                affine(
                    source, target, length, mean, rest, std(var, eps), False, work, at(work, SHORT), 1, weighted,
                    biased, streaming,
                )  # fmt: skip
        group = follow(turns, group, groups)
    if streaming:
        streamed()


@kernel(X, Y, INTS, INT, INTS, INT, F64, F64, F64, REAL, P, P, BYTES, Y)
def row_apply(
    x: Any, y: Any, plan: Any, part: int, turns: Any, total: int, means: Any, rests: Any, vars: Any, eps: float,
    weight: Any, bias: Any, mask: Any, scratch: Any,
) -> None:  # fmt: skip
    """The parts of rows that are cut, in turns, by statistics that are known; plan as in `row_norm`."""
    length, period, segments, mask_row, mask_one = (
        whole(plan, 0), whole(plan, 1), whole(plan, 2), whole(plan, 3), whole(plan, 4),
    )  # fmt: skip
    masked, staged, streaming = whole(plan, 5) != 0, whole(plan, 7) != 0, whole(plan, 8) != 0
    weighted, biased, run = address(weight) != 0, address(bias) != 0, length // segments
    parts = (length + part - 1) // part
    block = begin(turns, total)
    while block < total:
        row, start = block // parts, (block % parts) * part
        count, own = min(part, length - start), (row % period) * segments if period > 1 else 0
        here = row * length + start
        write(
            at(x, here), at(y, here), count, get(means, row), get(rests, row), std(get(vars, row), eps),
            at(weight, own), at(bias, own), weighted, biased, run, start,
            at(mask, row * mask_row + start * mask_one), mask_one, masked, scratch, staged, streaming,
        )  # fmt: skip
        block = follow(turns, block, total)
    if streaming:
        streamed()


@kernel(X, Y, INTS, INT, INTS, INTS, REAL, FLAG, P, P)
def row_norm_ragged(
    x: Any, y: Any, turns: Any, total: int, starts: Any, lengths: Any, eps: float, center: bool, weight: Any, bias: Any
) -> None:  # fmt: skip
    """The rows of an arena, in turns; no weight or bias where its address is 0."""
    weighted, biased = address(weight) != 0, address(bias) != 0
    row = begin(turns, total)
    while row < total:
        start, length = whole(starts, row), whole(lengths, row)
        if length > 0:
            source = at(x, start)
            mean, rest, var = deviations(source, length, center)
            scaled(source, at(y, start), length, mean, rest, std(var, eps), weight, bias, weighted, biased, 1, 0, False)
        row = follow(turns, row, total)


@inlined
def power(x: Any, length: int, p: float, mask: Any, mask_one: int, masked: bool) -> float:
    """The p-norm of a row; padding counts as 0. NaN where one is, or an infinity whose power would be summed.

    What float32 holds is summed as it is, as its squares are far from float64's ends; all else is scaled by the largest
    magnitude first.
    """
    if not is_wide(x) and not masked and p == 2.0:
        total = sums(x, length, 0.0, False)[1]
        return math.sqrt(total) if total - total == 0.0 else math.nan
    total = 0.0
    largest, nans = 0.0, 0
    for i in range(length):
        value = float64(load(x, i))
        if masked and get(mask, i * mask_one) == 0:
            value = 0.0
        nans += 0 if value == value else 1
        largest = larger(abs(value), largest)
    if nans > 0:
        return math.nan
    if p == math.inf or largest == 0.0:
        return largest
    if largest == math.inf:
        return math.nan
    for i in range(length):
        ratio = abs(load(x, i) / largest)
        if masked and get(mask, i * mask_one) == 0:
            ratio = 0.0
        if p == 2.0:
            total = added(total, times(ratio, ratio))
        elif p == 1.0:
            total = added(total, ratio)
        else:
            total += ratio**p
    return largest * (math.sqrt(total) if p == 2.0 else total if p == 1.0 else total ** (1.0 / p))


@kernel(X, Y, INTS, INTS, INT, REAL, REAL, BYTES, Y)
def power_norm(
    x: Any, y: Any, plan: Any, turns: Any, total: int, p: float, eps: float, mask: Any, scratch: Any
) -> None:  # fmt: skip
    """The rows, in turns, each by its p-norm, which is at least eps.

    plan is K, the mask's strides, and whether there is one, whether the output goes by way of scratch, and whether from
    there past the caches.
    """
    length, mask_row, mask_one = whole(plan, 0), whole(plan, 1), whole(plan, 2)
    masked, staged, streaming = whole(plan, 3) != 0, whole(plan, 4) != 0, whole(plan, 5) != 0
    row = begin(turns, total)
    while row < total:
        source, real = at(x, row * length), at(mask, row * mask_row)
        norm = power(source, length, p, real, mask_one, masked)
        norm = eps if norm < eps else norm
        norm = 1.0 if norm == 0.0 else norm
        write(
            source, at(y, row * length), length, 0.0, 0.0, norm, real, real, False, False, 1, 0, real, mask_one, masked,
            scratch, staged, streaming,
        )  # fmt: skip
        row = follow(turns, row, total)
    if streaming:
        streamed()
