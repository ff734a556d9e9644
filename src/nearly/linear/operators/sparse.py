"""Sparse matrices as lineax operators, and operators as SciPy matrices."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any

import equinox as eqx
import jax
import lineax as lx
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.operators.callable import Transposed
from nearly.linear.operators.counted import CountedOperator
from nearly.linear.operators.registration import Tags, dense, register, tags_of
from nearly.linear.operators.stencil import Offset, StencilOperator
from nearly.linear.operators.storage import Storage, shape_of, stored, sum_of, sum_of_diagonals


class SparseOperator(lx.AbstractLinearOperator):
    """A sparse matrix, laid out so that XLA multiplies by it about as fast as SciPy.

    `SparseOperator.from_scipy(matrix)` chooses the layout from the pattern: diagonals for the
    matrices of grids (several times faster than compressed rows), padded rows otherwise.

    Differentiable with respect to the values of `parts`.

    **Cost:** of a product, 2 flops for each stored entry; of a product with the transpose, where
    the matrix is not tagged symmetric, some four times as long (it scatters): where that matters
    make an operator from the transposed matrix.
    """

    parts: tuple[Storage, ...]
    shape: tuple[int, int] = eqx.field(static=True)
    tags: Tags = eqx.field(static=True, default=frozenset())

    @classmethod
    def from_scipy(
        cls, matrix: Any, dtype: Any = None, *, tags: object | Iterable[object] = ()
    ) -> SparseOperator:
        """The operator of a SciPy sparse matrix (or a dense one).

        **Arguments:**

        - `matrix`: any SciPy sparse array or matrix, or a NumPy array; real.
        - `dtype`: of the arithmetic; by default float64 where JAX computes in it, else float32.
        - `tags`: what is known of it, as `lineax.positive_semidefinite_tag`; not checked.

        **Raises:** `InputError` for a complex or empty matrix or one with entries that are not
        finite.
        """
        rows = as_rows(matrix)
        dtype = dtype or jax.dtypes.canonicalize_dtype(np.float64)
        return cls(stored(rows, dtype), shape_of(rows), tags_of(tags))

    def mv(self, vector: Float[Array, " columns"]) -> Float[Array, " rows"]:
        """The product with a vector."""
        return sum_of(self.parts, vector)

    def as_matrix(self) -> Float[Array, "rows columns"]:
        return dense(self)

    def transpose(self) -> lx.AbstractLinearOperator:
        """The operator with the transposed matrix (itself if it is tagged symmetric)."""
        if lx.is_symmetric(self):
            return self
        return TransposedOperator(self, lx.transpose_tags(self.tags))

    def in_structure(self) -> Any:
        return jax.ShapeDtypeStruct(self.shape[1:], self._dtype)

    def out_structure(self) -> Any:
        return jax.ShapeDtypeStruct(self.shape[:1], self._dtype)

    @property
    def _dtype(self) -> Any:
        return self.parts[0].values.dtype


class TransposedOperator(lx.AbstractLinearOperator):
    """The transpose of another operator, by transposing its product."""

    operator: lx.AbstractLinearOperator
    tags: Tags = eqx.field(static=True, default=frozenset())

    def mv(self, vector: Float[Array, ...]) -> Float[Array, ...]:
        return Transposed(self.operator.mv, self.operator.in_structure())(vector)

    def as_matrix(self) -> Float[Array, "rows columns"]:
        return self.operator.as_matrix().T

    def transpose(self) -> lx.AbstractLinearOperator:
        return self.operator

    def in_structure(self) -> Any:
        return self.operator.out_structure()

    def out_structure(self) -> Any:
        return self.operator.in_structure()


register(SparseOperator)
register(TransposedOperator)


@lx.diagonal.register(SparseOperator)
def _(operator: SparseOperator) -> Float[Array, " size"]:
    return sum_of_diagonals(operator.parts, min(operator.shape))


def as_rows(matrix: Any) -> sp.csr_array:
    """A matrix as compressed rows in float64, entries sorted and added up.

    Raises `InputError` unless it is a real, finite matrix with rows and columns.
    """
    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)):
        raise InputError(f"a {type(matrix).__name__} is no matrix: give a SciPy sparse array")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise InputError(f"a matrix of shape {matrix.shape}; give one with rows and columns")
    if np.iscomplexobj(matrix):
        raise InputError("the matrix is complex; only real ones are supported")
    rows = sp.csr_array(matrix, dtype=np.float64)
    if rows is matrix:
        rows = rows.copy()
    rows.sum_duplicates()
    if not np.all(np.isfinite(rows.data)):
        raise InputError("the matrix has entries that are not finite")
    return rows


@singledispatch
def as_scipy(operator: lx.AbstractLinearOperator) -> sp.csr_array:
    """The matrix of an operator as compressed rows in float64, on the host.

    Of an operator of no known structure the dense matrix is computed first.
    """
    return sp.csr_array(np.asarray(operator.as_matrix(), np.float64))


@as_scipy.register
def _(operator: CountedOperator) -> sp.csr_array:
    return as_scipy(operator.operator)


@as_scipy.register
def _(operator: lx.TaggedLinearOperator) -> sp.csr_array:
    return as_scipy(operator.operator)


@as_scipy.register
def _(operator: SparseOperator) -> sp.csr_array:
    triples = [part.entries() for part in operator.parts]
    rows, columns, values = (np.concatenate(each) for each in zip(*triples, strict=True))
    return _without_zeros(rows, columns, values, operator.shape)


@as_scipy.register
def _(operator: StencilOperator) -> sp.csr_array:
    shape, size = operator.shape, len(operator)
    free = np.ones(size, bool) if operator.mask is None else np.ravel(np.asarray(operator.mask))
    rows, columns = [np.flatnonzero(~free)], [np.flatnonzero(~free)]
    values = [np.ones(rows[0].size)]
    for coefficient, offset in zip(operator.coefficients, operator.offsets, strict=True):
        here = np.flatnonzero(has_neighbour(offset, shape) & free)
        there = here + steps(offset, shape)
        both = free[there]
        field = np.broadcast_to(np.asarray(coefficient, np.float64), shape).ravel()
        rows.append(here[both])
        columns.append(there[both])
        values.append(field[here[both]])
    triple = (np.concatenate(each) for each in (rows, columns, values))
    return _without_zeros(*triple, shape=(size, size))


def stencil_fields(
    matrix: sp.csr_array, offsets: tuple[Offset, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """The entries of a matrix on a grid that couple each point to its neighbours.

    **Returns:** shape (offsets, *grid), zero where a neighbour lies outside.
    """
    fields = np.zeros((len(offsets), len(has_neighbour((0,) * len(shape), shape))))
    for field, offset in zip(fields, offsets, strict=True):
        distance = steps(offset, shape)
        if abs(distance) < field.size:
            line = matrix.diagonal(distance)
            begin = max(-distance, 0)
            field[begin : begin + line.size] = line
        field[~has_neighbour(offset, shape)] = 0
    return fields.reshape(len(offsets), *shape)


def has_neighbour(offset: Offset, shape: tuple[int, ...]) -> np.ndarray:
    """For each point, the last index fastest, whether its neighbour lies on the grid."""
    inside = np.ones(shape, bool)
    for axis, (step, n) in enumerate(zip(offset, shape, strict=True)):
        place = np.arange(n) + step
        lines = [1] * len(shape)
        lines[axis] = n
        inside &= ((place >= 0) & (place < n)).reshape(lines)
    return inside.ravel()


def steps(offset: Offset, shape: tuple[int, ...]) -> int:
    """How many places further a neighbour is, the last index fastest."""
    distance = 0
    for step, n in zip(offset, shape, strict=True):
        distance = distance * n + step
    return distance


def _without_zeros(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]
) -> sp.csr_array:
    kept = values != 0
    triple = (values[kept].astype(np.float64), (rows[kept], columns[kept]))
    matrix = sp.csr_array(triple, shape=shape)
    matrix.sum_duplicates()
    return matrix
