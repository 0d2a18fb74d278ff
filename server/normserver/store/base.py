"""What a store is: transactions over normalizers, producers' windows and snapshots."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from normserver.producers import Producer, Window
from normserver.records import Head, Lease, LeaseRecord, Record, SnapshotHead, Usage
from normstats.specs import Spec


class StoreError(Exception):
    """The store cannot be used, and trying again will not help: locked by another process, of another schema."""


class StoreUnavailable(Exception):
    """The transaction did not happen, or nobody knows whether it did: reopen, read again, and let callers retry."""


class TryAgain(Exception):
    """The transaction met another server's; nothing was written, and it will go through when begun again."""


class NoCopies(Exception):
    """The database's own tools make its backups: PostgreSQL's."""

    def __init__(self) -> None:
        super().__init__(
            "a PostgreSQL store is backed up by PostgreSQL's own tools, while servers work on it: "
            "pg_dump --format=custom --file=FILE URL, and pg_restore brings it back"
        )


class CopyFailed(Exception):
    """The copy could not be written; the store itself goes on."""


class Copy(Protocol):
    """A copy of the whole store on its way to a file, made in steps between which transactions go on."""

    path: Path
    """The file, which is whole once the last step is done, and the caller's then."""

    def step(self) -> bool:
        """Copy some more, for some milliseconds; whether that was all.

        Raises:
            CopyFailed: it could not be written; nothing is left behind.
            StoreUnavailable: the store failed since the last step; likewise.
        """
        ...

    def abandon(self) -> None:
        """Copy no more, and leave nothing behind. Nothing, if it is over."""
        ...


class Transaction(Protocol):
    """Reads and writes that happen together or not at all."""

    def heads(self, names: Collection[str]) -> dict[str, Head]:
        """Those normalizers that exist, without their statistics."""
        ...

    def lock_heads(self, names: Collection[str]) -> dict[str, Head]:
        """The same, nobody else's to write until the transaction ends."""
        ...

    def records(self, names: Collection[str]) -> dict[str, Record]:
        """Those normalizers that exist."""
        ...

    def version(self, name: str) -> tuple[int, float] | None:
        """A normalizer's version and the time of its creation; None if there is none."""
        ...

    def piece(self, name: str, tag: str, start: int) -> bytes | None:
        """The piece of statistics that begins at a feature, as it is stored; the present ones' with an empty tag.

        None if the statistics under this tag are as the spec has them at the start.
        """
        ...

    def lock_records(self, names: Collection[str], known: Mapping[str, Record]) -> dict[str, Record]:
        """Those normalizers that exist, nobody else's to write until the transaction ends.

        Of `known`, those that are still the newest are not read again.
        """
        ...

    def page(self, prefix: str, after: str, limit: int, contains: str = "") -> Sequence[Head]:
        """Normalizers whose names begin with `prefix` and come after `after`, in order, at most `limit`.

        Arrays of parameters are left out.
        Only those that have `contains` somewhere; upper and lower case are the same.
        """
        ...

    def count(self, prefixes: Collection[str], contains: str = "") -> int:
        """How many normalizers have a name that begins with any of these, and has `contains`."""
        ...

    def usage(self, creator: str) -> Usage:
        """What an identity has made; nobody else can change that until the transaction ends."""
        ...

    def insert(self, record: Record) -> None:
        """Add a normalizer whose name is free."""
        ...

    def update(self, head: Head) -> None:
        """Write a normalizer that exists; its statistics stay."""
        ...

    def copy_statistics(self, name: str, source: str, target: str) -> None:
        """Make the statistics under one tag those under another; the present ones' tag is empty."""
        ...

    def clear_statistics(self, name: str) -> None:
        """Have the present statistics be as the spec has them at the start."""
        ...

    def advance(self, records: Sequence[Record]) -> None:
        """Write what commits change of normalizers that exist: statistics, version, time."""
        ...

    def delete(self, name: str) -> None:
        """Delete a normalizer and its snapshots."""
        ...

    def windows(self, producers: Collection[Producer]) -> dict[Producer, Window]:
        """The windows of those producers that are remembered, as of now."""
        ...

    def lock_windows(self, producers: Collection[Producer]) -> dict[Producer, Window]:
        """The same, and nobody else's until the transaction ends; also of those that are not remembered yet.

        Records are locked before windows, always, so that two servers never wait for each other.
        """
        ...

    def put_windows(self, windows: Mapping[Producer, Window], now: float) -> None:
        """Remember producers' windows, last used now, by the retention clock.

        New ones that were locked and are not among them stay unknown.
        """
        ...

    def forget_producers(self, idle_since: float, limit: int) -> int:
        """Forget producers that were last used before that time of the retention clock, at most `limit`.

        Returns how many.
        """
        ...

    def exchange_retention(self, reading: float) -> float:
        """Keep a reading of the retention clock, if it is the newest; returns the newest."""
        ...

    def take_lease(self, group: str, owner: str, seconds: float, renewed: Lease | None) -> LeaseRecord:
        """The lease of a group as it is now: `owner`'s, for so many seconds, unless somebody else's still holds.

        It is a new grant, with the next token, unless it is the one to be renewed.
        """
        ...

    def held(self, leases: Collection[Lease]) -> set[Lease]:
        """Those leases that nobody else was granted since; they stay so until the transaction ends."""
        ...

    def release_leases(self, groups: Collection[str], owner: str) -> None:
        """Give up those of these groups' leases that are `owner`'s."""
        ...

    def snapshot(self, name: str, tag: str) -> SnapshotHead | None:
        """One snapshot, without its statistics."""
        ...

    def snapshots(self, name: str, after: str, limit: int) -> Sequence[SnapshotHead]:
        """A normalizer's snapshots whose tags come after `after`, in order, at most `limit`."""
        ...

    def insert_snapshot(self, snapshot: SnapshotHead, spec: Spec, creator: str) -> None:
        """Keep the present statistics of a normalizer of this spec under a tag that is free."""
        ...

    def oldest_tags(self, name: str, beyond: int) -> Sequence[str]:
        """The tags of all snapshots but so many of the newest."""
        ...

    def delete_snapshot(self, name: str, tag: str) -> None:
        """Delete a snapshot."""
        ...

    def probe(self) -> None:
        """Write something that changes nothing: whether the store can be read does not tell whether it can commit."""
        ...


class Store(Protocol):
    """A database. Every method but `listen` is called on one thread, the one that `open` was called on."""

    shared: bool
    """Whether other servers may work on it at the same time."""

    def open(self, *, must_exist: bool = False) -> bool:
        """Open, and make or check the schema. Returns whether the store is new, and so empty.

        Raises:
            StoreError: another process holds it, its schema is of another version, or it would be new and must exist.
            StoreUnavailable: it cannot be reached.
        """
        ...

    def check(self) -> None:
        """Look whether the store that was opened is still in its place and can be written. Asked every second.

        Raises:
            StoreUnavailable: it was deleted, replaced by another, or is read-only.
        """
        ...

    def transaction(self) -> AbstractContextManager[Transaction]:
        """A transaction; durable when its block has ended without an error, and undone otherwise.

        Raises:
            StoreUnavailable: the database failed. The connection is closed; the next transaction opens a new one.
            TryAgain: begin again.
        """
        ...

    def copy(self) -> Copy:
        """Begin a copy of the store as of the last transaction before its last step. One at a time.

        Raises:
            NoCopies: the database's own tools make it.
            CopyFailed: there is no room for it.
            StoreUnavailable: the database failed.
        """
        ...

    def listen(self, changed: Callable[[Sequence[str]], None]) -> None:
        """Call `changed`, on some thread, with the names that another server may have changed; with none for "any".

        Only of a store that is shared.
        """
        ...

    def close(self) -> None:
        """Close."""
        ...
