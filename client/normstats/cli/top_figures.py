"""Numbers as people read them at a glance: three digits and a unit; and series of them as a line of blocks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import floor

NOTHING = "–"
_BLOCKS = " ▁▂▃▄▅▆▇█"
_THOUSANDS = ("", "k", "M", "G", "T", "P", "E")
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def digits(value: float) -> str:
    """Three digits at most, of what is less than 1,000; of what is counted, all."""
    if value == 0 or value >= 99.95 or isinstance(value, int):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def amount(value: float, unit: str = "") -> str:
    """How many, or how many a second: 0, 0.05, 3.20, 3 if they were counted, 120, 1.23 k."""
    if value >= 999.5e18:
        return f"{value:.0e} {unit}".rstrip()
    scale = 0
    while value >= 999.5:
        value /= 1000
        scale += 1
    shown = "<0.01" if 0 < value < 0.01 else digits(value)
    return f"{shown} {_THOUSANDS[scale]}{unit}".rstrip()


def rate(value: float) -> str:
    """How many a second."""
    return amount(value, "/s")


def whole(value: float) -> str:
    """How many, each of them told while that is short."""
    return f"{value:,.0f}" if value < 9_999_999.5 else amount(value)


def took(seconds: float) -> str:
    """How long something took; 0 is that there was nothing."""
    if not seconds > 0:
        return NOTHING
    for factor, unit in ((1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{digits(seconds * factor)} {unit}"
    return f"{digits(seconds)} s" if seconds < 999.5 else amount(seconds, "s")


def size(value: float) -> str:
    """Bytes, in units of 1,024."""
    scale = 0
    while value >= 999.5 and scale < len(_BYTES) - 1:
        value /= 1024
        scale += 1
    return f"{digits(value) if scale else round(value)} {_BYTES[scale]}"


def percent(ratio: float) -> str:
    """A share of 1."""
    return f"{100 * ratio:.0f} %"


def span(seconds: float, units: int = 2) -> str:
    """A stretch of time, in its largest units."""
    rest, told = max(round(seconds), 0), list[str]()
    for length, unit in _SPANS:
        if rest >= length or told:
            told.append(f"{rest // length} {unit}")
            rest %= length
        if len(told) == units:
            break
    return " ".join(told) or "0 s"


def ago(seconds: float) -> str:
    """How long ago, in the largest unit."""
    return "now" if seconds < 1.5 else span(floor(seconds), 1)


def columns(
    points: Iterable[tuple[float, float]], count: int, now: float, seconds: float, of: Callable[[float, float], float]
) -> list[float | None]:
    """Points (time, value) of the last seconds, as so many columns: `of` all in a column, None where there is none.

    A column's bounds do not depend on `now`: the whole moves on by one at a time, and does not shimmer.
    """
    apart = seconds / count
    last = floor(now / apart)
    found: list[float | None] = [None] * count
    for time, value in points:
        index = floor(time / apart) - last + count - 1
        if 0 <= index < count:
            before = found[index]
            found[index] = value if before is None else of(before, value)
    return found


def sparkline(values: Sequence[float | None], top: float, rows: int = 1) -> list[str]:
    """Bars from zero up to `top`, in one or more rows, the upper one first; what is not known is blank.

    The highest leave an eighth of a row, so that those below each other keep apart.
    """
    highest = 8 * rows - 1
    levels = [None if one is None else max(1, min(highest, round(highest * one / top))) for one in values]
    return [
        "".join(" " if one is None else _BLOCKS[max(0, min(8, one - 8 * row))] for one in levels)
        for row in reversed(range(rows))
    ]


def bar(share: float, width: int) -> str:
    """A bar, so wide if the share is 1."""
    halves = round(2 * width * max(0.0, min(share, 1.0)))
    return "━" * (halves // 2) + "╸" * (halves % 2)
