"""FOSI: Newton's method where the curvature is extreme, any optimizer everywhere else (`fosi`).

Every `every` steps Lanczos finds the eigenpairs (l_i, v_i) of the Hessian with the k largest and
the `smallest` smallest eigenvalues. With V their vectors, in each step

    g1 = V V^T g,    g2 = g - g1
    s  = the velocity of g1, by the base's own rule
    d1 = - alpha V |L|^-1 V^T s
    d2 = (I - V V^T) base(g2)
    x  = x + d1 + clip(l_1 / l_k, 1, clip) d2

The base then sees a function whose condition number is l_k+1 / l_n instead of l_1 / l_n.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, Int, PyTree

from nearly.core.errors import InputError
from nearly.linear.krylov import lanczos, ritz_pairs
from nearly.optimize.adaptive.settings import (
    Rate,
    check_decays,
    check_positive,
    needs_params,
    rate_at,
)
from nearly.optimize.flat import flatten

Velocity = Callable[[Array, Array], Array]
"""(gradient inside the subspace, last velocity) -> velocity."""


class FosiState(NamedTuple):
    """The base's state, the velocity, steps taken, and what the last look at the Hessian found.

    `inverses` are the 1 / |eigenvalue| and `vectors` the eigenvectors, all zero before the first
    look; `stretch` multiplies the base's step.
    """

    base: Any
    velocity: Float[Array, " size"]
    steps: Int[Array, ""]
    inverses: Float[Array, " pairs"]
    vectors: Float[Array, "pairs size"]
    stretch: Float[Array, ""]


def no_memory(gradient: Array, velocity: Array) -> Array:
    """The velocity of gradient descent, and of any base that only looks at the last gradient."""
    del velocity
    return gradient


def running_sum(decay: float = 0.9) -> Velocity:
    """The velocity of heavy ball: `g + decay v`."""
    check_decays(decay=decay)
    return lambda gradient, velocity: gradient + decay * velocity


def moving_average(decay: float = 0.9) -> Velocity:
    """The velocity of Adam and its kin: `(1 - decay) g + decay v`."""
    check_decays(decay=decay)
    return lambda gradient, velocity: (1 - decay) * gradient + decay * velocity


def fosi(
    base: optax.GradientTransformation,
    *,
    velocity: Velocity = no_memory,
    largest: int = 5,
    smallest: int = 0,
    every: int = 100,
    warmup: int | None = None,
    alpha: Rate = 0.1,
    clip: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """Any optimizer, with Newton steps where the Hessian's eigenvalues are extreme.

    **Arguments:**

    - `base`: a complete optimizer, learning rate included. It is given pytrees as ever, with the
      gradient outside the subspace.
    - `velocity`: how gradients inside the subspace are averaged: as the base averages its own.
      `no_memory` for one without momentum, `running_sum(b)` for heavy ball, `moving_average(b)`
      for Adam; any `(gradient, velocity) -> velocity` for another.
    - `largest`, `smallest`: eigenvalues at either end of the spectrum, k and l of the paper.
    - `every`: steps between two looks at the Hessian; `warmup`: steps of the base alone before the
      first (None: `every`).
    - `alpha`: the Newton step's size, or a schedule of it; 1 is exact on quadratics.
    - `clip`: how much longer the base's steps may become, since the largest eigenvalues no longer
      limit them. The paper's is 3 for SGD and heavy ball, and 1 for Adam, whose steps do not scale
      with the curvature. Where the base's rate was tuned inside FOSI leave it at 1.

    `update` needs the parameters and `value_fn`: parameters -> loss, on the batch of the gradient.
    Weight decay belongs into the loss, or it would be applied to the base's part alone.

    Raises `InputError` for values out of range, or more eigenpairs than parameters. Costs
    `max(4 (k + l), 2 log n)` products with the Hessian every `every` steps, each about two
    gradients; else O((k + l) n) a step; k + l copies of the parameters, four times that in a look.

    Paper: `fosi`. Unlike the authors' code, the Hessian is that of the current batch (theirs: of
    one batch for ever), Lanczos runs in the parameters' precision but at least float32 (theirs:
    float64; both orthogonalise twice), an eigenvalue that is zero to rounding stays with the base
    instead of being divided by, and the base sees the parameters' own shapes, so that it may be
    one that treats matrices as such.
    """
    pairs = largest + smallest
    if largest < 1 or smallest < 0:
        raise InputError(f"largest {largest} must be at least 1 and smallest {smallest} at least 0")
    if every < 1 or (warmup is not None and warmup < 0):
        raise InputError(f"every {every} must be at least 1 step, warmup {warmup} at least 0")
    if not clip >= 1:
        raise InputError(f"clip {clip} must be at least 1, which leaves the base's steps as long")
    if isinstance(alpha, (int, float)):
        check_positive(alpha=alpha)
    first = every if warmup is None else warmup
    inner = optax.with_extra_args_support(base)

    def init(params: PyTree) -> FosiState:
        flat, _ = flatten(params)
        if pairs > flat.size:
            raise InputError(
                f"{pairs} eigenpairs of {flat.size} parameters: lower largest {largest} or "
                f"smallest {smallest}"
            )
        return FosiState(
            inner.init(params),
            jnp.zeros_like(flat),
            jnp.zeros((), jnp.int32),
            jnp.zeros(pairs, flat.dtype),
            jnp.zeros((pairs, flat.size), flat.dtype),
            jnp.ones((), flat.dtype),
        )

    def update(
        updates: PyTree,
        state: FosiState,
        params: Any = None,
        *,
        value_fn: Callable[[PyTree], Any],
        **extra: Any,
    ) -> tuple[PyTree, FosiState]:
        needs_params(params, "fosi")
        due = (state.steps >= first) & ((state.steps - first) % every == 0)
        inverses, vectors, stretch = jax.lax.cond(
            due,
            lambda: _look(value_fn, params, state.steps, largest, smallest, clip),
            lambda: (state.inverses, state.vectors, state.stretch),
        )

        def project(vector: Array) -> Array:
            return (vectors @ vector) @ vectors

        gradient, unflatten = flatten(updates)
        inside = project(gradient)
        speed = velocity(inside, state.velocity)
        newton = (inverses * (vectors @ speed)) @ vectors

        outside = unflatten(gradient - inside)
        # A base that asks for the gradient beside its updates means the one it is to follow.
        asked = {"grad": outside} if "grad" in extra else {}
        step, base_state = inner.update(
            outside, state.base, params, value_fn=value_fn, **{**extra, **asked}
        )
        rest = flatten(step)[0]
        rest = stretch * (rest - project(rest))
        found = unflatten(rest - rate_at(alpha, state.steps) * newton)
        return found, FosiState(base_state, speed, state.steps + 1, inverses, vectors, stretch)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def fosi_adam(
    learning_rate: Rate, b1: float = 0.9, b2: float = 0.999, **settings: Any
) -> optax.GradientTransformationExtraArgs:
    """FOSI over Adam; `settings` as `fosi`'s."""
    base = optax.adam(cast("Any", learning_rate), b1, b2)
    return fosi(base, velocity=moving_average(b1), **settings)


def fosi_heavy_ball(
    learning_rate: Rate, momentum: float = 0.9, clip: float = 3.0, **settings: Any
) -> optax.GradientTransformationExtraArgs:
    """FOSI over SGD with momentum; `settings` as `fosi`'s."""
    base = optax.sgd(cast("Any", learning_rate), momentum)
    return fosi(base, velocity=running_sum(momentum), clip=clip, **settings)


def _look(
    value_fn: Callable[[PyTree], Any],
    params: PyTree,
    steps: Array,
    largest: int,
    smallest: int,
    clip: float,
) -> tuple[Array, Array, Array]:
    """Inverse absolute eigenvalues, eigenvectors, and by what the base's steps may be longer."""
    position, unflatten = flatten(params)
    slope = jax.grad(lambda vector: value_fn(unflatten(vector)))

    def product(vector: Array) -> Array:
        return jax.jvp(slope, (position,), (vector,))[1]

    like = jax.ShapeDtypeStruct(position.shape, position.dtype)
    operator = lx.FunctionLinearOperator(product, like, lx.symmetric_tag)
    key = jax.random.fold_in(jax.random.key(0), steps)
    start = jax.random.normal(key, position.shape, position.dtype)
    order = max(4 * (largest + smallest), math.ceil(2 * math.log(position.size)))
    values, vectors = ritz_pairs(lanczos(operator, start, min(order, position.size)))

    ends = jnp.r_[0:smallest, len(values) - largest : len(values)]
    sizes = jnp.abs(values[ends])
    # Of a Hessian of low rank some are zero: nothing to divide by, so left to the base.
    kept = sizes > 10 * position.size * jnp.finfo(sizes.dtype).eps * jnp.max(jnp.abs(values))
    safe = jnp.where(kept, sizes, 1)
    top, last = sizes[-1], jnp.where(kept[smallest], sizes[smallest], 0)
    ratio = jnp.where(last > 0, top / jnp.where(last > 0, last, 1), clip)
    return kept / safe, kept[:, None] * vectors[ends], jnp.clip(ratio, 1, clip)
