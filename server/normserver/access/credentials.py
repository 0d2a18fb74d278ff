"""Where identities come from: a TOML file, read again when it changes, and what a call brings to be known by."""

from __future__ import annotations

import hashlib
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from normserver.access.grants import ANYONE, Grant, Identity, Limits, Scope
from normserver.errors import Unauthenticated
from normserver.files import Watched, warn_of_writers

_Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._@/-]{1,100}$")]
_Hash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
_Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]{0,200}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Grant(_Strict):
    scope: Literal["read", "write", "admin"]
    prefix: _Prefix


class _Identity(_Strict):
    name: _Name
    grants: list[_Grant]
    tokens: list[_Hash] = []
    certificates: list[str] = []
    expires: datetime | None = None
    calls_per_second: float = Field(0.0, ge=0)
    bytes_per_second: float = Field(0.0, ge=0)
    normalizers: int | None = Field(None, ge=0)
    stored_bytes: int | None = Field(None, ge=0)
    producers_per_hour: int | None = Field(None, ge=0)
    max_calls: int = Field(0, ge=0)
    max_streams: int = Field(0, ge=0)
    max_connections: int = Field(0, ge=0)
    max_shared_memory_bytes: int = Field(0, ge=0)


class _File(_Strict):
    identity: list[_Identity] = []


class InvalidCredentials(ValueError):
    """The file is none of credentials; says where and why."""


class Identities:
    """Everybody whom the file names, by the hashes of their tokens and by the names in their certificates."""

    def __init__(self, by_token: Mapping[bytes, Identity], by_certificate: Mapping[str, Identity]) -> None:
        self._by_token = by_token
        self._by_certificate = by_certificate

    def all(self) -> Iterable[Identity]:
        """All of them; some more than once."""
        return chain(self._by_token.values(), self._by_certificate.values())

    def with_token(self, token: str) -> Identity | None:
        """Who has this token. Tokens are 32 random bytes, so that one pass of SHA-256 is enough."""
        return self._by_token.get(hashlib.sha256(token.encode(errors="replace")).digest())

    def with_certificate(self, names: Iterable[str]) -> Identity | None:
        """Whose certificate has one of these names."""
        return next((found for name in names if (found := self._by_certificate.get(name))), None)


def parse(text: str) -> Identities:
    """The identities of a file.

    Raises:
        InvalidCredentials: it is no TOML, a field is wrong, or a token, a certificate or a name is there twice.
    """
    try:
        found = _File.model_validate(tomllib.loads(text)).identity
    except tomllib.TOMLDecodeError as error:
        raise InvalidCredentials(str(error)) from None
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        raise InvalidCredentials(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    by_token: dict[bytes, Identity] = {}
    by_certificate: dict[str, Identity] = {}
    _check_once("name", [one.name for one in found])
    _check_once("tokens", [token for one in found for token in one.tokens])
    _check_once("certificates", [name for one in found for name in one.certificates])
    for one in found:
        if one.name == ANYONE.name:
            raise InvalidCredentials(f"identity.name: {one.name} is the identity of servers without credentials")
        identity = _identity(one)
        by_token.update((bytes.fromhex(token.removeprefix("sha256:")), identity) for token in one.tokens)
        by_certificate.update((name, identity) for name in one.certificates)
    return Identities(by_token, by_certificate)


class Credentials:
    """Who is known. Read from a file, and again when that changes; what cannot be read leaves those who were."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = Watched("credentials", (path,), lambda: _read(path))
        self._clock = clock
        self.version = 0
        """Counts how often the file was read anew."""

    def known(self, token: str | None, certificate_names: Iterable[str] = ()) -> Identity | None:
        """Who calls, by a token or else by a certificate; None if neither came, or only a certificate of nobody's.

        Raises:
            Unauthenticated: the token is nobody's, or its time is over.
        """
        identities = self._file.value
        if token is None:
            found = identities.with_certificate(certificate_names)
        elif (found := identities.with_token(token)) is None:
            raise Unauthenticated("the token is not known here", reason="TOKEN_UNKNOWN")
        if found is not None and self.has_expired(found):
            raise Unauthenticated(f"the credentials of {found.name} have expired", reason="TOKEN_EXPIRED")
        return found

    def has_expired(self, identity: Identity) -> bool:
        """Return whether an identity has expired."""
        return identity.expires_at is not None and identity.expires_at <= self._clock()

    def names(self) -> set[str]:
        """The names of those who are known now."""
        return {one.name for one in self._file.value.all() if not self.has_expired(one)}

    def look(self) -> None:
        """Read the file again, if it changed."""
        self.version += self._file.look()

    @property
    def failed(self) -> bool:
        """Whether the file could not be read when it last changed."""
        return self._file.failed


def token_of(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The bearer token in a call's metadata.

    Raises:
        Unauthenticated: there is an authorization of another kind.
    """
    for key, value in metadata:
        if key == "authorization":
            kind, _, token = (value if isinstance(value, str) else value.decode(errors="replace")).partition(" ")
            if kind.lower() != "bearer" or not token:
                raise Unauthenticated("authorization is of another kind; expected Bearer TOKEN")
            return token.strip()
    return None


def _read(path: Path) -> Identities:
    try:
        warn_of_writers(path)
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"--credentials {path}: {error.strerror}; give a file that this user can read") from error
    except ValueError as error:
        raise InvalidCredentials(f"--credentials {path}: {error}") from error


def _identity(one: _Identity) -> Identity:
    expires = one.expires
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return Identity(
        one.name,
        tuple(Grant(Scope[grant.scope.upper()], grant.prefix) for grant in one.grants),
        Limits(
            one.calls_per_second,
            one.bytes_per_second,
            one.normalizers,
            one.stored_bytes,
            one.producers_per_hour,
            calls=one.max_calls,
            streams=one.max_streams,
            connections=one.max_connections,
            shared_memory_bytes=one.max_shared_memory_bytes,
        ),
        None if expires is None else expires.timestamp(),
    )


def _check_once(field: str, values: list[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidCredentials(f"identity.{field}: {value} is there twice")
        seen.add(value)
