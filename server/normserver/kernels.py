"""Has the CPU's kernels compiled by a process beside this one, so that no call waits for a compiler.

A compiler is Python: in this process it would hold the GIL for seconds. Until a kernel is there, the reference does its
work (`normcore.kernels.launch`). The first kernel that is missing, at the first start of a release, begins it: what is
missing goes first, then what servers usually need. Processes that keep their kernels in one folder compile each once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from normcore.kernels.__main__ import COMPILED, FAILED
from normcore.kernels.base import Variant
from normserver.metrics import Metrics

log = logging.getLogger(__name__)


def compile_here() -> None:
    """Compile kernels in this process again, at their first use: no server is here any more."""
    if importlib.util.find_spec("numba") is not None:
        from normcore.kernels.cpu import compiled

        compiled.compile_elsewhere(None)


class KernelCompiler:
    """The kernels that are wanted, and a thread that has them compiled one after another."""

    def __init__(self, metrics: Metrics, *, once_compiled: Callable[[], None] = lambda: None) -> None:
        """Compile nothing in this process from now on; call `once_compiled`, on a thread, when nothing is pending."""
        self._once_compiled = once_compiled
        self._changed = threading.Condition()
        self._pending: dict[Variant, None] = {}  # in their order
        self._asked, self._failed = set[Variant](), set[Variant]()
        self._process: subprocess.Popen[str] | None = None
        self._done_by_process = 0
        self._own_folder: Path | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="kernels", daemon=True)
        if importlib.util.find_spec("numba") is None:
            return  # the reference is all there is
        from normcore.kernels.cpu import compiled

        self._compiled = compiled
        compiled.compile_elsewhere(self._want)
        loaded = {"compiled": lambda: sum(kernel.loaded for kernel in compiled.KERNELS.values())}
        counts = {"pending": lambda: len(self._pending), "failed": lambda: len(self._failed)}
        for state, count in (loaded | counts).items():
            metrics.kernels.labels(state).set_function(count)

    def start(self) -> None:
        """Compile what is missing, from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Compile nothing more; what is under way is given up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._process is not None:
                self._process.kill()
        if self._thread.is_alive():
            self._thread.join()
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    def progress(self) -> str:
        """How far it is; empty if nothing is pending."""
        pending, asked = len(self._pending), len(self._asked)
        if not pending:
            return ""
        return f"{asked - pending} of {asked} kernels compiled; the reference kernels do the others' work, more slowly"

    def _want(self, variant: Variant) -> None:
        """A kernel is missing: it goes first if a call needs it, and not the start. Called on any thread."""
        with self._changed:
            if variant in self._failed:
                return
            usual = [] if self._asked else self._compiled.usual()
            first = [variant] if self._thread.is_alive() else []
            self._pending = dict.fromkeys([*first, *self._pending, *usual, variant])
            self._asked.update(self._pending)
            self._changed.notify_all()

    def _work(self) -> None:
        while (variant := self._next()) is not None:
            began = time.monotonic()
            reason = self._have(variant)
            with self._changed:
                if self._closed:
                    break
                del self._pending[variant]
                if reason:
                    self._failed.add(variant)
                left = len(self._pending)
            told = {"kernel": str(variant), "seconds": round(time.monotonic() - began, 2), "pending": left}
            if reason:
                log.error("kernel not compiled; the reference kernel does its work", extra=told | {"reason": reason})
            else:
                log.info("kernel compiled", extra=told)
            if not left:
                log.info("kernels compiled", extra={"failed": len(self._failed)})
                self._end_process()
                self._once_compiled()
        self._end_process()

    def _next(self) -> Variant | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pending)
            return None if self._closed else next(iter(self._pending))

    def _have(self, variant: Variant) -> str:
        """Have a kernel in use; why that failed, or nothing."""
        kernel = self._compiled.KERNELS[variant.kernel]
        if kernel.load(variant.x, variant.parameters):  # another process compiled it
            return ""
        try:
            if self._process is None:
                self._begin_process()
            reason = self._ask(variant)
        except OSError as error:
            return f"no process could be started: {error}"
        if reason or kernel.load(variant.x, variant.parameters):
            return reason
        return f"it was compiled, and cannot be read from {kernel.folder()}"

    def _begin_process(self) -> None:
        folder = self._folder()
        environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)} if folder is self._own_folder else None
        log.info("compiling kernels", extra={"pending": len(self._pending), "folder": str(folder)})
        with self._changed:
            if self._closed:
                raise OSError("the server stops")
            # A session of its own: ^C is for the server, which ends it. If the server is killed, its questions end.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "normcore.kernels", "-"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env=environment,
            )
            self._done_by_process = 0

    def _folder(self) -> Path:
        """Where kernels are kept: a folder for as long as this server runs, where there is none for longer."""
        if (kept := next(iter(self._compiled.KERNELS.values())).folder()) is not None:
            return kept
        self._own_folder = Path(tempfile.mkdtemp(prefix="normstats-kernels-"))
        self._compiled.keep_in(self._own_folder)
        log.warning(
            "compiled kernels cannot be kept beyond this run, and each start compiles them again: set NUMBA_CACHE_DIR "
            "to a folder that this user can write to"
        )
        return self._own_folder

    def _ask(self, variant: Variant) -> str:
        """Have the process compile a kernel; why it did not, or nothing."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        said = _answered(process.stdin, process.stdout, variant)
        if said.startswith((COMPILED, FAILED)):
            self._done_by_process += 1
            return "" if said.startswith(COMPILED) else said.removeprefix(f"{FAILED} {variant}: ")
        code = self._end_process()
        if not self._done_by_process:  # nor would the next one do anything
            with self._changed:
                self._failed.update(self._pending)
                self._pending = {variant: None}
        return f"the compiling process ended with {code}" + (f": {said}" if said else "")

    def _end_process(self) -> int:
        """Let the process end, now that nothing is asked; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return 0
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return process.wait()


def _answered(questions: IO[str], answers: IO[str], variant: Variant) -> str:
    """The answer to a question; the last line before it if there is none."""
    last = ""
    with contextlib.suppress(OSError):  # it has ended
        questions.write(f"{variant}\n")
        questions.flush()
        for line in answers:
            last = line.strip() or last
            if last.startswith((f"{COMPILED} {variant}", f"{FAILED} {variant}")):
                return last
    return last
