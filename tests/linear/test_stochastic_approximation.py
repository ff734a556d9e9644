"""Linear stochastic approximation: closed forms against hand calculation and against simulation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.linear import stochastic_approximation as lsa

SCALAR = lsa.Discrete(np.array([[[-1.0]], [[3.0]]]), np.full(2, 0.5), np.zeros(1), np.eye(1))
PLANE = lsa.Discrete(
    np.array([[[2.0, 1.0], [0.0, 1.0]], [[1.0, -1.0], [0.5, 1.0]]]),
    np.array([0.25, 0.75]),
    np.array([1.0, -2.0]),
    np.array([[0.2, 0.1], [0.1, 0.3]]),
)


def test_without_noise_the_iteration_is_gradient_descent() -> None:
    matrix, target = jnp.asarray([[2.0, 0.5], [0.5, 1.0]]), jnp.asarray([1.0, -1.0])
    draw = lambda key: (matrix, matrix @ target)  # noqa: E731
    result = lsa.simulate(draw, jnp.zeros(2), 0.1, steps=3, burn_in=1, key=jax.random.key(0))
    theta, seen = np.zeros(2), []
    for _ in range(3):
        theta = theta - 0.1 * np.asarray(matrix @ (theta - target))
        seen.append(theta)
    np.testing.assert_allclose(result.last, seen[-1], rtol=1e-6)
    np.testing.assert_allclose(result.average, np.mean(seen[1:], axis=0), rtol=1e-6)


def test_the_stationary_variance_by_hand() -> None:
    # alpha^2 / (1 - E(1 - alpha A)^2) = alpha / (2 - 5 alpha)
    for step in (0.3, 0.1, 0.01):
        found = lsa.stationary_covariance(SCALAR, step)
        np.testing.assert_allclose(found, [[step / (2 - 5 * step)]], rtol=1e-12)
    np.testing.assert_allclose(lsa.lyapunov_covariance(np.eye(1), np.eye(1)), [[0.5]])


def test_the_covariance_satisfies_its_equation_and_its_limit() -> None:
    step = 0.05
    s = lsa.stationary_covariance(PLANE, step)
    after = sum(
        p * (np.eye(2) - step * a) @ s @ (np.eye(2) - step * a).T
        for p, a in zip(PLANE.probabilities, PLANE.matrices, strict=True)
    )
    np.testing.assert_allclose(after + step**2 * PLANE.noise_covariance, s, rtol=1e-12)
    limit = lsa.lyapunov_covariance(PLANE.mean, PLANE.noise_covariance)
    small = lsa.stationary_covariance(PLANE, 1e-6) / 1e-6
    np.testing.assert_allclose(small, limit, rtol=1e-4)


def test_simulation_has_the_predicted_covariances() -> None:
    step, chains, steps = 0.05, 2000, 400
    run = jax.jit(
        jax.vmap(
            lambda key: lsa.simulate(
                PLANE.draw, jnp.asarray(PLANE.target), step, steps=steps, burn_in=100, key=key
            )
        )
    )
    result = run(jax.random.split(jax.random.key(0), chains))
    last = np.asarray(result.last) - PLANE.target
    predicted = lsa.stationary_covariance(PLANE, step)
    # Five standard errors of a variance.
    np.testing.assert_allclose(last.T @ last / chains, predicted, atol=0.16 * predicted.max())
    average = np.asarray(result.average) - PLANE.target
    expected = lsa.averaged_covariance(PLANE, step) / 300
    np.testing.assert_allclose(average.T @ average / chains, expected, atol=0.16 * expected.max())


def test_the_tail_index_by_hand() -> None:
    # 2^k / 9 + 8/9 (1/2)^k = 1 has u = 2^k with u^2 - 9 u + 8 = 0, u = 8.
    index = lsa.tail_index(np.array([2.0, -0.5]), np.array([1 / 9, 8 / 9]))
    np.testing.assert_allclose(index, 3.0, rtol=1e-9)
    assert lsa.tail_index(np.array([0.9, -0.5]), np.array([0.5, 0.5])) == np.inf


def test_moments_exist_up_to_the_tail_index() -> None:
    step = 0.2
    factors = 1 - step * SCALAR.matrices[:, 0, 0]
    index = lsa.tail_index(factors, SCALAR.probabilities)
    assert 2 < index < 4
    assert lsa.moment_growth(SCALAR, step, 2) < 1 < lsa.moment_growth(SCALAR, step, 4)
    np.testing.assert_allclose(lsa.moment_growth(SCALAR, step, 4), np.mean(factors**4), rtol=1e-12)


def test_hill_finds_the_index_of_a_pareto_sample() -> None:
    sample = np.random.default_rng(0).pareto(3.0, size=100_000) + 1
    assert abs(lsa.hill_estimator(sample, 2000) - 3.0) < 4 * 3.0 / 2000**0.5


def test_misuse_says_what_to_do() -> None:
    with pytest.raises(InputError, match="no stationary variance: take a smaller step"):
        lsa.stationary_covariance(SCALAR, 0.5)
    with pytest.raises(InputError, match="is not negative: the iteration diverges"):
        lsa.tail_index(np.array([2.0]), np.array([1.0]))
    with pytest.raises(InputError, match="burn_in 5 must be"):
        lsa.simulate(SCALAR.draw, jnp.zeros(1), 0.1, steps=5, burn_in=5, key=jax.random.key(0))
    with pytest.raises(InputError, match="must be positive and sum to 1"):
        lsa.Discrete(np.ones((1, 1, 1)), np.array([0.5]), np.zeros(1), np.eye(1))
    with pytest.raises(InputError, match="no step size makes the iteration converge"):
        lsa.Discrete(-np.ones((1, 1, 1)), np.ones(1), np.zeros(1), np.eye(1))
    with pytest.raises(InputError, match="order 3 must be even"):
        lsa.moment_growth(SCALAR, 0.1, 3)
    with pytest.raises(InputError, match="largest 9 must be"):
        lsa.hill_estimator(np.ones(9), 9)
