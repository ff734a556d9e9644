"""`LinearSystem`: one operator, many right-hand sides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array

from nearly.core import catalogue
from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Host, Problem
from nearly.linear import NEEDS
from nearly.linear.direct import Factor, factor_of
from nearly.linear.grids import kept_inside, random_side, smooth_side
from nearly.linear.iteration import APPLICATIONS, IterativeSolver
from nearly.linear.operators import CountedOperator, StencilOperator, as_scipy, bare

MATVECS = "matvecs"
SIDES: dict[str, Callable[..., Array]] = {"random": random_side, "smooth": smooth_side}


class LinearSystem(Problem):
    """Solve A x = b for one operator and any right-hand side; the dial is a relative tolerance.

    A method (protocol `linear-systems`) is one of

    - a lineax solver. If it has an `rtol`, that is the dial (an array: nothing is compiled anew);
      if not, it runs as it is;
    - a function `operator -> (solver, options)` that sets up, once, a lineax solver and the options
      it is to be used with, a preconditioner say;
    - a `nearly.Host` of a function `matrix -> solve`, where `matrix` is a SciPy array of compressed
      rows and `solve(b, rtol)` gives the solution for a vector. Setting up is done once.

    A method may list its own dials in an attribute `dials`.

    The error is judged in float64 against a sparse direct solution, refined once: first the
    relative residual, then the relative error, and the error's A-norm relative to the solution's
    where A is positive definite. Work is counted in products with A (a Host's are not seen);
    applications of a preconditioner are a unit of their own.

    **Arguments:**

    - `operator`: square. A symmetric positive definite one must be tagged so.
    - `side`: the right-hand side, in the operator's structure; or None, then each use draws its own
      from the key, of the `kind` `"random"` or (on grids) `"smooth"`.
    """

    operator: lx.AbstractLinearOperator
    side: Array | None = None
    kind: str = "random"
    name: str = "linear-system"
    dtype: str = "float64"
    error_name: ClassVar[str] = "relative residual"
    work_name: ClassVar[str] = MATVECS
    protocol: ClassVar[str] = "linear-systems"

    def __check_init__(self) -> None:
        if self.kind not in SIDES:
            raise UnknownName("kind of right-hand side", self.kind, SIDES)
        structure, out = self._structure, cast("Any", self.operator.out_structure())
        if structure.shape != out.shape:
            raise InputError(f"a system of shape {out.shape} by {structure.shape} is not square")
        if str(structure.dtype) != self.dtype:
            raise InputError(f"an operator of {structure.dtype} in a problem of {self.dtype}")
        if self.side is not None and self.side.shape != structure.shape:
            raise InputError(
                f"a right-hand side of shape {self.side.shape} for unknowns of {structure.shape}"
            )

    @property
    def _structure(self) -> Any:
        return self.operator.in_structure()

    @property
    def is_definite(self) -> bool:
        """Whether the operator is said to be positive definite."""
        return bool(lx.is_positive_semidefinite(self.operator))

    def methods(self) -> Mapping[str, catalogue.Method]:
        """The catalogue; by default those that this operator meets the needs of."""
        has = {
            "definite": self.is_definite,
            "general": not self.is_definite,
            "grid": isinstance(bare(self.operator), StencilOperator),
            "small": self.operator.in_size() <= 2000,
        }
        return {
            name: replace(line, default=line.default and all(has[n] for n in NEEDS.get(name, ())))
            for name, line in super().methods().items()
        }

    def random(self, method: Any) -> bool:
        return self.side is None

    def dials(self, method: Any) -> Sequence[Any]:
        own = getattr(method, "dials", None)
        if own is not None:
            return own
        if isinstance(method, lx.AbstractLinearSolver) and not hasattr(method, "rtol"):
            return ("as it is",)
        tolerances = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
        return tolerances[: 4 if self.dtype == "float32" else None]

    def floor(self) -> float:
        return float(np.finfo(self.dtype).eps)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if isinstance(method, Host):
            return self._on_host(method, dial)
        if isinstance(method, lx.AbstractLinearSolver):
            return _dialled(method, dial, self.dtype), {}
        if not callable(method):
            raise InputError(
                f"a {type(method).__name__} is no method for a linear system: give a lineax "
                "solver, a function from the operator to (solver, options), or a nearly.Host"
            )
        solver, options = cast("tuple[Any, dict[str, Any]]", method(self.operator))
        counting = dict(options)
        inside = options.get("preconditioner")
        # The room's own solvers count their preconditioners themselves.
        foreign = not isinstance(solver, IterativeSolver)
        if foreign and isinstance(inside, lx.AbstractLinearOperator):
            counting["preconditioner"] = CountedOperator(inside, APPLICATIONS)
        return _dialled(solver, dial, self.dtype), counting

    def _on_host(self, method: Host, dial: Any) -> Host:
        matrix, shape = as_scipy(self.operator).astype(self.dtype), self._structure.shape
        solve = method(matrix)

        def solved(b: Any) -> np.ndarray:
            return np.reshape(solve(np.ravel(b), dial), shape)

        return Host(solved)

    def apply(self, standin: Any, *, key: Any) -> tuple[Any, Any]:
        b = self._draw(key) if self.side is None else self.side
        if isinstance(standin, Host):
            return b, standin(np.asarray(b))
        solver, options = standin
        operator = CountedOperator(self.operator, MATVECS)
        return b, lx.linear_solve(operator, b, solver, options=options, throw=False).value

    def _draw(self, key: Any) -> Array:
        b = SIDES[self.kind](self._structure.shape, key, self.dtype)
        inside = bare(self.operator)
        return kept_inside(inside, b) if isinstance(inside, StencilOperator) else b

    def errors(self, value: Any) -> Mapping[str, float]:
        b, x = (np.asarray(v, np.float64).ravel() for v in value)
        factor = self.factor
        truth, matrix = factor.solve(b), factor.matrix
        wrong = x - truth
        errors = {
            "relative residual": _ratio(b - matrix @ x, b),
            "relative error": _ratio(wrong, truth),
        }
        if self.is_definite:
            energy = max(float(wrong @ (matrix @ wrong)), 0.0)
            errors["A-norm error"] = float(np.sqrt(energy / max(truth @ (matrix @ truth), 1e-300)))
        return errors

    @property
    def factor(self) -> Factor:
        """The matrix in float64 and its direct factors, computed once."""
        return factor_of(as_scipy(self.operator), symmetric=bool(lx.is_symmetric(self.operator)))


def _ratio(part: np.ndarray, whole: np.ndarray) -> float:
    size = float(np.linalg.norm(whole))
    return float(np.linalg.norm(part)) / (size or 1.0)


def _dialled(solver: Any, dial: Any, dtype: str) -> Any:
    """The solver at a relative tolerance, if it has one."""
    if not hasattr(solver, "rtol"):
        return solver
    return eqx.tree_at(lambda s: s.rtol, solver, jnp.asarray(dial, dtype))
