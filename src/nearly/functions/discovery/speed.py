"""From programs over the reals to the fastest code in a machine format.

The fewest operations are not the fastest code (a division takes as long as six additions), so what
a search finds is rounded into the format, timed in its emitted form, and only then compared. Times
are taken in this process, one program at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from nearly.core.errors import InputError, MissingDependency, NotWithin
from nearly.core.progress import Progress, silent
from nearly.core.run import Certificate
from nearly.functions.certify import certify
from nearly.functions.compiler import find_compiler
from nearly.functions.discovery.certificate import Found
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.rounding import round_program
from nearly.functions.timing import Timing, seconds_per_element
from nearly.functions.verify import measure

NEARLY_GOOD = 4.0  # a program this many times above the tolerance may become good when rounded


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
            program = round_program(function, each.program)
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
