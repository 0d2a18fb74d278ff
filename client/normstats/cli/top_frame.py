"""What `normstats top` shows: a frame, from what the server has told and the time. Pure.

What is too wide is left out by columns, the least important first; what is too tall by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from rich.console import Group
from rich.text import Text

from normstats.activity import ActiveNormalizer, ActiveProducer, Activity, Load, OpenRound, ServerInfo
from normstats.cli import top_figures as figures
from normstats.cli.top_layout import (
    APART,
    QUIET,
    STRONG,
    Cell,
    Column,
    Section,
    beside,
    ends,
    listed,
    rule,
    stacked,
)

# What the load is told of; the server remembers no more.
SECONDS = 300
# The server tells every second: after so many without a word, it is away.
STALE_SECONDS = 3.0
# A round of a group that runs well is open for milliseconds: to show those would only flicker.
_NOTICED_SECONDS = 0.5
# Who changed or contributed within so many seconds is shown as alive.
_ACTIVE_SECONDS = 30.0
# A rate must change by so much before rows change places.
_CLEARLY = 1.4

SORTS = ("rate", "name", "last")
SECTIONS = ("normalizers", "producers", "rounds")

GOOD, WARN, BAD, INK = "green", "yellow", "bold red", "cyan"
_NO_STYLE = ""

# One character each, for terminals that have no others.
_ASCII = str.maketrans("▁▂▃▄▅▆▇█━╸–·…─●↑↓µ", "._-:=+*#=---~-*^vu")

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the server has told so far. `at`: when it did so last, in seconds of the caller's clock."""

    activity: Activity
    at: float
    load: tuple[Load, ...]
    rates: Mapping[Key, float]  # rows are ordered by these, which follow the true ones only when they differ clearly

    @classmethod
    def first(cls, activity: Activity, at: float) -> Seen:
        """The first word."""
        return cls(activity, at, (), {}).then(activity, at)

    def then(self, activity: Activity, at: float) -> Seen:
        """One more. It is right about its own seconds: a server that was restarted may have another clock."""
        load = self.load
        if activity.load:
            begin, end = activity.load[0].time, activity.load[-1].time
            earlier = (one for one in load if one.time < begin and (end - one.time).total_seconds() < SECONDS)
            load = (*earlier, *activity.load)
        rates: dict[Key, float] = {(one.name, ""): one.contributions_per_second for one in activity.normalizers}
        rates |= {(one.normalizer, one.id): one.contributions_per_second for one in activity.producers}
        held = {key: self.rates.get(key, -1.0) for key in rates}
        return Seen(
            activity,
            at,
            load,
            {key: held[key] if one / _CLEARLY < held[key] < one * _CLEARLY else one for key, one in rates.items()},
        )

    def server_time(self, now: float) -> float:
        """What time it is at the server, in seconds since the epoch: no earlier than anything that it has told."""
        activity = self.activity
        times: list[datetime | None] = [activity.server.start_time, activity.server.last_commit_time]
        times += [one.time for one in activity.load]
        times += [one.update_time for one in activity.normalizers]
        times += [one.last_time for one in activity.producers]
        return max(one.timestamp() for one in times if one is not None) + self.age(now)

    def age(self, now: float) -> float:
        """How old it is."""
        return max(now - self.at, 0.0)


@dataclass(frozen=True, slots=True)
class View:
    """How to show it. `only` is the one section to show, `skip` how many rows are scrolled by."""

    target: str
    prefix: str = ""
    live: bool = False
    paused: bool = False
    ascii_only: bool = False
    sort: str = SORTS[0]
    only: str = ""
    skip: int = 0

    def after(self, key: str, seen: Seen) -> View:
        """What it becomes when a key is pressed."""
        activity = seen.activity
        last = max(map(len, (activity.normalizers, activity.producers, activity.rounds))) - 1
        match key:
            case "p":
                return replace(self, paused=not self.paused)
            case "s":
                return replace(self, sort=_next(SORTS, self.sort))
            case "tab":
                return replace(self, only=_next(("", *SECTIONS), self.only), skip=0)
            case "up":
                return replace(self, skip=max(self.skip - 1, 0))
            case "down":
                return replace(self, skip=max(min(self.skip + 1, last), 0))
            case _:
                return self


def frame(seen: Seen, view: View, width: int, height: int | None, now: float) -> Group:
    """A frame: exactly so high in full-screen mode, otherwise at most, or of all rows if that is None."""
    stale = view.live and not view.paused and seen.age(now) > STALE_SECONDS
    server_time = seen.server_time(now)
    top = _head(seen, view, width, stale, now, server_time)
    foot = [_foot(view, width)] if view.live else []
    room = None if height is None else max(height - len(top) - len(foot), 0)
    gauges = _gauges(seen.load, width, room, server_time)
    room = None if room is None else max(room - len(gauges), 0)
    tables = _sections(seen, view, width, room, server_time, seen.age(now))
    lines = [*top, *gauges, *tables]
    if height is not None:
        lines = lines[: height - len(foot)]
        lines += [Text()] * (height - len(foot) - len(lines)) if view.live else []
    lines += foot
    for line in lines:
        line.no_wrap, line.overflow = True, "crop"
        line.rstrip()
        if view.ascii_only:
            line.plain = line.plain.translate(_ASCII)
    if stale:
        for line in lines[1:]:
            line.stylize(QUIET)
    return Group(*lines)


def _head(seen: Seen, view: View, width: int, stale: bool, now: float, server_time: float) -> list[Text]:
    server = seen.activity.server
    target, age = (_clean(view.target), STRONG), figures.span(seen.age(now))
    up = figures.span(server_time - server.start_time.timestamp())
    about = [f"normstats {_clean(server.release)}", _clean(server.store), _clean(server.device), f"up {up}"]
    if stale:
        left = Text.assemble((f"● no word for {age} from", BAD), " ", target)
        about = ["asking again", "what it said last is below"]
    elif server.not_ready:
        left = Text.assemble((f"● not ready: {_clean(server.not_ready)}", BAD), "  ", target)
    else:
        left = Text.assemble(("● paused", WARN) if view.paused else ("● ready", GOOD), "  ", target)
    lines = [ends(left, about, width)]
    lines.append(listed(_state(server, seen.load[-1] if seen.load else None, server_time), width))
    readable = [_clean(one) for one in server.readable_prefixes]
    names = [_pair("names that begin with", _clean(view.prefix), 0)] if view.prefix else []
    if "" not in readable:
        names.append(_pair("you may read", ", ".join(readable) or "nothing", 0))
    if names:
        lines.append(listed(names, width))
    return lines


def _state(server: ServerInfo, load: Load | None, server_time: float) -> list[Text]:
    """What tells whether all is well."""
    committed = server.last_commit_time
    ago = figures.NOTHING if committed is None else figures.ago(server_time - committed.timestamp())
    parts = [_pair("last commit", ago, 6)]
    if load is None:
        return parts
    errors, many = load.errors_per_second, load.errors_per_second > 0.01 * load.calls_per_second
    again = load.duplicates_per_second > 0.1 * load.contributions_per_second
    return [
        *parts,
        _pair("errors", figures.rate(errors), 8, (BAD if many else WARN) if errors > 0 else _NO_STYLE),
        _pair("pending", figures.amount(load.pending_contributions), 6, _stuck(committed, load)),
        _pair("duplicates", figures.rate(load.duplicates_per_second), 8, WARN if again else _NO_STYLE),
        _pair("producers", figures.amount(load.active_producers), 6),
    ]


def _pair(what: str, told: str, width: int, style: str = _NO_STYLE) -> Text:
    return Text.assemble((f"{what} ", QUIET), (f"{told:<{width}}", style))


def _stuck(last_commit: datetime | None, load: Load) -> str:
    """Whether contributions wait for a commit longer than one takes."""
    if not load.pending_contributions or last_commit is None:
        return _NO_STYLE
    return _level((load.time - last_commit).total_seconds(), 2.0, 10.0)


def _foot(view: View, width: int) -> Text:
    only = _next(("", *SECTIONS), view.only)
    keys = {
        "q": "quit",
        "p": "go on" if view.paused else "pause",
        "s": f"sort by {_next(SORTS, view.sort)}",
        "tab": f"only {only}" if only else "all",
        "↑↓": "scroll",
    }
    return listed([Text.assemble((key, STRONG), (f" {what}", QUIET)) for key, what in keys.items()], width)


def _next(of: Sequence[str], one: str) -> str:
    return of[(of.index(one) + 1) % len(of)]


class _Gauge(NamedTuple):
    """A figure of the load. Its chart reaches up to `least`, or to the largest; `warn` and `bad` colour it."""

    title: str
    value: Callable[[Load], float]
    told: Callable[[float], str]
    least: float
    warn: float = float("inf")
    bad: float = float("inf")


_CALLS = (
    _Gauge("calls", lambda load: load.calls_per_second, figures.rate, 4),
    _Gauge("contributions", lambda load: load.contributions_per_second, figures.rate, 4),
    _Gauge("streams", lambda load: load.open_streams, figures.amount, 4),
    _Gauge("watchers", lambda load: load.watchers, figures.amount, 4),
)
_TIMES = (
    _Gauge("call p50", lambda load: load.call_p50_seconds, figures.took, 0.002),
    _Gauge("call p99", lambda load: load.call_p99_seconds, figures.took, 0.002, 1.0, 10.0),
    _Gauge("commit p50", lambda load: load.commit_p50_seconds, figures.took, 0.002, 0.1, 1.0),
    _Gauge("commit p99", lambda load: load.commit_p99_seconds, figures.took, 0.002, 0.25, 1.0),
)
_MACHINE = (
    _Gauge("queue", lambda load: load.queued_normalizations + load.pending_contributions, figures.amount, 4),
    _Gauge("memory", lambda load: load.resident_bytes, figures.size, 1),
    _Gauge("busy", lambda load: load.compute_busy_ratio, figures.percent, 1, 0.75, 0.95),
    _Gauge("cores", lambda load: load.cpu_cores, figures.digits, 1),
)
_TITLE, _FIGURE, _BAR = 13, 8, 12


def _gauges(load: Sequence[Load], width: int, room: int | None, server_time: float) -> list[Text]:
    if width >= 150:
        stacks: Sequence[Sequence[_Gauge]] = (_CALLS, _TIMES, _MACHINE)
    elif width >= 64:
        stacks = ((*_CALLS, *_MACHINE[:2]), (*_TIMES, *_MACHINE[2:]))
    else:
        stacks = ((*_CALLS[:2], *_TIMES[1::2], *_MACHINE, *_CALLS[2:], *_TIMES[::2]),)
    tall = 1 if room is None or room < 33 else 2 if room < 44 else 3
    most = len(stacks[0]) if room is None else min(len(stacks[0]), max(2, room // (3 * tall)))
    each = (width - APART * (len(stacks) - 1)) // len(stacks)
    blocks = [[line for one in stack[:most] for line in _gauge(one, load, each, tall, server_time)] for stack in stacks]
    lines = beside(blocks, each)
    return [rule("Load", "the last 5 minutes", width), *lines] if room is None or room >= 24 else lines


def _gauge(gauge: _Gauge, load: Sequence[Load], width: int, rows: int, server_time: float) -> list[Text]:
    points = [(one.time.timestamp(), gauge.value(one)) for one in load]
    now, peak = (points[-1][1] if points else 0.0), max((value for _, value in points), default=0.0)
    style = _level(now, gauge.warn, gauge.bad)
    most = f"max {gauge.told(peak)}"
    beside = rows == 1 and width >= 45
    room = max(width - _TITLE - _FIGURE - 2 - (_FIGURE + 6 if beside else 0), 4)
    values = figures.columns(points, room, server_time, SECONDS, max)
    bars = figures.sparkline(values, max(peak, gauge.least), rows)
    upper = Text.assemble((f"{gauge.title:<{_TITLE}}", QUIET), (f"{gauge.told(now):>{_FIGURE}}", style or STRONG), "  ")
    lines = [upper.append(bars[0], style or INK)]
    if beside:
        upper.append(f"{most:>{_FIGURE + 6}}", QUIET)
    lower = (f"{most:>{_TITLE + _FIGURE}}", QUIET)
    beneath = [lower, *[(" " * (_TITLE + _FIGURE), "")] * (rows - 2)]
    return [
        *lines,
        *(Text.assemble(one, "  ", (bar, style or INK)) for one, bar in zip(beneath, bars[1:], strict=False)),
    ]


def _sections(seen: Seen, view: View, width: int, room: int | None, server_time: float, age: float) -> list[Text]:
    activity = seen.activity
    sections = {
        "normalizers": _normalizers(activity.normalizers, seen.rates, view.sort, server_time),
        "producers": _producers(activity.producers, seen.rates, view.sort, server_time),
        "rounds": _rounds(activity.rounds, age),
    }
    if view.only:
        return stacked([sections[view.only]], width, room, view.skip)
    if width < 150:
        return stacked(list(sections.values()), width, room, view.skip)
    each = (width - APART) // 2
    left = stacked([sections["normalizers"]], each, room, view.skip)
    right = stacked([sections["producers"], sections["rounds"]], each, room, view.skip)
    return beside([left, right], each)


def _normalizers(
    normalizers: Sequence[ActiveNormalizer], rates: Mapping[Key, float], sort: str, server_time: float
) -> Section:
    def row(one: ActiveNormalizer) -> list[Cell]:
        seconds = server_time - one.update_time.timestamp()
        style = _NO_STYLE if seconds < _ACTIVE_SECONDS else QUIET
        return [
            (_clean(one.name), style),
            (figures.whole(one.num_features), style),
            (figures.whole(one.version), style),
            (figures.whole(one.count), style),
            (figures.rate(one.contributions_per_second), style or GOOD),
            (figures.ago(seconds), style),
            (figures.bar(one.contributions_per_second / most, _BAR), INK),
        ]

    most = max((one.contributions_per_second for one in normalizers), default=0.0) or 1.0
    if sort == "rate":
        normalizers = sorted(normalizers, key=lambda one: (-rates[one.name, ""], one.name))
    elif sort == "name":
        normalizers = sorted(normalizers, key=lambda one: one.name)
    columns = (
        Column("name", 24, 0, 1, text=True),
        Column("features", 9, 5),
        Column("version", 9, 3),
        Column("rows", 9, 4),
        Column("rate", 8, 1),
        Column("changed", 7, 2),
        Column("", _BAR, 6, text=True),
    )
    note = _sorted_by(sort) if normalizers else "none has changed since the server was started"
    return Section("Normalizers", note, columns, [row(one) for one in normalizers])


def _producers(
    producers: Sequence[ActiveProducer], rates: Mapping[Key, float], sort: str, server_time: float
) -> Section:
    def row(one: ActiveProducer) -> list[Cell]:
        seconds = server_time - one.last_time.timestamp()
        style = _NO_STYLE if seconds < _ACTIVE_SECONDS else QUIET
        return [
            (_clean(one.id), style),
            (_clean(one.normalizer), style),
            (figures.whole(one.sequence), style),
            (figures.whole(one.contributions), style),
            (figures.whole(one.duplicates), WARN if one.duplicates and not style else style),
            (figures.rate(one.contributions_per_second), style or GOOD),
            (figures.ago(seconds), style),
            (figures.bar(one.contributions_per_second / most, _BAR), INK),
        ]

    most = max((one.contributions_per_second for one in producers), default=0.0) or 1.0
    if sort == "rate":
        producers = sorted(producers, key=lambda one: (-rates[one.normalizer, one.id], one.normalizer, one.id))
    elif sort == "name":
        producers = sorted(producers, key=lambda one: (one.normalizer, one.id))
    columns = (
        Column("id", 8, 0, text=True),
        Column("normalizer", 24, 1, 1, text=True),
        Column("sequence", 9, 4),
        Column("merged", 9, 6),
        Column("duplicates", 10, 5),
        Column("rate", 8, 2),
        Column("last", 7, 3),
        Column("", _BAR, 7, text=True),
    )
    note = _sorted_by(sort) if producers else "nobody has contributed since the server was started"
    return Section("Producers", note, columns, [row(one) for one in producers])


def _rounds(rounds: Sequence[OpenRound], age: float) -> Section:
    def row(one: OpenRound) -> list[Cell]:
        left = max(one.remaining_seconds - age, 0.0)
        style = BAD if left < 0.25 * (one.waited_seconds + one.remaining_seconds) else WARN
        unknown = one.size - len(one.present) - len(one.missing)
        missing = [_clean(id_) for id_ in one.missing]
        return [
            (_clean(one.group), _NO_STYLE),
            (figures.whole(one.round), _NO_STYLE),
            (f"{len(one.present)} of {one.size}", style),
            (" ".join([*missing, *([f"{unknown} unknown"] if unknown > 0 else [])]), style),
            (f"{left:.1f} s" if left < 99.95 else figures.span(left), style),
            (_clean(one.normalizer), _NO_STYLE),
        ]

    waiting = [one for one in rounds if one.waited_seconds + age >= _NOTICED_SECONDS]
    columns = (
        Column("group", 12, 0, 2, text=True),
        Column("round", 7, 4),
        Column("present", 9, 2),
        Column("missing", 17, 1, 3, text=True),
        Column("left", 8, 3),
        Column("normalizer", 24, 5, 2, text=True),
    )
    brief = len(rounds) - len(waiting)
    note = f"{brief} in time" if brief else ("" if waiting else "none waits")
    return Section("Rounds", note, columns, [row(one) for one in waiting])


def _sorted_by(sort: str) -> str:
    return {"rate": "by rate", "name": "by name", "last": "the last first"}[sort]


def _level(value: float, warn: float, bad: float) -> str:
    return BAD if value >= bad else WARN if value >= warn else _NO_STYLE


def _clean(told: str) -> str:
    """Text of the server's, without what moves a cursor."""
    return "".join(one if one.isprintable() else "?" for one in told)
