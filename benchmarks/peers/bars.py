"""What is demanded of ours beside the peers, and what was seen."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.peers.peer import ECHO, FLIGHT, GRPC, KERNEL, MLSERVER, MLSERVER_BYTES, SHARED_MEMORY, TRITON
from benchmarks.wire import KIB, MIB

_LARGE = ((MIB, 1), (MIB, 16), (16 * MIB, 1), (16 * MIB, 16), (64 * MIB, 1))


class Bar(NamedTuple):
    """At least so many times a peer's calls, in one case."""

    over: str
    size: int
    callers: int
    peer: str
    demanded: float


BARS = [
    Bar(GRPC, 4 * KIB, 1, TRITON, 1.5),
    Bar(GRPC, 4 * KIB, 16, TRITON, 2),
    Bar(GRPC, 4 * KIB, 16, MLSERVER, 4),
    Bar(GRPC, 4 * KIB, 16, MLSERVER_BYTES, 4),
    *(Bar(GRPC, size, callers, TRITON, 6) for size, callers in _LARGE),
    *(Bar(GRPC, size, callers, FLIGHT, 1.5) for size, callers in _LARGE),
    *(Bar(GRPC, size, callers, ECHO, 0.6) for size, callers in _LARGE),
    *(Bar(SHARED_MEMORY, size, 1, TRITON, 5) for size in (16 * MIB, 64 * MIB)),
    *(Bar(SHARED_MEMORY, size, 1, KERNEL, 0.5) for size in (16 * MIB, 64 * MIB)),
]


def seen(bar: Bar, rows: list[dict[str, Any]]) -> float | None:
    """Ours as a multiple of that peer's; None if it was not measured."""
    for row in rows:
        if (row["over"], row["bytes"], row["callers"]) == bar[:3]:
            ratio = row["peers"].get(bar.peer, {}).get("ours_is_times_as_fast")
            return None if ratio is None else float(ratio)
    return None
