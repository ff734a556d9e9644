"""MKOR: Kronecker factors inverted by rank-one updates, in O(d^2) a layer (`mkor`).

Every `every` steps, for each layer W with the means a of its input rows (a one appended for the
bias) and g of its output cotangents over a batch, and its inverse factors J_a and J_g,

    if max |J| > threshold:  J = (1 - share) J + share I                  the stabiliser
    J = inverse of (decay J^-1 + (1 - decay) v v^T)                       v = a and v = g

and in every step J_g G J_a, scaled to the norm of the layer's gradient G, goes to a base optimizer.

Where this differs from the paper: its printed update has decay in the place of 1 / decay and a plus
sign, which is the inverse of nothing and blows up unless the stabiliser fires (the claims show it);
ours is Sherman and Morrison's. The authors' program does something else again, first
`J = decay J + (1 - decay) I` and then an update of weight one: that is `released_update`. Factors
are kept in float32 or better, not in half precision, which the paper uses to send less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.curvature.capture import Captured
from nearly.curvature.named_layers import Layers
from nearly.optimize.adaptive.settings import check_decays, check_positive
from nearly.optimize.kronecker.layerwise import (
    finite_or,
    look,
    pairs_of,
    wide_matrices,
    with_matrices,
)

Inverse = Float[Array, "n n"]
InverseUpdate = Callable[[Inverse, Float[Array, " n"], float], Inverse]
"""(inverse, vector, decay) -> the inverse after the vector was seen."""


def exact_update(inverse: Inverse, vector: Float[Array, " n"], decay: float) -> Inverse:
    """The inverse of `decay C + (1 - decay) v v^T`, given that of C, in 4 n^2 operations."""
    image = inverse @ vector
    share = (1 - decay) / (decay + (1 - decay) * vector @ image)
    return (inverse - share * jnp.outer(image, image)) / decay


def released_update(inverse: Inverse, vector: Float[Array, " n"], decay: float) -> Inverse:
    """The authors' program: towards the identity first, then the inverse of C + v v^T."""
    near = decay * inverse + (1 - decay) * jnp.eye(len(vector), dtype=inverse.dtype)
    image = near @ vector
    return near - jnp.outer(image, image) / (1 + vector @ image)


class MKORState(NamedTuple):
    """Steps taken, each layer's inverse factors (of inputs, of outputs)."""

    steps: Int[Array, ""]
    inverses: dict[str, tuple[Array, Array]]


def scale_by_mkor(
    *,
    key: PRNGKeyArray | None = None,
    decay: float = 0.95,
    every: int = 10,
    threshold: float = 2.0,
    share: float = 0.1,
    inverse_update: InverseUpdate = exact_update,
    layers: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The gradient with each layer's preconditioned by MKOR, at the norm it had.

    **Arguments:**

    - `key`: draws targets from the model; by default they are the batch's own, as in the paper.
      (The mean of the cotangents of drawn targets is zero in expectation: noise.)
    - `decay` in (0, 1), the share kept of the factors. `every`: steps between looks at a batch.
    - `threshold` > 0: where an inverse's largest entry exceeds it, `share` in (0, 1] of it is
      replaced by the identity first.
    - `inverse_update`: `exact_update`, or `released_update` for what the authors' program does.
    - `layers`: names of the layers to precondition; by default all that are one linear map.

    Put it before any optimizer in an `optax.chain`. `update` needs the parameters and `capture_fn`
    (`nearly.curvature.batches`). Raises `InputError` without them and for values out of range.
    Costs a gradient and 4 d^2 for each factor every `every` steps, and in every step two products
    of a layer's matrix with its factors; memory of two matrices for each layer. Parameters outside
    of linear layers keep their gradient.
    """
    check_positive(decay=decay, threshold=threshold)
    check_decays(decay=decay)
    if not 0 < share <= 1:
        raise InputError(f"share {share} must lie in (0, 1]: it is that of the identity")
    if every < 1:
        raise InputError(f"every {every} must be at least 1 step")

    def init(params: PyTree) -> MKORState:
        chosen = Layers.named(params, layers)
        ones = pairs_of(chosen, params, lambda n, dtype: jnp.eye(n, dtype=dtype))
        return MKORState(jnp.zeros((), jnp.int32), ones)

    def update(
        updates: PyTree,
        state: MKORState,
        params: Any = None,
        *,
        capture_fn: Callable[..., Any] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, MKORState]:
        del extra
        chosen = Layers.named(updates, layers)

        def seen(inverse: Array, vector: Array) -> Array:
            return inverse_update(stabilised(inverse, threshold, share), vector, decay)

        def looked() -> dict[str, tuple[Array, Array]]:
            drawn = None if key is None else jax.random.fold_in(key, state.steps)
            captured = look("mkor", capture_fn, params, drawn, chosen)
            means = {n: batch_means(c) for n, c in captured.items()}
            return finite_or(jax.tree.map(seen, state.inverses, means), state.inverses)

        inverses = state.inverses
        if chosen.names:
            inverses = jax.lax.cond(state.steps % every == 0, looked, lambda: state.inverses)
        gradients = wide_matrices(chosen, updates)
        found = {
            n: at_norm_of(g, inverses[n][1] @ g @ inverses[n][0]) for n, g in gradients.items()
        }
        return with_matrices(chosen, updates, found), MKORState(state.steps + 1, inverses)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def mkor(
    base: optax.GradientTransformation,
    *,
    key: PRNGKeyArray | None = None,
    decay: float = 0.95,
    every: int = 10,
    threshold: float = 2.0,
    share: float = 0.1,
    inverse_update: InverseUpdate = exact_update,
    layers: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """MKOR over a base optimizer; arguments as `scale_by_mkor`'s.

    mkor(optax.sgd(0.1, momentum=0.9))
    mkor(optax.lamb(1e-3), inverse_update=released_update)
    """
    preconditioned = scale_by_mkor(
        key=key,
        decay=decay,
        every=every,
        threshold=threshold,
        share=share,
        inverse_update=inverse_update,
        layers=layers,
    )
    return optax.chain(preconditioned, base)


# ------------------------------------------------------------------ MKOR-H


class HybridState(NamedTuple):
    """Two moving averages of the loss, whether it has stalled; MKOR's state."""

    fast: Float[Array, ""]
    slow: Float[Array, ""]
    stalled: Array
    inner: MKORState


def until_stalled(
    inner: optax.GradientTransformationExtraArgs,
    stall: float = 0.01,
    warmup: int = 100,
    fast: float = 0.9,
    slow: float = 0.99,
) -> optax.GradientTransformationExtraArgs:
    """MKOR-H: precondition while the loss falls, then leave the gradient to the base optimizer.

        optax.chain(until_stalled(scale_by_mkor()), optax.sgd(0.1, momentum=0.9))

    The paper switches, for good, once the rate at which the loss falls drops below a threshold, and
    leaves open how the rate is measured. Here it is the difference between a slow and a fast moving
    average of the loss, relative to the slow one.

    **Arguments:**

    - `inner`: what preconditions, such as `scale_by_mkor()`.
    - `stall`: switch when the relative difference falls below it. With averages of 10 and 100 steps
      0.01 is a fall by 1 percent in 90 steps. `warmup`: steps before it may switch.
    - `fast`, `slow` in [0, 1), fast < slow: the shares kept by the averages.

    `update` needs `value` beside what `inner` needs. Nothing of `inner` is computed after the
    switch. Raises `InputError` for values out of range.
    """
    check_decays(fast=fast, slow=slow)
    if not fast < slow:
        raise InputError(f"fast {fast} must be below slow {slow}: it forgets sooner")
    if warmup * (1 - fast) < 1 - 1e-9:  # 10 (1 - 0.9) is less than 1 in binary
        raise InputError(
            f"warmup {warmup} must be at least 1 / (1 - fast) = {1 / (1 - fast):.3g} steps: until "
            "then the two averages are the same"
        )

    def init(params: PyTree) -> HybridState:
        zero = jnp.zeros((), jnp.float32)
        own: Any = inner.init(params)
        return HybridState(zero, zero, jnp.zeros((), bool), own)

    def update(
        updates: PyTree, state: HybridState, params: Any = None, *, value: Any, **extra: Any
    ) -> tuple[PyTree, HybridState]:
        loss = jnp.asarray(value, jnp.float32)
        age = state.inner.steps + 1

        def averaged(old: Array, kept: float) -> Array:
            share = jnp.minimum(kept, 1 - 1 / age)  # a plain mean at first
            return share * old + (1 - share) * loss

        quick, lazy = averaged(state.fast, fast), averaged(state.slow, slow)
        falls = (lazy - quick) / jnp.maximum(jnp.abs(lazy), jnp.finfo(jnp.float32).tiny)
        stalled = state.stalled | ((age > warmup) & (falls < stall))

        def preconditioned() -> tuple[PyTree, Any]:
            return inner.update(updates, cast("Any", state.inner), params, value=value, **extra)

        def plain() -> tuple[PyTree, Any]:
            return updates, state.inner._replace(steps=age)

        found, own = jax.lax.cond(stalled, plain, preconditioned)
        return found, HybridState(quick, lazy, stalled, own)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


# ------------------------------------------------------------------ pieces


def batch_means(captured: Captured) -> tuple[Float[Array, " inputs"], Float[Array, " outputs"]]:
    """The means of a layer's rows and of its cotangents, over samples and uses."""
    rows, deltas = captured
    return jnp.mean(rows, (0, 1)), jnp.mean(deltas, (0, 1))


def stabilised(inverse: Inverse, threshold: float, share: float) -> Inverse:
    """The inverse, nearer to the identity if its largest entry exceeds the threshold."""
    identity = jnp.eye(inverse.shape[0], dtype=inverse.dtype)
    large = jnp.max(jnp.abs(inverse)) > threshold
    return jnp.where(large, (1 - share) * inverse + share * identity, inverse)


def at_norm_of(gradient: Array, direction: Array) -> Array:
    """A direction at the norm of the gradient."""
    size = jnp.linalg.norm(direction)
    return direction * (jnp.linalg.norm(gradient) / jnp.where(size > 0, size, 1))
