"""Markov approximation of fractional Brownian motion: moments, covariances, driven equations."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma

from nearly.core.errors import InputError
from nearly.dynamics.brownian import GridBrownianPath
from nearly.dynamics.fractional import (
    KINDS,
    MarkovFractionalBrownian,
    fractional_terms,
    markov_fractional,
)

# What is not compiled as a whole is compiled operation by operation, which takes far longer.
made = jax.jit(markov_fractional, static_argnames=("size", "horizon", "fastest", "kind"))


@eqx.filter_jit
def exactly(noise: MarkovFractionalBrownian, s: Any, t: Any) -> Any:
    return noise.exact_covariance(s, t)


HORIZON = 2.0
GRID = np.linspace(0.05, HORIZON, 40)


@pytest.fixture(scope="module")
def approximate() -> Any:
    with jax.enable_x64(True):
        yield jax.jit(
            lambda h, kind: markov_fractional(h, 6, HORIZON, fastest=100.0, kind=kind),
            static_argnames="kind",
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hurst", [0.2, 0.5, 0.8])
def test_weights_are_the_best_there_are(approximate: Any, kind: str, hurst: float) -> None:
    """The error's gradient in the weights is zero when the moments come from quadrature."""
    with jax.enable_x64(True):
        noise = approximate(hurst, kind=kind)
        speeds, weights = np.asarray(noise.speeds), np.asarray(noise.weights)
    a = hurst + 0.5

    def together(g: float, t: float) -> float:
        """E[(Y(t) - Y(0)) B(t)], by the kernels."""
        inner = quad(lambda u: np.exp(-g * u), 0, t, weight="alg", wvar=(a - 1, 0))[0]
        if kind == "stationary":
            near = quad(_past, 0, 1, (g, t, a, 0.0), weight="alg", wvar=(a - 1, 0))[0]
            far = quad(_past, 0, 1, (g, t, a, 1.0))[0]
            inner += near + far + quad(_past, 1, np.inf, (g, t, a, 2.0))[0]
        return inner / gamma(a)

    def spread(g: float) -> np.ndarray:
        """The integral over time of E[Y_g Y_j] for all j."""
        s = g + speeds
        fade = [-np.expm1(-c * HORIZON) / c for c in (s, np.full_like(s, g), speeds)]
        if kind == "stationary":
            return (2 * HORIZON - fade[1] - fade[2]) / s
        return (HORIZON - fade[0]) / s

    for g in (speeds[0], speeds[3]):
        b = quad(lambda t, g=g: together(g, t), 0, HORIZON, epsabs=1e-9, limit=100)[0]
        assert spread(g) @ weights == pytest.approx(b, rel=1e-6)


def _past(v: float, g: float, t: float, a: float, part: float) -> float:
    """What the noise before time 0 adds; split so that the singular factor can be a weight."""
    push = np.exp(-g * (t + v)) - np.exp(-g * v)
    if part == 0.0:
        return -push
    if part == 1.0:
        return push * (t + v) ** (a - 1)
    return push * ((t + v) ** (a - 1) - v ** (a - 1))


def test_exact_covariances() -> None:
    with jax.enable_x64(True):
        for hurst in (0.15, 0.5, 0.85):
            a, s, t = hurst + 0.5, 0.7, 1.9
            noise = made(hurst, size=2)
            # Known by Gauss's function: the integral of (s - u)^(a-1) (t - u)^(a-1) from 0 to s.
            truth = s**a * t ** (a - 1) / a * mpmath.hyp2f1(1 - a, 1, 1 + a, s / t) / gamma(a) ** 2
            assert exactly(noise, s, t) == pytest.approx(float(truth), rel=1e-8)
            variance = t ** (2 * hurst) / (2 * hurst * gamma(a) ** 2)
            assert exactly(noise, t, t) == pytest.approx(variance, rel=1e-6)
            stationary = made(hurst, size=2, kind="stationary")
            tail = quad(lambda v, a=a: ((1 + v) ** (a - 1) - v ** (a - 1)) ** 2, 0, np.inf)[0]
            variance = (tail + 1 / (2 * hurst)) / gamma(a) ** 2
            assert exactly(stationary, 1.0, 1.0) == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_covariances_converge_and_the_error_is_their_difference(kind: Any) -> None:
    with jax.enable_x64(True):
        s, t = np.meshgrid(GRID, GRID)

        @partial(jax.jit, static_argnums=(1, 2))
        def gap(hurst: Any, size: int, fastest: float) -> Any:
            noise = markov_fractional(hurst, size, HORIZON, fastest=fastest, kind=kind)
            exact = noise.exact_covariance(s, t)
            difference = jnp.max(jnp.abs(noise.covariance(s, t) - exact))
            return difference / exact[-1, -1], noise.relative_error()

        for hurst in (0.3, 0.5, 0.7):
            (few, error), (many, least) = gap(hurst, 4, 30.0), gap(hurst, 14, 1e5)
            assert many < min(0.01, few)
            assert -1e-9 < least < error < 0.1


def test_half_is_brownian_motion_and_the_hurst_index_can_be_learned() -> None:
    with jax.enable_x64(True):
        brownian = made(0.5, size=14, fastest=1e5)
        covariance = eqx.filter_jit(brownian.covariance)(0.3, 0.8)
        np.testing.assert_allclose(covariance, 0.3, rtol=0.01)

        @jax.jit
        @jax.value_and_grad
        def deviation(h: Any) -> Any:
            return markov_fractional(h, 4, fastest=30.0, kind="stationary").covariance(0.4, 1.0)

        slope = (deviation(0.7 + 1e-5)[0] - deviation(0.7 - 1e-5)[0]) / 2e-5
        assert deviation(0.7)[1] == pytest.approx(float(slope), rel=1e-5)


def test_far_speeds_do_not_overflow() -> None:
    @jax.jit
    def found(hurst: Any) -> Any:
        noise = markov_fractional(hurst, 12, fastest=1e6, kind="stationary")
        return noise.weights, noise.relative_error()

    with jax.enable_x64(True):
        weights, error = jax.tree.map(np.asarray, found(0.3))
    assert np.all(np.isfinite(weights))
    assert error < 0.01


def test_a_driven_equation_has_its_covariance() -> None:
    """X = B, and an Ornstein-Uhlenbeck drift of zero: variances along a solve of 2000 paths."""
    count = 2000
    times = np.array([0.5, 0.5, 1.0]), np.array([0.5, 1.0, 1.0])

    @jax.jit
    def solved(key: Any) -> Any:
        noise = markov_fractional(0.7, 3, fastest=10.0)
        path = GridBrownianPath(key, 0.0, 1.0, 64, (count,))
        terms = fractional_terms(
            lambda t, x, args: jnp.zeros_like(x), lambda t, x, args: jnp.ones_like(x), noise, path
        )
        start = (jnp.zeros(count), jnp.zeros((3, count)))
        saved = dfx.SaveAt(ts=jnp.array([0.5, 1.0]))
        xs, ys = dfx.diffeqsolve(terms, dfx.Heun(), 0.0, 1.0, 1 / 64, start, saveat=saved).ys
        return xs, jnp.einsum("k,tkn->tn", noise.weights, ys), noise.covariance(*times)

    with jax.enable_x64(True):
        xs, summed, truth = jax.tree.map(np.asarray, solved(jax.random.key(0)))
    np.testing.assert_allclose(xs, summed, atol=1e-12)
    found = np.array([xs[0] @ xs[0], xs[0] @ xs[1], xs[1] @ xs[1]]) / count
    np.testing.assert_allclose(found, truth, rtol=0.13)


def test_a_control_moves_the_mean_and_pays_for_it() -> None:
    with jax.enable_x64(True):
        noise = made(0.6, size=3, fastest=10.0)
        still = GridBrownianPath(jax.random.key(0), 0.0, 1.0, 1)
        terms = fractional_terms(
            lambda t, x, args: -x,
            lambda t, x, args: jnp.zeros_like(x),
            noise,
            still,
            control=lambda t, state, args: args * jnp.ones_like(state[0]),
        )
        start = (jnp.ones(()), jnp.zeros(3), jnp.zeros(()))
        quiet = dfx.MultiTerm(terms.terms[0])
        x, y, kl = dfx.diffeqsolve(quiet, dfx.Dopri8(), 0.0, 1.0, 0.05, start, 0.8).ys
        np.testing.assert_allclose(x[-1], np.exp(-1), rtol=1e-6)
        np.testing.assert_allclose(y[-1], -0.8 * np.expm1(-noise.speeds) / noise.speeds, rtol=1e-6)
        np.testing.assert_allclose(kl[-1], 0.8**2 / 2, rtol=1e-12)


def test_stationary_starts_have_the_stationary_law() -> None:
    with jax.enable_x64(True):
        noise = made(0.3, size=3, fastest=5.0, kind="stationary")
        keys = jax.random.split(jax.random.key(0), 20_000)
        draws = eqx.filter_jit(lambda noise, keys: jax.vmap(noise.initial)(keys))(noise, keys)
    draws, speeds = np.asarray(draws), np.asarray(noise.speeds)
    truth = 1 / (speeds[:, None] + speeds)
    np.testing.assert_allclose(draws.T @ draws / 20_000, truth, rtol=0.06)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"hurst": 1.0}, "hurst=1.0 must lie between"),
        ({"size": 0}, "size=0: give at least 1"),
        ({"horizon": 0.0}, "horizon=0.0 must be positive"),
        ({"fastest": 1.0}, "fastest=1.0 must be above 1"),
    ],
)
def test_mistakes_name_value_and_remedy(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        markov_fractional(**({"hurst": 0.7} | fault))
