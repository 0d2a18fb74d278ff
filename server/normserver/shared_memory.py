"""Memory that callers on this machine see too: tensors that lie there are normalized where they are.

A region is a sealed memfd: no caller can shrink it under a kernel's hands, no name of a caller's is ever opened, and
nothing is left behind whoever dies. Who knows its 16 random bytes may use it; it is lent for as long as the call that
asked for it lasts.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from normserver import codec
from normserver.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from normserver.lifetime import Lifetime
from normserver.metrics import Metrics
from normstats.v1 import normalization_service_pb2 as pb

# Regions that one holder may have, and all together: each takes two descriptors. Where tensors may begin in them.
_MOST_REGIONS, _MOST_IN_ALL, _ALIGNED = 1024, 4096, 64
# The part of all memory that one holder may have, unless its identity has a value of its own.
_PARTS = 4
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, eq=False, slots=True)
class _Region:
    name: bytes
    descriptor: int
    memory: mmap.mmap
    address: int

    @property
    def size_bytes(self) -> int:
        return len(self.memory)


class SharedMemory:
    """The regions of this process. A tensor keeps the memory that it lies in, even if the region is given back."""

    def __init__(self, limit_bytes: int, lifetime: Lifetime, metrics: Metrics) -> None:
        """`limit_bytes` bounds all regions together; 0 offers none."""
        self._limit_bytes = limit_bytes
        self._lifetime = lifetime
        self._metrics = metrics
        self._regions: dict[bytes, _Region] = {}
        self._size_bytes = 0
        self._held_bytes: Counter[Hashable] = Counter()
        self._held_regions: Counter[Hashable] = Counter()

    async def lend(
        self, requests: AsyncIterator[pb.ShareMemoryRequest], caller: str, identity: str = "", most_bytes: int = 0
    ) -> AsyncIterator[pb.ShareMemoryResponse]:
        """Give regions for as long as the caller asks, and take all back in the end.

        An identity may hold `most_bytes`, or a quarter of all memory if that is 0; a call without an identity, too.

        Raises:
            FailedPrecondition: none are offered, or not to callers by the network.
            InvalidArgument, ResourceExhausted: a size is wrong, or too much.
            Unavailable: the server stops.
        """
        if not self._limit_bytes:
            raise FailedPrecondition("no memory is shared here; serve with --shared-memory", reason="NOT_OFFERED")
        if not caller.startswith("unix:"):
            raise FailedPrecondition("memory is shared over a unix socket alone", reason="NOT_OFFERED")
        lent: dict[bytes, _Region] = {}
        holder: Hashable = identity or object()
        most_bytes = most_bytes or self._limit_bytes // _PARTS
        this = asyncio.current_task()
        assert this is not None, "handlers are tasks"
        try:
            with self._lifetime.tells(this):
                async for request in requests:
                    region = self._give(request.allocate_bytes, holder, most_bytes)
                    lent[region.name] = region
                    yield _described(region)
        except asyncio.CancelledError:
            if self._lifetime.stopping:
                raise Unavailable("the server is stopping; ask another for memory", reason="STOPPING") from None
            raise
        finally:
            for region in lent.values():
                self._take_back(region, holder)

    def tensor(self, place: pb.Place, dtype: torch.dtype, shape: tuple[int, ...], field: str) -> Tensor:
        """The tensor of checked dtype and shape at a place.

        Raises:
            NotFound: there is no such region.
            InvalidArgument: it does not lie in the region, or not at a multiple of 64 bytes.
        """
        count = prod(shape)
        region = self._region(place, count * dtype.itemsize, field)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(region.memory, dtype=dtype, count=count, offset=place.offset_bytes).reshape(shape)

    def address(self, place: pb.Place, size_bytes: int, field: str) -> int:
        """Where so many bytes at a place are: good until this turn of the event loop ends, which may take regions back.

        Raises:
            NotFound, InvalidArgument: as `tensor`.
        """
        return self._region(place, size_bytes, field).address + place.offset_bytes

    def _region(self, place: pb.Place, size_bytes: int, field: str) -> _Region:
        """The region where a tensor of so many bytes lies."""
        region = self._regions.get(place.region)
        if region is None:
            raise NotFound(f"{field}.region is none that this server lends; ask it for memory", reason="NO_SUCH_REGION")
        offset, end = place.offset_bytes, region.size_bytes
        if offset < 0 or offset % _ALIGNED:
            raise InvalidArgument(f"{field}.offset_bytes", f"is {offset}; expected a multiple of {_ALIGNED}")
        if offset + size_bytes > end:
            raise InvalidArgument(
                f"{field}.offset_bytes",
                f"is {offset}; a tensor of {size_bytes} bytes there goes beyond the region's end at {end}",
            )
        return region

    def _give(self, size_bytes: int, holder: Hashable, most_bytes: int) -> _Region:
        if size_bytes <= 0:
            raise InvalidArgument("allocate_bytes", f"is {size_bytes}; expected at least 1")
        size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if why := self._why_not(size_bytes, holder, most_bytes):
            raise ResourceExhausted(why, reason="SHARED_MEMORY_LIMIT")
        try:
            return self._made(size_bytes, holder)
        except OSError as error:
            raise ResourceExhausted(f"no region: {error.strerror}", reason="SHARED_MEMORY_LIMIT") from error

    def _why_not(self, size_bytes: int, holder: Hashable, most_bytes: int) -> str:
        """Why a holder does not get so much more; empty if it does."""
        if self._held_bytes[holder] + size_bytes > most_bytes:
            return (
                f"{size_bytes} bytes more would exceed the {most_bytes} bytes that one caller may hold, of which "
                f"{self._held_bytes[holder]} are lent to this one; give some back, or have --shared-memory-bytes or "
                "the identity's max_shared_memory_bytes raised"
            )
        if self._size_bytes + size_bytes > self._limit_bytes:
            return (
                f"{size_bytes} bytes would be more than --shared-memory-bytes {self._limit_bytes}, of which "
                f"{self._size_bytes} are lent already; try again later"
            )
        if self._held_regions[holder] >= _MOST_REGIONS:
            return f"this caller holds {_MOST_REGIONS} regions, as many as one may; ask for fewer, larger ones"
        if len(self._regions) >= _MOST_IN_ALL:
            return f"{_MOST_IN_ALL} regions are lent, as many as there may be; try again later"
        return ""

    def _made(self, size_bytes: int, holder: Hashable) -> _Region:
        descriptor = os.memfd_create("normstats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(descriptor, size_bytes)
            region = _Region(secrets.token_bytes(16), descriptor, memory, codec.address_of(memoryview(memory)))
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[region.name] = region
        self._count(holder, 1, size_bytes)
        return region

    def _take_back(self, region: _Region, holder: Hashable) -> None:
        del self._regions[region.name]
        os.close(region.descriptor)
        self._count(holder, -1, -region.size_bytes)

    def _count(self, holder: Hashable, more: int, more_bytes: int) -> None:
        self._held_regions[holder] += more
        self._held_bytes[holder] += more_bytes
        if not self._held_regions[holder]:
            del self._held_regions[holder], self._held_bytes[holder]
        self._size_bytes += more_bytes
        self._metrics.shared_bytes.set(self._size_bytes)


def _described(region: _Region) -> pb.ShareMemoryResponse:
    found = os.fstat(region.descriptor)
    return pb.ShareMemoryResponse(
        region=region.name,
        size_bytes=region.size_bytes,
        process_id=os.getpid(),
        descriptor=region.descriptor,
        device=found.st_dev,
        inode=found.st_ino,
    )
