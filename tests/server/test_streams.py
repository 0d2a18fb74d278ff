"""UpdateRunningStatsStream, NormalizeStream, WatchRunningStats: the contract itself, without the client."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import contribution, create, described, moments_message, numbers, refused, stats, update

RNG = np.random.default_rng(3)
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def opened(producer: bytes) -> pb.UpdateRunningStatsStreamRequest:
    return pb.UpdateRunningStatsStreamRequest(open={"producer_id": producer})


def frame(name: str, sequence: int, x: np.ndarray) -> pb.UpdateRunningStatsStreamRequest:
    return pb.UpdateRunningStatsStreamRequest(update={"sequence": sequence, "contributions": [contribution(name, x)]})


class Frames:
    """Requests that are sent one by one, when the test says so."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()

    def send(self, *frames: Any) -> None:
        for one in frames:
            self._queue.put(one)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)


class TestUpdates:
    """Contributions in, cumulative acknowledgements out."""

    def test_acknowledgements_are_cumulative_and_durable(self, stub: NormalizationServiceStub, name: str) -> None:
        create(stub, name, specs.Standardize(3))
        x = RNG.normal(size=(500, 3))
        batches = [frame(name, i + 1, part) for i, part in enumerate(np.array_split(x, 50))]
        acks = list(stub.UpdateRunningStatsStream(iter([opened(secrets.token_bytes(16)), *batches]), timeout=30))
        sequences = [ack.acknowledged_sequence for ack in acks]
        assert sequences[0] == 0
        assert sequences[-1] == 50
        assert sequences == sorted(set(sequences)), "each acknowledgement says more than the one before"
        assert acks[-1].contributed[0].normalizer == name
        found = stats(stub, name)
        assert (numbers(found.count)[0], found.num_batches) == (500, 50)
        np.testing.assert_allclose(numbers(found.var), x.var(axis=0), rtol=1e-13)

    def test_a_sequence_that_was_skipped_is_not_acknowledged(self, stub: NormalizationServiceStub, name: str) -> None:
        """Whoever resumes would take it for durable, and never send it again."""
        create(stub, name, specs.Standardize(1))
        producer = secrets.token_bytes(16)
        for sequence in (1, 3):
            stub.UpdateRunningStats(update(name, np.ones((1, 1)), producer=producer, sequence=sequence))
        (ack,) = stub.UpdateRunningStatsStream(iter([opened(producer)]), timeout=30)
        assert ack.acknowledged_sequence == 1

    def test_another_stream_resumes_and_what_is_sent_again_is_not_counted(
        self, stub: NormalizationServiceStub, name: str
    ) -> None:
        create(stub, name, specs.Standardize(1))
        producer = secrets.token_bytes(16)
        first = [frame(name, i, np.full((1, 1), i)) for i in (1, 2, 3)]
        list(stub.UpdateRunningStatsStream(iter([opened(producer), *first]), timeout=30))
        second = [frame(name, i, np.full((1, 1), i)) for i in (2, 3, 4, 5)]
        acks = list(stub.UpdateRunningStatsStream(iter([opened(producer), *second]), timeout=30))
        assert acks[0].acknowledged_sequence == 3
        assert acks[-1].acknowledged_sequence == 5
        assert sum(ack.duplicate_count for ack in acks) == 2
        assert numbers(stats(stub, name).mean)[0] == 3

    def test_what_is_wrong_ends_the_stream_and_all_before_it_is_acknowledged(
        self, stub: NormalizationServiceStub, name: str
    ) -> None:
        create(stub, name, specs.Standardize(1))
        good = [frame(name, i, np.ones((1, 1))) for i in (1, 2, 3)]
        bad = frame(f"{name}/nobody", 4, np.ones((1, 1)))
        acks = []
        with pytest.raises(grpc.RpcError) as caught:
            acks.extend(stub.UpdateRunningStatsStream(iter([opened(secrets.token_bytes(16)), *good, bad]), timeout=30))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert numbers(stats(stub, name).count)[0] == 3

    @pytest.mark.parametrize(
        ("frames", "field"),
        [
            ([frame("a", 1, np.ones((1, 1)))], "frame"),
            ([opened(b"short")], "open.producer_id"),
            ([opened(bytes(16)), opened(bytes(16))], "frame"),
            ([opened(bytes(16)), pb.UpdateRunningStatsStreamRequest(update={"sequence": 0})], "update.sequence"),
        ],
        ids=["no opening frame", "a short producer", "two opening frames", "no sequence"],
    )
    def test_wrong_frames_are_refused(self, stub: NormalizationServiceStub, frames: list[Any], field: str) -> None:
        told = refused(lambda request, timeout: stub.UpdateRunningStatsStream(iter(request), timeout=timeout), frames)
        assert (told.code, told.field) == (INVALID, field)


class TestChunks:
    """One tensor in chunks of whole rows."""

    def send(self, stub: NormalizationServiceStub, opening: dict[str, Any], parts: list[np.ndarray]) -> np.ndarray:
        frames = [pb.NormalizeStreamRequest(open=opening)]
        frames += [pb.NormalizeStreamRequest(chunk={"input": described(p)}, data=p.tobytes()) for p in parts]
        replies = list(stub.NormalizeStream(iter(frames), timeout=30))
        shaped = [
            np.frombuffer(reply.data, np.float32).reshape(part.shape)
            for reply, part in zip(replies, parts, strict=True)
        ]
        return np.concatenate(shaped)

    def whole(self, stub: NormalizationServiceStub, x: np.ndarray, **fields: Any) -> np.ndarray:
        reply = stub.Normalize(pb.NormalizeRequest(input=described(x), data=x.tobytes(), **fields))
        return np.frombuffer(reply.data, np.float32).reshape(x.shape)

    def test_chunks_are_the_whole_to_the_bit(self, stub: NormalizationServiceStub, name: str) -> None:
        create(stub, name, specs.Standardize(4))
        x = RNG.normal(5, 3, (100, 4)).astype(np.float32)
        stub.UpdateRunningStats(update(name, x))
        y = self.send(stub, {"normalizer": name}, np.array_split(x, 7))
        np.testing.assert_array_equal(y, self.whole(stub, x, normalizer=name))

    def test_statistics_that_span_rows_come_with_the_opening_frame(self, stub: NormalizationServiceStub) -> None:
        x = RNG.normal(5, 3, (60, 4)).astype(np.float32)
        spec = spec_wire.to_proto(specs.BatchNorm(4))
        y = self.send(stub, {"spec": spec, "mode": pb.MODE_BATCH, "moments": moments_message(x)}, np.array_split(x, 5))
        np.testing.assert_allclose(y, self.whole(stub, x, spec=spec, mode=pb.MODE_BATCH), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("opening", "field"),
        [
            ({"spec": spec_wire.to_proto(specs.BatchNorm(4)), "mode": pb.MODE_BATCH}, "open.moments"),
            (
                {"spec": spec_wire.to_proto(specs.LayerNorm(4)), "moments": moments_message(np.ones((2, 4)))},
                "open.moments",
            ),
            ({"spec": spec_wire.to_proto(specs.LpNorm(axis=0))}, "open.spec"),
            ({"spec": spec_wire.to_proto(specs.MeanVarianceNorm())}, "open.spec"),
            ({}, "open.target"),
        ],
        ids=["no moments", "moments in vain", "a norm over rows", "a mean over rows", "no target"],
    )
    def test_wrong_openings_are_refused(
        self, stub: NormalizationServiceStub, opening: dict[str, Any], field: str
    ) -> None:
        frames = [pb.NormalizeStreamRequest(open=opening)]
        told = refused(lambda request, timeout: stub.NormalizeStream(iter(request), timeout=timeout), frames)
        assert (told.code, told.field) == (INVALID, field), told

    def test_rows_of_another_shape_are_refused(self, stub: NormalizationServiceStub) -> None:
        spec = spec_wire.to_proto(specs.LpNorm())
        with pytest.raises(grpc.RpcError) as caught:
            self.send(stub, {"spec": spec}, [np.ones((2, 4), np.float32), np.ones((2, 5), np.float32)])
        assert caught.value.code() is INVALID

    def test_a_peer_may_wait_for_each_answer(self, stub: NormalizationServiceStub) -> None:
        sent: queue.Queue[pb.NormalizeStreamRequest | None] = queue.Queue()
        sent.put(pb.NormalizeStreamRequest(open={"spec": spec_wire.to_proto(specs.LpNorm())}))
        replies = stub.NormalizeStream(iter(sent.get, None), timeout=30)
        for rows in (1, 4000, 2):
            part = np.full((rows, 4), 3, np.float32)
            sent.put(pb.NormalizeStreamRequest(chunk={"input": described(part)}, data=part.tobytes()))
            assert next(replies).data == np.full((rows, 4), 0.5, np.float32).tobytes()
        sent.put(None)
        assert list(replies) == []

    def test_what_came_before_a_wrong_chunk_is_answered(self, stub: NormalizationServiceStub) -> None:
        parts = [np.full((rows, 4), 3, np.float32) for rows in (5000, 1, 300, 1, 1, 1, 7)]
        frames = [pb.NormalizeStreamRequest(open={"spec": spec_wire.to_proto(specs.LpNorm())})]
        frames += [pb.NormalizeStreamRequest(chunk={"input": described(p)}, data=p.tobytes()) for p in parts]
        frames.append(pb.NormalizeStreamRequest(chunk={"input": described(parts[0])}, data=b"too few"))
        replies = stub.NormalizeStream(iter(frames), timeout=30)
        assert [len(next(replies).data) // 16 for _ in parts] == [len(part) for part in parts]
        with pytest.raises(grpc.RpcError) as caught:
            next(replies)
        assert caught.value.code() is INVALID

    def test_a_peer_that_hangs_up_leaves_nothing_behind(self, stub: NormalizationServiceStub) -> None:
        part = np.ones((50_000, 4), np.float32)
        for _ in range(5):
            frames = [pb.NormalizeStreamRequest(open={"spec": spec_wire.to_proto(specs.LpNorm())})]
            frames += [pb.NormalizeStreamRequest(chunk={"input": described(part)}, data=part.tobytes())] * 20
            replies = stub.NormalizeStream(iter(frames), timeout=30)
            next(replies)
            replies.cancel()
        assert len(self.send(stub, {"spec": spec_wire.to_proto(specs.LpNorm())}, [part])) == 50_000


class TestWatch:
    """Statistics now, and whenever they change."""

    def test_it_begins_with_what_is_there_and_goes_on_with_what_comes(
        self, stub: NormalizationServiceStub, name: str
    ) -> None:
        create(stub, name, specs.Standardize(1))
        watching = stub.WatchRunningStats(pb.WatchRunningStatsRequest(normalizer=name), timeout=30)
        assert next(watching).stats.version == 1
        for value in (1, 3):
            stub.UpdateRunningStats(update(name, np.full((1, 1), value)))
            assert next(watching).stats == without_state(stats(stub, name))
        watching.cancel()

    def test_a_slow_reader_misses_versions_never_the_newest(self, stub: NormalizationServiceStub, name: str) -> None:
        create(stub, name, specs.Standardize(1))
        watching = stub.WatchRunningStats(pb.WatchRunningStatsRequest(normalizer=name), timeout=30)
        next(watching)
        for _ in range(200):
            stub.UpdateRunningStats(update(name, np.ones((1, 1))))
        versions = []
        while not versions or versions[-1] < 201:
            versions.append(next(watching).stats.version)
        assert versions == sorted(set(versions))
        watching.cancel()

    def test_it_ends_when_the_normalizer_is_deleted(self, stub: NormalizationServiceStub, name: str) -> None:
        create(stub, name, specs.Standardize(1))
        watching = stub.WatchRunningStats(pb.WatchRunningStatsRequest(normalizer=name), timeout=30)
        next(watching)
        threading.Timer(0.1, stub.DeleteNormalizer, [pb.DeleteNormalizerRequest(name=name)]).start()
        with pytest.raises(grpc.RpcError) as caught:
            next(watching)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def without_state(message: Any) -> Any:
    message.ClearField("state")
    return message
