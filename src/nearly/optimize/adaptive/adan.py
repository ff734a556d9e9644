"""Adan: Adam with Nesterov's momentum, estimated from differences of gradients (`adan`).

    d = g - g_before                    (0 in the first step)
    m = b1 m + (1 - b1) g
    v = b2 v + (1 - b2) d
    n = b3 n + (1 - b3) (g + b2 d)^2
    s = (m / (1 - b1^t) + b2 v / (1 - b2^t)) / (sqrt(n / (1 - b3^t)) + eps)
    x = (x - lr s) / (1 + lr decay)

The decays are written as those of Adam are: `b2 = 0.92` keeps 92 percent. The paper writes 1 - b.

`optax.adan` (0.2.8) is another method: it weights the difference by `1 - b2 = 0.08` in both
places where the paper and its authors' code have 0.92, adds 1e-8 inside the root, and decays the
weights as AdamW does. Neither is better everywhere; ours is the published one.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from nearly.optimize.adaptive.settings import (
    Rate,
    averaged,
    check_decays,
    check_not_negative,
    correction,
    narrowed,
    needs_params,
    rate_at,
    widened,
)


class AdanState(NamedTuple):
    """The number of steps, the three moving averages, the gradient before."""

    steps: Int[Array, ""]
    mean: PyTree
    difference: PyTree
    square: PyTree
    before: PyTree


def scale_by_adan(
    b1: float = 0.98, b2: float = 0.92, b3: float = 0.99, eps: float = 1e-8
) -> optax.GradientTransformation:
    """The direction of Adan, s above.

    **Arguments:** `b1`, `b2`, `b3` in [0, 1), the shares kept of the mean, of the difference and of
    the square; `eps`, beside the root.

    Raises `InputError` for values out of range. Costs O(parameters) time and four copies of them,
    three in float32 or better. Paper: `adan`.
    """
    check_decays(b1=b1, b2=b2, b3=b3)
    check_not_negative(eps=eps)

    def init(params: PyTree) -> AdanState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        mean, difference, square = (widened(zeros) for _ in range(3))
        return AdanState(jnp.zeros((), jnp.int32), mean, difference, square, zeros)

    def update(updates: PyTree, state: AdanState, params: Any = None) -> tuple[PyTree, AdanState]:
        del params
        count = state.steps + 1

        def difference(g: Array, before: Array) -> Array:
            return jnp.where(count > 1, g - before, 0)

        gradient = widened(updates)
        change = jax.tree.map(difference, gradient, widened(state.before))
        mean = averaged(b1, state.mean, gradient)
        drift = averaged(b2, state.difference, change)
        look = jax.tree.map(lambda g, d: (g + b2 * d) ** 2, gradient, change)
        square = averaged(b3, state.square, look)

        def direction(m: Array, v: Array, n: Array) -> Array:
            correct = [correction(b, count, m) for b in (b1, b2, b3)]
            ahead = m / correct[0] + b2 * v / correct[1]
            return ahead / (jnp.sqrt(n / correct[2]) + eps)

        found = narrowed(jax.tree.map(direction, mean, drift, square), updates)
        return found, AdanState(count, mean, drift, square, narrowed(updates, state.before))

    return optax.GradientTransformation(init, cast("Any", update))


def adan(
    learning_rate: Rate = 1e-3,
    b1: float = 0.98,
    b2: float = 0.92,
    b3: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adan with its proximal weight decay.

    **Arguments:** as `scale_by_adan`'s; `learning_rate`, a number or a schedule; `weight_decay`,
    which divides the new parameters by `1 + learning_rate weight_decay` (needs them in `update`).

    Advice: the authors train with larger rates than Adam's (5 to 10 times) and `weight_decay=0.02`.
    Their variant without the proximal step (`no_prox`) is `optax.chain(scale_by_adan(),
    optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate))`.
    """
    check_not_negative(weight_decay=weight_decay)
    return optax.chain(scale_by_adan(b1, b2, b3, eps), _proximal_step(learning_rate, weight_decay))


def _proximal_step(learning_rate: Rate, decay: float) -> optax.GradientTransformation:
    """From a direction to `(x - lr s) / (1 + lr decay) - x`."""

    def init(params: PyTree) -> Int[Array, ""]:
        del params
        return jnp.zeros((), jnp.int32)

    def update(updates: PyTree, count: Array, params: Any = None) -> tuple[PyTree, Array]:
        rate = rate_at(learning_rate, count)

        def plain(s: Array) -> Array:
            return -jnp.asarray(rate, s.dtype) * s

        def decayed(s: Array, x: Array) -> Array:
            here = jnp.asarray(rate, s.dtype)
            return -here * (s + decay * x) / (1 + here * decay)

        if decay == 0:
            return jax.tree.map(plain, updates), count + 1
        needs_params(params, "adan with weight decay")
        return jax.tree.map(decayed, updates, params), count + 1

    return optax.GradientTransformation(init, cast("Any", update))
