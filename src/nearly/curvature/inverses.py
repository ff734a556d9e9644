"""Approximate inverses of damped curvature, all of one signature, to be compared on a problem.

The protocol `curvature`: `(objective, damping, passes, *, key) -> lineax operator` that applies an
approximate inverse of the damped Gauss-Newton matrix. `damping` is a pytree like the parameters,
constant in each layer; `passes` is how often the method may go over the data.

The protocol `influence`: the same arguments, and a function `(objective, queries) -> scores` of the
signature and sign of `nearly.curvature.influence.influence`, compiled by the caller.
"""

from __future__ import annotations

from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.curvature import influence as functions
from nearly.curvature import kronecker
from nearly.curvature.capture import Capture
from nearly.curvature.fisher import woodbury
from nearly.curvature.objective import Objective
from nearly.curvature.operators import SymmetricOperator, spread

BATCH = 32  # LiSSA's
STORED = 1024  # M-FAC's gradients


class Inverse(Protocol):
    """A method of the protocol `curvature`."""

    def __call__(
        self, objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
    ) -> lx.AbstractLinearOperator: ...


# ------------------------------------------------------------------ inverses


class Scaled(SymmetricOperator):
    """A positive diagonal: what is left of an inverse when the curvature is ignored."""

    scale: PyTree

    @property
    def like(self) -> PyTree:
        return self.scale

    def mv(self, vector: PyTree) -> PyTree:
        return jax.tree.map(jnp.multiply, self.scale, vector)


def identity(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
) -> SymmetricOperator:
    """No curvature: influence by it is minus the dot product of gradients."""
    return Scaled(spread(1.0, objective.parameters))


def kfac(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
) -> SymmetricOperator:
    """`kronecker.kfac` with labels drawn anew in every pass."""
    return _inverted(kronecker.kfac(objective, key=key, passes=passes), damping)


def ekfac(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
) -> SymmetricOperator:
    """`kronecker.ekfac` with labels drawn anew in every pass; twice as many passes."""
    return _inverted(kronecker.ekfac(objective, key=key, passes=passes), damping)


def diagonal(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
) -> SymmetricOperator:
    """`kronecker.diagonal_fisher` with labels drawn anew in every pass."""
    return _inverted(kronecker.diagonal_fisher(objective, key=key, passes=passes), damping)


def _inverted(operator: kronecker.KroneckerOperator, damping: PyTree) -> SymmetricOperator:
    amounts = operator.capture.matrices(damping)
    return operator.damped({name: jnp.mean(m) for name, m in amounts.items()}).inverse()


def conjugate_gradients(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
) -> SymmetricOperator:
    """Conjugate gradients on the exact matrix: a pass over the data per step and query."""
    return functions.conjugate_gradients(objective, damping, passes)


def lissa(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
) -> SymmetricOperator:
    """LiSSA on the exact matrix, in batches of 32, as many steps as make up the passes."""
    steps = max(1, passes * objective.samples // BATCH)
    return functions.lissa(objective, damping, steps=steps, key=key, batch=BATCH)


class Rescaled(SymmetricOperator):
    """An operator between two multiplications by the same positive diagonal."""

    operator: SymmetricOperator
    scale: PyTree

    @property
    def like(self) -> PyTree:
        return self.scale

    def mv(self, vector: PyTree) -> PyTree:
        inner = self.operator.mv(jax.tree.map(jnp.multiply, self.scale, vector))
        return jax.tree.map(jnp.multiply, self.scale, inner)


def mfac(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
) -> SymmetricOperator:
    """M-FAC's inverse of the true Fisher matrix of at most 1024 gradients, labels drawn.

    With a damping D that differs between layers the matrix is D^1/2 (I + D^-1/2 F D^-1/2) D^1/2.
    """
    scale = jax.tree.map(lambda d: d**-0.5, damping)
    flat = ravel_pytree(scale)[0]
    count = min(passes * objective.samples, STORED)
    gradients = [
        _drawn_gradients(objective, min(objective.samples, count - start), k)
        for start, k in zip(
            range(0, count, objective.samples), jax.random.split(key, passes), strict=False
        )
    ]
    inverse = woodbury(jnp.concatenate(gradients) * flat, objective.parameters, damping=1.0)
    return Rescaled(inverse, scale)


@eqx.filter_jit
def _drawn_gradients(
    objective: Objective, count: int, key: PRNGKeyArray
) -> Float[Array, "count dimension"]:
    """The gradients of so many samples, each with a label drawn from the model."""
    choice, labels = jax.random.split(key)
    chosen = jax.random.permutation(choice, objective.samples)[:count]
    part = objective.on(*jax.tree.map(lambda x: x[chosen], objective.data))
    return objective.gradients(*part.with_sampled_targets(labels).data)


# ------------------------------------------------------------------ influence by an inverse


class ByInverse(eqx.Module):
    """Influence by an inverse: queries are preconditioned, gradients of all samples computed."""

    inverse: lx.AbstractLinearOperator

    def __call__(
        self, objective: Objective, queries: Float[Array, "queries dimension"]
    ) -> Float[Array, "queries samples"]:
        ready = functions.precondition(self.inverse, queries)
        return -ready @ objective.gradients(*objective.data).T


class ByLowRank(eqx.Module):
    """Influence by an inverse, the preconditioned queries replaced by their best of low rank."""

    inverse: lx.AbstractLinearOperator
    capture: Capture
    rank: int = eqx.field(static=True)

    def __call__(
        self, objective: Objective, queries: Float[Array, "queries dimension"]
    ) -> Float[Array, "queries samples"]:
        ready = functions.precondition(self.inverse, queries)
        batch = functions.LowRankQueries.of(objective, ready, self.rank, capture=self.capture)
        return -functions.low_rank_products(batch, objective)


def _by(inverse: Any) -> Any:
    def method(
        objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray
    ) -> ByInverse:
        return ByInverse(inverse(objective, damping, passes, key=key))

    method.__doc__ = inverse.__doc__
    return method


influence_identity = _by(identity)
influence_mfac = _by(mfac)
influence_diagonal = _by(diagonal)
influence_kfac = _by(kfac)
influence_ekfac = _by(ekfac)
influence_conjugate_gradients = _by(conjugate_gradients)
influence_lissa = _by(lissa)


def influence_ekfac_low_rank(
    objective: Objective, damping: PyTree, passes: int, *, key: PRNGKeyArray, rank: int = 32
) -> ByLowRank:
    """EK-FAC with query batching: each layer's preconditioned query is replaced by rank 32."""
    inverse = ekfac(objective, damping, passes, key=key)
    return ByLowRank(inverse, objective.capture(), rank)
