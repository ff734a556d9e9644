"""Incomplete factorisations without fill: IC(0) and ILU(0).

The factors are computed on the host, once; they are applied in JAX.
"""

from __future__ import annotations

from typing import no_type_check

import equinox as eqx
import lineax as lx
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array
from numba import njit

from nearly.core.errors import InputError
from nearly.linear.operators import CallableOperator, bare
from nearly.linear.operators.storage import shape_of
from nearly.linear.triangular import Sweep, concrete, substitution

ATTEMPTS = 20


class IncompleteCholesky(eqx.Module):
    """`(L L^T)^-1`, where L has the pattern of the lower triangle: IC(0).

    For positive definite operators. On M-matrices (Poisson's) it always exists; where a pivot is
    not positive, `shift` times the diagonal is added and doubled until all are (Manteuffel).

    **Arguments:** `shift`, the first multiple tried after none.

    **Cost:** set up on the host by one pass through the entries, so not under `jit`; of an
    application, that of two triangular sweeps.
    """

    shift: float = 1e-3

    def __check_init__(self) -> None:
        if not 0 < self.shift < 1:
            raise InputError(f"a shift of {self.shift}; give one between 0 and 1")

    def __call__(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        if not lx.is_positive_semidefinite(operator):
            raise InputError(
                "IncompleteCholesky needs a positive definite operator; if yours is, tag it; if it "
                "is not, IncompleteLU is for it"
            )
        matrix = concrete(operator)
        lower = sp.csr_array(sp.tril(matrix, format="csr"))
        factor = self._factor(lower)
        there = substitution(bare(operator), factor)
        back = substitution(bare(operator), sp.csr_array(factor.T))
        tags = frozenset([lx.positive_semidefinite_tag])
        return CallableOperator(_Both(there, back), operator.in_structure(), tags)

    def _factor(self, lower: sp.csr_array) -> sp.csr_array:
        lower.sort_indices()
        diagonal, shift = lower.diagonal(), 0.0
        if not np.all(diagonal > 0):
            raise InputError("a diagonal entry is not positive: the matrix is not definite")
        for _ in range(ATTEMPTS):
            shifted = sp.csr_array(lower + sp.diags_array(shift * diagonal))
            shifted.sort_indices()
            if _incomplete_cholesky(shifted.indptr, shifted.indices, shifted.data):
                return shifted
            shift = 2 * shift or self.shift
        raise InputError("no incomplete Cholesky factor was found: is the matrix definite?")


class IncompleteLU(eqx.Module):
    """`(L U)^-1`, where L and U have the pattern of the matrix: ILU(0).

    **Cost:** as `IncompleteCholesky`.

    **Raises:** `InputError` where a pivot is zero.
    """

    def __call__(self, operator: lx.AbstractLinearOperator) -> lx.AbstractLinearOperator:
        matrix = concrete(operator)
        matrix.sort_indices()
        size = shape_of(matrix)[0]
        if not _incomplete_lu(matrix.indptr, matrix.indices, matrix.data):
            raise InputError("a pivot of the incomplete factorisation is zero: reorder the matrix")
        lower = sp.csr_array(sp.tril(matrix, -1) + sp.eye_array(size))
        there = substitution(bare(operator), lower)
        back = substitution(bare(operator), sp.csr_array(sp.triu(matrix, format="csr")))
        return CallableOperator(_Both(there, back), operator.in_structure())


class _Both(eqx.Module):
    there: Sweep
    back: Sweep

    def __call__(self, vector: Array) -> Array:
        return self.back(self.there(vector))


@njit(cache=True)
@no_type_check
def _incomplete_cholesky(indptr, indices, data):  # pragma: no cover
    """In place, row by row; False where a pivot is not positive. The diagonal ends each row."""
    for i in range(indptr.size - 1):
        begin, last = indptr[i], indptr[i + 1] - 1
        for k in range(begin, last + 1):
            j = indices[k]
            # The inner product of the rows i and j to the left of column j.
            total = data[k]
            p, q, stop = begin, indptr[j], indptr[j + 1] - 1
            while p < k and q < stop:
                if indices[p] == indices[q]:
                    total -= data[p] * data[q]
                    p, q = p + 1, q + 1
                elif indices[p] < indices[q]:
                    p += 1
                else:
                    q += 1
            if k < last:
                data[k] = total / data[stop]
            elif total > 0:
                data[k] = np.sqrt(total)
            else:
                return False
    return True


@njit(cache=True)
@no_type_check
def _incomplete_lu(indptr, indices, data):  # pragma: no cover (compiled)
    """In place, row by row; False where a pivot is missing or zero."""
    rows = indptr.size - 1
    diagonal = np.full(rows, -1, np.int64)
    where = np.full(rows, -1, np.int64)
    for i in range(rows):
        for k in range(indptr[i], indptr[i + 1]):
            where[indices[k]] = k
            if indices[k] == i:
                diagonal[i] = k
        for k in range(indptr[i], indptr[i + 1]):
            j = indices[k]
            if j >= i:
                break
            data[k] /= data[diagonal[j]]
            for m in range(diagonal[j] + 1, indptr[j + 1]):
                if where[indices[m]] >= 0:
                    data[where[indices[m]]] -= data[k] * data[m]
        for k in range(indptr[i], indptr[i + 1]):
            where[indices[k]] = -1
        if diagonal[i] < 0 or data[diagonal[i]] == 0:
            return False
    return True
