"""Networks trained on the residual of an equation (PINNs), with their usual options.

A method is a `Collocation`: what is trained, on which points, and how. The networks: `TanhNetwork`,
`FourierNetwork`, `HardBoundary` around either, and the Gaussians of `gaussian_features`.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key
from scipy.optimize import minimize

from nearly.core.errors import InputError
from nearly.pde.collocation_points import Cloud, Kept, Uniform
from nearly.pde.equations import (
    BoundaryValueProblem,
    InitialValueProblem,
    Point,
    space_time,
    working_dtype,
)
from nearly.pde.loss_weights import Balanced, CollocationLoss, Fixed, Weighting
from nearly.training.architectures import MLP, mlp

Factory = Callable[..., eqx.Module]  # (equation, *, key, dtype) -> a function of one point


# ---- networks


class Network(eqx.Module):
    """A tanh network on coordinates scaled to [-1, 1]; periodic ones enter as sine and cosine."""

    body: MLP
    frequencies: Float[Array, "d features"] | None
    lower: tuple[float, ...] = eqx.field(static=True)
    upper: tuple[float, ...] = eqx.field(static=True)
    periodic: tuple[bool, ...] = eqx.field(static=True)

    def __call__(self, x: Point) -> Float[Array, ""]:
        return self.body(self._features(x))[0]

    def _features(self, x: Point) -> Array:
        lower, upper = jnp.asarray(self.lower, x.dtype), jnp.asarray(self.upper, x.dtype)
        scaled = 2 * (x - lower) / (upper - lower) - 1
        wraps = [j for j, w in enumerate(self.periodic) if w]
        stays = [j for j, w in enumerate(self.periodic) if not w]
        turns = math.pi * scaled[jnp.asarray(wraps, int)]
        inputs = jnp.concatenate([scaled[jnp.asarray(stays, int)], jnp.sin(turns), jnp.cos(turns)])
        if self.frequencies is None:
            return inputs
        waves = inputs @ jax.lax.stop_gradient(self.frequencies)
        return jnp.concatenate([jnp.sin(waves), jnp.cos(waves)])


class TanhNetwork(eqx.Module):
    """A factory of tanh networks: `depth` hidden layers of `width`."""

    width: int = 30
    depth: int = 3

    def __check_init__(self) -> None:
        _check_sizes(self.width, self.depth)

    def __call__(
        self, equation: BoundaryValueProblem, *, key: Key[Array, ""], dtype: Any
    ) -> Network:
        inputs = equation.dimension + sum(equation.periodic)
        return _network(equation, inputs, self.width, self.depth, None, key, dtype)


class FourierNetwork(eqx.Module):
    """A factory of tanh networks on random Fourier features sin(Bx), cos(Bx), B ~ N(0, scale^2).

    `features`: of each kind. `scale`: of B, in radians for the domain scaled to [-1, 1]; near
    the frequencies of the solution. B is drawn once and not trained.
    """

    width: int = 30
    depth: int = 2
    features: int = 32
    scale: float = 2 * math.pi

    def __check_init__(self) -> None:
        _check_sizes(self.width, self.depth)
        if self.features < 1 or not self.scale > 0:
            raise InputError(f"features={self.features} and scale={self.scale} must be positive")

    def __call__(
        self, equation: BoundaryValueProblem, *, key: Key[Array, ""], dtype: Any
    ) -> Network:
        first, second = jax.random.split(key)
        inputs = equation.dimension + sum(equation.periodic)
        waves = self.scale * jax.random.normal(first, (inputs, self.features), dtype)
        return _network(equation, 2 * self.features, self.width, self.depth, waves, second, dtype)


def _network(
    equation: BoundaryValueProblem,
    inputs: int,
    width: int,
    depth: int,
    frequencies: Array | None,
    key: Any,
    dtype: Any,
) -> Network:
    body = mlp([inputs, *[width] * depth, 1], key, jnp.tanh, gain=5 / 3, dtype=dtype)
    return Network(body, frequencies, equation.lower, equation.upper, equation.periodic)


def _check_sizes(width: int, depth: int) -> None:
    if width < 1 or depth < 1:
        raise InputError(f"width={width} and depth={depth} must be at least 1")


class Clamped(eqx.Module):
    """lift(x) + bubble(x) N(x): the data on the boundary hold exactly, whatever N is."""

    network: eqx.Module
    equation: BoundaryValueProblem

    def __call__(self, x: Point) -> Float[Array, ""]:
        data = lift(self.equation, x)
        return data + _bubble(self.equation, x) * self.network(x)  # pyright: ignore[reportCallIssue]


class HardBoundary(eqx.Module):
    """A factory that clamps another one's networks to the boundary data."""

    inside: Factory = TanhNetwork()

    def __call__(
        self, equation: BoundaryValueProblem, *, key: Key[Array, ""], dtype: Any
    ) -> Clamped:
        return Clamped(self.inside(equation, key=key, dtype=dtype), equation)


def lift(equation: BoundaryValueProblem, x: Point) -> Float[Array, ""]:
    """A smooth function with the boundary data: the boolean sum of linear interpolations.

    In the plane it is Coons' patch: edges minus corners. 3^d - 1 evaluations of the data; a
    coordinate with data on one face only (time) is extended as a constant.
    """
    total = jnp.zeros((), x.dtype)
    axes = sorted({axis for axis, _ in equation.faces})
    for count in range(1, len(axes) + 1):
        for chosen in itertools.combinations(axes, count):
            total = total - (-1) ** count * _interpolated(equation, x, chosen)
    return total


def _interpolated(equation: BoundaryValueProblem, x: Point, chosen: tuple[int, ...]) -> Array:
    """Linear interpolation along the chosen coordinates between the faces across them."""
    sides = [[side for a, side in equation.faces if a == axis] for axis in chosen]
    total = jnp.zeros((), x.dtype)
    for corner in itertools.product(*sides):
        weight = jnp.ones((), x.dtype)
        place = x
        for axis, side, both in zip(chosen, corner, sides, strict=True):
            low, high = equation.lower[axis], equation.upper[axis]
            share = (x[axis] - low) / (high - low)
            weight = weight * ((share if side else 1 - share) if len(both) == 2 else 1)
            place = place.at[axis].set((low, high)[side])
        total = total + weight * equation.boundary(place)
    return total


def _bubble(equation: BoundaryValueProblem, x: Point) -> Array:
    """Zero on the faces with data, one or so in the middle."""
    total = jnp.ones((), x.dtype)
    for axis, side in equation.faces:
        low, high = equation.lower[axis], equation.upper[axis]
        share = (x[axis] - low) / (high - low)
        total = total * 2 * (1 - share if side else share)
    return total


# ---- training


class Collocation(eqx.Module):
    """Train a network on an equation's residual: Adam, then L-BFGS. The dial: steps of both.

    **Arguments:**

    - `network`: a factory `(equation, *, key, dtype) -> function of one point`.
    - `interior`, `face`: random points inside, and on each face with data.
    - `weight`: of the residuals against the boundary, both as mean squares. The residual of a
      second-order equation is larger than the values by the frequency squared; 1e-4 is that of
      `physics-informed-gaussians`, 1 is the plain PINN's. `weighting`: `Fixed()`, or `Balanced()`
      to start from it and follow the gradients.
    - `adam`: the share of the steps that Adam takes (1: all); `rate`: its learning rate at the
      start, decaying as a cosine. The rest are L-BFGS with a strong Wolfe line search and a
      memory of `memory` steps, stopped after `seconds` (a limit for comparisons at equal time).
    - `fresh`: whether Adam draws new points at every step; L-BFGS always keeps one draw.

    Takes stationary equations, and evolutions as equations in space-time with periodic features.
    Raises `InputError` where the training diverges. **Cost:** of a step of Adam, one gradient of
    the loss; of L-BFGS, mostly one too.
    """

    network: Factory = TanhNetwork()
    interior: int = eqx.field(default=1024, static=True)
    face: int = eqx.field(default=128, static=True)
    weight: float = eqx.field(default=1e-2, static=True)
    adam: float = eqx.field(default=0.5, static=True)
    rate: float = eqx.field(default=5e-3, static=True)
    memory: int = eqx.field(default=50, static=True)
    seconds: float = eqx.field(default=math.inf, static=True)
    fresh: bool = eqx.field(default=False, static=True)
    weighting: Weighting = Fixed()
    dials: tuple[int, ...] = eqx.field(default=(250, 1000), static=True)

    def __check_init__(self) -> None:
        if self.interior < 1 or self.face < 1 or self.memory < 1:
            raise InputError(
                f"interior={self.interior}, face={self.face} and memory={self.memory} must be >= 1"
            )
        if not (min(self.weight, self.rate, self.seconds) > 0 and 0 <= self.adam <= 1):
            raise InputError(
                f"weight={self.weight}, rate={self.rate} and seconds={self.seconds} positive, "
                f"adam={self.adam} a share between 0 and 1"
            )

    def __call__(
        self, equation: BoundaryValueProblem | InitialValueProblem, dial: int, *, key: Any
    ) -> AtPoints | AtEnd:
        if int(dial) < 1:
            raise InputError(f"the dial counts steps of the optimiser: {dial} must be at least 1")
        whole = space_time(equation) if isinstance(equation, InitialValueProblem) else equation
        dtype = working_dtype()
        for_network, for_points, for_training = jax.random.split(key, 3)
        network = self.network(whole, key=for_network, dtype=jnp.dtype(dtype))
        source = Uniform(whole, self.interior, self.face, dtype)
        trained = self._train(network, source, int(dial), for_points, for_training)
        if isinstance(equation, InitialValueProblem):
            return AtEnd(trained, equation.duration)
        return AtPoints(trained)

    def _train(self, network: Any, source: Uniform, steps: int, points: Any, key: Any) -> Any:
        loss = CollocationLoss(source.equation, self.weight)
        adam_steps = round(self.adam * steps)
        kept = Kept(source(points))
        if adam_steps:
            data = source if self.fresh else kept
            network, loss = self.weighting.adam(
                loss, network, data, rate=self.rate, steps=adam_steps, key=key
            )
        if steps > adam_steps:
            network = _lbfgs(loss, network, kept.cloud, self, steps - adam_steps)
        return network


@eqx.filter_jit
def _slope(loss: Any, weights: Array, rest: Any, cloud: Cloud) -> tuple[Array, Array]:
    unravel, frozen = rest

    def objective(weights: Array) -> Array:
        return loss(eqx.combine(unravel(weights), frozen), cloud)

    return jax.value_and_grad(objective)(weights)


def _lbfgs(loss: Any, network: Any, cloud: Cloud, settings: Collocation, steps: int) -> Any:
    """SciPy's L-BFGS: its line search meets the strong Wolfe conditions with one evaluation most
    of the time, and compiles to nothing but the gradient. optax's takes twice as many."""
    moving, frozen = eqx.partition(network, eqx.is_inexact_array)
    weights, unravel = ravel_pytree(moving)
    rest = (jax.tree_util.Partial(unravel), frozen)
    deadline = time.monotonic() + settings.seconds

    def slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _slope(loss, jnp.asarray(x, weights.dtype), rest, cloud)
        return float(value), np.asarray(gradient, np.float64)

    def stop_in_time(x: np.ndarray) -> None:
        if time.monotonic() > deadline:
            raise StopIteration

    found = minimize(
        slope,
        np.asarray(weights, np.float64),
        jac=True,
        method="L-BFGS-B",
        callback=stop_in_time,
        options={
            "maxcor": settings.memory,
            "maxiter": steps,
            "maxfun": 10 * steps,
            "ftol": 0.0,
            "gtol": 0.0,
        },
    )
    return eqx.combine(unravel(jnp.asarray(found.x, weights.dtype)), frozen)


class AtPoints(eqx.Module):
    """A function of one point as a function of points `[n, d] -> [n]`."""

    network: Any

    def __call__(self, points: Float[Array, "n d"]) -> Float[Array, " n"]:
        return jax.lax.map(self.network, points, batch_size=1024)


class AtEnd(eqx.Module):
    """A function of space and time at one time, as a function of points `[n, d] -> [n]`."""

    network: Any
    time: float

    def __call__(self, points: Float[Array, "n d"]) -> Float[Array, " n"]:
        def at(x: Array) -> Array:
            return self.network(jnp.append(x, jnp.asarray(self.time, x.dtype)))

        return jax.lax.map(at, points, batch_size=1024)


tanh_network = Collocation()
fourier_network = Collocation(network=FourierNetwork())
hard_boundary = Collocation(network=HardBoundary(), weight=1.0)
balanced_network = Collocation(weighting=Balanced())
