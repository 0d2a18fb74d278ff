"""What streams hold, all together: bounded, given back, and taken from who does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from normserver.errors import ResourceExhausted
from normserver.metrics import Metrics
from normserver.stream_memory import Share, StreamMemory

MIB = 1 << 20


class Streams:
    """Streams on 4 MiB of memory, whose time is told by the test."""

    def __init__(self) -> None:
        self.now = 0.0
        self.metrics = Metrics()
        self.closed: list[str] = []
        self.delivered: dict[str, int] = {}
        self.memory = StreamMemory(
            4 * MIB,
            self.metrics,
            close=self._close,
            delivered_bytes=lambda callers: {caller: self.delivered.get(caller, 0) for caller in callers},
            clock=lambda: self.now,
        )
        self.tasks: list[asyncio.Task[None]] = []
        self.by_caller: dict[str, list[asyncio.Task[None]]] = {}

    def open(self, *expected_bytes: int, caller: str = "", rests: bool = False) -> Share:
        """A stream that lives until its task ends; it comes from a connection of its own, if nothing else is said."""
        self.tasks.append(asyncio.create_task(asyncio.sleep(60)))
        share = self.memory.share(self.tasks[-1], expected_bytes, rests=rests)
        caller = caller or str(len(self.tasks))
        share.comes_from(caller)
        self.by_caller.setdefault(caller, []).append(self.tasks[-1])
        return share

    async def pass_seconds(self, seconds: float) -> None:
        """So much time passes, and the memory looks once more."""
        self.now += seconds
        await asyncio.sleep(0.15)

    def _close(self, caller: str) -> bool:
        """Its streams end."""
        self.closed.append(caller)
        for task in self.by_caller[caller]:
            task.cancel()
        return True

    @property
    def held_bytes(self) -> float | None:
        return self.metrics.registry.get_sample_value("normstats_stream_held_bytes")


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    made = Streams()
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)
    assert made.held_bytes == 0


async def waits(coroutine: object) -> asyncio.Task[None]:
    """A task for what should have to wait."""
    task: asyncio.Task[None] = asyncio.ensure_future(coroutine)  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


async def test_what_there_is_is_given_and_more_waits_until_it_is_given_back(streams: Streams) -> None:
    one, two = streams.open(), streams.open()
    await one.hold(3 * MIB)
    waiting = await waits(two.hold(2 * MIB))
    one.give(2 * MIB)
    await waiting
    assert streams.held_bytes == 3 * MIB


async def test_who_came_first_is_served_first(streams: Streams) -> None:
    one, two, three = streams.open(), streams.open(3 * MIB), streams.open(MIB)
    await one.hold(4 * MIB)
    large = await waits(two.may_read())
    small = await waits(three.may_read())
    one.give(4 * MIB)
    await large
    await small
    assert streams.held_bytes == 4 * MIB


async def test_what_is_larger_than_all_goes_alone(streams: Streams) -> None:
    one, two = streams.open(), streams.open()
    await one.hold(9 * MIB)
    waiting = await waits(two.hold(9 * MIB))
    one.give(9 * MIB)
    await waiting


async def test_a_small_message_never_waits_if_it_is_the_only_one(streams: Streams) -> None:
    one, two = streams.open(), streams.open()
    await one.hold(4 * MIB)
    await two.may_read()
    await two.hold(1 << 16)
    waiting = await waits(two.hold(1 << 16))
    one.give(4 * MIB)
    await waiting


async def test_the_next_message_is_read_when_there_is_room_for_one_like_the_last(streams: Streams) -> None:
    one, two = streams.open(2 * MIB), streams.open(3 * MIB)
    await one.may_read()
    waiting = await waits(two.may_read())
    await one.hold(MIB)
    await waiting
    assert streams.held_bytes == 4 * MIB
    await two.hold(2 * MIB)
    assert streams.held_bytes == 3 * MIB


async def test_who_comes_when_as_much_again_waits_is_refused(streams: Streams) -> None:
    one, two, three = streams.open(), streams.open(), streams.open()
    await one.hold(4 * MIB)
    waiting = await waits(two.hold(4 * MIB))
    with pytest.raises(ResourceExhausted) as caught:
        await three.hold(MIB)
    assert caught.value.reason == "MEMORY_FULL"
    one.give(4 * MIB)
    await waiting


async def test_what_is_here_goes_before_what_may_come(streams: Streams) -> None:
    one, reader, two = streams.open(), streams.open(MIB), streams.open()
    await one.hold(4 * MIB)
    reading = await waits(reader.may_read())
    here = await waits(two.hold(4 * MIB))
    one.give(4 * MIB)
    await here
    assert not reading.done()
    two.give(4 * MIB)
    await reading


async def test_what_is_larger_than_was_reserved_for_it_waits(streams: Streams) -> None:
    one, two = streams.open(), streams.open(MIB)
    await one.hold(3 * MIB)
    await two.may_read()
    waiting = await waits(two.hold(2 * MIB))
    one.give(3 * MIB)
    await waiting
    assert streams.held_bytes == 2 * MIB


async def test_streams_share_alike_beyond_their_first_message(streams: Streams) -> None:
    one, two = streams.open(), streams.open()
    await one.hold(MIB)
    await one.may_read()
    await one.hold(MIB)
    await two.hold(MIB)
    ahead = await waits(one.may_read())
    one.give(MIB)
    await ahead


async def test_what_first_messages_may_hold_is_told_and_then_each_may_be_like_the_last(streams: Streams) -> None:
    one, two = streams.open(2 * MIB, 3 * MIB), streams.open(4 * MIB)
    await one.may_read()
    await one.hold(1)
    one.give(1)
    await one.may_read()
    waiting = await waits(two.may_read())
    await one.hold(1)
    one.give(1)
    await waiting
    await one.may_read()  # of what is as small as the last, no more is taken
    assert streams.held_bytes == 4 * MIB


async def test_a_stream_that_rests_keeps_nothing_from_others_once_it_is_answered(streams: Streams) -> None:
    resting, busy = streams.open(3 * MIB, rests=True), streams.open(4 * MIB)
    await resting.may_read()
    waiting = await waits(busy.may_read())
    await resting.hold(3 * MIB)
    ahead = await waits(resting.may_read())  # not answered yet: what it expects has to be there
    resting.give(3 * MIB)
    await waiting
    await busy.hold(4 * MIB)
    busy.give(4 * MIB)
    await ahead
    await resting.hold(3 * MIB)
    resting.give(3 * MIB)
    await resting.may_read()
    assert streams.held_bytes == 0  # nobody else wants any
    await busy.hold(2 * MIB)
    unexpected = await waits(resting.hold(3 * MIB))
    busy.give(2 * MIB)
    await unexpected


async def test_where_others_want_memory_one_that_rests_has_it_for_a_moment_alone(streams: Streams) -> None:
    resting = [streams.open(3 * MIB, rests=True) for _ in range(8)]
    for one in resting:
        await one.may_read()
        await one.hold(3 * MIB)
        one.give(3 * MIB)
    busy = streams.open(4 * MIB)
    await busy.may_read()
    ahead = [asyncio.create_task(one.may_read()) for one in resting]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in ahead)  # what comes at once would be too much
    await busy.hold(4 * MIB)
    busy.give(4 * MIB)
    async with asyncio.timeout(1):
        await asyncio.gather(*ahead)  # each in its turn, and none keeps what it does not use
    await asyncio.sleep(0.05)
    assert streams.held_bytes == 0
    await busy.may_read()


async def test_what_is_reserved_and_not_used_is_given_to_who_waits(streams: Streams) -> None:
    idle, busy = streams.open(4 * MIB), streams.open(4 * MIB)
    await idle.may_read()
    waiting = await waits(busy.may_read())
    streams.now = 1.1
    async with asyncio.timeout(1):
        await waiting
    assert streams.held_bytes == 4 * MIB


async def test_what_comes_after_all_takes_what_others_have_reserved_and_waits_for_what_they_hold(
    streams: Streams,
) -> None:
    idle, busy = streams.open(4 * MIB), streams.open(4 * MIB)
    await idle.may_read()
    streams.now = 1.1
    await busy.may_read()
    await idle.hold(MIB)
    assert streams.held_bytes == MIB
    waiting = await waits(busy.hold(4 * MIB))
    idle.give(MIB)
    await waiting


async def test_what_is_reserved_stands_while_others_have_their_turns_on_its_connection(streams: Streams) -> None:
    turns, behind, other = streams.open(caller="slow"), streams.open(4 * MIB, caller="slow"), streams.open(MIB)
    await behind.may_read()
    waiting = await waits(other.may_read())
    for _ in range(4):
        streams.now += 0.9
        await turns.hold(1)
        turns.give(1)
        await asyncio.sleep(0.15)
        assert not waiting.done()
    await turns.hold(1)
    async with asyncio.timeout(1):
        await waiting


async def test_the_connection_of_who_does_not_read_is_closed_when_others_wait_and_not_before(streams: Streams) -> None:
    stuck, busy = streams.open(caller="stuck"), streams.open(caller="busy")
    await stuck.hold(4 * MIB)
    stuck.writes()
    await streams.pass_seconds(3)
    assert not streams.closed
    waiting = await waits(busy.hold(4 * MIB))
    await streams.pass_seconds(0.9)
    assert not streams.closed
    await streams.pass_seconds(0.2)
    async with asyncio.timeout(1):
        await waiting
    assert streams.closed == ["stuck"]
    assert streams.metrics.registry.get_sample_value("normstats_connections_cut_total") == 1


async def test_a_connection_stays_while_its_caller_reads_however_slowly(streams: Streams) -> None:
    slow, busy = streams.open(caller="slow"), streams.open(caller="busy")
    await slow.hold(4 * MIB)
    slow.writes()
    waiting = await waits(busy.hold(4 * MIB))
    for _ in range(20):
        streams.delivered["slow"] = streams.delivered.get("slow", 0) + 20_000
        await streams.pass_seconds(0.25)
    assert not streams.closed
    await streams.pass_seconds(1.1)
    async with asyncio.timeout(1):
        await waiting
    assert streams.closed == ["slow"]


async def test_a_connection_that_had_nothing_to_read_for_a_while_is_given_a_second(streams: Streams) -> None:
    slow, busy = streams.open(caller="slow"), streams.open(caller="busy")
    await slow.hold(4 * MIB)
    waiting = await waits(busy.hold(4 * MIB))
    for _ in range(2):
        slow.writes()
        await streams.pass_seconds(0.2)
        assert not streams.closed
        slow.has_written()
        await streams.pass_seconds(9)
    slow.give(4 * MIB)
    await waiting


async def test_a_connection_stays_while_one_of_its_streams_is_read(streams: Streams) -> None:
    stuck, read, busy = streams.open(caller="one"), streams.open(caller="one"), streams.open(caller="busy")
    await stuck.hold(2 * MIB)
    await read.hold(2 * MIB)
    stuck.writes()
    waiting = await waits(busy.hold(4 * MIB))
    for _ in range(10):
        await streams.pass_seconds(0.4)
        read.writes()
        await asyncio.sleep(0.15)
        read.has_written()
    assert not streams.closed
    read.writes()
    await streams.pass_seconds(0.2)
    await streams.pass_seconds(1.1)
    async with asyncio.timeout(1):
        await waiting
    assert streams.closed == ["one"]


async def test_who_waits_for_the_server_is_not_cut(streams: Streams) -> None:
    computing, busy = streams.open(), streams.open()
    await computing.hold(4 * MIB)
    waiting = await waits(busy.hold(MIB))
    await streams.pass_seconds(3)
    assert not streams.closed
    computing.writes()
    computing.has_written()
    computing.give(4 * MIB)
    await waiting


async def test_the_end_of_a_stream_frees_what_it_holds_and_what_it_gives_back_later_counts_no_more(
    streams: Streams,
) -> None:
    one, two = streams.open(), streams.open()
    await one.hold(4 * MIB)
    waiting = await waits(two.hold(4 * MIB))
    streams.tasks[0].cancel()
    await waiting
    one.give(4 * MIB)
    assert streams.held_bytes == 4 * MIB


async def test_who_gives_up_waiting_leaves_nothing(streams: Streams) -> None:
    one, two, three = streams.open(), streams.open(3 * MIB), streams.open(MIB)
    await one.hold(3 * MIB)
    first = await waits(two.may_read())
    second = await waits(three.may_read())
    first.cancel()
    await second
    assert streams.held_bytes == 4 * MIB


async def test_who_gives_up_when_memory_becomes_free_leaves_nothing(streams: Streams) -> None:
    one, two, three = streams.open(), streams.open(3 * MIB), streams.open(3 * MIB)
    await one.hold(3 * MIB)
    first = await waits(two.may_read())
    second = await waits(three.may_read())
    first.cancel()
    one.give(3 * MIB)
    await second
    assert streams.held_bytes == 3 * MIB
