"""Memory that a server on this machine lends: opening it, which of it is free, and which arrays lie in it."""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from normstats.arrays import address_of
from normstats.errors import FailedPrecondition
from normstats.v1 import normalization_service_pb2 as pb

# Regions are powers of two from here on, so that they serve again for other shapes.
_SMALLEST_BYTES = 1 << 16
# Tensors begin at multiples of this in a region.
_ALIGNED = 64

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False, slots=True)
class Region:
    """Memory that a server lends, and where it begins in this process."""

    name: bytes
    memory: mmap.mmap
    address: int

    @property
    def size_bytes(self) -> int:
        """Its size."""
        return len(self.memory)


def region_bytes(size_bytes: int) -> int:
    """The size of the regions that serve so many bytes."""
    return max(_SMALLEST_BYTES, 1 << (size_bytes - 1).bit_length())


def opened(reply: pb.ShareMemoryResponse) -> Region:
    """The region that a server has described, opened.

    Raises:
        FailedPrecondition: this process cannot open it: it has another user or another process namespace.
    """
    path = f"/proc/{reply.process_id}/fd/{reply.descriptor}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _not_shared(f"{path}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino, found.st_size) != (reply.device, reply.inode, reply.size_bytes):
            raise _not_shared(f"{path} is another file here")
        memory = mmap.mmap(descriptor, reply.size_bytes)
    finally:
        os.close(descriptor)
    return Region(reply.region, memory, address_of(np.frombuffer(memory, np.uint8)))


class Pool:
    """The regions that the server knows. An array that nobody refers to any more gives its region back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begin()

    def array(self, region: Region, size_bytes: int) -> Bytes:
        """The first bytes of a region; free again when this array and all views of it are gone."""
        flat = np.frombuffer(region.memory, np.uint8, size_bytes)
        weakref.finalize(flat, self._given_back.append, region).atexit = False
        return flat

    def take(self, size_bytes: int) -> Region | None:
        """A free region for so many bytes, if there is one."""
        with self._lock:
            self._look()
            free = self._free.get(region_bytes(size_bytes))
            return free.pop() if free else None

    def add(self, region: Region) -> None:
        """The server lends another, which is taken."""
        with self._lock:
            self._look()
            self._regions[region.name] = region

    def forget(self) -> bool:
        """The server has taken all back. Arrays stay, as memory like any other. Whether any of it lay idle."""
        with self._lock:
            self._look()
            idle = any(self._free.values())
            self._begin()
            return idle

    def knows(self, name: bytes) -> bool:
        """Whether a region is the server's, as far as is known."""
        with self._lock:
            self._look()
            return name in self._regions

    def withhold(self, *arrays: npt.NDArray[Any]) -> None:
        """The server may still read or write these: they serve nobody else until all is forgotten."""
        with self._lock:
            self._withheld += arrays

    def place_of(self, values: npt.NDArray[Any]) -> pb.Place | None:
        """Where a dense array lies, if in a region and where a tensor may begin."""
        with self._lock:
            self._look()
            regions = list(self._regions.values())
        address = address_of(values)
        for region in regions:
            offset = address - region.address
            if 0 <= offset <= region.size_bytes - values.nbytes and offset % _ALIGNED == 0:
                return pb.Place(region=region.name, offset_bytes=offset)
        return None

    def _begin(self) -> None:
        self._process = os.getpid()
        self._regions: dict[bytes, Region] = {}
        self._free: dict[int, list[Region]] = {}
        self._withheld: list[npt.NDArray[Any]] = []
        # Arrays may end at any time, the collector's too: what they give back is looked through later.
        self._given_back: deque[Region] = deque()

    def _look(self) -> None:
        if self._process != os.getpid():
            self._begin()  # a fork's regions are its parent's
        while self._given_back:
            region = self._given_back.popleft()
            if region.name in self._regions:
                self._free.setdefault(region.size_bytes, []).append(region)


def _not_shared(what: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the server's memory cannot be opened ({what}); sharing it takes the server's user and process namespace",
        reason="NOT_SHARED",
    )
