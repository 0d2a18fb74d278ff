"""Small normalizations that are asked for at the same time share a message, and nobody's fails for another's sake."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

import normstats
from normstats.aio.concurrency import Gathering
from normstats.errors import InvalidArgument, Unavailable
from tests.server_process import ServerProcess

RNG = np.random.default_rng(11)


class Wire:
    """What is sent, and what comes of it: each number's square; zero is wrong, and of 13 the store is down."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.gathering = Gathering(self.alone, self.together, 4)

    async def alone(self, item: int, _timeout: float | None) -> int:
        self.sent.append([item])
        await self.open.wait()
        self.ended.append([item])
        return item * item

    async def together(self, items: Sequence[int], _timeout: float | None) -> list[int | Exception]:
        self.sent.append(list(items))
        await self.open.wait()
        if 99 in items:
            raise normstats.DeadlineExceeded("over")
        self.ended.append(list(items))
        wrong: dict[int, Exception] = {0: InvalidArgument("zero"), 13: Unavailable("down")}
        return [wrong.get(item, item * item) for item in items]

    async def call(self, *items: int, timeout: float | None = None) -> list[int | BaseException]:
        calls = (self.gathering.call(item, timeout) for item in items)
        return await asyncio.gather(*calls, return_exceptions=True)


async def test_one_by_itself_goes_alone() -> None:
    wire = Wire()
    assert await wire.call(3) == [9]
    assert wire.sent == [[3]]


async def test_those_of_one_turn_go_together_so_many_to_a_message() -> None:
    wire = Wire()
    assert await wire.call(*range(1, 11)) == [number**2 for number in range(1, 11)]
    assert sorted(wire.sent, key=len) == [[9, 10], [1, 2, 3, 4], [5, 6, 7, 8]]


async def test_those_that_one_answer_woke_go_together_again() -> None:
    wire = Wire()

    async def caller(number: int) -> None:
        for _ in range(5):
            await wire.gathering.call(number, None)

    await asyncio.gather(*(caller(number) for number in (1, 2, 3)))
    assert wire.sent == [[1, 2, 3]] * 5


async def test_other_timeouts_go_in_other_messages() -> None:
    wire = Wire()
    calls = [wire.gathering.call(number, 1.0 + number % 2) for number in (1, 2, 3, 4)]
    assert await asyncio.gather(*calls) == [1, 4, 9, 16]
    assert wire.sent == [[1, 3], [2, 4]]


async def test_what_is_wrong_with_one_is_raised_to_that_one() -> None:
    first, wrong, last = await Wire().call(2, 0, 3)
    assert (first, last) == (4, 9)
    assert isinstance(wrong, InvalidArgument)


async def test_what_may_succeed_later_is_tried_alone() -> None:
    wire = Wire()
    assert await wire.call(2, 13) == [4, 169]
    assert wire.sent == [[2, 13], [13]]


async def test_a_message_that_fails_fails_for_all_in_it() -> None:
    results = await Wire().call(2, 99)
    assert [type(result) for result in results] == [normstats.DeadlineExceeded] * 2


async def test_who_gives_up_does_not_take_the_others_along() -> None:
    wire = Wire()
    wire.open.clear()
    calls = [asyncio.ensure_future(wire.gathering.call(number, None)) for number in (2, 3)]
    await asyncio.sleep(0.01)
    calls[0].cancel()
    await asyncio.sleep(0)
    wire.open.set()
    assert await calls[1] == 9
    assert calls[0].cancelled()


async def test_a_message_that_nobody_waits_for_any_more_is_cancelled() -> None:
    wire = Wire()
    wire.open.clear()
    calls = [asyncio.ensure_future(wire.gathering.call(number, None)) for number in (2, 3)]
    await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.sleep(0.01)
    wire.open.set()
    await asyncio.sleep(0.01)
    assert (wire.sent, wire.ended) == ([[2, 3]], [])


async def test_results_are_those_of_calls_one_after_another(server: ServerProcess, name: str) -> None:
    arrays = [RNG.normal(size=(1 + index % 5, 3 + index % 2)).astype(np.float32) for index in range(40)]
    async with normstats.aio.connect(server.target) as client:
        await client.create(name, normstats.MinMax(3))
        await client.update({name: arrays[0]})
        targets = [name if x.shape[1] == 3 else normstats.LayerNorm(4) for x in arrays]
        one_by_one = [await client.normalize(x, target) for x, target in zip(arrays, targets, strict=True)]
        calls = [client.normalize(x, target) for x, target in zip(arrays, targets, strict=True)]
        wrong = client.normalize(np.ones((2, 9), np.float32), normstats.LayerNorm(4))
        nobody = client.normalize(arrays[0], "nobody")
        *together, shape, missing = await asyncio.gather(*calls, wrong, nobody, return_exceptions=True)
    for one, other in zip(one_by_one, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(shape, normstats.InvalidArgument)
    assert shape.field.startswith("input")
    assert isinstance(missing, normstats.NotFound)
    assert missing.reason == "NORMALIZER_NOT_FOUND"


async def test_batches_to_train_on_are_each_counted_once(server: ServerProcess, name: str) -> None:
    batches = [RNG.normal(5, 2, (4, 3)) for _ in range(20)]
    async with normstats.aio.connect(server.target) as client:
        ours = await client.create(name, normstats.BatchNorm(3))
        outputs = await asyncio.gather(*(ours.normalize(x, mode="train") for x in batches))
        many = await client.normalize_many(batches, name, mode="train")
        stats = await ours.stats()
    for one, other in zip(outputs, many, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (stats.num_batches, stats.version) != (0, 1)
    assert stats.num_batches == 40


@pytest.mark.parametrize("count", [0, 1, 17])
def test_the_sync_client_sends_many_in_few_messages(server: ServerProcess, count: int) -> None:
    arrays = [RNG.normal(size=(2, 4)) for _ in range(count)]
    with normstats.connect(server.target) as client:
        many = client.normalize_many(arrays, normstats.RMSNorm(4))
        for x, y in zip(arrays, many, strict=True):
            np.testing.assert_array_equal(y, client.normalize(x, normstats.RMSNorm(4)))
