"""Which of a producer's sequences were counted.

The anti-replay window of RFC 4303, section 3.4.3: the highest sequence, and a bit for each of the 1,024 up to it.
Pure: a window goes in, a window comes out.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple
from zlib import crc32

WINDOW = 1024
# An identity of the credentials file has at most 100 characters; a group's has its name, of at most 200, and "group:".
MAX_IDENTITY = 206
_BITS = (1 << WINDOW) - 1


class Producer(NamedTuple):
    """The key of a replay window: an id within the identity that contributes under it.

    Two identities that use the same id have two windows, so that an id that others learn is of no use to them.
    """

    identity: str
    id: bytes

    @property
    def short(self) -> str:
        """The first 8 hexadecimal digits of the id. Responses, metrics and logs contain no more of it."""
        return short_id(self.id)


def checksum(producer: Producer, highest: int, seen: bytes, used_at: float) -> int:
    """The CRC-32 of all that the row of a window says."""
    return crc32(f"{producer.identity} {producer.id.hex()} {highest} {seen.hex()} {used_at!r}".encode())


def of_group(name: str, group_id: bytes) -> Producer:
    """The producer of a group's rounds. No caller's identity has a colon in its name."""
    return Producer(f"group:{name}", group_id)


def short_id(value: bytes) -> str:
    """The first 8 hexadecimal digits of an id."""
    return value.hex()[:8]


class Verdict(Enum):
    """What a sequence is to a window."""

    NEW = "new"
    SEEN = "seen"
    TOO_OLD = "too old"


@dataclass(frozen=True, slots=True)
class Window:
    """`highest` is the highest sequence counted, 0 for none; bit i of `seen` stands for highest - i."""

    highest: int = 0
    seen: int = 0

    def verdict(self, sequence: int) -> Verdict:
        """Whether a sequence was counted, was not, or is too old to know."""
        age = self.highest - sequence
        if age < 0:
            return Verdict.NEW
        if age >= WINDOW:
            return Verdict.TOO_OLD
        return Verdict.SEEN if self.seen >> age & 1 else Verdict.NEW

    def add(self, sequence: int) -> Window:
        """The window once a new sequence is counted."""
        assert self.verdict(sequence) is Verdict.NEW, "only what is new is counted"
        ahead = sequence - self.highest
        if ahead >= WINDOW:
            return Window(sequence, 1)
        if ahead > 0:
            return Window(sequence, (self.seen << ahead | 1) & _BITS)
        return Window(self.highest, self.seen | 1 << -ahead)

    @property
    def settled(self) -> int:
        """The sequence up to which all were counted, or are too old to tell: at a gap it ends, however many follow."""
        missing = ~self.seen & ((1 << min(self.highest, WINDOW)) - 1)
        return self.highest - missing.bit_length()

    def to_bytes(self) -> bytes:
        """The bits, 128 bytes, little-endian."""
        return self.seen.to_bytes(WINDOW // 8, "little")

    @classmethod
    def from_bytes(cls, highest: int, data: bytes) -> Window:
        """The window that `to_bytes` was taken of."""
        return cls(highest, int.from_bytes(data, "little"))
