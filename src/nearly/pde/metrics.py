"""Errors of fields and of rollouts, one sample at a time: map over batches with `jax.vmap`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nearly.core.errors import InputError
from nearly.pde.spectral_grid import SpectralGrid, box


def relative_l2(
    prediction: Float[Array, "*field"], truth: Float[Array, "*field"]
) -> Float[Array, ""]:
    """The norm of the difference over the norm of the truth, over all channels and points.

    Its derivative where both agree is zero. Where the truth vanishes it is as good as infinite,
    unless the prediction vanishes too.
    """
    return _ratio(jnp.sum((prediction - truth) ** 2), jnp.sum(truth**2))


def relative_h1(
    prediction: Float[Array, " channels *grid"],
    truth: Float[Array, " channels *grid"],
    *,
    length: float | Sequence[float] = 1.0,
    periodic: bool = True,
) -> Float[Array, ""]:
    """The H^1 norm of the difference over that of the truth: values and first derivatives.

    **Arguments:** fields with channels first; `length` of the box, one number or one for each axis
    of the grid. Derivatives are spectral on periodic grids, differences between neighbours (at the
    middle between them) on others.
    """
    lengths = box(length, truth.ndim - 1)
    square = _periodic_h1 if periodic else _difference_h1
    error = sum(square(each, lengths) for each in prediction - truth)
    return _ratio(jnp.asarray(error), jnp.asarray(sum(square(each, lengths) for each in truth)))


def _ratio(error: Array, size: Array) -> Array:
    tiny = jnp.finfo(size.dtype).tiny
    # A root has no derivative at zero; shifted by the smallest number it has.
    return jnp.sqrt(error + tiny) / jnp.sqrt(size + tiny)


def _periodic_h1(field: Array, lengths: tuple[float, ...]) -> Array:
    grid = SpectralGrid(field.shape, lengths, field.dtype)
    weighted = grid.values(jnp.sqrt(1 + grid.square()) * grid.transform(field))
    return jnp.mean(weighted**2)


def _difference_h1(field: Array, lengths: tuple[float, ...]) -> Array:
    slopes = [
        jnp.mean((jnp.diff(field, axis=axis) * (n / length)) ** 2)
        for axis, (n, length) in enumerate(zip(field.shape, lengths, strict=True))
    ]
    return jnp.mean(field**2) + sum(slopes)


def spectrum(field: Float[Array, "*grid"]) -> Float[Array, " shells"]:
    """The mean square of a periodic field by integer wave number: shells of width 1 around |k|.

    The numbers add up to the mean square of the field (all shells are there, the corners' too).
    """
    grid = SpectralGrid(field.shape, (1.0,) * field.ndim, field.dtype)
    power = jnp.abs(grid.transform(field) / field.size) ** 2
    last = grid.integers()[-1]
    # The half spectrum holds one of each pair of conjugates, but for the ends of the last axis.
    paired = (last > 0) & (2 * last != field.shape[-1])
    radius = np.sqrt(sum(k**2 for k in grid.integers()))
    shells = np.rint(np.asarray(radius)).astype(int)
    doubled = jnp.where(jnp.asarray(paired), 2 * power, power)
    count = int(shells.max()) + 1
    return jnp.zeros(count, field.dtype).at[shells.ravel()].add(doubled.ravel())


def correlation(
    prediction: Float[Array, " frames *field"], truth: Float[Array, " frames *field"]
) -> Float[Array, " frames"]:
    """Pearson's correlation of each frame with the true one, over all channels and points."""

    def one(a: Array, b: Array) -> Array:
        a, b = a - a.mean(), b - b.mean()
        tiny = jnp.finfo(b.dtype).tiny
        return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2) + tiny)

    return jax.vmap(one)(prediction, truth)


def correlation_time(
    prediction: Float[Array, " frames *field"],
    truth: Float[Array, " frames *field"],
    dt: float,
    threshold: float = 0.8,
) -> Float[Array, ""]:
    """When the correlation first falls below a threshold; the last frame's time if it does not.

    Frame j is at time (j + 1) dt, at time 0 both agree; between frames the correlation is
    interpolated linearly. A frame that is not finite has the correlation 0.
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold={threshold} must lie between 0 and 1, such as 0.8")
    found = jnp.nan_to_num(correlation(prediction, truth), nan=0.0)
    found = jnp.concatenate([jnp.ones(1, found.dtype), found])
    below = found < threshold
    after = jnp.argmax(below)
    before = jnp.maximum(after - 1, 0)
    fall = found[before] - found[after]
    share = (found[before] - threshold) / jnp.where(fall > 0, fall, 1)
    crossed = dt * (before + share)
    return jnp.where(below.any(), crossed, dt * (len(found) - 1)).astype(found.dtype)


def is_finite(trajectory: Float[Array, " frames *field"]) -> Bool[Array, " frames"]:
    """Whether all values of a frame are finite."""
    return jnp.isfinite(trajectory).all(axis=tuple(range(1, trajectory.ndim)))


def divergence_time(
    trajectory: Float[Array, " frames *field"], dt: float, bound: float = math.inf
) -> Float[Array, ""]:
    """The time of the first frame that is not finite, or beyond a bound; infinity if none is.

    Frame j is at time (j + 1) dt.
    """
    axes = tuple(range(1, trajectory.ndim))
    # NaN is not below any bound.
    good = is_finite(trajectory) & (jnp.abs(trajectory).max(axis=axes) <= bound)
    when = dt * (jnp.argmin(good) + 1)
    return jnp.where(good.all(), jnp.inf, when).astype(trajectory.dtype)


def rollout_error(
    prediction: Float[Array, " frames *field"], truth: Float[Array, " frames *field"]
) -> Float[Array, " frames"]:
    """The relative L2 error of each frame; infinite from the first frame on that is not finite."""
    errors = jax.vmap(relative_l2)(prediction, truth)
    alive = jnp.cumprod(is_finite(prediction)).astype(bool)
    return jnp.where(alive, errors, jnp.inf)


def geometric_mean(errors: Float[Array, " frames"]) -> Float[Array, ""]:
    """The geometric mean over frames: no frame's size outweighs the others'."""
    return jnp.exp(jnp.mean(jnp.log(errors)))
