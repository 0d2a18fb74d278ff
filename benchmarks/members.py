"""One member of a group, ours or gloo's, in a process of its own; prints its rounds per second.

    python -m benchmarks.members normstats TARGET NAME SIZE VALUES SECONDS
    python -m benchmarks.members gloo STORE_FILE RANK SIZE VALUES SECONDS

Both add up vectors of so many float64; everyone waits for the sum before the next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np

_WARMUP_ROUNDS = 10


def measure(reduce: Callable[[float], float], seconds: float) -> float:
    """Rounds per second. A round's sum carries who has had enough, so that all end with the same one."""
    for _ in range(_WARMUP_ROUNDS):
        reduce(0.0)
    started = time.perf_counter()
    rounds, done = 0, 0.0
    while not done:
        done = reduce(float(time.perf_counter() - started > seconds))
        rounds += 1
    return rounds / (time.perf_counter() - started)


def normstats_member(target: str, name: str, size: int, values: int, seconds: float) -> float:
    import normstats

    vector = np.random.default_rng(0).normal(size=values)
    with normstats.connect(target) as client, client.get(name).join("benchmark", size) as member:

        def reduce(enough: float) -> float:
            vector[0] = enough
            return float(member.reduce(vector)[0])

        return measure(reduce, seconds)


def gloo_rank(file: str, rank: int, size: int, values: int, seconds: float) -> float:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    vector = torch.randn(values, dtype=torch.float64)

    def reduce(enough: float) -> float:
        total = vector.clone()
        total[0] = enough
        dist.all_reduce(total)
        return float(total[0])

    rate = measure(reduce, seconds)
    dist.destroy_process_group()
    return rate


if __name__ == "__main__":
    kind, where, who, size, values, seconds = sys.argv[1:]
    if kind == "normstats":
        print(normstats_member(where, who, int(size), int(values), float(seconds)))
    else:
        print(gloo_rank(where, int(who), int(size), int(values), float(seconds)))
