"""What keeps a network from training on by growing its logits (`grokking-numerical-stability`).

Once a network fits its training samples, the gradient points along the weights: growing them grows
the logits, until softmax in finite precision is exactly 1 and gradients vanish.
`orthogonal_gradient` takes that part of the gradient away; `stablemax_cross_entropy` is a loss
whose probabilities do not saturate.
"""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from nearly.optimize.adaptive.settings import needs_params

_TINY = 1e-30
_ROUNDING = 8  # units in the last place of the gradient, below which a remainder is no direction


def orthogonal_gradient() -> optax.GradientTransformation:
    """Each tensor's gradient without its part along the tensor, at the norm it had.

    Put it first in an `optax.chain`; `update` needs the parameters. A tensor that is zero keeps its
    gradient. Costs O(parameters) time, no memory. As in the paper's code, biases are treated like
    weights; unlike it, norms are accumulated in float32 or better, and a gradient along its tensor
    (always so for a single number) gives 0 where the code would blow rounding up to the full norm.
    """

    def init(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        needs_params(params, "orthogonal_gradient")
        return jax.tree.map(_orthogonal, updates, params), state

    return optax.GradientTransformation(init, cast("Any", update))


def _orthogonal(g: Array, w: Array) -> Array:
    kind = jnp.result_type(g, jnp.float32)
    gradient, weights = g.astype(kind), w.astype(kind)
    share = jnp.sum(weights * gradient) / (jnp.sum(weights**2) + _TINY)
    across = gradient - share * weights
    size, left = jnp.sqrt(jnp.sum(gradient**2)), jnp.sqrt(jnp.sum(across**2))
    noise = _ROUNDING * jnp.finfo(kind).eps * size
    return jnp.where(left > noise, across * size / (left + _TINY), 0).astype(g.dtype)


def stablemax_cross_entropy(
    logits: Float[Array, "*batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Cross-entropy of `s(logit) / sum s`, with s = x + 1 above 0 and 1 / (1 - x) below.

    **Returns:** the loss of each sample, in the logits' precision. s grows linearly, not
    exponentially, so a probability reaches 1 only slowly and its gradient does not underflow.
    """
    log_scores = _log_score(logits)
    chosen = jnp.take_along_axis(log_scores, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(log_scores, axis=-1) - chosen


def _log_score(x: Array) -> Array:
    # Both branches are differentiated: neither may divide by zero.
    return jnp.where(x >= 0, jnp.log1p(jnp.maximum(x, 0)), -jnp.log1p(-jnp.minimum(x, 0)))
