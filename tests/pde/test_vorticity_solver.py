"""Navier-Stokes by vorticity: an exact solution, orders, invariants, the Courant number."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.datasets.random_fields import gaussian_random_field
from nearly.pde.exponential import Scheme, crank_nicolson_heun, etdrk4
from nearly.pde.metrics import divergence_time, relative_l2
from nearly.pde.spectral_grid import SpectralGrid
from nearly.pde.vorticity import KolmogorovForcing, NavierStokes2D, diagonal_forcing, integrate

FREE = NavierStokes2D(1e-3, forcing=None)


def coordinates(n: int, length: float = 1.0) -> tuple[jax.Array, ...]:
    return SpectralGrid((n, n), (length, length), jnp.dtype(jnp.float64)).points()


def random_vorticity(n: int) -> jax.Array:
    key = jax.random.key(3)
    field = gaussian_random_field(key, (n, n), alpha=4.0, tau=7.0, sigma=7.0**3, dtype=jnp.float64)
    return field / jnp.abs(field).max() * 4


def test_taylor_and_green_decay_at_their_rate() -> None:
    with jax.enable_x64(True):
        x, y = coordinates(16)
        start = jnp.cos(2 * math.pi * x) * jnp.cos(2 * math.pi * y)
        found = integrate(FREE, start, dt=0.1, steps=10, scheme=etdrk4)[-1]
        # The nonlinear term of this flow vanishes: two modes of |k|^2 = 8 pi^2.
        np.testing.assert_allclose(found, math.exp(-8e-3 * math.pi**2) * start, atol=1e-13)


def test_a_moving_taylor_green_flow_is_advected_by_its_mean() -> None:
    with jax.enable_x64(True):
        x, y = coordinates(16)
        u, v = FREE.velocity(jnp.cos(2 * math.pi * x) * jnp.cos(4 * math.pi * y))
        k, m = 2 * math.pi, 4 * math.pi
        psi = 1 / (k**2 + m**2)
        np.testing.assert_allclose(u, -m * psi * jnp.cos(k * x) * jnp.sin(m * y), atol=1e-14)
        np.testing.assert_allclose(v, k * psi * jnp.sin(k * x) * jnp.cos(m * y), atol=1e-14)


def test_a_steady_forced_flow_stays() -> None:
    with jax.enable_x64(True):
        length = 2 * math.pi
        flow = NavierStokes2D(0.5, forcing=KolmogorovForcing(2), drag=0.1, length=length)
        _, y = coordinates(16, length)
        # Shear alone advects nothing: damping (nu k^2 + drag) balances -k cos(k y).
        still = -2 * jnp.cos(2 * y) / (0.5 * 4 + 0.1)
        found = integrate(flow, still, dt=0.05, steps=20)[-1]
        np.testing.assert_allclose(found, still, atol=1e-13)


@pytest.mark.parametrize(
    "scheme, order, steps", [(crank_nicolson_heun, 2, 40), (etdrk4, 4, 20)], ids=["cn", "etdrk4"]
)
def test_the_time_order(scheme: Scheme, order: int, steps: int) -> None:
    with jax.enable_x64(True):
        flow, start = NavierStokes2D(2e-3), random_vorticity(24)

        def last(n: int, scheme: Scheme = scheme) -> jax.Array:
            return integrate(flow, start, dt=1 / n, steps=n, every=n, scheme=scheme)[-1]

        truth = last(640, etdrk4)
        errors = [float(relative_l2(last(k * steps), truth)) for k in (1, 2, 4)]
        assert abs(math.log2(errors[0] / errors[2]) / 2 - order) < 0.3
        assert errors[2] > 1e-12


def test_the_space_order_is_spectral() -> None:
    with jax.enable_x64(True):
        flow = NavierStokes2D(1e-2)

        def last(n: int) -> jax.Array:
            x, y = (2 * math.pi * each for each in coordinates(n))
            start = 8 * jnp.cos(x) * jnp.cos(2 * y) + 5 * jnp.sin(x + y)
            return integrate(flow, start, dt=0.02, steps=25, every=25, scheme=etdrk4)[-1]

        truth = last(48)
        errors = [float(relative_l2(last(n), truth[:: 48 // n, :: 48 // n])) for n in (12, 24)]
        assert errors[1] < errors[0] / 100  # halving the step gains 4 at order 2, 64 at order 6


def test_without_viscosity_energy_and_enstrophy_stay() -> None:
    with jax.enable_x64(True):
        ideal = NavierStokes2D(0.0, forcing=None)
        grid = SpectralGrid((24, 24), (1.0, 1.0), jnp.dtype(jnp.float64))
        full = grid.transform(random_vorticity(24))
        start = grid.values(jnp.where(grid.below(2 / 3), full, 0))
        found = integrate(ideal, start, dt=0.005, steps=40, scheme=etdrk4)[-1]
        for square in (lambda w: jnp.sum(w**2), lambda w: jnp.sum(ideal.velocity(w) ** 2)):
            np.testing.assert_allclose(square(found), square(start), rtol=1e-8)
        assert float(relative_l2(found, start)) > 0.05  # it moved


def test_the_mean_follows_that_of_the_forcing() -> None:
    with jax.enable_x64(True):
        start = random_vorticity(16)
        pushed = NavierStokes2D(1e-3, forcing=lambda x, y: diagonal_forcing(x, y) + 0.5)
        found = integrate(pushed, start, dt=0.01, steps=10)[-1]
        np.testing.assert_allclose(found.mean(), start.mean() + 0.05, atol=1e-12)


def test_gradients_against_differences() -> None:
    with jax.enable_x64(True):
        start = random_vorticity(16)

        def enstrophy(viscosity: jax.Array) -> jax.Array:
            flow = NavierStokes2D(viscosity)
            return jnp.sum(integrate(flow, start, dt=0.02, steps=4, every=4)[-1] ** 2)

        at, h = jnp.asarray(1e-2), 1e-6
        difference = (enstrophy(at + h) - enstrophy(at - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(enstrophy)(at), difference, rtol=1e-6)


def test_the_courant_number_and_the_step_it_forbids() -> None:
    with jax.enable_x64(True):
        x, y = coordinates(32)
        start = 8 * math.pi**2 * jnp.cos(2 * math.pi * x) * jnp.cos(2 * math.pi * y)
        # psi = cos cos: |u| + |v| is largest, 2 pi, where one of them vanishes.
        assert float(FREE.courant_number(start, 0.01)) == pytest.approx(0.01 * 2 * math.pi * 32)
        with pytest.raises(InputError, match=r"2\.01 cells a step.*use dt <= 0\.0024"):
            integrate(FREE, start, dt=0.01, steps=10)
        assert jnp.isfinite(integrate(FREE, start, dt=0.0024, steps=10)).all()


def test_a_step_that_could_not_be_checked_reports_its_divergence() -> None:
    with jax.enable_x64(True):
        start = 100 * random_vorticity(16)
        run = jax.jit(lambda w: integrate(FREE, w, dt=0.2, steps=60))
        when = float(divergence_time(run(start), 0.2))
        assert 0 < when <= 12


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"viscosity=-1\.0"):
        NavierStokes2D(-1.0)
    with pytest.raises(InputError, match="must have 2 axes"):
        integrate(FREE, jnp.zeros(8), dt=0.1, steps=1)
