"""UpdateRunningStats: merged exactly, counted once, all or nothing."""

from __future__ import annotations

import secrets

import grpc
import numpy as np
import pytest

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import contribution, create, described, f64, numbers, refused, stats, update

RNG = np.random.default_rng(1)


def test_the_merge_of_many_is_the_whole(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(5))
    x = RNG.normal(1e6, 1, (1000, 5)).astype(np.float32)
    for part in np.array_split(x, 37):
        stub.UpdateRunningStats(update(name, part))
    found, rows = stats(stub, name), x.astype(np.float64)
    assert numbers(found.count).tolist() == [1000.0]
    assert (found.num_batches, found.version) == (37, 38)
    np.testing.assert_allclose(numbers(found.mean), rows.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(numbers(found.var), rows.var(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(numbers(found.min), rows.min(axis=0))
    np.testing.assert_array_equal(numbers(found.max), rows.max(axis=0))


def test_the_same_sequence_again_is_a_duplicate_and_changes_nothing(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(2))
    request = update(name, RNG.normal(size=(3, 2)))
    first = stub.UpdateRunningStats(request)
    before = stats(stub, name)
    again = stub.UpdateRunningStats(request)
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.contributed == first.contributed
    assert stats(stub, name) == before


def test_sequences_may_arrive_out_of_order_within_the_window(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(1))
    producer, x = secrets.token_bytes(16), np.ones((1, 1))
    outcomes = [
        stub.UpdateRunningStats(update(name, x, producer=producer, sequence=sequence)).duplicate
        for sequence in (5, 3, 5, 1024, 1, 3, 1028, 1028)
    ]
    assert outcomes == [False, False, True, False, False, True, False, True]
    too_old = refused(stub.UpdateRunningStats, update(name, x, producer=producer, sequence=2))
    assert (too_old.code, too_old.reason) == (grpc.StatusCode.OUT_OF_RANGE, "SEQUENCE_TOO_OLD")
    assert stats(stub, name).num_batches == 5


def test_several_normalizers_take_one_contribution_each_or_none(stub: NormalizationServiceStub, name: str) -> None:
    names = [f"{name}/{layer}" for layer in "abc"]
    for layer in names:
        create(stub, layer, specs.Standardize(2))
    x = RNG.normal(size=(4, 2))
    request = update(name, x)
    del request.contributions[:]
    request.contributions.extend(contribution(layer, x) for layer in names)
    reply = stub.UpdateRunningStats(request)
    assert [(item.normalizer, item.version) for item in reply.contributed] == [(layer, 2) for layer in names]
    request.sequence = 2
    request.contributions.append(contribution(f"{name}/nobody", x))
    assert refused(stub.UpdateRunningStats, request).reason == "NORMALIZER_NOT_FOUND"
    assert [stats(stub, layer).num_batches for layer in names] == [1, 1, 1]
    del request.contributions[-1]
    assert not stub.UpdateRunningStats(request).duplicate, "what was refused has not used up its sequence"


def test_a_frozen_normalizer_refuses_and_stays(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(1))
    stub.UpdateRunningStats(update(name, np.ones((2, 1))))
    stub.UpdateNormalizer(pb.UpdateNormalizerRequest(name=name, frozen=True))
    before = stats(stub, name)
    assert before.frozen
    told = refused(stub.UpdateRunningStats, update(name, np.ones((2, 1))))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NORMALIZER_FROZEN")
    assert stats(stub, name) == before
    stub.UpdateNormalizer(pb.UpdateNormalizerRequest(name=name, frozen=False))
    assert not stub.UpdateRunningStats(update(name, np.ones((2, 1)))).duplicate
    assert numbers(stats(stub, name).count).tolist() == [4.0]


def test_it_stops_by_itself_and_says_so(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(1, freeze_after=5))
    told = [stub.UpdateRunningStats(update(name, np.full((3, 1), i))).contributed[0].frozen for i in range(4)]
    assert told == [False, False, True, True]
    found = stats(stub, name)
    assert (numbers(found.count).tolist(), found.frozen) == ([6.0], True)


def test_raw_batches_of_several_normalizers_share_the_bytes(stub: NormalizationServiceStub, name: str) -> None:
    a, b = f"{name}/a", f"{name}/b"
    create(stub, a, specs.Standardize(3))
    create(stub, b, specs.Standardize(2, channel_axis=1))
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    y = RNG.integers(0, 255, (2, 2, 4, 5), dtype=np.uint8)
    raws = [pb.Contribution.RawBatch(input=described(batch)) for batch in (x, y)]
    raws[0].sample_weights = f64(1, 2, 0, 1, 1, 3)
    request = update(a, x)
    del request.contributions[:]
    request.contributions.extend(pb.Contribution(normalizer=n, raw=r) for n, r in zip((a, b), raws, strict=True))
    request.data = x.tobytes() + y.tobytes()
    stub.UpdateRunningStats(request)
    weights = np.array([1, 2, 0, 1, 1, 3.0])
    np.testing.assert_allclose(
        numbers(stats(stub, a).mean), np.average(x.astype(np.float64), axis=0, weights=weights), rtol=1e-15
    )
    pixels = np.moveaxis(y, 1, -1).reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(numbers(stats(stub, b).mean), pixels.mean(axis=0), rtol=1e-15)
    np.testing.assert_allclose(numbers(stats(stub, b).var), pixels.var(axis=0), rtol=1e-14)


def test_values_that_are_not_numbers_are_left_out_where_the_spec_says_so(
    stub: NormalizationServiceStub, name: str
) -> None:
    create(stub, name, specs.Standardize(2, nan_policy="omit"))
    x = np.array([[1.0, np.nan], [2.0, 5.0], [np.inf, 7.0]])
    request = update(name, np.ones((1, 2)))
    request.contributions[0].raw.input.CopyFrom(described(x))
    request.data = x.tobytes()
    stub.UpdateRunningStats(request)
    found = stats(stub, name)
    assert numbers(found.count).tolist() == [2.0]
    assert numbers(found.mean).tolist() == [1.5, 6.0]


def test_train_normalizes_by_the_batch_and_contributes_it_once(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.BatchNorm(3))
    x = RNG.normal(3, 2, (8, 3, 5)).astype(np.float32)
    request = pb.NormalizeRequest(
        normalizer=name,
        mode=pb.MODE_TRAIN,
        producer_id=secrets.token_bytes(16),
        sequence=1,
        input=described(x),
        data=x.tobytes(),
    )
    replies = [stub.Normalize(request) for _ in range(2)]
    assert [(reply.duplicate, reply.version, reply.mode) for reply in replies] == [
        (False, 2, pb.MODE_TRAIN),
        (True, 2, pb.MODE_TRAIN),
    ]
    assert replies[0].data == replies[1].data
    y = np.frombuffer(replies[0].data, np.float32).reshape(x.shape)
    np.testing.assert_allclose(y.mean(axis=(0, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(y.std(axis=(0, 2)), 1, atol=1e-4)
    assert stats(stub, name).num_batches == 1


@pytest.mark.parametrize("mode", [pb.MODE_UNSPECIFIED, pb.MODE_EVAL])
def test_eval_of_nothing_seen_is_a_precondition_and_says_the_remedy(
    stub: NormalizationServiceStub, name: str, mode: pb.Mode.ValueType
) -> None:
    create(stub, name, specs.Standardize(3))
    x = np.ones((2, 3), np.float32)
    request = pb.NormalizeRequest(normalizer=name, mode=mode, input=described(x), data=x.tobytes())
    told = refused(stub.Normalize, request)
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_SEEN")
    assert "contribute first" in told.sentence
