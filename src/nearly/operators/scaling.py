"""What turns the states, increments and parameters of a stepper into numbers of unit size."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.operators.data import Trajectories, check_data
from nearly.operators.training import statistics

Field = Float[Array, "channels *grid"]


class Scaling(eqx.Module):
    """What turns states, increments and parameters into numbers of about unit size.

    NumPy arrays, so training leaves them alone. A parameter that is positive throughout and spans
    more than a decade goes in by its logarithm.
    """

    mean: np.ndarray
    std: np.ndarray
    increment_std: np.ndarray
    parameter_mean: np.ndarray
    parameter_std: np.ndarray
    logarithmic: np.ndarray

    def normal(self, state: Field) -> Field:
        return (state - _spread(self.mean, state)) / _spread(self.std, state)

    def original(self, scaled: Field) -> Field:
        """The state that a scaled one stands for."""
        return scaled * _spread(self.std, scaled) + _spread(self.mean, scaled)

    def increment(self, state: Field, following: Field) -> Field:
        """The step from one state to the next, in units of its deviation."""
        return (following - state) / _spread(self.increment_std, state)

    def advanced(self, state: Field, increment: Field) -> Field:
        return state + increment * _spread(self.increment_std, state)

    def parameters(self, values: Float[Array, " p"], dtype: Any) -> Float[Array, " p"]:
        values = jnp.asarray(values, dtype)
        logarithms = jnp.log(jnp.where(self.logarithmic, values, 1))
        values = jnp.where(self.logarithmic, logarithms, values)
        return (values - self.parameter_mean.astype(dtype)) / self.parameter_std.astype(dtype)


def _spread(channels: Any, field: Any) -> Any:
    return jnp.asarray(channels, field.dtype).reshape(-1, *(1,) * (field.ndim - 1))


def scaling(data: Trajectories) -> Scaling:
    """The statistics of trajectories that a stepper works in.

    Raises `InputError` for values that are not finite.
    """
    check_data(data)
    states, parameters = np.asarray(data.states), np.asarray(data.parameters, np.float64)
    merged = states.reshape(-1, *states.shape[2:])
    increments = np.diff(states, axis=1).reshape(-1, *states.shape[2:])
    low, high = parameters.min(0, initial=np.inf), parameters.max(0, initial=-np.inf)
    logarithmic = (low > 0) & (high > 10 * low)
    shown = np.where(logarithmic, np.log(np.where(logarithmic, parameters, 1)), parameters)
    spread = shown.std(0)
    root_mean_square = np.sqrt(np.square(increments).mean((0, *range(2, increments.ndim))))
    return Scaling(
        *statistics(merged),
        np.where(root_mean_square > 0, root_mean_square, 1).astype(states.dtype),
        shown.mean(0),
        np.where(spread > 0, spread, 1),
        logarithmic,
    )
