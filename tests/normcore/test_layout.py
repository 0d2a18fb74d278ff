from __future__ import annotations

import pytest
import torch

from normcore import layout
from normcore.errors import NormcoreError, ShapeMismatch


@pytest.mark.parametrize("axes", [(0,), (1, 3), (3, 1), (-1,), (0, 1, 2, 3)])
def test_averaged_axes_go_last_and_come_back(axes: tuple[int, ...]) -> None:
    x = torch.arange(120).reshape(2, 3, 4, 5)
    view = layout.by_axes(x, axes)
    assert view.shape[1] == torch.tensor([x.shape[axis] for axis in axes]).prod()
    assert layout.from_axes(view.x, axes, x).equal(x)


def test_contiguous_input_is_viewed_without_a_copy() -> None:
    x = torch.zeros(2, 6, 4, 5)
    mask = torch.ones(2, 1, 4, 1, dtype=torch.bool)
    for view in (layout.by_channel(x, 1), layout.by_channel(x, -1), layout.by_row(x, (4, 5)), layout.by_group(x, 3)):
        assert view.x.data_ptr() == x.data_ptr()
    assert layout.by_channel(x.to(memory_format=torch.channels_last), 1).x.is_contiguous() is False
    folded = layout.by_channel(x, 1, mask=mask).mask
    assert folded is not None
    assert folded.shape == (2, 1, 20)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: layout.check_features(x, 17, 1), r"^x.shape\[1\] is 12; expected num_features = 17$"),
        (lambda x: layout.check_features(x, 17, 4), "channel_axis is 4; expected an axis of x"),
        (lambda x: layout.by_row(x, (5, 6)), r"x.shape is \[2, 12, 5\]; expected it to end in .* \[5, 6\]"),
        (lambda x: layout.by_row(x, ()), "normalized_shape"),
        (lambda x: layout.by_row(x, (2, 2, 12, 5)), "normalized_shape"),
        (lambda x: layout.by_group(x, 5), r"num_groups is 5; expected a divisor of x.shape\[1\] = 12"),
        (lambda x: layout.by_group(x[0, 0], 1), r"expected \(N, C, ...\)"),
        (lambda x: layout.by_axes(x, (1, -2)), "each axis once"),
        (lambda x: layout.by_axes(x, (3,)), "axes is 3"),
        (lambda x: layout.affine(x[0], None, 5, x), "weight has 60 values; expected 5"),
        (lambda x: layout.per_channel(x[0], 5, x, "mean"), "mean has 60 values; expected 5"),
        (lambda x: layout.target(x[0], x), r"out.shape is \[12, 5\]; expected x's, \[2, 12, 5\]"),
    ],
)
def test_what_does_not_fit_is_said(call: object, sentence: str) -> None:
    assert callable(call)
    with pytest.raises(ShapeMismatch, match=sentence):
        call(torch.zeros(2, 12, 5))


@pytest.mark.parametrize("eps", [-1e-9, float("nan"), float("inf")])
def test_eps_is_finite_and_not_negative(eps: float) -> None:
    with pytest.raises(NormcoreError, match="eps"):
        layout.check_eps(eps)
