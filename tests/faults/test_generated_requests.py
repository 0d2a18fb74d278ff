"""Requests that nobody meant, of every RPC: answered, or refused as wrong, and nothing else comes of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import create, update
from tests.faults import generated, valid
from tests.faults.conftest import Promise
from tests.faults.generated import Words
from tests.faults.sizes import sized
from tests.server_process import ServerProcess

SERVICES = (pb.DESCRIPTOR.services_by_name["NormalizationService"], health_pb2.DESCRIPTOR.services_by_name["Health"])
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
GUARDED = "guarded/by-nobody-but-us"
# Those may be given the guarded normalizer's name; all others might do it some harm.
READS = ("Get", "List", "Watch", "Compare")
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
# A member waits for the others of its group as long as it may.
WAITS, WAITED = {"SynchronizeStats": 0.25}, grpc.StatusCode.DEADLINE_EXCEEDED
# The harm done to the normalizers that may come to it is mended so often. How many requests there are to be.
MENDED_EVERY, FULL = 20, 10_000
PRODUCER, ROOMS = bytes(range(16)), (valid.OPEN, valid.STREAMED)
CODES = {code.value[0]: code for code in grpc.StatusCode}


class Offered(NamedTuple):
    """What is sent to a method, as bytes: one request, or the frames of a stream."""

    path: str
    frames: list[bytes]


class Answer(NamedTuple):
    """What was replied, and how it ended."""

    replies: list[bytes]
    code: grpc.StatusCode = grpc.StatusCode.OK
    sentence: str = ""


class Server:
    """A server with normalizers in it, one of them guarded, and a region that is lent to us."""

    def __init__(self, process: ServerProcess, channel: grpc.Channel) -> None:
        self.process = process
        self._channel = channel
        self._stub = NormalizationServiceStub(channel)
        self._asked: SimpleQueue[Message | None] = SimpleQueue()
        self._asked.put(pb.ShareMemoryRequest(allocate_bytes=1 << 16))
        self._lent = self._stub.ShareMemory(iter(self._asked.get, None))
        self.region: bytes = next(self._lent).region
        create(self._stub, GUARDED, specs.Standardize(3))
        self._stub.UpdateRunningStats(update(GUARDED, valid.X, producer=PRODUCER))
        self._stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer=GUARDED, tag=valid.TAG))

    def end(self) -> None:
        """Give the region back."""
        self._asked.put(None)

    def mend(self) -> None:
        """Have all normalizers as they are asked for: there, with statistics, not frozen."""
        for name, spec in ((f"{room}/{name}", spec) for room in ROOMS for name, spec in valid.SPECS.items()):
            wanted = pb.CreateNormalizerRequest(name=name, spec=spec_wire.to_proto(spec), exist_ok=True)
            try:
                self._stub.CreateNormalizer(wanted)
            except grpc.RpcError:  # it is of another spec
                self._stub.DeleteNormalizer(pb.DeleteNormalizerRequest(name=name))
                self._stub.CreateNormalizer(wanted)
            if isinstance(spec, specs.RunningSpec):
                self._stub.UpdateNormalizer(pb.UpdateNormalizerRequest(name=name, frozen=False, reset=True))
                self._stub.UpdateRunningStats(update(name, valid.X))
                if not any(one.tag == valid.TAG for one in self._snapshots(name)):
                    self._stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer=name, tag=valid.TAG))

    def guarded(self) -> list[Message]:
        """All that there is of the guarded normalizer."""
        asked = [
            pb.GetRunningStatsRequest(normalizer=GUARDED, include_state=True, snapshot=tag) for tag in ("", valid.TAG)
        ]
        one = self._stub.GetNormalizer(pb.GetNormalizerRequest(name=GUARDED))
        return [one, *map(self._stub.GetRunningStats, asked), *self._snapshots(GUARDED)]

    def open(self) -> Message:
        """The others, with their versions: those that streams are not told of."""
        return self._stub.ListNormalizers(pb.ListNormalizersRequest(prefix=f"{valid.OPEN}/"))

    def answer(self, offered: Offered) -> Answer:
        """What becomes of a call. Who watches leaves after the first reply."""
        name, replies = METHODS[offered.path].name, []
        call = self._channel.stream_stream(offered.path)(iter(offered.frames), timeout=WAITS.get(name, 30))
        try:
            for reply in call:
                replies.append(reply)
                if name.startswith("Watch"):
                    call.cancel()
                    break
        except grpc.RpcError as error:
            return Answer(replies, error.code(), error.details())
        return Answer(replies)

    def _snapshots(self, name: str) -> Sequence[Message]:
        return self._stub.ListSnapshots(pb.ListSnapshotsRequest(normalizer=name)).snapshots


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with ExitStack() as stack:
        flags = ("--shared-memory", "--shared-memory-bytes", str(1 << 24))
        process = ServerProcess(tmp_path, *flags, by_socket=True).start()
        stack.callback(process.stop)
        found = Server(process, stack.enter_context(grpc.insecure_channel(process.target)))
        stack.callback(found.end)
        yield found


@st.composite
def offers(draw: st.DrawFn, region: bytes) -> Offered:
    """Half of them right but for a few fields; the others made of anything, or no messages at all."""
    path, method = draw(st.sampled_from(sorted(METHODS.items(), key=lambda item: item[0])))
    words = known(method, region)
    made = generated.messages(method.input_type, words)
    examples = valid.requests(draw(st.binary(min_size=16, max_size=16)), region).get(method.name, ())
    kind = draw(st.sampled_from(("changed", "changed", "made", "damaged") if examples else ("made", "damaged")))
    if kind == "made" or not examples:
        frames = draw(st.lists(made, min_size=1, max_size=4 if method.client_streaming else 1))
    else:
        frames = list(draw(st.sampled_from(examples)))
    index = draw(st.integers(0, len(frames) - 1))
    if kind == "changed":
        frames[index] = draw(generated.changed(frames[index], words))
    sent = [frame.SerializeToString() for frame in frames]
    if kind == "damaged":
        sent[index] = draw(generated.damaged(sent[index]))
    return Offered(path, sent)


def known(method: MethodDescriptor, region: bytes) -> Words:
    """What the callers of a method are told of."""
    room = valid.STREAMED if method.client_streaming else valid.OPEN
    names = [f"{room}/{name}" for name in valid.SPECS] + ([GUARDED] if method.name.startswith(READS) else [])
    return Words((*names, f"{room}/new", "nobody/has/it", valid.TAG, "b3Blbi9iYXRjaA=="), (PRODUCER, bytes(16), region))


def codes_within(method: MethodDescriptor, replies: Sequence[bytes]) -> Iterator[grpc.StatusCode]:
    """The codes that single tensors of several were answered with."""
    if "results" in method.output_type.fields_by_name:
        for reply in replies:
            for result in GetMessageClass(method.output_type).FromString(reply).results:
                yield CODES[status_pb2.Status.FromString(result.status).code]


@sized("requests", 500, FULL)
@pytest.mark.timeout(1800)
def test_what_nobody_meant_is_answered_or_refused(server: Server, promise: Promise, requests: int) -> None:
    before, seen, process = server.guarded(), Counter[grpc.StatusCode](), server.process.process

    @settings(
        max_examples=requests,
        deadline=None,
        database=None,
        derandomize=requests < FULL,
        suppress_health_check=list(HealthCheck),
    )
    @given(offers(server.region))
    def offer(offered: Offered) -> None:
        if not seen.total() % MENDED_EVERY:
            server.mend()
        method, held = METHODS[offered.path], server.open()
        answer = server.answer(offered)
        seen[answer.code] += 1
        assert answer.code in ALLOWED or (method.name in WAITS and answer.code is WAITED), answer
        assert ALLOWED.issuperset(codes_within(method, answer.replies))
        if answer.code is not grpc.StatusCode.OK and not method.client_streaming:
            assert server.open() == held

    offer()
    assert server.guarded() == before
    assert process is not None
    assert process.poll() is None
    assert '"bug"' not in server.process.log()
    held = server.open()
    server.process.kill()
    server.process.start()
    assert (server.guarded(), server.open()) == (before, held)
    told = ", ".join(f"{count} {code.name}" for code, count in seen.most_common())
    promise(f"{requests} requests that nobody meant, of {len(METHODS)} RPCs", "answered or refused as wrong", told)
