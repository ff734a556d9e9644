"""`FiniteSum`: every catalogued optimizer runs on it, tuning is fair, work is counted."""

from functools import partial

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

import nearly
from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.core.tally import tally
from nearly.errors import InputError
from nearly.optimize import FiniteSum, WithRate
from nearly.optimize.problems.sums import interpolating_least_squares
from nearly.optimize.problems.tasks import LinearRegression

OPTIMIZERS = catalogue.methods("optax")


@pytest.fixture(scope="module")
def regression():
    return interpolating_least_squares(samples=40, size=5, condition=4.0, steps=(60,))


def trained(problem, method, seed=0, dial=60):
    standin = problem.build(method, dial, key=None)
    with tally() as counts:
        value = jax.device_get(jax.jit(lambda: problem.apply(standin, key=jax.random.key(seed)))())
    return problem.errors(value), counts.read()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_catalogued_optimizer_lowers_the_loss(regression, name):
    tuned = load(OPTIMIZERS[name].target)
    rates = (1e-3, 1e-2, 1e-1, 1.0)
    methods = [tuned.factory(learning_rate=rate) for rate in rates]
    errors = regression.trials(methods, 60, key=jax.random.key(7))
    untrained = regression.errors(np.zeros(5, np.float32))["training loss"]
    assert np.nanmin(errors) < 0.8 * untrained


def test_trials_together_are_the_trials_one_by_one(regression):
    methods = [WithRate(optax.adam, rate) for rate in (0.01, 0.1)]
    together = regression.trials(methods, 60, key=jax.random.key(3))
    alone = [trained(regression, method, seed=3)[0]["training loss"] for method in methods]
    np.testing.assert_allclose(together, alone, rtol=1e-3)


def test_tuning_says_what_it_chose_and_bills_every_trial(regression):
    tuned = nearly.Tuned(partial(WithRate, optax.sgd), {"learning_rate": (0.01, 0.1, 0.5)})
    frontier = nearly.compare(regression, {"sgd": tuned}, seeds=(0,))
    (run,) = frontier.runs
    assert "learning_rate=" in run.note
    assert run.work["losses vjps"] == 60
    assert run.setup["work"]["losses vjps"] == 3 * 60


def test_gradient_descent_by_hand():
    """Two samples, full batches: x <- x - 0.1 A^T (A x - b) / 2."""
    matrix, target = np.array([[1.0, 0.0], [1.0, 2.0]]), np.array([1.0, 3.0])
    problem = FiniteSum(
        task=LinearRegression(2),
        inputs=matrix,
        targets=target,
        test_inputs=matrix,
        test_targets=target,
        batch=0,
        steps=(3,),
        dtype="float64",
    )
    with jax.enable_x64(True):
        standin = problem.build(optax.sgd(0.1), 3, key=None)
        found = problem.apply(standin, key=jax.random.key(0))
    x = np.zeros(2)
    for _ in range(3):
        x = x - 0.1 * matrix.T @ (matrix @ x - target) / 2
    np.testing.assert_allclose(found, x, rtol=1e-12)


def test_a_product_with_the_hessian_is_on_the_bill(regression):
    adahessian = load(OPTIMIZERS["adahessian"].target).factory(learning_rate=0.1)
    _, work = trained(regression, adahessian)
    assert work["losses vjps"] == 2 * 60 and work["losses jvps"] == 60


def test_seeds_change_batches_and_nothing_else_does(regression):
    method = WithRate(optax.sgd, 0.1)
    first, again, other = (trained(regression, method, seed)[0] for seed in (0, 0, 1))
    assert first == again and first != other


@pytest.mark.parametrize("name", ["softmax-digits", "mlp-digits", "autoencoder-digits"])
def test_digits_are_learnt(name):
    problem = nearly.problem(name)
    errors, _ = trained(problem, WithRate(optax.adam, 3e-3), dial=100)
    before = problem.errors(eqx.filter(problem.task.start(jax.random.key(0)), eqx.is_array))
    assert errors["training loss"] < 0.7 * before["training loss"]
    assert errors["test mistakes"] < 0.2


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"batch": -1}, "batch -1"), ({"batch": 10**6}, "batch 1000000"), ({"steps": ()}, "steps")],
)
def test_bad_settings_are_named(fields, words):
    with pytest.raises(InputError, match=words):
        interpolating_least_squares(**fields)


def test_what_is_no_optimizer_is_refused(regression):
    with pytest.raises(InputError, match="no optimizer"):
        regression.build("adam", 10, key=None)


def test_the_model_is_billed_apart_and_a_product_of_a_network_counts_as_one():
    problem = nearly.problem("mlp-digits")
    adahessian = load(OPTIMIZERS["adahessian"].target).factory(learning_rate=0.1)
    _, work = trained(problem, adahessian, dial=2)
    assert work["losses vjps"] == work["model vjps"] == 2 * 2
    assert work["losses jvps"] == work["model jvps"] == 2
