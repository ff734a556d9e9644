"""Jacobi, SOR, SSOR: against their matrices; the iterations against theory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.linear import grids
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.operators import StencilOperator
from nearly.linear.relaxation import Jacobi, Sor, Ssor, optimal_factor
from nearly.linear.stationary import Stationary
from nearly.linear.wavefront import skew, unskew, wavefront_weights

BOX = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def box_with_obstacle() -> StencilOperator:
    draw = jax.random.normal(jax.random.key(0), (9, 6, 5), "float64")
    mask = jnp.ones((6, 5), bool).at[2:4, 1:3].set(False)
    return StencilOperator(draw.at[4].add(10), BOX, (6, 5), mask=mask)


def dense_operator() -> lx.AbstractLinearOperator:
    draw = jax.random.normal(jax.random.key(3), (8, 8), "float64")
    return lx.MatrixLinearOperator(draw @ draw.T + 8 * jnp.eye(8), lx.positive_semidefinite_tag)


OPERATORS = {
    "line": lambda: grids.laplacian((9,), "float64"),
    "square": lambda: grids.laplacian((5, 7), "float64"),
    "cube": lambda: grids.laplacian((3, 5, 4), "float64"),
    "obstacles": lambda: grids.poisson_with_obstacles((9, 8), jax.random.key(1)),
    "wind": lambda: grids.convection_diffusion2d(5),
    "box": box_with_obstacle,
    "dense": dense_operator,
}


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("omega", [1.0, 1.4])
def test_preconditioners_are_the_inverses_of_their_matrices(name: str, omega: float) -> None:
    operator = OPERATORS[name]()
    a = np.asarray(operator.as_matrix())
    diagonal, lower, upper = np.diag(np.diag(a)), np.tril(a, -1), np.triu(a, 1)
    ssor = (diagonal + omega * lower) @ np.linalg.inv(diagonal) @ (diagonal + omega * upper)
    matrices = {
        Jacobi(omega): diagonal / omega,
        Sor(omega): diagonal / omega + lower,
        Ssor(omega): ssor / (omega * (2 - omega)),
    }
    vector = jax.random.normal(jax.random.key(5), operator.in_structure().shape, "float64")
    for make, matrix in matrices.items():
        found = np.asarray(make(operator).mv(vector)).ravel()
        np.testing.assert_allclose(found, np.linalg.solve(matrix, np.ravel(vector)), atol=1e-12)


def test_symmetric_preconditioners_are_symmetric_and_say_so() -> None:
    operator = grids.poisson_with_obstacles((6, 5), jax.random.key(1))
    for make in (Jacobi(), Ssor(1.5)):
        inverse = make(operator)
        assert lx.is_positive_semidefinite(inverse)
        matrix = np.asarray(inverse.as_matrix())
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-14)
        assert np.linalg.eigvalsh(matrix).min() > 0
    sweep = Sor(1.5)(operator)
    assert not lx.is_symmetric(sweep)
    np.testing.assert_allclose(sweep.transpose().as_matrix(), sweep.as_matrix().T, atol=1e-14)
    assert not lx.is_positive_semidefinite(Ssor()(grids.convection_diffusion2d(4)))


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 4, 3)])
@pytest.mark.parametrize("weight", [1, 2])
def test_skewing_puts_each_point_on_its_wavefront(shape: tuple[int, ...], weight: int) -> None:
    weights = (weight,) * (len(shape) - 1) + (1,)
    u = np.arange(1.0, 1 + math.prod(shape)).reshape(shape)
    skewed = np.asarray(skew(jnp.asarray(u), weights))
    for point in np.ndindex(*shape):
        assert skewed[(np.dot(weights, point), *point[:-1])] == u[point]
    assert np.count_nonzero(skewed) == u.size
    np.testing.assert_array_equal(unskew(jnp.asarray(skewed), weights, shape), u)


def test_wavefronts_are_as_few_as_the_stencil_allows() -> None:
    five = grids.poisson2d(4).offsets
    assert wavefront_weights(five, 2) == (1, 1)
    assert wavefront_weights(BOX, 2) == (2, 1)
    cube = tuple((i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1))
    assert wavefront_weights(cube, 3) == (4, 2, 1)


def iterations(operator: Any, solver: Any, seed: int = 0) -> int:
    side = jax.random.normal(jax.random.key(seed), operator.in_structure().shape, "float64")
    solution = lx.linear_solve(operator, side, solver)
    left = jnp.linalg.norm(operator.mv(solution.value) - side) / jnp.linalg.norm(side)
    assert float(left) <= 1.01 * solver.rtol
    assert float(solution.stats["residual_norm"]) == pytest.approx(
        float(left * jnp.linalg.norm(side)), rel=1e-3
    )
    return int(solution.stats["num_steps"])


def test_stationary_iterations_converge_as_theory_says() -> None:
    # On the square of n * n points Jacobi contracts by beta = cos(pi / (n + 1)), Gauss and Seidel
    # by its square, SOR with Young's factor by omega - 1.
    operator = grids.poisson2d(15)
    beta = math.cos(math.pi / 16)
    best = float(optimal_factor(beta))
    assert best == pytest.approx(2 / (1 + math.sin(math.pi / 16)))
    jacobi = iterations(operator, Stationary(1e-10, preconditioner=Jacobi()))
    seidel = iterations(operator, Stationary(1e-10, preconditioner=Sor(1.0)))
    sor = iterations(operator, Stationary(1e-10, preconditioner=Sor(best)))
    assert jacobi == pytest.approx(10 * math.log(10) / -math.log(beta), rel=0.15)
    assert seidel == pytest.approx(jacobi / 2, rel=0.05)
    assert sor < 2 * 10 * math.log(10) / -math.log(best - 1)
    assert sor < seidel / 6


def test_ssor_takes_conjugate_gradients_from_order_n_to_its_square_root() -> None:
    plain, relaxed = ConjugateGradient(1e-8), {}
    for n in (16, 64):
        omega = 2 / (1 + math.sin(math.pi / (n + 1)))
        relaxed[n] = iterations(
            grids.poisson2d(n), ConjugateGradient(1e-8, preconditioner=Ssor(omega))
        )
    assert relaxed[64] < 2.6 * relaxed[16]  # 2 is the square root of 4
    assert relaxed[64] < iterations(grids.poisson2d(64), plain) / 5


def test_what_is_no_relaxation_factor_is_refused() -> None:
    for make in (Jacobi, Sor, Ssor):
        with pytest.raises(InputError, match="above 0"):
            make(-0.1)
    with pytest.raises(InputError, match="singular"):
        Ssor(2.0)
    Sor(jnp.asarray(-1.0))  # an array may be a tracer: it is the caller's business
