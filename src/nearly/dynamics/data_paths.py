"""Paths through observed data, to drive a controlled equation: smooth, straight, or in windows.

The first channel of every path is time, so that how fast the data come is seen too. An observation
that is missing is NaN, in one channel or in all: the path goes on without it.
"""

from __future__ import annotations

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Times = Float[Array, " times"]
Values = Float[Array, "times channels"]


def hermite_path(times: Times, values: Values) -> dfx.CubicInterpolation:
    """A smooth path through observations, each piece from what was seen up to its end.

    **Arguments:**

    - `times`: increasing. `values`: what was seen, NaN where it was not; in each channel the first
      value seen holds before it, and the last one after it.

    **Returns:** a path in 1 + channels dimensions, time first.

    **Cost:** linear in the number of observations. Cubic, with backward differences for slopes: a
    vector field sees no jump but in the second derivative, so adaptive solvers take long steps.

    From `neural-differential-equations` (section 3.5 there, by diffrax's coefficients).
    """
    seen = _with_time(times, values)
    return dfx.CubicInterpolation(times, dfx.backward_hermite_coefficients(times, seen))


def linear_path(times: Times, values: Values) -> dfx.LinearInterpolation:
    """A path that is straight between observations, for solvers whose steps end at them.

    As `hermite_path` else. Nothing overshoots, and a value at time t needs no observation after
    the next one. The vector field jumps at every observation: give equal steps that fall on them,
    or `diffrax.StepTo(times)`.
    """
    return dfx.LinearInterpolation(times, _with_time(times, values))


class LogPath(eqx.Module):
    """Windows of a path, each known by its increment and its area: see `log_path`.

    `times` [windows + 1], `start` [channels], `increments` [windows, channels], `areas` [windows,
    channels, channels].
    """

    times: Float[Array, " nodes"]
    start: Float[Array, " channels"]
    increments: Float[Array, "windows channels"]
    areas: Float[Array, "windows channels channels"]

    @property
    def t0(self) -> Any:
        """The path's first time."""
        return self.times[0]

    @property
    def t1(self) -> Any:
        """The path's last time."""
        return self.times[-1]

    def between(self, t0: Any, t1: Any) -> tuple[Array, Array]:
        """The share of a window's increment and area that a step within the window has."""
        last = self.increments.shape[0] - 1
        window = jnp.searchsorted(self.times, (t0 + t1) / 2, side="right") - 1
        window = jnp.clip(window, 0, last)
        share = (t1 - t0) / (self.times[window + 1] - self.times[window])
        return share * self.increments[window], share * self.areas[window]


def log_path(times: Times, values: Values, window: int) -> LogPath:
    """A long path in windows of `window` observations, for few steps: the log-ODE method, depth 2.

    **Arguments:** as `linear_path`, of which this keeps in each window the increment and the area
    that every pair of channels sweeps. `window`: how many pieces of the path it holds; it divides
    their number.

    **Raises:** `InputError` if it does not.

    **Cost:** channels^2 numbers a window; each step of the equation costs `channels` derivatives of
    its vector field more, and there are `window` times fewer. Worth it for thousands of
    observations; what is faster than a window and sweeps no area is lost.

    From `neural-differential-equations` (section 3.2.3 there).
    """
    pieces = times.shape[0] - 1
    if window < 1 or pieces % window:
        raise InputError(f"window={window} must divide the {pieces} pieces between observations")
    path = dfx.linear_interpolation(times, _with_time(times, values))
    nodes = path[::window]
    count = pieces // window
    steps = jnp.diff(path, axis=0).reshape(count, window, -1)
    since = path[:-1].reshape(count, window, -1) - nodes[:-1, None]
    swept = jnp.einsum("nwi,nwj->nij", since, steps) / 2
    areas = swept - jnp.swapaxes(swept, 1, 2)
    return LogPath(times[::window], path[0], jnp.diff(nodes, axis=0), areas)


def _with_time(times: Array, values: Array) -> Array:
    """Time and values side by side, without gaps."""
    if times.shape[0] != values.shape[0]:
        raise InputError(f"{times.shape[0]} times need as many values, not {values.shape[0]}")
    if times.shape[0] < 2:
        raise InputError("one observation makes no path: give at least 2")
    first = jnp.argmax(~jnp.isnan(values), axis=0)
    start = jnp.take_along_axis(values, first[None], axis=0)[0]
    filled = dfx.linear_interpolation(
        times, values, fill_forward_nans_at_end=True, replace_nans_at_start=start
    )
    return jnp.concatenate([times[:, None], filled], axis=1)


class ControlledByWindows(dfx.AbstractTerm[Any, Any]):
    """dy = field dX along a `LogPath`: increments times the field, areas times its derivatives.

    Exact in a window but for what triple integrals of the path would add. A step must lie in one
    window.
    """

    field: Any
    path: LogPath

    def vf(self, t: Any, y: Any, args: Any) -> Any:
        """The field [state, channels], and each column's change along each column."""

        def columns(state: Any) -> Any:
            return self.field(t, state, args)

        def change(direction: Any) -> Any:
            return jax.jvp(columns, (y,), (direction,))[1]

        field = columns(y)
        return field, jax.vmap(change, in_axes=1)(field)

    def contr(self, t0: Any, t1: Any, **kwargs: Any) -> Any:
        """Increments [channels] and areas [channels, channels] of a step."""
        del kwargs
        return self.path.between(t0, t1)

    def prod(self, vf: Any, control: Any) -> Any:
        """The change of the state."""
        (field, changes), (increment, area) = vf, control
        return field @ increment + jnp.einsum("ihj,ij->h", changes, area)
