"""Substitution on a structured grid, one wavefront of independent points at a time.

In the natural order a point waits for its lower neighbours, so all points with the same
`t = sum_k weight_k i_k` can be computed at once. Grids are stored skewed, with t as the leading
axis; a step then is a handful of operations on contiguous planes.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.linear.operators.stencil import Offset, StencilOperator, shift

Skewed = Float[Array, "steps ..."]


def is_lower(offset: Offset) -> bool:
    """Whether a neighbour comes before the point itself in the natural order."""
    return offset < (0,) * len(offset)


def wavefront_weights(offsets: tuple[Offset, ...], dimension: int) -> tuple[int, ...]:
    """Weights, the last of them one, that put every lower neighbour on an earlier wavefront.

    All ones where that is enough (five- and seven-point stencils): fewer wavefronts.
    """
    lower = [o for o in offsets if is_lower(o)]
    weights = [1] * dimension
    if all(_delay(tuple(weights), o) >= 1 for o in lower):
        return tuple(weights)
    for axis in reversed(range(dimension - 1)):
        reach = [max((abs(o[k]) for o in lower), default=0) for k in range(dimension)]
        weights[axis] = 1 + sum(weights[k] * reach[k] for k in range(axis + 1, dimension))
    return tuple(weights)


def _delay(weights: tuple[int, ...], offset: Offset) -> int:
    """How many wavefronts earlier a neighbour is."""
    return -sum(w * step for w, step in zip(weights, offset, strict=True))


def skew(u: Float[Array, "*grid"], weights: tuple[int, ...]) -> Skewed:
    """The array with the wavefront as its first axis and the grid's first axes behind it."""
    for axis in reversed(range(u.ndim - 1)):
        u = _skew_along(u, axis, weights[axis])
    return jnp.moveaxis(u, -1, 0)


def unskew(s: Skewed, weights: tuple[int, ...], shape: tuple[int, ...]) -> Float[Array, "*grid"]:
    """What `skew` was given."""
    s = jnp.moveaxis(s, 0, -1)
    last = s.shape[-1]
    for axis in range(len(shape) - 1):
        last -= weights[axis] * (shape[axis] - 1)
        s = _unskew_along(s, axis, weights[axis], last)
    return s


def _skew_along(u: Array, axis: int, weight: int) -> Array:
    """`v[.., i, .., t] = u[.., i, .., t - weight i]`, by padding rows and cutting them anew."""
    u = jnp.moveaxis(u, axis, -2)
    *outer, rows, length = u.shape
    steps = length + weight * (rows - 1)
    padded = jnp.pad(u, [(0, 0)] * (u.ndim - 1) + [(0, steps + weight - length)])
    flat = padded.reshape(*outer, rows * (steps + weight))[..., : rows * steps]
    return jnp.moveaxis(flat.reshape(*outer, rows, steps), -2, axis)


def _unskew_along(v: Array, axis: int, weight: int, length: int) -> Array:
    v = jnp.moveaxis(v, axis, -2)
    *outer, rows, steps = v.shape
    flat = v.reshape(*outer, rows * steps)
    padded = jnp.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, rows * weight)])
    return jnp.moveaxis(padded.reshape(*outer, rows, steps + weight)[..., :length], -2, axis)


class WavefrontSolve(eqx.Module):
    """Solves with the lower triangle of a stencil and a diagonal of one's own: `(D + L) x = r`.

    **Cost:** as many steps as there are wavefronts (2n - 1 on a square of n * n points with a
    five-point stencil), each on a plane of the grid; the planes' corners outside of the skewed grid
    are wasted, half of the work in 2-D and two thirds in 3-D.
    """

    inverse_diagonal: Skewed
    couplings: tuple[Array, ...]
    offsets: tuple[Offset, ...] = eqx.field(static=True)
    weights: tuple[int, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, operator: StencilOperator, diagonal: Float[Array, "*grid"]) -> None:
        self.shape = operator.shape
        self.weights = wavefront_weights(operator.offsets, len(self.shape))
        chosen = [k for k, o in enumerate(operator.offsets) if is_lower(o)]
        self.offsets = tuple(operator.offsets[k] for k in chosen)
        inverse, lower = 1 / diagonal, [operator.coefficients[k] for k in chosen]
        if operator.mask is not None:
            # Points in obstacles are 0 to all others, and others to them.
            lower = [
                jnp.where(operator.mask & shift(operator.mask, o), c, 0)
                for c, o in zip(lower, self.offsets, strict=True)
            ]
        # Zero outside of the grid, which keeps everything there zero.
        self.inverse_diagonal = skew(inverse, self.weights)
        self.couplings = tuple(c if c.ndim == 0 else skew(c, self.weights) for c in lower)

    def __call__(self, vector: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
        delays = [_delay(self.weights, o) for o in self.offsets]
        plane = self.inverse_diagonal.shape[1:]
        varying = tuple(c for c in self.couplings if c.ndim)

        def step(recent: tuple[Array, ...], given: Any) -> tuple[tuple[Array, ...], Array]:
            right, inverse, fields = given
            fields = iter(fields)
            for c, offset, delay in zip(self.couplings, self.offsets, delays, strict=True):
                c = next(fields) if c.ndim else c
                right = right - c * shift(recent[delay - 1], offset[:-1])
            x = right * inverse
            return (x, *recent[:-1]), x

        start = (jnp.zeros(plane, vector.dtype),) * max(delays, default=1)
        given = (skew(vector, self.weights), self.inverse_diagonal, varying)
        _, solved = jax.lax.scan(step, start, given)
        return unskew(solved, self.weights, self.shape)
