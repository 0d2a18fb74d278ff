"""Bombs: whatever is thrown at it, the same process goes on, health answers all the while, and a proper call after."""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from normserver.process import take_descriptors
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import tensor_pb2
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import create, refused, told_by
from tests.faults import health, heavy
from tests.faults.conftest import Promise
from tests.faults.health import watched
from tests.faults.http2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    PREFACE,
    RST_STREAM,
    Connection,
    Frame,
    cancelling,
    frame,
    opening,
)
from tests.faults.load import wait_until
from tests.faults.procfs import Process
from tests.faults.sizes import sized
from tests.server_process import ServerProcess

MIB = 1 << 20
GROWTH = 128  # MiB
# 4,096 streams are let in, and take 27 KiB each; as many more may wait to be refused.
OPEN_GROWTH = 256
LIMIT, STREAMS, CONNECTIONS = MIB, 60, 30
NORMALIZE, SESSION = (f"/normstats.v1.NormalizationService/{name}" for name in ("Normalize", "NormalizeManyStream"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One for all bombs, which it has to survive one after another."""
    process = ServerProcess(tmp_path_factory.mktemp("server"), "--health", "127.0.0.1:0").start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One that takes little."""
    limits = {"message-bytes": LIMIT, "streams": STREAMS, "connections": CONNECTIONS}
    flags = [word for name, limit in limits.items() for word in (f"--max-{name}", str(limit))]
    process = ServerProcess(tmp_path_factory.mktemp("small"), "--health", "127.0.0.1:0", *flags).start()
    yield process
    process.stop()


class Held:
    """What `standing` saw: a phrase for the table."""

    seen = ""


@contextmanager
def standing(server: ServerProcess, *, main_seconds: float = 1.0, growth: int = GROWTH) -> Iterator[Held]:
    """While it lasts health answers and memory grows by no more than so many MiB; after it the same process answers a
    proper call.
    """
    process, held = Process(server), Held()
    proper(server)
    before = process.memory_bytes
    process.forget_peak()
    with watched(server) as answers:
        yield held
        time.sleep(0.2)
    grown = (process.peak_bytes - before) / MIB
    assert server.process is not None
    assert server.process.poll() is None
    assert grown < growth, f"RSS + {grown:.0f} MiB"
    proper(server)
    held.seen = f"RSS + {grown:.0f} MiB, {health.check(answers, main_seconds=main_seconds)}"


def proper(server: ServerProcess) -> None:
    """A call as it should be, by a connection of its own."""
    with grpc.insecure_channel(server.target, [("normstats.test", secrets.token_hex())]) as channel:
        reply = NormalizationServiceStub(channel).Normalize(heavy.REQUEST, timeout=10)
    assert reply.output.shape == heavy.REQUEST.input.shape


DEMANDED = f"RSS + {GROWTH} MiB at most, health < 100 ms, on the main port < 1 s, a proper call after"


@sized("inflated", 256 * MIB, 1024 * MIB)
def test_a_gzip_bomb(server: ServerProcess, promise: Promise, inflated: int) -> None:
    explode(server, promise, inflated)


def test_a_gzip_bomb_of_a_byte_too_many(small_server: ServerProcess, promise: Promise) -> None:
    explode(small_server, promise, LIMIT + 1)


def explode(server: ServerProcess, promise: Promise, size: int) -> None:
    """Send a request that would be answered if it were smaller: so many zeros, compressed."""
    bomb = gzipped(size)
    with standing(server) as held, Connection(server.target) as connection:
        told = connection.call(NORMALIZE, bomb, compressed=True, timeout=30)
    assert is_refusal(told), told
    promise(f"Bombs: {size} bytes in {len(bomb)} of gzip", f"refused; {DEMANDED}", held.seen)


def gzipped(size: int) -> bytes:
    """The request, as its message travels."""
    spec = spec_wire.to_proto(specs.LayerNorm(size))
    tensor = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_UINT8, shape=[size])
    whole = pb.NormalizeRequest(spec=spec, input=tensor).SerializeToString() + b"\x7a" + _varint(size)  # data, field 15
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(MIB)
    pieces = [packer.compress(whole)]
    pieces += [packer.compress(zeros[: min(MIB, size - at)]) for at in range(0, size, MIB)]
    return b"".join((*pieces, packer.flush()))


def _varint(number: int) -> bytes:
    digits = [number >> shift & 0x7F | 0x80 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes((*digits[:-1], digits[-1] & 0x7F))


def is_refusal(told: Frame | None) -> bool:
    """Whether a call ended, and not well."""
    return told is not None and (told.kind == RST_STREAM or told.grpc_status != 0)


@sized("times", 2, 20)
def test_large_metadata(server: ServerProcess, promise: Promise, times: int) -> None:
    told = []
    with standing(server) as held, grpc.insecure_channel(server.target) as channel:
        stub = NormalizationServiceStub(channel)
        for _ in range(times):
            stub.Normalize(heavy.REQUEST, metadata=[("x-proper", "y" * 15 * 1024)])
            for size in (17 * 1024, 64 * 1024, MIB):
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Normalize(heavy.REQUEST, metadata=[("x-bomb", "y" * size)], timeout=10)
                told.append(caught.value.code())
    assert set(told) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    promise("Bombs: metadata of 17 KiB, 64 KiB and 1 MiB", f"15 KiB taken, those refused; {DEMANDED}", held.seen)


@sized("streams", 1_000, 10_000)
@pytest.mark.timeout(120)
def test_idle_streams(server: ServerProcess, promise: Promise, streams: int) -> None:
    with standing(server, growth=OPEN_GROWTH) as held, ExitStack() as stack:
        connections = [stack.enter_context(Connection(server.target)).greet() for _ in range(10)]
        for number in range(streams // len(connections)):
            for connection in connections:
                connection.send(opening(2 * number + 1, SESSION))
        for _ in range(10):
            proper(server)
        came = [one for connection in connections for one in connection.frames(0.1)]
    ended = sum(one.kind in (RST_STREAM, GOAWAY) or one.grpc_status is not None for one in came)
    promise(
        f"Bombs: {streams} idle streams",
        DEMANDED.replace(str(GROWTH), str(OPEN_GROWTH)),
        f"{ended} ended by the server; {held.seen}",
    )


def test_streams_beyond_the_limit_are_refused(small_server: ServerProcess, promise: Promise, name: str) -> None:
    with standing(small_server) as held, ExitStack() as stack:
        options = [[("normstats.test", index)] for index in range(4)]
        channels = [stack.enter_context(grpc.insecure_channel(small_server.target, one)) for one in options]
        stubs = [NormalizationServiceStub(channel) for channel in channels]
        create(stubs[0], name, specs.Standardize(4))
        request = pb.WatchRunningStatsRequest(normalizer=name)
        opened = [stubs[index % len(stubs)].WatchRunningStats(request) for index in range(STREAMS)]
        assert all(next(one).stats.normalizer == name for one in opened)
        told = [refused(stub.WatchRunningStats, request) for stub in stubs]
        opened[0].cancel()
        wait_until(lambda: is_watched(stubs[0], request), 5.0)
    assert {(one.code, one.reason) for one in told} == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAM_LIMIT")}
    promise(f"Bombs: --max-streams {STREAMS}", f"the next is told STREAM_LIMIT; {DEMANDED}", held.seen)


def is_watched(stub: NormalizationServiceStub, request: pb.WatchRunningStatsRequest) -> bool:
    """Whether one more stream is taken."""
    call = stub.WatchRunningStats(request)
    try:
        return bool(next(call).stats.normalizer)
    except grpc.RpcError:
        return False
    finally:
        call.cancel()


@sized("streams", 2_000, 20_000)
@pytest.mark.parametrize("after", ["its headers", "the whole call"])
@pytest.mark.timeout(300)
def test_a_reset_flood(server: ServerProcess, promise: Promise, after: str, streams: int) -> None:
    """Calls that are taken back as soon as they are made; a connection that the server ends is made again."""
    call = b"" if after == "its headers" else frame(DATA, END_STREAM, 0, bytes(5))
    ended = 0
    with standing(server) as held, ExitStack() as stack:
        left, connection, stream = streams, None, 1
        while left:
            if connection is None or not connection.is_open:
                ended += connection is not None
                connection, stream = stack.enter_context(Connection(server.target)).greet(), 1
            taken = range(stream, stream + 2 * min(50, left), 2)
            connection.send(b"".join(opening(one, NORMALIZE) + of_stream(call, one) + cancelling(one) for one in taken))
            list(connection.frames())
            stream, left = taken.stop, left - len(taken)
    promise(f"Bombs: {streams} calls reset after {after}", DEMANDED, f"{ended} connections ended; {held.seen}")


def of_stream(sent: bytes, stream: int) -> bytes:
    """A frame, of this stream."""
    return sent and sent[:5] + stream.to_bytes(4, "big") + sent[9:]


@sized("connections", 200, 1_000)
@pytest.mark.parametrize("sent", [b"", PREFACE[:12], secrets.token_bytes(64)], ids=["nothing", "half", "garbage"])
@pytest.mark.timeout(120)
def test_connections_that_say_nothing_of_use(
    server: ServerProcess, promise: Promise, sent: bytes, connections: int
) -> None:
    take_descriptors()
    process = Process(server)
    proper(server)
    descriptors = process.descriptors
    with standing(server) as held:
        with ExitStack() as stack:
            for _ in range(connections):
                stack.enter_context(Connection(server.target)).send(sent)
            proper(server)
            time.sleep(1.0)
        took = wait_until(lambda: process.descriptors <= descriptors + 4, 10.0)
    what = {b"": "nothing", PREFACE[:12]: "half a preface"}.get(sent, "garbage")
    promise(
        f"Bombs: {connections} connections that send {what}",
        f"a proper call beside them; {DEMANDED}",
        f"gone after {took:.1f} s; {held.seen}",
    )


def test_connections_beyond_the_limit_are_refused(small_server: ServerProcess, promise: Promise) -> None:
    with standing(small_server) as held:
        with ExitStack() as stack:
            for number in range(CONNECTIONS):
                channel = stack.enter_context(grpc.insecure_channel(small_server.target, [("normstats.test", number)]))
                NormalizationServiceStub(channel).Normalize(heavy.REQUEST, timeout=10)
            with pytest.raises(grpc.RpcError) as caught:
                proper(small_server)
        wait_until(lambda: is_answered(small_server), 10.0)
    told = told_by(caught.value)
    assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "CONNECTION_LIMIT")
    promise(f"Bombs: --max-connections {CONNECTIONS}", f"the next is told CONNECTION_LIMIT; {DEMANDED}", held.seen)


def is_answered(server: ServerProcess) -> bool:
    """Whether a new connection is taken."""
    try:
        proper(server)
    except grpc.RpcError:
        return False
    return True
