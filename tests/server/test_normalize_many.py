"""NormalizeMany, as plain protobuf sees it: each tensor is answered as Normalize would answer it."""

from __future__ import annotations

import secrets

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, status_pb2

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import described

RNG = np.random.default_rng(3)
LAYER = spec_wire.to_proto(specs.LayerNorm(4))


def request(x: np.ndarray, **fields: object) -> pb.NormalizeRequest:
    return pb.NormalizeRequest(**{"spec": LAYER, "input": described(x), "data": x.tobytes()} | fields)


def test_each_is_answered_as_by_itself_and_in_order(stub: NormalizationServiceStub) -> None:
    arrays = [RNG.normal(size=(count, 4)).astype(dtype) for count in (1, 3, 2) for dtype in (np.float32, np.float64)]
    requests = [request(x) for x in arrays]
    requests.append(request(arrays[0], spec=spec_wire.to_proto(specs.BatchNorm(4))))
    reply = stub.NormalizeMany(pb.NormalizeManyRequest(requests=requests))
    assert [one.response for one in reply.results] == [stub.Normalize(one) for one in requests]


def test_what_is_wrong_with_one_is_its_own_status(stub: NormalizationServiceStub) -> None:
    good, x = request(np.ones((2, 4), np.float32)), np.ones((2, 3), np.float32)
    wrong = [
        request(x),
        request(x, data=b"123"),
        request(x, spec=None, normalizer="nobody"),
        request(x, mode=pb.MODE_TRAIN),
        pb.NormalizeRequest(),
    ]
    reply = stub.NormalizeMany(pb.NormalizeManyRequest(requests=[good, *wrong, good]))
    kinds = [one.WhichOneof("result") for one in reply.results]
    assert kinds == ["response", *["status"] * len(wrong), "response"]
    for one, result in zip(wrong, reply.results[1:-1], strict=True):
        with pytest.raises(grpc.RpcError) as alone:
            stub.Normalize(one)
        metadata = dict(alone.value.trailing_metadata())
        assert result.status == metadata["grpc-status-details-bin"]
    codes = [code_pb2.Code.Name(status_pb2.Status.FromString(one.status).code) for one in reply.results[1:-1]]
    assert codes == ["INVALID_ARGUMENT", "INVALID_ARGUMENT", "NOT_FOUND", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]


def test_a_retry_of_those_that_train_counts_them_once(stub: NormalizationServiceStub, name: str) -> None:
    stub.CreateNormalizer(pb.CreateNormalizerRequest(name=name, spec=spec_wire.to_proto(specs.BatchNorm(4))))
    producer, x = secrets.token_bytes(16), RNG.normal(size=(5, 4)).astype(np.float32)
    train = {"spec": None, "normalizer": name, "mode": pb.MODE_TRAIN, "producer_id": producer}
    many = pb.NormalizeManyRequest(requests=[request(x, **train, sequence=sequence) for sequence in (1, 2, 3)])
    first, again = stub.NormalizeMany(many), stub.NormalizeMany(many)
    assert [one.response.duplicate for one in first.results] == [False] * 3
    assert [one.response.duplicate for one in again.results] == [True] * 3
    assert [one.response.data for one in first.results] == [one.response.data for one in again.results]
    stats = stub.GetRunningStats(pb.GetRunningStatsRequest(normalizer=name)).stats
    assert (stats.num_batches, np.frombuffer(stats.count)[0]) == (3, 15)


def test_too_many_are_refused(stub: NormalizationServiceStub) -> None:
    one = request(np.ones((1, 4), np.float32))
    assert len(stub.NormalizeMany(pb.NormalizeManyRequest(requests=[one] * 256)).results) == 256
    assert not stub.NormalizeMany(pb.NormalizeManyRequest()).results
    with pytest.raises(grpc.RpcError, match="requests has 257 items; expected at most 256"):
        stub.NormalizeMany(pb.NormalizeManyRequest(requests=[one] * 257))


class TestStream:
    """The same, again and again on one call."""

    @staticmethod
    def message(number: int, *requests: pb.NormalizeRequest) -> pb.NormalizeManyStreamRequest:
        return pb.NormalizeManyStreamRequest(requests=requests, id=number)

    def test_each_message_is_answered_under_its_number(self, stub: NormalizationServiceStub) -> None:
        arrays = [RNG.normal(size=(count, 4)).astype(np.float32) for count in (1, 2, 3)]
        wrong = request(np.ones((2, 3), np.float32))
        messages = [self.message(7, *map(request, arrays)), self.message(2**62, wrong), self.message(0)]
        answers = {reply.id: list(reply.results) for reply in stub.NormalizeManyStream(iter(messages))}
        assert set(answers) == {7, 2**62, 0}
        assert [one.response for one in answers[7]] == [stub.Normalize(request(x)) for x in arrays]
        assert [one.WhichOneof("result") for one in answers[2**62]] == ["status"]
        assert answers[0] == []

    def test_what_takes_long_holds_up_no_other(self, stub: NormalizationServiceStub) -> None:
        quick = request(np.ones((1, 4), np.float32))
        for _ in range(5):
            stub.Normalize(quick)  # known to be brief
        ghosts = spec_wire.to_proto(specs.BatchNorm(4, virtual_batch_size=2))
        slow = request(RNG.normal(size=(2000, 4)), spec=ghosts)  # a thousand passes
        messages = [self.message(1, slow), self.message(2, quick), self.message(3, quick)]
        assert [reply.id for reply in stub.NormalizeManyStream(iter(messages))] == [2, 3, 1]

    def test_train_and_places_are_left_to_nobody_else(self, stub: NormalizationServiceStub, name: str) -> None:
        stub.CreateNormalizer(pb.CreateNormalizerRequest(name=name, spec=spec_wire.to_proto(specs.BatchNorm(4))))
        x = RNG.normal(size=(5, 4)).astype(np.float32)
        train = {"spec": None, "normalizer": name, "mode": pb.MODE_TRAIN, "producer_id": secrets.token_bytes(16)}
        messages = [self.message(number, request(x, **train, sequence=1)) for number in (1, 2)]
        replies = sorted(stub.NormalizeManyStream(iter(messages)), key=lambda reply: reply.id)
        assert sorted(reply.results[0].response.duplicate for reply in replies) == [False, True]
        assert len({reply.results[0].response.data for reply in replies}) == 1

    def test_too_many_end_the_stream(self, stub: NormalizationServiceStub) -> None:
        one = request(np.ones((1, 4), np.float32))
        with pytest.raises(grpc.RpcError, match="requests has 257 items"):
            list(stub.NormalizeManyStream(iter([self.message(1, *[one] * 257)])))
