"""Reads statistics in slices of a few MiB, a transaction each, so that commits go between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from normcore.running import Running
from normserver import codec
from normserver.errors import no_such_snapshot
from normserver.records import PIECE_FEATURES, PRESENT, Head, Record, SnapshotHead
from normserver.store.base import Transaction
from normserver.store_thread import StoreThread
from normstats.specs import Spec

T = TypeVar("T")

# A transaction reads statistics of at most so many features, 2 MiB: 1 to 2 ms.
SLICE_FEATURES = 2 * PIECE_FEATURES
# How often a normalizer that changes while it is read in slices is begun anew; then it is read in one transaction.
_ATTEMPTS = 3


async def records(store: StoreThread, names: Sequence[str]) -> dict[str, Record]:
    """Those normalizers that exist, each as of one commit."""
    heads = await store.read(lambda transaction: transaction.heads(names))
    found: dict[str, Record] = {}
    slice_: list[str] = []
    features = 0
    for name, head in heads.items():
        if head.num_features > SLICE_FEATURES:
            if (record := await _wide(store, head)) is not None:
                found[name] = record
            continue
        if features + head.num_features > SLICE_FEATURES:
            found |= await store.read(partial(_records, names=slice_))
            slice_, features = [], 0
        slice_.append(name)
        features += head.num_features
    return found | await store.read(partial(_records, names=slice_)) if slice_ else found


async def snapshot(store: StoreThread, spec: Spec, head: SnapshotHead) -> Running:
    """The statistics of a snapshot of a normalizer of this spec.

    Raises:
        NotFound: it was deleted meanwhile.
    """

    def is_same(transaction: Transaction) -> bool:
        return transaction.snapshot(head.normalizer, head.tag) == head

    running = await _pieces(store, spec, head, (head.normalizer, head.tag), is_same)
    if running is None:
        raise no_such_snapshot(head.normalizer, head.tag)
    return running


def _records(transaction: Transaction, *, names: Sequence[str]) -> dict[str, Record]:
    return transaction.records(names)


async def _wide(store: StoreThread, head: Head | None) -> Record | None:
    for _ in range(_ATTEMPTS):
        if head is None:
            return None
        name, seen = head.name, head

        def is_same(transaction: Transaction, name: str = name, seen: Head = seen) -> bool:
            now = transaction.version(name)
            return now == (seen.version, seen.created_at)

        running = await _pieces(store, head.spec, head, (name, PRESENT), is_same)
        if running is not None:
            return Record.of(head, running)
        head = (await store.read(lambda transaction, name=name: transaction.heads((name,)))).get(name)  # type: ignore[misc]
    return (await store.read(partial(_records, names=(name,)))).get(name)


async def _pieces(
    store: StoreThread,
    spec: Spec,
    head: Head | SnapshotHead,
    key: tuple[str, str],
    is_same: Callable[[Transaction], bool],
) -> Running | None:
    """All pieces of statistics; None if they changed while they were read."""
    pieces: list[bytes] = []
    width = getattr(spec, "num_features", 0)

    def read(transaction: Transaction, start: int) -> list[bytes] | None:
        if not is_same(transaction):
            return None
        some = (transaction.piece(*key, at) for at in range(start, min(start + SLICE_FEATURES, width), PIECE_FEATURES))
        return [piece for piece in some if piece is not None]

    for start in range(0, width, SLICE_FEATURES):
        some = await store.read(partial(read, start=start))
        if some is None:
            return None
        if not some:
            break  # they are as the spec has them
        pieces += some
    return codec.stored(spec, head, pieces)
