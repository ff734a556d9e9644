"""Parabolic equations with variable exponents: grids, means, and a truth that is neither."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.compare import compare
from nearly.core.errors import InputError
from nearly.core.lazy import load
from nearly.core.problem import Host
from nearly.dynamics.feynman_kac import (
    Bump,
    CrankNicolson,
    MonteCarlo,
    VariableExponents,
    crank_nicolson,
    monte_carlo,
    quasi_monte_carlo,
)
from nearly.dynamics.problems.feynman_kac import EQUATIONS, feynman_kac, spectral

# One compiled program for each kind of solver and its sizes.
solve = eqx.filter_jit(lambda solver, points: solver(jnp.asarray(points), key=KEY))
POINTS = np.array([0.5, 1.0, 2.0])
KEY = jax.random.key(7)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_the_truth_is_the_closed_form_where_there_is_one() -> None:
    equation = EQUATIONS["lognormal"]
    mean = jax.jit(jax.vmap(equation.lognormal_mean))(jnp.log(jnp.asarray(POINTS)))
    truth = np.exp(-0.03) * np.asarray(mean)
    np.testing.assert_allclose(spectral(equation, POINTS, 96, 8.0), truth, atol=1e-11)
    for case in EQUATIONS:
        assert feynman_kac(case).floor() < 1e-8, case


def test_crank_nicolson_is_of_second_order() -> None:
    problem = feynman_kac("exponent-dip")
    errors = []
    for intervals in (64, 192):
        value = solve(crank_nicolson(problem.equation, intervals, key=KEY), POINTS)
        errors.append(problem.errors(value)["largest error"])
    slope = np.polyfit(np.log([64, 192]), np.log(errors), 1)[0]
    assert slope == pytest.approx(-2, abs=0.15)


def test_a_constant_only_decays() -> None:
    """f = 1 and V constant: every method gives exp(-V T), without error."""
    equation = VariableExponents(initial=jnp.ones_like, volatility_exponent=Bump(0.3))
    for method, dial in ((CrankNicolson(1), 64), (MonteCarlo(4), 8)):
        value = solve(method(equation, dial, key=KEY), POINTS)
        np.testing.assert_allclose(value, np.exp(-0.03), rtol=1e-5 if dial == 64 else 1e-12)


def test_means_agree_with_the_truth_and_variance_falls() -> None:
    problem = feynman_kac("exponent-bump")
    truth, errors = problem.truth()["values"], []
    for method in (MonteCarlo(32, antithetic=False, control=False), MonteCarlo(32)):
        solver = method(problem.equation, 4096, key=KEY)
        value, error = eqx.filter_jit(solver.estimate)(jnp.asarray(POINTS), key=KEY)
        assert np.all(np.abs(value - truth) < 4 * error + 1e-5)
        errors.append(np.max(error))
    assert errors[1] < errors[0] / 5


def test_sobol_points_are_better_than_random_ones() -> None:
    problem = feynman_kac("exponent-bump")
    kinds = (type(quasi_monte_carlo)(16, control=False), MonteCarlo(16, False, False))
    errors = []
    for method in kinds:
        solver = method(problem.equation, 1024, key=KEY)
        error = eqx.filter_jit(solver.estimate)(jnp.asarray(POINTS), key=KEY)[1]
        errors.append(float(jnp.max(error)))
    assert errors[0] < errors[1] / 5


def test_the_lognormal_path_is_its_own_control() -> None:
    """With p = q = 1 and a constant V nothing is left to chance."""
    problem = feynman_kac("lognormal")
    solver = MonteCarlo(8)(problem.equation, 64, key=KEY)
    value, error = eqx.filter_jit(solver.estimate)(jnp.asarray(POINTS), key=KEY)
    assert problem.errors(value)["largest error"] < 1e-10
    assert float(jnp.max(error)) < 1e-7


@pytest.mark.parametrize(("method", "dial"), [(crank_nicolson, 16), (MonteCarlo(4), 16)])
def test_gradients_are_those_of_finite_differences(method, dial) -> None:
    """Of the value in the volatility."""

    @jax.jit
    @jax.value_and_grad
    def value(volatility):
        equation = VariableExponents(volatility=volatility, volatility_exponent=Bump(0.3, 0.3))
        return method(equation, dial, key=KEY)(jnp.array([1.0]), key=KEY)[0]

    step = 1e-5
    rise = value(0.2 + step)[0] - value(0.2 - step)[0]
    assert value(0.2)[1] == pytest.approx(float(rise) / 2 / step, rel=1e-6)


def test_work_is_updates_of_nodes_and_of_paths() -> None:
    problem = feynman_kac("exponent-bump")
    methods = {"grid": crank_nicolson, "paths": MonteCarlo(8)}
    frontier = compare(problem, methods, dials=[32], seeds=(0,), timed=False)
    grid, paths = frontier.runs
    assert grid.work["updates"] == 33 * 8
    assert paths.work["updates"] == 3 * 32 * 8  # from three points
    assert paths.error < 0.01


def test_single_precision() -> None:
    with jax.enable_x64(False):
        problem = feynman_kac("exponent-bump", dtype="float32")
        for method, dial in ((crank_nicolson, 128), (MonteCarlo(16), 1024)):
            value = solve(problem.build(method, dial, key=KEY), jnp.asarray(POINTS, "float32"))
            assert value.dtype == jnp.float32
            assert problem.errors(value)["largest error"] < 2e-3


@pytest.mark.parametrize("name", catalogue.methods("feynman-kac-solvers"))
def test_every_catalogued_method_runs(name: str) -> None:
    problem = feynman_kac("exponent-bump")
    method = load(catalogue.methods("feynman-kac-solvers")[name].target)
    standin = problem.build(method, problem.dials(method)[0], key=KEY)
    value = standin(POINTS, key=KEY) if isinstance(standin, Host) else solve(standin, POINTS)
    assert problem.errors(value)["largest error"] < 0.02


def test_mistakes_name_value_and_remedy() -> None:
    equation = EQUATIONS["lognormal"]
    with pytest.raises(InputError, match=r"volatility=0\.0 must be positive"):
        VariableExponents(volatility=0.0)
    with pytest.raises(InputError, match="4 intervals are too few"):
        crank_nicolson(equation, 4, key=KEY)
    with pytest.raises(InputError, match="2 paths are too few"):
        monte_carlo(equation, 2, key=KEY)
    with pytest.raises(InputError, match="100 paths: Sobol points come in powers of two"):
        quasi_monte_carlo(equation, 100, key=KEY)
    with pytest.raises(InputError, match="unknown equation with variable exponents 'bump'"):
        feynman_kac("bump")
