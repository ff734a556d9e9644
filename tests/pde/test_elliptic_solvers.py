"""Fast Helmholtz solvers and exact propagators: eigenfunctions, orders, invariants, errors."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.pde.elliptic import solve_helmholtz
from nearly.pde.propagators import advection, heat, wave

PI = math.pi


def grid(n: int, boundary: str, length: float = 1.0) -> jax.Array:
    return (jnp.arange(n) + (0.0 if boundary == "periodic" else 0.5)) * (length / n)


def mode(x: jax.Array, boundary: str, length: float = 1.0) -> tuple[jax.Array, float]:
    """An eigenfunction and its wave number."""
    if boundary == "periodic":
        return jnp.sin(4 * PI / length * x + 0.3), 4 * PI / length
    function = jnp.sin if boundary == "dirichlet" else jnp.cos
    return function(3 * PI / length * x), 3 * PI / length


BOUNDARIES = pytest.mark.parametrize("boundary", ["periodic", "dirichlet", "neumann"])


@BOUNDARIES
def test_eigenfunctions_are_solved_exactly(boundary: str) -> None:
    with jax.enable_x64(True):
        (f, k), (g, m) = (
            mode(grid(16, boundary, 2.0), boundary, 2.0),
            mode(grid(20, boundary), boundary),
        )
        exact = f[:, None] * g
        found = solve_helmholtz(
            (1.7**2 - k**2 - m**2) * exact,
            1.7,
            length=(2.0, 1.0),
            boundary=boundary,  # pyright: ignore
        )
        np.testing.assert_allclose(found, exact, atol=1e-12)


@BOUNDARIES
def test_second_differences_have_order_two(boundary: str) -> None:
    with jax.enable_x64(True):
        errors: list[float] = []
        for n in (16, 32, 64):
            exact, k = mode(grid(n, boundary), boundary)
            found = solve_helmholtz(
                (1 - k**2) * exact,
                1.0,
                boundary=boundary,  # pyright: ignore
                accuracy="second-order",
            )
            errors.append(float(jnp.abs(found - exact).max()))
        assert np.all(np.abs(np.log2(np.divide(errors[:-1], errors[1:])) - 2) < 0.1)


def test_finite_volumes_are_what_second_differences_say() -> None:
    with jax.enable_x64(True):
        source = jax.random.normal(jax.random.key(0), (9,), jnp.float64)
        matrix = 2 * np.eye(9) - np.eye(9, k=1) - np.eye(9, k=-1)
        matrix[0, 0] = matrix[-1, -1] = 3  # half a cell to the boundary
        direct = np.linalg.solve(-81 * matrix + 4 * np.eye(9), source)
        found = solve_helmholtz(source, 2.0, accuracy="second-order")
        np.testing.assert_allclose(found, direct, atol=1e-13)


def test_the_gradient_in_the_wave_number() -> None:
    with jax.enable_x64(True):
        source = jax.random.normal(jax.random.key(0), (8, 8), jnp.float64)

        def size(k: jax.Array) -> jax.Array:
            return jnp.sum(solve_helmholtz(source, k) ** 2)

        at, h = jnp.asarray(2.0), 1e-5
        np.testing.assert_allclose(
            jax.grad(size)(at), (size(at + h) - size(at - h)) / (2 * h), rtol=1e-7
        )


def test_a_resonance_and_sources_that_are_not_finite_are_refused() -> None:
    with jax.enable_x64(True):
        with pytest.raises(InputError, match="is a resonance"):
            solve_helmholtz(jnp.ones(16), 2 * PI)
        with pytest.raises(InputError, match="not finite"):
            solve_helmholtz(jnp.full(16, jnp.nan))
        with pytest.raises(InputError, match="must be finite"):
            solve_helmholtz(jnp.ones(16), math.inf)


def test_a_periodic_mean_that_poissons_equation_cannot_have_is_left_out() -> None:
    with jax.enable_x64(True):
        source = jnp.sin(2 * PI * grid(16, "periodic")) + 5
        found = solve_helmholtz(source, boundary="periodic")
        np.testing.assert_allclose(found, -(source - 5) / (4 * PI**2), atol=1e-14)


@BOUNDARIES
def test_heat_decays_each_mode_at_its_rate(boundary: str) -> None:
    with jax.enable_x64(True):
        f, k = mode(grid(16, boundary, 2.0), boundary, 2.0)
        found = heat(f, 0.7, diffusivity=0.1, length=2.0, boundary=boundary)  # pyright: ignore
        np.testing.assert_allclose(found, math.exp(-0.07 * k**2) * f, atol=1e-14)
        twice = heat(heat(f, 0.3, boundary=boundary), 0.4, boundary=boundary)  # pyright: ignore
        np.testing.assert_allclose(twice, heat(f, 0.7, boundary=boundary), atol=1e-14)  # pyright: ignore


@BOUNDARIES
def test_waves_swing_each_mode_and_run_back(boundary: str) -> None:
    with jax.enable_x64(True):
        f, k = mode(grid(16, boundary), boundary)
        moved, rate = wave(f, 2 * f, 0.3, speed=2.0, boundary=boundary)  # pyright: ignore
        w = 2 * k
        expected = (math.cos(0.3 * w) + 2 * math.sin(0.3 * w) / w) * f
        np.testing.assert_allclose(moved, expected, atol=1e-13)
        start, speed = wave(moved, rate, -0.3, speed=2.0, boundary=boundary)  # pyright: ignore
        np.testing.assert_allclose(start, f, atol=1e-12)
        np.testing.assert_allclose(speed, 2 * f, atol=1e-11)


def test_a_wave_at_rest_keeps_drifting() -> None:
    with jax.enable_x64(True):
        moved, rate = wave(jnp.zeros(8), jnp.ones(8), 1.5)
        np.testing.assert_allclose(moved, 1.5 * jnp.ones(8), atol=1e-14)
        np.testing.assert_allclose(rate, jnp.ones(8), atol=1e-14)


def test_advection_shifts_between_points() -> None:
    with jax.enable_x64(True):
        x = grid(32, "periodic")

        def bump(x: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.exp(jnp.sin(2 * PI * x) + jnp.cos(2 * PI * y))

        found = advection(bump(x[:, None], x), 0.3, velocity=jnp.asarray([0.5, -1.0]))
        np.testing.assert_allclose(found, bump(x[:, None] - 0.15, x + 0.3), atol=1e-12)
        whole = advection(jnp.arange(8.0), 2 / 8)
        np.testing.assert_allclose(whole, jnp.roll(jnp.arange(8.0), 2), atol=1e-13)


def test_times_can_be_mapped_over() -> None:
    with jax.enable_x64(True):
        f, k = mode(grid(16, "periodic"), "periodic")
        times = jnp.asarray([0.0, 1e-3, 2e-3])
        found = jax.vmap(lambda t: heat(f, t))(times)
        np.testing.assert_allclose(found, jnp.exp(-(k**2) * times)[:, None] * f, atol=1e-14)


def test_propagators_refuse_what_cannot_be_solved() -> None:
    with pytest.raises(InputError, match=r"time=-1\.0"):
        heat(jnp.ones(8), -1.0)
    with pytest.raises(InputError, match="2 numbers for a field with 1 axes"):
        heat(jnp.ones(8), 1.0, length=(1.0, 2.0))
