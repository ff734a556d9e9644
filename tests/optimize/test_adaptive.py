"""First-order optimizers: against NumPy, by hand, at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.errors import InputError
from nearly.optimize import adaptive
from nearly.optimize.adaptive.adahessian import over_inputs, random_signs

KEY = jax.random.key(0)
OPTIMIZERS = {
    "adan": adaptive.adan(1e-2, weight_decay=0.02),
    "adahessian": adaptive.adahessian(0.1, key=KEY),
    "adagrad-norm": adaptive.adagrad_norm(0.5),
    "orthogonal-gradient": optax.chain(adaptive.orthogonal_gradient(), optax.adam(5e-2)),
    "momentum-polyak": adaptive.momentum_polyak(0.5),
    "moving-average-polyak": adaptive.moving_average_polyak(0.5),
}


def loss(params):
    return jnp.sum((params["a"] - 1) ** 2) + jnp.sum((params["b"].astype("float32") + 2) ** 2)


def start():
    return {
        "a": jnp.linspace(-1, 2, 6).reshape(3, 2),
        "b": jnp.linspace(-1, 1, 4).astype(jnp.bfloat16),
    }


def advance(optimizer, params, steps):
    def step(carry, _):
        params, state = carry
        value, grad = jax.value_and_grad(loss)(params)
        extra = optax.with_extra_args_support(optimizer)
        updates, state = extra.update(grad, state, params, value=value, value_fn=loss)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, optimizer.init(params)), None, length=steps)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_stays_at_a_minimum(name):
    params = {"a": jnp.ones((3, 2)), "b": jnp.full((4,), -2.0, jnp.bfloat16)}
    optimizer = OPTIMIZERS[name] if name != "adan" else adaptive.adan(1e-2)
    (after, _), _ = advance(optimizer, params, 3)
    np.testing.assert_array_equal(after["a"], params["a"])


# ---- Adan


def adan_in_numpy(gradients, x, lr, decay):
    b1, b2, b3, eps = 0.98, 0.92, 0.99, 1e-8
    m = v = n = np.zeros_like(x)
    before = None
    for t, g in enumerate(gradients, 1):
        d = np.zeros_like(g) if before is None else g - before
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        s = m / (1 - b1**t) + b2 * v / (1 - b2**t)
        x = (x - lr * s / (np.sqrt(n / (1 - b3**t)) + eps)) / (1 + lr * decay)
        before = g
    return x


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_adan_is_the_authors_for_a_thousand_steps(decay):
    with jax.enable_x64(True):
        gradients = np.random.default_rng(0).normal(size=(1000, 5)) * [1, 10, 0.1, 1, 1] + [
            0,
            0,
            0,
            1,
            0,
        ]
        x = np.linspace(-1, 1, 5)
        expected = adan_in_numpy(gradients, x, 1e-2, decay)

        def run(optimizer):
            def step(carry, g):
                params, state = carry
                updates, state = optimizer.update(g, state, params)
                return (optax.apply_updates(params, updates), state), None

            first = (jnp.asarray(x), optimizer.init(jnp.asarray(x)))
            return jax.lax.scan(step, first, jnp.asarray(gradients))[0][0]

        np.testing.assert_allclose(
            run(adaptive.adan(1e-2, weight_decay=decay)), expected, rtol=1e-9
        )
        # That of optax is another method.
        theirs = run(optax.adan(1e-2, weight_decay=decay))
        assert np.max(np.abs(theirs - expected)) > 1e-3


# ---- AdaHessian


def test_the_hessian_diagonal_is_exact_for_diagonal_hessians():
    scales = {"w": jnp.asarray([[1.0, 4.0], [9.0, 16.0]])}
    found = adaptive.hessian_diagonal(
        lambda p: jnp.sum(scales["w"] * p["w"] ** 2) / 2, {"w": jnp.ones((2, 2))}, KEY
    )
    np.testing.assert_allclose(found["w"], scales["w"], rtol=1e-6)


def test_curvature_is_averaged_over_inputs_and_space():
    matrix = jnp.asarray([[1.0, 3.0], [0.0, 2.0]])
    np.testing.assert_allclose(over_inputs(matrix), [[2], [1]])
    kernel = jnp.arange(8.0).reshape(2, 1, 2, 2)
    np.testing.assert_allclose(over_inputs(kernel)[:, 0, 0, 0], [1.5, 5.5])
    np.testing.assert_allclose(over_inputs(jnp.arange(3.0)), [0, 1, 2])


def test_what_is_averaged_is_kept_once():
    optimizer = adaptive.adahessian(key=KEY)
    state = optimizer.init({"w": jnp.ones((3, 5), jnp.bfloat16), "b": jnp.ones(3)})
    assert {name: x.shape for name, x in state[0].square.items()} == {"w": (3, 1), "b": (3,)}


def test_one_step_of_adahessian_on_a_quadratic_is_newtons():
    with jax.enable_x64(True):
        curvature, x = jnp.asarray([1.0, 100.0]), jnp.asarray([3.0, -2.0])

        def value(p):
            return jnp.sum(curvature * p**2) / 2

        optimizer = adaptive.adahessian(1.0, eps=0.0, key=KEY)
        updates, _ = optimizer.update(jax.grad(value)(x), optimizer.init(x), x, value_fn=value)
        np.testing.assert_allclose(x + updates, 0, atol=1e-12)


def test_a_curvature_kept_for_two_steps_has_the_bias_of_the_looks_taken():
    """Of a constant Hessian every step is Newton's, whether it looks or not."""
    with jax.enable_x64(True):
        curvature, x = jnp.asarray([1.0, 100.0]), jnp.asarray([3.0, -2.0])

        def value(p):
            return jnp.sum(curvature * p**2) / 2

        optimizer = adaptive.adahessian(1.0, b1=0.0, eps=0.0, every=2, key=KEY)

        def step(state, _):
            updates, state = optimizer.update(curvature * x, state, x, value_fn=value)
            return state, (updates, state[0].square)

        _, (updates, squares) = jax.lax.scan(step, optimizer.init(x), None, length=4)
        np.testing.assert_allclose(updates, jnp.stack([-x] * 4), rtol=1e-9)
        np.testing.assert_array_equal(squares[0], squares[1])
        assert np.all(squares[2] > squares[1])


# ---- scalar AdaGrad, orthogonal gradients, Polyak


def test_adagrad_norm_by_hand():
    optimizer = adaptive.adagrad_norm(1.0, offset=0.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = optimizer.init(params)
    first, state = optimizer.update({"a": jnp.asarray([3.0]), "b": jnp.asarray([4.0])}, state)
    np.testing.assert_allclose([first["a"][0], first["b"][0]], [-0.6, -0.8], rtol=1e-6)
    second, _ = optimizer.update({"a": jnp.asarray([12.0]), "b": jnp.asarray([0.0])}, state)
    np.testing.assert_allclose(second["a"], -12 / 13, rtol=1e-6)


def test_orthogonal_gradients_keep_their_norm_and_leave_the_weights_direction():
    transform = adaptive.orthogonal_gradient()
    w, g = jax.random.normal(KEY, (2, 4, 3))
    found, _ = transform.update({"w": g, "z": g}, transform.init(None), {"w": w, "z": 0 * w})
    assert abs(jnp.sum(found["w"] * w)) < 1e-4
    np.testing.assert_allclose(jnp.linalg.norm(found["w"]), jnp.linalg.norm(g), rtol=1e-5)
    np.testing.assert_allclose(found["z"], g, rtol=1e-5)


def test_stablemax_by_hand_and_its_gradients_everywhere():
    logits = jnp.asarray([[1.0, -1.0, 0.0]])  # scores 2, 1/2, 1
    found = adaptive.stablemax_cross_entropy(logits, jnp.asarray([1]))
    np.testing.assert_allclose(found, np.log(7), rtol=1e-6)
    # At 1 the branch that is not taken would divide by zero; far out nothing saturates.
    at = jnp.asarray([[1.0, 1e6, -1e6, 0.0]])
    slope = jax.grad(lambda x: adaptive.stablemax_cross_entropy(x, jnp.asarray([1]))[0])(at)
    assert np.all(np.isfinite(slope)) and slope[0, 1] < 0


def test_polyaks_step_reaches_the_minimum_of_a_parabola_in_one_step():
    x = jnp.asarray([3.0, 4.0])
    value, grad = jnp.sum(x**2), 2 * x
    for make in (adaptive.momentum_polyak, adaptive.moving_average_polyak):
        optimizer = make(0.0)
        updates, _ = optimizer.update(grad, optimizer.init(x), value=value)
        np.testing.assert_allclose(x + updates, x / 2, rtol=1e-6)  # (f - f*) / |g|^2 = 1/4
        capped = make(0.0, largest=0.1)
        updates, _ = capped.update(grad, capped.init(x), value=value)
        np.testing.assert_allclose(updates, -0.1 * grad, rtol=1e-6)


def test_a_gradient_along_its_tensor_leaves_nothing_but_rounding():
    transform = adaptive.orthogonal_gradient()
    w = {"one": jnp.asarray([0.3]), "many": jax.random.normal(KEY, (50,))}
    found, _ = transform.update(jax.tree.map(lambda x: -1.7 * x, w), transform.init(w), w)
    np.testing.assert_array_equal(found["one"], 0)
    np.testing.assert_array_equal(found["many"], 0)


def test_averages_decay_in_half_precision():
    """After a gradient of 100, 2000 of 1: in bfloat16 0.999 would be 1 and forget nothing."""
    curvature = jnp.asarray([1.0], jnp.bfloat16)
    optimizer = adaptive.adahessian(1.0, b1=0.0, eps=0.0, key=KEY)

    def step(state, scale):
        def value(p):
            return jnp.sum(scale * p**2) / 2

        updates, state = optimizer.update(curvature, state, curvature, value_fn=value)
        return state, updates

    scales = jnp.concatenate([jnp.full(1, 100.0), jnp.ones(2000)]).astype(jnp.bfloat16)
    _, updates = jax.lax.scan(step, optimizer.init(curvature), scales)
    expected = 1 / np.sqrt((0.001 * 0.999**2000 * 1e4 + 1 - 0.999**2000) / (1 - 0.999**2001))
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(-updates[-1].astype("float32"), expected, rtol=0.01)


MODELLED = {"heavy ball": adaptive.momentum_polyak, "average": adaptive.moving_average_polyak}


@pytest.mark.parametrize("name", MODELLED)
@pytest.mark.parametrize("largest", [0.05, 2.0])
def test_without_momentum_it_is_momo(name, largest):
    with jax.enable_x64(True):
        x, value = jnp.asarray([1.0, -2.0, 0.5]), 1.3
        g = jnp.asarray([0.3, -1.0, 2.0])
        ours = MODELLED[name](0.0, 0.2, largest)
        theirs = optax.contrib.momo(largest, beta=0.0, lower_bound=0.2)
        found, _ = ours.update(g, ours.init(x), x, value=value)
        expected, _ = theirs.update(g, theirs.init(x), x, value=jnp.asarray(value))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("name", MODELLED)
@pytest.mark.parametrize("largest", [0.05, 0.8])
def test_the_step_minimises_the_model_with_its_decay(name, largest):
    with jax.enable_x64(True):
        x, memory = jnp.asarray([1.0, -2.0]), jnp.asarray([-0.3, 0.2])
        g, value, decay = jnp.asarray([0.4, -1.0]), 0.6, 0.3
        optimizer = MODELLED[name](0.5, 0.0, largest, weight_decay=decay)
        state = optimizer.init(x)._replace(memory=memory)
        found = x + optimizer.update(g, state, x, value=value)[0]
        heavy = name == "heavy ball"
        centre, slope = (x + 0.5 * memory, g) if heavy else (x, g + 0.5 * memory)

        def model(y):
            cut = jnp.maximum(value + slope @ (y - x), 0)
            return cut + jnp.sum((y - centre) ** 2) / (2 * largest) + decay * jnp.sum(y**2) / 2

        around = found + 1e-3 * jax.random.normal(KEY, (200, 2), "float64")
        assert jnp.min(jax.vmap(model)(around)) > model(found)


def test_polyaks_momentum_never_steps_backwards():
    optimizer = adaptive.momentum_polyak(0.9)
    state = optimizer.init(jnp.zeros(1))._replace(memory=jnp.asarray([-100.0]))
    updates, _ = optimizer.update(jnp.asarray([1.0]), state, value=1.0)
    np.testing.assert_allclose(updates, [-90.0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adaptive.adan(b2=1.0), "b2 1.0"),
        (lambda: adaptive.adan(weight_decay=-1.0), "weight_decay -1.0"),
        (lambda: adaptive.adahessian(power=0.0, key=KEY), "power 0.0"),
        (lambda: adaptive.adahessian(every=0, key=KEY), "every 0"),
        (lambda: adaptive.adagrad_norm(offset=-1.0), "offset -1.0"),
        (lambda: adaptive.momentum_polyak(1.0), "momentum 1.0"),
        (lambda: adaptive.moving_average_polyak(minimum=-np.inf), "minimum -inf"),
        (lambda: adaptive.momentum_polyak(largest=0.0), "largest 0.0"),
        (lambda: adaptive.momentum_polyak(weight_decay=0.1), "finite largest"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("name", ["adan", "adahessian", "orthogonal-gradient"])
def test_missing_parameters_are_named(name):
    optimizer = OPTIMIZERS[name]
    with pytest.raises(InputError, match="parameters"):
        optimizer.update(start(), optimizer.init(start()), None, value_fn=loss)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_signs_drawn_by_the_word_are_fair_and_independent(dtype):
    shape = (99, 101)
    signs = np.asarray(random_signs(KEY, shape, dtype), float)
    assert signs.shape == shape and set(np.unique(signs)) == {-1.0, 1.0}
    flat = signs.ravel()
    words = -(-flat.size // 32)
    for apart in (0, 1, 2, words - 1, words, 2 * words):  # each entry with its neighbours in a word
        mean = np.mean(flat if apart == 0 else flat[apart:] * flat[:-apart])
        assert abs(mean) < 5 / np.sqrt(flat.size - apart)
    assert np.any(signs != np.asarray(random_signs(jax.random.key(1), shape, dtype), float))
