"""U-shaped operators that solve in a few latent tokens (`latent-spectral-models`).

At each scale of a U-Net, a field is cut into patches; attention condenses a patch into a few
tokens, a trigonometric series moves each number of a token, and attention spreads the tokens over
the patch again.

Differences from the published code, and why:

- Group normalisation instead of batch normalisation: a model is a function of one sample here, and
  has no running statistics.
- The field is padded, at its right ends, to the next size whose scales all divide into patches;
  there the padding is a setting for each data set.
- Coordinates are those of cell centres, and the decoder interpolates between cell centres: after
  pooling, cells of the coarse grid are made of cells of the fine one, and corners do not coincide.
- The series is evaluated by Horner's rule in exp(i pi T / N), so no array of all its terms is
  kept; the weight of sin(0) is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.operators.data import Pairs
from nearly.operators.training import (
    FieldLoss,
    MapBuilder,
    Normalized,
    Schedule,
    normalized,
    relative_l2_loss,
)

# ---- the spectral block


class SpectralBlock(eqx.Module):
    """A field to a field, by way of a few tokens for each patch: `[width, *grid]` of both.

    **Arguments:**

    - `tokens`: what a patch is asked for, `[heads, tokens, width / heads]`.
    - `encode`: keys and values of a point. `decode`: its query.
    - `cosines`, `sines`: weights of the series for each channel, `[heads, width / heads, basis]`
      of cos(pi i T / basis), i = 0, ..., and `[..., basis - 1]` of sin(pi i T / basis), i = 1, ...
    - `patch`: points of a patch along each axis.
    """

    tokens: Float[Array, "heads tokens features"]
    encode: eqx.nn.Conv
    decode: eqx.nn.Conv
    cosines: Float[Array, "heads features basis"]
    sines: Float[Array, "heads features harmonics"]
    patch: int = eqx.field(static=True)

    def __call__(self, field: Float[Array, " width *grid"]) -> Float[Array, " width *grid"]:
        keys, values = jnp.split(self._patches(self.encode(field)), 2)
        queries = self._patches(self.decode(field))
        # h: head, p: patch, t: token, s: point of a patch, c: feature. No 1 / sqrt(features).
        heard = jax.nn.softmax(jnp.einsum("htc,hcps->hpts", self.tokens, keys))
        latent = jnp.einsum("hpts,hcps->hptc", heard, values) + self.tokens[:, None]
        latent = latent + self._series(latent)
        told = jax.nn.softmax(jnp.einsum("hcps,hptc->hpst", queries, latent))
        spread = jnp.einsum("hpst,hptc->hcps", told, latent)
        return field + out_of_patches(spread.reshape(-1, *spread.shape[2:]), field.shape[1:])

    def _patches(self, field: Array) -> Array:
        """`[k width, *grid] -> [k heads, features, patches, points of a patch]`."""
        features = self.tokens.shape[2]
        cut = into_patches(field, self.patch)
        return cut.reshape(-1, features, *cut.shape[1:])

    def _series(self, latent: Array) -> Array:
        """sum_i a_i cos(i theta) + b_i sin(i theta), theta = pi T / N: the real part of a power
        series in exp(i theta) with coefficients a_i - i b_i."""
        count = self.cosines.shape[2]
        theta = latent * (math.pi / count)
        cosine, sine = jnp.cos(theta), jnp.sin(theta)
        padded = jnp.pad(self.sines, ((0, 0), (0, 0), (1, 0)))
        a, b = (x[:, None, None] for x in (self.cosines, padded))
        real = jnp.broadcast_to(a[..., -1], latent.shape)
        imaginary = jnp.broadcast_to(-b[..., -1], latent.shape)
        for i in reversed(range(count - 1)):
            real, imaginary = (
                a[..., i] + real * cosine - imaginary * sine,
                -b[..., i] + real * sine + imaginary * cosine,
            )
        return real


def into_patches(field: Float[Array, " width *grid"], patch: int) -> Float[Array, "width p s"]:
    """`[width, *grid] -> [width, patches, points of a patch]`; sizes are multiples of `patch`."""
    width, *grid = field.shape
    dims = len(grid)
    split = field.reshape(width, *(part for size in grid for part in (size // patch, patch)))
    order = (0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2))
    return split.transpose(order).reshape(width, -1, patch**dims)


def out_of_patches(
    patches: Float[Array, "width p s"], grid: Sequence[int]
) -> Float[Array, " width *grid"]:
    """The inverse of `into_patches` for a field on `grid`."""
    dims = len(grid)
    patch = round(patches.shape[2] ** (1 / dims))
    width = patches.shape[0]
    split = patches.reshape(width, *(size // patch for size in grid), *(patch,) * dims)
    order = [0]
    for axis in range(dims):
        order += [1 + axis, 1 + dims + axis]
    return split.transpose(order).reshape(width, *grid)


# ---- the U-Net around it


class DoubleConvolution(eqx.Module):
    """Twice: a convolution 3 wide without bias, group normalisation, ReLU."""

    first: eqx.nn.Conv
    first_norm: eqx.nn.GroupNorm
    second: eqx.nn.Conv
    second_norm: eqx.nn.GroupNorm

    def __call__(self, x: Float[Array, " inputs *grid"]) -> Float[Array, " outputs *grid"]:
        x = jax.nn.relu(self.first_norm(self.first(x)))
        return jax.nn.relu(self.second_norm(self.second(x)))


class LatentSpectralModel(eqx.Module):
    """`[inputs, *grid] -> [outputs, *grid]`: see `latent_spectral_model`.

    `down` and `blocks` are fine to coarse, `up` coarse to fine; without `blocks` it is the plain
    U-Net.
    """

    lift: eqx.nn.Conv
    down: tuple[DoubleConvolution, ...]
    blocks: tuple[SpectralBlock, ...]
    up: tuple[DoubleConvolution, ...]
    mix: eqx.nn.Conv
    hidden: eqx.nn.Conv
    head: eqx.nn.Conv
    patch: int = eqx.field(static=True)

    def __call__(
        self, field: Float[Array, " inputs *grid"], key: Any = None
    ) -> Float[Array, " outputs *grid"]:
        """Raises `InputError` for channels or axes that it was not made for."""
        grid = field.shape[1:]
        self._check(field)
        x = self.lift(jnp.concatenate([field, _coordinates(grid, field.dtype)]))
        x = jnp.pad(x, ((0, 0), *((0, -size % self.multiple) for size in grid)))
        scales = [self.down[0](x)]
        for convolve in self.down[1:]:
            scales.append(convolve(_pooled(scales[-1])))
        if self.blocks:
            scales = [block(x) for block, x in zip(self.blocks, scales, strict=True)]
        x = scales.pop()
        for convolve in self.up:
            x = convolve(jnp.concatenate([scales.pop(), _doubled(x)]))
        x = self.mix(x)[(slice(None), *(slice(size) for size in grid))]
        return self.head(jax.nn.gelu(self.hidden(x)))

    @property
    def multiple(self) -> int:
        """What the sizes of a grid are padded to a multiple of."""
        return self.patch * 2 ** (len(self.down) - 1)

    def _check(self, field: Array) -> None:
        dims = self.lift.num_spatial_dims
        channels = self.lift.in_channels - dims
        if field.ndim - 1 != dims or field.shape[0] != channels:
            raise InputError(
                f"a field of shape {list(field.shape)} for a latent spectral model of {channels} "
                f"channels on {dims} axes: hand over [channels, *grid]"
            )


def _coordinates(grid: Sequence[int], dtype: Any) -> Array:
    axes = [(np.arange(size) + 0.5) / size for size in grid]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij")), dtype)


def _pooled(x: Array) -> Array:
    """The largest of each two neighbours along each axis."""
    width, *grid = x.shape
    halves = x.reshape(width, *(part for size in grid for part in (size // 2, 2)))
    return halves.max(tuple(range(2, halves.ndim, 2)))


def _doubled(x: Array) -> Array:
    """Twice the points along each axis, by linear interpolation between cell centres."""
    return jax.image.resize(x, (x.shape[0], *(2 * size for size in x.shape[1:])), "linear")


def latent_spectral_model(
    inputs: int,
    outputs: int,
    key: Any,
    *,
    width: int = 64,
    scales: int = 5,
    patch: int = 6,
    tokens: int = 4,
    heads: int = 8,
    basis: int = 12,
    projection: int = 128,
    dims: int = 2,
    dtype: Any = jnp.float32,
) -> LatentSpectralModel:
    """A latent spectral model with the paper's settings for Darcy flow as defaults.

    **Arguments:**

    - `width`: channels on the finest grid, doubled at each coarser one but the last.
    - `scales`: of the U-Net. `patch`: points of a patch along each axis, at every scale.
    - `tokens`: for each head of a patch; 0 leaves out the spectral blocks: the plain U-Net.
    - `heads`: of the attention, a divisor of `width`. `basis`: terms of the series.
    - `projection`: channels before the last layer. `dims`: 1, 2 or 3.

    Any resolution may be fed, but convolutions and patches see cells, not lengths. Raises
    `InputError` for settings that do not go together.

    **Cost:** a U-Net's, and for each point and scale 3 width^2 + 4 width · tokens multiplications:
    linear in the number of points. Paper: `latent-spectral-models`.
    """
    positive = {"inputs": inputs, "outputs": outputs, "width": width, "scales": scales}
    positive |= {"patch": patch, "heads": heads, "basis": basis, "projection": projection}
    for name, value in positive.items():
        if value < 1:
            raise InputError(f"{name}={value} must be at least 1")
    if tokens < 0:
        raise InputError(f"tokens={tokens} must not be negative; 0 for the plain U-Net")
    if width % heads:
        raise InputError(f"heads={heads} must divide width={width}")
    if dims not in (1, 2, 3):
        raise InputError(f"dims={dims} must be 1, 2 or 3")
    widths = [width * 2**scale for scale in range(max(scales - 1, 1))]
    widths = [*widths, widths[-1]][:scales]
    keys = iter(jax.random.split(key, 3 * scales + 4))

    def pointwise(before: int, after: int) -> eqx.nn.Conv:
        return eqx.nn.Conv(dims, before, after, 1, dtype=dtype, key=next(keys))

    def double(before: int, after: int, between: int) -> DoubleConvolution:
        return _double_convolution(before, between, after, dims, next(keys), dtype)

    fine = widths[:-1]
    return LatentSpectralModel(
        lift=pointwise(inputs + dims, width),
        down=tuple(double(b, a, a) for b, a in zip([width, *widths], widths, strict=False)),
        blocks=tuple(
            _spectral_block(w, patch, tokens, heads, basis, dims, next(keys), dtype)
            for w in (widths if tokens else ())
        ),
        up=tuple(double(2 * w, max(w // 2, width), w) for w in reversed(fine)),
        mix=pointwise(width, width),
        hidden=pointwise(width, projection),
        head=pointwise(projection, outputs),
        patch=patch,
    )


def _double_convolution(
    before: int, between: int, after: int, dims: int, key: Any, dtype: Any
) -> DoubleConvolution:
    def conv(inputs: int, outputs: int, key: Any) -> eqx.nn.Conv:
        return eqx.nn.Conv(
            dims, inputs, outputs, 3, padding=1, use_bias=False, dtype=dtype, key=key
        )

    first, second = jax.random.split(key)
    return DoubleConvolution(
        conv(before, between, first),
        _norm(between, dtype),
        conv(between, after, second),
        _norm(after, dtype),
    )


def _norm(channels: int, dtype: Any) -> eqx.nn.GroupNorm:
    made = eqx.nn.GroupNorm(math.gcd(max(channels // 4, 1), channels), channels)
    return jax.tree.map(lambda x: x.astype(dtype) if eqx.is_array(x) else x, made)


def _spectral_block(
    width: int, patch: int, tokens: int, heads: int, basis: int, dims: int, key: Any, dtype: Any
) -> SpectralBlock:
    """Tokens and weights of the series start uniform in [0, 1 / width), as the published ones."""
    encode, decode, *draws = jax.random.split(key, 5)
    features = width // heads
    shapes = ((heads, tokens, features), (heads, features, basis), (heads, features, basis - 1))
    token, cosine, sine = (
        jax.random.uniform(k, shape, dtype, maxval=1 / width)
        for k, shape in zip(draws, shapes, strict=True)
    )
    return SpectralBlock(
        tokens=token,
        encode=eqx.nn.Conv(dims, width, 2 * width, 1, dtype=dtype, key=encode),
        decode=eqx.nn.Conv(dims, width, width, 1, dtype=dtype, key=decode),
        cosines=cosine,
        sines=sine,
        patch=patch,
    )


# ---- learning from pairs


class TrainedLSM(MapBuilder):
    """Builds a latent spectral model from pairs of fields, trained and normalised.

    **Arguments:** `width`, `scales`, `patch`, `tokens`, `heads`, `basis` of
    `latent_spectral_model`; the others of `MapBuilder`.

    The defaults are for seconds of one core: the paper has width 64 (NS, Darcy), 5 scales, 500
    epochs of batches of 20, and halves its rate of 5e-4 every 100.
    """

    width: int = 8
    scales: int = 3
    patch: int = 4
    tokens: int = 4
    heads: int = 4
    basis: int = 12
    projection: int = 64
    steps: int = 300
    batch: int = 8
    learning_rate: float = 2e-3
    schedule: Schedule = "cosine"
    weight_decay: float = 1e-4
    loss: FieldLoss = relative_l2_loss

    def untrained(self, data: Pairs, key: Any) -> Normalized:
        """The model before training, with the data's statistics in it."""
        model = latent_spectral_model(
            data.inputs.shape[1],
            data.outputs.shape[1],
            key,
            width=self.width,
            scales=self.scales,
            patch=self.patch,
            tokens=self.tokens,
            heads=self.heads,
            basis=self.basis,
            projection=self.projection,
            dims=data.inputs.ndim - 2,
            dtype=data.inputs.dtype,
        )
        return normalized(model, data)


lsm_map = TrainedLSM()
