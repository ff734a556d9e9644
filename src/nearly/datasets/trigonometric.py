"""Sine and cosine series at the centres of a uniform grid's cells: the fast transforms of type 2
and their inverses, with orthonormal functions on the unit interval.

The functions are sqrt(2) sin(pi k x), k = 1..n, and 1, sqrt(2) cos(pi k x), k = 0..n-1; the points
are x = (j + 1/2) / n. They are orthonormal on the interval, not over the points, so that the
coefficients of a function do not change with the grid. Each transform is one complex FFT of twice
the length: O(n log n) along its axis. Unlike `jax.scipy.fft.dct` there are sines, and the scale is
the function's.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def sine_values(coefficients: Float[Array, "*grid"], axis: int) -> Float[Array, "*grid"]:
    """The sum of coefficients times sqrt(2) sin(pi k x), k = 1..n along `axis`, at the points."""
    n = coefficients.shape[axis]
    scale = jnp.full((n,), math.sqrt(2), coefficients.dtype)
    # sin(pi n x) has the square mean 1 over the points, twice that of the others.
    return _values(coefficients * _along(scale, coefficients.ndim, axis), axis, first=1).imag


def cosine_values(coefficients: Float[Array, "*grid"], axis: int) -> Float[Array, "*grid"]:
    """The sum of coefficients times 1, sqrt(2) cos(pi k x), k = 0..n-1 along `axis`."""
    n = coefficients.shape[axis]
    scale = jnp.full((n,), math.sqrt(2), coefficients.dtype).at[0].set(1)
    return _values(coefficients * _along(scale, coefficients.ndim, axis), axis, first=0).real


def sine_coefficients(values: Float[Array, "*grid"], axis: int) -> Float[Array, "*grid"]:
    """What `sine_values` sums to the given values: its inverse."""
    n = values.shape[axis]
    scale = jnp.full((n,), math.sqrt(2) / n, values.dtype).at[n - 1].set(math.sqrt(0.5) / n)
    sums = -_sums(values, axis, first=1).imag
    return sums * _along(scale, values.ndim, axis)


def cosine_coefficients(values: Float[Array, "*grid"], axis: int) -> Float[Array, "*grid"]:
    """What `cosine_values` sums to the given values: its inverse."""
    n = values.shape[axis]
    scale = jnp.full((n,), math.sqrt(2) / n, values.dtype).at[0].set(1 / n)
    return _sums(values, axis, first=0).real * _along(scale, values.ndim, axis)


def _values(scaled: Array, axis: int, first: int) -> Array:
    """Sums of coefficient times e^(i pi k (j + 1/2) / n) over k = first..first+n-1."""
    n, ndim = scaled.shape[axis], scaled.ndim
    turned = scaled * _along(_half_steps(n, first, scaled.dtype), ndim, axis)
    padding = [(0, 0)] * ndim
    padding[axis] = (first, n - first)
    sums = jnp.fft.ifft(jnp.pad(turned, padding), axis=axis) * (2 * n)
    return jnp.take(sums, jnp.arange(n), axis=axis)


def _sums(values: Array, axis: int, first: int) -> Array:
    """Sums of value times e^(-i pi k (j + 1/2) / n) over the points, k = first..first+n-1."""
    n, ndim = values.shape[axis], values.ndim
    padding = [(0, 0)] * ndim
    padding[axis] = (0, n)
    sums = jnp.fft.fft(jnp.pad(values, padding), axis=axis)
    kept = jnp.take(sums, jnp.arange(first, first + n), axis=axis)
    return kept * _along(_half_steps(n, first, values.dtype).conj(), ndim, axis)


def _half_steps(n: int, first: int, dtype: jnp.dtype) -> Array:
    k = jnp.arange(first, first + n, dtype=dtype)
    return jnp.exp(1j * (math.pi / (2 * n)) * k)


def _along(vector: Array, ndim: int, axis: int) -> Array:
    return jnp.expand_dims(vector, [a for a in range(ndim) if a != axis % ndim])
