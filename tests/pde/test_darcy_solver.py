"""Finite volumes for Darcy flow: exact cases, order, the direct solver, gradients, errors."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.datasets.random_fields import gaussian_random_field
from nearly.pde.darcy import faces, solve_darcy, solve_darcy_direct


def rough(n: int, m: int) -> jax.Array:
    field = gaussian_random_field(
        jax.random.key(0), (n, m), alpha=2.0, tau=3.0, boundary="neumann", dtype=jnp.float64
    )
    return jnp.where(field > 0, 12.0, 3.0)


def centres(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = (np.arange(n) + 0.5) / n
    x, y = np.meshgrid(x, x, indexing="ij")
    return x, y


def test_the_iteration_finds_what_the_direct_solver_finds() -> None:
    with jax.enable_x64(True):
        coefficient = rough(20, 28)
        source = jax.random.normal(jax.random.key(1), (20, 28), jnp.float64)
        found = solve_darcy(coefficient, source)
        direct = solve_darcy_direct(np.asarray(coefficient), np.asarray(source))
        np.testing.assert_allclose(found, direct, atol=1e-9 * np.abs(direct).max())
        residual = faces(coefficient)(jnp.asarray(direct)) - source
        assert float(jnp.abs(residual).max()) < 1e-10


def test_layers_across_the_flow_are_exact() -> None:
    with jax.enable_x64(True):
        layers = jnp.where(jnp.arange(16) < 8, 1.0, 10.0)
        operator = faces(jnp.broadcast_to(layers[:, None], (16, 4)))
        # Fluxes between cells are those of resistances in a row, 1/2 h / 1 + 1/2 h / 10.
        np.testing.assert_allclose(operator.x[8] / 16**2, 2 / (1 + 1 / 10), rtol=1e-14)
        np.testing.assert_allclose(operator.x[0] / 16**2, 2.0)
        np.testing.assert_allclose(operator.y[3, 1] / 4**2, 1.0)


def test_the_space_order_is_two_with_a_smooth_coefficient() -> None:
    errors: list[float] = []
    for n in (16, 32, 64):
        x, y = centres(n)
        pi, sx, sy = math.pi, np.sin(math.pi * x), np.sin(math.pi * y)
        a, exact = 1 + x * y, sx * sy
        slope = y * pi * np.cos(pi * x) * sy + x * pi * sx * np.cos(pi * y)
        found = solve_darcy_direct(a, 2 * pi**2 * a * exact - slope)
        errors.append(float(np.sqrt(np.mean((found - exact) ** 2))))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(np.abs(orders - 2) < 0.1)


def test_it_is_linear_in_the_source_and_inverse_in_the_coefficient() -> None:
    with jax.enable_x64(True):
        coefficient = rough(12, 12)
        one = solve_darcy(coefficient)
        np.testing.assert_allclose(solve_darcy(2 * coefficient, 6.0), 3 * one, rtol=1e-8)
        np.testing.assert_allclose(solve_darcy(coefficient.T), one.T, rtol=1e-8)
        assert float(one.min()) > 0


def test_gradients_against_differences_and_batches() -> None:
    with jax.enable_x64(True):
        coefficient = rough(8, 8)

        def total(a: jax.Array, f: jax.Array) -> jax.Array:
            return jnp.sum(solve_darcy(a, f, rtol=1e-13) ** 2)

        source = jnp.ones((8, 8))
        by_a, by_f = jax.jit(jax.grad(total, argnums=(0, 1)))(coefficient, source)
        bump = jnp.zeros((8, 8)).at[2, 5].set(1e-4)
        difference = (total(coefficient + bump, source) - total(coefficient - bump, source)) / 2e-4
        np.testing.assert_allclose(by_a[2, 5], difference, rtol=1e-6)
        difference = (total(coefficient, source + bump) - total(coefficient, source - bump)) / 2e-4
        np.testing.assert_allclose(by_f[2, 5], difference, rtol=1e-6)
        both = jnp.stack([coefficient, 2 * coefficient.T])
        batched = jax.vmap(solve_darcy)(both)
        np.testing.assert_allclose(batched[1], solve_darcy(both[1]), rtol=1e-8)


def test_single_precision() -> None:
    with jax.enable_x64(True):
        coefficient = rough(16, 16)
        found = solve_darcy(coefficient.astype(jnp.float32))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, solve_darcy(coefficient), rtol=2e-5)


@pytest.mark.parametrize(
    "coefficient, message",
    [
        (jnp.zeros((4, 4)), "least value 0 must be positive"),
        (jnp.full((4, 4), jnp.inf), "16 of 16 values that are not finite"),
        (jnp.ones((1, 4)), "2 cells a side"),
    ],
)
def test_errors_name_the_value_and_the_remedy(coefficient: jax.Array, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve_darcy(coefficient)
    with pytest.raises(InputError, match=message):
        solve_darcy_direct(np.asarray(coefficient, np.float64))


def test_an_iteration_that_does_not_converge_says_so() -> None:
    hard = jnp.where(jnp.arange(256).reshape(16, 16) % 3 == 0, 1e6, 1e-6).astype(jnp.float32)
    with pytest.raises(InputError, match="did not converge: raise rtol=1e-15"):
        solve_darcy(hard, rtol=1e-15)
