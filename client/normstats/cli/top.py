"""The command that shows a server at a glance, live: top."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass, replace
from queue import SimpleQueue
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.live import Live

from normstats.activity import Activity
from normstats.cli import output, top_frame
from normstats.cli.session import Command, Session, pass_session
from normstats.cli.top_frame import SECONDS, Seen, View

if TYPE_CHECKING:
    from normstats.sync import Client

# How soon a key is answered where the terminal cannot wake us.
_TICK_SECONDS = 0.2
# Several may have been pressed since the last look.
_KEY = re.compile(rb"\x1b[\[O][A-Z]|.", re.DOTALL)
_KEYS = {b"\x1b[A": "up", b"\x1bOA": "up", b"k": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"j": "down", b"\t": "tab"}


@click.command(cls=Command)
@click.option("--prefix", default="", help="Only normalizers, producers and groups of names that begin so.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Rows of each kind.")
@click.option("--once", is_flag=True, help="Print it once, as it is now, and end.")
@pass_session
def top(session: Session, prefix: str, limit: int, once: bool) -> None:
    """Show what the server is doing: its load, what changes, who contributes, which rounds wait for whom.

    \b
    normstats top                          a screen that follows, until q
    normstats top --prefix robot/ --once   what it would show, printed
    normstats top --json                   an object every second

    In a pipe it prints once. Keys: q quits, p pauses, s sorts by rate, name or time, tab gives one table the whole
    room, arrows scroll.
    """
    with session.client() as client:
        if session.json:
            _follow(session, client, prefix, limit, once)
            return
        console = Console()
        seen = Seen.first(client.activity(prefix, limit=limit, seconds=SECONDS), time.monotonic())
        view = View(session.target, prefix, ascii_only=console.options.ascii_only)
        if once or not sys.stdout.isatty() or console.is_dumb_terminal:
            height = console.height - 1 if sys.stdout.isatty() else None
            console.print(top_frame.frame(seen, view, console.width, height, seen.at))
            return
        _Screen(console, seen, replace(view, live=True)).run(
            client.watch_activity(prefix, limit=limit, seconds=SECONDS)
        )


COMMANDS = (top,)


def _follow(session: Session, client: Client, prefix: str, limit: int, once: bool) -> None:
    try:
        if once:
            session.emit(_described(client.activity(prefix, limit=limit)), "")
            return
        for activity in client.watch_activity(prefix, limit=limit):
            session.emit(_described(activity), "")
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever reads has enough; what the interpreter flushes at its end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _described(value: Any) -> Any:
    """As JSON's own types."""
    if is_dataclass(value):
        return {field.name: _described(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_described(one) for one in value]
    return output.plain(value)


class _Screen:
    """The whole terminal, until somebody quits. Follows its own clock: the server may be away."""

    def __init__(self, console: Console, seen: Seen, view: View) -> None:
        self._console = console
        self._seen = seen
        self._view = view

    def run(self, activities: Iterator[Activity]) -> None:
        """Show them as they come.

        Raises:
            NormstatsError: the server said no.
        """
        arrived: SimpleQueue[Activity | Exception] = SimpleQueue()
        with ExitStack() as kept:
            stopped = kept.enter_context(_signals())
            pressed = kept.enter_context(_keyboard())
            live = kept.enter_context(Live(console=self._console, screen=True, auto_refresh=False))
            Thread(target=_receive, args=(activities, arrived), name="activities", daemon=True).start()
            self._loop(arrived, pressed, stopped, live)
        if stopped and stopped[0] != signal.SIGINT:
            sys.exit(128 + stopped[0])

    def _loop(
        self,
        arrived: SimpleQueue[Activity | Exception],
        pressed: Callable[[float], Sequence[str]],
        stopped: list[int],
        live: Live,
    ) -> None:
        seen, now, drawn = self._seen, self._seen.at, None
        while not stopped:
            while not arrived.empty():
                one = arrived.get()
                if isinstance(one, Exception):
                    raise one
                self._seen = self._seen.then(one, time.monotonic())
            if not self._view.paused:
                seen, now = self._seen, time.monotonic()
            wanted = seen.at, int(now), self._view, self._console.size
            if wanted != drawn:
                live.update(top_frame.frame(seen, self._view, *self._console.size, now), refresh=True)
                drawn = wanted
            for key in pressed(_TICK_SECONDS):
                if key == "q":
                    return
                self._view = self._view.after(key, seen)


def _receive(activities: Iterator[Activity], arrived: SimpleQueue[Activity | Exception]) -> None:
    try:
        for activity in activities:
            arrived.put(activity)
    except Exception as error:
        # Told where somebody sees it; of a channel that was closed nobody does.
        arrived.put(error)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that came to end this. The terminal is put right before it ends."""
    stopped: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopped.append(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [(number, signal.signal(number, stop)) for number in numbers]
    try:
        yield stopped
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def _keyboard() -> Iterator[Callable[[float], Sequence[str]]]:
    """Waits so many seconds for keys, and tells which; none if nobody can press any. Ctrl-Z is none: it would leave
    the terminal as it is.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        yield _no_key
        return
    if not sys.stdin.isatty():
        yield _no_key
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> Sequence[str]:
        if not select.select([descriptor], [], [], seconds)[0]:
            return ()
        read = os.read(descriptor, 64)
        return [_KEYS.get(key, key.decode(errors="replace")) for key in _KEY.findall(read)] if read else ("q",)

    try:
        tty.setcbreak(descriptor)
        changed = termios.tcgetattr(descriptor)
        changed[6][termios.VSUSP] = b"\0"
        termios.tcsetattr(descriptor, termios.TCSANOW, changed)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)


def _no_key(seconds: float) -> Sequence[str]:
    time.sleep(seconds)
    return ()
