"""Sensitivities: every method of the protocol on a limit known in closed form, and the truths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import MissingDependency, UnknownName
from nearly.core.lazy import load
from nearly.derivatives.problems.sensitivity import Sensitivity
from nearly.derivatives.problems.sensitivity_cases import CASES, Packing, instance, truth

METHODS = catalogue.methods("sensitivities")
STEPS = 60


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def contraction(x: Any, theta: Any) -> Any:
    """Its fixed point is 2 theta[0] - theta[1], in both coordinates."""
    return 0.5 * x + theta[0] - 0.5 * theta[1] + 0.1 * (x - x[::-1])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_returns_the_iterate_and_a_derivative(name: str, double: None) -> None:
    start, theta = jnp.array([1.0, -1.0]), jnp.array([0.3, 0.8])
    method = load(METHODS[name].target)
    try:
        solve = method(contraction, start, STEPS)
    except MissingDependency as error:
        assert "not installed" in str(error)
        return
    cotangents = jnp.eye(2)

    @jax.jit
    def everything(theta: Any) -> Any:
        x, pullback = jax.vjp(solve, theta)
        return x, jax.vmap(pullback)(cotangents)[0]

    x, jacobian = everything(theta)
    np.testing.assert_allclose(x, [-0.2, -0.2], atol=1e-8)
    share = 0.5 if name == "one-step" else 1.0  # its error is the contraction factor
    np.testing.assert_allclose(jacobian, share * np.array([[2.0, -1.0]] * 2), atol=1e-6)
    if name != "jaxopt-fixed-point":
        np.testing.assert_allclose(jax.jit(jax.jacfwd(solve))(theta), jacobian, atol=1e-12)


def test_methods_run_in_a_comparison_and_their_work_is_counted() -> None:
    frontier = compare("ridge", ["implicit", "unrolled"], dials=[20], timed=False)
    ours, unrolled = frontier.runs
    assert ours.errors["iterate error"] == pytest.approx(unrolled.errors["iterate error"])
    assert ours.error < unrolled.error
    assert unrolled.work["steps"] == 20
    assert unrolled.work["steps jvps"] == 20 * 20  # one for each of 20 penalties
    assert ours.work["steps jvps"] == 2 * 20  # the Jacobian, and the columns of the right side


@pytest.mark.parametrize("case", ["ridge", "lasso", "simplex-qp"])
def test_the_truth_is_the_limit_and_its_differences(case: str, double: None) -> None:
    data, (x, jacobian) = instance(case, 0), truth(case, 0)
    along = np.random.default_rng(0).normal(size=data.theta.size)

    @jax.jit
    def limit(theta: Any) -> Any:
        start = jnp.asarray(data.start)
        return jax.lax.fori_loop(0, 4000, lambda _, x: data.step(x, theta), start)

    np.testing.assert_allclose(limit(jnp.asarray(data.theta)), x, atol=1e-9)
    h = 1e-6
    up, down = (limit(jnp.asarray(data.theta + s * along)) for s in (h, -h))
    np.testing.assert_allclose((up - down) / (2 * h), jacobian @ along, atol=1e-5)


@pytest.mark.slow
def test_the_truth_of_a_packing_is_a_minimum_with_its_differences(double: None) -> None:
    packing, (x, jacobian) = instance("sphere-packing", 0), truth("sphere-packing", 0)
    assert isinstance(packing, Packing)

    @jax.jit
    def minimum(theta: Any) -> Any:
        """Newton's method from the truth: a small change of theta stays in the basin."""
        force = jax.grad(packing.energy)
        step = lambda _, x: x - jnp.linalg.solve(jax.jacfwd(force)(x, theta), force(x, theta))  # noqa: E731
        return jax.lax.fori_loop(0, 4, step, jnp.asarray(x))

    h = 1e-6
    up, down = (minimum(jnp.asarray(packing.theta + s)) for s in (h, -h))
    np.testing.assert_allclose((up - down) / (2 * h), jacobian[:, 0], atol=1e-5)
    hessian = jax.jit(jax.hessian(packing.energy))(jnp.asarray(x), jnp.asarray(packing.theta))
    assert np.linalg.eigvalsh(hessian)[0] > 0.01


def test_reverse_mode_judges_products_with_cotangents(double: None) -> None:
    problem = Sensitivity("lasso", "reverse", 1)
    x, jacobian = truth("lasso", 1)
    exact = problem.probes @ jacobian
    assert exact.shape == (3, 20)
    assert problem.errors((x, exact)) == {"Jacobian error": 0.0, "iterate error": 0.0}
    assert problem.errors((x, 0 * exact))["Jacobian error"] == 1.0


def test_bad_settings_are_named() -> None:
    with pytest.raises(UnknownName, match="did you mean 'ridge'"):
        Sensitivity("rigde")
    with pytest.raises(UnknownName, match="mode of differentiation 'backward'"):
        Sensitivity(mode="backward")
    with pytest.raises(ValueError, match="dtype 'float16'"):
        Sensitivity(dtype="float16")
    assert {n for n in catalogue.problems() if n in CASES} == set(CASES)
