"""Fractional Brownian motion as a weighted sum of Ornstein-Uhlenbeck processes of one noise.

    dY_k = -g_k Y_k dt + dW,   B = sum_k w_k (Y_k - Y_k(0)):   an ordinary equation in (X, Y).

Both kinds are normalised as integrals of the kernel (t - s)^(H - 1/2) / Gamma(H + 1/2) against dW:
from s = 0 ("riemann-liouville", Y_k(0) = 0), or from minus infinity and minus its value at 0
("stationary", with stationary increments and stationary Y_k).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammainc, gammaincc, gammaln
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Kind = Literal["riemann-liouville", "stationary"]
KINDS = ("riemann-liouville", "stationary")
Scalar = Float[Array, ""]
Speeds = Float[Array, " k"]


class MarkovFractionalBrownian(eqx.Module):
    """An approximate fractional Brownian motion; made by `markov_fractional`.

    `hurst` H, `speeds` g [k], `weights` w [k], `horizon` T, `kind`.
    """

    hurst: Scalar
    speeds: Speeds
    weights: Speeds
    horizon: float
    kind: Kind = eqx.field(static=True)

    def covariance(self, s: Any, t: Any) -> Array:
        """E[B(s) B(t)] of the approximation: arrays of times of one shape."""
        s, t = jnp.asarray(s)[..., None, None], jnp.asarray(t)[..., None, None]
        each = partial(_covariance, self.speeds, stationary=self.kind == "stationary")
        return jnp.einsum("...ij,i,j->...", each(s, t), self.weights, self.weights)

    def exact_covariance(self, s: Any, t: Any) -> Array:
        """E[B(s) B(t)] of the process itself.

        For the Riemann-Liouville kind an integral, by 200 nodes after its singularity is taken out.
        """
        s, t = jnp.asarray(s), jnp.asarray(t)
        if self.kind == "stationary":
            power = 2 * self.hurst
            spread = jnp.abs(s) ** power + jnp.abs(t) ** power - jnp.abs(t - s) ** power
            return _stationary_variance(self.hurst) * spread / 2
        return _riemann_liouville_covariance(self.hurst, s, t)

    def relative_error(self) -> Scalar:
        """The mean square error of B over [0, T], on one noise, over the mean variance of B."""
        gram, correlation, variance = _moments(self.hurst, self.speeds, self.horizon, self.kind)
        w = self.weights
        return (w @ gram @ w - 2 * w @ correlation + variance) / variance

    def initial(self, key: Any) -> Speeds:
        """Y(0) [k]: zero, or a draw from the stationary law of one noise."""
        if self.kind == "riemann-liouville":
            return jnp.zeros_like(self.speeds)
        values, vectors = jnp.linalg.eigh(1 / (self.speeds[:, None] + self.speeds))
        draw = jax.random.normal(key, self.speeds.shape, self.speeds.dtype)
        return vectors @ (jnp.sqrt(jnp.maximum(values, 0)) * draw)


def markov_fractional(
    hurst: Any,
    size: int = 5,
    horizon: float = 1.0,
    *,
    fastest: float = 20.0,
    kind: Kind = "riemann-liouville",
) -> MarkovFractionalBrownian:
    """The nearest weighted sum of Ornstein-Uhlenbeck processes to fractional Brownian motion.

    **Arguments:**

    - `size`: how many processes.
    - `hurst`: H in (0, 1), a number or a scalar array; its dtype is that of the result (a number's
      is JAX's default). `horizon`: T, the time over which the mean square error is least.
    - `fastest`: the largest speed, times T; the smallest is its inverse, between them they are
      geometric. A wider range helps more than a larger `size` where H is small, and where it is
      large and the kind stationary; explicit solvers need steps below `T / fastest`.
    - `kind`: `"riemann-liouville"` (type II) or `"stationary"` (type I).

    **Returns:** the approximation; differentiable with respect to `hurst`, so H can be learned.

    **Raises:** `InputError` for a bad `size`, `fastest`, `kind`, `horizon`, or a number `hurst`
    outside of (0, 1).

    **Cost:** O(size^3), once.

    From `fractional-sde-vi`. The normal equations have a condition of 1e16 at ten processes: they
    are solved by an eigenvalue decomposition without what rounding has spoilt, which changes the
    weights but not the error. In float32 that limits the relative error to about 1e-3.
    """
    _check(hurst, size, horizon, fastest, kind)
    hurst = jnp.asarray(hurst, jnp.result_type(float, hurst))
    exponents = jnp.linspace(-1, 1, size, dtype=hurst.dtype) if size > 1 else jnp.zeros(1)
    speeds = (fastest**exponents / horizon).astype(hurst.dtype)
    gram, correlation, _ = _moments(hurst, speeds, horizon, kind)
    weights = _least_squares(gram, correlation)
    return MarkovFractionalBrownian(hurst, speeds, weights, horizon, kind)


def _check(hurst: Any, size: int, horizon: float, fastest: float, kind: str) -> None:
    if isinstance(hurst, (int, float)) and not 0 < hurst < 1:
        raise InputError(f"hurst={hurst} must lie between 0 and 1, such as 0.7")
    if size < 1:
        raise InputError(f"size={size}: give at least 1 process, such as 5")
    if not horizon > 0:
        raise InputError(f"horizon={horizon} must be positive, such as 1.0")
    if not fastest > 1:
        raise InputError(f"fastest={fastest} must be above 1, such as 20.0")
    if kind not in KINDS:
        raise InputError(f"kind={kind!r} must be one of {', '.join(KINDS)}")


# ---- the best weights


def _least_squares(gram: Array, correlation: Array) -> Array:
    values, vectors = jnp.linalg.eigh(gram)
    cut = 10 * gram.shape[0] * jnp.finfo(gram.dtype).eps * values[-1]
    inverse = jnp.where(values > cut, 1 / jnp.where(values > cut, values, 1), 0)
    return vectors @ (inverse * (vectors.T @ correlation))


def _moments(hurst: Any, speeds: Array, horizon: float, kind: Kind) -> tuple[Array, Array, Array]:
    """Integrals over [0, T] of E[Y_i Y_j], E[Y_i B] and E[B^2]; of the changes since 0 for the
    stationary kind."""
    a, g, end = hurst + 0.5, speeds, horizon
    both = g[:, None] + g
    x = g * end
    if kind == "riemann-liouville":
        gram = (end + jnp.expm1(-both * end) / both) / both
        correlation = (end * gammainc(a, x) - a / g * gammainc(a + 1, x)) / g**a
        spread = jnp.exp(-2 * gammaln(a)) / (2 * hurst)
    else:
        fade = jnp.expm1(-x) / g
        gram = (2 * end + fade[:, None] + fade) / both
        correlation = _stationary_correlation(a, x) / g ** (a + 1)
        spread = _stationary_variance(hurst)
    return gram, correlation, spread * end ** (2 * hurst + 1) / (2 * hurst + 1)


def _stationary_variance(hurst: Any) -> Array:
    """E[B(1)^2] = Gamma(2 - 2H) sin(pi (1/2 - H)) / (pi H (1 - 2H)), without the gap at H = 1/2."""
    return jnp.exp(gammaln(2 - 2 * hurst)) * jnp.sinc(0.5 - hurst) / (2 * hurst)


def _stationary_correlation(a: Any, x: Array) -> Array:
    """g^(a+1) times the integral of E[(Y - Y(0)) B] up to T, x = gT: a closed form, whose terms
    cancel where x is small; there a series.
    """
    far = jnp.maximum(x, 1.0)
    tail = jnp.exp(-far) - _scaled_gammaincc(a, far)
    closed = 2 * far - far**a * jnp.exp(-gammaln(a + 1)) + tail
    near = jnp.minimum(x, 1.0)
    terms = [near ** (a + n + 1) * jnp.exp(-gammaln(a + n + 2)) for n in range(20)]
    # As floats: 13! is no 32-bit integer.
    terms += [-2 * near**n / float(math.factorial(n)) for n in range(3, 21, 2)]
    return jnp.where(x < 1, sum(terms), closed)


def _scaled_gammaincc(a: Any, x: Array) -> Array:
    """e^x Q(a, x): by a continued fraction where e^x would overflow."""
    near = jnp.minimum(x, 10.0)
    far = jnp.maximum(x, 10.0)
    fraction = jnp.zeros_like(far)
    for n in range(40, 0, -1):
        fraction = n * (n - a) / (far + 2 * n + 1 - a - fraction)
    tail = far**a * jnp.exp(-gammaln(a)) / (far + 1 - a - fraction)
    return jnp.where(x < 10, jnp.exp(near) * gammaincc(a, near), tail)


def _covariance(speeds: Array, s: Array, t: Array, *, stationary: bool) -> Array:
    """E[Y_i(s) Y_j(t)] [..., i, j], or that of the changes since 0."""
    first, second = speeds[:, None], speeds
    both = first + second

    def apart(u: Array, v: Array) -> Array:
        """exp(-g |u - v|) of the later one's speed g, over the sum: stationary E[Y_i(u) Y_j(v)]."""
        return jnp.exp(-jnp.where(u > v, first * (u - v), second * (v - u))) / both

    if stationary:
        zero = jnp.zeros_like(s)
        return apart(s, t) - apart(s, zero) - apart(zero, t) + apart(zero, zero)
    return apart(s, t) - jnp.exp(-first * s - second * t) / both


def _riemann_liouville_covariance(hurst: Any, s: Array, t: Array) -> Array:
    """int_0^m ((s - u) (t - u))^(H - 1/2) du / Gamma(H + 1/2)^2, m the earlier time.

    With v = m - u = m z^(1/(H + 1/2)) the singular factor is gone: Gauss-Legendre in z^(1/8)'s
    place, so that the other's steep start for times that are close is resolved too.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    a = hurst + 0.5
    first, last = jnp.minimum(s, t)[..., None], jnp.maximum(s, t)[..., None]
    r = jnp.asarray((nodes + 1) / 2, first.dtype)
    density = jnp.asarray(weights / 2, first.dtype) * 8 * r**7
    v = first * (r**8) ** (1 / a)
    gap = last - first
    # Of equal times the factors coincide, and the exponent left over is (H - 1/2) 1/a.
    other = jnp.where(v + gap > 0, v + gap, 1) ** (a - 1)
    scale = first[..., 0] ** a / a
    total = scale * jnp.sum(density * other, axis=-1)
    return total * jnp.exp(-2 * gammaln(a))


# ---- equations driven by it


class FractionalTerms(eqx.Module):
    """dX = drift dt + diffusion o dB as an ordinary equation in (X, Y): see `fractional_terms`."""

    drift: Callable[..., Any]
    diffusion: Callable[..., Any]
    noise: MarkovFractionalBrownian
    control: Callable[..., Any] | None = None

    def field(self, t: Any, state: Any, args: Any) -> Any:
        """The part in dt."""
        x, y, *spent = state
        push = -jnp.tensordot(self.noise.weights * self.noise.speeds, y, axes=1)
        change = -jnp.moveaxis(self.noise.speeds * jnp.moveaxis(y, 0, -1), -1, 0)
        if self.control is not None:
            u = self.control(t, (x, y), args)
            push, change = push + jnp.sum(self.noise.weights) * u, change + u
            spent = [jnp.sum(u**2) / 2]
        return (self.drift(t, x, args) + self.diffusion(t, x, args) * push, change, *spent)

    def spread(self, t: Any, state: Any, args: Any) -> Any:
        """The part in dW, elementwise."""
        x, y, *spent = state
        scale = self.diffusion(t, x, args) * jnp.sum(self.noise.weights)
        return (scale, jnp.ones_like(y), *(jnp.zeros_like(part) for part in spent))


class _SharedNoise(dfx.AbstractTerm[Any, Any]):
    """One noise for X and for every Y_k: the point of the approximation."""

    parts: FractionalTerms
    path: dfx.AbstractBrownianPath[Any]

    def vf(self, t: Any, y: Any, args: Any) -> Any:
        return self.parts.spread(t, y, args)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        return self.path.evaluate(t0, t1, **kwargs)

    def prod(self, vf: Any, control: Any) -> Any:
        # No noise is in what a control has spent: one number, whatever the shape of the noise.
        scale, each, *spent = vf
        return (scale * control, each * control, *spent)


def fractional_terms(
    drift: Callable[..., Any],
    diffusion: Callable[..., Any],
    noise: MarkovFractionalBrownian,
    path: dfx.AbstractBrownianPath[Any],
    control: Callable[..., Any] | None = None,
) -> dfx.MultiTerm[Any]:
    """An equation driven by fractional noise, in diffrax's usual terms (Stratonovich).

    **Arguments:**

    - `drift`, `diffusion`: `(t, x, args) -> array of x's shape` (noise acts elementwise).
    - `noise`: from `markov_fractional`. `path`: a Brownian path of x's shape.
    - `control`: of a posterior, `(t, (x, y), args) -> u` of x's shape, added to the drift of W.

    **Returns:** terms whose state is `(x, y)`, y of shape [k, *x] from `noise.initial`; with a
    `control` it is `(x, y, kl)`, and kl, from 0, grows by |u|^2 / 2: the divergence of the
    posterior from the prior, so that log p(data | x) - kl is a sample of the evidence lower bound.

    **Cost:** one call of each a step; steps of explicit solvers below `horizon / fastest`.

    From `fractional-sde-vi` (section 3).
    """
    parts = FractionalTerms(drift, diffusion, noise, control)
    return dfx.MultiTerm(dfx.ODETerm(parts.field), _SharedNoise(parts, path))
