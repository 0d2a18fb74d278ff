"""Who is next for the device: callers in turn, each one's own tasks in order, and with a task all of its kind.

Pure: no threads, no clock. A task of a kind that others wait for too goes along with the first of them, whoever its
caller is, so that one launch serves them all.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Task(Protocol):
    """What waits."""

    @property
    def caller(self) -> str:
        """Who asked for it."""

    @property
    def kind(self) -> Hashable | None:
        """Tasks of equal kinds may go together; None goes alone."""

    @property
    def size_bytes(self) -> int:
        """How large it is."""


T = TypeVar("T", bound=Task)

# One launch takes at most so many tasks and bytes.
MOST_TASKS, MOST_BYTES = 64, 1 << 20


class Turns(Generic[T]):
    """Tasks that wait. Dictionaries stand for ordered sets: what is withdrawn is found at once."""

    def __init__(self) -> None:
        self._callers: dict[str, dict[T, None]] = {}
        self._kinds: dict[Hashable, dict[T, None]] = {}

    def __bool__(self) -> bool:
        return bool(self._callers)

    def __len__(self) -> int:
        return sum(map(len, self._callers.values()))

    def put(self, task: T) -> None:
        """Wait at the end of its caller's line."""
        self._callers.setdefault(task.caller, {})[task] = None
        if task.kind is not None:
            self._kinds.setdefault(task.kind, {})[task] = None

    def take(self) -> list[T]:
        """The first task of the caller whose turn it is, and what of its kind goes along."""
        caller = next(iter(self._callers))
        first = next(iter(self._callers[caller]))
        taken, size = [first], first.size_bytes
        for task in self._kinds.get(first.kind, ()) if first.kind is not None else ():
            if len(taken) == MOST_TASKS or size + task.size_bytes > MOST_BYTES:
                break
            if task is not first:
                taken.append(task)
                size += task.size_bytes
        for task in taken:
            self.withdraw(task)
        if caller in self._callers:  # its next task waits for everyone else's
            self._callers[caller] = self._callers.pop(caller)
        return taken

    def withdraw(self, task: T) -> bool:
        """It need not be done any more; whether it was still waiting."""
        if task not in self._callers.get(task.caller, ()):
            return False
        _drop(self._callers, task.caller, task)
        if task.kind is not None:
            _drop(self._kinds, task.kind, task)
        return True


def _drop(groups: dict[Hashable, dict[T, None]] | dict[str, dict[T, None]], key: str | Hashable, task: T) -> None:
    group = groups[key]  # type: ignore[index]
    del group[task]
    if not group:
        del groups[key]  # type: ignore[arg-type]
