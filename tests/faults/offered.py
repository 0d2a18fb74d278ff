"""Calls of one method with the same bytes, by a process of its own: as many as are carried, or as are offered."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import NamedTuple

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

SERVICE = "normstats.v1.NormalizationService"
# Channels of equal options would share one connection.
CONNECTIONS = 4
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0))

_AGAIN_SECONDS = 0.01

Call = Callable[[float], Awaitable[bytes]]


class Asked(NamedTuple):
    """What is called: a method, with these bytes. With `draws`, each time by another producer."""

    method: str
    request: bytes
    draws: bool = False


class Offered(NamedTuple):
    """What became of calls that came at their own rate: how many were answered a second, how long each refusal took,
    how often each code and reason was told, and how late a hundredth of the calls began.
    """

    answered_per_second: float
    refused_seconds: tuple[float, ...]
    told: dict[str, int]
    late_seconds: float


@contextmanager
def generator(processors: set[int]) -> Iterator[ProcessPoolExecutor]:
    """A process on some processors, in which the functions below run."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), initializer=os.sched_setaffinity, initargs=(0, processors)
    ) as pool:
        yield pool


def carried_per_second(target: str, asked: Asked, callers: int, seconds: float) -> float:
    """Answers a second to so many callers, each of whom calls again when it is answered; a little later if refused."""
    return asyncio.run(_carried_per_second(target, asked, callers, seconds))


async def _carried_per_second(target: str, asked: Asked, callers: int, seconds: float) -> float:
    calls, close = _calls(target, asked)
    answered = 0
    end = time.perf_counter() + seconds

    async def caller(call: Call) -> None:
        nonlocal answered
        while time.perf_counter() < end:
            try:
                await call(30.0)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                answered += 1

    await asyncio.gather(*(call(30.0) for call in calls))
    started = time.perf_counter()
    end = started + seconds
    await asyncio.gather(*(caller(calls[index % CONNECTIONS]) for index in range(callers)))
    took = time.perf_counter() - started
    await close()
    return answered / took


def offered(target: str, asked: Asked, rate: float, seconds: float, deadline_seconds: float) -> Offered:
    """So many calls a second, whether the ones before are answered or not."""
    return asyncio.run(_offered(target, asked, rate, seconds, deadline_seconds))


async def _offered(target: str, asked: Asked, rate: float, seconds: float, deadline_seconds: float) -> Offered:
    calls, close = _calls(target, asked)
    told: Counter[str] = Counter()
    refused: list[float] = []
    late: list[float] = []
    in_time = 0

    async def one(call: Call) -> None:
        nonlocal in_time
        begun = time.perf_counter()
        try:
            await call(deadline_seconds)
        except grpc.aio.AioRpcError as error:
            took = time.perf_counter() - begun
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                refused.append(took)
            told[f"{error.code().name} {_reason(error)}".rstrip()] += 1
        else:
            told["OK"] += 1
            in_time += time.perf_counter() < end

    started = time.perf_counter()
    end = started + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif number % 16 == 0:
                await asyncio.sleep(0)  # who is late must hear of its answers nevertheless
            late.append(max(0.0, time.perf_counter() - due))
            group.create_task(one(calls[number % CONNECTIONS]))
    await close()
    return Offered(in_time / seconds, tuple(refused), dict(told), float(np.quantile(late, 0.99)))


def _calls(target: str, asked: Asked) -> tuple[list[Call], Callable[[], Awaitable[object]]]:
    """A call by each of several connections, and what closes them."""
    channels = [
        grpc.aio.insecure_channel(target, [*_OPTIONS, ("normstats.test", index)]) for index in range(CONNECTIONS)
    ]

    def of(channel: grpc.aio.Channel) -> Call:
        method = channel.unary_unary(f"/{SERVICE}/{asked.method}")

        async def call(timeout: float) -> bytes:
            # Of a field that comes twice the last is taken: producer_id is field 1, of 16 bytes.
            drawn = b"\x0a\x10" + secrets.token_bytes(16) if asked.draws else b""
            reply: bytes = await method(asked.request + drawn, timeout=timeout)
            return reply

        return call

    return [of(channel) for channel in channels], lambda: asyncio.gather(*(one.close() for one in channels))


def _reason(error: grpc.aio.AioRpcError) -> str:
    details = error.trailing_metadata().get("grpc-status-details-bin", b"")
    info = error_details_pb2.ErrorInfo()
    for packed in status_pb2.Status.FromString(details).details:
        if packed.Unpack(info):
            return info.reason
    return ""
