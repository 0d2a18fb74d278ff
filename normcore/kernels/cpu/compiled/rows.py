"""Normalization of each row of x (R, K): a row is read into the first-level cache once, summed, and written.

Sums are float64, about the row's first value where its mean is far from 0; what needs more than float32 is summed a
second time about its mean. Elements take their weight and bias from (P, S): element (r, k) that of
[r % P, k // (K / S)].
"""

from __future__ import annotations

import math
from typing import Any

from normcore.kernels.cpu.compiled.apply import AT_ONCE, flush
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
from normcore.kernels.cpu.compiled.sums import NOT_FAR, well_shifted


@inlined
def deviations(x: Any, length: int, center: bool) -> Any:
    """Mean, what rounding left out of it, and population variance of a row; about 0 if not centred."""
    total, squares = 0.0, 0.0
    if not is_wide(x) or not center:
        for i in range(length):
            value = float64(load(x, i))
            total = added(total, value)
            squares = added(squares, times(value, value))
        if not center:
            return 0.0, 0.0, squares / length
        # As they are: squares of float32 are exact. Enough where the mean is within four deviations of 0; constants are
        # never, and go on.
        part = total / length
        m2 = squares - total * part
        if well_shifted(total * part, m2, NOT_FAR):
            return part, 0.0, m2 / length
    shift, total, squares = float64(load(x, 0)), 0.0, 0.0
    for i in range(length):
        deviation = load(x, i) - shift
        total = added(total, deviation)
        squares = added(squares, times(deviation, deviation))
    part = total / length
    mean = shift + part
    if not is_wide(x):
        return mean, 0.0, max((squares - total * part) / length, 0.0)
    off, squares = 0.0, 0.0
    for i in range(length):
        deviation = load(x, i) - mean
        off = added(off, deviation)
        squares = added(squares, times(deviation, deviation))
    rest = off / length
    return mean, rest, max((squares - off * rest) / length, 0.0)


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
    x: Any, y: Any, length: int, mean: float, rest: float, divisor: float,
    weight: Any, bias: Any, weighted: bool, biased: bool, run: int, start: int,
) -> None:  # fmt: skip
    """Part of a row from `start`, whose elements take a weight and a bias each, or `run` of them one."""
    inverse = 1.0 / divisor
    if not weighted and not biased:
        if is_wide(x):
            for i in range(length):
                store(y, i, ((load(x, i) - mean) - rest) / divisor)
        else:
            for i in range(length):
                store(y, i, times(load(x, i) - mean, inverse))
        return
    if run == 1:
        if is_wide(x):
            for i in range(length):
                value = ((load(x, i) - mean) - rest) / divisor
                value = value * get(weight, start + i) if weighted else value
                store(y, i, value + get(bias, start + i) if biased else value)
        elif weighted and biased:
            for i in range(length):
                value = times(load(x, i) - mean, inverse)
                store(y, i, plus(times(value, get(weight, start + i)), get(bias, start + i)))
        elif weighted:
            for i in range(length):
                store(y, i, times(times(load(x, i) - mean, inverse), get(weight, start + i)))
        else:
            for i in range(length):
                store(y, i, plus(times(load(x, i) - mean, inverse), get(bias, start + i)))
        return
    first = 0
    while first < length:
        segment = (start + first) // run
        last = min(length, (segment + 1) * run - start)
        scale = float64(get(weight, segment)) if weighted else 1.0
        shift = float64(get(bias, segment)) if biased else 0.0
        if is_wide(x):
            for i in range(first, last):
                store(y, i, ((load(x, i) - mean) - rest) / divisor * scale + shift)
        else:
            factor = inverse * scale
            for i in range(first, last):
                store(y, i, plus(times(load(x, i) - mean, factor), shift))
        first = last


@inlined
def write(
    x: Any, y: Any, length: int, mean: float, rest: float, var: float, eps: float,
    weight: Any, bias: Any, weighted: bool, biased: bool, run: int, start: int,
    mask: Any, mask_one: int, masked: bool, scratch: Any, staged: bool, streaming: bool,
) -> None:  # fmt: skip
    """Part of a row from `start` by its statistics; padding stays."""
    divisor = math.sqrt(var + eps)
    divisor = 1.0 if divisor == 0.0 else divisor
    if not staged:
        scaled(x, y, length, mean, rest, divisor, weight, bias, weighted, biased, run, start)
        if masked:
            for i in range(length):
                if get(mask, i * mask_one) == 0:
                    store(y, i, load(x, i))
        return
    for at_once in range(0, length, AT_ONCE):
        count, source, target = min(AT_ONCE, length - at_once), at(x, at_once), at(y, at_once)
        scaled(source, scratch, count, mean, rest, divisor, weight, bias, weighted, biased, run, start + at_once)
        if masked:
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
                source, target, length, mean, rest, var, eps, at(weight, own), at(bias, own), weighted, biased, run, 0,
                real, mask_one, partly, scratch, staged, streaming,
            )  # fmt: skip
        row = follow(turns, row, total)
    if streaming:
        streamed()


# Weights and biases up to this length are made float64 once for all rows.
SHORT = 4096
WORK = 2 * SHORT


@kernel(X, Y, INTS, INT, INT, REAL, FLAG, P, P, F64)
def plain_rows(
    x: Any, y: Any, turns: Any, rows: int, length: int, eps: float, center: bool, weight: Any, bias: Any, work: Any
) -> None:  # fmt: skip
    """Short rows, in turns, the same weight and bias in each: none where its address is 0. Nothing is masked or streamed."""
    plain(x, y, turns, rows, length, eps, center, weight, bias, work, y, False)


@kernel(X, Y, INTS, INT, INT, REAL, FLAG, P, P, F64, Y)
def streamed_rows(
    x: Any, y: Any, turns: Any, rows: int, length: int, eps: float, center: bool, weight: Any, bias: Any, work: Any,
    scratch: Any,
) -> None:  # fmt: skip
    """The same, past the caches."""
    plain(x, y, turns, rows, length, eps, center, weight, bias, work, scratch, True)
    streamed()


@inlined
def plain(
    x: Any, y: Any, turns: Any, rows: int, length: int, eps: float, center: bool, weight: Any, bias: Any, work: Any,
    scratch: Any, streaming: bool,
) -> None:  # fmt: skip
    """See `plain_rows`."""
    weighted, biased = address(weight) != 0, address(bias) != 0
    if weighted:
        for i in range(length):
            put(work, i, get(weight, i))
    if biased:
        for i in range(length):
            put(work, SHORT + i, get(bias, i))
    row = begin(turns, rows)
    while row < rows:
        source, target = at(x, row * length), at(y, row * length)
        mean, rest, var = deviations(source, length, center)
        write(
            source, target, length, mean, rest, var, eps, work, at(work, SHORT), weighted, biased, 1, 0,
            work, 0, False, scratch, streaming, streaming,
        )  # fmt: skip
        row = follow(turns, row, rows)


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
            at(x, here), at(y, here), count, get(means, row), get(rests, row), get(vars, row), eps,
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
            divisor = math.sqrt(var + eps)
            divisor = 1.0 if divisor == 0.0 else divisor
            scaled(source, at(y, start), length, mean, rest, divisor, weight, bias, weighted, biased, 1, 0)
        row = follow(turns, row, total)


@inlined
def power(x: Any, length: int, p: float, mask: Any, mask_one: int, masked: bool) -> float:
    """The p-norm of a row; padding counts as 0. NaN where one is, or an infinity whose power would be summed.

    What float32 holds is summed as it is, as its squares are far from float64's ends; all else is scaled by the largest
    magnitude first.
    """
    total = 0.0
    if not is_wide(x) and not masked and p == 2.0:
        for i in range(length):
            value = float64(load(x, i))
            total = added(total, times(value, value))
        return math.sqrt(total) if total - total == 0.0 else math.nan
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
        for start in range(0, length, AT_ONCE):
            count, here, target = min(AT_ONCE, length - start), at(source, start), at(y, row * length + start)
            into = scratch if staged else target
            scaled(here, into, count, 0.0, 0.0, norm, real, real, False, False, length, start)
            if masked:
                for i in range(count):
                    if get(real, (start + i) * mask_one) == 0:
                        store(into, i, load(here, i))
            if streaming:
                flush(target, scratch, count)
            elif staged:
                for i in range(count):
                    copied(target, scratch, i)
        row = follow(turns, row, total)
    if streaming:
        streamed()
