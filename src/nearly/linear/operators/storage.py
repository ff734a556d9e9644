"""How a sparse matrix lies in memory, so that XLA multiplies by it fast on a CPU."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float, Int

# Diagonals are taken where they hold at most this many times the matrix's entries.
FILL = 1.6
# Up to this many entries a row is summed slot by slot, all rows at once; above, row by row.
SHORT = 16
# What an entry costs in the remainder, in units of an entry in a padded row (measured: 3 to 6).
SCATTERED = 4


class Diagonals(eqx.Module):
    """`values[k, i] = A[i, i + offsets[k]]`: whole diagonals, nothing is gathered."""

    values: Float[Array, "diagonals rows"]
    offsets: tuple[int, ...] = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    def mv(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        rows = self.values.shape[1]
        zero, total = jnp.zeros((), x.dtype), jnp.zeros((rows,), self.values.dtype)
        for line, offset in zip(self.values, self.offsets, strict=True):
            total = total + line * jax.lax.pad(
                x, zero, [(-offset, rows + offset - self.columns, 0)]
            )
        return total

    def diagonal(self, size: int) -> Float[Array, " size"]:
        if 0 not in self.offsets:
            return jnp.zeros((size,), self.values.dtype)
        return self.values[self.offsets.index(0), :size]

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and values on the host."""
        values = np.asarray(self.values)
        rows = np.tile(np.arange(values.shape[1]), len(self.offsets))
        columns = rows + np.repeat(self.offsets, values.shape[1])
        inside = (columns >= 0) & (columns < self.columns)
        return rows[inside], columns[inside], values.ravel()[inside]


class Slots(eqx.Module):
    """The k-th entry of every row together: for short rows."""

    values: Float[Array, "slots rows"]
    places: Int[Array, "slots rows"]

    def mv(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        total = jnp.zeros((self.values.shape[1],), self.values.dtype)
        for values, places in zip(self.values, self.places, strict=True):
            # All places are within bounds, by construction: nothing to check.
            total = total + values * x.at[places].get(mode="promise_in_bounds")
        return total

    def diagonal(self, size: int) -> Float[Array, " size"]:
        own = self.places == jnp.arange(self.values.shape[1])
        return jnp.sum(jnp.where(own, self.values, 0), axis=0)[:size]

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = np.asarray(self.values)
        rows = np.tile(np.arange(values.shape[1]), len(values))
        return rows, np.asarray(self.places).ravel(), values.ravel()


class Rows(eqx.Module):
    """Rows filled up to one length: for long rows."""

    values: Float[Array, "rows width"]
    places: Int[Array, "rows width"]

    def mv(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        return jnp.sum(self.values * x.at[self.places].get(mode="promise_in_bounds"), axis=1)

    def diagonal(self, size: int) -> Float[Array, " size"]:
        own = self.places == jnp.arange(self.values.shape[0])[:, None]
        return jnp.sum(jnp.where(own, self.values, 0), axis=1)[:size]

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        values = np.asarray(self.values)
        rows = np.repeat(np.arange(len(values)), values.shape[1])
        return rows, np.asarray(self.places).ravel(), values.ravel()


class Remainder(eqx.Module):
    """Entries one by one, sorted by row: what a few long rows have more than the others."""

    values: Float[Array, " entries"]
    places: Int[Array, " entries"]
    rows: Int[Array, " entries"]
    count: int = eqx.field(static=True)

    def mv(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        return jax.ops.segment_sum(
            self.values * x.at[self.places].get(mode="promise_in_bounds"),
            self.rows,
            self.count,
            indices_are_sorted=True,
        )

    def diagonal(self, size: int) -> Float[Array, " size"]:
        own = jnp.where(self.rows == self.places, self.values, 0)
        return jax.ops.segment_sum(own, self.rows, self.count, indices_are_sorted=True)[:size]

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.asarray(self.rows), np.asarray(self.places), np.asarray(self.values)


Storage = Diagonals | Slots | Rows | Remainder


def stored(matrix: sp.csr_array, dtype: Any) -> tuple[Storage, ...]:
    """A matrix as the parts that add up to it, in the layout that suits its pattern.

    Few diagonals, as on grids: diagonals. Otherwise rows are filled up to one length, and what
    the longest have more is kept apart where that is cheaper (after the hybrid format of Bell and
    Garland).
    """
    rows, columns = shape_of(matrix)
    held = sp.coo_array(matrix)
    offsets = np.unique(held.col.astype(np.int64) - held.row)
    if offsets.size * rows <= FILL * max(matrix.nnz, 1):
        return (_diagonals(held, offsets, dtype),)
    counts = np.diff(matrix.indptr)
    width = _best_width(counts)
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], counts)
    first = place < width
    parts: list[Storage] = []
    if width:
        # A row's unused slots point at its own unknown with the value zero.
        own = np.minimum(np.arange(rows), columns - 1).astype(np.int32)
        places = np.repeat(own[:, None], width, axis=1)
        values = np.zeros((rows, width))
        places[held.row[first], place[first]] = held.col[first]
        values[held.row[first], place[first]] = held.data[first]
        if width <= SHORT:
            parts.append(Slots(jnp.asarray(values.T, dtype), jnp.asarray(places.T)))
        else:
            parts.append(Rows(jnp.asarray(values, dtype), jnp.asarray(places)))
    if not np.all(first):
        rest = ~first
        parts.append(
            Remainder(
                jnp.asarray(held.data[rest], dtype),
                jnp.asarray(held.col[rest], jnp.int32),
                jnp.asarray(held.row[rest], jnp.int32),
                rows,
            )
        )
    return tuple(parts)


def _best_width(counts: np.ndarray) -> int:
    """The row length for which padding and remainder together cost least."""
    ordered = np.sort(counts)
    behind = np.cumsum(ordered[::-1])[::-1]
    widths = np.unique(ordered)
    above = np.searchsorted(ordered, widths, side="right")
    more = np.append(behind, 0)[above] - widths * (counts.size - above)
    return int(widths[np.argmin(widths * counts.size + SCATTERED * more)])


def _diagonals(held: sp.coo_array, offsets: np.ndarray, dtype: Any) -> Diagonals:
    rows, columns = shape_of(held)
    values = np.zeros((offsets.size, rows))
    which = np.searchsorted(offsets, held.col.astype(np.int64) - held.row)
    values[which, held.row] = held.data
    return Diagonals(jnp.asarray(values, dtype), tuple(map(int, offsets)), columns)


def sum_of(parts: tuple[Storage, ...], x: Array) -> Array:
    """The product with the matrix that the parts add up to."""
    first, *others = (part.mv(x) for part in parts)
    return sum(others, first)


def sum_of_diagonals(parts: tuple[Storage, ...], size: int) -> Array:
    """The diagonal of the matrix that the parts add up to."""
    first, *others = (part.diagonal(size) for part in parts)
    return sum(others, first)


def shape_of(matrix: Any) -> tuple[int, int]:
    """Rows and columns of a SciPy matrix (its own stubs allow for none)."""
    rows, columns = matrix.shape
    return int(rows), int(columns)
