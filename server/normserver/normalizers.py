"""The resource: normalizers and their snapshots, made, read, changed and deleted, each in one transaction."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial

from normcore.running import Running
from normserver import slices
from normserver.access.grants import Identity
from normserver.access.quotas import Allowances
from normserver.errors import AlreadyExists, no_such_normalizer, no_such_snapshot
from normserver.published import Published
from normserver.records import FEATURE_BYTES, PRESENT, Head, Record, SnapshotHead, start, stored_bytes
from normserver.store.base import Transaction
from normserver.store_thread import StoreThread
from normstats.specs import Spec

# Rows of a list that are read in one transaction, and made messages in one turn of the event loop: 1 to 2 ms.
_LISTED = 50


class Normalizers:
    """Everything that is done to normalizers but contributing to them."""

    def __init__(
        self,
        store: StoreThread,
        published: Published,
        allowances: Allowances,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._published = published
        self._allowances = allowances
        self._clock = clock

    async def create(
        self, name: str, spec: Spec, *, exist_ok: bool, running: Running | None, caller: Identity
    ) -> tuple[Head, bool]:
        """Make a normalizer; returns it, and whether this call made it.

        Raises:
            AlreadyExists: the name is taken, by another spec or without `exist_ok`.
            ResourceExhausted: the caller has made as many as it may, or they may take as many bytes.
        """
        now = self._now()
        first = running if running is not None else start(spec)
        fresh = Record(name, spec, 1, first, False, now, now, creator=caller.name)

        def insert(transaction: Transaction) -> tuple[Head, bool]:
            found = transaction.lock_heads((name,)).get(name)
            if found is None:
                self._allowances.check(caller, transaction.usage(caller.name), 1, stored_bytes(spec))
                transaction.insert(fresh)
                return fresh.head, True
            if not found.spec.same_structure(spec):
                raise AlreadyExists(
                    f"there is a normalizer {name!r} of another spec: {type(found.spec).__name__}, asked for "
                    f"{type(spec).__name__}, or with other arguments",
                    field="spec",
                )
            if not exist_ok:
                raise AlreadyExists(f"there is a normalizer {name!r} already; exist_ok takes it as it is", field="name")
            return found, False

        head, created = await self._store.run(insert)
        if created:
            self._published.publish((fresh,))
        return head, created

    async def get(self, name: str) -> Head:
        """A normalizer as of its last commit, without its statistics."""
        if (record := self._published.peek(name)) is not None:
            return record.head
        found = await self._store.read(lambda transaction: transaction.heads((name,)))
        if name not in found:
            raise no_such_normalizer(name)
        return found[name]

    async def page(self, prefix: str, contains: str, after: str, limit: int) -> AsyncIterator[Sequence[Head]]:
        """Some of the normalizers whose names begin with `prefix` and have `contains`, in order, a slice at a time."""
        while limit > 0:
            query = partial(_page, prefix=prefix, after=after, limit=min(limit, _LISTED), contains=contains)
            found = await self._store.read(query)
            yield found
            if len(found) < _LISTED:
                return
            after, limit = found[-1].name, limit - len(found)

    async def count(self, prefix: str, contains: str) -> int:
        """How many of them there are."""
        return await self._store.read(lambda transaction: transaction.count((prefix,), contains))

    async def change(
        self, name: str, *, spec: Callable[[Spec], Spec], frozen: bool | None, reset: bool, caller: Identity
    ) -> Head:
        """Set affine parameters (`spec` makes the new spec of the old), freeze or thaw, reset, in one commit.

        Raises:
            ResourceExhausted: the parameters take more than the caller may have stored.
        """

        def changed(transaction: Transaction, head: Head) -> Head:
            if frozen is not None or reset:
                head.check_statistics()
            after = replace(head, spec=spec(head.spec), frozen=head.frozen if frozen is None else frozen)
            if (more := stored_bytes(after.spec) - stored_bytes(head.spec)) > 0:
                self._allowances.check(caller, transaction.usage(head.creator), 0, more)
            if reset:
                transaction.clear_statistics(name)
                after = replace(after, num_rows=0.0, num_batches=0)
            return after

        return await self._rewrite(name, changed, same_statistics=not reset)

    async def delete(self, name: str) -> None:
        """Delete a normalizer and its snapshots."""

        def delete(transaction: Transaction) -> None:
            _one(transaction, name)
            transaction.delete(name)

        await self._store.run(delete)
        self._published.deleted(name)

    async def keep(self, name: str, tag: str, *, keep_last: int, caller: Identity) -> SnapshotHead:
        """Keep the present statistics under a tag; with `keep_last`, only that many of the newest snapshots stay.

        Raises:
            AlreadyExists: the tag holds another version.
            ResourceExhausted: the caller's normalizers and snapshots may take as many bytes already.
        """
        now = self._now()

        def insert(transaction: Transaction) -> SnapshotHead:
            head = _one(transaction, name)
            spec = head.check_statistics()
            found = transaction.snapshot(name, tag)
            new_bytes = 0
            if found is None:
                found = SnapshotHead(name, tag, head.version, head.num_rows, head.num_batches, now)
                transaction.insert_snapshot(found, spec, caller.name)
                new_bytes = FEATURE_BYTES * head.num_features
            elif found.version != head.version:
                raise AlreadyExists(
                    f"normalizer {name!r} has a snapshot {tag!r} of version {found.version}, and is at version "
                    f"{head.version} now; delete it first, or take another tag",
                    field="tag",
                    reason="TAG_TAKEN",
                )
            if keep_last:
                for old in transaction.oldest_tags(name, keep_last):
                    transaction.delete_snapshot(name, old)
            if new_bytes:  # once those that it replaces are gone
                usage = transaction.usage(caller.name)
                self._allowances.check(
                    caller, usage._replace(stored_bytes=usage.stored_bytes - new_bytes), 0, new_bytes
                )
            return found

        return await self._store.run(insert)

    async def snapshot(self, name: str, tag: str) -> Record:
        """A normalizer as it was when a snapshot was taken."""

        def find(transaction: Transaction) -> tuple[Head, SnapshotHead]:
            head = transaction.heads((name,)).get(name)
            if head is None:
                raise no_such_normalizer(name)
            head.check_statistics()
            return head, _snapshot(transaction, name, tag)

        head, kept = await self._store.read(find)
        running = await slices.snapshot(self._store, head.spec, kept)
        return replace(Record.of(head, running), version=kept.version, updated_at=kept.created_at)

    async def snapshots(self, name: str, after: str, limit: int) -> Sequence[SnapshotHead]:
        """A normalizer's snapshots, in the order of their tags."""

        def find(transaction: Transaction) -> Sequence[SnapshotHead]:
            if transaction.version(name) is None:
                raise no_such_normalizer(name)
            return transaction.snapshots(name, after, limit)

        return await self._store.read(find)

    async def restore(self, name: str, tag: str) -> Head:
        """Make a snapshot's statistics the present ones; the version grows."""

        def restored(transaction: Transaction, head: Head) -> Head:
            kept = _snapshot(transaction, name, tag)
            transaction.copy_statistics(name, tag, PRESENT)
            return replace(head, num_rows=kept.num_rows, num_batches=kept.num_batches)

        return await self._rewrite(name, restored, same_statistics=False)

    async def drop(self, name: str, tag: str) -> None:
        """Delete a snapshot."""

        def delete(transaction: Transaction) -> None:
            _one(transaction, name)
            _snapshot(transaction, name, tag)
            transaction.delete_snapshot(name, tag)

        await self._store.run(delete)

    async def _rewrite(self, name: str, change: Callable[[Transaction, Head], Head], *, same_statistics: bool) -> Head:
        now = self._now()

        def rewrite(transaction: Transaction) -> tuple[Head, Head]:
            before = _one(transaction, name)
            after = replace(change(transaction, before), version=before.version + 1, updated_at=now)
            transaction.update(after)
            return before, after

        before, after = await self._store.run(rewrite)
        known = self._published.peek(name)
        if same_statistics and known is not None and _same(known, before):
            self._published.publish((Record.of(after, known.running),))
        else:
            self._published.publish((await slices.records(self._store, (name,))).values())
        return after

    def _now(self) -> float:
        return round(self._clock(), 6)


def _page(transaction: Transaction, *, prefix: str, after: str, limit: int, contains: str) -> Sequence[Head]:
    return transaction.page(prefix, after, limit, contains)


def _one(transaction: Transaction, name: str) -> Head:
    found = transaction.lock_heads((name,)).get(name)
    if found is None:
        raise no_such_normalizer(name)
    return found


def _snapshot(transaction: Transaction, name: str, tag: str) -> SnapshotHead:
    found = transaction.snapshot(name, tag)
    if found is None:
        raise no_such_snapshot(name, tag)
    return found


def _same(record: Record, head: Head) -> bool:
    return (record.version, record.created_at) == (head.version, head.created_at)
