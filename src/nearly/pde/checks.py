"""Checks of concrete values; what JAX is tracing cannot be looked at and passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.core import Tracer
from jaxtyping import Array

from nearly.core.errors import InputError


def is_concrete(value: Any) -> bool:
    """Whether the value can be looked at now, outside of `jit`, `vmap` and `grad`."""
    return not isinstance(value, Tracer)


def check_not_negative(name: str, value: Any) -> None:
    """`InputError` if a concrete coefficient is negative or not finite anywhere."""
    if is_concrete(value) and not np.all(np.isfinite(value) & (np.asarray(value) >= 0)):
        raise InputError(f"{name}={value} must be finite and not negative: the sign makes it damp")


def check_positive(name: str, value: Any) -> None:
    """`InputError` if a concrete number is not positive and finite everywhere."""
    if is_concrete(value) and not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
        raise InputError(f"{name}={value} must be positive and finite")


def check_field(name: str, field: Array | np.ndarray, dimensions: Sequence[int]) -> None:
    """`InputError` if a field has the wrong rank or dtype, or concrete values that are not finite.

    A batch is no field: map over it with `jax.vmap`.
    """
    if field.ndim not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise InputError(
            f"{name} of shape {field.shape} must have {wanted} axes, those of the grid: "
            "map over batches with jax.vmap, over channels one by one"
        )
    if str(field.dtype) not in ("float32", "float64"):
        raise InputError(f"{name} of dtype {field.dtype} must be float32 or float64: convert it")
    if is_concrete(field) and not np.all(np.isfinite(np.asarray(field))):
        bad = int(np.sum(~np.isfinite(np.asarray(field))))
        raise InputError(
            f"{name} has {bad} of {field.size} values that are not finite: mend them first"
        )


def check_converged(solution: Array, remedy: str) -> None:
    """`InputError` if an iteration gave up; its solver marks that by values that are not finite."""
    if is_concrete(solution) and not np.all(np.isfinite(np.asarray(solution))):
        raise InputError(f"the iteration did not converge: {remedy}")
