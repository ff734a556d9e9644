"""Implicit derivatives: exact where closed forms exist, in all modes, for solvers of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from scipy.optimize import minimize

from nearly.core.errors import InputError
from nearly.derivatives import fixed_point
from nearly.derivatives.implicit import (
    DENSE,
    custom_fixed_point,
    custom_root,
    implicit_fixed_point,
    implicit_jvp,
    implicit_root,
    implicit_vjp,
    on_host,
)

DATA = np.random.default_rng(0).normal(size=(12, 4))
TARGET = np.random.default_rng(1).normal(size=12)
LOG_PENALTY = np.linspace(-1.0, 1.0, 4)


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def loss(w: Any, log_penalty: Any) -> Any:
    penalty = jnp.sum(jnp.exp(log_penalty) * w**2)
    return 0.5 * jnp.sum((DATA @ w - TARGET) ** 2) + 0.5 * penalty


def closed_form(log_penalty: Any) -> Any:
    return jnp.linalg.solve(DATA.T @ DATA + jnp.diag(jnp.exp(log_penalty)), DATA.T @ TARGET)


def by_bfgs(init: Any, log_penalty: Any) -> np.ndarray:
    """A solver that no transformation can see into."""
    penalty = np.exp(np.asarray(log_penalty))

    def value_and_gradient(w: Any) -> Any:
        residual = DATA @ w - TARGET
        value = 0.5 * residual @ residual + 0.5 * penalty @ w**2
        return value, DATA.T @ residual + penalty * w

    options = {"gtol": 1e-12, "ftol": 0.0, "maxiter": 1000, "maxcor": 20}
    found = minimize(
        value_and_gradient, np.asarray(init), jac=True, method="L-BFGS-B", options=options
    )
    return found.x


def detached(init: Any, log_penalty: Any) -> Any:
    return jax.lax.stop_gradient(closed_form(log_penalty))


def wrt_penalty(solver: Any, **options: Any) -> Any:
    ridge = custom_root(jax.grad(loss), **options)(solver)
    return lambda log_penalty: ridge(jnp.zeros(4), log_penalty)


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        x = jnp.asarray(LOG_PENALTY)
        return np.asarray(jax.jacobian(closed_form)(x)), np.asarray(jax.hessian(closed_form)(x))


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_a_scipy_solver_is_differentiated_without_being_traced(mode: Any, truth: Any) -> None:
    found = mode(wrt_penalty(by_bfgs))(jnp.asarray(LOG_PENALTY))
    np.testing.assert_allclose(found, truth[0], atol=1e-5)


def test_a_host_solver_runs_under_jit_and_vmap(truth: Any) -> None:
    jacobian = jax.jit(jax.vmap(jax.jacrev(wrt_penalty(on_host(by_bfgs)))))
    found = jacobian(jnp.stack([jnp.asarray(LOG_PENALTY)] * 2))
    np.testing.assert_allclose(found, np.stack([truth[0]] * 2), atol=1e-5)


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (jax.jacfwd, jax.jacfwd),
        (jax.jacfwd, jax.jacrev),
        (jax.jacrev, jax.jacfwd),
        (jax.jacrev, jax.jacrev),
    ],
)
def test_second_derivatives_in_all_four_modes(outer: Any, inner: Any, truth: Any) -> None:
    found = jax.jit(outer(inner(wrt_penalty(detached))))(jnp.asarray(LOG_PENALTY))
    np.testing.assert_allclose(found, truth[1], rtol=1e-10, atol=1e-14)


def test_third_derivative_of_a_cube_root() -> None:
    def cube_root(y: Any) -> Any:
        return implicit_root(lambda x: x**3 - y, jnp.cbrt(y))

    third = jax.jit(jax.grad(jax.grad(jax.grad(cube_root))))
    np.testing.assert_allclose(third(8.0), 10 / 27 * 8 ** (-8 / 3), rtol=1e-12)


PSD = (lx.positive_semidefinite_tag,)


@pytest.mark.parametrize(
    ("solve", "tags"),
    [
        (None, PSD),
        (lx.CG(1e-13, 1e-13), PSD),
        (lx.GMRES(1e-13, 1e-13), ()),
        (lx.AutoLinearSolver(well_posed=False), ()),
    ],
)
def test_any_linear_solver(solve: Any, tags: Any, truth: Any) -> None:
    x = jnp.asarray(LOG_PENALTY)
    solved = wrt_penalty(detached, solve=solve, tags=tags)
    for found in jax.jit(lambda x: (jax.jacfwd(solved)(x), jax.jacrev(solved)(x)))(x):
        np.testing.assert_allclose(found, truth[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tags", [PSD, ()])
def test_large_systems_are_solved_without_forming_the_jacobian(tags: Any) -> None:
    size = DENSE + 1
    weight = jnp.linspace(1.0, 2.0, size)

    def root(shift: Any) -> Any:
        return implicit_root(lambda x, s: weight * x - s, shift / weight, shift, tags=tags)

    slopes = jax.jit(jax.grad(lambda s: jnp.sum(root(s))))(jnp.ones(size))
    np.testing.assert_allclose(slopes, 1 / weight, rtol=1e-8)


def test_what_is_closed_over_is_differentiated(truth: Any) -> None:
    def solve(log_penalty: Any) -> Any:
        found = custom_root(lambda w: jax.grad(loss)(w, log_penalty))(
            lambda init: closed_form(log_penalty)  # differentiable, and must not be counted twice
        )
        return found(None)

    found = jax.jit(jax.jacrev(solve))(jnp.asarray(LOG_PENALTY))
    np.testing.assert_allclose(found, truth[0], rtol=1e-10)


def test_trees_with_integers_none_and_functions() -> None:
    @custom_root(
        lambda x, params, power, act: {"a": act(x["a"]) - params["y"] ** power}, has_aux=True
    )
    def solver(init: Any, params: Any, power: Any, act: Any, *, scale: float) -> Any:
        assert params["unused"] is None and scale == 2.0
        return {"a": jnp.arctanh(params["y"] ** power)}, {"steps": jnp.asarray(3), "note": "done"}

    def total(y: Any) -> Any:
        params = {"y": y, "unused": None, "count": jnp.asarray(4)}
        x, aux = solver(None, params, jnp.asarray(2), jnp.tanh, scale=2.0)
        assert aux["note"] == "done"
        return jnp.sum(x["a"]) + aux["steps"]

    y = jnp.array([0.3, 0.6])
    np.testing.assert_allclose(jax.jit(jax.grad(total))(y), 2 * y / (1 - y**4), rtol=1e-12)


def test_the_start_has_no_derivative() -> None:
    halve = custom_fixed_point(lambda x, b: 0.5 * x + b)(
        fixed_point.iterate(lambda x, b: 0.5 * x + b)
    )
    by_start, by_shift = jax.jit(jax.grad(halve, argnums=(0, 1)))(1.0, 3.0)
    assert by_start == 0.0
    np.testing.assert_allclose(by_shift, 2.0, rtol=1e-12)


def test_float32_stays_float32() -> None:
    x = jnp.float32(0.5)
    slope = jax.jit(jax.grad(lambda y: implicit_root(lambda x, y: x * x - y, jnp.sqrt(y), y)))(x)
    assert slope.dtype == jnp.float32
    np.testing.assert_allclose(slope, 0.5 / np.sqrt(0.5), rtol=1e-6)


# ---- fixed points that are no contractions, singular Jacobians


def expanding(x: Any, b: Any) -> Any:
    return 3.0 * jnp.sin(x) + b


def test_iterating_an_expansion_is_an_error_that_says_so() -> None:
    with pytest.raises(RuntimeError, match="no contraction"):
        fixed_point.iterate(lambda x, b: -2.0 * x + b, max_steps=5000)(1.0, 1.0)
    with pytest.raises(RuntimeError, match="no contraction"):
        fixed_point.iterate(expanding, max_steps=200)(1.0, 0.1)


def test_the_derivative_at_the_fixed_point_of_an_expansion_is_right() -> None:
    newton = fixed_point.newton(lambda x, b: x - expanding(x, b), tolerance=1e-14)
    found = jax.jit(custom_fixed_point(expanding)(newton))
    b, h = 0.1, 1e-5
    x = found(2.2, b)
    assert abs(3 * np.cos(x)) > 1  # no contraction
    slope = (found(2.2, b + h) - found(2.2, b - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(found, argnums=1)(2.2, b), slope, rtol=1e-8)
    np.testing.assert_allclose(slope, 1 / (1 - 3 * np.cos(x)), rtol=1e-8)


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("consistent", [True, False])
def test_a_singular_jacobian_is_an_error_that_says_so(mode: Any, consistent: bool) -> None:
    direction = jnp.array([0.3, 0.1, 0.7])
    plane = jnp.outer(direction, direction) + jnp.diag(jnp.array([1.0, 0.0, 0.0]))
    into = plane @ jnp.ones(3) if consistent else jnp.array([0.1, 0.9, 0.4])

    @eqx.filter_jit
    def derivative(t: Any) -> Any:
        return mode(lambda t: implicit_root(lambda x: plane @ x - t * into, jnp.ones(3)))(t)

    with pytest.raises(RuntimeError, match="singular to working precision"):
        jax.block_until_ready(derivative(1.0))


def test_the_least_norm_derivative_on_request() -> None:
    def root(t: Any) -> Any:
        return implicit_root(
            lambda x, t: jnp.stack([x[0] + x[1] - t, 2 * (x[0] + x[1] - t)]),
            jnp.full(2, t / 2),
            t,
            solve=lx.AutoLinearSolver(well_posed=False),
        )

    np.testing.assert_allclose(jax.jit(jax.jacfwd(root))(1.0), [0.5, 0.5], rtol=1e-12)


def test_a_solver_that_diverged_is_an_error_that_says_so() -> None:
    with pytest.raises(RuntimeError, match="not finite"):
        jax.grad(lambda b: implicit_root(lambda x, b: x - b, jnp.nan, b))(1.0)


def test_bad_solutions_are_named() -> None:
    with pytest.raises(InputError, match="dtype int64"):
        implicit_root(lambda x: x, jnp.arange(3))
    with pytest.raises(InputError, match="2 equations for 3 unknowns"):
        implicit_root(lambda x: x[:2], jnp.ones(3))
    with pytest.raises(InputError, match="no arrays"):
        implicit_root(lambda x: x, None)
    with pytest.raises(InputError, match="max_steps 0"):
        fixed_point.iterate(lambda x: x, max_steps=0)
    with pytest.raises(InputError, match="tolerance -1"):
        fixed_point.newton(lambda x: x, tolerance=-1.0)


# ---- the estimate of the derivative's error


@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_the_error_estimate_is_asymptotically_exact(distance: float, truth: Any) -> None:
    log_penalty = jnp.asarray(LOG_PENALTY)
    off = closed_form(log_penalty) + distance * jnp.array([0.5, -0.5, 0.5, 0.5])
    tangent, cotangent = jnp.ones(4), jnp.array([1.0, 2.0, 0.0, -1.0])

    @jax.jit
    def both(off: Any) -> Any:
        forward = implicit_jvp(jax.grad(loss), off, (log_penalty,), (tangent,))
        return forward, implicit_vjp(jax.grad(loss), off, (log_penalty,), cotangent)

    forward, reverse = both(off)
    exact = truth[0] @ tangent, truth[0].T @ cotangent
    for estimate, value, right in (
        (forward, forward.value, exact[0]),
        (reverse, reverse.value[0], exact[1]),
    ):
        np.testing.assert_allclose(estimate.solution_error, distance, rtol=1e-9)
        np.testing.assert_allclose(estimate.error, np.linalg.norm(value - right), rtol=1e-6)
    np.testing.assert_allclose(forward.refined, exact[0], atol=1e-12)


def test_the_error_estimate_of_a_nonlinear_equation() -> None:
    y, off = 2.0, 1e-3
    estimate = jax.jit(
        lambda y: implicit_jvp(lambda x, y: x**3 - y, jnp.cbrt(y) + off, (y,), (1.0,))
    )(y)
    exact = 1 / (3 * np.cbrt(y) ** 2)
    np.testing.assert_allclose(estimate.solution_error, off, rtol=1e-2)
    np.testing.assert_allclose(estimate.error, abs(estimate.value - exact), rtol=1e-2)
    assert abs(estimate.refined - exact) < 1e-2 * abs(estimate.value - exact)


def test_a_fixed_point_and_its_root_agree() -> None:
    b = jnp.array([0.4, -0.2])
    x = jax.jit(fixed_point.iterate(lambda x, b: jnp.tanh(0.5 * x) + b))(jnp.zeros(2), b)
    point = jax.jacrev(lambda b: implicit_fixed_point(lambda x, b: jnp.tanh(0.5 * x) + b, x, b))
    root = jax.jacfwd(lambda b: implicit_root(lambda x, b: jnp.tanh(0.5 * x) + b - x, x, b))
    found = jax.jit(lambda b: (point(b), root(b)))(b)
    np.testing.assert_allclose(*found, rtol=1e-12)
