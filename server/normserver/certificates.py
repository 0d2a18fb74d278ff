"""TLS: the server's certificate and whom it trusts, read from files, and again when those change."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from normserver.files import Watched, warn_of_readers


class Pair(NamedTuple):
    """What was read: certificates, the key, and the authorities that callers' certificates are issued by."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """A certificate with its key; with `client_ca`, callers must have certificates too."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """PEM files of the certificate, its key, and the authorities that callers' certificates come from.

        Raises:
            OSError, ValueError: a file cannot be read, or the key is not the certificate's.
        """
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        paths = [path for path in (certificate, key, client_ca) if path is not None]
        self._file = Watched("certificates", paths, self._read)
        self._seen = self._file.value
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.load_cert_chain(certificate, key)

    def look(self) -> None:
        """Read the files again, if they changed: connections from now on are made by them."""
        if self._file.look():
            self.context.load_cert_chain(self._certificate, self._key)

    @property
    def failed(self) -> bool:
        """Whether the files could not be read when they last changed."""
        return self._file.failed

    def credentials(self) -> Any:
        """What gRPC asks at every handshake."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._seen), self._newer, require_client_authentication=self._client_ca is not None
        )

    def _newer(self) -> Any:
        """What gRPC should use from now on; None for what it has. It asks on a thread of its own."""
        newest = self._file.value
        if newest is self._seen:
            return None
        self._seen = newest
        return _configuration(newest)

    def _read(self) -> Pair:
        certificate = _pem("tls-cert", self._certificate, b"CERTIFICATE")
        key = _pem("tls-key", self._key, b"PRIVATE KEY")
        warn_of_readers(self._key)
        if b"ENCRYPTED" in key:
            raise ValueError(
                f"--tls-key {self._key} has a passphrase, which nobody is there to give; give a key without"
            )
        try:
            # OpenSSL says whether they belong together, which gRPC would only say at a handshake.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ValueError(f"--tls-key {self._key} is not the key of --tls-cert {self._certificate}") from error
            raise _unreadable(f"--tls-cert {self._certificate} or --tls-key {self._key}", error) from error
        client_ca = None
        if self._client_ca is not None:
            client_ca = _pem("tls-client-ca", self._client_ca, b"CERTIFICATE")
            try:
                ssl.create_default_context(cadata=client_ca.decode("ascii", errors="replace"))
            except ssl.SSLError as error:
                raise _unreadable(f"--tls-client-ca {self._client_ca}", error) from error
        return Pair(certificate, key, client_ca)


def _pem(flag: str, path: Path, kind: bytes) -> bytes:
    """What a file holds, which must be PEM of a kind."""
    try:
        found = path.read_bytes()
    except OSError as error:
        raise OSError(f"--{flag} {path}: {error.strerror}; give a PEM file that this user can read") from error
    if kind + b"-----" not in found:
        raise ValueError(f"--{flag} {path} has no -----BEGIN {kind.decode()}-----; give a PEM file that has one")
    return found


def _unreadable(what: str, error: ssl.SSLError) -> ValueError:
    return ValueError(f"{what} cannot be read by OpenSSL ({error.reason or error}): give PEM files that are whole")


def _configuration(pair: Pair) -> Any:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], root_certificates=pair.client_ca)
