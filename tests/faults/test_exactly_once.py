"""Exactly once, and together: connections cut, servers killed, replicas on one store; every batch counts once."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.faults.conftest import Promise, Site
from tests.faults.load import Load
from tests.faults.proxy import Proxy
from tests.faults.sizes import sized


class Size(NamedTuple):
    """How much of it."""

    producers: int
    batches: int
    kills: int


@sized("size", Size(4, 40, 1), Size(8, 500, 5))
@pytest.mark.timeout(900)
def test_exactly_once(site: Site, promise: Promise, name: str, size: Size) -> None:
    server = site.server().start()
    with Proxy(server.target, cut_rate=0.1) as proxy:
        with Load([proxy.target], name, producers=size.producers, batches=size.batches) as load:
            for number in range(size.kills):
                load.wait_for((number + 1) / (size.kills + 1))
                server.kill()
                server.start()
        cuts = sum(proxy.cuts.values())
    assert len(proxy.cuts) == 3, "before the request, after it, before the reply"
    promise(
        f"Exactly once: {site.name}, {size.producers} producers x {size.batches}",
        "counts exact, mean and variance within 1e-12",
        f"{load.check(server.target)}; {cuts} connections cut, {size.kills} kills, {load.duplicates} duplicates",
    )


@sized("size", Size(8, 20, 1), Size(16, 200, 3))
@pytest.mark.timeout(900)
def test_together(postgresql: Site, promise: Promise, name: str, size: Size) -> None:
    replicas = [postgresql.server().start() for _ in range(2)]
    with ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(one.target, cut_rate=0.1, seed=k)) for k, one in enumerate(replicas)]
        targets = [proxy.target for proxy in proxies]
        with Load(
            [targets[0], targets[0], targets[1], targets[1]], name, producers=size.producers, batches=size.batches
        ) as load:
            for number in range(size.kills):
                load.wait_for((number + 1) / (size.kills + 1))
                replicas[number % 2].kill()
                replicas[number % 2].start()
        cuts = sum(sum(proxy.cuts.values()) for proxy in proxies)
    seen = {load.check(replica.target) for replica in replicas}
    assert len(seen) == 1
    promise(
        f"Together: two replicas, {size.producers} writers x {size.batches}",
        "counts exact, mean and variance within 1e-12",
        f"{seen.pop()}; {cuts} connections cut, {size.kills} kills, {load.duplicates} duplicates",
    )
