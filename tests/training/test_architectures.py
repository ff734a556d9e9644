"""The shared architectures: shapes, symmetries, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nearly.core.errors import InputError
from nearly.training import fit
from nearly.training.architectures import (
    ResidualBlock,
    classifier_cnn,
    mlp,
    residual_cnn,
    transformer,
    unet,
)

KEY = jax.random.key(0)

# name -> (how to make it from a key, shape of one input, shape of its output)
SMALL: dict[str, tuple[Callable[[Any], Any], tuple[int, ...], tuple[int, ...]]] = {
    "mlp": (lambda key: mlp([3, 16, 16, 2], key), (3,), (2,)),
    "cnn": (lambda key: residual_cnn(2, 3, key, width=8, blocks=1), (2, 6, 5), (3, 6, 5)),
    "classifier": (lambda key: classifier_cnn(1, 4, key, width=8, blocks=1), (1, 6, 6), (4,)),
    "unet": (lambda key: unet(1, 2, key, width=4, levels=1, dims=1), (1, 8), (2, 8)),
    "unet-2d": (lambda key: unet(1, 2, key, width=2, levels=2), (1, 4, 8), (2, 4, 8)),
    "transformer": (
        lambda key: transformer(3, 2, key, width=8, heads=2, blocks=1, length=6),
        (6, 3),
        (6, 2),
    ),
}


def moved(make: Callable[[Any], Any]) -> Any:
    """A model with weights drawn anew: at its start residual branches are zero and test nothing."""
    draw = np.random.default_rng(0)

    def filled(leaf: Any) -> Any:
        return jnp.asarray(0.5 * draw.normal(size=leaf.shape), leaf.dtype)

    shapes = eqx.filter_eval_shape(make, KEY)
    return jax.tree.map(lambda x: filled(x) if hasattr(x, "dtype") else x, shapes)


def called(model: Any, *inputs: Any) -> np.ndarray:
    return np.asarray(eqx.filter_jit(model)(*inputs))


def draw(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_finite_gradients_that_reach_every_leaf(name: str) -> None:
    make, before, after = SMALL[name]
    x = draw(2, *before)

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def gradient(model: Any) -> Any:
        y = jax.vmap(model)(x)
        return jnp.mean((y - 1) ** 2), y

    gradients, y = gradient(moved(make))
    assert y.shape == (2, *after)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all() and np.any(leaf != 0)


@pytest.mark.parametrize(
    "name",
    ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in SMALL if n != "mlp")],
)
def test_a_tiny_batch_is_learned_by_heart(name: str) -> None:
    make, before, after = SMALL[name]
    data = (draw(4, *before), draw(4, *after)[::-1])

    def loss(model: Any, batch: Any, key: Any) -> Any:
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    model = eqx.filter_jit(make)(KEY)
    got = fit(loss, model, data, optimizer=optax.adam(1e-2), steps=400, key=KEY)
    assert got.losses[-1] < 0.15 * got.losses[0]


def test_the_start_keeps_the_scale_of_the_signal() -> None:
    deep = eqx.filter_jit(lambda key: mlp([64] + [64] * 10 + [64], key, jax.nn.relu))(KEY)
    y = np.asarray(eqx.filter_jit(lambda model, x: jax.vmap(model)(x))(deep, draw(256, 64)))
    assert 0.3 < np.mean(y**2) < 3  # equinox's own start would leave some 1e-5


def test_residual_blocks_start_as_the_identity() -> None:
    block = eqx.filter_jit(lambda key: ResidualBlock(4, 1, "ZEROS", key, condition=2))(KEY)
    x = draw(4, 6)
    np.testing.assert_array_equal(called(block, x, draw(2)), x)


def test_periodic_convolutions_commute_with_translations() -> None:
    small = {"width": 4, "blocks": 1}
    field = moved(lambda key: residual_cnn(1, 2, key, **small, padding="CIRCULAR"))
    net = moved(lambda key: classifier_cnn(1, 3, key, **small, padding="CIRCULAR"))
    x = draw(1, 6, 6)
    turned = jnp.roll(x, (2, 1), (1, 2))
    there_and_back = np.roll(called(field, turned), (-2, -1), (1, 2))
    np.testing.assert_allclose(there_and_back, called(field, x), atol=5e-5)
    np.testing.assert_allclose(called(net, turned), called(net, x), atol=5e-5)
    bordered = moved(lambda key: residual_cnn(1, 2, key, **small))
    difference = np.roll(called(bordered, turned), (-2, -1), (1, 2)) - called(bordered, x)
    assert np.abs(difference).max() > 1e-2  # the zeros around the field break the symmetry


def test_a_unet_commutes_with_translations_of_its_coarsest_grid() -> None:
    net = moved(lambda key: unet(1, 1, key, width=2, levels=1, dims=1, padding="CIRCULAR"))
    x = draw(1, 8)
    turned = np.roll(called(net, jnp.roll(x, 2, 1)), -2, 1)
    np.testing.assert_allclose(turned, called(net, x), atol=5e-5)


def test_a_unet_heeds_its_condition_and_names_bad_input() -> None:
    net = moved(lambda key: unet(1, 1, key, width=2, levels=1, dims=1, condition=3))
    x = draw(1, 8)
    run = eqx.filter_jit(net)
    assert np.abs(run(x, jnp.ones(3)) - run(x, jnp.zeros(3))).max() > 1e-3
    with pytest.raises(InputError, match="made to take a condition"):
        net(x)
    with pytest.raises(InputError, match=r"multiples of 2, not \[7\]"):
        net(x[:, :7], jnp.ones(3))


def test_attention_without_positions_commutes_with_permutations() -> None:
    small = {"width": 8, "heads": 2, "blocks": 1}
    plain = moved(lambda key: transformer(3, 2, key, **small))
    placed = moved(lambda key: transformer(3, 2, key, **small, length=6))
    x, order = draw(6, 3), np.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(called(plain, x[order]), called(plain, x)[order], atol=5e-5)
    assert np.abs(called(placed, x[order]) - called(placed, x)[order]).max() > 1e-3
    with pytest.raises(InputError, match="7 exceeds the 6 positions"):
        eqx.filter_eval_shape(placed, jnp.zeros((7, 3)))


def test_a_causal_transformer_does_not_see_the_future() -> None:
    net = moved(lambda key: transformer(3, 2, key, width=8, heads=2, blocks=1, causal=True))
    x = draw(6, 3)
    before, after = called(net, x), called(net, x.at[3].add(1.0))
    np.testing.assert_array_equal(after[:3], before[:3])
    assert np.all(np.abs(after[3:] - before[3:]).max(1) > 1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda key: mlp([2, 2], key, dtype=jnp.float64),
        lambda key: unet(1, 1, key, width=2, condition=2, dtype=jnp.float64),
        lambda key: transformer(2, 2, key, width=4, heads=2, length=3, dtype=jnp.float64),
        lambda key: classifier_cnn(1, 2, key, width=2, blocks=1, dtype=jnp.float64),
    ],
)
def test_every_dtype_is_kept(make: Any) -> None:
    with jax.enable_x64(True):
        shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(shapes) if hasattr(leaf, "dtype")}
    assert dtypes == {np.dtype(np.float64)}


def test_bad_settings_are_named() -> None:
    with pytest.raises(InputError, match=r"sizes \[3\]"):
        mlp([3], KEY)
    with pytest.raises(InputError, match="padding 'none' must be one of ZEROS"):
        residual_cnn(1, 1, KEY, padding="none")
    with pytest.raises(InputError, match="dims=4"):
        unet(1, 1, KEY, dims=4)
    with pytest.raises(InputError, match="heads=3 must divide width=8"):
        transformer(1, 1, KEY, width=8, heads=3)
