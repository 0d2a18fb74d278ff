"""A backup of the server's store, from the beginning whenever its connection breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import monotonic

import grpc

from normstats.aio import concurrency
from normstats.aio.connection import AsyncConnection
from normstats.backoff import Backoff
from normstats.backup import BackupFile
from normstats.errors import connection_broke, from_grpc
from normstats.results import Backup
from normstats.v1 import normalization_service_pb2 as pb

Progress = Callable[[int, int], None]

# How often a backup that was on its way may break; each time it has the timeout to begin again.
_BREAKS = 3


async def back_up(
    connection: AsyncConnection, path: Path, *, force: bool, progress: Progress, timeout: float
) -> Backup:
    """See Client.back_up.

    Raises:
        NormstatsError: it failed.
        OSError: the file is there, or cannot be written.
    """
    deadline, backoff, broken = monotonic() + timeout, Backoff(), 0
    while True:
        file = BackupFile(path, force=force)
        try:
            with file:
                return await _received(connection, file, progress)
        except grpc.RpcError as error:
            if file.written_bytes and broken < _BREAKS:
                broken += 1
                deadline = monotonic() + timeout
            wait = backoff.next_seconds()
            if not connection_broke(error) or monotonic() + wait >= deadline:
                raise from_grpc(error) from error
            await concurrency.sleep(wait)


async def _received(connection: AsyncConnection, file: BackupFile, progress: Progress) -> Backup:
    call = connection.stub.BackUp(pb.BackUpRequest(), wait_for_ready=False)
    try:
        async for piece in call:
            file.write(piece)
            progress(file.written_bytes, file.size_bytes)
        return await concurrency.apart(file.finish)
    finally:
        call.cancel()
