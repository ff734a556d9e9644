"""Losses of fields beyond those of `training.py`."""

from __future__ import annotations

from functools import lru_cache

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError


class RelativeH1(eqx.Module):
    """The training loss of `mgno`: relative error of a field and its gradient, by Fourier modes.

    The squared norm is the sum over modes k of (1 + sum_j k_j^2) |mode|^2, where k_j counts waves
    across the box and is taken for 0 from `frequencies` on: derivatives count on resolved scales
    only. Modes along an axis do not mix those along the others, so this equals the norm of the
    values and of one truncated derivative along each axis, computed by matrix products: exact, and
    faster than transforms on the grids of this room. `[channels, *grid]` twice `-> scalar`.

    **Cost:** points · size of each axis.
    """

    frequencies: int = eqx.field(static=True, default=20)

    def __check_init__(self) -> None:
        if self.frequencies < 1:
            raise InputError(f"frequencies={self.frequencies} must be at least 1")

    def __call__(
        self, prediction: Float[Array, " channels *grid"], truth: Float[Array, " channels *grid"]
    ) -> Float[Array, ""]:
        tiny = jnp.finfo(truth.dtype).tiny  # an exact prediction has a gradient: 0
        error = self._squared(prediction - truth)
        return jnp.sqrt(error + tiny) / jnp.sqrt(self._squared(truth) + tiny)

    def _squared(self, field: Array) -> Array:
        total = jnp.sum(jnp.square(field))
        for axis in range(1, field.ndim):
            matrix = jnp.asarray(_waves(field.shape[axis], self.frequencies), field.dtype)
            total += jnp.sum(jnp.square(jnp.tensordot(matrix, field, ((1,), (axis,)))))
        return total


@lru_cache(32)
def _waves(size: int, frequencies: int) -> np.ndarray:
    """[rows, size]: cosines and sines of waves 1 to frequencies - 1, k times their unit vector."""
    points = np.arange(size) / size
    k = np.arange(1, min(frequencies, (size + 1) // 2))[:, None]
    scale = np.sqrt(2 / size) * k
    rows = [scale * np.cos(2 * np.pi * k * points), scale * np.sin(2 * np.pi * k * points)]
    if size % 2 == 0 and size // 2 < frequencies:  # the highest mode has no partner
        rows.append((size // 2) * np.cos(np.pi * np.arange(size))[None] / np.sqrt(size))
    return np.concatenate(rows)
