"""Optimizers whose learning rate follows a schedule over the steps of the run, for `FiniteSum`."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import equinox as eqx
import numpy as np
import optax

from nearly.optimize.problems.finite_sum import Train, WithRate
from nearly.optimize.schedules import Tabulated, record_norms, refine, tabulated


class Shaped(WithRate):
    """With a schedule: learning rates in units of `learning_rate`, one for each step."""

    shape: Tabulated

    def __call__(self) -> optax.GradientTransformation:
        return self.make(lambda count: self.learning_rate * self.shape(count))


class Decaying(WithRate):
    """With a schedule that is known once the number of steps is.

    **Arguments:** as `WithRate`'s; `shape`: number of steps -> optax schedule of largest value 1.
    """

    shape: Callable[[int], optax.Schedule] = eqx.field(static=True)

    def prepared(self, steps: int, train: Train) -> WithRate:
        del train
        return Shaped(self.make, self.learning_rate, _table(self.shape, steps))


class Refined(WithRate):
    """With the schedule refined from the norms of a run with linear decay.

    **Arguments:** as `WithRate`'s; `order` of the norm and `power` of the weights, equal: 2 for
    SGD, 1 for Adam. The recorded run trains as long as the run itself, and is billed as set-up.
    """

    order: int = eqx.field(static=True)

    def prepared(self, steps: int, train: Train) -> WithRate:
        linear = _table(linear_decay, steps)
        recorded = train(_Recording(self.make, self.learning_rate, linear, self.order))
        norms = np.asarray(recorded[0].norms)
        if not np.all(np.isfinite(norms)) or norms.max() == 0:
            return Shaped(self.make, self.learning_rate, linear)  # that rate diverges: let it
        return Shaped(self.make, self.learning_rate, refine(norms, power=self.order))


class _Recording(Shaped):
    """Keeps the norms of its gradients in its state."""

    order: int = eqx.field(static=True)

    def __call__(self) -> optax.GradientTransformation:
        return optax.chain(record_norms(len(self.shape.values), self.order), super().__call__())


@lru_cache(64)  # every learning rate asks for the same
def _table(shape: Callable[[int], optax.Schedule], steps: int) -> Tabulated:
    return tabulated(shape(steps), steps)


def constant(steps: int) -> optax.Schedule:
    """1 throughout."""
    del steps
    return optax.constant_schedule(1.0)


def linear_decay(steps: int) -> optax.Schedule:
    """From 1 to 0."""
    return optax.linear_schedule(1.0, 0.0, steps)


def cosine_decay(steps: int) -> optax.Schedule:
    """From 1 to 0 along half a cosine."""
    return optax.cosine_decay_schedule(1.0, steps)


def stepwise_decay(steps: int) -> optax.Schedule:
    """By 10 after 30, 60 and 90 of 100 steps."""
    places = {max(1, int(share * steps)): 0.1 for share in (0.3, 0.6, 0.9)}
    return optax.piecewise_constant_schedule(1.0, places)


def inverse_root_decay(steps: int) -> Callable[[Any], Any]:
    """One over the root of the steps taken."""
    del steps
    return lambda count: (1.0 + count) ** -0.5
