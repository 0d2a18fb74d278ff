"""The tasks and threads of a server: which of them it cannot do without, and what happens when one ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

# How soon an auxiliary task is started again. A task that always fails logs one traceback per interval.
RESTART_SECONDS = 1.0

Run = Callable[[], Coroutine[Any, Any, None]]


class CoreTaskEnded(Exception):
    """A task or thread that the server cannot do without ended; the process must be started again."""


class Supervisor:
    """Runs the server's tasks on the event loop.

    A core task that ends before the server stops is fatal: `failure` names it, and `failed` is called once. An
    auxiliary task that fails is logged and started again: it observes the server, and must not stop it.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        self.failure = ""
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def core(self, name: str, run: Run) -> asyncio.Task[None]:
        """Run a task that the server cannot do without."""
        task = asyncio.create_task(run(), name=name)
        task.add_done_callback(self._core_ended)
        self._tasks.append(task)
        return task

    def auxiliary(self, name: str, run: Run) -> None:
        """Run a task, and start it again whenever it ends."""
        self._tasks.append(asyncio.create_task(self._restarted(name, run), name=name))

    def thread_ended(self, name: str) -> None:
        """Report, on the event loop, that a thread ended which the server cannot do without."""
        if not self._stopping:
            self._fail(f"thread {name}", None)

    def stop(self) -> None:
        """Expect core tasks to end from now on."""
        self._stopping = True

    async def cancel(self) -> None:
        """Cancel all tasks that still run, and wait for their end."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _core_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if not self._stopping:
            self._fail(f"task {task.get_name()}", error)

    def _fail(self, what: str, error: BaseException | None) -> None:
        if not self.failure:
            log.critical("core task ended; the server stops", exc_info=error, extra={"core": what})
            reason = "returned" if error is None else f"{type(error).__name__}: {error}"
            self.failure = f"{what} ended unexpectedly ({reason})"
            self._failed()

    async def _restarted(self, name: str, run: Run) -> None:
        while not self._stopping:
            try:
                await run()
            except Exception:
                log.exception("auxiliary task failed; it starts again", extra={"task": name})
            await asyncio.sleep(RESTART_SECONDS)
