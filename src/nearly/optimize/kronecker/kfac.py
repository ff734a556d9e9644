"""K-FAC: the natural gradient with a Kronecker product for each layer (`kfac-deep-hedging`).

For a layer W with input rows a (a one appended for the bias) and output cotangents d, per sample

    A = E[a a^T],  S = E[d d^T]               moving averages; every `capture_every` steps
    pi = sqrt((tr A / dim A) / (tr S / dim S))
    A' = (A + pi sqrt(damping) I)^-1,  S' = (S + sqrt(damping) / pi I)^-1     every `invert_every`
    U = S' G A'                               G the batch's gradient of W
    nu = min(1, sqrt(clip / sum over layers of lr^2 <U, G>))
    W = W - lr (momentum of) nu U

A layer that is used several times for a sample (a convolution's positions, a recurrence's steps)
counts each use as a row: A is the mean over uses, S the sum, so that A (x) S is the Fisher matrix
itself where uses are independent. Weights that meet the same output from two sides (a recurrent
cell's W_ih and W_hh) are two layers, each with factors of its own.

Where this differs from the usual programs: targets are drawn from the model (the Fisher matrix)
when a key is given; the moving average is a plain mean until it is as old as its memory, instead of
starting from the identity; inverses that come out undefined leave those before in place; parameters
outside of linear layers are stepped by `rest`, not left to a second optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.curvature.capture import Captured
from nearly.curvature.named_layers import Layers
from nearly.curvature.parameterization import Damping, Moments, heuristic_damping
from nearly.linear.lapack import one_by_one
from nearly.optimize.adaptive.settings import Rate, check_decays, check_positive, rate_at
from nearly.optimize.kronecker.layerwise import (
    finite_or,
    look,
    outside,
    pairs_of,
    wide_matrices,
    with_matrices,
)


class KFacState(NamedTuple):
    """Steps taken; each layer's moments and damped inverses; the state of `rest`."""

    steps: Int[Array, ""]
    moments: dict[str, Moments]
    inverses: dict[str, Moments]
    rest: Any


def scale_by_kfac(
    learning_rate: Rate,
    *,
    key: PRNGKeyArray | None = None,
    damping: Damping | float = 1e-3,
    decay: float = 0.95,
    capture_every: int = 10,
    invert_every: int = 10,
    clip: float | None = 1e-3,
    rest: optax.GradientTransformation | None = None,
    layers: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The direction of K-FAC.

    **Arguments:**

    - `learning_rate`: of the step that follows, which the clipping needs to know.
    - `key`: draws targets from the model: the Fisher matrix. None takes the batch's own: the
      empirical one, for losses that are no likelihood.
    - `damping` > 0, split between the factors by their mean eigenvalues (worth tuning: after 300
      steps on the digits' classifier .1 leaves 1/21 of the loss that 1e-3 does); or any `Damping`,
      such as `nearly.curvature.parameterization.trace_damping(rho)`, with which the learning rate
      carries over between widths.
    - `decay` in [0, 1), the share kept of the moments at each look.
    - `capture_every`, `invert_every`: steps between looks at a batch and between inversions.
    - `clip` > 0, the most by which a step may change the model: nu^2 lr^2 <U, G>, which is about
      twice the Kullback-Leibler divergence. None clips nothing.
    - `rest`: gives the direction of parameters outside of linear layers, by default their gradient.
    - `layers`: names of the layers to precondition; by default all that are one linear map.

    `update` needs all parameters (within `optax.masked` some are hidden: use `layers` and `rest`
    instead) and `capture_fn` (`nearly.curvature.batches`). Raises `InputError` without them and for
    values out of range. Costs a gradient every `capture_every`
    steps, the inversion of two matrices for each layer every `invert_every`, and in every step two
    products of a layer's matrix with them; memory of four such matrices for each layer.
    """
    check_decays(decay=decay)
    if clip is not None:
        check_positive(clip=clip)
    for name, every in (("capture_every", capture_every), ("invert_every", invert_every)):
        if every < 1:
            raise InputError(f"{name} {every} must be at least 1 step")
    damped = damping if callable(damping) else heuristic_damping(damping)
    other = optax.with_extra_args_support(optax.identity() if rest is None else rest)

    def init(params: PyTree) -> KFacState:
        chosen = Layers.named(params, layers)
        zeros = pairs_of(chosen, params, lambda n, dtype: jnp.zeros((n, n), dtype))
        ones = pairs_of(chosen, params, lambda n, dtype: jnp.eye(n, dtype=dtype))
        moments, inverses = ({n: Moments(*m) for n, m in x.items()} for x in (zeros, ones))
        own = other.init(outside(chosen, params))
        return KFacState(jnp.zeros((), jnp.int32), moments, inverses, own)

    def update(
        updates: PyTree,
        state: KFacState,
        params: Any = None,
        *,
        capture_fn: Callable[..., Any] | None = None,
        **extra: Any,
    ) -> tuple[PyTree, KFacState]:
        chosen = Layers.named(updates, layers)
        looks = state.steps // capture_every + 1
        kept = jnp.minimum(decay, 1 - 1 / looks)

        def looked() -> dict[str, Moments]:
            drawn = None if key is None else jax.random.fold_in(key, state.steps)
            captured = look("kfac", capture_fn, params, drawn, chosen)
            return {
                n: _averaged(state.moments[n], batch_moments(c), kept) for n, c in captured.items()
            }

        def inverted() -> dict[str, Moments]:
            fresh = {n: damped_inverses(m, damped(n, m)) for n, m in moments.items()}
            return finite_or(fresh, state.inverses)

        moments, inverses = state.moments, state.inverses
        if chosen.names:
            moments = jax.lax.cond(state.steps % capture_every == 0, looked, lambda: state.moments)
            inverses = jax.lax.cond(
                state.steps % invert_every == 0, inverted, lambda: state.inverses
            )
        gradients = wide_matrices(chosen, updates)
        natural = {n: inverses[n].outputs @ g @ inverses[n].inputs for n, g in gradients.items()}
        if clip is not None:
            natural = _clipped(natural, gradients, rate_at(learning_rate, state.steps), clip)
        beside, own = other.update(
            outside(chosen, updates), state.rest, _outside_or_none(chosen, params), **extra
        )
        found = eqx.combine(beside, with_matrices(chosen, updates, natural))
        return found, KFacState(state.steps + 1, moments, inverses, own)

    return optax.GradientTransformationExtraArgs(init, cast("Any", update))


def kfac(
    learning_rate: Rate,
    momentum: float = 0.9,
    *,
    key: PRNGKeyArray | None = None,
    damping: Damping | float = 1e-3,
    decay: float = 0.95,
    capture_every: int = 10,
    invert_every: int = 10,
    clip: float | None = 1e-3,
    rest: optax.GradientTransformation | None = None,
    layers: Sequence[str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC with momentum; arguments as `scale_by_kfac`'s, and `momentum` in [0, 1).

    Advice: with `clip` the step stops growing with the learning rate, so start from a large one.
    Give a key wherever the loss is a likelihood (cross-entropy, squared error).
    """
    check_decays(momentum=momentum)
    direction = scale_by_kfac(
        learning_rate,
        key=key,
        damping=damping,
        decay=decay,
        capture_every=capture_every,
        invert_every=invert_every,
        clip=clip,
        rest=rest,
        layers=layers,
    )
    return optax.chain(
        direction, optax.trace(momentum), optax.scale_by_learning_rate(cast("Any", learning_rate))
    )


def batch_moments(captured: Captured) -> Moments:
    """A batch's factors: A, the mean over samples and uses; S, over samples the mean of sums."""
    rows, deltas = captured
    samples, uses = rows.shape[:2]
    return Moments(_gram(rows) / (samples * uses), _gram(deltas) / samples)


def damped_inverses(moments: Moments, damping: tuple[Array, Array]) -> Moments:
    """Each factor plus its damping on the diagonal, inverted by Cholesky's factorisation."""
    invert = one_by_one(_inverse)  # (a batch of trainings would wait for itself)
    found = (invert(m + d * jnp.eye(m.shape[0], dtype=m.dtype)) for m, d in zip(moments, damping))
    return Moments(*found)


def _inverse(matrix: Float[Array, "n n"]) -> Float[Array, "n n"]:
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return jax.scipy.linalg.cho_solve(factor, jnp.eye(matrix.shape[0], dtype=matrix.dtype))


def _gram(rows: Float[Array, "samples uses n"]) -> Float[Array, "n n"]:
    flat = jnp.reshape(rows, (-1, rows.shape[-1]))
    return flat.T @ flat


def _averaged(old: Moments, new: Moments, kept: Array) -> Moments:
    return jax.tree.map(lambda a, b: (kept * a + (1 - kept) * b).astype(a.dtype), old, new)


def _clipped(
    directions: dict[str, Array], gradients: dict[str, Array], rate: Any, clip: float
) -> dict[str, Array]:
    """Directions times the nu that makes nu^2 lr^2 <U, G>, over all layers, at most `clip`."""
    slope = sum(jnp.sum(directions[n] * gradients[n]) for n in directions)
    shorter = jnp.minimum(1.0, jnp.sqrt(clip / jnp.maximum(rate**2 * slope, 1e-30)))
    return {n: (shorter * u).astype(u.dtype) for n, u in directions.items()}


def _outside_or_none(layers: Layers, params: Any) -> Any:
    return None if params is None else outside(layers, params)
