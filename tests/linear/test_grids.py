"""Stencil operators: products, transposes, lineax's questions; the operators of the grids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.core.tally import tally
from nearly.linear import grids
from nearly.linear.operators import CountedOperator, StencilOperator, bare, shift

BOX = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def variable(key: int = 0) -> StencilOperator:
    """A nine-point stencil whose coefficients differ from point to point, with an obstacle."""
    draw = jax.random.normal(jax.random.key(key), (9, 6, 5), "float64")
    mask = jnp.ones((6, 5), bool).at[2:4, 1:3].set(False)
    return StencilOperator(draw.at[4].add(10), BOX, (6, 5), mask=mask)


def laplacian_matrix(*shape: int) -> np.ndarray:
    """The second differences as a Kronecker sum."""
    total = np.zeros((1, 1))
    for n in shape:
        line = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
        total = np.kron(total, np.eye(n)) + np.kron(np.eye(len(total)), line)
    return total


@pytest.mark.parametrize("shape", [(7,), (4, 6), (3, 4, 5)])
def test_the_laplacian_is_the_kronecker_sum_of_second_differences(shape: tuple[int, ...]) -> None:
    operator = grids.laplacian(shape, "float64")
    np.testing.assert_array_equal(operator.as_matrix(), laplacian_matrix(*shape))


def test_weights_scale_the_axes() -> None:
    matrix = np.asarray(grids.anisotropic2d(4, 0.25).as_matrix())
    line = laplacian_matrix(4)
    np.testing.assert_allclose(matrix, np.kron(line, np.eye(4)) + 0.25 * np.kron(np.eye(4), line))


def test_obstacles_are_cut_out_and_keep_what_they_hold() -> None:
    operator = grids.poisson_with_obstacles((12, 10), jax.random.key(1), obstacles=3)
    assert operator.mask is not None
    free = np.asarray(operator.mask).ravel()
    assert 0 < (~free).sum() < free.size
    matrix, whole = np.asarray(operator.as_matrix()), laplacian_matrix(12, 10)
    np.testing.assert_array_equal(matrix[np.ix_(free, free)], whole[np.ix_(free, free)])
    np.testing.assert_array_equal(matrix[~free], np.eye(free.size)[~free])
    np.testing.assert_array_equal(matrix[:, ~free], np.eye(free.size)[:, ~free])


def test_variable_coefficients_are_read_at_the_row() -> None:
    operator = variable()
    matrix = np.asarray(operator.as_matrix()).reshape(6, 5, 6, 5)
    for k, (i, j) in enumerate(BOX):
        assert matrix[1, 3, 1 + i, 3 + j] == pytest.approx(
            float(operator.coefficients[k, 1, 3]) if operator.mask[1 + i, 3 + j] else 0.0
        )


@pytest.mark.parametrize("make", [variable, lambda: grids.convection_diffusion2d(5)])
def test_transposes_and_diagonals_are_those_of_the_matrix(make: Any) -> None:
    operator = make()
    matrix = np.asarray(operator.as_matrix())
    np.testing.assert_array_equal(operator.transpose().as_matrix(), matrix.T)
    np.testing.assert_array_equal(lx.diagonal(operator), np.diagonal(matrix))
    lower, upper = np.diagonal(matrix, -1), np.diagonal(matrix, 1)
    for found, true in zip(
        lx.tridiagonal(operator), (np.diagonal(matrix), lower, upper), strict=True
    ):
        np.testing.assert_array_equal(found, true)
    assert not lx.is_symmetric(operator)


def test_tags_answer_lineax() -> None:
    operator = grids.poisson2d(3)
    assert lx.is_symmetric(operator) and lx.is_positive_semidefinite(operator)
    assert not lx.is_diagonal(operator) and not lx.is_lower_triangular(operator)
    assert operator.transpose() is operator
    assert lx.linearise(operator) is operator and lx.materialise(operator) is operator
    np.testing.assert_array_equal(lx.conj(operator).as_matrix(), operator.as_matrix())


def test_central_differences_of_the_wind_leave_the_row_sums_zero_inside() -> None:
    operator = grids.convection_diffusion2d(5, peclet=0.8, angle=0.3)
    inside = np.asarray(operator.mv(jnp.ones((5, 5))))[1:-1, 1:-1]
    np.testing.assert_allclose(inside, 0, atol=1e-15)


def test_products_are_differentiable_in_the_coefficients_and_batch() -> None:
    operator = variable()
    u = jax.random.normal(jax.random.key(2), (3, 6, 5), "float64")

    def energy(coefficients: Any) -> Any:
        changed = StencilOperator(coefficients, BOX, (6, 5), mask=operator.mask)
        return jnp.sum(changed.mv(u[0]) * u[1])

    expected = [
        jnp.where(operator.mask, shift(jnp.where(operator.mask, u[0], 0), o) * u[1], 0) for o in BOX
    ]
    np.testing.assert_allclose(jax.grad(energy)(operator.coefficients), jnp.stack(expected))
    np.testing.assert_array_equal(jax.vmap(operator.mv)(u)[2], operator.mv(u[2]))


def test_counted_operators_answer_as_what_they_hold_and_count() -> None:
    inner = grids.poisson2d(3)
    operator = CountedOperator(lx.TaggedLinearOperator(inner, lx.symmetric_tag), "matvecs")
    assert bare(operator) is inner
    assert lx.is_positive_semidefinite(operator)
    with tally() as counts:
        operator.transpose().mv(operator.mv(jnp.ones((3, 3)))).block_until_ready()
    assert counts.read()["matvecs"] == 2


def test_smooth_sides_have_only_low_frequencies() -> None:
    side = np.asarray(grids.smooth_side((31, 31), jax.random.key(0)))
    points = np.arange(1, 32) / 32
    sines = np.sin(np.pi * np.outer(np.arange(1, 32), points)) * np.sqrt(2 / 32)
    spectrum = np.abs(sines @ side @ sines.T)
    assert spectrum[4:].max() < 1e-12 and spectrum[:4, :4].min() > 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: grids.laplacian((3, 3), "float64", weights=(1.0,)), "2 positive"),
        (lambda: StencilOperator(jnp.ones(2), ((0,), (0,)), (3,)), "different"),
        (lambda: StencilOperator(jnp.ones(2), ((0,), (3,)), (3,)), "reach across"),
        (lambda: StencilOperator(jnp.ones(1), ((),), ()), "positive sizes"),
        (lambda: grids.convection_diffusion2d(4, float("inf")), "Peclet"),
        (lambda: grids.obstacle_mask((4, 4), jax.random.key(0), obstacles=-1), "-1 obstacles"),
    ],
)
def test_what_is_no_grid_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
