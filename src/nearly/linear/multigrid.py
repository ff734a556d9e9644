"""Geometric multigrid on structured grids: a V-cycle as a symmetric preconditioner."""

from __future__ import annotations

import itertools
import math
from functools import reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.operators import CallableOperator, StencilOperator, bare, is_definite
from nearly.linear.operators.sparse import stencil_fields
from nearly.linear.operators.stencil import diagonal_on_grid
from nearly.linear.triangular import concrete

Grid = Float[Array, "..."]
COARSEST = 100  # unknowns that are solved for by a dense factor


def prolong(coarse: Grid, shape: tuple[int, ...]) -> Grid:
    """Linear interpolation to a grid of about twice as many points along each axis.

    Coarse point j lies on fine point 2j + 1; around the grid the function is zero.
    """
    for axis, n in enumerate(shape):
        m = coarse.shape[axis]
        if m == n:  # an axis that is not coarsened
            continue
        low = [(0, 0, 0)] * coarse.ndim
        low[axis] = (1, n - 2 * m, 1)
        spread = jax.lax.pad(coarse, jnp.zeros((), coarse.dtype), low)
        up, down = ([(0, 0, 0)] * coarse.ndim for _ in range(2))
        up[axis], down[axis] = (-1, 1, 0), (1, -1, 0)
        zero = jnp.zeros((), coarse.dtype)
        coarse = spread + (jax.lax.pad(spread, zero, up) + jax.lax.pad(spread, zero, down)) / 2
    return coarse


def restrict(fine: Grid, shape: tuple[int, ...]) -> Grid:
    """Full weighting, the transpose of `prolong`."""
    for axis, m in enumerate(shape):
        if fine.shape[axis] == m:
            continue
        zero = jnp.zeros((), fine.dtype)
        # Fine points 2j, 2j + 1, 2j + 2 with weights 1/2, 1, 1/2; beyond the grid there is nothing.
        padding = [(0, 0, 0)] * fine.ndim
        padding[axis] = (0, max(0, 2 * m + 1 - fine.shape[axis]), 0)
        wide = jax.lax.pad(fine, zero, padding)
        parts = [
            jax.lax.slice_in_dim(wide, start, start + 2 * m - 1, 2, axis) for start in (0, 1, 2)
        ]
        fine = parts[1] + (parts[0] + parts[2]) / 2
    return fine


class Level(eqx.Module):
    """An operator of the hierarchy and the damped inverse of its diagonal."""

    operator: StencilOperator
    smoother: Grid


class Multigrid(eqx.Module):
    """One symmetric V-cycle: damped Jacobi, full weighting, linear interpolation.

    The coarse operators are Galerkin products, so any size, variable coefficients and obstacles
    will do; the coarsest is solved by a dense Cholesky factor. An axis is coarsened while it
    couples at least a quarter as strongly as the strongest (semi-coarsening), so anisotropy along
    the axes does no harm either.

    **Arguments:**

    - `sweeps`: smoothing steps before and after the coarse grid.
    - `damping`: of Jacobi's method; None is the factor that smooths best for the Laplacian, 4/5 in
      two dimensions and 6/7 in three (2/3 in one).

    **Raises:** `InputError` for operators that are not stencils of reach one, or not definite.

    **Cost:** set up on the host by sparse products, so not under `jit`; a cycle takes about
    `2 sweeps + 2` products on the finest grid and a third of that, with stencils of 3^d points, on
    the coarser ones. The number of iterations does not grow with the grid.
    """

    sweeps: int = 1
    damping: float | None = None

    def __check_init__(self) -> None:
        if self.sweeps < 1:
            raise InputError(f"{self.sweeps} smoothing sweeps; give one or more")
        if self.damping is not None and not 0 < self.damping < 1:
            raise InputError(f"a damping of {self.damping}; give one between 0 and 1")

    def __call__(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        inside = bare(operator)
        if not isinstance(inside, StencilOperator):
            raise InputError(
                f"multigrid needs a structured grid, but this is a {type(inside).__name__}: give a "
                "StencilOperator, or use IncompleteCholesky"
            )
        if not is_definite(operator):
            raise InputError("multigrid needs a positive definite operator; tag yours if it is")
        if any(abs(step) > 1 for offset in inside.offsets for step in offset):
            raise InputError(f"multigrid takes stencils of reach one, not {inside.offsets}")
        concrete(inside)
        cycle = self._hierarchy(inside)
        tags = frozenset([lx.positive_semidefinite_tag])
        return CallableOperator(cycle, operator.in_structure(), tags)

    def _hierarchy(self, operator: StencilOperator) -> VCycle:
        levels: list[Level] = []
        while math.prod(operator.shape) > COARSEST:
            axes = _strong_axes(operator)
            damping = self.damping or 2 * len(axes) / (2 * len(axes) + 1)
            levels.append(Level(operator, damping / diagonal_on_grid(operator)))
            operator = coarsened(operator, axes)
        matrix = concrete(operator).toarray()
        factor = np.linalg.cholesky((matrix + matrix.T) / 2)
        dtype = operator.coefficients.dtype
        return VCycle(tuple(levels), jnp.asarray(factor, dtype), operator.shape, self.sweeps)


class VCycle(eqx.Module):
    """The cycle that a hierarchy of levels makes."""

    levels: tuple[Level, ...]
    factor: Float[Array, "n n"]
    coarsest: tuple[int, ...] = eqx.field(static=True)
    sweeps: int = eqx.field(static=True)

    def __call__(self, vector: Grid) -> Grid:
        return self._descend(vector, 0)

    def _descend(self, right: Grid, depth: int) -> Grid:
        if depth == len(self.levels):
            solved = jax.scipy.linalg.cho_solve((self.factor, True), right.reshape(-1))
            return solved.reshape(right.shape)
        level = self.levels[depth]
        below = self.levels[depth + 1].operator.shape if depth + 1 < len(self.levels) else None
        shape = self.coarsest if below is None else below
        mask = level.operator.mask
        x = level.smoother * right
        for _ in range(self.sweeps - 1):
            x = x + level.smoother * (right - level.operator.mv(x))
        left = _inside(mask, right - level.operator.mv(x))
        correction = prolong(self._descend(restrict(left, shape), depth + 1), level.operator.shape)
        x = x + _inside(mask, correction)
        for _ in range(self.sweeps):
            x = x + level.smoother * (right - level.operator.mv(x))
        return x


def _inside(mask: Any, u: Grid) -> Grid:
    return u if mask is None else jnp.where(mask, u, 0)


def _strong_axes(operator: StencilOperator) -> tuple[int, ...]:
    """The axes to coarsen: those along which neighbours are coupled strongly, and not too short."""
    dimension = len(operator.shape)
    couplings = np.zeros(dimension)
    for coefficient, offset in zip(operator.coefficients, operator.offsets, strict=True):
        if sum(map(abs, offset)) == 1:
            couplings[np.flatnonzero(offset)] += np.mean(np.abs(np.asarray(coefficient)))
    long = [axis for axis, n in enumerate(operator.shape) if n > 3]
    strongest = max(couplings[axis] for axis in long)
    return tuple(axis for axis in long if couplings[axis] >= strongest / 4)


def coarsened(operator: StencilOperator, axes: tuple[int, ...]) -> StencilOperator:
    """The Galerkin product `P^T A P` for linear interpolation P along some axes, on the host.

    Coarse points that no unknown of the fine grid sees become unknowns of their own, with a one on
    the diagonal.
    """
    shape = tuple(n // 2 if axis in axes else n for axis, n in enumerate(operator.shape))
    pairs = zip(operator.shape, shape, strict=True)
    interpolation = reduce(sp.kron, [_interpolation(n, m) for n, m in pairs])
    if operator.mask is not None:
        free = np.ravel(np.asarray(operator.mask)).astype(np.float64)
        interpolation = sp.diags_array(free) @ interpolation
    interpolation = sp.csr_array(interpolation)
    product = sp.csr_array(interpolation.T @ concrete(operator) @ interpolation)
    offsets = tuple(itertools.product((-1, 0, 1), repeat=len(shape)))
    fields = stencil_fields(product, offsets, shape)
    centre = fields[offsets.index((0,) * len(shape))]
    centre[centre <= 0] = 1
    coefficients = jnp.asarray(fields, operator.coefficients.dtype)
    return StencilOperator(coefficients, offsets, shape, tags=operator.tags)


def _interpolation(n: int, m: int) -> sp.csr_array:
    """`prolong` along one axis, as a matrix."""
    if n == m:
        return sp.csr_array(sp.eye_array(n))
    coarse = np.arange(m)
    rows = np.concatenate([2 * coarse, 2 * coarse + 1, 2 * coarse + 2])
    values = np.repeat([0.5, 1.0, 0.5], m)
    inside = rows < n
    columns = np.tile(coarse, 3)
    return sp.csr_array((values[inside], (rows[inside], columns[inside])), shape=(n, m))
