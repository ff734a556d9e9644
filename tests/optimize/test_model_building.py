"""SGD with model building: its model against a linear solve, its test by hand, its bill."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.tally import counted, tally
from nearly.errors import InputError
from nearly.optimize.model_building import (
    independent_model_building,
    model_building_sgd,
    model_step,
)

ETA = 0.99
SMBI = independent_model_building


def quadratic(scales):
    return lambda x: jnp.sum(jnp.asarray(scales) * x**2) / 2


def step(optimizer, function, x, state=None, **extra):
    state = optimizer.init(x) if state is None else state
    value, gradient = jax.value_and_grad(function)(x)
    return optimizer.update(gradient, state, x, value=value, value_fn=function, **extra)


# ---- the model


@pytest.mark.parametrize("seed", range(3))
def test_the_models_step_solves_its_equations_within_the_ball(seed):
    random = np.random.default_rng(seed)
    g, after, s = random.normal(size=(3, 6))
    y, norm = after - g, np.linalg.norm
    sigma = (norm(s) * (norm(y) + norm(g) / ETA) - y @ s) / 2
    matrix = 2 * sigma * np.eye(6) + np.outer(s, y) + np.outer(y, s)
    expected = np.linalg.solve(matrix, -(s @ s) * g)
    with jax.enable_x64(True):
        found = model_step(*map(jnp.asarray, (g, after, s)), ETA)
        shaped = model_step(*(jnp.asarray(v.reshape(2, 3)) for v in (g, after, s)), ETA)
        along = np.asarray(model_step(*map(jnp.asarray, (g, after, -0.3 * g)), ETA))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(np.ravel(shaped), expected, rtol=1e-10)
    assert norm(along + 0.15 * g) <= 0.15 * norm(g)  # the ball with the trial for a diameter


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_the_models_step_does_not_see_the_losss_unit(unit):
    g, after, s = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
    plain, other = (model_step(*map(jnp.asarray, (u * g, u * after, s))) for u in (1.0, unit))
    np.testing.assert_allclose(other, plain, rtol=1e-4)


def test_a_leaf_without_a_model_is_shortened():
    s = jnp.array([1.0, -2.0])
    for g, after in ((-s, s * jnp.nan), (0 * s, s)):
        np.testing.assert_allclose(model_step(g, after, s), 0.1 * s, rtol=1e-6)


# ---- the test of the trial


def test_a_trial_that_falls_enough_is_plain_sgd():
    x = jnp.array([1.0, -2.0])
    found, state = step(model_building_sgd(0.5), quadratic([1.0, 0.5]), x)
    np.testing.assert_allclose(found, [-0.5, 0.5])
    assert state.modelled == 0 and state.steps == 1


def test_one_unknown_by_hand():
    """f = 2 x^2 at 1, rate 1: g = 4, s = -4, y = -16: the trial is at f = 18, not taken.

    sigma = (4 (16 + 4 / eta) - 64) / 2 = 8 / eta; (2 sigma + 2 s y) x = -16 4: x = -64 / (16 / eta
    + 128).
    """
    found, state = step(model_building_sgd(1.0, eta=0.5), quadratic([4.0]), jnp.array([1.0]))
    np.testing.assert_allclose(found, [-64 / (32 + 128)], rtol=1e-5)
    assert state.modelled == 1


def test_the_test_is_of_all_leaves_and_the_model_of_each():
    params = {"steep": jnp.array([1.0]), "flat": jnp.array([1.0, 2.0])}

    def function(p):
        return quadratic([4.0])(p["steep"]) + quadratic([0.1, 0.2])(p["flat"])

    value, gradient = jax.value_and_grad(function)(params)
    optimizer = model_building_sgd(1.0, eta=0.5)
    found, _ = optimizer.update(
        gradient, optimizer.init(params), params, value=value, value_fn=function
    )
    np.testing.assert_allclose(found["steep"], [-64 / 160], rtol=1e-5)
    trial = -gradient["flat"]
    after = jax.grad(function)(jax.tree.map(lambda p, g: p - g, params, gradient))["flat"]
    np.testing.assert_allclose(
        found["flat"], model_step(gradient["flat"], after, trial, 0.5), rtol=1e-5
    )


def test_a_loss_that_is_no_number_is_not_taken():
    def function(x):
        return jnp.where(jnp.all(jnp.abs(x) < 2), jnp.sum(x**2), jnp.nan)

    found, state = step(model_building_sgd(5.0), function, jnp.array([1.0]))
    assert state.modelled == 1
    np.testing.assert_allclose(found, [-1.0], rtol=1e-6)  # a tenth of the trial


def test_the_bill_is_a_value_and_where_rejected_a_gradient():
    function = counted(quadratic([4.0]), "losses")

    @jax.jit
    def run(rate, x):
        optimizer = model_building_sgd(rate)
        return optimizer.update(4 * x, optimizer.init(x), x, value=2 * x[0] ** 2, value_fn=function)

    for rate, gradients in ((0.1, 0), (1.0, 1)):
        with tally() as counts:
            jax.block_until_ready(run(rate, jnp.ones(1)))
        used = counts.read()
        assert used["losses vjps"] == gradients and used["losses"] == 1 + gradients


def test_the_other_batch_makes_the_model():
    """SMBi: one unknown, the other batch 3 times as steep: g = 12, y = -48, s as before."""
    x = jnp.array([1.0])
    found, _ = step(
        independent_model_building(1.0, eta=0.5), quadratic([4.0]), x, model_fn=quadratic([12.0])
    )
    sigma = (4 * (48 + 12 / 0.5) - 4 * 48) / 2
    np.testing.assert_allclose(found, [-16 * 12 / (2 * sigma + 2 * 4 * 48)], rtol=1e-5)


def test_the_rate_is_looked_at_once_an_epoch():
    optimizer = model_building_sgd(1.0, epoch=2)
    x, state = jnp.array([1.0]), None
    rates = []
    for scale in (0.1, 0.1, 4.0, 0.1):
        _, state = step(optimizer, quadratic([scale]), x, state)
        rates.append(float(state.learning_rate))
    np.testing.assert_allclose(rates, [1, 1 / 0.9, 1 / 0.9, 1], rtol=1e-6)
    assert state is not None and state.modelled == 0
    _, state = step(model_building_sgd(19.0, epoch=1), quadratic([0.01]), x)
    assert state.learning_rate == 20


# ---- as optax tests its own


def test_mixed_precision_in_a_compiled_batched_loop():
    optimizer = optax.chain(optax.clip(10.0), model_building_sgd(3.0, epoch=5))
    start = {"a": jnp.ones((3, 2)), "b": jnp.ones(4, jnp.bfloat16)}

    def function(p):
        return jnp.sum((p["a"] - 1) ** 2) + jnp.sum(p["b"].astype("float32") ** 2)

    def run(scale):
        def advance(carry, _):
            params, state = carry
            value, grad = jax.value_and_grad(function)(params)
            updates, state = optimizer.update(grad, state, params, value=value, value_fn=function)
            return (optax.apply_updates(params, updates), state), value

        params = jax.tree.map(lambda x: (scale * x).astype(x.dtype), start)
        return jax.lax.scan(advance, (params, optimizer.init(params)), length=40)

    (many, _), values = jax.jit(jax.vmap(run))(jnp.array([2.0, 3.0]))
    (alone, state), _ = run(jnp.array(3.0))
    np.testing.assert_allclose(many["a"][1], alone["a"], atol=1e-5)
    assert alone["b"].dtype == jnp.bfloat16 and np.all(values[:, -1] < 1e-2 * values[:, 0])
    shape = jax.tree.map(lambda x: (x.shape, x.dtype), optimizer.init(start))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shape


def test_what_training_ends_with_is_differentiable_in_the_rate():
    """A parameter the loss does not depend on has no curvature: no derivative may be lost to it."""
    function = quadratic([4.0, 0.5, 0.0])

    def final(rate):
        x, optimizer = jnp.array([1.0, 1.0, 1.0]), model_building_sgd(rate)
        params, state = {"a": x[:2], "b": x[2:]}, optimizer.init(x)
        for _ in range(3):
            value, grad = jax.value_and_grad(whole)(params)
            updates, state = optimizer.update(grad, state, params, value=value, value_fn=whole)
            params = optax.apply_updates(params, updates)
        return whole(params)

    def whole(params):
        return function(jnp.concatenate([params["a"], params["b"]]))

    found, both = jax.grad(final), jax.jit(jax.vmap(final))
    for rate in (0.1, 1.0):
        up, down = both(jnp.array([rate + 1e-2, rate - 1e-2]))
        np.testing.assert_allclose(found(rate), (up - down) / 2e-2, rtol=0.02, atol=1e-4)


def test_it_stays_at_a_minimum():
    found, state = step(model_building_sgd(1.0), quadratic([1.0, 3.0]), jnp.zeros(2))
    np.testing.assert_array_equal(found, 0)
    assert state.modelled == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: model_building_sgd(0.0), "learning_rate 0.0"),
        (lambda: model_building_sgd(c=1.0), "c 1.0"),
        (lambda: model_building_sgd(eta=0.0), "eta 0.0"),
        (lambda: model_building_sgd(epoch=0), "epoch 0"),
        (lambda: update({"value": 1.0}), "needs value_fn"),
        (lambda: update({"value_fn": jnp.sum}), "needs value,"),
        (
            lambda: update({"value": 1.0, "value_fn": jnp.sum}, independent_model_building),
            "model_fn",
        ),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


def update(extra, make=model_building_sgd):
    optimizer, x = make(), jnp.ones(2)
    return optimizer.update(x, optimizer.init(x), x, **extra)
