"""Kronecker-factored curvature with eigenvalue correction: K-FAC and EK-FAC (`ekfac-influence`).

Per layer, with its input row a (a one appended for the bias) and its output cotangent delta:

1. first pass over the data, labels drawn from the model: A = E[a a^T], S = E[delta delta^T];
2. A = Q_A diag(.) Q_A^T and S = Q_S diag(.) Q_S^T, in float64;
3. second pass, labels drawn anew: Lambda = E[(Q_S^T G Q_A)^2], elementwise, where G is one
   sample's gradient, the sum over its tokens or positions of delta a^T;
4. (F + lam)^-1 V = Q_S [ (Q_S^T V Q_A) / (Lambda + lam) ] Q_A^T, lam = .1 mean(Lambda).

K-FAC stops after step 2 with Lambda_ij = s_i a_j. Both are then *exactly* inverted with their
damping: K-FAC here is A (x) S + lam, not the factored (A + pi)(S + 1/pi) of the optimizers.

Where this differs from what is usual: any cotangents whose squares add up to the output Hessian can
stand for the sampled labels (`OutputHessian()` gives the exact factors); several rows per sample
are "expanded" in A and S (each row counts as one; A is divided by the number of rows so that
A (x) S is the matrix itself where rows are independent); the mean is over the samples seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from nearly.core.errors import InputError
from nearly.core.progress import Progress, silent
from nearly.curvature.capture import Capture
from nearly.curvature.objective import Cotangents, Objective, SampledLabels
from nearly.curvature.operators import SymmetricOperator

LayerDamping = float | Array | Mapping[str, Any] | None

RELATIVE_DAMPING = 0.1  # the paper's: lam is a tenth of the layer's mean eigenvalue


class Eigenbasis(NamedTuple):
    """One layer's block, diagonal in a Kronecker basis: V -> Q_S [values (Q_S^T V Q_A)] Q_A^T."""

    left: Float[Array, "outputs outputs"]  # Q_S
    right: Float[Array, "inputs inputs"]  # Q_A
    values: Float[Array, "outputs inputs"]

    def rotate(self, matrix: Float[Array, "... outputs inputs"]) -> Array:
        return self.left.T @ matrix @ self.right

    def back(self, matrix: Float[Array, "... outputs inputs"]) -> Array:
        return self.left @ matrix @ self.right.T


class KroneckerOperator(SymmetricOperator):
    """A block per layer, each diagonal in its Kronecker basis; a lineax operator on parameters.

    `mv` costs as much as 4 products of the layer's matrix with its factors. `inverse` is exact.
    """

    capture: Capture
    parameters: PyTree
    blocks: dict[str, Eigenbasis]

    @property
    def like(self) -> PyTree:
        return self.parameters

    def mv(self, vector: PyTree) -> PyTree:
        matrices = self.capture.matrices(vector)
        products = {n: b.back(b.values * b.rotate(matrices[n])) for n, b in self.blocks.items()}
        return self.capture.parameters(vector, products)

    def mean_eigenvalues(self) -> dict[str, Float[Array, ""]]:
        """The mean eigenvalue of every layer's block: what the relative damping refers to."""
        return {name: jnp.mean(block.values) for name, block in self.blocks.items()}

    def damped(self, damping: LayerDamping = None) -> KroneckerOperator:
        """The operator with a damping added to every layer's eigenvalues.

        **Arguments:**

        - `damping`: a number, a number for each layer by name, or None for a tenth of the layer's
          mean eigenvalue, which is what the paper takes.

        Raises `InputError` for a layer without damping or a number that is not positive.
        """
        amounts = layer_damping(damping, self.mean_eigenvalues())
        return self._with({n: b.values + amounts[n] for n, b in self.blocks.items()})

    def inverse(self) -> KroneckerOperator:
        """The exact inverse. Of an operator without damping it may not exist: damp it first."""
        return self._with({n: 1 / b.values for n, b in self.blocks.items()})

    def power(self, exponent: float) -> KroneckerOperator:
        """A power: -1/2 draws from the Laplace posterior, and whitens gradients."""
        return self._with({n: b.values**exponent for n, b in self.blocks.items()})

    def _with(self, values: Mapping[str, Array]) -> KroneckerOperator:
        blocks = {n: b._replace(values=values[n]) for n, b in self.blocks.items()}
        return eqx.tree_at(lambda o: o.blocks, self, blocks)


def layer_damping(damping: LayerDamping, means: Mapping[str, Any]) -> dict[str, Any]:
    """A number for every layer: None is a tenth of its mean eigenvalue."""
    if damping is None:
        return {name: RELATIVE_DAMPING * mean for name, mean in means.items()}
    if not isinstance(damping, Mapping):
        damping = dict.fromkeys(means, damping)
    missing = [name for name in means if name not in damping]
    if missing:
        raise InputError(f"no damping is given for the layer {missing[0]}; give one for each layer")
    for name, amount in damping.items():
        if isinstance(amount, (int, float)) and not 0 < amount < np.inf:
            raise InputError(f"damping {amount} of {name} must be positive, such as 1e-3")
    return dict(damping)


def kfac(
    objective: Objective,
    *,
    key: PRNGKeyArray,
    cotangents: Cotangents | None = None,
    passes: int = 1,
    progress: Progress = silent,
) -> KroneckerOperator:
    """Kronecker-factored approximate curvature of the Gauss-Newton (true Fisher) matrix.

    **Arguments:**

    - `objective`: model, loss and data; every parameter that counts must lie in a linear layer.
    - `key`: draws the labels. `cotangents`: what stands for them; by default `SampledLabels()`.
    - `passes`: over the data, each with labels of its own.
    - `progress`: told `(chunks done, chunks, what)`.

    **Returns:** an undamped operator; `kfac(...).damped().inverse()` preconditions.

    **Cost:** a forward and a backward pass per sample and draw, and an eigendecomposition of each
    layer's two factors; memory of one chunk's layer inputs and of the factors.
    """
    return _kfac(_Passes(objective, cotangents or SampledLabels(), progress, passes, 1), key)


def ekfac(
    objective: Objective,
    *,
    key: PRNGKeyArray,
    cotangents: Cotangents | None = None,
    passes: int = 1,
    progress: Progress = silent,
) -> KroneckerOperator:
    """Eigenvalue-corrected K-FAC: K-FAC's basis, with the second moments of the gradients in it.

    Takes the arguments of `kfac` and costs twice as many passes. Among all matrices that are
    diagonal in K-FAC's basis it is the nearest to the layer's block in Frobenius norm, if its
    cotangents are exact.
    """
    work = _Passes(objective, cotangents or SampledLabels(), progress, passes, 2)
    first, second = jax.random.split(key)
    basis = _kfac(work, first).blocks
    totals = work.mean(_squares, basis, second)
    return _operator(work, {n: basis[n]._replace(values=totals[n]) for n in basis})


def diagonal_fisher(
    objective: Objective,
    *,
    key: PRNGKeyArray,
    cotangents: Cotangents | None = None,
    passes: int = 1,
    progress: Progress = silent,
) -> KroneckerOperator:
    """The diagonal of the true Fisher matrix: EK-FAC in the standard basis. Takes `kfac`'s."""
    work = _Passes(objective, cotangents or SampledLabels(), progress, passes, 1)
    basis = {m.name: _standard(m.shape, work.dtype) for m in work.capture.maps}
    totals = work.mean(_squares, basis, key)
    return _operator(work, {n: basis[n]._replace(values=totals[n]) for n in basis})


# ------------------------------------------------------------------ passes over the data


@dataclass
class _Passes:
    """Means over the samples of statistics of what passes through the layers."""

    objective: Objective
    draw: Cotangents
    progress: Progress
    passes: int
    stages: int  # statistics that will be asked for, each in as many passes
    done: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise InputError(f"passes = {self.passes} must be at least 1")
        self.capture = self.objective.capture()

    @property
    def dtype(self) -> Any:
        return jax.tree.leaves(self.objective.parameters)[0].dtype

    def mean(self, statistic: Callable[..., Any], extra: Any, key: PRNGKeyArray) -> Any:
        """The mean over samples and passes of a statistic of each layer."""
        parts = [self._once(statistic, extra, k) for k in jax.random.split(key, self.passes)]
        return jax.tree.map(lambda *x: sum(x) / self.passes, *parts)

    def _once(self, statistic: Callable[..., Any], extra: Any, key: PRNGKeyArray) -> Any:
        total: Any = None
        for index, data in enumerate(self.objective.chunks()):
            part = _chunk_statistics(
                self.objective.on(*data),
                self.capture,
                self.draw,
                statistic,
                extra,
                jax.random.fold_in(key, index),
            )
            total = part if total is None else jax.tree.map(jnp.add, total, part)
            self.done += 1
            chunks = -(-self.objective.samples // self.objective.chunk)
            self.progress(self.done, chunks * self.passes * self.stages, "layers")
        return jax.tree.map(lambda x: x / self.objective.samples, total)


@eqx.filter_jit
def _chunk_statistics(
    objective: Objective,
    capture: Capture,
    draw: Any,
    statistic: Callable[..., Any],
    extra: Any,
    key: PRNGKeyArray,
) -> Any:
    model = objective.model

    def one(inputs: Any, target: Any, key: PRNGKeyArray) -> list[Any]:
        outputs, pull = capture.linearise(model, inputs)
        return [pull(c) for c in draw(objective.loss, outputs, target, key)]

    keys = jax.random.split(key, objective.samples)
    captured = jax.vmap(one)(*objective.data, keys)
    return statistic(captured, extra)


class _Moments(NamedTuple):
    inputs: Float[Array, "inputs inputs"]
    cotangents: Float[Array, "outputs outputs"]


def _moments(captured: Any, extra: Any) -> dict[str, _Moments]:
    """The sums of a a^T over rows, of delta delta^T over rows and cotangents."""
    found = {}
    for name, (rows, _) in captured[0].items():
        deltas = jnp.stack([c[name].deltas for c in captured])
        uses = rows.shape[1]
        found[name] = _Moments(
            _gram(rows) / uses,  # so that the product of the two counts each row once
            _gram(deltas),
        )
    return found


def _gram(rows: Array) -> Array:
    flat = jnp.reshape(rows, (-1, rows.shape[-1]))
    return flat.T @ flat


def _squares(captured: Any, basis: Mapping[str, Eigenbasis]) -> dict[str, Array]:
    """The sums of the squared gradients in a basis."""
    found: dict[str, Array] = {}
    for cotangent in captured:
        for name, (rows, deltas) in cotangent.items():
            inward, outward = rows @ basis[name].right, deltas @ basis[name].left
            if rows.shape[1] == 1:  # of a product of two numbers, the square is one of squares
                squares = (outward[:, 0] ** 2).T @ inward[:, 0] ** 2
            else:
                squares = jnp.sum(jnp.einsum("bto,bti->boi", outward, inward) ** 2, axis=0)
            found[name] = found.get(name, 0) + squares
    return found


def _kfac(work: _Passes, key: PRNGKeyArray) -> KroneckerOperator:
    moments = work.mean(_moments, None, key)
    return _operator(work, {n: _eigenbasis(m, work.dtype) for n, m in moments.items()})


def _operator(work: _Passes, blocks: dict[str, Eigenbasis]) -> KroneckerOperator:
    return KroneckerOperator(work.capture, work.objective.parameters, blocks)


def _eigenbasis(moments: _Moments, dtype: Any) -> Eigenbasis:
    # In float64 on the host: in float32 the small eigenvalues, which the inverse lives on, are
    # noise, and their vectors are not orthogonal.
    a, right = np.linalg.eigh(np.asarray(moments.inputs, np.float64))
    s, left = np.linalg.eigh(np.asarray(moments.cotangents, np.float64))
    values = np.outer(np.maximum(s, 0), np.maximum(a, 0))
    return Eigenbasis(*(jnp.asarray(x, dtype) for x in (left, right, values)))


def _standard(shape: tuple[int, int], dtype: Any) -> Eigenbasis:
    outputs, inputs = shape
    return Eigenbasis(
        jnp.eye(outputs, dtype=dtype), jnp.eye(inputs, dtype=dtype), jnp.zeros(shape, dtype)
    )
