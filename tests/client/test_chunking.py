"""Which arrays are cut, and that what is cut is refused where the whole would be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import normstats
from normstats import chunking, requests
from normstats.arrays import Payload, payload_of
from normstats.options import Mode, NormalizeOptions

PLAIN = NormalizeOptions(None, False, None, None, None, None)


@pytest.mark.parametrize(
    ("spec", "rank", "independent"),
    [
        (normstats.LayerNorm(4), 2, True),
        (normstats.LayerNorm((3, 4)), 2, False),
        (normstats.LpNorm(axis=-1), 2, True),
        (normstats.LpNorm(axis=0), 2, False),
        (normstats.LpNorm(axis=-2), 2, False),
        (normstats.LpNorm(axis=3), 2, False),
        (normstats.LpNorm(axis=-3), 2, False),
        (normstats.MeanVarianceNorm(axes=(1, -1)), 3, True),
        (normstats.MeanVarianceNorm(axes=(1, 5)), 2, False),
        (normstats.Standardize(4), 2, True),
        (normstats.Standardize(4, channel_axis=0), 2, False),
        (normstats.BatchNorm(4, virtual_batch_size=2), 2, False),
        (normstats.GroupNorm(2, 4), 3, True),
    ],
    ids=repr,
)
def test_rows_are_independent_where_nothing_spans_them(spec: normstats.Spec, rank: int, independent: bool) -> None:
    assert chunking.rows_are_independent(spec, rank) is independent


@pytest.mark.parametrize(
    ("shape", "cuts"),
    [
        ((3, 1 << 18), [(0, 1), (1, 2), (2, 3)]),  # a row is a chunk
        ((2, 1 << 20), [(0, 1), (1, 2)]),  # a row is more than one
        ((5, 1 << 17), [(0, 2), (2, 4), (4, 5)]),
    ],
)
def test_cuts_are_whole_rows_that_cover_all(shape: tuple[int, ...], cuts: list[tuple[int, int]]) -> None:
    assert list(chunking.cuts(payload_of(np.zeros(shape, np.float32)))) == cuts


class TestTraining:
    """Contributing first and normalizing after is a TRAIN only where nothing but the batch's moments matters."""

    LARGE = payload_of(np.zeros((4, 1 << 22), np.float32))

    def goes(self, payload: Payload, spec: normstats.Spec, **options: Any) -> bool:
        return chunking.goes_in_chunks(payload, spec, "train", PLAIN._replace(**options))

    def test_only_a_large_batch_is_cut(self) -> None:
        assert self.goes(self.LARGE, normstats.BatchNorm(1 << 22))
        assert not self.goes(self.LARGE.rows(0, 2), normstats.BatchNorm(1 << 22))

    def test_renormalization_looks_at_running_statistics_and_goes_whole(self) -> None:
        assert not self.goes(self.LARGE, normstats.BatchNorm(1 << 22, renorm=(1.5, 0.5)))

    @pytest.mark.parametrize("options", [{"inverse": True}, {"snapshot": "a"}, {"style": "a"}], ids=str)
    def test_what_the_server_refuses_is_not_contributed_first(self, options: dict[str, Any]) -> None:
        assert not self.goes(self.LARGE, normstats.BatchNorm(1 << 22), **options)


class TestPadding:
    """Padding is checked whole: a part could fit some chunk by chance."""

    X = payload_of(np.zeros((6, 4, 2), np.float32))

    @pytest.mark.parametrize(
        "padding",
        [
            {"lengths": [1, 2, 3, 4, 0, 1]},
            {"mask": np.ones(6, bool)},
            {"mask": np.ones((6, 4), bool)},
            {"mask": np.ones((1, 4, 1), bool)},
        ],
        ids=str,
    )
    def test_what_goes_with_the_rows_is_accepted(self, padding: dict[str, Any]) -> None:
        requests.check_padding(self.X, PLAIN._replace(**padding))

    @pytest.mark.parametrize(
        "padding",
        [{"lengths": [1, 2, 3]}, {"mask": np.ones(3, bool)}, {"mask": np.ones((1, 4), bool)}, {"mask": np.True_}],
        ids=str,
    )
    def test_what_does_not_is_refused(self, padding: dict[str, Any]) -> None:
        (field,) = padding
        with pytest.raises(normstats.InvalidArgument, match=f"{field} has shape .*; input has 6 rows") as caught:
            requests.check_padding(self.X, PLAIN._replace(**padding))
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("spec", "mode", "named", "effective"),
    [
        (normstats.LayerNorm(4), None, True, "batch"),
        (normstats.Standardize(4), None, True, "eval"),
        (normstats.Standardize(4), None, False, "batch"),
        (normstats.BatchNorm(1, running_mean=[0], running_var=[1]), None, False, "eval"),
        (normstats.Standardize(4), "train", True, "train"),
    ],
)
def test_the_default_is_eval_where_there_are_statistics(
    spec: normstats.Spec, mode: Mode | None, named: bool, effective: Mode
) -> None:
    assert chunking.effective_mode(spec, mode, named=named) == effective
