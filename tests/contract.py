"""Short ways to say things in the contract's own messages."""

from __future__ import annotations

import secrets
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1 import resources_pb2, tensor_pb2
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from normstats.wire.dtypes import BY_NAME


class Refused(NamedTuple):
    """What a refused call was told."""

    code: grpc.StatusCode
    field: str
    reason: str
    sentence: str


def described(x: np.ndarray) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=BY_NAME[x.dtype.name].number, shape=x.shape)


def f64(*values: float) -> bytes:
    return np.array(values, dtype="<f8").tobytes()


def moments_message(x: np.ndarray) -> resources_pb2.Moments:
    """The moments of rows of features, by the definition."""
    rows = x.astype(np.longdouble)
    mean = rows.mean(axis=0)
    high = mean.astype(np.float64)
    return resources_pb2.Moments(
        count=f64(len(rows)),
        mean=high.tobytes(),
        mean_low=(mean - high).astype(np.float64).tobytes(),
        m2=((rows - mean) ** 2).sum(axis=0).astype(np.float64).tobytes(),
        min=x.min(axis=0).astype(np.float64).tobytes(),
        max=x.max(axis=0).astype(np.float64).tobytes(),
    )


def contribution(name: str, x: np.ndarray) -> pb.Contribution:
    return pb.Contribution(normalizer=name, moments=pb.Contribution.MomentsOfBatches(batches=[moments_message(x)]))


def update(name: str, x: np.ndarray, *, producer: bytes = b"", sequence: int = 1) -> pb.UpdateRunningStatsRequest:
    return pb.UpdateRunningStatsRequest(
        producer_id=producer or secrets.token_bytes(16), sequence=sequence, contributions=[contribution(name, x)]
    )


def create(stub: NormalizationServiceStub, name: str, spec: specs.Spec) -> resources_pb2.Normalizer:
    return stub.CreateNormalizer(pb.CreateNormalizerRequest(name=name, spec=spec_wire.to_proto(spec))).normalizer


def stats(stub: NormalizationServiceStub, name: str, snapshot: str = "") -> resources_pb2.RunningStats:
    request = pb.GetRunningStatsRequest(normalizer=name, snapshot=snapshot, include_state=True)
    return stub.GetRunningStats(request).stats


def numbers(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<f8")


def answered(call: Any, request: Any) -> Any:
    """The reply; of a stream, all of them."""
    reply = call(request, timeout=30)
    return list(reply) if hasattr(reply, "__next__") else reply


def refused(call: Any, request: Any) -> Refused:
    """Call, expect an error, and return what it says; every error has an ErrorInfo of ours."""
    with pytest.raises(grpc.RpcError) as caught:
        answered(call, request)
    return told_by(caught.value)


def told_by(error: grpc.RpcError) -> Refused:
    """What an error says, its details included."""
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    found: dict[str, Any] = {}
    for packed in status_pb2.Status.FromString(details).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                found[kind.DESCRIPTOR.name] = kind.FromString(packed.value)
    assert found["ErrorInfo"].domain == "normstats"
    violations = found["BadRequest"].field_violations if "BadRequest" in found else []
    return Refused(error.code(), violations[0].field if violations else "", found["ErrorInfo"].reason, error.details())
