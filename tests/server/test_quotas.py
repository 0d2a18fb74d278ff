"""What an identity may have made, have stored and bring anew, over TLS and mTLS; without credentials all are one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from normserver.access.grants import Grant, Identity, Limits, Scope
from normserver.access.quotas import NewProducers
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from normstats.wire import spec as spec_wire
from tests import identities
from tests.contract import create, described, f64, refused, told_by, update
from tests.identities import Caller, Site
from tests.server_process import ServerProcess

X = np.arange(6, dtype=np.float32).reshape(2, 3)
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
GRANTS = 'grants = [{ scope = "admin", prefix = "" }]'
FEATURE_BYTES = 64


@pytest.fixture(scope="module", params=["TLS", "mTLS"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    lines = {
        "few": f"{GRANTS}\nnormalizers = 2",
        "little": f"{GRANTS}\nstored_bytes = {100 * FEATURE_BYTES}",
        "slow": f"{GRANTS}\nproducers_per_hour = 3",
        "default": GRANTS,
    }
    flags = ("--max-normalizers-per-identity", "4", "--max-new-producers-per-hour", "5")
    folder = tmp_path_factory.mktemp(request.param)
    with identities.site(folder, lines, mtls=request.param == "mTLS", flags=flags) as found:
        yield found


def asked(name: str, spec: specs.Spec) -> pb.CreateNormalizerRequest:
    return pb.CreateNormalizerRequest(name=name, spec=spec_wire.to_proto(spec), exist_ok=True)


def reason(caller: Caller, method: str, request: Any) -> str:
    """Why a call is refused."""
    with pytest.raises(grpc.RpcError) as caught:
        caller.ask(method, request)
    told = told_by(caught.value)
    assert told.code is EXHAUSTED
    return told.reason


def test_normalizers_are_counted_by_who_made_them(site: Site) -> None:
    few, default = site.callers["few"], site.callers["default"]
    for index in range(4):
        default.ask("CreateNormalizer", asked(f"default/{index}", specs.LayerNorm(3)))
    assert reason(default, "CreateNormalizer", asked("default/4", specs.LayerNorm(3))) == "NORMALIZER_QUOTA"
    for index in range(2):
        few.ask("CreateNormalizer", asked(f"few/{index}", specs.LayerNorm(3)))
    assert reason(few, "CreateNormalizer", asked("few/2", specs.LayerNorm(3))) == "NORMALIZER_QUOTA"
    few.ask("CreateNormalizer", asked("few/1", specs.LayerNorm(3)))
    few.ask("CreateNormalizer", asked("default/1", specs.LayerNorm(3)))
    default.ask("DeleteNormalizer", pb.DeleteNormalizerRequest(name="few/0"))
    few.ask("CreateNormalizer", asked("few/2", specs.LayerNorm(3)))


def test_what_may_be_stored_is_counted_with_snapshots_and_parameters(site: Site) -> None:
    little = site.callers["little"]
    assert reason(little, "CreateNormalizer", asked("little/a", specs.Standardize(101))) == "STORED_BYTES_QUOTA"
    little.ask("CreateNormalizer", asked("little/a", specs.Standardize(40)))
    for tag in ("x", "y"):
        little.ask("CreateSnapshot", pb.CreateSnapshotRequest(normalizer="little/a", tag=tag, keep_last=1))
    assert reason(little, "CreateSnapshot", pb.CreateSnapshotRequest(normalizer="little/a", tag="z")) == (
        "STORED_BYTES_QUOTA"
    )
    little.ask("CreateSnapshot", pb.CreateSnapshotRequest(normalizer="little/a", tag="z", keep_last=1))
    little.ask("CreateNormalizer", asked("little/b", specs.LayerNorm(200)))
    weighted = pb.UpdateNormalizerRequest(name="little/b", weight=f64(*range(200)))
    assert reason(little, "UpdateNormalizer", weighted) == "STORED_BYTES_QUOTA"
    little.ask("DeleteSnapshot", pb.DeleteSnapshotRequest(normalizer="little/a", tag="z"))
    little.ask("UpdateNormalizer", weighted)


@pytest.mark.parametrize(("name", "most"), [("slow", 3), ("default", 5)])
def test_new_producers_are_bounded_and_known_ones_go_on(site: Site, name: str, most: int) -> None:
    caller, obs = site.callers[name], f"{name}/obs"
    site.callers["slow"].ask("CreateNormalizer", asked(obs, specs.Standardize(3)))
    ids = [secrets.token_bytes(16) for _ in range(most)]
    for id_ in ids:
        caller.ask("UpdateRunningStats", update(obs, X, producer=id_))
    assert reason(caller, "UpdateRunningStats", update(obs, X)) == "PRODUCER_QUOTA"
    train = pb.NormalizeRequest(
        normalizer=obs,
        input=described(X),
        data=X.tobytes(),
        mode=pb.MODE_TRAIN,
        producer_id=secrets.token_bytes(16),
        sequence=1,
    )
    assert reason(caller, "Normalize", train) == "PRODUCER_QUOTA"
    kind = pb.UpdateRunningStatsStreamRequest
    frames = [
        kind(open=kind.Open(producer_id=secrets.token_bytes(16))),
        kind(update=kind.Update(sequence=1, contributions=update(obs, X).contributions)),
    ]
    assert caller.send("UpdateRunningStatsStream", *frames)[1] is EXHAUSTED
    for id_ in ids:
        assert not caller.ask("UpdateRunningStats", update(obs, X, producer=id_, sequence=2)).duplicate
    counted = caller.ask("GetNormalizer", pb.GetNormalizerRequest(name=obs)).normalizer
    assert counted.num_batches == 2 * most, "what was refused was not counted"


def test_a_budget_fills_by_the_hour() -> None:
    budgets = NewProducers(3600)
    one = Identity("one", (Grant(Scope.WRITE, ""),))
    other = Identity("other", (), Limits(producers_per_hour=7200))
    free = Identity("free", (), Limits(producers_per_hour=0))
    for identity in (one, other, free):
        budgets.know(identity)
    assert budgets.left(("one", "other", "free", "nobody"), 0.0) == {"one": 3600, "other": 7200}
    budgets.spend({"one": 3600})
    assert budgets.left(("one",), 0.5) == {"one": 0}
    assert budgets.left(("one",), 10.0) == {"one": 10}
    budgets.know(one)
    assert budgets.left(("one",), 10.0) == {"one": 10}, "what was spent stays so"
    assert budgets.left(("one",), 1e6) == {"one": 3600}


def test_without_credentials_there_is_one_identity_with_the_same_quotas(tmp_path: Path) -> None:
    flags = ("--max-normalizers-per-identity", "2", "--max-new-producers-per-hour", "1")
    flags += ("--max-stored-bytes-per-identity", str(10 * FEATURE_BYTES))
    server = ServerProcess(tmp_path, *flags).start()
    try:
        with grpc.insecure_channel(server.target) as channel:
            stub = NormalizationServiceStub(channel)
            create(stub, "a", specs.Standardize(3))
            assert refused(stub.CreateNormalizer, asked("b", specs.Standardize(8))).reason == "STORED_BYTES_QUOTA"
            create(stub, "b", specs.Standardize(3))
            stub.UpdateRunningStats(update("a", X))
            assert refused(stub.UpdateRunningStats, update("a", X)).reason == "PRODUCER_QUOTA"
        server.terminate()
        server.start()
        with grpc.insecure_channel(server.target) as channel:
            told = refused(NormalizationServiceStub(channel).CreateNormalizer, asked("c", specs.Standardize(3)))
            assert told.reason == "NORMALIZER_QUOTA", "after a restart, too"
            assert "anyone has made 2 normalizers, and may have 2; delete some" in told.sentence
    finally:
        server.stop()
