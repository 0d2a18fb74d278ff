"""How a client proves who it is, and makes sure of whom it talks to: TLS and bearer tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from normstats.errors import InvalidArgument

Token = str | Callable[[], str]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TLS:
    """Encrypted, to a server whose certificate is checked.

    Args:
        ca: PEM file of the authorities that the server's certificate may come from; by default those of gRPC.
        certificate: PEM file of the client's own certificate, where the server asks for one (mTLS).
        key: PEM file of its key.
        server_name: the name that the server's certificate is for, if it is not the target's.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str = ""

    def credentials(self) -> Any:
        """What gRPC calls them. Files are read now: each new channel sees them as they are then.

        Raises:
            InvalidArgument: a file cannot be read, or certificate and key are not both given.
        """
        if (self.certificate is None) != (self.key is None):
            raise InvalidArgument("tls.certificate and tls.key go together; one is missing", field="tls")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


@dataclass(frozen=True, slots=True)
class Security:
    """What a connection is made with."""

    tls: TLS | None = None
    token: Token | None = None

    def metadata(self) -> Metadata:
        """What a call brings so that the server knows who makes it. A token is asked for each time: it may change."""
        if self.token is None:
            return ()
        return (("authorization", f"Bearer {self.token if isinstance(self.token, str) else self.token()}"),)

    def options(self) -> list[tuple[str, str | int]]:
        """The channel's options that it takes."""
        return [("grpc.ssl_target_name_override", self.tls.server_name)] if self.tls and self.tls.server_name else []


def security_of(target: str, tls: TLS | bool | str | os.PathLike[str] | None, token: Token | None) -> Security:
    """What `connect` was told, and what it was not by NORMSTATS_CA, NORMSTATS_CERT, NORMSTATS_KEY, NORMSTATS_TOKEN.

    Raises:
        InvalidArgument: a token would travel unencrypted to another machine, or a file of TLS cannot be read.
    """
    environment = os.environ
    if token is None:
        token = environment.get("NORMSTATS_TOKEN") or None
    if tls is None and (ca := environment.get("NORMSTATS_CA")):
        tls = TLS(ca, environment.get("NORMSTATS_CERT"), environment.get("NORMSTATS_KEY"))
    encrypted = tls if isinstance(tls, TLS) else None if tls is None or tls is False else TLS()
    if isinstance(tls, str | os.PathLike):
        encrypted = TLS(tls)
    if encrypted is not None:
        encrypted.credentials()
    if token is not None and encrypted is None and tls is not False and not _is_local(target):
        raise InvalidArgument(
            f"the token would travel to {target} unencrypted; give tls=, or tls=False if the network sees to that",
            field="token",
        )
    return Security(encrypted, token)


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"tls: {path}: {error.strerror}", field="tls") from error


def _is_local(target: str) -> bool:
    """Whether a target is on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0]
    return host in ("localhost", "[::1]") or host.startswith("127.")
