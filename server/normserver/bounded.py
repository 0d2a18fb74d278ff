"""A dictionary for what can be made again."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """A dictionary that is emptied before it holds more than so many values, or values of more than so many bytes."""

    def __init__(self, most: int, most_bytes: int) -> None:
        super().__init__()
        self._most = most
        self._most_bytes = most_bytes
        self._size_bytes = 0

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Remember a value of so many bytes. One that is replaced is counted on until the next emptying."""
        if len(self) >= self._most or self._size_bytes + size_bytes > self._most_bytes:
            self.clear()
            self._size_bytes = 0
        self[key] = value
        self._size_bytes += size_bytes
