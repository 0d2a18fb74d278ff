"""What the server is doing, put together; and a second's beat for those who watch it. Lives on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from normserver.activity.changes import Changes
from normserver.activity.contributors import Contributor, Contributors
from normserver.activity.history import Histories, Point, point_of
from normserver.activity.load import Load, Sampler
from normserver.errors import Unavailable
from normserver.metrics import Metrics
from normserver.records import Head, Record

# How many seconds of load are remembered.
MAX_SECONDS = 300
# Versions that are summed up in a second, for the histories. One of 16,384 features takes 2 ms.
_POINTS_A_SECOND = 64
_SECOND = 1.0


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while the server runs. `started_at`: seconds since the epoch."""

    release: str
    started_at: float
    store: str
    device: str


class OpenRound(NamedTuple):
    """A round that waits for members: those who gave their parts, and those who gave one to one of the last rounds.

    Members are named by the first digits of their ids.
    """

    group: str
    round: int
    size: int
    present: Sequence[str]
    missing: Sequence[str]
    waited_seconds: float
    remaining_seconds: float
    normalizer: str


class Doing(NamedTuple):
    """What the server is doing. `last_commit_at` is 0 before the first commit."""

    about: About
    not_ready: str
    last_commit_at: float
    load: Sequence[Load]
    normalizers: Sequence[tuple[Head, float]]
    contributors: Sequence[tuple[Contributor, float]]
    rounds: Sequence[OpenRound]


class Activity:
    """Gathers it."""

    def __init__(
        self,
        about: About,
        metrics: Metrics,
        contributors: Contributors,
        changes: Changes,
        *,
        streams: frozenset[str],
        open_rounds: Callable[[], Sequence[OpenRound]],
        why_not_ready: Callable[[], str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._about = about
        self._contributors = contributors
        self._changes = changes
        self._histories = Histories()
        self._open_rounds = open_rounds
        self._why_not_ready = why_not_ready
        self._monotonic = monotonic
        self._metrics = metrics
        self._sampler = Sampler(metrics, streams)
        self._load = deque((self._sampler.sample(),), MAX_SECONDS)
        self._beat = asyncio.Event()
        self._stopping = False

    async def run(self) -> None:
        """Look at the load every second, and at what has changed; runs until cancelled."""
        while True:
            await asyncio.sleep(_SECOND)
            self._metrics.producers.set(
                self._contributors.active(self._monotonic())
            )  # here: other threads may not look
            # On a thread: it is milliseconds, which no call should wait for.
            self._load.append(await asyncio.to_thread(self._sampler.sample))
            beat, self._beat = self._beat, asyncio.Event()
            beat.set()
            for record, point in await asyncio.to_thread(_points, self._changes.take(_POINTS_A_SECOND)):
                self._histories.of(record).add(point, self._monotonic())

    async def next(self) -> None:
        """Wait for the next second.

        Raises:
            Unavailable: the server is stopping.
        """
        if not self._stopping:
            await self._beat.wait()
        if self._stopping:
            raise Unavailable("the server is stopping; watch again", reason="STOPPING")

    def stop(self) -> None:
        """Let every watcher go."""
        self._stopping = True
        self._beat.set()

    def doing(self, wanted: Callable[[str], bool], limit: int, seconds: int) -> Doing:
        """What is done to names that are wanted: at most so many of each kind; the load of so many seconds."""
        now, contributors = self._monotonic(), self._contributors
        return Doing(
            self._about,
            self._why_not_ready(),
            self._metrics.last_commit_at,
            list(self._load)[-seconds:],
            [(head, contributors.rate(head.name, now)) for head in self._changes.last(wanted, limit)],
            [(one, one.rate.at(now)) for one in contributors.last(wanted, limit)],
            sorted((one for one in self._open_rounds() if wanted(one.group)), key=lambda one: -one.waited_seconds)[
                :limit
            ],
        )

    async def history(self, record: Record, limit: int) -> tuple[Sequence[Point], Sequence[tuple[Contributor, float]]]:
        """A normalizer's versions, this one included, and who contributed to it."""
        history = self._histories.of(record)
        for _, point in await asyncio.to_thread(_points, (record,)):
            history.add(point, self._monotonic())
        now = self._monotonic()
        contributors = self._contributors.last(lambda name: name == record.name, limit)
        return tuple(history.points), [(one, one.rate.at(now)) for one in contributors]


def _points(records: Sequence[Record]) -> list[tuple[Record, Point]]:
    """Records, summed up; on a thread, as that may take milliseconds each."""
    found = [(record, point_of(record)) for record in records if record.running is not None]
    return [(record, point) for record, point in found if point is not None]
