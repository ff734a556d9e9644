"""What the optimizers' settings have in common: rates that may be schedules, ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from nearly.core.errors import InputError

Rate = float | Array | Callable[[Any], Any]


def rate_at(rate: Rate, count: Any) -> Any:
    """A learning rate in a step: itself, or what its schedule says."""
    return rate(count) if callable(rate) else rate


def widened(tree: PyTree) -> PyTree:
    """The arrays in float32 or better, as statistics are kept.

    In bfloat16 0.999 is 1: a moving average would be a sum, its bias 0.
    """
    return jax.tree.map(lambda x: x.astype(jnp.result_type(x, jnp.float32)), tree)


def narrowed(tree: PyTree, like: PyTree) -> PyTree:
    """The arrays in the precision of those of another tree."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def averaged(kept: float, old: PyTree, new: PyTree) -> PyTree:
    """One step of an exponential moving average."""
    return jax.tree.map(lambda a, b: kept * a + (1 - kept) * b, old, new)


def correction(kept: float, steps: Array, like: Array) -> Array:
    """`1 - kept^steps`, the bias of a moving average."""
    return 1 - kept ** steps.astype(like.dtype)


def inner(first: PyTree, second: PyTree) -> Float[Array, ""]:
    """The inner product of two trees, accumulated in float32 or better."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), widened(first), widened(second))
    return jnp.asarray(sum(jax.tree.leaves(products)))


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
