"""Who contributes to what, and how often: the last few thousand pairs of producer and normalizer. Pure.

Rates and ages are by the monotonic clock (`now`); the wall clock, which may step, is only shown (`at`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from math import exp

from normserver.contributions import Submission
from normserver.producers import Producer

# Pairs that are remembered, and normalizers; those that were quiet longest go first.
CAPACITY = 4096
# A contribution's weight in a rate falls to 1/e in so many seconds.
_RATE_SECONDS = 15.0
# Who contributed within so many seconds is active.
ACTIVE_SECONDS = 60.0


@dataclass(slots=True)
class Rate:
    """How many came a second, those of the last half minute or so. The start is made up for, from a second on."""

    began_at: float
    _level: float = 0.0
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._at = self.began_at

    def add(self, now: float) -> None:
        """One more."""
        self._level = self._level * exp((self._at - now) / _RATE_SECONDS) + 1
        self._at = now

    def at(self, now: float) -> float:
        """The rate."""
        seen = -_RATE_SECONDS * (exp(-max(now - self.began_at, 1.0) / _RATE_SECONDS) - 1)
        return self._level * exp((self._at - now) / _RATE_SECONDS) / seen


@dataclass(slots=True)
class Contributor:
    """A producer, as far as it contributes to one normalizer. `last_at`: seconds since 1970, by the wall clock."""

    producer: Producer
    normalizer: str
    rate: Rate
    last_at: float = 0.0
    sequence: int = 0
    merged: int = 0
    duplicates: int = 0


class Contributors:
    """Who has contributed, and what was contributed to."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._pairs: OrderedDict[tuple[str, Producer], Contributor] = OrderedDict()
        self._producers: OrderedDict[Producer, float] = OrderedDict()
        self._rates: OrderedDict[str, Rate] = OrderedDict()

    def note(self, submission: Submission, now: float, *, at: float, duplicate: bool) -> None:
        """Count a submission that was merged, or had been before; `at` is the time to show, in seconds since 1970."""
        producer = submission.producer
        self._producers[producer] = now
        _newest(self._producers, producer, self._capacity)
        for contribution in submission.contributions:
            pair = self._pair(contribution.name, producer, now)
            pair.last_at, pair.sequence = at, submission.sequence
            if duplicate:
                pair.duplicates += 1
            else:
                self._merged(pair, now)

    def _pair(self, name: str, producer: Producer, now: float) -> Contributor:
        key = name, producer
        pair = self._pairs.get(key)
        if pair is None:
            pair = self._pairs[key] = Contributor(producer, name, Rate(now))
        _newest(self._pairs, key, self._capacity)
        return pair

    def _merged(self, pair: Contributor, now: float) -> None:
        name = pair.normalizer
        pair.merged += 1
        pair.rate.add(now)
        if name not in self._rates:
            self._rates[name] = Rate(now)
        self._rates[name].add(now)
        _newest(self._rates, name, self._capacity)

    def last(self, wanted: Callable[[str], bool], limit: int) -> list[Contributor]:
        """Those to normalizers that are wanted, who contributed last first."""
        return list(islice((pair for pair in reversed(self._pairs.values()) if wanted(pair.normalizer)), limit))

    def rate(self, name: str, now: float) -> float:
        """How many contributions a second a normalizer gets."""
        rate = self._rates.get(name)
        return 0.0 if rate is None else rate.at(now)

    def active(self, now: float) -> int:
        """How many producers contributed within a minute."""
        found = 0
        for last_at in reversed(self._producers.values()):
            if last_at < now - ACTIVE_SECONDS:
                break
            found += 1
        return found


def _newest(entries: OrderedDict, key: object, capacity: int) -> None:  # type: ignore[type-arg]
    entries.move_to_end(key)
    if len(entries) > capacity:
        entries.popitem(last=False)
