"""How this process shares its cores and its memory: the interpreter's lock, its garbage, torch's threads, malloc."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Callable

import torch

# A thread that waits for the GIL takes it after so long; the default of 5 ms is a commit's whole time.
_SWITCH_SECONDS = 0.0005


_DESCRIPTORS = 1 << 16
# Those that are for other things than connections: the store, regions of shared memory, threads.
_OTHER_DESCRIPTORS = 1024

# glibc's mallopt: what it sets, by number, and to what.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_KEPT_BYTES, _STEP_BYTES, _LARGEST_BYTES = 256 << 20, 16 << 20, 32 << 20


def keep_memory() -> None:
    """Call before threads are made: freed memory stays with the process, up to 256 MiB.

    By default glibc gives what is larger than 128 KiB back to the kernel and asks for it again, a megabyte at a time,
    and each page is then cleared at its first touch: more than all arithmetic on it.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library has no such thing
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_ARENA_MAX, 1)
        mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_TOP_PAD, _STEP_BYTES)


def give_memory_back() -> None:
    """Give what was freed back to the system now. All that allocate wait meanwhile: 20 ms for 200 MiB."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def take_descriptors() -> None:
    """More open files, where the system allows it: connections and regions of shared memory take some each."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY or most > now:
        wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, wanted), most))


def most_connections(wanted: int, descriptors: int | None = None) -> int:
    """As many connections as wanted, or as leave enough of the open files that this process may have."""
    if descriptors is None:
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return min(wanted, max(descriptors - _OTHER_DESCRIPTORS, descriptors // 2))


def settle() -> None:
    """Call once, when all is imported and made: what lives for good is not looked through for garbage again and again.

    With 64 producers on 2 cores the slowest hundredth of acknowledgements came after 38 instead of 55 ms.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()


def torch_threads(count: int) -> Callable[[], None]:
    """What a thread runs first, so that torch's operations in it use `count` threads."""

    def begin() -> None:
        torch.get_num_threads()  # the thread's first look would undo what is set before it
        torch.set_num_threads(count)

    return begin
