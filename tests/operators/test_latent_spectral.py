"""Latent spectral models: the block against loops over patches, the U-Net's parts, errors."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators import latent_spectral
from nearly.operators.data import Grid, Pairs
from nearly.operators.latent_spectral import (
    SpectralBlock,
    TrainedLSM,
    into_patches,
    latent_spectral_model,
    out_of_patches,
)

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double() -> Any:
    with jax.enable_x64(True):
        yield


def draw(*shape: int, seed: int = 1) -> Any:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def small(**settings: Any) -> Any:
    chosen = {"width": 4, "scales": 2, "patch": 2, "tokens": 3, "heads": 2, "projection": 6}
    return latent_spectral_model(1, 2, KEY, **(chosen | {"dtype": jnp.float64} | settings))


def block(width: int = 4, patch: int = 2, dims: int = 2) -> SpectralBlock:
    made = small(width=width, patch=patch, dims=dims, scales=1).blocks[0]
    # Weights of size 1: the initial ones are so small that attention would be uniform.
    spread = jax.tree.map(lambda x: 3 * x if eqx.is_array(x) else x, made)
    return eqx.tree_at(lambda b: b.tokens, spread, draw(2, 3, width // 2, seed=5))


# ---- the block


@pytest.mark.parametrize("grid", [(6,), (4, 6), (2, 4, 6)])
def test_patches_are_blocks_and_go_back(grid: tuple[int, ...]) -> None:
    field = draw(3, *grid)
    patches = into_patches(field, 2)
    assert patches.shape == (3, np.prod(grid) // 2 ** len(grid), 2 ** len(grid))
    corner = field[(slice(None), *(slice(2) for _ in grid))]
    np.testing.assert_array_equal(patches[:, 0], corner.reshape(3, -1))
    np.testing.assert_array_equal(out_of_patches(patches, grid), field)


def direct(b: SpectralBlock, field: np.ndarray) -> np.ndarray:
    """The paper's formulas, one patch, head and point after the other."""
    heads, _, features = b.tokens.shape
    out = field.copy()
    encode, decode = (np.asarray(c.weight)[:, :, 0, 0] for c in (b.encode, b.decode))
    basis = b.cosines.shape[2]
    cosines = np.asarray(b.cosines)
    sines = np.pad(np.asarray(b.sines), ((0, 0), (0, 0), (1, 0)))
    for i in range(0, field.shape[1], b.patch):
        for j in range(0, field.shape[2], b.patch):
            area = (slice(None), slice(i, i + b.patch), slice(j, j + b.patch))
            x = field[area].reshape(field.shape[0], -1)
            mixed = encode @ x + np.asarray(b.encode.bias)[:, 0]
            queries = decode @ x + np.asarray(b.decode.bias)[:, 0]
            keys, values = mixed[: len(x)], mixed[len(x) :]
            told = np.zeros_like(x)
            for h in range(heads):
                own = slice(h * features, (h + 1) * features)
                tokens = np.asarray(b.tokens)[h]
                tokens = softmax(tokens @ keys[own]) @ values[own].T + tokens
                moved = tokens.copy()
                for n in range(basis):
                    angle = np.pi * n / basis * tokens
                    moved += cosines[h, :, n] * np.cos(angle) + sines[h, :, n] * np.sin(angle)
                told[own] = (softmax(queries[own].T @ moved.T) @ moved).T
            out[area] += told.reshape(out[area].shape)
    return out


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_the_block_is_the_papers() -> None:
    b, field = block(), draw(4, 4, 6)
    np.testing.assert_allclose(b(field), direct(b, np.asarray(field)), atol=1e-12)


def test_patches_do_not_see_each_other_nor_the_order_of_their_points() -> None:
    b, field = eqx.filter_jit(block()), draw(4, 4, 4)
    image = b(field)
    moved = b(field.at[:, :2, :2].add(1.0))
    np.testing.assert_array_equal(moved[:, 2:], image[:, 2:])
    assert np.abs(moved[:, :2, :2] - image[:, :2, :2]).min() > 1e-3
    turned = b(field.at[:, :2, :2].set(field[:, 1::-1, 1::-1]))
    np.testing.assert_allclose(turned[:, :2, :2], image[:, 1::-1, 1::-1], atol=1e-12)


# ---- the U-Net


def test_linear_fields_are_doubled_exactly_between_cell_centres() -> None:
    coarse = (np.arange(4) + 0.5) / 4
    fine = (np.arange(8) + 0.5) / 8
    doubled = latent_spectral._doubled(jnp.asarray(coarse)[None])[0]
    np.testing.assert_allclose(doubled[1:-1], fine[1:-1], atol=1e-12)


def test_pooling_takes_the_largest() -> None:
    field = jnp.asarray(np.random.default_rng(0).permutation(32).reshape(2, 4, 4) * 1.0)
    found = latent_spectral._pooled(field)
    expected = [[[f[i : i + 2, j : j + 2].max() for j in (0, 2)] for i in (0, 2)] for f in field]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("dims", "grids"), [(1, [(8,), (11,)]), (2, [(8, 8), (5, 9)]), (3, [(4, 4, 5)])]
)
def test_any_grid(dims: int, grids: list[tuple[int, ...]]) -> None:
    model = small(dims=dims)
    for grid in grids:
        assert eqx.filter_eval_shape(model, draw(1, *grid)).shape == (2, *grid)


def test_channels_of_the_scales() -> None:
    model = eqx.filter_eval_shape(lambda: small(scales=4))
    assert [c.second.out_channels for c in model.down] == [4, 8, 16, 16]
    assert [c.second.out_channels for c in model.up] == [8, 4, 4]
    assert [b.encode.in_channels for b in model.blocks] == [4, 8, 16, 16]
    assert model.multiple == 2 * 8


def test_no_tokens_leave_the_plain_unet() -> None:
    plain, whole = small(tokens=0, dims=1), small(dims=1)
    assert plain.blocks == ()
    # Blocks that add nothing: values, and so tokens and what is told of them, are zero.
    silent = jax.tree.map(lambda x: 0 * x if eqx.is_array(x) else x, whole.blocks)
    whole = eqx.tree_at(lambda m: m.blocks, whole, silent)
    whole = eqx.tree_at(
        lambda m: (m.lift, m.down, m.up, m.mix, m.hidden, m.head),
        whole,
        (plain.lift, plain.down, plain.up, plain.mix, plain.hidden, plain.head),
    )
    field = draw(1, 8)
    np.testing.assert_allclose(eqx.filter_jit(plain)(field), eqx.filter_jit(whole)(field))


def test_batches_and_gradients() -> None:
    model = small(dims=1)
    fields = draw(3, 1, 8)
    batch = jax.jit(jax.vmap(model))(fields)
    np.testing.assert_allclose(batch[1], eqx.filter_jit(model)(fields[1]), atol=1e-12)
    weights, rest = eqx.partition(model, eqx.is_inexact_array)

    @jax.jit
    def loss(scale: Any) -> Any:
        moved = jax.tree.map(lambda w: w * scale, weights)
        return jnp.sum(eqx.combine(moved, rest)(fields[0]) ** 2)

    step = 1e-6
    numeric = (loss(1 + step) - loss(1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(1.0), numeric, rtol=1e-6)


# ---- the builder


def pairs(count: int, *grid: int) -> Pairs:
    inputs = np.asarray(draw(count, 1, *grid), np.float32)
    return Pairs(
        inputs,
        inputs + 0.5 * np.roll(inputs, 1, -1),
        np.zeros((count, 0), np.float32),
        Grid((1.0,) * len(grid), False),
    )


@pytest.mark.slow
def test_the_builder_learns() -> None:
    data = pairs(16, 8)
    built = TrainedLSM(width=4, scales=2, patch=2, heads=2, steps=80, learning_rate=1e-2)
    trained = built(data, key=KEY)
    assert trained(jnp.asarray(data.inputs[0])).dtype == jnp.float32

    def error(model: Any) -> Any:
        return np.linalg.norm(jax.vmap(model)(data.inputs) - data.outputs)

    assert error(trained) < 0.7 * error(built.untrained(data, KEY))


# ---- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 0}, "patch=0 must be at least 1"),
        ({"tokens": -1}, "tokens=-1"),
        ({"heads": 3}, "heads=3 must divide width=4"),
        ({"dims": 4}, "dims=4"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**settings)


def test_fields_it_cannot_take() -> None:
    for shape in ((1, 8), (2, 8, 8)):
        with pytest.raises(InputError, match="of 1 channels on 2 axes"):
            small()(draw(*shape))


def test_data_that_is_not_finite() -> None:
    data = pairs(2, 8)
    data.inputs[1, 0, 3] = np.nan
    with pytest.raises(InputError, match="sample 1"):
        TrainedLSM()(data, key=KEY)
