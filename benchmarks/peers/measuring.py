"""One case, measured in turns: every peer in every round, one after another."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.peers.driver import Workload
from benchmarks.peers.peer import OURS, SHARED_MEMORY, Peer
from benchmarks.peers.servers import PeerFailed


class Case(NamedTuple):
    """Tensors of so many bytes, by so many callers, over gRPC or shared memory."""

    over: str
    size: int
    callers: int

    @property
    def workload(self) -> Workload:
        """The same, for a driver."""
        return Workload(self.size, self.callers, self.over == SHARED_MEMORY)


class Sample(NamedTuple):
    """A peer in one round."""

    calls_per_second: float
    cpu_seconds_per_gigabyte: float
    peak_bytes: int


def measure(case: Case, peers: list[Peer], rounds: int, seconds: float, failed: dict[str, str]) -> dict[str, Any]:
    """The row of a case. A peer that fails is left out of it, and why is noted in `failed`."""
    samples: dict[str, list[Sample]] = {peer.name: [] for peer in answering(case, peers, failed)}
    for _ in range(rounds):
        for peer in peers:
            if peer.name in samples:
                try:
                    samples[peer.name].append(sample(case, peer, seconds))
                except PeerFailed as error:
                    del samples[peer.name]
                    failed[label(case, peer)] = str(error)
    return {"over": case.over, "bytes": case.size, "callers": case.callers, "peers": dict(figures(case, samples))}


def answering(case: Case, peers: list[Peer], failed: dict[str, str]) -> Iterator[Peer]:
    """Those whose answer is right; this call also warms them up."""
    for peer in peers:
        try:
            peer.driver.run(case.workload, 0)
            yield peer
        except PeerFailed as error:
            failed[label(case, peer)] = str(error)


def sample(case: Case, peer: Peer, seconds: float) -> Sample:
    """What a peer does for so long."""
    peer.tree.forget_peak()
    before = peer.tree.cpu_seconds()
    calls, took = peer.driver.run(case.workload, seconds)
    used = peer.tree.cpu_seconds() - before
    return Sample(calls / took, used / (gigabytes(case) * calls), peer.tree.peak_bytes())


def gigabytes(case: Case) -> float:
    """Of one call: there, and back."""
    return 2 * case.size / 1e9


def figures(case: Case, samples: dict[str, list[Sample]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Medians of each peer's rounds; the ratio to ours is of the same round."""
    ours = [one.calls_per_second for one in samples.get(OURS, [])]
    for name, found in samples.items():
        rates = [one.calls_per_second for one in found]
        rate = statistics.median(rates)
        ratios = [mine / theirs for mine, theirs in zip(ours, rates, strict=False)]
        yield (
            name,
            {
                "calls_per_second": rate,
                "gigabytes_per_second": rate * gigabytes(case),
                "server_cpu_seconds_per_gigabyte": statistics.median(one.cpu_seconds_per_gigabyte for one in found),
                "server_peak_bytes": max(one.peak_bytes for one in found),
                "ours_is_times_as_fast": statistics.median(ratios) if ratios else None,
                "calls_per_second_by_round": rates,
            },
        )


def label(case: Case, peer: Peer) -> str:
    """Who, and at what."""
    return f"{peer.name}, {case.over}, {case.size:,} bytes, {case.callers} callers"
