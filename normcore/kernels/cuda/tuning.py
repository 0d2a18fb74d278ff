"""Block sizes: data and pure functions of shape and type. Figures are for an H200: 132 multiprocessors, 227 KiB each.

A multiprocessor keeps the memory busy with some 40 KiB of loads in flight, and has 64 Ki registers of 4 bytes.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

# Programs to a multiprocessor: two to four are resident at a time, so the last wave leaves it idle for an eighth.
PROGRAMS = 16
# Moments: each program ends with a reduction and a partial to merge, so fewer of them.
PIECES = 8


class Tile(NamedTuple):
    """A tile of a program, its warps, and how many tiles its loop has in flight."""

    rows: int
    columns: int
    warps: int
    stages: int = 1


@cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has; two stand in for it where the kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def power_of_2(size: int) -> int:
    """The least power of 2 that is no smaller."""
    return 1 << max(0, size - 1).bit_length()


def ceil_div(size: int, by: int) -> int:
    """How many blocks of `by` cover a size."""
    return -(-size // by)


def moments_tile(height: int, width: int, itemsize: int, *, fold: bool) -> Tile:
    """For sums over (height, width): four warps, eight elements a thread, or four of float64.

    An element's two float64 sums, extremes and count take seven registers, nine of float64, so that a thread takes
    some 120 and four programs stay resident. What is in flight are the loop's stages, more of them for narrow types.
    """
    elements = 1024 if itemsize <= 4 else 512
    columns = min(power_of_2(width), elements if fold else 128)
    rows = min(power_of_2(height), elements // columns)
    columns = min(power_of_2(width), elements // rows)
    return Tile(rows, columns, _warps(rows * columns, elements // 4, 4), 6 if itemsize < 4 else 4)


def pieces(tiles: int, groups: int, processors: int) -> int:
    """Into how many pieces, each a program's, the tiles of each group go: four at least, for evenness."""
    return max(1, min(tiles, max(4, ceil_div(PIECES * processors, groups)), 65535))


def merge_tile(entries: int, channels: int) -> Tile:
    """Partials (entries, channels): 1,024 at a time, as few channels as leave 128 programs."""
    columns = min(32, power_of_2(max(1, channels // 128)))
    rows = min(power_of_2(entries), 1024 // columns)
    return Tile(rows, columns, _warps(rows * columns, 128))


def apply_tile(width: int, itemsize: int, *, fold: bool) -> Tile:
    """Elementwise over rows of `width`: four warps, eight elements a thread: 32 bytes of float32, 16 of narrower ones.

    Small programs, as the coefficients of eight columns take 80 registers.
    """
    columns = min(power_of_2(width), 1024 if fold else 256)
    return Tile(1024 // columns, columns, 4, 4 if itemsize < 4 else 3)


def whole_channel_tile(before: int, channels: int, after: int) -> Tile | None:
    """A tile with whole channels of (before, channels, after), if they are small enough to stay in registers.

    8,192 elements over 512 threads: 16 a thread, whose float64 deviations take a quarter of its 128 registers. Channels
    side by side go 8 at least to a program, a sector's 32 bytes of float32, which leaves 1,024 rows.
    """
    rows, columns = power_of_2(before), power_of_2(after)
    if after == 1:
        columns = min(power_of_2(channels), max(8, min(64, 8192 // rows)))
    return Tile(rows, columns, _warps(rows * columns, 512, 16)) if rows * columns <= 8192 else None


# Up to here a row stays in registers: 512 threads then have 16 elements each, whose float64 deviations and successors
# take half of a thread's 128 registers; with 32 they spill.
WIDEST_IN_REGISTERS = 8192
# Above it a row is split over programs, as its second reading no longer finds it in the cache of 50 MiB: 132 programs
# with rows of 64 Ki float32 have 33 MiB.
WIDEST_OF_ONE_PROGRAM = 65536


def row_tile(width: int, itemsize: int) -> Tile | None:
    """A tile of whole rows, or nothing where one does not fit: 1,024 elements or one row, eight a thread if it can."""
    columns = power_of_2(width)
    if columns > WIDEST_IN_REGISTERS:
        return None
    rows = max(1, 1024 // columns)
    return Tile(rows, columns, _warps(rows * columns, 256, 16), 4 if itemsize <= 4 else 3)


def long_row_tile(width: int) -> Tile:
    """A tile that goes along a row, for sums and again for results: eight elements a thread, as for moments."""
    columns = min(power_of_2(width), 2048)
    return Tile(1, columns, _warps(columns, 256), 3)


def ragged_tile(mean_length: int, longest: int | None) -> Tile:
    """Rows of this length, or of the longest if that is hardly more: 1,024 elements or one row, eight a thread.

    Longer rows take several tiles, and are read twice, the second time from the cache.
    """
    length = longest if longest is not None and longest <= 2 * mean_length else mean_length
    columns = max(16, min(power_of_2(length), 4096))
    rows = max(1, 1024 // columns)
    return Tile(rows, columns, _warps(rows * columns, 256, 16))


def is_split(rows: int, width: int, processors: int) -> bool:
    """Whether each row goes to several programs: where it is too wide for one, or too few to go round."""
    return width > WIDEST_OF_ONE_PROGRAM or 2 * rows < processors


def _warps(elements: int, a_warp: int, most: int = 8) -> int:
    return max(1, min(most, elements // a_warp))
