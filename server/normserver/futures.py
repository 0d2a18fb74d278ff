"""What becomes of things that are awaited, errors included."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def outcome(one: Awaitable[T]) -> T | Exception:
    """What becomes of it."""
    try:
        return await one
    except Exception as error:
        return error


async def ended(several: Iterable[Awaitable[T]]) -> list[T | Exception]:
    """What became of each; whoever is cancelled meanwhile cancels all."""
    results: list[T | Exception] = []
    for result in await asyncio.gather(*several, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result  # it was cancelled, or the process is to end
        results.append(result)
    return results
