"""Linear equations solved exactly at any time: each mode of the grid by itself.

Fields are those of one sample, `[*grid]`. Periodic grids have the points j length / n, the others
the centres of cells. The solution is exact for the function that the grid's modes sum to; times may
be traced, and `jax.vmap` over times gives a trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError
from nearly.datasets.random_fields import Boundary
from nearly.pde.checks import check_field, check_not_negative
from nearly.pde.elliptic import multiply_diagonal, spectral_eigenvalues
from nearly.pde.spectral_grid import SpectralGrid, box

Scalar = float | Float[Array, ""]


def heat(
    initial: Float[Array, "*grid"],
    time: Scalar,
    *,
    diffusivity: Scalar = 1.0,
    length: float | Sequence[float] = 1.0,
    boundary: Boundary = "periodic",
) -> Float[Array, "*grid"]:
    """u(time) of u_t = diffusivity Laplacian(u).

    **Arguments:** `initial`, u(0); `length` of the box, one number or one for each axis;
    `boundary`: "periodic", "dirichlet" (u = 0) or "neumann" (no flux).

    **Raises:** `InputError` for a negative time or diffusivity, where the problem is ill posed.

    **Cost:** two fast transforms, at any time.
    """
    check_field("the initial field", initial, range(1, initial.ndim + 1))
    check_not_negative("diffusivity", diffusivity)
    check_not_negative("time", time)
    eigenvalues = laplacian_eigenvalues(initial, length, boundary)
    return multiply_diagonal(initial, jnp.exp(-diffusivity * time * eigenvalues), boundary)


def wave(
    displacement: Float[Array, "*grid"],
    velocity: Float[Array, "*grid"],
    time: Scalar,
    *,
    speed: Scalar = 1.0,
    length: float | Sequence[float] = 1.0,
    boundary: Boundary = "periodic",
) -> tuple[Float[Array, "*grid"], Float[Array, "*grid"]]:
    """u(time) and u_t(time) of u_tt = speed^2 Laplacian(u).

    **Arguments:** `displacement`, u(0), and `velocity`, u_t(0); the rest as for `heat`. Time may be
    negative: the equation runs both ways.

    **Cost:** eight fast transforms, at any time. Energy is kept to rounding error.
    """
    for name, field in (("displacement", displacement), ("velocity", velocity)):
        check_field(name, field, range(1, field.ndim + 1))
    if displacement.shape != velocity.shape:
        raise InputError(
            f"displacement of shape {displacement.shape} and velocity of shape {velocity.shape} "
            "must agree"
        )
    frequency = speed * jnp.sqrt(laplacian_eigenvalues(displacement, length, boundary))
    still = frequency == 0
    # sin(w t) / w at w = 0 is t.
    lasting = jnp.where(still, time, jnp.sin(frequency * time) / jnp.where(still, 1, frequency))
    swing = jnp.cos(frequency * time)
    moved = multiply_diagonal(displacement, swing, boundary)
    moved = moved + multiply_diagonal(velocity, lasting, boundary)
    rate = multiply_diagonal(displacement, -frequency * jnp.sin(frequency * time), boundary)
    return moved, rate + multiply_diagonal(velocity, swing, boundary)


def advection(
    initial: Float[Array, "*grid"],
    time: Scalar,
    *,
    velocity: Scalar | Float[Array, " axes"] = 1.0,
    length: float | Sequence[float] = 1.0,
) -> Float[Array, "*grid"]:
    """u(time) of u_t + velocity . grad u = 0 on a periodic box: the function, shifted.

    **Arguments:** `velocity`, one number for all axes or one for each; the rest as for `heat`.

    The highest mode of an even grid, whose sine the grid does not see, keeps its cosine.
    """
    check_field("the initial field", initial, range(1, initial.ndim + 1))
    grid = SpectralGrid(initial.shape, box(length, initial.ndim), initial.dtype)
    speeds = jnp.broadcast_to(jnp.asarray(velocity, initial.dtype), (initial.ndim,))
    spectrum = grid.transform(initial)
    for axis, (k, side) in enumerate(zip(grid.integers(), grid.lengths, strict=True)):
        angle = 2 * math.pi / side * jnp.asarray(k, initial.dtype) * speeds[axis] * time
        highest = jnp.asarray(2 * abs(k) == initial.shape[axis])
        spectrum = spectrum * jnp.where(highest, jnp.cos(angle), jnp.exp(-1j * angle))
    return grid.values(spectrum)


def laplacian_eigenvalues(
    field: Float[Array, "*grid"], length: float | Sequence[float], boundary: Boundary
) -> Float[Array, "*modes"]:
    """Of minus the Laplacian, for the modes that the grid of a field resolves."""
    lengths = box(length, field.ndim)
    if boundary == "periodic":
        return SpectralGrid(field.shape, lengths, field.dtype).square()
    return spectral_eigenvalues(field.shape, lengths, field.dtype, boundary)
