"""Influence functions: which training samples a measurement of the trained model owes to.

Sign and scale, everywhere here: the influence of a sample z on a measurement f is

    - grad f^T (G + lam)^-1 grad L(z),

the derivative of f at the optimum with respect to the weight of z's loss, added to the *mean*
loss. So with f the loss on a query, a negative influence means that more weight on z would have
lowered the query's loss: z helps. Removing z changes f by about minus its influence over N.

The inverse is any lineax operator: EK-FAC's (`kronecker`), `conjugate_gradients` or `lissa` on the
exact Gauss-Newton matrix, or the identity, which leaves the gradients' dot product.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.core.progress import Progress, silent
from nearly.curvature.capture import Capture
from nearly.curvature.objective import Objective
from nearly.curvature.operators import (
    Damped,
    Damping,
    SymmetricOperator,
    damped,
    gauss_newton,
    spread,
)

Vectors = Float[Array, "queries dimension"]
Scores = Float[np.ndarray, "queries samples"]


def precondition(inverse: lx.AbstractLinearOperator, queries: Vectors) -> Vectors:
    """The inverse applied to every row, one after the other, in one compiled loop."""
    like = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), inverse.in_structure())
    unflatten = ravel_pytree(like)[1]
    return _preconditioned(inverse, queries, unflatten)


@eqx.filter_jit
def _preconditioned(inverse: Any, queries: Array, unflatten: Any) -> Array:
    return jax.lax.map(lambda q: ravel_pytree(inverse.mv(unflatten(q)))[0], queries)


def influence(
    inverse: lx.AbstractLinearOperator,
    objective: Objective,
    queries: Vectors,
    progress: Progress = silent,
) -> Scores:
    """The influence of every sample of an objective on every measurement.

    **Arguments:**

    - `inverse`: approximates the inverse of the objective's damped curvature.
    - `objective`: model, loss and the training samples.
    - `queries`: the gradient of each measurement with respect to the parameters, flattened as
      `ravel_pytree` does: `objective.gradients(inputs, targets)` for the loss on query samples.

    **Returns:** minus grad f^T inverse grad L(z), for each pair; see the module's sign convention.

    **Cost:** one product with the inverse per query; one gradient per sample, and a dot product
    for every pair. Memory of one chunk's gradients.
    """
    preconditioned = precondition(inverse, queries)
    total = -(-objective.samples // objective.chunk)
    parts: list[np.ndarray] = []
    for data in objective.chunks():
        parts.append(np.asarray(_products(objective.on(*data), preconditioned)))
        progress(len(parts), total, "samples' gradients")
    return -np.concatenate(parts, axis=1)


@eqx.filter_jit
def _products(objective: Objective, vectors: Array) -> Array:
    return vectors @ objective.gradients(*objective.data).T


# ------------------------------------------------------------------ query batching


class LowRankQueries(eqx.Module):
    """Preconditioned query gradients, each layer's matrix replaced by its best of low rank.

    Scores then need no sample's gradient, only what passes through its layers: per layer, query
    and row, rank (inputs + outputs) products instead of inputs times outputs. The paper's rank is
    32. Made by `LowRankQueries.of`.
    """

    capture: Capture
    left: dict[str, Float[Array, "queries outputs rank"]]
    right: dict[str, Float[Array, "queries inputs rank"]]

    @staticmethod
    def of(
        objective: Objective,
        preconditioned: Vectors,
        rank: int = 32,
        capture: Capture | None = None,
    ) -> LowRankQueries:
        """**Arguments:**

        - `preconditioned`: as `precondition` returns. `rank`: at most, per layer.
        - `capture`: the objective's, if it is at hand (inside `jax.jit` it cannot be made).

        Raises `InputError` for a rank below 1, or a parameter outside the captured layers.
        """
        if rank < 1:
            raise InputError(f"rank = {rank} must be at least 1 (the paper's is 32)")
        capture = capture or objective.capture()
        unflatten = ravel_pytree(objective.parameters)[1]
        matrices = jax.vmap(lambda q: capture.matrices(unflatten(q)))(preconditioned)
        left: dict[str, Array] = {}
        right: dict[str, Array] = {}
        for name, stack in matrices.items():
            u, s, vt = jnp.linalg.svd(stack, full_matrices=False)
            left[name] = u[:, :, :rank] * s[:, None, :rank]
            right[name] = jnp.swapaxes(vt[:, :rank], 1, 2)
        return LowRankQueries(capture, left, right)

    def scores(self, objective: Objective, progress: Progress = silent) -> Scores:
        """The influence of every sample of an objective: what `influence` returns."""
        total = -(-objective.samples // objective.chunk)
        parts: list[np.ndarray] = []
        for data in objective.chunks():
            parts.append(np.asarray(low_rank_products(self, objective.on(*data))))
            progress(len(parts), total, "samples' layers")
        return -np.concatenate(parts, axis=1)


@eqx.filter_jit
def low_rank_products(
    queries: LowRankQueries, objective: Objective
) -> Float[Array, "queries samples"]:
    """The gradient of every sample times every query: minus `scores`, in one piece, traceable."""
    model = objective.model

    def one(inputs: Any, target: Any) -> Array:
        outputs, pull = queries.capture.linearise(model, inputs)
        captured = pull(jax.grad(objective.loss)(outputs, target))
        found = [
            jnp.einsum("to,qor,qir,ti->q", c.deltas, queries.left[n], queries.right[n], c.rows)
            for n, c in captured.items()
        ]
        return functools.reduce(jnp.add, found)

    return jax.vmap(one)(*objective.data).T


def tf_idf(
    query: Sequence[int],
    documents: Sequence[Sequence[int]],
    *,
    saturation: float = 1.5,
    length: float = 0.75,
) -> Float[np.ndarray, " documents"]:
    """The overlap in tokens of each document with a query, rare tokens counting more (Okapi BM25).

    A filter that is cheap enough for a whole corpus: compute influences of the highest-scoring
    documents only, `np.argsort(-tf_idf(query, documents))[:10_000]`.

    **Arguments:**

    - `query`, `documents`: token numbers. `saturation` and `length` are BM25's k_1 and b: how soon
      repeats of a token stop counting, and how much long documents are discounted.

    **Returns:** a score per document, zero where no token is shared.

    **Cost:** linear in the corpus's tokens.
    """
    if not documents:
        raise InputError("tf_idf needs at least one document")
    counts = [Counter(document) for document in documents]
    lengths = np.array([len(document) for document in documents], np.float64)
    mean = max(float(lengths.mean()), 1.0)
    scores = np.zeros(len(documents))
    for token, repeats in Counter(query).items():
        frequency = np.array([count[token] for count in counts], np.float64)
        holding = int(np.count_nonzero(frequency))
        rarity = math.log1p((len(documents) - holding + 0.5) / (holding + 0.5))
        discount = saturation * (1 - length + length * lengths / mean)
        scores += repeats * rarity * frequency * (saturation + 1) / (frequency + discount)
    return scores


# ------------------------------------------------------------------ iterative inverses


class ConjugateGradients(SymmetricOperator):
    """The inverse of a definite operator by a fixed number of steps of conjugate gradients.

    Stops early only where the residual is zero. A product costs as many of the operator's.
    """

    operator: SymmetricOperator
    steps: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"steps = {self.steps} must be at least 1")

    @property
    def like(self) -> PyTree:
        return self.operator.like

    def mv(self, vector: PyTree) -> PyTree:
        right, unflatten = ravel_pytree(vector)

        def step(state: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], None]:
            x, residual, direction, square = state
            image = ravel_pytree(self.operator.mv(unflatten(direction)))[0]
            curvature = direction @ image
            done = curvature <= 0  # only of a zero direction: the operator is definite
            length = jnp.where(done, 0, square / jnp.where(done, 1, curvature))
            residual = residual - length * image
            new = residual @ residual
            ratio = jnp.where(square > 0, new / jnp.where(square > 0, square, 1), 0)
            return (x + length * direction, residual, residual + ratio * direction, new), None

        start = (jnp.zeros_like(right), right, right, right @ right)
        (x, *_), _ = jax.lax.scan(step, start, None, length=self.steps)
        return unflatten(x)


class Lissa(SymmetricOperator):
    """The inverse of the damped Gauss-Newton matrix by a Neumann series over random batches.

    v <- u + (I - (G_B + lam)/scale) v, a new batch B each step; the result is v/scale. Converges
    in mean if `scale` exceeds half the largest eigenvalue; the slowest error shrinks by
    1 - lam/scale a step. The same key draws the same batches, so it is one linear operator.
    """

    objective: Objective
    damping: Damping
    scale: Float[Array, ""]
    key: PRNGKeyArray
    steps: int = eqx.field(static=True)
    batch: int = eqx.field(static=True)

    @property
    def like(self) -> PyTree:
        return self.objective.parameters

    def mv(self, vector: PyTree) -> PyTree:
        o = self.objective

        def step(v: PyTree, key: PRNGKeyArray) -> tuple[PyTree, None]:
            chosen = jax.random.randint(key, (self.batch,), 0, o.samples)
            part = o.on(*jax.tree.map(lambda x: x[chosen], o.data))
            image = Damped(gauss_newton(part), self.damping).mv(v)
            return jax.tree.map(lambda u, x, i: u + x - i / self.scale, vector, v, image), None

        total, _ = jax.lax.scan(step, vector, jax.random.split(self.key, self.steps))
        return jax.tree.map(lambda x: x / self.scale, total)


def conjugate_gradients(objective: Objective, damping: Damping, steps: int) -> ConjugateGradients:
    """The inverse of the exact damped Gauss-Newton matrix by `steps` conjugate gradients."""
    return ConjugateGradients(damped(gauss_newton(objective), damping), steps)


def lissa(
    objective: Objective,
    damping: Damping,
    *,
    steps: int,
    key: PRNGKeyArray,
    batch: int = 32,
    scale: float | None = None,
) -> Lissa:
    """The inverse of the damped Gauss-Newton matrix by LiSSA, the estimator EK-FAC replaces.

    **Arguments:**

    - `steps`, `batch`: of the series; each step costs `batch` Jacobian products and transposed.
    - `scale`: above the batches' eigenvalues; by default twice the largest of the whole matrix,
      by 30 power iterations. Too small diverges, too large is slow.
    """
    if steps < 1 or batch < 1:
        raise InputError(f"steps = {steps} and batch = {batch} must be at least 1")
    draw, start = jax.random.split(key)
    matrix = damped(gauss_newton(objective), damping)
    size = 2 * _largest(matrix, start) if scale is None else jnp.asarray(scale)
    return Lissa(objective, damping, size, draw, steps, batch)


@eqx.filter_jit
def _largest(operator: SymmetricOperator, key: PRNGKeyArray) -> Array:
    """The largest eigenvalue of a definite operator, from below, by power iteration."""
    flat, unflatten = ravel_pytree(operator.like)

    def step(v: Array, _: None) -> tuple[Array, Array]:
        image = ravel_pytree(operator.mv(unflatten(v)))[0]
        norm = jnp.linalg.norm(image)
        return image / norm, norm

    start = jax.random.normal(key, flat.shape, flat.dtype)
    return jax.lax.scan(step, start / jnp.linalg.norm(start), None, length=30)[1][-1]


# ------------------------------------------------------------------ the response that is meant


def proximal_bregman_response(
    objective: Objective,
    damping: Damping,
    inputs: Any,
    target: Any,
    weight: float,
    factor: Float[Array, "dimension dimension"],
    *,
    steps: int = 50,
) -> tuple[Float[Array, " dimension"], Float[Array, ""]]:
    """How the parameters move when a sample's loss is added: the truth that influence estimates.

    Minimises (1/N) sum D(h_i, h_i^*) + weight L(z) + |theta - theta^*|^2_lam / 2, where D is the
    Bregman divergence of the loss between new and old outputs. It is well defined where training
    was stopped early. For a small weight it is -weight (G + lam)^-1 grad L(z).

    **Arguments:**

    - `inputs`, `target`: of the sample z. `weight`: 1/N adds one more copy of it.
    - `factor`: the lower Cholesky factor of the dense damped Gauss-Newton matrix: in its
      coordinates the problem is nearly a unit bowl, and L-BFGS takes few steps.

    **Returns:** the change of the flattened parameters, and the norm of the gradient that is left
    in those coordinates, relative to the first.

    **Cost:** one or two gradients over all samples for each step.
    """
    o = objective
    flat, unflatten = ravel_pytree(o.parameters)
    amount = ravel_pytree(spread(damping, o.parameters))[0]
    x, t = o.data
    before = jax.vmap(o.output, (None, 0))(o.parameters, x)
    slopes = jax.vmap(jax.grad(o.loss))(before, t)

    def change(u: Array) -> Array:
        return solve_triangular(factor, u, trans=1, lower=True)

    def response(u: Array) -> Array:
        parameters = unflatten(flat + change(u))
        outputs = jax.vmap(o.output, (None, 0))(parameters, x)
        linear = sum(
            jnp.sum(s * y) for s, y in zip(jax.tree.leaves(slopes), jax.tree.leaves(outputs))
        )
        divergence = jnp.sum(jax.vmap(o.loss)(outputs, t)) - linear
        own = weight * o.sample_loss(parameters, inputs, target)
        return divergence / o.samples + own + 0.5 * jnp.sum(amount * change(u) ** 2)

    solver = optax.lbfgs(memory_size=20)
    evaluate = optax.value_and_grad_from_state(response)

    def step(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], None]:
        u, state = carry
        value, gradient = evaluate(u, state=state)
        move, state = solver.update(
            gradient, state, u, value=value, grad=gradient, value_fn=response
        )
        return (u + jnp.asarray(move), state), None

    start = jnp.zeros_like(flat)
    (u, _), _ = jax.lax.scan(step, (start, solver.init(start)), None, length=steps)
    gradient = jax.grad(response)
    return change(u), jnp.linalg.norm(gradient(u)) / jnp.linalg.norm(gradient(start))
