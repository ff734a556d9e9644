"""Sobolev descent: the discrete energy by hand, independence of the mesh, and non-convergence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from nearly.core.errors import InputError
from nearly.pde.problems.stationary import Cubic, Helmholtz
from nearly.pde.sobolev import (
    Lebesgue,
    Sobolev,
    SobolevDescent,
    VariationalDescent,
    descend,
    energy,
    sine_transform,
    stable_step,
)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_energys_derivative_is_the_difference_equation(dimensions: int) -> None:
    with jax.enable_x64(True):
        equation = Cubic(lower=(0.0,) * dimensions, upper=(1.0,) * dimensions)
        function, _ = energy(equation, 6)
        inner = jax.random.normal(jax.random.key(0), (6,) * dimensions, jnp.float64)
        found = jax.grad(function)(inner) / function.volume
        full = np.pad(np.asarray(inner), 1)  # the boundary values are zero
        middle = (slice(1, -1),) * dimensions
        laplacian = sum(
            (np.roll(full, 1, a) + np.roll(full, -1, a) - 2 * full)[middle] * 49
            for a in range(dimensions)
        )
        expected = -laplacian + np.asarray(inner) ** 3 - np.asarray(function.source)[middle]
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-9)


def test_boundary_data_enter_the_energy() -> None:
    class Shifted(Cubic):
        def exact(self, x: Any) -> Any:
            return 1 + x[0]

    with jax.enable_x64(True):
        equation = Shifted()
        found, _, ended = descend(equation, 15, VariationalDescent(step=0.5).solver)
        assert ended
        x = jnp.linspace(0.0, 1.0, 7)[:, None]
        np.testing.assert_allclose(found(x), 1 + x[:, 0], atol=1e-6)


def test_the_sine_transform_inverts_itself_and_the_laplacian() -> None:
    with jax.enable_x64(True):
        values = jax.random.normal(jax.random.key(1), (7, 5), jnp.float64)
        np.testing.assert_allclose(sine_transform(sine_transform(values, 0), 0), values, atol=1e-12)
        padded = np.pad(np.asarray(values), 1)
        minus = (
            2 * (1 / 0.1**2 + 1 / 0.2**2) * padded
            - (np.roll(padded, 1, 0) + np.roll(padded, -1, 0)) / 0.1**2
            - (np.roll(padded, 1, 1) + np.roll(padded, -1, 1)) / 0.2**2
        )[1:-1, 1:-1]
        inner = Sobolev((0.1, 0.2), 3.0)
        np.testing.assert_allclose(inner(jnp.asarray(minus) + 3 * values), values, atol=1e-12)


def test_iterations_do_not_grow_with_the_mesh() -> None:
    with jax.enable_x64(True):
        equation = Cubic(amplitude=3.0)
        counts = [descend(equation, n, VariationalDescent(step=0.3).solver)[1] for n in (15, 63)]
        assert abs(counts[0] - counts[1]) <= 2


def test_plain_descent_needs_the_square() -> None:
    with jax.enable_x64(True):
        equation = Cubic(amplitude=1.0)
        counts = [
            descend(
                equation,
                n,
                lambda e, n=n: SobolevDescent(0.4 / (n + 1) ** 2, Lebesgue(), e.volume),
            )[1]
            for n in (7, 15)
        ]
        assert 3 < counts[1] / counts[0] < 5


def test_it_is_an_optimistix_minimiser() -> None:
    with jax.enable_x64(True):
        function, _ = energy(Cubic(amplitude=1.0), 15)
        solver = SobolevDescent(0.9, Sobolev(function.spacing), function.volume)
        found = optx.minimise(function, solver, jnp.zeros(15, jnp.float64))
        rival = optx.minimise(function, optx.BFGS(1e-9, 1e-9), jnp.zeros(15, jnp.float64))
        np.testing.assert_allclose(found.value, rival.value, atol=1e-5)


def test_a_step_that_is_too_large_is_reported_with_one_that_is_not() -> None:
    with jax.enable_x64(True), pytest.raises(InputError, match="not converged after 200 steps"):
        VariationalDescent(step=0.09, most=200)(Cubic(), 31, key=None)


def test_the_stable_step_is_that_of_the_linearised_equation() -> None:
    """At u = c the Hessian in H^1 is 1 + 3 c^2 / lambda: largest for the lowest sine."""
    with jax.enable_x64(True):
        function, _ = energy(Cubic(), 63)
        constant = jnp.full(63, 2.0)
        lowest = (2 * 64 * np.sin(np.pi / 128)) ** 2
        found = stable_step(function, Sobolev(function.spacing), constant)
        np.testing.assert_allclose(found, 2 / (1 + 12 / lowest), rtol=1e-3)


def test_equations_without_an_energy_are_refused() -> None:
    with pytest.raises(InputError, match="no lagrangian"):
        energy(Helmholtz(waves=(1, 1)), 7)
    with pytest.raises(InputError, match="2 inner nodes"):
        energy(Cubic(), 2)
    with pytest.raises(InputError, match="shift=-1"):
        Sobolev((0.1,), -1.0)
    with pytest.raises(InputError, match="step=0"):
        VariationalDescent(step=0.0)
