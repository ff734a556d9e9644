"""Convolutions whose kernel is given by its lowest Fourier modes, on grids of 1 to 3 axes.

A field is a function on a periodic box, known at equidistant points. Its Fourier coefficients

    c(k) = mean over the points x of  field(x) exp(-2 pi i k x)

do not depend on the resolution, so neither does a layer that maps the lowest of them to those of
another field. Along the last axis the modes 0, ..., m - 1 are kept, the others follow from
conjugate symmetry; along each other axis 0, ..., m - 1 and -m, ..., -1 (in this order): 2^(d-1)
corners of the spectrum. Synthesis samples the real function with these coefficients: twice the
real part of each mode of the last axis, but once that of mode 0, its own mirror image. On an even
grid of n points the mode n / 2 is n / -2 too: analysis gives each half of it, so that the function
is the same on finer grids, and on the grid itself the layer is the usual one of `rfft` and `irfft`.

There are two ways to the same coefficients. `fft`: a fast transform along each axis, cut before
the next. `dense`: a product with the few rows of the Fourier matrix that are kept, in real
arithmetic. Products reach a processor's peak, transforms do not, so `dense` wins while few modes
are kept; `auto` takes it where `dense_is_cheaper` says so.

Inside, channels are the last axis and the real and imaginary parts the one before: then lifting,
transforming, mixing channels and projecting a batch are plain matrix products without transposing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Transform = Literal["auto", "fft", "dense"]

OPERATIONS_OF_FFT = 80  # of a matrix product, a point and an axis: see `dense_is_cheaper`


class SpectralConvolution(eqx.Module):
    """A linear map of the lowest Fourier modes of a field: `[inputs, *grid] -> [outputs, *grid]`.

    **Arguments:**

    - `weight`: complex matrices, one for each kept mode, as real and imaginary parts.
    - `modes`: how many are kept along each axis: `modes[-1]` of the last (0 included), twice
      `modes[j]` of each other. A grid too coarse for some of them goes without those.
    - `transform`: `fft`, `dense`, or `auto`: whichever is expected to be faster.

    Commutes with translations by whole cells. Raises `InputError` for a field of other channels
    or another number of axes. **Cost:** product(modes) · 2^(d-1) · inputs · outputs complex
    multiplications and the transforms. Paper: `fno`.

    Differs from the published code in the order of the axes of the weight, and in that the
    coefficients are means rather than sums (the inverse has no factor instead: the same layer).
    """

    weight: Float[Array, "*modes 2 inputs outputs"]
    modes: tuple[int, ...] = eqx.field(static=True)
    transform: Transform = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_modes(self.modes)
        if self.transform not in get_args(Transform):
            raise InputError(
                f"transform={self.transform!r} must be one of {', '.join(get_args(Transform))}"
            )
        kept = kept_shape(self.modes)
        if hasattr(self.weight, "shape") and self.weight.shape[:-2] != (*kept, 2):
            raise InputError(
                f"the weight's shape {list(self.weight.shape)} must begin with {[*kept, 2]}, "
                "the kept modes and their real and imaginary part"
            )

    def __call__(
        self, field: Float[Array, " inputs *grid"], grid: tuple[int, ...] | None = None
    ) -> Float[Array, " outputs *out"]:
        """The image of a field, on its own grid or resampled to another of the same box."""
        return jnp.moveaxis(self.channels_last(jnp.moveaxis(field, 0, -1), grid), -1, 0)

    def channels_last(
        self, field: Float[Array, "*grid inputs"], grid: tuple[int, ...] | None = None
    ) -> Float[Array, "*out outputs"]:
        """The same for a field whose last axis are the channels, which saves transposing it."""
        self._check(field)
        target = field.shape[:-1] if grid is None else grid
        if len(target) != len(self.modes):
            raise InputError(f"grid {list(target)} must have {len(self.modes)} axes")
        kept = available_modes(target, available_modes(field.shape[:-1], self.modes))
        coefficients = analyse(field, kept, transform=self.transform)
        mixed = mix(restrict(self.weight, self.modes, kept), coefficients)
        return synthesise(mixed, kept, target, transform=self.transform)

    def _check(self, field: Array) -> None:
        if field.ndim != len(self.modes) + 1:
            raise InputError(
                f"a field of {len(self.modes)} axes and its channels was expected, not one of "
                f"shape {list(field.shape)}; batches go through jax.vmap"
            )
        if field.shape[-1] != self.weight.shape[-2]:
            raise InputError(
                f"the field has {field.shape[-1]} channels, the layer takes "
                f"{self.weight.shape[-2]}; channels come first: [channels, *grid]"
            )


def spectral_convolution(
    inputs: int,
    outputs: int,
    modes: Sequence[int],
    key: Any,
    *,
    transform: Transform = "auto",
    dtype: Any = jnp.float32,
) -> SpectralConvolution:
    """A spectral convolution drawn as published: parts uniform on [0, 1) over inputs · outputs."""
    if min(inputs, outputs) < 1:
        raise InputError(f"inputs={inputs} and outputs={outputs} must be positive")
    check_modes(modes)
    weight = jax.random.uniform(key, (*kept_shape(modes), 2, inputs, outputs), dtype)
    return SpectralConvolution(weight / (inputs * outputs), tuple(modes), transform)


# ---- which modes


def check_modes(modes: Sequence[int]) -> None:
    """Raises `InputError` unless there are 1 to 3 positive numbers of modes."""
    if not 1 <= len(modes) <= 3 or min(modes) < 1:
        raise InputError(f"modes={tuple(modes)} must be one to three positive numbers")


def kept_shape(modes: Sequence[int]) -> tuple[int, ...]:
    """How many coefficients are kept along each axis."""
    return (*(2 * m for m in modes[:-1]), modes[-1])


def available_modes(grid: Sequence[int], modes: Sequence[int]) -> tuple[int, ...]:
    """As many of the modes as a grid has."""
    return tuple(map(min, modes, modes_of(grid)))


def modes_of(grid: Sequence[int]) -> tuple[int, ...]:
    """All modes of a grid: n // 2 to each side, and n // 2 + 1 of the last axis."""
    if min(grid[:-1], default=2) < 2:
        raise InputError(f"grid {list(grid)} must have at least 2 points along each axis")
    return (*(n // 2 for n in grid[:-1]), grid[-1] // 2 + 1)


def restrict(
    weight: Float[Array, "*modes 2 inputs outputs"], modes: Sequence[int], kept: Sequence[int]
) -> Float[Array, "*kept 2 inputs outputs"]:
    """The weights of the kept modes, where a grid has fewer than the layer."""
    for axis, (m, k) in enumerate(zip(modes, kept, strict=True)):
        if k == m:
            continue
        if axis == len(modes) - 1:
            weight = jax.lax.slice_in_dim(weight, 0, k, axis=axis)
        else:
            weight = _corners(weight, k, axis)
    return weight


def _corners(x: Array, modes: int, axis: int) -> Array:
    """The frequencies 0, ..., m - 1, -m, ..., -1 of an axis in the order of an FFT."""
    size = x.shape[axis]
    if size == 2 * modes:
        return x
    low = jax.lax.slice_in_dim(x, 0, modes, axis=axis)
    high = jax.lax.slice_in_dim(x, size - modes, size, axis=axis)
    return jnp.concatenate([low, high], axis)


# ---- to modes, in modes, and back


def analyse(
    field: Float[Array, "*grid channels"], modes: Sequence[int], *, transform: Transform = "auto"
) -> Float[Array, "*kept 2 channels"]:
    """The kept Fourier coefficients of a real field, as real and imaginary parts.

    The grid must have the modes: see `available_modes`.
    """
    _check_grid(field.shape[:-1], modes)
    if _chosen(transform, field.shape[:-1], modes) == "dense":
        return _analyse_dense(field, modes)
    return _analyse_fft(field, modes)


def mix(
    weight: Float[Array, "*kept 2 inputs outputs"],
    coefficients: Float[Array, "*kept 2 inputs"],
) -> Float[Array, "*kept 2 outputs"]:
    """The product of each mode's complex matrix with its vector, in real arithmetic.

    Written as one product of real matrices for each mode, twice as tall: (Re W; Im W) meets
    (Re c, -Im c) for the real part and (Im c, Re c) for the imaginary one.
    """
    *kept, _, inputs, outputs = weight.shape
    count = math.prod(kept)
    real, imaginary = coefficients[..., 0, :], coefficients[..., 1, :]
    rows = jnp.stack(
        [
            jnp.concatenate([real, -imaginary], axis=-1),
            jnp.concatenate([imaginary, real], axis=-1),
        ],
        axis=-2,
    )
    mixed = jnp.einsum(
        "kpi,kio->kpo",
        rows.reshape(count, 2, 2 * inputs),
        weight.reshape(count, 2 * inputs, outputs),
    )
    return mixed.reshape(*kept, 2, outputs)


def synthesise(
    coefficients: Float[Array, "*kept 2 channels"],
    modes: Sequence[int],
    grid: Sequence[int],
    *,
    transform: Transform = "auto",
) -> Float[Array, "*grid channels"]:
    """The real field with these Fourier coefficients, all others zero, on a grid."""
    _check_grid(grid, modes)
    if _chosen(transform, grid, modes) == "dense":
        return _synthesise_dense(coefficients, modes, grid)
    return _synthesise_fft(coefficients, modes, grid)


def _check_grid(grid: Sequence[int], modes: Sequence[int]) -> None:
    if len(grid) != len(modes) or any(map(int.__gt__, modes, modes_of(grid))):
        raise InputError(
            f"the grid {list(grid)} does not have the modes {list(modes)}: it has "
            f"{list(modes_of(grid))} (see available_modes)"
        )


def _chosen(transform: Transform, grid: Sequence[int], modes: Sequence[int]) -> Transform:
    if transform != "auto":
        return transform
    return "dense" if dense_is_cheaper(grid, modes) else "fft"


def dense_is_cheaper(grid: Sequence[int], modes: Sequence[int]) -> bool:
    """The rule of `auto`: products take at most 80 operations a point for each axis of space.

    Measured on one core with AVX-512, transform and inverse with their derivatives, 8 to 512
    columns: a fast transform with its transposes takes about as long as 80 operations of a product
    do, nearly whatever its length. At 64, (32, 32) and (16, 16, 16) points with 16, 8 and 4 modes
    dense is 2.0, 1.8 and 2.5 times faster; at 1024 points with 64 modes, 2.9 times slower.
    """
    operations, columns = 0.0, 1.0
    for axis in reversed(range(len(grid))):
        rows, parts = (2 * modes[axis], 1) if axis == len(grid) - 1 else (4 * modes[axis], 2)
        operations += 2 * rows * parts * columns
        columns *= kept_shape(modes)[axis] / grid[axis]
    return operations <= OPERATIONS_OF_FFT * len(grid)


# ---- by products with the rows of the Fourier matrix


def _analyse_dense(field: Array, modes: Sequence[int]) -> Array:
    *others, last = field.shape[:-1]
    first = _real_analysis(last, modes[-1]).astype(field.dtype)
    parts = jnp.tensordot(first, field, ((2,), (len(others),)))  # [2, k, *others, channels]
    for size, m in zip(reversed(others), reversed(modes[:-1]), strict=True):
        matrix = _complex_analysis(size, m).astype(field.dtype)
        # Always the last axis of space that is left; its modes come in front of the others.
        parts = jnp.tensordot(matrix, parts, ((2, 3), (0, parts.ndim - 2)))
    return jnp.moveaxis(parts, 0, -2)


def _synthesise_dense(coefficients: Array, modes: Sequence[int], grid: Sequence[int]) -> Array:
    dtype = coefficients.dtype
    parts = jnp.moveaxis(coefficients, -2, 0)  # [2, *kept, channels]
    for axis, (size, m) in enumerate(zip(grid[:-1], modes[:-1], strict=True)):
        matrix = _complex_synthesis(size, m).astype(dtype)
        parts = jnp.tensordot(matrix, parts, ((2, 3), (0, 1 + axis)))
    last = _real_synthesis(grid[-1], modes[-1]).astype(dtype)
    field = jnp.tensordot(last, parts, ((1, 2), (0, len(grid))))  # the axes of space reversed
    return jnp.transpose(field, (*reversed(range(len(grid))), len(grid)))


def _angles(frequencies: np.ndarray, size: int) -> np.ndarray:
    # Whole turns are left out in integers: cos(2 pi k j / n) of large k j would lose digits.
    return 2 * np.pi * (np.outer(frequencies, np.arange(size)) % size) / size


def _both_sides(modes: int) -> np.ndarray:
    return np.concatenate([np.arange(modes), np.arange(-modes, 0)])


@lru_cache(maxsize=256)
def _real_analysis(size: int, modes: int) -> np.ndarray:
    """From a real axis to its modes 0, ..., m - 1: [2, modes, size]."""
    angles = _angles(np.arange(modes), size)
    return np.stack([np.cos(angles), -np.sin(angles)]) * _shares(size, modes)[:, None] / size


@lru_cache(maxsize=256)
def _complex_analysis(size: int, modes: int) -> np.ndarray:
    """From a complex axis to its modes on both sides: [2, modes, 2, size]."""
    angles = _angles(_both_sides(modes), size)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, sin], 1), np.stack([-sin, cos], 1)]) / size


@lru_cache(maxsize=256)
def _complex_synthesis(size: int, modes: int) -> np.ndarray:
    """From the modes on both sides to a complex axis: [2, size, 2, modes]."""
    angles = _angles(_both_sides(modes), size).T
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)])


@lru_cache(maxsize=256)
def _real_synthesis(size: int, modes: int) -> np.ndarray:
    """From the modes 0, ..., m - 1 to a real axis: [size, 2, modes]."""
    frequencies = np.arange(modes)
    angles = _angles(frequencies, size).T
    return np.stack([np.cos(angles), -np.sin(angles)], 1) * np.where(frequencies == 0, 1, 2)


def _shares(size: int, modes: int) -> np.ndarray:
    """How much of what the grid shows of each mode is that mode's: half of n / 2, all others."""
    return np.where(2 * np.arange(modes) == size, 0.5, 1)


# ---- by fast transforms, one axis after the other, cut before the next


def _analyse_fft(field: Array, modes: Sequence[int]) -> Array:
    spectrum = jnp.moveaxis(field, -1, 0)  # XLA transforms innermost axes
    spectrum = jnp.fft.rfft(spectrum, norm="forward")[..., : modes[-1]]
    spectrum = spectrum * _shares(field.shape[-2], modes[-1]).astype(field.dtype)
    for axis in reversed(range(len(modes) - 1)):
        spectrum = jnp.fft.fft(spectrum, axis=1 + axis, norm="forward")
        spectrum = _corners(spectrum, modes[axis], 1 + axis)
    return jnp.moveaxis(jnp.stack([spectrum.real, spectrum.imag]), (0, 1), (-2, -1))


def _synthesise_fft(coefficients: Array, modes: Sequence[int], grid: Sequence[int]) -> Array:
    real, imaginary = jnp.moveaxis(coefficients, (-2, -1), (0, 1))
    spectrum = jax.lax.complex(real, imaginary)
    for axis, (size, m) in enumerate(zip(grid[:-1], modes[:-1], strict=True)):
        spectrum = _spread(spectrum, m, size, 1 + axis)
        spectrum = jnp.fft.ifft(spectrum, axis=1 + axis, norm="forward")
    spectrum = spectrum / _shares(grid[-1], modes[-1]).astype(coefficients.dtype)
    return jnp.moveaxis(jnp.fft.irfft(spectrum, grid[-1], norm="forward"), 0, -1)


def _spread(spectrum: Array, modes: int, size: int, axis: int) -> Array:
    """The corners of an axis, with zeros between."""
    low, high = jnp.split(spectrum, [modes], axis)
    shape = list(spectrum.shape)
    shape[axis] = size - 2 * modes
    return jnp.concatenate([low, jnp.zeros(shape, spectrum.dtype), high], axis)
