"""Synchronized rounds through the real client and server, with members that die, stall, leave, come late or restart."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

import normstats
from normstats import Member, Normalizer
from normstats.v1 import normalization_service_pb2 as pb
from normstats.v1.normalization_service_pb2_grpc import NormalizationServiceStub
from tests.server_process import ServerProcess

ROUND_SECONDS = 1.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


@pytest.fixture
def obs(server: ServerProcess, name: str) -> Iterator[Normalizer]:
    with normstats.connect(server.target) as client:
        yield client.create(name, normstats.Standardize(3))


@contextmanager
def members(obs: Normalizer, count: int, **terms: Any) -> Iterator[list[Member]]:
    """`count` members, of a group of as many unless the terms say otherwise."""
    terms = {"size": count, "timeout": 20.0} | terms
    joined = [obs.join("step", **terms) for _ in range(count)]
    try:
        yield joined
    finally:
        for member in joined:
            member.leave()


def batch(seed: int, rows: int = 5) -> np.ndarray:
    return 1e3 + np.random.default_rng(seed).normal(size=(rows, 3))


def all_sync(pool: ThreadPoolExecutor, group: list[Member], batches: list[np.ndarray]) -> list[normstats.Round]:
    given = [pool.submit(member.sync, one) for member, one in zip(group, batches, strict=True)]
    return [one.result(30) for one in given]


def test_everyone_gets_the_moments_of_all(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    with members(obs, 4) as group:
        for step in range(5):
            batches = [batch(4 * step + i, rows=i) for i in range(4)]  # the first is empty, and takes part
            rounds = all_sync(pool, group, batches)
            together = np.concatenate(batches)
            for one in rounds:
                assert (one.round, one.version, one.count) == (step + 1, 0, 6)
                assert set(one.members) == {member.id for member in group}
                assert one.mean.tobytes() == rounds[0].mean.tobytes()
                np.testing.assert_allclose(one.mean, together.mean(0), rtol=1e-15)
                np.testing.assert_allclose(one.var, together.var(0), rtol=1e-12)
                np.testing.assert_array_equal(one.min, together.min(0))
                np.testing.assert_array_equal(one.max, together.max(0))
    assert obs.stats().num_batches == 0


def test_a_round_of_nothing_is_a_round(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    with members(obs, 2) as group:
        rounds = all_sync(pool, group, [np.empty((0, 3))] * 2)
    assert [(one.count, one.mean, one.var) for one in rounds] == [(0, None, None)] * 2


def test_vectors_are_added_up_and_each_sum_is_rounded_once(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    vectors = [np.array([[2.0**300, 1.0], [0.1, i]]) for i in range(3)] + [np.array([[-3 * 2.0**300, 1e-20], [0.1, 3]])]
    with members(obs, 4) as group:
        sums = [future.result(30) for future in [pool.submit(m.reduce, v) for m, v in zip(group, vectors, strict=True)]]
    for one in sums:
        assert one.tolist() == [[0.0, 3.0], [0.4, 6.0]]


def test_rounds_go_into_the_running_statistics_as_one_batch_each(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    batches = [batch(i) for i in range(6)]
    with members(obs, 2, update=True) as group:
        for step in range(3):
            rounds = all_sync(pool, group, batches[2 * step : 2 * step + 2])
            assert [one.version for one in rounds] == [step + 2] * 2
    stats = obs.stats()
    assert (stats.count, stats.num_batches, stats.version) == (30, 3, 4)
    np.testing.assert_allclose(stats.var, np.concatenate(batches).var(0), rtol=1e-12)


def test_a_round_that_misses_a_member_fails_at_its_deadline(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    with members(obs, 3, timeout=ROUND_SECONDS) as group:
        started = time.monotonic()
        given = [pool.submit(member.sync, batch(0)) for member in group[:2]]
        for one in given:
            with pytest.raises(normstats.DeadlineExceeded, match="had 2 members when its 1 s were over") as caught:
                one.result(30)
            assert caught.value.reason == "ROUND_TIMED_OUT"
        assert ROUND_SECONDS <= time.monotonic() - started < 2 * ROUND_SECONDS
        assert {one.round for one in all_sync(pool, group, [batch(i) for i in range(3)])} == {2}


def test_a_round_proceeds_with_those_present_and_names_them(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    with members(obs, 3, timeout=ROUND_SECONDS, on_missing="proceed", quorum=2) as group:
        rounds = all_sync(pool, group[:2], [batch(0), batch(1)])
        for one in rounds:
            assert set(one.members) == {member.id for member in group[:2]}
            assert one.count == 10


def test_a_late_part_is_told_so_and_may_be_given_to_the_next_round(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    with members(obs, 2, timeout=ROUND_SECONDS, on_missing="proceed") as (prompt, late):
        both = all_sync(pool, [prompt, late], [batch(0), batch(1)])
        assert {one.count for one in both} == {10}
        assert prompt.sync(batch(2)).count == 5
        with pytest.raises(normstats.FailedPrecondition, match="round 2 is over, and your part is not in it") as caught:
            late.sync(batch(3))
        assert caught.value.reason == "ROUND_CLOSED"
        assert {one.round for one in all_sync(pool, [prompt, late], [batch(4), batch(5)])} == {3}


class TestAnotherServer:
    """Members come from a server that has died: it told one of them what round 6 came to, and not the other."""

    def member(
        self, stub: NormalizationServiceStub, name: str, next_round: int
    ) -> tuple[queue.Queue[pb.SynchronizeStatsRequest | None], Any]:
        request, frames = pb.SynchronizeStatsRequest, queue.Queue[pb.SynchronizeStatsRequest | None]()
        join = request.Join(
            group=name, member_id=secrets.token_bytes(16), size=2, on_missing=request.ON_MISSING_FAIL,
            group_id=name.encode().ljust(16)[-16:], next_round=next_round,
        )  # fmt: skip
        join.round_timeout.FromSeconds(20)
        frames.put(request(join=join))
        replies = stub.SynchronizeStats(iter(frames.get, None), timeout=30)
        next(replies)
        return frames, replies

    def give(self, frames: queue.Queue[pb.SynchronizeStatsRequest | None], number: int) -> None:
        frames.put(pb.SynchronizeStatsRequest(part=pb.SynchronizeStatsRequest.Part(round=number, vector=bytes(8))))

    @pytest.mark.parametrize("first", ["told", "untold"])
    def test_who_was_not_told_is_told_that_the_result_is_lost(
        self, stub: NormalizationServiceStub, name: str, first: str
    ) -> None:
        if first == "told":
            told, of_told = self.member(stub, name, 7)
            untold, of_untold = self.member(stub, name, 6)
            self.give(untold, 6)
        else:
            untold, of_untold = self.member(stub, name, 6)
            self.give(untold, 6)
            time.sleep(0.3)
            told, of_told = self.member(stub, name, 7)
        with pytest.raises(grpc.RpcError, match="do not give the part again, it may be in it; the group is at round 7"):
            next(of_untold)
        again, of_again = self.member(stub, name, 7)
        self.give(told, 7)
        self.give(again, 7)
        assert next(of_told).merged.round == next(of_again).merged.round == 7
        for frames in (told, untold, again):
            frames.put(None)


def test_a_member_may_leave_and_another_take_its_place(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    with members(obs, 2) as (stays, leaves):
        all_sync(pool, [stays, leaves], [batch(0), batch(1)])
        leaves.leave()
        with pytest.raises(normstats.Cancelled):
            leaves.sync(batch(2))
        with obs.join("step", 2, timeout=20.0) as comes:
            rounds = all_sync(pool, [stays, comes], [batch(2), batch(3)])
        assert {one.round for one in rounds} == {2}
        assert set(rounds[0].members) == {stays.id, comes.id}


def test_a_member_that_hangs_up_after_its_part_is_in_the_round(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    with members(obs, 2) as (stays, dies):
        lost = pool.submit(dies.sync, batch(1))
        time.sleep(0.3)
        dies.leave()
        assert stays.sync(batch(0)).count == 10
        assert isinstance(lost.exception(30), normstats.Cancelled)


def test_members_must_agree(obs: Normalizer, pool: ThreadPoolExecutor) -> None:
    with members(obs, 2) as (one, _):
        waiting = pool.submit(one.sync, batch(0))
        time.sleep(0.3)
        with (
            obs.join("step", 3, timeout=20.0) as other,
            pytest.raises(
                normstats.FailedPrecondition, match="the group's terms are size 2, 20 s, then fail"
            ) as caught,
        ):
            other.sync(batch(1))
        assert caught.value.reason == "OTHER_TERMS"
        assert not waiting.done()
        with obs.join("step", 2, timeout=20.0) as right:
            with pytest.raises(
                normstats.InvalidArgument, match=r"part\.vector has 1 numbers; the other members gave 0"
            ):
                right.sync(batch(1), vector=[1.0])
            right.sync(batch(1))
        assert waiting.result(30).count == 10


@pytest.mark.parametrize("terms", [{"size": 0}, {"quorum": 1}, {"on_missing": "hope"}, {"timeout": 0.0}])
def test_terms_that_make_no_sense_are_refused_at_once(obs: Normalizer, terms: dict[str, Any]) -> None:
    with pytest.raises(normstats.InvalidArgument):
        obs.join("step", **({"size": 2} | terms))


def test_a_frozen_normalizer_takes_no_rounds_and_all_are_told(pool: ThreadPoolExecutor, obs: Normalizer) -> None:
    obs.freeze()
    with members(obs, 2, update=True) as group:
        for one in [pool.submit(member.sync, batch(0)) for member in group]:
            assert isinstance(one.exception(30), normstats.FailedPrecondition)
        obs.unfreeze()
        assert {one.version for one in all_sync(pool, group, [batch(0), batch(1)])} == {4}


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_round_survives_a_restart_and_counts_once(
    own_server: ServerProcess, how: str, pool: ThreadPoolExecutor
) -> None:
    own_server.start()
    with normstats.connect(own_server.target, timeout=60) as client:
        obs = client.create("robot/obs", normstats.Standardize(3))
        done: list[Future[Any]] = []
        steps = 60

        def work(member: Member, seed: int) -> None:
            for step in range(steps):
                member.sync(batch(seed * steps + step))

        with members(obs, 3, update=True) as group:
            done = [pool.submit(work, member, seed) for seed, member in enumerate(group)]
            for _ in range(2):
                threading.Event().wait(0.3)
                getattr(own_server, how)()
                own_server.start()
            for one in done:
                one.result(60)
        stats = obs.stats()
    assert (stats.count, stats.num_batches) == (15 * steps, steps)
    together = np.concatenate([batch(seed) for seed in range(3 * steps)])
    np.testing.assert_allclose(stats.var, together.var(0), rtol=1e-12)
