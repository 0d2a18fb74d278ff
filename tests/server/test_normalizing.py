"""Where a normalization is computed: on a thread, unless it was seen to take less than handing it to one."""

from __future__ import annotations

import threading
from typing import Any

import torch

from normserver.compute import Compute
from normserver.engine import Batch, Mode, Plan
from normserver.metrics import Metrics
from normserver.normalizing import Normalizing
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb

LAYER = Plan(specs.LayerNorm(8), Mode.BATCH)


class Witness:
    """A reply that remembers which thread wrote it."""

    def __init__(self) -> None:
        self._message = pb.NormalizeResponse()
        self.thread = ""

    @property
    def output(self) -> Any:
        return self._message.output

    def SerializeToString(self) -> bytes:
        self.thread = threading.current_thread().name
        return self._message.SerializeToString()


async def thread_of(normalizing: Normalizing, plan: Plan, x: torch.Tensor, **padding: Any) -> str:
    witness = Witness()
    await normalizing.run(plan, Batch(x, **padding), witness)
    return "compute" if witness.thread.startswith("compute") else "event loop"


async def test_the_first_of_a_kind_never_holds_the_event_loop() -> None:
    compute = Compute(torch.device("cpu"), Metrics(), threads=1, max_queued=8)
    normalizing: Any = Normalizing(None, None, compute)  # type: ignore[arg-type]
    try:
        x = torch.ones(2, 8)
        first = [await thread_of(normalizing, LAYER, x.to(kind)) for kind in (torch.float32, torch.int16)]
        assert first == ["compute"] * 2
        assert "event loop" in {await thread_of(normalizing, LAYER, x) for _ in range(50)}
        assert await thread_of(normalizing, LAYER, torch.ones(3, 8)) == "compute"
        assert await thread_of(normalizing, LAYER, x, lengths=torch.tensor([1, 1])) == "compute"
    finally:
        compute.close()


async def test_what_takes_long_goes_to_a_thread_each_time() -> None:
    compute = Compute(torch.device("cpu"), Metrics(), threads=1, max_queued=8)
    normalizing: Any = Normalizing(None, None, compute)  # type: ignore[arg-type]
    try:
        large = torch.ones(1 << 15, 8)  # a megabyte
        assert {await thread_of(normalizing, LAYER, large) for _ in range(3)} == {"compute"}
        ghosts = Plan(specs.BatchNorm(1, virtual_batch_size=2), Mode.BATCH)
        many = torch.arange(1000.0).reshape(1000, 1)  # 500 passes
        assert {await thread_of(normalizing, ghosts, many) for _ in range(3)} == {"compute"}
    finally:
        compute.close()
