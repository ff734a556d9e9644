"""MKOR: its inverse is the inverse, steps keep the gradient's norm, the hybrid lets go."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.curvature.batches import capture_function
from nearly.curvature.capture import Captured
from nearly.curvature.objective import SquaredError
from nearly.errors import InputError
from nearly.optimize.kronecker import mkor, scale_by_mkor
from nearly.optimize.kronecker.mkor import (
    exact_update,
    released_update,
    stabilised,
    until_stalled,
)

KEY = jax.random.key(0)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def params_of(matrix):
    layer = eqx.nn.Linear(matrix.shape[1], matrix.shape[0], use_bias=False, key=KEY)
    return eqx.tree_at(lambda m: m.weight, layer, jnp.asarray(matrix))


def telling(rows, deltas):
    return lambda params, key=None: {"model": Captured(jnp.asarray(rows), jnp.asarray(deltas))}


def test_two_hundred_updates_keep_the_inverse():
    with jax.enable_x64(True):
        vectors = draw(200, 12) * np.geomspace(1, 30, 12)
        step = jax.jit(lambda j, v: (exact_update(j, v, 0.9), None))
        found, _ = jax.lax.scan(step, jnp.eye(12), vectors)
        covariance = np.eye(12)
        for v in np.asarray(vectors):
            covariance = 0.9 * covariance + 0.1 * np.outer(v, v)
        np.testing.assert_allclose(found @ covariance, np.eye(12), atol=1e-9)


def test_the_released_update_by_hand():
    found = released_update(2 * jnp.eye(2), jnp.asarray([1.0, 0.0]), 0.5)
    near = 0.5 * 2 + 0.5
    np.testing.assert_allclose(found, np.diag([near - near**2 / (1 + near), near]))


def test_a_step_is_the_preconditioned_gradient_at_its_norm():
    with jax.enable_x64(True):
        rows, deltas, g = draw(6, 1, 4), draw(6, 1, 3, seed=1), draw(3, 4, seed=2)
        optimizer = scale_by_mkor(decay=0.7)
        params = params_of(g)
        updates, _ = optimizer.update(
            params, optimizer.init(params), params, capture_fn=telling(rows, deltas)
        )
        a, d = np.mean(rows, (0, 1)), np.mean(deltas, (0, 1))
        left = np.linalg.inv(0.7 * np.eye(3) + 0.3 * np.outer(d, d))
        right = np.linalg.inv(0.7 * np.eye(4) + 0.3 * np.outer(a, a))
        expected = left @ g @ right
        expected *= np.linalg.norm(g) / np.linalg.norm(expected)
        np.testing.assert_allclose(updates.weight, expected, rtol=1e-10)


def test_it_looks_every_few_steps_and_stabilises_before():
    with jax.enable_x64(True):
        optimizer = scale_by_mkor(decay=0.5, every=2, threshold=1.5, share=0.1)
        params = params_of(jnp.ones((1, 1)))
        state, sizes = optimizer.init(params), []
        for _ in range(5):
            _, state = optimizer.update(
                params, state, params, capture_fn=telling(np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
            )
            sizes.append(float(state.inverses["model"][0][0, 0]))
        second = (0.9 * 2 + 0.1) / 0.5
        np.testing.assert_allclose(sizes, [2, 2, second, second, (0.9 * second + 0.1) / 0.5])


def test_the_stabiliser_leaves_small_inverses_alone():
    small, large = jnp.diag(jnp.asarray([1.0, 2.0])), jnp.diag(jnp.asarray([1.0, 4.0]))
    np.testing.assert_array_equal(stabilised(small, 2.0, 0.1), small)
    np.testing.assert_allclose(stabilised(large, 2.0, 0.1), np.diag([1.0, 3.7]))


def test_what_is_undefined_leaves_the_inverse_as_it_was():
    optimizer = scale_by_mkor()
    params = params_of(np.ones((2, 2)))
    state = optimizer.init(params)
    rows = np.full((1, 1, 2), np.nan)
    updates, after = optimizer.update(params, state, params, capture_fn=telling(rows, rows))
    np.testing.assert_array_equal(after.inverses["model"][0], np.eye(2))
    np.testing.assert_allclose(updates.weight, params.weight, rtol=1e-6)


# ---- MKOR-H


def test_the_hybrid_lets_go_for_good_when_the_loss_stalls():
    inner = scale_by_mkor(decay=0.5, every=1)
    hybrid = until_stalled(inner, stall=0.05, warmup=20)
    params = params_of(np.ones((1, 2)))
    see = telling(np.asarray([[[1.0, 0.0]]]), np.ones((1, 1, 1)))

    @jax.jit
    def step(state, value):
        updates, state = hybrid.update(params, state, params, value=value, capture_fn=see)
        return state, (updates.weight[0, 0] != 1.0, state.stalled)

    losses = np.concatenate([0.8 ** np.arange(20), np.full(700, 0.8**20), 0.5 ** np.arange(7, 20)])
    state, (changed, stalled) = jax.lax.scan(step, hybrid.init(params), jnp.asarray(losses))
    first = int(np.argmax(stalled))
    assert 100 < first < 720 and np.all(stalled[first:])
    np.testing.assert_array_equal(changed, ~np.asarray(stalled))
    np.testing.assert_array_equal(state.inner.steps, len(losses))


# ---- as an optimizer


@pytest.mark.parametrize("update", [exact_update, released_update])
def test_it_trains_in_half_precision_in_a_compiled_loop(update):
    inputs = draw(16, 3).astype("float32")
    targets = inputs @ jnp.ones((3, 2), "float32")
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16), eqx.nn.Linear(3, 2, key=KEY))
    optimizer = mkor(optax.sgd(0.1, momentum=0.9), every=2, inverse_update=update)

    def loss(model):
        return jnp.mean(jnp.sum((jax.vmap(model)(inputs) - targets) ** 2, 1)) / 2

    def step(carry, _):
        model, state = carry
        seen = capture_function(model, SquaredError(), inputs, targets)
        updates, state = optimizer.update(jax.grad(loss)(model), state, model, capture_fn=seen)
        return (optax.apply_updates(model, updates), state), None

    (after, state), _ = jax.lax.scan(step, (model, optimizer.init(model)), length=40)
    assert after.weight.dtype == jnp.bfloat16
    assert state[0].inverses["model"][0].dtype == jnp.float32
    assert loss(after) < 0.2 * loss(model)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: scale_by_mkor(decay=0.0), "decay 0.0"),
        (lambda: scale_by_mkor(decay=1.0), "decay 1.0"),
        (lambda: scale_by_mkor(share=0.0), "share 0.0"),
        (lambda: scale_by_mkor(threshold=0.0), "threshold 0.0"),
        (lambda: scale_by_mkor(every=0), "every 0"),
        (lambda: until_stalled(scale_by_mkor(), fast=0.99, slow=0.9), "fast 0.99"),
        (lambda: until_stalled(scale_by_mkor(), warmup=9), "warmup 9"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_it_says_that_it_needs_to_see_the_layers():
    optimizer = scale_by_mkor()
    params = params_of(np.ones((2, 2)))
    with pytest.raises(InputError, match="mkor needs update"):
        optimizer.update(params, optimizer.init(params), params)
