"""Groups that synchronize: whose parts a round waits for, its deadline, its merge, and what all of them are told."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from normserver import calls
from normserver.activity.activity import OpenRound
from normserver.committer import Committer
from normserver.compute import Compute
from normserver.contributions import Contribution, Submission
from normserver.errors import DeadlineExceeded, ResourceExhausted, ServiceError, Unavailable, lost_lease
from normserver.lifetime import Lifetime
from normserver.metrics import Metrics
from normserver.names import PRODUCER_ID_BYTES
from normserver.producers import of_group, short_id
from normserver.published import Published
from normserver.rounds import frames
from normserver.rounds.frames import Join, Merged
from normserver.rounds.group import Closed, Group, Member, Part
from normserver.rounds.ownership import Ownership, Sole
from normstats.v1 import normalization_service_pb2 as pb

log = logging.getLogger(__name__)

MAX_GROUPS = 4096
# Results of so many rounds are kept for members whose connection broke before theirs came.
_KEPT_ROUNDS = 4
# How long a group without members is remembered.
_LINGER_SECONDS = 600.0
# What merges in less time than a change of threads takes, merges in place: 2^16 numbers, about 0.1 ms.
_IN_PLACE_NUMBERS = 2**16
_RETRY_SECONDS = 0.2


class _Result(NamedTuple):
    """What a round came to, once it is known; `members` may ask for it again. `opened_at`: the event loop's time."""

    future: asyncio.Future[bytes]
    members: set[Member]
    opened_at: float


@dataclass(slots=True)
class _Live:
    """A group, who is in it, and the results of its last rounds."""

    name: str
    group: Group
    seats: int = 0
    results: dict[int, _Result] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None


class Groups:
    """All groups of this server. Lives on the event loop."""

    def __init__(
        self,
        committer: Committer,
        published: Published,
        compute: Compute,
        lifetime: Lifetime,
        metrics: Metrics,
    ) -> None:
        self._committer = committer
        self._published = published
        self._compute = compute
        self.ownership: Ownership = Sole()
        self._lifetime = lifetime
        self._metrics = metrics
        self._live: dict[str, _Live] = {}
        self._merging: set[asyncio.Task[None]] = set()

    async def synchronize(
        self, requests: AsyncIterator[pb.SynchronizeStatsRequest]
    ) -> AsyncIterator[pb.SynchronizeStatsResponse | bytes]:
        """One member, from joining to leaving: a part in, the merged round out.

        Raises:
            ServiceError: a frame was wrong, the round failed, another server owns the group, or this one stops.
        """
        first = await anext(aiter(requests), None)
        if first is None:
            return
        join = frames.join(first)
        width = await self._width(join.terms.normalizer)
        await self.ownership.acquire(join.group)
        member = Member(calls.identity().name, join.member)
        with self._stopping_tells(), self._seat(join) as live:
            yield frames.joined(live.group.round, live.group.id)
            async for frame in requests:
                number, part = frames.part(frame, width)
                if self._live.get(join.group) is not live:
                    raise lost_lease(join.group)
                # Shielded: when one member hangs up, the others still wait for this.
                yield await asyncio.shield(self._give(live, member, number, part))

    def open_rounds(self) -> list[OpenRound]:
        """Rounds that wait for members."""
        now = asyncio.get_running_loop().time()
        return [
            _open_round(live, result, now)
            for live in self._live.values()
            if live.group.parts and (result := live.results.get(live.group.round)) is not None
        ]

    def stop(self) -> None:
        """Let every member go whose round is still open."""
        for live in self._live.values():
            if (result := live.results.get(live.group.round)) is not None:
                _fail(result.future, _stopping())

    def lost(self, name: str) -> None:
        """Another server runs this group's rounds: its members are sent there."""
        if (live := self._live.pop(name, None)) is not None:
            if live.timer is not None:
                live.timer.cancel()
            for result in live.results.values():
                _fail(result.future, lost_lease(name))

    async def finish(self) -> None:
        """Wait for rounds that are being merged."""
        await asyncio.gather(*self._merging, return_exceptions=True)

    async def _width(self, normalizer: str) -> int | None:
        if not normalizer:
            return None
        record = await self._published.get(normalizer)
        return record.statistics()[0].num_features

    @contextmanager
    def _stopping_tells(self) -> Iterator[None]:
        """A member that waits for nobody, or for the others, is told when the server stops."""
        task = asyncio.current_task()
        assert task is not None
        with self._lifetime.tells(task):
            try:
                yield
            except asyncio.CancelledError:
                if not self._lifetime.stopping:
                    raise
                task.uncancel()
                raise _stopping() from None

    @contextmanager
    def _seat(self, join: Join) -> Iterator[_Live]:
        live = self._enter(join)
        live.seats += 1
        try:
            yield live
        finally:
            live.seats -= 1
            if not live.seats:
                asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._forget, live)

    def _enter(self, join: Join) -> _Live:
        live = self._live.get(join.group)
        if live is None:
            if len(self._live) >= MAX_GROUPS:
                raise ResourceExhausted(f"there are {len(self._live)} groups already; try again later")
            group_id = join.group_id or secrets.token_bytes(PRODUCER_ID_BYTES)
            group = Group(group_id, join.terms, max(1, join.next_round), taken_over=bool(join.group_id))
            live = self._live[join.group] = _Live(join.group, group)
            return live
        live.group.agree(join.terms, alone=not live.seats)
        if join.group_id == live.group.id and (closed := live.group.catch_up(join.next_round)) is not None:
            self._given_up(live, closed)
        return live

    def _forget(self, live: _Live) -> None:
        if not live.seats and not live.group.parts and self._live.get(live.name) is live:
            del self._live[live.name]
            self.ownership.release(live.name)

    def _give(self, live: _Live, member: Member, number: int, part: Part) -> asyncio.Future[bytes]:
        kept = live.results.get(number)
        if number < live.group.round:
            if kept is None or member not in kept.members:
                raise live.group.over(number)
            return kept.future
        loop = asyncio.get_running_loop()
        closed = live.group.give(member, number, part, loop.time())
        if kept is None:
            kept = live.results[number] = _Result(loop.create_future(), set(), loop.time())
            self._metrics.open_rounds.inc()
            live.timer = loop.call_later(live.group.terms.timeout_seconds, self._expire, live)
            live.results.pop(number - _KEPT_ROUNDS, None)
        kept.members.add(member)
        if closed is not None:
            self._closed(live, closed)
        return kept.future

    def _expire(self, live: _Live) -> None:
        deadline = live.group.deadline
        if deadline is not None and (closed := live.group.expire(max(deadline, asyncio.get_running_loop().time()))):
            self._closed(live, closed)

    def _given_up(self, live: _Live, closed: Closed) -> None:
        """The open round was over elsewhere: those who gave it again cannot be told what it came to."""
        if (result := self._ended(live, closed)) is not None:
            _fail(result.future, live.group.over(closed.round))

    def _ended(self, live: _Live, closed: Closed) -> _Result | None:
        """The open round waits no longer; who waits for its result, if anybody does."""
        if live.timer is not None:
            live.timer.cancel()
        result = live.results.get(closed.round)
        if result is not None:
            waited = asyncio.get_running_loop().time() - result.opened_at
            self._metrics.round_closed(waited, complete=closed.complete)
        return result

    def _closed(self, live: _Live, closed: Closed) -> None:
        """The open round waits no longer: merge it, or tell those present that it failed."""
        if (result := self._ended(live, closed)) is None:
            return  # nobody had given a part
        if not closed.complete:
            _fail(result.future, _missed(live.group, closed))
            return
        task = asyncio.create_task(self._complete(live, closed, result.future), name="round")
        self._merging.add(task)
        task.add_done_callback(self._merging.discard)

    async def _complete(self, live: _Live, closed: Closed, future: asyncio.Future[bytes]) -> None:
        try:
            members = sorted(closed.parts)
            merged = await self._merge([closed.parts[member] for member in members])
            version = await self._contribute(live, closed.round, merged)
            self.ownership.lease(live.name)  # whoever has lost it may not tell what a round came to
            if not future.done():
                future.set_result(frames.merged(closed.round, merged, [member.id for member in members], version))
        except ServiceError as error:
            _fail(future, error)
        except Exception as error:  # a bug: these members get INTERNAL, and the group lives on
            log.exception("round failed")
            _fail(future, error)

    async def _merge(self, parts: list[Part]) -> Merged:
        numbers = sum(len(part.vector) // 8 + (part.moments.values.numel() if part.moments else 0) for part in parts)
        work = partial(frames.merge, parts)
        return work() if numbers <= _IN_PLACE_NUMBERS else await self._compute.run(work)

    async def _contribute(self, live: _Live, number: int, merged: Merged) -> int:
        """Take the round into the group's normalizer, as one batch, once; returns the version that holds it, or 0.

        Tried again while the store is down, for as long as the round might have waited for its members.
        """
        terms = live.group.terms
        if not terms.normalizer or merged.moments is None:
            return 0
        loop = asyncio.get_running_loop()
        end = loop.time() + terms.timeout_seconds
        contribution = Contribution(terms.normalizer, merged.moments, None, "part.moments")
        submission = Submission(
            of_group(live.name, live.group.id),
            number,
            (contribution,),
            self.ownership.lease(live.name),
            payer=calls.identity().name,  # of the member whose part completed the round, or whose part opened it
        )
        while True:
            try:
                outcome = await self._committer.submit(submission)
                return outcome.contributed[0].version
            except Unavailable as error:
                if self._lifetime.stopping or loop.time() > end or error.reason != Unavailable.reason:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)


def _open_round(live: _Live, result: _Result, now: float) -> OpenRound:
    group = live.group
    known: dict[Member, None] = {}
    for number in sorted(live.results, reverse=True):
        known |= dict.fromkeys(sorted(live.results[number].members))
    missing = [member for member in known if member not in group.parts]
    return OpenRound(
        live.name,
        group.round,
        group.terms.size,
        [short_id(member.id) for member in sorted(group.parts)],
        [short_id(member.id) for member in missing[: group.terms.size - len(group.parts)]],
        now - result.opened_at,
        0.0 if group.deadline is None else max(group.deadline - now, 0.0),
        group.terms.normalizer,
    )


def _fail(future: asyncio.Future[bytes], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # seen: nobody may be left to await it


def _missed(group: Group, closed: Closed) -> DeadlineExceeded:
    terms = group.terms
    needed = f"at least {terms.quorum} of {terms.size}" if terms.proceed else f"all {terms.size}"
    return DeadlineExceeded(
        f"round {closed.round} had {len(closed.parts)} members when its {terms.timeout_seconds:g} s were over, and "
        f"needed {needed}; nothing was merged, and the group is at round {group.round}",
        metadata={"next_round": str(group.round)},
    )


def _stopping() -> Unavailable:
    return Unavailable("the server is stopping; join again, with the same round", reason="STOPPING")
