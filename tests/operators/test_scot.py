"""The operator transformer: its parts against hand-written ones, what it may see, its errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.operators.transformer import PAPER, SIZES, LeadTimeNorm, ScOT, SwinBlock, scot
from nearly.operators.windowed_attention import (
    WindowAttention,
    into_patches,
    into_windows,
    neighbours,
    out_of_patches,
    out_of_windows,
)

SMALL = {"width": 4, "depths": (2, 1), "heads": (1, 2), "window": 2, "patch": 2}


@eqx.filter_jit
def small(boundary: str = "zeros", dtype: type = jnp.float32) -> ScOT:
    """A small network, all of its weights drawn: fresh residual branches are silent."""
    model = scot(2, 1, jax.random.key(0), boundary=boundary, dtype=dtype, **SMALL)
    leaves, structure = jax.tree.flatten(eqx.filter(model, eqx.is_array))
    keys = jax.random.split(jax.random.key(5), len(leaves))
    drawn = [x + 0.3 * jax.random.normal(k, x.shape, dtype) for x, k in zip(leaves, keys)]
    return eqx.combine(jax.tree.unflatten(structure, drawn), model)


@eqx.filter_jit  # the weights are inputs: as constants XLA folds them, for minutes
def run(model: ScOT, field: jax.Array, time: jax.Array) -> jax.Array:
    return model(field, time)


@eqx.filter_jit
def run_all(model: ScOT, fields: jax.Array, times: jax.Array) -> jax.Array:
    return jax.vmap(model)(fields, times)


def shape_of(inputs: int = 1, outputs: int = 1, **settings: object) -> ScOT:
    """A network without its numbers: what is wrong with its shape shows all the same."""
    key = jax.random.key(0)
    return eqx.filter_eval_shape(lambda: scot(inputs, outputs, key, **settings))


@pytest.mark.parametrize(("size", "millions"), [("T", 20.8), ("B", 157.7), ("L", 628.6)])
def test_published_sizes(size: str, millions: float) -> None:
    """The numbers of weights are those of the published networks."""
    shapes = shape_of(inputs=4, outputs=4, **SIZES[size], **PAPER)
    weights = [x for x in jax.tree.leaves(shapes) if isinstance(x, jax.ShapeDtypeStruct)]
    assert sum(x.size for x in weights) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_field_to_field(dtype: type) -> None:
    with jax.enable_x64(dtype is jnp.float64):
        model = small("zeros", dtype)
        fields = jax.random.normal(jax.random.key(1), (3, 2, 16, 8), dtype)
        times = jnp.asarray([0.0, 0.5, 1.0], dtype)
        out = run_all(model, fields, times)
        assert out.shape == (3, 1, 16, 8) and out.dtype == dtype
        np.testing.assert_allclose(out[1], run(model, fields[1], times[1]), rtol=1e-3, atol=1e-4)
        assert np.abs(out[1] - run(model, fields[1], times[2])).max() > 1e-3


def test_norm_is_affine_in_the_lead_time() -> None:
    norm = LeadTimeNorm(*jnp.asarray([[2.0, 0.0], [1.0, 1.0], [0.0, 3.0], [0.5, 0.0]]))
    # (1, 3) has mean 2 and deviation 1: the normalised vector is (-1, 1).
    out = norm(jnp.asarray([1.0, 3.0]), jnp.asarray(0.5))
    np.testing.assert_allclose(out, [-1 * 2 + 0.5, 1 + 1.5], rtol=1e-4)


def test_patches_are_a_strided_convolution() -> None:
    x = jax.random.normal(jax.random.key(0), (8, 12, 3))
    cut = into_patches(x, 4)
    np.testing.assert_array_equal(out_of_patches(cut, 4), x)
    kernel = jax.random.normal(jax.random.key(1), (5, 4, 4, 3))  # out, rows, columns, channels
    convolved = jax.lax.conv_general_dilated(
        x[None],
        kernel.transpose(1, 2, 3, 0),
        (4, 4),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[0]
    np.testing.assert_allclose(cut @ kernel.reshape(5, -1).T, convolved, rtol=1e-4, atol=1e-5)


def test_windows_go_there_and_back() -> None:
    x = jnp.arange(4 * 6 * 2.0).reshape(4, 6, 2)
    cut = into_windows(x, (2, 3))
    np.testing.assert_array_equal(cut[1], x[:2, 3:].reshape(6, 2))
    np.testing.assert_array_equal(out_of_windows(cut, (4, 6), (2, 3)), x)


def test_attention_is_of_cosines() -> None:
    """One head and two places, by hand in NumPy."""
    attention = WindowAttention.make(4, 1, jax.random.key(0), jnp.float32)
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, 2, 4)))
    w = {n: np.asarray(getattr(attention, n).weight) for n in ("query", "key", "value", "out")}
    query, key, value = (x[0] @ w[n].T for n in ("query", "key", "value"))
    cosine = (query @ key.T) / np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(key, axis=1))
    # Offsets within a window of 2 places: -1, 0, 1, stretched to 8 and log-spaced.
    offset = np.log2(9) / 3
    hidden, out = attention.bias.hidden, attention.bias.out
    table = np.asarray([[0.0, -offset], [0.0, 0.0], [0.0, offset]])
    inside = np.maximum(table @ np.asarray(hidden.weight).T + np.asarray(hidden.bias), 0)
    bias = 16 / (1 + np.exp(-(inside @ np.asarray(out.weight).T)[:, 0]))
    logits = 10 * cosine + np.asarray([[bias[1], bias[0]], [bias[2], bias[1]]])
    weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = (weights @ value) @ w["out"].T
    found = attention(jnp.asarray(x), (1, 2), None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sharpness_is_limited_and_zero_has_a_gradient() -> None:
    attention = WindowAttention.make(4, 2, jax.random.key(0), jnp.float32)
    sharp = eqx.tree_at(lambda a: a.log_sharpness, attention, jnp.full(2, 50.0))
    limited = eqx.tree_at(lambda a: a.log_sharpness, attention, jnp.full(2, np.log(100.0)))
    x = jax.random.normal(jax.random.key(1), (1, 4, 4))
    np.testing.assert_allclose(sharp(x, (2, 2), None), limited(x, (2, 2), None), rtol=1e-5)
    gradient = jax.grad(lambda x: attention(x, (2, 2), None).sum())(jnp.zeros((1, 4, 4)))
    assert np.isfinite(gradient).all()


def reached(boundary: str, shifted: bool) -> np.ndarray:
    """Which places of an 8 x 8 grid the corner's value reaches in one block."""
    block = SwinBlock.make(4, 1, 4, shifted, boundary, jax.random.key(0), jnp.float32)
    norm = eqx.tree_at(lambda n: n.scale, block.attention_norm, jnp.ones(4))
    block = eqx.tree_at(lambda b: b.attention_norm, block, norm)
    x = jax.random.normal(jax.random.key(1), (8, 8, 4))
    moved = block(x.at[0, 0].add(1.0), jnp.asarray(0.0)) - block(x, jnp.asarray(0.0))
    return np.abs(np.asarray(moved)).max(-1) > 1e-7


def test_shifted_windows_do_not_see_around_the_edge() -> None:
    corner = np.zeros((8, 8), bool)
    corner[:4, :4] = True
    np.testing.assert_array_equal(reached("zeros", False), corner)
    corner = np.zeros((8, 8), bool)
    corner[:2, :2] = True
    np.testing.assert_array_equal(reached("zeros", True), corner)


def test_periodic_shifted_windows_do() -> None:
    edge = np.roll(np.arange(8) < 4, -2)
    np.testing.assert_array_equal(reached("periodic", True), np.outer(edge, edge))


def test_mask_of_one_axis() -> None:
    mask = neighbours((4, 2), (2, 2), (1, 0))
    assert mask[0].all()
    np.testing.assert_array_equal(mask[1, 0], [True, True, False, False])


@pytest.mark.parametrize(("boundary", "commutes"), [("periodic", True), ("zeros", False)])
def test_periodic_network_commutes_with_shifts(boundary: str, commutes: bool) -> None:
    """By whole windows of the coarser stage: 2 points a patch, 2 patches merged, 2 a window."""
    with jax.enable_x64(True):
        field = jax.random.normal(jax.random.key(1), (2, 16, 16), jnp.float64)
        model = small(boundary, jnp.float64)
        there = run(model, jnp.roll(field, (8, 8), (1, 2)), jnp.asarray(0.3))
        here = run(model, field, jnp.asarray(0.3))
        apart = np.abs(there - jnp.roll(here, (8, 8), (1, 2))).max()
        assert apart < 1e-9 if commutes else apart > 1e-3


def test_fresh_blocks_are_the_identity() -> None:
    block = SwinBlock.make(4, 1, 2, True, "zeros", jax.random.key(0), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (4, 4, 4))
    np.testing.assert_array_equal(block(x, jnp.asarray(0.0)), x)


def test_skips_are_added() -> None:
    """Without the coarse way back, what is left is the fine stage's own output."""
    model = small()
    mixing = model.unmergings[0].mixing.weight
    silent = eqx.tree_at(lambda m: m.unmergings[0].mixing.weight, model, jnp.zeros_like(mixing))
    field = jax.random.normal(jax.random.key(1), (2, 8, 8))
    time = jnp.asarray(0.4)

    @eqx.filter_jit
    def alone(model: ScOT, field: jax.Array) -> jax.Array:
        x = jax.vmap(jax.vmap(model.embedding))(into_patches(jnp.moveaxis(field, 0, -1), 2))
        x = model.embedding_norm(x, time)
        for block in (*model.encoder[0], *model.skips[0], *model.decoder[-1]):
            x = block(x, time)
        x = out_of_patches(jax.vmap(jax.vmap(model.recovery))(x), 2)
        return model.mixing(jnp.moveaxis(x, -1, 0))

    np.testing.assert_allclose(run(silent, field, time), alone(model, field), rtol=1e-4, atol=1e-5)


def test_gradient_agrees_with_differences() -> None:
    with jax.enable_x64(True):
        model = small("zeros", jnp.float64)
        field = jax.random.normal(jax.random.key(1), (2, 8, 8), jnp.float64)
        weights, frozen = eqx.partition(model, eqx.is_inexact_array)

        @jax.jit
        def value_and_slope(weights: ScOT, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Along the line on which every weight grows in proportion."""

            def value(step: jax.Array) -> jax.Array:
                scaled = jax.tree.map(lambda w: w * (1 + step), weights)
                return jnp.sum(eqx.combine(scaled, frozen)(field, 0.3) ** 2)

            return jax.value_and_grad(value)(step)

        step = 1e-5
        _, slope = value_and_slope(weights, jnp.zeros(()))
        ahead, behind = (value_and_slope(weights, jnp.asarray(s))[0] for s in (step, -step))
        assert float(slope) == pytest.approx(float((ahead - behind) / (2 * step)), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": (3, 5)}, r"heads\[1\]=5 must divide the width 48"),
        ({"depths": (2,)}, "one number for each stage"),
        ({"window": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        shape_of(**settings)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 24, 24), r"a side of 24 points; it tiles 8, 16, 32"),
        ((2, 32, 32), "takes 1 channels, not 2"),
    ],
)
def test_fields_that_do_not_fit(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eqx.filter_eval_shape(lambda model: model(jnp.zeros(shape)), shape_of())
