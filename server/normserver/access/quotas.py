"""What identities take of a server, against their limits. Pure: time is an argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from normserver.access.grants import Identity
from normserver.errors import ResourceExhausted
from normserver.records import Usage


class Bucket:
    """A budget that fills at a rate, up to what so many seconds bring, and may go into debt: who owes waits."""

    def __init__(self, per_second: float, now: float | None = None, *, seconds: float = 1.0) -> None:
        self._per_second = per_second
        self._most = self._left = per_second * seconds
        self._at = now

    def seconds_until(self, now: float) -> float:
        """How long until there is something left; 0 if there is."""
        self._fill(now)
        return max(0.0, -self._left / self._per_second)

    def left(self, now: float) -> int:
        """Return how much can be spent without going into debt."""
        self._fill(now)
        return max(0, math.floor(self._left))

    def spend(self, amount: float) -> None:
        """Spend; what is not there is owed."""
        self._left -= amount

    def _fill(self, now: float) -> None:
        if self._at is not None:
            self._left = min(self._most, self._left + (now - self._at) * self._per_second)
        self._at = now


class Taken:
    """What one identity has taken of late."""

    def __init__(self, identity: Identity, now: float) -> None:
        self.identity = identity
        limits = identity.limits
        self._calls = Bucket(limits.calls_per_second, now) if limits.calls_per_second else None
        self._bytes = Bucket(limits.bytes_per_second, now) if limits.bytes_per_second else None

    def seconds_until(self, now: float) -> float:
        """How long until another message may come."""
        return max((bucket.seconds_until(now) for bucket in (self._calls, self._bytes) if bucket), default=0.0)

    def message(self, size_bytes: int) -> None:
        """Count a message."""
        if self._calls:
            self._calls.spend(1)
        if self._bytes:
            self._bytes.spend(size_bytes)

    def refuse(self, seconds: float) -> ResourceExhausted:
        """The error for a call that comes too early."""
        return ResourceExhausted(
            f"{self.identity.name} has had its calls or bytes of this second; try again in {seconds:.2f} s",
            reason="RATE_LIMITED",
        )


class Quotas:
    """The same of all identities that have limits."""

    def __init__(self) -> None:
        self._taken: dict[str, Taken] = {}

    def of(self, identity: Identity, now: float) -> Taken | None:
        """What it has taken; None if nothing limits it."""
        if not (identity.limits.calls_per_second or identity.limits.bytes_per_second):
            return None
        taken = self._taken.get(identity.name)
        if taken is None or taken.identity.limits != identity.limits:
            taken = self._taken[identity.name] = Taken(identity, now)
        return taken


class NewProducers:
    """The budgets of new producer ids, one for each identity: so many an hour that the store does not know yet.

    Those of an hour may come at once, as a fleet does that starts. Each id takes a row for as long as it is remembered.
    """

    def __init__(self, per_hour: int) -> None:
        """`per_hour`: for identities whose entry in the credentials file says nothing else; 0 is no limit."""
        self._per_hour = per_hour
        self._known: dict[str, tuple[int, Bucket]] = {}

    def know(self, identity: Identity) -> None:
        """Have a budget for an identity."""
        asked = identity.limits.producers_per_hour
        per_hour = self._per_hour if asked is None else asked
        known = self._known.get(identity.name)
        if not per_hour:
            self._known.pop(identity.name, None)
        elif known is None or known[0] != per_hour:
            self._known[identity.name] = per_hour, Bucket(per_hour / 3600, seconds=3600)

    def left(self, names: Iterable[str], now: float) -> dict[str, int]:
        """Return the remaining budget of each of these identities that has one."""
        return {name: self._known[name][1].left(now) for name in names if name in self._known}

    def spend(self, counts: Mapping[str, int]) -> None:
        """So many new producers of each were written."""
        for name, count in counts.items():
            self._known[name][1].spend(count)


@dataclass(frozen=True, slots=True)
class Allowances:
    """The default quotas of an identity, used where its entry in the credentials file sets none; 0 is no limit."""

    normalizers: int = 10_000
    stored_bytes: int = 4 << 30

    def check(self, identity: Identity, usage: Usage, normalizers: int, stored_bytes: int) -> None:
        """Check that there may be so many more of what was used up.

        Raises:
            ResourceExhausted: they would be too many.
        """
        most, most_bytes = identity.limits.normalizers, identity.limits.stored_bytes
        most = self.normalizers if most is None else most
        most_bytes = self.stored_bytes if most_bytes is None else most_bytes
        if most and usage.normalizers + normalizers > most:
            raise ResourceExhausted(
                f"{identity.name} has made {usage.normalizers} normalizers, and may have {most}; delete some, or ask "
                "for a larger quota (normalizers in the credentials file, --max-normalizers-per-identity)",
                reason="NORMALIZER_QUOTA",
            )
        if most_bytes and usage.stored_bytes + stored_bytes > most_bytes:
            raise ResourceExhausted(
                f"normalizers and snapshots of {identity.name} may take {usage.stored_bytes} bytes, this needs "
                f"{stored_bytes} more, and the quota is {most_bytes}; delete some, or ask for a larger quota "
                "(stored_bytes in the credentials file, --max-stored-bytes-per-identity)",
                reason="STORED_BYTES_QUOTA",
            )
