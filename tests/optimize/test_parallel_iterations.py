"""OptEx: its base at first, then steps along a kernel's guesses; N gradients a round."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.tally import counted, tally
from nearly.errors import InputError
from nearly.optimize.parallel_iterations import (
    LENGTHS,
    estimate,
    last,
    lowest_gradient,
    lowest_value,
    optex,
)

CURVATURE = jnp.array([1.0, 2.0, 4.0, 8.0])


def bowl(x):
    return jnp.sum(CURVATURE * x**2) / 2


@partial(jax.jit, static_argnums=(0, 1, 3))
def advance(optimizer, value_fn, params, rounds):
    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(value_fn)(params)
        updates, state = optimizer.update(grad, state, params, value=value, value_fn=value_fn)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), path = jax.lax.scan(step, (params, optimizer.init(params)), None, length=rounds)
    return path, state


def test_one_gradient_a_round_is_the_base():
    base = optax.with_extra_args_support(optax.adam(0.1))
    ours, _ = advance(optex(optax.adam(0.1), parallel=1, history=4), bowl, jnp.ones(4), 5)
    theirs, _ = advance(base, bowl, jnp.ones(4), 5)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_rounds_are_fewer_and_the_first_knows_nothing():
    ours = optex(optax.sgd(0.02), parallel=4, history=12)
    path, state = advance(ours, bowl, jnp.ones(4), 8)
    np.testing.assert_allclose(path[0], 1 - 0.02 * CURVATURE, rtol=1e-6)
    alone, _ = advance(optax.with_extra_args_support(optax.sgd(0.02)), bowl, jnp.ones(4), 20)
    assert bowl(path[-1]) < bowl(alone[19])
    # The history holds true gradients, whatever was guessed.
    np.testing.assert_allclose(state.gradients, CURVATURE * state.points, rtol=1e-4, atol=1e-6)


def by_hand(points, gradients, at, noise):
    """Leave-one-out by leaving one out, in NumPy."""

    def kernel(a, b, length):
        r = np.sqrt(5) * np.linalg.norm(a[:, None] - b[None], axis=2) / length
        return (1 + r + r**2 / 3) * np.exp(-r)

    def predict(x, g, at, length):
        matrix = kernel(x, x, length) + noise * np.eye(len(x))
        return kernel(at[None], x, length)[0] @ np.linalg.solve(matrix, g)

    n = len(points)
    pairs = np.linalg.norm(points[:, None] - points[None], axis=2) ** 2
    unit = np.sqrt(pairs.sum() / (n * (n - 1)))
    errors = []
    for length in LENGTHS:
        rest = [np.delete(np.arange(n), i) for i in range(n)]
        guesses = [
            predict(points[r], gradients[r], points[i], length * unit) for i, r in enumerate(rest)
        ]
        errors.append(np.sum((np.array(guesses) - gradients) ** 2))
    return predict(points, gradients, at, LENGTHS[int(np.argmin(errors))] * unit)


def test_guesses_are_those_of_a_kernel_whose_length_leaves_one_out():
    random = np.random.default_rng(0)
    points = random.normal(size=(9, 3))
    gradients = np.stack([np.sin(points @ [1, 2, 3]), points[:, 0] ** 2, points[:, 1]], axis=1)
    known = jnp.arange(12) < 9
    with jax.enable_x64(True):
        # What is not known must not matter, whatever stands there.
        x, g = (jnp.asarray(np.vstack([a, np.full((3, 3), 7.0)])) for a in (points, gradients))
        guess = estimate(x, g, known, noise=1e-3)
        for at in random.normal(size=(4, 3)):
            expected = by_hand(points, gradients, at, 1e-3)
            np.testing.assert_allclose(guess(jnp.asarray(at)), expected, rtol=1e-8)
        scaled = estimate(1e3 * x, g, known, noise=1e-3)
        np.testing.assert_allclose(scaled(1e3 * jnp.ones(3)), guess(jnp.ones(3)), rtol=1e-8)
        exact = estimate(x, g, known, noise=1e-10)
        np.testing.assert_allclose(exact(x[4]), g[4], rtol=1e-5)


def test_from_where_to_go_on():
    values, norms = jnp.array([3.0, 1.0, 2.0]), jnp.array([5.0, 4.0, 1.0])
    assert [int(c(values, norms)) for c in (last, lowest_value, lowest_gradient)] == [2, 1, 2]


def test_a_round_is_billed_all_its_gradients():
    optimizer = optex(optax.sgd(0.1), parallel=3, history=6)
    with tally() as counts:
        path, _ = advance(optimizer, counted(bowl, "f"), jnp.ones(4), 4)
        jax.block_until_ready(path)
    assert counts.read()["f vjps"] == 3 * 4


def loss(params):
    low = params["b"].astype("float32")
    return jnp.sum((params["a"] - 1) ** 2) + jnp.sum((low + params["a"][0]) ** 2)


def test_pytrees_of_mixed_precision_in_a_chain_and_in_batches():
    params = {"a": jnp.linspace(-1, 2, 6).reshape(3, 2), "b": jnp.ones(2, jnp.bfloat16)}
    ours = optex(
        optax.adam(0.1),
        parallel=3,
        history=6,
        choice=lowest_value,
        coordinates=5,
        key=jax.random.key(0),
    )
    chained = optax.chain(ours)
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params)
    path, state = jax.vmap(lambda p: advance(chained, loss, p, 12))(many)
    end = jax.tree.map(lambda leaf: leaf[0, -1], path)
    assert end["b"].dtype == jnp.bfloat16 and end["a"].dtype == jnp.float32
    assert loss(end) < 0.3 * loss(params)
    like = jax.tree.map(lambda x: x.dtype, jax.vmap(chained.init)(many))
    assert jax.tree.map(lambda x: x.dtype, state) == like


def test_its_slope_in_the_rate_is_that_of_finite_differences():
    @jax.jit
    def end(rate):
        ours = optex(optax.sgd(rate), parallel=2, history=4)
        return bowl(advance(ours, bowl, jnp.ones(4), 3)[0][-1])

    with jax.enable_x64(True):
        slope = (end(0.05 + 1e-6) - end(0.05 - 1e-6)) / 2e-6
        np.testing.assert_allclose(jax.grad(end)(0.05), slope, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"parallel": 0}, "parallel 0"),
        ({"history": 3}, "history 3"),
        ({"noise": 0.0}, r"noise 0\.0"),
        ({"coordinates": 2}, "coordinates 2"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        optex(optax.sgd(0.1), **settings)


def test_more_coordinates_than_parameters_are_refused():
    with pytest.raises(InputError, match="coordinates 5 of 3"):
        optex(optax.sgd(0.1), coordinates=5, key=jax.random.key(0)).init(jnp.ones(3))
