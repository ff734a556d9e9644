"""Scalar AdaGrad: one step size for all parameters, no smoothness and no noise to know.

    x = x - rate g / sqrt(offset^2 + |g_1|^2 + ... + |g|^2)

The norm is over the whole pytree and includes the current gradient, which the theory needs
(`adagrad-norm-sgd`). `optax.scale_by_rss` is the diagonal method: a sum for each coordinate.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from nearly.optimize.adaptive.settings import (
    Rate,
    check_not_negative,
    inner,
    narrowed,
    widened,
)


class AdaGradNormState(NamedTuple):
    """The sum of the squared norms of all gradients, in float32 or better."""

    total: Float[Array, ""]


def scale_by_adagrad_norm(offset: float = 1e-8) -> optax.GradientTransformation:
    """Gradients over the root of the sum of all squared norms.

    **Arguments:** `offset`, at least 0: what the root starts from; large ones tame the first steps.

    Raises `InputError` for a negative offset. Costs O(parameters) time, one number of memory.
    """
    check_not_negative(offset=offset)

    def init(params: PyTree) -> AdaGradNormState:
        kind = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        return AdaGradNormState(jnp.zeros((), kind))

    def update(
        updates: PyTree, state: AdaGradNormState, params: Any = None
    ) -> tuple[PyTree, AdaGradNormState]:
        del params
        total = state.total + inner(updates, updates).astype(state.total.dtype)
        root = jnp.sqrt(offset**2 + total)
        safe = jnp.where(root > 0, root, 1)
        scaled = jax.tree.map(lambda g: g / safe, widened(updates))
        return narrowed(scaled, updates), AdaGradNormState(total)

    return optax.GradientTransformation(init, cast("Any", update))


def adagrad_norm(learning_rate: Rate = 1.0, offset: float = 1e-8) -> optax.GradientTransformation:
    """SGD with the step of scalar AdaGrad.

    **Arguments:** `learning_rate`, best near the distance to the solution; `offset` as
    `scale_by_adagrad_norm`'s.

    Advice: judge the average of the iterates where the gradients are noisy, as the theory does.
    """
    return optax.chain(
        scale_by_adagrad_norm(offset), optax.scale_by_learning_rate(cast("Any", learning_rate))
    )
