"""Polyak's step size for momentum: from how far the value is above its minimum (`polyak-momentum`).

`momentum_polyak` (heavy ball, ALR-HB):

    x+ = x - eta g + beta (x - x_before),   eta = (f - f* + beta g.(x - x_before)) / |g|^2

`moving_average_polyak` (ALR-MAG):

    d = beta d + g,   x+ = x - eta d,   eta = (f - f*) / |d|^2

On batches f and f* are the batch's (0 for f* where a model can fit every sample) and `eta` is
`min(largest, (f - f*) / (c |d|^2))`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from optax import tree_utils as trees

from nearly.core.errors import InputError
from nearly.optimize.adaptive.settings import check_decays, check_positive


class MomentumState(NamedTuple):
    """The last step (heavy ball), or the running sum of gradients."""

    memory: PyTree


def momentum_polyak(
    momentum: float = 0.9, minimum: float = 0.0, largest: Any = math.inf, scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Heavy-ball momentum with Polyak's step size.

    **Arguments:** `momentum` in [0, 1); `minimum`, f* or a lower bound of it; `largest`, the step
    size's cap; `scale`, c, which divides it (1 in full batches; the paper tunes it below 1 in
    stochastic ones). `update` needs `value`, the loss at the parameters.

    Raises `InputError` for values out of range. Costs O(parameters) time and a copy of them. The
    numerator is clipped at 0: momentum may point uphill. A `minimum` above the true one freezes the
    run where the value passes it; one far below makes steps too long.
    """
    _check(momentum, minimum, largest, scale)

    def update(
        updates: PyTree, state: MomentumState, params: Any = None, *, value: Any, **extra: Any
    ) -> tuple[PyTree, MomentumState]:
        del params, extra
        above = value - minimum + momentum * trees.tree_vdot(updates, state.memory)
        rate = _rate(above, updates, largest, scale)
        step = jax.tree.map(
            lambda g, s: momentum * s - rate.astype(g.dtype) * g, updates, state.memory
        )
        return step, MomentumState(step)

    return optax.GradientTransformationExtraArgs(_init, cast("Any", update))


def moving_average_polyak(
    momentum: float = 0.9, minimum: float = 0.0, largest: Any = math.inf, scale: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """A running sum of gradients with Polyak's step size; arguments as `momentum_polyak`'s."""
    _check(momentum, minimum, largest, scale)

    def update(
        updates: PyTree, state: MomentumState, params: Any = None, *, value: Any, **extra: Any
    ) -> tuple[PyTree, MomentumState]:
        del params, extra
        total = jax.tree.map(lambda g, d: momentum * d + g, updates, state.memory)
        rate = _rate(value - minimum, total, largest, scale)
        return jax.tree.map(lambda d: -rate.astype(d.dtype) * d, total), MomentumState(total)

    return optax.GradientTransformationExtraArgs(_init, cast("Any", update))


def _init(params: PyTree) -> MomentumState:
    return MomentumState(jax.tree.map(jnp.zeros_like, params))


def _rate(above: Any, direction: PyTree, largest: Any, scale: float) -> Any:
    square = trees.tree_norm(direction, squared=True)
    safe = jnp.where(square > 0, square, 1)
    return jnp.where(square > 0, jnp.minimum(jnp.maximum(above, 0) / (scale * safe), largest), 0)


def _check(momentum: float, minimum: float, largest: Any, scale: float) -> None:
    check_decays(momentum=momentum)
    check_positive(scale=scale)
    if isinstance(largest, (int, float)):  # a traced one cannot be looked at
        check_positive(largest=largest)
    if not math.isfinite(minimum):
        raise InputError(f"minimum {minimum} must be finite: a lower bound of the loss, such as 0")
