"""Least squares: minimise |A x - b| for a tall dense matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Float

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Host, Problem
from nearly.linear.operators import CountedOperator

OVERSAMPLING = (2.0, 4.0, 8.0, 16.0, 32.0)
INSTANCES = ("gaussian", "spiky", "coherent", "ill-conditioned")


class LeastSquares(Problem):
    """Minimise |A x - b|_2.

    A method is a lineax solver of nonsquare systems. If it has a field `rtol` the dial is that
    tolerance; else, if it has a field `oversampling`, the dial is the rows of its sketch per
    column; otherwise it is direct and runs once. A field `seed` gets the run's. Or a method is a
    function `(matrix, rhs) -> x` of NumPy arrays, whose fields are treated alike.

    **Arguments:**

    - `name`: what the instance is called.
    - `matrix`, `rhs`: NumPy arrays of shapes (n, d), n >= d, and (n,), of that `dtype`.

    Errors, against QR refined in extended precision: `relative error` |x - x*|_2 / |x*|_2;
    `largest coefficient` |x - x*|_inf / |x*|_inf; `coordinate error`
    sqrt(d) |x - x*|_inf / (|A x* - b| |A^+|), the eps of `linf-sketched-regression`; and
    `excess residual` |A x - b| / |A x* - b| - 1. Work: products with A and with its transpose;
    a method that reads the matrix itself has none, so that seconds decide.
    """

    name: str
    dtype: str
    matrix: Float[np.ndarray, "n d"]
    rhs: Float[np.ndarray, " n"]

    error_name: ClassVar[str] = "relative error"
    work_name: ClassVar[str] = "matvecs"
    protocol: ClassVar[str] = "least-squares"

    def __check_init__(self) -> None:
        rows, columns = self.matrix.shape
        if rows < columns or self.rhs.shape != (rows,):
            raise InputError(
                f"least squares needs a tall matrix and as many values, not {self.matrix.shape} "
                f"and {self.rhs.shape}"
            )
        if self.dtype not in ("float32", "float64"):
            raise UnknownName("dtype", self.dtype, ("float32", "float64"))
        if not self.matrix.dtype == self.rhs.dtype == self.dtype:
            raise InputError(
                f"matrix and values must both be {self.dtype}, not {self.matrix.dtype} "
                f"and {self.rhs.dtype}"
            )

    def dials(self, method: Any) -> Sequence[Any]:
        if _tolerance_holder(method) is not None:
            smallest = -14 if self.dtype == "float64" else -6
            return [10.0**k for k in range(-2, smallest - 1, -2)]
        if hasattr(method, "oversampling"):
            rows, columns = self.matrix.shape
            return [o for o in OVERSAMPLING if o * columns <= rows]
        return ("as given",)

    def random(self, method: Any) -> bool:
        return hasattr(method, "seed")

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        holder = _tolerance_holder(method)
        if holder is not None:
            method = eqx.tree_at(holder, method, jnp.asarray(dial, self.dtype))
        elif hasattr(method, "oversampling"):
            method = replace(method, oversampling=float(dial))
        if isinstance(method, lx.AbstractLinearSolver):
            return _seeded(method, jax.random.bits(key))
        return Host(_seeded(method, int(jax.random.bits(key))))

    def apply(self, standin: Any, *, key: Any) -> Any:
        if isinstance(standin, Host):
            return standin(np.asarray(self.matrix), np.asarray(self.rhs))
        operator = CountedOperator(lx.MatrixLinearOperator(jnp.asarray(self.matrix)), "matvecs")
        return lx.linear_solve(operator, jnp.asarray(self.rhs), standin, throw=False).value

    def errors(self, value: Any) -> Mapping[str, float]:
        truth, norm_of_inverse = self._truth
        matrix, rhs = np.asarray(self.matrix, np.float64), np.asarray(self.rhs, np.float64)
        difference = np.asarray(value, np.float64) - truth
        best = float(np.linalg.norm(matrix @ truth - rhs))
        largest = float(np.max(np.abs(difference)))
        unit = max(best * norm_of_inverse, np.finfo(float).tiny)
        return {
            "relative error": float(np.linalg.norm(difference) / np.linalg.norm(truth)),
            "largest coefficient": largest / float(np.max(np.abs(truth))),
            "coordinate error": np.sqrt(truth.size) * largest / unit,
            "excess residual": float(np.linalg.norm(matrix @ (truth + difference) - rhs)) / best - 1
            if best
            else 0.0,
        }

    def floor(self) -> float:
        """The condition number in units of the last place of float64."""
        return float(np.linalg.cond(np.asarray(self.matrix, np.float64)) * np.finfo(float).eps)

    @property
    def _truth(self) -> tuple[np.ndarray, float]:
        matrix, rhs = np.asarray(self.matrix, np.float64), np.asarray(self.rhs, np.float64)
        smallest = float(np.linalg.svd(matrix, compute_uv=False)[-1])
        return refined_least_squares(matrix, rhs), 1 / smallest


def refined_least_squares(
    matrix: Float[np.ndarray, "n d"], rhs: Float[np.ndarray, " n"], steps: int = 3
) -> Float[np.ndarray, " d"]:
    """x of `[I A; A^T 0] [r; x] = [b; 0]` by QR, refined with residuals in extended precision.

    Björck's refinement: plain QR is off by the square of the condition number times the residual.
    """
    orthonormal, upper = np.linalg.qr(matrix)
    wide, target = matrix.astype(np.longdouble), rhs.astype(np.longdouble)
    x, residual = np.zeros(matrix.shape[1], np.longdouble), np.zeros_like(target)
    for _ in range(steps + 1):
        upper_gap = (target - residual - wide @ x).astype(np.float64)
        lower_gap = (-(wide.T @ residual)).astype(np.float64)
        along = np.linalg.solve(upper.T, lower_gap)
        x = x + np.linalg.solve(upper, orthonormal.T @ upper_gap - along)
        residual = residual + upper_gap - orthonormal @ (orthonormal.T @ upper_gap - along)
    return x.astype(np.float64)


def least_squares(
    instance: str = "gaussian",
    rows: int = 4096,
    columns: int = 16,
    dtype: str = "float64",
    seed: int = 0,
) -> LeastSquares:
    """An instance of least squares.

    - `gaussian`: normal entries, values with noise of a tenth of their size.
    - `spiky`: the identity over zeros, and values that lie on `columns` of the zero rows: a sparse
      sketch that puts a spike upon a column gives that coefficient all the error.
    - `coherent`: all the leverage in as many rows as columns, which uniform sampling misses.
    - `ill-conditioned`: condition number 1e8 (1e3 in float32), small noise.

    Raises `UnknownName` for another instance, `InputError` for too few rows.
    """
    if instance not in INSTANCES:
        raise UnknownName("instance", instance, INSTANCES)
    if not 1 <= 2 * columns <= rows:
        raise InputError(f"{rows} rows must be at least twice the {columns} columns")
    random = np.random.default_rng(seed)
    matrix = _matrix(instance, rows, columns, dtype, random)
    if instance == "spiky":
        rhs = np.zeros(rows)
        rhs[:columns] = 1.0
        rhs[columns : 2 * columns] = columns**-0.5
    else:
        clean = matrix @ random.normal(size=columns)
        noise = 1e-6 if instance == "ill-conditioned" else 0.1
        rhs = clean + noise * np.linalg.norm(clean) / rows**0.5 * random.normal(size=rows)
    name = f"least-squares-{instance}"
    return LeastSquares(name, dtype, matrix.astype(dtype), rhs.astype(dtype))


def _matrix(instance: str, rows: int, columns: int, dtype: str, random: Any) -> np.ndarray:
    if instance == "spiky":
        return np.eye(rows, columns)
    matrix = random.normal(size=(rows, columns))
    if instance == "coherent":
        return np.eye(rows, columns) + matrix / (100 * rows**0.5)
    if instance == "ill-conditioned":
        condition = 1e8 if dtype == "float64" else 1e3
        left = np.linalg.qr(matrix)[0]
        right = np.linalg.qr(random.normal(size=(columns, columns)))[0]
        return (left * np.geomspace(1, 1 / condition, columns)) @ right
    return matrix


def _tolerance_holder(method: Any) -> Any:
    """Where a method keeps its tolerance; lineax.Normal keeps it in the solver that it wraps."""
    if hasattr(method, "rtol"):
        return lambda m: m.rtol
    if hasattr(getattr(method, "inner_solver", None), "rtol"):
        return lambda m: m.inner_solver.rtol
    return None


def _seeded(method: Any, seed: Any) -> Any:
    return eqx.tree_at(lambda m: m.seed, method, seed) if hasattr(method, "seed") else method
