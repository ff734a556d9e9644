"""Lanczos, Ritz pairs, conjugate gradients plain and flexible, deflation."""

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
from nearly.linear.conjugate_gradient import ConjugateGradient
from nearly.linear.deflation import Deflation
from nearly.linear.flexible_cg import FlexibleConjugateGradient
from nearly.linear.krylov import lanczos, lowest_ritz_vectors, projected_solve, ritz_pairs
from nearly.linear.operators import CountedOperator
from nearly.linear.relaxation import Sor, Ssor


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(shape: Any, seed: int = 0) -> Any:
    return jax.random.normal(jax.random.key(seed), shape, "float64")


def test_lanczos_is_orthonormal_and_tridiagonal_where_the_plain_recursion_is_not() -> None:
    spectrum = np.concatenate([np.linspace(0, 1, 90), [10.0, 100.0]])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(92, 92)))[0]
    matrix = (rotation * spectrum) @ rotation.T
    found = lanczos(lx.MatrixLinearOperator(jnp.asarray(matrix)), normal((92,)), 60)
    basis = np.asarray(found.basis)
    np.testing.assert_allclose(basis @ basis.T, np.eye(60), atol=1e-13)
    np.testing.assert_allclose(basis @ matrix @ basis.T, found.matrix, atol=1e-12)
    left = basis @ matrix - np.asarray(found.matrix) @ basis
    assert np.abs(left[:-1]).max() < 1e-12
    assert np.linalg.norm(left[-1]) == pytest.approx(float(found.residual_norm), rel=1e-9)
    values = np.asarray(ritz_pairs(found)[0])
    np.testing.assert_allclose(values[-2:], [10, 100], rtol=1e-12)
    assert np.sum(np.abs(values - 100) < 1) == 1  # no ghost


def test_all_steps_give_all_eigenpairs_even_of_a_degenerate_matrix() -> None:
    operator = grids.poisson2d(5)  # eigenvalues of multiplicity two: the Krylov space ends early
    values, vectors = ritz_pairs(lanczos(operator, normal((5, 5)), 25))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(operator.as_matrix()), atol=1e-12)
    images = jax.vmap(operator.mv)(vectors)
    np.testing.assert_allclose(images, values[:, None, None] * vectors, atol=1e-9)


def test_vectors_may_be_structures() -> None:
    matrix = {"a": jnp.diag(jnp.arange(1.0, 4)), "b": jnp.diag(jnp.arange(4.0, 6))}
    structure = {
        "a": jax.ShapeDtypeStruct((3,), "float64"),
        "b": jax.ShapeDtypeStruct((2,), "float64"),
    }
    operator = lx.FunctionLinearOperator(
        lambda v: {k: matrix[k] @ v[k] for k in v}, structure, lx.positive_semidefinite_tag
    )
    side = {"a": normal((3,)), "b": normal((2,), 1)}
    found = lanczos(operator, side, 5)
    np.testing.assert_allclose(ritz_pairs(found)[0], np.arange(1, 6), rtol=1e-12)
    for solved in (
        projected_solve(found, side),
        lx.linear_solve(operator, side, ConjugateGradient(1e-13)).value,
        lx.linear_solve(operator, side, FlexibleConjugateGradient(1e-13)).value,
    ):
        np.testing.assert_allclose(solved["a"], side["a"] / np.arange(1, 4), rtol=1e-10)
        np.testing.assert_allclose(solved["b"], side["b"] / np.arange(4, 6), rtol=1e-10)


def test_conjugate_gradients_are_the_projected_solves() -> None:
    operator, side = grids.poisson2d(8), normal((8, 8))
    for k in (3, 7):
        by_basis = projected_solve(lanczos(operator, side, k), side)
        solver = ConjugateGradient(0.0, max_steps=k)
        by_recursion = lx.linear_solve(operator, side, solver, throw=False).value
        np.testing.assert_allclose(by_recursion, by_basis, rtol=1e-9)


def test_with_a_linear_preconditioner_flexible_and_plain_iterates_agree() -> None:
    operator, side = grids.poisson_with_obstacles((9, 9), jax.random.key(2)), normal((9, 9))
    for k in (4, 9):
        one, other = (
            lx.linear_solve(
                operator, side, kind(0.0, preconditioner=Ssor(1.3), max_steps=k), throw=False
            ).value
            for kind in (ConjugateGradient, FlexibleConjugateGradient)
        )
        np.testing.assert_allclose(one, other, rtol=1e-8)


def test_anything_may_propose_directions() -> None:
    operator, side = grids.poisson2d(16), normal((16, 16))

    def proposes(operator: Any) -> Any:
        sweeps = Ssor(1.6)(operator)
        return lambda r: sweeps.mv(r) * (1 + 0.2 * jnp.sin(1e3 * r))  # not linear

    plain = lx.linear_solve(operator, side, ConjugateGradient(1e-8)).stats["num_steps"]
    steps = []
    for directions in (1, 8):
        solver = FlexibleConjugateGradient(1e-8, preconditioner=proposes, directions=directions)
        solution = lx.linear_solve(operator, side, solver)
        left = jnp.linalg.norm(operator.mv(solution.value) - side)
        assert float(left / jnp.linalg.norm(side)) < 1.01e-8
        steps.append(int(solution.stats["num_steps"]))
    assert steps[1] <= steps[0] < int(plain)


@pytest.mark.parametrize("proposal", [jnp.zeros_like, lambda r: jnp.nan * r])
def test_useless_proposals_become_steepest_descent_made_conjugate(proposal: Any) -> None:
    operator, side = CountedOperator(grids.poisson2d(6), "matvecs"), normal((6, 6))
    solver = FlexibleConjugateGradient(1e-6, preconditioner=lambda _: proposal)
    with tally() as counts:
        solution = lx.linear_solve(operator, side, solver)
        steps = int(solution.stats["num_steps"])
    assert float(solution.stats["residual_norm"]) <= 1e-6 * float(jnp.linalg.norm(side))
    assert counts.read()["matvecs"] == 2 * steps


def test_deflation_removes_the_lowest_eigenvalues_at_any_scale() -> None:
    operator, side = grids.poisson2d(24), normal((24, 24))
    vectors = lowest_ritz_vectors(operator, jax.random.key(0), steps=90, count=16)
    matrix = np.asarray(operator.as_matrix())
    inverse = np.asarray(Deflation(vectors)(operator).as_matrix())
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-12)
    flat = np.asarray(vectors).reshape(16, -1)
    np.testing.assert_allclose(inverse @ matrix @ flat.T, flat.T, atol=1e-9)
    plain = int(lx.linear_solve(operator, side, ConjugateGradient(1e-8)).stats["num_steps"])
    for scale in (1.0, 1e4):
        scaled = grids.laplacian((24, 24), "float64", weights=(scale, scale))
        solver = ConjugateGradient(1e-8, preconditioner=Deflation(vectors))
        steps = int(lx.linear_solve(scaled, side, solver).stats["num_steps"])
        assert steps < 0.7 * plain


@pytest.mark.parametrize("kind", [ConjugateGradient, FlexibleConjugateGradient])
def test_solutions_are_differentiable_both_ways_and_batch(kind: Any) -> None:
    operator, side = grids.poisson2d(5), normal((5, 5))
    solver = kind(1e-13, preconditioner=Ssor(1.2))

    def value(shift: Any, b: Any) -> Any:
        return jnp.sum(lx.linear_solve(operator.plus(shift), b, solver).value ** 2)

    shift = jnp.asarray(0.3)
    by_shift, by_side = jax.grad(value, (0, 1))(shift, side)
    a = np.asarray(operator.as_matrix()) + 0.3 * np.eye(25)
    x = np.linalg.solve(a, np.ravel(side))
    back = np.linalg.solve(a, 2 * x)
    np.testing.assert_allclose(by_shift, -back @ x, rtol=1e-9)
    np.testing.assert_allclose(by_side.ravel(), back, rtol=1e-8)
    tangent = jax.jvp(lambda s: value(s, side), (shift,), (jnp.asarray(1.0),))[1]
    np.testing.assert_allclose(tangent, by_shift, rtol=1e-9)
    batch = jnp.stack([side, 2 * side])
    solved = jax.vmap(lambda b: lx.linear_solve(operator, b, solver).value)(batch)
    np.testing.assert_allclose(solved[1], 2 * solved[0], rtol=1e-9)


def test_options_give_the_start_and_a_preconditioner() -> None:
    operator, side = grids.poisson2d(6), normal((6, 6))
    truth = lx.linear_solve(operator, side, ConjugateGradient(1e-12)).value
    warm = lx.linear_solve(operator, side, ConjugateGradient(1e-6), options={"y0": truth})
    assert int(warm.stats["num_steps"]) == 0
    np.testing.assert_array_equal(warm.value, truth)
    options = {"preconditioner": Ssor(1.4)(operator)}
    counts = [
        int(lx.linear_solve(operator, side, solver, options=given).stats["num_steps"])
        for solver, given in (
            (ConjugateGradient(1e-8), {}),
            (ConjugateGradient(1e-8), options),
            (ConjugateGradient(1e-8, preconditioner=Ssor(1.4)), {}),
            (FlexibleConjugateGradient(1e-8), options),
        )
    ]
    assert counts[0] > counts[1] == counts[2] == counts[3]


def test_a_zero_right_hand_side_takes_no_step_and_failure_is_told() -> None:
    operator = grids.poisson2d(6)
    solution = lx.linear_solve(operator, jnp.zeros((6, 6)), ConjugateGradient(1e-8))
    assert int(solution.stats["num_steps"]) == 0 and not np.any(solution.value)
    short = lx.linear_solve(
        operator, normal((6, 6)), ConjugateGradient(1e-8, max_steps=2), throw=False
    )
    assert short.result == lx.RESULTS.max_steps_reached


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ConjugateGradient(-1.0), "rtol = -1.0"),
        (lambda: ConjugateGradient(1e-3, max_steps=0), "max_steps = 0"),
        (lambda: FlexibleConjugateGradient(1e-3, directions=0), "directions = 0"),
        (lambda: ConjugateGradient(1e-3).init(grids.convection_diffusion2d(3), {}), "say so"),
        (
            lambda: ConjugateGradient(1e-3, preconditioner=Sor()).init(grids.poisson2d(3), {}),
            "FlexibleConjugateGradient",
        ),
        (
            lambda: ConjugateGradient(1e-3).init(lx.MatrixLinearOperator(jnp.ones((2, 3))), {}),
            "square",
        ),
        (lambda: lanczos(grids.poisson2d(2), jnp.ones((2, 2)), 5), "1 to 4"),
        (
            lambda: lowest_ritz_vectors(grids.poisson2d(3), jax.random.key(0), steps=4, count=5),
            "1 to 4",
        ),
        (lambda: Deflation(jnp.ones((2, 4)))(grids.poisson2d(2)), r"shape \(4,\)"),
    ],
)
def test_what_cannot_be_solved_so_is_refused(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        make()
