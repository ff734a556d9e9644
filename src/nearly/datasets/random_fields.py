"""Gaussian random fields on uniform grids, the same function at every resolution."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.datasets.trigonometric import cosine_values, sine_values

Boundary = Literal["periodic", "dirichlet", "neumann"]


def gaussian_random_field(
    key: Key[Array, ""],
    shape: Sequence[int],
    *,
    alpha: float,
    tau: float,
    sigma: float = 1.0,
    boundary: Boundary = "periodic",
    dtype: Any = jnp.float32,
) -> Float[Array, "*grid"]:
    """A draw from N(0, sigma^2 (-Laplacian + tau^2)^(-alpha)) on the unit box, at a grid's points.

    **Arguments:**

    - `shape`: points along each axis. Periodic grids have the points j / n; the others the centres
      of cells, (j + 1/2) / n.
    - `alpha`: the power; draws have finite variance if `alpha` > dimension / 2, and about
      `alpha` - dimension / 2 derivatives.
    - `tau`: the inverse correlation length. With `boundary="periodic"` and tau = 0 the mean, whose
      variance is infinite, is left out.
    - `sigma`: the amplitude: the eigenfunction of wave number k, of unit norm, is multiplied by a
      standard normal number times sigma (|k|^2 + tau^2)^(-alpha / 2). Wave numbers are 2 pi times
      integers with `boundary="periodic"`, pi times integers otherwise.
    - `boundary`: of the Laplacian: "periodic", "dirichlet" (sines) or "neumann" (cosines).

    **Returns:** the field, of that shape and dtype.

    **Raises:** `InputError` for an unknown boundary, a size below 2, a negative tau or sigma, or a
    power below half the dimension.

    **Cost:** two hashes per point and a fast transform.

    The number of a wave number is drawn from the key and that wave number alone: the same key at
    another resolution is the same function with more or fewer terms. The usual draw, white noise
    on the grid times the amplitudes, is another function at every resolution. The published code of
    `fno` multiplies by sqrt(2) what its text says; this is the text:
    `N(0, 7^(3/2) (-Laplacian + 49)^(-2.5))` is alpha=2.5, tau=7, sigma=7**0.75.
    """
    _check(tuple(shape), alpha, tau, sigma, boundary)
    periodic = boundary == "periodic"
    integers = [_integers(n, boundary, dtype) for n in shape]
    numbers = _numbered_normals(key, integers, dtype)
    unit = 2 * math.pi if periodic else math.pi
    squares = functools.reduce(jnp.add.outer, [(unit * k) ** 2 for k in integers])
    scale = squares + tau**2
    # A mean of infinite variance is no number; without it the field is defined.
    amplitude = jnp.where(scale > 0, sigma * jnp.where(scale > 0, scale, 1) ** (-alpha / 2), 0)
    coefficients = amplitude.astype(dtype) * numbers
    if periodic:
        return _hartley_values(coefficients, integers)
    values = sine_values if boundary == "dirichlet" else cosine_values
    for axis in range(len(shape)):
        coefficients = values(coefficients, axis)
    return coefficients


def _integers(n: int, boundary: Boundary, dtype: Any) -> Array:
    if boundary == "periodic":
        return (jnp.fft.fftfreq(n) * n).round().astype(dtype)
    return jnp.arange(n, dtype=dtype) + (boundary == "dirichlet")


def _numbered_normals(key: Array, integers: list[Array], dtype: Any) -> Array:
    """A standard normal number for every wave number, from the key and it alone."""

    def draw(key: Array, axes: list[Array]) -> Array:
        if not axes:
            return jax.random.normal(key, (), dtype)
        # 0, -1, 1, -2, 2, … are numbered so that a finer grid only adds numbers at the end.
        numbered = jnp.where(axes[0] < 0, -2 * axes[0] - 1, 2 * axes[0]).astype(jnp.uint32)
        return jax.vmap(lambda k: draw(jax.random.fold_in(key, k), axes[1:]))(numbered)

    return draw(key, integers)


def _hartley_values(coefficients: Array, integers: list[Array]) -> Array:
    """The sum of coefficient times cos(2 pi k x) + sin(2 pi k x): a real orthonormal basis."""
    for axis, k in enumerate(integers):
        n = len(k)
        # With an even number of points the highest wave number has no sine.
        kept = (jnp.abs(k) < n / 2).astype(k.dtype)
        others = [a for a in range(coefficients.ndim) if a != axis]
        coefficients = coefficients * jnp.expand_dims(kept, others)
    sums = jnp.fft.ifftn(coefficients) * coefficients.size
    return sums.real + sums.imag


def _check(
    shape: tuple[int, ...], alpha: float, tau: float, sigma: float, boundary: Boundary
) -> None:
    if boundary not in ("periodic", "dirichlet", "neumann"):
        raise InputError(
            f"boundary {boundary!r} is none of 'periodic', 'dirichlet', 'neumann': choose one"
        )
    if not shape or min(shape) < 2:
        raise InputError(f"shape {shape} must give two points or more along each axis")
    if tau < 0 or sigma < 0:
        raise InputError(f"tau={tau} and sigma={sigma} must not be negative")
    if alpha <= len(shape) / 2:
        raise InputError(
            f"alpha={alpha} must exceed half the dimension, {len(shape) / 2}: "
            "below it the variance is infinite"
        )
