"""Stationary iterations: a preconditioner, repeated on the residual (Jacobi, Gauss-Seidel, SOR)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import lineax as lx
from jaxtyping import Array, PyTree

from nearly.linear.iteration import (
    IterativeSolver,
    Prepared,
    Scalar,
    axpy,
    limit,
    tree_norm,
)
from nearly.linear.relaxation import Jacobi


class Stationary(IterativeSolver):
    """`x += M^-1 (b - A x)`: the methods of Jacobi, Gauss and Seidel, or SOR, by preconditioner.

    `Stationary(rtol=1e-8, preconditioner=Sor(1.8))` is SOR. Converges where the spectral radius of
    `I - M^-1 A` is below one; if the residual overflows, the solve has failed.

    **Arguments:** as `IterativeSolver`; `preconditioner` from an operator to a lineax operator,
    by default `Jacobi()`.

    **Cost:** of a step, one product and one application of the preconditioner.
    """

    rtol: Scalar
    atol: Scalar = 0.0
    preconditioner: Callable[[Any], Any] | None = Jacobi()
    max_steps: int | None = None

    def compute(
        self, state: Prepared, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        x, r = self.start(state, vector, options)
        wanted, most = self.threshold(vector), limit(self.max_steps, vector)

        def unfinished(carry: Any) -> Any:
            _, _, norm, step = carry
            return (norm > wanted) & (step < most)

        def advance(carry: Any) -> Any:
            x, r, _, step = carry
            x = axpy(1, state.apply(r), x)
            r = axpy(-1, state.operator.mv(x), vector)
            return x, r, tree_norm(r), step + 1

        x, _, norm, steps = jax.lax.while_loop(unfinished, advance, (x, r, tree_norm(r), 0))
        return self.outcome(x, norm, wanted, steps)
