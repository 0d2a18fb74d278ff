"""Files that may change while the server runs: certificates, credentials. Whom the system lets at them is looked at."""

from __future__ import annotations

import logging
import os
import stat
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


def warn_of_writers(path: Path) -> None:
    """Log a warning if others than root and this user may write a file, and so decide what is in it.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or found.st_uid not in (0, os.geteuid()):
        _warn("others can write this file, and so let themselves in", path, found, f"chmod go-w {path}")


def warn_of_readers(path: Path) -> None:
    """Log a warning if others may read a key. A group may where root says so, as Kubernetes does by fsGroup.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    others = stat.S_IRWXO if found.st_uid == 0 else stat.S_IRWXO | stat.S_IRWXG
    if found.st_mode & others or found.st_uid not in (0, os.geteuid()):
        _warn("others can read this key, and so pass for this server", path, found, f"chmod 600 {path}")


def _warn(event: str, path: Path, found: os.stat_result, remedy: str) -> None:
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    log.warning(event, extra={"path": str(path), "mode": mode, "owner": found.st_uid, "remedy": remedy})


def _stamp(path: Path) -> object:
    """What differs when a file was written or replaced, or others may read it; a link, as Kubernetes has them, is
    followed.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid
