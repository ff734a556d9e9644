"""The problem of finding a curvature operator's spectrum from a few products with it.

A method of the protocol "spectra" is a function `(operator, steps, key) -> Spectrum`; the dial is
`steps`, roughly the products per probe it may take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from nearly.core.problem import Problem
from nearly.core.tally import counted
from nearly.curvature.objective import CrossEntropy, Objective
from nearly.curvature.operators import Hessian
from nearly.curvature.spectrum import Spectrum, lanczos_quadrature
from nearly.datasets import digits


def stochastic_lanczos(
    operator: lx.AbstractLinearOperator, steps: int, key: PRNGKeyArray
) -> Spectrum:
    """Lanczos quadrature with 4 probes, in the protocol "spectra"."""
    return lanczos_quadrature(operator, key, steps=steps, probes=4)


def single_probe_lanczos(
    operator: lx.AbstractLinearOperator, steps: int, key: PRNGKeyArray
) -> Spectrum:
    """Lanczos quadrature with one probe: as many nodes for a quarter of the products."""
    return lanczos_quadrature(operator, key, steps=steps, probes=1)


class HessianSpectrum(Problem):
    """The spectrum of a model's Hessian; the truth is the dense matrix's.

    The error is the Wasserstein-1 distance between the distributions of eigenvalues, relative to
    the largest; work is products with the Hessian.
    """

    objective: Objective
    eigenvalues: Float[Array, " d"]
    name: str = "hessian spectrum"
    dtype: ClassVar[str] = "float32"
    error_name: ClassVar[str] = "Wasserstein distance"
    work_name: ClassVar[str] = "products"
    protocol: ClassVar[str] = "spectra"

    def dials(self, method: Any) -> Sequence[int]:
        return (2, 5, 10, 20, 40)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        return method, Steps(int(dial))

    def apply(self, standin: Any, *, key: Any) -> Any:
        method, steps = standin
        hessian = Hessian(self.objective)
        operator = lx.FunctionLinearOperator(
            counted(hessian.mv, "products"), hessian.in_structure(), lx.symmetric_tag
        )
        found = method(operator, steps.count, key)
        return found.nodes, found.weights

    def errors(self, value: Any) -> Mapping[str, float]:
        nodes, weights = (np.asarray(v, np.float64) for v in value)
        exact = np.asarray(self.eigenvalues, np.float64)
        distance = _wasserstein(nodes.ravel(), weights.ravel() / len(nodes), exact)
        top = abs(nodes.max() - exact[-1]) / abs(exact[-1])
        return {"Wasserstein distance": distance / abs(exact).max(), "largest eigenvalue": top}


class Steps(eqx.Module):
    """A number of steps, which decides shapes and so is no array."""

    count: int = eqx.field(static=True)


def _wasserstein(nodes: np.ndarray, weights: np.ndarray, exact: np.ndarray) -> float:
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(nodes, exact, np.maximum(weights, 0)))


def softmax_regression(samples: int = 256, seed: int = 0) -> HessianSpectrum:
    """Softmax regression on some of the digits, 650 parameters, at random weights."""
    data = digits(seed)
    inputs = jnp.asarray(data.train_inputs[:samples], jnp.float32)
    targets = jnp.asarray(data.train_targets[:samples])
    model = eqx.nn.Linear(inputs.shape[1], 10, key=jax.random.key(seed))
    objective = Objective.of(model, CrossEntropy(), inputs, targets)
    dense = np.asarray(jax.jit(lambda o: Hessian(o).as_matrix())(objective), np.float64)
    exact = jnp.asarray(np.linalg.eigvalsh(dense), jnp.float32)
    return HessianSpectrum(objective=objective, eigenvalues=exact)
