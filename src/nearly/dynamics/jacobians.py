"""Jacobians of vector fields, and the factorisations that implicit solvers need of them.

A solver asks a `Jacobian` for the matrix once a step (or less), and for the factors of
`I - scale * matrix` once a step; every linear solve of the step uses those.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Inexact, Shaped
from scipy.sparse.csgraph import reverse_cuthill_mckee

from nearly.core.errors import InputError
from nearly.core.tally import counted
from nearly.linear.operators.storage import shape_of

JACOBIANS = "Jacobians*"
FACTORISATIONS = "factorisations*"
SOLVES = "solves*"
Vector = Inexact[Array, " d"]
Push = Callable[[Vector], Vector]


class Factors(eqx.Module):
    """Factors of a square matrix."""

    @abc.abstractmethod
    def solve(self, vector: Vector) -> Vector:
        """The matrix's inverse times a vector. Counted as a solve."""


class Jacobian(eqx.Module):
    """How the Jacobian of a vector field is found, kept and factorised."""

    @abc.abstractmethod
    def matrix(self, push: Push, at: Vector, t: Any, y: Any, args: Any, step: Any) -> Any:
        """The step times the Jacobian, in the form that `factors` takes.

        **Arguments:**

        - `push`: a vector times `step` times the field's Jacobian at `(t, y, args)`.
        - `at`: y as one vector.
        - `step`: what multiplies the vector field in a step: its length, with its sign.
        """

    @abc.abstractmethod
    def factors(self, matrix: Any, scale: Any) -> Factors:
        """Of `I - scale * matrix`. Counted as a factorisation."""


# ---- dense


class DenseFactors(Factors):
    """LU with row exchanges."""

    triangles: Inexact[Array, "d d"]
    order: Shaped[Array, " d"]

    def solve(self, vector: Vector) -> Vector:
        return _substitute(self, vector)


def _both_triangles(factors: DenseFactors, vector: Vector) -> Vector:
    column = vector[factors.order][:, None]
    solve = jax.lax.linalg.triangular_solve
    column = solve(factors.triangles, column, left_side=True, lower=True, unit_diagonal=True)
    return solve(factors.triangles, column, left_side=True)[:, 0]


_substitute = counted(_both_triangles, SOLVES)
_lu = counted(jax.lax.linalg.lu, FACTORISATIONS)


def dense_factors(matrix: Inexact[Array, "d d"]) -> DenseFactors:
    """Of any square matrix, d^3 / 3 products; a solve then takes d^2."""
    triangles, _, order = _lu(matrix)
    return DenseFactors(triangles, order)


def _columns(push: Push, seeds: Inexact[Array, "colours d"]) -> Inexact[Array, "colours d"]:
    # One mark for all colours, whose products are marked by the field itself.
    return counted(lambda s: jax.vmap(push)(s), JACOBIANS)(seeds)


class Dense(Jacobian):
    """All d columns by forward mode. For some hundreds of unknowns at most."""

    def matrix(self, push: Push, at: Vector, t: Any, y: Any, args: Any, step: Any) -> Any:
        del t, y, args, step
        return _columns(push, jnp.eye(at.size, dtype=at.dtype)).T

    def factors(self, matrix: Any, scale: Any) -> Factors:
        return dense_factors(jnp.eye(len(matrix), dtype=matrix.dtype) - scale * matrix)


class Given(Jacobian):
    """A matrix of the user's own: approximate, old, or constant.

    **Arguments:** `function`, `(t, y, args) -> [d, d]`, about the derivative of the field; y has
    the structure of the problem, the matrix is for y as one vector (`ravel_pytree`).

    W-methods keep their order whatever it is; stability they have if it holds what is stiff.
    """

    function: Callable[[Any, Any, Any], Any]

    def matrix(self, push: Push, at: Vector, t: Any, y: Any, args: Any, step: Any) -> Any:
        del push
        found = jnp.asarray(self.function(t, y, args), at.dtype)
        if found.shape != (at.size, at.size):
            raise InputError(
                f"the given Jacobian has shape {found.shape}; y as one vector has {at.size} "
                f"entries, so it must be {at.size} x {at.size}"
            )
        return step * found

    def factors(self, matrix: Any, scale: Any) -> Factors:
        return dense_factors(jnp.eye(len(matrix), dtype=matrix.dtype) - scale * matrix)


# ---- banded


class Banded(Jacobian):
    """A Jacobian whose entries lie within `lower` below and `upper` above the diagonal.

    Costs `lower + upper + 1` products with it, whatever the size, and
    O(d lower (lower + upper)) for its factors, in d sequential steps: worth it from some two
    hundred unknowns on.
    """

    lower: int
    upper: int

    def __check_init__(self) -> None:
        for name in ("lower", "upper"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)} must be at least 0 diagonals")

    def matrix(self, push: Push, at: Vector, t: Any, y: Any, args: Any, step: Any) -> Any:
        del t, y, args, step
        width = self.lower + self.upper + 1
        colours = np.arange(at.size) % width
        seeds = jnp.asarray(np.arange(width)[:, None] == colours, at.dtype)
        compressed = _columns(push, seeds)
        # Row i keeps its columns i - lower ... i + upper.
        rows = np.arange(at.size)[:, None]
        columns = rows + np.arange(-self.lower, self.upper + 1)
        inside = (columns >= 0) & (columns < at.size)
        return jnp.where(inside, compressed[columns % width, rows], 0)

    def factors(self, matrix: Any, scale: Any) -> Factors:
        shifted = (-scale * matrix).at[:, self.lower].add(1)
        return banded_factors(shifted, self.lower)


class BandedFactors(Factors):
    """LU of a banded matrix with row exchanges, by rows and columns of the elimination."""

    pivots: Shaped[Array, " d"]  # which row of the window came up
    multipliers: Inexact[Array, "d lower"]
    upper: Inexact[Array, "d width"]  # from the diagonal to the right

    def solve(self, vector: Vector) -> Vector:
        return _substitute_banded(self, vector)


def banded_factors(rows: Inexact[Array, "d width"], lower: int) -> BandedFactors:
    """Of a matrix by rows: entry m of row i is that in column `i - lower + m`."""
    return _eliminate(rows, lower)


def _eliminated(rows: Inexact[Array, "d width"], lower: int) -> BandedFactors:
    width = rows.shape[1]
    padded = jnp.concatenate([rows, jnp.zeros((lower + 1, width), rows.dtype)])
    # Row r of the first window begins in column 0, its entries `lower - r` places to the left.
    first = [
        jnp.concatenate([padded[r, lower - r :], jnp.zeros(lower - r, rows.dtype)])
        for r in range(lower + 1)
    ]

    def advance(window: Array, coming: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        pivot = jnp.argmax(jnp.abs(window[:, 0]))
        top = window[pivot]
        rest = window.at[pivot].set(window[0])[1:]
        factor = rest[:, 0] / top[0]
        rest = jnp.pad((rest - factor[:, None] * top)[:, 1:], ((0, 0), (0, 1)))
        return jnp.concatenate([rest, coming[None]]), (pivot, factor, top)

    _, found = jax.lax.scan(advance, jnp.stack(first), padded[lower + 1 :], unroll=4)
    return BandedFactors(*found)


_eliminate = counted(_eliminated, FACTORISATIONS)


def _substituted(factors: BandedFactors, vector: Vector) -> Vector:
    lower, width = factors.multipliers.shape[1], factors.upper.shape[1]
    padded = jnp.concatenate([vector, jnp.zeros(lower + 1, vector.dtype)])

    def down(window: Array, row: Any) -> tuple[Array, Array]:
        coming, pivot, factor = row
        top = window[pivot]
        rest = window.at[pivot].set(window[0])[1:] - factor * top
        return jnp.append(rest, coming), top

    rows = (padded[lower + 1 :], factors.pivots, factors.multipliers)
    _, halfway = jax.lax.scan(down, padded[: lower + 1], rows, unroll=4)

    def up(known: Array, row: Any) -> tuple[Array, Array]:
        value, upper = row
        x = (value - upper[1:] @ known) / upper[0]
        return jnp.append(x, known)[: width - 1], x

    start = jnp.zeros(width - 1, vector.dtype)
    _, x = jax.lax.scan(up, start, (halfway, factors.upper), reverse=True, unroll=4)
    return x


_substitute_banded = counted(_substituted, SOLVES)


# ---- sparse


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a Jacobian may have entries, with its colouring and order; static, so hashable."""

    rows: np.ndarray
    columns: np.ndarray
    colours: np.ndarray  # of each unknown
    place: np.ndarray  # of each unknown in the order of elimination
    lower: int
    upper: int

    @cached_property
    def key(self) -> bytes:
        """What tells patterns apart: all else follows from it."""
        return np.concatenate([[self.place.size], self.rows, self.columns]).tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def narrow(self) -> bool:
        """Whether factors are banded; otherwise dense ones are cheaper."""
        return 4 * (2 * self.lower + self.upper + 1) < self.place.size


class Sparse(Jacobian):
    """A Jacobian whose pattern of non-zeros is known: `Sparse.of(pattern)`.

    Columns that share no row are found together (greedy colouring), one product for each colour.
    For its factors the unknowns are put into an order of small bandwidth (reverse Cuthill-McKee),
    and eliminated as a band; a pattern that no order makes narrow is factorised densely.
    """

    pattern: Pattern = eqx.field(static=True)

    @classmethod
    def of(cls, pattern: Any) -> Sparse:
        """From a square matrix, dense or SciPy's: its non-zeros are where the Jacobian's may be.

        Raises `InputError` if it is not square.
        """
        held = sp.csr_array(pattern)
        if len(set(shape_of(held))) != 1:
            raise InputError(f"a pattern of shape {shape_of(held)} must be square")
        both = sp.csr_matrix((abs(held) + abs(held.T)).astype(bool))
        order = reverse_cuthill_mckee(both, symmetric_mode=True)
        place = np.argsort(order)
        entries = held.tocoo()
        rows, columns = entries.row.astype(np.int64), entries.col.astype(np.int64)
        below = place[rows] - place[columns]
        lower, upper = (int((sign * below).max(initial=0)) for sign in (1, -1))
        return cls(Pattern(rows, columns, coloured(held, order), place, lower, upper))

    def matrix(self, push: Push, at: Vector, t: Any, y: Any, args: Any, step: Any) -> Any:
        del t, y, args, step
        pattern = self.pattern
        if at.size != pattern.place.size:
            raise InputError(
                f"the pattern is for {pattern.place.size} unknowns, but y as one vector has "
                f"{at.size}"
            )
        count = int(pattern.colours.max(initial=0)) + 1
        seeds = jnp.asarray(np.arange(count)[:, None] == pattern.colours, at.dtype)
        return _columns(push, seeds)[pattern.colours[pattern.columns], pattern.rows]

    def factors(self, matrix: Any, scale: Any) -> Factors:
        pattern = self.pattern
        size = pattern.place.size
        rows, columns = pattern.place[pattern.rows], pattern.place[pattern.columns]
        if pattern.narrow:
            band = jnp.zeros((size, pattern.lower + pattern.upper + 1), matrix.dtype)
            band = band.at[rows, columns - rows + pattern.lower].set(-scale * matrix)
            shifted = band.at[:, pattern.lower].add(1)
            return Reordered(banded_factors(shifted, pattern.lower), pattern)
        full = jnp.eye(size, dtype=matrix.dtype)
        return Reordered(dense_factors(full.at[rows, columns].add(-scale * matrix)), pattern)


class Reordered(Factors):
    """Factors of a matrix whose unknowns were put into another order."""

    inner: Factors
    pattern: Pattern = eqx.field(static=True)

    def solve(self, vector: Vector) -> Vector:
        place = self.pattern.place
        return self.inner.solve(vector[np.argsort(place)])[place]


def coloured(pattern: sp.csr_array, order: np.ndarray) -> np.ndarray:
    """A colour for each column, such that columns with a row in common differ: greedy, in order."""
    held = sp.csc_array(pattern)
    by_row = sp.csr_array(pattern)
    colours = np.full(shape_of(held)[1], -1)
    for column in order:
        rows = held.indices[held.indptr[column] : held.indptr[column + 1]]
        taken = {
            int(colours[other])
            for row in rows
            for other in by_row.indices[by_row.indptr[row] : by_row.indptr[row + 1]]
        }
        colours[column] = next(c for c in range(len(taken) + 1) if c not in taken)
    return colours
