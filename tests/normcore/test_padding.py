from __future__ import annotations

import pytest
import torch

from normcore.errors import InvalidParameter, NormcoreError, ShapeMismatch
from normcore.padding import to_mask


@pytest.mark.parametrize(
    ("shape", "channel_axis", "expected"),
    [
        ((3, 4), None, (3, 4)),
        ((3, 7, 4), 1, (3, 1, 4)),
        ((3, 7, 4, 5), 1, (3, 1, 4, 1)),
        ((3, 4, 7), 2, (3, 4, 1)),
        ((3, 4, 7), -1, (3, 4, 1)),
        ((3, 4, 7), None, (3, 4, 1)),
        ((3, 4, 5, 7), -1, (3, 4, 1, 1)),
        ((7, 3, 4), 0, (1, 3, 4)),
    ],
)
def test_lengths_run_along_the_first_axis_after_the_batch(
    shape: tuple[int, ...], channel_axis: int | None, expected: tuple[int, ...]
) -> None:
    mask = to_mask(torch.zeros(shape), lengths=torch.tensor([4, 0, 2]), channel_axis=channel_axis)
    assert mask is not None
    assert tuple(mask.shape) == expected
    assert mask.reshape(3, 4).tolist() == [[True] * 4, [False] * 4, [True, True, False, False]]


@pytest.mark.parametrize(
    ("shape", "channel_axis", "given", "expected"),
    [
        ((3, 7, 4), 1, (3, 4), (3, 1, 4)),
        ((3, 7, 4), None, (3, 7), (3, 7, 1)),
        ((3, 7, 4, 5), 1, (3, 4), (3, 1, 4, 1)),
        ((3, 7, 4, 5), 1, (3, 4, 5), (3, 1, 4, 5)),
        ((3, 7, 4, 5), 1, (3, 1, 5), (3, 1, 1, 5)),
        ((3, 7), 1, (3,), (3, 1)),
        ((3, 7), -1, (3, 7), (3, 7)),
        ((3,), -1, (3,), (3,)),
        ((3, 7, 4), 1, (1, 1, 4), (1, 1, 4)),
    ],
)
def test_a_mask_of_fewer_axes_is_of_the_leading_ones_but_the_channels(
    shape: tuple[int, ...], channel_axis: int | None, given: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    bits = torch.arange(torch.Size(given).numel()).reshape(given) % 3 > 0
    mask = to_mask(torch.zeros(shape), mask=bits, channel_axis=channel_axis)
    assert mask is not None
    assert tuple(mask.shape) == expected
    assert mask.reshape(given).equal(bits)


def test_no_padding_is_no_mask() -> None:
    assert to_mask(torch.zeros(3, 4)) is None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_lengths_are_integers_of_any_size(dtype: torch.dtype) -> None:
    mask = to_mask(torch.zeros(2, 3), lengths=torch.tensor([1, 3], dtype=dtype))
    assert mask is not None
    assert mask.sum(1).tolist() == [1, 3]


LENGTHS = torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("shape", "lengths", "mask", "error", "sentence"),
    [
        ((2, 3), torch.tensor([1, 4]), None, InvalidParameter, r"lengths\[1\] is 4; expected 0 to 3"),
        ((2, 3), torch.tensor([-1, 3]), None, InvalidParameter, r"lengths\[0\] is -1"),
        ((2, 3), torch.tensor([1.0, 2.0]), None, InvalidParameter, "float32; expected integers"),
        ((4, 3), LENGTHS, None, ShapeMismatch, r"lengths.shape is \[2\]; expected \[4\]"),
        ((2,), LENGTHS, None, ShapeMismatch, "no axis for them to run along"),
        ((2, 3), LENGTHS, torch.ones(2, dtype=torch.bool), InvalidParameter, "both given"),
        ((2, 3), None, torch.ones(3, dtype=torch.bool), ShapeMismatch, r"expected x.shape\[0\] = 2 where it has 3"),
        ((2, 3), None, torch.ones(2, 2, dtype=torch.bool), ShapeMismatch, r"mask.shape is \[2, 2\]; expected \[2, 3\]"),
        ((2, 3), None, torch.ones(1, 2, 3, dtype=torch.bool), ShapeMismatch, "mask"),
        ((2, 3), None, torch.ones(2, 3), InvalidParameter, "float32; expected torch.bool"),
    ],
)
def test_what_does_not_fit_is_refused(
    shape: tuple[int, ...],
    lengths: torch.Tensor | None,
    mask: torch.Tensor | None,
    error: type[NormcoreError],
    sentence: str,
) -> None:
    with pytest.raises(error, match=sentence):
        to_mask(torch.zeros(shape), lengths=lengths, mask=mask)


def test_a_channel_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match="channel_axis is 5"):
        to_mask(torch.zeros(2, 3), lengths=LENGTHS, channel_axis=5)


def test_an_empty_x_marks_nothing_however_long_its_other_axes() -> None:
    x = torch.empty(1, 2**40, 0)
    mask = to_mask(x, lengths=torch.tensor([5]))
    assert mask is not None
    assert mask.numel() == 1
