"""A periodic U-Net that is told scalars: a refinement's level, parameters of the equation."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.training.architectures import MLP, UNet, mlp, unet
from nearly.training.convolution import as_products

LONGEST_PERIOD = 1e4  # of the embedding's sines, in units of a thousandth of the last level


def sinusoidal(place: Float[Array, ""], features: int) -> Float[Array, " features"]:
    """A place in [0, 1] as sines and cosines of periods 2 pi / 1000 to 20 pi, `[features]`.

    The embedding of diffusion models, their 1000 time steps spread over [0, 1]. Raises
    `InputError` for an odd number of features.
    """
    if features < 2 or features % 2:
        raise InputError(f"features={features} must be even: a sine and a cosine of each period")
    half = features // 2
    exponents = jnp.arange(half, dtype=place.dtype) / half
    angles = 1000 * place * jnp.exp(-math.log(LONGEST_PERIOD) * exponents)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class ConditionedUNet(eqx.Module):
    """`network(x, level, parameters) -> y` on a periodic grid: see `conditioned_unet`."""

    embedding: MLP
    trunk: UNet
    features: int = eqx.field(static=True)

    def __call__(
        self,
        x: Float[Array, " inputs *grid"],
        level: Float[Array, ""],
        parameters: Float[Array, " p"],
    ) -> Float[Array, " outputs *grid"]:
        """The output field; `level` in [0, 1], `parameters` of about unit size."""
        scalars = jnp.concatenate([sinusoidal(level, self.features), parameters])
        return self.trunk(x, self.embedding(scalars))


def conditioned_unet(
    inputs: int,
    outputs: int,
    parameters: int,
    key: Any,
    *,
    width: int = 16,
    levels: int = 2,
    dims: int = 1,
    features: int = 32,
    dtype: Any = jnp.float32,
) -> ConditionedUNet:
    """A U-Net whose blocks are shifted and scaled (FiLM) by an embedding of scalars.

    **Arguments:**

    - `inputs`, `outputs`: channels. `parameters`: how many besides the level.
    - `width`, `levels`, `dims`: of the U-Net; every size of a field a multiple of 2^levels.
    - `features`: sines and cosines that embed the level.

    Padding is circular: translations by multiples of 2^levels points commute with it.
    **Cost:** about `100 width^2` multiplications a point for two levels in 1-D.
    **Paper:** `pde-refiner` uses 64 channels, four resolutions and attention in the middle; ours
    has neither, so that it trains on a CPU.
    """
    trunk_key, embedding_key = jax.random.split(key)
    trunk = unet(
        inputs,
        outputs,
        trunk_key,
        width=width,
        levels=levels,
        dims=dims,
        condition=features,
        padding="CIRCULAR",
        dtype=dtype,
    )
    embedding = mlp([features + parameters, 2 * features, features], embedding_key, dtype=dtype)
    return ConditionedUNet(embedding, as_products(trunk), features)
