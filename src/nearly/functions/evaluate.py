"""Evaluating a `Program` in NumPy, in its own format, bit for bit as the emitted C computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nearly.functions.fma import fma32, fma64
from nearly.functions.formats import FORMATS, Format
from nearly.functions.program import Constant, Program

# Elements a block: the values of all instructions together stay in the cache.
BLOCK = 1 << 13


def evaluate(program: Program, x: Any) -> np.ndarray:
    """The program's values at `x`, each rounded as its format rounds.

    **Arguments:**

    - `program`: over the real numbers it is evaluated in float64; a 16-bit format computes in
      float32 and is rounded once, at the end.
    - `x`: an array (or number) of the format; anything else is converted to it first.

    **Returns:** an array of the format, of x's shape. Infinities, NaN and subnormal numbers go
    through as IEEE 754 says, and nothing warns. The sign and payload of a NaN are unspecified, and
    so is what `bits` makes of one; so is `to_int` of what no integer can hold.

    Cost: a few ns per element and instruction, about a hundred for an fma in float64, which NumPy
    lacks and which is put together from error-free sums.
    """
    register = registers(program.format)
    arithmetic = operations(register)
    with np.errstate(all="ignore"):
        points = np.asarray(x, program.format.dtype)
        flat = points.reshape(-1)
        result = np.empty_like(flat)
        for start in range(0, flat.size, BLOCK):
            block = flat[start : start + BLOCK].astype(register.dtype)
            result[start : start + BLOCK] = program.run(
                block, arithmetic, lambda value: as_constant(value, register)
            )
    return result.reshape(points.shape)


def registers(form: Format) -> Format:
    """The format in which programs are evaluated: the registers', float64 over the reals."""
    return FORMATS["float64"] if form.is_real else form.computing


def as_constant(value: Constant | tuple[Constant, ...], register: Format) -> Any:
    """A constant (or table) of a program as NumPy holds it; integers wrap to the width."""
    if isinstance(value, tuple):
        return np.array([float(v) for v in value], register.dtype)
    if isinstance(value, int):
        half = 1 << (register.bits - 1)
        return register.integer.type((value + half) % (2 * half) - half)
    return register.dtype.type(float(value))


def operations(register: Format) -> Mapping[str, Callable[..., Any]]:
    """Operation name -> NumPy function on registers of this format."""
    real, integer = register.dtype, register.integer
    mask = integer.type(register.bits - 1)

    def look_up(table: np.ndarray, index: Any) -> Any:
        return np.take(table, index, mode="clip")

    return {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "div": np.divide,
        "fma": fma32 if register.name == "float32" else fma64,
        "sqrt": np.sqrt,
        "neg": np.negative,
        "abs": np.abs,
        "round": np.rint,
        "to_int": lambda a: a.astype(integer),
        "to_float": lambda a: a.astype(real),
        "bits": lambda a: a.view(integer),
        "from_bits": lambda a: a.view(real),
        "iadd": np.add,
        "isub": np.subtract,
        "ishl": lambda a, shift: np.left_shift(a, shift & mask),
        "ishr": lambda a, shift: np.right_shift(a, shift & mask),
        "iand": np.bitwise_and,
        "lt": np.less,
        "le": np.less_equal,
        "eq": np.equal,
        "select": np.where,
        "lookup": look_up,
    }
