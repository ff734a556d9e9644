"""Spectra by Lanczos quadrature, the law of batches, and the learner of rate and momentum."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

from nearly.core.errors import InputError
from nearly.curvature.objective import Objective, SquaredError
from nearly.curvature.operators import Hessian
from nearly.curvature.spectrum import (
    batch_largest_eigenvalue,
    batch_law,
    heavy_ball_settings,
    hessian_noise,
    lanczos_momentum,
    lanczos_quadrature,
    largest_eigenvalue,
    largest_stable_rate,
)

KEY = jax.random.key(0)


def symmetric(values, seed=0):
    values = np.asarray(values, np.float64)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return lx.MatrixLinearOperator(jnp.asarray(turn * values @ turn.T), lx.symmetric_tag)


def linear_regression(samples=24, size=3):
    draw = np.random.default_rng(1).normal
    model = eqx.nn.Linear(size, 1, use_bias=False, key=KEY)
    inputs = jnp.asarray(draw(size=(samples, size)), jnp.float32)
    return Objective.of(model, SquaredError(), inputs, jnp.asarray(draw(size=(samples, 1)), "f4"))


def test_as_many_steps_as_unknowns_give_the_spectrum_itself():
    with jax.enable_x64(True):
        values = np.linspace(-1, 3, 12)
        found = lanczos_quadrature(symmetric(values), KEY, steps=12, probes=3)
        np.testing.assert_allclose(found.nodes, np.tile(values, (3, 1)), atol=1e-12)
        np.testing.assert_allclose(np.sum(found.weights, axis=1), 1, atol=1e-12)
        assert found.largest == pytest.approx(3) and found.smallest == pytest.approx(-1)


def test_traces_of_low_degree_are_those_of_the_probes():
    # For each probe v, the quadrature of x^k is v^T A^k v, exact up to k = 2 steps - 1.
    with jax.enable_x64(True):
        operator = symmetric(np.geomspace(0.1, 10, 20))
        found = lanczos_quadrature(operator, KEY, steps=3, probes=1)
        probe = jax.random.rademacher(jax.random.split(KEY, 1)[0], (20,), jnp.float64)
        matrix = np.asarray(operator.as_matrix())
        for power in range(6):
            exact = probe @ np.linalg.matrix_power(matrix, power) @ probe
            assert float(found.trace(lambda x, k=power: x**k)) == pytest.approx(float(exact))


def test_a_trace_lies_within_its_standard_error():
    with jax.enable_x64(True):
        values = np.linspace(0.5, 4, 40)
        found = lanczos_quadrature(symmetric(values), KEY, steps=15, probes=64)
        error = abs(float(found.trace(jnp.log)) - np.log(values).sum())
        assert 0 < float(found.trace_error(jnp.log)) < 2 and error < 4 * found.trace_error(jnp.log)


def test_density_integrates_to_one_and_cumulates():
    found = lanczos_quadrature(symmetric(np.linspace(0, 1, 30)), KEY, steps=10, probes=4)
    points = jnp.linspace(-2, 3, 2001)
    assert float(jnp.trapezoid(found.density(points, 0.1), points)) == pytest.approx(1, abs=1e-3)
    share = np.asarray(found.cumulative(jnp.asarray([-1.0, 0.5, 2.0])))
    assert share[0] == 0 and share[2] == pytest.approx(1) and abs(share[1] - 0.5) < 0.2


def test_the_hessian_of_linear_regression_by_hand():
    objective = linear_regression()
    x = np.asarray(objective.inputs, np.float64)
    scale = float(Hessian(objective).as_matrix()[0, 0] / (x[:, 0] @ x[:, 0] / len(x)))
    exact = np.linalg.eigvalsh(x.T @ x / len(x)).max() * scale
    found = largest_eigenvalue(Hessian(objective), KEY, steps=3)
    assert float(found) == pytest.approx(exact, rel=1e-5)
    whole = batch_largest_eigenvalue(objective, 24, KEY, draws=2, steps=3)
    np.testing.assert_allclose(whole, exact, rtol=1e-5)
    assert float(jnp.mean(batch_largest_eigenvalue(objective, 4, KEY, steps=3))) > exact


def test_noise_is_the_mean_squared_distance_of_the_samples_hessians():
    objective = linear_regression()
    x = np.asarray(objective.inputs, np.float64)
    scale = float(Hessian(objective).as_matrix()[0, 0] / (x[:, 0] @ x[:, 0] / len(x)))
    apart = scale * (x[:, :, None] * x[:, None, :] - x.T @ x / len(x))
    exact = np.mean(np.sum(apart**2, axis=(1, 2))) / 3
    found = hessian_noise(objective, KEY, samples=24, probes=400)
    assert float(found) == pytest.approx(exact, rel=0.1)


def test_the_law_holds_for_the_noise_it_assumes():
    # A Wigner matrix of variance s^2 / B plus one eigenvalue: what the theorem is about.
    size, largest = 400, 1.0
    draw = np.random.default_rng(0).normal(size=(size, size))
    wigner = (draw + draw.T) / np.sqrt(2)
    spike = np.zeros((size, size))
    spike[0, 0] = largest
    for noise in (0.2, 2.25):  # above and below the transition at noise = largest^2
        matrix = spike + wigner * np.sqrt(noise / size)
        predicted = float(batch_law(largest, noise, 1.0))
        assert np.linalg.eigvalsh(matrix).max() == pytest.approx(predicted, rel=0.05)
    assert float(batch_law(1.0, 5.0, 100.0, 100.0)) == pytest.approx(1.0)  # the batch is all data


def test_the_largest_stable_rate_of_full_gradients_is_two_over_the_eigenvalue():
    objective = linear_regression()
    exact = 2 / float(largest_eigenvalue(Hessian(objective), KEY, steps=3))
    rate = largest_stable_rate(objective, 24, KEY, steps=400, rounds=14)
    assert float(rate) == pytest.approx(exact, rel=0.05)


def test_optimal_settings_are_polyaks():
    rate, momentum = heavy_ball_settings(1.0, 100.0)
    assert float(rate) == pytest.approx(4 / 121) and float(momentum) == pytest.approx((9 / 11) ** 2)


def test_the_learner_follows_a_loss_that_changes():
    optimizer = optax.chain(optax.clip_by_global_norm(1e6), lanczos_momentum(KEY, every=2, steps=2))
    params = {"a": jnp.ones(2), "b": jnp.ones(1)}
    state = optimizer.init(params)

    def loss(scale):
        return lambda p: scale * (jnp.sum(p["a"] ** 2) + 2 * jnp.sum(p["b"] ** 2)) / 2

    update = jax.jit(lambda g, s, p, scale: optimizer.update(g, s, p, value_fn=loss(scale)))
    rates = []
    for scale in (1.0, 1.0, 4.0):
        updates, state = update(jax.grad(loss(scale))(params), state, params, scale)
        params = optax.apply_updates(params, updates)
        rates.append(float(state[1].rate))
    exact = float(heavy_ball_settings(1.0, 2.0)[0])
    np.testing.assert_allclose(rates, [exact, exact, exact / 4], rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lanczos_quadrature(symmetric([1, 2.0]), KEY, steps=3), "3 Lanczos steps"),
        (lambda: lanczos_quadrature(symmetric([1, 2.0]), KEY, steps=1, probes=0), "0 probes"),
        (lambda: lanczos_momentum(KEY, floor=0.0), "floor 0.0"),
        (lambda: lanczos_momentum(KEY).update({}, None), "value_fn"),
        (lambda: batch_largest_eigenvalue(linear_regression(), 25, KEY), "25 out of 24"),
        (lambda: largest_stable_rate(linear_regression(), 4, KEY, low=0.0), "low 0.0"),
        (
            lambda: lanczos_quadrature(symmetric([1, 2.0]), KEY, steps=1).density(
                jnp.zeros(1), 0.0
            ),
            "width 0.0",
        ),
    ],
)
def test_errors_name_value_and_remedy(call, message):
    with pytest.raises(InputError, match=message):
        call()
