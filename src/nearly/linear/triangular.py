"""Sweeps through the triangles of an operator, each kind of operator in its own way."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.levels import LevelSolve
from nearly.linear.operators import SparseOperator, StencilOperator, as_scipy
from nearly.linear.operators.sparse import stencil_fields
from nearly.linear.operators.stencil import diagonal_on_grid, opposite
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


def concrete(operator: lx.AbstractLinearOperator) -> sp.csr_array:
    """The operator's matrix on the host; `InputError` under a transformation."""
    try:
        return as_scipy(operator)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        raise InputError(
            "this preconditioner is set up on the host: make it outside of jit, grad and vmap and "
            "pass it as options={'preconditioner': make(operator)}"
        ) from None


@sweep.register
def _(operator: SparseOperator, omega: Scalar) -> Sweep:
    strict = sp.csr_array(sp.tril(concrete(operator), -1, format="csr"))
    return LevelSolve(strict, lx.diagonal(operator) / omega)


@reverse_sweep.register
def _(operator: SparseOperator, omega: Scalar) -> Sweep:
    strict = sp.csr_array(sp.triu(concrete(operator), 1, format="csr"))
    return LevelSolve(strict, lx.diagonal(operator) / omega)


@singledispatch
def substitution(like: lx.AbstractLinearOperator, triangle: sp.csr_array) -> Sweep:
    """`r -> T^-1 r` for a sparse triangle T on the host, between arrays like the operator's."""
    structure: Any = like.in_structure()
    strict = sp.csr_array(triangle - sp.diags_array(triangle.diagonal()))
    strict.eliminate_zeros()
    return LevelSolve(strict, jnp.asarray(triangle.diagonal(), structure.dtype))


@substitution.register
def _(like: StencilOperator, triangle: sp.csr_array) -> Sweep:
    # A triangle with the pattern of a stencil is a stencil: wavefronts are faster than levels.
    fields = stencil_fields(triangle, like.offsets, like.shape)
    coefficients = jnp.asarray(fields, like.coefficients.dtype)
    stencil = StencilOperator(coefficients, like.offsets, like.shape)
    lower = not np.any(sp.coo_array(triangle).col > sp.coo_array(triangle).row)
    return (sweep if lower else reverse_sweep)(stencil, 1.0)


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
