"""A backup on its way to a file: it appears under its name when all of it is there and synced, and not before."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Self

from normstats.errors import NormstatsError
from normstats.results import Backup
from normstats.v1 import normalization_service_pb2 as pb


class BackupFile:
    """The file to be, as a context manager that leaves nothing behind unless it was finished. Its user's alone to read.

    Raises:
        FileExistsError: there is one of that name, and it is not to be replaced.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, *, force: bool) -> None:
        if not force and path.exists():
            raise FileExistsError(_exists(path))
        self._path = path
        self._force = force
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        self._file = os.fdopen(os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._digest = hashlib.sha256()
        self._sent_digest = b""
        self.size_bytes = self.written_bytes = 0

    def write(self, piece: pb.BackUpResponse) -> None:
        """The next piece."""
        self._file.write(piece.data)
        self._digest.update(piece.data)
        self.written_bytes += len(piece.data)
        self.size_bytes = self.size_bytes or piece.size_bytes
        self._sent_digest = piece.sha256

    def finish(self) -> Backup:
        """All pieces are there: check them, sync them, and give the file its name.

        Raises:
            NormstatsError: they are not what the server sent.
            FileExistsError: there is one of that name by now.
        """
        if self.written_bytes != self.size_bytes or self._digest.digest() != self._sent_digest:
            raise NormstatsError(
                f"{self.written_bytes} of {self.size_bytes} bytes arrived, or not as they were sent; back up again"
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if self._force:
            self._partial.replace(self._path)
        else:
            try:
                os.link(self._partial, self._path)  # which, unlike a rename, replaces nothing
            except FileExistsError:
                raise FileExistsError(_exists(self._path)) from None
            self._partial.unlink()
        _sync_folder(self._path.parent)
        return Backup(self._path, self.written_bytes, self._digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)


def _exists(path: Path) -> str:
    return f"{path} is there already; give another name, or force it to be replaced"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
