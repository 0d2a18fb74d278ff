"""The process's allocator, where large arrays travel."""

from __future__ import annotations

from functools import cache

_LARGEST_BYTES = (32 << 20) - (64 << 10)


@cache
def keep() -> None:
    """Once: from here on glibc keeps freed memory, up to 64 MB, for what is allocated next.

    By default it gives each block above 128 KiB back to the kernel, and new pages cost more than sending what is in
    them: a megabyte there and back took 4 ms, and takes 2. It learns from the largest block that it has seen freed;
    this one is never touched, so it costs nothing. Other allocators do not mind.
    """
    bytearray(_LARGEST_BYTES)
