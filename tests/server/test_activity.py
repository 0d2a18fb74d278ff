"""What the server is doing: who contributes, what changes, how loaded it is, which rounds wait for whom."""

from __future__ import annotations

import secrets
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import normstats
from normcore.moments import Moments
from normcore.stack import MomentsStack
from normserver.activity.changes import Changes
from normserver.activity.contributors import Contributors, Rate
from normserver.activity.history import Histories, History, Point, Spread, point_of
from normserver.activity.load import Sampler, quantile
from normserver.contributions import Contribution, Submission
from normserver.metrics import Metrics
from normserver.producers import Producer
from normserver.records import Record, policy_of
from normstats import specs
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.contract import create, numbers, refused, stats, update
from tests.server.test_access import stanza
from tests.server_process import ServerProcess

NO_SPREAD = Spread(0, 0, 0, 0, 0)


def submission(producer_id: bytes, *names: str, sequence: int = 1) -> Submission:
    batches = MomentsStack.of((Moments.empty(1),))
    return Submission(
        Producer("anyone", producer_id), sequence, [Contribution(name, batches, None, "") for name in names]
    )


def everything(_: str) -> bool:
    return True


def point(version: int, at: float) -> Point:
    return Point(version, at, float(version), version, NO_SPREAD, NO_SPREAD)


@pytest.mark.parametrize("a_second", [0.2, 5.0, 1000.0])
def test_a_rate_is_how_many_come_a_second(a_second: float) -> None:
    rate = Rate(100.0)
    times = 100.0 + np.arange(1, int(60 * a_second) + 1) / a_second
    for now in times:
        rate.add(float(now))
    assert rate.at(float(times[-1])) == pytest.approx(a_second, rel=0.2)
    assert rate.at(float(times[-1]) + 300) < 1e-6 * a_second


def test_a_rate_is_right_from_its_start_and_no_burst_makes_it_infinite() -> None:
    rate = Rate(0.0)
    for index in range(20):
        rate.add(index / 10)
    assert rate.at(2.0) == pytest.approx(10, rel=0.1)
    burst = Rate(0.0)
    burst.add(0.0)
    assert burst.at(0.0) == pytest.approx(1, rel=0.1)


def test_contributors_are_told_who_was_last_first_and_duplicates_are_told_apart() -> None:
    contributors = Contributors()
    a, b = b"a" * 16, b"b" * 16
    contributors.note(submission(a, "x", "y"), 1.0, at=1.0, duplicate=False)
    contributors.note(submission(b, "x"), 2.0, at=2.0, duplicate=False)
    contributors.note(submission(a, "x", sequence=2), 3.0, at=3.0, duplicate=True)
    told = [(one.producer.id, one.normalizer, one.last_at, one.sequence, one.merged, one.duplicates)
            for one in contributors.last(everything, 10)]  # fmt: skip
    assert told == [(a, "x", 3.0, 2, 1, 1), (b, "x", 2.0, 1, 1, 0), (a, "y", 1.0, 1, 1, 0)]
    assert [one.normalizer for one in contributors.last(lambda name: name == "y", 10)] == ["y"]
    assert (contributors.active(3.0), contributors.active(62.5), contributors.active(64.0)) == (2, 1, 0)


def test_of_many_contributors_the_last_are_remembered() -> None:
    contributors = Contributors(capacity=10)
    for index in range(1000):
        contributors.note(
            submission(index.to_bytes(16, "big"), f"n/{index}"), float(index), at=float(index), duplicate=False
        )
    assert [one.normalizer for one in contributors.last(everything, 100)] == [f"n/{i}" for i in range(999, 989, -1)]
    assert contributors.rate("n/5", 1000.0) == 0
    assert contributors.rate("n/999", 999.0) > 0


def test_a_history_keeps_its_ends_and_is_even_between() -> None:
    history = History(max_points=16)
    for index in range(1, 5001):
        history.add(point(index, index * 0.5), index * 0.5)
    points = history.points
    assert len(points) <= 16
    assert (points[0].version, points[-1].version) == (1, 5000)
    apart = np.diff([one.at for one in points])[:-1]
    assert apart.max() <= 2.5 * apart.min()
    history.add(point(5000, 9999.0), 9999.0)
    assert history.points[-1].at == 2500.0


def test_a_normalizer_made_again_has_a_history_of_its_own() -> None:
    histories = Histories(capacity=2)
    before, after = (
        Record("a", specs.Standardize(1), 1, None, frozen=False, created_at=at, updated_at=at) for at in (1.0, 2.0)
    )
    histories.of(before).add(point(7, 1.0), 1.0)
    assert histories.of(after).points == []
    assert [one.version for one in histories.of(before).points] == [7]


@pytest.mark.parametrize("features", [1, 2, 3, 17, 1000])
def test_a_version_is_summed_up_by_the_quartiles_over_its_features(features: int) -> None:
    rng = np.random.default_rng(features)
    spec = specs.Standardize(features)
    mean, std = rng.normal(size=features), rng.uniform(1, 2, features)
    running = policy_of(spec).seed(torch.from_numpy(mean), torch.from_numpy(std**2))
    found = point_of(Record("a", spec, 3, running, frozen=False, created_at=0.0, updated_at=5.0))
    assert found is not None
    assert (found.version, found.at) == (3, 5.0)
    fractions = (0, 0.25, 0.5, 0.75, 1)
    np.testing.assert_allclose(found.mean, np.quantile(mean, fractions), rtol=1e-12)
    np.testing.assert_allclose(found.std, np.quantile(std, fractions), rtol=1e-12)


def test_what_changed_last_comes_first_and_what_was_deleted_is_gone() -> None:
    changes = Changes(capacity=3)
    records = [
        Record(name, specs.LayerNorm(1), 1, None, frozen=False, created_at=0, updated_at=index)
        for index, name in enumerate("abcd")
    ]
    for record in records:
        changes.note(record)
    changes.forget("c")
    assert [one.name for one in changes.last(everything, 10)] == ["d", "b"]
    assert [one.name for one in changes.take(10)] == ["b", "d"]
    changes.note(records[-1])
    assert changes.take(10) == [], "it is what it was"


def test_quantiles_are_those_that_prometheus_tells() -> None:
    inf = float("inf")
    buckets = {0.1: 10.0, 0.5: 30.0, 1.0: 40.0, inf: 40.0}
    assert quantile(0.5, buckets) == pytest.approx(0.3)
    assert quantile(0.25, buckets) == pytest.approx(0.1)
    assert quantile(1.0, buckets) == pytest.approx(1.0)
    assert quantile(0.99, {0.1: 1.0, inf: 2.0}) == 0.1
    assert quantile(0.5, {0.1: 0.0, inf: 0.0}) == quantile(0.5, {}) == 0.0


def test_a_load_is_what_the_metrics_have_grown_by() -> None:
    metrics = Metrics()
    sampler = Sampler(metrics, frozenset({"WatchRunningStats"}), clock=lambda: 123.0)
    metrics.calls.labels("Normalize", "OK").inc(9)
    metrics.calls.labels("Normalize", "NOT_FOUND").inc(1)
    metrics.call_seconds.labels("Normalize").observe(0.0007)
    metrics.call_seconds.labels("WatchRunningStats").observe(20.0)
    time.sleep(0.1)
    load = sampler.sample()
    assert load.at == 123.0
    assert load.errors_per_second == pytest.approx(load.calls_per_second / 10)
    assert 20 < load.calls_per_second < 101
    assert load.call_p99_seconds < 0.001, "how long a stream was open tells nothing"
    assert load.resident_bytes > 1 << 20
    assert sampler.sample().calls_per_second == 0


def test_it_is_told_what_changes_who_contributes_and_what_it_takes(stub: NormalizationServiceStub, name: str) -> None:
    producer = secrets.token_bytes(16)
    create(stub, name, specs.Standardize(3))
    for sequence in (1, 2, 2):
        stub.UpdateRunningStats(update(name, np.ones((2, 3)), producer=producer, sequence=sequence))
    told = stub.GetActivity(pb.GetActivityRequest(prefix=name)).activity
    (normalizer,), (contributor,) = told.normalizers, told.producers
    assert (normalizer.name, normalizer.version, normalizer.num_features, normalizer.count) == (name, 3, 3, 4)
    assert (contributor.producer_id, contributor.normalizer, contributor.sequence) == (producer.hex()[:8], name, 2)
    assert (contributor.contributions, contributor.duplicates) == (2, 1)
    assert 0 < contributor.contributions_per_second == normalizer.contributions_per_second <= 2.1
    assert told.server.store == "sqlite"
    assert told.server.not_ready == ""
    assert list(told.server.readable_prefixes) == [""]
    assert told.server.last_commit_time.ToSeconds() > told.server.start_time.ToSeconds()
    (load,) = told.load
    assert load.resident_bytes > 1 << 20
    stub.DeleteNormalizer(pb.DeleteNormalizerRequest(name=name))
    assert not stub.GetActivity(pb.GetActivityRequest(prefix=name)).activity.normalizers


def test_wrong_questions_are_refused(stub: NormalizationServiceStub) -> None:
    assert refused(stub.GetActivity, pb.GetActivityRequest(prefix="?")).field == "prefix"
    assert refused(stub.WatchActivity, pb.WatchActivityRequest(limit=-1)).field == "limit"
    assert refused(stub.GetActivity, pb.GetActivityRequest(seconds=-1)).field == "seconds"


def test_it_is_told_every_second_and_the_load_once(stub: NormalizationServiceStub) -> None:
    watching = stub.WatchActivity(pb.WatchActivityRequest(seconds=300), timeout=20)
    told = [next(watching).activity for _ in range(3)]
    watching.cancel()
    assert len(told[0].load) >= 1
    times = [one.load[-1].time.ToMicroseconds() / 1e6 for one in told]
    assert all(0.5 < apart < 3 for apart in np.diff(times))
    assert [len(one.load) for one in told[1:]] == [1, 1]


def test_a_history_has_the_newest_version_at_once(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(2))
    assert not stub.GetHistory(pb.GetHistoryRequest(normalizer=name)).points
    stub.UpdateRunningStats(update(name, np.array([[1.0, 10.0], [3.0, 30.0]])))
    (newest,) = stub.GetHistory(pb.GetHistoryRequest(normalizer=name)).points
    now = stats(stub, name)
    assert (newest.version, newest.count, newest.num_batches) == (now.version, 2, 1)
    assert newest.time == now.update_time
    assert (newest.mean.min, newest.mean.max) == tuple(numbers(now.mean))
    assert (newest.std.min, newest.std.max) == tuple(np.sqrt(numbers(now.var)))


def test_a_history_grows_by_itself(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.Standardize(2))
    for _ in range(3):
        stub.UpdateRunningStats(update(name, np.ones((2, 2))))
        time.sleep(1.1)
    assert len(stub.GetHistory(pb.GetHistoryRequest(normalizer=name)).points) >= 2


def test_a_normalizer_without_statistics_has_no_history(stub: NormalizationServiceStub, name: str) -> None:
    create(stub, name, specs.LayerNorm(2))
    told = refused(stub.GetHistory, pb.GetHistoryRequest(normalizer=name))
    assert told.reason == "KEEPS_NO_STATISTICS"


def test_an_open_round_tells_who_is_there_and_who_is_missing(
    server: ServerProcess, stub: NormalizationServiceStub, name: str
) -> None:
    x = np.ones((2, 3), np.float32)
    with normstats.connect(server.target) as client:
        obs = client.create(name, normstats.Standardize(3))
        with obs.join("step", size=2, timeout=20) as one, obs.join("step", size=2, timeout=20) as other:
            first = threading.Thread(target=one.sync, args=(x,))
            first.start()
            other.sync(x)
            first.join()
            second = threading.Thread(target=one.sync, args=(x,))
            second.start()
            (waiting,) = _rounds(stub, name)
            assert (waiting.round, waiting.size) == (2, 2)
            assert len(waiting.present) == len(waiting.missing) == 1
            assert set(waiting.present).isdisjoint(waiting.missing)
            assert 0 <= waiting.waited_seconds < 20
            assert 0 < waiting.remaining_seconds <= 20
            other.sync(x)
            second.join()
        assert not stub.GetActivity(pb.GetActivityRequest(prefix=name)).activity.rounds


def _rounds(stub: NormalizationServiceStub, prefix: str) -> list[object]:
    for _ in range(200):
        if rounds := stub.GetActivity(pb.GetActivityRequest(prefix=prefix)).activity.rounds:
            return list(rounds)
        time.sleep(0.02)
    raise TimeoutError("no round is open")


def test_who_may_read_some_names_is_told_of_those(tmp_path: Path) -> None:
    file = tmp_path / "credentials.toml"
    file.write_text(stanza("robot", "read", "robot/", "a") + stanza("all", "admin", "", "b"))
    server = ServerProcess(tmp_path, "--credentials", str(file)).start()
    try:
        with normstats.connect(server.target, token="b") as client:
            for name in ("robot/obs", "other/obs"):
                client.create(name, normstats.Standardize(2)).update(np.ones((2, 2)))
        seen = {}
        for token in "ab":
            with normstats.connect(server.target, token=token) as client:
                told = client.activity()
                seen[token] = {one.name for one in told.normalizers}, {one.normalizer for one in told.producers}
        assert seen["a"] == ({"robot/obs"}, {"robot/obs"})
        assert seen["b"] == ({"robot/obs", "other/obs"}, {"robot/obs", "other/obs"})
    finally:
        server.stop()
