"""Sketched least squares: as accurate as promised, differentiable, and clear about misuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError, UnknownName
from nearly.linear import sketch, sketched_regression
from nearly.linear.problems.least_squares import (
    LeastSquares,
    least_squares,
    refined_least_squares,
)

SMALL = {"rows": 256, "columns": 4}


@pytest.fixture(autouse=True)
def x64() -> Any:
    with jax.enable_x64(True):
        yield


def draw(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("name", catalogue.methods("least-squares"))
def test_every_solver_of_the_catalogue(name: str, fresh_store: Any) -> None:
    problem = least_squares("gaussian", **SMALL)
    line = catalogue.method(name, "least-squares")[0]
    dials = problem.dials(line)
    frontier = compare(problem, [name], dials=dials[-1:], timed=False, seeds=(0,))
    best = min(frontier, key=lambda run: run.worst)
    assert all(run.status == "ok" for run in frontier)
    sketched = "sketch" in name or "woodruff" in name
    assert best.worst < (0.1 if sketched else 1e-13)


def test_work_is_products_with_the_matrix_and_its_transpose(fresh_store: Any) -> None:
    problem = least_squares("gaussian", **SMALL)
    frontier = compare(problem, ["lineax-qr", "blendenpik"], dials=[1e-6], timed=False)
    direct, iterative = frontier
    assert "matvecs" not in direct.work
    # Two a step, of which four columns need four at most; a handful to start and restart.
    assert 8 <= iterative.work["matvecs"] <= 40


@pytest.mark.parametrize("factor", [sketched_regression.qr_factor, sketched_regression.svd_factor])
def test_the_condition_number_costs_no_steps(factor: Any) -> None:
    condition = 1e8
    left, right = np.linalg.qr(draw((400, 8)))[0], np.linalg.qr(draw((8, 8), 1))[0]
    matrix = (left * np.geomspace(1, 1 / condition, 8)) @ right
    rhs = matrix @ np.ones(8) + 1e-3 / condition * draw((400,), 2)
    solver = replace(sketched_regression.blendenpik, rtol=1e-10, factor=factor)
    solution = lx.linear_solve(lx.MatrixLinearOperator(jnp.asarray(matrix)), rhs, solver)
    truth = refined_least_squares(matrix, np.asarray(rhs))
    assert np.linalg.norm(solution.value - truth) < 1e-13 * condition * np.linalg.norm(truth)
    assert solution.stats["num_steps"] < 45


def test_a_sketch_of_all_rows_is_exact() -> None:
    matrix, rhs = draw((64, 5)), draw((64,), 1)
    solver = sketched_regression.SketchAndSolve(oversampling=100.0)
    value = lx.linear_solve(lx.MatrixLinearOperator(matrix), rhs, solver).value
    np.testing.assert_allclose(value, np.linalg.lstsq(matrix, rhs)[0], atol=1e-13)


def test_a_consistent_system_is_solved_exactly_by_any_sketch() -> None:
    matrix, x = draw((80, 4)), draw((4,), 1)
    for method in (sketched_regression.hadamard_and_solve, sketched_regression.count_and_solve):
        value = lx.linear_solve(lx.MatrixLinearOperator(matrix), matrix @ x, method).value
        np.testing.assert_allclose(value, x, atol=1e-12)


def test_rank_deficient_matrices_get_the_shortest_solution() -> None:
    matrix, rhs = draw((100, 5)), draw((100,), 1)
    matrix = jnp.concatenate([matrix, matrix[:, :1]], axis=1)
    solver = replace(sketched_regression.lsrn, rtol=1e-12)
    value = lx.linear_solve(lx.MatrixLinearOperator(matrix), rhs, solver).value
    np.testing.assert_allclose(value, np.linalg.pinv(matrix) @ rhs, atol=1e-10)


def test_pytrees_and_jit() -> None:
    matrix, rhs = draw((64, 5)), draw((64,), 1)
    structure = {"a": jnp.zeros(2), "b": jnp.zeros(3)}
    operator = lx.FunctionLinearOperator(
        lambda x: matrix @ jnp.concatenate([x["a"], x["b"]]), jax.eval_shape(lambda: structure)
    )
    truth = np.linalg.lstsq(matrix, rhs)[0]
    for solver in (
        replace(sketched_regression.blendenpik, rtol=1e-12),
        sketched_regression.SketchAndSolve(oversampling=13.0),
    ):
        value = jax.jit(lambda b, s=solver: lx.linear_solve(operator, b, s).value)(rhs)
        np.testing.assert_allclose(jnp.concatenate([value["a"], value["b"]]), truth, atol=1e-10)


def test_a_batch_of_seeds_and_of_right_hand_sides() -> None:
    operator, rhs = lx.MatrixLinearOperator(draw((60, 3))), draw((2, 60), 1)
    seeds = jnp.arange(2)

    def solve(b: jax.Array, seed: jax.Array) -> jax.Array:
        solver = sketched_regression.SketchAndSolve(seed=seed)
        return lx.linear_solve(operator, b, solver).value

    together = jax.vmap(solve)(rhs, seeds)
    assert not np.allclose(solve(rhs[0], seeds[0]), solve(rhs[0], seeds[1]))
    np.testing.assert_allclose(together[1], solve(rhs[1], seeds[1]), atol=1e-12)


def test_gradients() -> None:
    matrix, rhs, direction = draw((40, 3)), draw((40,), 1), draw((40,), 2)

    def loss(matrix: jax.Array, rhs: jax.Array, solver: Any) -> jax.Array:
        value = lx.linear_solve(lx.MatrixLinearOperator(matrix), rhs, solver).value
        return jnp.sum(jnp.sin(value))

    accurate = replace(sketched_regression.blendenpik, rtol=1e-13)
    expected = jax.grad(loss, argnums=(0, 1))(matrix, rhs, lx.QR())
    for ours, theirs in zip(jax.grad(loss, argnums=(0, 1))(matrix, rhs, accurate), expected):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
    sketched = sketched_regression.SketchAndSolve()
    step = 1e-5
    difference = (
        loss(matrix, rhs + step * direction, sketched)
        - loss(matrix, rhs - step * direction, sketched)
    ) / (2 * step)
    slope = jax.grad(loss, argnums=1)(matrix, rhs, sketched) @ direction
    np.testing.assert_allclose(slope, difference, rtol=1e-7)
    _, forward = jax.jvp(lambda b: loss(matrix, b, sketched), (rhs,), (direction,))
    np.testing.assert_allclose(forward, slope, rtol=1e-10)


def test_kronecker_least_squares() -> None:
    left, right = draw((30, 2)), draw((40, 3), 1)
    product, x = jnp.kron(left, right), draw((6,), 2)
    noise = draw((1200,), 3)
    operator = sketch.kronecker_sketch(jax.random.key(0), 400, (30, 40), "float64")
    exact = sketched_regression.kronecker_least_squares(left, right, product @ x, operator)
    np.testing.assert_allclose(exact, x, atol=1e-12)
    noisy = sketched_regression.kronecker_least_squares(left, right, product @ x + noise, operator)
    best = np.linalg.lstsq(product, product @ x + noise)[0]
    excess = np.linalg.norm(product @ noisy - product @ x - noise) / np.linalg.norm(
        product @ best - product @ x - noise
    )
    assert 1 <= excess < 1.05


def test_refinement_gains_the_digits_that_the_condition_number_costs() -> None:
    from fractions import Fraction

    # [1 1; 0 e; 0 e] x = (1, 1, 0): least squares by hand gives x2 = 1/(2e), x1 = 1 - x2.
    e = 2.0**-20
    matrix, rhs = np.array([[1.0, 1.0], [0.0, e], [0.0, e]]), np.array([1.0, 1.0, 0.0])
    second = Fraction(1, 2) / Fraction(e)
    x = refined_least_squares(matrix, rhs)
    np.testing.assert_allclose(x, [float(1 - second), float(second)], rtol=1e-15)


def test_misuse_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"oversampling 0\.5 must be at least 1 row"):
        sketched_regression.SketchAndSolve(oversampling=0.5)
    with pytest.raises(InputError, match=r"rtol 2\.0 must lie between 0 and 1"):
        sketched_regression.SketchPreconditioned(rtol=2.0)
    wide = lx.MatrixLinearOperator(draw((3, 9)))
    with pytest.raises(InputError, match="this one is 3 x 9"):
        lx.linear_solve(wide, jnp.ones(3), sketched_regression.hadamard_and_solve)
    with pytest.raises(UnknownName, match="unknown instance 'spike'"):
        least_squares("spike")
    with pytest.raises(InputError, match="twice the 16 columns"):
        least_squares(rows=20)
    with pytest.raises(InputError, match="must both be float32"):
        LeastSquares("mine", "float32", np.ones((3, 2)), np.ones(3))
