"""Bad input of every kind gets its status with the field's path, and the state stays as it was."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2, tensor_pb2
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests.contract import contribution, create, described, f64, moments_message, refused, stats, update
from tests.server_process import ServerProcess

X = np.arange(12, dtype=np.float32).reshape(4, 3)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PRODUCER = secrets.token_bytes(16)


@pytest.fixture
def seen(stub: NormalizationServiceStub, name: str) -> str:
    """A normalizer of 3 features that has seen X."""
    create(stub, name, specs.Standardize(3))
    stub.UpdateRunningStats(update(name, X))
    return name


@pytest.fixture
def unchanged(stub: NormalizationServiceStub, seen: str, server: ServerProcess) -> Iterator[None]:
    """The normalizer is the same to the bit afterwards, and so is the process."""
    before, process = stats(stub, seen), server.process
    yield
    assert stats(stub, seen) == before
    assert server.process is process
    assert process is not None
    assert process.poll() is None


def tensor(shape: list[int], dtype: Any = tensor_pb2.D_TYPE_FLOAT32) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=dtype, shape=shape)


def normalize(name: str, **fields: Any) -> pb.NormalizeRequest:
    request = pb.NormalizeRequest(normalizer=name, input=described(X), data=X.tobytes())
    request.MergeFrom(pb.NormalizeRequest(**fields))
    return request


def of_tensor(name: str, description: tensor_pb2.Tensor, data: bytes = b"") -> pb.NormalizeRequest:
    return pb.NormalizeRequest(normalizer=name, input=description, data=data)


def by_spec(spec: resources_pb2.Spec) -> pb.NormalizeRequest:
    return pb.NormalizeRequest(spec=spec, input=described(X), data=X.tobytes())


def lengths(*values: int) -> tensor_pb2.Padding:
    return tensor_pb2.Padding(lengths=tensor_pb2.Padding.Lengths(values=values))


def mask(shape: list[int], bits: bytes) -> tensor_pb2.Padding:
    return tensor_pb2.Padding(mask=tensor_pb2.Padding.Mask(shape=shape, bits=bits))


NORMALIZE: dict[str, tuple[Callable[[str], pb.NormalizeRequest], str]] = {
    "no target": (lambda n: pb.NormalizeRequest(input=described(X), data=X.tobytes()), "target"),
    "no input": (lambda n: pb.NormalizeRequest(normalizer=n), "input"),
    "no dtype": (lambda n: of_tensor(n, tensor([4, 3], 0), X.tobytes()), "input.dtype"),
    "an unknown dtype": (lambda n: of_tensor(n, tensor([4, 3], 99), X.tobytes()), "input.dtype"),
    "nine dimensions": (lambda n: of_tensor(n, tensor([1] * 8 + [3]), X.tobytes()), "input.shape"),
    "a dimension of -1": (lambda n: of_tensor(n, tensor([-1, 3]), X.tobytes()), "input.shape[0]"),
    "a dimension of 2^31": (lambda n: of_tensor(n, tensor([2**31, 3]), X.tobytes()), "data"),
    "a dimension of 2^32": (lambda n: of_tensor(n, tensor([2**32, 3]), X.tobytes()), "data"),
    "a dimension of 2^62": (lambda n: of_tensor(n, tensor([2**62, 3]), X.tobytes()), "input.shape"),
    "a product that wraps around to 0": (lambda n: of_tensor(n, tensor([2**32, 2**32, 3])), "input.shape"),
    "a product that wraps around to the size": (
        lambda n: of_tensor(n, tensor([2**62 + 1, 4, 3]), bytes(48)),
        "input.shape",
    ),
    "an empty tensor that no memory can index": (lambda n: of_tensor(n, tensor([0, 2**62, 3])), "input.shape"),
    "too few bytes": (lambda n: of_tensor(n, tensor([4, 3]), X.tobytes()[:-1]), "data"),
    "too many bytes": (lambda n: of_tensor(n, tensor([4, 3]), X.tobytes() + b"\0"), "data"),
    "too few features": (lambda n: of_tensor(n, tensor([4, 2]), bytes(32)), "input.shape[1]"),
    "a scalar": (lambda n: of_tensor(n, tensor([]), bytes(4)), "channel_axis"),
    "a name with other characters": (lambda n: normalize("a\nb"), "normalizer"),
    "an empty segment": (lambda n: normalize("a//b"), "normalizer"),
    "a path upward": (lambda n: normalize("../etc/passwd"), "normalizer"),
    "a very long name": (lambda n: normalize("a" * 201), "normalizer"),
    "an unknown mode": (lambda n: normalize(n, mode=17), "mode"),
    "TRAIN by a spec": (
        lambda n: pb.NormalizeRequest(
            spec=spec_wire.to_proto(specs.Standardize(3)), mode=pb.MODE_TRAIN, input=described(X), data=X.tobytes()
        ),
        "mode",
    ),
    "TRAIN without a producer": (lambda n: normalize(n, mode=pb.MODE_TRAIN), "producer_id"),
    "TRAIN without a sequence": (lambda n: normalize(n, mode=pb.MODE_TRAIN, producer_id=PRODUCER), "sequence"),
    "the inverse of the batch's own": (lambda n: normalize(n, mode=pb.MODE_BATCH, inverse=True), "inverse"),
    "a snapshot in BATCH mode": (lambda n: normalize(n, mode=pb.MODE_BATCH, snapshot="a"), "snapshot"),
    "a tag with other characters": (lambda n: normalize(n, snapshot="a/b"), "snapshot"),
    "a style where none is taken": (lambda n: normalize(n, style_normalizer=n), "style"),
    "bytes of a style that is not there": (lambda n: normalize(n, style_data=b"1234"), "style_data"),
    "empty padding": (lambda n: normalize(n, padding=tensor_pb2.Padding()), "padding.kind"),
    "a mask of too few bytes": (lambda n: normalize(n, padding=mask([4, 3], b"\1")), "padding.mask.bits"),
    "a mask of other bytes": (lambda n: normalize(n, padding=mask([4], b"\1\1\1\2")), "padding.mask.bits"),
    "a mask of another shape": (lambda n: normalize(n, padding=mask([5], b"\1" * 5)), "padding.mask.shape"),
    "a mask of 2^62 elements": (lambda n: normalize(n, padding=mask([2**62], b"\1")), "padding.mask.shape"),
    "a style_tensor of an unknown dtype": (
        lambda n: pb.NormalizeRequest(
            spec=spec_wire.to_proto(specs.AdaptiveInstanceNorm()),
            style_tensor=tensor([1, 3, 2], 99),
            input=tensor([1, 3, 2]),
            data=bytes(24),
        ),
        "style_tensor.dtype",
    ),
    "too many ghost batches": (
        lambda n: pb.NormalizeRequest(
            spec=spec_wire.to_proto(specs.BatchNorm(1, virtual_batch_size=1)), input=tensor([2000, 1]), data=bytes(8000)
        ),
        "input",
    ),
    "no style": (
        lambda n: pb.NormalizeRequest(
            spec=spec_wire.to_proto(specs.AdaptiveInstanceNorm()), input=tensor([1, 3, 2]), data=bytes(24)
        ),
        "style",
    ),
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("case", NORMALIZE)
def test_normalize_refuses(stub: NormalizationServiceStub, seen: str, case: str) -> None:
    request, field = NORMALIZE[case]
    told = refused(stub.Normalize, request(seen))
    assert (told.code, told.field) == (INVALID, field), told


SPECS: dict[str, tuple[resources_pb2.Spec, str]] = {
    "no kind": (resources_pb2.Spec(), "spec.kind"),
    "no features": (resources_pb2.Spec(standardize={}), "spec.standardize.num_features"),
    "-1 features": (resources_pb2.Spec(standardize={"num_features": -1}), "spec.standardize.num_features"),
    "4,194,305 features": (
        resources_pb2.Spec(standardize={"num_features": 2**22 + 1}),
        "spec.standardize.num_features",
    ),
    "2^62 features": (resources_pb2.Spec(standardize={"num_features": 2**62}), "spec.standardize.num_features"),
    "eps is nan": (
        resources_pb2.Spec(layer_norm={"normalized_shape": [3], "eps": float("nan")}),
        "spec.layer_norm.eps",
    ),
    "eps is negative": (resources_pb2.Spec(batch_norm={"num_features": 3, "eps": -1.0}), "spec.batch_norm.eps"),
    "a new value's weight of 2": (
        resources_pb2.Spec(batch_norm={"num_features": 3, "running_policy": {"batch_ema": {"new_value_weight": 2.0}}}),
        "spec.batch_norm.momentum",
    ),
    "a half-life of 0": (
        resources_pb2.Spec(standardize={"num_features": 3, "running_policy": {"time_ema": {}}}),
        "spec.standardize.half_life",
    ),
    "a policy that min-max cannot have": (
        resources_pb2.Spec(min_max={"num_features": 3, "running_policy": {"batch_average": {}}}),
        "spec.min_max.running_policy",
    ),
    "weight of 7 bytes": (
        resources_pb2.Spec(batch_norm={"num_features": 3, "weight": b"1234567"}),
        "spec.batch_norm.weight",
    ),
    "weight of 2 values": (
        resources_pb2.Spec(batch_norm={"num_features": 3, "weight": f64(1, 2)}),
        "spec.batch_norm.weight",
    ),
    "weight is nan": (
        resources_pb2.Spec(batch_norm={"num_features": 1, "weight": f64(float("nan"))}),
        "spec.batch_norm.weight",
    ),
    "a mean without a variance": (
        resources_pb2.Spec(batch_norm={"num_features": 1, "running_mean": f64(1)}),
        "spec.batch_norm.running_mean",
    ),
    "a negative variance": (
        resources_pb2.Spec(batch_norm={"num_features": 1, "running_mean": f64(1), "running_var": f64(-1)}),
        "spec.batch_norm.running_var",
    ),
    "groups that do not divide": (
        resources_pb2.Spec(group_norm={"num_groups": 2, "num_channels": 3}),
        "spec.group_norm.num_groups",
    ),
    "no axes of a shape": (resources_pb2.Spec(layer_norm={}), "spec.layer_norm.normalized_shape"),
    "a shape of 0": (
        resources_pb2.Spec(rms_norm={"normalized_shape": [0]}),
        "spec.rms_norm.normalized_shape",
    ),
    "p is 0": (resources_pb2.Spec(lp_norm={"p": 0.0}), "spec.lp_norm.p"),
    "an axis of 2^40": (resources_pb2.Spec(lp_norm={"axis": 2**40}), "spec.lp_norm.axis"),
    "an axis twice": (resources_pb2.Spec(mean_variance_norm={"axes": [1, 1]}), "spec.mean_variance_norm.axes"),
    "size of 2^31 - 1": (
        resources_pb2.Spec(local_response_norm={"size": 2**31 - 1}),
        "spec.local_response_norm.size",
    ),
    "size of 0": (resources_pb2.Spec(local_response_norm={}), "spec.local_response_norm.size"),
    "an upside-down range": (
        resources_pb2.Spec(min_max={"num_features": 3, "range_min": 1.0, "range_max": -1.0}),
        "spec.min_max.feature_range",
    ),
    "clip of 0": (resources_pb2.Spec(standardize={"num_features": 3, "clip": 0.0}), "spec.standardize.clip"),
    "an unknown nan policy": (
        resources_pb2.Spec(standardize={"num_features": 3, "nan_policy": 9}),
        "spec.standardize.nan_policy",
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_wrong_spec_is_refused_inline_and_for_a_new_normalizer(
    stub: NormalizationServiceStub, name: str, case: str
) -> None:
    spec, field = SPECS[case]
    for told in (
        refused(stub.Normalize, by_spec(spec)),
        refused(stub.CreateNormalizer, pb.CreateNormalizerRequest(name=name, spec=spec)),
    ):
        assert (told.code, told.field) == (INVALID, field), told
    assert refused(stub.GetNormalizer, pb.GetNormalizerRequest(name=name)).code is grpc.StatusCode.NOT_FOUND


STATES: dict[str, tuple[dict[str, Any], str]] = {
    "no count": ({"count": b""}, "state.count"),
    "a count of -1": ({"count": f64(-1)}, "state.count"),
    "a count beyond 2^53": ({"moments": {"count": f64(2.0**60)}}, "state.moments.count"),
    "-1 batches": ({"num_batches": -1}, "state.num_batches"),
    "2^63 - 1 batches": ({"num_batches": 2**63 - 1}, "state.num_batches"),
    "a mean that is nan": ({"moments": {"mean": f64(5, float("nan"), 5)}}, "state.moments"),
    "a time of -64 ns": ({"reference_time": {"nanos": -64}}, "state.reference_time"),
    "a time of 2^62 s": ({"reference_time": {"seconds": 2**62}}, "state.reference_time"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_wrong_state_is_refused_for_a_new_normalizer(stub: NormalizationServiceStub, name: str, case: str) -> None:
    fields, field = STATES[case]
    state = resources_pb2.RunningState(moments=moments_message(X), count=f64(4), num_batches=1)
    for changed_field, value in fields.items():
        if isinstance(value, dict):
            getattr(state, changed_field).MergeFrom(type(getattr(state, changed_field))(**value))
        else:
            setattr(state, changed_field, value)
    spec = spec_wire.to_proto(specs.Standardize(3))
    told = refused(stub.CreateNormalizer, pb.CreateNormalizerRequest(name=name, spec=spec, state=state))
    assert (told.code, told.field) == (INVALID, field), told
    assert refused(stub.GetNormalizer, pb.GetNormalizerRequest(name=name)).code is grpc.StatusCode.NOT_FOUND


def changed(name: str, **fields: Any) -> pb.UpdateRunningStatsRequest:
    """An update whose moments have these fields."""
    message = moments_message(X)
    for field, value in fields.items():
        setattr(message, field, value)
    request = update(name, X)
    request.contributions[0].moments.batches[0].CopyFrom(message)
    return request


def raw(name: str, x: np.ndarray, data: bytes | None = None, **fields: Any) -> pb.UpdateRunningStatsRequest:
    batch = pb.Contribution.RawBatch(input=described(x), **fields)
    return pb.UpdateRunningStatsRequest(
        producer_id=secrets.token_bytes(16),
        sequence=1,
        contributions=[pb.Contribution(normalizer=name, raw=batch)],
        data=x.tobytes() if data is None else data,
    )


def with_value(value: float) -> np.ndarray:
    x = X.copy()
    x[1, 2] = value
    return x


def several(*contributions: pb.Contribution) -> pb.UpdateRunningStatsRequest:
    return pb.UpdateRunningStatsRequest(producer_id=PRODUCER, sequence=1, contributions=contributions)


MOMENTS = "contributions[0].moments.batches[0]"
UPDATES: dict[str, tuple[Callable[[str], pb.UpdateRunningStatsRequest], str]] = {
    "no producer": (lambda n: pb.UpdateRunningStatsRequest(sequence=1), "producer_id"),
    "a producer of 15 bytes": (lambda n: update(n, X, producer=bytes(15)), "producer_id"),
    "no sequence": (lambda n: update(n, X, sequence=0), "sequence"),
    "a negative sequence": (lambda n: update(n, X, sequence=-5), "sequence"),
    "no contributions": (lambda n: several(), "contributions"),
    "too many contributions": (lambda n: several(*[contribution(n, X)] * 4097), "contributions"),
    "the same normalizer twice": (
        lambda n: several(contribution(n, X), contribution(n, X)),
        "contributions[1].normalizer",
    ),
    "no payload": (lambda n: several(pb.Contribution(normalizer=n)), "contributions[0].payload"),
    "a name of nothing": (lambda n: several(contribution("", X)), "contributions[0].normalizer"),
    "no count": (lambda n: changed(n, count=b""), f"{MOMENTS}.count"),
    "a count of -1": (lambda n: changed(n, count=f64(-1)), MOMENTS),
    "a count that is nan": (lambda n: changed(n, count=f64(float("nan"))), MOMENTS),
    "a count beyond 2^53": (lambda n: changed(n, count=f64(2.0**60)), f"{MOMENTS}.count"),
    "an m2 beyond all values": (lambda n: changed(n, m2=f64(1, 1e300, 1)), MOMENTS),
    "an infinite count": (lambda n: changed(n, count=f64(float("inf"))), MOMENTS),
    "a mean of 2 features": (lambda n: changed(n, mean=f64(1, 2)), f"{MOMENTS}.mean_low"),
    "a mean of 23 bytes": (lambda n: changed(n, mean=bytes(23)), f"{MOMENTS}.mean"),
    "a mean that is nan": (lambda n: changed(n, mean=f64(5, float("nan"), 5)), MOMENTS),
    "a mean outside of the range": (lambda n: changed(n, mean=f64(5, 500, 5)), MOMENTS),
    "a negative m2": (lambda n: changed(n, m2=f64(1, -1, 1)), MOMENTS),
    "an m2 that is nan": (lambda n: changed(n, m2=f64(1, float("nan"), 1)), MOMENTS),
    "min above max": (lambda n: changed(n, min=f64(50, 50, 50)), MOMENTS),
    "an infinite max": (lambda n: changed(n, max=f64(50, float("inf"), 50)), MOMENTS),
    "values that would overflow": (
        lambda n: changed(n, max=f64(1e200, 20, 20), mean=f64(1e199, 5, 6)),
        MOMENTS,
    ),
    "a raw batch of too few bytes": (lambda n: raw(n, X, data=X.tobytes()[:-4]), "data"),
    "a raw batch of too many bytes": (lambda n: raw(n, X, data=X.tobytes() + bytes(4)), "data"),
    "a raw batch of 2^40 rows": (
        lambda n: several(pb.Contribution(normalizer=n, raw=pb.Contribution.RawBatch(input=tensor([2**40, 3])))),
        "data",
    ),
    "a raw batch of an unknown dtype": (
        lambda n: several(pb.Contribution(normalizer=n, raw=pb.Contribution.RawBatch(input=tensor([1, 3], 77)))),
        "contributions[0].raw.input.dtype",
    ),
    "a raw batch of 12 features": (lambda n: raw(n, X.reshape(1, 12)), "contributions[0].raw.input.shape[1]"),
    "nan": (lambda n: raw(n, with_value(np.nan)), "contributions[0].raw.input"),
    "infinity": (lambda n: raw(n, with_value(np.inf)), "contributions[0].raw.input"),
    "negative sample weights": (
        lambda n: raw(n, X, sample_weights=f64(1, 1, -1, 1)),
        "contributions[0].raw.sample_weights[2]",
    ),
    "sample weights that are nan": (
        lambda n: raw(n, X, sample_weights=f64(1, 1, float("nan"), 1)),
        "contributions[0].raw.sample_weights[2]",
    ),
    "too few sample weights": (
        lambda n: raw(n, X, sample_weights=f64(1, 1)),
        "contributions[0].raw.sample_weights",
    ),
    "a time far ahead": (
        lambda n: several(
            pb.Contribution(
                normalizer=n, moments={"batches": [moments_message(X)]}, observe_time={"seconds": 2**33 - 1}
            )
        ),
        "contributions[0].observe_time",
    ),
    "a time before 1970": (
        lambda n: several(
            pb.Contribution(normalizer=n, moments={"batches": [moments_message(X)]}, observe_time={"seconds": -1})
        ),
        "contributions[0].observe_time",
    ),
}


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("case", UPDATES)
def test_update_refuses(stub: NormalizationServiceStub, seen: str, case: str) -> None:
    request, field = UPDATES[case]
    told = refused(stub.UpdateRunningStats, request(seen))
    assert (told.code, told.field) == (INVALID, field), told


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("values", "field"),
    [((5,), ".shape"), ((1, 1, 4, 1), "[2]"), ((-1, 1, 1, 1), "[0]"), ((2**62, 1, 1, 1), "[0]")],
    ids=["too few", "too long", "negative", "2^62"],
)
def test_wrong_lengths_are_refused(
    stub: NormalizationServiceStub, seen: str, values: tuple[int, ...], field: str
) -> None:
    x = np.zeros((4, 2, 3), np.float32)
    request = pb.NormalizeRequest(normalizer=seen, input=described(x), data=x.tobytes(), padding=lengths(*values))
    told = refused(stub.Normalize, request)
    assert (told.code, told.field) == (INVALID, f"padding.lengths.values{field}"), told


@pytest.mark.usefixtures("unchanged")
def test_a_message_over_the_limit_is_refused_at_once(stub: NormalizationServiceStub, seen: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Normalize(of_tensor(seen, tensor([65 * 2**18]), bytes(65 * 2**20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("page_token", ["é", "!!", "YQ=", "/w==", "AA==", "YQpi"])
def test_a_page_token_that_is_not_ours_is_refused(stub: NormalizationServiceStub, page_token: str) -> None:
    told = refused(stub.ListNormalizers, pb.ListNormalizersRequest(page_token=page_token))
    assert (told.code, told.field) == (INVALID, "page_token")


@pytest.mark.parametrize("next_round", [-1, 2**53 + 1, 2**63 - 1])
def test_a_round_far_off_is_refused(stub: NormalizationServiceStub, name: str, next_round: int) -> None:
    join = pb.SynchronizeStatsRequest.Join(group=name, member_id=PRODUCER, size=1, next_round=next_round)
    told = refused(stub.SynchronizeStats, iter([pb.SynchronizeStatsRequest(join=join)]))
    assert (told.code, told.field) == (INVALID, "join.next_round")


def test_totals_beyond_what_can_be_contributed_at_once_are_read_again(own_server: ServerProcess, name: str) -> None:
    most = 2.0**53 * (2 * 1e140) ** 2
    fields = {"min": -1e140, "mean": 0.0, "max": 1e140, "m2": most}
    arrays = {field: f64(value, value, value) for field, value in fields.items()} | {"count": f64(2.0**53)}
    with grpc.insecure_channel(own_server.start().target) as channel:
        stub = NormalizationServiceStub(channel)
        create(stub, name, specs.Standardize(3))
        for _ in range(3):
            stub.UpdateRunningStats(changed(name, **arrays))
        stub.CreateSnapshot(pb.CreateSnapshotRequest(normalizer=name, tag="kept"))
        before = stats(stub, name)
    own_server.kill()
    with grpc.insecure_channel(own_server.start().target) as channel:
        stub = NormalizationServiceStub(channel)
        assert [one.count for one in stub.ListNormalizers(pb.ListNormalizersRequest()).normalizers] == [3 * 2.0**53]
        assert stats(stub, name) == before
        assert stats(stub, name, snapshot="kept").state == before.state
        assert not stub.UpdateRunningStats(update(name, X)).duplicate


@pytest.mark.parametrize("number", [-1, -(2**63), 2**63 - 1])
def test_a_message_may_have_any_number(stub: NormalizationServiceStub, seen: str, number: int) -> None:
    message = pb.NormalizeManyStreamRequest(id=number, requests=[normalize(seen), normalize("a//b")])
    (reply,) = stub.NormalizeManyStream(iter([message]))
    assert reply.id == number
    assert [result.WhichOneof("result") for result in reply.results] == ["response", "status"]


def test_empty_tensors_are_no_error(stub: NormalizationServiceStub, seen: str) -> None:
    before = stats(stub, seen)
    reply = stub.Normalize(of_tensor(seen, tensor([0, 3])))
    assert (list(reply.output.shape), reply.data) == ([0, 3], b"")
    stub.UpdateRunningStats(raw(seen, np.zeros((0, 3), np.float32)))
    assert stats(stub, seen) == before


def test_zero_variance_normalizes_to_zero(stub: NormalizationServiceStub, name: str) -> None:
    x = np.full((4, 3), 7.25, np.float32)
    create(stub, name, specs.Standardize(3))
    stub.UpdateRunningStats(raw(name, x))
    reply = stub.Normalize(pb.NormalizeRequest(normalizer=name, input=described(x), data=x.tobytes()))
    assert not np.frombuffer(reply.data, np.float32).any()


def test_one_wrong_contribution_of_several_leaves_all_as_they_were(
    stub: NormalizationServiceStub, seen: str, name: str
) -> None:
    other = f"{name}/other"
    create(stub, other, specs.Standardize(3))
    before = stats(stub, seen), stats(stub, other)
    request = several(contribution(seen, X), contribution(other, X))
    request.contributions[1].moments.batches[0].m2 = f64(1, -1, 1)
    assert refused(stub.UpdateRunningStats, request).field == "contributions[1].moments.batches[0]"
    assert (stats(stub, seen), stats(stub, other)) == before
