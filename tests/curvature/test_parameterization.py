"""Width scalings: roles, standard deviations, rates; Shampoo and K-FAC against dense algebra."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.errors import InputError, UnknownName
from nearly.curvature.objective import Objective, SquaredError
from nearly.curvature.parameterization import (
    RATE_EXPONENTS,
    Scaling,
    coordinate_check,
    heuristic_damping,
    kfac_descent,
    layer_moments,
    mup_init,
    mup_scale,
    roles,
    shampoo,
    trace_damping,
)
from nearly.training.architectures import mlp

KEY = jax.random.key(0)


def network(width, inputs=3):
    return mlp([inputs, width, width, 2], KEY, activation=jnp.tanh)


def arrays(model):
    return eqx.filter(model, eqx.is_inexact_array)


def test_roles_are_read_off_the_shapes():
    found = roles(network(32), network(8))
    assert found.layers[0].weight == Scaling("input", 4.0, 3)
    assert found.layers[0].bias == Scaling("input", 4.0, 1)
    assert found.layers[1].weight == Scaling("hidden", 4.0, 32)
    assert found.layers[2].weight == Scaling("output", 4.0, 32)
    assert found.layers[2].bias == Scaling("fixed", 1.0, 1)


def test_a_base_of_the_same_width_is_refused() -> None:
    with pytest.raises(InputError, match="same widths"):
        mup_init(network(64), network(64), KEY)


def test_standard_deviations():
    wide = mup_init(network(1024), network(64), KEY)
    expected = (3**-0.5, 1024**-0.5, 1024**-1.0)
    for layer, std in zip(wide.layers, expected):
        assert float(jnp.std(layer.weight)) == pytest.approx(std, rel=0.05)
        assert not np.any(np.asarray(layer.bias))


def test_at_the_bases_width_nothing_is_scaled():
    model = arrays(network(8))
    for rule in RATE_EXPONENTS:
        scaled = mup_scale(optax.sgd(0.1), model, model, rule=rule)
        updates, _ = scaled.update(model, scaled.init(model), model)
        for got, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(model)):
            np.testing.assert_allclose(got, -0.1 * leaf, rtol=1e-6)


def test_rates_are_scaled_by_role():
    model = arrays(network(32))
    scaled = mup_scale(optax.sgd(1.0), model, network(8), rule="sgd")
    ones = jax.tree.map(jnp.ones_like, model)
    updates, _ = scaled.update(ones, scaled.init(model), model)
    factors = [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(updates)]
    # weight and bias of each layer: 4^1, 4^1; 4^0, 4^1; 4^-1, 4^0
    np.testing.assert_allclose(factors, [-4, -4, -1, -4, -0.25, -1])


def test_shampoo_whitens_a_single_gradient():
    # After one step L = G G^T and R = G^T G, so L^-1/4 G R^-1/4 = U V^T: the polar factor.
    with jax.enable_x64(True):
        gradient = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4)))
        optimizer = shampoo(0.5, ridge=1e-12)
        step, _ = optimizer.update(gradient, optimizer.init(gradient))
        u, _, vt = np.linalg.svd(np.asarray(gradient))
        np.testing.assert_allclose(step, -0.5 * u @ vt, atol=1e-6)
        vector = jnp.asarray([3.0, 4.0])
        optimizer = shampoo(1.0, ridge=1e-12)
        step, _ = optimizer.update(vector, optimizer.init(vector))
        np.testing.assert_allclose(step, -vector / 5, atol=1e-6)


def test_shampoo_leaves_long_axes_alone_and_keeps_old_roots():
    gradient = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5)), jnp.float32)
    optimizer = shampoo(1.0, largest_axis=3, every=2)
    state = optimizer.init(gradient)
    assert [len(roots) for roots in state.roots] == [1]
    first, state = optimizer.update(gradient, state)
    second, later = optimizer.update(2 * gradient, state)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-5)
    third, _ = optimizer.update(gradient, later)
    assert not np.allclose(third, first)


@pytest.fixture(scope="module")
def regression():
    draw = np.random.default_rng(2).normal
    data = (jnp.asarray(draw(size=(20, n)), jnp.float32) for n in (3, 2))
    return Objective.of(network(5), SquaredError(), *data)


def test_moments_are_those_of_inputs_and_cotangents(regression):
    moments = layer_moments(regression.capture(), regression, KEY)
    x = np.asarray(regression.inputs)
    rows = np.concatenate([x, np.ones((20, 1))], axis=1)
    np.testing.assert_allclose(moments["layers[0]"].inputs, rows.T @ rows / 20, rtol=1e-5)
    # Squared error's targets are normal about the output: cotangents have a multiple of I.
    last = np.asarray(layer_moments(regression.capture(), regression, KEY)["layers[2]"].outputs)
    assert last.shape == (2, 2) and np.all(np.linalg.eigvalsh(last) > 0)


def test_kfac_solves_with_both_damped_factors(regression):
    capture = regression.capture()
    moments = layer_moments(capture, regression, KEY)
    gradient = jax.grad(regression.value)(regression.parameters)
    damping = trace_damping(0.1)
    optimizer = kfac_descent(0.5, capture, damping)
    updates, state = optimizer.update(
        gradient, optimizer.init(regression.parameters), moments=moments
    )
    got, raw = capture.matrices(updates), capture.matrices(gradient)
    for name, m in moments.items():
        a, s = (np.asarray(f, np.float64) for f in m)
        right, left = a + 0.1 * np.trace(a) * np.eye(len(a)), s + 0.1 * np.trace(s) * np.eye(len(s))
        exact = -0.5 * np.linalg.solve(left, np.asarray(raw[name])) @ np.linalg.inv(right)
        np.testing.assert_allclose(got[name], exact, rtol=2e-3, atol=1e-5 * np.abs(exact).max())
    again, _ = optimizer.update(gradient, state, moments=moments)  # the bias is corrected
    for first, second in zip(jax.tree.leaves(updates), jax.tree.leaves(again)):
        np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-6)


def test_the_heuristic_splits_the_damping(regression):
    m = layer_moments(regression.capture(), regression, KEY)["layers[1]"]
    first, second = heuristic_damping(0.01)("layers[1]", m)
    assert float(first * second) == pytest.approx(0.01, rel=1e-5)
    ratio = (jnp.trace(m.inputs) / len(m.inputs)) / (jnp.trace(m.outputs) / len(m.outputs))
    assert float(first / second) == pytest.approx(float(ratio), rel=1e-4)


def test_the_coordinate_check_finds_a_known_exponent():
    def changes(width, seed):
        return {"flat": np.ones(3) * (1 + seed), "growing": np.full(width, width**0.5)}

    found = coordinate_check(changes, (8, 32, 128), seeds=(0, 1))
    assert found["flat"] == pytest.approx(0, abs=1e-12)
    assert found["growing"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: roles(network(8), mlp([3, 4, 2], KEY)), InputError, "more than their widths"),
        (
            lambda: roles(eqx.nn.Linear(9, 4, key=KEY), eqx.nn.Linear(3, 2, key=KEY)),
            InputError,
            "grow by 2 and 3",
        ),
        (
            lambda: mup_scale(optax.sgd(1.0), network(8), network(4), rule="lion"),
            UnknownName,
            "lion",
        ),
        (lambda: shampoo(0.1, decay=0.0), InputError, "decay 0.0"),
        (lambda: trace_damping(0.0), InputError, "rho 0.0"),
        (lambda: heuristic_damping(-1.0), InputError, "damping -1.0"),
        (lambda: coordinate_check(lambda w, s: {}, (8, 8)), InputError, "two different"),
    ],
)
def test_errors_name_value_and_remedy(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_kfac_says_what_it_needs(regression):
    capture = regression.capture()
    optimizer = kfac_descent(0.1, capture, trace_damping(0.1))
    with pytest.raises(InputError, match="moments="):
        optimizer.update(regression.parameters, optimizer.init(regression.parameters))
    with pytest.raises(InputError, match="decay 1"):
        kfac_descent(0.1, capture, trace_damping(0.1), decay=1.0)
