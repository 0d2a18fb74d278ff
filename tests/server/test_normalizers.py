"""The resource: create, read, list, change, delete; snapshots; drift."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import answered, create, described, f64, numbers, refused, stats, update

RNG = np.random.default_rng(2)
NOT_FOUND, TAKEN = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION


def asked(name: str, spec: specs.Spec, **fields: object) -> pb.CreateNormalizerRequest:
    return pb.CreateNormalizerRequest(name=name, spec=spec_wire.to_proto(spec), **fields)


def test_a_name_is_taken_once(stub: NormalizationServiceStub, name: str) -> None:
    first = stub.CreateNormalizer(asked(name, specs.BatchNorm(3)))
    assert (first.created, first.normalizer.version) == (True, 1)
    told = refused(stub.CreateNormalizer, asked(name, specs.BatchNorm(3)))
    assert (told.code, told.field) == (TAKEN, "name")
    again = stub.CreateNormalizer(asked(name, specs.BatchNorm(3, weight=[1, 2, 3]), exist_ok=True))
    assert (again.created, again.normalizer) == (False, first.normalizer)
    other = refused(stub.CreateNormalizer, asked(name, specs.BatchNorm(3, eps=1e-3), exist_ok=True))
    assert (other.code, other.field) == (TAKEN, "spec")


def test_pages_hold_every_name_once_in_order(stub: NormalizationServiceStub, name: str) -> None:
    names = sorted(f"{name}/{i}" for i in range(7))
    for one in reversed(names):
        create(stub, one, specs.LayerNorm(4, weight=[1, 2, 3, 4]))
    found, token = [], ""
    while True:
        page = stub.ListNormalizers(pb.ListNormalizersRequest(prefix=f"{name}/", page_size=3, page_token=token))
        found += page.normalizers
        token = page.next_page_token
        if not token:
            break
    assert [normalizer.name for normalizer in found] == names
    assert not found[0].spec.layer_norm.weight, "lists come without affine parameters"


def test_affine_parameters_are_set_and_taken_away(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.LayerNorm(2))
    x = np.array([[-1.0, 1.0]])
    request = pb.NormalizeRequest(normalizer=name, input=described(x), data=x.tobytes())
    changed = stub.UpdateNormalizer(pb.UpdateNormalizerRequest(name=name, weight=f64(3, 3), bias=f64(0, 10)))
    assert changed.normalizer.version == 2
    np.testing.assert_allclose(np.frombuffer(stub.Normalize(request).data), [-3, 13], rtol=1e-4)
    stub.UpdateNormalizer(pb.UpdateNormalizerRequest(name=name, weight=b"", bias=b""))
    np.testing.assert_allclose(np.frombuffer(stub.Normalize(request).data), [-1, 1], rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"weight": f64(1)}, "weight"), ({"bias": bytes(3)}, "bias"), ({"weight": f64(1, float("nan"))}, "weight")],
)
def test_wrong_parameters_change_nothing(
    stub: NormalizationServiceStub, name: str, fields: dict[str, bytes], field: str
) -> None:
    before = create(stub, name, specs.LayerNorm(2))
    told = refused(stub.UpdateNormalizer, pb.UpdateNormalizerRequest(name=name, **fields))
    assert (told.code, told.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert stub.GetNormalizer(pb.GetNormalizerRequest(name=name)).normalizer == before


def test_a_normalization_without_statistics_says_so(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.LayerNorm(2))
    for told in (
        refused(stub.GetRunningStats, pb.GetRunningStatsRequest(normalizer=name)),
        refused(stub.WatchRunningStats, pb.WatchRunningStatsRequest(normalizer=name)),
        refused(stub.UpdateRunningStats, update(name, np.ones((1, 2)))),
        refused(stub.UpdateNormalizer, pb.UpdateNormalizerRequest(name=name, frozen=True)),
        refused(stub.CreateSnapshot, pb.CreateSnapshotRequest(normalizer=name, tag="a")),
    ):
        assert (told.code, told.reason) == (PRECONDITION, "KEEPS_NO_STATISTICS")


def test_reset_forgets_and_the_version_grows(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.MinMax(2))
    stub.UpdateRunningStats(update(name, RNG.normal(size=(3, 2))))
    reset = stub.UpdateNormalizer(pb.UpdateNormalizerRequest(name=name, reset=True)).normalizer
    assert (reset.version, reset.count, reset.num_batches) == (3, 0, 0)
    assert stats(stub, name).mean == b""


def test_deleted_is_gone_with_its_snapshots(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(1))
    stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer=name, tag="a"))
    stub.DeleteNormalizer(pb.DeleteNormalizerRequest(name=name))
    for told in (
        refused(stub.GetNormalizer, pb.GetNormalizerRequest(name=name)),
        refused(stub.DeleteNormalizer, pb.DeleteNormalizerRequest(name=name)),
        refused(stub.ListSnapshots, pb.ListSnapshotsRequest(normalizer=name)),
    ):
        assert (told.code, told.reason) == (NOT_FOUND, "NORMALIZER_NOT_FOUND")
    create(stub, name, specs.Standardize(1))
    assert not stub.ListSnapshots(pb.ListSnapshotsRequest(normalizer=name)).snapshots


def test_a_state_moves_to_another_normalizer_to_the_bit(stub: NormalizationServiceStub, name: str) -> None:
    spec = specs.Standardize(3, half_life=60)
    create(stub, name, spec)
    for _ in range(3):
        stub.UpdateRunningStats(update(name, RNG.normal(1e8, 1, size=(5, 3))))
    moved = stats(stub, name)
    stub.CreateNormalizer(asked(f"{name}/copy", spec, state=moved.state))
    copy = stats(stub, f"{name}/copy")
    assert copy.state == moved.state
    assert (copy.mean, copy.var, copy.count) == (moved.mean, moved.var, moved.count)


def test_a_state_of_another_width_is_refused(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(3))
    request = asked(f"{name}/copy", specs.Standardize(2), state=stats(stub, name).state)
    told = refused(stub.CreateNormalizer, request)
    assert (told.code, told.field) == (grpc.StatusCode.INVALID_ARGUMENT, "state.moments.mean")


class TestSnapshots:
    """Statistics under a tag."""

    @pytest.fixture
    def two(self, stub: NormalizationServiceStub, name: str) -> str:
        """A normalizer with snapshot `old` of 10 rows around 0, and 30 rows in all, the later ones around 5."""
        create(stub, name, specs.Standardize(2))
        stub.UpdateRunningStats(update(name, RNG.normal(0, 1, (10, 2))))
        stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer=name, tag="old"))
        stub.UpdateRunningStats(update(name, RNG.normal([0, 5], 1, (20, 2))))
        return name

    def test_it_keeps_what_was(self, stub: NormalizationServiceStub, two: str) -> None:
        then, now = stats(stub, two, "old"), stats(stub, two)
        assert (numbers(then.count)[0], numbers(now.count)[0]) == (10, 30)
        assert (then.version, now.version) == (2, 3)
        (kept,) = stub.ListSnapshots(pb.ListSnapshotsRequest(normalizer=two)).snapshots
        assert (kept.tag, kept.version, kept.count, kept.num_batches) == ("old", 2, 10, 1)

    def test_normalize_uses_it(self, stub: NormalizationServiceStub, two: str) -> None:
        then, x = stats(stub, two, "old"), np.array([[1.0, 2.0]])
        request = pb.NormalizeRequest(normalizer=two, snapshot="old", input=described(x), data=x.tobytes())
        reply = stub.Normalize(request)
        expected = (x[0] - numbers(then.mean)) / np.sqrt(numbers(then.var) + 1e-8)
        assert reply.version == 2
        np.testing.assert_allclose(np.frombuffer(reply.data), expected, rtol=1e-14)

    def test_restored_the_version_still_grows(self, stub: NormalizationServiceStub, two: str) -> None:
        then = stats(stub, two, "old")
        restored = stub.RestoreSnapshot(pb.RestoreSnapshotRequest(normalizer=two, tag="old")).normalizer
        now = stats(stub, two)
        assert (restored.version, now.version) == (4, 4)
        assert now.state == then.state

    def test_a_tag_is_taken_unless_it_holds_this_very_version(self, stub: NormalizationServiceStub, two: str) -> None:
        again = pb.CreateSnapshotRequest(normalizer=two, tag="new")
        assert stub.CreateSnapshot(again) == stub.CreateSnapshot(again)
        told = refused(stub.CreateSnapshot, pb.CreateSnapshotRequest(normalizer=two, tag="old"))
        assert (told.code, told.reason) == (TAKEN, "TAG_TAKEN")

    def test_drift_tells_the_worst_feature_first(self, stub: NormalizationServiceStub, two: str) -> None:
        reply = stub.CompareSnapshots(pb.CompareSnapshotsRequest(normalizer=two, base_tag="old"))
        then, now = stats(stub, two, "old"), stats(stub, two)
        assert (reply.base_version, reply.version) == (2, 3)
        assert [drift.feature for drift in reply.features] == [1, 0]
        for drift in reply.features:
            mean_a, mean_b = numbers(then.mean)[drift.feature], numbers(now.mean)[drift.feature]
            var_a, var_b = numbers(then.var)[drift.feature], numbers(now.var)[drift.feature]
            kl = 0.5 * ((var_a + (mean_b - mean_a) ** 2) / var_b + (var_b + (mean_b - mean_a) ** 2) / var_a) - 1
            np.testing.assert_allclose(
                [drift.mean_shift, drift.var_ratio], [(mean_b - mean_a) / np.sqrt(var_a), var_b / var_a], rtol=1e-12
            )
            np.testing.assert_allclose(drift.symmetric_kl, kl, rtol=1e-9)
        limited = stub.CompareSnapshots(pb.CompareSnapshotsRequest(normalizer=two, base_tag="old", tag="old", limit=1))
        assert [(d.mean_shift, d.var_ratio, d.symmetric_kl) for d in limited.features] == [(0, 1, 0)]

    @pytest.mark.parametrize("tag", ["nothing"])
    def test_what_is_not_there_is_not_found(self, stub: NormalizationServiceStub, two: str, tag: str) -> None:
        for told in (
            refused(stub.RestoreSnapshot, pb.RestoreSnapshotRequest(normalizer=two, tag=tag)),
            refused(stub.DeleteSnapshot, pb.DeleteSnapshotRequest(normalizer=two, tag=tag)),
            refused(stub.CompareSnapshots, pb.CompareSnapshotsRequest(normalizer=two, base_tag=tag)),
            refused(stub.GetRunningStats, pb.GetRunningStatsRequest(normalizer=two, snapshot=tag)),
        ):
            assert (told.code, told.reason) == (NOT_FOUND, "SNAPSHOT_NOT_FOUND")

    def test_deleted_is_gone(self, stub: NormalizationServiceStub, two: str) -> None:
        stub.DeleteSnapshot(pb.DeleteSnapshotRequest(normalizer=two, tag="old"))
        assert not stub.ListSnapshots(pb.ListSnapshotsRequest(normalizer=two)).snapshots


def test_every_call_of_the_contract_is_answered(stub: NormalizationServiceStub) -> None:
    service = pb.DESCRIPTOR.services_by_name["NormalizationService"]
    codes, wrong = {}, {"WatchActivity": {"limit": -1}}  # it has no end otherwise
    for method in service.methods:
        request = getattr(pb, method.input_type.name)(**wrong.get(method.name, {}))
        streams = method.name.endswith(("Stream", "SynchronizeStats", "ShareMemory"))
        try:
            answered(getattr(stub, method.name), iter([request]) if streams else request)
        except grpc.RpcError as error:
            codes[method.name] = error.code()
    assert codes.pop("ShareMemory") is grpc.StatusCode.FAILED_PRECONDITION  # it is not offered
    assert set(codes.values()) == {grpc.StatusCode.INVALID_ARGUMENT}, codes
    nothing_to_refuse = {"BackUp", "GetActivity", "GetDevice", "ListNormalizers", "ShareMemory"}
    several = {"NormalizeMany", "NormalizeManyStream"}
    assert {method.name for method in service.methods} - set(codes) == nothing_to_refuse | several
