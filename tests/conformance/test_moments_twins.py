"""The worker's moments (numpy) and the engine's (torch) are the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from normserver import engine
from normstats import specs
from normstats.moments import batches_of

# Both are within a few roundings of the exact sums; neither is the reference of the other.
TOLERANCE = 1e-14
CPU = torch.device("cpu")


def assert_twins(x: np.ndarray, spec: specs.RunningSpec, **padding: Any) -> None:
    """Same count, mean, m2, min and max, relative to the largest deviation that went into them."""
    ours = batches_of(x, spec, **padding)
    tensors = {name: torch.as_tensor(np.asarray(value)) for name, value in padding.items()}
    batch = engine.Batch(torch.as_tensor(x), tensors.get("lengths"), tensors.get("mask"), tensors.get("weights"))
    theirs = engine.moments(spec, batch, CPU)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        shape = (spec.num_features,)
        for name in ("count", "mean", "m2", "min", "max"):
            actual = np.broadcast_to(getattr(one, name), shape)
            expected = np.broadcast_to(getattr(other, name).numpy(), shape)
            scale = np.abs(expected).max(initial=0.0, where=np.isfinite(expected))
            np.testing.assert_allclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, err_msg=name)


RNG = np.random.default_rng(10)
IMAGES = RNG.normal(5, 1, (20, 3, 4, 6))
SEQUENCES = RNG.normal(5, 1, (20, 6, 3))
LENGTHS = RNG.integers(0, 7, 20)
WITH_NAN = RNG.normal(5, 1, (20, 3))
WITH_NAN[3, 1] = np.nan

CASES: dict[str, tuple[np.ndarray, specs.RunningSpec, dict[str, Any]]] = {
    "rows": (RNG.normal(1e6, 1, (1000, 5)).astype(np.float32), specs.Standardize(5), {}),
    "a large mean": (RNG.normal(1e8, 1, (1000, 5)), specs.Standardize(5), {}),
    "several blocks": (RNG.normal(5, 1, (600_000, 3)).astype(np.float32), specs.Standardize(3), {}),
    "images": (IMAGES, specs.BatchNorm(3), {}),
    "ghost batches": (IMAGES, specs.BatchNorm(3, virtual_batch_size=7), {}),
    "bytes": (RNG.integers(0, 255, (9, 3, 5), np.uint8), specs.BatchNorm(3), {}),
    "one feature": (RNG.normal(5, 1, 20), specs.Standardize(1), {}),
    "nothing": (np.zeros((0, 3)), specs.Standardize(3), {}),
    "lengths": (SEQUENCES, specs.Standardize(3), {"lengths": LENGTHS}),
    "lengths before the channels": (SEQUENCES.transpose(0, 2, 1), specs.BatchNorm(3), {"lengths": LENGTHS}),
    "a mask": (WITH_NAN, specs.Standardize(3), {"mask": np.isfinite(WITH_NAN)}),
    "a mask of samples": (SEQUENCES, specs.Standardize(3), {"mask": LENGTHS > 2}),
    "weights": (SEQUENCES, specs.Standardize(3), {"weights": RNG.uniform(0, 3, 20)}),
    "weights and lengths": (SEQUENCES, specs.Standardize(3), {"weights": LENGTHS % 3 * 1.0, "lengths": LENGTHS}),
    "left out": (WITH_NAN, specs.Standardize(3, nan_policy="omit"), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_both_take_the_same_moments(case: str) -> None:
    x, spec, padding = CASES[case]
    assert_twins(x, spec, **padding)


@settings(max_examples=100, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_whatever_the_values(x: np.ndarray) -> None:
    assert_twins(x, specs.Standardize(x.shape[1]))
