"""Incomplete factorisations, level scheduling, multigrid: against dense algebra and theory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
import scipy.sparse as sp

from nearly.core.errors import InputError
from nearly.linear import grids
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.incomplete import IncompleteCholesky, IncompleteLU
from nearly.linear.levels import LevelSolve
from nearly.linear.multigrid import Multigrid, coarsened, prolong, restrict
from nearly.linear.operators import SparseOperator, StencilOperator, as_scipy
from nearly.linear.relaxation import Sor, Ssor

DEFINITE = lx.positive_semidefinite_tag


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def irregular(size: int = 80) -> sp.csr_array:
    """A dominant symmetric matrix without any regular pattern, its first row full."""
    rng = np.random.default_rng(0)
    held = np.where(rng.random((size, size)) < 0.04, rng.normal(size=(size, size)), 0)
    held[0] = 0.1
    return sp.csr_array(held + held.T + size * np.eye(size))


def steps(operator: Any, inverse: Any, seed: int = 0) -> int:
    shape = operator.in_structure().shape
    side = jax.random.normal(jax.random.key(seed), shape, "float64")
    if isinstance(operator, StencilOperator):
        side = grids.kept_inside(operator, side)
    options = {"preconditioner": inverse}
    solution = lx.linear_solve(operator, side, ConjugateGradient(1e-8), options=options)
    left = jnp.linalg.norm(operator.mv(solution.value) - side) / jnp.linalg.norm(side)
    assert float(left) < 1.1e-8
    return int(solution.stats["num_steps"])


@pytest.mark.parametrize("upper", [False, True])
def test_level_substitution_is_exact_on_any_pattern(upper: bool) -> None:
    for matrix in (irregular(), sp.csr_array(as_scipy(grids.poisson2d(7))), sp.eye_array(5)):
        strict = sp.csr_array(sp.triu(matrix, 1) if upper else sp.tril(matrix, -1))
        diagonal = np.linspace(1, 2, matrix.shape[0])
        right = np.random.default_rng(1).normal(size=matrix.shape[0])
        found = LevelSolve(strict, jnp.asarray(diagonal))(jnp.asarray(right))
        expected = np.linalg.solve(strict.toarray() + np.diag(diagonal), right)
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_sweeps_through_sparse_matrices_are_those_of_the_matrix() -> None:
    matrix = irregular()
    operator = SparseOperator.from_scipy(matrix, tags=DEFINITE)
    a = matrix.toarray()
    right = np.random.default_rng(1).normal(size=len(a))
    lower = np.diag(np.diag(a)) / 1.3 + np.tril(a, -1)
    swept = Sor(1.3)(operator).mv(jnp.asarray(right))
    np.testing.assert_allclose(swept, np.linalg.solve(lower, right), rtol=1e-10)
    back = np.linalg.solve(lower.T, (0.7 / 1.3) * np.diag(a) * np.linalg.solve(lower, right))
    np.testing.assert_allclose(Ssor(1.3)(operator).mv(jnp.asarray(right)), back, rtol=1e-10)


@pytest.mark.parametrize("make", [IncompleteCholesky(), IncompleteLU()])
@pytest.mark.parametrize("structured", [True, False])
def test_incomplete_factors_agree_with_the_matrix_on_its_pattern(
    make: Any, structured: bool
) -> None:
    # This is what defines them: no fill, and L L^T = A (or L U = A) wherever A has an entry.
    grid = grids.poisson2d(6)
    operator = grid if structured else SparseOperator.from_scipy(irregular(), tags=DEFINITE)
    a = np.asarray(operator.as_matrix())
    product = np.linalg.inv(np.asarray(make(operator).as_matrix()))
    np.testing.assert_allclose(product[a != 0], a[a != 0], atol=1e-11)
    if structured:  # and it is not the complete factor
        assert np.abs(product - a).max() > 0.1


def test_incomplete_factors_of_a_tridiagonal_matrix_are_complete() -> None:
    symmetric = grids.laplacian((9,), "float64")
    for operator, make in (
        (symmetric, IncompleteCholesky()),
        (StencilOperator(jnp.asarray([4.0, -1, -2]), ((0,), (-1,), (1,)), (9,)), IncompleteLU()),
    ):
        inverse = np.asarray(make(operator).as_matrix())
        np.testing.assert_allclose(inverse @ operator.as_matrix(), np.eye(9), atol=1e-12)


def test_incomplete_cholesky_shifts_where_a_pivot_fails() -> None:
    # Positive definite, but its incomplete factorisation breaks down (Kershaw's example).
    kershaw = np.array([[3.0, -2, 0, 2], [-2, 3, -2, 0], [0, -2, 3, -2], [2, 0, -2, 3]])
    assert np.linalg.eigvalsh(kershaw).min() > 0
    operator = SparseOperator.from_scipy(kershaw, tags=DEFINITE)
    inverse = np.asarray(IncompleteCholesky()(operator).as_matrix())
    assert np.linalg.eigvalsh(inverse).min() > 0
    product = np.linalg.inv(inverse)
    excess = np.diag(product) / np.diag(kershaw) - 1
    np.testing.assert_allclose(excess, excess[0], rtol=1e-8)  # a multiple of the diagonal
    assert 0 < excess[0] < 1


def test_incomplete_cholesky_saves_iterations() -> None:
    operator = grids.poisson_with_obstacles((32, 32), jax.random.key(0))
    plain = steps(operator, lx.IdentityLinearOperator(operator.in_structure()))
    assert steps(operator, IncompleteCholesky()(operator)) < plain / 2


@pytest.mark.parametrize("shape", [(9, 8), (5, 4, 7), (7,)])
def test_coarse_operators_are_galerkin_products(shape: tuple[int, ...]) -> None:
    operator = grids.laplacian(shape, "float64")
    coarse = tuple(n // 2 for n in shape)
    size, small = int(np.prod(shape)), int(np.prod(coarse))
    units = jnp.eye(small).reshape(small, *coarse)
    up = jax.vmap(lambda u: prolong(u, shape))(units).reshape(small, size).T
    down = jax.vmap(lambda u: restrict(u, coarse))(jnp.eye(size).reshape(size, *shape))
    np.testing.assert_allclose(down.reshape(size, small), up)
    found = coarsened(operator, tuple(range(len(shape)))).as_matrix()
    np.testing.assert_allclose(found, up.T @ operator.as_matrix() @ up, atol=1e-12)


def test_interpolation_is_linear_between_coarse_points_and_the_boundary() -> None:
    line = prolong(jnp.asarray([2.0, 4.0]), (5,))
    np.testing.assert_array_equal(line, [1, 2, 3, 4, 2])
    np.testing.assert_array_equal(prolong(jnp.asarray([2.0, 4.0]), (4,)), [1, 2, 3, 4])


def test_the_cycle_is_symmetric_and_definite() -> None:
    operator = grids.poisson_with_obstacles((13, 12), jax.random.key(5))
    inverse = Multigrid(sweeps=2)(operator)
    assert lx.is_positive_semidefinite(inverse)
    matrix = np.asarray(inverse.as_matrix())
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-13)
    assert np.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda n: grids.poisson_with_obstacles((n, n), jax.random.key(0)),
        pytest.param(lambda n: grids.poisson2d(n), marks=pytest.mark.slow),
        pytest.param(lambda n: grids.poisson2d(n - 1), marks=pytest.mark.slow),
        pytest.param(lambda n: grids.anisotropic2d(n, 0.01), marks=pytest.mark.slow),
        pytest.param(lambda n: grids.laplacian((n // 4,) * 3, "float64"), marks=pytest.mark.slow),
    ],
)
def test_multigrid_iterations_do_not_grow_with_the_grid(make: Any) -> None:
    found = [steps(make(n), Multigrid()(make(n))) for n in (32, 64)]
    assert found[1] <= found[0] + 2
    assert found[1] <= 14


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Multigrid()(SparseOperator.from_scipy(np.eye(3))), "structured grid"),
        (lambda: Multigrid()(grids.convection_diffusion2d(9)), "positive definite"),
        (lambda: Multigrid(sweeps=0), "0 smoothing"),
        (lambda: Multigrid(damping=1.5), "1.5"),
        (
            lambda: jax.jit(lambda a: Multigrid()(a).mv(jnp.ones((12, 12))))(grids.poisson2d(12)),
            "outside of jit",
        ),
        (lambda: IncompleteCholesky()(grids.convection_diffusion2d(3)), "IncompleteLU"),
        (
            lambda: IncompleteCholesky()(
                SparseOperator.from_scipy(np.array([[1.0, 2], [2, -1]]), tags=DEFINITE)
            ),
            "not positive",
        ),
        (lambda: IncompleteCholesky(shift=2.0), "shift of 2.0"),
        (lambda: IncompleteLU()(SparseOperator.from_scipy(1 - np.eye(2))), "pivot"),
    ],
)
def test_what_cannot_be_set_up_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
