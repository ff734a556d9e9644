"""Refined schedules: by hand, against sums written out, and inside a comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.tally import tally
from nearly.errors import InputError
from nearly.optimize.problems import scheduled
from nearly.optimize.problems.sums import interpolating_least_squares
from nearly.optimize.schedules import (
    Tabulated,
    bound_minimising,
    last_iterate_bound,
    record_norms,
    refine,
)

NOISY = np.exp(np.random.default_rng(0).normal(size=60))


# ---- from norms


def test_equal_norms_give_linear_decay():
    found = np.asarray(refine(np.full(50, 3.0)).values)
    np.testing.assert_allclose(found, np.arange(49, -1, -1) / 49, atol=1e-6)


@pytest.mark.parametrize(("power", "middle"), [(2.0, 0.25), (1.0, 0.5)])
def test_three_norms_by_hand(power, middle):
    """Weights 1, m, 1: (1 (m + 1), m 1, 0), over the first."""
    found = refine(np.array([1.0, 2.0, 1.0]), power=power, smoothing=0)
    np.testing.assert_allclose(found.values, [1, middle / (1 + middle), 0], rtol=1e-6)


def test_it_does_not_see_the_norms_unit():
    for factor in (1e-30, 1e30):
        other = refine(factor * NOISY).values
        np.testing.assert_allclose(other, refine(NOISY).values, rtol=1e-5, atol=1e-7)


def test_one_wild_batch_is_filtered_out():
    norms = np.ones(50)
    norms[20] = 1e6
    np.testing.assert_allclose(refine(norms).values, refine(np.ones(50)).values, atol=1e-6)
    assert np.abs(refine(norms, smoothing=0).values - refine(np.ones(50)).values).max() > 0.1


def test_norms_that_fall_give_a_warm_up():
    found = np.asarray(refine(1 + 10 * np.exp(-np.arange(100) / 10.0)).values)
    assert found[0] < 0.1 and 10 < np.argmax(found) < 60 and found[-1] == 0


def test_it_is_stretched_to_another_run():
    longer = refine(NOISY, steps=119)
    np.testing.assert_allclose(longer.values[::2], refine(NOISY).values, atol=1e-6)
    assert longer(10_000) == 0 and longer(3) == longer.values[3]


def test_norms_of_zero_have_a_finite_weight():
    assert np.all(np.isfinite(refine(np.array([1.0, 0.0, 1.0]), smoothing=0).values))


# ---- the bound


def bound_as_written(rates, norms, distance):
    total = (distance**2 + np.sum(rates**2 * norms**2)) / (2 * np.sum(rates))
    for k in range(len(rates) - 1):
        spent = np.sum(rates[k:] ** 2 * norms[k:] ** 2)
        total += rates[k] / np.sum(rates[k + 1 :]) * spent / np.sum(rates[k:]) / 2
    return total


def test_the_bound_is_its_double_sum_and_its_gradient_a_difference():
    rates = np.exp(np.random.default_rng(1).normal(size=60))
    with jax.enable_x64(True):
        found, slope = jax.value_and_grad(last_iterate_bound)(
            jnp.asarray(rates), jnp.asarray(NOISY), 1.7
        )
    assert found == pytest.approx(bound_as_written(rates, NOISY, 1.7), rel=1e-12)
    step = np.zeros(60)
    step[17] = 1e-5
    ends = [bound_as_written(rates + sign * step, NOISY, 1.7) for sign in (1, -1)]
    assert slope[17] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_the_last_iterate_keeps_to_its_bound():
    """SGD on mean |a_i x|, its own norms; a bound on the mean, over 200 runs."""
    rows = jax.random.normal(jax.random.key(0), (30, 5))
    start, steps = jnp.ones(5), 50
    rates = 0.1 * (1 - jnp.arange(steps) / steps)

    def run(key):
        def advance(x, at):
            gradient = jax.grad(lambda x: jnp.abs(rows[at[1]] @ x))(x)
            return x - at[0] * gradient, (x, jnp.linalg.norm(gradient))

        draws = jax.random.randint(key, (steps,), 0, 30)
        _, (path, norms) = jax.lax.scan(advance, start, (rates, draws))
        return jnp.mean(jnp.abs(rows @ path[-1])), norms**2

    gaps, squares = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 200))
    bound = last_iterate_bound(rates, jnp.sqrt(jnp.mean(squares, axis=0)), jnp.linalg.norm(start))
    assert 0.05 * bound < jnp.mean(gaps) < bound


def test_the_minimised_bound_is_least_and_linear_for_equal_norms():
    norms, distance = np.full(80, 2.0), 3.0
    found = np.asarray(bound_minimising(norms, distance).values, np.float64)
    # But for the last, which no iterate depends on.
    np.testing.assert_allclose((found / found[0])[:-1], 1 - np.arange(79) / 80, atol=0.03)
    least = bound_as_written(found, norms, distance)
    for other in (np.ones(80), 1 - np.arange(80) / 81, np.asarray(refine(norms).values) + 1e-3):
        best = min(bound_as_written(c * other, norms, distance) for c in np.geomspace(0.01, 1, 60))
        assert least < best
    twice = bound_minimising(norms, 2 * distance, steps=40)
    np.testing.assert_allclose(twice.values[0], 2 * found[0], rtol=1e-3)


# ---- recording


@pytest.mark.parametrize("order", [1, 2])
def test_norms_are_recorded_and_gradients_passed_on(order):
    recorder = record_norms(3, order)
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3, jnp.bfloat16)}
    state = recorder.init(params)
    for k in range(1, 5):  # the fourth does not fit any more
        given = jax.tree.map(lambda p: k * p, params)  # noqa: B023
        passed, state = recorder.update(given, state)
        assert passed is given
    np.testing.assert_allclose(state.norms, np.arange(1, 4) * (7 if order == 1 else 7**0.5))
    assert state.steps == 4


# ---- in a comparison


@pytest.fixture(scope="module")
def regression():
    return interpolating_least_squares(samples=40, size=5, condition=4.0, steps=(60,))


def test_a_decaying_rate_is_optax_own_schedule(regression):
    decaying = scheduled.Decaying(optax.sgd, 0.1, scheduled.linear_decay)
    key = jax.random.key(0)
    (found,) = regression.side_by_side([decaying], 60, key=key)
    plain = regression.build(optax.sgd(optax.linear_schedule(0.1, 0, 60)), 60, key=None)
    expected = regression.errors(regression.apply(plain, key=key))
    assert found["training loss"] == pytest.approx(expected["training loss"], rel=1e-4)


def test_a_refined_rate_bills_the_run_it_is_refined_from(regression):
    with tally() as counts:
        method, steps = regression.build(
            scheduled.Refined(optax.sgd, 0.2, 2), 60, key=jax.random.key(0)
        )
    assert counts.read()["losses vjps"] == 60 == int(steps)
    linear = np.linspace(1, 0, 60)
    shape = np.asarray(method.shape.values)
    assert shape.max() == 1 and shape[-1] == 0 and np.abs(shape - linear).max() > 0.1


def test_a_rate_that_diverges_is_left_to(regression):
    (found,) = regression.side_by_side(
        [scheduled.Refined(optax.sgd, 1e6, 2)], 60, key=jax.random.key(0)
    )
    assert not np.isfinite(found["training loss"])


def test_shapes_start_at_one_and_fall():
    for shape in (scheduled.cosine_decay, scheduled.stepwise_decay, scheduled.inverse_root_decay):
        values = np.array([float(shape(100)(k)) for k in (0, 40, 95)])
        assert values[0] == 1 and np.all(np.diff(values) < 0)


# ---- what is refused


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: refine(np.ones(1)), "1 norms"),
        (lambda: refine(np.array([1.0, np.nan])), "norm 1 is nan"),
        (lambda: refine(np.zeros(3)), "all must be finite"),
        (lambda: refine(np.ones(3), smoothing=1.0), "smoothing 1.0"),
        (lambda: refine(np.ones(3), power=0), "power 0"),
        (lambda: refine(np.ones(3), steps=0), "steps 0"),
        (lambda: bound_minimising(np.ones(3), 0.0), "distance 0.0"),
        (lambda: record_norms(0), "steps 0"),
        (lambda: record_norms(3, 3), "order 3"),
        (lambda: Tabulated(np.zeros(0)), "0 steps"),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(InputError, match=words):
        call()
