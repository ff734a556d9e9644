"""Every catalogued optimizer as optax tests its own: loops, batches, chains, precisions, files.

Parametrised over the catalogue: a new line is tested without a new test.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core import catalogue
from nearly.core.lazy import load
from nearly.core.problem import Tuned
from nearly.optimize import WithRate
from nearly.optimize.problems.finite_sum import Fixed
from nearly.training import checkpoint

# Peers are tested where they come from, and here by `FiniteSum`. In optax 0.2.8 momo and sophia
# refuse trees of mixed precision.
METHODS = {n: line for n, line in catalogue.methods("optax").items() if line.source == "ours"}
RATES = (1e-3, 1e-2, 1e-1, 1.0)
STEPS = 25
DECAY = 0.01
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-5, "float64": 1e-5}


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def start(lane=0):
    """A matrix, a vector and a number, each in another precision."""
    shift = 0.1 * lane
    return {
        "half": jnp.asarray([0.5 + shift, -1.0], jnp.bfloat16),
        "single": jnp.linspace(-1, 1, 6, dtype="float32").reshape(3, 2) + np.float32(shift),
        "double": jnp.asarray(2.0 + shift, "float64"),
    }


def predicted(params):
    """The model: all parameters side by side."""
    return jnp.concatenate([leaf.astype("float64").ravel() for leaf in jax.tree.leaves(params)])


def distance(outputs):
    return jnp.sum((outputs - 0.5) ** 2 * jnp.linspace(0.5, 1.0, outputs.size)) / outputs.size


def oracle(params):
    """The gradient, and all that `FiniteSum` tells an optimizer of a batch but its layers."""

    def value_fn(candidate, *_, **__):
        return distance(predicted(candidate))

    value, grad = jax.value_and_grad(value_fn)(params)
    outputs = predicted(params)
    return grad, {
        "value": value,
        "grad": grad,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "model_fn": predicted,
        "loss_fn": distance,
        "outputs": outputs,
        "output_grad": jax.grad(distance)(outputs),
    }


def chained(method):
    """Between two others, as in an `optax.chain` of a user's."""
    return optax.chain(
        optax.clip_by_global_norm(100.0), method(), optax.add_decayed_weights(-DECAY)
    )


def step(optimizer, params, state):
    grad, extra = oracle(params)
    updates, state = optimizer.update(grad, state, params, **extra)
    return optax.apply_updates(params, updates), state, extra["value"]


def train(method, params):
    """Steps in a compiled loop: the state at the end, the values, the parameters on the way."""
    optimizer = chained(method)

    def advance(carry, _):
        params, state = carry
        params, state, value = step(optimizer, params, state)
        return (params, state), (value, params)

    carry = (params, optimizer.init(params))
    return carry[1], *jax.lax.scan(advance, carry, None, length=STEPS)


def prepared(name, rate):
    found = load(METHODS[name].target)
    method = found.factory(learning_rate=rate) if isinstance(found, Tuned) else Fixed(found)
    if not isinstance(method, WithRate):
        return method
    run = jax.jit(lambda other: train(other, start())[1][1][1])
    return method.prepared(STEPS, run)


@functools.cache
def lanes(name):
    """The catalogue's entry at four learning rates from four starts, in one program."""
    with jax.enable_x64(True):
        methods = jax.tree.map(lambda *x: jnp.stack(x), *(prepared(name, rate) for rate in RATES))
        starts = jax.tree.map(lambda *x: jnp.stack(x), *map(start, range(len(RATES))))
        return jax.jit(jax.vmap(train))(methods, starts)


@functools.cache
def alone(name):
    """The second lane by itself and not compiled: parameters after each of two steps, and state."""
    with jax.enable_x64(True):
        optimizer, params, path = chained(prepared(name, RATES[1])), start(1), []
        state = optimizer.init(params)
        for _ in range(2):
            params, state, _ = step(optimizer, params, state)
            path.append(params)
        return path, state


def described(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def assert_close(found, expected):
    for name, leaf in expected.items():
        rtol = TOLERANCE[str(leaf.dtype)]
        np.testing.assert_allclose(
            np.asarray(found[name], float), np.asarray(leaf, float), rtol, rtol, err_msg=name
        )


@pytest.mark.parametrize("name", METHODS)
def test_a_tree_of_mixed_precision_in_a_compiled_loop_over_lanes(name):
    before, (params, state), (values, _) = lanes(name)
    assert described(state) == described(before)
    assert described(params) == described(jax.tree.map(lambda x: jnp.stack([x] * 4), start()))
    assert np.nanmin(values[:, -1] / values[:, 0]) < 0.9


@pytest.mark.parametrize("name", METHODS)
def test_compiled_and_in_a_batch_it_does_what_it_does_alone(name):
    on_the_way = lanes(name)[2][1]
    for index, expected in enumerate(alone(name)[0]):
        assert_close({n: leaf[1, index] for n, leaf in on_the_way.items()}, expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_chain_adds_what_its_other_members_do(name):
    optimizer, params = prepared(name, RATES[1])(), start(1)
    grad, extra = oracle(params)
    update = optax.with_extra_args_support(optimizer).update
    updates, _ = update(grad, optimizer.init(params), params, **extra)
    decayed = jax.tree.map(lambda x, u: x + u - DECAY * x, params, updates)
    assert described(updates) == described(params)
    assert_close(alone(name)[0][0], decayed)


@pytest.mark.parametrize("name", METHODS)
def test_its_state_survives_a_file(name, tmp_path):
    state = alone(name)[1]
    checkpoint.save(tmp_path / "state.npz", state, {})
    again, _ = checkpoint.load(tmp_path / "state.npz", state, ())
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for found, expected in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert found.dtype == expected.dtype
        if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            found, expected = jax.random.key_data(found), jax.random.key_data(expected)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", METHODS)
def test_what_it_misses_it_names(name):
    """Without the parameters, or without what else it needs: it works, or says what to give."""
    optimizer, params = prepared(name, RATES[1])(), start()
    state, (grad, extra) = optimizer.init(params), oracle(params)
    update = optax.with_extra_args_support(optimizer).update
    for given, words in ((extra, "param"), ({}, "|".join(("param", *extra)))):
        try:
            update(grad, state, None, **given)
        except (ValueError, TypeError) as error:  # InputError is the former
            assert re.search(words, str(error)), str(error)
