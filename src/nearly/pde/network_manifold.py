"""The fields that a network can take on, as a manifold in its parameters: values, tangents, u_t."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key

from nearly.core.errors import InputError
from nearly.pde.collocation import AtPoints
from nearly.pde.equations import InitialValueProblem, Point, velocities
from nearly.training.architectures import MLP, mlp

Parameters = Float[Array, " p"]
Values = Float[Array, " n"]

ROWS = 1024  # gradients held at once: memory of the Jacobian is that of the chosen columns


class PeriodicNetwork(eqx.Module):
    """A tanh network on a cos(2 pi x / L + phi) + c, several of each coordinate: periodic."""

    amplitude: Float[Array, "d m"]
    phase: Float[Array, "d m"]
    shift: Float[Array, "d m"]
    body: MLP
    lengths: tuple[float, ...] = eqx.field(static=True)

    def __call__(self, x: Point) -> Float[Array, ""]:
        turn = 2 * math.pi * x / jnp.asarray(self.lengths, x.dtype)
        waves = self.amplitude * jnp.cos(turn[:, None] + self.phase) + self.shift
        return self.body(waves.ravel())[0]


def periodic_network(
    lengths: tuple[float, ...],
    key: Key[Array, ""],
    *,
    width: int = 16,
    depth: int = 4,
    dtype: Any = jnp.float64,
) -> PeriodicNetwork:
    """`width` periodic features in all, then `depth` - 1 hidden layers of that width.

    The paper's: width 40, depth 7. Raises `InputError` unless each coordinate gets a feature.
    """
    waves = width // len(lengths)
    if waves < 1 or depth < 2:
        raise InputError(
            f"width={width} must be at least {len(lengths)}, one feature a coordinate, "
            f"and depth={depth} at least 2"
        )
    first, second, third = jax.random.split(key, 3)
    shape = (len(lengths), waves)
    body = mlp(
        [waves * len(lengths), *[width] * (depth - 1), 1], third, jnp.tanh, gain=5 / 3, dtype=dtype
    )
    return PeriodicNetwork(
        jax.random.normal(first, shape, dtype),
        jax.random.uniform(second, shape, dtype, 0, 2 * math.pi),
        jnp.zeros(shape, dtype),
        body,
        lengths,
    )


class Manifold(eqx.Module):
    """The fields a network can take on, as functions of its parameters in one vector `[p]`."""

    frozen: Any
    unravel: Any
    equation: InitialValueProblem
    points: Float[Array, "n d"]

    def network(self, theta: Parameters) -> Any:
        return eqx.combine(self.unravel(theta), self.frozen)

    def at_points(self, theta: Parameters) -> AtPoints:
        """The field as a function of points `[n, d] -> [n]`."""
        return AtPoints(self.network(theta))

    def values(self, theta: Parameters) -> Values:
        return jax.vmap(self.network(theta))(self.points)

    def velocity(self, theta: Parameters) -> Values:
        """u_t at the points, by exact derivatives of the network."""
        return velocities(self.equation, self.network(theta), self.points)

    def jacobian(self, theta: Parameters, chosen: Array) -> Float[Array, "n k"]:
        """d u(points) / d theta[chosen]; O(n p) time, O(n k) memory."""

        def row(x: Point) -> Array:
            return jax.grad(lambda t: self.network(t)(x))(theta)[chosen]

        return jax.lax.map(row, self.points, batch_size=ROWS)


def manifold(
    network: Any, equation: InitialValueProblem, points: Float[Array, "n d"]
) -> tuple[Manifold, Parameters]:
    """A network's manifold over an equation's points, and where on it the network stands."""
    moving, frozen = eqx.partition(network, eqx.is_inexact_array)
    theta, unravel = ravel_pytree(moving)
    return Manifold(frozen, jax.tree_util.Partial(unravel), equation, points), theta
