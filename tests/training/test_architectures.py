"""The shared architectures: shapes, symmetries, and that they learn."""

from __future__ import annotations

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
    classifier_cnn,
    mlp,
    residual_cnn,
    transformer,
    unet,
)

KEY = jax.random.key(0)

# name -> (model, shape of one input, shape of its output)
SMALL: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "mlp": (mlp([3, 16, 16, 2], KEY), (3,), (2,)),
    "cnn-1d": (residual_cnn(2, 3, KEY, width=8, blocks=1, dims=1), (2, 12), (3, 12)),
    "cnn-2d": (residual_cnn(2, 3, KEY, width=8, blocks=1), (2, 6, 5), (3, 6, 5)),
    "classifier": (classifier_cnn(1, 4, KEY, width=8, blocks=1), (1, 6, 6), (4,)),
    "unet-1d": (unet(1, 2, KEY, width=4, dims=1), (1, 8), (2, 8)),
    "unet-2d": (unet(1, 2, KEY, width=4, levels=1), (1, 4, 6), (2, 4, 6)),
    "transformer": (transformer(3, 2, KEY, width=8, heads=2, length=6), (6, 3), (6, 2)),
}


def moved(model: Any, key: Any = KEY) -> Any:
    """The model away from its start, where residual branches are zero and would test nothing."""
    weights, rest = eqx.partition(model, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(key, len(leaves))
    noisy = [x + 0.2 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys)]
    return eqx.combine(jax.tree.unflatten(structure, noisy), rest)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_and_finite_gradients_that_reach_every_leaf(name: str) -> None:
    model, before, after = SMALL[name]
    x = jax.random.normal(KEY, (2, *before))

    @eqx.filter_jit
    @eqx.filter_grad(has_aux=True)
    def gradient(model: Any) -> Any:
        y = jax.vmap(model)(x)
        return jnp.mean((y - 1) ** 2), y

    gradients, y = gradient(moved(model))
    assert y.shape == (2, *after)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all() and np.any(leaf != 0)


@pytest.mark.parametrize("name", ["mlp", "cnn-1d", "classifier", "unet-1d", "transformer"])
def test_a_tiny_batch_is_learned_by_heart(name: str) -> None:
    model, before, after = SMALL[name]
    draw = np.random.default_rng(0)
    data = (draw.normal(size=(4, *before)), draw.normal(size=(4, *after)))

    def loss(model: Any, batch: Any, key: Any) -> Any:
        return jnp.mean((jax.vmap(model)(batch[0]) - batch[1]) ** 2)

    float32 = jax.tree.map(lambda a: a.astype(np.float32), data)
    got = fit(loss, model, float32, optimizer=optax.adam(1e-2), steps=400, key=KEY)
    assert got.losses[-1] < 0.15 * got.losses[0]


def test_the_start_keeps_the_scale_of_the_signal() -> None:
    deep = mlp([64] + [64] * 10 + [64], KEY, activation=jax.nn.relu)
    x = jax.random.normal(KEY, (256, 64))
    y = jax.vmap(deep)(x)
    assert 0.3 < float(jnp.mean(y**2)) < 3  # equinox's own start would leave some 1e-5


def test_periodic_convolutions_commute_with_translations() -> None:
    field = residual_cnn(1, 2, KEY, width=4, blocks=1, padding="CIRCULAR")
    net = classifier_cnn(1, 3, KEY, width=4, blocks=1, padding="CIRCULAR")
    field, net = moved(field), moved(net)
    x = jax.random.normal(KEY, (1, 6, 6))
    turned = jnp.roll(x, (2, 1), (1, 2))
    np.testing.assert_allclose(field(turned), jnp.roll(field(x), (2, 1), (1, 2)), atol=2e-5)
    np.testing.assert_allclose(net(turned), net(x), atol=2e-5)
    bordered = moved(residual_cnn(1, 2, KEY, width=4, blocks=1))
    difference = bordered(turned) - jnp.roll(bordered(x), (2, 1), (1, 2))
    assert np.abs(difference).max() > 1e-2  # the zeros around the field break the symmetry


def test_a_unet_commutes_with_translations_of_its_coarsest_grid() -> None:
    net = moved(unet(1, 1, KEY, width=4, levels=1, dims=1, padding="CIRCULAR"))
    x = jax.random.normal(KEY, (1, 8))
    np.testing.assert_allclose(net(jnp.roll(x, 2, 1)), jnp.roll(net(x), 2, 1), atol=2e-5)


def test_a_unet_heeds_its_condition_and_names_bad_input() -> None:
    net = moved(unet(1, 1, KEY, width=4, levels=1, dims=1, condition=3))
    x = jax.random.normal(KEY, (1, 8))
    assert np.abs(net(x, jnp.ones(3)) - net(x, jnp.zeros(3))).max() > 1e-3
    with pytest.raises(InputError, match="made to take a condition"):
        net(x)
    with pytest.raises(InputError, match=r"multiples of 2, not \[7\]"):
        net(x[:, :7], jnp.ones(3))


def test_attention_without_positions_commutes_with_permutations() -> None:
    plain = moved(transformer(3, 2, KEY, width=8, heads=2))
    placed = moved(transformer(3, 2, KEY, width=8, heads=2, length=6))
    x = jax.random.normal(KEY, (6, 3))
    order = jnp.array([3, 1, 5, 0, 2, 4])
    np.testing.assert_allclose(plain(x[order]), plain(x)[order], atol=2e-5)
    assert np.abs(placed(x[order]) - placed(x)[order]).max() > 1e-3
    with pytest.raises(InputError, match="7 exceeds the 6 positions"):
        placed(jnp.zeros((7, 3)))


def test_a_causal_transformer_does_not_see_the_future() -> None:
    net = moved(transformer(3, 2, KEY, width=8, heads=2, length=6, causal=True))
    x = jax.random.normal(KEY, (6, 3))
    changed = x.at[3].add(1.0)
    np.testing.assert_array_equal(net(changed)[:3], net(x)[:3])
    assert np.all(np.abs(net(changed)[3:] - net(x)[3:]).max(1) > 1e-4)


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
