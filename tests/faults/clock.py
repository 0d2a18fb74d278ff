"""A wall clock that steps while the server runs: libfaketime moves it, and leaves the monotonic clock alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def need_faketime() -> None:
    """Skip the test where libfaketime is not installed."""
    if not _LIBRARIES:
        pytest.skip("libfaketime: the package faketime is not installed")


class WallClock:
    """The wall clock of processes that are started with `prefix`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "wall-clock"
        self.step(0)

    @property
    def prefix(self) -> Sequence[str]:
        """The command to put before a server's own."""
        return (
            "env",
            f"LD_PRELOAD={_LIBRARIES[0]}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            "FAKETIME_NO_CACHE=1",
            "DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",
        )

    def step(self, seconds: float) -> None:
        """Set the clock to so many seconds from the true time."""
        temporary = self._file.with_suffix(".new")
        temporary.write_text(f"{seconds:+.0f}\n")
        temporary.replace(self._file)
