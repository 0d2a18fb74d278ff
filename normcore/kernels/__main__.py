"""Compile all of the CPU's kernels for this machine ahead of their first use, which would take a second each.

python -m normcore.kernels             some minutes; NUMBA_CACHE_DIR says where they are kept
python -m normcore.kernels float32     for one type of input alone
"""

from __future__ import annotations

import sys

import torch

# These make all kernels there are.
from normcore.kernels.cpu.compiled import apply, merge, moments, norm, rows  # noqa: F401
from normcore.kernels.cpu.compiled.language import KERNELS, STORED


def main(arguments: list[str]) -> int:
    """Compile; 2 if there is no such type."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in STORED}
    if unknown := [name for name in arguments if name not in names]:
        print(f"{unknown[0]!r} is no type of input; expected some of {', '.join(names)}", file=sys.stderr)
        return 2
    wanted = {names[name] for name in arguments} or set(STORED)
    todo = [(kernel, *variant) for kernel in KERNELS for variant in kernel.variants() if variant[0] in wanted]
    for number, (kernel, x, parameters) in enumerate(todo, 1):
        print(f"{number} of {len(todo)}: {kernel.name} of {names_of(x, parameters)}", flush=True)
        kernel.of(x, parameters)
    return 0


def names_of(x: torch.dtype, parameters: torch.dtype) -> str:
    """Both types in words."""
    return f"{str(x).removeprefix('torch.')}, parameters {str(parameters).removeprefix('torch.')}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
