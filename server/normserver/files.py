"""Files that may change while the server runs: certificates, credentials."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)


class Watched(Generic[T]):
    """What was made of some files; made anew when they change. What cannot be read leaves what was there before.

    Raises:
        OSError, ValueError: at the first time, there is nothing before.
    """

    def __init__(self, what: str, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self.what = what
        self.paths = paths
        self._read = read
        self._stamp = self._now()
        self.value = read()
        self.failed = False

    def look(self) -> bool:
        """Whether they changed and could be read; then `value` is another."""
        stamp = self._now()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self.value = self._read()
        except (OSError, ValueError) as error:
            self.failed = True
            log.error("not read again", extra={"what": self.what, "error": str(error)})
            return False
        self.failed = False
        log.info("read again", extra={"what": self.what})
        return True

    def _now(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in self.paths)


def _stamp(path: Path) -> object:
    """What differs when a file was written or replaced; a link, as Kubernetes has them, is followed."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
