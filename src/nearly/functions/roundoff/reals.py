"""What instructions on real numbers do to enclosures, and how decisions are noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from nearly.functions.formats import Format, exponent
from nearly.functions.program import Constant, Program
from nearly.functions.roundoff.enclosures import (
    INF,
    ONE,
    ZERO,
    Array,
    Integers,
    Reals,
    clipped,
    exponent_of,
    half_spacing,
    indefinite,
    integer,
    is_power,
    negated,
    outwards,
    smallest_in,
    square,
    times,
    trailing,
    trailing_zeros,
    unless_zero,
    widened,
)
from nearly.functions.roundoff.integer_steps import large, real_sources, routed, shift_step

Forced = Mapping[int, tuple[Array, Array]]


@dataclass
class RealPass:
    """A pass over the instructions: its state, its decisions, and what it does with reals.

    A method named after an operation makes the register that the operation does, and notes the
    enclosures of its derivatives (`slopes`) and of its rounding (`deltas`).
    """

    program: Program
    storage: Format
    lo: Array
    hi: Array
    forced: Forced
    contracted: bool
    values: dict[str, Any] = field(default_factory=dict)
    deltas: dict[int, Array] = field(default_factory=dict)
    decisions: dict[int, list[Array]] = field(default_factory=dict)
    outcomes: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    slopes: dict[int, Any] = field(default_factory=dict)
    routes: dict[int, list[tuple[str, Any]]] = field(default_factory=dict)
    # Per register, the instruction that leaves it unknown, or -1. It matters only to results that
    # depend on it: what a select throws away may overflow or be undecided.
    blame: dict[str, Array] = field(default_factory=dict)
    index: int = field(default=-1, init=False)
    local: Array = field(init=False)
    exact: tuple[Array, Array] = field(init=False)  # the last result, before it is rounded

    def __post_init__(self) -> None:
        self.format = self.storage.computing
        self.routed = routed(self.program)
        self.sources = real_sources(self.program)

    def _constant(self, value: Constant) -> Reals | Integers:
        n = self.lo.size
        if isinstance(value, int):
            half = 1 << (self.format.bits - 1)
            value = (value + half) % (2 * half) - half
            return Integers(np.full(n, value), np.full(n, value))
        number = float(value)
        grid = np.full(n, trailing(Fraction(value)) if np.isfinite(number) else INF)
        point = np.full(n, number, self.lo.dtype)
        return Reals(point, point, grid, grid)

    # ------------------------------------------------------------------------------- decisions

    def _decide(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Restrict an integer outcome to what is forced; note where it stays open."""
        if self.index in self.forced:
            least, most = self.forced[self.index]
            low, high = np.maximum(low, least), np.minimum(high, most)
        self.local[low != high] = self.index
        self.outcomes[self.index] = (low.astype(np.int64), high.astype(np.int64))
        self._record(low)
        return low, high

    def _record(self, choice: Array) -> None:
        self.decisions.setdefault(self.index, []).append(choice.astype(np.int64))

    def _open(self, where: Array) -> None:
        """Intervals on which nothing can be said, and only smaller ones help."""
        self.local[where] = self.index
        low, high = self.outcomes.get(self.index, (np.zeros(self.lo.size, np.int64),) * 2)
        self.outcomes[self.index] = np.where(where, 0, low), np.where(where, 1 << 40, high)

    # ---------------------------------------------------------------------------------- reals

    def _rounded(
        self, lo: Array, hi: Array, grid: Array, product: bool = False, scaled: Any = False
    ) -> Reals:
        """A register from the enclosure of the exact result, not yet rounded outwards.

        `scaled`: where it is a register times a power of two, exact unless it underflows.
        """
        form = self.format
        least, digits = form.emin - form.precision + 1, form.precision
        size = np.maximum(np.abs(lo), np.abs(hi))
        # A float64 rounding of the end is below the power of two only if the end itself is.
        exact = (size < np.ldexp(1.0, clipped(grid + digits))) & (grid >= least)
        exact |= (grid == INF) | (scaled & (grid >= least))
        raw = lo, hi
        self.exact = lo, hi = outwards(lo, hi, grid)
        delta = np.where(exact, 0.0, half_spacing(form, lo, hi))
        # Rounding is monotone: computed values lie between the rounded ends.
        near = [end.astype(form.dtype).astype(end.dtype) for end in (lo, hi)]
        lo, hi = np.minimum(lo, near[0]), np.maximum(hi, near[1])
        lo, hi = self._overflowed(raw, lo, hi)
        self.deltas[self.index] = delta
        own = np.maximum(exponent_of(smallest_in(lo, hi)), form.emin) - digits + 1.0
        rounded = np.where(exact, grid, np.maximum(grid, own))
        return Reals(lo, hi, rounded, grid if product else rounded)

    def _overflowed(self, raw: tuple[Array, Array], lo: Array, hi: Array) -> tuple[Array, Array]:
        """An infinity where the result surely rounds to one, a finite number where it does not."""
        form = self.format
        largest = float(form.largest)
        # Half way to the number after the largest; without a longer format, overflow itself tells.
        longer = np.finfo(lo.dtype).nmant >= form.precision
        half = np.ldexp(lo.dtype.type(1), form.emax - form.precision)
        edge = largest + half if longer else lo.dtype.type(largest)
        sure_up, sure_down = raw[0] > edge, raw[1] < -edge
        may = (raw[1] >= edge) | (raw[0] <= -edge) if longer else np.isinf(raw).any(0)
        self._open((may & ~sure_up & ~sure_down) | np.isnan(raw).any(0))
        low = np.where(sure_up, INF, np.where(sure_down, -INF, np.maximum(lo, -largest)))
        high = np.where(sure_up, INF, np.where(sure_down, -INF, np.minimum(hi, largest)))
        return low, high

    def _summand(self, a: Reals) -> Array:
        return np.minimum(a.grid, a.product) if self.contracted else a.grid

    def _add(self, a: Reals, b: Reals) -> Reals:
        grid = np.minimum(self._summand(a), self._summand(b))
        self.slopes[self.index] = (ONE, ONE)
        lo, hi = a.lo + b.lo, a.hi + b.hi
        return self._rounded(lo, hi, unless_zero(lo, hi, grid))

    def _sub(self, a: Reals, b: Reals) -> Reals:
        grid = np.minimum(self._summand(a), self._summand(b))
        self.slopes[self.index] = (ONE, (-1.0, -1.0))
        lo, hi = a.lo - b.hi, a.hi - b.lo
        return self._rounded(lo, hi, unless_zero(lo, hi, grid))

    def _mul(self, a: Reals, b: Reals) -> Reals:
        self.slopes[self.index] = ((b.lo, b.hi), (a.lo, a.hi))
        self._open(indefinite(a, b))
        lo, hi = square(a) if a is b else times((a.lo, a.hi), (b.lo, b.hi))
        scaled = is_power(a) | is_power(b)
        return self._rounded(lo, hi, a.grid + b.grid, product=True, scaled=scaled)

    def _fma(self, a: Reals, b: Reals, c: Reals) -> Reals:
        self._open(indefinite(a, b))
        lo, hi = square(a) if a is b else times((a.lo, a.hi), (b.lo, b.hi))
        lo, hi = outwards(lo, hi, a.grid + b.grid)
        self.slopes[self.index] = ((b.lo, b.hi), (a.lo, a.hi), ONE)
        grid = np.minimum(a.grid + b.grid, c.grid)
        lo, hi = lo + c.lo, hi + c.hi
        return self._rounded(lo, hi, unless_zero(lo, hi, grid))

    def _div(self, a: Reals, b: Reals) -> Reals:
        self._open((b.lo <= 0) & (b.hi >= 0))
        inverse = np.nextafter(1 / b.hi, -INF), np.nextafter(1 / b.lo, INF)
        ends = np.stack([a.lo / b.lo, a.lo / b.hi, a.hi / b.lo, a.hi / b.hi])
        lo, hi = ends.min(0), ends.max(0)
        slope = times(negated((lo, hi)), inverse)
        self.slopes[self.index] = (inverse, widened(slope))
        scaled = is_power(b)
        grid = np.where(scaled, a.grid - exponent_of(b.lo), -INF)
        return self._rounded(lo, hi, grid, scaled=scaled)

    def _shift(self, operation: str, operands: list[str]) -> Reals:
        """A sum that is an integer step: its value is one multiple of the spacing, or undecided."""
        getattr(self, f"_{operation}")(*(self.values[o] for o in operands))  # for self.exact
        constant = next(o for o in reversed(operands) if large(self.program, o, self.format))
        step = exponent(shift_step(self.program.constants[constant], self.format))
        self.slopes[self.index] = tuple(ZERO for _ in operands)
        self.deltas[self.index] = np.zeros(self.lo.size)
        low, high = (integer(np.rint(np.ldexp(end, -step))) for end in self.exact)
        low, high = self._decide(low, high)
        # Below and above that binade the spacing is another.
        size = 2.0 ** (self.format.precision - 1)
        least = np.minimum(np.abs(low), np.abs(high))
        self._open(~((least > size) & (np.maximum(np.abs(low), np.abs(high)) < 2 * size)))
        grid = step + trailing_zeros(low)
        lo, hi = (np.ldexp(end.astype(self.lo.dtype), step) for end in (low, high))
        return Reals(lo, hi, grid, grid)

    def _sqrt(self, a: Reals) -> Reals:
        self._open(a.lo <= 0)
        lo, hi = np.sqrt(a.lo), np.sqrt(a.hi)
        self.slopes[self.index] = (widened((0.5 / hi, 0.5 / lo)),)
        return self._rounded(lo, hi, np.full(lo.shape, -INF))

    def _neg(self, a: Reals) -> Reals:
        self.slopes[self.index] = ((-1.0, -1.0),)
        return Reals(-a.hi, -a.lo, a.grid, a.product)

    def _abs(self, a: Reals) -> Reals:
        below = a.lo < 0
        low, _ = self._decide((below & (a.hi <= 0)).astype(np.int64), below.astype(np.int64))
        negative = low == 1
        sign = np.where(negative, -1.0, 1.0)
        self.slopes[self.index] = ((sign, sign),)
        lo, hi = np.where(negative, -a.hi, a.lo), np.where(negative, -a.lo, a.hi)
        return Reals(np.maximum(lo, 0), np.maximum(hi, 0), a.grid, a.grid)

    def _round(self, a: Reals) -> Reals:
        low, high = self._decide(integer(np.rint(a.lo)), integer(np.rint(a.hi)))
        self._open(~(np.maximum(np.abs(a.lo), np.abs(a.hi)) < 2.0**52))
        self.slopes[self.index] = (ZERO,)
        return self._whole(low, high)

    def _whole(self, low: Array, high: Array) -> Reals:
        grid = np.where(low == high, trailing_zeros(low), 0.0)
        return Reals(low.astype(self.lo.dtype), high.astype(self.lo.dtype), grid, grid)

    def _to_int(self, a: Reals) -> Integers:
        low, high = self._decide(integer(np.trunc(a.lo)), integer(np.trunc(a.hi)))
        limit = 2.0 ** (self.format.bits - 1)
        self._open(~(np.maximum(np.abs(a.lo), np.abs(a.hi)) < limit))
        self.slopes[self.index] = (ZERO,)
        return Integers(low, high)

    def _to_float(self, a: Integers) -> Reals:
        self.slopes[self.index] = (ONE,)
        whole = self._whole(a.lo, a.hi)
        fits = np.maximum(np.abs(a.lo), np.abs(a.hi)) <= 2**self.format.precision
        rounded = self._rounded(whole.lo, whole.hi, whole.grid)
        self.deltas[self.index] = np.where(fits, 0.0, self.deltas[self.index])
        return Reals(
            np.where(fits, whole.lo, rounded.lo),
            np.where(fits, whole.hi, rounded.hi),
            np.where(fits, whole.grid, rounded.grid),
            np.where(fits, whole.grid, rounded.grid),
        )
