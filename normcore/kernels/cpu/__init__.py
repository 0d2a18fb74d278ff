"""The CPU's room: one compiled pass over memory per operation, in float64, without the GIL, on the cores that are free.

Each function is the reference's of the same name, but that tensors lie densely in memory in the order of the `shape`
given beside them, whatever their own. Results depend on shapes and values alone, not on how many threads took part.
"""

from normcore.kernels.cpu.channels import channel_apply, channel_moments, channel_norm, standardize, standardize_like
from normcore.kernels.cpu.merging import compose, total, unbiased, within
from normcore.kernels.cpu.rows import power_norm, row_norm, row_norm_like, row_norm_ragged

__all__ = [
    "channel_apply",
    "channel_moments",
    "channel_norm",
    "compose",
    "power_norm",
    "row_norm",
    "row_norm_like",
    "row_norm_ragged",
    "standardize",
    "standardize_like",
    "total",
    "unbiased",
    "within",
]
