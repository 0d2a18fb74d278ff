"""The names that callers write, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import normstats

NAMES = {
    "AdaptiveInstanceNorm", "AlreadyExists", "BatchNorm", "Cancelled", "Client", "DeadlineExceeded", "Drift",
    "FailedPrecondition", "GroupNorm", "InstanceNorm", "Internal", "InvalidArgument", "InvalidSpec", "LayerNorm",
    "LocalResponseNorm", "LpNorm", "MeanVarianceNorm", "Member", "MinMax", "Normalizer", "NormalizerInfo",
    "NormstatsError", "NotFound", "OutOfRange", "PermissionDenied", "RMSNorm", "ResourceExhausted", "Round",
    "RunningState", "SnapshotInfo", "Spec", "Standardize", "Stats", "TLS",
    "Unauthenticated", "Unavailable", "Unimplemented", "UpdateResult", "UpdateStream", "__version__", "aio", "connect",
}  # fmt: skip
CLIENT = {
    "activity", "back_up", "close", "create", "delete", "device", "empty", "get", "list", "normalize", "normalize_many",
    "update", "watch_activity",
}  # fmt: skip
NORMALIZER = {
    "compare", "delete", "delete_snapshot", "freeze", "history", "join", "name", "normalize", "refresh", "reset",
    "restore", "set_parameters", "snapshot", "snapshots", "spec", "stats", "stream", "unfreeze", "update", "watch",
}  # fmt: skip
MEMBER = {"id", "leave", "reduce", "sync"}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_surface_is_what_it_was() -> None:
    assert set(normstats.__all__) == NAMES
    assert public(normstats.Client) == public(normstats.aio.AsyncClient) == CLIENT
    assert public(normstats.Normalizer) == public(normstats.aio.AsyncNormalizer) == NORMALIZER
    assert public(normstats.Member) == public(normstats.aio.AsyncMember) == MEMBER


def test_both_clients_take_the_same_arguments() -> None:
    twins = (
        (normstats.Client, normstats.aio.AsyncClient, CLIENT),
        (normstats.Normalizer, normstats.aio.AsyncNormalizer, NORMALIZER - {"name", "spec"}),
        (normstats.Member, normstats.aio.AsyncMember, MEMBER - {"id"}),
    )
    for one, other, names in twins:
        for name in names:
            parameters = [list(inspect.signature(getattr(kind, name)).parameters) for kind in (one, other)]
            assert parameters[0] == parameters[1], name


def test_importing_normstats_imports_neither_torch_nor_the_server() -> None:
    code = "import sys, normstats; print({'torch', 'normcore', 'normserver', 'click', 'pyarrow'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.strip() == "set()"
