"""Running statistics: a policy turns each batch into an element of a monoid, and composes elements in order.

The state of a normalizer and the batches on their way to it are the same type, `Running`. Each policy weighs and
combines them in its own way; it holds no state itself.

| policy       | a batch's weight | an older element's weights, when composed | variance             | commutes |
|--------------|------------------|--------------------------------------------|----------------------|----------|
| Cumulative   | its rows         | stay                                       | merged; m2/(n-ddof)  | yes      |
| BatchAverage | 1                | stay                                       | average of unbiased  | yes      |
| BatchEma     | new_value_weight | times 1 - the newer's weight               | average of unbiased  | no       |
| TimeEma      | its rows         | halve every half_life_seconds              | merged; population   | yes      |

An empty batch, or a feature that has nothing in a batch, contributes nothing and ages nothing, in every policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from normcore.errors import InvalidParameter, NothingSeen, ShapeMismatch, TooFewValues
from normcore.kernels import launch
from normcore.moments import Moments, variance
from normcore.stack import MomentsStack

# What a seed weighs beside one row or batch: it stands until the first one comes, whose rounding then drowns it.
_SEED_WEIGHT = 2.0**-100


@dataclass(frozen=True, eq=False, slots=True)
class Running:
    """An element: a normalizer's state, or what is to be composed onto it.

    Args:
        moments: weighted as the policy says; min and max are those of everything ever seen.
        count: rows ever merged (or the sum of their sample weights), float64, shape () or (C,).
        num_batches: batches ever merged, empty ones left out.
        time: seconds; the moment that the weights of a TimeEma refer to; 0.0 and without meaning where empty.

    Raises:
        ShapeMismatch: the count has another shape.
        InvalidParameter: the count is not float64; num_batches is negative; the time is not finite.
    """

    moments: Moments
    count: Tensor
    num_batches: int = 0
    time: float = 0.0

    def __post_init__(self) -> None:
        if self.count.shape not in (torch.Size(), self.moments.mean.shape):
            raise ShapeMismatch("count", f".shape is {list(self.count.shape)}; expected [] or one value per feature")
        if self.count.dtype != torch.float64:
            raise InvalidParameter("count", f"is {self.count.dtype}; expected torch.float64")
        if self.num_batches < 0:
            raise InvalidParameter("num_batches", f"is {self.num_batches}; expected at least 0")
        if not isfinite(self.time):
            raise InvalidParameter("time", f"is {self.time}; expected seconds, finite")

    @classmethod
    def empty(cls, num_features: int, device: torch.device | None = None) -> Running:
        """The identity of every policy."""
        moments = Moments.empty(num_features, device)
        return cls(moments, moments.count)

    @property
    def is_empty(self) -> bool:
        """Whether no feature has any weight: nothing seen and not seeded."""
        return self.moments.is_empty


@dataclass(frozen=True, eq=False, slots=True)
class Estimate:
    """What one reads of running statistics, float64 (C,); count as in Running; ddof is 1 where var is unbiased."""

    mean: Tensor
    var: Tensor
    min: Tensor
    max: Tensor
    count: Tensor
    ddof: int


class Arrival(NamedTuple):
    """A state and the batches that came after it, in order, seen at `times` (seconds)."""

    state: Running
    batches: MomentsStack
    times: Sequence[float]


class RunningPolicy(ABC):
    """How batches become running statistics."""

    __slots__ = ()

    def of(self, moments: Moments, time: float = 0.0) -> Running:
        """The element of one batch, seen at `time` (seconds).

        Raises:
            TooFewValues: the policy needs an unbiased variance, and a feature has 1 value or less, but not none.
        """
        if moments.is_empty:
            return Running.empty(moments.num_features, moments.mean.device)
        batches = MomentsStack.of((moments,))
        self.check(batches)
        return Running(self._weighted(batches)[0], moments.count, 1, time)

    def check(self, batches: MomentsStack) -> None:
        """Check that each of some batches may become an element.

        Raises:
            TooFewValues: the policy needs an unbiased variance, and a feature has 1 value or less, but not none.
        """
        if not self._spreads:
            counts = batches.counts
            few = (counts > 0) & (counts <= 1)
            _check_count("moments", few, counts, "at least 2 for the unbiased variance: a larger batch")

    def compose(self, older: Running, newer: Running) -> Running:
        """Both, one after the other."""
        return self.compose_all((older, newer))

    def compose_all(self, elements: Sequence[Running]) -> Running:
        """All of them, in order.

        Raises:
            ShapeMismatch: they are of different numbers of features.
            InvalidParameter: there are none.
        """
        values = MomentsStack.of([element.moments for element in elements]).values[:, :, None]
        count = elements[0].count
        for element in elements[1:]:
            count = count + element.count
        (moments,), (time,), _ = self._composed(values, [[element.time for element in elements]])
        return Running(moments, count, sum(element.num_batches for element in elements), time)

    def absorb(self, arrivals: Sequence[Arrival]) -> list[Running]:
        """What each state is after its batches; what `check` has passed.

        For each the same as `compose_all` of the state and `of` each batch. Features are independent of one another,
        so states with as many features and as many batches lie side by side, as one wide state, in one pass.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for index, (_, batches, _) in enumerate(arrivals):
            alike.setdefault((len(batches), batches.num_features), []).append(index)
        absorbed: dict[int, Running] = {}
        for indexes in alike.values():
            absorbed |= zip(indexes, self._side_by_side([arrivals[index] for index in indexes]), strict=True)
        return [absorbed[index] for index in range(len(arrivals))]

    def _side_by_side(self, arrivals: Sequence[Arrival]) -> Iterator[Running]:
        states, stacks, _ = zip(*arrivals, strict=True)
        added = torch.stack([stack.values for stack in stacks], dim=2)
        weighted = self._weighted(MomentsStack(added.flatten(2))).values.reshape(added.shape)
        first = torch.stack([state.moments.values for state in states], dim=1)
        times = [[arrival.state.time, *arrival.times] for arrival in arrivals]
        moments, ends, seen = self._composed(torch.cat((first[None], weighted)), times)
        counts = added[:, 0].sum(0)
        same = (counts == counts[:, :1]).all(1).tolist()
        for index, state in enumerate(states):
            count = state.count + (counts[index, 0] if same[index] else counts[index])
            yield Running(moments[index], count, state.num_batches + sum(seen[index][1:]), ends[index])

    def _composed(
        self, values: Tensor, times: Sequence[Sequence[float]]
    ) -> tuple[list[Moments], list[float], list[list[bool]]]:
        """For each of G states its K weighted elements, composed: values (K, 7, G, C), times G of K.

        Returns their moments, the times that their weights refer to, and which of the elements are not empty.
        """
        counts = values[:, 0]
        seen = (counts > 0).any(2).T.tolist()
        ends, ages = [], []
        for those, some in zip(times, seen, strict=True):
            ends.append(max(compress(those, some), default=0.0))
            ages.append([ends[-1] - time if is_some else 0.0 for time, is_some in zip(those, some, strict=True)])
        factors = self._factors(counts, ages)
        flat = None if factors is None else factors.expand(counts.shape).flatten(1)
        composed = launch.compose(values.flatten(2), flat, between=self._spreads).reshape(values.shape[1:])
        # Each of its own, so that one that is kept does not keep all the others.
        return [Moments(one.clone(memory_format=torch.contiguous_format)) for one in composed.unbind(1)], ends, seen

    def estimate(self, running: Running) -> Estimate:
        """The statistics.

        Raises:
            NothingSeen: some feature has seen nothing.
            TooFewValues: some feature has too few values for the variance.
        """
        if running.is_empty:
            raise NothingSeen(0)
        moments = running.moments
        weight = moments.count.expand_as(moments.mean)
        if bool((weight <= 0).any()):
            raise NothingSeen(int((weight <= 0).nonzero()[0]))
        mean, var, ddof = self._read(moments)
        return Estimate(mean, var, moments.min, moments.max, running.count, ddof)

    def seed(
        self, mean: Tensor, var: Tensor, *, count: float = 0.0, num_batches: int = 0, time: float = 0.0
    ) -> Running:
        """A state that starts from given statistics, as if `count` rows in `num_batches` batches had led there.

        With neither it stands until the first batch, and is then forgotten as far as the policy forgets: at once by
        all but BatchEma, where it takes the place of torch's initial mean 0 and variance 1. Nothing being known of the
        values themselves, min and max start at the mean.

        Raises:
            ShapeMismatch: mean and var are not both of shape (C,).
            InvalidParameter: var is negative, something is not finite, or the count does not exceed the policy's ddof.
        """
        if mean.dim() != 1 or mean.shape != var.shape:
            raise ShapeMismatch("var", f".shape is {list(var.shape)} and mean's {list(mean.shape)}; expected (C,)")
        mean, var = mean.detach().double(), var.detach().double()
        if not bool((torch.isfinite(mean) & torch.isfinite(var) & (var >= 0)).all()):
            raise InvalidParameter("var", "or mean has values that are negative or not finite")
        weight, degrees = self._seed_weight(count, num_batches)
        if degrees <= 0:
            raise InvalidParameter("count", f"is {count}; expected more than {weight - degrees:g}")
        zero = torch.zeros_like(mean)
        moments = Moments.of(
            count=mean.new_tensor(weight), mean=mean, mean_low=zero, m2=var * degrees, m2_low=zero, min=mean, max=mean
        )
        return Running(moments, mean.new_tensor(count), num_batches, time)

    @property
    @abstractmethod
    def _spreads(self) -> bool:
        """Whether the spread of the elements' means is part of the variance, not each one's unbiased own."""

    def _weighted(self, batches: MomentsStack) -> MomentsStack:
        """Batches with the policy's weights."""
        return batches

    def _factors(self, counts: Tensor, ages: Sequence[Sequence[float]]) -> Tensor | None:
        """What is left of each element's weights when all are composed: (K, G, C) or (K, G, 1); None for all of it.

        counts is (K, G, C); ages are G of K, in seconds before the latest, 0 for what is empty.
        """
        return None

    @abstractmethod
    def _read(self, moments: Moments) -> tuple[Tensor, Tensor, int]:
        """Mean, variance and ddof of moments in which every feature has some weight."""

    @abstractmethod
    def _seed_weight(self, count: float, num_batches: int) -> tuple[float, float]:
        """A seed's weight, and by what its variance is multiplied to give m2."""


@dataclass(frozen=True, slots=True)
class Cumulative(RunningPolicy):
    """Everything ever seen, exactly; var = m2 / (count - ddof). min and max likewise."""

    ddof: int = 0

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise InvalidParameter("ddof", f"is {self.ddof!r}; expected 0 or 1")

    @property
    def _spreads(self) -> bool:
        return True

    def _read(self, moments: Moments) -> tuple[Tensor, Tensor, int]:
        _check_count("statistics", moments.count <= self.ddof, moments.count, f"more than {self.ddof}")
        return moments.mean, variance(moments, self.ddof), self.ddof

    def _seed_weight(self, count: float, num_batches: int) -> tuple[float, float]:
        weight = count or _SEED_WEIGHT
        return weight, weight - self.ddof


@dataclass(frozen=True, slots=True)
class BatchAverage(RunningPolicy):
    """The plain average over batches of their means and unbiased variances: torch.nn.BatchNorm with momentum=None."""

    @property
    def _spreads(self) -> bool:
        return False

    def _weighted(self, batches: MomentsStack) -> MomentsStack:
        return MomentsStack(launch.unbiased(batches.values, 1.0))

    def _read(self, moments: Moments) -> tuple[Tensor, Tensor, int]:
        return moments.mean, variance(moments), 1

    def _seed_weight(self, count: float, num_batches: int) -> tuple[float, float]:
        weight = num_batches or _SEED_WEIGHT
        return weight, weight


@dataclass(frozen=True, slots=True)
class BatchEma(RunningPolicy):
    """new = (1 - new_value_weight) old + new_value_weight batch, of means and unbiased variances; at first 0 and 1.

    This is torch.nn.BatchNorm's running_mean and running_var; torch calls new_value_weight `momentum` (ONNX and Keras
    call 1 - new_value_weight so). An element is the affine map old -> (1 - weight) old + weight mean, and affine maps
    compose: associative, not commutative.
    """

    new_value_weight: float

    def __post_init__(self) -> None:
        if not 0 < self.new_value_weight <= 1:
            raise InvalidParameter("new_value_weight", f"is {self.new_value_weight!r}; expected above 0, at most 1")

    @property
    def _spreads(self) -> bool:
        return False

    def _weighted(self, batches: MomentsStack) -> MomentsStack:
        return MomentsStack(launch.unbiased(batches.values, self.new_value_weight))

    def _factors(self, counts: Tensor, ages: Sequence[Sequence[float]]) -> Tensor | None:
        remaining = _remaining(counts).flip(0)
        return torch.cat((torch.ones_like(counts[:1]), remaining[:-1].cumprod(0))).flip(0)

    def _read(self, moments: Moments) -> tuple[Tensor, Tensor, int]:
        weight = moments.count
        return weight * moments.mean, _remaining(weight) + moments.m2, 1

    def _seed_weight(self, count: float, num_batches: int) -> tuple[float, float]:
        return 1.0, 1.0


@dataclass(frozen=True, slots=True)
class TimeEma(RunningPolicy):
    """A row's weight halves every half_life_seconds; population variance (ddof 0).

    Forward decay (Cormode, Shkapenyuk, Srivastava, Xu, ICDE 2009): weights are relative to the element's time, so
    elements merge in any order, late ones too. A feature unseen for more than 1,074 half-lives has weight 0: nothing.
    """

    half_life_seconds: float

    def __post_init__(self) -> None:
        if not (isfinite(self.half_life_seconds) and self.half_life_seconds > 0):
            raise InvalidParameter("half_life_seconds", f"is {self.half_life_seconds!r}; expected above 0, finite")

    @property
    def _spreads(self) -> bool:
        return True

    def _factors(self, counts: Tensor, ages: Sequence[Sequence[float]]) -> Tensor | None:
        factors = torch.exp2(torch.tensor(ages, dtype=torch.float64) / -self.half_life_seconds)
        return factors.T[:, :, None].to(counts.device)

    def _read(self, moments: Moments) -> tuple[Tensor, Tensor, int]:
        return moments.mean, variance(moments), 0

    def _seed_weight(self, count: float, num_batches: int) -> tuple[float, float]:
        weight = count or _SEED_WEIGHT
        return weight, weight


def _remaining(weight: Tensor) -> Tensor:
    """What an affine map leaves of the old value: 1 - weight, never below 0 by rounding."""
    return (1 - weight).clamp(min=0)


def _check_count(argument: str, bad: Tensor, count: Tensor, expected: str) -> None:
    if bool(bad.any()):
        index = int(bad.reshape(-1).nonzero()[0])
        raise TooFewValues(
            argument, index % count.shape[-1] if count.dim() else 0, float(count.reshape(-1)[index]), expected
        )
