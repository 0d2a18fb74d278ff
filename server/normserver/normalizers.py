"""The resource: normalizers and their snapshots, made, read, changed and deleted, each in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from normcore import drift
from normcore.errors import NormcoreError
from normcore.running import Running
from normserver.errors import (
    AlreadyExists,
    ResourceExhausted,
    from_engine,
    no_such_normalizer,
    no_such_snapshot,
)
from normserver.published import Published
from normserver.records import Record, SnapshotRecord, policy_of, start
from normserver.store.base import Transaction
from normserver.store_thread import StoreThread
from normstats.specs import Spec


class Normalizers:
    """Everything that is done to normalizers but contributing to them."""

    def __init__(self, store: StoreThread, published: Published, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._published = published
        self._clock = clock

    async def create(
        self,
        name: str,
        spec: Spec,
        *,
        exist_ok: bool,
        running: Running | None,
        most: int = 0,
        prefixes: Sequence[str] = (),
    ) -> tuple[Record, bool]:
        """Make a normalizer; returns it, and whether this call made it.

        Of those whose names begin with one of the prefixes there may be `most`; 0 is no limit.

        Raises:
            AlreadyExists: the name is taken, by another spec or without `exist_ok`.
            ResourceExhausted: there are so many already.
        """
        now = self._now()
        first = running if running is not None else start(spec)
        fresh = Record(name, spec, version=1, running=first, frozen=False, created_at=now, updated_at=now)

        def insert(transaction: Transaction) -> tuple[Record, bool]:
            found = transaction.lock_records((name,), {}).get(name)
            if found is None:
                if most and transaction.count(prefixes) >= most:
                    raise ResourceExhausted(
                        f"you may have {most} normalizers, and have; delete one, or ask for more",
                        reason="TOO_MANY_NORMALIZERS",
                    )
                transaction.insert(fresh)
                return fresh, True
            if not found.spec.same_structure(spec):
                raise AlreadyExists(
                    f"there is a normalizer {name!r} of another spec: {type(found.spec).__name__}, asked for "
                    f"{type(spec).__name__}, or with other arguments",
                    field="spec",
                )
            if not exist_ok:
                raise AlreadyExists(f"there is a normalizer {name!r} already; exist_ok takes it as it is", field="name")
            return found, False

        record, created = await self._store.run(insert)
        if created:
            self._published.publish((record,))
        return record, created

    async def get(self, name: str) -> Record:
        """A normalizer as of its last commit."""
        return await self._published.get(name)

    async def page(self, prefix: str, contains: str, after: str, limit: int) -> tuple[Sequence[Record], int]:
        """Some of the normalizers whose names begin with `prefix` and have `contains`, in order; and how many do."""

        def find(transaction: Transaction) -> tuple[Sequence[Record], int]:
            return transaction.page(prefix, after, limit, contains), transaction.count((prefix,), contains)

        return await self._store.run(find)

    async def change(
        self, name: str, *, spec: Callable[[Spec], Spec], frozen: bool | None = None, reset: bool = False
    ) -> Record:
        """Set affine parameters (`spec` makes the new spec of the old), freeze or thaw, reset, in one commit."""

        def changed(record: Record) -> Record:
            if frozen is not None or reset:
                record.statistics()
            return replace(
                record,
                spec=spec(record.spec),
                frozen=record.frozen if frozen is None else frozen,
                running=start(record.spec) if reset else record.running,
            )

        return await self._rewrite(name, lambda _, record: changed(record))

    async def delete(self, name: str) -> None:
        """Delete a normalizer and its snapshots."""

        def delete(transaction: Transaction) -> None:
            _one(transaction, name)
            transaction.delete(name)

        await self._store.run(delete)
        self._published.deleted(name)

    async def keep(self, name: str, tag: str, *, keep_last: int = 0) -> SnapshotRecord:
        """Keep the present statistics under a tag; with `keep_last`, only that many of the newest snapshots stay.

        Raises:
            AlreadyExists: the tag holds another version.
        """
        now = self._now()

        def insert(transaction: Transaction) -> SnapshotRecord:
            record = _one(transaction, name)
            _, running = record.statistics()
            found = transaction.snapshot(name, tag)
            if found is None:
                found = SnapshotRecord(name, tag, record.version, running, now)
                transaction.insert_snapshot(found)
            elif found.version != record.version:
                raise AlreadyExists(
                    f"normalizer {name!r} has a snapshot {tag!r} of version {found.version}, and is at version "
                    f"{record.version} now; delete it first, or take another tag",
                    field="tag",
                    reason="TAG_TAKEN",
                )
            if keep_last:
                for old in transaction.oldest_tags(name, keep_last):
                    transaction.delete_snapshot(name, old)
            return found

        return await self._store.run(insert)

    async def snapshot(self, name: str, tag: str) -> SnapshotRecord:
        """One snapshot."""

        def find(transaction: Transaction) -> SnapshotRecord:
            _one(transaction, name)
            return _snapshot(transaction, name, tag)

        return await self._store.run(find)

    async def snapshots(self, name: str, after: str, limit: int) -> Sequence[SnapshotRecord]:
        """A normalizer's snapshots, in the order of their tags."""

        def find(transaction: Transaction) -> Sequence[SnapshotRecord]:
            _one(transaction, name)
            return transaction.snapshots(name, after, limit)

        return await self._store.run(find)

    async def restore(self, name: str, tag: str) -> Record:
        """Make a snapshot's statistics the present ones; the version grows."""

        def restored(transaction: Transaction, record: Record) -> Record:
            return replace(record, running=_snapshot(transaction, name, tag).running)

        return await self._rewrite(name, restored)

    async def drop(self, name: str, tag: str) -> None:
        """Delete a snapshot."""

        def delete(transaction: Transaction) -> None:
            _one(transaction, name)
            _snapshot(transaction, name, tag)
            transaction.delete_snapshot(name, tag)

        await self._store.run(delete)

    async def compare(self, name: str, base_tag: str, tag: str) -> tuple[drift.Drift, int, int]:
        """How far each feature has moved from one snapshot to another, or to the present; and both versions.

        Raises:
            FailedPrecondition: one side has seen nothing.
        """
        record = await self.get(name)
        spec, running = record.statistics()
        base = await self.snapshot(name, base_tag)
        other, version = running, record.version
        if tag:
            snapshot = await self.snapshot(name, tag)
            other, version = snapshot.running, snapshot.version
        policy = policy_of(spec)
        try:
            return drift.compare(policy.estimate(base.running), policy.estimate(other)), base.version, version
        except NormcoreError as error:
            raise from_engine(error) from error

    async def _rewrite(self, name: str, change: Callable[[Transaction, Record], Record]) -> Record:
        now = self._now()

        def rewrite(transaction: Transaction) -> Record:
            before = _one(transaction, name)
            after = replace(change(transaction, before), version=before.version + 1, updated_at=now)
            transaction.update(after)
            return after

        record = await self._store.run(rewrite)
        self._published.publish((record,))
        return record

    def _now(self) -> float:
        return round(self._clock(), 6)


def _one(transaction: Transaction, name: str) -> Record:
    found = transaction.lock_records((name,), {}).get(name)
    if found is None:
        raise no_such_normalizer(name)
    return found


def _snapshot(transaction: Transaction, name: str, tag: str) -> SnapshotRecord:
    found = transaction.snapshot(name, tag)
    if found is None:
        raise no_such_snapshot(name, tag)
    return found
