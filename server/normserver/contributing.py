"""An update's way: messages become moments, moments a submission, and the committer makes it durable."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from normcore.moments import Moments
from normcore.stack import MomentsStack
from normserver import calls, codec, names, validate
from normserver.batcher import Batcher
from normserver.committer import Committer
from normserver.contributions import Contribution, Outcome, Submission
from normserver.lifetime import Lifetime
from normserver.producers import Producer, Window
from normserver.published import Published
from normserver.store_thread import StoreThread
from normstats.v1 import normalization_service_pb2 as pb


class Contributing:
    """Takes contributions in."""

    def __init__(
        self,
        store: StoreThread,
        published: Published,
        batcher: Batcher,
        committer: Committer,
        lifetime: Lifetime,
    ) -> None:
        self._store = store
        self._published = published
        self._batcher = batcher
        self._committer = committer
        self.lifetime = lifetime

    async def submit(
        self, producer: bytes, sequence: int, messages: Sequence[pb.Contribution], data: bytes, prefix: str = ""
    ) -> asyncio.Future[Outcome]:
        """Check what a producer sends, take the moments of what is raw, and queue it.

        Raises:
            ServiceError: it is wrong, or cannot be taken now.
        """
        names.check_sequence(sequence, f"{prefix}sequence")
        validate.check_names(messages, prefix)
        taken = [
            item if isinstance(item, Contribution) else await self._taken(item)
            for item in validate.contributions(messages, data, prefix)
        ]
        return self._submit(producer, sequence, taken)

    async def train(self, name: str, producer: bytes, sequence: int, batches: Sequence[Moments]) -> Outcome:
        """Contribute the moments of a batch that was normalized in TRAIN mode."""
        stack = MomentsStack.of(batches)
        codec.check_mergeable(stack, ["input"] * len(stack))
        contribution = Contribution(name, stack, None, "input")
        return await self._submit(producer, sequence, (contribution,))

    def _submit(self, producer: bytes, sequence: int, taken: Sequence[Contribution]) -> asyncio.Future[Outcome]:
        own = _own(producer)
        return self._committer.submit(Submission(own, sequence, taken, payer=own.identity))

    async def settled(self, producer: bytes) -> int:
        """The sequence up to which a stream of this producer need not send again; 0 for one that is not known."""
        own = _own(producer)
        windows = await self._store.run(lambda transaction: transaction.windows((own,)))
        return windows.get(own, Window()).settled

    async def room(self) -> None:
        """Wait until the committer takes more."""
        await self._committer.room()

    async def _taken(self, item: validate.RawBatch) -> Contribution:
        record = await self._published.get(item.name)
        spec, _ = record.statistics()
        batches = await self._batcher.moments(spec, item.batch, prefix=f"{item.field}.")
        return Contribution(item.name, batches, item.observed_at, item.field)


def _own(producer_id: bytes) -> Producer:
    """The producer of this id that belongs to the identity of the current call."""
    return Producer(calls.identity().name, producer_id)
