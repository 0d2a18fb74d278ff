"""Backups: the whole store as of one commit, in pieces. No path travels, and none of a caller's is opened."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

from normserver.errors import FailedPrecondition, ResourceExhausted, Unavailable
from normserver.lifetime import Lifetime
from normserver.store.base import CopyFailed, NoCopies
from normserver.store_thread import StoreThread
from normstats.v1 import normalization_service_pb2 as pb

log = logging.getLogger(__name__)

_PIECE_BYTES = 1 << 20


class Backups:
    """Makes one backup at a time: each takes as much room beside the store as the store itself, until it is sent."""

    def __init__(self, store: StoreThread, lifetime: Lifetime) -> None:
        self._store = store
        self._lifetime = lifetime
        self._under_way = False

    async def send(self) -> AsyncIterator[pb.BackUpResponse]:
        """A backup, in pieces.

        Raises:
            FailedPrecondition: the database's own tools make it.
            ResourceExhausted: another is under way, or there is no room.
            Unavailable: the store failed, or the server stops.
        """
        if self._under_way:
            raise ResourceExhausted("a backup is under way; ask again when it is done", reason="BACKUP_UNDER_WAY")
        self._under_way = True
        try:
            async with aclosing(_pieces(await self._made())) as pieces:
                async for piece in pieces:
                    if self._lifetime.stopping:
                        raise _stopping()
                    yield piece
        finally:
            self._under_way = False

    async def _made(self) -> BinaryIO:
        """The backup in a file that has no name any more: whatever comes, nothing is left behind."""
        started = time.perf_counter()
        this = asyncio.current_task()
        assert this is not None, "handlers are tasks"
        try:
            with self._lifetime.tells(this):  # not while a piece is sent: gRPC would be told, and not the caller
                file = _taken(await self._store.copy())
        except asyncio.CancelledError:
            if self._lifetime.stopping:
                raise _stopping() from None
            raise
        except NoCopies as error:
            raise FailedPrecondition(str(error), reason="NOT_OFFERED") from error
        except CopyFailed as error:
            log.error("backup failed", extra={"error": str(error)})
            raise ResourceExhausted(
                "the server has no room for a backup beside its store, or cannot write there; its log says more",
                reason="BACKUP_FAILED",
            ) from error
        seconds = round(time.perf_counter() - started, 3)
        log.info("store copied", extra={"size_bytes": os.fstat(file.fileno()).st_size, "seconds": seconds})
        return file


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping; ask for the backup again", reason="STOPPING")


def _taken(path: Path) -> BinaryIO:
    file = path.open("rb")
    path.unlink()
    return file


async def _pieces(file: BinaryIO) -> AsyncGenerator[pb.BackUpResponse, None]:
    """A file, closed in the end: its size with the first piece, its digest with the last."""
    size, digest = os.fstat(file.fileno()).st_size, hashlib.sha256()

    def read() -> bytes:
        data = file.read(_PIECE_BYTES)
        digest.update(data)
        return data

    left = size
    try:
        while left:
            piece = pb.BackUpResponse(data=await asyncio.to_thread(read), size_bytes=size if left == size else 0)
            left -= len(piece.data)
            if not left:
                piece.sha256 = digest.digest()
            yield piece
    finally:
        asyncio.get_running_loop().run_in_executor(None, file.close)  # the disk's room is given back there
