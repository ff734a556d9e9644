"""The layer finds least-squares weights block by block; its gradients are the minimiser's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.operators.constraint import (
    HardConstraint,
    NonlinearDiffusion,
    differentiated,
    physics_loss,
)
from nearly.operators.problems.sorption import Sorption, initial_values, reference_solution

LINEAR = NonlinearDiffusion(retardation=0.0)
POINTS = 8


@pytest.fixture(autouse=True)
def double_precision() -> Any:
    with jax.enable_x64(True):
        yield


def smooth_basis(count: int = 3, points: int = POINTS) -> Any:
    x = np.linspace(0, 1, points)[:, None]
    t = np.linspace(0, 1, points)
    shapes = [np.exp(-k * t) * np.cos(k * x) + x**k + 0.3 for k in range(1, count + 1)]
    return jnp.asarray(np.stack(shapes))


def initial(points: int = POINTS) -> Any:
    return jnp.asarray(np.exp(-3 * np.linspace(0, 1, points) ** 2))


# ---- derivatives


def test_differences_are_exact_on_quadratics_up_to_the_ends() -> None:
    x, t = np.linspace(0, 1, 7)[:, None], np.linspace(0, 1, 5)
    found = differentiated(jnp.asarray(3 * x**2 - x + 2 * t**2 + 0 * x))
    np.testing.assert_allclose(found.x, 6 * x - 1 + 0 * t, atol=1e-12)
    np.testing.assert_allclose(found.xx, 6 + 0 * x * t, atol=1e-10)
    np.testing.assert_allclose(found.t, 4 * t + 0 * x, atol=1e-12)


def test_second_differences_at_the_ends_are_exact_on_cubics() -> None:
    x = np.linspace(0, 1, 9)[:, None]
    found = differentiated(jnp.asarray(x**3 + np.zeros(4)))
    np.testing.assert_allclose(found.xx[jnp.array([0, -1])], [[0.0] * 4, [6.0] * 4], atol=1e-10)


# ---- the layer


def least_squares(basis: Any, rows: slice, columns: slice, damping: float) -> np.ndarray:
    """The weights of one block of the linear equation, by NumPy."""
    terms = differentiated(basis)
    inside = np.asarray(terms.t - 0.25 * terms.xx)[:, rows, columns].reshape(len(basis), -1)
    outside = [terms.value[:, 0, :], terms.x[:, -1, :], terms.value[:, :, 0]]
    matrix = np.concatenate([inside, *outside, damping * np.eye(len(basis))], axis=1).T
    right = np.concatenate(
        [np.zeros(inside.shape[1]), np.ones(POINTS), np.zeros(POINTS), initial(), [0.0] * 3]
    )
    return np.linalg.lstsq(matrix, right)[0]


@pytest.mark.parametrize("blocks", [(1, 1), (1, 4), (2, 2)])
def test_weights_are_those_of_least_squares_on_each_block(blocks: tuple[int, int]) -> None:
    layer = HardConstraint(LINEAR, blocks, damping=1e-2, tolerance=1e-10)
    basis = smooth_basis()
    found = layer(basis, initial())
    assert not found.failed.any()
    high, wide = POINTS // blocks[0], POINTS // blocks[1]
    expected = [
        least_squares(basis, slice(i, i + high), slice(j, j + wide), 1e-2)
        for i in range(0, POINTS, high)
        for j in range(0, POINTS, wide)
    ]
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6, atol=1e-8)


def test_blocks_are_put_back_where_they_were_cut() -> None:
    layer = HardConstraint(LINEAR, (2, 4))
    field = jnp.arange(POINTS * POINTS, dtype=float).reshape(1, POINTS, POINTS)
    np.testing.assert_array_equal(layer._joined(layer._cut(field)[:, 0]), field[0])


def test_a_basis_that_holds_the_solution_finds_it() -> None:
    # 1 - e^(-c t) sin(pi x / 2) satisfies the linear equation and both ends.
    layer = HardConstraint(LINEAR, (1, 2), damping=1e-8, tolerance=1e-10)
    points = 32
    x, t = np.linspace(0, 1, points)[:, None], np.linspace(0, 1, points)
    exact = 1 - np.exp(-0.25 * (np.pi / 2) ** 2 * t) * np.sin(np.pi * x / 2)
    others = smooth_basis(2, points)
    basis = jnp.concatenate([others, jnp.asarray([exact])])
    found = layer(basis, jnp.asarray(exact[:, 0]))
    np.testing.assert_allclose(found.terms.value, exact, atol=2e-3)  # the differences' own error


def test_the_jump_is_that_of_the_seam() -> None:
    layer = HardConstraint(NonlinearDiffusion(), (1, 2))
    basis = smooth_basis()
    found = layer(basis, initial())
    gap = np.abs((found.weights[1] - found.weights[0]) @ basis[:, :, 4]).max()
    assert gap > 0
    np.testing.assert_allclose(found.jump, gap)
    assert HardConstraint(NonlinearDiffusion())(basis, initial()).jump == 0


def test_gradients_are_those_of_the_minimiser() -> None:
    layer = HardConstraint(NonlinearDiffusion(), (1, 2), damping=1e-2, tolerance=1e-13)
    basis, start = smooth_basis(), initial()
    direction = jnp.sin(jnp.arange(basis.size, dtype=float)).reshape(basis.shape)

    def loss(size: Any) -> Any:
        found = layer(basis + size * direction, start)
        return physics_loss(layer.equation, found.terms, start)

    value = jax.jit(jax.grad(loss))(0.0)
    h = 1e-4
    both = jax.jit(loss)
    np.testing.assert_allclose(value, (both(h) - both(-h)) / (2 * h), rtol=1e-4)


def test_solves_that_do_not_converge_are_counted() -> None:
    layer = HardConstraint(NonlinearDiffusion(), (1, 4), max_steps=1)
    found = layer(smooth_basis(), initial())
    assert found.failed.all()
    assert np.isfinite(found.terms.value).all()


def test_the_power_has_a_derivative_at_and_below_zero() -> None:
    rate = jax.vmap(jax.value_and_grad(NonlinearDiffusion().rate))
    values, slopes = rate(jnp.array([-1.0, 0.0, 1e-7, 0.5]))
    assert np.isfinite(values).all() and np.isfinite(slopes).all()


# ---- the problem


def test_the_reference_solver_converges_to_the_exact_solution() -> None:
    errors = []
    for points in (9, 17, 33):
        x = np.linspace(0, 1, points)
        start = 1 - 0.8 * np.sin(np.pi * x / 2)
        found = reference_solution(LINEAR, start, np.linspace(0, 1, 5))
        exact = 1 - 0.8 * np.sin(np.pi * x / 2) * np.exp(-0.25 * (np.pi / 2) ** 2)
        errors.append(np.abs(found[:, -1] - exact).max())
    rates = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(rates, 2, atol=0.2)


def test_initial_values_suit_the_ends_and_depend_on_the_key_alone() -> None:
    coarse = initial_values(jax.random.key(3), 9)
    fine = initial_values(jax.random.key(3), 33)
    np.testing.assert_allclose(coarse, fine[::4])
    assert coarse[0] == 1
    assert 0 <= coarse[-1] <= 0.2
    assert abs(fine[-1] - fine[-2]) < 1e-3


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match=r"blocks=\(1, 3\) do not divide the grid \[8, 8\]"):
        HardConstraint(LINEAR, (1, 3))(smooth_basis(), initial())
    with pytest.raises(InputError, match="damping=0 and tolerance"):
        HardConstraint(LINEAR, damping=0)
    with pytest.raises(InputError, match="a grid of 3 points is too coarse"):
        differentiated(jnp.zeros((3, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("method", catalogue.methods("physics-informed-maps"))
def test_every_method_trains(method: str) -> None:
    problem = Sorption(points=8, basis=4, width=4, modes=2, batch=2, tests=2)
    trained = problem.trained(catalogue.method(method, problem.protocol)[0], 12, jax.random.key(0))
    assert trained.status == "done"
    assert trained.losses[-3:].mean() < trained.losses[:3].mean()
    value = problem.apply(trained.model, key=jax.random.key(0))
    assert problem.errors(value)["relative L2"] < 2
