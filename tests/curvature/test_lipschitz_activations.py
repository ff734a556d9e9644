"""Lines of activations: sound on a dense grid, tight, and at any slope."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.curvature.lipschitz import activations

ALL = [
    activations.relu,
    activations.leaky_relu(0.2),
    activations.tanh,
    activations.sigmoid,
    activations.softplus,
    activations.silu,
    activations.elu,
    activations.gelu,
    activations.gelu_tanh,
    activations.identity,
]
INTERVALS = np.array(
    [[-2, 1], [-1, 2], [-5, -1], [0.5, 4], [-0.01, 0.02], [-8, 9], [0, 3], [-3, 0], [1, 1], [-2, 2]]
)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def grid(steps=401):
    t = np.linspace(0, 1, steps)
    return INTERVALS[:, :1] + t * (INTERVALS[:, 1:] - INTERVALS[:, :1])


@pytest.mark.parametrize("activation", ALL, ids=lambda a: a.name)
def test_lines_enclose_and_touch(activation):
    lower, upper = jnp.asarray(INTERVALS.T)
    z = grid()
    value = np.asarray(activation.function(jnp.asarray(z)))
    random = np.random.default_rng(0).uniform(-0.5, 1.5, (2, len(lower)))
    for slopes in (None, (jnp.asarray(random[0]), jnp.asarray(random[1]))):
        a, b, c, d = (np.asarray(part)[:, None] for part in activation.lines(lower, upper, slopes))
        assert np.all(a * z + b <= value) and np.all(value <= c * z + d)
        # Each line touches the function somewhere, up to the grid's step.
        reach = 0.01 * (INTERVALS[:, 1] - INTERVALS[:, 0]) + 1e-12
        assert np.all(np.min(value - a * z - b, axis=1) <= reach)
        assert np.all(np.min(c * z + d - value, axis=1) <= reach)


@pytest.mark.parametrize("activation", ALL, ids=lambda a: a.name)
def test_ranges_are_those_of_a_grid(activation):
    lower, upper = jnp.asarray(INTERVALS.T)
    wide = INTERVALS[:, 1] > INTERVALS[:, 0]
    z = jnp.asarray(grid()[:, 1:-1])  # inside: a kink at an end is not attained on an open set
    slope = np.asarray(jax.vmap(jax.vmap(jax.grad(activation.function)))(z))
    least, most = map(np.asarray, activation.derivative_range(lower, upper))
    assert np.all(least[:, None] <= slope + 1e-14) and np.all(slope <= most[:, None] + 1e-14)
    assert np.all((slope.min(axis=1) - least)[wide] < 0.05)
    assert np.all((most - slope.max(axis=1))[wide] < 0.05)
    low, high = map(np.asarray, activation.range(lower, upper))
    value = np.asarray(activation.function(jnp.asarray(grid())))
    np.testing.assert_allclose(low, value.min(axis=1), atol=1e-3)
    np.testing.assert_allclose(high, value.max(axis=1), atol=1e-3)


@pytest.mark.parametrize("activation", ALL, ids=lambda a: a.name)
def test_the_derivative_is_that_of_the_function_and_monotone_between_breaks(activation):
    z = jnp.linspace(-30.01, 30, 20001)
    slope = activation.derivative(z)
    assert slope.dtype == jnp.float64
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(activation.function))(z), atol=1e-12)
    edges = (-np.inf, *activation.breaks, np.inf)
    for left, right in pairwise(edges):
        inside = np.asarray(slope)[(np.asarray(z) > left) & (np.asarray(z) < right)]
        steps = np.diff(inside)
        assert np.all(steps >= -1e-12) or np.all(steps <= 1e-12)


def test_relu_has_the_published_lines():
    lower, upper = jnp.asarray([-2.0, -1.0, 1.0, -3.0]), jnp.asarray([1.0, 2.0, 2.0, -1.0])
    lines = activations.relu.lines(lower, upper)
    np.testing.assert_allclose(lines.lower_slope, [0, 1, 1, 0])
    np.testing.assert_allclose(lines.upper_slope, [1 / 3, 2 / 3, 1, 0])
    np.testing.assert_allclose(lines.upper_intercept, [2 / 3, 2 / 3, 0, 0], atol=1e-13)
    assert functools.reduce(max, np.abs(np.asarray(lines.lower_intercept))) < 1e-13
