"""Linear bounds of activations and of their derivatives on an interval, from one description.

An activation is described by itself, its derivative and the `breaks` between which the derivative
is monotone (kinks and inflections). That is enough for a *sound* line at any slope: the intercept
is the extremum of `activation(z) - slope z` over the interval, which lies at an end, at a break or
where the derivative equals the slope, and there is at most one such point between two breaks. So
slopes may be chosen, or optimised, freely: a bad one costs tightness, never soundness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BISECTIONS = 45
ULPS = 16.0  # what is allowed for the rounding errors of the activation functions themselves


class Lines(NamedTuple):
    """`lower_slope z + lower_intercept <= activation(z) <= upper_slope z + upper_intercept`."""

    lower_slope: Float[Array, " n"]
    lower_intercept: Float[Array, " n"]
    upper_slope: Float[Array, " n"]
    upper_intercept: Float[Array, " n"]


@dataclass(frozen=True)
class Activation:
    """An elementwise function as bound propagation needs to know it.

    **Arguments:**

    - `name`: for messages. `function`: the activation. `derivative`: its derivative (at a kink,
      either one-sided value).
    - `breaks`: the points between which the derivative is monotone, in increasing order.
    - `piecewise_linear`: the derivative is constant between breaks. It may jump at them, and must
      not otherwise.
    """

    name: str
    function: Callable[[Any], Any]
    derivative: Callable[[Any], Any]
    breaks: tuple[float, ...] = ()
    piecewise_linear: bool = False

    def lines(
        self,
        lower: Float[Array, " n"],
        upper: Float[Array, " n"],
        slopes: tuple[Float[Array, " n"], Float[Array, " n"]] | None = None,
    ) -> Lines:
        """Sound lines below and above on [lower, upper], at given slopes or the default ones."""
        below, above = self.default_slopes(lower, upper) if slopes is None else slopes
        low, _ = self._extrema(lower, upper, below)
        _, high = self._extrema(lower, upper, above)
        return Lines(below, low, above, high)

    def default_slopes(
        self, lower: Float[Array, " n"], upper: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The slopes, of some candidates, whose lines enclose the least area.

        The area between the function and a line depends on the line's value in the middle alone.
        For ReLU this is CROWN's adaptive choice: below 1 if upper > -lower else 0, above the chord.
        """
        middle = (lower + upper) / 2
        points = jnp.stack([lower, middle, upper])
        chord = self._chord(lower, upper)
        slopes = jnp.concatenate([chord[None], jax.vmap(self.derivative)(points)])
        low, high = jax.vmap(lambda slope: self._extrema(lower, upper, slope))(slopes)
        below = jnp.argmax(slopes * middle + low, axis=0)
        above = jnp.argmin(slopes * middle + high, axis=0)
        take = jax.vmap(lambda column, row: column[row], in_axes=(1, 0))
        return take(slopes, below), take(slopes, above)

    def range(
        self, lower: Float[Array, " n"], upper: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The least and largest value of the function on [lower, upper], rounded outward."""
        return self._extrema(lower, upper, jnp.zeros_like(lower))

    def derivative_range(
        self, lower: Float[Array, " n"], upper: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The least and largest derivative on [lower, upper], rounded outward.

        Exact up to rounding: the derivative is monotone between breaks. A kink at an end of the
        interval counts from the inside only, since there the outside is not attained on an open
        set (or, where the pre-activation is constant, is multiplied by zero).
        """
        if self.piecewise_linear:
            return self._pieces_met(lower, upper)
        values = jax.vmap(self.derivative)(self._corners(lower, upper))
        error = ULPS * jnp.finfo(values.dtype).eps * jnp.maximum(jnp.abs(values), 1)
        return jnp.min(values - error, axis=0), jnp.max(values + error, axis=0)

    def _pieces_met(self, lower: Array, upper: Array) -> tuple[Array, Array]:
        edges = jnp.asarray((-math.inf, *self.breaks, math.inf), lower.dtype)
        inside = (self.breaks[0] - 1, *((a + b) / 2 for a, b in pairwise(self.breaks)))
        middles = jnp.asarray((*inside, self.breaks[-1] + 1), lower.dtype)
        slopes = self.derivative(middles)[:, None]
        meets = (lower < edges[1:, None]) & (upper > edges[:-1, None])
        # An interval that is one break, and so meets no piece, touches both beside it.
        touches = (lower <= edges[1:, None]) & (upper >= edges[:-1, None])
        meets = jnp.where(jnp.any(meets, axis=0), meets, touches)
        least = jnp.min(jnp.where(meets, slopes, math.inf), axis=0)
        return least, jnp.max(jnp.where(meets, slopes, -math.inf), axis=0)

    def _chord(self, lower: Array, upper: Array) -> Array:
        width = upper - lower
        wide = width > 1e-6 * (1 + jnp.abs(lower))
        rise = self.function(upper) - self.function(lower)
        return jnp.where(
            wide, rise / jnp.where(wide, width, 1), self.derivative((lower + upper) / 2)
        )

    def _corners(self, lower: Array, upper: Array) -> Array:
        inner = (jnp.clip(jnp.asarray(b, lower.dtype), lower, upper) for b in self.breaks)
        return jnp.stack([lower, *inner, upper])

    def _extrema(self, lower: Array, upper: Array, slope: Array) -> tuple[Array, Array]:
        """The least and largest of function(z) - slope z on [lower, upper], rounded outward."""
        points = self._corners(lower, upper)
        if not self.piecewise_linear:
            points = jnp.concatenate([points, self._stationary(points, slope)])
        values, lines = self.function(points), slope * points
        sizes = jnp.maximum(jnp.abs(values), 1) + jnp.abs(lines)
        error = ULPS * jnp.finfo(values.dtype).eps * sizes
        return jnp.min(values - lines - error, axis=0), jnp.max(values - lines + error, axis=0)

    def _stationary(self, corners: Array, slope: Array) -> Array:
        """Between each two corners, where the derivative equals the slope (else an end)."""
        left, right = corners[:-1], corners[1:]
        rising = self.derivative(right) >= self.derivative(left)

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            left, right = ends
            middle = (left + right) / 2
            beyond = (self.derivative(middle) >= slope) == rising
            return jnp.where(beyond, left, middle), jnp.where(beyond, middle, right)

        low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (left, right))
        # The value at an extremum does not change to first order with its place; at an end it does.
        found = jax.lax.stop_gradient((low + high) / 2)
        reach = 2.0 ** (2 - BISECTIONS) * (right - left)
        found = jnp.where(found <= left + reach, left, found)
        return jnp.where(found >= right - reach, right, found)


def _sech2(z: Array) -> Array:
    decay = jnp.exp(-2 * jnp.abs(z))
    return 4 * decay / (1 + decay) ** 2


def _sigmoid_derivative(z: Array) -> Array:
    return _sech2(z / 2) / 4


def _gelu_derivative(z: Array) -> Array:
    density = jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return jax.scipy.stats.norm.cdf(z) + z * density


_GELU = (math.sqrt(2 / math.pi), 0.044715)


def _gelu_tanh_derivative(z: Array) -> Array:
    scale, cubic = _GELU
    inner = scale * (z + cubic * z**3)
    return jax.nn.sigmoid(2 * inner) + z / 2 * _sech2(inner) * scale * (1 + 3 * cubic * z**2)


def _silu_derivative(z: Array) -> Array:
    return jax.nn.sigmoid(z) + z * _sigmoid_derivative(z)


identity = Activation("identity", lambda z: z, jnp.ones_like, (0.0,), True)
relu = Activation("relu", jax.nn.relu, lambda z: (z > 0).astype(z.dtype), (0.0,), True)
tanh = Activation("tanh", jnp.tanh, _sech2, (0.0,))
sigmoid = Activation("sigmoid", jax.nn.sigmoid, _sigmoid_derivative, (0.0,))
softplus = Activation("softplus", jax.nn.softplus, jax.nn.sigmoid)
silu = Activation("silu", jax.nn.silu, _silu_derivative, (-2.3993572805154677, 2.3993572805154677))
elu = Activation("elu", jax.nn.elu, lambda z: jnp.exp(jnp.minimum(z, 0)), (0.0,))
gelu = Activation(
    "gelu",
    lambda z: jax.nn.gelu(z, approximate=False),
    _gelu_derivative,
    (-math.sqrt(2), math.sqrt(2)),
)
gelu_tanh = Activation(
    "gelu (tanh form)",
    lambda z: jax.nn.gelu(z, approximate=True),
    _gelu_tanh_derivative,
    (-1.4185040087908284, 1.4185040087908284),
)


@lru_cache
def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """The leaky ReLU of a given slope on the left."""

    def derivative(z: Array) -> Array:
        return jnp.where(z > 0, 1.0, negative_slope).astype(z.dtype)

    function = partial(jax.nn.leaky_relu, negative_slope=negative_slope)
    return Activation(f"leaky relu ({negative_slope:g})", function, derivative, (0.0,), True)
