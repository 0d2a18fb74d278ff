"""What the numerics share: the rooms of kernels, and the table of the worst errors at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.numerics import rooms
from tests.numerics.rooms import Room

DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int32")
# Of a kernel, a type, a unit and a bound: the worst figure seen.
_WORST = pytest.StashKey[dict[tuple[str, str, str, float], float]]()

Worst = Callable[[str, torch.dtype, float, str, float], None]


@pytest.fixture
def worst(request: pytest.FixtureRequest) -> Worst:
    """Note an error of a kernel on a type, in a unit, and hold it to a bound."""
    seen = request.config.stash.setdefault(_WORST, {})

    def note(kernel: str, dtype: torch.dtype, figure: float, unit: str, bound: float) -> None:
        key = kernel, str(dtype).removeprefix("torch."), unit, bound
        if not figure <= seen.get(key, 0.0):  # a NaN is the worst of all
            seen[key] = figure
        seen.setdefault(key, 0.0)
        assert figure <= bound, f"{kernel}, {dtype}: {figure:.6g} {unit}; expected at most {bound:.6g}"

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One table: of each kernel the worst error seen, type by type, its unit, and the bound."""
    seen = config.stash.get(_WORST, {})
    if not seen:
        return
    terminalreporter.section("worst errors")
    dtypes = [name for name in DTYPES if any(dtype == name for _, dtype, _, _ in seen)]
    lines: dict[tuple[str, str, float], dict[str, str]] = {}
    for (kernel, dtype, unit, bound), figure in sorted(seen.items()):
        lines.setdefault((kernel, unit, bound), {})[dtype] = f"{figure:.2f}"
    table = [("", *dtypes, "")] + [
        (kernel, *(figures.get(dtype, "") for dtype in dtypes), f"{unit} (bound {bound:.4g})")
        for (kernel, unit, bound), figures in lines.items()
    ]
    width = max(len(row[0]) for row in table)
    for kernel, *figures, unit in table:
        terminalreporter.write_line(f"{kernel:{width}} {' '.join(f'{one:>8}' for one in figures)}  {unit}")


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    """Triton's interpreter computes with infinities in numpy, which says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


@pytest.fixture(params=["cpu", "cuda"])
def room(request: pytest.FixtureRequest) -> Room:
    """Each room of compiled kernels in turn."""
    return rooms.of(request.param)


@pytest.fixture(params=["cpu", "cuda", "reference"])
def every_room(request: pytest.FixtureRequest) -> Room:
    """And the reference, which all others are tested against elsewhere."""
    return rooms.of(request.param)
