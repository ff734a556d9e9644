"""Fourier space over a uniform periodic grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from nearly.core.errors import InputError


@dataclass(frozen=True)
class SpectralGrid:
    """A periodic box with the points j length / n along each axis, and its half spectrum.

    **Arguments:** `shape`, points along each axis; `lengths`, of the box; `dtype` of the fields.

    Fields are real, so spectra are those of `jnp.fft.rfftn`: the last axis holds half.
    """

    shape: tuple[int, ...]
    lengths: tuple[float, ...]
    dtype: Any

    @property
    def steps(self) -> tuple[float, ...]:
        """The distance between points along each axis."""
        return tuple(length / n for length, n in zip(self.lengths, self.shape, strict=True))

    def points(self) -> tuple[Float[Array, "*grid"], ...]:
        """The coordinates of all points, one array for each axis."""
        axes = [np.arange(n) * step for n, step in zip(self.shape, self.steps, strict=True)]
        return tuple(jnp.asarray(x, self.dtype) for x in np.meshgrid(*axes, indexing="ij"))

    def integers(self) -> tuple[np.ndarray, ...]:
        """Signed integer wave numbers along each axis, shaped to broadcast over a spectrum."""
        found: list[np.ndarray] = []
        for axis, n in enumerate(self.shape):
            last = axis == len(self.shape) - 1
            signed = np.arange(n // 2 + 1) if last else np.fft.fftfreq(n, 1 / n)
            apart = [a for a in range(len(self.shape)) if a != axis]
            found.append(np.expand_dims(signed.astype(float), apart))
        return tuple(found)

    def square(self) -> Float[Array, "*modes"]:
        """|k|^2 of every mode; minus the symbol of the Laplacian."""
        waves = zip(self.integers(), self.lengths, strict=True)
        total = sum((2 * math.pi / length * k) ** 2 for k, length in waves)
        return jnp.asarray(total, self.dtype)

    def derivative(self, axis: int) -> Complex[Array, "*modes"]:
        """i k along one axis: the symbol of a first derivative.

        Zero at the highest wave number of an even grid, which has no sine: an odd derivative of it
        is not seen at the points.
        """
        k = self.integers()[axis]
        seen = np.where(2 * np.abs(k) == self.shape[axis], 0.0, k)
        return 1j * jnp.asarray(2 * math.pi / self.lengths[axis] * seen, self.dtype)

    def below(self, fraction: float) -> Bool[Array, "*modes"]:
        """Modes whose wave numbers are below a fraction of the highest along every axis.

        Products of two fields of such modes are free of aliasing for 2/3, of three for 1/2.
        """
        kept = np.ones((1,) * len(self.shape), bool)
        for k, n in zip(self.integers(), self.shape, strict=True):
            kept = kept & (np.abs(k) < fraction * n / 2)
        return jnp.asarray(kept)

    def transform(self, field: Float[Array, "*grid"]) -> Complex[Array, "*modes"]:
        """Coefficients of a field."""
        return jnp.fft.rfftn(field)

    def values(self, spectrum: Complex[Array, "*modes"]) -> Float[Array, "*grid"]:
        """The field of given coefficients."""
        return jnp.fft.irfftn(spectrum, self.shape)


def box(length: float | Sequence[float], dimension: int) -> tuple[float, ...]:
    """The lengths of a box: one number stands for a cube."""
    if isinstance(length, Sequence):
        if len(length) != dimension:
            raise InputError(
                f"length {length} has {len(length)} numbers for a field with {dimension} axes: "
                "give one number, or one for each axis"
            )
        return tuple(float(each) for each in length)
    return (float(length),) * dimension
