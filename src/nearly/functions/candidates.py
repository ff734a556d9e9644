"""The emitted forms of a program as functions of NumPy arrays, one for each way to compile them."""

from __future__ import annotations

import ctypes
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, no_type_check

import numba
import numpy as np

from nearly.core.errors import InputError, UnknownName
from nearly.functions.compiler import array_function, shared_object
from nearly.functions.emit import ErrorStatement, emit
from nearly.functions.formats import Format
from nearly.functions.program import Program

Values = Callable[[np.ndarray], np.ndarray]

# What a user may plausibly compile with: no contraction is possible under the last.
FLAGS: Mapping[str, tuple[str, ...]] = {
    "-O2": ("-O2",),
    "-O3 -march=native -ffp-contract=fast": ("-O3", "-march=native", "-ffp-contract=fast"),
    "-O2 -mno-fma": ("-O2", "-mno-fma"),
}
# Without its optimizer LLVM contracts nothing: each operation is rounded on its own.
UNFUSED = {"xla_backend_optimization_level": 0}


def candidates(program: Program, form: str, flags: Sequence[str] | None) -> dict[str, Values]:
    """The program in one of its forms, under each flag set or mode; see `exhaustive`."""
    makers = {"c": _compiled, "numpy": _interpreted, "jax": _traced}
    if form not in makers:
        raise UnknownName("form", form, makers)
    return makers[form](program, flags)


def _compiled(program: Program, flags: Sequence[str] | None) -> dict[str, Values]:
    header = ErrorStatement("MEASURED", "candidate", "every input", "being tried", "exhaustive")
    source = emit(program, "c", name="candidate", header=header)
    chosen = list(FLAGS) if flags is None else flags
    return {
        text: array_function(
            shared_object(source, tuple(shlex.split(text))), "candidate_array", program.format
        )
        for text in chosen
    }


def _interpreted(program: Program, flags: Sequence[str] | None) -> dict[str, Values]:
    if flags is not None:
        raise InputError("the numpy form has no flags: leave them out")
    return {"numpy": program}


def _traced(program: Program, flags: Sequence[str] | None) -> dict[str, Values]:
    import jax

    from nearly.functions.emit_jax import to_jax

    eager = to_jax(program)
    modes: dict[str, Callable[[Any], Any]] = {
        "jit": jax.jit(eager),
        "unfused": jax.jit(eager, compiler_options=UNFUSED),
        "eager": eager,
    }
    chosen = ("jit", "unfused") if flags is None else flags
    for mode in chosen:
        if mode not in modes:
            raise UnknownName("mode of the jax form", mode, modes)
    return {mode: _to_numpy(modes[mode]) for mode in chosen}


def _to_numpy(function: Callable[[Any], Any]) -> Values:
    return lambda x: np.asarray(function(x))


def scalar_function(entry: Any, format: Format) -> Values:
    """A C function of one number as a function of arrays: a loop over its address."""
    address = ctypes.cast(entry, ctypes.c_void_p).value or 0
    if format.bits == 16:
        kind, storage = ctypes.c_uint16, np.dtype(np.uint16)
    else:
        kind, storage = ctypes.c_float, np.dtype(np.float32)
    call = ctypes.CFUNCTYPE(kind, kind)(address)

    @numba.njit(nogil=True)
    @no_type_check
    def loop(x, y):
        for i in range(x.size):
            y[i] = call(x[i])

    def values(x: np.ndarray) -> np.ndarray:
        y = np.empty(x.size, storage)
        loop(np.ascontiguousarray(x).view(storage), y)
        return y.view(format.dtype)

    return values
