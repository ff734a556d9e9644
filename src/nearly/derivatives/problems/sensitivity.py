"""Derivatives of the limit of an iteration, judged against the exact Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Problem
from nearly.core.tally import counted
from nearly.derivatives.problems.sensitivity_cases import CASES, Case, instance, truth

MODES = ("forward", "reverse")
PROBES = 3  # random cotangents in reverse mode


class Sensitivity(Problem):
    """How the limit of an iteration moves with its parameters; the dial is the number of steps.

    A method of the protocol "sensitivities" is a function `(step, start, steps) -> solve`, where
    `step(x, theta) -> x` is one step of a convergent iteration and `solve(theta) -> x` returns the
    iterate after that many steps from `start`, with whatever derivative the method gives it. It is
    judged by that derivative alone: the relative error (Frobenius) of its Jacobian, in reverse mode
    of the Jacobian's products with three random cotangents. All methods have the same iterates,
    whose error, relative to the way from the start to the limit, stands beside. Work is steps, and
    the jvps and vjps through them.

    **Arguments:**

    - `case`: `"ridge"`, `"lasso"`, `"simplex-qp"` or `"sphere-packing"` (128 soft spheres).
    - `mode`: `"forward"` or `"reverse"`. `seed`: of the instance. `dtype`: of the computation.

    Truth: a closed form on the support; for the packing a dense solve at a minimum polished by
    Newton's method. Paper: `implicit-differentiation`.
    """

    case: str
    mode: str
    seed: int
    dtype: str
    data: Case
    error_name: ClassVar[str] = "Jacobian error"
    work_name: ClassVar[str] = "steps"
    protocol: ClassVar[str] = "sensitivities"

    def __init__(
        self, case: str = "ridge", mode: str = "forward", seed: int = 0, dtype: str = "float64"
    ) -> None:
        if case not in CASES:
            raise UnknownName("case of a sensitivity", case, CASES)
        if mode not in MODES:
            raise UnknownName("mode of differentiation", mode, MODES)
        if dtype not in ("float32", "float64"):
            raise InputError(f"dtype {dtype!r} must be float32 or float64")
        self.case, self.mode, self.seed, self.dtype = case, mode, seed, dtype
        self.data = jax.tree.map(partial(_cast, dtype=dtype), instance(case, seed))

    @property
    def name(self) -> str:
        return self.case

    def dials(self, method: Any) -> Sequence[int]:
        return (10, 30, 100, 300, 1000, 3000)

    def random(self, method: Any) -> bool:
        return False

    def build(self, method: Any, dial: Any, *, key: Any) -> Any:
        # Not an array: reverse mode through a loop needs its length when it is compiled.
        return method, int(dial)

    def apply(self, standin: Any, *, key: Any) -> Any:
        method, steps = standin
        step = counted(self.data.step, "steps")
        solve = method(step, jnp.asarray(self.data.start), steps)
        theta = jnp.asarray(self.data.theta)
        if self.mode == "forward":
            return _pushed(solve, theta)
        return _pulled(solve, theta, jnp.asarray(self.probes, self.dtype))

    @property
    def probes(self) -> np.ndarray:
        """The cotangents of reverse mode, one in each row."""
        return np.random.default_rng(self.seed).normal(size=(PROBES, self.data.start.size))

    def errors(self, value: Any) -> Mapping[str, float]:
        x, derivative = (np.asarray(v, np.float64) for v in value)
        exact_x, jacobian = truth(self.case, self.seed)
        way = np.linalg.norm(exact_x - instance(self.case, self.seed).start)
        exact = jacobian if self.mode == "forward" else self.probes @ jacobian
        return {
            "Jacobian error": float(np.linalg.norm(derivative - exact) / np.linalg.norm(exact)),
            "iterate error": float(np.linalg.norm(x - exact_x) / way),
        }

    def floor(self) -> float:
        return 1e-13


def _cast(leaf: Any, dtype: str) -> Any:
    inexact = isinstance(leaf, np.ndarray) and leaf.dtype == np.float64
    return leaf.astype(dtype) if inexact else leaf


def _pushed(solve: Callable[[Any], Any], theta: Any) -> Any:
    def twice(theta: Any) -> Any:
        x = solve(theta)
        return x, x

    jacobian, x = jax.jacfwd(twice, has_aux=True)(theta)
    return x, jacobian


def _pulled(solve: Callable[[Any], Any], theta: Any, probes: Any) -> Any:
    x, pullback = jax.vjp(solve, theta)
    return x, jax.vmap(pullback)(probes)[0]
