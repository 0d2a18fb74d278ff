"""Which server a group's rounds live on."""

from __future__ import annotations

from typing import Protocol

from normserver.contributions import Lease


class Ownership(Protocol):
    """Decides which of several servers on one store runs a group's rounds."""

    async def acquire(self, group: str) -> None:
        """Own a group from now on.

        Raises:
            FailedPrecondition: another server owns it; the error holds its address.
            Unavailable: the store is down.
        """
        ...

    def lease(self, group: str) -> Lease | None:
        """What a commit of this group's must still hold; None where nobody else could."""
        ...

    def check(self, group: str) -> None:
        """Check that it is still owned.

        Raises:
            Unavailable: another server may own it by now.
        """
        ...

    def release(self, group: str) -> None:
        """Give a group up."""
        ...


class Sole:
    """One server on its store: it owns every group."""

    async def acquire(self, group: str) -> None:
        """See Ownership."""

    def lease(self, group: str) -> Lease | None:
        """See Ownership."""
        return None

    def check(self, group: str) -> None:
        """See Ownership."""

    def release(self, group: str) -> None:
        """See Ownership."""
