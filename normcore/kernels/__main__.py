"""Compile the CPU's kernels for this machine ahead of their first use.

python -m normcore.kernels             all there are: some minutes; NUMBA_CACHE_DIR says where they are kept
python -m normcore.kernels usual       those of float32 and float64 tensors: a minute
python -m normcore.kernels float16     for some types of input alone
python -m normcore.kernels -           those that standard input names, a line each; a line is written when one is done
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from normcore.kernels.base import Variant

# Of `-`: the words that a line of output begins with.
COMPILED, FAILED = "compiled", "failed"


def main(arguments: list[str]) -> int:
    """Compile; 2 if the arguments are wrong, 1 if nothing can be compiled or kept."""
    if arguments == ["-"]:
        return _serve()
    try:
        from normcore.kernels.cpu.compiled import KERNELS, usual
        from normcore.kernels.cpu.compiled.language import STORED
    except ModuleNotFoundError as error:
        print(f"{error.name} is not installed: the kernels need no compiling, the reference serves", file=sys.stderr)
        return 1
    known = {str(dtype).removeprefix("torch."): dtype for dtype in STORED}
    if unknown := [name for name in arguments if name not in known and name != "usual"]:
        print(f"{unknown[0]!r} is no type of input; expected usual, or some of {', '.join(known)}", file=sys.stderr)
        return 2
    every = [variant for kernel in KERNELS.values() for variant in kernel.variants()]
    wanted = usual() if "usual" in arguments else []
    wanted += [one for one in every if not arguments or str(one.x).removeprefix("torch.") in arguments]
    if not any(kernel.folder() for kernel in KERNELS.values()):
        print("no folder for compiled kernels can be written to: set NUMBA_CACHE_DIR to one that can", file=sys.stderr)
        return 1
    for number, variant in enumerate(todo := list(dict.fromkeys(wanted)), 1):
        print(f"{number} of {len(todo)}: {variant}", flush=True)
        _compile(variant)
    return 0


def _serve() -> int:
    """Compile what is asked for, until there are no more questions.

    Other work on this machine goes first; where memory is short, this process ends and not the one that it works for.
    """
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    for line in sys.stdin:
        try:
            _compile(Variant.parse(line))
            print(COMPILED, line.strip(), flush=True)
        except Exception as error:  # any that a compiler may raise: it is told, and the next one is tried
            reason = " ".join(str(error).split()) or type(error).__name__
            print(f"{FAILED} {line.strip()}: {reason[:500]}", flush=True)
    return 0


def _compile(variant: Variant) -> None:
    from normcore.kernels.cpu.compiled import KERNELS

    kernel = KERNELS[variant.kernel]
    with _alone(kernel.folder()):
        kernel.of(variant.x, variant.parameters)


@contextlib.contextmanager
def _alone(folder: os.PathLike[str] | None) -> Iterator[None]:
    """Be the only process that compiles into a folder: another that wants the same kernel finds it there afterwards."""
    import fcntl

    if folder is None:
        yield
        return
    with open(os.path.join(folder, "compiling.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
