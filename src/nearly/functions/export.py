"""`--to`: the picked program as source text, with what is known of its error in its header."""

from __future__ import annotations

from nearly.core.errors import InputError
from nearly.core.run import Run
from nearly.functions.emit import emit
from nearly.functions.problems import Approximation
from nearly.functions.program import Program
from nearly.functions.statement import ErrorStatement


def export(problem: Approximation, run: Run, *, form: str, name: str, command: str) -> str:
    """The source of a run's program.

    **Arguments:**

    - `form`: `c`, `numpy`, `jax` or `stablehlo`.
    - `name`: of the emitted function.
    - `command`: the command line that asked for it, quoted in the header.

    Raises `InputError` for what has no source (a library's symbol) or no format (the reals).
    """
    program = run.standin.function
    if not isinstance(program, Program):
        raise InputError(f"{run.method} is compiled code: there is no program to emit")
    return emit(program, form, name=name, header=statement(problem, run, command))


def statement(problem: Approximation, run: Run, command: str) -> ErrorStatement:
    """What the header says: the certificate if there is one, else the measurement."""
    function, certificate = problem.target, run.certificate
    unit = "ulp" if function.error == "ulp" else function.error
    error = certificate.error if certificate else run.worst
    how = certificate.text if certificate else "a dense search"
    return ErrorStatement(
        certificate.label if certificate else "MEASURED",
        function.name,
        f"every {function.dtype} from {function.domain[0]} to {function.domain[1]}",
        f"{error:.6g} {unit}",
        command,
        tuple(certificate.details.get("flags", ())) if certificate else (),
        (f"known by: {how}", f"method:  {run.method} at {run.dial}"),
    )
