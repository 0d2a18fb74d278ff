"""Kernels that were compiled already, for servers that are told of another folder for them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from normcore.kernels.cpu import compiled
from normcore.kernels.cpu.compiled.language import _EDITION


def kernels(folder: Path) -> Path:
    """Those that were compiled already, where numba looks for them below NUMBA_CACHE_DIR."""
    package = Path(compiled.__file__).parent
    there = folder / "kernels" / f"{package.name}_{hashlib.sha1(str(package).encode()).hexdigest()}"
    there.mkdir(parents=True)
    for kept in (package / "__pycache__").glob(f"*-{_EDITION}-*"):
        shutil.copy2(kept, there)
    return folder / "kernels"
