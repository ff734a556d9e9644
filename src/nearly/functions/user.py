"""The user's own approximation as a `Program`: coefficients, a function, a file, a C symbol."""

from __future__ import annotations

import ctypes
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from nearly.core.errors import InputError, NearlyError
from nearly.functions.compiler import shared_object
from nearly.functions.emit_c import storage_type
from nearly.functions.formats import Format, format_named
from nearly.functions.from_jax import from_jax
from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program

# The loop a caller in Python cannot afford, around a function whose address arrives at run time.
_DRIVER = """
#include <stddef.h>
#include <stdint.h>
void drive({T} (*f)({T}), const {T} *x, {T} *y, size_t n)
{{
    for (size_t i = 0; i < n; ++i)
        y[i] = f(x[i]);
}}
"""


@dataclass(frozen=True)
class Compiled:
    """A C function `T f(T)` in a shared library, called on arrays.

    **Arguments:**

    - `library`: path of the shared library.
    - `symbol`: the function's name in it.
    - `dtype`: the format; `T` is `float`, `double`, or for the 16-bit formats `uint16_t` bits.

    What it computes is not known, so nothing can be proven from it; every input of a small format
    can be tried.
    """

    library: str
    symbol: str
    dtype: str

    @property
    def format(self) -> Format:
        return format_named(self.dtype)

    @cached_property
    def address(self) -> int:
        """Where the function is in memory; `InputError` without such a library or symbol."""
        try:
            loaded = ctypes.CDLL(str(Path(self.library).resolve()))
        except OSError as error:
            raise InputError(f"{self.library} cannot be loaded: {error}") from error
        try:
            found = loaded[self.symbol]
        except AttributeError as error:
            raise InputError(f"{self.library} has no symbol {self.symbol!r}; see nm -D") from error
        address = ctypes.cast(found, ctypes.c_void_p).value
        assert address is not None
        return address

    @cached_property
    def _drive(self) -> Any:
        drive = shared_object(_DRIVER.format(T=storage_type(self.dtype)), ("-O2",))["drive"]
        drive.restype = None
        drive.argtypes = (*(ctypes.c_void_p,) * 3, ctypes.c_size_t)
        return drive

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, (self.library, self.symbol, self.dtype)

    def __call__(self, x: Any) -> np.ndarray:
        """The values at an array of the format; needs a C compiler for the loop around it."""
        points = np.ascontiguousarray(x, self.format.dtype)
        values = np.empty_like(points)
        self._drive(self.address, points.ctypes.data, values.ctypes.data, points.size)
        return values


def as_program(given: Any, function: Function) -> Program | Compiled:
    """What a user brings, as a program for a function's format.

    **Arguments:**

    - `given`: a `Program`; the path of a program's `.json` file; `"lib.so:symbol"`; a sequence of
      coefficients, the constant first, evaluated by Horner's rule (with fma in a machine format);
      or a function of one number, made of arithmetic, `np.sqrt`, `np.abs`, `np.rint`, or of
      `jax.numpy`.
    - `function`: what it is meant to approximate; only its format matters here.

    **Returns:** a program in the function's format, or a `Compiled` for a C symbol. Numbers are
    taken as they are; where one is not in the format it is rounded, with a `UserWarning`.

    **Raises:** `InputError` saying what cannot be translated.
    """
    dtype = function.dtype
    if isinstance(given, Program):
        return _in_format(given, dtype)
    if isinstance(given, Compiled):
        return given
    if isinstance(given, (str, Path)):
        return _from_file(str(given), dtype)
    if callable(given):
        return _traced(given, dtype)
    if isinstance(given, (Sequence, np.ndarray)):
        return _horner(given, dtype)
    raise InputError(
        f"{type(given).__name__} is not an approximation: give coefficients, a function of one "
        "number, a Program, a program's .json file or lib.so:symbol"
    )


def _in_format(program: Program, dtype: str) -> Program:
    if program.dtype == dtype:
        return program
    if program.dtype != "real":
        raise InputError(
            f"the program is in {program.dtype}, the problem in {dtype}; use --dtype "
            f"{program.dtype} or program.in_format({dtype!r})"
        )
    tabled = [v for table in program.tables.values() for v in table]
    exact = [v for v in (*program.constants.values(), *tabled) if isinstance(v, Fraction)]
    _say_rounded(exact, dtype)
    return program.in_format(dtype)


def _from_file(text: str, dtype: str) -> Program | Compiled:
    path, colon, symbol = text.rpartition(":")
    if colon and path.endswith((".so", ".dylib", ".dll")):
        if dtype == "real":
            raise InputError(f"{text} is compiled code; give a --dtype to try its inputs in")
        compiled = Compiled(path, symbol, dtype)
        _ = compiled.address
        return compiled
    if not text.endswith(".json"):
        raise InputError(f"{text!r} is neither a program's .json file nor lib.so:symbol")
    try:
        return _in_format(Program.from_json(Path(text).read_text()), dtype)
    except NearlyError:
        raise
    except OSError as error:
        raise InputError(f"{text} cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{text} is not JSON: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{text} is not a program: {error}; see docs/formats.md") from error


def _horner(given: Any, dtype: str) -> Program:
    if np.ndim(given) != 1 or len(given) == 0:
        raise InputError("coefficients must be one row of numbers, the constant first")
    exact = [_exact(c) for c in given]
    _say_rounded(exact, dtype)
    b = Builder(dtype)
    value = b.constant(exact[-1])
    for coefficient in exact[-2::-1]:
        fused = dtype != "real"
        value = b.fma(value, b.x, coefficient) if fused else value * b.x + coefficient
    return b.program(value)


def _exact(coefficient: Any) -> Fraction:
    value: Any = coefficient.item() if hasattr(coefficient, "item") else coefficient
    if hasattr(value, "as_integer_ratio"):
        try:
            return Fraction(*value.as_integer_ratio())
        except (ValueError, OverflowError) as error:
            raise InputError(f"the coefficient {value} is not finite") from error
    if isinstance(value, str):
        try:
            return Fraction(value) if "x" not in value.lower() else Fraction(float.fromhex(value))
        except ValueError as error:
            raise InputError(f"the coefficient {value!r} is not a number") from error
    raise InputError(f"the coefficient {value!r} is not a real number")


def _say_rounded(exact: Sequence[Fraction], dtype: str) -> None:
    register = format_named(dtype).computing
    changed = [v for v in exact if register.round(v) != v]
    if changed:
        warnings.warn(
            f"{len(changed)} of {len(exact)} constants are no {register.name} numbers and were "
            f"rounded, {float(changed[0])!r} the first",
            stacklevel=4,
        )


def _traced(function: Callable[[Any], Any], dtype: str) -> Program:
    """Called with a node; JAX's functions refuse those, and are traced by JAX instead."""
    builder = Builder(dtype)
    try:
        result = function(builder.x)
    except NearlyError:
        raise
    except Exception as refused:
        return _by_jax(function, dtype, refused)
    if not isinstance(result, (Node, str)) and np.ndim(result) == 0:
        result = builder.constant(_exact(result))
    if not isinstance(result, Node):
        raise InputError(
            f"the function returned {type(result).__name__} for a number; it must return a number"
        )
    return builder.program(result)


def _by_jax(function: Callable[[Any], Any], dtype: str, refused: Exception) -> Program:
    try:
        return from_jax(function, dtype)
    except InputError as error:
        raise InputError(f"the function cannot become a program: {error}") from error
    except Exception as error:
        raise InputError(
            "the function cannot become a program: it runs neither on a traced NumPy number "
            f"({_first_line(refused)}) nor on a JAX one ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
