"""Rounds end: a member that dies, stalls or never comes delays a round by no more than its deadline."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

import normstats
from tests.faults.conftest import Promise, Site
from tests.faults.load import SPEC
from tests.faults.proxy import Proxy
from tests.faults.sizes import sized

FATES = ("dies", "stalls", "never comes")


@sized("deadline", 0.5, 2.0)
@pytest.mark.parametrize("on_missing", ["fail", "proceed"])
@pytest.mark.parametrize("fate", FATES)
@pytest.mark.timeout(300)
def test_rounds_end(site: Site, promise: Promise, name: str, fate: str, on_missing: Any, deadline: float) -> None:
    server = site.server().start()
    x = np.ones((4, SPEC.num_features))
    with ExitStack() as stack:
        proxy = stack.enter_context(Proxy(server.target))
        pool = stack.enter_context(ThreadPoolExecutor(4))
        targets = [server.target, server.target, server.target, proxy.target]
        clients = [stack.enter_context(normstats.connect(target)) for target in targets]
        normalizers = [client.create(name, SPEC, exist_ok=True) for client in clients]
        members = [one.join("all", 4, timeout=deadline, on_missing=on_missing) for one in normalizers]
        for member in members[:3]:
            stack.enter_context(member)
        if fate != "never comes":
            # It may not be able to take its leave.
            stack.callback(lambda: members[3].__exit__(None, None, None))
            stack.callback(proxy.release)
            members[3].__enter__()
            together = list(pool.map(lambda member: member.sync(x), members))
            assert all(len(one.members) == 4 for one in together)
            if fate == "stalls":
                proxy.hold()
            else:
                proxy.cut()
        started = time.monotonic()

        def rest(member: normstats.Member) -> object:
            try:
                return member.sync(x)
            except normstats.DeadlineExceeded as error:
                return error

        ended = list(pool.map(rest, members[:3]))
        took = time.monotonic() - started
    if on_missing == "fail":
        assert all(isinstance(one, normstats.DeadlineExceeded) for one in ended)
    else:
        assert all(isinstance(one, normstats.Round) and len(one.members) == 3 for one in ended)
    assert took < deadline + 0.5
    promise(
        f"Rounds end: a member {fate}, {on_missing}, {site.name}",
        f"within the deadline of {deadline} s and 0.5 s",
        f"after {took:.2f} s, everyone told",
    )
