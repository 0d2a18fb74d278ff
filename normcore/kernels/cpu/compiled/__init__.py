"""The loops themselves, compiled: pointers and numbers in, nothing of torch."""

import torch

from normcore.kernels.base import Variant
from normcore.kernels.cpu.compiled import apply, merge, moments, norm, rows
from normcore.kernels.cpu.compiled.language import KERNELS, compile_elsewhere, keep_in

__all__ = ["KERNELS", "compile_elsewhere", "keep_in", "usual"]


def usual() -> list[Variant]:
    """Return the kernels for inputs of float32 and float64, in the order in which a server is likely to need them.

    Commits first: they merge. The other types of input are a hundred more kernels, and minutes.
    """
    merges = [merge.compose, merge.within, merge.unbiased, merge.total, norm.unit_coefficients]
    usually = [norm.standardize, rows.short_rows, moments.block_moments, norm.channel_norm, apply.block_apply]
    usually += [rows.row_norm, rows.power_norm, rows.row_apply]
    found = [variant for kernel in merges for variant in kernel.variants()]
    for x in (torch.float32, torch.float64):
        found += [variant for kernel in usually for variant in kernel.variants() if variant.x == x]
    return found
