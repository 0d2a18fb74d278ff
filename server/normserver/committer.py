"""The one writer of contributions: takes all that has gathered, makes it one transaction, and tells everyone.

While a commit is on its way to disk the next one gathers; so the busier the server, the more contributions share one
sync.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from normserver import calls
from normserver.access.quotas import NewProducers
from normserver.activity.contributors import Contributors
from normserver.calls import Call
from normserver.contributions import Decision, Outcome, Submission, decide
from normserver.errors import ResourceExhausted, ServiceError, Unavailable
from normserver.metrics import Metrics
from normserver.phases import COMMIT, QUEUE, Phases
from normserver.published import Published
from normserver.records import Record
from normserver.retention import RetentionClock
from normserver.store.base import Transaction
from normserver.store_thread import StoreThread

log = logging.getLogger(__name__)

# A commit takes in no more than this, so that one does not keep the callers of the next waiting for long.
_MAX_SUBMISSIONS = 1024


class _Pending(NamedTuple):
    """A submission that waits for its commit, whose call it is, and since when."""

    submission: Submission
    future: asyncio.Future[Outcome]
    call: Call | None
    queued_at: float


class Committer:
    """Merges submissions into the store, in the order of their arrival."""

    def __init__(
        self,
        store: StoreThread,
        published: Published,
        metrics: Metrics,
        contributors: Contributors,
        new_producers: NewProducers,
        *,
        max_pending: int,
        retention: RetentionClock,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._published = published
        self._metrics = metrics
        self._phases = Phases(metrics)
        self._contributors = contributors
        self._new_producers = new_producers
        self._max_pending = max_pending
        self._retention = retention
        self._clock = clock
        self._steady_offset = clock() - time.monotonic()
        self._pending: list[_Pending] = []
        self._under_way = 0
        metrics.pending.set_function(lambda: len(self._pending) + self._under_way)
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._stopping = False

    def why_full(self) -> str:
        """Why `submit` has no room; empty if it has."""
        if len(self._pending) < self._max_pending:
            return ""
        return f"{len(self._pending)} contributions are waiting already; try again later"

    def submit(self, submission: Submission) -> asyncio.Future[Outcome]:
        """Queue a submission; the future holds what became of it once that is durable, or its ServiceError.

        Raises:
            ResourceExhausted: too much is waiting already.
            Unavailable: the server is stopping.
        """
        if self._stopping:
            raise Unavailable("the server is stopping; a retry is safe", reason="STOPPING")
        if sentence := self.why_full():
            raise ResourceExhausted(sentence)
        self._new_producers.know(calls.identity())
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._pending.append(_Pending(submission, future, calls.current(), time.perf_counter()))
        self._arrived.set()
        return future

    async def room(self) -> None:
        """Wait until `submit` has room, or the server is stopping."""
        while len(self._pending) >= self._max_pending and not self._stopping:
            self._taken.clear()
            await self._taken.wait()

    async def run(self) -> None:
        """Commit until `stop` is called and all that was queued is done."""
        while True:
            await self._arrived.wait()
            taken, self._pending = self._pending[:_MAX_SUBMISSIONS], self._pending[_MAX_SUBMISSIONS:]
            self._taken.set()
            if not self._pending and not self._stopping:
                self._arrived.clear()
            if taken:
                self._under_way = len(taken)
                await self._commit(taken)
                self._under_way = 0
            elif self._stopping:
                return

    def stop(self) -> None:
        """Refuse what comes from now on; `run` returns when the rest is committed."""
        self._stopping = True
        self._arrived.set()
        self._taken.set()

    async def _commit(self, taken: Sequence[_Pending]) -> None:
        # Who has hung up before the commit began is not counted: his retry, if there is one, has the same sequence.
        taken = [one for one in taken if not one.future.cancelled()]
        submissions = [one.submission for one in taken]
        began, now = time.perf_counter(), self._now()
        try:
            known = self._published.at_hand(_names(submissions))
            commit = partial(
                _commit,
                submissions=submissions,
                known=known,
                now=now,
                steady=time.monotonic() + self._steady_offset,
                used_at=self._retention.now(),
                budgets=self._new_producers.left({one.payer for one in submissions}, began),
            )
            decision = await self._store.run(commit)
        except ServiceError as error:
            _fail(taken, error)
            return
        except Exception as error:  # a bug: these callers get INTERNAL, and the committer lives on for the others
            log.exception("commit failed")
            _fail(taken, error)
            return
        self._new_producers.spend(decision.new_producers)
        self._published.publish(decision.records)
        for one, outcome in zip(taken, decision.outcomes, strict=True):
            if one.future.done():
                continue
            if isinstance(outcome, ServiceError):
                one.future.set_exception(outcome)
            else:
                one.future.set_result(outcome)
        try:
            self._count(taken, decision, began, now)
        except Exception:  # metrics and activity only observe: their errors must not end the committer
            log.exception("a commit could not be counted in metrics and activity")

    def _count(self, taken: Sequence[_Pending], decision: Decision, began: float, now: float) -> None:
        ended, seen_at = time.perf_counter(), time.monotonic()
        self._metrics.commit_done(ended - began, decision.outcomes)
        for one, outcome in zip(taken, decision.outcomes, strict=True):
            self._phases.note(one.call, QUEUE, one.queued_at, began)
            self._phases.note(one.call, COMMIT, began, ended)
            if not isinstance(outcome, ServiceError):
                self._contributors.note(one.submission, seen_at, at=now, duplicate=outcome.duplicate)

    def _now(self) -> float:
        return round(self._clock(), 6)  # microseconds, as the store keeps them


def _commit(
    transaction: Transaction,
    *,
    submissions: Sequence[Submission],
    known: Mapping[str, Record],
    now: float,
    steady: float,
    used_at: float,
    budgets: Mapping[str, int],
) -> Decision:
    # Records first: whoever else brings the same contributions waits here, and then finds them in the windows.
    records = transaction.lock_records(_names(submissions), known)
    windows = transaction.lock_windows({submission.producer for submission in submissions})
    held = transaction.held({submission.lease for submission in submissions if submission.lease is not None})
    decision = decide(records, windows, submissions, now, held, budgets, steady=steady)
    transaction.advance(decision.records)
    transaction.put_windows(decision.windows, used_at)
    return decision


def _names(submissions: Sequence[Submission]) -> set[str]:
    return {contribution.name for submission in submissions for contribution in submission.contributions}


def _fail(taken: Sequence[_Pending], error: Exception) -> None:
    for one in taken:
        if not one.future.done():
            one.future.set_exception(error)
