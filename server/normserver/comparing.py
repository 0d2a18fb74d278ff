"""Compares snapshots piece by piece, off the event loop: however wide they are, commits go on beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import torch

from normcore import drift
from normcore.drift import Drift
from normcore.errors import NormcoreError, NothingSeen
from normcore.running import Running, RunningPolicy
from normserver import replies
from normserver.codec import decode_piece
from normserver.errors import from_engine, no_such_normalizer, no_such_snapshot
from normserver.published import Published
from normserver.records import PIECE_FEATURES, Initial, SnapshotHead, part, policy_of
from normserver.store.base import Transaction
from normserver.store_thread import StoreThread
from normstats.specs import RunningSpec


class Comparing:
    """Answers CompareSnapshots. One comparison at a time goes beyond its first piece."""

    def __init__(self, store: StoreThread, published: Published) -> None:
        self._store = store
        self._published = published
        self._wide = asyncio.Lock()

    async def compare(self, name: str, base_tag: str, tag: str, limit: int) -> bytes:
        """How far each feature has moved from one snapshot to another, or to the present: the answer, serialized.

        Raises:
            NotFound: there is no such normalizer or snapshot.
            FailedPrecondition: one side has seen nothing.
        """
        record = await self._published.get(name)
        spec, running = record.statistics()
        base = await self._snapshot(name, base_tag)
        other = await self._snapshot(name, tag) if tag else None
        versions = base.version, record.version if other is None else other.version
        if spec.num_features <= PIECE_FEATURES:
            return await self._answer(spec, base, running if other is None else other, versions, limit)
        async with self._wide:
            return await self._answer(spec, base, running if other is None else other, versions, limit)

    async def _answer(
        self,
        spec: RunningSpec,
        base: SnapshotHead,
        other: Running | SnapshotHead,
        versions: tuple[int, int],
        limit: int,
    ) -> bytes:
        pieces = [piece async for piece in self._pieces(spec, base, other)]
        moved = await asyncio.to_thread(_joined, pieces)
        del pieces
        answer = replies.Compared(*await asyncio.to_thread(replies.worst, moved, limit), *versions)
        for start in answer.starts:
            await asyncio.to_thread(answer.write, start)
        return answer.serialized

    async def _pieces(
        self, spec: RunningSpec, base: SnapshotHead, other: Running | SnapshotHead
    ) -> AsyncIterator[Drift]:
        policy = policy_of(spec)
        for start in range(0, spec.num_features, PIECE_FEATURES):
            first = await self._piece(spec, base, start)
            second = await self._piece(spec, other, start) if isinstance(other, SnapshotHead) else other
            yield await asyncio.to_thread(_compared, policy, first, second, start)

    async def _piece(self, spec: RunningSpec, head: SnapshotHead, start: int) -> Running:
        """A piece of a snapshot."""

        def read(transaction: Transaction) -> tuple[bool, bytes | None]:
            is_same = transaction.snapshot(head.normalizer, head.tag) == head
            return is_same, transaction.piece(head.normalizer, head.tag, start)

        is_same, data = await self._store.read(read)
        if not is_same:
            raise no_such_snapshot(head.normalizer, head.tag)
        if data is None:
            return part(Initial(spec), start)
        return await asyncio.to_thread(decode_piece, data, start, spec.num_features)

    async def _snapshot(self, name: str, tag: str) -> SnapshotHead:
        def find(transaction: Transaction) -> SnapshotHead | None:
            if transaction.version(name) is None:
                raise no_such_normalizer(name)
            return transaction.snapshot(name, tag)

        head = await self._store.read(find)
        if head is None:
            raise no_such_snapshot(name, tag)
        return head


def _compared(policy: RunningPolicy, base: Running, other: Running, start: int) -> Drift:
    """The drift of one piece. `other` may be all of the present statistics."""
    try:
        return drift.compare(*(policy.estimate(side) for side in (base, part(other, start))))
    except NothingSeen as error:
        raise from_engine(NothingSeen(start + error.feature)) from error
    except NormcoreError as error:
        raise from_engine(error) from error


def _joined(pieces: list[Drift]) -> Drift:
    fields = ("mean_shift", "var_ratio", "symmetric_kl")
    return Drift(*(torch.cat([getattr(piece, field) for piece in pieces]) for field in fields))
