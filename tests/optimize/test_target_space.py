"""Target surrogates: SGD with one step, exact where the surrogate is the loss, honestly billed."""

from typing import cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from nearly.core.tally import tally
from nearly.errors import InputError
from nearly.optimize.problems.finite_sum import WithRate
from nearly.optimize.problems.imitation import Imitation, imitation_control
from nearly.optimize.problems.sums import interpolating_least_squares
from nearly.optimize.target_space import TargetSearch, armijo, target_surrogates

INPUTS = np.random.default_rng(0).normal(size=(12, 3))
TARGETS = INPUTS @ [1.0, -2.0, 0.5] + np.random.default_rng(1).normal(size=12)


def advance(optimizer, start, steps, inputs=INPUTS, targets=TARGETS, warp=lambda z: z):
    """Parameters and loss after each step of a warped linear model with half the squared error."""
    inputs, targets = jnp.asarray(inputs), jnp.asarray(targets)

    def model_fn(params):
        return warp(inputs @ params)

    def loss_fn(outputs):
        return jnp.mean((outputs - targets) ** 2) / 2

    def step(carry, _):
        params, state = carry
        outputs, pull = jax.vjp(model_fn, params)
        value, slope = jax.value_and_grad(loss_fn)(outputs)
        updates, state = optimizer.update(
            pull(slope)[0],
            state,
            params,
            value=value,
            model_fn=model_fn,
            loss_fn=loss_fn,
            outputs=outputs,
            output_grad=slope,
        )
        params = optax.apply_updates(params, updates)
        return (params, state), (params, loss_fn(model_fn(params)), state)

    @jax.jit
    def run(start):
        return jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)[1]

    return run(start)


def test_one_inner_step_is_sgd():
    with jax.enable_x64(True):
        ours = target_surrogates(7.0, 1, optax.sgd(0.1))
        path, _, _ = advance(ours, jnp.zeros(3), 5)
        theirs = jnp.zeros(3)
        for x in path:
            theirs = theirs - 0.1 * INPUTS.T @ (INPUTS @ theirs - TARGETS) / 12
            np.testing.assert_allclose(x, theirs, rtol=1e-12)


def test_where_the_surrogate_is_the_loss_one_step_minimises_it():
    """Half the squared error has L = 1: at eta = 1 the surrogate differs by a constant."""
    with jax.enable_x64(True):
        ours = target_surrogates(1.0, 25, optax.lbfgs())
        path, _, _ = advance(ours, jnp.zeros(3), 1)
        least = np.linalg.lstsq(INPUTS, TARGETS)[0]
        np.testing.assert_allclose(path[0], least, rtol=1e-7)


def test_two_inner_steps_by_hand_with_a_schedule():
    """One sample, f(x) = x: the second inner gradient is g (1 - rate / eta)."""
    rate, x, etas = 0.1, 3.0, (0.5, 0.25)
    ours = target_surrogates(lambda t: 0.5 / (1 + t), 2, optax.sgd(rate))
    path, _, _ = advance(ours, jnp.array([x]), 2, np.ones((1, 1)), np.array([1.0]))
    for eta, found in zip(etas, path[:, 0], strict=True):
        x = x - rate * (x - 1) * (2 - rate / eta)
        np.testing.assert_allclose(found, x, rtol=1e-5)


def test_full_batches_descend_on_a_model_that_is_not_linear():
    with jax.enable_x64(True):
        _, losses, _ = advance(
            target_surrogates(1.0, 4, armijo(2.0)), jnp.full(3, 3.0), 20, warp=jnp.tanh
        )
        assert np.all(np.diff(losses) <= 1e-14) and losses[-1] < losses[0]


def test_the_search_finds_the_longest_step_that_gains_half_the_slope():
    """For half the squared error that is 1; a trial is at most 1 / 0.9 too long."""
    ours = target_surrogates(TargetSearch(largest=100.0), 1, optax.sgd(0.1))
    _, _, state = advance(ours, jnp.zeros(3), 6)
    eta = 100 * np.asarray(state.search.learning_rate)
    assert np.all(eta > 0.9 * 0.999) and np.all(eta < 1.001)


def test_a_batch_of_starts_is_that_of_each():
    ours = optax.chain(target_surrogates(1.0, 3, armijo(2.0)))
    starts = jnp.stack([jnp.zeros(3), jnp.ones(3)])
    together = jax.vmap(lambda x: advance(ours, x, 3)[0])(starts)
    np.testing.assert_allclose(together[1], advance(ours, starts[1], 3)[0], rtol=1e-4)


def test_its_slope_in_eta_is_that_of_finite_differences():
    @jax.jit
    def end(eta):
        return advance(target_surrogates(eta, 3, optax.sgd(0.2)), jnp.zeros(3), 2)[1][-1]

    with jax.enable_x64(True):
        slope = (end(0.7 + 1e-6) - end(0.7 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(end)(0.7), slope, rtol=1e-6)


def test_inner_steps_ask_the_model_and_not_the_loss():
    problem = interpolating_least_squares(samples=20, size=4, steps=(6,))

    def make(eta):
        return target_surrogates(eta, 5, optax.sgd(0.5))

    standin = problem.build(WithRate(make, 1.0), 6, key=None)
    with tally() as counts:
        value = jax.jit(lambda: problem.apply(standin, key=jax.random.key(0)))()
        jax.block_until_ready(value)
    bill = counts.read()
    assert bill["losses vjps"] == bill["losses"] == 6
    assert bill["model vjps"] == 5 * 6


@pytest.mark.slow
def test_a_policy_learns_from_the_expert():
    problem = imitation_control(samples=40, batch=8)
    standin = problem.build(target_surrogates(1.0, 3, armijo(1.0)), 40, key=None)
    value = eqx.filter_jit(problem.apply)(standin, key=jax.random.key(0))
    start = eqx.filter(problem.task.start(jax.random.key(0)), eqx.is_array)
    before = problem.errors(start)["training loss"]
    assert problem.errors(jax.device_get(value))["training loss"] < 0.3 * before


def test_the_expert_is_the_constrained_plan():
    task = cast("Imitation", imitation_control(samples=4, batch=2).task)
    states = np.random.default_rng(2).normal(size=(3, 4)) * [[0.1], [1.0], [3.0]]
    with jax.enable_x64(True):
        found = np.asarray(task.expert(jnp.asarray(states)))
    for state, action in zip(states, found, strict=True):
        pull = task.coupling @ state
        plan = scipy.optimize.minimize(
            lambda u, pull=pull: (u @ task.hessian @ u / 2 + pull @ u, task.hessian @ u + pull),
            np.zeros(20),
            jac=True,
            bounds=[(-1, 1)] * 20,
            options={"ftol": 1e-15, "gtol": 1e-10},
        )
        np.testing.assert_allclose(action, plan.x[0], atol=2e-3)
    assert abs(found[0]) < 1 and np.max(np.abs(found)) <= 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eta": 0.0}, "eta 0.0"),
        ({"eta": 1.0, "inner_steps": 0}, "inner_steps 0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        target_surrogates(**settings)


def test_bad_searches_are_named():
    with pytest.raises(InputError, match="slope 2"):
        TargetSearch(slope=2)
    with pytest.raises(InputError, match=r"grow 0\.5"):
        TargetSearch(grow=0.5)


def test_an_update_that_lacks_the_outputs_is_refused():
    optimizer = target_surrogates(1.0)
    with pytest.raises(InputError, match="model_fn"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), jnp.ones(2))
