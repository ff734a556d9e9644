"""Derivatives of high order along a line: which engine can expand a function, and at what cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Problem
from nearly.derivatives.problems.function_table import CASES, known_derivatives


class TaylorModes(Problem):
    """The derivatives of t -> f(x + t v) at 0, of a function of the table of ninety-six.

    **Arguments:**

    - `function`: its name in the table, such as `tanh`, `eigh`, `scan`, `equinox_mlp`.
    - `dtype`: `float64` or `float32`.

    A method is `(function, x, v, order) -> derivatives of orders 0 … order, stacked`. The dial is
    the order: here it buys not precision but derivatives, so read the work and the seconds against
    it. The error is the largest of any order, relative to the largest entry of the truth of that
    order. Truth comes from mpmath at 60 digits, or where it lacks the function from nested forward
    mode in float64, without compilation (the table says which). Work is flops, as compiled.
    """

    function: str = "tanh"
    dtype: str = "float64"

    name: ClassVar[str] = "taylor_modes"
    error_name: ClassVar[str] = "relative error"
    work_name: ClassVar[str] = "flops"
    protocol: ClassVar[str] = "taylor-modes"

    def __check_init__(self) -> None:
        if self.function not in CASES:
            raise UnknownName("function", self.function, CASES)
        if self.dtype not in ("float64", "float32"):
            raise InputError(f"dtype {self.dtype!r} must be float64 or float32")

    def random(self, method: Any) -> bool:
        return False

    def dials(self, method: Any) -> Sequence[int]:
        return (1, 2, 3, 4, 6, 8)

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        case = CASES[self.function]
        point, direction = (jnp.asarray(a, self.dtype) for a in (case.point, case.direction))
        return _Expansion(method, case.function, int(dial), point, direction)

    def apply(self, standin: Any, *, key: Any) -> Any:
        return jax.tree.leaves(standin())

    def errors(self, value: Any) -> Mapping[str, float]:
        arrays = [np.asarray(a) for a in value]
        known = _truth(self.function, len(arrays[0]) - 1)
        pairs = [p for a, row in zip(arrays, known, strict=True) for p in zip(a, row, strict=True)]
        return {self.error_name: max(_relative(computed, truth) for computed, truth in pairs)}

    def floor(self) -> float:
        return 1e-15 if self.dtype == "float64" else 1e-7

    def work(self, standin: Any) -> Mapping[str, float]:
        compiled = jax.jit(lambda expansion: expansion()).lower(standin).compile()
        analysis: Any = compiled.cost_analysis()
        return {"flops": float((analysis or {}).get("flops", np.nan))}


@lru_cache(64)
def _truth(function: str, order: int) -> tuple[list[np.ndarray], ...]:
    return known_derivatives(CASES[function], order)


class _Expansion(eqx.Module):
    """A method bound to a function, a line and an order."""

    method: Callable[..., Any] = eqx.field(static=True)
    function: Callable[[Any], Any] = eqx.field(static=True)
    order: int = eqx.field(static=True)
    point: jax.Array
    direction: jax.Array

    def __call__(self) -> Any:
        return self.method(self.function, self.point, self.direction, self.order)


def _relative(computed: np.ndarray, truth: np.ndarray) -> float:
    size = float(np.max(np.abs(truth))) or 1.0
    return float(np.max(np.abs(computed - truth))) / size
