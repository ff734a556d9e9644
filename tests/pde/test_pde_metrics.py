"""Metrics on cases solved by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.pde.metrics import (
    correlation,
    correlation_time,
    divergence_time,
    geometric_mean,
    is_finite,
    relative_h1,
    relative_l2,
    rollout_error,
    spectrum,
)


def test_relative_l2_and_its_derivative_where_there_is_no_error() -> None:
    truth = jnp.asarray([3.0, 4.0])
    assert float(relative_l2(truth + jnp.asarray([0.0, 1.0]), truth)) == pytest.approx(0.2)
    assert float(relative_l2(truth, truth)) < 1e-18
    np.testing.assert_array_equal(jax.grad(relative_l2)(truth, truth), jnp.zeros(2))


def test_relative_h1_of_waves() -> None:
    with jax.enable_x64(True):
        x = jnp.arange(32) / 16  # a box of length 2
        truth, error = jnp.sin(math.pi * x)[None], 0.1 * jnp.cos(3 * math.pi * x)[None]
        expected = 0.1 * math.sqrt((1 + 9 * math.pi**2) / (1 + math.pi**2))
        found = relative_h1(truth + error, truth, length=2.0)
        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_relative_h1_by_differences() -> None:
    with jax.enable_x64(True):
        x = (jnp.arange(8) + 0.5) / 8
        truth, error = jnp.ones((1, 8)), (0.5 * x)[None]
        expected = math.sqrt(0.25 * float(jnp.mean(x**2)) + 0.25)
        found = relative_h1(truth + error, truth, periodic=False)
        assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(16,), (15,), (8, 6), (7, 9)])
def test_the_spectrum_adds_up_to_the_mean_square(shape: tuple[int, ...]) -> None:
    with jax.enable_x64(True):
        field = jax.random.normal(jax.random.key(0), shape, jnp.float64)
        assert float(spectrum(field).sum()) == pytest.approx(float(jnp.mean(field**2)))


def test_the_spectrum_of_waves() -> None:
    with jax.enable_x64(True):
        x, y = jnp.meshgrid(jnp.arange(16) / 16, jnp.arange(12) / 12, indexing="ij")
        found = spectrum(2 + jnp.cos(2 * math.pi * (3 * x + 4 * y)) + jnp.sin(4 * math.pi * x))
        expected = np.zeros(len(found))
        expected[[0, 2, 5]] = 4, 0.5, 0.5
        np.testing.assert_allclose(found, expected, atol=1e-14)


def test_correlation_ignores_mean_and_scale() -> None:
    truth = jax.random.normal(jax.random.key(0), (3, 1, 64))
    prediction = jnp.stack([2 * truth[0] + 1, -truth[1], jnp.zeros((1, 64))])
    np.testing.assert_allclose(correlation(prediction, truth), [1, -1, 0], atol=1e-6)


def test_correlation_time_interpolates_the_first_crossing() -> None:
    a = jnp.asarray([1.0, -1.0, 1.0, -1.0])
    b = jnp.asarray([1.0, 1.0, -1.0, -1.0])  # orthogonal to a
    truth = jnp.stack([a] * 4)
    mixed = 0.6 * a + 0.8 * b  # correlation 0.6
    later = jnp.stack([a, mixed, a, a])
    # From 1 at time 2 to 0.6 at time 4: 0.8 is half way.
    assert float(correlation_time(later, truth, 2.0)) == pytest.approx(3.0, rel=1e-5)
    assert float(correlation_time(truth, truth, 2.0)) == pytest.approx(8.0)
    at_once = jnp.stack([mixed, a, a, a])
    assert float(correlation_time(at_once, truth, 2.0)) == pytest.approx(1.0, rel=1e-5)
    broken = jnp.stack([a, a * jnp.nan, a, a])
    assert float(correlation_time(broken, truth, 2.0)) == pytest.approx(2.4, rel=1e-5)
    with pytest.raises(InputError, match=r"threshold=1\.5"):
        correlation_time(truth, truth, 2.0, threshold=1.5)


def test_divergence_time_and_rollout_errors() -> None:
    calm = jnp.ones((4, 3))
    broken = calm.at[2, 1].set(jnp.nan)
    assert math.isinf(float(divergence_time(calm, 0.5)))
    assert float(divergence_time(broken, 0.5)) == 1.5
    assert float(divergence_time(calm.at[1].set(100.0), 0.5, bound=10.0)) == 1.0
    np.testing.assert_array_equal(is_finite(broken), [True, True, False, True])
    np.testing.assert_allclose(rollout_error(broken, calm), [0, 0, jnp.inf, jnp.inf], atol=1e-15)


def test_the_geometric_mean() -> None:
    assert float(geometric_mean(jnp.asarray([1e-4, 1e-2]))) == pytest.approx(1e-3)
