"""Kernels for CUDA, in Triton: the loops over elements, on the device that holds x, without waiting for it.

Signatures and meaning are those of `normcore.kernels.reference`. Statistics and results are float64, rounded once.
"""

from normcore.kernels.cuda.channel_apply import channel_apply
from normcore.kernels.cuda.channel_norm import channel_norm
from normcore.kernels.cuda.column_moments import channel_moments
from normcore.kernels.cuda.power_norm import power_norm
from normcore.kernels.cuda.ragged import row_norm_ragged
from normcore.kernels.cuda.row_norm import row_norm

__all__ = ["channel_apply", "channel_moments", "channel_norm", "power_norm", "row_norm", "row_norm_ragged"]
