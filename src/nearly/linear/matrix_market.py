"""A user's own matrix, from a Matrix Market file or SciPy's, as a problem."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.io
import scipy.sparse as sp

from nearly.core.errors import InputError
from nearly.linear.direct import factor_of
from nearly.linear.operators import SparseOperator, as_rows
from nearly.linear.operators.storage import shape_of
from nearly.linear.problems.system import LinearSystem


def resolve(text: str) -> Callable[..., LinearSystem]:
    """What makes the problem of a matrix file; the file is read when it is called."""
    return partial(matrix_system, text)


def matrix_system(path: str, rhs: str = "", dtype: str = "float64") -> LinearSystem:
    """Solve systems with the matrix in a file.

    **Arguments:**

    - `path`: a Matrix Market file (`.mtx`, `.mtx.gz`) or a SciPy sparse array (`.npz`); square
      and real. Whether it is symmetric, and positive definite, is found out here (by a
      factorisation, which is also the truth that methods are measured against).
    - `rhs`: the right-hand side, a Matrix Market file of one column or a NumPy array (`.npy`); by
      default normal numbers, drawn anew for each use.
    - `dtype`: of the arithmetic, `float64` or `float32`.

    **Raises:** `InputError` for a file that is missing, cannot be read, or does not fit.
    """
    if dtype not in ("float32", "float64"):
        raise InputError(f"--dtype {dtype} must be float64 or float32")
    rows = as_rows(_read(path))
    size, columns = shape_of(rows)
    if size != columns:
        raise InputError(f"{path} holds a matrix of {size} by {columns}, but a system is square")
    side = None if not rhs else _side(rhs, size)
    with jax.enable_x64(dtype == "float64"):
        operator = SparseOperator.from_scipy(
            rows, dtype, tags=_tags(sp.csr_array(rows, dtype=dtype))
        )
        given = None if side is None else jnp.asarray(side, dtype)
        return LinearSystem(operator=operator, side=given, name=Path(path).name, dtype=dtype)


def _tags(rows: sp.csr_array) -> tuple[object, ...]:
    """What the matrix is, as lineax's tags; singular ones are refused."""
    rows = sp.csr_array(rows, dtype=np.float64)
    wrong = abs(rows - rows.T)
    symmetric = wrong.nnz == 0 or bool(wrong.max() <= 1e-14 * abs(rows).max())
    factor = factor_of(rows, symmetric=symmetric)
    if not symmetric:
        return ()
    return (lx.positive_semidefinite_tag,) if factor.is_definite else (lx.symmetric_tag,)


def _read(path: str) -> Any:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    if path.endswith(".npz"):
        return _attempt(path, "a SciPy sparse array (scipy.sparse.save_npz)", sp.load_npz)
    return _attempt(path, "a Matrix Market file", scipy.io.mmread)


def _side(path: str, size: int) -> np.ndarray:
    if not Path(path).is_file():
        raise InputError(f"there is no file {path} for --rhs")
    if path.endswith(".npy"):
        held = _attempt(path, "a NumPy array", partial(np.load, allow_pickle=False))
    else:
        held = _read(path)
    values = np.asarray(held.toarray() if sp.issparse(held) else held)
    if np.iscomplexobj(values):
        raise InputError(f"{path} is complex; only real right-hand sides are supported")
    if values.size != size:
        raise InputError(f"{path} holds {values.size} numbers, but the matrix has {size} rows")
    side = values.reshape(-1).astype(np.float64)
    if not np.all(np.isfinite(side)):
        raise InputError(f"{path} has entries that are not finite")
    return side


def _attempt(path: str, what: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(path)
    except (ValueError, OSError, KeyError, OverflowError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is not {what}: {reason}") from None
