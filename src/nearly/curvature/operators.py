"""Curvature matrices of an objective as lineax operators on its parameters, never materialised.

Vectors are pytrees of the objective's parameters (None where the model has none), so a gradient
goes in as it is: `lineax.linear_solve(damped(gauss_newton(o), 1e-3), gradient, lineax.CG(...))`.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.curvature.objective import Objective, OutputHessian, chunked_sum

Damping = float | Array | PyTree


class SymmetricOperator(lx.AbstractLinearOperator):
    """A symmetric operator on pytrees that knows `mv` and, by `like`, its structure."""

    @property
    @abstractmethod
    def like(self) -> PyTree:
        """Arrays (or their shapes) of the structure that the operator acts on."""

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.like)

    def out_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        return self.in_structure()

    def transpose(self) -> SymmetricOperator:
        return self

    def as_matrix(self) -> Float[Array, "d d"]:
        """The dense matrix, by as many products as it has columns: for tests and small models."""
        flat, unflatten = ravel_pytree(jax.tree.map(jnp.zeros_like, self.like))
        columns = jax.lax.map(
            lambda e: ravel_pytree(self.mv(unflatten(e)))[0], jnp.eye(flat.size, dtype=flat.dtype)
        )
        return (columns + columns.T) / 2


class GaussNewton(SymmetricOperator):
    """The generalised Gauss-Newton matrix (1/N) sum J^T H J.

    For the losses of `objective` it is the true Fisher matrix. `mv` costs one forward pass, one
    Jacobian and one transposed Jacobian product over all samples, and the memory of one chunk.
    """

    objective: Objective

    @property
    def like(self) -> PyTree:
        return self.objective.parameters

    def mv(self, vector: PyTree) -> PyTree:
        o = self.objective

        def part(inputs: PyTree, targets: PyTree) -> PyTree:
            outputs, push = jax.linearize(
                lambda p: jax.vmap(o.output, (None, 0))(p, inputs), o.parameters
            )
            pushed = jax.vmap(_output_product, (None, 0, 0, 0))(
                o.loss, outputs, targets, push(vector)
            )
            return jax.linear_transpose(push, o.parameters)(pushed)[0]

        return _mean(o, chunked_sum(part, o.data, o.chunk))


def _output_product(loss: Any, outputs: PyTree, target: Any, tangent: PyTree) -> PyTree:
    return jax.jvp(lambda o: jax.grad(loss)(o, target), (outputs,), (tangent,))[1]


class EmpiricalFisher(SymmetricOperator):
    """The second moment (1/N) sum g g^T of the samples' gradients, at their targets as they are.

    `mv` costs what `GaussNewton`'s does. `fisher` draws the targets from the model first.
    """

    objective: Objective

    @property
    def like(self) -> PyTree:
        return self.objective.parameters

    def mv(self, vector: PyTree) -> PyTree:
        o = self.objective

        def part(inputs: PyTree, targets: PyTree) -> PyTree:
            _, push = jax.linearize(
                lambda p: jax.vmap(o.sample_loss, (None, 0, 0))(p, inputs, targets), o.parameters
            )
            return jax.linear_transpose(push, o.parameters)(push(vector))[0]

        return _mean(o, chunked_sum(part, o.data, o.chunk))


class Hessian(SymmetricOperator):
    """The Hessian of the objective: symmetric, not definite. `mv` costs about two gradients."""

    objective: Objective

    @property
    def like(self) -> PyTree:
        return self.objective.parameters

    def mv(self, vector: PyTree) -> PyTree:
        o = self.objective
        return jax.jvp(jax.grad(o.value), (o.parameters,), (vector,))[1]


class Damped(SymmetricOperator):
    """An operator plus a positive diagonal: a number, or an array for every array it acts on."""

    operator: SymmetricOperator
    damping: Damping

    @property
    def like(self) -> PyTree:
        return self.operator.like

    def mv(self, vector: PyTree) -> PyTree:
        product = self.operator.mv(vector)
        return jax.tree.map(
            lambda p, v, d: p + d * v, product, vector, spread(self.damping, vector)
        )


def gauss_newton(objective: Objective) -> GaussNewton:
    """The generalised Gauss-Newton matrix of an objective."""
    return GaussNewton(objective)


def fisher(objective: Objective, key: PRNGKeyArray) -> EmpiricalFisher:
    """The true Fisher matrix, estimated by one target per sample drawn from the model."""
    return EmpiricalFisher(objective.with_sampled_targets(key))


def damped(operator: SymmetricOperator, damping: Damping) -> Damped:
    """`operator + damping`; raises `InputError` for a number that is not positive."""
    if isinstance(damping, (int, float)) and not 0 < damping < np.inf:
        raise InputError(f"damping {damping} must be positive and finite, such as 1e-3")
    return Damped(operator, damping)


def spread(damping: Damping, like: PyTree) -> PyTree:
    """A damping as arrays of the shapes of `like`: one number is the same everywhere."""
    if jax.tree.structure(damping) == jax.tree.structure(0.0):
        return jax.tree.map(lambda x: jnp.full(x.shape, damping, x.dtype), like)
    return jax.tree.map(lambda d, x: jnp.broadcast_to(d, x.shape), damping, like)


def dense_gauss_newton(objective: Objective) -> Float[Array, "d d"]:
    """The Gauss-Newton matrix itself, in one pass: for tests, and truth of small models.

    Memory is d^2 and the square-root rows of one chunk: samples times outputs times d.
    """
    o = objective
    key = jax.random.key(0)  # the square root draws nothing

    def rows(x: Any, t: Any) -> Array:
        outputs, pull = jax.vjp(lambda p: o.output(p, x), o.parameters)
        roots = OutputHessian()(o.loss, outputs, t, key)
        return jnp.stack([ravel_pytree(pull(c)[0])[0] for c in roots])

    def part(inputs: PyTree, targets: PyTree) -> Array:
        stacked = jax.vmap(rows)(inputs, targets)
        flat = jnp.reshape(stacked, (-1, stacked.shape[-1]))
        return flat.T @ flat

    return chunked_sum(part, o.data, o.chunk) / o.samples


def _mean(objective: Objective, total: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x / objective.samples, total)


# ------------------------------------------------------------------ what lineax asks

_NEVER = (
    lx.is_diagonal,
    lx.is_tridiagonal,
    lx.has_unit_diagonal,
    lx.is_lower_triangular,
    lx.is_upper_triangular,
    lx.is_negative_semidefinite,
)


@lx.is_symmetric.register(SymmetricOperator)
def _(operator: SymmetricOperator) -> bool:
    return True


@lx.is_positive_semidefinite.register(SymmetricOperator)
def _(operator: SymmetricOperator) -> bool:
    return not isinstance(getattr(operator, "operator", operator), Hessian)


for _ask in _NEVER:
    _ask.register(SymmetricOperator)(lambda operator: False)


@lx.linearise.register(SymmetricOperator)
@lx.conj.register(SymmetricOperator)
def _(operator: SymmetricOperator) -> SymmetricOperator:
    return operator


@lx.materialise.register(SymmetricOperator)
def _(operator: SymmetricOperator) -> lx.AbstractLinearOperator:
    tags = frozenset({lx.symmetric_tag})
    if lx.is_positive_semidefinite(operator):
        tags |= {lx.positive_semidefinite_tag}
    _, unflatten = ravel_pytree(jax.tree.map(jnp.zeros_like, operator.like))
    matrix = operator.as_matrix()
    return lx.FunctionLinearOperator(
        lambda v: unflatten(matrix @ ravel_pytree(v)[0]), operator.in_structure(), tags
    )


@lx.diagonal.register(SymmetricOperator)
def _(operator: SymmetricOperator) -> Array:
    return jnp.diagonal(operator.as_matrix())


__all__ = [
    "Damped",
    "Damping",
    "EmpiricalFisher",
    "GaussNewton",
    "Hessian",
    "SymmetricOperator",
    "damped",
    "dense_gauss_newton",
    "fisher",
    "gauss_newton",
    "spread",
]
