"""K-FAC: its step is the dense damped solve, its factors are those of every example, by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.curvature.batches import capture_function
from nearly.curvature.capture import Captured
from nearly.curvature.objective import CrossEntropy, SquaredError
from nearly.errors import InputError
from nearly.optimize.kronecker import kfac, scale_by_kfac
from nearly.optimize.kronecker.kfac import batch_moments

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def linear(matrix):
    layer = eqx.nn.Linear(matrix.shape[1], matrix.shape[0], use_bias=False, key=KEY)
    return eqx.tree_at(lambda m: m.weight, layer, matrix)


def gradient_and_capture(model, loss, inputs, targets):
    def mean(params):
        return jnp.mean(
            jax.vmap(lambda x, t: loss(eqx.combine(params, model)(x), t))(inputs, targets)
        )

    params = eqx.filter(model, eqx.is_inexact_array)
    return params, jax.grad(mean)(params), capture_function(model, loss, inputs, targets)


def direction(model, loss, inputs, targets, **settings):
    optimizer = scale_by_kfac(0.1, **settings)

    @eqx.filter_jit
    def update(model):
        params, grads, capture_fn = gradient_and_capture(model, loss, inputs, targets)
        return optimizer.update(grads, optimizer.init(params), params, capture_fn=capture_fn)

    return update(model)


def linear_direction(inputs, deltas, drawn, **settings):
    """For a linear model: the batch's deltas make the gradient, those drawn the factor."""
    optimizer = scale_by_kfac(0.1, **settings)
    seen = {"model": Captured(inputs[:, None], drawn[:, None])}

    @jax.jit
    def update(params):
        state = optimizer.init(params)
        return optimizer.update(params, state, params, capture_fn=lambda params: seen)[0]

    return update(linear(deltas.T @ inputs / len(inputs))).weight


# ---- against dense references


def test_a_step_is_the_dense_damped_kronecker_solve():
    """Every example's activations and cotangents by hand, the solve with the full matrix."""
    with jax.enable_x64(True):
        inputs, labels = draw(7, 3), np.arange(7) % 4
        model = eqx.nn.MLP(3, 4, 5, 1, jnp.tanh, key=KEY)
        model = jax.tree.map(lambda x: x.astype("float64") if eqx.is_array(x) else x, model)
        found, _ = direction(model, CrossEntropy(), inputs, jnp.asarray(labels), clip=None)
        first, last = model.layers
        ones = np.ones((7, 1))
        hidden = np.tanh(inputs @ first.weight.T + first.bias)
        logits = hidden @ last.weight.T + last.bias
        out = np.asarray(jax.nn.softmax(logits)) - np.eye(4)[labels]
        into = (out @ last.weight) * (1 - hidden**2)
        for rows, deltas, got in (
            (np.hstack([inputs, ones]), into, found.layers[0]),
            (np.hstack([hidden, ones]), out, found.layers[1]),
        ):
            a, s, g = rows.T @ rows / 7, deltas.T @ deltas / 7, deltas.T @ rows / 7
            pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(s) / len(s)))
            full = np.kron(
                s + np.sqrt(1e-3) / pi * np.eye(len(s)), a + np.sqrt(1e-3) * pi * np.eye(len(a))
            )
            expected = np.linalg.solve(full, g.ravel()).reshape(g.shape)
            np.testing.assert_allclose(got.weight, expected[:, :-1], rtol=1e-8)
            np.testing.assert_allclose(got.bias, expected[:, -1], rtol=1e-8)


def test_a_convolutions_uses_are_its_positions():
    with jax.enable_x64(True):
        model = eqx.nn.Conv1d(2, 3, 2, dtype="float64", key=KEY)
        inputs, targets = draw(4, 2, 5), draw(4, 3, 4, seed=1)
        _, state = direction(model, SquaredError(), inputs, targets)
        (moments,) = state.moments.values()
        a, s = 0, 0
        for x, t in zip(np.asarray(inputs), np.asarray(targets)):
            deltas = np.asarray(model(x)) - t
            for position in range(4):
                patch = np.append(x[:, position : position + 2].ravel(), 1)
                a = a + np.outer(patch, patch) / (4 * 4)
                s = s + np.outer(deltas[:, position], deltas[:, position]) / 4
        np.testing.assert_allclose(moments.inputs, a, rtol=1e-10)
        np.testing.assert_allclose(moments.outputs, s, rtol=1e-10)


def test_uses_that_are_independent_make_the_product_the_fisher_matrix():
    rows = jnp.ones((1, 3, 2))
    moments = batch_moments(Captured(rows, jnp.eye(3)[None]))
    np.testing.assert_allclose(moments.inputs, np.ones((2, 2)))
    np.testing.assert_allclose(moments.outputs, np.eye(3))


# ---- what natural gradients do


def test_one_step_solves_a_linear_regression():
    with jax.enable_x64(True):
        inputs = draw(4000, 5) * np.geomspace(1, 100, 5)
        truth = draw(1, 5, seed=1)
        drawn = draw(4000, 1, seed=2)  # cotangents of targets drawn from the model
        found = linear_direction(inputs, -inputs @ truth.T, drawn, damping=1e-12, clip=None)
        np.testing.assert_allclose(-found, truth, rtol=0.1)


def test_a_change_of_the_inputs_coordinates_changes_nothing():
    with jax.enable_x64(True):
        inputs, deltas, mixing = draw(50, 4), draw(50, 2, seed=1), draw(4, 4, seed=2)
        settings = {"damping": 1e-13, "clip": None}
        plain = linear_direction(inputs, deltas, deltas, **settings)
        mixed = linear_direction(inputs @ mixing.T, deltas, deltas, **settings)
        np.testing.assert_allclose(mixed @ mixing, plain, atol=1e-5)


def test_clipping_bounds_the_predicted_change():
    inputs, deltas = draw(8, 3), draw(8, 2, seed=1)
    gradient = deltas.T @ inputs / 8
    free = linear_direction(inputs, deltas, deltas, clip=None)
    slope = 0.1**2 * jnp.sum(free * gradient)
    clipped = linear_direction(inputs, deltas, deltas, clip=float(slope) / 4)
    np.testing.assert_allclose(clipped, free / 2, rtol=1e-5)
    loose = linear_direction(inputs, deltas, deltas, clip=float(slope) * 4)
    np.testing.assert_allclose(loose, free, rtol=1e-5)


# ---- state, precision, parameters outside


def test_moments_are_a_mean_before_they_are_a_moving_average():
    optimizer = scale_by_kfac(0.1, capture_every=2, decay=0.6)
    params = linear(jnp.ones((1, 1)))

    @jax.jit
    def step(state, size):
        row = {"model": Captured(jnp.reshape(size, (1, 1, 1)), jnp.ones((1, 1, 1)))}
        _, state = optimizer.update(params, state, params, capture_fn=lambda params: row)
        return state, state.moments["model"].inputs[0, 0]

    sizes = jnp.asarray([1.0, 0.0, 3.0, 0.0, 5.0, 0.0, 2.0])
    _, seen = jax.lax.scan(step, optimizer.init(params), sizes)
    two, three = (1 + 9) / 2, 0.6 * 5 + 0.4 * 25
    np.testing.assert_allclose(
        seen, [1, 1, two, two, three, three, 0.6 * three + 0.4 * 4], rtol=1e-6
    )


class Scaled(eqx.Module):
    layer: eqx.nn.Linear
    scale: jax.Array

    def __call__(self, x):
        return self.scale * self.layer(x)


def test_half_precision_scan_and_parameters_outside_of_layers():
    inputs = draw(16, 3).astype("float32")
    targets = inputs @ jnp.ones((3, 2))
    layer = jax.tree.map(lambda x: x.astype(jnp.bfloat16), eqx.nn.Linear(3, 2, key=KEY))
    model = Scaled(layer, jnp.ones(()))
    optimizer = kfac(0.1, key=KEY, rest=optax.scale(0.5))

    def step(carry, _):
        params, state = carry
        _, grads, capture_fn = gradient_and_capture(params, SquaredError(), inputs, targets)
        updates, state = optimizer.update(grads, state, params, capture_fn=capture_fn)
        return (optax.apply_updates(params, updates), state), (grads.scale, updates.scale)

    params = eqx.filter(model, eqx.is_inexact_array)
    start = (params, optimizer.init(params))
    (after, state), (slopes, steps) = jax.jit(lambda s: jax.lax.scan(step, s, length=30))(start)
    assert after.layer.weight.dtype == jnp.bfloat16
    assert state[0].inverses["layer"].inputs.dtype == jnp.float32
    np.testing.assert_allclose(steps[0], -0.1 * 0.5 * slopes[0], rtol=1e-5)
    before, now = (jnp.mean((jax.vmap(m)(inputs) - targets) ** 2) for m in (model, after))
    assert now < 0.3 * before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decay": 1.0}, "decay 1.0"),
        ({"clip": 0.0}, "clip 0.0"),
        ({"capture_every": 0}, "capture_every 0"),
        ({"invert_every": 0}, "invert_every 0"),
        ({"damping": -1.0}, "damping -1.0"),
        ({"momentum": 1.0}, "momentum 1.0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        kfac(0.1, **settings)


def test_what_it_needs_is_named():
    params = linear(jnp.ones((2, 3)))
    optimizer = scale_by_kfac(0.1)
    state = optimizer.init(params)
    with pytest.raises(InputError, match="capture_fn="):
        optimizer.update(params, state, params)
    with pytest.raises(InputError, match="needs the parameters"):
        optimizer.update(params, state, capture_fn=lambda p: {})
    with pytest.raises(InputError, match="nothing of the layer model"):
        optimizer.update(params, state, params, capture_fn=lambda p: {})
    with pytest.raises(InputError, match="'last' is no linear layer"):
        scale_by_kfac(0.1, layers=["last"]).init(params)
