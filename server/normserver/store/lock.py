"""One process per database file, and a sentence that says which one holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normserver.store.base import StoreError


class FileLock:
    """An advisory lock on a file beside the database; the system releases it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock, and write who has it.

        Raises:
            StoreError: another process has it, or the folder cannot be written to.
        """
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(
                f"{self._path.with_suffix('')} cannot be used: this process cannot write to {self._path.parent} "
                f"({error.strerror}); give it the right to, or give another --store"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise StoreError(
                f"{self._path.with_suffix('')} is held by {holder}; an SQLite store serves one process: stop that one, "
                "or give this one another --store"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back. The file stays: to remove it would let two processes hold two locks of one name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_of(database: Path) -> FileLock:
    """The lock that whoever works on a database holds."""
    return FileLock(Path(f"{database}.lock"))


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Nobody else works on a database.

    Raises:
        StoreError: somebody does.
    """
    lock = lock_of(database)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
