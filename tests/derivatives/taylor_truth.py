"""How far the engine is from the truth on a function of the table."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.derivatives.problems.function_table import CASES, known_derivatives
from nearly.derivatives.taylor import directional_derivatives

TOLERANCE = 1e-10


def deviation(name: str, order: int) -> float:
    """The largest deviation of any order from the truth, relative to the largest entry there."""
    case = CASES[name]
    truth = known_derivatives(case, order)
    with jax.enable_x64(True):
        result = directional_derivatives(
            case.function, jnp.asarray(case.point), jnp.asarray(case.direction), order
        )
        arrays = [np.asarray(a) for a in jax.tree.leaves(result)]
    assert len(arrays) == len(truth)
    return max(
        relative(a, t) for array, row in zip(arrays, truth) for a, t in zip(array, row, strict=True)
    )


def relative(computed: Any, truth: Any) -> float:
    assert np.shape(computed) == np.shape(truth)
    assert np.all(np.isfinite(truth))
    if not np.any(truth):
        return float(np.max(np.abs(computed)))
    return float(np.max(np.abs(computed - truth)) / np.max(np.abs(truth)))
