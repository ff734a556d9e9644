"""What the room's iterative solvers share: tolerances, starts, preconditioners, outcomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.core.tally import counted

Scalar = Float[Array, ""] | float
APPLICATIONS = "preconditioner applications"


def tree_dot(a: PyTree[Array], b: PyTree[Array]) -> Float[Array, ""]:
    """The inner product of two structures of real arrays."""
    return jnp.asarray(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, a, b))))


def tree_norm(a: PyTree[Array]) -> Float[Array, ""]:
    """The Euclidean norm of a structure of real arrays."""
    return jnp.sqrt(tree_dot(a, a))


def axpy(scale: Any, x: PyTree[Array], y: PyTree[Array]) -> PyTree[Array]:
    """`scale * x + y`."""
    return jax.tree.map(lambda a, b: scale * a + b, x, y)


def limit(max_steps: int | None, vector: PyTree[Array]) -> int:
    """The most steps an iteration may take: ten for each unknown unless said otherwise."""
    if max_steps is not None:
        return max_steps
    return 10 * sum(leaf.size for leaf in jax.tree.leaves(vector))


class Prepared(eqx.Module):
    """What the solvers keep between `init` and `compute`.

    `preconditioner` is a lineax operator, for flexible solvers any function, or None.
    """

    operator: lx.AbstractLinearOperator
    preconditioner: Any

    def apply(self, residual: PyTree[Array]) -> PyTree[Array]:
        """The preconditioned residual; counted under "preconditioner applications"."""
        if self.preconditioner is None:
            return residual
        function = getattr(self.preconditioner, "mv", self.preconditioner)
        return counted(function, APPLICATIONS)(residual)

    def transpose(self) -> Prepared:
        turned = self.preconditioner
        if isinstance(turned, lx.AbstractLinearOperator):
            turned = turned.transpose()
        return Prepared(self.operator.transpose(), turned)

    def conj(self) -> Prepared:
        turned = self.preconditioner
        if isinstance(turned, lx.AbstractLinearOperator):
            turned = lx.conj(turned)
        return Prepared(lx.conj(self.operator), turned)


class IterativeSolver(lx.AbstractLinearSolver[Prepared]):
    """A lineax solver that repeats steps until the residual is small.

    It stops when `|b - A x| <= max(rtol |b|, atol)` in the Euclidean norm (SciPy's rule; lineax's
    own solvers ask every component of the residual and of the last step to be small), or gives up
    after `max_steps`. `options` may hold `y0`, the start, and `preconditioner`, a lineax operator
    that replaces the solver's own. `stats` are `num_steps`, `max_steps` and `residual_norm`.
    """

    rtol: eqx.AbstractVar[Scalar]
    atol: eqx.AbstractVar[Scalar]
    preconditioner: eqx.AbstractVar[Callable[[Any], Any] | None]
    max_steps: eqx.AbstractVar[int | None]

    def __check_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if isinstance(value, (int, float)) and value < 0:
                raise InputError(f"{name} = {value} is negative; give zero or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(
                f"max_steps = {self.max_steps}; give one or more, or None for ten an unknown"
            )

    def check(self, operator: lx.AbstractLinearOperator) -> None:
        """Refuse an operator that this solver is not for."""
        if operator.in_structure() != operator.out_structure():
            raise InputError(
                f"{type(self).__name__} solves square systems, but the operator goes from "
                f"{operator.in_structure()} to {operator.out_structure()}"
            )

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Prepared:
        self.check(operator)
        operator = lx.linearise(operator)
        if "preconditioner" in options:
            return Prepared(operator, lx.linearise(options["preconditioner"]))
        made = None if self.preconditioner is None else self.preconditioner(operator)
        return Prepared(operator, made)

    def transpose(
        self, state: Prepared, options: dict[str, Any]
    ) -> tuple[Prepared, dict[str, Any]]:
        return state.transpose(), {}

    def conj(self, state: Prepared, options: dict[str, Any]) -> tuple[Prepared, dict[str, Any]]:
        return state.conj(), {}

    def assume_full_rank(self) -> bool:
        return True

    def start(
        self, state: Prepared, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """The first iterate and its residual; from zero that is the right-hand side itself."""
        if "y0" not in options:
            return jax.tree.map(jnp.zeros_like, vector), vector
        x = options["y0"]
        return x, axpy(-1, state.operator.mv(x), vector)

    def threshold(self, vector: PyTree[Array]) -> Float[Array, ""]:
        """The largest residual norm that will do."""
        return jnp.maximum(self.rtol * tree_norm(vector), self.atol)

    def outcome(
        self, x: PyTree[Array], norm: Array, wanted: Array, steps: Array
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        """What `compute` returns: the iterate, whether it will do, the statistics."""
        failed = lx.RESULTS.where(
            jnp.isfinite(norm), lx.RESULTS.max_steps_reached, lx.RESULTS.breakdown
        )
        result = lx.RESULTS.where(norm <= wanted, lx.RESULTS.successful, failed)
        stats = {"num_steps": steps, "max_steps": self.max_steps, "residual_norm": norm}
        return x, result, stats
