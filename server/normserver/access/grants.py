"""Identities: who calls, and what they may do below which names. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from normserver.errors import PermissionDenied


class Scope(IntEnum):
    """What may be done. Each includes those before it."""

    READ = 1
    """Normalize by a name or a spec; statistics, normalizers and snapshots as they are."""
    WRITE = 2
    """Contribute; make normalizers and snapshots: what adds, and destroys nothing."""
    ADMIN = 3
    """Affine parameters, freezing, resetting, restoring, deleting, and backups."""


class Need(NamedTuple):
    """What a message needs: a scope, for a name, for a beginning of names, or for none (None: wherever it may be)."""

    scope: Scope
    name: str | None


@dataclass(frozen=True, slots=True)
class Grant:
    """A scope over all names that begin with a prefix; over all names, if that is empty."""

    scope: Scope
    prefix: str

    def __str__(self) -> str:
        return f"{self.scope.name.lower()} {self.prefix or 'everything'}"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of an identity on one server.

    0 is no limit; for the last four, 0 is the usual share. None is the server's default.
    """

    calls_per_second: float = 0.0
    bytes_per_second: float = 0.0
    normalizers: int | None = None
    stored_bytes: int | None = None
    producers_per_hour: int | None = None
    calls: int = 0
    streams: int = 0
    connections: int = 0
    shared_memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls. `expires_at` is in seconds since the epoch."""

    name: str
    grants: tuple[Grant, ...]
    limits: Limits = Limits()
    expires_at: float | None = None

    def may(self, need: Need) -> bool:
        """Whether it is granted."""
        return any(
            grant.scope >= need.scope and (need.name is None or need.name.startswith(grant.prefix))
            for grant in self.grants
        )

    def may_read(self, name: str) -> bool:
        """Whether it may read what has this name."""
        return self.may(Need(Scope.READ, name))

    def everywhere(self) -> Scope | None:
        """The scope that it has over all names."""
        return max((grant.scope for grant in self.grants if not grant.prefix), default=None)

    def prefixes(self, scope: Scope) -> list[str]:
        """The beginnings of names over which it has a scope."""
        return [grant.prefix for grant in self.grants if grant.scope >= scope]

    def refuse(self, need: Need) -> PermissionDenied:
        """The error for what it is not granted."""
        where = "anything" if need.name is None else ascii(need.name) if need.name else "everything"
        granted = ", ".join(map(str, self.grants)) or "nothing"
        return PermissionDenied(
            f"{self.name} may not {need.scope.name.lower()} {where}; it is granted: {granted}", reason="SCOPE_MISSING"
        )


ANYONE = Identity("anyone", (Grant(Scope.ADMIN, ""),))
"""The one identity of a server without credentials. A credentials file cannot name it."""
