"""Exponentially scaled modified Bessel functions: their derivatives without cancellation.

Their differential equations divide by x and subtract what is nearly equal, once for each order.
The derivatives come from the integral over a period instead, whose integrand has one sign, and
where the argument is large from the asymptotic series term by term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from nearly.derivatives.taylor.interpreter import bind, rule
from nearly.derivatives.taylor.series import Value, compose

LARGE = 40.0  # above it 32 terms of the asymptotic series reach full precision, below it
NODES = 64  # so does the trapezoidal rule with 64 nodes
TERMS = 32


@rule("bessel_i0e", "bessel_i1e")
def _scaled_bessel(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    (x,) = arguments
    index = 0 if equation.primitive.name == "bessel_i0e" else 1
    first = bind(equation, [x.primal])[0]
    higher = [_derivative(x.primal, index, k) for k in range(1, x.order + 1)]
    return [compose([first, *higher], x)]


def _derivative(x: jax.Array, index: int, order: int) -> jax.Array:
    """Derivative of exp(-abs(x)) I_n(x); at 0 that from the right.

    There abs(x) is expanded from the right as well, so that exp(abs(x)) times this, which is how
    i0 and i1 are computed, has the derivatives of the smooth I_n.
    """
    size = jnp.abs(x)
    parity = jnp.where(x < 0, (-1.0) ** (index + order), 1.0).astype(x.dtype)
    near = _by_integral(jnp.minimum(size, LARGE), index, order)
    far = _by_asymptotics(jnp.maximum(size, LARGE), index, order)
    return parity * jnp.where(size < LARGE, near, far)


def _by_integral(x: jax.Array, index: int, order: int) -> jax.Array:
    """Mean over the angle a of cos(a)^n (cos(a) - 1)^order exp(x (cos(a) - 1))."""
    angles = 2 * np.pi * np.arange(NODES) / NODES
    below = -2 * np.sin(angles / 2) ** 2  # cos - 1, without cancellation
    factor = jnp.asarray(np.cos(angles) ** index * below**order, x.dtype)
    return jnp.mean(factor * jnp.exp(x[..., None] * jnp.asarray(below, x.dtype)), axis=-1)


def _by_asymptotics(x: jax.Array, index: int, order: int) -> jax.Array:
    """Derivative of (2 pi x)^(-1/2) sum of a_m x^-m."""
    terms = [(-1.0) ** order * math.prod(0.5 + j for j in range(order))]
    for m in range(1, TERMS):
        ratio = ((2 * m - 1) ** 2 - 4 * index**2) / (8 * m)
        rising = (m - 0.5 + order) / (m - 0.5)
        terms.append(terms[-1] * ratio * rising)
    inverse = 1 / x
    total = jnp.polyval(jnp.asarray(terms[::-1], x.dtype), inverse)
    return total * inverse ** (order + 0.5) / math.sqrt(2 * math.pi)
