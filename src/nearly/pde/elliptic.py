"""Poisson's and Helmholtz' equation on a box, solved by fast transforms.

    Laplacian(u) + k^2 u = q

Periodic grids have the points j length / n; the others the centres of cells, (j + 1/2) length / n,
with u = 0 ("dirichlet") or its normal derivative ("neumann") on the boundary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.datasets.random_fields import Boundary
from nearly.datasets.trigonometric import (
    cosine_coefficients,
    cosine_values,
    sine_coefficients,
    sine_values,
)
from nearly.pde.checks import check_field, is_concrete
from nearly.pde.spectral_grid import SpectralGrid, box

Scalar = float | Float[Array, ""]
Accuracy = Literal["spectral", "second-order"]


def solve_helmholtz(
    source: Float[Array, "*grid"],
    wave_number: Scalar = 0.0,
    *,
    length: float | Sequence[float] = 1.0,
    boundary: Boundary = "dirichlet",
    accuracy: Accuracy = "spectral",
) -> Float[Array, "*grid"]:
    """u with Laplacian(u) + wave_number^2 u = source; Poisson's equation for 0.

    **Arguments:**

    - `source`: at the grid's points, one sample in any dimension.
    - `wave_number`: k; may be traced. Where k^2 is an eigenvalue of minus the Laplacian there is no
      solution, near one it is large.
    - `length`: of the box, one number or one for each axis.
    - `boundary`: "periodic", "dirichlet" or "neumann". For k = 0 and not "dirichlet" the means of
      source and solution are taken to be zero.
    - `accuracy`: "spectral" sums the eigenfunctions of the Laplacian that the grid resolves;
      "second-order" is what second differences (finite volumes) on that grid give.

    **Returns:** u at the same points. Linear in the source, differentiable in the wave number.

    **Raises:** `InputError` for a source of the wrong dtype, values that are not finite, or a wave
    number within rounding error of an eigenvalue (where they can be looked at).

    **Cost:** two fast transforms: O(points log points).

    Of sources that are not zero at the boundary the sine series converges slowly: with "dirichlet"
    "spectral" is then of order 2 as well, with a smaller constant.
    """
    check_field("the source", source, range(1, source.ndim + 1))
    lengths = box(length, source.ndim)
    if boundary == "periodic":
        grid = SpectralGrid(source.shape, lengths, source.dtype)
        eigenvalues = grid.square()
        if accuracy == "second-order":
            eigenvalues = _periodic_difference_eigenvalues(grid)
    else:
        kind = difference_eigenvalues if accuracy == "second-order" else spectral_eigenvalues
        eigenvalues = kind(source.shape, lengths, source.dtype, boundary)
    shifted = eigenvalues - jnp.asarray(wave_number, source.dtype) ** 2
    _check_resonance(eigenvalues, shifted, wave_number, boundary)
    return -DiagonalInverse(shifted, boundary)(source)


class DiagonalInverse(eqx.Module):
    """The inverse of a map given by its eigenvalues for the boundary's sines, cosines or waves.

    Modes with the eigenvalue zero are left out.
    """

    eigenvalues: Float[Array, "*modes"]
    boundary: Boundary = eqx.field(default="dirichlet", static=True)

    def __call__(self, source: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
        empty = self.eigenvalues == 0
        inverse = jnp.where(empty, 0, 1 / jnp.where(empty, 1, self.eigenvalues))
        return multiply_diagonal(source, inverse, self.boundary)


def multiply_diagonal(
    field: Float[Array, "*grid"], factors: Float[Array, "*modes"], boundary: Boundary
) -> Float[Array, "*grid"]:
    """Multiply the coefficients of a field for the boundary's sines, cosines or waves."""
    if boundary == "periodic":
        return jnp.fft.irfftn(factors * jnp.fft.rfftn(field), field.shape)
    forward, backward = _transforms(boundary)
    coefficients = functools.reduce(forward, range(field.ndim), field)
    return functools.reduce(backward, range(field.ndim), factors * coefficients)


def _transforms(boundary: Boundary) -> tuple[Any, Any]:
    if boundary == "dirichlet":
        return sine_coefficients, sine_values
    if boundary == "neumann":
        return cosine_coefficients, cosine_values
    raise InputError(
        f"boundary {boundary!r} is none of 'periodic', 'dirichlet', 'neumann': choose one"
    )


def spectral_eigenvalues(
    shape: Sequence[int],
    lengths: Sequence[float],
    dtype: Any,
    boundary: Boundary = "dirichlet",
) -> Float[Array, "*modes"]:
    """Of minus the Laplacian, for the sines or cosines that cell centres resolve."""
    waves = [
        (math.pi / length * _orders(n, dtype, boundary)) ** 2
        for n, length in zip(shape, lengths, strict=True)
    ]
    return functools.reduce(jnp.add.outer, waves)


def difference_eigenvalues(
    shape: Sequence[int],
    lengths: Sequence[float],
    dtype: Any,
    boundary: Boundary = "dirichlet",
) -> Float[Array, "*modes"]:
    """Of minus the second differences between cell centres, with half cells at the boundary."""
    waves = [
        (2 * n / length * jnp.sin(math.pi / (2 * n) * _orders(n, dtype, boundary))) ** 2
        for n, length in zip(shape, lengths, strict=True)
    ]
    return functools.reduce(jnp.add.outer, waves)


def _periodic_difference_eigenvalues(grid: SpectralGrid) -> Array:
    waves = [
        (2 / step * jnp.sin(math.pi / n * jnp.asarray(k, grid.dtype))) ** 2
        for n, step, k in zip(grid.shape, grid.steps, grid.integers(), strict=True)
    ]
    return functools.reduce(jnp.add, waves)


def _orders(n: int, dtype: Any, boundary: Boundary) -> Array:
    return jnp.arange(n, dtype=dtype) + (boundary == "dirichlet")


def _check_resonance(
    eigenvalues: Array, shifted: Array, wave_number: Scalar, boundary: Boundary
) -> None:
    if not is_concrete(shifted):
        return
    if not jnp.all(jnp.isfinite(shifted)):
        raise InputError(f"wave_number={wave_number} must be finite")
    if wave_number == 0 and boundary != "dirichlet":
        return
    nearest = jnp.argmin(jnp.abs(shifted))
    gap, at = jnp.abs(shifted).ravel()[nearest], eigenvalues.ravel()[nearest]
    if gap <= 100 * jnp.finfo(shifted.dtype).eps * jnp.maximum(at, 1):
        raise InputError(
            f"wave_number={float(wave_number):g} is a resonance: its square is an eigenvalue, "
            f"{float(at):g}, and there is no solution; change it or the box"
        )
