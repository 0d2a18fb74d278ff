"""normstats: one place where a fleet's batch statistics are merged exactly, kept durably, and applied.

client = normstats.connect("localhost:50051")            # normstats.aio.connect: the same names, awaited
obs = client.create("robot/obs", normstats.Standardize(17), exist_ok=True)
obs.update(batch)                                        # durable and counted once when it returns
z = obs.normalize(batch)                                 # numpy in, numpy out; torch in, torch out
"""

from importlib.metadata import version as _version

from normstats import aio
from normstats.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NormstatsError,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from normstats.results import Drift, NormalizerInfo, Round, RunningState, SnapshotInfo, Stats, UpdateResult
from normstats.security import TLS
from normstats.specs import (
    AdaptiveInstanceNorm,
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    InvalidSpec,
    LayerNorm,
    LocalResponseNorm,
    LpNorm,
    MeanVarianceNorm,
    MinMax,
    RMSNorm,
    Spec,
    Standardize,
)
from normstats.sync import Client, Member, Normalizer, UpdateStream, connect

__version__ = _version("normstats")

__all__ = [
    "TLS",
    "AdaptiveInstanceNorm",
    "AlreadyExists",
    "BatchNorm",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Drift",
    "FailedPrecondition",
    "GroupNorm",
    "InstanceNorm",
    "Internal",
    "InvalidArgument",
    "InvalidSpec",
    "LayerNorm",
    "LocalResponseNorm",
    "LpNorm",
    "MeanVarianceNorm",
    "Member",
    "MinMax",
    "Normalizer",
    "NormalizerInfo",
    "NormstatsError",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RMSNorm",
    "ResourceExhausted",
    "Round",
    "RunningState",
    "SnapshotInfo",
    "Spec",
    "Standardize",
    "Stats",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UpdateResult",
    "UpdateStream",
    "__version__",
    "aio",
    "connect",
]
