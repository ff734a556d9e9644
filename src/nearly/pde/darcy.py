"""Flow through porous media: -div(a grad u) = f on a rectangle, u = 0 on its boundary."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.operators.callable import CallableOperator
from nearly.pde.checks import check_converged, check_field, is_concrete
from nearly.pde.elliptic import DiagonalInverse, difference_eigenvalues

DEFINITE = frozenset([lx.positive_semidefinite_tag])


class Faces(eqx.Module):
    """The conductances of the faces between cells and at the boundary, over the step squared.

    `x`: `[n + 1, m]` of the faces across the first axis; `y`: `[n, m + 1]` across the second.
    """

    x: Float[Array, "rows m"]
    y: Float[Array, "n columns"]

    def __call__(self, u: Float[Array, "n m"]) -> Float[Array, "n m"]:
        """Minus the divergence of the flux a grad u in every cell: a symmetric map."""
        jump_x = jnp.diff(jnp.pad(u, ((1, 1), (0, 0))), axis=0)
        jump_y = jnp.diff(jnp.pad(u, ((0, 0), (1, 1))), axis=1)
        return -jnp.diff(self.x * jump_x, axis=0) - jnp.diff(self.y * jump_y, axis=1)


def faces(coefficient: Float[Array, "n m"]) -> Faces:
    """Harmonic means between cells; at the boundary the coefficient over half a cell.

    The harmonic mean is the conductance of two half cells in a row: the flux is exact across jumps
    of the coefficient that lie on faces.
    """
    n, m = coefficient.shape
    return Faces(_across(coefficient) * n**2, _across(coefficient.T).T * m**2)


def _across(a: Array) -> Array:
    inner = 2 * a[:-1] * a[1:] / (a[:-1] + a[1:])
    return jnp.concatenate([2 * a[:1], inner, 2 * a[-1:]])


def solve_darcy(
    coefficient: Float[Array, "n m"],
    source: Float[Array, "n m"] | Float[Array, ""] | float = 1.0,
    *,
    rtol: float | None = None,
) -> Float[Array, "n m"]:
    """The pressure at the centres of the cells, on the unit square, by finite volumes.

    **Arguments:**

    - `coefficient`: a, positive, constant in each of n by m cells.
    - `source`: f, one number or one for each cell.
    - `rtol`: the residual's norm over the source's at which the iteration stops; default 1e-10 in
      float64, 1e-6 in float32.

    **Returns:** u at the centres. Differentiable in both arguments by the implicit function
    theorem (another solve), batched by `jax.vmap`.

    **Raises:** `InputError` for a coefficient of the wrong rank or dtype and, where values can be
    looked at, one that is not positive and finite, or if the iteration does not converge (under
    `jit` the solution is then not finite).

    **Cost:** conjugate gradients preconditioned by the fast solver for a constant coefficient: the
    steps do not depend on the grid, they grow as the square root of max a / min a (about 20 for a
    ratio of 4); each is O(n m log n m). Memory: a few grids. A batch takes as many steps as its
    slowest sample.

    Second order for smooth coefficients; of first order or so at corners of jumps, which no fixed
    grid resolves.
    """
    check_coefficient(coefficient)
    dtype = coefficient.dtype
    single = dtype == jnp.float32
    tolerance = (1e-6 if single else 1e-10) if rtol is None else rtol
    side = jnp.broadcast_to(jnp.asarray(source, dtype), coefficient.shape)
    solution = _solve(coefficient, side, tolerance)
    check_converged(solution, f"raise rtol={tolerance:g}, or use solve_darcy_direct")
    return solution


@eqx.filter_jit
def _solve(coefficient: Array, side: Array, rtol: float) -> Array:
    structure = jax.eval_shape(lambda: side)
    operator = CallableOperator(faces(coefficient), structure, DEFINITE)
    eigenvalues = difference_eigenvalues(side.shape, (1.0, 1.0), side.dtype)
    preconditioner = CallableOperator(DiagonalInverse(eigenvalues), structure, DEFINITE)
    solution = lx.linear_solve(
        operator,
        side,
        ConjugateGradient(rtol, max_steps=4 * math.isqrt(side.size) + 100),
        options={"preconditioner": preconditioner},
        throw=False,
    )
    # A solve that did not converge must not look like one that did.
    converged = solution.result == lx.RESULTS.successful
    return jnp.where(converged, solution.value, jnp.nan)


def solve_darcy_direct(
    coefficient: Float[np.ndarray, "n m"], source: Float[np.ndarray, "n m"] | float = 1.0
) -> Float[np.ndarray, "n m"]:
    """The same system by SciPy's sparse direct solver, in float64, on the host: the truth.

    **Cost:** about O((n m)^1.5) time, O(n m log n m) memory.
    """
    a = np.asarray(coefficient, np.float64)
    check_coefficient(a)
    n, m = a.shape
    x, y = _host_across(a) * n**2, _host_across(a.T).T * m**2
    main = (x[:-1] + x[1:] + y[:, :-1] + y[:, 1:]).ravel()
    beside = y[:, 1:].copy()
    beside[:, -1] = 0  # the last cell of a row is no neighbour of the next row's first
    below, right = -x[1:-1].ravel(), -beside.ravel()[:-1]
    diagonals: Any = [main, right, right, below, below]
    offsets: Any = [0, 1, -1, m, -m]
    matrix: Any = sp.csc_array(sp.diags_array(diagonals, offsets=offsets))
    side = np.broadcast_to(np.asarray(source, np.float64), a.shape).ravel()
    return np.asarray(spla.spsolve(matrix, side)).reshape(n, m)


def _host_across(a: np.ndarray) -> np.ndarray:
    inner = 2 * a[:-1] * a[1:] / (a[:-1] + a[1:])
    return np.concatenate([2 * a[:1], inner, 2 * a[-1:]])


def check_coefficient(coefficient: Array | np.ndarray) -> None:
    """`InputError` for a coefficient that makes the equation no elliptic one."""
    check_field("the coefficient", coefficient, (2,))
    if min(coefficient.shape) < 2:
        raise InputError(f"coefficient of shape {coefficient.shape} must have 2 cells a side")
    if is_concrete(coefficient) and not np.all(np.asarray(coefficient) > 0):
        raise InputError(
            f"the coefficient's least value {float(np.min(coefficient)):g} must be positive: "
            "exponentiate or threshold the field it comes from"
        )
