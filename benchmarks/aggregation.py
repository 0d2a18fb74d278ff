"""How fast statistics from many workers come together, beside others that do the same in the same run.

    python -m benchmarks.aggregation                        all of it: some 25 minutes
    python -m benchmarks.aggregation --only rounds --quick  one part, roughly

Servers, their load and the peers share this machine's cores, all on 127.0.0.1. Results go to
benchmarks/results/aggregation.json and, as tables, to the terminal.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import normstats
from benchmarks.peers.environments import python_with
from normserver.app import open_store
from normserver.records import Record, start
from tests.postgres import Postgres, binaries
from tests.server_process import ServerProcess

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "aggregation.json"
PEERS = ROOT / "benchmarks" / "peers"

PRODUCERS, FEATURES = (1, 8, 64, 1000), (64, 1024, 16384)
MEMBERS, VALUES = (2, 4, 8), 2048
WATCHERS = (1, 100, 1000)
NORMALIZERS = (10, 1_000, 10_000, 100_000)

Row = dict[str, Any]


class Run:
    """One run of the benchmark: how long each measurement takes, and what was found."""

    def __init__(self, seconds: float, repeats: int, progress: Progress) -> None:
        self.seconds = seconds
        self.repeats = repeats
        self.progress = progress
        self.found: dict[str, list[Row]] = {}

    def note(self, part: str, row: Row) -> None:
        """One row of a part."""
        self.found.setdefault(part, []).append(row)

    @contextmanager
    def part(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Shows how far a part is; call what this gives after each step."""
        task = self.progress.add_task(name, total=steps)
        yield lambda: self.progress.advance(task)


def load(**description: Any) -> Row:
    """Run one load in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", json.dumps(description)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout))


def median(rows: Sequence[Row]) -> Row:
    """The median of each figure."""
    found = {name: [row[name] for row in rows if row[name] is not None] for name in rows[0]}
    return {name: statistics.median(values) if values else None for name, values in found.items()}


@contextmanager
def servers(kind: str) -> Iterator[list[str]]:
    """The addresses of the servers of one kind of site: sqlite, postgresql, postgresql x 2."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normstats-benchmark-")))
        store = ""
        if kind != "sqlite":
            cluster = Postgres().start()
            stack.callback(cluster.remove)
            store = cluster.url("postgres")
        found = []
        for _ in range(2 if kind == "postgresql x 2" else 1):
            server = ServerProcess(folder, store=store)
            stack.callback(server.stop)
            found.append(server.start().target)
        yield found


def producers(run: Run, *, quick: bool) -> None:
    """Durable contributions per second, and how long their acknowledgements take."""
    sites = ["sqlite", *(["postgresql", "postgresql x 2"] if binaries() else [])]
    cells = [(64, 256), *((count, width) for width in FEATURES for count in PRODUCERS)]
    if quick:
        cells = [(64, 256), (8, 1024)]
    repeats = dict.fromkeys(cells, run.repeats)
    if not quick:
        repeats[64, 256] = max(5, run.repeats)  # the one that is promised
    with run.part("producers", len(sites) * sum(repeats.values())) as step:
        for site in sites:
            with servers(site) as targets, normstats.connect(targets[0], timeout=120) as client:
                for count, width in cells:
                    name, rows = f"{count}/{width}", []
                    for number in range(repeats[count, width]):
                        normalizer = client.create(f"{name}/{number}", normstats.Standardize(width))
                        rows.append(_streams(run, targets, normalizer, count, width))
                        step()
                    shape = {"system": f"normstats, {site}", "producers": count, "features": width}
                    run.note("producers", shape | median(rows))


def _streams(run: Run, targets: list[str], normalizer: normstats.Normalizer, count: int, width: int) -> Row:
    window = 3 if count * width < 200_000 else 1
    row = load(
        kind="streams",
        targets=targets,
        name=normalizer.name,
        features=width,
        producers=count,
        window=window,
        connections=8,
        # A thousand times 16,384 features go around once in several seconds.
        seconds=run.seconds if count * width < 5_000_000 else 5 * run.seconds,
    )
    kept = normalizer.stats().num_batches
    assert kept == row["total"], f"{row['total']} were acknowledged, {kept} are there"
    return row | {"window": window}  # row["total"], the warm-up included, was checked above


def through_the_client(run: Run, *, quick: bool) -> None:
    """Batches per second with the client's own stream: moments taken on the way, what waits gathered."""
    with run.part("through the client", run.repeats) as step, servers("sqlite") as targets:
        rows = []
        with normstats.connect(targets[0], timeout=120) as client:
            for number in range(run.repeats):
                normalizer = client.create(f"client/{number}", normstats.Standardize(256))
                description = {"targets": targets, "name": normalizer.name, "features": 256, "producers": 64}
                rows.append(load(kind="client", window=64, seconds=run.seconds, **description))
                assert normalizer.stats().num_batches == rows[-1]["total"]
                step()
    shape = {"system": "normstats' client, raw batches, sqlite", "producers": 64, "features": 256, "window": 64}
    run.note("producers", shape | median(rows))


def peers(run: Run, *, quick: bool) -> None:
    """The same merge by a Ray actor, and in Redis with WATCH and MULTI, synced at every write."""
    cells = [(64, 256), *((count, width) for width in FEATURES for count in PRODUCERS if count <= 64)]
    if quick:
        cells = [(64, 256)]
    with run.part("peers", 2 * len(cells)) as step:
        python = python_with("ray", "ray==2.60.0", "numpy")
        for count, width in cells:
            row = _json([python, PEERS / "ray_actor.py", count, width, run.seconds])
            run.note("producers", {"system": "Ray actor (in memory)", "producers": count, "features": width} | row)
            step()
        if shutil.which("redis-server") is None:
            run.progress.console.print("redis-server is not installed: no figures of Redis")
            return
        python = python_with("redis", "redis==7.1.0", "numpy")
        with _redis() as port:
            for count, width in cells:
                row = _json([python, PEERS / "redis_watch.py", port, count, width, run.seconds])
                system = "Redis, WATCH/MULTI, appendfsync always"
                run.note("producers", {"system": system, "producers": count, "features": width} | row)
                step()


def rounds(run: Run, *, quick: bool) -> None:
    """Rounds per second of vectors, beside gloo's all_reduce of the same; in turns, medians."""
    repeats = 1 if quick else max(3, run.repeats)
    with run.part("rounds", 2 * len(MEMBERS) * repeats) as step, servers("sqlite") as targets:
        with normstats.connect(targets[0]) as client:
            client.create("rounds", normstats.Standardize(1))
        for size in MEMBERS:
            ours, gloos = [], []
            for _ in range(repeats):
                ours.append(_members(run, size, lambda rank: ["normstats", targets[0], "rounds"]))
                step()
                with tempfile.TemporaryDirectory() as folder:
                    gloos.append(_members(run, size, partial(_gloo, f"{folder}/store")))
                step()
            our, gloo = statistics.median(ours), statistics.median(gloos)
            run.note(
                "rounds",
                {"members": size, "values": VALUES, "normstats": our, "gloo": gloo, "ratio": our / gloo}
                | {"normstats_all": ours, "gloo_all": gloos},
            )


def _gloo(file: str, rank: int) -> list[Any]:
    return ["gloo", file, rank]


def _members(run: Run, size: int, arguments: Callable[[int], list[Any]]) -> float:
    commands = [
        [sys.executable, "-m", "benchmarks.members", *arguments(rank), size, VALUES, run.seconds]
        for rank in range(size)
    ]
    processes = [
        subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for command in commands
    ]
    rates = [float(process.communicate(timeout=300)[0]) for process in processes]
    return statistics.median(rates)


def watchers(run: Run, *, quick: bool) -> None:
    """What watchers are told, and when, while one producer contributes."""
    with ExitStack() as stack:
        step = stack.enter_context(run.part("watchers", len(WATCHERS)))
        targets = stack.enter_context(servers("sqlite"))
        client = stack.enter_context(normstats.connect(targets[0]))
        for count in WATCHERS:
            normalizer = client.create(f"watched/{count}", normstats.Standardize(256))
            row = load(
                kind="watchers",
                targets=targets,
                name=normalizer.name,
                features=256,
                watchers=count,
                version=normalizer.info.version,
                seconds=2 * run.seconds,
            )
            told = row.pop("told") / (2 * run.seconds)
            shape = {"watchers": count, "features": 256, "told_per_second": told}
            run.note("watchers", shape | {k: row[k] for k in ("commits_per_second", "p50_ms", "p99_ms")})
            step()


def normalizers(run: Run, *, quick: bool) -> None:
    """What a contribution costs where there are many normalizers, each time to one at random; in turns, medians."""
    counts = (10, 100_000) if quick else NORMALIZERS
    callers, repeats = ((1, 8, 64), 1) if quick else ((1, 8, 64), max(3, run.repeats))
    with run.part("normalizers", len(counts) * len(callers) * repeats) as step, ExitStack() as stack:
        running: dict[int, tuple[ServerProcess, float]] = {}
        for count in counts:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="normstats-benchmark-")))
            server = ServerProcess(folder)
            _populate(server.store, count)
            began = time.perf_counter()
            stack.callback(server.start().stop)
            running[count] = server, time.perf_counter() - began
        for clients in callers:
            rates: dict[int, list[Row]] = {count: [] for count in counts}
            for _ in range(repeats):
                for count, (server, _) in running.items():
                    row = load(
                        kind="unary",
                        targets=[server.target],
                        prefix="n/",
                        names=count,
                        features=64,
                        producers=clients,
                        connections=8,
                        seconds=run.seconds,
                    )
                    rates[count].append(row)
                    step()
            base = median(rates[counts[0]])["per_second"]
            for count in counts:
                row = median(rates[count])
                shape = {"normalizers": count, "callers": clients, "features": 64, "start_seconds": running[count][1]}
                run.note("normalizers", shape | row | {"cost": base / row["per_second"]})


def _populate(url: str, count: int) -> None:
    """Normalizers that have seen something."""
    store = open_store(url)
    store.open()
    spec = normstats.Standardize(64)
    for first in range(0, count, 5000):
        with store.transaction() as transaction:
            for index in range(first, min(count, first + 5000)):
                transaction.insert(Record(f"n/{index}", spec, 1, start(spec), False, 1.0, 1.0))
    store.close()


def _json(command: Sequence[Any]) -> Row:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def _redis() -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--auto-aof-rewrite-percentage", "0"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait(10)


PARTS: dict[str, Callable[..., None]] = {
    "producers": producers,
    "client": through_the_client,
    "peers": peers,
    "rounds": rounds,
    "watchers": watchers,
    "normalizers": normalizers,
}


def machine() -> Row:
    """What the figures were taken on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "memory_gib": round(memory),
        "python": platform.python_version(),
        "grpcio": grpc.__version__,
        "numpy": np.__version__,
        "normstats": normstats.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _kept(before: dict[str, Any], found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """What was found, and of its parts what was measured before of systems that were left out this time."""
    measured = {part: {row.get("system") for row in rows} for part, rows in found.items()}
    return {
        part: [row for row in before.get(part, []) if row.get("system") not in measured[part]] + rows
        for part, rows in found.items()
    }


_COLUMNS = {
    "producers": ("system", "producers", "features", "window", "per_second", "p50_ms", "p99_ms"),
    "rounds": ("members", "values", "normstats", "gloo", "ratio"),
    "watchers": ("watchers", "features", "commits_per_second", "told_per_second", "p50_ms", "p99_ms"),
    "normalizers": ("normalizers", "callers", "start_seconds", "per_second", "p50_ms", "p99_ms", "cost"),
}


def show(console: Console, found: dict[str, list[Row]]) -> None:
    """The figures as tables."""
    for part, rows in found.items():
        table = Table(title=part)
        for column in _COLUMNS[part]:
            table.add_column(column, justify="left" if column == "system" else "right")
        key = {"producers": ("features", "producers"), "normalizers": ("callers", "normalizers")}.get(part, ())
        for row in sorted(rows, key=lambda row: tuple(row[name] for name in key)):
            table.add_row(*(_cell(row.get(column)) for column in _COLUMNS[part]))
        console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


@click.command(help=__doc__)
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="This part; may be given several times.")
@click.option("--seconds", default=3.0, show_default=True, help="How long each measurement takes, after a warm-up.")
@click.option("--repeats", default=3, show_default=True, help="Measurements of a kind; the median is told.")
@click.option("--quick", is_flag=True, help="Few sizes, once: to see that it works.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where the JSON goes."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(only: tuple[str, ...], seconds: float, repeats: int, quick: bool, output: Path, as_json: bool) -> None:
    """Run the parts that are asked for; what was measured of others before stays in the file."""
    console = Console(stderr=as_json)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        run = Run(1.0 if quick else seconds, 1 if quick else repeats, progress)
        for name in only or PARTS:
            PARTS[name](run, quick=quick)
    document = {"machine": machine(), "seconds": run.seconds, "repeats": run.repeats, **run.found}
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        show(Console(width=140), run.found)
    if not quick:
        before = json.loads(output.read_text()) if output.exists() and only else {}
        output.write_text(json.dumps(before | document | _kept(before, run.found), indent=1) + "\n")
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
