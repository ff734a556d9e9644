"""Networks as solutions: what they are by construction, what training reaches, what it costs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.tally import tally
from nearly.dynamics.problems.mechanics import (
    free_particle,
    gravity,
    pendulum,
    pendulum_period,
    pendulum_value,
)
from nearly.dynamics.unsupervised import Unsupervised, gelu, probabilistic, silu
from nearly.errors import InputError

SMALL = Unsupervised(width=8, depth=1, points=16, steps=300, refinements=60, order=2)


@eqx.filter_jit
def applied(problem, standin):
    return problem.apply(standin, key=None)


def test_probabilistic_activations_are_x_times_a_distribution():
    x = jnp.linspace(-3.0, 3.0, 7)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=1e-6)
    np.testing.assert_allclose(silu(x), jax.nn.silu(x), atol=1e-6)
    step = probabilistic(lambda x: (x > 0).astype(x.dtype))
    np.testing.assert_allclose(step(x), jax.nn.relu(x))


@eqx.filter_jit
def drawn(curve, times):
    return jax.vmap(curve)(times)


@eqx.filter_jit
def missing(curve, times):
    return jax.vmap(lambda t: curve.residual(oscillator, t))(times)


def oscillator(t, y, args):
    return jnp.stack([y[1], -y[0]])


@pytest.mark.parametrize("order", [1, 2])
def test_a_hard_start_holds_whatever_the_networks_are(order):
    settings = Unsupervised(order=order, hard=True)
    with jax.enable_x64(True):
        start = jnp.asarray([1.0, -2.0, 0.5, 3.0])
        curve = settings.untrained(start, 1.0, 3.0, key=jax.random.key(0))
        np.testing.assert_allclose(drawn(curve, jnp.ones(1))[0], start, atol=1e-14)


def test_velocities_are_derivatives_and_the_residual_is_the_equations():
    settings = Unsupervised(order=2)
    with jax.enable_x64(True):
        curve = settings.untrained(jnp.zeros(2), 0.0, 2.0, key=jax.random.key(1))
        t, h = 0.7, 1e-5
        here, after, before = np.asarray(drawn(curve, jnp.asarray([t, t + h, t - h])))
        slope = (after - before) / (2 * h)
        missed = np.asarray(missing(curve, jnp.asarray([t])))[0]
    np.testing.assert_allclose(here[1], slope[0], rtol=1e-8)
    np.testing.assert_allclose(missed, [0, slope[1] + here[0]], atol=1e-8)


def test_a_rectifier_has_no_acceleration():
    settings = Unsupervised(order=2, activation=jax.nn.relu)
    with jax.enable_x64(True):
        curve = settings.untrained(jnp.zeros(2), 0.0, 2.0, key=jax.random.key(1))
        times = jnp.linspace(0.1, 1.9, 7)
        places = np.asarray(drawn(curve, times))[:, 0]
        missed = np.asarray(missing(curve, times))
    # Of an oscillator: what is missing is the whole force.
    np.testing.assert_array_equal(missed, np.stack([np.zeros(7), places], -1))


def test_the_dial_is_a_residual_that_networks_can_reach():
    problem = free_particle()
    assert problem.dials(SMALL) == Unsupervised.dials
    assert len(problem.dials(lambda field, start, times, tolerance: start)) == 8


@pytest.mark.slow
@pytest.mark.parametrize("make", [free_particle, gravity], ids=["free", "gravity"])
def test_simple_motions_are_learned(make):
    problem = make()
    with jax.enable_x64(True):
        value = applied(problem, problem.build(SMALL, 1e-3, key=None))
    assert problem.errors(np.asarray(value))["l2"] < 0.02


@pytest.mark.slow
def test_calls_are_counted_and_training_stops_at_the_tolerance():
    problem = free_particle()
    spent = {}
    with jax.enable_x64(True):
        for dial in (1e3, 0.0):
            settings = Unsupervised(width=4, depth=1, points=16, steps=5, refinements=0, order=2)
            with tally() as counts:
                jax.block_until_ready(applied(problem, problem.build(settings, dial, key=None)))
            spent[dial] = counts.read()
    assert spent[0.0]["f"] == 5 * 16 and spent[1e3]["f"] == 16
    assert spent[0.0]["f vjps"] == 5 * 16


@pytest.mark.slow
def test_the_same_seed_gives_the_same_curve_in_either_precision():
    problem = free_particle(dtype="float32")
    values = [np.asarray(applied(problem, problem.build(SMALL, 1e-2, key=None))) for _ in range(2)]
    np.testing.assert_array_equal(*values)
    assert values[0].dtype == np.float32


def test_the_pendulum_in_closed_form():
    period = pendulum_period(2.0)
    np.testing.assert_allclose(
        pendulum_value(np.array([0.0, period / 4, period / 2]), 2.0),
        [[2, 0], [0, -np.sqrt(2 * (1 - np.cos(2.0)))], [-2, 0]],
        atol=1e-12,
    )
    angle, rate = pendulum_value(np.linspace(0, 9, 50), 2.5).T
    np.testing.assert_allclose(rate**2 / 2 - np.cos(angle), -np.cos(2.5), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Unsupervised(width=0), "width 0"),
        (lambda: Unsupervised(order=3), "order 3"),
        (lambda: Unsupervised(rate=0.0), "rate 0"),
        (lambda: pendulum(angle=4.0), "angle 4"),
        (lambda: gravity(end=-1.0), "end -1"),
        (
            lambda: SMALL.untrained(jnp.zeros(3), 0.0, 1.0, key=jax.random.key(0)),
            "use order=1",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
