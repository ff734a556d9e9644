"""Attention within windows as in Swin V2, and the cutting of a grid into patches and windows."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nearly.training.architectures import normal_init

Pair = tuple[int, int]

LOG_MAX_SHARPNESS = math.log(100.0)  # Swin V2's limit on the logits' scale
BIAS_HIDDEN = 512  # Swin V2's hidden width of the network behind the position bias


class PositionBias(eqx.Module):
    """Swin V2's continuous bias: a network of the log-spaced offset between two places."""

    hidden: eqx.nn.Linear
    out: eqx.nn.Linear

    @staticmethod
    def make(heads: int, key: Any, dtype: Any) -> PositionBias:
        first, second = jax.random.split(key)
        return PositionBias(
            linear(2, BIAS_HIDDEN, first, dtype),
            linear(BIAS_HIDDEN, heads, second, dtype, bias=False),
        )

    def __call__(self, window: Pair) -> Float[Array, "heads places places"]:
        table, index = log_offsets(window)
        table = jnp.asarray(table, self.hidden.weight.dtype)
        values = each(self.out, jax.nn.relu(each(self.hidden, table)))
        return jnp.moveaxis(16 * jax.nn.sigmoid(values)[index], -1, 0)


class WindowAttention(eqx.Module):
    """Multi-head attention by cosine similarity within windows, each head of its own sharpness."""

    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear
    log_sharpness: Float[Array, " heads"]
    bias: PositionBias
    heads: int = eqx.field(static=True)

    @staticmethod
    def make(width: int, heads: int, key: Any, dtype: Any) -> WindowAttention:
        keys = jax.random.split(key, 5)
        return WindowAttention(
            linear(width, width, keys[0], dtype),
            linear(width, width, keys[1], dtype, bias=False),
            linear(width, width, keys[2], dtype),
            linear(width, width, keys[3], dtype),
            jnp.full(heads, math.log(10.0), dtype),
            PositionBias.make(heads, keys[4], dtype),
            heads,
        )

    def __call__(
        self, x: Float[Array, "windows places width"], window: Pair, mask: np.ndarray | None
    ) -> Float[Array, "windows places width"]:
        query, key, value = (self._split(p, x) for p in (self.query, self.key, self.value))
        sharpness = jnp.exp(jnp.minimum(self.log_sharpness, LOG_MAX_SHARPNESS))
        query = _unit(query) * sharpness[:, None, None]
        logits = jnp.einsum("whqd,whkd->whqk", query, _unit(key)) + self.bias(window)
        if mask is not None:
            logits = jnp.where(mask[:, None], logits, -100.0)  # as published; exp(-100) is nothing
        mixed = jnp.einsum("whqk,whkd->wqhd", jax.nn.softmax(logits, -1), value)
        return each(self.out, mixed.reshape(x.shape))

    def _split(self, layer: eqx.nn.Linear, x: Array) -> Array:
        windows, places, width = x.shape
        split = each(layer, x).reshape(windows, places, self.heads, width // self.heads)
        return split.transpose(0, 2, 1, 3)


# ---- linear layers at the places of a grid


def linear(inputs: int, outputs: int, key: Any, dtype: Any, bias: bool = True) -> eqx.nn.Linear:
    return normal_init(eqx.nn.Linear(inputs, outputs, bias, dtype=dtype, key=key), key)


def each(layer: eqx.nn.Linear, x: Array) -> Array:
    """A linear layer at each place."""
    flat = jax.vmap(layer)(x.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], -1)


def _unit(x: Array) -> Array:
    # Under the root: the norm of a zero vector has no derivative.
    return x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + 1e-12)


# ---- cutting a grid


def into_patches(
    x: Float[Array, "rows columns width"], size: int
) -> Float[Array, "high wide inside"]:
    """`[rows, columns, width] -> [rows / size, columns / size, size * size * width]`."""
    rows, columns, width = x.shape
    cut = x.reshape(rows // size, size, columns // size, size, width).transpose(0, 2, 1, 3, 4)
    return cut.reshape(rows // size, columns // size, -1)


def out_of_patches(
    x: Float[Array, "high wide inside"], size: int
) -> Float[Array, "rows columns width"]:
    """`[rows, columns, size * size * width] -> [rows * size, columns * size, width]`."""
    rows, columns, _ = x.shape
    apart = x.reshape(rows, columns, size, size, -1).transpose(0, 2, 1, 3, 4)
    return apart.reshape(rows * size, columns * size, -1)


def tiled(size: int, patch: int, window: int, stages: int) -> bool:
    """Whether patches, mergings and windows divide a side of the grid in all stages."""
    coarsest = patch * 2 ** (stages - 1)
    if size < coarsest or size % coarsest:
        return False
    places = [size // (patch * 2**level) for level in range(stages)]
    return all(n <= window or n % window == 0 for n in places)


def half_window(grid: Pair, window: Pair) -> Pair:
    """Half a window along each axis that has more than one window."""
    rows, columns = (w // 2 if n > w else 0 for n, w in zip(grid, window, strict=True))
    return rows, columns


def into_windows(
    x: Float[Array, "rows columns width"], window: Pair
) -> Float[Array, "windows places width"]:
    """`[rows, columns, width] -> [windows, places in a window, width]`."""
    rows, columns, width = x.shape
    high, wide = window
    cut = x.reshape(rows // high, high, columns // wide, wide, width).transpose(0, 2, 1, 3, 4)
    return cut.reshape(-1, high * wide, width)


def out_of_windows(
    x: Float[Array, "windows places width"], grid: Pair, window: Pair
) -> Float[Array, "rows columns width"]:
    """`[windows, places in a window, width] -> [rows, columns, width]`."""
    (rows, columns), (high, wide) = grid, window
    apart = x.reshape(rows // high, columns // wide, high, wide, -1).transpose(0, 2, 1, 3, 4)
    return apart.reshape(rows, columns, -1)


def neighbours(grid: Pair, window: Pair, shift: Pair) -> Bool[np.ndarray, "windows places places"]:
    """Which pairs of places of a shifted window are neighbours on the grid, not around its edge."""
    sides = [np.arange(n) >= n - s for n, s in zip(grid, shift, strict=True)]
    wrapped = 2 * sides[0][:, None] + sides[1]
    (rows, columns), (high, wide) = grid, window
    cut = wrapped.reshape(rows // high, high, columns // wide, wide).transpose(0, 2, 1, 3)
    labels = cut.reshape(-1, high * wide)
    return labels[:, :, None] == labels[:, None, :]


def log_offsets(
    window: Pair,
) -> tuple[Float[np.ndarray, "offsets 2"], Int[np.ndarray, "places places"]]:
    """The log-spaced offsets there are, `[offsets, 2]`, and which one each pair of places has."""
    axes = [np.arange(-(n - 1), n) for n in window]
    table = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2).astype(float)
    table *= 8 / np.maximum(np.asarray(window) - 1, 1)
    table = np.sign(table) * np.log2(np.abs(table) + 1) / np.log2(8)
    places = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 2)
    apart = places[:, None] - places[None] + np.asarray(window) - 1
    return table, apart[..., 0] * (2 * window[1] - 1) + apart[..., 1]
