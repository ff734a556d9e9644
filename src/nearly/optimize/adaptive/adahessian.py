"""AdaHessian: Adam with the Hessian's diagonal in the denominator (`adahessian`).

    D = | z * (H z) |,  z random signs; averaged over the inputs of a weight matrix, over the
        spatial axes of a convolution's kernel
    m = b1 m + (1 - b1) g,    v = b2 v + (1 - b2) D^2
    x = x - lr (m / (1 - b1^t)) / ((v / (1 - b2^t))^(k/2) + eps) - lr decay x

Absolute values are averaged and then squared, as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree
from optax import tree_utils as trees

from nearly.core.errors import InputError
from nearly.optimize.adaptive.settings import (
    Rate,
    averaged,
    check_decays,
    check_not_negative,
    correction,
    narrowed,
    needs_params,
    widened,
)

Average = Callable[[Array], Array]


class AdaHessianState(NamedTuple):
    """Steps taken, the means of gradient and squared curvature, the key of the next draw."""

    steps: Int[Array, ""]
    mean: PyTree
    square: PyTree
    key: PRNGKeyArray


def random_signs(key: PRNGKeyArray, shape: Sequence[int], dtype: Any) -> Array:
    """Independent -1 and 1, as `jax.random.rademacher`'s, but 32 from each word that is drawn.

    On a CPU drawing a word for each would cost more than the rest of the optimizer.
    """
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32),), jnp.uint32)
    lifted = words << jnp.arange(32, dtype=jnp.uint32)[:, None]
    ones = (lifted & jnp.uint32(1 << 31)) | jnp.uint32(127 << 23)  # a sign and the bits of 1.0
    signs = jax.lax.bitcast_convert_type(ones, jnp.float32)
    return signs.ravel()[:size].reshape(shape).astype(dtype)


def hessian_diagonal(
    value_fn: Callable[[PyTree], Float[Array, ""]], params: PyTree, key: PRNGKeyArray
) -> PyTree:
    """Hutchinson's estimate `z * (H z)` of the Hessian's diagonal: unbiased, one product."""
    signs = trees.tree_random_like(key, params, random_signs)
    product = jax.jvp(jax.grad(value_fn), (params,), (signs,))[1]
    return jax.tree.map(lambda z, h: z * h, signs, product)


def over_inputs(curvature: Array) -> Array:
    """The authors' averaging: matrices over their last axis, kernels over all but the first two.

    The axes that were averaged keep length 1: what is equal along them is kept once.
    """
    if curvature.ndim == 2:
        return jnp.mean(curvature, 1, keepdims=True)
    axes = tuple(range(2, curvature.ndim))
    return jnp.mean(curvature, axes, keepdims=True) if axes else curvature


def scale_by_adahessian(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    power: float = 1.0,
    every: int = 1,
    average: Average = over_inputs,
    *,
    key: PRNGKeyArray,
) -> optax.GradientTransformationExtraArgs:
    """The direction of AdaHessian.

    **Arguments:**

    - `b1`, `b2` in [0, 1); `eps`, beside the root; `power`, k in (0, 1]: 0 would be no curvature.
    - `every`: steps between two estimates of the diagonal. `average`: of |z * H z| over a tensor's
      axes, to any shape that broadcasts to it; `over_inputs` takes matrices to be (out, in) and
      kernels (out, in, *space), as equinox lays them out.
    - `key`: of the random signs.

    `update` needs the parameters and `value_fn`: parameters -> loss, on the batch (and with the
    dropout key) of the gradient. Raises `InputError` for values out of range. Costs a product with
    the Hessian, about two gradients, every `every` steps; a copy of the parameters in float32 or
    better and what `average` leaves of another, where the authors' code keeps two whole copies.
    """
    check_decays(b1=b1, b2=b2)
    check_not_negative(eps=eps)
    if not 0 < power <= 1:
        raise InputError(f"power {power} must lie in (0, 1], such as 1")
    if every < 1:
        raise InputError(f"every {every} must be at least 1 step")

    def init(params: PyTree) -> AdaHessianState:
        mean = widened(jax.tree.map(jnp.zeros_like, params))
        kept = jax.eval_shape(lambda tree: jax.tree.map(average, tree), mean)
        square = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), kept)
        return AdaHessianState(jnp.zeros((), jnp.int32), mean, square, key)

    def update(
        updates: PyTree,
        state: AdaHessianState,
        params: Any = None,
        *,
        value_fn: Callable[[PyTree], Any],
        **extra: Any,
    ) -> tuple[PyTree, AdaHessianState]:
        del extra
        needs_params(params, "adahessian")
        next_key, own = jax.random.split(state.key)

        def look() -> PyTree:
            found = widened(hessian_diagonal(value_fn, params, own))
            sizes = jax.tree.map(lambda h: average(jnp.abs(h)) ** 2, found)
            return averaged(b2, state.square, sizes)

        # A branch would keep what is looked at from being fused with what is made of it.
        due = state.steps % every == 0
        square = look() if every == 1 else jax.lax.cond(due, look, lambda: state.square)
        mean = averaged(b1, state.mean, widened(updates))
        looks = state.steps // every + 1

        def direction(m: Array, v: Array) -> Array:
            first, second = correction(b1, state.steps + 1, m), correction(b2, looks, v)
            return m / first / ((v / second) ** (power / 2) + eps)

        found = narrowed(jax.tree.map(direction, mean, square), updates)
        return found, AdaHessianState(state.steps + 1, mean, square, next_key)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def adahessian(
    learning_rate: Rate = 0.15,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-4,
    power: float = 1.0,
    every: int = 1,
    weight_decay: float = 0.0,
    average: Average = over_inputs,
    *,
    key: PRNGKeyArray,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian with AdamW's weight decay; arguments as `scale_by_adahessian`'s.

    Advice: its learning rate is in other units than Adam's (the authors' is 0.15).
    """
    check_not_negative(weight_decay=weight_decay)
    return optax.chain(
        scale_by_adahessian(b1, b2, eps, power, every, average, key=key),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(cast("Any", learning_rate)),
    )
