"""How fast tensors travel to the server and back, beside an echo of the same bytes in the same run.

    python -m benchmarks.wire            all of it: some two minutes
    python -m benchmarks.wire --quick    roughly

The echo is a grpc.aio server that sends back what it gets, in the same messages: what the wire can do in Python. Both
are called by asyncio clients of this process and share this machine's cores with it. A gigabyte counts once on its way
there and once back. Results go to benchmarks/results/wire.json and, as a table, to the terminal.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import normstats
from benchmarks.kernels import cpu_name
from benchmarks.peers import echo
from normserver import polling
from normstats.chunking import CHUNK_BYTES
from tests.server_process import ServerProcess

RESULTS = Path(__file__).resolve().parent / "results" / "wire.json"
FEATURES, NAME = 1024, "layer"
KIB, MIB = 1 << 10, 1 << 20
CASES = [(size, callers) for size in (4 * KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB) for callers in (1, 16)]
WINDOW = 8
HUGE = 1 << 30

Call = Callable[[], Awaitable[Any]]


class Process:
    """A server's process, as Linux sees it."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def cpu_seconds(self) -> float:
        """What it has used of the processors so far."""
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        """Measure the peak of its memory from here on."""
        (self._folder / "clear_refs").write_text("5")

    def memory_bytes(self, name: str) -> int:
        """Its memory: VmRSS now, VmHWM at its peak."""
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise KeyError(name)


@contextmanager
def echoing() -> Iterator[tuple[str, Process]]:
    """The echo's address and process."""
    command = [sys.executable, "-m", "benchmarks.peers.echo"]
    environment = os.environ | polling.environment()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            yield f"127.0.0.1:{int(server.stdout.readline())}", Process(server.pid)
        finally:
            server.terminate()


def echo_of(channel: grpc.aio.Channel, size: int, callers: int) -> list[Call]:
    """Calls of the echo with so many bytes, one for each caller, in the messages that ours would go in.

    Up to a chunk on a stream that stays open, larger ones in chunks on one of their own. They are as many different
    bytes: zeros would all be read from one page, which stays in the nearest cache.
    """
    stream = channel.stream_stream(f"/{echo.SERVICE}/Stream")
    cut = [random.randbytes(min(size, CHUNK_BYTES)) for _ in range(max(1, size // CHUNK_BYTES))]
    make = _whole if size <= CHUNK_BYTES else _in_chunks
    return [make(stream, cut) for _ in range(callers)]


def _whole(stream: Any, cut: Sequence[bytes]) -> Call:
    opened: list[Any] = []

    async def call() -> None:
        if not opened:
            opened.append(stream())
        await opened[0].write(cut[0])
        await opened[0].read()

    return call


def _in_chunks(stream: Any, cut: Sequence[bytes]) -> Call:
    async def call() -> None:
        room = asyncio.Semaphore(WINDOW)

        async def chunks() -> Any:
            for chunk in cut:
                await room.acquire()
                yield chunk

        async for _ in stream(chunks()):
            room.release()

    return call


def ours_of(client: normstats.aio.AsyncClient, size: int) -> Call:
    """A call of ours: layer norm with weight and bias, by name."""
    x = np.random.default_rng(0).standard_normal((size // 4 // FEATURES, FEATURES), dtype=np.float32)
    return lambda: client.normalize(x, NAME, timeout=300)


async def rate(each: Sequence[Call], calls: int) -> float:
    """Calls a second, by callers who make so many each."""

    async def caller(call: Call) -> None:
        for _ in range(calls):
            await call()

    begun = time.perf_counter()
    await asyncio.gather(*(caller(call) for call in each))
    return len(each) * calls / (time.perf_counter() - begun)


async def measure(
    both: dict[str, tuple[Sequence[Call], Process]], size: int, callers: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Rates and processor time of both, in turns."""
    calls = {}
    for name, (each, _) in both.items():
        await rate(each, 1)
        calls[name] = max(1, round(seconds * await rate(each, 2) / callers))
    rates: dict[str, list[float]] = {name: [] for name in both}
    used: dict[str, list[float]] = {name: [] for name in both}
    for _ in range(rounds):
        for name, (each, process) in both.items():
            before = process.cpu_seconds()
            rates[name].append(await rate(each, calls[name]))
            gigabytes = 2 * size * callers * calls[name] / 1e9
            used[name].append((process.cpu_seconds() - before) / gigabytes)
    ratios = [ours / limit for ours, limit in zip(rates["ours"], rates["echo"], strict=True)]
    return {
        "bytes": size,
        "callers": callers,
        "calls_per_second": {name: statistics.median(one) for name, one in rates.items()},
        "gigabytes_per_second": {name: statistics.median(one) * 2 * size / 1e9 for name, one in rates.items()},
        "fraction_of_echo": statistics.median(ratios),
        "server_cpu_seconds_per_gigabyte": {name: statistics.median(one) for name, one in used.items()},
    }


async def huge(client: normstats.aio.AsyncClient, process: Process, size: int) -> dict[str, Any]:
    """The server's memory while a large array passes."""
    idle = process.memory_bytes("VmRSS")
    process.forget_peak()
    await ours_of(client, size)()
    peak = process.memory_bytes("VmHWM")
    return {"bytes": size, "idle_bytes": idle, "peak_bytes": peak, "above_idle_bytes": peak - idle}


async def run(rounds: int, seconds: float, size: int) -> dict[str, Any]:
    """All measurements."""
    with echoing() as (address, limit), tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(Path(folder)).start()
        assert server.process is not None
        process = Process(server.process.pid)
        try:
            async with (
                grpc.aio.insecure_channel(address, options=echo.UNLIMITED) as channel,
                normstats.aio.connect(server.target) as client,
            ):
                parameters = {"weight": np.ones(FEATURES), "bias": np.zeros(FEATURES)}
                await client.create(NAME, normstats.LayerNorm((FEATURES,), **parameters))
                memory = await huge(client, process, size)
                rows = []
                with Progress(transient=True) as progress:
                    for one, callers in progress.track(CASES):
                        ours = [ours_of(client, one)] * callers
                        both = {"echo": (echo_of(channel, one, callers), limit), "ours": (ours, process)}
                        rows.append(await measure(both, one, callers, rounds, seconds))
        finally:
            server.stop()
    return {"machine": {"device": cpu_name(), "grpcio": grpc.__version__}, "rows": rows, "memory": memory}


def table(results: dict[str, Any]) -> Table:
    """The results for people."""
    shown = Table(title=f"Layer norm over {FEATURES} features, there and back, on {results['machine']['device']}")
    for column in ("size", "callers", "ours a second", "ours GB/s", "echo GB/s", "fraction", "server CPU s/GB", "echo"):
        shown.add_column(column, justify="right")
    for row in results["rows"]:
        speed, used = row["gigabytes_per_second"], row["server_cpu_seconds_per_gigabyte"]
        size = row["bytes"]
        shown.add_row(
            f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB",
            str(row["callers"]),
            f"{row['calls_per_second']['ours']:,.0f}",
            f"{speed['ours']:.2f}",
            f"{speed['echo']:.2f}",
            f"{row['fraction_of_echo']:.2f}",
            f"{used['ours']:.2f}",
            f"{used['echo']:.2f}",
        )
    return shown


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds, a smaller array: no figures to keep.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def main(quick: bool, json_path: Path) -> None:
    """See the module."""
    rounds, seconds, size = (3, 0.2, HUGE // 8) if quick else (5, 1.0, HUGE)
    results = asyncio.run(run(rounds, seconds, size))
    console = Console()
    console.print(table(results))
    memory = results["memory"]
    console.print(
        f"{memory['bytes'] / 2**30:.2f} GiB passed: the server's memory peaked {memory['above_idle_bytes'] / 1e6:.0f}"
        f" MB above its {memory['idle_bytes'] / 1e6:.0f} MB when idle"
    )
    if not quick:
        json_path.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"written to {json_path}")


if __name__ == "__main__":
    main()
