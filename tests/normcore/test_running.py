"""Every policy composes batches as if it had taken them one by one; the batch policies are torch's to the letter."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from normcore.errors import InvalidParameter, NothingSeen, ShapeMismatch, TooFewValues
from normcore.moments import Moments, moments_of, violations
from normcore.running import Arrival, BatchAverage, BatchEma, Cumulative, Running, RunningPolicy, TimeEma
from normcore.stack import MomentsStack
from tests.normcore.exact import m2_of, relative_error

POLICIES = [Cumulative(), Cumulative(ddof=1), BatchAverage(), BatchEma(0.1), BatchEma(1.0), TimeEma(10.0)]
COMMUTATIVE = [policy for policy in POLICIES if not isinstance(policy, BatchEma)]
every_policy = pytest.mark.parametrize("policy", POLICIES, ids=str)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def element(policy: RunningPolicy, seed: int, rows: int = 5, time: float = 0.0) -> Running:
    x = 10 * random(1, 3, seed=seed) + random(rows, 3, seed=seed + 1000)
    return policy.of(moments_of(x, 1), time)


def state(running: Running) -> list[Tensor]:
    m = running.moments
    return [m.count, m.mean, m.m2, m.min, m.max, running.count, torch.tensor([running.num_batches, running.time])]


def assert_same(a: Running, b: Running) -> None:
    for one, other in zip(state(a), state(b), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-14)


@every_policy
@settings(deadline=None, max_examples=30)
@given(sizes=st.tuples(*[st.integers(0, 4).map(lambda n: n + (n == 1))] * 3), times=st.tuples(*[st.floats(0, 100)] * 3))
def test_composing_is_associative(
    policy: RunningPolicy, sizes: tuple[int, int, int], times: tuple[float, float, float]
) -> None:
    a, b, c = (element(policy, i, size, time) for i, (size, time) in enumerate(zip(sizes, times, strict=True)))
    left = policy.compose(policy.compose(a, b), c)
    assert_same(left, policy.compose(a, policy.compose(b, c)))
    assert_same(left, policy.compose_all([a, b, c]))
    assert violations(left.moments) is None


@pytest.mark.parametrize("policy", COMMUTATIVE, ids=str)
def test_composing_commutes_where_order_does_not_matter(policy: RunningPolicy) -> None:
    elements = [element(policy, seed, time=7.0 * (seed % 3)) for seed in range(5)]
    assert_same(policy.compose_all(elements), policy.compose_all(elements[::-1]))


def test_an_ema_by_batch_does_not_commute() -> None:
    policy = BatchEma(0.5)
    a, b = element(policy, 0), element(policy, 1)
    assert policy.compose(a, b).moments.mean.tolist() != policy.compose(b, a).moments.mean.tolist()


@every_policy
def test_the_empty_element_is_the_identity_to_the_bit(policy: RunningPolicy) -> None:
    one, nothing = element(policy, 0, time=-3.0), Running.empty(3)
    for both in (
        policy.compose(one, nothing),
        policy.compose(nothing, one),
        policy.compose_all([nothing, one, nothing]),
    ):
        assert [t.tolist() for t in state(both)] == [t.tolist() for t in state(one)]
    assert policy.compose(nothing, nothing).is_empty


@every_policy
def test_an_empty_batch_contributes_and_ages_nothing(policy: RunningPolicy) -> None:
    empty = policy.of(moments_of(torch.empty(0, 3), 1), 1e9)
    assert empty.is_empty
    assert (empty.num_batches, empty.time, empty.count.item()) == (0, 0.0, 0)


@every_policy
def test_a_state_absorbs_batches_as_if_each_were_composed(policy: RunningPolicy) -> None:
    masks = [None, torch.tensor([[True, False, True]]), torch.tensor([[False]])]
    batches = [moments_of(random(4, 3, seed=seed), 1, mask=masks[seed % 3]) for seed in range(20)]
    times = [float(seed * 7 % 20) for seed in range(20)]
    state = element(policy, 99, time=3.0)
    one_by_one = policy.compose_all([state, *(policy.of(*one) for one in zip(batches, times, strict=True))])
    absorbed, nothing = policy.absorb(
        [
            Arrival(state, MomentsStack.of(batches), times),
            Arrival(Running.empty(3), MomentsStack.of(batches[2:3]), [1.0]),
        ]
    )
    assert_same(absorbed, one_by_one)
    assert_same(nothing, Running.empty(3))


@every_policy
def test_states_side_by_side_absorb_what_each_does_alone(policy: RunningPolicy) -> None:
    arrivals = []
    for seed in range(24):
        width, count = 1 + seed % 3, 1 + seed % 2
        mask = torch.tensor([[True] * (width - 1) + [seed % 5 > 0]])
        batches = [moments_of(random(4, width, seed=seed * 10 + k), 1, mask=mask) for k in range(count)]
        before = Running.empty(width) if seed % 4 == 0 else policy.of(moments_of(random(3, width, seed=seed), 1), seed)
        arrivals.append(Arrival(before, MomentsStack.of(batches), [float(seed * 3 % 7 + k) for k in range(count)]))
    for together, arrival in zip(policy.absorb(arrivals), arrivals, strict=True):
        (alone,) = policy.absorb([arrival])
        assert [t.tolist() for t in state(together)] == [t.tolist() for t in state(alone)]
        assert together.count.shape == alone.count.shape


@every_policy
def test_composing_many_at_once_is_composing_one_by_one(policy: RunningPolicy) -> None:
    elements = [element(policy, seed, time=float(seed)) for seed in range(200)]
    assert_same(policy.compose_all(elements), reduce(policy.compose, elements))


@pytest.mark.parametrize("new_value_weight", [0.1, 0.01, 1.0, None])
@pytest.mark.parametrize("shape", [(3,), (3, 4, 2)], ids=["BatchNorm1d", "BatchNorm2d"])
def test_batch_policies_are_torch_batch_norm(new_value_weight: float | None, shape: tuple[int, ...]) -> None:
    module = (torch.nn.BatchNorm1d if len(shape) == 1 else torch.nn.BatchNorm2d)(3, momentum=new_value_weight)
    policy = BatchAverage() if new_value_weight is None else BatchEma(new_value_weight)
    running = Running.empty(3)
    generator = torch.Generator().manual_seed(0)
    for step in range(50):
        x = (torch.randn(2 + step % 7, *shape, generator=generator) * 3 + 5).float()
        module(x)
        running = policy.compose(running, policy.of(moments_of(x, 1)))
    estimate = policy.estimate(running)
    assert module.running_mean is not None
    assert module.running_var is not None
    # 50 float32 updates, each rounded to within eps / 2.
    torch.testing.assert_close(estimate.mean.float(), module.running_mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(estimate.var.float(), module.running_var, rtol=1e-6, atol=0)
    assert running.num_batches == module.num_batches_tracked
    assert estimate.ddof == 1


def test_cumulative_statistics_are_those_of_all_rows() -> None:
    x = 1e6 + random(500, 3)
    for ddof in (0, 1):
        policy = Cumulative(ddof)
        estimate = policy.estimate(policy.compose_all([policy.of(moments_of(part, 1)) for part in x.split(37)]))
        torch.testing.assert_close(estimate.mean, x.mean(0), rtol=1e-15, atol=0)
        for var, rows in zip(estimate.var, x.T.tolist(), strict=True):  # torch.var itself is off by 2e-11 here
            assert relative_error(var, m2_of(rows) / (500 - ddof)) < 1e-14
        assert (estimate.count.item(), estimate.ddof) == (500, ddof)
        assert (estimate.min.tolist(), estimate.max.tolist()) == (x.amin(0).tolist(), x.amax(0).tolist())


def test_an_ema_by_time_weighs_rows_by_their_age_whatever_their_order() -> None:
    policy, x, times = TimeEma(half_life_seconds=10.0), random(6, 4, 3), [0.0, 25.0, 3.0, 40.0, 40.0, 7.5]
    running = policy.compose_all([policy.of(moments_of(x[i], 1), times[i]) for i in range(6)])
    weights = torch.tensor([2.0 ** ((time - 40) / 10) for time in times], dtype=torch.float64).repeat_interleave(4)
    rows = x.reshape(-1, 3)
    mean = (weights[:, None] * rows).sum(0) / weights.sum()
    var = (weights[:, None] * (rows - mean).square()).sum(0) / weights.sum()
    estimate = policy.estimate(running)
    torch.testing.assert_close(estimate.mean, mean, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(estimate.var, var, rtol=1e-13, atol=0)
    assert (running.time, running.count.item(), running.num_batches) == (40.0, 24, 6)


@pytest.mark.parametrize("age", [1e3, 1e5, 1e300])
def test_time_that_outlasts_float64_forgets_without_a_nan(age: float) -> None:
    policy = TimeEma(1.0)
    both = policy.compose(element(policy, 0), element(policy, 1, time=age))
    assert violations(both.moments) is None
    torch.testing.assert_close(policy.estimate(both).mean, element(policy, 1).moments.mean, rtol=1e-15, atol=0)


@every_policy
def test_min_and_max_are_of_everything_ever_seen(policy: RunningPolicy) -> None:
    x = random(40, 3)
    x[0], x[1] = -100, 100
    running = policy.compose_all([policy.of(moments_of(part, 1), float(i)) for i, part in enumerate(x.split(4))])
    estimate = policy.estimate(running)
    assert (estimate.min.tolist(), estimate.max.tolist()) == ([-100] * 3, [100] * 3)


@every_policy
def test_a_feature_absent_from_a_batch_stays_as_it_was(policy: RunningPolicy) -> None:
    mask = torch.tensor([[True, True, False]])
    first = element(policy, 0)
    after = policy.compose(first, policy.of(moments_of(random(5, 3, seed=9), 1, mask=mask)))
    assert after.moments.mean[2] == first.moments.mean[2]
    assert after.moments.mean[1] != first.moments.mean[1]
    assert after.count.tolist() == [10, 10, 5]


@every_policy
def test_statistics_of_nothing_are_refused_with_the_feature(policy: RunningPolicy) -> None:
    with pytest.raises(NothingSeen) as caught:
        policy.estimate(Running.empty(3))
    assert caught.value.feature == 0
    x = random(5, 3)
    with pytest.raises(NothingSeen, match="feature 2"):
        policy.estimate(policy.of(moments_of(x, 1, mask=torch.tensor([[True, True, False]]))))


@pytest.mark.parametrize("policy", [BatchAverage(), BatchEma(0.1)], ids=str)
def test_one_value_has_no_unbiased_variance(policy: RunningPolicy) -> None:
    mask = torch.tensor([[True, False], [True, True], [True, False]])
    with pytest.raises(TooFewValues, match="count of 1 in feature 1; expected at least 2") as caught:
        policy.of(moments_of(random(3, 2), 1, mask=mask))
    assert (caught.value.feature, caught.value.count) == (1, 1)


def test_an_unbiased_estimate_of_one_row_is_refused() -> None:
    policy = Cumulative(ddof=1)
    with pytest.raises(TooFewValues):
        policy.estimate(element(policy, 0, rows=1))


@every_policy
def test_a_seed_stands_until_the_first_batch(policy: RunningPolicy) -> None:
    mean, var = random(3), random(3, seed=1).square()
    if policy == Cumulative(ddof=1):
        with pytest.raises(InvalidParameter, match="expected more than 1"):
            policy.seed(mean, var)
        return
    seeded = policy.seed(mean, var)
    estimate = policy.estimate(seeded)
    torch.testing.assert_close(estimate.mean, mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(estimate.var, var, rtol=1e-15, atol=0)
    assert (seeded.num_batches, seeded.count.item()) == (0, 0)
    assert violations(seeded.moments) is None
    after, batch = policy.estimate(policy.compose(seeded, element(policy, 0))), element(policy, 0)
    kept = 1 - policy.new_value_weight if isinstance(policy, BatchEma) else 0.0
    torch.testing.assert_close(after.mean, kept * mean + (1 - kept) * batch.moments.mean, rtol=1e-14, atol=0)


@pytest.mark.parametrize("policy", [Cumulative(), Cumulative(ddof=1), BatchAverage(), TimeEma(5.0)], ids=str)
def test_a_seed_with_a_count_weighs_as_what_led_to_it(policy: RunningPolicy) -> None:
    running = policy.compose_all([element(policy, seed) for seed in range(4)])
    estimate = policy.estimate(running)
    seeded = policy.seed(estimate.mean, estimate.var, count=running.count.item(), num_batches=running.num_batches)
    more = element(policy, 5)
    a, b = policy.estimate(policy.compose(running, more)), policy.estimate(policy.compose(seeded, more))
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(a.var, b.var, rtol=1e-13, atol=0)
    assert a.count == b.count


def test_torch_starts_from_seeded_statistics_too() -> None:
    module, policy = torch.nn.BatchNorm1d(3, momentum=0.3).double(), BatchEma(0.3)
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.copy_(random(3))
    module.running_var.copy_(random(3, seed=1).square())
    running = policy.seed(module.running_mean.clone(), module.running_var.clone())
    for seed in range(5):
        module(random(8, 3, seed=seed))
        running = policy.compose(running, policy.of(moments_of(random(8, 3, seed=seed), 1)))
    torch.testing.assert_close(policy.estimate(running).mean, module.running_mean, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(policy.estimate(running).var, module.running_var, rtol=1e-14, atol=0)


def test_a_seed_is_checked() -> None:
    policy, two = BatchEma(0.1), torch.ones(2)
    with pytest.raises(ShapeMismatch, match="var"):
        policy.seed(two, torch.ones(3))
    with pytest.raises(InvalidParameter, match="negative or not finite"):
        policy.seed(two, -two)


def test_a_variance_never_falls_below_zero_however_long_an_ema_runs() -> None:
    policy = BatchEma(0.3)
    constant = policy.of(moments_of(torch.full((4, 1), 0.1), 1))
    running = Running.empty(1)
    for _ in range(300):
        running = policy.compose(running, constant)
        assert policy.estimate(running).var.item() >= 0
    assert policy.estimate(running).var.item() < 1e-15


def test_a_weight_that_rounding_or_a_peer_left_above_1_gives_no_negative_variance() -> None:
    mean = torch.tensor([0.1], dtype=torch.float64)
    fields = dict.fromkeys(("mean", "min", "max"), mean) | dict.fromkeys(("mean_low", "m2", "m2_low"), mean * 0)
    moments = Moments.of(count=mean.new_tensor(1 + 2**-52), **fields)
    assert BatchEma(0.5).estimate(Running(moments, mean.new_tensor(5), 3)).var.item() == 0


def test_what_weighs_nothing_any_more_leaves_no_trace() -> None:
    policy = BatchEma(1.0)
    older, newer = (torch.full((4, 1), value, dtype=torch.float64) for value in (1e200, 1e-200))
    both = policy.compose(policy.of(moments_of(older, 1)), policy.of(moments_of(newer, 1)))
    assert policy.estimate(both).mean.item() == 1e-200


@pytest.mark.parametrize("weight", [0.0, -0.1, 1.1, float("nan")])
def test_a_new_value_weighs_above_0_and_at_most_1(weight: float) -> None:
    with pytest.raises(InvalidParameter, match="new_value_weight"):
        BatchEma(weight)


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("inf"), float("nan")])
def test_a_half_life_is_a_time(half_life: float) -> None:
    with pytest.raises(InvalidParameter, match="half_life_seconds"):
        TimeEma(half_life)


def test_a_running_state_is_checked_when_made() -> None:
    moments, count = Moments.empty(3), torch.tensor(0.0, dtype=torch.float64)
    with pytest.raises(ShapeMismatch, match="count"):
        Running(moments, count.expand(2))
    with pytest.raises(InvalidParameter, match="num_batches"):
        Running(moments, count, -1)
    with pytest.raises(InvalidParameter, match="time"):
        Running(moments, count, 0, float("-inf"))
    with pytest.raises(InvalidParameter, match="float32"):
        Running(moments, count.float())
