"""The client against a real server: both kinds, errors, chunks, streams over breaks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import normstats
from normstats import chunking
from tests.server_process import ServerProcess

RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[normstats.Client]:
    with normstats.connect(server.target) as client:
        yield client


class TestErrors:
    """The server's sentence, and the field's path."""

    def test_a_name_of_nothing(self, client: normstats.Client) -> None:
        with pytest.raises(normstats.NotFound, match="there is no normalizer 'no/such'") as caught:
            client.get("no/such")
        assert caught.value.reason == "NORMALIZER_NOT_FOUND"

    def test_a_wrong_shape_names_the_dimension(self, client: normstats.Client, name: str) -> None:
        ours = client.create(name, normstats.Standardize(17))
        with pytest.raises(normstats.InvalidArgument, match=r"batch\.shape\[1\] is 12; .* 17 features") as local:
            ours.update(np.zeros((3, 12)))
        ours.update(np.zeros((3, 17)))
        with pytest.raises(normstats.InvalidArgument, match=r"input\.shape\[1\] is 12; expected .* 17") as remote:
            ours.normalize(np.zeros((3, 12)))
        assert (local.value.field, remote.value.field) == ("batch.shape[1]", "input.shape[1]")
        assert isinstance(remote.value, ValueError)

    def test_values_that_are_not_finite_are_refused_before_they_are_sent(
        self, client: normstats.Client, name: str
    ) -> None:
        ours = client.create(name, normstats.Standardize(2))
        with pytest.raises(
            normstats.InvalidArgument, match="2 values that are not finite, the first of feature 1 in row 0"
        ):
            ours.update(np.array([[1.0, np.nan], [np.inf, 2.0]]))
        assert ours.stats().count == 0

    def test_frozen_is_a_precondition(self, client: normstats.Client, name: str) -> None:
        ours = client.create(name, normstats.Standardize(1))
        assert ours.freeze().frozen
        with pytest.raises(normstats.FailedPrecondition, match="is frozen"):
            ours.update(np.ones((1, 1)))
        assert not ours.unfreeze().frozen

    def test_a_taken_name(self, client: normstats.Client, name: str) -> None:
        client.create(name, normstats.MinMax(1))
        with pytest.raises(normstats.AlreadyExists):
            client.create(name, normstats.MinMax(1))
        with pytest.raises(normstats.AlreadyExists, match="of another spec"):
            client.create(name, normstats.MinMax(2), exist_ok=True)

    def test_an_unknown_mode(self, client: normstats.Client) -> None:
        with pytest.raises(normstats.InvalidArgument, match="mode is 'test'"):
            client.normalize([[1.0]], normstats.LpNorm(), mode="test")  # type: ignore[arg-type]

    def test_no_server_is_a_deadline(self) -> None:
        with normstats.connect("127.0.0.1:1", timeout=0.3) as nobody, pytest.raises(normstats.DeadlineExceeded):
            nobody.get("a")

    def test_a_normalization_without_statistics_takes_no_update(self, client: normstats.Client, name: str) -> None:
        with pytest.raises(normstats.FailedPrecondition, match="keeps no running statistics"):
            client.create(name, normstats.LayerNorm(3)).update(np.ones((2, 3)))


class TestNormalizer:
    """What one does with a normalizer."""

    def test_its_life(self, client: normstats.Client, name: str) -> None:
        ours = client.create(name, normstats.Standardize(2), exist_ok=True)
        assert ours.stats().mean is None
        first = ours.update(RNG.normal(size=(10, 2)))
        assert first == normstats.UpdateResult(version=2, duplicate=False, frozen=False)
        kept = ours.snapshot("a")
        assert (kept.tag, kept.version, kept.count) == ("a", 2, 10)
        ours.update(RNG.normal(3, 1, size=(10, 2)))
        drift = ours.compare("a")
        assert (drift.base_version, drift.version) == (2, 3)
        assert (drift.mean_shift > 0.5).all()
        assert ours.restore("a").version == 4
        assert ours.stats().count == 10
        assert [one.tag for one in ours.snapshots()] == ["a"]
        ours.delete_snapshot("a")
        assert list(ours.snapshots()) == []
        for tag in ("c", "b", "a"):
            ours.snapshot(tag, keep_last=2)
        assert [one.tag for one in ours.snapshots()] == ["a", "b"]
        assert ours.reset().count == 0
        assert ours.refresh().version == 5
        assert repr(ours) == f"<Normalizer '{name}' Standardize version 5>"
        ours.delete()
        with pytest.raises(normstats.NotFound):
            ours.stats()

    def test_parameters_are_learnable(self, client: normstats.Client, name: str) -> None:
        ours = client.create(name, normstats.LayerNorm(2))
        ours.set_parameters(weight=[2, 2], bias=np.array([0.0, 1.0], np.float32))
        np.testing.assert_allclose(ours.normalize(np.array([[-1.0, 1.0]])), [[-2, 3]], rtol=1e-4)

    def test_statistics_move_to_another_server_to_the_bit(
        self, client: normstats.Client, name: str, own_server: ServerProcess
    ) -> None:
        ours = client.create(name, normstats.BatchNorm(3, momentum=0.3))
        for _ in range(5):
            ours.update(RNG.normal(1e5, 1, size=(6, 3)))
        before = ours.stats(include_state=True)
        with normstats.connect(own_server.start().target) as other:
            after = other.create("copy", ours.spec, state=before.state).stats(include_state=True)
        assert after.state == before.state
        np.testing.assert_array_equal(after.var, before.var)

    def test_many_arrays_come_back_in_order_as_if_one_by_one(self, client: normstats.Client) -> None:
        arrays = [RNG.normal(size=(1 + i % 7, 8)).astype(np.float32) for i in range(100)]
        arrays.append(RNG.normal(size=(70_000, 8)).astype(np.float32))  # in chunks
        spec = normstats.LayerNorm(8)
        many = client.normalize_many(iter(arrays), spec)
        for x, y in zip(arrays, many, strict=True):
            np.testing.assert_array_equal(y, client.normalize(x, spec))
        assert client.normalize_many([], spec) == []
        with pytest.raises(normstats.InvalidArgument):
            client.normalize_many([arrays[0], np.ones((2, 9), np.float32), arrays[1]], spec)

    def test_many_at_once_all_or_nothing(self, client: normstats.Client, name: str) -> None:
        a, b = (client.create(f"{name}/{part}", normstats.Standardize(n)) for part, n in (("a", 2), ("b", 1)))
        results = client.update({a.name: np.ones((3, 2)), b.name: np.ones(3)}, weights={b.name: [1, 0, 4]})
        assert {one: result.version for one, result in results.items()} == {a.name: 2, b.name: 2}
        assert (a.stats().count, b.stats().count) == (3, 5)
        b.freeze()
        with pytest.raises(normstats.FailedPrecondition):
            client.update({a.name: np.ones((3, 2)), b.name: np.ones(3)})
        assert a.stats().count == 3

    def test_names_are_listed_by_prefix(self, client: normstats.Client, name: str) -> None:
        for part in "cab":
            client.create(f"{name}/{part}", normstats.LpNorm())
        assert [info.name for info in client.list(f"{name}/")] == [f"{name}/{part}" for part in "abc"]
        client.delete(f"{name}/a")
        assert len(list(client.list(f"{name}/"))) == 2

    def test_watching_survives_a_restart_and_repeats_nothing(self, own_server: ServerProcess) -> None:
        with normstats.connect(own_server.start().target) as client:
            ours = client.create("a", normstats.Standardize(1))
            watching = ours.watch(timeout=60)
            assert next(watching).version == 1
            own_server.kill()
            own_server.start()
            ours.update(np.ones((1, 1)))
            assert next(watching).version == 2
            watching.close()


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Three chunks and a bit."""
    rows = 3 * chunking.CHUNK_BYTES // (4 * 64) + 17
    return np.random.default_rng(8).normal(4, 2, (rows, 64)).astype(np.float32)


class TestChunks:
    """Large arrays travel in chunks of rows, and nobody can tell."""

    @pytest.mark.parametrize(
        "spec",
        [
            normstats.LayerNorm(64),
            normstats.LpNorm(axis=-1),
            normstats.MeanVarianceNorm(axes=(-1,)),
            normstats.Standardize(64),
            normstats.MinMax(64),
            normstats.BatchNorm(64),
            normstats.BatchNorm(64, running_mean=np.ones(64), running_var=np.ones(64)),
            normstats.LpNorm(axis=0),
            normstats.BatchNorm(64, virtual_batch_size=1000),
        ],
        ids=repr,
    )
    def test_chunks_are_the_whole(
        self, client: normstats.Client, x: np.ndarray, spec: normstats.Spec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        in_chunks = client.normalize(x, spec)
        monkeypatch.setattr(chunking, "CHUNK_BYTES", 2**40)
        np.testing.assert_allclose(in_chunks, client.normalize(x, spec), rtol=0, atol=1e-6)

    def test_padding_is_cut_along(self, client: normstats.Client, monkeypatch: pytest.MonkeyPatch) -> None:
        x = RNG.normal(size=(1200, 30, 10)).astype(np.float32)
        lengths = RNG.integers(0, 31, 1200)
        for padding in ({"lengths": lengths}, {"mask": np.arange(30) < lengths[:, None]}):
            in_chunks = client.normalize(x, normstats.Standardize(10), mode="batch", **padding)
            with monkeypatch.context() as patch:
                patch.setattr(chunking, "CHUNK_BYTES", 2**40)
                whole = client.normalize(x, normstats.Standardize(10), mode="batch", **padding)
            np.testing.assert_allclose(in_chunks, whole, rtol=0, atol=1e-6)

    def test_a_large_batch_is_trained_on_once(
        self, client: normstats.Client, x: np.ndarray, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(chunking, "MAX_TRAIN_BYTES", 0)
        ours = client.create(name, normstats.BatchNorm(64))
        y = ours.normalize(x, mode="train")
        np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-4)
        assert (ours.stats().count, ours.stats().num_batches) == (len(x), 1)

    def test_the_servers_error_comes_through(self, client: normstats.Client, x: np.ndarray, name: str) -> None:
        with pytest.raises(normstats.FailedPrecondition, match="contribute first"):
            client.create(name, normstats.Standardize(64)).normalize(x)


class TestStream:
    """Contributions, pipelined."""

    def test_leaving_waits_until_all_is_durable(self, client: normstats.Client, name: str) -> None:
        ours, x = client.create(name, normstats.Standardize(3)), RNG.normal(size=(300, 3))
        with ours.stream(window=7) as stream:
            for part in np.array_split(x, 100):
                stream.update(part)
        assert stream.acknowledged == 100
        np.testing.assert_allclose(ours.stats().var, x.var(axis=0), rtol=1e-13)

    def test_it_goes_on_over_kill_9_and_counts_once(self, own_server: ServerProcess) -> None:
        with normstats.connect(own_server.start().target) as client:
            ours = client.create("a", normstats.Standardize(1))

            def kill() -> None:
                for _ in range(2):
                    time.sleep(0.2)
                    own_server.kill()
                    own_server.start()

            killer = threading.Thread(target=kill)
            killer.start()
            with ours.stream() as stream:
                sent = 0
                while killer.is_alive() or sent < 500:
                    stream.update(np.full((1, 1), sent))
                    sent += 1
            killer.join()
            stats = ours.stats()
            assert (stats.count, stats.num_batches) == (sent, sent)
            np.testing.assert_allclose(stats.mean, [(sent - 1) / 2], rtol=1e-14)

    def test_what_the_server_refuses_is_raised(self, client: normstats.Client, name: str) -> None:
        ours = client.create(name, normstats.Standardize(1))
        stream = ours.stream()

        def contribute() -> None:
            with stream:
                stream.update(np.ones((1, 1)))
                stream.flush()
                ours.freeze()
                stream.update(np.ones((1, 1)))

        with pytest.raises(normstats.FailedPrecondition, match="is frozen"):
            contribute()
        assert (stream.acknowledged, ours.stats().count) == (1, 1)

    def test_after_an_error_nothing_more_is_taken_in(self, client: normstats.Client, name: str) -> None:
        ours = client.create(name, normstats.Standardize(1))
        ours.freeze()

        def contribute() -> None:
            with ours.stream() as stream:
                while True:
                    stream.update(np.ones((1, 1)))

        with pytest.raises(normstats.FailedPrecondition, match="is frozen"):
            contribute()

    def test_an_error_in_the_body_does_not_wait(self, client: normstats.Client, name: str) -> None:
        ours = client.create(name, normstats.Standardize(1))

        def contribute() -> None:
            with ours.stream() as stream:
                stream.update(np.ones((1, 1)))
                raise LookupError

        with pytest.raises(LookupError):
            contribute()

    def test_outside_of_its_block_it_takes_nothing(self, client: normstats.Client, name: str) -> None:
        stream = client.create(name, normstats.Standardize(1)).stream()
        with pytest.raises(normstats.Cancelled, match="not open"):
            stream.update(np.ones((1, 1)))

    def test_a_server_that_is_away_is_a_deadline(self, own_server: ServerProcess) -> None:
        with normstats.connect(own_server.start().target, timeout=0.5) as client:
            ours = client.create("a", normstats.Standardize(1))
            own_server.kill()
            stream = ours.stream()

            def contribute() -> None:
                with stream:
                    stream.update(np.ones((1, 1)))

            with pytest.raises(normstats.DeadlineExceeded):
                contribute()


class TestAio:
    """The same names, awaited."""

    async def test_a_session(self, server: ServerProcess, name: str) -> None:
        x = RNG.normal(5, 2, (200, 3)).astype(np.float32)
        async with normstats.aio.connect(server.target) as client:
            ours = await client.create(name, normstats.Standardize(3))
            assert (await ours.update(x[:100])).version == 2
            async with ours.stream() as stream:
                for part in np.array_split(x[100:], 10):
                    await stream.update(part)
                await stream.flush()
                assert stream.acknowledged == 10
            z = await ours.normalize(x)
            np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-6)
            many = await client.normalize_many(np.array_split(x, 70), name)
            np.testing.assert_array_equal(np.concatenate(many), z)
            with pytest.raises(normstats.NotFound):
                await client.normalize_many([x] * 50, "nobody")
            large = np.tile(x, (1000, 1))
            np.testing.assert_allclose(
                await client.normalize(large, normstats.Standardize(3), mode="batch"), np.tile(z, (1000, 1)), atol=1e-5
            )
            await client.update({name: x})
            async for stats in ours.watch():
                assert stats.count == 400
                break
            assert [info.name async for info in client.list(name)] == [name]
            await ours.snapshot("a")
            assert [one.tag async for one in ours.snapshots()] == ["a"]
            with pytest.raises(normstats.NotFound):
                await client.get(f"{name}/no")

    async def test_the_client_may_be_awaited(self, server: ServerProcess) -> None:
        client = await normstats.aio.connect(server.target)
        y = await client.normalize([[3.0, 4.0]], normstats.LpNorm())
        np.testing.assert_allclose(y, [[0.6, 0.8]])
        await client.close()

    async def test_a_stream_goes_on_over_kill_9(self, own_server: ServerProcess) -> None:
        async with normstats.aio.connect(own_server.start().target) as client:
            ours = await client.create("a", normstats.Standardize(1))
            async with ours.stream(window=50) as stream:
                for sent in range(300):
                    await stream.update(np.full((1, 1), sent))
                    if sent == 150:
                        own_server.kill()
                        own_server.start()
            assert (await ours.stats()).count == 300
