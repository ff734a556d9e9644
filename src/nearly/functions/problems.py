"""The room's problem: approximate a scalar function on a domain, in a format, in an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from nearly.core import catalogue
from nearly.core.errors import InputError, MissingDependency, NotProven
from nearly.core.problem import Host, Problem
from nearly.core.run import Certificate
from nearly.functions.function import Function
from nearly.functions.program import Program

ERROR_NAMES = {"relative": "relative error", "absolute": "absolute error", "ulp": "ulp"}


class Approximation(Problem):
    """Approximate a scalar function by a `Program`.

    **Arguments:**

    - `function`: a known name, an expression in `x`, or `file.py:attribute` of a callable.
    - `domain`: its two ends, as expressions; by default the function's standard reduced domain
      over the reals, and every number of the format in a machine format.
    - `dtype`: `real`, `float64`, `float32`, `bfloat16` or `float16`.
    - `error`: `relative`, `absolute` or `ulp`; by default relative over the reals, ulp otherwise.
    - `norm`: `sup` or `l2`.
    - `to`: the emitted form whose seconds are measured in a machine format: `c`, `numpy`, `jax`
      or `stablehlo`. Programs over the reals have no seconds.

    The stand-in is a `Program`; work is counted in operations that depend on x.
    """

    function: str
    domain: tuple[str, str] | None = None
    dtype: str = "real"
    error: str = ""
    norm: str = "sup"
    to: str = "jax"
    standard: tuple[str, str] = ("0", "1")

    work_name: ClassVar[str] = "ops"
    protocol: ClassVar[str] = "functions"

    def __check_init__(self) -> None:
        if self.to not in ("c", "numpy", "jax", "stablehlo"):
            raise InputError(f"--to {self.to!r} must be c, numpy, jax or stablehlo")
        self.target  # noqa: B018  (a malformed function is refused here, not in the sweep)

    @property
    def target(self) -> Function:
        """What builders are asked for, on the whole domain."""
        real = self.dtype == "real"
        domain = self.domain or (self.standard if real else ("-inf", "inf"))
        error = self.error or ("relative" if real else "ulp")
        return Function(self.function, tuple(domain), self.dtype, error, self.norm)

    @property
    def name(self) -> str:
        return self.function

    @property
    def error_name(self) -> str:
        return ERROR_NAMES[self.target.error]

    def unit(self) -> str:
        return "ops" if self.dtype == "real" else "seconds"
