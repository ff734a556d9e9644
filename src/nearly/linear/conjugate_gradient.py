"""Conjugate gradients with a linear preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from nearly.core.errors import InputError
from nearly.linear.iteration import (
    IterativeSolver,
    Prepared,
    Scalar,
    axpy,
    limit,
    tree_dot,
    tree_norm,
)


class ConjugateGradient(IterativeSolver):
    """Conjugate gradients for positive definite systems, preconditioned or not.

    Unlike `lineax.CG` the residual is never computed anew, so a step is one product; it stops on
    the Euclidean norm of the residual; and the preconditioner can be the solver's own, made from
    the operator: `ConjugateGradient(1e-8, preconditioner=Ssor(1.8))`. In the last digits the
    residual of the recursion and the true one part: tolerances near the rounding error times the
    condition number are not reached.

    **Arguments:** as `IterativeSolver`; `preconditioner` from an operator to a positive definite
    lineax operator.

    **Raises:** `InputError` if operator or preconditioner is not tagged positive semidefinite.

    **Cost:** of a step, one product, one application of the preconditioner, two inner products
    (three with a preconditioner) and three updates.
    """

    rtol: Scalar
    atol: Scalar = 0.0
    preconditioner: Callable[[Any], Any] | None = None
    max_steps: int | None = None

    def check(self, operator: lx.AbstractLinearOperator) -> None:
        super().check(operator)
        check_definite(operator, "ConjugateGradient")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Prepared:
        state = super().init(operator, options)
        if state.preconditioner is not None and not lx.is_positive_semidefinite(
            state.preconditioner
        ):
            raise InputError(
                "the preconditioner of ConjugateGradient must be tagged positive semidefinite; "
                "one that is not linear or not definite is for FlexibleConjugateGradient"
            )
        return state

    def compute(
        self, state: Prepared, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        x, r = self.start(state, vector, options)
        wanted, most = self.threshold(vector), limit(self.max_steps, vector)
        plain = state.preconditioner is None

        def unfinished(carry: Any) -> Any:
            *_, norm, step = carry
            return (norm > wanted) & (step < most)

        def advance(carry: Any) -> Any:
            x, r, p, gamma, _, step = carry
            q = state.operator.mv(p)
            alpha = gamma / tree_dot(p, q)
            x = axpy(alpha, p, x)
            r = axpy(-alpha, q, r)
            z = state.apply(r)
            new = tree_dot(r, z)
            norm = jnp.sqrt(new) if plain else tree_norm(r)
            return x, r, axpy(new / gamma, p, z), new, norm, step + 1

        z = state.apply(r)
        first = (x, r, z, tree_dot(r, z), tree_norm(r), 0)
        x, _, _, _, norm, steps = jax.lax.while_loop(unfinished, advance, first)
        return self.outcome(x, norm, wanted, steps)


def check_definite(operator: lx.AbstractLinearOperator, who: str) -> None:
    """Refuse an operator that is not said to be positive definite."""
    if not lx.is_positive_semidefinite(operator):
        raise InputError(
            f"{who} needs a positive definite operator; if yours is, say so: "
            "lineax.TaggedLinearOperator(operator, lineax.positive_semidefinite_tag)"
        )
