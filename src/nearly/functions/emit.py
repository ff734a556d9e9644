"""Emitting a `Program` as code for C, NumPy, JAX or StableHLO."""

from __future__ import annotations

import keyword

from nearly.core.errors import InputError, UnknownName
from nearly.functions.program import Builder, Program
from nearly.functions.statement import ErrorStatement

__all__ = ["FORMS", "ErrorStatement", "emit"]

RESERVED = (
    *("np", "jax", "jnp", "lax", "fixed", "opaque", "psi", "trigamma"),
    *("two_sum", "odd_sum", "fma32", "fma64"),
)
FORMS = ("c", "numpy", "jax", "stablehlo")


def emit(
    program: Program,
    form: str,
    *,
    name: str,
    header: ErrorStatement,
    derivative: str | Program | None = None,
) -> str:
    """The text of `program` in another language.

    **Arguments:**

    - `program`: in a machine format.
    - `form`: `"c"` (C99), `"numpy"`, `"jax"` (both modules that import nothing of ours) or
      `"stablehlo"` (MLIR text, for any number of elements).
    - `name`: of the function.
    - `header`: what the first lines say about the error.
    - `derivative`: for `"jax"` alone, as in `to_jax`.

    **Returns:** the source. C and NumPy agree with the program bit for bit; JAX and StableHLO up
    to the contraction of a product with a sum, which XLA decides.

    **Raises:** `InputError` for a program over the real numbers, or a name that cannot be used.
    """
    if form not in FORMS:
        raise UnknownName("form", form, FORMS)
    if program.format.is_real:
        raise InputError(
            "a program over the real numbers cannot be emitted: its bound leaves rounding out; "
            "ask for --dtype float64 (or float32, bfloat16, float16)"
        )
    if derivative is not None and form != "jax":
        raise InputError(f"only the jax form has a derivative; leave it out for {form}")
    live = _without_dead_code(program)
    if form == "c":
        from nearly.functions.emit_c import check_name, to_c

        check_name(name)
        return to_c(live, name, header)
    if not name.isidentifier() or keyword.iskeyword(name) or name in RESERVED:
        raise InputError(f"{name!r} cannot name a Python function here; use another name")
    if form == "numpy":
        from nearly.functions.emit_numpy import to_numpy

        return to_numpy(live, name, header)
    from nearly.functions import emit_jax

    if form == "jax":
        return emit_jax.to_source(live, name, header, derivative)
    return emit_jax.to_stablehlo(live, name, header)


def _without_dead_code(program: Program) -> Program:
    builder = Builder(program.dtype)
    return builder.program(builder.inline(program, builder.x))
