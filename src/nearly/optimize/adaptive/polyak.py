"""Polyak's step size for momentum: from how far the value is above its minimum (`polyak-momentum`).

`momentum_polyak` (heavy ball, ALR-HB):

    x+ = x - eta g + beta (x - x_before),   eta = (f - f* + beta g.(x - x_before)) / |g|^2

`moving_average_polyak` (ALR-MAG):

    d = beta d + g,   x+ = x - eta d,   eta = (f - f*) / |d|^2

On batches f and f* are the batch's (0 for f* where a model can fit every sample) and `eta` is
`min(largest, (f - f*) / (c |d|^2))`.

Both go from a centre z (x, or x + beta (x - x_before)) to the minimum of a model of the loss that
is linear and cut off at f*, by a step of at most `largest`. Weight decay adds `decay |x|^2 / 2` to
what is minimised, as in MoMo: with a = `largest`

    x+ = (z - eta d) / (1 + a decay),   eta = ((1 + a decay) above - a decay d.z) / |d|^2
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from nearly.core.errors import InputError
from nearly.optimize.adaptive.settings import (
    check_decays,
    check_not_negative,
    check_positive,
    inner,
    narrowed,
    needs_params,
    widened,
)


class MomentumState(NamedTuple):
    """The last step (heavy ball), or the running sum of gradients; in float32 or better."""

    memory: PyTree


class _Rule(NamedTuple):
    """How far to go along a slope."""

    largest: Any
    scale: float
    decay: float

    def step(self, above: Any, slope: PyTree, ahead: PyTree, params: Any) -> PyTree:
        """From x, the centre being `x + ahead` and the model there `above` the minimum."""
        square = self.scale * inner(slope, slope)
        safe = jnp.where(square > 0, square, 1)
        if self.decay == 0:
            rate = self._capped(above / safe, square)
            return jax.tree.map(lambda z, d: z - rate * d, ahead, slope)
        needs_params(params, "a Polyak step with weight decay")
        shrink = self.largest * self.decay
        centre = jax.tree.map(jnp.add, widened(params), ahead)
        rate = self._capped(((1 + shrink) * above - shrink * inner(slope, centre)) / safe, square)
        return jax.tree.map(
            lambda z, d, x: (z - rate * d) / (1 + shrink) - x, centre, slope, widened(params)
        )

    def _capped(self, rate: Any, square: Any) -> Any:
        return jnp.where(square > 0, jnp.minimum(jnp.maximum(rate, 0), self.largest), 0)


def momentum_polyak(
    momentum: float = 0.9,
    minimum: float = 0.0,
    largest: Any = math.inf,
    scale: float = 1.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Heavy-ball momentum with Polyak's step size.

    **Arguments:**

    - `momentum` in [0, 1). `minimum`, f* or a lower bound of it.
    - `largest`: the step size's cap. `scale`, c, divides the step size (1 in full batches; the
      paper tunes it below 1 in stochastic ones).
    - `weight_decay`, by a proximal step; needs a finite `largest`, and the parameters in `update`.

    `update` needs `value`, the loss at the parameters.

    Raises `InputError` for values out of range. Costs O(parameters) time and a copy of them. The
    numerator is clipped at 0: momentum may point uphill. A `minimum` above the true one freezes the
    run where the value passes it; one far below makes steps too long.
    """
    rule = _checked(momentum, minimum, largest, scale, weight_decay)

    def update(
        updates: PyTree, state: MomentumState, params: Any = None, *, value: Any, **extra: Any
    ) -> tuple[PyTree, MomentumState]:
        del extra
        slope = widened(updates)
        ahead = jax.tree.map(lambda s: momentum * s, state.memory)
        step = rule.step(value - minimum + inner(slope, ahead), slope, ahead, params)
        return _taken(step, updates, step, state)

    return optax.GradientTransformationExtraArgs(_init, cast("Any", update))


def moving_average_polyak(
    momentum: float = 0.9,
    minimum: float = 0.0,
    largest: Any = math.inf,
    scale: float = 1.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """A running sum of gradients with Polyak's step size; arguments as `momentum_polyak`'s."""
    rule = _checked(momentum, minimum, largest, scale, weight_decay)

    def update(
        updates: PyTree, state: MomentumState, params: Any = None, *, value: Any, **extra: Any
    ) -> tuple[PyTree, MomentumState]:
        del extra
        total = jax.tree.map(lambda g, d: momentum * d + g, widened(updates), state.memory)
        here = jax.tree.map(jnp.zeros_like, total)
        step = rule.step(value - minimum, total, here, params)
        return _taken(step, updates, total, state)

    return optax.GradientTransformationExtraArgs(_init, cast("Any", update))


def _init(params: PyTree) -> MomentumState:
    return MomentumState(widened(jax.tree.map(jnp.zeros_like, params)))


def _taken(
    step: PyTree, updates: PyTree, memory: PyTree, state: MomentumState
) -> tuple[PyTree, MomentumState]:
    # The rate has the precision of the best leaf; each leaf keeps its own.
    return narrowed(step, updates), MomentumState(narrowed(memory, state.memory))


def _checked(
    momentum: float, minimum: float, largest: Any, scale: float, weight_decay: float
) -> _Rule:
    check_decays(momentum=momentum)
    check_positive(scale=scale)
    check_not_negative(weight_decay=weight_decay)
    if isinstance(largest, (int, float)):  # a traced one cannot be looked at
        check_positive(largest=largest)
        if weight_decay and math.isinf(largest):
            raise InputError(
                f"weight_decay {weight_decay} needs a finite largest step size, such as largest=1"
            )
    if not math.isfinite(minimum):
        raise InputError(f"minimum {minimum} must be finite: a lower bound of the loss, such as 0")
    return _Rule(largest, scale, weight_decay)
