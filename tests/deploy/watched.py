"""A real server under a load of known size, watched by a real Prometheus as deploy/prometheus says: TLS, a token."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
import pytest

import normstats
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.certificates import Authority
from tests.contract import contribution, described
from tests.deploy.prometheus import Prometheus
from tests.deploy.tools import tool
from tests.faults.load import wait_until
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

OBS, REWARD, SNAPSHOT = "robot/obs", "robot/reward", "monday"
FEATURES, ROWS = 8, 64
LARGE = (40_000, FEATURES)
SMALL = np.ones((4, FEATURES), np.float32)
SETTLED_SECONDS = 15.0
TOKENS = {name: f"normstats_{name}" for name in ("operator", "prometheus", "elsewhere", "greedy")}


class Watched:
    """`calls` are those that ended, by method and code, and `contributions` what became of them, as callers know it."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._folder = folder
        self.calls: Counter[tuple[str, str]] = Counter()
        self.contributions: Counter[str] = Counter()
        self.rounds: Counter[str] = Counter()
        self.normalized_bytes = 0
        self.started_at = self.loaded_at = 0.0

    def __enter__(self) -> Self:
        tool("prometheus")
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _start(self) -> None:
        folder, authority = self._folder, Authority(self._folder, "ca")
        authority.path.rename(folder / "ca.crt")
        pair = authority.issue("server", "127.0.0.1")
        self.credentials = folder / "credentials.toml"
        self.credentials.write_text(
            stanza("operator", "admin", "", TOKENS["operator"])
            + stanza("prometheus", "read", "", TOKENS["prometheus"])
            + stanza("elsewhere", "write", "other/", TOKENS["elsewhere"])
            + stanza("greedy", "read", "", TOKENS["greedy"], "calls_per_second = 0.5")
        )
        (folder / "token").write_text(TOKENS["prometheus"])
        flags = [
            "--tls-cert",
            str(pair.certificate),
            "--tls-key",
            str(pair.key),
            "--credentials",
            str(self.credentials),
        ]
        self.server = ServerProcess(folder, *flags)
        self._stack.callback(self.server.stop)
        self.server.start()
        target = self.server.http.removeprefix("http://")
        self.prometheus = Prometheus(folder, target, names=[OBS, REWARD], snapshot=SNAPSHOT)
        self._stack.callback(self.prometheus.stop)
        self.prometheus.start()
        self._ca = folder / "ca.crt"
        token = TOKENS["operator"]
        self.client = self._stack.enter_context(normstats.connect(self.server.target, tls=self._ca, token=token))
        credentials, options = grpc.ssl_channel_credentials(self._ca.read_bytes()), [("grpc.enable_retries", 0)]
        channel = self._stack.enter_context(grpc.secure_channel(self.server.target, credentials, options))
        self._stub = NormalizationServiceStub(channel)
        self.until(lambda: self.prometheus.value("sum(up)") == 2)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def load(self, times: int) -> None:
        """Everything once, so that each series is there; and then so many times, from `started_at` to `loaded_at`.

        A series that begins with a count has that one told by no rate.
        """
        rng = np.random.default_rng(0)
        self.obs = self.client.create(OBS, specs.Standardize(FEATURES))
        self.reward = self.client.create(REWARD, specs.Standardize(1))
        self.reward.update(np.ones((2, 1)))
        self.contributions["merged"] += 1
        self.calls["UpdateRunningStats", "OK"] += 1
        self._act(rng, 0.0)
        for one in (self.obs, self.reward):
            one.snapshot(SNAPSHOT)
        self._rounds()
        self._settle()
        self.started_at = time.time()
        watching = self.obs.watch()
        next(watching)
        for index in range(times):
            self._act(rng, 0.3 * index)
            time.sleep(0.5)
        self._rounds()
        self._settle()
        watching.close()  # type: ignore[attr-defined]
        self.loaded_at = time.time()

    @property
    def server_id(self) -> int:
        """The server's process id."""
        assert self.server.process is not None
        return self.server.process.pid

    def call(self, method: str, request: Any, who: str = "operator") -> str:
        """One call of the contract's, without the client; returns the code that it ends with."""
        metadata = (("authorization", f"Bearer {TOKENS.get(who, who)}"),)
        try:
            getattr(self._stub, method)(request, timeout=20, metadata=metadata)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
        self.calls[method, code] += 1
        return code

    def update(self, name: str = OBS, *, sequence: int = 1, producer: bytes = b"", rows: Any = SMALL) -> str:
        """One contribution."""
        producer = producer or secrets.token_bytes(16)
        contributions = [contribution(name, rows.astype(np.float64))]
        request = pb.UpdateRunningStatsRequest(producer_id=producer, sequence=sequence, contributions=contributions)
        return self.call("UpdateRunningStats", request)

    def _act(self, rng: np.random.Generator, moved: float) -> None:
        producer, rows = secrets.token_bytes(16), rng.normal(moved, 1.0, (ROWS, FEATURES))
        assert [self.update(producer=producer, sequence=one, rows=rows) for one in (1, 2, 3, 3)] == ["OK"] * 4
        assert self.update("robot/nothing") == "NOT_FOUND"
        assert self.update(sequence=0) == "INVALID_ARGUMENT"
        self.contributions.update({"merged": 3, "duplicate": 1, "refused": 1})
        for name, code in [(OBS, "OK")] * 6 + [("robot/nothing", "NOT_FOUND")]:
            request = pb.NormalizeRequest(normalizer=name, input=described(SMALL), data=SMALL.tobytes())
            assert self.call("Normalize", request) == code
        assert self.call("Normalize", request, who="nobody") == "UNAUTHENTICATED"
        for _ in range(2):
            assert self.call("Normalize", request, who="elsewhere") == "PERMISSION_DENIED"
        while self.call("GetDevice", pb.GetDeviceRequest(), who="greedy") == "OK":
            pass
        self._over_a_session()
        large = np.ones(LARGE, np.float32)
        self.obs.normalize(large)
        self.normalized_bytes += 8 * SMALL.nbytes + large.nbytes
        with self.obs.stream() as stream:
            for _ in range(2):
                stream.update(rows)
                stream.flush()
                self.contributions["merged"] += 1

    def _over_a_session(self) -> None:
        with normstats.connect(self.server.target, tls=self._ca, token=TOKENS["operator"]) as client:
            for _ in range(2):  # the first goes by itself
                client.normalize(SMALL, OBS)
        self.calls["Normalize", "OK"] += 1

    def _rounds(self) -> None:
        """One that is complete, and two whose second member does not come."""
        with self.obs.join("alone", 1, timeout=5) as member:
            member.sync(SMALL)
        self.rounds["completed"] += 1
        for _ in range(2):
            with self.obs.join("together", 2, timeout=0.2) as member, pytest.raises(normstats.DeadlineExceeded):
                member.sync(SMALL)
            self.rounds["failed"] += 1

    def _settle(self) -> None:
        """Wait until Prometheus has seen all of it, twice: a rate is made of two samples."""
        told = sum(self.calls.values())
        methods = "|".join(sorted({method for method, _ in self.calls}))
        self.until(lambda: self.prometheus.value(f'sum(normstats_calls_total{{method=~"{methods}"}})') == told)
        failed = self.rounds["failed"]
        self.until(lambda: self.prometheus.value('sum(normstats_rounds_total{outcome="failed"})') == failed)
        time.sleep(2.2)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until Prometheus says so."""
        wait_until(holds, SETTLED_SECONDS)
