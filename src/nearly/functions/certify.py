"""The strongest statement that can be made about a picked program: proven, or every input tried."""

from __future__ import annotations

from collections.abc import Callable

from nearly.core.errors import MissingDependency, NotProven
from nearly.core.progress import Progress
from nearly.core.run import Certificate
from nearly.functions.exhaustive import Exhaustive, check, exhaustive
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.proof import prove
from nearly.functions.user import Compiled
from nearly.functions.verify import measure


def certify(
    function: Function,
    standin: Program | Compiled,
    form: str,
    tolerance: float,
    progress: Progress,
) -> Certificate:
    """What can be stated about a stand-in's error on all of a function's domain.

    **Arguments:**

    - `form`: the emitted form that is meant: what is exhaustively checked is its code.
    - `tolerance`: in the function's error; decides what counts as a failure.
    - `progress`: told how many inputs were tried.

    Trying ends soon after the first failure: the error is then that of the inputs tried, and
    above the tolerance.

    **Returns:** PROVEN where every input of a small format was tried or ball arithmetic bounds
    the error of the program as it is evaluated; MEASURED (a dense search) otherwise. Cost: under a
    minute for all of float32 on two cores; below a second for a proof on a reduced domain.
    """
    if _enumerable(function):
        try:
            return _tried(function, standin, form, tolerance, progress)
        except NotProven as reason:  # no fast truth: the function oscillates too fast for a table
            return _searched(function, standin, str(reason))
    if isinstance(standin, Compiled):
        return _searched(function, standin, "the code of a library cannot be read")
    try:
        proof = prove(function, standin)
    except NotProven as reason:
        return _searched(function, standin, str(reason))
    return Certificate(
        "PROVEN",
        proof.total,
        f"by ball arithmetic on {proof.pieces} pieces",
        {"approximation": proof.approximation, "rounding": proof.rounding},
    )


def _enumerable(function: Function) -> bool:
    return not function.format.is_real and function.format.bits <= 32 and function.error == "ulp"


def _tried(
    function: Function,
    standin: Program | Compiled,
    form: str,
    tolerance: float,
    progress: Progress,
) -> Certificate:
    def tell(done: int, total: int) -> None:
        progress(done, total, "inputs tried")

    if isinstance(standin, Compiled):
        name = f"{standin.library}:{standin.symbol}"
        results = check(function, {name: standin}, tolerance=tolerance, progress=tell, patience=0)
    else:
        results = _compiled_or_interpreted(function, standin, form, tolerance, tell)
    worst = max(results, key=lambda r: r.worst_ulp)
    complete = all(r.complete for r in results)
    tried = (
        f"every one of {worst.count:,} inputs tried"
        if complete
        else f"given up after {worst.count:,} of {worst.total:,} inputs"
    )
    return Certificate(
        "PROVEN" if complete else "MEASURED",
        worst.worst_ulp,
        f"{tried}{_builds(results)}; the worst is x = {worst.worst_input!r}",
        {
            "inputs": worst.count,
            "worst_input": worst.worst_input,
            "flags": [r.flags for r in results],
            "failures": sum(r.failures for r in results),
        },
    )


def _builds(results: tuple[Exhaustive, ...]) -> str:
    return f", in each of {len(results)} builds" if len(results) > 1 else ""


def _compiled_or_interpreted(
    function: Function,
    program: Program,
    form: str,
    tolerance: float,
    tell: Callable[[int, int], None],
) -> tuple[Exhaustive, ...]:
    """The emitted code itself; without a C compiler its bit-for-bit twin in NumPy."""
    form = "jax" if form == "stablehlo" else form
    try:
        return exhaustive(function, program, form, tolerance=tolerance, progress=tell, patience=0)
    except MissingDependency:
        return exhaustive(
            function, program, "numpy", tolerance=tolerance, progress=tell, patience=0
        )


def _searched(function: Function, standin: Program | Compiled, reason: str) -> Certificate:
    found = measure(function, standin)
    return Certificate(
        "MEASURED",
        found.error,
        f"the worst of {found.points:,} points, at x = {found.at!r}; not proven: {reason}",
        {"points": found.points, "worst_input": found.at},
    )
