"""The operator transformer scOT (`poseidon`): a U-Net of shifted windows, at any lead time.

A field becomes patches; stages of windowed attention halve the grid and double the width, and the
way back adds the fine stages' outputs through ConvNeXt blocks. Every norm is conditioned on the
lead time, so one network gives the solution at any later time in one call.

Differences from the published implementation, and why:

- One field a call, batched by `jax.vmap`; rectangular grids; a grid that the windows do not tile
  is an error that names one that they do, where the original pads with zeros.
- `boundary="periodic"` lets windows and convolutions see across the edges. The published network
  masks the shifted windows and pads with zeros on every problem, periodic or not: that is the
  default here as well.
- Norms start as plain ones, and those of the residual branches at zero, as Swin V2 does itself: a
  block starts as identity. The original starts every norm at N(0, 0.02^2) t, so an untrained
  network answers zero at lead time 0 and nearly so elsewhere.
- No dropout and no stochastic depth: the paper trains with both at zero.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.windowed_attention import (
    WindowAttention,
    each,
    half_window,
    into_patches,
    into_windows,
    linear,
    neighbours,
    out_of_patches,
    out_of_windows,
    tiled,
)
from nearly.training.architectures import normal_init

Boundary = Literal["zeros", "periodic"]

LAYER_SCALE = 1e-6  # ConvNeXt's initial weight of a residual branch
KERNEL, MIXING = 7, 5  # of the depthwise convolution and of the one behind the recovery

SIZES: dict[str, dict[str, Any]] = {
    "T": {"width": 48, "depths": (4, 4, 4, 4)},
    "S": {"width": 48, "depths": (8, 8, 8, 8)},
    "B": {"width": 96, "depths": (8, 8, 8, 8)},
    "L": {"width": 192, "depths": (8, 8, 8, 8)},
}
PAPER: dict[str, Any] = {"heads": (3, 6, 12, 24), "skips": (2, 2, 2, 0), "window": 16, "patch": 4}


class LeadTimeNorm(eqx.Module):
    """(a t + b) norm(x) + (c t + d) over the channels, t the lead time."""

    scale_slope: Float[Array, " width"]
    scale: Float[Array, " width"]
    shift_slope: Float[Array, " width"]
    shift: Float[Array, " width"]

    @staticmethod
    def make(width: int, key: Any, dtype: Any, scale: float = 1.0) -> LeadTimeNorm:
        first, second = 0.02 * jax.random.normal(key, (2, width), dtype)
        zeros = jnp.zeros(width, dtype)
        return LeadTimeNorm(first, zeros + scale, second, zeros)

    def __call__(
        self, x: Float[Array, "*tokens width"], time: Float[Array, ""]
    ) -> Float[Array, "*tokens width"]:
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        scale = self.scale_slope * time + self.scale
        return normal * scale + self.shift_slope * time + self.shift


class SwinBlock(eqx.Module):
    """x + norm(attention(x)), then x + norm(mlp(x)): the norms come after, as in Swin V2."""

    attention: WindowAttention
    attention_norm: LeadTimeNorm
    wide: eqx.nn.Linear
    narrow: eqx.nn.Linear
    mlp_norm: LeadTimeNorm
    window: int = eqx.field(static=True)
    shifted: bool = eqx.field(static=True)
    boundary: Boundary = eqx.field(static=True)

    @staticmethod
    def make(
        width: int, heads: int, window: int, shifted: bool, boundary: Boundary, key: Any, dtype: Any
    ) -> SwinBlock:
        keys = jax.random.split(key, 5)
        return SwinBlock(
            WindowAttention.make(width, heads, keys[0], dtype),
            LeadTimeNorm.make(width, keys[1], dtype, 0.0),
            linear(width, 4 * width, keys[2], dtype),
            linear(4 * width, width, keys[3], dtype),
            LeadTimeNorm.make(width, keys[4], dtype, 0.0),
            window,
            shifted,
            boundary,
        )

    def __call__(
        self, x: Float[Array, "rows columns width"], time: Float[Array, ""]
    ) -> Float[Array, "rows columns width"]:
        x = x + self.attention_norm(self._attended(x), time)
        inside = each(self.narrow, jax.nn.gelu(each(self.wide, x)))
        return x + self.mlp_norm(inside, time)

    def _attended(self, x: Array) -> Array:
        grid = x.shape[0], x.shape[1]
        window = min(self.window, grid[0]), min(self.window, grid[1])
        shift = half_window(grid, window) if self.shifted else (0, 0)
        masked = any(shift) and self.boundary == "zeros"
        mask = neighbours(grid, window, shift) if masked else None
        inside = into_windows(jnp.roll(x, (-shift[0], -shift[1]), (0, 1)), window)
        whole = out_of_windows(self.attention(inside, window, mask), grid, window)
        return jnp.roll(whole, shift, (0, 1))


class ConvNeXtBlock(eqx.Module):
    """x + scale * mlp(norm(depthwise(x))): what a skip passes through."""

    depthwise: eqx.nn.Conv
    norm: LeadTimeNorm
    wide: eqx.nn.Linear
    narrow: eqx.nn.Linear
    scale: Float[Array, " width"]

    @staticmethod
    def make(width: int, boundary: Boundary, key: Any, dtype: Any) -> ConvNeXtBlock:
        keys = jax.random.split(key, 4)
        return ConvNeXtBlock(
            normal_init(_conv(width, KERNEL, boundary, keys[0], dtype, groups=width), keys[0]),
            LeadTimeNorm.make(width, keys[1], dtype),
            linear(width, 4 * width, keys[2], dtype),
            linear(4 * width, width, keys[3], dtype),
            jnp.full(width, LAYER_SCALE, dtype),
        )

    def __call__(
        self, x: Float[Array, "rows columns width"], time: Float[Array, ""]
    ) -> Float[Array, "rows columns width"]:
        inside = jnp.moveaxis(self.depthwise(jnp.moveaxis(x, -1, 0)), 0, -1)
        inside = jax.nn.gelu(each(self.wide, self.norm(inside, time)))
        return x + self.scale * each(self.narrow, inside)


class Merging(eqx.Module):
    """Four neighbours to one place of twice the width, and a norm."""

    reduction: eqx.nn.Linear
    norm: LeadTimeNorm

    def __call__(self, x: Float[Array, "rows columns width"], time: Float[Array, ""]) -> Array:
        return self.norm(each(self.reduction, into_patches(x, 2)), time)


class Unmerging(eqx.Module):
    """One place to four neighbours of half the width, a norm, and a mixing of the channels."""

    expansion: eqx.nn.Linear
    norm: LeadTimeNorm
    mixing: eqx.nn.Linear

    def __call__(self, x: Float[Array, "rows columns width"], time: Float[Array, ""]) -> Array:
        return each(self.mixing, self.norm(out_of_patches(each(self.expansion, x), 2), time))


class ScOT(eqx.Module):
    """A field and a lead time to a field of the same grid: see `scot`."""

    embedding: eqx.nn.Linear
    embedding_norm: LeadTimeNorm
    encoder: tuple[tuple[SwinBlock, ...], ...]
    mergings: tuple[Merging, ...]
    skips: tuple[tuple[ConvNeXtBlock, ...], ...]
    decoder: tuple[tuple[SwinBlock, ...], ...]
    unmergings: tuple[Unmerging, ...]
    recovery: eqx.nn.Linear
    mixing: eqx.nn.Conv
    channels: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    window: int = eqx.field(static=True)
    boundary: Boundary = eqx.field(static=True)

    def __call__(
        self,
        field: Float[Array, "inputs rows columns"],
        lead_time: float | Float[Array, ""] = 1.0,
        *,
        key: Any = None,
    ) -> Float[Array, "outputs rows columns"]:
        self._check(field)
        time = jnp.asarray(lead_time, field.dtype)
        x = each(self.embedding, into_patches(jnp.moveaxis(field, 0, -1), self.patch))
        x = self.embedding_norm(x, time)
        passed: list[Array] = []
        for level, (blocks, skip) in enumerate(zip(self.encoder, self.skips, strict=True)):
            inside = _through(blocks, x, time)
            passed.append(_through(skip, inside, time))
            if level < len(self.mergings):
                x = self.mergings[level](inside + x, time)
        x = _through(self.decoder[0], passed.pop(), time)
        for unmerging, blocks in zip(self.unmergings, self.decoder[1:], strict=True):
            x = _through(blocks, unmerging(x, time) + passed.pop(), time)
        x = out_of_patches(each(self.recovery, x), self.patch)
        return self.mixing(jnp.moveaxis(x, -1, 0))

    def _check(self, field: Array) -> None:
        if field.shape[0] != self.channels:
            raise InputError(f"this scOT takes {self.channels} channels, not {field.shape[0]}")
        for size in field.shape[1:]:
            if not tiled(size, self.patch, self.window, len(self.encoder)):
                raise InputError(
                    f"scOT with patches of {self.patch}, windows of {self.window} and "
                    f"{len(self.encoder)} stages does not tile a side of {size} points; it tiles "
                    f"{', '.join(map(str, self.sizes()))}: resample the field, or take other "
                    "patches or windows"
                )

    def sizes(self, largest: int = 512) -> list[int]:
        """The powers of two up to `largest` that a side of the grid can have."""
        powers = [2**k for k in range(int(math.log2(largest)) + 1)]
        return [n for n in powers if tiled(n, self.patch, self.window, len(self.encoder))]


def scot(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    width: int = 24,
    depths: tuple[int, ...] = (2, 2),
    heads: tuple[int, ...] = (3, 6),
    skips: tuple[int, ...] = (1, 0),
    window: int = 4,
    patch: int = 4,
    boundary: Boundary = "zeros",
    dtype: Any = jnp.float32,
) -> ScOT:
    """The operator transformer `([inputs, rows, columns], lead time) -> [outputs, rows, columns]`.

    **Arguments:**

    - `width`: channels of the finest stage, doubled at each coarser one. `depths`: blocks of each
      stage, on the way down and again on the way up. `heads`: of each stage.
    - `skips`: ConvNeXt blocks that each stage's output passes on its way across.
    - `window`, `patch`: places along a window, points along a patch. A stage whose grid is not
      larger than the window attends to all of it.
    - `boundary`: `"zeros"` (as published) or `"periodic"`.

    The defaults fit a CPU. The published networks are `scot(inputs, outputs, key, **SIZES["T"],
    **PAPER)`, and `"S"`, `"B"`, `"L"`: 21 to 629 million weights, fields of 128 x 128.

    The lead time is a number, in units of the longest one trained on; 1 for steady problems.

    Raises `InputError` if the settings do not fit one another and, when called, for another number
    of channels or a grid that the windows do not tile.

    **Cost:** per call, the number of patches times (12 width^2 + 2 window^2 width) per block of
    the finest stage; a coarser one costs as much.

    **Paper:** `poseidon`. For the differences see the module.
    """
    _check_settings(width, depths, heads, skips, window, patch, boundary)
    stages = len(depths)
    widths = [width * 2**level for level in range(stages)]
    keys = iter(jax.random.split(key, 2 + 5 * stages))

    def stage(level: int) -> tuple[SwinBlock, ...]:
        return tuple(
            SwinBlock.make(widths[level], heads[level], window, i % 2 == 1, boundary, k, dtype)
            for i, k in enumerate(jax.random.split(next(keys), depths[level]))
        )

    def across(level: int) -> tuple[ConvNeXtBlock, ...]:
        drawn = jax.random.split(next(keys), max(skips[level], 1))
        return tuple(
            ConvNeXtBlock.make(widths[level], boundary, k, dtype) for k in drawn[: skips[level]]
        )

    return ScOT(
        **_ends(inputs, outputs, width, patch, boundary, next(keys), dtype),
        encoder=tuple(stage(level) for level in range(stages)),
        mergings=tuple(_merging(w, next(keys), dtype) for w in widths[:-1]),
        skips=tuple(across(level) for level in range(stages)),
        decoder=tuple(stage(level)[::-1] for level in reversed(range(stages))),
        unmergings=tuple(_unmerging(w, next(keys), dtype) for w in reversed(widths[1:])),
        patch=patch,
        window=window,
        boundary=boundary,
    )


def with_new_channels(model: ScOT, inputs: int, outputs: int, key: Any) -> ScOT:
    """A pretrained backbone behind a new embedding and in front of a new recovery.

    For equations whose fields are not those of the pretraining: what they mean is learned anew.
    """
    width, dtype = model.embedding.weight.shape[0], model.embedding.weight.dtype
    ends = _ends(inputs, outputs, width, model.patch, model.boundary, key, dtype)
    return dataclasses.replace(model, **ends)


def _ends(
    inputs: int, outputs: int, width: int, patch: int, boundary: Boundary, key: Any, dtype: Any
) -> dict[str, Any]:
    """What depends on the channels of the fields: the way into the backbone and out of it."""
    keys = jax.random.split(key, 4)
    mixing = _conv(outputs, MIXING, boundary, keys[3], dtype, use_bias=False)
    return {
        "embedding": linear(inputs * patch**2, width, keys[0], dtype),
        "embedding_norm": LeadTimeNorm.make(width, keys[1], dtype),
        "recovery": linear(width, outputs * patch**2, keys[2], dtype),
        "mixing": eqx.tree_at(lambda conv: conv.weight, mixing, _unmixed(outputs, dtype)),
        "channels": inputs,
    }


def _check_settings(
    width: int,
    depths: tuple[int, ...],
    heads: tuple[int, ...],
    skips: tuple[int, ...],
    window: int,
    patch: int,
    boundary: str,
) -> None:
    if not len(depths) == len(heads) == len(skips) >= 1:
        raise InputError(
            f"depths={depths}, heads={heads} and skips={skips} must have one number for each stage"
        )
    if min(width, window, patch, *depths, *heads) < 1 or min(skips) < 0:
        raise InputError("width, window, patch, depths and heads must be at least 1, skips at 0")
    for level, count in enumerate(heads):
        if width * 2**level % count:
            raise InputError(
                f"heads[{level}]={count} must divide the width {width * 2**level} of that stage"
            )
    if boundary not in ("zeros", "periodic"):
        raise InputError(f"boundary {boundary!r} must be 'zeros' or 'periodic'")


def _merging(width: int, key: Any, dtype: Any) -> Merging:
    first, second = jax.random.split(key)
    reduction = linear(4 * width, 2 * width, first, dtype, bias=False)
    return Merging(reduction, LeadTimeNorm.make(2 * width, second, dtype))


def _unmerging(width: int, key: Any, dtype: Any) -> Unmerging:
    keys = jax.random.split(key, 3)
    half = width // 2
    return Unmerging(
        linear(width, 2 * width, keys[0], dtype, bias=False),
        LeadTimeNorm.make(half, keys[1], dtype),
        linear(half, half, keys[2], dtype, bias=False),
    )


def _unmixed(channels: int, dtype: Any) -> Array:
    """The kernel that leaves a field as it is: where the mixing starts."""
    kernel = np.zeros((channels, channels, MIXING, MIXING))
    kernel[np.arange(channels), np.arange(channels), MIXING // 2, MIXING // 2] = 1
    return jnp.asarray(kernel, dtype)


# ---- layers on channels-last grids


def _conv(
    channels: int, size: int, boundary: Boundary, key: Any, dtype: Any, **more: Any
) -> eqx.nn.Conv:
    mode = "CIRCULAR" if boundary == "periodic" else "ZEROS"
    return eqx.nn.Conv2d(
        channels, channels, size, padding=size // 2, padding_mode=mode, dtype=dtype, key=key, **more
    )


def _through(blocks: tuple[Any, ...], x: Array, time: Array) -> Array:
    for block in blocks:
        x = block(x, time)
    return x
