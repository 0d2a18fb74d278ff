"""The results for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks.peers.bars import BARS, seen
from benchmarks.peers.peer import GRPC, NAMES
from benchmarks.wire import KIB, MIB

# Title, key in the results, factor and format.
_FIGURES = [
    ("calls/s", "calls_per_second", 1.0, ",.1f"),
    ("GB/s", "gigabytes_per_second", 1.0, ".3f"),
    ("CPU s/GB", "server_cpu_seconds_per_gigabyte", 1.0, ".2f"),
    ("peak MB", "server_peak_bytes", 1e-6, ",.0f"),
    ("ours / it", "ours_is_times_as_fast", 1.0, ".2f"),
]


def figures(results: dict[str, Any]) -> Table:
    """Sizes by peers."""
    rows = results["rows"]
    names = [name for name in NAMES if any(name in row["peers"] for row in rows)]
    title = f"Layer norm of float32 over 1,024 features, there and back, on {results['machine']['device']}"
    table = Table(
        title=title, caption="Size x callers, over gRPC unless it says otherwise; CPU and memory: the server's"
    )
    table.add_column("case", max_width=14)
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", max_width=9)
    for row in rows:
        for index, (title, key, factor, form) in enumerate(_FIGURES):
            cells = [_cell(row["peers"].get(name, {}).get(key), factor, form) for name in names]
            table.add_row("" if index else _case(row["over"], row["bytes"], row["callers"]), title, *cells)
        table.add_section()
    return table


def bars(results: dict[str, Any]) -> Table:
    """What is demanded, and what was seen."""
    table = Table(title="Ours as a multiple of theirs")
    for column in ("bar", "peer", "demanded", "seen", ""):
        table.add_column(column, justify="left" if column in ("bar", "peer") else "right")
    for bar in BARS:
        ratio = seen(bar, results["rows"])
        verdict = "not measured" if ratio is None else "met" if ratio >= bar.demanded else "MISSED"
        case = _case(bar.over, bar.size, bar.callers)
        table.add_row(case, bar.peer, f"{bar.demanded:g}", _cell(ratio, 1.0, ".2f"), verdict)
    return table


def left_out(results: dict[str, Any]) -> Iterator[str]:
    """Who is missing where, and why."""
    for who, reason in results["left_out"].items():
        yield f"skipped: {who}: {reason}"


def _case(over: str, size: int, callers: int) -> str:
    shown = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
    return f"{shown} x {callers}{'' if over == GRPC else ', ' + over}"


def _cell(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)
