"""What there is to search: errors as a function of the constants, and the numbers these may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from flint import arb, ctx

from nearly.functions.formats import Format
from nearly.functions.lattice.grid import BITS, NORMS, Grid

Values = tuple[Fraction, ...]


def holds(form: Format, value: Fraction) -> bool:
    return form.is_real or (abs(value) <= form.largest and form.round(value) == value)


@dataclass(frozen=True)
class Family:
    """What there is to search: errors as a function of the constants.

    `errors(values)` is the weighted error at each point of the grid; `slopes(values, steps)` its
    change for a step of each constant that may move; `free` are the indices of those.
    """

    errors: Callable[[Values], list[arb]]
    slopes: Callable[[Values, Values], list[list[arb]]]
    formats: tuple[Format, ...]
    free: tuple[int, ...]
    grid: Grid
    norm: str

    def floats(self, values: Values) -> np.ndarray:
        with ctx.workprec(BITS):
            return np.array([float(e) for e in self.errors(values)])

    def norms(self, errors: np.ndarray) -> np.ndarray:
        return NORMS[self.norm](np.atleast_2d(errors), self.grid)

    def spacings(self, values: Values, at_zero: Values) -> Values:
        """The spacing of each free constant's format there; at 0 that tells nothing."""
        pairs = zip(self.free, at_zero, strict=True)
        return tuple(self.formats[j].spacing(values[j]) if values[j] else s for j, s in pairs)

    def holds(self, values: Values) -> bool:
        return all(holds(self.formats[j], values[j]) for j in self.free)
