"""Accelerated SGD under interpolation: against Nesterov's method, by hand, as optax does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.errors import InputError
from nearly.optimize.accelerate import (
    best_parameters,
    interpolation_sgd,
    semi_stochastic_acceleration,
    triple_momentum,
    unsafe_interpolation_sgd,
)
from nearly.optimize.problems.sums import strong_growth_counterexample

SCALES = np.linspace(0.1, 1, 10)


def path(optimizer, steps, gradient=lambda y: SCALES * y, start=None):
    """The parameters and the best ones after each step, float64."""
    y = jnp.ones(10) if start is None else jnp.asarray(start)

    def advance(carry, _):
        y, state = carry
        updates, state = optimizer.update(gradient(y), state, y)
        y = y + updates
        return (y, state), (y, state)

    _, (ys, states) = jax.jit(
        lambda y: jax.lax.scan(advance, (y, optimizer.init(y)), length=steps)
    )(y)
    return ys, states


def test_without_noise_it_is_nesterovs_method():
    """x+ = y - g / L, y+ = x+ + (1 - sqrt q) / (1 + sqrt q) (x+ - x)."""
    with jax.enable_x64(True):
        ys, states = path(interpolation_sgd(1.0, 1.0, 0.1), 30)
        found = [jax.vmap(best_parameters)(states, ys), ys]
    momentum = (1 - 0.1**0.5) / (1 + 0.1**0.5)
    x = y = np.ones(10)
    for k in range(30):
        ahead = y - SCALES * y
        y = ahead + momentum * (ahead - x)
        x = ahead
        np.testing.assert_allclose(found[0][k], x, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[1][k], y, rtol=1e-9, atol=1e-12)


def test_without_convexity_it_keeps_nesterovs_bound():
    """f(w) <= 4 (f_0 + L |x_0 - x*|^2 / 2) / (k + 2)^2, on a quadratic with flat directions."""
    scales = np.geomspace(1e-5, 1, 10)
    with jax.enable_x64(True):
        ys, states = path(interpolation_sgd(1.0), 200, lambda y: scales * y)
        ws = jax.vmap(best_parameters)(states, ys)
        values = np.asarray(jnp.sum(scales * ws**2, axis=1) / 2)
    times = np.arange(1, 201)
    bound = 4 * (scales.sum() / 2 + 10 / 2) / (times + 2) ** 2
    assert np.all(values <= bound)


def test_the_safe_step_is_the_long_ones_of_a_smaller_product():
    """rho = 4: a^2 = q with q = eta / 4 when c = mu = 1, so a = sqrt(eta) / 2."""
    with jax.enable_x64(True):
        _, states = path(interpolation_sgd(0.04, 4.0, 1.0), 1, start=np.full(10, 2.0))
    # z+ = (1 - a) z + a y - a g = 2 - a 2 s
    np.testing.assert_allclose(states.long[0], 2 - 0.1 * 2 * SCALES, rtol=1e-12)


def test_exact_gradients_for_all_make_the_semi_stochastic_method_the_plain_one():
    y = jnp.ones(10)
    plain, semi = interpolation_sgd(0.5, 1.0, 0.1), semi_stochastic_acceleration(0.5, 0.1)
    unsafe = unsafe_interpolation_sgd(0.5, 0.1)
    expected, _ = plain.update(SCALES * y, plain.init(y), y)
    found, _ = semi.update(SCALES * y, semi.init(y), y, exact_grad=SCALES * y)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(unsafe.update(SCALES * y, unsafe.init(y), y)[0], expected)
    other, _ = semi.update(SCALES * y, semi.init(y), y, exact_grad=0 * y)
    assert np.all(other != expected)


def test_a_coordinate_that_was_not_asked_for_stays():
    problem = strong_growth_counterexample(size=8, steps=(10,))
    key = jax.random.key(0)
    standin = problem.build(interpolation_sgd(1 / 8, 8.0, 1.0), 10, key=None)
    found = np.asarray(problem.apply(standin, key=key))
    draws = [problem._chosen(jax.random.fold_in(jax.random.split(key)[1], k)) for k in range(10)]
    asked = np.isin(np.arange(8), np.ravel(draws))
    assert 0 < asked.sum() < 8
    np.testing.assert_array_equal(found[~asked], 0)
    assert np.all(found[asked] != 0)
    # On average half the squared distance, the strong growth constant the number of unknowns.
    assert problem.errors(np.zeros(8, np.float32))["training loss"] == pytest.approx(4.0)


def test_triple_momentum_has_its_rate():
    with jax.enable_x64(True):
        ys, _ = path(triple_momentum(0.1, 1.0), 120)
    size = np.linalg.norm(ys, axis=1)
    rate = (size[119] / size[19]) ** (1 / 100)
    assert rate == pytest.approx(1 - 0.1**0.5, abs=0.03)


def test_triple_momentum_by_hand():
    """kappa = 4: fall 1/2, rate 3/2 / L, momentum 1/6, look-ahead 1/9."""
    ys, _ = path(triple_momentum(0.25, 1.0), 2, lambda y: y, start=np.ones(1))
    first = 1 - 1.5
    y = first + (first - 1) / 9
    second = first + (first - 1) / 6 - 1.5 * y
    np.testing.assert_allclose(ys[:, 0], [y, second + (second - first) / 9], rtol=1e-5)


# ---- as optax tests its own

OPTIMIZERS = {
    "interpolation": interpolation_sgd(0.2, 2.0, 0.1),
    "convex": interpolation_sgd(0.2),
    "triple momentum": triple_momentum(0.5, 4.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mixed_precision_in_a_compiled_batched_loop(name):
    optimizer = optax.chain(optax.clip(10.0), OPTIMIZERS[name])
    start = {"a": jnp.ones((3, 2)), "b": jnp.ones(4, jnp.bfloat16)}

    def run(scale):
        def advance(carry, _):
            params, state = carry
            updates, state = optimizer.update(params, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jax.tree.map(lambda x: (scale * x).astype(x.dtype), start)
        return jax.lax.scan(advance, (params, optimizer.init(params)), length=60)[0]

    many, _ = jax.jit(jax.vmap(run))(jnp.array([1.0, 2.0]))
    alone, state = run(jnp.array(2.0))
    np.testing.assert_allclose(many["a"][1], alone["a"], atol=1e-6)
    assert alone["b"].dtype == jnp.bfloat16 and np.abs(alone["a"]).max() < 0.05
    shape = jax.tree.map(lambda x: (x.shape, x.dtype), optimizer.init(start))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == shape


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interpolation_sgd(0.0), "learning_rate 0.0"),
        (lambda: interpolation_sgd(0.1, 0.5), "growth 0.5"),
        (lambda: interpolation_sgd(0.1, 1.0, -1.0), "strong_convexity -1.0"),
        (lambda: triple_momentum(1.0, 1.0), "1.0 and 1.0"),
        (lambda: strong_growth_counterexample(1), "size 1"),
        (lambda: step(interpolation_sgd(0.1)), "needs the parameters"),
        (lambda: step(semi_stochastic_acceleration(0.1), jnp.ones(2)), "exact_grad"),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


def step(optimizer, params=None):
    return optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)), params)
