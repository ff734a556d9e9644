"""Small finite elements in the plane: bilinear quadrilaterals (Q1) and linear triangles (P1).

Everything is evaluated at Gauss points: a constitutive law, with whatever it remembers there, is an
array `[cells, gauss, …]` between `gradient` and `divergence`. The assembly is written in JAX, not
taken from scikit-fem, whose NumPy forms can be neither differentiated in the coefficient nor traced
(its matrices are what ours are tested against). Its meshes fit:
`Mesh(jnp.asarray(m.p.T), jnp.asarray(m.t.T))` of a `MeshTri` or `MeshQuad`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from jaxtyping import Array, Bool, Float, Int

from nearly.core.errors import InputError
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.operators.callable import CallableOperator
from nearly.pde.checks import check_converged, is_concrete

DEFINITE = frozenset([lx.positive_semidefinite_tag])
AtGauss = Float[Array, "cells gauss"] | Float[Array, ""] | float


class Mesh(eqx.Module):
    """A plane mesh of triangles or of quadrilaterals.

    **Arguments:** `points`: `[points, 2]`; `cells`: `[cells, 3]` or `[cells, 4]`, indices of
    corners, counter-clockwise.

    **Raises:** `InputError` for other shapes and for indices of points that are not there.
    """

    points: Float[Array, "points 2"]
    cells: Int[Array, "cells corners"]

    def __check_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != 2:
            raise InputError(f"points of shape {self.points.shape} must be [points, 2]")
        if self.cells.ndim != 2 or self.cells.shape[1] not in (3, 4):
            raise InputError(f"cells of shape {self.cells.shape} must be [cells, 3] or [cells, 4]")
        if is_concrete(self.cells):
            low, high = int(jnp.min(self.cells)), int(jnp.max(self.cells))
            if low < 0 or high >= len(self.points):
                raise InputError(
                    f"cells name points {low} to {high}, there are 0 to {len(self.points) - 1}"
                )

    def boundary(self) -> Bool[Array, " points"]:
        """The points on edges of one cell only. On the host."""
        cells = np.asarray(self.cells)
        edges = np.stack([cells, np.roll(cells, -1, axis=1)], -1).reshape(-1, 2)
        unique, times = np.unique(np.sort(edges, axis=1), axis=0, return_counts=True)
        found = np.zeros(len(self.points), bool)
        found[unique[times == 1]] = True
        return jnp.asarray(found)


def rectangle_mesh(
    n: int,
    m: int,
    *,
    sides: tuple[float, float] = (1.0, 1.0),
    cell: Literal["quadrilateral", "triangle"] = "quadrilateral",
    dtype: Any = jnp.float64,
) -> Mesh:
    """A rectangle from the origin of n by m equal quadrilaterals, or twice as many triangles.

    Point i (m + 1) + j is (i sides[0] / n, j sides[1] / m): a nodal field reshapes to
    `[n + 1, m + 1]`.
    """
    if n < 1 or m < 1 or min(sides) <= 0:
        raise InputError(f"n={n}, m={m} and sides={sides} must be positive")
    if cell not in ("quadrilateral", "triangle"):
        raise InputError(f"cell {cell!r} is neither 'quadrilateral' nor 'triangle': choose one")
    x, y = np.meshgrid(
        np.linspace(0, sides[0], n + 1), np.linspace(0, sides[1], m + 1), indexing="ij"
    )
    first = (np.arange(n)[:, None] * (m + 1) + np.arange(m)).ravel()
    corners = np.stack([first, first + m + 1, first + m + 2, first + 1], axis=1)
    if cell == "triangle":
        corners = np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    return Mesh(jnp.asarray(points, dtype), jnp.asarray(corners, jnp.int32))


class FiniteElements(eqx.Module):
    """Continuous functions on a mesh, linear on triangles or bilinear on quadrilaterals.

    **Arguments:** `mesh`.

    **Fields:** `shapes` `[gauss, corners]` and `slopes` `[cells, gauss, corners, 2]`, the shape
    functions and their gradients at the Gauss points; `weights` `[cells, gauss]`, of the points.
    Two by two Gauss points on quadrilaterals, three on triangles: exact for products of two shape
    functions on parallelograms and triangles.

    **Raises:** `InputError` for a cell that is degenerate or clockwise (where it can be looked at).

    **Cost:** O(cells) time and memory, here and in every method.
    """

    mesh: Mesh
    shapes: Float[Array, "gauss corners"]
    slopes: Float[Array, "cells gauss corners 2"]
    weights: Float[Array, "cells gauss"]

    def __init__(self, mesh: Mesh) -> None:
        dtype = mesh.points.dtype
        table = _triangle() if mesh.cells.shape[1] == 3 else _quadrilateral()
        shapes, reference, weights = (jnp.asarray(each, dtype) for each in table)
        corners = mesh.points[mesh.cells]
        jacobian = jnp.einsum("cai,qaj->cqij", corners, reference)
        determinant = jnp.linalg.det(jacobian)
        if is_concrete(determinant) and not jnp.all(determinant > 0):
            bad = int(jnp.argmin(determinant.min(1)))
            raise InputError(
                f"cell {bad} with the corners {np.asarray(corners[bad]).tolist()} is degenerate or "
                "clockwise: reorder its corners or mend the mesh"
            )
        self.mesh = mesh
        self.shapes = shapes
        self.slopes = jnp.einsum("qaj,cqji->cqai", reference, jnp.linalg.inv(jacobian))
        self.weights = determinant * weights

    def gauss_points(self) -> Float[Array, "cells gauss 2"]:
        """Where the Gauss points are."""
        return jnp.einsum("qa,cai->cqi", self.shapes, self.mesh.points[self.mesh.cells])

    def values(self, nodal: Float[Array, " points"]) -> Float[Array, "cells gauss"]:
        """A function at the Gauss points, from its values at the mesh's points."""
        return jnp.einsum("qa,ca->cq", self.shapes, nodal[self.mesh.cells])

    def gradient(self, nodal: Float[Array, " points"]) -> Float[Array, "cells gauss 2"]:
        """Its gradient at the Gauss points."""
        return jnp.einsum("cqai,ca->cqi", self.slopes, nodal[self.mesh.cells])

    def load(self, source: AtGauss) -> Float[Array, " points"]:
        """The integrals of a source, given at the Gauss points, times each shape function."""
        density = self.weights * source
        return self._gather(jnp.einsum("cq,qa->ca", density, self.shapes))

    def divergence(self, flux: Float[Array, "cells gauss 2"]) -> Float[Array, " points"]:
        """The integrals of a flux times each shape function's gradient: minus its divergence."""
        return self._gather(jnp.einsum("cq,cqi,cqai->ca", self.weights, flux, self.slopes))

    def stiffness(self, coefficient: AtGauss = 1.0) -> Float[Array, "cells corners corners"]:
        """Each cell's integrals of coefficient grad . grad; `assemble` makes them a matrix."""
        weighted = self.weights * coefficient
        return jnp.einsum("cq,cqai,cqbi->cab", weighted, self.slopes, self.slopes)

    def mass(self, density: AtGauss = 1.0) -> Float[Array, "cells corners corners"]:
        """Each cell's integrals of density times two shape functions."""
        return jnp.einsum("cq,qa,qb->cab", self.weights * density, self.shapes, self.shapes)

    def apply(
        self, matrices: Float[Array, "cells corners corners"], nodal: Float[Array, " points"]
    ) -> Float[Array, " points"]:
        """The product of the assembled matrix with a vector, without assembling it."""
        return self._gather(jnp.einsum("cab,cb->ca", matrices, nodal[self.mesh.cells]))

    def diagonal(self, matrices: Float[Array, "cells corners corners"]) -> Float[Array, " points"]:
        """The diagonal of the assembled matrix."""
        return self._gather(jnp.diagonal(matrices, axis1=1, axis2=2))

    def assemble(self, matrices: Float[Array, "cells corners corners"]) -> sp.csr_array:
        """The sparse matrix of the cells' matrices, on the host."""
        cells = np.asarray(self.mesh.cells)
        rows = np.repeat(cells, cells.shape[1], axis=1).ravel()
        columns = np.tile(cells, (1, cells.shape[1])).ravel()
        size = len(self.mesh.points)
        entries: Any = (np.asarray(matrices).ravel(), (rows, columns))
        return sp.csr_array(sp.coo_array(entries, shape=(size, size)))

    def _gather(self, local: Array) -> Array:
        return jnp.zeros(len(self.mesh.points), local.dtype).at[self.mesh.cells].add(local)


def solve_diffusion(
    space: FiniteElements,
    coefficient: AtGauss,
    source: AtGauss,
    *,
    fixed: Bool[Array, " points"],
    values: Float[Array, " points"] | float = 0.0,
    rtol: float | None = None,
) -> Float[Array, " points"]:
    """u with -div(coefficient grad u) = source, given at some points; no flux elsewhere.

    **Arguments:**

    - `coefficient`, `source`: at the Gauss points, or numbers; the coefficient positive.
    - `fixed`: the points where u is given, `mesh.boundary()` for all of the boundary; `values`: u
      there (other entries are not used).
    - `rtol`: the residual's norm at the free points over the right-hand side's there; default
      1e-10 in float64, 1e-6 in float32.

    **Returns:** u at all points. Differentiable in coefficient, source and values by the implicit
    function theorem, batched by `jax.vmap`.

    **Raises:** `InputError`, where values can be looked at, if no point is fixed, the coefficient
    is not positive, or the iteration does not converge (under `jit` the solution is then not
    finite).

    **Cost:** conjugate gradients with the diagonal: steps grow as the number of points along a side
    times the root of the coefficient's contrast, each O(cells). `solve_diffusion_direct` is faster
    for one system on the host.
    """
    _check(coefficient, fixed)
    dtype = space.weights.dtype
    tolerance = (1e-6 if dtype == jnp.float32 else 1e-10) if rtol is None else rtol
    given = jnp.where(fixed, jnp.asarray(values, dtype), 0)
    matrices = space.stiffness(coefficient)
    side = jnp.where(fixed, 0, space.load(source) - space.apply(matrices, given))
    structure = jax.eval_shape(lambda: side)
    # The solution does not depend on the preconditioner, so neither does its derivative.
    scale = _Scale(jax.lax.stop_gradient(jnp.where(fixed, 1, space.diagonal(matrices))))
    solution = lx.linear_solve(
        CallableOperator(_Free(space, matrices, fixed), structure, DEFINITE),
        side,
        ConjugateGradient(tolerance, max_steps=20 * math.isqrt(side.size) + 200),
        options={"preconditioner": CallableOperator(scale, structure, DEFINITE)},
        throw=False,
    )
    # A solve that did not converge must not look like one that did.
    converged = solution.result == lx.RESULTS.successful
    found = given + jnp.where(converged, solution.value, jnp.nan)
    check_converged(found, f"raise rtol={tolerance:g}, or use solve_diffusion_direct")
    return found


def solve_diffusion_direct(
    space: FiniteElements,
    coefficient: AtGauss,
    source: AtGauss,
    *,
    fixed: Bool[Array, " points"],
    values: Float[Array, " points"] | float = 0.0,
) -> Float[np.ndarray, " points"]:
    """The same by SciPy's sparse direct solver, in float64, on the host."""
    _check(coefficient, fixed)
    matrix: Any = space.assemble(space.stiffness(coefficient)).astype(np.float64)
    free = ~np.asarray(fixed)
    found = np.where(free, 0.0, np.asarray(values, np.float64))
    side = np.asarray(space.load(source), np.float64) - matrix @ found
    inner: Any = sp.csc_array(matrix[free][:, free])
    found[free] = np.asarray(spla.spsolve(inner, side[free]))
    return found


class _Free(eqx.Module):
    """The stiffness between free points; the identity at the others, so that it stays definite."""

    space: FiniteElements
    matrices: Float[Array, "cells corners corners"]
    fixed: Bool[Array, " points"]

    def __call__(self, u: Array) -> Array:
        inner = self.space.apply(self.matrices, jnp.where(self.fixed, 0, u))
        return jnp.where(self.fixed, u, inner)


class _Scale(eqx.Module):
    diagonal: Float[Array, " points"]

    def __call__(self, u: Array) -> Array:
        return u / self.diagonal


def _check(coefficient: AtGauss, fixed: Bool[Array, " points"]) -> None:
    if is_concrete(fixed) and not np.any(np.asarray(fixed)):
        raise InputError("no point is fixed, so that u is known up to a constant only: fix one")
    if is_concrete(coefficient) and not np.all(np.asarray(coefficient) > 0):
        least = float(np.min(np.asarray(coefficient)))
        raise InputError(f"the coefficient's least value {least:g} must be positive")


def _triangle() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape functions, their gradients and weights at three points: exact for degree 2."""
    points = np.array([[1 / 6, 1 / 6], [2 / 3, 1 / 6], [1 / 6, 2 / 3]])
    shapes = np.stack([1 - points.sum(1), points[:, 0], points[:, 1]], axis=1)
    slopes = np.tile(np.array([[-1.0, -1.0], [1.0, 0.0], [0.0, 1.0]]), (3, 1, 1))
    return shapes, slopes, np.full(3, 1 / 6)


def _quadrilateral() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same on [-1, 1]^2 at two by two points: exact for degree 3 in each coordinate."""
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    points = corners[:, None] / math.sqrt(3)
    factors = (1 + corners * points) / 2
    slopes = corners / 2 * factors[..., ::-1]
    return factors.prod(-1), slopes, np.ones(4)
