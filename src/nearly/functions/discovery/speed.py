"""From programs over the reals to the fastest code in a machine format.

The fewest operations are not the fastest code (a division takes as long as six additions), so what
a search finds is rounded into the format, timed in its emitted form, and only then compared. Times
are taken in this process, one program at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from nearly.core.errors import InputError, MissingDependency, NotWithin
from nearly.core.progress import Progress, silent
from nearly.core.run import Certificate
from nearly.functions.certify import certify
from nearly.functions.compiler import find_compiler
from nearly.functions.discovery.archive import Pools
from nearly.functions.discovery.certificate import Found, certified, programs_at
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.rounding import round_program
from nearly.functions.timing import Timing, seconds_per_element
from nearly.functions.verify import measure

NEARLY_GOOD = 4.0  # a program this many times above the tolerance may become good when rounded
SHORTLIST = 4  # programs of each cost that are rounded with care
POINTS = 2000  # on which programs of an archive are compared in the format


@dataclass(frozen=True)
class Kernel:
    """A program in a machine format.

    **Arguments:**

    - `found`: what it was rounded from.
    - `program`: in the format, its constants rounded together.
    - `error`: the largest error found, in the function's measure.
    - `timing`: seconds per element of the emitted code.
    """

    found: Found
    program: Program
    error: float
    timing: Timing


def in_format(function: Function, dtype: str) -> Function:
    """What a program for `function` stands for in a machine format: its error is in ULP."""
    return replace(function, dtype=dtype, error="ulp")


def form_here() -> str:
    """The emitted form that is timed: C where there is a compiler, else JAX."""
    try:
        find_compiler()
    except MissingDependency:
        return "jax"
    return "c"


def suited(
    function: Function,
    real: Function,
    archives: Sequence[Pools],
    most: int,
    tolerance: float,
    progress: Progress = silent,
) -> list[Found]:
    """The programs of an archive that lose least in a format, polished and proven over the reals.

    Of the many ways to write one function, few are accurate where every operation is rounded: all
    programs of a cost are tried on a sample with their constants rounded as they are.

    **Arguments:**

    - `function`: in the format, its error in ULP; `real`: the same over the reals.
    - `archives`, `most`: of a search.
    - `tolerance`: in ULP; programs far from it are left out.
    """
    points = _sample(function)
    kept: list[Found] = []
    for cost in range(1, most + 1):
        progress(cost, most, f"rounding to {function.dtype}")
        ranked: list[tuple[float, int, Program]] = []
        for i, program in enumerate(programs_at(archives, cost)):
            error = _rounded_error(program, points, function.dtype)
            if error <= NEARLY_GOOD * tolerance:
                ranked.append((error, i, program))
        proven = (certified(real, program) for _, _, program in sorted(ranked)[:SHORTLIST])
        kept += [found for found in proven if found is not None]
    return kept


class _Sample(NamedTuple):
    """Numbers of a format, and the truth there with its ULP."""

    x: np.ndarray
    high: np.ndarray
    low: np.ndarray
    unit: np.ndarray


def _sample(function: Function) -> _Sample:
    low, high = function.interval
    grid = (low + (high - low) * Fraction(k, POINTS) for k in range(1, POINTS))
    x = np.array([float(function.format.round(point)) for point in grid])
    truth, rest = function.oracle.table(x, bits=64)
    return _Sample(x, truth, rest, function.format.ulps(truth))


def _rounded_error(program: Program, points: _Sample, dtype: str) -> float:
    """The largest error in ULP on a sample, compiled with and without fused multiply-adds."""
    try:
        rounded = program.in_format(dtype)
    except InputError:  # a constant that the format cannot hold
        return math.inf
    errors = [_error_of(rounded, points), _error_of(rounded.fused(), points)]
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def _error_of(program: Program, points: _Sample) -> float:
    with np.errstate(all="ignore"):
        y = np.asarray(program(points.x), np.float64)
        return float(np.max(np.abs((y - points.high) - points.low) / points.unit))


def kernels(
    function: Function, found: Iterable[Found], form: str, progress: Progress = silent
) -> list[Kernel]:
    """Programs rounded into a format, measured and timed, fastest first.

    **Arguments:**

    - `function`: in the format, its error in ULP.
    - `form`: the emitted form whose seconds count.

    Programs whose constants the format cannot hold are left out. Costs one to two seconds each.
    """
    listed, made = list(found), list[Kernel]()
    for i, each in enumerate(listed):
        progress(i, len(listed), "timing")
        try:
            program = round_program(function, each.program.fused())
        except InputError:
            continue
        error = measure(function, program).error
        made.append(Kernel(each, program, error, seconds_per_element(program, form)))
    return sorted(made, key=lambda kernel: kernel.timing.median)


def fastest_within(
    function: Function,
    found: Sequence[Found],
    tolerance: float,
    form: str,
    progress: Progress = silent,
) -> tuple[Kernel, Certificate]:
    """The fastest code within a tolerance, certified on all of its inputs.

    **Arguments:**

    - `function`: in a machine format, its error in ULP.
    - `found`: programs over the reals, proven.
    - `tolerance`: in ULP.

    **Returns:** the kernel, and the certificate that no input is off by more. **Raises:**
    `NotWithin`, which names the most accurate kernel there is. Costs two seconds a program whose
    bound over the reals is good enough, and up to a minute for a certificate in float32.
    """
    enough = NEARLY_GOOD * tolerance * 2.0 ** -(function.format.precision - 1)
    made = kernels(function, [f for f in found if f.bound <= enough], form, progress)
    for kernel in (k for k in made if k.error <= tolerance):
        certificate = certify(function, kernel.program, form, tolerance, progress)
        if certificate.error <= tolerance:
            return kernel, certificate
    if not made:
        least = min((f.bound for f in found), default=float("inf"))
        raise NotWithin(
            f"no program found is within {tolerance:g} ulp of {function}: the best has a relative "
            f"error of {least:.3g} before rounding; allow more --ops or --minutes"
        )
    best = min(made, key=lambda kernel: kernel.error)
    raise NotWithin(
        f"no program found is within {tolerance:g} ulp of {function}: the best reaches "
        f"{best.error:.4g} ulp with {best.program.cost.ops} operations; allow more --ops",
        best,
    )
