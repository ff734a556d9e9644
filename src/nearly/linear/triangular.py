"""Sweeps through the triangles of an operator, each kind of operator in its own way."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float

from nearly.linear.operators.stencil import StencilOperator, diagonal_on_grid, opposite
from nearly.linear.wavefront import WavefrontSolve

Scalar = Float[Array, ""] | float
Sweep = Callable[[Array], Array]


@singledispatch
def sweep(operator: lx.AbstractLinearOperator, omega: Scalar) -> Sweep:
    """`r -> (D / omega + L)^-1 r`, D the diagonal and L what is below it in the natural order.

    An operator of no known structure is written out as a dense matrix.
    """
    return _dense_sweep(operator, omega, lower=True)


@singledispatch
def reverse_sweep(operator: lx.AbstractLinearOperator, omega: Scalar) -> Sweep:
    """`r -> (D / omega + U)^-1 r`, U what is above the diagonal."""
    return _dense_sweep(operator, omega, lower=False)


class DenseSweep(eqx.Module):
    """Substitution with a dense triangle. **Cost:** n^2 flops, in n dependent steps."""

    triangle: Float[Array, "n n"]
    lower: bool = eqx.field(static=True)

    def __call__(self, vector: Array) -> Array:
        flat = vector.reshape(-1)
        solved = jax.scipy.linalg.solve_triangular(self.triangle, flat, lower=self.lower)
        return solved.reshape(vector.shape)


def _dense_sweep(operator: lx.AbstractLinearOperator, omega: Scalar, *, lower: bool) -> DenseSweep:
    matrix = operator.as_matrix()
    strict = jnp.tril(matrix, -1) if lower else jnp.triu(matrix, 1)
    return DenseSweep(strict + jnp.diag(jnp.diagonal(matrix) / omega), lower)


@sweep.register
def _(operator: StencilOperator, omega: Scalar) -> Sweep:
    return WavefrontSolve(operator, diagonal_on_grid(operator) / omega)


@reverse_sweep.register
def _(operator: StencilOperator, omega: Scalar) -> Sweep:
    return Flipped(sweep(flipped(operator), omega))


class Flipped(eqx.Module):
    """A function of arrays on a grid, seen from the grid's other end."""

    function: Sweep

    def __call__(self, vector: Array) -> Array:
        return jnp.flip(self.function(jnp.flip(vector)))


def flipped(operator: StencilOperator) -> StencilOperator:
    """The same operator with the grid's points counted from the other end of every axis."""
    grid = tuple(range(1, len(operator.shape) + 1))
    constant = operator.is_constant
    return StencilOperator(
        operator.coefficients if constant else jnp.flip(operator.coefficients, grid),
        tuple(opposite(o) for o in operator.offsets),
        operator.shape,
        mask=None if operator.mask is None else jnp.flip(operator.mask),
        tags=operator.tags,
    )
