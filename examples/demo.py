"""The main job on real data: four workers, one server that is killed on the way, and statistics that are exact.

Streams scikit-learn's handwritten digits (1,797 x 64 features) and its two photographs (per-channel statistics, NCHW)
from four worker processes; every tenth contribution is sent twice, as after a lost acknowledgement. Halfway the server
gets kill -9 and is started again on the same store. Then every figure is held against a float64 two-pass over all of
the data. Exits 1 if any is off.
"""

from __future__ import annotations

import multiprocessing
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import SynchronizedArray
from multiprocessing.synchronize import Barrier
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits, load_sample_images

import normstats
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import tensor_pb2
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub

WORKERS = 4
TOLERANCE = 1e-12  # relative, of mean and variance
FLOAT32_TOLERANCE = 1e-5  # absolute, of normalized values: they are float32


@dataclass(frozen=True)
class Dataset:
    """A normalizer, its data, and how many samples go into one contribution."""

    name: str
    spec: normstats.Standardize
    data: npt.NDArray[np.float32]
    batch_size: int

    def batches(self, worker: int) -> Iterator[npt.NDArray[np.float32]]:
        """The batches that one worker contributes."""
        for start in range(worker * self.batch_size, len(self.data), WORKERS * self.batch_size):
            yield self.data[start : start + self.batch_size]

    def values(self) -> npt.NDArray[np.float64]:
        """All values as rows of features, float64."""
        channels_last = np.moveaxis(self.data, self.spec.channel_axis, -1)
        return channels_last.reshape(-1, self.spec.num_features).astype(np.float64)


def datasets() -> list[Dataset]:
    """Digits as they are; the photographs cut into 122 strips of 7 rows, every pixel in one of them."""
    digits = load_digits().data.astype(np.float32)
    strips = [image.reshape(61, 7, 640, 3) for image in load_sample_images().images]
    photographs = np.ascontiguousarray(np.concatenate(strips).transpose(0, 3, 1, 2), dtype=np.float32)
    return [
        Dataset("demo/digits", normstats.Standardize(64), digits, batch_size=8),
        Dataset("demo/photographs", normstats.Standardize(3, channel_axis=1), photographs, batch_size=1),
    ]


def work(target: str, worker: int, halfway: Barrier, duplicates: SynchronizedArray[int]) -> None:
    """One worker: streams its share of each dataset, and meets the others halfway."""
    with normstats.connect(target) as client, grpc.insecure_channel(target) as channel:
        stub = NormalizationServiceStub(channel)
        for number, dataset in enumerate(datasets()):
            normalizer = client.create(dataset.name, dataset.spec, exist_ok=True)
            batches = list(dataset.batches(worker))
            with normalizer.stream() as stream:
                for index, batch in enumerate(batches):
                    if index == len(batches) // 2:
                        halfway.wait()  # from here on the server may be gone at any moment
                    if index % 10 == 9:
                        dropped = contribute_twice(stub, dataset.name, batch)
                        with duplicates.get_lock():
                            duplicates[number] += dropped
                    else:
                        stream.update(batch)


def contribute_twice(stub: NormalizationServiceStub, name: str, batch: npt.NDArray[np.float32]) -> bool:
    """A contribution by the contract alone, sent again as a producer does that never saw the acknowledgement.

    Returns whether the second was dropped as a duplicate.
    """
    raw = pb.Contribution.RawBatch(input=tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=batch.shape))
    request = pb.UpdateRunningStatsRequest(
        producer_id=secrets.token_bytes(16),
        sequence=1,
        contributions=[pb.Contribution(normalizer=name, raw=raw)],
        data=batch.tobytes(),
    )
    sent(stub, request)
    return sent(stub, request).duplicate


def sent(stub: NormalizationServiceStub, request: pb.UpdateRunningStatsRequest) -> pb.UpdateRunningStatsResponse:
    """The reply, however often the server goes away in between."""
    while True:
        try:
            return stub.UpdateRunningStats(request, wait_for_ready=True, timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise


def start_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """`normstats serve` on a store in this folder."""
    command = [sys.executable, "-m", "normserver", "--listen", f"127.0.0.1:{port}", "--http", "127.0.0.1:0"]
    command += ["--store", f"sqlite:///{folder / 'demo.db'}", "--log-format", "human"]
    with (folder / "server.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def check(dataset: Dataset, client: normstats.Client, duplicates: int) -> tuple[list[str], bool]:
    """One row of the table, and whether all of it is right."""
    normalizer = client.get(dataset.name)
    stats = normalizer.stats()
    assert stats.mean is not None
    assert stats.var is not None
    columns = np.ascontiguousarray(dataset.values().T)  # numpy sums along a row pairwise, down a column one by one
    mean = columns.mean(axis=1)
    var = ((columns - mean[:, None]) ** 2).mean(axis=1)
    mean_error = float((np.abs(stats.mean - mean) / np.where(mean != 0, np.abs(mean), 1)).max())
    var_error = float((np.abs(stats.var - var) / np.where(var > 0, var, 1)).max())
    y = replace(dataset, data=normalizer.normalize(dataset.data)).values()
    y_mean = float(np.abs(y.mean(axis=0)).max())
    y_std = y.std(axis=0)[var > 0]
    shares = [len(list(dataset.batches(worker))) for worker in range(WORKERS)]
    sent_twice = sum(share // 10 for share in shares)
    right = (
        (stats.count, stats.num_batches, duplicates) == (columns.shape[1], sum(shares), sent_twice)
        and max(mean_error, var_error) <= TOLERANCE
        and y_mean <= FLOAT32_TOLERANCE
        and float(np.abs(y_std - 1).max()) <= FLOAT32_TOLERANCE
    )
    row = [
        dataset.name,
        f"{stats.count:,} of {columns.shape[1]:,}",
        f"{mean_error:.1e}",
        f"{var_error:.1e}",
        f"{stats.num_batches} of {sum(shares)}",
        f"{duplicates} of {sent_twice}",
        f"{y_mean:.1e}",
        f"{y_std.min():.6f} to {y_std.max():.6f}",
        "yes" if right else "NO",
    ]
    return row, right


COLUMNS = (
    "dataset",
    "rows",
    "mean off by",
    "var off by",
    "contributions",
    "duplicates dropped",
    "normalized mean",
    "normalized std",
    "right",
)


def run(folder: Path, console: Console) -> bool:
    """Everything; returns whether all figures are right."""
    port = free_port()
    target = f"127.0.0.1:{port}"
    server = start_server(folder, port)
    spawn = multiprocessing.get_context("spawn")
    halfway, duplicates = spawn.Barrier(WORKERS + 1), spawn.Array("i", len(datasets()))
    workers = [
        spawn.Process(target=work, args=(target, worker, halfway, duplicates), daemon=True) for worker in range(WORKERS)
    ]
    try:
        for worker in workers:
            worker.start()
        console.print(f"{WORKERS} workers stream to {target}")
        halfway.wait(120)
        console.print("halfway through the digits: kill -9, and a new server on the same store")
        server.kill()
        server.wait()
        server = start_server(folder, port)
        halfway.wait(120)
        console.print("halfway through the photographs")
        for worker in workers:
            worker.join(240)
        table = Table(
            *COLUMNS, title="against a float64 two-pass over all data", caption="off by: relative, the worst feature"
        )
        with normstats.connect(target) as client:
            results = [check(dataset, client, duplicates[number]) for number, dataset in enumerate(datasets())]
        for row, _ in results:
            table.add_row(*row)
        console.print(table)
        return all(right for _, right in results) and all(worker.exitcode == 0 for worker in workers)
    finally:
        for worker in workers:
            worker.kill()
        server.terminate()
        server.wait(30)


def main() -> int:
    """Run in a folder of its own; keep it, for its log, if something is off."""
    console = Console(width=170)
    folder = Path(tempfile.mkdtemp(prefix="normstats-demo-"))
    if not run(folder, console):
        console.print(f"[bold red]something is off[/]; the server's log: {folder / 'server.log'}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
