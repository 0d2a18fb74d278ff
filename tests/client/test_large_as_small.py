"""What is refused of a small array is refused of a large one, which goes another way: in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import normstats
from normstats import chunking
from tests.server_process import ServerProcess

ROWS = {"small": 64, "large": 1 << 13}
CHUNK = chunking.CHUNK_BYTES // (4 * 64)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[normstats.Client]:
    with normstats.connect(server.target) as client:
        yield client


def x_of(size: str) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(ROWS[size], 64)).astype(np.float32)


CASES: dict[str, tuple[normstats.Spec, dict[str, Any]]] = {
    "a mode that does not exist": (normstats.LayerNorm(64), {"mode": "test"}),
    "an axis that does not exist": (normstats.LpNorm(axis=3), {}),
    "one of the axes does not exist": (normstats.MeanVarianceNorm(axes=(1, 5)), {}),
    "a mask of as many rows as a chunk": (normstats.LayerNorm(64), {"mask": np.ones(CHUNK, bool)}),
    "a mask of integers": (normstats.LayerNorm(64), {"mask": np.ones((1, 64), int)}),
    "a mask and lengths": (normstats.LayerNorm(64), {"mask": np.ones((1, 64), bool), "lengths": [1]}),
    "training nobody": (normstats.Standardize(64), {"mode": "train"}),
}


@pytest.mark.parametrize("size", ROWS)
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused(client: normstats.Client, case: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "MAX_TRAIN_BYTES", chunking.CHUNK_BYTES)
    spec, options = CASES[case]
    with pytest.raises(normstats.InvalidArgument):
        client.normalize(x_of(size), spec, **options)


@pytest.mark.parametrize("size", ROWS)
def test_a_normalization_without_statistics_is_not_trained(
    client: normstats.Client, name: str, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "MAX_TRAIN_BYTES", chunking.CHUNK_BYTES)
    with pytest.raises(normstats.FailedPrecondition, match="keeps no running statistics"):
        client.create(name, normstats.LayerNorm(64)).normalize(x_of(size), mode="train")


def test_training_with_renormalization_gives_the_same_however_large(
    client: normstats.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, x = [], x_of("large")
    for part, limit in (("a", chunking.MAX_TRAIN_BYTES), ("b", chunking.CHUNK_BYTES)):
        monkeypatch.setattr(chunking, "MAX_TRAIN_BYTES", limit)
        ours = client.create(f"{name}/{part}", normstats.BatchNorm(64, renorm=(1.5, 0.5)))
        ours.update(3 * x + 1)
        outputs.append(ours.normalize(x, mode="train"))
    np.testing.assert_array_equal(*outputs)


def test_what_is_refused_is_not_contributed(
    client: normstats.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunking, "MAX_TRAIN_BYTES", chunking.CHUNK_BYTES)
    ours = client.create(name, normstats.Standardize(64))
    with pytest.raises(normstats.InvalidArgument, match="inverse"):
        ours.normalize(x_of("large"), mode="train", inverse=True)
    assert ours.stats().count == 0
