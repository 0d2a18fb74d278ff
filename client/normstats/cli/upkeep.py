"""Commands on all that a store has: backup, verify, restore.

Those that need no server work on files by the server's own code, whose process they become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from normstats.cli import output
from normstats.cli.serve import become
from normstats.cli.session import Command, Session, pass_session

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.argument("file", type=_FILE)
@click.option("--store", help="This SQLite store, sqlite:///PATH, which no server works on; by default a server's.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@pass_session
def backup(session: Session, file: Path, store: str | None, force: bool) -> None:
    """Write all that a server has, as of one commit, to FILE here, while it goes on.

    \b
    normstats backup normstats-2026-11-20.db
    normstats --target other:50051 backup other.db --force
    normstats backup normstats.db.old --store sqlite:///normstats.db     no server needed

    FILE appears when it is whole and synced. PostgreSQL has tools of its own: pg_dump and pg_restore.
    """
    if store is not None:
        _upkeep(session, "backup", str(file), "--store", store, *(["--force"] if force else []))
    with session.client() as client, _progress(file.name) as progress:
        made = client.back_up(file, force=force, progress=progress)
    session.emit(output.backup_json(made), f"{made.size_bytes:,} bytes are in {made.path}")


@click.command(cls=Command)
@click.argument("file", type=_FILE, required=False)
@click.option(
    "--store", help="sqlite:///PATH, which no server works on, or postgresql://..., whether servers do or not."
)
@pass_session
def verify(session: Session, file: Path | None, store: str | None) -> None:
    """Look at all that is in a backup FILE, or in a store: pages, tables, specs, statistics, snapshots, producers.

    \b
    normstats verify normstats-2026-11-20.db
    normstats verify --store postgresql://user@host/normstats
    normstats verify                       the store that normstats serve would take

    A line for each thing that does not hold, then a summary. Exits with 0 if all is sound, otherwise with 1.
    """
    if file is not None and store is not None:
        raise click.UsageError("give FILE or --store, not both")
    _upkeep(session, "verify", *([] if file is None else [str(file)]), *([] if store is None else ["--store", store]))


@click.command(cls=Command)
@click.argument("name", required=False)
@click.argument("tag", required=False)
@click.option("--backup", "file", type=_FILE, help="A file that backup wrote; verified first.")
@click.option(
    "--store", help="With --backup: the SQLite store to make of it, sqlite:///PATH, which no server works on."
)
@click.option("--force", is_flag=True, help="With --backup: replace the store that is there. It is kept beside it.")
@pass_session
def restore(
    session: Session, name: str | None, tag: str | None, file: Path | None, store: str | None, force: bool
) -> None:
    """Bring back a normalizer's statistics from a snapshot, or a whole store from a backup.

    \b
    normstats restore robot/obs 2026-11-20      as a new version of the normalizer
    normstats restore --backup normstats-2026-11-20.db --store sqlite:///normstats.db
    """
    of_snapshot = name is not None or tag is not None
    of_store = file is not None or store is not None or force
    if of_snapshot and of_store:
        raise click.UsageError("NAME TAG is a snapshot, --backup FILE --store URL a whole store: give one of the two")
    if name is not None and tag is not None:
        with session.client() as client:
            info = client.get(name).restore(tag)
        session.emit(output.info_json(info), output.info_text(info))
    elif file is not None and store is not None:
        _upkeep(session, "restore", str(file), "--store", store, *(["--force"] if force else []))
    else:
        raise click.UsageError("give NAME TAG, or --backup FILE --store URL")


COMMANDS = (backup, verify, restore)


def _upkeep(session: Session, command: str, *arguments: str) -> NoReturn:
    become("normserver.upkeep", command, *arguments, *(["--json"] if session.json else []))


@contextmanager
def _progress(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if somebody looks at it."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=None)
        yield lambda written_bytes, size_bytes: bar.update(task, completed=written_bytes, total=size_bytes)
