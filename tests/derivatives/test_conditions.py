"""Every condition vanishes at the solution of a standard problem and gives its known derivative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from nearly.core.errors import InputError
from nearly.derivatives import conditions, projections
from nearly.derivatives.conditions import Multipliers
from nearly.derivatives.implicit import implicit_fixed_point, implicit_root

FACTOR = np.random.default_rng(0).normal(size=(6, 4))
QUADRATIC = FACTOR.T @ FACTOR / 6 + 0.2 * np.eye(4)
LINEAR = np.array([0.9, -0.4, 0.3, -1.2])


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def objective(x: Any, theta: Any) -> Any:
    return 0.5 * x @ QUADRATIC @ x - theta @ x


def on_support(support: np.ndarray, constraint: bool) -> np.ndarray:
    """dx/dtheta of the quadratic over the coordinates of a support, with sum(x) fixed or not."""
    inverse = np.linalg.inv(QUADRATIC[np.ix_(support, support)])
    if constraint:
        ones = inverse.sum(1)
        inverse = inverse - np.outer(ones, ones) / ones.sum()
    jacobian = np.zeros((4, 4))
    jacobian[np.ix_(support, support)] = inverse
    return jacobian


def iterated(step: Any, *args: Any, start: Any = None) -> Any:
    start = jnp.full(4, 0.25) if start is None else start
    return jax.lax.fori_loop(0, 3000, lambda _, x: step(x, *args), start)


@pytest.fixture(scope="module")
def on_simplex() -> np.ndarray:
    with jax.enable_x64(True):
        step = conditions.projected_gradient(objective, projections.simplex, 0.3)
        return np.asarray(jax.jit(lambda t: iterated(step, t))(jnp.asarray(LINEAR)))


def check(condition: Any, x: Any, jacobian: np.ndarray, *args: Any, fixed: bool = True) -> None:
    """The condition holds at x, and its derivative in the first argument is the given one."""
    attach = implicit_fixed_point if fixed else implicit_root
    residual = jax.jit(condition)(x, *args)
    if fixed:
        residual = jax.tree.map(jnp.subtract, residual, x)
    for leaf in jax.tree.leaves(residual):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)

    def solution(theta: Any) -> Any:
        found = attach(condition, x, theta, *args[1:])
        return found.x if isinstance(found, Multipliers) else found

    found = jax.jit(jax.jacrev(solution))(args[0])
    np.testing.assert_allclose(found, jacobian, rtol=1e-8, atol=1e-10)


def test_stationarity_newton_and_gradient_descent() -> None:
    theta, inverse = jnp.asarray(LINEAR), np.linalg.inv(QUADRATIC)
    x = jnp.asarray(inverse @ LINEAR)
    check(conditions.stationarity(objective), x, inverse, theta, fixed=False)
    check(conditions.gradient_descent(objective, 0.3), x, inverse, theta)
    check(conditions.newton(jax.grad(objective)), x, inverse, theta)


def test_projected_gradient_on_the_simplex(on_simplex: np.ndarray) -> None:
    support = np.flatnonzero(on_simplex > 0)
    assert 1 < len(support) < 4
    step = conditions.projected_gradient(objective, projections.simplex, 0.7)
    check(step, jnp.asarray(on_simplex), on_support(support, True), jnp.asarray(LINEAR))


def test_mirror_descent_on_the_simplex() -> None:
    theta = jnp.asarray(LINEAR) / 8  # an interior solution: the logarithm wants one
    inverse = np.linalg.inv(QUADRATIC)
    ones = inverse.sum(1)
    x = inverse @ theta + ones * (1 - ones @ theta) / ones.sum()
    assert min(x) > 0
    step = conditions.mirror_descent(objective, jnp.log, jax.nn.softmax, 0.5)
    check(step, jnp.asarray(x), on_support(np.arange(4), True), theta)


def test_kkt_with_equality_and_inactive_inequalities(on_simplex: np.ndarray) -> None:
    """Coordinates inside have multiplier 0: those rows of the Jacobian are not singular."""
    x, theta = jnp.asarray(on_simplex), jnp.asarray(LINEAR)
    slope = QUADRATIC @ on_simplex - LINEAR
    support = on_simplex > 0
    nu = -slope[support].mean()
    mu = np.where(support, 0.0, slope + nu)
    condition = conditions.kkt(objective, lambda x, _: jnp.sum(x) - 1.0, lambda x, _: -x)
    point = Multipliers(x, jnp.asarray(nu), jnp.asarray(mu))
    check(condition, point, on_support(np.flatnonzero(support), True), theta, fixed=False)


def test_kkt_with_equality_alone_and_its_own_parameter() -> None:
    inverse = np.linalg.inv(QUADRATIC)
    ones = inverse.sum(1)
    x = ones / ones.sum()
    condition = conditions.kkt(lambda x, _: objective(x, jnp.zeros(4)), lambda x, t: jnp.sum(x) - t)
    point = Multipliers(jnp.asarray(x), jnp.asarray(-1 / ones.sum()))
    check(condition, point, x, jnp.asarray(1.0), fixed=False)


def test_kkt_without_constraints_is_refused() -> None:
    with pytest.raises(InputError, match="use stationarity"):
        conditions.kkt(objective)


# ---- lasso, whole and by blocks

PENALTY = 0.35


def shrink(x: Any, scale: Any, penalty: Any) -> Any:
    return projections.soft_threshold(x, scale * penalty)


@pytest.fixture(scope="module")
def lasso() -> np.ndarray:
    with jax.enable_x64(True):
        step = conditions.proximal_gradient(objective, shrink, 0.3)
        solve = jax.jit(lambda t, p: iterated(step, t, p))
        return np.asarray(solve(jnp.asarray(LINEAR), jnp.asarray(PENALTY)))


def test_proximal_gradient_needs_no_restriction_off_the_support(lasso: np.ndarray) -> None:
    support = np.flatnonzero(lasso)
    assert 1 < len(support) < 4
    truth = on_support(support, False)
    step = conditions.proximal_gradient(objective, shrink, 0.7)
    x, theta, penalty = jnp.asarray(lasso), jnp.asarray(LINEAR), jnp.asarray(PENALTY)
    check(step, x, truth, theta, penalty)
    slope = jax.jit(jax.jacfwd(lambda p: implicit_fixed_point(step, x, theta, p)))(penalty)
    np.testing.assert_allclose(slope, -truth @ np.sign(lasso), rtol=1e-8, atol=1e-12)


def test_blocks_have_the_derivative_of_the_whole(lasso: np.ndarray) -> None:
    def blocked(x: Any, theta: Any) -> Any:
        return objective(jnp.concatenate(list(x)), theta)

    step = conditions.block_coordinate_descent(blocked, [shrink, shrink], [0.5, 0.8])
    theta, penalty = jnp.asarray(LINEAR), jnp.asarray(PENALTY)
    blocks = [jnp.asarray(lasso[:1]), jnp.asarray(lasso[1:])]
    for leaf, block in zip(step(blocks, theta, penalty), blocks, strict=True):
        np.testing.assert_allclose(leaf, block, atol=1e-12)
    found = jax.jit(jax.jacrev(lambda t: implicit_fixed_point(step, blocks, t, penalty)))(theta)
    truth = on_support(np.flatnonzero(lasso), False)
    np.testing.assert_allclose(np.concatenate(found), truth, rtol=1e-8, atol=1e-10)


def test_the_sweep_of_blocks_converges_to_the_lasso(lasso: np.ndarray) -> None:
    def blocked(x: Any, theta: Any) -> Any:
        return objective(jnp.stack(x), theta)

    step = conditions.block_coordinate_descent(blocked, [shrink] * 4, list(1 / np.diag(QUADRATIC)))
    start = (jnp.asarray(0.0),) * 4
    found = jax.jit(lambda t: iterated(step, t, PENALTY, start=start))(jnp.asarray(LINEAR))
    np.testing.assert_allclose(jnp.stack(found), lasso, atol=1e-10)


def test_blocks_and_steps_must_match() -> None:
    with pytest.raises(InputError, match="1 stepsizes for 2 blocks"):
        conditions.block_coordinate_descent(objective, [shrink, shrink], [1.0])
    with pytest.raises(InputError, match="stepsize -1"):
        conditions.projected_gradient(objective, projections.simplex, -1.0)
    with pytest.raises(InputError, match="x has 3 blocks"):
        conditions.block_coordinate_descent(objective, [shrink])((1.0, 1.0, 1.0), 0.0)


# ---- cones


def test_a_linear_program_and_its_derivative() -> None:
    """Only rows that bind carry slack 0: the solution moves with the offsets of those rows."""
    matrix = np.vstack([-np.eye(2), [[1.0, 2.0], [3.0, 1.0]]])
    offset, cost = np.array([0.0, 0.0, 4.0, 6.0]), np.array([-1.0, -1.0])
    found = linprog(cost, A_ub=matrix, b_ub=offset, bounds=(None, None), method="highs")
    dual = -found.ineqlin.marginals
    slack = offset - matrix @ found.x
    condition = conditions.conic(projections.nonnegative)
    point = jnp.asarray(found.x), jnp.asarray(dual - slack)
    given = jnp.asarray(matrix), jnp.asarray(offset), jnp.asarray(cost)
    for leaf in jax.jit(condition)(point, *given):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)
    jacobian = jax.jit(
        jax.jacfwd(lambda b: implicit_root(condition, point, given[0], b, given[2])[0])
    )
    binding = np.linalg.inv(matrix[2:])
    np.testing.assert_allclose(
        jacobian(given[1]), np.hstack([np.zeros((2, 2)), binding]), atol=1e-10
    )


def test_a_second_order_cone_program_and_its_derivative() -> None:
    """min c . x with |x| <= r is -r c / |c|."""
    matrix = jnp.asarray(np.vstack([np.zeros(3), -np.eye(3)]))
    cost, radius = jnp.array([1.0, -2.0, 2.0]), 1.5
    x = -radius * cost / 3.0
    dual = jnp.append(3.0, cost)  # in the cone, with A^T y + c = 0
    condition = conditions.conic(projections.second_order_cone)

    def solution(radius: Any, cost: Any) -> Any:
        offset = jnp.append(radius, jnp.zeros(3))
        slack = offset - matrix @ x
        return implicit_root(condition, (x, dual - slack), matrix, offset, cost)[0]

    for leaf in condition(
        (x, dual - jnp.append(radius, x)), matrix, jnp.append(radius, jnp.zeros(3)), cost
    ):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)
    by_radius, by_cost = jax.jit(jax.jacrev(solution, argnums=(0, 1)))(radius, cost)
    np.testing.assert_allclose(by_radius, -cost / 3.0, rtol=1e-8)
    truth = -radius * (np.eye(3) / 3 - np.outer(cost, cost) / 27)
    np.testing.assert_allclose(by_cost, truth, atol=1e-8)


# ---- where the Jacobian is singular


def subgradient(w: Any, theta: Any) -> Any:
    """Zero at a lasso's support only: its rows off the support say nothing about w."""
    slope = jax.grad(objective)(w, theta) + PENALTY * jnp.sign(w)
    return jnp.where(w != 0, slope, 0.0)


def test_a_lasso_is_restricted_to_its_support(lasso: np.ndarray) -> None:
    x, theta = jnp.asarray(lasso), jnp.asarray(LINEAR)
    with pytest.raises(RuntimeError, match=r"conditions\.restricted"):
        jax.jacfwd(lambda t: implicit_root(subgradient, x, t))(theta)
    support = conditions.restricted(subgradient, lambda w, _: w != 0)
    check(support, x, on_support(np.flatnonzero(lasso), False), theta, fixed=False)


def test_damping_biases_as_little_as_it_says() -> None:
    theta, inverse = jnp.asarray(LINEAR), np.linalg.inv(QUADRATIC)
    x, damping = jnp.asarray(inverse @ LINEAR), 1e-3
    condition = conditions.damped(jax.grad(objective), damping)
    shifted = np.linalg.inv(QUADRATIC + damping * np.eye(4))
    check(condition, x, shifted, theta, fixed=False)
    smallest = np.linalg.eigvalsh(QUADRATIC)[0]
    bias = np.linalg.norm(shifted - inverse, 2) / np.linalg.norm(inverse, 2)
    assert 0 < bias <= damping / (smallest + damping) * (1 + 1e-9)
    with pytest.raises(InputError, match="damping 0"):
        conditions.damped(condition, 0)


def test_damping_gives_a_finite_value_along_null_directions() -> None:
    condition = conditions.damped(lambda x, t: jnp.stack([x[0] + x[1] - t, 0.0 * x[1]]), 1e-8)
    slope = jax.jit(jax.jacfwd(lambda t: implicit_root(condition, jnp.array([1.0, 0.0]), t)))(1.0)
    np.testing.assert_allclose(slope, [1.0, 0.0], atol=1e-7)
