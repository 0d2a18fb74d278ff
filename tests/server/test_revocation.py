"""Withdrawn, expired and narrowed credentials end the streams that are open, over TLS and mTLS, and no others."""

from __future__ import annotations

import json
import queue
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

import normstats
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.certificates import Authority
from tests.contract import Refused, contribution, described, f64, told_by
from tests.server.test_access import Site, X, stanza
from tests.server_process import ServerProcess

NAME = "robot/obs"
WITHIN_SECONDS = 10.0
CALLERS = ("withdrawn", "expiring", "narrowed", "kept")
NORMALIZE = pb.NormalizeRequest(spec=spec_wire.to_proto(specs.LayerNorm(3)), input=described(X), data=X.tobytes())

# What each stream sends before it falls silent; each is answered at least once. The round waits for others.
STREAMS: dict[str, list[Any]] = {
    "WatchRunningStats": [pb.WatchRunningStatsRequest(normalizer=NAME)],
    "WatchActivity": [pb.WatchActivityRequest()],
    "UpdateRunningStatsStream": [
        pb.UpdateRunningStatsStreamRequest(open={"producer_id": bytes(16)}),
        pb.UpdateRunningStatsStreamRequest(update={"sequence": 1, "contributions": [contribution(NAME, X)]}),
    ],
    "NormalizeManyStream": [
        pb.NormalizeManyStreamRequest(
            requests=[pb.NormalizeRequest(normalizer=NAME, input=described(X), data=X.tobytes())], id=1
        )
    ],
    "NormalizeStream": [
        pb.NormalizeStreamRequest(open={"normalizer": NAME}),
        pb.NormalizeStreamRequest(chunk={"input": described(X)}, data=X.tobytes()),
    ],
    "SynchronizeStats": [
        pb.SynchronizeStatsRequest(join={"group": "robot/step", "size": 9, "round_timeout": {"seconds": 60}}),
        pb.SynchronizeStatsRequest(part={"round": 1, "vector": f64(1.0)}),
    ],
}
# This one shows the caller what he may still read, and so goes on under narrower grants.
NAMELESS = {"WatchActivity", "ShareMemory"}


class Stream:
    """A stream that has been answered and is silent now. `took` is when it ended, as seconds of a monotonic clock."""

    def __init__(self, stub: Any, method: str, messages: list[Any], metadata: Any) -> None:
        self._sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for message in messages:
            self._sent.put(message)
        watches = method.startswith("Watch")
        sent = messages[0] if watches else iter(self._sent.get, None)
        self.method = method
        self.call = getattr(stub, method)(sent, timeout=60, metadata=metadata)
        for _ in messages if method == "UpdateRunningStatsStream" else messages[:1]:
            next(self.call)
        self.ended_at = 0.0
        self.error: grpc.RpcError | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            self.error = error
        self.ended_at = time.monotonic()

    def told(self, since: float) -> Refused:
        """What it was told at its end, which came in time."""
        self._reader.join(WITHIN_SECONDS + 5)
        assert self.ended_at, f"{self.method} goes on"
        assert self.ended_at - since < WITHIN_SECONDS, self.method
        assert self.error is not None, self.method
        return told_by(self.error)

    def close(self) -> None:
        self._sent.put(None)
        self.call.cancel()
        self._reader.join(10)


class Revocable(NamedTuple):
    """A server, and the file of its credentials."""

    site: Site
    file: Path

    def write(self, *, withdrawn: bool = True, narrowed: str = "robot/", expires: str = "") -> None:
        """Write the credentials of now."""
        expiring = (f"expires = {expires}",) if expires else ()
        known = [
            stanza("expiring", "write", "robot/", "normstats_expiring", *expiring),
            stanza("narrowed", "write", narrowed, "normstats_narrowed"),
            stanza("kept", "admin", "", "normstats_kept"),
        ]
        if withdrawn:
            known.append(stanza("withdrawn", "write", "robot/", "normstats_withdrawn"))
        self.file.write_text("\n".join(known))


@pytest.fixture(params=["TLS", "mTLS"])
def revocable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Revocable]:
    authority = Authority(tmp_path)
    pair = authority.issue("server", "127.0.0.1", "localhost")
    file = tmp_path / "credentials.toml"
    flags = ["--tls-cert", str(pair.certificate), "--tls-key", str(pair.key), "--credentials", str(file)]
    if request.param == "mTLS":
        flags += ["--tls-client-ca", str(authority.path)]
    server = ServerProcess(tmp_path, *flags)
    tokens = {name: f"normstats_{name}" for name in CALLERS}
    found = Revocable(Site(server, authority, tokens, request.param == "mTLS"), file)
    found.write()
    server.start()
    yield found
    server.stop()


def test_withdrawn_expired_and_narrowed_credentials_end_streams(revocable: Revocable) -> None:
    site = revocable.site
    channels = {caller: site.channel(caller) for caller in CALLERS}
    stubs = {caller: NormalizationServiceStub(channel) for caller, channel in channels.items()}
    site_create(stubs["kept"], site.metadata("kept"))
    streams = {
        caller: [
            Stream(stubs[caller], method, _own(messages, number), site.metadata(caller))
            for method, messages in STREAMS.items()
        ]
        for number, caller in enumerate(CALLERS)
    }
    expires = datetime.now(UTC) + timedelta(seconds=3)
    changed = time.monotonic()
    revocable.write(withdrawn=False, narrowed="other/", expires=expires.isoformat())
    missing = "CREDENTIALS_MISSING" if site.mtls else "TOKEN_UNKNOWN"
    for stream in streams["withdrawn"]:
        told = stream.told(changed)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, missing), stream.method
    for stream in streams["narrowed"]:
        if stream.method not in NAMELESS:
            told = stream.told(changed)
            assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING"), stream.method
    for stream in streams["expiring"]:
        told = stream.told(changed + 3)
        assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"), stream.method
    going_on = [*streams["kept"], *(one for one in streams["narrowed"] if one.method in NAMELESS)]
    assert not [stream.method for stream in going_on if stream.ended_at]
    for stream in [one for several in streams.values() for one in several]:
        stream.close()
    for channel in channels.values():
        channel.close()


def _own(messages: list[Any], number: int) -> list[Any]:
    """The messages of one caller: producers and members have ids of their own."""
    own = [type(message).FromString(message.SerializeToString()) for message in messages]
    if isinstance(own[0], pb.UpdateRunningStatsStreamRequest):
        own[0].open.producer_id = bytes([number]) * 16
    if isinstance(own[0], pb.SynchronizeStatsRequest):
        own[0].join.member_id = bytes([number]) * 16
    return own


def site_create(stub: NormalizationServiceStub, metadata: Any) -> None:
    """The normalizer that all streams name, with a contribution."""
    spec = spec_wire.to_proto(specs.Standardize(3))
    stub.CreateNormalizer(pb.CreateNormalizerRequest(name=NAME, spec=spec), metadata=metadata, timeout=30)
    update = pb.UpdateRunningStatsRequest(producer_id=b"x" * 16, sequence=1, contributions=[contribution(NAME, X)])
    stub.UpdateRunningStats(update, metadata=metadata, timeout=30)


def test_a_page_that_watches_is_told_that_its_token_was_withdrawn(revocable: Revocable) -> None:
    site = revocable.site
    with site.channel("kept") as channel:
        site_create(NormalizationServiceStub(channel), site.metadata("kept"))
    context = ssl.create_default_context(cafile=str(site.authority.path))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    address = site.server.http.replace("http://", "https://")
    asked = urllib.request.Request(
        f"{address}/api/WatchRunningStats?normalizer={NAME}", headers={"Authorization": "Bearer normstats_withdrawn"}
    )
    with urllib.request.urlopen(asked, context=context, timeout=30) as events:
        assert events.readline().startswith(b"data: ")
        started = time.monotonic()
        revocable.write(withdrawn=False)
        lines = [line for line in events if line.startswith((b"event:", b"data:"))]
    assert time.monotonic() - started < WITHIN_SECONDS
    assert lines[-2] == b"event: error\n"
    assert json.loads(lines[-1].removeprefix(b"data: "))["reason"] == "TOKEN_UNKNOWN"


def test_lent_memory_is_taken_back_from_withdrawn_tokens(tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    admin = stanza("admin", "admin", "", "admin")
    file.write_text(admin + stanza("gone", "read", "", "gone"))
    server = ServerProcess(tmp_path, "--credentials", str(file), "--shared-memory", by_socket=True).start()
    try:
        with grpc.insecure_channel(server.target) as channel:
            stub = NormalizationServiceStub(channel)
            stream = Stream(
                stub, "ShareMemory", [pb.ShareMemoryRequest(allocate_bytes=4096)], (("authorization", "Bearer gone"),)
            )
            changed = time.monotonic()
            file.write_text(admin)
            assert stream.told(changed).code is grpc.StatusCode.UNAUTHENTICATED
            stream.close()
        pages = urllib.request.Request(f"{server.http}/metrics", headers={"Authorization": "Bearer admin"})
        assert b"normstats_shared_memory_bytes 0.0" in urllib.request.urlopen(pages, timeout=5).read()
    finally:
        server.stop()


def test_updates_go_on_while_other_credentials_change(revocable: Revocable) -> None:
    site = revocable.site
    pair = site.authority.issue("caller-kept", "kept.example")
    tls = normstats.TLS(site.authority.path, *(pair if site.mtls else ()))
    token = None if site.mtls else site.tokens["kept"]
    with normstats.connect(site.server.target, tls=tls, token=token) as client:
        obs = client.create("other/obs", normstats.Standardize(3))
        with obs.stream() as stream:
            for number in range(10):
                revocable.write(withdrawn=number % 2 == 0)
                for _ in range(10):
                    stream.update(np.ones((2, 3)))
                time.sleep(0.3)
        assert obs.stats().num_batches == 100


def test_a_stream_whose_answers_are_not_read_ends_too(tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    admin = stanza("admin", "admin", "", "admin")
    file.write_text(admin + stanza("gone", "read", "", "gone"))
    server = ServerProcess(tmp_path, "--credentials", str(file)).start()
    x = np.ones((2**16, 4), np.float32)
    frames = [pb.NormalizeStreamRequest(open={"spec": spec_wire.to_proto(specs.LayerNorm(4))})]
    frames += [pb.NormalizeStreamRequest(chunk={"input": described(x)}, data=x.tobytes())] * 16
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for message in frames:
        sent.put(message)

    def open_streams() -> bytes:
        asked = urllib.request.Request(f"{server.http}/metrics", headers={"Authorization": "Bearer admin"})
        page: bytes = urllib.request.urlopen(asked, timeout=5).read()
        return next(line for line in page.splitlines() if line.startswith(b'normstats_open_streams{method="Norm'))

    try:
        with grpc.insecure_channel(server.target) as channel:
            call = NormalizationServiceStub(channel).NormalizeStream(
                iter(sent.get, None), metadata=(("authorization", "Bearer gone"),)
            )
            time.sleep(3)
            assert open_streams().endswith(b" 1.0"), "its answers are on their way"
            file.write_text(admin)
            deadline = time.monotonic() + WITHIN_SECONDS
            while not open_streams().endswith(b" 0.0"):
                assert time.monotonic() < deadline, open_streams()
                time.sleep(0.1)
            sent.put(None)
            call.cancel()
    finally:
        server.stop()
