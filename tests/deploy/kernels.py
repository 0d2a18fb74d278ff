"""Kernels that were compiled already, for servers that are told of another folder for them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from normcore.kernels.cpu import compiled
from normcore.kernels.cpu.compiled.language import KERNELS


def kernels(folder: Path) -> Path:
    """Those that were compiled already, where numba looks for them below NUMBA_CACHE_DIR."""
    package = Path(compiled.__file__).parent
    there = folder / "kernels" / f"{package.name}_{hashlib.sha1(str(package).encode()).hexdigest()}"
    there.mkdir(parents=True)
    _, edition = KERNELS[0]._function.__qualname__.rsplit("-", 1)
    for kept in (package / "__pycache__").glob(f"*-{edition}-*"):
        shutil.copy2(kept, there)
    return folder / "kernels"
