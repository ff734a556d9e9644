"""Influence against the dense solve, against retraining, and against its own definition."""

from __future__ import annotations

from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from nearly.core.errors import InputError
from nearly.curvature.influence import (
    ConjugateGradients,
    LowRankQueries,
    conjugate_gradients,
    influence,
    lissa,
    precondition,
    proximal_bregman_response,
    tf_idf,
)
from nearly.curvature.kronecker import ekfac
from nearly.curvature.objective import CrossEntropy, Objective, SquaredError
from nearly.curvature.operators import damped, dense_gauss_newton, gauss_newton

KEY = jax.random.key(0)
DAMPING = 0.05


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def classifier() -> Objective:
    model = eqx.nn.MLP(3, 4, 6, 1, activation=jnp.tanh, key=KEY)
    inputs = jax.random.normal(jax.random.key(1), (30, 3), "float64")
    targets = jax.random.randint(jax.random.key(2), (30,), 0, 4)
    return Objective.of(model, CrossEntropy(), inputs, targets, chunk=7)


def queries(objective: Objective) -> jax.Array:
    return objective.gradients(objective.inputs[:3], objective.targets[:3])


def exact(objective: Objective) -> np.ndarray:
    gradients = np.asarray(objective.gradients(*objective.data))
    matrix = np.asarray(dense_gauss_newton(objective)) + DAMPING * np.eye(objective.dimension)
    return -np.asarray(queries(objective)) @ np.linalg.solve(matrix, gradients.T)


def test_conjugate_gradients_reach_the_dense_solve() -> None:
    objective = classifier()
    inverse = conjugate_gradients(objective, DAMPING, 60)
    found = influence(inverse, objective, queries(objective))
    np.testing.assert_allclose(found, exact(objective), atol=1e-9)


def test_conjugate_gradients_stop_at_the_solution() -> None:
    objective = classifier()
    zero = jax.tree.map(jnp.zeros_like, objective.parameters)
    inverse = conjugate_gradients(objective, DAMPING, 100)
    assert not np.any(ravel_pytree(inverse.mv(zero))[0])
    vector = jax.tree.map(jnp.ones_like, objective.parameters)
    assert np.all(np.isfinite(ravel_pytree(inverse.mv(vector))[0]))


def test_lissa_tends_to_the_dense_solve() -> None:
    objective = classifier()
    inverse = lissa(objective, DAMPING, steps=4000, key=KEY, batch=30)
    found = influence(inverse, objective, queries(objective))
    truth = exact(objective)
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.95


def test_a_linear_model_is_retrained_as_predicted() -> None:
    # Ridge regression: the response to one more weighted sample is known, and the influence is
    # its derivative.
    inputs = jax.random.normal(jax.random.key(1), (20, 3), "float64")
    targets = inputs @ jnp.asarray([[1.0], [-2.0], [0.5]]) + 0.3
    model = eqx.nn.Linear(3, 1, use_bias=False, key=KEY)
    design, response = np.asarray(inputs), np.asarray(targets)[:, 0]
    ridge = design.T @ design / 20 + DAMPING * np.eye(3)
    weights = np.linalg.solve(ridge, design.T @ response / 20)
    model = eqx.tree_at(lambda m: m.weight, model, jnp.asarray(weights)[None])
    objective = Objective.of(model, SquaredError(), inputs, targets)

    def trained(weight: float) -> np.ndarray:
        more = np.outer(design[4], design[4])
        right = design.T @ response / 20 + weight * design[4] * response[4]
        return np.linalg.solve(ridge + weight * more, right)

    def query_loss(w: np.ndarray) -> float:
        return 0.5 * float(design[0] @ w - response[0]) ** 2

    step = 1e-5
    expected = (query_loss(trained(step)) - query_loss(trained(-step))) / (2 * step)
    inverse = conjugate_gradients(objective, DAMPING, 10)
    found = influence(inverse, objective, objective.gradients(inputs[:1], targets[:1]))
    np.testing.assert_allclose(found[0, 4], expected, rtol=1e-6)


def test_the_proximal_response_is_the_influence_for_a_small_weight() -> None:
    objective = classifier()
    matrix = dense_gauss_newton(objective) + DAMPING * jnp.eye(objective.dimension)
    factor = jnp.linalg.cholesky(matrix)
    weight = 1e-4
    change, left = jax.jit(
        lambda x, t: proximal_bregman_response(objective, DAMPING, x, t, weight, factor, steps=20)
    )(objective.inputs[4], objective.targets[4])
    assert left < 1e-6
    found = queries(objective) @ change / weight
    np.testing.assert_allclose(found, exact(objective)[:, 4], rtol=1e-2, atol=1e-3)


def test_the_proximal_response_is_stationary_for_a_large_weight() -> None:
    objective = classifier()
    matrix = dense_gauss_newton(objective) + DAMPING * jnp.eye(objective.dimension)
    x, t = objective.inputs[4], objective.targets[4]
    change, left = jax.jit(
        lambda f: proximal_bregman_response(objective, DAMPING, x, t, 1.0, f, steps=40)
    )(jnp.linalg.cholesky(matrix))
    assert left < 1e-4
    # The sample's own loss falls, by more than nothing and less than all of it.
    flat, unflatten = ravel_pytree(objective.parameters)
    before = objective.sample_loss(objective.parameters, x, t)
    after = objective.sample_loss(unflatten(flat + change), x, t)
    assert 0 < after < before


def test_low_rank_queries_are_exact_at_full_rank_and_improve_with_rank() -> None:
    objective = classifier()
    inverse = ekfac(objective, key=KEY).damped().inverse()
    expected = influence(inverse, objective, queries(objective))
    ready = precondition(inverse, queries(objective))
    errors = [
        np.abs(LowRankQueries.of(objective, ready, rank).scores(objective) - expected).max()
        for rank in (1, 2, 32)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


def test_low_rank_queries_add_up_tokens() -> None:
    model = eqx.nn.Linear(3, 2, key=KEY)
    inputs = jax.random.normal(jax.random.key(1), (6, 5, 3), "float64")

    def predict(m: eqx.nn.Linear, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.tanh(jax.vmap(m)(x)), axis=0)

    objective = Objective.of(model, SquaredError(), inputs, jnp.zeros((6, 2)), predict=predict)
    vectors = jax.random.normal(KEY, (2, objective.dimension), "float64")
    expected = -vectors @ objective.gradients(*objective.data).T
    found = LowRankQueries.of(objective, vectors).scores(objective)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_progress_is_told() -> None:
    objective = classifier()
    seen: list[tuple[int, int]] = []
    inverse = ConjugateGradients(damped(gauss_newton(objective), 1.0), 2)
    influence(inverse, objective, queries(objective), lambda d, t, _: seen.append((d, t)))
    assert seen == [(i + 1, 5) for i in range(5)]


def test_tf_idf_prefers_rare_shared_tokens_and_short_documents() -> None:
    documents = [[1, 2, 3], [1, 1, 1], [4, 5, 6], [9, 2, 3], [9, 2, 3, 7, 7, 7, 7, 7]]
    scores = tf_idf([9, 1], documents)
    assert scores[2] == 0
    assert scores[3] > scores[4]
    # One token in one document of three, by hand: log(1 + 2.5/1.5) 2.5 / (1 + 1.5).
    (first, *_) = tf_idf([7], [[7], [8], [8]])
    np.testing.assert_allclose(first, np.log1p(2.5 / 1.5))


def test_errors_name_the_value_and_the_remedy() -> None:
    objective = classifier()
    with pytest.raises(InputError, match="rank = 0"):
        LowRankQueries.of(objective, queries(objective), 0)
    with pytest.raises(InputError, match="steps = 0"):
        conjugate_gradients(objective, DAMPING, 0)
    with pytest.raises(InputError, match="batch = 0"):
        lissa(objective, DAMPING, steps=1, batch=0, key=KEY)
    with pytest.raises(InputError, match="at least one document"):
        tf_idf([1], [])
