"""`Smooth`: the classic functions' data, its catalogue of minimisers, what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from scipy.optimize import least_squares

import nearly
from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.core.tally import tally
from nearly.errors import InputError, UnknownName
from nearly.optimize.newton.factor import FACTORISATIONS
from nearly.optimize.problems.classic import CLASSIC
from nearly.optimize.problems.smooth import Smooth, cubic_chain, log_sum_exp, logistic_regression


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", CLASSIC)
def test_a_least_squares_solver_finds_the_stated_minimum(name):
    """SciPy's Levenberg-Marquardt from MINPACK, which the functions were published to test."""
    case = CLASSIC[name]
    residuals, jacobian = jax.jit(case.residuals), jax.jit(jax.jacfwd(case.residuals))
    found = least_squares(
        lambda x: np.asarray(residuals(jnp.asarray(x))),
        case.start,
        jac=lambda x: np.asarray(jacobian(jnp.asarray(x))),
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
        max_nfev=5000,
        method="lm",
    )
    np.testing.assert_allclose(2 * found.cost, case.minimum, rtol=1e-11, atol=1e-20)


@pytest.mark.parametrize("name", CLASSIC)
def test_derivatives_are_finite_at_the_start(name):
    case = CLASSIC[name]
    gradient = jax.grad(lambda x: jnp.sum(case.residuals(x) ** 2))(jnp.asarray(case.start))
    assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)


@pytest.mark.parametrize("make", [logistic_regression, log_sum_exp, cubic_chain])
def test_stated_minima_are_stationary_and_below_the_start(make):
    problem = make()
    newton = load("nearly.optimize.minimisers:armijo_newton")
    with tally() as counts:
        best = problem.apply(problem.build(newton, 1e-12, key=None), key=None)
    assert counts.read()[FACTORISATIONS] < 300  # ends although rounding keeps moving the unknowns
    errors = problem.errors(best)
    assert errors["excess"] < 1e-12
    assert problem.errors(problem.start)["excess"] > 1e-3
    # And none lies below the stated one by more than rounding.
    assert float(problem.function(best)) - problem.minimum > -1e-12


MINIMISERS = catalogue.methods("minimisers")


@pytest.mark.parametrize("name", MINIMISERS)
def test_every_catalogued_minimiser_gets_better_with_its_dial(name):
    problem = nearly.problem("classic-minimum", function="variably-dimensioned")  # convex
    method = load(MINIMISERS[name].target)

    def apply(standin):
        return problem.apply(standin, key=None)

    if not isinstance(method, nearly.Host):
        apply = eqx.filter_jit(apply)

    def run(dial):
        with tally() as counts:
            value = jax.block_until_ready(apply(problem.build(method, dial, key=None)))
        return problem.errors(value)["excess"], counts.read()

    (rough, _), (fine, work) = run(1e-1), run(1e-8)
    assert fine < 1e-6
    assert fine <= rough
    assert work["f vjps"] > 0  # those on the host are counted too


def test_single_precision_runs_in_single_precision():
    problem = nearly.problem("classic-minimum", function="wood", dtype="float32")
    with jax.enable_x64(False):
        method = load(MINIMISERS["gradient-normalized-newton"].target)
        value = problem.apply(problem.build(method, 1e-4, key=None), key=None)
    assert value.dtype == np.float32
    assert problem.errors(np.asarray(value))["excess"] < 1e-3


def test_a_frontier_names_the_cheapest_within_a_tolerance():
    problem = nearly.problem("classic-minimum", function="rosenbrock")
    run = nearly.within(1e-8, problem, methods=["gradient-normalized-newton", "optimistix-bfgs"])
    assert run.error <= 1e-8
    assert run.work["f vjps"] > 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: nearly.problem("classic-minimum", function="beal"), UnknownName, "beale"),
        (lambda: nearly.problem("cubic-chain", size=1), InputError, "size 1"),
        (lambda: nearly.problem("logreg-breast-cancer", weight=0.0), InputError, "weight 0.0"),
        (lambda: nearly.problem("logsumexp", width=-1.0), InputError, "width -1.0"),
        (
            lambda: Smooth(function=jnp.sum, start=np.array([np.nan]), minimum=0.0),
            InputError,
            "finite",
        ),
        (
            lambda: Smooth(function=jnp.sum, start=np.ones(1), minimum=0.0, dtype="float16"),
            InputError,
            "float16",
        ),
    ],
)
def test_bad_input_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_what_is_no_minimiser_is_refused():
    problem = nearly.problem("classic-minimum")
    with pytest.raises(InputError, match="no minimiser"):
        problem.build(lambda function: optx.Newton(1e-3, 1e-3), 1e-3, key=None)
