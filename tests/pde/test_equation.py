"""One equation as a problem: every catalogued method on a small dial, and the classical orders."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core import catalogue
from nearly.core.errors import InputError
from nearly.core.measure import prepare, run_trial, to_host
from nearly.core.problem import Problem
from nearly.pde import NEEDS, PROBLEMS, peers
from nearly.pde.equations import Jet, jet, jets
from nearly.pde.grid_functions import Axis, Chebyshev, Fourier, GridFunction, Uniform
from nearly.pde.problems.equation import Equation

INSTANCES = {"stationary": "helmholtz-4-1", "variational": "cubic", "evolution": "allen-cahn"}
SMALL = {
    "energy-bfgs": 7,
    "fourier-lines": 16,
    "exponential-steps": 32,
    "chebyshev-collocation": 17,
    "variational-principle": 10,
}
LEARNED = ("network", "gaussians")
COMPILES_LONG = (*LEARNED, "teng-euler", "optimised-steps", "variational-principle")


def _equation(kind: str, **settings: Any) -> Equation:
    name = next(n for n in PROBLEMS if n.startswith(INSTANCES[kind]))
    problem = catalogue.problem(name, **settings)
    assert isinstance(problem, Equation)
    return problem


def _dial(name: str, method: Any) -> int:
    if name.endswith(LEARNED):
        return 2
    return SMALL.get(name, 1 if "adient" in type(method).__module__ else method.dials[0])


METHODS = [
    pytest.param(n, marks=pytest.mark.slow) if n.endswith(COMPILES_LONG) else n
    for n in catalogue.methods("equations")
]
STATIONARY = [n for n, p in PROBLEMS.items() if "stationary:" in p.target]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_hands_back_a_function_of_points(name: str) -> None:
    kind = NEEDS.get(name, ("stationary",))[0]
    problem = _equation(kind)
    assert name in problem.methods()
    method, line = catalogue.method(name, "equations")
    assert line.protocol == "equations"
    trial, standin = run_trial(problem, method, _dial(name, method), 0)
    assert trial.status == "ok", trial.reason
    assert np.isfinite(list(trial.errors.values())).all()
    if not name.endswith(LEARNED):
        assert trial.errors["relative L2 error"] < 0.7
    with jax.enable_x64(True):
        points = jnp.asarray(problem.equation.held_out()[:5])
        values = standin.module(points)
    assert values.shape == (5,)
    assert values.dtype == jnp.float64


@pytest.mark.parametrize("name", ["finite-differences", "exponential-steps", "fourier-lines"])
def test_classical_methods_run_in_single_precision(name: str) -> None:
    problem = _equation(NEEDS[name][0], dtype="float32")
    method, _ = catalogue.method(name, "equations")
    trial, _ = run_trial(problem, method, 32, 0)
    assert trial.status == "ok", trial.reason
    assert trial.errors["relative L2 error"] < 0.1


def test_teng_names_the_remedy_in_single_precision() -> None:
    method, _ = catalogue.method("teng-heun", "equations")
    trial, _ = run_trial(_equation("evolution", dtype="float32"), method, 1, 0)
    assert trial.status == "failed"
    assert "enable_x64" in trial.reason


@pytest.mark.parametrize("name", STATIONARY)
def test_the_solution_solves_the_equation(name: str) -> None:
    problem = catalogue.problem(name)
    assert isinstance(problem, Equation)
    with jax.enable_x64(True):
        equation: Any = problem.equation
        points = jnp.asarray(equation.held_out()[::997])
        found = jax.vmap(equation.residual)(jets(equation.exact, points), points)
        size = jnp.max(jnp.abs(jax.vmap(equation.source)(points)))
        assert float(jnp.max(jnp.abs(found))) <= 1e-12 * float(size)


def test_helmholtz_source_by_hand() -> None:
    with jax.enable_x64(True):
        equation: Any = _equation("stationary").equation
        x = jnp.array([0.3, -0.2])
        u = np.sin(4 * np.pi * 0.3) * np.sin(-0.2 * np.pi)
        np.testing.assert_allclose(equation.source(x), (1 - 17 * np.pi**2) * u, rtol=1e-12)


@pytest.mark.slow
def test_the_references_converge() -> None:
    """ETDRK4 at two resolutions against the reference by collocation and Dormand-Prince."""
    problem = _equation("evolution")
    errors = [
        run_trial(problem, peers.exponential_steps, n, 0)[0].errors["relative L2 error"]
        for n in (64, 128)
    ]
    assert errors[1] < 1e-8 < errors[0]


def _errors(name: str, method: Any, dials: tuple[int, ...]) -> np.ndarray:
    problem = catalogue.problem(name)
    trials = [run_trial(problem, method, d, 0)[0] for d in dials]
    return np.array([t.errors["relative L2 error"] for t in trials])


def test_differences_are_of_second_order_and_newton_solves_the_nonlinear_one() -> None:
    errors = _errors("cubic", peers.finite_differences, (33, 65, 129))
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), 2, atol=0.1)


def test_chebyshev_is_spectral() -> None:
    errors = _errors("cubic", peers.chebyshev_collocation, (7, 17))
    assert errors[0] > 1e-7
    assert errors[1] < 1e-13


def test_work_is_that_of_the_solution() -> None:
    trial, standin = run_trial(_equation("variational"), peers.finite_differences, 33, 0)
    assert trial.work["residual evaluations"] % 31 == 0  # the inner nodes, a Newton step each
    assert trial.work == trial.setup_work == standin.work


def test_unknown_dtype_and_wrong_modules_are_named() -> None:
    with pytest.raises(InputError, match="float33"):
        catalogue.problem("cubic", dtype="float33")

    def wrong(equation: Any, dial: Any, *, key: Any) -> Any:
        return lambda points: points

    problem: Problem = _equation("variational")
    trial, _ = run_trial(problem, wrong, 1, 0)
    assert trial.status == "failed"
    assert "maps points" in trial.reason

    trial, _ = run_trial(problem, lambda equation, dial, *, key: 3.0, 1, 0)
    assert "float, not a function" in trial.reason


def test_a_function_of_the_users_own_is_a_method() -> None:
    def guess(equation: Any, dial: Any, *, key: Any) -> Any:
        return jax.tree_util.Partial(jax.vmap(equation.exact))

    problem = _equation("stationary")
    trial, standin = run_trial(problem, guess, "as given", 0)
    assert trial.errors["relative L2 error"] == 0
    with jax.enable_x64(True):
        value = to_host(prepare(problem, standin, jax.random.key(0))())
    assert value.shape == problem.equation.held_out().shape[:1]


# ---- jets and grids


def test_jets_of_a_polynomial() -> None:
    with jax.enable_x64(True):
        found = jet(lambda x: x[0] ** 3 * x[1] + x[1] ** 2, jnp.array([2.0, 3.0]))
    expected = Jet(33.0, [36.0, 14.0], [36.0, 2.0])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other)


AXES = [Uniform(9, -1.0, 2.0), Chebyshev(9, -1.0, 2.0)]


@pytest.mark.parametrize("axis", AXES, ids=["uniform", "chebyshev"])
def test_axes_reproduce_cubics_and_their_slopes(axis: Axis) -> None:
    with jax.enable_x64(True):
        x = np.linspace(-1, 2, 17)
        nodes = axis.nodes()
        function = GridFunction(jnp.asarray(nodes**3 - nodes), (axis,))
        np.testing.assert_allclose(function(jnp.asarray(x)[:, None]), x**3 - x, atol=1e-12)
    inner = slice(1, -1)
    np.testing.assert_allclose((axis.derivative(1) @ nodes**2)[inner], 2 * nodes[inner], atol=1e-11)
    np.testing.assert_allclose((axis.derivative(2) @ nodes**2)[inner], 2, atol=1e-10)


def test_fourier_axis_reproduces_waves() -> None:
    with jax.enable_x64(True):
        axis = Fourier(8, 2.0)
        nodes = axis.nodes()
        wave = np.cos(3 * np.pi * nodes) + np.sin(2 * np.pi * nodes)
        x = np.linspace(0, 2, 13)
        function = GridFunction(jnp.asarray(wave), (axis,))
        expected = np.cos(3 * np.pi * x) + np.sin(2 * np.pi * x)
        np.testing.assert_allclose(function(jnp.asarray(x)[:, None]), expected, atol=1e-13)
        slope = -3 * np.pi * np.sin(3 * np.pi * nodes) + 2 * np.pi * np.cos(2 * np.pi * nodes)
        np.testing.assert_allclose(axis.derivative(1) @ wave, slope, atol=1e-12)


def test_grids_name_what_is_too_small() -> None:
    with pytest.raises(InputError, match="count=3"):
        Uniform(3, 0.0, 1.0)
    with pytest.raises(InputError, match="count=5"):
        Fourier(5, 1.0)
    with pytest.raises(InputError, match="values of shape"):
        GridFunction(jnp.zeros(3), (Chebyshev(4, 0.0, 1.0),))
