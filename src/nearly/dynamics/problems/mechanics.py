"""Point masses whose motion is known in closed form: initial-value problems of the second order.

States are positions, then velocities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ellipj, ellipk

from nearly.core.errors import InputError
from nearly.dynamics.problems.initial_value import InitialValueProblem, Stacked


def _motion(field: Any, name: str, times: np.ndarray, truth: np.ndarray, dtype: str) -> Any:
    return InitialValueProblem(
        field=field,
        start=truth[0],
        times=times[1:],
        stiff=False,
        truth=truth[1:],
        uncertainty=1e-15,
        name=name,
        dtype=dtype,
    )


def _grid(end: float) -> np.ndarray:
    if not end > 0:
        raise InputError(f"the end {end} must be a positive time")
    return np.linspace(0, end, 17)


def _free(t: Any, y: Any) -> Sequence[Any]:
    return y[1], 0 * y[1]


def _falling(t: Any, y: Any) -> Sequence[Any]:
    return y[1], 0 * y[1] - 1


def _swinging(t: Any, y: Any) -> Sequence[Any]:
    import jax.numpy as jnp

    return y[1], -jnp.sin(y[0])


def free_particle(end: float = 2.0, dtype: str = "float64") -> InitialValueProblem:
    """x'' = 0 from 1, at a speed of 1/2."""
    t = _grid(end)
    truth = np.stack([1 + t / 2, np.full_like(t, 0.5)], -1)
    return _motion(Stacked(_free), "free-particle", t, truth, dtype)


def gravity(end: float = 2.0, dtype: str = "float64") -> InitialValueProblem:
    """x'' = -1 from 0, thrown up at a speed of 1."""
    t = _grid(end)
    truth = np.stack([t - t**2 / 2, 1 - t], -1)
    return _motion(Stacked(_falling), "gravity", t, truth, dtype)


def pendulum(angle: float = 1.0, end: float = 6.0, dtype: str = "float64") -> InitialValueProblem:
    """theta'' = -sin theta, let go at an angle in radians."""
    if not 0 < angle < np.pi:
        raise InputError(f"the angle {angle} must lie between 0 and pi")
    t = _grid(end)
    truth = pendulum_value(t, angle)
    return _motion(Stacked(_swinging), "pendulum", t, truth, dtype)


def pendulum_value(times: np.ndarray, angle: float) -> np.ndarray:
    """Angle and its rate [times, 2], by Jacobi's functions: sin(theta / 2) = k cd(t)."""
    k = np.sin(angle / 2)
    sn, cn, dn, _ = ellipj(times, k**2)
    rate = -2 * k * np.sqrt(1 - k**2) * sn / dn
    return np.stack([2 * np.arcsin(k * cn / dn), rate], -1)


def pendulum_period(angle: float) -> float:
    """Of a pendulum let go at an angle."""
    return float(4 * ellipk(np.sin(angle / 2) ** 2))
