"""Shampoo: against NumPy in float64, blocks, roots, grafting, and as optax tests its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.errors import InputError, UnknownName
from nearly.optimize.kronecker import scale_by_shampoo, shampoo
from nearly.optimize.kronecker.blocks import Partition, along, merge_axes, second_moment
from nearly.optimize.kronecker.roots import eigh_inverse_root, newton_inverse_root

ROOTS = {"eigh": eigh_inverse_root, "newton": newton_inverse_root}


def spd(size, condition, seed=0):
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(size, size)))[0]
    return (basis * np.geomspace(1 / condition, 1, size)) @ basis.T


def numpy_root(matrix, order, ridge):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * (np.maximum(values, 0) + ridge * values[-1]) ** (-1 / order)) @ vectors.T


# ---- roots


@pytest.mark.parametrize("name", ROOTS)
@pytest.mark.parametrize("order", [2, 6])
def test_roots_in_both_precisions(name, order):
    matrices = np.stack([spd(12, 100.0), 1e-3 * spd(12, 10.0, seed=1)])
    expected = np.stack([numpy_root(m, order, 1e-12) for m in matrices])
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-10)):
        with jax.enable_x64(dtype == np.float64):
            found = np.asarray(ROOTS[name](jnp.asarray(matrices, dtype), order, 1e-12))
        error = np.linalg.norm(found - expected, axis=(1, 2))
        assert found.dtype == dtype
        assert np.all(error < tolerance * np.linalg.norm(expected, axis=(1, 2)))


@pytest.mark.parametrize("name", ROOTS)
def test_roots_of_what_a_training_feeds_them_in_float32(name):
    vector = np.random.default_rng(0).normal(size=30)
    singular = np.outer(vector, vector)
    matrices = np.stack([singular, 1e-30 * singular, 0 * singular, singular - 1e-2 * np.eye(30)])
    found = np.asarray(ROOTS[name](jnp.asarray(matrices, jnp.float32), 4, 1e-6))
    assert np.all(np.isfinite(found[:3]))
    assert np.all(np.isfinite(found[3])) == (name == "eigh")  # Newton says that it cannot
    np.testing.assert_array_equal(found[2], np.eye(30))
    # Where it matters, along the vector, they are right.
    unit = vector / np.linalg.norm(vector)
    np.testing.assert_allclose(unit @ found[0] @ unit, (vector @ vector) ** -0.25, rtol=2e-3)


# ---- blocks


def first_step(optimizer, gradient):
    return jax.jit(lambda g: optimizer.update(g, optimizer.init(g)))(gradient)


def test_small_axes_are_merged():
    assert merge_axes((64, 32, 3, 3), 128) == (64, 96, 3)
    assert merge_axes((1, 2, 512, 1, 2048, 1, 3, 4), 1024) == (1024, 2048, 12)
    assert merge_axes((1, 1), 8) == merge_axes((), 8) == (1,)


def test_blocks_are_equal_and_fit_together_again():
    part = Partition.of((7, 10, 3), 4, 100)
    assert part.counts == (2, 3, 1) and part.sizes == (4, 4, 3)
    array = jnp.arange(210.0).reshape(7, 10, 3)
    blocks = part.split(array)
    assert blocks.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(blocks[0], array[:4, :4])
    np.testing.assert_array_equal(blocks[3, :3, :, :], array[4:, :4])
    np.testing.assert_array_equal(part.join(blocks), array)


def test_moments_and_products_along_each_axis():
    blocks = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    full = second_moment(blocks, 1, False)
    np.testing.assert_allclose(full, jnp.einsum("zaib,zajb->zij", blocks, blocks), rtol=1e-5)
    np.testing.assert_allclose(
        second_moment(blocks, 1, True), jnp.diagonal(full, axis1=1, axis2=2), rtol=1e-5
    )
    expected = jnp.einsum("zij,zajb->zaib", full, blocks)
    np.testing.assert_allclose(along(blocks, 1, full), expected, rtol=1e-4)
    scaled = blocks * full[:, None, :, 0, None]
    np.testing.assert_allclose(along(blocks, 1, full[:, :, 0]), scaled, rtol=1e-5)


def shampoo_in_numpy(gradients, x, settings):
    """The whole method on a matrix and a vector, one block each, AdaGrad's norm, b2 = 1."""
    rate, b1, ridge, every, start, decay = settings
    shapes = [part.shape for part in x]
    moments = [[np.zeros((n, n)) for n in shape] for shape in shapes]
    roots = [[np.eye(n) for n in shape] for shape in shapes]
    squares = [np.zeros(shape) for shape in shapes]
    mean = [np.zeros(shape) for shape in shapes]
    for t, grads in enumerate(gradients):
        for i, g in enumerate(grads):
            sides = [g @ g.T, g.T @ g] if g.ndim == 2 else [np.outer(g, g)]
            moments[i] = [m + s for m, s in zip(moments[i], sides)]
            if t >= start and (t - start) % every == 0:
                roots[i] = [numpy_root(m, 2 * g.ndim, ridge) for m in moments[i]]
            own = roots[i][0] @ g @ roots[i][1] if g.ndim == 2 else roots[i][0] @ g
            squares[i] += g**2
            step = g / np.sqrt(squares[i] + 1e-10)
            if t >= start:
                step = own * np.linalg.norm(step) / np.linalg.norm(own)
            mean[i] = b1 * mean[i] + (1 - b1) * step
            x[i] = x[i] - rate * (mean[i] / (1 - b1 ** (t + 1)) + decay * x[i])
    return x


def run(optimizer, start, gradients):
    def step(carry, grad):
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda s, g: jax.lax.scan(step, (s, optimizer.init(s)), g)[0][0])(
        start, gradients
    )


def test_fifty_steps_are_those_of_numpy_in_float64():
    random = np.random.default_rng(0)
    many = [(random.normal(size=(5, 8)), random.normal(size=3)) for _ in range(50)]
    first = [random.normal(size=(5, 8)), random.normal(size=3)]
    expected = shampoo_in_numpy(many, [x.copy() for x in first], (0.1, 0.9, 1e-6, 4, 6, 0.05))
    with jax.enable_x64(True):
        optimizer = shampoo(
            0.1,
            b2=1.0,
            every=4,
            start=6,
            block_size=8,
            grafting="adagrad",
            weight_decay=0.05,
        )
        stacked = [jnp.asarray(np.stack(g)) for g in zip(*many)]
        found = run(optimizer, [jnp.asarray(x) for x in first], stacked)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_a_block_is_preconditioned_as_if_it_were_alone():
    gradient = np.random.default_rng(1).normal(size=(6, 8))
    with jax.enable_x64(True):
        whole = scale_by_shampoo(start=0, block_size=4, grafting=None)
        found, _ = first_step(whole, jnp.asarray(gradient))
    for rows in (slice(0, 3), slice(3, 6)):
        for columns in (slice(0, 4), slice(4, 8)):
            g = gradient[rows, columns]
            expected = numpy_root(g @ g.T, 4, 1e-6) @ g @ numpy_root(g.T @ g, 4, 1e-6)
            np.testing.assert_allclose(found[rows, columns], expected, rtol=1e-9)


def test_one_block_is_the_array_itself_and_a_long_axis_keeps_a_diagonal():
    gradient = jax.random.normal(jax.random.key(2), (5, 30))
    options = {"start": 0, "grafting": None}
    wide = jax.eval_shape(scale_by_shampoo(block_size=30, **options).init, gradient)
    assert [s.shape for s in wide.statistics[0]] == [(1, 5, 5), (1, 30, 30)]
    long = scale_by_shampoo(block_size=30, largest_axis=20, **options)
    found, state = first_step(long, gradient)
    assert [s.shape for s in state.statistics[0]] == [(1, 5, 5), (1, 30)]
    with jax.enable_x64(True):
        g = np.asarray(gradient, np.float64)
        columns = np.sum(g**2, axis=0)
        right = (columns + 1e-6 * columns.max()) ** -0.25
        np.testing.assert_allclose(
            found, numpy_root(g @ g.T, 4, 1e-6) @ g * right, rtol=1e-4, atol=1e-6
        )


# ---- grafting


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adam"])
def test_every_arrays_step_has_the_grafted_norm_and_shampoos_direction(name):
    from nearly.optimize.kronecker.shampoo import GRAFTINGS

    gradients = {"w": jax.random.normal(jax.random.key(3), (4, 20)), "b": jnp.ones(3)}
    options = {"start": 0, "block_size": 20}
    ours, own = (scale_by_shampoo(grafting=g, **options) for g in (name, None))
    step, plain, other = (first_step(o, gradients)[0] for o in (ours, own, GRAFTINGS[name]))
    for leaf in ("w", "b"):
        norms = [jnp.linalg.norm(tree[leaf]) for tree in (step, other, plain)]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)
        np.testing.assert_allclose(
            step[leaf] / norms[0], plain[leaf] / norms[2], rtol=1e-5, atol=1e-6
        )


def test_until_its_start_it_is_the_grafted_optimizer():
    gradients = jax.random.normal(jax.random.key(4), (5, 4, 3))
    found = run(shampoo(0.1, b1=0.0, start=5), jnp.zeros((4, 3)), gradients)
    np.testing.assert_allclose(
        found, run(optax.adam(0.1, b1=0.0), jnp.zeros((4, 3)), gradients), rtol=1e-5
    )
    assert not np.allclose(found, run(shampoo(0.1, b1=0.0, start=4), jnp.zeros((4, 3)), gradients))


def test_a_rotation_of_the_outputs_rotates_the_step():
    gradient = jax.random.normal(jax.random.key(5), (6, 20))
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(6), (6, 6)))[0]
    optimizer = scale_by_shampoo(start=0, block_size=20, grafting="sgd")
    step, turned = (first_step(optimizer, g)[0] for g in (gradient, turn @ gradient))
    np.testing.assert_allclose(turned, turn @ step, rtol=1e-3, atol=1e-4)


def test_roots_that_cannot_be_computed_leave_those_before():
    def broken(matrices, order, ridge):
        return jnp.full_like(matrices, jnp.nan)

    gradient = jnp.ones((4, 3))
    optimizer = scale_by_shampoo(start=0, grafting="sgd", root=broken)
    step, _ = first_step(optimizer, gradient)
    np.testing.assert_allclose(step, gradient, rtol=1e-6)


# ---- as optax tests its own

SMALL = shampoo(5e-2, every=3, block_size=3)


def loss(params):
    return jnp.sum((params["a"] - 1) ** 2) + jnp.sum((params["b"].astype("float32") + 2) ** 2)


def start():
    return {
        "a": jnp.linspace(-1, 2, 12).reshape(4, 3),
        "b": jnp.linspace(-1, 1, 4).astype(jnp.bfloat16),
        "c": jnp.ones(()),
    }


def advance(params, steps):
    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        updates, state = SMALL.update(grad, state, params)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, SMALL.init(params)), None, length=steps)


def test_mixed_precision_in_a_compiled_loop_and_over_a_batch():
    many = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), start())
    (both, state), values = jax.jit(jax.vmap(lambda p: advance(p, 100)))(many)
    (alone, _), _ = jax.jit(lambda p: advance(p, 100))(start())
    assert both["b"].dtype == jnp.bfloat16 and both["a"].dtype == jnp.float32
    assert np.all(values[:, -1] < 0.1 * values[:, 0])
    np.testing.assert_allclose(both["a"][0], alone["a"], rtol=1e-3)
    np.testing.assert_array_equal(alone["c"], 1)  # no gradient, no step
    shapes = jax.tree.map(lambda x: (x.shape[1:], x.dtype), state)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), SMALL.init(start()))


def test_a_step_has_a_gradient():
    with jax.enable_x64(True):
        optimizer = scale_by_shampoo(start=0, ridge=1e-2, grafting=None, block_size=8)
        gradient = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6)))
        turn = jnp.asarray(np.random.default_rng(3).normal(size=(4, 6)))

        @jax.jit
        def along(t):
            g = gradient + t * turn
            return jnp.sum(optimizer.update(g, optimizer.init(g))[0] * turn)

        slope = (along(1e-5) - along(-1e-5)) / 2e-5
        np.testing.assert_allclose(jax.grad(along)(0.0), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: scale_by_shampoo(b2=0.0), "b2 0.0"),
        (lambda: scale_by_shampoo(ridge=0.0), "ridge 0.0"),
        (lambda: scale_by_shampoo(every=0), "every 0"),
        (lambda: scale_by_shampoo(start=-1), "start -1"),
        (lambda: scale_by_shampoo(grafting=None), "use start=0"),
        (lambda: shampoo(b1=1.0), "b1 1.0"),
        (lambda: shampoo(weight_decay=-1.0), "weight_decay -1.0"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_an_unknown_grafting_is_named():
    with pytest.raises(UnknownName, match="adam"):
        scale_by_shampoo(grafting="adma")
