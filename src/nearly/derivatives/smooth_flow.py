"""Normalizing flows on hypertori whose densities are infinitely often differentiable.

A flow maps data on the torus [0, 1)^d to uniform noise, layer by layer; log |det| of the map is the
data's log-density, and its gradient a force that molecular dynamics can follow. A layer moves some
coordinates by monotone maps of the circle whose parameters depend smoothly on the others.

The bump that all is made of (paper: `smooth-normalizing-flows`):

    rho(x) = exp(-alpha (x^-p - 1)) for x > 0, else 0          the ramp
    s(x) = rho(x) / (rho(x) + rho(1 - x))                      from 0 to 1 on [0, 1]
    g(x) = c s(e^a (x - b) + 1/2) + (1 - c) x                  a map of width e^-a around b

normalised to fix the ends, mixed with weights, and on the circle summed over its copies.

How it differs from the paper's code, and why:

- b is the middle of the bump and not its left end, so that width and place do not depend on each
  other. Bumps are at most twice as wide as the circle: then three copies are all that meet it, and
  the map is exact. Slopes stay above a tenth of 1 - c, c < 1, so that no derivative underflows.
- Each map of the circle has a rotation: without it all would fix 0.
- Data to noise is the direct direction: density, force and training need no inverse. Samples do,
  and have the derivatives of `inverse`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.derivatives.inverse import MultiBinBisection, invert_with_log_slope

# ---- bumps


def smooth_ramp(
    x: Float[Array, "*shape"], alpha: float = 1.0, power: float = 1.0
) -> Float[Array, "*shape"]:
    """exp(-alpha (x^-power - 1)) for x > 0, and 0 with all its derivatives for x <= 0."""
    smallest = (alpha / _exponents(x)) ** (1 / power)
    inside = x > smallest
    # Two `where`: the derivative of the branch not taken must not be inf * 0.
    safe = jnp.where(inside, x, 1)
    return jnp.where(inside, jnp.exp(-alpha * (safe**-power - 1)), 0)


def smooth_step(
    x: Float[Array, "*shape"], alpha: float = 1.0, power: float = 1.0
) -> Float[Array, "*shape"]:
    """0 for x <= 0, 1 for x >= 1, strictly increasing and infinitely smooth between.

    It is ramp(x) / (ramp(x) + ramp(1 - x)), computed as the logistic function of the difference of
    their exponents: no quotient of two numbers that may underflow.
    """
    edge = (alpha / _exponents(x)) ** (1 / power)
    inside = (x > edge) & (x < 1 - edge)
    safe = jnp.where(inside, x, 0.5)
    exponent = alpha * ((1 - safe) ** -power - safe**-power)
    # From the nearer end: close to 1 the logistic function's derivatives would cancel.
    low, high = jax.nn.sigmoid(exponent), 1 - jax.nn.sigmoid(-exponent)
    rise = jnp.where(exponent < 0, low, high)
    return jnp.where(inside, rise, (x > 0.5).astype(x.dtype))


def _exponents(x: Array) -> float:
    """Beyond this exponent exp underflows, with what a few derivatives multiply it by."""
    return 600.0 if x.dtype == jnp.float64 else 80.0


class Bumps(eqx.Module):
    """K smooth bumps and their weights: the parameters of one monotone map.

    **Attributes** (all of shape (..., K)): `slope`, one over a bump's width, at least 1/2;
    `place`, its middle; `mix`, the part that is bump and not identity, in [0, 1); `weight`, of the
    mixture, positive with sum 1.
    """

    slope: Float[Array, "*batch k"]
    place: Float[Array, "*batch k"]
    mix: Float[Array, "*batch k"]
    weight: Float[Array, "*batch k"]

    @staticmethod
    def free(raw: Float[Array, "*batch four k"]) -> Bumps:
        """From unconstrained numbers; zeros give equally spread, half-mixed bumps."""
        count = raw.shape[-1]
        slope, place, mix, weight = (raw[..., i, :] for i in range(4))
        spread = (jnp.arange(count, dtype=raw.dtype) + 0.5) / count
        return Bumps(
            0.5 + jax.nn.softplus(slope + 1),
            spread + place,
            0.99 * jax.nn.sigmoid(mix),
            jax.nn.softmax(weight, -1),
        )


def interval_map(x: Float[Array, "*batch"], bumps: Bumps) -> Float[Array, "*batch"]:
    """A smooth increasing map of [0, 1] onto itself: the normalised mixture of bumps."""
    low, high = (_bump(jnp.full_like(x, end), bumps) for end in (0, 1))
    value = (_bump(x, bumps) - low) / (high - low)
    return jnp.sum(bumps.weight * value, -1)


def circle_map(x: Float[Array, "*batch"], bumps: Bumps) -> Float[Array, "*batch"]:
    """A smooth increasing map of the real line with f(x + 1) = f(x) + 1 on [0, 1], and f(0) = 0.

    On [0, 1] it is the lift of a smooth map of the circle: all its derivatives agree at 0 and 1.
    Places are taken modulo 1.
    """
    wrapped = eqx.tree_at(lambda b: b.place, bumps, bumps.place - jnp.floor(bumps.place))
    value = _sheaves(x, wrapped) - _sheaves(jnp.zeros_like(x), wrapped)
    return jnp.sum(bumps.weight * (bumps.mix * value + (1 - bumps.mix) * x[..., None]), -1)


def _bump(x: Float[Array, "*batch"], bumps: Bumps) -> Float[Array, "*batch k"]:
    rise = smooth_step(bumps.slope * (x[..., None] - bumps.place) + 0.5)
    return bumps.mix * rise + (1 - bumps.mix) * x[..., None]


def _sheaves(x: Float[Array, "*batch"], bumps: Bumps) -> Float[Array, "*batch k"]:
    """The copies of each bump that reach [0, 1], which together rise by 1 along it."""
    copies = [
        smooth_step(bumps.slope * (x[..., None] - copy - bumps.place) + 0.5) for copy in (-1, 0, 1)
    ]
    return sum(copies[1:], copies[0])


# ---- maps of the circle with parameters from outside


class CircleMap(eqx.Module):
    """A family of monotone maps of [0, 1] onto itself; the ends are one point of the circle."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many unconstrained parameters a map has."""

    @abstractmethod
    def __call__(self, x: Float[Array, " d"], raw: Float[Array, "d size"]) -> Float[Array, " d"]:
        """The map, elementwise, with parameters of each element; f(0) = 0 and f(1) = 1."""


class SmoothMap(CircleMap):
    """Mixtures of smooth bumps: all derivatives are continuous."""

    components: int = 8

    def __check_init__(self) -> None:
        if self.components < 1:
            raise InputError(f"components {self.components} must be at least 1")

    @property
    def size(self) -> int:
        return 4 * self.components

    def __call__(self, x: Float[Array, " d"], raw: Float[Array, "d size"]) -> Float[Array, " d"]:
        return circle_map(x, Bumps.free(raw.reshape(*raw.shape[:-1], 4, self.components)))


class SplineMap(CircleMap):
    """Rational-quadratic splines on the circle: the slope is continuous, the force is not.

    The usual choice for flows on tori, here to be compared with.
    """

    bins: int = 8

    def __check_init__(self) -> None:
        if self.bins < 2:
            raise InputError(f"bins {self.bins} must be at least 2")

    @property
    def size(self) -> int:
        return 3 * self.bins

    def __call__(self, x: Float[Array, " d"], raw: Float[Array, "d size"]) -> Float[Array, " d"]:
        widths, heights, slopes = jnp.split(raw, 3, -1)
        return jax.vmap(_spline)(x, _lengths(widths), _lengths(heights), _slopes(slopes))


def _lengths(raw: Float[Array, "d k"]) -> Float[Array, "d k"]:
    least = 0.01
    return least + (1 - least * raw.shape[-1]) * jax.nn.softmax(raw, -1)


def _slopes(raw: Float[Array, "d k"]) -> Float[Array, "d k"]:
    """Slopes at the knots, 1 for zeros; the first is that at the last knot as well."""
    return 0.01 + 0.99 * jax.nn.softplus(raw) / jnp.log(2.0).astype(raw.dtype)


def _spline(
    x: Float[Array, ""],
    widths: Float[Array, " k"],
    heights: Float[Array, " k"],
    slopes: Float[Array, " k"],
) -> Float[Array, ""]:
    right, top = jnp.cumsum(widths), jnp.cumsum(heights)
    k = jnp.minimum(jnp.sum(x >= right), widths.size - 1)
    t = (x - (right[k] - widths[k])) / widths[k]
    steep = heights[k] / widths[k]
    first, last = slopes[k], slopes[(k + 1) % widths.size]
    between = t * (1 - t)
    above = heights[k] * (steep * t**2 + first * between)
    return top[k] - heights[k] + above / (steep + (first + last - 2 * steep) * between)


# ---- the flow


class CouplingLayer(eqx.Module):
    """Moves the coordinates that are not `kept`, by maps whose parameters the kept ones give."""

    conditioner: eqx.nn.MLP
    transform: CircleMap
    kept: tuple[int, ...] = eqx.field(static=True)
    moved: tuple[int, ...] = eqx.field(static=True)

    @staticmethod
    def create(
        transform: CircleMap,
        kept: Sequence[int],
        moved: Sequence[int],
        width: int,
        key: Key[Array, ""],
    ) -> CouplingLayer:
        """A layer near the identity, with a conditioner of two hidden layers."""
        outputs = len(moved) * (transform.size + 1)
        mlp = eqx.nn.MLP(4 * len(kept), outputs, width, 2, activation=jax.nn.silu, key=key)
        return CouplingLayer(mlp, transform, tuple(kept), tuple(moved))

    def parameters(self, x: Float[Array, " n"]) -> tuple[Array, Array]:
        """The maps' parameters (m, size) and rotations (m,), periodic in the kept coordinates."""
        angles = 2 * jnp.pi * x[jnp.array(self.kept)]
        features = jnp.concatenate([f(k * angles) for k in (1, 2) for f in (jnp.cos, jnp.sin)])
        raw = self.conditioner(features).reshape(len(self.moved), self.transform.size + 1)
        return raw[:, :-1], raw[:, -1]

    def to_noise(self, x: Float[Array, " n"]) -> tuple[Array, Array]:
        """The point moved, and log |det|."""
        raw, rotation = self.parameters(x)
        moved = jnp.array(self.moved)
        start = x[moved] - jnp.floor(x[moved])
        value, slope = jax.jvp(lambda u: self.transform(u, raw), (start,), (jnp.ones_like(start),))
        return x.at[moved].set(_wrap(value + rotation)), jnp.sum(jnp.log(slope))

    def to_data(self, z: Float[Array, " n"], search: MultiBinBisection) -> tuple[Array, Array]:
        """The inverse of `to_noise`, and log |det| of the inverse."""
        raw, rotation = self.parameters(z)
        moved = jnp.array(self.moved)
        target = _wrap(z[moved] - rotation)
        value, log_slope = invert_with_log_slope(self.transform, search)(target, raw)
        return z.at[moved].set(value), jnp.sum(log_slope)


def _wrap(x: Array) -> Array:
    return x - jax.lax.stop_gradient(jnp.floor(x))


class TorusFlow(eqx.Module):
    """A normalizing flow on the torus [0, 1)^d, from data to uniform noise.

    One point at a time; `jax.vmap` makes batches. Smooth if its layers' maps are (`SmoothMap`), so
    that `force` may drive molecular dynamics. Paper: `smooth-normalizing-flows`.

    **Cost:** per layer one call of a conditioner and K bumps per coordinate moved, for the density;
    about three times that for the force. A sample takes some ten calls of the maps per layer, of
    31 K bumps each.
    """

    layers: tuple[CouplingLayer, ...]
    search: MultiBinBisection

    def to_noise(self, x: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The noise that a data point is mapped to, and log |det| there."""
        total = jnp.zeros((), x.dtype)
        for layer in self.layers:
            x, log_det = layer.to_noise(x)
            total = total + log_det
        return x, total

    def to_data(self, z: Float[Array, " d"]) -> tuple[Float[Array, " d"], Float[Array, ""]]:
        """The data point of a noise, and log |det| of this map: minus the log-density there."""
        total = jnp.zeros((), z.dtype)
        for layer in reversed(self.layers):
            z, log_det = layer.to_data(z, self.search)
            total = total + log_det
        return z, total

    def log_density(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The log-density at x, normalised over the torus."""
        return self.to_noise(x)[1]

    def force(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """The gradient of the log-density: minus that of the potential energy over temperature."""
        return jax.grad(self.log_density)(x)

    def sample(self, key: Key[Array, ""], dtype: str = "float32") -> Float[Array, " d"]:
        """One draw from the density."""
        return self.to_data(jax.random.uniform(key, (self._dimension,), dtype))[0]

    @property
    def _dimension(self) -> int:
        return len(self.layers[0].kept) + len(self.layers[0].moved)


def torus_flow(
    dimension: int,
    key: Key[Array, ""],
    *,
    transform: CircleMap | None = None,
    layers: int = 4,
    width: int = 32,
) -> TorusFlow:
    """A flow of coupling layers that move half of the coordinates in turn.

    **Arguments:**

    - `dimension`: d, at least 2. `transform`: by default `SmoothMap(8)`.
    - `layers`: how many; at least 2, so that every coordinate moves. `width`: of the conditioners.

    **Raises:** `InputError` for a dimension or number of layers below 2.
    """
    if dimension < 2:
        raise InputError(f"dimension {dimension} must be at least 2: one half depends on the other")
    if layers < 2:
        raise InputError(f"layers {layers} must be at least 2, so that every coordinate moves")
    halves = tuple(range(0, dimension, 2)), tuple(range(1, dimension, 2))
    made = [
        CouplingLayer.create(transform or SmoothMap(), halves[i % 2], halves[1 - i % 2], width, k)
        for i, k in enumerate(jax.random.split(key, layers))
    ]
    return TorusFlow(tuple(made), MultiBinBisection(0.0, 1.0))


def force_matching_loss(
    flow: TorusFlow,
    x: Float[Array, "n d"],
    forces: Float[Array, "n d"],
    weight: float | Float[Array, ""],
) -> Float[Array, ""]:
    """(1 - weight) times the negative log-likelihood, plus weight times the mean squared error of
    the forces.

    **Arguments:** `x`, points of the data; `forces`, minus the gradient of their energy over
    temperature; `weight` in [0, 1], 0 for maximum likelihood alone.
    """
    likelihood = -jnp.mean(jax.vmap(flow.log_density)(x))
    error = jnp.mean(jnp.sum((jax.vmap(flow.force)(x) - forces) ** 2, -1))
    return (1 - weight) * likelihood + weight * error
