"""A problem and methods of one's own: conjugate gradients from lineax and from SciPy, compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

import nearly

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "own-problem.png"


class Smoothing(nearly.Problem):
    """Solve (I + s L) x = b, L the 1-D Laplacian; the dial is the solver's relative tolerance."""

    size: int = 200
    strength: float = 30.0
    dtype: str = "float64"
    name: ClassVar[str] = "smoothing"
    error_name: ClassVar[str] = "relative error"
    work_name: ClassVar[str] = "matvecs"
    protocol: ClassVar[str] = "own"

    @property
    def matrix(self) -> np.ndarray:
        n = self.size
        laplacian = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
        return np.eye(n) + self.strength * laplacian

    def dials(self, method: Any) -> Sequence[float]:
        return [10.0**-k for k in range(1, 11)]

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        if isinstance(method, lx.AbstractLinearSolver):  # the dial is an array: nothing recompiles
            return eqx.tree_at(lambda s: s.rtol, method, jnp.asarray(dial))
        return nearly.Host(lambda matvec, b: method(matvec, b, dial))

    def apply(self, standin: Any, *, key: Any) -> Any:
        matvec = nearly.counted(lambda x: jnp.asarray(self.matrix) @ x, "matvecs")
        b = jax.random.normal(key, (self.size,), jnp.float64)
        if isinstance(standin, nearly.Host):
            return b, standin(lambda x: np.asarray(matvec(jnp.asarray(x))), np.asarray(b))
        shape = jax.ShapeDtypeStruct(b.shape, b.dtype)
        operator = lx.FunctionLinearOperator(matvec, shape, lx.positive_semidefinite_tag)
        return b, lx.linear_solve(operator, b, standin, throw=False).value

    def errors(self, value: Any) -> Mapping[str, float]:
        b, x = value
        truth = np.linalg.solve(self.matrix, b)
        return {"relative error": float(np.linalg.norm(x - truth) / np.linalg.norm(truth))}


def scipy_cg(matvec: Any, b: np.ndarray, rtol: float) -> np.ndarray:
    return cg(LinearOperator((b.size, b.size), matvec, dtype=b.dtype), b, rtol=rtol)[0]


def main(problem: nearly.Problem | None = None, picture: Path = PICTURE) -> nearly.Frontier:
    methods = {"lineax CG": lx.CG(rtol=1e-3, atol=1e-30), "SciPy CG": scipy_cg}
    frontier = nearly.compare(problem or Smoothing(), methods)
    frontier.plot(picture)
    return frontier


if __name__ == "__main__":
    frontier = main()
    run = frontier.within(1e-6)
    print(f"{run.method} at {run.dial:g}: {run.work['matvecs']:.0f} matvecs")
