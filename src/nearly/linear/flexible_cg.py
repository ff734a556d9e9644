"""Flexible conjugate gradients: the preconditioner may be anything that proposes directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError
from nearly.linear.conjugate_gradient import check_definite
from nearly.linear.iteration import (
    IterativeSolver,
    Prepared,
    Scalar,
    axpy,
    limit,
    tree_dot,
    tree_norm,
)


class FlexibleConjugateGradient(IterativeSolver):
    """Conjugate gradients whose preconditioner is any function of the residual.

    It need not be linear, symmetric or the same at each step: a network, an inner solver stopped
    early. What it proposes is made conjugate to the last few directions, and the step along it is
    exact, so the error's A-norm never grows. A proposal without curvature (zero, not a number) is
    replaced by the residual. With a fixed linear preconditioner the iterates are those of
    `ConjugateGradient`.

    **Arguments:** as `IterativeSolver`, but

    - `preconditioner`: from the operator to any function of arrays; also as lineax's option
      `preconditioner`, then the function itself.
    - `directions`: how many of the last directions the next is made conjugate to. 2 as in
      `deep-conjugate-direction`; more help where the preconditioner changes much.

    **Raises:** `InputError` if the operator is not tagged positive semidefinite.

    **Cost:** of a step, one product (two after a useless proposal), one application,
    `2 directions + 3` inner products and updates; memory for `2 directions` vectors.
    """

    rtol: Scalar
    atol: Scalar = 0.0
    preconditioner: Callable[[Any], Any] | None = None
    max_steps: int | None = None
    directions: int = 2

    def __check_init__(self) -> None:
        if self.directions < 1:
            raise InputError(f"directions = {self.directions}; give one or more to be conjugate to")

    def check(self, operator: lx.AbstractLinearOperator) -> None:
        super().check(operator)
        check_definite(operator, "FlexibleConjugateGradient")

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Prepared:
        self.check(operator)
        operator = lx.linearise(operator)
        if "preconditioner" in options:
            made = options["preconditioner"]
        else:
            made = None if self.preconditioner is None else self.preconditioner(operator)
        if made is not None and not isinstance(made, eqx.Module):
            # What a plain function closes over must be an input of the solve.
            made = eqx.filter_closure_convert(made, operator.in_structure())
        return Prepared(operator, made)

    def compute(
        self, state: Prepared, vector: PyTree[Array], options: dict[str, Any]
    ) -> tuple[PyTree[Array], lx.RESULTS, dict[str, Any]]:
        x, r = self.start(state, vector, options)
        wanted, most = self.threshold(vector), limit(self.max_steps, vector)
        slots = self.directions

        def unfinished(carry: Any) -> Any:
            *_, norm, step = carry
            return (norm > wanted) & (step < most)

        def advance(carry: Any) -> Any:
            x, r, kept, images, energies, _, step = carry
            d = _conjugate(state.apply(r), kept, images, energies)
            d, q, energy = _with_curvature(state.operator, d, r)
            alpha = tree_dot(r, d) / energy
            x, r = axpy(alpha, d, x), axpy(-alpha, q, r)
            slot = step % slots
            kept, images = _put(kept, slot, d), _put(images, slot, q)
            energies = energies.at[slot].set(energy)
            return x, r, kept, images, energies, tree_norm(r), step + 1

        empty = jax.tree.map(lambda v: jnp.zeros((slots, *v.shape), v.dtype), vector)
        norm = tree_norm(r)
        first = (x, r, empty, empty, jnp.ones((slots,), norm.dtype), norm, 0)
        x, *_, norm, steps = jax.lax.while_loop(unfinished, advance, first)
        return self.outcome(x, norm, wanted, steps)


def _conjugate(
    d: PyTree[Array], kept: PyTree[Array], images: PyTree[Array], energies: Float[Array, " slots"]
) -> PyTree[Array]:
    """The direction without its components along those kept, in the A-inner product.

    All components are taken at once: those kept are conjugate to each other.
    """
    parts = jax.tree.map(lambda a, v: jnp.tensordot(a, v, axes=v.ndim), images, d)
    along = jnp.asarray(sum(jax.tree.leaves(parts))) / energies
    return jax.tree.map(lambda v, p: v - jnp.tensordot(along, p, axes=1), d, kept)


def _with_curvature(
    operator: lx.AbstractLinearOperator, d: PyTree[Array], r: PyTree[Array]
) -> tuple[PyTree[Array], PyTree[Array], Float[Array, ""]]:
    """The direction, or the residual if the direction is useless; its image and its energy."""
    q = operator.mv(d)
    energy = tree_dot(d, q)
    useful = jnp.isfinite(energy) & (energy > 0)

    def residual() -> Any:
        image = operator.mv(r)
        return r, image, tree_dot(r, image)

    return jax.lax.cond(useful, lambda: (d, q, energy), residual)


def _put(stack: PyTree[Array], slot: Array, value: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda s, v: s.at[slot].set(v), stack, value)
