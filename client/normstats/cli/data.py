"""Commands that move data: update, normalize, watch."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from normstats.cli import output
from normstats.cli.session import Command, Session, pass_session
from normstats.files import FileError, Source, open_source, open_target
from normstats.files.base import Chunk

_FILE = click.Path(dir_okay=False, path_type=Path)
_MEMBER = click.option("--member", help="Which array of an .npz file; the only one by default.")
_COLUMNS = click.option("--columns", help="Which columns of a table, such as a,b,c; all by default.")


def _source(file: Path, member: str | None, columns: str | None) -> Source:
    return open_source(file, member=member, columns=columns.split(",") if columns else None)


@contextmanager
def _progress(description: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar on stderr, if somebody looks at it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield bar, bar.add_task(description, total=total)


def _batches(source: Source, size: int | None) -> Iterator[Chunk]:
    """The rows in batches of `size`, the last perhaps smaller; as they come if no size is given."""
    if size is None:
        yield from source.chunks()
        return
    held: list[Chunk] = []
    for chunk in source.chunks():
        held.append(chunk)
        rows = np.concatenate(held)
        whole = len(rows) - len(rows) % size
        yield from (rows[start : start + size] for start in range(0, whole, size))
        held = [rows[whole:]]
    if held and len(held[0]):
        yield held[0]


@click.command(cls=Command)
@click.argument("name")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@_MEMBER
@_COLUMNS
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Rows per batch. Matters where statistics go by batch (BatchNorm); by default what fits into 4 MiB.",
)
@pass_session
def update(
    session: Session,
    name: str,
    files: tuple[Path, ...],
    member: str | None,
    columns: str | None,
    batch_size: int | None,
) -> None:
    """Contribute the rows of FILES (.npy, .npz, .csv, .parquet), read in chunks, never whole.

    Every row is counted once, whatever breaks on the way. Ctrl-C stops after what was sent, and says how much.

    \b
    normstats update robot/obs observations.parquet
    normstats update robot/obs a.npy b.npz --member obs
    normstats update bn1 activations.npy --batch-size 256
    """
    sources = [_source(file, member, columns) for file in files]
    known = [source.rows for source in sources]
    total = None if None in known else sum(rows for rows in known if rows is not None)
    rows = [0]
    with session.client() as client, _first_interrupt() as stopped:
        normalizer = client.get(name)
        with normalizer.stream() as stream, _progress(name, total) as (bar, task):
            for batch in (batch for source in sources for batch in _batches(source, batch_size)):
                if stopped.is_set():
                    break
                stream.update(batch)
                rows.append(rows[-1] + len(batch))
                bar.update(task, completed=rows[min(stream.acknowledged, len(rows) - 1)])
        info = normalizer.refresh()
    counted = rows[min(stream.acknowledged, len(rows) - 1)]
    session.emit(
        {"rows": counted, "batches": stream.acknowledged, "version": info.version, "interrupted": stopped.is_set()},
        f"{counted:,} rows in {stream.acknowledged:,} batches are durable; {name} is at version {info.version}",
    )
    if stopped.is_set():
        sys.exit(130)


@contextmanager
def _first_interrupt() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C, wherever it comes; the next one interrupts as ever."""
    interrupted, before = threading.Event(), signal.getsignal(signal.SIGINT)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@click.command(cls=Command)
@click.argument("name")
@click.argument("file", type=_FILE)
@click.option("-o", "--output", "out", required=True, type=_FILE, help="Where to: .npy, .npz, .csv or .parquet.")
@click.option("--inverse", is_flag=True, help="Undo the normalization instead.")
@click.option("--snapshot", help="By the statistics under this tag: the same from the first row to the last.")
@_MEMBER
@_COLUMNS
@pass_session
def normalize(
    session: Session,
    name: str,
    file: Path,
    out: Path,
    inverse: bool,
    snapshot: str | None,
    member: str | None,
    columns: str | None,
) -> None:
    """Normalize the rows of FILE by running statistics, read and written in chunks.

    OUT appears when it is whole, and not before.

    \b
    normstats normalize robot/obs new.npy -o normalized.npy
    normstats normalize robot/obs new.csv -o normalized.parquet --snapshot 2026-11-20
    """
    source = _source(file, member, columns)
    if out.resolve() == file.resolve():
        raise FileError(f"{out} is the file that is read; write to another")
    target = open_target(out)
    rows = 0
    with session.client() as client:
        normalizer = client.get(name)
        before = normalizer.info.version
        try:
            with _progress(name, source.rows) as (bar, task):
                for chunk in source.chunks():
                    target.write(normalizer.normalize(chunk, inverse=inverse, snapshot=snapshot))
                    rows += len(chunk)
                    bar.update(task, completed=rows)
            target.close()
        except BaseException:
            target.discard()
            raise
        after = normalizer.refresh().version
    if snapshot is None and after != before:
        click.echo(f"normstats: {name} went from version {before} to {after} meanwhile; --snapshot keeps one", err=True)
    session.emit({"rows": rows, "output": str(out), "version": after}, f"{rows:,} rows are in {out}")


@click.command(cls=Command)
@click.argument("name")
@click.option("--for", "seconds", type=float, help="Stop after so many seconds; by default, never.")
@pass_session
def watch(session: Session, name: str, seconds: float | None) -> None:
    """Print a line now and whenever the statistics change, until Ctrl-C.

    \b
    normstats watch robot/obs
    normstats watch robot/obs --json --for 60
    """
    with session.client() as client:
        try:
            for stats in client.get(name).watch(timeout=seconds):
                mean, std = stats.mean, stats.std
                first = "" if mean is None or std is None else f"  mean {_few(mean)}  std {_few(std)}"
                count = stats.count if isinstance(stats.count, int | float) else stats.count.max()
                session.emit(output.stats_json(stats), f"version {stats.version}  {count:,} rows{first}")
                sys.stdout.flush()
        except KeyboardInterrupt:
            sys.exit(130)


def _few(values: Chunk) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")


COMMANDS = (update, normalize, watch)
