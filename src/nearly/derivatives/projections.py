"""Euclidean projections and proximal operators with the right derivatives almost everywhere.

A projection maps a point to the nearest one of a set; a proximal operator maps it to the minimiser
of scale * g(x) + |x - point|^2 / 2. All are non-expansive, so they serve as steps of a fixed-point
iteration, and inside the conditions of `conditions`. Where they have a kink (a face of the set is
entered) their derivative is that of one side. Paper: `implicit-differentiation`.

How they differ from the usual implementations: sorting decides which coordinates are active and
nothing more, so derivatives never go through a sort; and no derivative is NaN, not at the centre of
a ball either. All take one vector or one pytree; `jax.vmap` makes batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from nearly.derivatives.fixed_point import iterate
from nearly.derivatives.implicit import custom_root

Scalar = float | Float[Array, ""]
Bound = float | Float[Array, "..."]


# ---- bounds


def box(point: Float[Array, "*shape"], low: Bound, high: Bound) -> Float[Array, "*shape"]:
    """Projection onto low <= x <= high, elementwise; either bound may be infinite."""
    return jnp.minimum(jnp.maximum(point, low), high)


def nonnegative(point: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Projection onto x >= 0; the derivative at 0 is 0."""
    return jnp.where(point > 0, point, 0)


def linf_ball(point: Float[Array, "*shape"], radius: Scalar = 1.0) -> Float[Array, "*shape"]:
    """Projection onto |x_i| <= radius."""
    return box(point, -radius, radius)


# ---- the simplex and what reduces to it


def simplex(point: Float[Array, " n"], total: Scalar = 1.0) -> Float[Array, " n"]:
    """Projection onto x >= 0, sum(x) = total, with total > 0.

    **Cost:** n log n. The derivative on the support S is I - 1 1' / |S|, and 0 elsewhere.
    """
    return nonnegative(point - _threshold(point, total))


def _threshold(point: Float[Array, " n"], total: Scalar) -> Float[Array, ""]:
    """The t for which max(point - t, 0) sums to total; differentiable, but not through the sort."""
    fixed = jax.lax.stop_gradient(point)
    descending = -jnp.sort(-fixed)
    counts = jnp.arange(1, point.size + 1, dtype=point.dtype)
    candidates = (jnp.cumsum(descending) - jax.lax.stop_gradient(total)) / counts
    kept = jnp.sum(descending > candidates)
    support = fixed > candidates[kept - 1]
    return (jnp.sum(jnp.where(support, point, 0)) - total) / jnp.sum(support)


def l1_ball(point: Float[Array, " n"], radius: Scalar = 1.0) -> Float[Array, " n"]:
    """Projection onto sum |x_i| <= radius, with radius > 0. **Cost:** n log n."""
    inside = jnp.sum(jnp.abs(point)) <= radius
    return jnp.where(inside, point, jnp.sign(point) * simplex(jnp.abs(point), radius))


def transport_plans(
    point: Float[Array, "m n"],
    rows: Float[Array, " m"],
    columns: Float[Array, " n"],
    *,
    tolerance: float | None = None,
    max_sweeps: int = 10_000,
) -> Float[Array, "m n"]:
    """Projection onto the matrices x >= 0 with given sums of rows and of columns.

    **Arguments:**

    - `rows`, `columns`: the sums; positive, of equal total.
    - `tolerance`: stop when a sweep changes the thresholds by less; by default ten spacings of
      the dtype. `max_sweeps`: the most sweeps.

    **Returns:** the projection. The dual is maximised over the thresholds of all rows, then of all
    columns, in turn; the derivative is the implicit one of the thresholds, the least-norm one where
    the support falls apart and so leaves them undetermined (the projection is not).

    **Raises:** at run time, if max_sweeps do not suffice, as they never do for unequal totals.

    **Cost:** m n log(m n) per sweep; (m + n)^3 for a derivative.
    """

    def sweep(thresholds: tuple[Array, Array], *given: Array) -> tuple[Array, Array]:
        point, rows, columns = given
        a = jax.vmap(_threshold)(point - thresholds[1], rows)
        return a, jax.vmap(_threshold, in_axes=(1, 0))(point - a[:, None], columns)

    def plan(thresholds: tuple[Array, Array], point: Array) -> Array:
        return nonnegative(point - thresholds[0][:, None] - thresholds[1])

    def mismatch(thresholds: tuple[Array, Array], *given: Array) -> tuple[Array, Array]:
        x = plan(thresholds, given[0])
        return jnp.sum(x, 1) - given[1], jnp.sum(x, 0) - given[2]

    small = 10 * float(jnp.finfo(point.dtype).eps) if tolerance is None else tolerance
    solver = iterate(sweep, tolerance=small, max_steps=max_sweeps)
    least_norm = lx.AutoLinearSolver(well_posed=False)
    start = jnp.zeros_like(rows), jnp.zeros_like(columns)
    solved = custom_root(mismatch, least_norm)(solver)
    return plan(solved(start, point, rows, columns), point)


# ---- balls, affine sets, cones


def l2_ball(point: PyTree, radius: Scalar = 1.0) -> PyTree:
    """Projection of a vector or pytree onto |x| <= radius, Euclidean over all leaves."""
    squared = jnp.sum(jnp.square(ravel_pytree(point)[0]))
    outside = squared > radius**2
    # The root is taken of a number that is never 0: its derivative there would be infinite.
    shrink = jnp.where(outside, radius / jnp.sqrt(jnp.where(outside, squared, 1)), 1)
    return jax.tree.map(lambda leaf: leaf * shrink, point)


def hyperplane(
    point: Float[Array, " n"], normal: Float[Array, " n"], offset: Scalar
) -> Float[Array, " n"]:
    """Projection onto normal . x = offset; normal must not be 0."""
    return point - normal * ((normal @ point - offset) / (normal @ normal))


def halfspace(
    point: Float[Array, " n"], normal: Float[Array, " n"], offset: Scalar
) -> Float[Array, " n"]:
    """Projection onto normal . x <= offset; normal must not be 0."""
    return point - normal * (nonnegative(normal @ point - offset) / (normal @ normal))


def affine_set(
    point: Float[Array, " n"], matrix: Float[Array, "m n"], offset: Float[Array, " m"]
) -> Float[Array, " n"]:
    """Projection onto matrix @ x = offset; the rows of matrix must be independent.

    **Cost:** m^2 n to form and m^3 to factorise matrix @ matrix.T, with its condition squared.
    """
    return point - matrix.T @ jnp.linalg.solve(matrix @ matrix.T, matrix @ point - offset)


def second_order_cone(point: Float[Array, " n"]) -> Float[Array, " n"]:
    """Projection onto |x[1:]| <= x[0]."""
    height, base = point[0], point[1:]
    squared = jnp.sum(jnp.square(base))
    positive = squared > 0
    size = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)
    mean = (height + size) / 2
    mantle = jnp.append(mean, base * (mean / jnp.where(positive, size, 1)))
    return jnp.where(size <= height, point, jnp.where(size <= -height, 0, mantle))


# ---- proximal operators, of scale * g


def soft_threshold(point: Float[Array, "*shape"], scale: Bound = 1.0) -> Float[Array, "*shape"]:
    """Proximal operator of scale * sum |x_i|: every entry moves to 0 by scale, and stays there."""
    return jnp.where(jnp.abs(point) > scale, point - scale * jnp.sign(point), 0)


def elastic_net(
    point: Float[Array, "*shape"], scale: Bound = 1.0, ridge: Bound = 1.0
) -> Float[Array, "*shape"]:
    """Proximal operator of scale * sum(|x_i| + ridge x_i^2 / 2)."""
    return soft_threshold(point, scale) / (1 + scale * ridge)


def group_lasso(point: PyTree, scale: Scalar = 1.0) -> PyTree:
    """Proximal operator of scale * |x|, the Euclidean norm over all leaves: one group.

    For more groups, map it over them (`jax.vmap`, `jax.tree.map`).
    """
    # Moreau: what a point loses is its projection onto the ball of the dual norm.
    return jax.tree.map(jnp.subtract, point, l2_ball(point, scale))
