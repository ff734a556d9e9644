"""Least squares by sketching (`linf-sketched-regression`), as lineax solvers.

`SketchAndSolve` minimises |S A x - S b| in place of |A x - b|: fast, and wrong by a known amount,
which a dense sketch spreads evenly over the coefficients. `SketchPreconditioned` takes from S A
only a preconditioner, with which a few dozen products with A give the accuracy of QR (Blendenpik,
LSRN).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.linear.sketch import (
    AbstractSketch,
    Draw,
    KroneckerSketch,
    count_sketch,
    gaussian_sketch,
    hadamard_sketch,
    sparse_sketch,
)

Factor = Callable[[Float[Array, "m d"]], tuple[Float[Array, "m r"], Callable[[Array], Array]]]


def qr_factor(sketched: Float[Array, "m d"]) -> tuple[Array, Callable[[Array], Array]]:
    """S A = Q R: Q, and y -> R^-1 y. For A of full rank."""
    orthonormal, upper = jnp.linalg.qr(sketched)
    return orthonormal, lambda y: jax.scipy.linalg.solve_triangular(upper, y)


def svd_factor(sketched: Float[Array, "m d"]) -> tuple[Array, Callable[[Array], Array]]:
    """S A = U s V^T: U, and y -> V y / s with 0 for 1/s where s vanishes, as in LSRN.

    For A of any rank: the solution found is then the shortest one.
    """
    left, values, right = jnp.linalg.svd(sketched, full_matrices=False)
    tiny = values[0] * max(sketched.shape) * jnp.finfo(sketched.dtype).eps
    kept = values > tiny
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return left * kept, lambda y: right.T @ (inverse * y)


class SketchAndSolve(lx.AbstractLinearSolver[Any]):
    """Minimise |S A x - S b|, S with `oversampling` rows for each column of A.

    With a Hadamard sketch no coefficient is off by more than
    (eps / sqrt(d)) |A x* - b| |A^+| with probability 1 - delta, for eps^-2 d log^3(n/delta) rows
    (`linf-sketched-regression`); in practice eps is sqrt(2 d log(2 d/delta) / rows).

    **Arguments:**

    - `oversampling`: rows of the sketch per column, at least 1. The error falls as its root.
    - `draw`: which sketch: `hadamard_sketch`, `sparse_sketch`, `count_sketch`,
      `gaussian_sketch`, or any function (key, rows, size, dtype) -> sketch.
    - `inner`: the lineax solver for the small problem; `lineax.SVD()` if A may be rank-deficient.
    - `seed`: of the sketch; the same seed gives the same sketch. May be traced.

    O(n d log n + rows d^2) in time. Reads the matrix of the operator once. Its derivative is that
    of the solution of the full problem with the sketched solver in place of A^+, so it is wrong by
    as much as the solution is; with respect to b it is exact. Raises `InputError` for a matrix that
    is not tall. Unlike the paper's, rows are sampled without replacement.
    """

    oversampling: float = eqx.field(default=8.0, static=True)
    draw: Draw = eqx.field(default=hadamard_sketch, static=True)
    inner: lx.AbstractLinearSolver[Any] = lx.QR()
    seed: int | Array = 0

    def __check_init__(self) -> None:
        _check_oversampling(self.oversampling)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        sketch = _sketch_of(operator, self.draw, self.oversampling, self.seed)
        sketched = sketch.matmat(operator.as_matrix())
        small = self.inner.init(lx.MatrixLinearOperator(sketched), {})
        return small, sketch, _Structures.of(operator)

    def compute(
        self, state: Any, vector: Any, options: dict[str, Any]
    ) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        small, sketch, structures = state
        flat = ravel_pytree(vector)[0]
        if structures.transposed:
            solution, result, _ = self.inner.compute(small, flat, {})
            solution = sketch.T.mv(solution)
        else:
            solution, result, _ = self.inner.compute(small, sketch.mv(flat), {})
        return structures.unravel(solution), result, {"rows": sketch.rows}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        small, sketch, structures = state
        return (self.inner.transpose(small, {})[0], sketch, structures.T), {}

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return state, {}

    def assume_full_rank(self) -> bool:
        return self.inner.assume_full_rank()


class SketchPreconditioned(lx.AbstractLinearSolver[Any]):
    """Least squares to full accuracy: an iterative solver, preconditioned by a factor of S A.

    The singular values of A N, N the inverse factor of S A, lie between 1/(1 + 1/sqrt(o)) and
    1/(1 - 1/sqrt(o)) for o rows of the sketch per column, whatever the condition number of A: so
    each iteration gains a factor sqrt(o). The iteration starts from the sketched solution and is
    restarted from its result, which takes away the errors of N's triangular solves.

    **Arguments:**

    - `rtol`: of the iteration, for the preconditioned system.
    - `oversampling`, `draw`, `seed`: as in `SketchAndSolve`.
    - `factor`: `qr_factor` (Blendenpik), or `svd_factor` (LSRN) if A may be rank-deficient.
    - `max_steps`: of each of the two iterations.

    O(n d log n + d^3) once and O(n d) an iteration, against O(n d^2) for QR. Raises `InputError`
    for a matrix that is not tall. Unlike Blendenpik it uses LSMR, whose residual A^T r falls
    monotonously, and restarts once.
    """

    rtol: float | Array = 1e-6
    oversampling: float = eqx.field(default=4.0, static=True)
    draw: Draw = eqx.field(default=hadamard_sketch, static=True)
    factor: Factor = eqx.field(default=qr_factor, static=True)
    max_steps: int = eqx.field(default=100, static=True)
    seed: int | Array = 0

    def __check_init__(self) -> None:
        _check_oversampling(self.oversampling)
        if isinstance(self.rtol, (int, float)) and not 0 < self.rtol < 1:
            raise InputError(f"rtol {self.rtol} must lie between 0 and 1, such as 1e-6")
        if self.max_steps < 1:
            raise InputError(f"max_steps {self.max_steps} must be at least 1")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        sketch = _sketch_of(operator, self.draw, self.oversampling, self.seed)
        left, inverse = self.factor(sketch.matmat(operator.as_matrix()))
        structures = _Structures.of(operator)
        inner = jax.ShapeDtypeStruct((left.shape[1],), left.dtype)
        right = lx.FunctionLinearOperator(lambda y: structures.unravel(inverse(y)), inner)
        return left, right, sketch, lx.linearise(operator), structures

    def compute(
        self, state: Any, vector: Any, options: dict[str, Any]
    ) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        left, right, sketch, operator, structures = state
        solver = lx.LSMR(rtol=self.rtol, atol=0.0, max_steps=self.max_steps)  # type: ignore[arg-type]
        system = operator @ right
        if structures.transposed:
            solution, result, stats = self._solve(solver, system.T, right.T.mv(vector))
            return solution, result, stats
        start = right.mv(left.T @ sketch.mv(ravel_pytree(vector)[0]))
        first, _, before = self._solve(solver, system, _minus(vector, operator.mv(start)))
        start = _plus(start, right.mv(first))
        second, result, after = self._solve(solver, system, _minus(vector, operator.mv(start)))
        steps = before["num_steps"] + after["num_steps"]
        return _plus(start, right.mv(second)), result, {"num_steps": steps, "rows": sketch.rows}

    @staticmethod
    def _solve(solver: lx.LSMR, system: Any, vector: Any) -> tuple[Any, lx.RESULTS, dict[str, Any]]:
        return solver.compute(solver.init(system, {}), vector, {})

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        *rest, structures = state
        return (*rest, structures.T), {}

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return state, {}

    def assume_full_rank(self) -> bool:
        return self.factor is qr_factor


def kronecker_least_squares(
    left: Float[Array, "n1 d1"],
    right: Float[Array, "n2 d2"],
    rhs: Float[Array, " n"],
    sketch: KroneckerSketch,
) -> Float[Array, " d"]:
    """Minimise |S (left ⊗ right) x - S rhs|: the Kronecker product is never formed.

    O(n1 n2 log(n1 n2)) for the right-hand side, which is read once, and O(rows d^2) for the small
    problem, d = d1 d2 (`linf-sketched-regression`, its tensor version).
    """
    small = lx.MatrixLinearOperator(sketch.product(left, right))
    return lx.linear_solve(small, sketch.mv(rhs), lx.QR()).value


class _Structures(eqx.Module):
    """The pytrees that an operator takes and gives, and which of the two is solved for."""

    inward: Any = eqx.field(static=True)
    outward: Any = eqx.field(static=True)
    transposed: bool = eqx.field(static=True)

    @staticmethod
    def of(operator: lx.AbstractLinearOperator) -> _Structures:
        inward, outward = operator.in_structure(), operator.out_structure()
        return _Structures(_Frozen.of(inward), _Frozen.of(outward), False)

    @property
    def T(self) -> _Structures:
        return _Structures(self.inward, self.outward, not self.transposed)

    def unravel(self, flat: Array) -> Any:
        return (self.outward if self.transposed else self.inward).unravel(flat)


class _Frozen(eqx.Module):
    """A pytree of shapes, hashable, so that a solver's state may be an argument of a jit."""

    structure: Any = eqx.field(static=True)
    leaves: tuple[tuple[tuple[int, ...], Any], ...] = eqx.field(static=True)

    @staticmethod
    def of(tree: Any) -> _Frozen:
        leaves, structure = jax.tree.flatten(tree)
        return _Frozen(structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))

    def unravel(self, flat: Array) -> Any:
        zeros = [jnp.zeros(shape, dtype) for shape, dtype in self.leaves]
        return ravel_pytree(jax.tree.unflatten(self.structure, zeros))[1](flat)


def _sketch_of(
    operator: lx.AbstractLinearOperator, draw: Draw, oversampling: float, seed: int | Array
) -> AbstractSketch:
    size, columns = operator.out_size(), operator.in_size()
    if size < columns:
        raise InputError(
            f"sketching is for tall matrices, this one is {size} x {columns}: give its transpose, "
            "or lineax.LSMR for the shortest solution"
        )
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(operator.out_structure())}
    if len(dtypes) > 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise InputError(f"sketching takes one real dtype, not {sorted(map(str, dtypes))}")
    rows = min(math.ceil(oversampling * columns), size)
    return draw(jax.random.key(seed), rows, size, str(next(iter(dtypes))))


def _check_oversampling(oversampling: float) -> None:
    if not 1 <= oversampling < math.inf:
        raise InputError(
            f"oversampling {oversampling} must be at least 1 row per column, such as 4"
        )


def _plus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


# What the catalogue offers.
hadamard_and_solve = SketchAndSolve()
sparse_and_solve = SketchAndSolve(draw=sparse_sketch)
count_and_solve = SketchAndSolve(draw=count_sketch, inner=lx.SVD())  # may lose rank
gaussian_and_solve = SketchAndSolve(draw=gaussian_sketch)
blendenpik = SketchPreconditioned()
lsrn = SketchPreconditioned(draw=gaussian_sketch, factor=svd_factor)
