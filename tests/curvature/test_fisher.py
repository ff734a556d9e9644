"""M-FAC against the dense inverse, the Woodbury identity and its own pivots; pruning by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest

from nearly.core.errors import InputError
from nearly.curvature.fisher import (
    MfacState,
    Window,
    mfac,
    prune,
    prune_by,
    scale_by_mfac,
    static,
    woodbury,
)

M, D, DAMPING = 12, 30, 1e-5


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, "float64")


def like() -> dict[str, jax.Array]:
    return {"a": jnp.zeros((5, 4)), "b": jnp.zeros(10)}


def dense(gradients: Any, damping: float = DAMPING) -> np.ndarray:
    g = np.asarray(gradients, np.float64)
    return np.linalg.inv(damping * np.eye(g.shape[1]) + g.T @ g / len(g))


@pytest.mark.parametrize("method", [woodbury, static])
def test_the_inverse_is_the_dense_one(method: Any) -> None:
    gradients = normal(M, D)
    expected = dense(gradients, 0.1)
    operator = method(gradients, like(), damping=0.1)
    np.testing.assert_allclose(operator.as_matrix(), expected, atol=1e-11)
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(operator.diagonal())])
    np.testing.assert_allclose(found, np.diag(expected), atol=1e-11)


@pytest.mark.parametrize("method", [woodbury, static])
def test_blocks_are_inverted_one_by_one(method: Any) -> None:
    gradients = normal(M, D)
    operator = method(gradients, like(), damping=0.1, width=8)
    expected = np.zeros((D, D))
    for start in range(0, D, 8):
        part = slice(start, min(start + 8, D))
        expected[part, part] = dense(gradients[:, part], 0.1)
    np.testing.assert_allclose(operator.as_matrix(), expected, atol=1e-11)


def test_elements() -> None:
    gradients = normal(M, D)
    for width in (None, 8):
        operator = static(gradients, like(), damping=0.1, width=width)
        matrix = np.asarray(operator.as_matrix())
        for i, j in ((0, 0), (3, 5), (7, 8), (29, 29), (29, 1)):
            np.testing.assert_allclose(operator.element(i, j), matrix[i, j], atol=1e-12)


def test_the_ring_holds_the_last_gradients() -> None:
    gradients = normal(2 * M + 3, D)
    window = Window.empty(M, D, "float64")
    for gradient in gradients:
        window = window.push(gradient)
    held = gradients[-M:]
    np.testing.assert_allclose(window.products, window.gradients @ window.gradients.T, atol=1e-12)
    x = normal(D, seed=1)
    np.testing.assert_allclose(window.solve(x, 0.1), dense(held, 0.1) @ x, atol=1e-10)


def test_the_rings_pivots_are_the_static_ones() -> None:
    gradients = normal(M, D)
    window = Window.empty(M, D, "float64")
    for gradient in gradients:
        window = window.push(gradient)
    expected = static(gradients, like(), damping=0.1).pivots[0]
    np.testing.assert_allclose(window.pivots(0.1), expected, rtol=1e-12)


def test_a_window_that_is_not_full_counts_its_zero_rows() -> None:
    gradients = normal(3, D)
    window = Window.empty(M, D, "float64")
    for gradient in gradients:
        window = window.push(gradient)
    padded = np.vstack([gradients, np.zeros((M - 3, D))])
    x = normal(D, seed=1)
    np.testing.assert_allclose(window.solve(x, 0.1), dense(padded, 0.1) @ x, atol=1e-10)


@pytest.mark.parametrize("method", [woodbury, static])
def test_float32_gradients_are_computed_with_in_float64(method: Any) -> None:
    # In the span of the gradients x/lam cancels to a millionth: plain float32 errs by a hundredth.
    gradients = normal(M, D).astype("float32")
    x = np.asarray(gradients.T @ jnp.ones(M, "float32"))
    expected = dense(gradients) @ x.astype(np.float64)
    operator = method(gradients, jnp.zeros(D, "float32"), damping=DAMPING)
    assert operator.mv(jnp.asarray(x)).dtype == "float32"
    np.testing.assert_allclose(operator.mv(jnp.asarray(x)), expected, rtol=1e-3, atol=1e-4)


def test_the_optimizer_steps_by_the_dense_inverse() -> None:
    parameters = {"w": normal(4, 3), "b": normal(2, seed=1)}
    optimizer = mfac(0.1, window=3, damping=0.01, momentum=0.5, weight_decay=0.1)
    state = optimizer.init(parameters)
    flat = lambda t: np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)])  # noqa: E731
    stored, velocity, expected = np.zeros((3, 14)), np.zeros(14), flat(parameters)
    step = jax.jit(optimizer.update)
    for index in range(5):
        gradient = jax.tree.map(lambda p: jnp.sin(p + 1), parameters)
        decayed = flat(gradient) + 0.1 * expected
        stored[index % 3] = decayed
        velocity = dense(stored, 0.01) @ decayed + 0.5 * velocity
        expected = expected - 0.1 * velocity
        updates, state = step(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        np.testing.assert_allclose(flat(parameters), expected, rtol=1e-8)


def test_the_link_drops_into_a_chain() -> None:
    chain = optax.chain(optax.clip_by_global_norm(1.0), scale_by_mfac(4), optax.scale(-0.1))
    parameters = {"w": jnp.ones((3, 2), "float32")}
    state = chain.init(parameters)
    updates, state = jax.jit(chain.update)(parameters, state, parameters)
    assert isinstance(state[1], MfacState) and updates["w"].dtype == "float32"


def test_the_inverse_is_a_lineax_operator_and_differentiable() -> None:
    gradients = normal(M, D)
    operator = woodbury(gradients, like(), damping=0.1)
    assert lx.is_positive_semidefinite(operator)
    x = jax.tree.map(jnp.ones_like, like())
    pulled = jax.grad(lambda g: jnp.sum(woodbury(g, like(), damping=0.1).mv(x)["b"]))(gradients)
    direction, step = normal(M, D, seed=4), 1e-5

    def value(t: float) -> float:
        return float(jnp.sum(woodbury(gradients + t * direction, like(), damping=0.1).mv(x)["b"]))

    slope = (value(step) - value(-step)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(pulled * direction), slope, rtol=1e-6)


# ------------------------------------------------------------------ pruning


def test_pruning_one_weight_of_a_quadratic_is_optimal() -> None:
    # The loss (w - w*)^T H (w - w*)/2 at w*: removing weight i and adjusting the rest costs
    # w_i^2 / (2 H^-1_ii). With as many gradients as dimensions H is the Fisher matrix itself.
    gradients, weights = normal(8, 4), normal(4, seed=2)
    matrix = np.linalg.inv(dense(gradients, 1e-9))
    pruned = prune(weights, woodbury(gradients, weights, damping=1e-9), 0.25)
    costs = []
    for i in range(4):
        rest = [j for j in range(4) if j != i]
        best = np.zeros(4)
        shift = np.linalg.solve(matrix[np.ix_(rest, rest)], matrix[rest, i] * float(weights[i]))
        best[rest] = np.asarray(weights)[rest] + shift
        step = best - np.asarray(weights)
        costs.append((step @ matrix @ step / 2, best))
    np.testing.assert_allclose(pruned.parameters, min(costs, key=lambda c: c[0])[1], atol=1e-6)
    assert int(np.sum(~np.asarray(pruned.kept))) == 1


def test_magnitude_pruning_by_hand() -> None:
    weights = {"a": jnp.asarray([3.0, -1.0]), "b": jnp.asarray([[0.5], [-2.0]])}
    pruned = prune_by(weights, jax.tree.map(jnp.abs, weights), 0.5)
    np.testing.assert_array_equal(pruned.parameters["a"], [3.0, 0.0])
    np.testing.assert_array_equal(pruned.parameters["b"], [[0.0], [-2.0]])
    np.testing.assert_array_equal(pruned.kept["b"], [[False], [True]])


def test_orthogonal_gradients_leave_the_other_weights_alone() -> None:
    weights = normal(D, seed=2)
    operator = woodbury(jnp.eye(D), weights, damping=0.1)
    pruned = prune(weights, operator, 0.5)
    kept = np.asarray(pruned.kept)
    np.testing.assert_allclose(np.asarray(pruned.parameters)[kept], np.asarray(weights)[kept])
    assert kept.sum() == D - D // 2


def test_errors_name_the_value_and_the_remedy() -> None:
    gradients = normal(M, D)
    with pytest.raises(InputError, match="damping 0"):
        woodbury(gradients, like(), damping=0)
    with pytest.raises(InputError, match="width = 0"):
        static(gradients, like(), width=0)
    with pytest.raises(InputError, match="length 30 do not fit 20 parameters"):
        woodbury(gradients, jnp.zeros(20))
    with pytest.raises(InputError, match=r"sparsity 1.* fraction"):
        prune_by(jnp.ones(3), jnp.ones(3), 1.0)
    with pytest.raises(InputError, match="window of 0"):
        Window.empty(0, 3)
    with pytest.raises(InputError, match="damping -1"):
        scale_by_mfac(4, -1.0)
