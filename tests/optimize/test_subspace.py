"""FOSI: exact where it can be, its base where it must be, and every Hessian product on the bill."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.tally import counted, tally
from nearly.errors import InputError
from nearly.optimize import subspace

EIGENVALUES = np.array([100.0, 40.0, 3.0, 2.0, 1.0, 0.5, -0.0, -20.0])


def quadratic(eigenvalues=EIGENVALUES, seed=0):
    """A basis, the Hessian with these eigenvalues in it, and a start: a one in each direction."""
    size = len(eigenvalues)
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]
    return basis, jnp.asarray(basis * eigenvalues @ basis.T), jnp.asarray(basis.sum(1))


def form(hessian, x):
    return x @ hessian @ x / 2


@partial(jax.jit, static_argnums=(0, 1, 4))
def advance(optimizer, function, data, params, steps):
    """The parameters after each step, and the last state."""

    def step(carry, _):
        params, state = carry
        value_fn = partial(function, data)
        grad = jax.grad(value_fn)(params)
        updates, state = optimizer.update(grad, state, params, value_fn=value_fn, grad=grad)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    (_, state), path = jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)
    return path, state


def test_one_step_is_newtons_in_the_subspace_and_the_bases_outside():
    with jax.enable_x64(True):
        basis, hessian, start = quadratic()
        optimizer = subspace.fosi(
            optax.sgd(0.1), largest=2, smallest=1, warmup=0, alpha=0.5, clip=2.0
        )
        path, state = advance(optimizer, form, hessian, start, 1)
        # |eigenvalue| divides: the saddle's direction is left, not approached.
        newton = {0: 1 - 0.5, 1: 1 - 0.5, 7: 1 + 0.5}
        stretch = 2.0  # 100 / 40, clipped
        rest = {i: 1 - stretch * 0.1 * EIGENVALUES[i] for i in range(2, 7)}
        expected = np.array([{**newton, **rest}[i] for i in range(8)])
        np.testing.assert_allclose(basis.T @ path[-1], expected, atol=1e-9)
        np.testing.assert_allclose(
            np.sort(state.inverses), np.sort([1 / 100, 1 / 40, 1 / 20]), rtol=1e-9
        )


def test_before_the_first_look_it_is_its_base():
    with jax.enable_x64(True):
        _, hessian, start = quadratic(np.linspace(1, 8, 8))
        ours, _ = advance(subspace.fosi_adam(0.1, largest=2, every=5), form, hessian, start, 6)
        base = optax.with_extra_args_support(optax.adam(0.1))
        theirs, _ = advance(base, form, hessian, start, 6)
        np.testing.assert_allclose(ours[4], theirs[4], rtol=1e-12)
        assert np.max(np.abs(ours[5] - theirs[5])) > 1e-3


def test_a_rotation_of_the_unknowns_rotates_the_path():
    with jax.enable_x64(True):
        optimizer = subspace.fosi_heavy_ball(0.05, largest=2, warmup=0)
        ends = []
        for seed in (0, 1):
            basis, hessian, start = quadratic(np.array([50.0, 10.0, 2.0, 1.0, 0.5]), seed)
            ends.append(basis.T @ advance(optimizer, form, hessian, start, 7)[0][-1])
        np.testing.assert_allclose(*ends, atol=1e-9)


def test_a_hessian_of_low_rank_leaves_the_rest_to_the_base():
    def function(direction, x):
        return (direction @ x) ** 2 / 2 + x[2]

    optimizer = subspace.fosi(optax.sgd(0.1), largest=3, warmup=0, alpha=1.0)
    direction = jnp.array([3.0, 4.0, 0.0, 0.0])
    path, _ = advance(optimizer, function, direction, jnp.ones(4), 1)
    np.testing.assert_allclose(path[-1], jnp.array([1 - 0.84, 1 - 1.12, 0.9, 1.0]), atol=1e-5)


def loss(weight, params):
    low = params["b"].astype("float32")
    return jnp.sum((params["a"] - 1) ** 2) + weight * jnp.sum((low + params["a"][0]) ** 2)


def test_pytrees_of_mixed_precision_and_bases_that_look_at_shapes():
    params = {"a": jnp.linspace(-1, 2, 6).reshape(3, 2), "b": jnp.ones(2, jnp.bfloat16)}
    optimizer = subspace.fosi(optax.contrib.muon(0.05), largest=2, warmup=2, every=3)
    path, state = advance(optimizer, loss, 10.0, params, 40)
    end = jax.tree.map(lambda leaf: leaf[-1], path)
    assert end["b"].dtype == jnp.bfloat16 and end["a"].dtype == jnp.float32
    assert loss(10.0, end) < 0.2 * loss(10.0, params)
    like = jax.tree.map(lambda x: (x.shape, x.dtype), optimizer.init(params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == like


def test_a_batch_of_starts_is_that_of_each_in_a_chain():
    chained = optax.chain(optax.clip(10.0), subspace.fosi_adam(0.1, largest=1, warmup=1, every=2))
    _, hessian, _ = quadratic(np.linspace(1, 6, 6))
    starts = jnp.stack([jnp.ones(6), jnp.arange(6.0)])
    together = jax.vmap(lambda start: advance(chained, form, hessian, start, 3)[0])(starts)
    alone, _ = advance(chained, form, hessian, starts[1], 3)
    np.testing.assert_allclose(together[1], alone, rtol=1e-4, atol=1e-5)


def test_products_with_the_hessian_are_on_the_bill():
    _, hessian, _ = quadratic(np.linspace(1, 20, 20))
    optimizer = subspace.fosi_adam(0.1, largest=2, every=4, warmup=2)
    with tally() as counts:
        path, _ = advance(optimizer, counted(form, "f"), hessian, jnp.ones(20), 8)
        jax.block_until_ready(path)
    looks, products = 2, 8  # before the steps 2 and 6; 4 (k + l)
    assert counts.read()["f vjps"] == 8 + looks * products
    assert counts.read()["f jvps"] == looks * products


def test_it_can_be_differentiated_through():
    with jax.enable_x64(True):
        _, hessian, start = quadratic(np.array([9.0, 4.0, 1.0, 0.5]))

        @jax.jit
        def end(rate):
            optimizer = subspace.fosi(optax.sgd(rate), largest=1, warmup=0, every=9)
            return form(hessian, advance(optimizer, form, hessian, start, 2)[0][-1])

        slope = (end(0.1 + 1e-5) - end(0.1 - 1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(end)(0.1), slope, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"largest": 0}, "largest 0"),
        ({"every": 0}, "every 0"),
        ({"clip": 0.5}, "clip 0.5"),
        ({"alpha": 0.0}, "alpha 0.0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        subspace.fosi(optax.sgd(0.1), **settings)


def test_more_eigenpairs_than_unknowns_are_refused():
    with pytest.raises(InputError, match="5 eigenpairs of 3 parameters"):
        subspace.fosi(optax.sgd(0.1)).init(jnp.ones(3))


def test_an_update_without_parameters_is_refused():
    optimizer = subspace.fosi(optax.sgd(0.1), largest=1)
    state = optimizer.init(jnp.ones(3))
    with pytest.raises(InputError, match="needs the parameters"):
        optimizer.update(jnp.ones(3), state, None, value_fn=jnp.sum)
