"""What the optimizers' settings have in common: rates that may be schedules, ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from nearly.core.errors import InputError

Rate = float | Array | Callable[[Any], Any]


def rate_at(rate: Rate, count: Any) -> Any:
    """A learning rate in a step: itself, or what its schedule says."""
    return rate(count) if callable(rate) else rate


def correction(kept: float, steps: Array, like: Array) -> Array:
    """`1 - kept^steps`, the bias of a moving average, in float32 or better before it is rounded.

    In bfloat16 0.999 is 1: the bias would be 0 and its quotient infinite.
    """
    kind = jnp.result_type(like, jnp.float32)
    return (1 - kept ** steps.astype(kind)).astype(like.dtype)


def check_decays(**values: float) -> None:
    """Raises `InputError` unless all lie in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise InputError(f"{name} {value} must lie in [0, 1): it is the share that is kept")


def check_not_negative(**values: float) -> None:
    """Raises `InputError` unless all are at least 0."""
    for name, value in values.items():
        if not value >= 0:
            raise InputError(f"{name} {value} must be at least 0")


def check_positive(**values: float) -> None:
    """Raises `InputError` unless all are positive."""
    for name, value in values.items():
        if not value > 0:
            raise InputError(f"{name} {value} must be positive")


def needs_params(params: Any, name: str) -> None:
    """Raises `InputError` where an update was called without the parameters it needs."""
    if params is None:
        raise InputError(f"{name} needs the parameters: call update(updates, state, params)")
