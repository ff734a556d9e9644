"""Discretised differential operators on structured grids, and right-hand sides for them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float

from nearly.core.errors import InputError
from nearly.linear.operators.stencil import Offset, StencilOperator

DEFINITE = frozenset([lx.positive_semidefinite_tag])


def laplacian(
    shape: tuple[int, ...],
    dtype: Any,
    *,
    weights: tuple[float, ...] | None = None,
    mask: Bool[Array, "*grid"] | None = None,
) -> StencilOperator:
    """Minus the Laplacian by second differences, times the step squared: 2d on the diagonal.

    **Arguments:**

    - `shape`: of the grid, in any dimension; the function is zero around it.
    - `weights`: a factor for the second difference along each axis (default: ones); unequal ones
      make it anisotropic.
    - `mask`: where there are unknowns; the function is zero in the obstacles between them.

    **Returns:** a positive definite operator.
    """
    weights = weights or (1.0,) * len(shape)
    if len(weights) != len(shape) or min(weights) <= 0:
        raise InputError(f"weights {weights} must be {len(shape)} positive numbers")
    offsets: list[Offset] = [(0,) * len(shape)]
    values = [2 * math.fsum(weights)]
    for axis, weight in enumerate(weights):
        for step in (-1, 1):
            offsets.append(tuple(step * (a == axis) for a in range(len(shape))))
            values.append(-weight)
    coefficients = jnp.asarray(values, dtype)
    return StencilOperator(coefficients, tuple(offsets), shape, mask=mask, tags=DEFINITE)


def poisson2d(size: int, dtype: Any = jnp.float64) -> StencilOperator:
    """The five-point Laplacian on a square of `size * size` unknowns."""
    return laplacian((size, size), dtype)


def poisson3d(size: int, dtype: Any = jnp.float64) -> StencilOperator:
    """The seven-point Laplacian on a cube of `size ** 3` unknowns."""
    return laplacian((size, size, size), dtype)


def poisson_with_obstacles(
    shape: tuple[int, ...], key: Any, dtype: Any = jnp.float64, *, obstacles: int = 4
) -> StencilOperator:
    """The Laplacian on a grid from which balls at random places are cut out."""
    return laplacian(shape, dtype, mask=obstacle_mask(shape, key, dtype, obstacles=obstacles))


def obstacle_mask(
    shape: tuple[int, ...], key: Any, dtype: Any = jnp.float64, *, obstacles: int = 4
) -> Bool[Array, "*grid"]:
    """Where there are unknowns around balls whose centres and radii are drawn from `key`.

    Radii are 5 to 15 percent of the shortest side, centres uniform; balls may overlap.
    """
    if obstacles < 0:
        raise InputError(f"{obstacles} obstacles; give none or more")
    place, width = jax.random.split(key)
    sides = jnp.asarray(shape, dtype)
    centres = jax.random.uniform(place, (obstacles, len(shape)), dtype) * sides
    radii = jax.random.uniform(width, (obstacles,), dtype, 0.05, 0.15) * min(shape)
    points = jnp.stack(jnp.meshgrid(*(jnp.arange(n) for n in shape), indexing="ij"), -1)
    free = jnp.ones(shape, bool)
    for centre, radius in zip(centres, radii, strict=True):
        free &= jnp.sum((points.astype(dtype) - centre) ** 2, -1) > radius**2
    return free


def anisotropic2d(size: int, ratio: float = 0.01, dtype: Any = jnp.float64) -> StencilOperator:
    """The five-point Laplacian whose second axis couples `ratio` times as strongly as the first."""
    return laplacian((size, size), dtype, weights=(1.0, ratio))


def convection_diffusion2d(
    size: int, peclet: float = 0.5, angle: float = 0.7, dtype: Any = jnp.float64
) -> StencilOperator:
    """Diffusion and a constant wind by central differences: not symmetric.

    **Arguments:**

    - `peclet`: wind times step over twice the diffusion; above 1 central differences oscillate and
      an iteration that needs dominant diagonals fails.
    - `angle`: of the wind to the first axis, in radians.
    """
    if not math.isfinite(peclet):
        raise InputError(f"a cell Peclet number of {peclet}; give a finite number, best below 1")
    wind = (peclet * math.cos(angle), peclet * math.sin(angle))
    offsets: tuple[Offset, ...] = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
    values = (4.0, -1 - wind[0], -1 + wind[0], -1 - wind[1], -1 + wind[1])
    return StencilOperator(jnp.asarray(values, dtype), offsets, (size, size))


def random_side(shape: tuple[int, ...], key: Any, dtype: Any = jnp.float64) -> Float[Array, ...]:
    """Independent normal numbers: all frequencies alike."""
    return jax.random.normal(key, shape, dtype)


def smooth_side(shape: tuple[int, ...], key: Any, dtype: Any = jnp.float64) -> Float[Array, ...]:
    """A random mixture of the four lowest sine modes along each axis: zero around the grid."""
    modes = 4
    total = jax.random.normal(key, (modes,) * len(shape), dtype)
    for n in shape:
        points = jnp.arange(1, n + 1, dtype=dtype) / (n + 1)
        sines = jnp.sin(jnp.pi * jnp.outer(jnp.arange(1, modes + 1, dtype=dtype), points))
        total = jnp.tensordot(total, sines, axes=(0, 0))
    return total


def kept_inside(operator: StencilOperator, u: Float[Array, "*grid"]) -> Float[Array, "*grid"]:
    """An array on the grid, set to zero in the operator's obstacles."""
    return u if operator.mask is None else jnp.where(operator.mask, u, 0)
