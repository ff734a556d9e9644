"""Sparse direct solutions on the host: the truth that iterations are measured against."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import splu

from nearly.core.errors import InputError

KEPT = 4  # factorisations: a sweep asks for the same one again and again
_factors: OrderedDict[str, Factor] = OrderedDict()


@dataclass(frozen=True)
class Factor:
    """A matrix and its LU factors (SuperLU's)."""

    matrix: sp.csr_array
    lu: Any

    def solve(self, b: np.ndarray) -> np.ndarray:
        """The solution, refined once."""
        x = self.lu.solve(b)
        return x + self.lu.solve(b - self.matrix @ x)

    @property
    def is_definite(self) -> bool:
        """Whether a symmetric matrix is positive definite: by its pivots, all on the diagonal."""
        pivots = self.lu.U.diagonal()
        on_diagonal = np.array_equal(self.lu.perm_r, self.lu.perm_c)
        return bool(on_diagonal and np.all(pivots > 0))


def factor_of(matrix: sp.csr_array, *, symmetric: bool) -> Factor:
    """The factors of a square matrix; the last few are kept.

    A symmetric matrix is ordered by minimum degree and pivoted on its diagonal, which is stable if
    it is definite. If such a pivot fails the factorisation is repeated with row exchanges, and it
    is not definite.

    **Raises:** `InputError` for a singular matrix.

    **Cost:** on a 2-D grid of n points some `n log n` numbers and `n^1.5` flops.
    """
    parts = (matrix.indptr, matrix.indices, matrix.data)
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts))
    name = f"{digest.hexdigest()} {symmetric}"
    if name not in _factors:
        _factors[name] = Factor(matrix, _factorised(sp.csc_array(matrix), symmetric))
        while len(_factors) > KEPT:
            _factors.popitem(last=False)
    _factors.move_to_end(name)
    return _factors[name]


def _factorised(matrix: sp.csc_array, symmetric: bool) -> Any:
    if symmetric:
        try:
            return splu(
                matrix,
                permc_spec="MMD_AT_PLUS_A",
                diag_pivot_thresh=0.0,
                options={"SymmetricMode": True},
            )
        except RuntimeError:  # a pivot is zero: indefinite or singular
            pass
    try:
        return splu(matrix)
    except RuntimeError:
        raise InputError("the matrix is singular: the system has no unique solution") from None
