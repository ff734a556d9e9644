"""Accelerated SGD where every sample can be fitted (`accelerated-sgd-interpolation`).

Three sequences: gradients are asked at y, w takes a short step from there, z a long one.

    a^2 = q c+,   c+ = (1 - a) c + a mu
    y   = (a c z + c+ w) / (c + a mu)
    w+  = y - eta g
    z+  = ((1 - a) c z + a mu y - a h) / c+

g is the gradient of a batch at y. With the strong growth constant rho (the mean of |g|^2 is at most
rho times the square of the mean gradient's norm) and smoothness L, `eta = 1 / (rho L)`.

- `interpolation_sgd` has h = g and `q = eta / rho = 1 / (rho^2 L)`, the largest that is safe: z's
  step adds `q |g|^2 / 2`, on average `q rho / 2` times the squared norm of the mean gradient, and
  w's progress of `eta / 2` times it must pay for that.
- `semi_stochastic_acceleration` has the exact gradient for h, and `q = eta = 1 / (rho L)`.

The paper's abstract has q = eta for the first of them, an acceleration by the root of rho. Its
authors have withdrawn that: on the problem `strong-growth-counterexample` it diverges, and no
method whose steps are combinations of the gradients seen can have such a rate.

optax's parameters are y, where gradients are asked, and an update leads from one y to the next; w,
which the theory is about, is what `best_parameters` gives. For rho = 1 both are Nesterov's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.optimize.adaptive.settings import needs_params


class AcceleratedState(NamedTuple):
    """The long-step sequence z, its curvature c, and q, mu of the method."""

    long: PyTree
    curvature: Float[Array, ""]
    product: Float[Array, ""]
    convexity: Float[Array, ""]


def interpolation_sgd(
    learning_rate: Any, growth: Any = 1.0, strong_convexity: Any = 0.0
) -> optax.GradientTransformation:
    """Accelerated SGD with the step sizes that are proven: q = learning_rate / growth.

    **Arguments:**

    - `learning_rate`, eta above, at most 1 / (rho L).
    - `growth`, rho, at least 1; 1 is the deterministic method, and too bold in batches.
    - `strong_convexity`, mu, not negative; at 0 the rate is the sublinear one of convex functions.

    **Raises:** `InputError` for values out of range; on updates without parameters.

    **Cost:** O(parameters) time and a copy of them.
    """
    _check(learning_rate, growth, strong_convexity)
    return _accelerated(learning_rate, learning_rate / growth, strong_convexity, _same)


def unsafe_interpolation_sgd(
    learning_rate: Any, strong_convexity: Any = 0.0
) -> optax.GradientTransformation:
    """With q = learning_rate, as the paper's abstract promises: withdrawn, and diverging in places.

    Here so that the promise can be rerun; arguments as `interpolation_sgd`'s. Where rho is 1 it is
    `interpolation_sgd`.
    """
    _check(learning_rate, 1.0, strong_convexity)
    return _accelerated(learning_rate, learning_rate, strong_convexity, _same)


def semi_stochastic_acceleration(
    learning_rate: Any, strong_convexity: Any = 0.0
) -> optax.GradientTransformationExtraArgs:
    """Accelerated SGD whose long step takes the exact gradient: q = learning_rate.

    **Arguments:** as `interpolation_sgd`'s. `update` needs `exact_grad`, the gradient of the whole
    sum at the parameters; whether one for each batch pays is for the bill to say.
    """
    _check(learning_rate, 1.0, strong_convexity)

    def exact(updates: PyTree, extra: dict[str, Any]) -> PyTree:
        if "exact_grad" not in extra:
            raise InputError(
                "semi_stochastic_acceleration needs exact_grad, the gradient over all samples "
                f"at the parameters: update(updates, state, params, exact_grad=...); got {extra}"
            )
        del updates
        return extra["exact_grad"]

    return _accelerated(learning_rate, learning_rate, strong_convexity, exact)


def best_parameters(state: AcceleratedState, params: PyTree) -> PyTree:
    """The sequence w, after some updates: the solution, as the theory has it.

    **Arguments:** the optimizer's state and the parameters (which are y).
    """
    _, _, lead = _step(state)

    def short(y: Array, z: Array) -> Array:
        return ((y - lead.astype(y.dtype) * z) / (1 - lead).astype(y.dtype)).astype(y.dtype)

    return jax.tree.map(short, params, state.long)


def _same(updates: PyTree, extra: dict[str, Any]) -> PyTree:
    del extra
    return updates


def _accelerated(
    rate: Any, product: Any, convexity: Any, long_gradient: Callable[[PyTree, Any], PyTree]
) -> optax.GradientTransformationExtraArgs:
    def init(params: PyTree) -> AcceleratedState:
        kind = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        q, mu = (jnp.asarray(v, kind) for v in (product, convexity))
        # Any curvature is right at the start where nothing is known; 1 / q makes the first step
        # that of the deterministic method.
        return AcceleratedState(params, jnp.where(mu > 0, mu, 1 / q), q, mu)

    def update(
        updates: PyTree, state: AcceleratedState, params: Any = None, **extra: Any
    ) -> tuple[PyTree, AcceleratedState]:
        needs_params(params, "accelerated SGD")
        a, after, _ = _step(state)
        kept = (1 - a) * state.curvature / after
        near, far = 1 - kept, a / after

        def long(y: Array, z: Array, h: Array) -> Array:
            return (kept.astype(y.dtype) * z + near.astype(y.dtype) * y) - far.astype(y.dtype) * h

        def move(y: Array, z: Array, g: Array) -> Array:
            share = lead.astype(y.dtype)
            return share * (z - y) - (1 - share) * jnp.asarray(rate, y.dtype) * g

        moved = jax.tree.map(long, params, state.long, long_gradient(updates, extra))
        following = AcceleratedState(moved, after, state.product, state.convexity)
        _, _, lead = _step(following)
        return jax.tree.map(move, params, moved, updates), following

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def _step(state: AcceleratedState) -> tuple[Array, Array, Array]:
    """The step's a, the next curvature, and the share of z in y."""
    c, q, mu = state.curvature, state.product, state.convexity
    half = q * (c - mu) / 2
    # The positive root, written without cancellation where half > 0.
    root = jnp.sqrt(half**2 + q * c)
    a = jnp.where(half > 0, q * c / (half + root), root - half)
    after = (1 - a) * c + a * mu
    return a, after, a * c / (c + a * mu)


def _check(rate: Any, growth: Any, convexity: Any) -> None:
    values = {"learning_rate": rate, "growth": growth, "strong_convexity": convexity}
    known = {n: v for n, v in values.items() if isinstance(v, (int, float))}  # others are traced
    if not 0 < known.get("learning_rate", 1.0) < math.inf:
        raise InputError(f"learning_rate {rate} must be positive and finite: 1 / (rho L)")
    if not 1 <= known.get("growth", 1.0) < math.inf:
        raise InputError(
            f"growth {growth} must be at least 1, and finite: no mean square is less than the "
            "square of the mean"
        )
    if not 0 <= known.get("strong_convexity", 0.0) < math.inf:
        raise InputError(f"strong_convexity {convexity} must be at least 0 and finite; 0 if unsure")


# ---- a peer


class TripleMomentumState(NamedTuple):
    """The sequence that momentum acts on, and the one before."""

    now: PyTree
    before: PyTree


def triple_momentum(strong_convexity: Any, smoothness: Any) -> optax.GradientTransformation:
    """The fastest known method for exact gradients of strongly convex functions: a peer.

    **Arguments:** 0 < `strong_convexity` < `smoothness`, known and finite. With exact gradients the
    distance to the solution falls by `1 - sqrt(mu / L)` a step; noise it does not tolerate.

    Raises `InputError` for values out of range. As above, optax's parameters are the points where
    gradients are asked. Costs O(parameters) time and two copies of them.
    """
    known = all(isinstance(v, (int, float)) for v in (strong_convexity, smoothness))
    if known and not 0 < strong_convexity < smoothness < math.inf:
        raise InputError(
            f"triple momentum needs 0 < strong_convexity < smoothness < inf, not "
            f"{strong_convexity} and {smoothness}"
        )
    fall = 1 - jnp.sqrt(strong_convexity / smoothness)
    rate = (1 + fall) / smoothness
    momentum = fall**2 / (2 - fall)
    ahead = fall**2 / ((1 + fall) * (2 - fall))

    def init(params: PyTree) -> TripleMomentumState:
        return TripleMomentumState(params, params)

    def update(
        updates: PyTree, state: TripleMomentumState, params: Any = None
    ) -> tuple[PyTree, TripleMomentumState]:
        needs_params(params, "triple momentum")

        def advance(x: Array, x_before: Array, g: Array) -> Array:
            kept, step = momentum.astype(x.dtype), rate.astype(x.dtype)
            return x + kept * (x - x_before) - step * g

        moved = jax.tree.map(advance, state.now, state.before, updates)
        step = jax.tree.map(
            lambda n, x, y: n + ahead.astype(n.dtype) * (n - x) - y, moved, state.now, params
        )
        return step, TripleMomentumState(moved, state.now)

    return optax.GradientTransformation(init, cast("Any", update))
