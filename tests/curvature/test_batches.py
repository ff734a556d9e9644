"""`capture_fn`: what it gives is the gradient, for any loss, inside compiled programs, billed."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.tally import tally
from nearly.curvature.batches import CaptureFunction, capture_function
from nearly.curvature.named_layers import Layers, linear_layer_names
from nearly.curvature.objective import CrossEntropy, SquaredError
from nearly.errors import InputError

KEY = jax.random.key(0)
MODEL = eqx.nn.MLP(3, 4, 5, 1, jnp.tanh, key=KEY)
INPUTS = jax.random.normal(jax.random.key(1), (6, 3))
LABELS = jnp.asarray([0, 1, 2, 3, 0, 1])
PARAMS, REST = eqx.partition(MODEL, eqx.is_inexact_array)


def losses(model, inputs, targets):
    return jax.vmap(CrossEntropy())(jax.vmap(model)(inputs), targets)


def mean_gradients(captured):
    return {n: jnp.einsum("bto,bti->oi", c.deltas, c.rows) / 6 for n, c in captured.items()}


def gradient_matrices(loss, targets):
    def mean(params):
        outputs = jax.vmap(eqx.combine(params, MODEL))(INPUTS)
        return jnp.mean(jax.vmap(loss)(outputs, targets))

    return Layers.named(PARAMS).matrices(jax.grad(mean)(PARAMS))


def test_rows_and_deltas_make_the_gradient_where_the_parameters_are_traced():
    @jax.jit
    def found(params, inputs, targets):
        model = eqx.combine(params, MODEL)
        return capture_function(model, CrossEntropy(), inputs, targets)(params)

    captured = found(PARAMS, INPUTS, LABELS)
    assert captured["layers[0]"].rows.shape == (6, 1, 4)
    truth = gradient_matrices(CrossEntropy(), LABELS)
    for name, matrix in mean_gradients(captured).items():
        np.testing.assert_allclose(matrix, truth[name], atol=1e-6)


def test_drawn_targets_are_those_of_the_models_distribution():
    """The mean of deltas' squares at the output is the Hessian: p - p^2 on the diagonal."""
    wanted = capture_function(MODEL, CrossEntropy(), INPUTS, LABELS)
    keys = jax.random.split(KEY, 2000)
    deltas = jax.jit(jax.vmap(lambda k: wanted(PARAMS, k)["layers[1]"].deltas[:, 0]))(keys)
    p = jax.nn.softmax(jax.vmap(MODEL)(INPUTS))
    np.testing.assert_allclose(jnp.mean(deltas**2, 0), p - p**2, atol=0.03)


def test_a_key_needs_a_likelihood():
    plain = capture_function(MODEL, lambda o, t: jnp.sum((o - t) ** 2), INPUTS, jnp.zeros((6, 4)))
    with pytest.raises(InputError, match="no targets can be drawn"):
        plain(PARAMS, KEY)
    drawn = capture_function(MODEL, SquaredError(), INPUTS, jnp.zeros((6, 4)))
    assert drawn(PARAMS, KEY).keys() == drawn(PARAMS).keys()


def test_a_call_is_a_gradient_on_the_bill_and_none_is_none():
    wanted = CaptureFunction(losses, REST, INPUTS, LABELS, units=("losses",))

    @jax.jit
    def sometimes(params, call):
        return jax.lax.cond(
            call, lambda: wanted(params)["layers[0]"].deltas, lambda: jnp.zeros((6, 1, 5))
        )

    def used(call):
        with tally() as counts:
            jax.block_until_ready(sometimes(PARAMS, call))
        return counts.read()

    assert used(True) == {"losses": 1, "losses jvps": 0, "losses vjps": 1}
    assert sum(used(False).values()) == 0


class Tied(eqx.Module):
    free: eqx.nn.Linear
    grouped: eqx.nn.Conv1d

    def __init__(self):
        self.free = eqx.nn.Linear(4, 2, key=KEY)
        self.grouped = eqx.nn.Conv1d(2, 4, 1, groups=2, key=KEY)

    def __call__(self, x):
        return self.free(self.grouped(x[:, None])[:, 0])


def test_what_is_no_linear_map_is_left_out():
    model = Tied()
    assert linear_layer_names(model) == ("free",)
    found = capture_function(model, SquaredError(), INPUTS[:, :2], INPUTS[:, :2])
    assert set(found(eqx.filter(model, eqx.is_inexact_array))) == {"free"}
    with pytest.raises(InputError, match="2 groups"):
        Layers.named(model, ["grouped"])


def test_a_model_without_layers_has_nothing_to_capture():
    found = CaptureFunction(lambda w, x, t: x @ w - t, None, INPUTS, LABELS)
    assert found(jnp.ones(3)) == {}
