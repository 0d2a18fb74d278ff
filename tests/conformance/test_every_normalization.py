"""Every normalization of the design through client and server, against its definition in float64; and back."""

from __future__ import annotations

import numpy as np
import pytest

import normstats

RNG = np.random.default_rng(5)


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def test_standardize_and_back(client: normstats.Client, name: str) -> None:
    x = RNG.normal([0, 100, -5], [1, 50, 1e-3], (64, 3))
    ours = client.create(name, normstats.Standardize(3))
    ours.update(x)
    z = ours.normalize(x)
    close(z, (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-8), 1e-11)  # numpy's mean: eps x mean/std of 5,000
    close(ours.normalize(z, inverse=True), x, 1e-12)


def test_clip_bounds_the_output(client: normstats.Client, name: str) -> None:
    ours = client.create(name, normstats.Standardize(1, clip=2))
    ours.update(np.array([[-1.0], [1.0]]))
    close(ours.normalize(np.array([[-50.0], [0.5], [50.0]])), np.array([[-2.0], [0.5], [2.0]]))


def test_min_max_and_back(client: normstats.Client, name: str) -> None:
    x = RNG.uniform(-7, 3, (50, 2))
    x[:, 1] = 4.0  # a constant goes to the range's lower end
    ours = client.create(name, normstats.MinMax(2, feature_range=(-1, 1)))
    ours.update(x[:20])
    ours.update(x[20:])
    z = ours.normalize(x)
    low, high = x[:, 0].min(), x[:, 0].max()
    close(z[:, 0], (x[:, 0] - low) / (high - low) * 2 - 1, 1e-12)
    close(z[:, 1], np.full(50, -1.0), 1e-12)
    close(ours.normalize(z, inverse=True), x, 1e-12)


def test_min_max_clips_where_it_is_told_to(client: normstats.Client) -> None:
    x = np.array([[0.0], [10.0]])
    close(client.normalize(x, normstats.MinMax(1), mode="batch"), np.array([[0.0], [1.0]]))


def test_batch_norm_by_running_statistics_and_back(client: normstats.Client) -> None:
    x = RNG.normal(size=(4, 2, 3, 5))
    spec = normstats.BatchNorm(2, weight=[2, 3], bias=[1, -1], running_mean=[0.5, -0.5], running_var=[4, 0.25])
    shape = (1, 2, 1, 1)
    mean, var, weight, bias = (
        np.reshape(v, shape) for v in (spec.running_mean, spec.running_var, spec.weight, spec.bias)
    )
    z = client.normalize(x, spec)
    close(z, (x - mean) / np.sqrt(var + 1e-5) * weight + bias, 1e-12)
    close(client.normalize(z, spec, inverse=True), x, 1e-12)


def test_ghost_batches_are_batches_of_their_own(client: normstats.Client, name: str) -> None:
    x = RNG.normal(3, 2, (10, 2))
    spec = normstats.BatchNorm(2, virtual_batch_size=4)
    parts = [client.normalize(part, normstats.BatchNorm(2), mode="batch") for part in (x[:4], x[4:8], x[8:])]
    trained, updated = client.create(name, spec), client.create(f"{name}/updated", spec)
    close(trained.normalize(x, mode="train"), np.concatenate(parts), 1e-12)
    updated.update(x)
    assert trained.stats().num_batches == updated.stats().num_batches == 3
    close(trained.stats().var, updated.stats().var, 1e-14)


def test_batch_renormalization_corrects_toward_the_running_statistics(client: normstats.Client, name: str) -> None:
    ours = client.create(name, normstats.BatchNorm(1, renorm=(1.5, 0.5), momentum=1.0))
    first, second = RNG.normal(0, 1, (100, 1)), RNG.normal(0.2, 1.2, (100, 1))
    close(ours.normalize(first, mode="train"), (first - first.mean()) / np.sqrt(first.var() + 1e-5), 1e-12)
    mean, std = first.mean(), np.sqrt(first.var(ddof=1) + 1e-5)
    own = np.sqrt(second.var() + 1e-5)
    r, d = np.clip(own / std, 1 / 1.5, 1.5), np.clip((second.mean() - mean) / std, -0.5, 0.5)
    close(ours.normalize(second, mode="train"), (second - second.mean()) / own * r + d, 1e-9)


def test_adaptive_instance_norm_takes_the_style_of_a_tensor_or_a_normalizer(
    client: normstats.Client, name: str
) -> None:
    content, style = RNG.normal(size=(2, 3, 16)), RNG.normal(7, 3, (2, 3, 30))
    spec = normstats.AdaptiveInstanceNorm()

    def statistics(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values.mean(axis=2, keepdims=True), np.sqrt(values.var(axis=2, keepdims=True) + 1e-5)

    (mean, std), (style_mean, style_std) = statistics(content), statistics(style)
    close(client.normalize(content, spec, style=style), (content - mean) / std * style_std + style_mean, 1e-12)
    running = client.create(name, normstats.Standardize(3, channel_axis=1))
    running.update(style)
    stats = running.stats()
    assert stats.mean is not None
    assert stats.var is not None
    expected = (content - mean) / std * np.sqrt(stats.var + 1e-5)[:, None] + stats.mean[:, None]
    close(client.normalize(content, spec, style=name), expected, 1e-12)


def test_group_layer_and_rms_norm_of_integers_give_float32(client: normstats.Client) -> None:
    x = RNG.integers(0, 255, (2, 4, 6), dtype=np.uint8)
    for spec in (normstats.GroupNorm(2, 4), normstats.LayerNorm((4, 6)), normstats.RMSNorm(6)):
        y = client.normalize(x, spec)
        assert y.dtype == np.float32
        close(y, client.normalize(x.astype(np.float64), spec) if not isinstance(spec, normstats.RMSNorm) else y, 1e-6)


def test_lp_norm_of_any_order(client: normstats.Client) -> None:
    x = RNG.normal(size=(3, 5))
    for p in (0.5, 1, 2, 3, np.inf):
        norm = np.abs(x).max(axis=1) if p == np.inf else (np.abs(x) ** p).sum(axis=1) ** (1 / p)
        close(client.normalize(x, normstats.LpNorm(p)), x / norm[:, None], 1e-12)


@pytest.mark.parametrize("kind", ["lengths", "mask"])
@pytest.mark.parametrize(
    ("spec", "axis"),
    [
        (normstats.Standardize(4), 1),
        (normstats.BatchNorm(4, channel_axis=2), 1),
        (normstats.BatchNorm(4), 2),
        (normstats.MinMax(4), 1),
        (normstats.InstanceNorm(4), 2),
        (normstats.GroupNorm(2, 4), 2),
        (normstats.LayerNorm(4), 1),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
def test_padding_is_in_no_statistic_and_stays_as_it_was(
    client: normstats.Client, spec: normstats.Spec, axis: int, kind: str
) -> None:
    """Poisoned padding changes no output; each real part is what it would be alone, where samples are independent."""
    lengths = np.array([7, 3, 1, 0])
    x = RNG.normal(2, 3, (4, 7, 4))
    real = np.broadcast_to((np.arange(7) < lengths[:, None])[:, :, None], x.shape)
    mask = np.arange(7) < lengths[:, None]
    if axis == 2:
        x, real = x.transpose(0, 2, 1), real.transpose(0, 2, 1)
    padding = {"lengths": lengths} if kind == "lengths" else {"mask": mask}
    outputs = [client.normalize(np.where(real, x, poison), spec, mode="batch", **padding) for poison in (1e30, -7.0)]
    np.testing.assert_array_equal(outputs[0][real], outputs[1][real])
    assert (outputs[0][~real] == 1e30).all()
    if isinstance(spec, normstats.InstanceNorm):
        whole = client.normalize(np.ascontiguousarray(x[:1]), spec)
        close(outputs[0][:1], whole, 1e-12)


def test_statistics_of_sequences_leave_padding_out(client: normstats.Client, name: str) -> None:
    x, lengths = RNG.normal(size=(3, 5, 2)), [5, 0, 2]
    ours = client.create(name, normstats.Standardize(2))
    ours.update(x, lengths=lengths)
    rows = np.concatenate([x[0], x[2, :2]])
    assert ours.stats().count == 7
    close(ours.stats().mean, rows.mean(axis=0), 1e-14)
    ours.update(x, mask=np.zeros((3, 5), bool))
    assert (ours.stats().count, ours.stats().num_batches) == (7, 1)


def test_weights_count_as_often_as_they_say(client: normstats.Client, name: str) -> None:
    x, weights = RNG.normal(size=(5, 2)), np.array([1, 2, 0, 3, 1])
    ours = client.create(name, normstats.Standardize(2))
    ours.update(x, weights=weights)
    rows = np.repeat(x, weights, axis=0)
    close(ours.stats().var, rows.var(axis=0), 1e-13)
    np.testing.assert_array_equal(ours.stats().min, rows.min(axis=0))


def test_by_time_old_values_fade(client: normstats.Client, name: str) -> None:
    ours = client.create(name, normstats.Standardize(1, half_life=10))
    ours.update(np.array([[8.0]]), time=1_700_000_010.0)
    ours.update(np.array([[2.0]]), time=1_700_000_000.0)  # late, and worth half
    close(ours.stats().mean, np.array([(8 + 2 * 0.5) / 1.5]), 1e-12)
    assert ours.stats().count == 2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool"])
def test_every_dtype_travels(client: normstats.Client, dtype: str) -> None:
    x = RNG.integers(0, 2, (6, 4)).astype(dtype)
    y = client.normalize(x, normstats.LpNorm())
    assert y.dtype == (dtype if dtype.startswith("float") else np.float32)
    norm = np.sqrt((x.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    close(y.astype(np.float64), x / np.maximum(norm, 1e-12), 1e-3 if dtype == "float16" else 1e-6)
