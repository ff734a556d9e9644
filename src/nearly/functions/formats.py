"""Number formats: what a register holds, what memory holds, and how far apart neighbours are."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from nearly.core.errors import InputError, UnknownName


@dataclass(frozen=True)
class Format:
    """A binary floating-point format, or the real numbers (`precision == 0`).

    **Arguments:**

    - `name`: the name users type.
    - `precision`: bits of the significand, the hidden one included.
    - `emin`, `emax`: exponents of the smallest normal number and of the largest binade.
    - `register`: the name of the format in which a `Program` computes. A 16-bit format computes
      in float32 and is rounded once, at the end: that is what hardware and XLA do, and the only
      semantics all emitted forms can share.
    """

    name: str
    precision: int
    emin: int
    emax: int
    register: str

    @property
    def is_real(self) -> bool:
        return self.precision == 0

    @property
    def bits(self) -> int:
        """Width of the storage in bits."""
        return {"real": 0, "float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}[self.name]

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the storage (bfloat16 through ml_dtypes)."""
        if self.name == "bfloat16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype("float64" if self.is_real else self.name)

    @property
    def integer(self) -> np.dtype[Any]:
        """The signed integer type as wide as the storage."""
        return np.dtype(f"int{self.bits}")

    @property
    def computing(self) -> Format:
        """The format of the registers."""
        return FORMATS[self.register]

    @property
    def largest(self) -> Fraction:
        """The largest finite number."""
        return (2 - Fraction(1, 2 ** (self.precision - 1))) * Fraction(2) ** self.emax

    def round(self, value: Fraction) -> Fraction:
        """The nearest number of this format, ties to even; exact, subnormals included.

        A value past the largest finite number raises `InputError`: constants must be finite.
        """
        if self.is_real or value == 0:
            return value
        step = self.spacing(value)
        rounded = round(value / step) * step  # Python rounds Fractions half to even
        if abs(rounded) > self.largest:
            raise InputError(
                f"the constant {float(value):.6g} overflows {self.name}; scale the program"
            )
        return rounded

    def spacing(self, value: Fraction) -> Fraction:
        """The distance between neighbours of this format at `value` (subnormal spacing at 0)."""
        return Fraction(2) ** (max(exponent(value), self.emin) - self.precision + 1)

    def ulps(self, truth: Any) -> np.ndarray:
        """The spacing at each true value (float64 array), as float64: one ULP there."""
        _, power = np.frexp(np.asarray(truth, np.float64))
        power = np.clip(power - 1, self.emin, self.emax)
        return np.asarray(np.ldexp(1.0, power - self.precision + 1))


def exponent(value: Fraction) -> int:
    """floor(log2|value|), exactly; very negative for 0, so that `max` with emin wins."""
    if value == 0:
        return -(10**6)
    value = abs(value)
    guess = value.numerator.bit_length() - value.denominator.bit_length()
    return guess if Fraction(2) ** guess <= value else guess - 1


FORMATS = {
    f.name: f
    for f in (
        Format("real", 0, 0, 0, "real"),
        Format("float64", 53, -1022, 1023, "float64"),
        Format("float32", 24, -126, 127, "float32"),
        Format("bfloat16", 8, -126, 127, "float32"),
        Format("float16", 11, -14, 15, "float32"),
    )
}


def format_named(name: str) -> Format:
    """The format called `name`; raises `UnknownName` with the nearest known name."""
    if name not in FORMATS:
        raise UnknownName("format", name, FORMATS)
    return FORMATS[name]
