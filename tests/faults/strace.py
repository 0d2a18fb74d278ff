"""Faults in system calls, by strace's injection: a kill at the Nth sync, a disk that fails or is full."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest

_STRACE = shutil.which("strace")


def need_strace() -> None:
    """Skip, by name, where it is missing or may not trace."""
    if _STRACE is None:
        pytest.skip("strace is not installed")
    if not _may_trace():
        pytest.skip("strace may not trace here")


@cache
def _may_trace() -> bool:
    assert _STRACE is not None
    return subprocess.run([_STRACE, "-f", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode == 0


def killing(call: str, number: int) -> tuple[str, ...]:
    """What to put before a command, so that kill -9 comes when a thread makes this system call for the Nth time."""
    inject = f"inject={call}:signal=KILL:when={number}"
    # -D: the command, not strace, is the process that was started.
    return ("strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject)


def slowing(call: str, seconds: float) -> tuple[str, ...]:
    """What to put before a command, so that this system call takes so much longer, and no other."""
    inject = f"inject={call}:delay_enter={round(seconds * 1e6)}"
    quiet = ("strace", "-D", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null")
    return (*quiet, "-e", f"trace={call}", "-e", inject)


@contextmanager
def failing(pid: int, calls: str, error: str) -> Iterator[None]:
    """While it lasts these system calls of a process fail."""
    assert _STRACE is not None
    command = [_STRACE, "-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={calls}"]
    tracer = subprocess.Popen([*command, "-e", f"inject={calls}:error={error}"], stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    assert b"attached" in tracer.stderr.readline()
    time.sleep(0.1)
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(20)
        tracer.stderr.close()
