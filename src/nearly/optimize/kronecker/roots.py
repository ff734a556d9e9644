"""Inverse p-th roots of second moments, as preconditioners need them (`distributed-shampoo`).

Both take a batch and add `ridge` times its largest eigenvalue to each matrix. Against the roots of
`nearly.linear.matrix_functions` they give up derivatives and positive powers, and gain that they
are finite for whatever a training feeds them in float32: singular and indefinite by rounding,
zero, tiny. Then

    |error| <= about (eps / ridge) / p  relative to the root's norm,

2 percent in float32 at the usual ridge 1e-6 where a matrix is singular, and eps times its
condition number over p where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.linear.lapack import one_by_one
from nearly.linear.matrix_functions import spectral_norm

InverseRoot = Callable[[Float[Array, "batch n n"], int, float], Float[Array, "batch n n"]]
"""(symmetric positive semidefinite matrices, p, ridge) -> (A + ridge largest I)^(-1/p)."""

LIMIT = 100  # Newton's steps: each gains a factor 2.2 or more in the smallest eigenvalue


def eigh_inverse_root(
    matrices: Float[Array, "batch n n"], order: int, ridge: float
) -> Float[Array, "batch n n"]:
    """`(A + ridge largest I)^(-1/order)` by eigendecompositions, about 9 n^3 flops each.

    Eigenvalues that rounding made negative count as zero, before the ridge is added; the root of a
    zero matrix is the identity.
    """
    values, vectors = jax.vmap(one_by_one(_eigh))(matrices)
    largest = values[:, -1:]
    scale = jnp.where(largest > 0, largest, 1)
    lifted = jnp.maximum(values, 0) / scale + ridge
    powers = jnp.where(largest > 0, scale ** (-1 / order) * lifted ** (-1 / order), 1)
    return (vectors * powers[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)


def _eigh(matrix: Float[Array, "n n"]) -> tuple[Array, Array]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def newton_inverse_root(
    matrices: Float[Array, "batch n n"], order: int, ridge: float
) -> Float[Array, "batch n n"]:
    """The same by the coupled Newton iteration, which is products only: for accelerators.

        c = (p + 1) / (2 |A|),  M = c A,  X = c^(1/p) I
        T = ((p + 1) I - M) / p,  M <- T^p M,  X <- X T      until M is I

    A matrix is left alone once its largest entry of `M - I` no longer falls, so that no tolerance
    has to be chosen for a precision. The largest eigenvalue is estimated by power steps, some
    percent from below, and the ridge with it. NaN for a matrix that is indefinite beyond the ridge.

    Some `log2(p) + 2` products a step and, at the ridge 1e-6, 20 to 30 steps: on a CPU dearer than
    `eigh_inverse_root`.
    """
    identity = jnp.eye(matrices.shape[-1], dtype=matrices.dtype)
    trace = jnp.trace(matrices, axis1=1, axis2=2)
    positive = trace > 0
    size = jnp.where(positive, trace, 1)  # first, lest the squares of tiny entries vanish
    norm = jnp.where(positive, size * spectral_norm(matrices / size[:, None, None]), 1)
    norm = norm[:, None, None]
    scaled = matrices / norm + ridge * identity

    def distance(rest: Array) -> Array:
        return jnp.max(jnp.abs(rest - identity), axis=(1, 2))

    def going(carry: Any) -> Array:
        *_, active, count = carry
        return jnp.any(active) & (count < LIMIT)

    def step(carry: Any) -> Any:
        inverse, rest, error, active, count = carry
        turn = ((order + 1) * identity - rest) / order
        moved = jnp.linalg.matrix_power(turn, order) @ rest
        new_error = distance(moved)
        # Far from the root an entry may grow before it falls; near it only rounding makes it grow.
        active = active & ((new_error < error) | (error > 0.5))
        keep = active[:, None, None]
        inverse, rest = jnp.where(keep, inverse @ turn, inverse), jnp.where(keep, moved, rest)
        return inverse, rest, jnp.where(active, new_error, error), active, count + 1

    factor = (order + 1) / (2 * (1 + ridge))
    rest = factor * scaled
    start = jnp.broadcast_to(factor ** (1 / order) * identity, matrices.shape)
    first = (start, rest, distance(rest), positive, jnp.zeros((), jnp.int32))
    inverse, _, error, *_ = jax.lax.while_loop(going, step, first)
    inverse = jnp.where(error[:, None, None] < 0.5, inverse, jnp.nan)
    return jnp.where(positive[:, None, None], norm ** (-1 / order) * inverse, identity)
