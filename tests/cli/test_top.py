"""`normstats top` against a real server: printed, as JSON, and full-screen in a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from uuid import uuid4

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len
from rich.console import Console

import normstats
from normstats.activity import ActiveNormalizer, ActiveProducer, Activity, Load, OpenRound, ServerInfo
from normstats.cli import top_figures as figures
from normstats.cli.app import cli
from normstats.cli.top_frame import SECTIONS, SORTS, Seen, View, frame
from normstats.sync import Member
from tests.server_process import ServerProcess

X = np.ones((4, 3), np.float32)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def top(server: ServerProcess, *arguments: str, columns: int = 100, code: int = 0, **environment: str) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns), **environment})
    result = runner.invoke(cli, ["--target", server.target, "--timeout", "10", "top", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def obs() -> str:
    return f"top/{uuid4().hex[:8]}"


def load(second: int, **figures: float) -> Load:
    told = {field.name: figures.get(field.name, 0) for field in fields(Load) if field.name != "time"}
    return Load(NOW - timedelta(seconds=300 - second), **told)  # type: ignore[arg-type]


def activity(**changed: object) -> Activity:
    """A server with much to tell."""
    server = ServerInfo("0.1.0", NOW - timedelta(days=3), "sqlite", "cpu", "", NOW, ("",))
    rows = 100
    names = [f"robot/{'very-long-name/' * (index % 9)}{index}" for index in range(rows)]
    told = Activity(
        server,
        tuple(load(second, calls_per_second=1234.5 * second, call_p99_seconds=0.0123) for second in range(1, 301)),
        tuple(
            ActiveNormalizer(
                name, 10**index, 10**index, 10.0**index, NOW - timedelta(minutes=index), 10.0 ** (index - 5)
            )
            for index, name in enumerate(names[:12])
        )
        + tuple(ActiveNormalizer(name, 1, 3, 5.0, NOW, 1.0) for name in names[12:]),
        tuple(ActiveProducer(f"{index:02x}" * 4, name, NOW, index, index, 0, 1.0) for index, name in enumerate(names)),
        tuple(OpenRound(name, 7, 64, ("61616161",) * 3, ("abcdef01",) * 60, 1.0, 4.0, name) for name in names[:9]),
    )
    return replace(told, **changed)  # type: ignore[arg-type]


def drawn(seen: Seen, view: View, width: int, height: int | None, after_seconds: float = 0.0) -> list[str]:
    """The lines of a frame, as a terminal of that size shows them."""
    console = Console(file=StringIO(), width=width, height=height or 10_000)
    console.print(frame(seen, view, width, height, seen.at + after_seconds))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue().splitlines()


# So much longer things may take where tests share the cores.
SLOW = 5


class Terminal:
    """A terminal with `normstats top` in it: what it shows, and keys that are pressed."""

    def __init__(self, target: str, *arguments: str, size: tuple[int, int] = (24, 80), **environment: str) -> None:
        self._ours, self._theirs = pty.openpty()
        termios.tcsetwinsize(self._theirs, size)
        self.before = termios.tcgetattr(self._theirs)
        self._told = b""
        code = "from normstats.cli import main; main()"
        kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "--target", target, "--timeout", "10", "top", *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            env={**kept, "TERM": "xterm-256color", **environment},
        )

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read(self, seconds: float) -> str:
        """All that was written, also of the next moment."""
        while select.select([self._ours], [], [], seconds)[0]:
            self._told += os.read(self._ours, 65_536)
            seconds = 0
        return self._told.decode(errors="ignore")

    def lines(self) -> list[str]:
        """What it shows: the last frame that is whole."""
        frames = [one for one in self.read(0.05).split("\x1b[H") if "scroll" in one]
        return _CONTROL.sub("", frames[-1]).split("\r\n") if frames else []

    def shows(self, *wanted: str, within_seconds: float) -> list[str]:
        """Wait until it shows all of these (regular expressions), each in some line."""
        deadline = time.monotonic() + within_seconds
        while not all(any(re.search(one, line) for line in self.lines()) for one in wanted):
            assert time.monotonic() < deadline, (wanted, self.lines(), self._told[-500:])
            assert self.process.poll() is None, self._told
        return self.lines()

    def ended(self) -> int:
        """Its exit code. The terminal is as it was."""
        code = self.process.wait(10)
        told = self.read(0.1)
        assert told.rindex("\x1b[?1049l") > told.rindex("\x1b[?1049h"), "the screen of before is back"
        assert told.rindex("\x1b[?25h") > told.rindex("\x1b[?25l"), "the cursor is"
        assert termios.tcgetattr(self._theirs) == self.before, "keys are read as before"
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(target: str, *arguments: str, **options: object) -> Terminal:
        opened.append(Terminal(target, *arguments, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, str, str]]:
    """A server that knows its callers, a token that may read robot/ alone, and one that may do everything."""
    folder = tmp_path_factory.mktemp("guarded")
    file, tokens = folder / "credentials.toml", []
    for arguments in (("read", "--prefix", "robot/"), ("admin",)):
        made = CliRunner().invoke(cli, ["token", "new", "--json", "--file", str(file), "--scope", *arguments])
        tokens.append(json.loads(made.stdout)["token"])
    server = ServerProcess(folder, "--credentials", str(file)).start()
    yield server, *tokens
    server.stop()


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_once_it_prints_what_it_would_show_no_wider_than_the_terminal(
    server: ServerProcess, obs: str, columns: int
) -> None:
    with normstats.connect(server.target) as client:
        normalizer = client.create(obs, normstats.Standardize(3))
        for _ in range(3):
            normalizer.update(X)
        version = normalizer.refresh().version
        producer = client.activity(obs).producers[0].id
    shown = top(server, "--once", "--prefix", obs, columns=columns).stdout
    assert re.search(rf"^{obs} +3 +{version} +12 +[0-9.]+ /s +now\b", shown, re.MULTILINE), shown
    assert re.search(rf"\b{producer}  {obs} +3 .* 0 +[0-9.]+ /s +now\b", shown), shown
    for wanted in (server.target, "● ready", "sqlite", "cpu", "up ", "last commit now", f"begin with {obs}"):
        assert wanted in shown
    assert max(map(cell_len, shown.splitlines())) <= columns
    assert "\x1b" not in shown


def test_in_a_pipe_it_prints_once_too(server: ServerProcess, obs: str) -> None:
    assert "none has changed" in top(server, "--prefix", obs).stdout


def test_as_json_it_prints_all_that_the_client_gives(server: ServerProcess, obs: str) -> None:
    with normstats.connect(server.target) as client:
        client.create(obs, normstats.Standardize(3)).update(X)
        told = client.activity(obs)
    (line,) = top(server, "--once", "--json", "--prefix", obs).stdout.splitlines()
    printed = json.loads(line)
    for kind, one in (("server", told.server), ("load", told.load[0]), ("normalizers", told.normalizers[0])):
        found = printed[kind] if kind == "server" else printed[kind][0]
        assert list(found) == [field.name for field in fields(one)]
    assert printed["server"]["start_time"] == told.server.start_time.isoformat()
    assert printed["normalizers"][0]["name"] == obs
    assert printed["normalizers"][0]["update_time"] == told.normalizers[0].update_time.isoformat()
    assert printed["producers"][0]["id"] == told.producers[0].id
    assert printed["producers"][0]["contributions"] == 1
    assert printed["rounds"] == []


def test_json_comes_every_second_until_nobody_reads(server: ServerProcess) -> None:
    code = "from normstats.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--target", server.target, "top", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    times = [json.loads(process.stdout.readline())["load"][0]["time"] for _ in range(2)]
    assert times[0] < times[1]
    process.stdout.close()
    assert process.stderr is not None
    assert (process.wait(10), process.stderr.read()) == (0, "")
    process.stderr.close()


def test_an_open_round_shows_who_is_missing(server: ServerProcess, obs: str) -> None:
    with normstats.connect(server.target) as client:
        normalizer = client.create(obs, normstats.Standardize(3))
        with normalizer.join("step", size=2, timeout=20) as one, normalizer.join("step", size=2, timeout=20) as other:
            _together(one, other)
            waiting = threading.Thread(target=one.sync, args=(X,))
            waiting.start()
            time.sleep(0.6)  # one that is over in less time is not shown
            shown = top(server, "--once", "--prefix", obs, columns=80).stdout
            (missing,) = client.activity(obs).rounds[0].missing
            other.sync(X)
            waiting.join()
    assert re.search(rf"^{obs}/step +2 +1 of 2  {missing} +1[0-9]\.[0-9] s", shown, re.MULTILINE), shown


def _together(one: Member, other: Member) -> None:
    first = threading.Thread(target=one.sync, args=(X,))
    first.start()
    other.sync(X)
    first.join()


def test_full_screen_it_follows_and_leaves_the_terminal_as_it_was(
    server: ServerProcess, obs: str, terminal: Callable[..., Terminal]
) -> None:
    with normstats.connect(server.target) as client:
        normalizer = client.create(obs, normstats.Standardize(3))
        shown = terminal(server.target, "--prefix", obs)
        shown.shows("● ready", obs, within_seconds=10)
        for _ in range(7):
            normalizer.update(X)
        lines = shown.shows(rf"{obs} +3 +8 ", within_seconds=3 + SLOW)
    assert len(lines) == 24
    assert max(map(cell_len, lines)) <= 80
    assert "q quit" in lines[-1]
    shown.press("p")
    shown.shows("● paused", "p go on", within_seconds=1 + SLOW)
    shown.press("p")
    shown.press("s")
    shown.shows("by name", "s sort by last", within_seconds=1 + SLOW)
    shown.press("\t")
    assert not any("─ Producers" in line for line in shown.shows("tab only producers", within_seconds=1 + SLOW))
    shown.press("q")
    assert shown.ended() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_leave_the_terminal_as_it_was(
    server: ServerProcess, terminal: Callable[..., Terminal], number: signal.Signals, code: int
) -> None:
    shown = terminal(server.target)
    shown.shows("● ready", within_seconds=10)
    shown.process.send_signal(number)
    assert shown.ended() == code


def test_a_dumb_terminal_gets_it_once(server: ServerProcess, terminal: Callable[..., Terminal]) -> None:
    shown = terminal(server.target, TERM="dumb")
    assert shown.process.wait(10) == 0
    told = shown.read(0.1)
    assert "● ready" in told
    assert "\x1b" not in told


def test_who_may_read_some_names_sees_which(guarded: tuple[ServerProcess, str, str]) -> None:
    server, robot, everything = guarded
    with normstats.connect(server.target, token=everything) as client:
        for name in ("robot/obs", "other/obs"):
            client.create(name, normstats.Standardize(3), exist_ok=True).update(X)
    shown = top(server, NORMSTATS_TOKEN=robot).stdout
    assert "you may read robot/" in shown
    assert "robot/obs" in shown
    assert "other/obs" not in shown
    shown = top(server, NORMSTATS_TOKEN=everything).stdout
    assert "you may read" not in shown
    assert "other/obs" in shown


def test_who_may_not_look_is_told_in_a_sentence(
    guarded: tuple[ServerProcess, str, str], terminal: Callable[..., Terminal]
) -> None:
    server = guarded[0]
    refused = top(server, NORMSTATS_TOKEN="wrong", code=1)
    assert refused.stderr.startswith("normstats: ")
    assert refused.stderr.count("\n") == 1
    assert (
        json.loads(top(server, "--json", NORMSTATS_TOKEN="wrong", code=1).stderr)["error"]["code"] == "UNAUTHENTICATED"
    )
    shown = terminal(server.target, NORMSTATS_TOKEN="wrong")
    assert shown.process.wait(10) == 1
    assert "\x1b" not in shown.read(0.1), "no screen was opened"


def test_a_server_that_goes_away_is_missed_and_its_return_noticed(
    guarded: tuple[ServerProcess, str, str], terminal: Callable[..., Terminal]
) -> None:
    server, _, token = guarded
    with normstats.connect(server.target, token=token) as client:
        client.create("robot/obs", normstats.Standardize(3), exist_ok=True).update(X)
    shown = terminal(server.target, NORMSTATS_TOKEN=token)
    shown.shows("● ready", "robot/obs", within_seconds=10)
    server.kill()
    shown.shows("● no word for [3-9] s from", within_seconds=5 + SLOW)
    shown.shows("● no word for ([4-9]|1.) s from", "what it said last is below", within_seconds=2 + SLOW)
    shown.press("s")
    shown.shows("by name", within_seconds=1 + SLOW)
    server.start()
    lines = shown.shows("● ready", within_seconds=5 + SLOW)
    assert re.search(r"up [0-9] s", lines[0]), lines[0]
    shown.press("q")
    assert shown.ended() == 0


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 120, 149, 150, 200, 300])
@pytest.mark.parametrize("height", [5, 12, 24, 40, 50, 80])
def test_a_frame_is_as_large_as_its_terminal(width: int, height: int) -> None:
    seen = Seen.first(activity(), 0.0)
    for view in [View("server.example.com:50051", "robot/", live=True, only=only) for only in ("", *SECTIONS)]:
        for scrolled in (view, replace(view, skip=95)):
            lines = drawn(seen, scrolled, width, height)
            assert len(lines) == height
            assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_printed_it_has_every_row(width: int) -> None:
    lines = drawn(Seen.first(activity(), 0.0), View("a:1"), width, None)
    assert max(map(cell_len, lines)) <= width
    assert sum("01010101" in line or "63636363" in line for line in lines) == 2


def test_text_of_the_servers_is_shown_as_it_is() -> None:
    server = replace(activity().server, not_ready="[red]the disk\x1b[2J is\nfull[/red]", readable_prefixes=("[b]a/",))
    lines = drawn(Seen.first(activity(server=server, normalizers=()), 0.0), View("a:1"), 100, 24)
    assert lines[0].startswith("● not ready: [red]the disk?[2J is?full[/red]  a:1")
    assert "you may read [b]a/" in lines[2]
    assert any("none has changed since" in line for line in lines)


def test_where_there_are_no_other_letters_there_is_ascii() -> None:
    lines = drawn(Seen.first(activity(), 0.0), View("a:1", live=True, ascii_only=True), 120, 40)
    assert "".join(lines).isascii()


def test_a_rate_that_trembles_moves_no_rows() -> None:
    def told(*rates: float) -> Activity:
        return activity(
            normalizers=tuple(
                ActiveNormalizer(name, 1, 1, 1, NOW, one) for name, one in zip("abc", rates, strict=True)
            ),
            producers=(),
        )

    def order(seen: Seen, sort: str = "rate") -> str:
        lines = drawn(seen, View("a:1", sort=sort), 80, None)
        return "".join(line[0] for line in lines if line[:2] in ("a ", "b ", "c "))

    seen = Seen.first(told(10, 11, 1), 0.0)
    assert order(seen) == "bac"
    seen = seen.then(told(12, 11, 1), 1.0)
    assert order(seen) == "bac"
    seen = seen.then(told(12, 11, 100), 2.0)
    assert [order(seen, sort) for sort in SORTS] == ["cba", "abc", "abc"]


def test_the_load_of_five_minutes_is_kept_and_a_clock_that_was_set_back_forgets_none() -> None:
    seen = Seen.first(activity(load=tuple(map(load, range(1, 301)))), 0.0)
    seen = seen.then(activity(load=(load(310),)), 1.0)
    assert (len(seen.load), seen.load[0].time, seen.load[-1].time) == (291, load(11).time, load(310).time)
    seen = seen.then(activity(load=(load(300),)), 2.0)
    assert (len(seen.load), seen.load[-1].time) == (290, load(300).time)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (figures.rate(0), "0 /s"), (figures.rate(0.004), "<0.01 /s"), (figures.rate(0.25), "0.25 /s"),
        (figures.rate(9.996), "10.0 /s"), (figures.rate(99.96), "100 /s"), (figures.rate(999.4), "999 /s"),
        (figures.rate(999.6), "1.00 k/s"), (figures.rate(1234), "1.23 k/s"), (figures.rate(12.3e6), "12.3 M/s"),
        (figures.amount(3), "3"), (figures.amount(1234), "1.23 k"), (figures.whole(9_999_999), "9,999,999"),
        (figures.whole(10_000_000), "10.0 M"), (figures.whole(2.5), "2"), (figures.whole(1e300), "1e+300"),
        (figures.took(0), "–"), (figures.took(0.00034), "340 µs"), (figures.took(0.0034), "3.40 ms"),
        (figures.took(0.9996), "1.00 s"), (figures.took(12.0), "12.0 s"), (figures.took(5000), "5.00 ks"),
        (figures.size(0), "0 B"), (figures.size(1000), "0.98 KiB"), (figures.size(512 << 20), "512 MiB"),
        (figures.span(0), "0 s"), (figures.span(3725), "1 h 2 min"), (figures.span(86_400 * 3 + 7200), "3 d 2 h"),
        (figures.ago(1.4), "now"), (figures.ago(59.9), "59 s"), (figures.ago(3600 * 50), "2 d"),
        (figures.sparkline([None, 0, 4, 8], 8), [" ▁▄▇"]), (figures.sparkline([0, 8, 16], 16, 2), ["  ▇", "▁██"]),
        (figures.bar(0.5, 4), "━━"), (figures.bar(0.37, 4), "━╸"), (figures.bar(7, 4), "━━━━"),
    ],
)  # fmt: skip
def test_figures(told: object, expected: object) -> None:
    assert told == expected


def test_columns_of_a_chart_stand_still_while_time_goes_on() -> None:
    points = [(float(second), float(second)) for second in range(100)]
    found = [figures.columns(points, 10, 99.0 + later, 100, max) for later in (0, 0.5, 0.9)]
    assert found[0] == found[1] == found[2] == [9, 19, 29, 39, 49, 59, 69, 79, 89, 99]
    assert figures.columns(points, 10, 100.0, 100, max) == [*found[0][1:], None]
