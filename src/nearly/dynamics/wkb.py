"""Optimally truncated WKB for highly oscillatory second-order equations (`truncated-wkb`).

For `epsilon^2 u'' + a(x) u = 0` with a > 0, the ansatz `u = exp(sum_n epsilon^(n-1) S_n(x))` gives
a recursion for the S_n. The series diverges, but cut after its smallest term it is exponentially
accurate in 1 / epsilon, at a cost that does not depend on epsilon.

With `S_n' = i^(n+1) sigma_n` everything is real:

    sigma_0 = sqrt(a),  2 sigma_0 sigma_n = sigma_n-1' - sum_(0<j<n) sigma_j sigma_n-j

Differences from the paper: the derivatives come from Taylor series of a, in Taylor mode, at every
Chebyshev node, and the recursion runs in them; differentiating polynomials again and again, as one
would from values of a alone, loses all digits after some seven terms. S_n is integrated by
Clenshaw-Curtis quadrature as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Complex, Float, Int

from nearly.core.errors import InputError
from nearly.derivatives.taylor import taylor

Scalar = Float[Array, ""]


class WKB(eqx.Module):
    """A solution of `epsilon^2 u'' + a(x) u = 0`, to be evaluated anywhere on its interval.

    - `order`: N, the last term of the series that is kept.
    - `error`: an estimate of the error relative to u, the first term left out. It says nothing of
      rounding, which is some units of the last place of the phase, and so grows as 1 / epsilon.
    """

    exponent: Complex[Array, " nodes"]  # Chebyshev coefficients of sum_n epsilon^(n-1) S_n
    slope: Complex[Array, " nodes"]  # and of epsilon times its derivative
    amplitudes: Complex[Array, " 2"]
    interval: Float[Array, " 2"]
    order: Int[Array, ""]
    error: Scalar

    def __call__(self, x: Any) -> tuple[Complex[Array, "*x"], Complex[Array, "*x"]]:
        """`u` and `epsilon u'` at x: sums over two conjugate waves. O(nodes) for each x."""
        left, right = self.interval
        place = jnp.clip((2 * jnp.asarray(x) - left - right) / (right - left), -1, 1)
        degrees = jnp.arange(self.exponent.size)
        polynomials = jnp.cos(degrees * jnp.arccos(place)[..., None])
        exponent, slope = polynomials @ self.exponent, polynomials @ self.slope
        forth = self.amplitudes[0] * jnp.exp(exponent)
        back = self.amplitudes[1] * jnp.exp(jnp.conj(exponent))
        return forth + back, slope * forth + jnp.conj(slope) * back


def truncated_wkb(
    coefficient: Callable[[Scalar], Scalar],
    epsilon: Any,
    interval: tuple[Any, Any],
    start: tuple[Any, Any],
    *,
    order: int | None = None,
    tolerance: Any = 0.0,
    most: int = 30,
    nodes: int = 32,
) -> WKB:
    """The solution of `epsilon^2 u'' + a(x) u = 0` at a cost that does not depend on epsilon.

    For analytic a > 0 without turning points in or near the interval, and small epsilon: the error
    is some `exp(-c / epsilon)`, where c grows with the distance to the nearest turning point.

    **Arguments:**

    - `coefficient`: a, of a real number, that JAX can trace and Taylor mode expand.
    - `epsilon`: > 0. `interval`: where x begins and ends. `start`: u and epsilon u' where it
      begins, real or complex.
    - `order`: the last term kept. None cuts after the first term whose successor is at most
      `tolerance`, and at the smallest term at the latest.
    - `most`: terms that are computed; float64 needs no more than 30.
    - `nodes`: of the Chebyshev polynomials. Too few show as an error of the phase, of
      `1 / epsilon` times that of the integral of the root of a.

    **Returns:** a `WKB`, to be called with x.

    Raises `InputError` for arguments out of range, and where a is not positive at a node (inside
    jit: equinox's error at run time).

    Costs `nodes` expansions of a to order `most`, and some `nodes * most^4 / 8` multiplications.
    """
    if order is not None and not 0 <= order <= most:
        raise InputError(f"order {order} must lie between 0 and the {most} terms that are computed")
    if most < 1 or nodes < 4:
        raise InputError(f"most {most} must be at least 1, and nodes {nodes} at least 4")
    ends = jnp.stack([jnp.asarray(end, jnp.result_type(float)) for end in interval])
    solution, bad = _solve(
        coefficient,
        jnp.asarray(epsilon, ends.dtype),
        ends,
        jnp.stack([jnp.asarray(v, jnp.result_type(ends.dtype, 1j)) for v in start]),
        jnp.asarray(tolerance, ends.dtype),
        order,
        most,
        nodes,
    )
    if isinstance(bad, Tracer):
        return eqx.error_if(solution, bad, NO_WAVE)
    if bool(bad):
        raise InputError(NO_WAVE)
    return solution


NO_WAVE = (
    "WKB needs a coefficient that is positive on the whole interval, epsilon > 0, and an interval "
    "that runs forward: shorten the interval to where the solution oscillates"
)


@eqx.filter_jit
def _solve(
    coefficient: Callable[[Scalar], Scalar],
    epsilon: Scalar,
    ends: Float[Array, " 2"],
    start: Complex[Array, " 2"],
    tolerance: Scalar,
    order: int | None,
    most: int,
    nodes: int,
) -> tuple[WKB, Bool[Array, ""]]:
    """The solution, and whether the problem was none that oscillates."""
    points, integrate, transform = (jnp.asarray(m, ends.dtype) for m in _chebyshev(nodes))
    half = (ends[1] - ends[0]) / 2
    x = ends[0] + half * (points + 1)
    # One direction for each node, so that a tally counts what each expansion costs.
    series = jax.vmap(lambda at, along: taylor(coefficient, at, along, most + 1))(
        x, jnp.ones_like(x)
    )
    bad = jnp.any(~(series[:, 0] > 0)) | ~(epsilon > 0) | ~(half > 0)
    slopes = _recursion(series.T).T  # [nodes, terms]
    integrals = half * (integrate @ slopes)

    count = jnp.arange(most + 2)
    sizes = epsilon ** (count - 1) * jnp.max(jnp.abs(integrals), axis=0)
    sizes = jnp.where(jnp.isfinite(sizes), sizes, jnp.inf)
    kept = jnp.asarray(order) if order is not None else _cut(sizes[1:], tolerance)
    # What is cut off may have overflown.
    slopes, integrals = (jnp.where(count <= kept, terms, 0) for terms in (slopes, integrals))
    powers = jnp.where(count <= kept, epsilon**count, 0) * _phases(most + 2)
    slope, exponent = slopes @ powers, integrals @ powers / epsilon
    q = slope[0]
    forth = (start[1] - jnp.conj(q) * start[0]) / (q - jnp.conj(q))
    amplitudes = jnp.stack([forth, start[0] - forth])
    solution = WKB(transform @ exponent, transform @ slope, amplitudes, ends, kept, sizes[kept + 1])
    return solution, bad


def _recursion(a: Float[Array, "k nodes"]) -> Float[Array, "k nodes"]:
    """`sigma_0 … sigma_(k-1)` at the nodes, from the Taylor coefficients of a there.

    Term n is known to k - n coefficients; the rest are rubbish that no kept one depends on.
    """
    size = len(a)
    root = jax.vmap(_series_root, 1, 1)(a)
    inverse = _toeplitz(jax.vmap(_series_inverse, 1, 1)(root))
    terms = jnp.zeros((size, *a.shape), a.dtype).at[0].set(root)
    known = 1
    while known < size:
        terms = _doubled(terms, known, inverse)
        known *= 2
    return terms[:, 0]


def _doubled(
    terms: Float[Array, "k k nodes"], known: int, inverse: Float[Array, "k k nodes"]
) -> Float[Array, "k k nodes"]:
    """Terms `known … 2 known - 1` too: of their products the earlier factor is known for all."""
    size = len(terms)
    length = size - known + 1
    earlier = jax.vmap(_toeplitz)(terms[:known, :length])
    inverse = inverse[:length, :length]
    first = jnp.arange(known)
    degrees = jnp.arange(1, length, dtype=terms.dtype)[:, None]

    def add(n: Any, terms: Array) -> Array:
        # sigma_j sigma_n-j comes twice, but for the one in the middle.
        times = jnp.where(2 * first < n, 2, 2 * first == n) * (first > 0)
        later = terms[n - first, :length] * times[:, None, None].astype(terms.dtype)
        # As sums, not as `einsum`: so they run along the nodes.
        products = jnp.sum(earlier * later[:, None], axis=(0, 2))
        slope = jnp.zeros_like(products).at[:-1].set(terms[n - 1, 1:length] * degrees)
        return terms.at[n, :length].set(jnp.sum(inverse * (slope - products), axis=1) / 2)

    return jax.lax.fori_loop(known, min(2 * known, size), add, terms)


def _toeplitz(a: Float[Array, "k ..."]) -> Float[Array, "k k ..."]:
    """The matrix that multiplies a power series with this one."""
    lag = np.subtract.outer(np.arange(len(a)), np.arange(len(a)))
    below = (lag >= 0).reshape(*lag.shape, *(1 for _ in a.shape[1:]))
    return jnp.where(below, a[np.maximum(lag, 0)], 0)


def _series_root(a: Float[Array, " k"]) -> Float[Array, " k"]:
    """The square root of a power series."""
    first = jnp.sqrt(a[0])

    def add(k: Any, root: Array) -> Array:
        square = (_toeplitz(root) @ root)[k]
        return root.at[k].set((a[k] - square) / (2 * first))

    return jax.lax.fori_loop(1, a.size, add, jnp.zeros_like(a).at[0].set(first))


def _series_inverse(a: Float[Array, " k"]) -> Float[Array, " k"]:
    """One over a power series."""
    matrix = _toeplitz(a)

    def add(k: Any, inverse: Array) -> Array:
        return inverse.at[k].set(-(matrix @ inverse)[k] / a[0])

    return jax.lax.fori_loop(1, a.size, add, jnp.zeros_like(a).at[0].set(1 / a[0]))


def _phases(count: int) -> np.ndarray:
    """i^(n+1)."""
    return np.array([(1j, -1.0, -1j, 1.0)[n % 4] for n in range(count)])


def _cut(sizes: Float[Array, " terms"], tolerance: Any) -> Int[Array, ""]:
    """The order at which to stop, from the sizes of terms 1, 2, …: the next one is left out.

    The last size belongs to a term that is only computed to estimate the error.
    """
    enough = sizes <= tolerance
    first = jnp.where(jnp.any(enough), jnp.argmax(enough), sizes.size)
    # The smallest term: what comes after it is no better an estimate.
    smallest = jnp.argmin(sizes)
    return jnp.minimum(first, jnp.minimum(smallest + 1, sizes.size - 1))


@cache
def _chebyshev(nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes ascending on [-1, 1]; the integral from -1, and Chebyshev coefficients, from values."""
    degrees = np.arange(nodes)
    points = -np.cos(np.pi * degrees / (nodes - 1))
    points[[0, -1]] = -1, 1
    transform = np.linalg.inv(np.cos(degrees * np.arccos(points)[:, None]))
    # The integral of T_k is T_(k+1) / (2 (k+1)) - T_(k-1) / (2 (k-1)), and x, x^2 / 2 for k = 0, 1.
    integrals = [
        np.polynomial.chebyshev.chebint(np.eye(nodes)[k], lbnd=-1).tolist() for k in degrees
    ]
    values = np.array(
        [np.polynomial.chebyshev.chebval(points, coefficients) for coefficients in integrals]
    ).T
    return points, values @ transform, transform


def oscillator_solver(field: Any, start: Array, times: Array, tolerance: Any) -> Array:
    """Truncated WKB in the form in which `InitialValueProblem` takes plain functions.

    For the field of an `Oscillator` alone; the order is the least that estimates its error at the
    tolerance. Raises `InputError` for any other field.
    """
    coefficient, epsilon = getattr(field, "coefficient", None), getattr(field, "epsilon", None)
    if coefficient is None or epsilon is None:
        raise InputError("WKB solves epsilon^2 u'' + a(x) u = 0 only: give an Oscillator's field")
    solution = truncated_wkb(
        coefficient,
        epsilon,
        (times[0], times[-1]),
        (start[0] + 1j * start[2], start[1] + 1j * start[3]),
        tolerance=tolerance,
    )
    u, slope = solution(times[1:])
    return jnp.stack([u.real, slope.real, u.imag, slope.imag], axis=-1)
