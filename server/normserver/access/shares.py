"""Counts of the streams, calls, connections and bytes that each caller holds, against its share of the limit. Pure."""

from __future__ import annotations

import ipaddress
from collections import Counter

# One caller may hold a quarter of what the server takes in all. Where that is little (a limit of a few calls, set for a
# small machine), a caller who is alone there is not held to a quarter of it.
_PARTS, _ALWAYS = 4, 64


def share_of(limit: int, always: int = _ALWAYS) -> int:
    """The most that one caller may hold of a limit, unless its identity has a value of its own."""
    return max(limit // _PARTS, min(limit, always))


def address_holder(caller: str) -> str:
    """The holder that an address, as gRPC writes it, stands for where no identity is known; empty for a socket's.

    One machine has as many IPv6 addresses as it likes, of one network of 64 bits.
    """
    kind, _, address = caller.partition(":")
    if kind == "unix":
        return ""
    host = address.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    if ":" not in host:
        return host
    try:
        parsed = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    mapped = parsed.ipv4_mapped
    return str(mapped) if mapped is not None else str(ipaddress.IPv6Network((parsed, 64), strict=False))


class Shares:
    """The amount of one resource that each holder has."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    def take(self, holder: str, most: int, amount: int = 1) -> bool:
        """Take so much, unless the holder would have more than the most it may; whether it did."""
        if self._held[holder] + amount > most:
            return False
        self._held[holder] += amount
        return True

    def give(self, holder: str, amount: int = 1) -> None:
        """Give so much back."""
        self._held[holder] -= amount
        if not self._held[holder]:
            del self._held[holder]

    def held(self, holder: str) -> int:
        """How much it has."""
        return self._held[holder]
