"""The No-U-Turn sampler, for comparison with kinetic Langevin motion."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nearly.core.errors import InputError

Potential = Callable[[np.ndarray], tuple[float, np.ndarray]]
LARGEST_LOSS = 1000.0  # of energy along a trajectory, after which it counts as diverged


@dataclass(frozen=True)
class Chain:
    """`samples` [draws, d], the gradients they and warm-up took, the `step` found."""

    samples: np.ndarray
    gradients: int
    warmup_gradients: int
    step: float


def no_u_turn(
    potential: Potential,
    start: np.ndarray,
    *,
    draws: int,
    warmup: int,
    seed: int,
    acceptance: float = 0.8,
    deepest: int = 10,
) -> Chain:
    """Sample exp(-potential) on the host, with unit masses and a step size found in warm-up.

    **Arguments:**

    - `potential`: x [d] -> value, gradient, on NumPy arrays. `start`: [d].
    - `draws` after `warmup` ones, during which dual averaging brings the mean acceptance to
      `acceptance`. `deepest`: doublings of a trajectory at most.

    **Raises:** `InputError` for counts below 1, or an `acceptance` outside of (0, 1).

    **Cost:** up to 2^deepest gradients a draw.

    Hoffman and Gelman (2014), algorithm 6, with their constants.
    """
    if draws < 1 or warmup < 1:
        raise InputError(f"draws={draws}, warmup={warmup}: both must be at least 1")
    if not 0 < acceptance < 1:
        raise InputError(f"acceptance={acceptance} must lie between 0 and 1, such as 0.8")
    sampler = _Sampler(potential, np.random.default_rng(seed))
    point = sampler.at(np.asarray(start, np.float64))
    averaging = _DualAveraging(sampler.first_step(point), acceptance)
    samples = np.empty((draws, point.x.size))
    spent = 0
    for index in range(-warmup, draws):
        step = averaging.step if index < 0 else averaging.mean_step
        point, accepted = sampler.draw(point, step, deepest)
        if index < 0:
            averaging.update(accepted)
            spent = sampler.gradients
        else:
            samples[index] = point.x
    return Chain(samples, sampler.gradients - spent, spent, averaging.mean_step)


class _Point(NamedTuple):
    x: np.ndarray
    momentum: np.ndarray
    value: float
    slope: np.ndarray

    @property
    def energy(self) -> float:
        return self.value + float(self.momentum @ self.momentum) / 2


class _Tree(NamedTuple):
    """Both ends of a trajectory, a point drawn from it, how many count, and acceptance's sums."""

    first: _Point
    last: _Point
    drawn: _Point
    size: int
    going: bool
    accepted: float
    tried: int


@dataclass
class _Sampler:
    potential: Potential
    random: np.random.Generator
    gradients: int = 0

    def at(self, x: np.ndarray) -> _Point:
        self.gradients += 1
        value, slope = self.potential(x)
        return _Point(x, np.zeros_like(x), value, slope)

    def leap(self, point: _Point, step: float) -> _Point:
        half = point.momentum - step / 2 * point.slope
        new = self.at(point.x + step * half)
        return new._replace(momentum=half - step / 2 * new.slope)

    def thrown(self, point: _Point) -> _Point:
        return point._replace(momentum=self.random.standard_normal(point.x.size))

    def first_step(self, point: _Point) -> float:
        """Doubled or halved until acceptance of one leap crosses a half."""
        start, step = self.thrown(point), 1.0
        gain = self._gain(start, step)
        direction = 1 if gain > math.log(0.5) else -1
        while direction * gain > direction * math.log(0.5) and 1e-12 < step < 1e12:
            step *= 2.0**direction
            gain = self._gain(start, step)
        return step

    def _gain(self, start: _Point, step: float) -> float:
        """The logarithm of the acceptance of one leap."""
        gain = start.energy - self.leap(start, step).energy
        return gain if math.isfinite(gain) else -math.inf

    def draw(self, point: _Point, step: float, deepest: int) -> tuple[_Point, float]:
        """The next sample, and the mean acceptance along its last doubling."""
        start = self.thrown(point)
        level = -start.energy + math.log(self.random.uniform())
        tree = _Tree(start, start, start, 1, True, 1.0, 1)
        for depth in range(deepest):
            forwards = self.random.uniform() < 0.5
            end = tree.last if forwards else tree.first
            new = self.grown(end, level, step if forwards else -step, depth, start.energy)
            drawn = tree.drawn
            if new.going and self.random.uniform() < new.size / tree.size:
                drawn = new.drawn
            first, last = (tree.first, new.last) if forwards else (new.first, tree.last)
            size, going = tree.size + new.size, new.going and _opens(first, last)
            tree = _Tree(first, last, drawn, size, going, new.accepted, new.tried)
            if not going:
                break
        return tree.drawn, tree.accepted / tree.tried

    def grown(self, end: _Point, level: float, step: float, depth: int, energy: float) -> _Tree:
        """A trajectory of 2^depth leaps from an end, in the order of time."""
        if depth == 0:
            new = self.leap(end, step)
            loss = new.energy if math.isfinite(new.energy) else math.inf
            accepted = math.exp(min(0.0, energy - loss))
            going = level < LARGEST_LOSS - loss
            return _Tree(new, new, new, int(level <= -loss), going, accepted, 1)
        near = self.grown(end, level, step, depth - 1, energy)
        if not near.going:
            return near
        outer = near.last if step > 0 else near.first
        far = self.grown(outer, level, step, depth - 1, energy)
        first, last = (near.first, far.last) if step > 0 else (far.first, near.last)
        size = near.size + far.size
        other = size > 0 and self.random.uniform() < far.size / size
        return _Tree(
            first,
            last,
            far.drawn if other else near.drawn,
            size,
            far.going and _opens(first, last),
            near.accepted + far.accepted,
            near.tried + far.tried,
        )


def _opens(first: _Point, last: _Point) -> bool:
    """Whether both ends of a trajectory still move apart."""
    span = last.x - first.x
    return float(span @ first.momentum) >= 0 and float(span @ last.momentum) >= 0


@dataclass
class _DualAveraging:
    """Nesterov's averaging of the logarithm of the step."""

    step: float
    target: float
    count: int = 0
    deficit: float = 0.0
    log_mean: float = 0.0
    anchor: float = field(init=False)

    def __post_init__(self) -> None:
        self.anchor = math.log(10 * self.step)

    @property
    def mean_step(self) -> float:
        return math.exp(self.log_mean)

    def update(self, accepted: float) -> None:
        self.count += 1
        rate = 1 / (self.count + 10)
        self.deficit = (1 - rate) * self.deficit + rate * (self.target - accepted)
        log_step = self.anchor - math.sqrt(self.count) / 0.05 * self.deficit
        weight = self.count**-0.75
        self.log_mean = weight * log_step + (1 - weight) * self.log_mean
        self.step = math.exp(log_step)
