"""Small trained networks, and the exact damped Gauss-Newton matrix to judge inverses by."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from nearly import datasets
from nearly.core.errors import UnknownName
from nearly.core.tally import counted
from nearly.curvature.capture import call
from nearly.curvature.kronecker import RELATIVE_DAMPING
from nearly.curvature.objective import CrossEntropy, Objective, SquaredError
from nearly.curvature.operators import dense_gauss_newton, spread
from nearly.training import architectures, loop

DTYPE = "float64"
QUERIES = 20

counted_call = counted(call, "samples")


class Case(NamedTuple):
    """A trained model, query gradients, and the matrix that its inverses approximate."""

    objective: Objective
    damping: Any  # a pytree like the parameters
    queries: jax.Array  # gradients of the loss of test samples
    matrix: np.ndarray  # the dense Gauss-Newton matrix, damping included


class _Data(NamedTuple):
    model: Any
    loss: Any
    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    steps: int


def _tanh(seed: int) -> _Data:
    """300 points of a smooth function of 11 variables, a net of 12 tanh units."""
    inner, outer, noise, start = jax.random.split(jax.random.key(1000 + seed), 4)
    x = jax.random.normal(inner, (400, 11), DTYPE)
    a, b = jax.random.normal(outer, (2, 11), DTYPE) / 11**0.5
    y = jnp.sin(2 * x @ a) + 0.5 * (x @ b) ** 2
    y = (y + 0.1 * jax.random.normal(noise, y.shape, DTYPE))[:, None]
    model = architectures.mlp((11, 12, 1), start, jnp.tanh, 5 / 3, DTYPE)
    return _Data(model, SquaredError(), (x[:300], y[:300]), (x[300:], y[300:]), 500)


def _diabetes(seed: int) -> _Data:
    data = datasets.diabetes(seed)
    model = architectures.mlp((10, 16, 1), jax.random.key(seed), jnp.tanh, 5 / 3, DTYPE)
    train = jnp.asarray(data.train_inputs), jnp.asarray(data.train_targets)[:, None]
    test = jnp.asarray(data.test_inputs), jnp.asarray(data.test_targets)[:, None]
    return _Data(model, SquaredError(), train, test, 300)


def _digits(seed: int) -> _Data:
    data = datasets.digits(seed)
    model = architectures.mlp((64, 16, 10), jax.random.key(seed), jnp.tanh, 5 / 3, DTYPE)
    train = jnp.asarray(data.train_inputs), jnp.asarray(data.train_targets)
    test = jnp.asarray(data.test_inputs), jnp.asarray(data.test_targets)
    return _Data(model, CrossEntropy(), train, test, 400)


MODELS: dict[str, Callable[[int], _Data]] = {
    "tanh": _tanh,
    "diabetes": _diabetes,
    "digits": _digits,
}


@lru_cache(8)
def trained(model: str, seed: int = 0) -> tuple[Objective, tuple[jax.Array, jax.Array]]:
    """The objective at trained parameters, and the test samples; in float64.

    Adam at 3e-3 on batches of 64, a few hundred steps: stopped early, as models are.
    """
    if model not in MODELS:
        raise UnknownName("model", model, MODELS)
    with jax.enable_x64(True):
        data = MODELS[model](seed)
        fitted = fit(data.model, data.loss, data.train, seed, data.steps)
        objective = Objective.of(fitted, data.loss, *data.train, predict=counted_call)
        return objective, data.test


class _MeanLoss(eqx.Module):
    """The loss of a batch: a module, so that a second training reuses the compiled steps."""

    loss: Any

    def __call__(self, model: Any, batch: tuple[Any, Any], key: Any) -> Any:
        return jnp.mean(jax.vmap(self.loss)(jax.vmap(model)(batch[0]), batch[1]))


_OPTIMIZER = optax.adam(3e-3)


def fit(model: Any, loss: Any, data: tuple[Any, Any], seed: int, steps: int) -> Any:
    """A model trained as `trained` says."""
    key = jax.random.key(seed)
    done = loop.fit(
        _MeanLoss(loss), model, data, optimizer=_OPTIMIZER, steps=steps, key=key, batch=64
    )
    return done.model


@lru_cache(8)
def case(model: str, damping: float | None, seed: int = 0) -> Case:
    """A trained model with its damping: a number, or a tenth of each layer's mean eigenvalue."""
    objective, test = trained(model, seed)
    with jax.enable_x64(True):
        matrix = np.asarray(dense_gauss_newton(objective))
        amounts = (
            relative_damping(objective, matrix)
            if damping is None
            else spread(damping, objective.parameters)
        )
        diagonal = np.asarray(ravel_pytree(amounts)[0])
        queries = objective.gradients(*jax.tree.map(lambda x: x[:QUERIES], test))
        return Case(objective, amounts, queries, matrix + np.diag(diagonal))


def relative_damping(objective: Objective, matrix: np.ndarray) -> Any:
    """A tenth of the mean of each layer's eigenvalues, from the exact diagonal."""
    unflatten = ravel_pytree(objective.parameters)[1]
    capture = objective.capture()
    diagonal = capture.matrices(unflatten(jnp.asarray(np.diag(matrix))))
    amounts = {n: jnp.full(d.shape, RELATIVE_DAMPING * jnp.mean(d)) for n, d in diagonal.items()}
    return capture.parameters(objective.parameters, amounts)
