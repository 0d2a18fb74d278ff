"""What identities take of a server, against their limits. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict

from normserver.access.grants import Identity, Limits
from normserver.errors import ResourceExhausted


class Bucket:
    """A budget that fills at a rate, up to one second's worth, and may go into debt: who owes waits."""

    def __init__(self, per_second: float, now: float) -> None:
        self._per_second = per_second
        self._left = per_second
        self._at = now

    def seconds_until(self, now: float) -> float:
        """How long until there is something left; 0 if there is."""
        self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        return max(0.0, -self._left / self._per_second)

    def spend(self, amount: float) -> None:
        """Spend; what is not there is owed."""
        self._left -= amount


class Taken:
    """What one identity has taken of late."""

    def __init__(self, identity: Identity, now: float) -> None:
        self.identity = identity
        limits = identity.limits
        self._calls = Bucket(limits.calls_per_second, now) if limits.calls_per_second else None
        self._bytes = Bucket(limits.bytes_per_second, now) if limits.bytes_per_second else None
        self._producers: OrderedDict[bytes, float] = OrderedDict()

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

    def producer(self, producer: bytes, now: float, forget_seconds: float) -> None:
        """Count a producer, unless it was idle for so long that it is forgotten.

        Raises:
            ResourceExhausted: it would be one too many.
        """
        most = self.identity.limits.producers
        if not most or not producer:
            return
        while self._producers and next(iter(self._producers.values())) < now - forget_seconds:
            self._producers.popitem(last=False)
        if producer not in self._producers and len(self._producers) >= most:
            raise ResourceExhausted(
                f"{self.identity.name} may have {most} producers, and has; those that were idle for "
                f"{forget_seconds / 3600:g} hours are forgotten",
                reason="TOO_MANY_PRODUCERS",
            )
        self._producers[producer] = now
        self._producers.move_to_end(producer)


class Quotas:
    """The same of all identities that have limits."""

    def __init__(self, forget_producers_seconds: float) -> None:
        self._forget_seconds = forget_producers_seconds
        self._taken: dict[str, Taken] = {}

    def of(self, identity: Identity, now: float) -> Taken | None:
        """What it has taken; None if nothing limits it."""
        if identity.limits == Limits():
            return None
        taken = self._taken.get(identity.name)
        if taken is None or taken.identity.limits != identity.limits:
            taken = self._taken[identity.name] = Taken(identity, now)
        return taken

    def producer(self, taken: Taken, producer: bytes, now: float) -> None:
        """Count a producer of an identity's.

        Raises:
            ResourceExhausted: it would be one too many.
        """
        taken.producer(producer, now, self._forget_seconds)
