"""`Equation`: one equation to be solved by anything, judged on a held-out grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from nearly.core.catalogue import Method
from nearly.core.errors import InputError, UnknownName
from nearly.core.problem import Problem
from nearly.core.tally import tally
from nearly.pde import NEEDS
from nearly.pde.equations import BoundaryValueProblem, InitialValueProblem


class Solution(eqx.Module):
    """A solution as a method handed it back, with what finding it took."""

    module: Any
    seconds: np.ndarray
    work: Mapping[str, float]


class Equation(Problem):
    """Solve one equation; a method is `(equation, dial, *, key) -> module`.

    The `equation` is a `BoundaryValueProblem` or an `InitialValueProblem`; the module maps points
    `[n, d]` to values `[n]` (of an evolution: at the final time). What the dial means the method
    says, in its `dials`: points a coordinate, time steps, or steps of an optimiser.

    An equation is solved once. So seconds and work are those of finding the solution, compilation
    included, and not those of evaluating it.

    Error: relative L2 on a grid that no method knows, against `truth`. Work: residual evaluations.
    """

    name: str
    equation: BoundaryValueProblem | InitialValueProblem
    dtype: str = "float64"

    error_name: ClassVar[str] = "relative L2 error"
    work_name: ClassVar[str] = "residual evaluations"
    protocol: ClassVar[str] = "equations"

    def __check_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise UnknownName("dtype", self.dtype, ("float32", "float64"))

    @property
    def kind(self) -> str:
        """What a method must be able to take: see `nearly.pde.NEEDS`."""
        if isinstance(self.equation, InitialValueProblem):
            return "evolution"
        return "variational" if hasattr(self.equation, "lagrangian") else "stationary"

    def methods(self) -> Mapping[str, Method]:
        kinds = {self.kind, "stationary"} if self.kind == "variational" else {self.kind}
        return {n: m for n, m in super().methods().items() if kinds & set(NEEDS.get(n, kinds))}

    def dials(self, method: Any) -> Sequence[Any]:
        return getattr(method, "dials", ("as given",))

    def random(self, method: Any) -> bool:
        return getattr(method, "random", True)

    def unit(self) -> str:
        return "seconds"

    def build(self, method: Any, dial: Any, *, key: Any) -> Solution:
        begun = time.perf_counter()
        with tally() as counts:
            module = method(self.equation, dial, key=key)
        seconds = time.perf_counter() - begun
        if not callable(module):
            raise InputError(f"the method handed back a {type(module).__name__}, not a function")
        work = {unit: float(n) for unit, n in counts.read().items() if n}
        return Solution(module, np.asarray(seconds), work)

    def apply(self, standin: Solution, *, key: Any) -> Any:
        points = jnp.asarray(self.equation.held_out(), self.dtype)
        return standin.module(points)

    def errors(self, value: Any) -> Mapping[str, float]:
        points = self.equation.held_out()
        found = np.asarray(value, np.float64)
        if found.shape != points.shape[:1]:
            raise InputError(
                f"the module maps points {points.shape} to {found.shape}, not to {points.shape[:1]}"
            )
        truth = np.asarray(self.equation.truth(points), np.float64)
        gap = found - truth
        return {
            "relative L2 error": float(np.linalg.norm(gap) / np.linalg.norm(truth)),
            "relative maximum error": float(np.max(np.abs(gap)) / np.max(np.abs(truth))),
        }

    def work(self, standin: Solution) -> Mapping[str, float]:
        return standin.work

    def seconds(self, use: Callable[[], Any], standin: Solution) -> Sequence[float]:
        return [float(standin.seconds)]

    def floor(self) -> float:
        """Rounding; and the references' own tolerance of 1e-12."""
        return 1e-11 if self.dtype == "float64" else 1e-6
