"""Substitution with any sparse triangle, level by level.

A row waits for the rows that its entries name. Rows that wait for nothing are level 0, rows that
wait for level 0 only are level 1, and so on: within a level all rows are independent. The unknowns
are renumbered so that levels lie one after the other, and are cut into chunks of one size.
"""

from __future__ import annotations

from typing import Any, no_type_check

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float, Int
from numba import njit

from nearly.core.errors import InputError
from nearly.linear.operators.storage import shape_of

# Measured on one core, in nanoseconds: what a chunk costs, and an entry in it.
CHUNK_COST, ENTRY_COST = 2000.0, 2.0
LARGEST = 2**28  # entries with padding, 3 GB


class LevelSolve(eqx.Module):
    """`r -> (D + T)^-1 r` for a strict lower or upper triangle T.

    **Cost:** a step for each chunk; a sparse matrix whose levels are narrow (a tridiagonal one: one
    row each) is solved no faster than row by row.
    """

    values: Float[Array, "chunks size width"]
    places: Int[Array, "chunks size width"]
    starts: Int[Array, " chunks"]
    inverse: Float[Array, "chunks size"]
    order: Int[Array, " rows"]
    rank: Int[Array, " rows"]

    def __init__(self, triangle: sp.csr_array, diagonal: Float[Array, " rows"]) -> None:
        """From the strict triangle, on the host, and the diagonal, which may be traced."""
        rows = shape_of(triangle)[0]
        upper = triangle.nnz > 0 and bool(np.all(sp.coo_array(triangle).col > _rows_of(triangle)))
        levels = _levels(triangle.indptr, triangle.indices, upper)
        order = np.argsort(levels, kind="stable")
        rank = np.empty(rows, np.int64)
        rank[order] = np.arange(rows)
        width = int(np.max(np.diff(triangle.indptr), initial=0))
        size = _chunk_size(np.bincount(levels), width)
        starts = _starts(np.bincount(levels), size)
        if starts.size * size * max(width, 1) > LARGEST:
            raise InputError(
                f"rows of up to {width} entries in {starts.size} dependent chunks are too uneven "
                "for substitution here; reorder the matrix (reverse Cuthill-McKee), or use Jacobi"
            )
        ends = np.append(starts[1:], rows)
        slot = starts[:, None] + np.arange(size)
        real = slot < np.minimum(ends, starts + size)[:, None]
        row = order[np.minimum(slot, rows - 1)]
        values, places = _padded(triangle, rank, width, nowhere=rows + size)
        self.values = jnp.asarray(np.where(real[..., None], values[row], 0), diagonal.dtype)
        self.places = jnp.asarray(np.where(real[..., None], places[row], rows + size), jnp.int32)
        self.starts = jnp.asarray(starts, jnp.int32)
        self.inverse = jnp.where(jnp.asarray(real), 1 / diagonal[jnp.asarray(row)], 0)
        self.order, self.rank = jnp.asarray(order, jnp.int32), jnp.asarray(rank, jnp.int32)

    def __call__(self, vector: Float[Array, ...]) -> Float[Array, ...]:
        size = self.values.shape[1]
        # Behind the unknowns: room for the last chunk's padding, and the zero that padding reads.
        right = jnp.pad(vector.reshape(-1)[self.order], (0, size + 1))

        def step(x: Array, given: Any) -> tuple[Array, None]:
            values, places, start, inverse = given
            known = jnp.sum(values * x.at[places].get(mode="promise_in_bounds"), axis=-1)
            own = jax.lax.dynamic_slice(right, (start,), (size,))
            return jax.lax.dynamic_update_slice(x, (own - known) * inverse, (start,)), None

        given = (self.values, self.places, self.starts, self.inverse)
        x, _ = jax.lax.scan(step, jnp.zeros_like(right), given)
        return x[self.rank].reshape(vector.shape)


def _rows_of(matrix: sp.csr_array) -> np.ndarray:
    return np.repeat(np.arange(matrix.indptr.size - 1), np.diff(matrix.indptr))


@njit(cache=True)
@no_type_check
def _levels(indptr, indices, upper):  # pragma: no cover (compiled)
    rows = indptr.size - 1
    levels = np.zeros(rows, np.int64)
    for step in range(rows):
        i = rows - 1 - step if upper else step
        for k in range(indptr[i], indptr[i + 1]):
            levels[i] = max(levels[i], levels[indices[k]] + 1)
    return levels


def _chunk_size(widths: np.ndarray, entries: int) -> int:
    """The power of two for which chunks and their padding cost least."""
    sizes = 2 ** np.arange(int(np.ceil(np.log2(widths.max()))) + 1)
    chunks = np.array([np.sum(-(-widths // size)) for size in sizes])
    costs = chunks * (CHUNK_COST + ENTRY_COST * sizes * (entries + 1))
    return int(sizes[np.argmin(costs)])


def _starts(widths: np.ndarray, size: int) -> np.ndarray:
    """Where chunks begin; none reaches into two levels."""
    begins = np.concatenate([[0], np.cumsum(widths)[:-1]])
    return np.concatenate([np.arange(b, b + w, size) for b, w in zip(begins, widths, strict=True)])


def _padded(
    triangle: sp.csr_array, rank: np.ndarray, width: int, *, nowhere: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every row's values, and where in the new order its entries are, filled up to one length."""
    rows = _rows_of(triangle)
    place = np.arange(triangle.nnz) - triangle.indptr[rows]
    values = np.zeros((triangle.indptr.size - 1, width))
    places = np.full((triangle.indptr.size - 1, width), nowhere)
    values[rows, place] = triangle.data
    places[rows, place] = rank[triangle.indices]
    return values, places
