"""Projections and proximal operators: nearest by convexity, derivatives by differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from nearly.derivatives import projections

DRAW = np.random.default_rng(3)
POINTS = [2.0 * DRAW.normal(size=5) for _ in range(4)]
NORMAL = DRAW.normal(size=5)
MATRIX = DRAW.normal(size=(2, 5))
OFFSET = DRAW.normal(size=2)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def vertices_of_the_simplex(total: float) -> np.ndarray:
    return total * np.eye(5)


def vertices_of_the_l1_ball(radius: float) -> np.ndarray:
    return radius * np.concatenate([np.eye(5), -np.eye(5)])


def corners(radius: float) -> np.ndarray:
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    return radius * signs.astype(float)


@pytest.mark.parametrize(
    ("projection", "vertices"),
    [
        (lambda p: projections.simplex(p, 1.7), vertices_of_the_simplex(1.7)),
        (lambda p: projections.l1_ball(p, 1.3), vertices_of_the_l1_ball(1.3)),
        (lambda p: projections.linf_ball(p, 0.8), corners(0.8)),
        (lambda p: projections.box(p, -0.8, 0.8), corners(0.8)),
    ],
    ids=["simplex", "l1", "linf", "box"],
)
def test_polytopes(projection: Callable[..., Any], vertices: np.ndarray) -> None:
    """A point of a polytope is nearest if no vertex lies on the far side of its tangent plane."""
    inside = vertices.mean(0) + 0.01 * (POINTS[0] - POINTS[0].mean())
    for point in [*POINTS, inside]:
        nearest = np.asarray(jax.jit(projection)(jnp.asarray(point)))
        assert np.max((vertices - nearest) @ (point - nearest)) < 1e-12
        hull = linprog(
            np.zeros(len(vertices)),
            A_eq=np.vstack([vertices.T, np.ones(len(vertices))]),
            b_eq=np.append(nearest, 1.0),
        )
        assert hull.success  # it lies in the polytope


def test_balls_planes_and_cones_by_hand() -> None:
    point = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(projections.l2_ball(point, 2.0), [1.2, 1.6])
    np.testing.assert_allclose(projections.l2_ball(point, 6.0), point)
    split = projections.l2_ball({"a": point[:1], "b": point[1:]}, 2.0)
    np.testing.assert_allclose(split["b"], [1.6])
    np.testing.assert_allclose(projections.hyperplane(point, jnp.array([0.0, 2.0]), 2.0), [3, 1])
    np.testing.assert_allclose(projections.halfspace(point, jnp.array([0.0, 2.0]), 2.0), [3, 1])
    np.testing.assert_allclose(projections.halfspace(point, jnp.array([0.0, 2.0]), 9.0), [3, 4])
    np.testing.assert_allclose(projections.nonnegative(jnp.array([-1.0, 2.0])), [0, 2])
    np.testing.assert_allclose(
        projections.second_order_cone(jnp.array([1.0, 3.0, 4.0])), [3.0, 1.8, 2.4]
    )
    np.testing.assert_allclose(projections.second_order_cone(jnp.array([-6.0, 3.0, 4.0])), 0)
    np.testing.assert_allclose(projections.second_order_cone(jnp.array([6.0, 3, 4])), [6, 3, 4])


def test_affine_sets() -> None:
    point = POINTS[0]
    nearest = projections.affine_set(jnp.asarray(point), jnp.asarray(MATRIX), jnp.asarray(OFFSET))
    solution, *_ = np.linalg.lstsq(MATRIX, OFFSET - MATRIX @ point, rcond=None)
    np.testing.assert_allclose(nearest, point + solution, rtol=1e-10)


@pytest.mark.parametrize(
    ("prox", "penalty"),
    [
        (lambda p: projections.soft_threshold(p, 0.7), lambda x: 0.7 * np.sum(np.abs(x))),
        (
            lambda p: projections.elastic_net(p, 0.7, 0.4),
            lambda x: 0.7 * np.sum(np.abs(x) + 0.2 * x**2),
        ),
        (lambda p: projections.group_lasso(p, 1.4), lambda x: 1.4 * np.linalg.norm(x)),
    ],
    ids=["lasso", "elastic", "group"],
)
def test_proximal_operators_minimise(prox: Any, penalty: Any) -> None:
    """The objective is 1-strongly convex: it grows by half the squared distance, or no minimum."""
    draw = np.random.default_rng(5)
    for point in (*POINTS, 0.1 * POINTS[0]):
        best = np.asarray(jax.jit(prox)(jnp.asarray(point)))
        moves = draw.normal(size=(300, 5)) * np.geomspace(1e-4, 3, 300)[:, None]
        moves *= draw.random((300, 5)) < 0.5
        at_best = penalty(best) + 0.5 * np.sum((best - point) ** 2)
        for move in moves:
            x = best + move
            value = penalty(x) + 0.5 * np.sum((x - point) ** 2)
            assert value >= at_best + 0.5 * move @ move - 1e-12


@pytest.mark.parametrize(
    ("function", "theta"),
    [
        (projections.simplex, (1.7,)),
        (projections.l1_ball, (1.3,)),
        (projections.l2_ball, (1.1,)),
        (projections.l2_ball, (50.0,)),
        (projections.linf_ball, (0.8,)),
        (projections.hyperplane, (NORMAL, 0.3)),
        (projections.halfspace, (NORMAL, -5.0)),
        (projections.affine_set, (MATRIX, OFFSET)),
        (projections.second_order_cone, ()),
        (projections.soft_threshold, (0.7,)),
        (projections.elastic_net, (0.7, 0.4)),
        (projections.group_lasso, (0.9,)),
    ],
)
def test_derivatives_are_finite_differences(function: Any, theta: Any) -> None:
    given = [jnp.asarray(a) for a in (POINTS[1], *theta)]
    moved = [
        jnp.asarray(np.random.default_rng(i).normal(size=a.shape)) for i, a in enumerate(given)
    ]
    h = 1e-6
    run = jax.jit(function)
    forward = jax.jit(lambda g, t: jax.jvp(function, g, t)[1])(tuple(given), tuple(moved))
    up = run(*[a + h * t for a, t in zip(given, moved, strict=True)])
    down = run(*[a - h * t for a, t in zip(given, moved, strict=True)])
    np.testing.assert_allclose(forward, (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
    back = jax.jit(lambda g, c: jax.vjp(function, *g)[1](c))(tuple(given), forward)
    pulled = sum(float(jnp.sum(b * t)) for b, t in zip(back, moved, strict=True))
    np.testing.assert_allclose(pulled, float(forward @ forward), rtol=1e-10)


@pytest.mark.parametrize(
    "function",
    [projections.l2_ball, projections.group_lasso, projections.second_order_cone],
)
def test_no_derivative_is_nan_at_the_centre(function: Any) -> None:
    for centre in (jnp.zeros(3), jnp.array([1.0, 0.0, 0.0]), jnp.array([-1.0, 0.0, 0.0])):
        assert jnp.all(jnp.isfinite(jax.jacrev(function)(centre)))


def test_batches_in_single_precision() -> None:
    points = jnp.asarray(np.stack(POINTS), jnp.float32)
    nearest = jax.vmap(projections.simplex)(points)
    assert nearest.dtype == jnp.float32
    np.testing.assert_allclose(nearest.sum(1), 1.0, rtol=1e-6)


# ---- transport plans

ROWS = np.array([0.3, 0.5, 0.2])
COLUMNS = np.array([0.1, 0.4, 0.2, 0.3])
COST = np.random.default_rng(8).normal(size=(3, 4))


def test_transport_plans_are_nearest() -> None:
    plan = np.asarray(
        projections.transport_plans(jnp.asarray(COST), jnp.asarray(ROWS), jnp.asarray(COLUMNS))
    )
    sums = np.vstack([np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))])
    np.testing.assert_allclose(sums @ plan.ravel(), [*ROWS, *COLUMNS], atol=1e-12)
    assert plan.min() >= 0
    towards = (COST - plan).ravel()
    best = linprog(-towards, A_eq=sums, b_eq=[*ROWS, *COLUMNS])
    assert -best.fun <= towards @ plan.ravel() + 1e-9


def test_transport_plans_have_the_right_derivative() -> None:
    def entry(cost: Any, rows: Any) -> Any:
        plan = projections.transport_plans(cost, rows, jnp.asarray(COLUMNS))
        return jnp.sum(plan * jnp.sin(jnp.arange(12.0)).reshape(3, 4))

    run, slopes = jax.jit(entry), jax.jit(jax.grad(entry, argnums=(0, 1)))
    cost, rows = jnp.asarray(COST), jnp.asarray(ROWS)
    tangents = jnp.cos(jnp.arange(12.0)).reshape(3, 4), jnp.array([1.0, -2.0, 1.0])
    h = 1e-6
    up = run(cost + h * tangents[0], rows + h * tangents[1])
    down = run(cost - h * tangents[0], rows - h * tangents[1])
    found = sum(jnp.sum(s * t) for s, t in zip(slopes(cost, rows), tangents, strict=True))
    np.testing.assert_allclose(found, (up - down) / (2 * h), rtol=1e-6)


def test_unequal_totals_have_no_plan() -> None:
    with pytest.raises(RuntimeError, match="did not converge"):
        projections.transport_plans(
            jnp.asarray(COST), jnp.asarray(ROWS), 2 * jnp.asarray(COLUMNS), max_sweeps=50
        )
