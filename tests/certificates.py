"""Certificates for tests: an authority, the server's, and callers'."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme


class Pair(NamedTuple):
    """Where a certificate and its key are."""

    certificate: Path
    key: Path


class Authority:
    """An authority, whose certificate is in a file, and what it issues."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA()
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(self, file: str, *names: str) -> Pair:
        """A certificate for these names, in FILE.pem and FILE.key; replaces what is there."""
        issued = self._ca.issue_cert(*names, common_name=names[0])
        pair = Pair(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        issued.private_key_pem.write_to_path(str(pair.key))
        issued.cert_chain_pems[0].write_to_path(str(pair.certificate))
        return pair
