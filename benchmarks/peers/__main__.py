"""Layer norm by others beside ours, in one run: how fast, at what cost to the server's cores and memory.

    python -m benchmarks.peers                                  all of it: some six minutes
    python -m benchmarks.peers --quick                          roughly, and nothing is written
    python -m benchmarks.peers --only normstats --only triton   these alone

Each peer is installed on first use in a virtual environment of its own under benchmarks/.venvs: Triton Inference
Server with a model of its python backend, MLServer with a runtime of its own, Arrow Flight and a grpc.aio server that
echo what they get, plain TCP in Python, and, beside shared memory, the kernel alone. Each is as it is installed, called
in the way that was fastest here (its file says how), and Triton also tuned. A call takes an array of numpy's and gives
one; through shared memory both lie there.
Every server and every caller is a process of its own on 127.0.0.1, and all share this machine's cores. Answers are
verified before anything is timed.

Each round measures all peers one after another. Figures are medians of rounds, ratios are of one round. A gigabyte
counts once on its way there and once back. Memory is the sum over a server's processes of each one's peak. A peer that
cannot be installed, started or trusted is named with the reason. Results go to benchmarks/results/peers.json and, as a
table, to the terminal.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.kernels import cpu_name
from benchmarks.peers import flight, mlserver, ours, tables, triton
from benchmarks.peers.measuring import Case, measure
from benchmarks.peers.peer import GRPC, SHARED_MEMORY, Peer, Start
from benchmarks.peers.servers import PeerFailed
from benchmarks.wire import KIB, MIB

RESULTS = Path(__file__).resolve().parents[1] / "results" / "peers.json"
# What --only takes, and who is started for it.
PEERS: dict[str, dict[str, Start]] = {
    "normstats": {"normstats over gRPC": ours.over_grpc, "normstats through shared memory": ours.through_memory},
    "triton": {"Triton": triton.start},
    "mlserver": {"MLServer": mlserver.start},
    "flight": {"Arrow Flight": flight.start},
    "echo": {"our echo": ours.echo},
    "sockets": {"plain TCP": ours.sockets},
    "kernel": {"the kernel alone": ours.kernel},
}
CASES = [
    *(Case(GRPC, size, callers) for size in (4 * KIB, MIB, 16 * MIB) for callers in (1, 16)),
    Case(GRPC, 64 * MIB, 1),
    *(Case(SHARED_MEMORY, size, 1) for size in (16 * MIB, 64 * MIB)),
]
LONG = Case(GRPC, 16 * MIB, 16)  # up to ten seconds a round: not when it should be quick


def run(names: Iterable[str], cases: list[Case], rounds: int, seconds: float) -> dict[str, Any]:
    """All measurements."""
    failed: dict[str, str] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with ExitStack() as stack, Progress(*columns, transient=True) as progress:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normstats-peers-")))
        peers = started(names, stack, folder, progress, failed)
        able = {case: [peer for peer in peers if case.over in peer.over] for case in cases}
        measured = progress.track([case for case in cases if able[case]], description="measuring")
        rows = [measure(case, able[case], rounds, seconds, failed) for case in measured]
    return {"machine": machine(names), "rounds": rounds, "seconds": seconds, "rows": rows, "left_out": failed}


def started(
    names: Iterable[str], stack: ExitStack, folder: Path, progress: Progress, failed: dict[str, str]
) -> list[Peer]:
    """Those that serve; why others do not is noted in `failed`."""
    peers: list[Peer] = []
    starts = [found for name in names for found in PEERS[name].items()]
    for label, start in progress.track(starts, description="installing and starting"):
        try:
            peers += start(stack, folder)
        except (PeerFailed, OSError, subprocess.SubprocessError) as error:
            failed[label] = str(error)
    return peers


def machine(names: Iterable[str]) -> dict[str, Any]:
    """What was compared, and on what."""
    packages = {"triton": triton.PACKAGES, "mlserver": mlserver.PACKAGES, "flight": flight.PACKAGES}
    versions = {name: list(packages[name]) for name in names if name in packages}
    return {"device": cpu_name(), "python": sys.version.split()[0], "grpcio": grpc.__version__, "peers": versions}


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds: no figures to keep, so none are written.")
@click.option("--only", type=click.Choice(list(PEERS)), multiple=True, help="Measure this one; may be repeated.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(quick: bool, only: tuple[str, ...], json_path: Path) -> None:
    """See the module."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    rounds, seconds = (3, 0.3) if quick else (5, 1.0)
    cases = [case for case in CASES if not (quick and case == LONG)]
    results = run(only or PEERS, cases, rounds, seconds)
    console = Console()
    for shown in (tables.figures(results), tables.bars(results), *tables.left_out(results)):
        console.print(shown)
    if not quick:
        json_path.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"written to {json_path}")


if __name__ == "__main__":
    main()
