"""The store's own thread: transactions run there one after another, and the event loop never waits for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from normserver.errors import Unavailable
from normserver.process import torch_threads
from normserver.store.base import Copy, Store, StoreUnavailable, Transaction, TryAgain

T = TypeVar("T")
log = logging.getLogger(__name__)

# How soon a store that failed is tried again.
_PROBE_SECONDS = 1.0
# How often a transaction that meets another server's is begun.
_ATTEMPTS = 10


class StoreThread:
    """Runs transactions on a store. `up` tells whether the last one could be run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store", initializer=torch_threads(1))
        self._reading = asyncio.Lock()
        self.up = False

    async def open(self, *, must_exist: bool = False) -> bool:
        """Open the store; returns whether it is new.

        Raises:
            StoreError, StoreUnavailable: it cannot be used.
        """
        is_new = await self._on_thread(partial(self._store.open, must_exist=must_exist))
        self.up = True
        return is_new

    async def run(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in one transaction; when this returns, what it wrote is durable.

        Raises:
            Unavailable: the store failed; nothing was written, or it is not known whether it was.
            whatever `work` raises; then nothing was written.
        """
        try:
            result = await self._on_thread(lambda: self._in_transaction(work))
        except StoreUnavailable as error:
            raise self._failed(error) from error
        if not self.up:
            log.info("store is back")
        self.up = True
        return result

    async def read(self, work: Callable[[Transaction], T]) -> T:
        """Run `work`, which only reads and takes milliseconds. One at a time: a commit waits for one of these at most.

        Raises:
            Unavailable: the store failed.
        """
        async with self._reading:
            return await self.run(work)

    async def copy(self) -> Path:
        """A copy of the whole store as of one commit, in a file that is the caller's to delete. One at a time.

        It is made in steps of milliseconds, and commits come between them.

        Raises:
            NoCopies, CopyFailed: see Store.copy.
            Unavailable: the store failed.
        """
        copy: Copy | None = None
        try:
            copy = await self._on_thread(self._store.copy)
            while not await self._on_thread(copy.step):
                pass
        except StoreUnavailable as error:
            raise self._failed(error) from error
        except asyncio.CancelledError:
            if copy is not None:
                self._thread.submit(_discard, copy)
            raise
        return copy.path

    async def watch_over(self) -> None:
        """Check every second that the store is in its place; while it is down, try it again. Runs until cancelled."""
        while True:
            await asyncio.sleep(_PROBE_SECONDS)
            if not self.up:
                with contextlib.suppress(Unavailable):
                    await self.run(lambda transaction: transaction.probe())
                continue
            try:
                await self._on_thread(self._store.check)
            except TryAgain:
                continue
            except StoreUnavailable as error:
                self._failed(error)

    @property
    def shared(self) -> bool:
        """Whether other servers may work on the store at the same time."""
        return self._store.shared

    def listen(self, changed: Callable[[Sequence[str]], None]) -> None:
        """Call `changed`, on the event loop, with the names that another server may have changed; none for "any"."""
        loop = asyncio.get_running_loop()

        def heard(names: Sequence[str]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended before the listener
                loop.call_soon_threadsafe(changed, names)

        self._store.listen(heard)

    async def close(self) -> None:
        """Close the store, after what is under way."""
        await self._on_thread(self._store.close)
        self._thread.shutdown()

    def _failed(self, error: StoreUnavailable) -> Unavailable:
        if self.up:
            log.error("store failed", extra={"error": str(error)})
        self.up = False
        return Unavailable("the store is not available; nothing acknowledged was lost, and a retry is safe")

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _in_transaction(self, work: Callable[[Transaction], T]) -> T:
        for _ in range(_ATTEMPTS):
            try:
                with self._store.transaction() as transaction:
                    return work(transaction)
            except TryAgain as error:
                met = error
        raise StoreUnavailable(f"met other servers' transactions {_ATTEMPTS} times: {met}") from met


def _discard(copy: Copy) -> None:
    copy.abandon()
    copy.path.unlink(missing_ok=True)
