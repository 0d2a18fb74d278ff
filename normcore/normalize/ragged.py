"""Rows of different lengths, one after another in one arena: many requests in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore import layout
from normcore.errors import InvalidParameter, ShapeMismatch
from normcore.kernels import launch


def ragged_row_norm(
    x: Tensor,
    lengths: Tensor,
    *,
    eps: float = 1e-5,
    center: bool = True,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias of each of R rows, which lie one after another in x (E,).

    Without `center` the mean is taken as 0: the root mean square. lengths are integers (R,), at least 0, E in all.
    weight and bias begin anew with each row, and are as long as the longest or longer.

    Raises:
        ShapeMismatch: x or lengths are not 1-D; the lengths do not add up to E; a parameter is too short.
        InvalidParameter: a length is negative or no integer; eps is out of range.
    """
    layout.check_eps(eps)
    if x.dim() != 1:
        raise ShapeMismatch("x", f".shape is {list(x.shape)}; expected (E,), the rows one after another")
    if lengths.dim() != 1 or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise InvalidParameter("lengths", f"are {lengths.dtype} of {lengths.dim()} axes; expected integers (R,)")
    sizes = lengths.to("cpu", torch.int64)
    if bool((sizes < 0).any()):
        raise InvalidParameter("lengths", f"have {int(sizes.min())}; expected at least 0")
    if int(sizes.sum()) != x.shape[0]:
        raise ShapeMismatch("lengths", f"add up to {int(sizes.sum())}; expected the {x.shape[0]} values of x")
    longest = int(sizes.max()) if sizes.numel() else 0
    for name, one in (("weight", weight), ("bias", bias)):
        if one is not None and one.numel() < longest:
            raise ShapeMismatch(name, f"has {one.numel()} values; expected {longest}, the longest row's, or more")
    width = max([one.numel() for one in (weight, bias) if one is not None], default=0)
    weight, bias = (
        one if one is None or one.numel() == width else torch.nn.functional.pad(one, (0, width - one.numel()))
        for one in (weight, bias)
    )
    weight, bias = layout.affine(weight, bias, width, x)
    starts = torch.cumsum(sizes, 0) - sizes
    dense, into = x.contiguous(), layout.target(out, x)
    y = launch.row_norm_ragged(
        dense, starts.to(x.device), sizes.to(x.device), eps=eps, center=center, weight=weight, bias=bias, out=into
    )
    return layout.delivered(y, out)
