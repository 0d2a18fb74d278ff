"""How fast each operation of normcore is, beside the memory's own speed and torch in the same run.

    python -m benchmarks.kernels --device cpu      some ten minutes
    python -m benchmarks.kernels --device cuda     on a machine that has one
    python -m benchmarks.kernels --only layer --quick

"Copy" is the faster of torch's and numpy's copy into memory that is there (a device copy on CUDA), "read" a sum over
the tensor. A fraction of 1 means that the operation takes as long as moving its bytes once. Each round measures the
limit, ours and the others one after another; ratios are of one round, figures are medians of rounds. Ours writes into a
kept buffer, as the server does; torch as it is called, which is into new memory. Results go to benchmarks/results/
under the device's name and, as tables, to the terminal.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import normcore
from normcore.kernels import launch

RESULTS = Path(__file__).resolve().parent / "results"
Run = Callable[[], Any]


@dataclass
class Case:
    """One operation on one shape: how many times its bytes are read and written, and who does it."""

    operation: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    x: Tensor
    reads: int
    writes: int
    ours: Run
    others: dict[str, Run] = field(default_factory=dict)
    must: float | None = None

    @property
    def title(self) -> str:
        """The operation, its shape and type."""
        return f"{self.operation} {'x'.join(map(str, self.shape))} {str(self.dtype).removeprefix('torch.')}"


def compiled(function: Callable[..., Any], *args: Any) -> Run | None:
    """The function by torch.compile, or None where that does not work here."""
    try:
        torch.compiler.reset()
        fast = torch.compile(function, dynamic=False)
        fast(*args)
    except Exception as error:  # whatever a compiler may lack
        print(f"torch.compile: {type(error).__name__}", file=sys.stderr)
        return None
    return lambda: fast(*args)


def others(function: Callable[..., Any], *args: Any, compile: bool = True) -> dict[str, Run]:
    """torch as it is called, and compiled."""
    found: dict[str, Run] = {"torch": lambda: function(*args)}
    if compile and (fast := compiled(function, *args)):
        found["torch.compile"] = fast
    return found


class Bench:
    """Cases on one device."""

    def __init__(self, device: str, quick: bool) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.size = (1 << 28 if quick else 1 << 30) if self.cuda else (1 << 26 if quick else 1 << 28)
        self._kept: dict[tuple[torch.dtype, int], tuple[Tensor, Tensor]] = {}

    def tensors(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Normal values of a shape, and memory for an output."""
        count = int(np.prod(shape))
        if (dtype, count) not in self._kept:
            self._kept.clear()
            gc.collect()
            x = torch.randn(count, device=self.device, dtype=torch.float32).to(dtype)
            self._kept[dtype, count] = (x, torch.zeros_like(x))
        x, y = self._kept[dtype, count]
        return x.view(shape), y.view(shape)

    def rows(self, width: int, itemsize: int = 4) -> int:
        """How many rows make a tensor beyond the caches."""
        return max(1, self.size // (width * itemsize))

    def cases(self) -> Iterator[tuple[str, Callable[[], Case]]]:
        """The operation of each case, and what makes it, as each holds a large tensor."""
        f32, bf16, f16 = torch.float32, torch.bfloat16, torch.float16
        row = bf16 if self.cuda else f32
        widths = {64: 0.75, 256: 0.7, 1000: 0.65, 1024: 0.88, 4096: 0.88, 8192: 0.88, 16384: 0.8, 1 << 20: 0.6}
        for width, must in widths.items():
            yield "layer norm", partial(self.layer, width, row, must if self.cuda else 0.65)
        if not self.cuda:
            yield "layer norm", partial(self.layer, 1024, bf16, 0.65)
        for width in (1024, 8192):
            yield "RMS norm", partial(self.rms, width, row)
        yield "Lp norm", partial(self.lp, 1024, f32)
        for width in (64, 1024, 8192):
            yield "moments of columns", partial(self.columns, width, f32)
        yield "moments of columns", partial(self.columns, 1024, bf16)
        images = ((64, 112), (256, 56), (2048, 7))
        for channels, side in images:
            yield "moments of channels", partial(self.channels, channels, side, False)
        yield "moments of channels", partial(self.channels, 256, 56, True)
        for channels, side in images:
            yield "batch norm, eval", partial(self.evaluation, channels, side)
        for channels, side in images:
            yield "batch norm, training", partial(self.training, channels, side, f16 if self.cuda else f32)
        yield "batch norm, training", partial(self.training, 256, 56, f32, last=True)
        yield "group norm", partial(self.groups, 256, 56)
        yield "instance norm", partial(self.instances, 64, 112)
        yield "ragged layer norm", self.ragged

    def layer(self, width: int, dtype: torch.dtype, must: float) -> Case:
        """Layer norm."""
        shape = (self.rows(width, dtype.itemsize), width)
        x, y = self.tensors(shape, dtype)
        w, b = (torch.randn(width, device=self.device) for _ in range(2))
        low = (w.to(dtype), b.to(dtype))
        found = others(lambda x, w, b: F.layer_norm(x, (width,), w, b), x, *low)
        if self.cuda and (liger := liger_layer_norm(x, *low)):
            found["Liger"] = liger
        ours = lambda: normcore.layer_norm(x, width, weight=w, bias=b, out=y)  # noqa: E731
        return Case("layer norm", shape, dtype, x, 1, 1, ours, found, must)

    def rms(self, width: int, dtype: torch.dtype) -> Case:
        """RMS norm."""
        shape = (self.rows(width, dtype.itemsize), width)
        x, y = self.tensors(shape, dtype)
        w = torch.randn(width, device=self.device)
        found = others(lambda x, w: F.rms_norm(x, (width,), w), x, w.to(dtype))
        return Case(
            "RMS norm", shape, dtype, x, 1, 1, lambda: normcore.rms_norm(x, width, weight=w, out=y), found,
            0.88 if self.cuda else None,
        )  # fmt: skip

    def lp(self, width: int, dtype: torch.dtype) -> Case:
        """Lp norm, p = 2."""
        shape = (self.rows(width, dtype.itemsize), width)
        x, y = self.tensors(shape, dtype)
        return Case("Lp norm", shape, dtype, x, 1, 1, lambda: normcore.lp_norm(x, out=y), others(F.normalize, x))

    def columns(self, width: int, dtype: torch.dtype) -> Case:
        """Moments of columns."""
        shape = (self.rows(width, dtype.itemsize), width)
        x, _ = self.tensors(shape, dtype)
        return Case(
            "moments of columns", shape, dtype, x, 1, 0, lambda: normcore.moments_of(x, 1),
            others(lambda x: torch.var_mean(x, 0), x), 0.9 if self.cuda else 0.6,
        )  # fmt: skip

    def images(self, channels: int, side: int, dtype: torch.dtype, last: bool = False) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W), channels last in memory if so asked."""
        count = max(1, self.size // (channels * side * side * dtype.itemsize))
        shape = (count, side, side, channels) if last else (count, channels, side, side)
        x, y = self.tensors(shape, dtype)
        return (x.permute(0, 3, 1, 2), y.permute(0, 3, 1, 2)) if last else (x, y)

    def channels(self, channels: int, side: int, last: bool) -> Case:
        """Moments of the channels of images."""
        x, _ = self.images(channels, side, torch.float32, last)
        return Case(
            f"moments of channels, {'NHWC' if last else 'NCHW'}", tuple(x.shape), x.dtype, x, 1, 0,
            lambda: normcore.moments_of(x, 1), others(lambda x: torch.var_mean(x, (0, 2, 3)), x),
            0.9 if self.cuda else 0.6,
        )  # fmt: skip

    def evaluation(self, channels: int, side: int) -> Case:
        """Batch norm by running statistics."""
        x, y = self.images(channels, side, torch.float32)
        m, v, w, b = (torch.rand(channels, device=self.device) for _ in range(4))
        m64, v64 = m.double(), v.double()
        ours = lambda: normcore.standardize(x, m64, v64, eps=1e-5, weight=w, bias=b, channel_axis=1, out=y)  # noqa: E731
        found = others(lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b), x, m, v, w, b)
        return Case("batch norm, eval", tuple(x.shape), x.dtype, x, 1, 1, ours, found, 0.92 if self.cuda else None)

    def training(self, channels: int, side: int, dtype: torch.dtype, last: bool = False) -> Case:
        """Batch norm by the batch's own statistics."""
        x, y = self.images(channels, side, dtype, last)
        w, b = (torch.rand(channels, device=self.device) for _ in range(2))
        ours = lambda: normcore.batch_norm(x, eps=1e-5, weight=w, bias=b, out=y)  # noqa: E731
        found = others(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), x, w.to(dtype), b.to(dtype))
        name = f"batch norm, training, {'NHWC' if last else 'NCHW'}"
        return Case(name, tuple(x.shape), dtype, x, 2, 1, ours, found, 0.82 if self.cuda else 0.5)

    def groups(self, channels: int, side: int) -> Case:
        """Group norm."""
        x, y = self.images(channels, side, torch.float32)
        w, b = (torch.rand(channels, device=self.device) for _ in range(2))
        ours = lambda: normcore.group_norm(x, 32, weight=w, bias=b, out=y)  # noqa: E731
        found = others(lambda x, w, b: F.group_norm(x, 32, w, b), x, w, b)
        return Case("group norm", tuple(x.shape), x.dtype, x, 1, 1, ours, found, 0.85 if self.cuda else None)

    def instances(self, channels: int, side: int) -> Case:
        """Instance norm."""
        x, y = self.images(channels, side, torch.float32)
        ours = lambda: normcore.instance_norm(x, out=y)  # noqa: E731
        found = others(lambda x: F.instance_norm(x), x)
        return Case("instance norm", tuple(x.shape), x.dtype, x, 1, 1, ours, found, 0.85 if self.cuda else None)

    def ragged(self) -> Case:
        """256 requests of 64 rows of up to 1,024 in one arena."""
        lengths = torch.randint(512, 1537, (256 * 64,), generator=torch.Generator().manual_seed(0))
        starts = lengths.cumsum(0) - lengths
        x, y = self.tensors((int(lengths.sum()),), torch.bfloat16 if self.cuda else torch.float32)
        starts, lengths = starts.to(self.device), lengths.to(self.device)
        y.copy_(x)
        ours = lambda: launch.row_norm_ragged(y, starts, lengths, eps=1e-5, out=y)  # noqa: E731
        return Case("ragged layer norm", (256, 64, 1024), x.dtype, x, 1, 1, ours, {}, 0.75 if self.cuda else None)

    def copy(self, x: Tensor) -> Run:
        """A copy of x into memory that is there: the fastest of this device."""
        flat = x.permute(0, 2, 3, 1) if x.dim() == 4 and not x.is_contiguous() else x
        flat = flat.reshape(-1)
        target = torch.empty_like(flat).fill_(1)
        if self.cuda or flat.dtype == torch.bfloat16:
            return lambda: target.copy_(flat)
        source, into = flat.numpy(), target.numpy()
        by_torch, by_numpy = (lambda: target.copy_(flat)), (lambda: np.copyto(into, source))
        return min(by_torch, by_numpy, key=lambda run: statistics.median(self.seconds(run) for _ in range(3)))

    def read(self, x: Tensor) -> Run:
        """A sum over x."""
        return lambda: x.sum()

    def seconds(self, run: Run) -> float:
        """How long one call takes; on CUDA by events, with nothing of it in the L2 cache."""
        if not self.cuda:
            time.sleep(0.03)  # torch's threads go on spinning for a while after their work, on the next one's cores
            begun = time.perf_counter()
            run()
            return time.perf_counter() - begun
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.empty(1 << 28, dtype=torch.uint8, device=self.device).zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def measure(self, case: Case, rounds: int) -> dict[str, Any]:
        """Medians over rounds, and of each round's ratios."""
        runs = {"read": self.read(case.x), "copy": self.copy(case.x), "ours": case.ours, **case.others}
        for run in runs.values():
            run()
        taken = [{name: self.seconds(run) for name, run in runs.items()} for _ in range(rounds)]
        size = case.x.numel() * case.x.element_size()

        def limit(one: dict[str, float]) -> float:
            return (case.reads - case.writes) * one["read"] + case.writes * one["copy"]

        def median(ratio: Callable[[dict[str, float]], float]) -> float:
            return statistics.median(map(ratio, taken))

        return {
            "operation": case.operation,
            "shape": case.shape,
            "dtype": str(case.dtype).removeprefix("torch."),
            "megabytes": size / 1e6,
            "seconds": {name: median(lambda one, name=name: one[name]) for name in runs},
            "gigabytes_per_second": size / 1e9 / median(lambda one: one["ours"]),
            "limit": ["", "read", "copy", "read + copy"][
                case.reads + case.writes if case.writes == 0 or case.reads > 1 else 2
            ],
            "fraction_of_limit": median(lambda one: limit(one) / one["ours"]),
            "times": {name: median(lambda one, name=name: one[name] / one["ours"]) for name in case.others},
            "must": case.must,
        }


def liger_layer_norm(x: Tensor, w: Tensor, b: Tensor) -> Run | None:
    """Liger-Kernel's layer norm, where it is installed."""
    try:
        from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    except ImportError:
        return None
    return lambda: LigerLayerNormFunction.apply(x, w, b, 1e-5)


def pairs(shape: tuple[int, int]) -> dict[str, tuple[Run, Run]]:
    """Ours and torch's as they are called, on one small shape."""
    x, width = torch.randn(shape), shape[1]
    w, b, mean, var = torch.randn(width), torch.randn(width), torch.randn(width), torch.rand(width)
    mean64, var64 = mean.double(), var.double()
    found: dict[str, tuple[Run, Run]] = {
        "layer norm": (
            lambda: normcore.layer_norm(x, width, weight=w, bias=b),
            lambda: F.layer_norm(x, (width,), w, b),
        ),
        "RMS norm": (lambda: normcore.rms_norm(x, width, weight=w), lambda: F.rms_norm(x, (width,), w)),
        "group norm": (lambda: normcore.group_norm(x, 4, weight=w, bias=b), lambda: F.group_norm(x, 4, w, b)),
        "batch norm, eval": (
            lambda: normcore.standardize(x, mean64, var64, eps=1e-5, weight=w, bias=b, channel_axis=1),
            lambda: F.batch_norm(x, mean, var, w, b),
        ),
        "Lp norm": (lambda: normcore.lp_norm(x), lambda: F.normalize(x)),
    }
    if shape[0] > 1:  # torch refuses one value a channel
        found["batch norm, training"] = (
            lambda: normcore.batch_norm(x, eps=1e-5, weight=w, bias=b),
            lambda: F.batch_norm(x, None, None, w, b, True),
        )
        found["moments"] = (lambda: normcore.moments_of(x, 1), lambda: torch.var_mean(x, 0))
    return found


def small(rounds: int) -> Iterator[dict[str, Any]]:
    """Microseconds a call of small shapes."""
    for shape in ((1, 64), (2, 64), (8, 256), (64, 64), (64, 256), (64, 1024)):
        for name, both in pairs(shape).items():
            taken = [[min(timeit.repeat(run, number=1000, repeat=3)) * 1e3 for run in both] for _ in range(rounds)]
            yield {
                "operation": name,
                "shape": shape,
                "microseconds": statistics.median(one for one, _ in taken),
                "torch_microseconds": statistics.median(other for _, other in taken),
                "slower_by": statistics.median(one - other for one, other in taken),
            }


def machine(device: torch.device) -> dict[str, str]:
    """What the figures were taken on."""
    versions = {}
    for name in ("numba", "triton", "numpy", "liger-kernel"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
    }


def cpu_name() -> str:
    """The processor's name, and how many cores of it."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    return f"{name.group(1) if name else platform.processor()}, {os.cpu_count()} cores"


def tables(results: dict[str, Any]) -> Iterator[Table]:
    """The results for people."""
    large = Table(title=f"Beyond the caches, on {results['machine']['device']}")
    for column in (
        "operation",
        "shape",
        "dtype",
        "GB/s of input",
        "limit",
        "fraction",
        "must",
        "times torch",
        "compiled",
    ):
        large.add_column(column, justify="left" if column in ("operation", "shape", "dtype", "limit") else "right")
    for row in results["large"]:
        times = row["times"]
        large.add_row(
            row["operation"],
            "x".join(map(str, row["shape"])),
            row["dtype"],
            f"{row['gigabytes_per_second']:.1f}",
            row["limit"],
            f"{row['fraction_of_limit']:.2f}",
            "" if row["must"] is None else f"{row['must']:.2f}",
            f"{times['torch']:.1f}" if "torch" in times else "",
            f"{times['torch.compile']:.1f}" if "torch.compile" in times else "",
        )
    yield large
    if results["small"]:
        table = Table(title="Small: microseconds a call")
        for column in ("operation", "shape", "ours", "torch", "slower by"):
            table.add_column(column, justify="left" if column in ("operation", "shape") else "right")
        for row in results["small"]:
            table.add_row(
                row["operation"],
                "x".join(map(str, row["shape"])),
                f"{row['microseconds']:.1f}",
                f"{row['torch_microseconds']:.1f}",
                f"{row['slower_by']:+.1f}",
            )
        yield table


@click.command(help=__doc__)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--only", default="", help="Operations whose name contains this; `small` for the small shapes.")
@click.option("--quick", is_flag=True, help="Smaller tensors, fewer rounds: no figures to keep.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Where results go. [default: by device]")
def main(device: str, only: str, quick: bool, json_path: Path | None) -> None:
    """Run the benchmark."""
    bench, rounds = Bench(device, quick), 3 if quick else 7
    results: dict[str, Any] = {"machine": machine(bench.device), "large": [], "small": []}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        makers = [make for operation, make in bench.cases() if only in operation]
        task = progress.add_task("cases", total=len(makers))
        for make in makers:
            case = make()
            progress.update(task, description=case.title)
            results["large"].append(bench.measure(case, rounds))
            progress.advance(task)
    if device == "cpu" and only in ("", "small"):
        results["small"] = list(small(rounds))
    console = Console(width=160)
    for table in tables(results):
        console.print(table)
    if json_path is None and not quick and not only:
        name = re.sub(r"[^a-z0-9]+", "-", results["machine"]["device"].lower()).strip("-")
        json_path = RESULTS / f"kernels-{name}.json"
    if json_path is not None:
        json_path.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"written to {json_path}")


if __name__ == "__main__":
    main()
