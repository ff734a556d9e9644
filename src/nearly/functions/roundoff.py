"""Proven bounds on what rounding does to a program, on many small intervals at once.

On an interval on which every integer, comparison and exponent of the program is decided, the
program is a composition of smooth real operations, each followed by a rounding. With G_i the value
that results when the first i instructions round and the others do not, the error is the telescoping
sum of G_i - G_(i-1), and by the mean value theorem each term is the rounding of instruction i times
a derivative of the result, taken somewhere in an enclosure of all values that can occur. So one
interval pass forwards and one backwards (automatic differentiation) give a rigorous bound with no
second-order term left out, and correlations (y*y, x + d/x) are not lost as they are in a running
error bound.

An operation is exact, and then adds nothing, if its result fits the format on the grid that its
operands are multiples of: that one rule covers powers of two, Sterbenz' subtraction and
Cody-Waite's products. Intervals are arrays of a longer format than the program's, rounded outwards
by one of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from nearly.functions.formats import Format, exponent
from nearly.functions.program import Builder, Constant, Instruction, Node, Program

Array = np.ndarray
_INF = np.inf


@dataclass
class Reals:
    """Enclosures [lo, hi] of a register, of which every computed value is a multiple of 2^grid.

    `product` is the grid if the product that made this register is contracted into a sum.
    """

    lo: Array
    hi: Array
    grid: Array
    product: Array


@dataclass
class Integers:
    """Enclosures of an integer register.

    `source` is the place in `_Forward.sources` of the real register whose bits it holds, plus a
    constant; -1 where there is none.
    """

    lo: Array
    hi: Array
    source: Array | None = None


@dataclass
class Truths:
    """Which outcomes of a comparison are possible."""

    may: Array
    may_not: Array


@dataclass
class Analysis:
    """What is known of a program on intervals of its variable.

    **Arguments:**

    - `rounding`: bound on |computed - exact arithmetic|, before rounding to a 16-bit storage.
    - `lo`, `hi`: enclosure of all values the result can take.
    - `undecided`: the instruction whose outcome differs within the interval, or -1.
    - `outcomes`: how many outcomes it has there, at most.
    - `choices`: (intervals, decisions): the outcome of every decision; equal rows are one program.
    """

    rounding: Array
    lo: Array
    hi: Array
    undecided: Array
    low_outcome: Array
    high_outcome: Array
    choices: Array


Forced = Mapping[int, tuple[Array, Array]]


def analyse(
    program: Program, storage: Format, lo: Array, hi: Array, forced: Forced, contracted: bool
) -> Analysis:
    """Bound the rounding error of a machine program on the intervals [lo, hi] of its numbers.

    **Arguments:**

    - `storage`: the format of the variable.
    - `forced`: instruction -> (lowest, highest) outcome allowed on each interval.
    - `contracted`: whether a product may be contracted into the sum that it feeds, or not: the
      bound then holds for both.
    """
    if storage.computing.bits == 64:
        # Ends rounded outwards in float64 would be as far off as the roundings to be bounded; where
        # long double is no longer than double, the bound is only a little larger.
        lo, hi = lo.astype(np.longdouble), hi.astype(np.longdouble)
    with np.errstate(all="ignore"):
        forward = _Forward(program, storage, lo, hi, forced, contracted)
        forward.run()
        return forward.result()


@dataclass
class _Forward:
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
    sources: list[str] = field(default_factory=list)
    # Per register, the instruction that leaves it unknown, or -1. It matters only to results that
    # depend on it: what a select throws away may overflow or be undecided.
    blame: dict[str, Array] = field(default_factory=dict)

    def run(self) -> None:
        self.format = self.storage.computing
        self.routed = routed(self.program)
        self.sources = real_sources(self.program)
        n = self.lo.size
        smallest = _smallest(self.lo, self.hi)
        grid = np.maximum(_exponent(smallest), self.storage.emin) - self.storage.precision + 1.0
        self.values["x"] = Reals(self.lo, self.hi, grid, grid)
        for name, value in self.program.constants.items():
            self.values[name] = self._constant(value)
        for i, (operation, *operands) in enumerate(self.program.instructions):
            self.index, self.local = i, np.full(n, -1)
            if operation == "lookup":
                box = self._lookup(self.program.tables[operands[0]], self.values[operands[1]])
            elif is_shift(self.program, (operation, *operands), self.format):
                box = self._shift(operation, operands)
            else:
                box = getattr(self, f"_{operation}")(*(self.values[o] for o in operands))
            self.values[f"t{i}"] = box
            self.blame[f"t{i}"] = self._blamed(operation, operands)

    def _blamed(self, operation: str, operands: list[str]) -> Array:
        known = [self.blame.get(o, np.full(self.lo.size, -1)) for o in operands]
        if operation == "select":
            condition, a, b = known
            known = [condition, np.where(self.values[operands[0]].may, a, b)]
        result = self.local
        for other in reversed(known):
            result = np.where(other >= 0, other, result)
        return result

    def _constant(self, value: Constant) -> Reals | Integers:
        n = self.lo.size
        if isinstance(value, int):
            half = 1 << (self.format.bits - 1)
            value = (value + half) % (2 * half) - half
            return Integers(np.full(n, value), np.full(n, value))
        number = float(value)
        grid = np.full(n, _trailing(Fraction(value)) if np.isfinite(number) else _INF)
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
        exact = (size < np.ldexp(1.0, _clipped(grid + digits))) & (grid >= least)
        exact |= (grid == _INF) | (scaled & (grid >= least))
        raw = lo, hi
        self.exact = lo, hi = _outwards(lo, hi, grid)
        delta = np.where(exact, 0.0, half_spacing(form, lo, hi))
        # Rounding is monotone: computed values lie between the rounded ends.
        near = [end.astype(form.dtype).astype(end.dtype) for end in (lo, hi)]
        lo, hi = np.minimum(lo, near[0]), np.maximum(hi, near[1])
        lo, hi = self._overflowed(raw, lo, hi)
        self.deltas[self.index] = delta
        own = np.maximum(_exponent(_smallest(lo, hi)), form.emin) - digits + 1.0
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
        low = np.where(sure_up, _INF, np.where(sure_down, -_INF, np.maximum(lo, -largest)))
        high = np.where(sure_up, _INF, np.where(sure_down, -_INF, np.minimum(hi, largest)))
        return low, high

    def _summand(self, a: Reals) -> Array:
        return np.minimum(a.grid, a.product) if self.contracted else a.grid

    def _add(self, a: Reals, b: Reals) -> Reals:
        grid = np.minimum(self._summand(a), self._summand(b))
        self.slopes[self.index] = (_ONE, _ONE)
        lo, hi = a.lo + b.lo, a.hi + b.hi
        return self._rounded(lo, hi, _unless_zero(lo, hi, grid))

    def _sub(self, a: Reals, b: Reals) -> Reals:
        grid = np.minimum(self._summand(a), self._summand(b))
        self.slopes[self.index] = (_ONE, (-1.0, -1.0))
        lo, hi = a.lo - b.hi, a.hi - b.lo
        return self._rounded(lo, hi, _unless_zero(lo, hi, grid))

    def _mul(self, a: Reals, b: Reals) -> Reals:
        self.slopes[self.index] = ((b.lo, b.hi), (a.lo, a.hi))
        self._open(_indefinite(a, b))
        lo, hi = _square(a) if a is b else _times((a.lo, a.hi), (b.lo, b.hi))
        scaled = _is_power(a) | _is_power(b)
        return self._rounded(lo, hi, a.grid + b.grid, product=True, scaled=scaled)

    def _fma(self, a: Reals, b: Reals, c: Reals) -> Reals:
        self._open(_indefinite(a, b))
        lo, hi = _square(a) if a is b else _times((a.lo, a.hi), (b.lo, b.hi))
        lo, hi = _outwards(lo, hi, a.grid + b.grid)
        self.slopes[self.index] = ((b.lo, b.hi), (a.lo, a.hi), _ONE)
        grid = np.minimum(a.grid + b.grid, c.grid)
        lo, hi = lo + c.lo, hi + c.hi
        return self._rounded(lo, hi, _unless_zero(lo, hi, grid))

    def _div(self, a: Reals, b: Reals) -> Reals:
        self._open((b.lo <= 0) & (b.hi >= 0))
        inverse = np.nextafter(1 / b.hi, -_INF), np.nextafter(1 / b.lo, _INF)
        ends = np.stack([a.lo / b.lo, a.lo / b.hi, a.hi / b.lo, a.hi / b.hi])
        lo, hi = ends.min(0), ends.max(0)
        slope = _times(_negated((lo, hi)), inverse)
        self.slopes[self.index] = (inverse, _widened(slope))
        scaled = _is_power(b)
        grid = np.where(scaled, a.grid - _exponent(b.lo), -_INF)
        return self._rounded(lo, hi, grid, scaled=scaled)

    def _shift(self, operation: str, operands: list[str]) -> Reals:
        """A sum that is an integer step: its value is one multiple of the spacing, or undecided."""
        getattr(self, f"_{operation}")(*(self.values[o] for o in operands))  # for self.exact
        constant = next(o for o in reversed(operands) if large(self.program, o, self.format))
        step = exponent(shift_step(self.program.constants[constant], self.format))
        self.slopes[self.index] = tuple(_ZERO for _ in operands)
        self.deltas[self.index] = np.zeros(self.lo.size)
        low, high = (_integer(np.rint(np.ldexp(end, -step))) for end in self.exact)
        low, high = self._decide(low, high)
        # Below and above that binade the spacing is another.
        size = 2.0 ** (self.format.precision - 1)
        least = np.minimum(np.abs(low), np.abs(high))
        self._open(~((least > size) & (np.maximum(np.abs(low), np.abs(high)) < 2 * size)))
        grid = step + _trailing_zeros(low)
        lo, hi = (np.ldexp(end.astype(self.lo.dtype), step) for end in (low, high))
        return Reals(lo, hi, grid, grid)

    def _sqrt(self, a: Reals) -> Reals:
        self._open(a.lo <= 0)
        lo, hi = np.sqrt(a.lo), np.sqrt(a.hi)
        self.slopes[self.index] = (_widened((0.5 / hi, 0.5 / lo)),)
        return self._rounded(lo, hi, np.full(lo.shape, -_INF))

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
        low, high = self._decide(_integer(np.rint(a.lo)), _integer(np.rint(a.hi)))
        self._open(~(np.maximum(np.abs(a.lo), np.abs(a.hi)) < 2.0**52))
        self.slopes[self.index] = (_ZERO,)
        return self._whole(low, high)

    def _whole(self, low: Array, high: Array) -> Reals:
        grid = np.where(low == high, _trailing_zeros(low), 0.0)
        return Reals(low.astype(self.lo.dtype), high.astype(self.lo.dtype), grid, grid)

    def _to_int(self, a: Reals) -> Integers:
        low, high = self._decide(_integer(np.trunc(a.lo)), _integer(np.trunc(a.hi)))
        limit = 2.0 ** (self.format.bits - 1)
        self._open(~(np.maximum(np.abs(a.lo), np.abs(a.hi)) < limit))
        self.slopes[self.index] = (_ZERO,)
        return Integers(low, high)

    def _to_float(self, a: Integers) -> Reals:
        self.slopes[self.index] = (_ONE,)
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

    # -------------------------------------------------------------------------------- integers

    def _bits(self, a: Reals) -> Integers:
        self._open((a.lo < 0) & (a.hi >= 0))
        negative = a.hi < 0
        step, field = self._binade(a)
        small, large = _smallest(a.lo, a.hi), np.maximum(np.abs(a.lo), np.abs(a.hi))
        if field is not None:
            edge = np.where(field == 0, 2.0, 1.0) * step * 2.0 ** (self.format.precision - 1)
            small = np.maximum(small, np.where(field == 0, 0.0, edge))
            large = np.minimum(large, np.where(field == 0, edge / 2, 2 * edge) - step)
        first, last = self._pattern(small, np.floor), self._pattern(large, np.ceil)
        top = np.int64(-(2 ** (self.format.bits - 1)))
        # Of negative numbers the larger has the larger bits too: sign and magnitude.
        lo, hi = np.where(negative, top + first, first), np.where(negative, top + last, last)
        operand = self.program.instructions[self.index][1]
        return Integers(lo, hi, np.full(lo.size, self.sources.index(operand)))

    def _binade(self, a: Reals) -> tuple[Array, Array | None]:
        """Spacing and exponent field, decided only where integer arithmetic needs them."""
        if f"t{self.index}" in self.routed:
            self.slopes[self.index] = (_ZERO,)
            return np.ones(self.lo.size), None
        form = self.format
        low, high = np.sort(np.stack([self._field(a.lo), self._field(a.hi)]), axis=0)
        low, _ = self._decide(low, high)
        field = np.abs(low) - 1
        step = np.ldexp(self.lo.dtype.type(1), np.maximum(field, 1) + form.emin - form.precision)
        slope = np.where(low < 0, -1.0, 1.0) / step
        self.slopes[self.index] = ((slope, slope),)
        return step, field

    def _field(self, v: Array) -> Array:
        """1 + the exponent field, negative for negative numbers."""
        form = self.format
        exponent = np.where(v == 0, form.emin - 1.0, _exponent(np.abs(v)))
        field = np.clip(exponent - form.emin + 1, 0, form.emax - form.emin + 2) + 1
        return np.where(v < 0, -field, field).astype(np.int64)

    def _pattern(self, size: Array, to: Callable[..., Array]) -> Array:
        """The bits of a non-negative number, rounded to one of the format."""
        form, hidden = self.format, np.int64(1) << (self.format.precision - 1)
        exponent = np.clip(_exponent(size), form.emin, form.emax + 1).astype(np.int64)
        steps = to(np.ldexp(size, form.precision - 1 - exponent)).astype(np.int64)
        return steps + (exponent - form.emin) * hidden

    def _from_bits(self, a: Integers) -> Reals:
        if self.program.instructions[self.index][1] in self.routed:
            return self._moved(a)
        form = self.format
        shift = form.precision - 1
        negative = a.lo < 0
        top = np.int64(-(2 ** (form.bits - 1)))
        low, high = (np.where(negative, b - top, b) for b in (a.lo, a.hi))
        first, _ = self._decide(low >> shift, high >> shift)
        self._open((a.lo < 0) & (a.hi >= 0) | (first > form.emax - form.emin + 1))
        self._record(negative)
        step = np.ldexp(self.lo.dtype.type(1), np.maximum(first, 1) + form.emin - 1 - shift)
        hidden = np.int64(1) << shift
        offset = np.where(first == 0, 0, (1 - first) * hidden)
        small, large = (low + offset) * step, (high + offset) * step
        sign = np.where(negative, -1.0, 1.0)
        self.slopes[self.index] = ((sign * step, sign * step),)
        lo, hi = np.where(negative, -large, small), np.where(negative, -small, large)
        grid = np.maximum(first, 1) + form.emin - 1.0 - shift
        same = np.where(low == high, grid + _trailing_zeros(low + offset), grid)
        return Reals(lo, hi, same, same)

    def _moved(self, a: Integers) -> Reals:
        """A register whose exponent and sign were changed by integer steps: v times +-2^k.

        No binade need be decided for that, which a value near a power of two could not do.
        """
        form, shift = self.format, self.format.precision - 1
        top = np.int64(-(2 ** (form.bits - 1)))
        v, source = self._gathered(a)
        first = self._pattern(_smallest(v.lo, v.hi), np.floor)
        last = self._pattern(np.maximum(np.abs(v.lo), np.abs(v.hi)), np.ceil)
        negative, after = v.hi < 0, a.lo < 0
        start, stop = (end - np.where(after, top, 0) for end in (a.lo, a.hi))
        start, stop = np.minimum(start, stop), np.maximum(start, stop)
        k = (start - first) >> shift
        steady = (stop - start == last - first) & ((k << shift) == start - first)
        single = ((v.lo >= 0) | negative) & (after == (a.hi < 0))
        fields = np.stack([first >> shift, last >> shift])
        ends = np.concatenate([fields, fields + k])
        normal = (ends.min(0) >= 1) & (ends.max(0) <= form.emax - form.emin + 1)
        whole = steady & ((k == 0) | normal)
        # Any other step is linear within a binade: how results become subnormal.
        binades = [np.maximum(p >> shift, 1) for p in (first, last, start, stop)]
        decided = (binades[0] == binades[1]) & (binades[2] == binades[3])
        # A handful of values across a power of two, as of a subnormal result: try each.
        few = single & ~(whole | decided) & (stop - start < 8)
        chosen, _ = self._decide(np.where(few, start, 0), np.where(few, stop, 0))
        self._open(~(few | (single & (whole | decided))))
        linear = binades[2] - binades[0]
        k = np.where(whole, k, linear)
        one = self.lo.dtype.type(1)  # in the long format, 2^1024 is a number
        scale = np.ldexp(one, np.clip(k, -2000, 2000))
        begin, base = (_from_pattern(np.maximum(p, 0), form) for p in (start, first))
        offset = np.where(whole, 0.0, begin - scale * base)
        flips, sign = negative != after, np.where(after, -1.0, 1.0)
        source = np.where(few, -1, source)
        number = np.where(few, chosen + np.where(after, top, 0), a.lo)
        self._record(source)
        self._record(np.where(source < 0, number, k))
        self._record(flips)
        self._record((sign * offset).astype(np.float64).view(np.int64))
        factor = np.where(flips, -scale, scale)
        self.slopes[self.index] = (_ZERO,)
        self.routes[self.index] = []
        for i in np.unique(source[source >= 0]):
            mine = np.where(source == i, factor, 0.0)
            self.routes[self.index].append((self.sources[i], (mine, mine)))
        lo, hi = v.lo * factor + sign * offset, v.hi * factor + sign * offset
        grid = np.where(whole, v.grid + k, binades[2] + form.emin - 1.0 - shift)
        point = _from_pattern(number, form)
        lo, hi = (np.where(few, point, end) for end in (np.minimum(lo, hi), np.maximum(lo, hi)))
        grid = np.where(few, _grid_of(point), grid)
        return Reals(lo, hi, grid, grid)

    def _gathered(self, a: Integers) -> tuple[Reals, Array]:
        """The real registers that integers were made from; numbers where they are constants."""
        point = np.where(a.lo == a.hi, a.lo, 0)
        number = _from_pattern(point, self.format).astype(self.lo.dtype)
        none = np.full(number.shape, -1)
        v, source = Reals(number, number, _grid_of(number), _grid_of(number)), none
        origin = none if a.source is None else a.source
        for i in np.unique(origin[origin >= 0]):
            real, mine = self.values[self.sources[i]], origin == i
            fields = zip(_fields(v), _fields(real), strict=True)
            v = Reals(*(np.where(mine, new, old) for old, new in fields))
            source = np.where(mine, i, source)
        self._open((origin < 0) & (a.lo != a.hi))
        return v, source

    def _wrapped(self, low: Array, high: Array) -> Integers:
        if self.format.bits == 32:
            turns = (low + 2**31) >> 32
            low, high = low - (turns << 32), high - (turns << 32)
            self._open(high >= 2**31)
            self._record(turns)
        self._open(low > high)
        return Integers(low, high)

    def _iadd(self, a: Integers, b: Integers) -> Integers:
        self.slopes[self.index] = (_ONE, _ONE)
        sum_ = self._wrapped(a.lo + b.lo, a.hi + b.hi)
        return Integers(sum_.lo, sum_.hi, b.source if a.source is None else a.source)

    def _isub(self, a: Integers, b: Integers) -> Integers:
        self.slopes[self.index] = (_ONE, (-1.0, -1.0))
        difference = self._wrapped(a.lo - b.hi, a.hi - b.lo)
        return Integers(difference.lo, difference.hi, a.source)

    def _ishl(self, a: Integers, b: Integers) -> Integers:
        self._open(b.lo != b.hi)
        factor = np.ldexp(1.0, b.lo)
        self.slopes[self.index] = ((factor, factor), _ZERO)
        return self._wrapped(a.lo << b.lo, a.hi << b.lo)

    def _ishr(self, a: Integers, b: Integers) -> Integers:
        self._open(b.lo != b.hi)
        self.slopes[self.index] = (_ZERO, _ZERO)
        return Integers(*self._decide(a.lo >> b.lo, a.hi >> b.lo))

    def _iand(self, a: Integers, b: Integers) -> Integers:
        """A mask of low bits keeps what is above them constant; one of high bits is that constant.

        The mask is the operand that is a single number.
        """
        swap = bool(np.all(a.lo == a.hi)) and not bool(np.all(b.lo == b.hi))
        value, mask = (b, a) if swap else (a, b)
        m = mask.lo
        low_bits, high_bits = (m & (m + 1)) == 0, (~m & (~m + 1)) == 0
        simple = low_bits | high_bits
        keep = np.where(low_bits, m, ~m)  # the bits below the split
        point = value.lo == value.hi
        self._open((mask.lo != mask.hi) | (~simple & ~point))
        base, top = (np.where(simple, end & ~keep, end & m) for end in (value.lo, value.hi))
        base, _ = self._decide(base, top)
        one = np.where(low_bits, 1.0, 0.0)
        self.slopes[self.index] = (_ZERO, (one, one)) if swap else ((one, one), _ZERO)
        return Integers(
            np.where(low_bits, value.lo - base, base), np.where(low_bits, value.hi - base, base)
        )

    # --------------------------------------------------------------------------- choosing

    def _outcome(self, may: Array, may_not: Array) -> Truths:
        low, high = self._decide((~may_not).astype(np.int64), may.astype(np.int64))
        self.slopes[self.index] = (_ZERO, _ZERO)
        return Truths(high == 1, low == 0)

    def _lt(self, a: Any, b: Any) -> Truths:
        return self._outcome(a.lo < b.hi, a.hi >= b.lo)

    def _le(self, a: Any, b: Any) -> Truths:
        return self._outcome(a.lo <= b.hi, a.hi > b.lo)

    def _eq(self, a: Any, b: Any) -> Truths:
        may = (a.lo <= b.hi) & (b.lo <= a.hi)
        sure = (a.lo == a.hi) & (b.lo == b.hi) & may
        return self._outcome(may, ~sure)

    def _select(self, condition: Truths, a: Any, b: Any) -> Any:
        yes = condition.may
        one, zero = yes.astype(self.lo.dtype), (~yes).astype(self.lo.dtype)
        self.slopes[self.index] = (_ZERO, (one, one), (zero, zero))
        if isinstance(a, Integers):
            origins = [np.full(yes.size, -1) if v.source is None else v.source for v in (a, b)]
            return Integers(
                np.where(yes, a.lo, b.lo), np.where(yes, a.hi, b.hi), np.where(yes, *origins)
            )
        grid = np.where(yes, a.grid, b.grid)
        return Reals(np.where(yes, a.lo, b.lo), np.where(yes, a.hi, b.hi), grid, grid)

    def _lookup(self, table: tuple[Fraction, ...], index: Integers) -> Reals:
        low, high = self._decide(index.lo, index.hi)
        self._open((low < 0) | (high >= len(table)))
        entry = np.clip(low, 0, len(table) - 1)
        value = np.array([float(v) for v in table], self.lo.dtype)[entry]
        grid = np.array([float(_trailing(v)) for v in table])[entry]
        self.slopes[self.index] = (_ZERO, _ZERO)
        return Reals(value, value, grid, grid)

    # ------------------------------------------------------------------------------ backwards

    def result(self) -> Analysis:
        n = self.lo.size
        last = len(self.program.instructions) - 1
        result = self.values[f"t{last}"]
        finite = np.isfinite(result.lo) & np.isfinite(result.hi)
        undecided = self.blame[f"t{last}"]
        rounding = np.where(finite, self._propagated(last) * (1 + 1e-12), 0.0)
        undecided = np.where((undecided < 0) & ~np.isfinite(rounding), last, undecided)
        low, high = np.zeros(n, np.int64), np.full(n, 1 << 40)
        for i, (least, most) in self.outcomes.items():
            mine = undecided == i
            low[mine], high[mine] = least[mine], most[mine]
        return Analysis(rounding, result.lo, result.hi, undecided, low, high, self._choices(last))

    def _propagated(self, last: int) -> Array:
        """The roundings, each times the largest derivative of the result."""
        n = self.lo.size
        adjoints: dict[str, Any] = {f"t{last}": (np.ones(n), np.ones(n))}
        # A product may be contracted in one sum and rounded in another, so that its rounding need
        # not cancel between them (a*b - a*b): each use counts by itself.
        apart: dict[str, Array] = {f"t{last}": np.ones(n)}
        rounding = np.zeros(n)
        for i in range(last, -1, -1):
            adjoint, uses = adjoints.pop(f"t{i}", None), apart.pop(f"t{i}", None)
            if adjoint is None or uses is None:
                continue
            operation, *operands = self.program.instructions[i]
            if i in self.deltas:
                split = self.contracted and operation == "mul"
                size = uses if split else _magnitude(adjoint)
                none = (self.deltas[i] == 0) | (size == 0)
                rounding = rounding + np.where(none, 0.0, size * self.deltas[i])
            partial = [*zip(operands, self.slopes[i], strict=True), *self.routes.get(i, [])]
            for operand, slope in partial:
                if operand.startswith("t") and slope is not _ZERO:
                    term = _product(adjoint, slope)
                    known = adjoints.get(operand)
                    adjoints[operand] = term if known is None else _sum(known, term)
                    one = uses if operation == "neg" else _magnitude(term)
                    total = apart.get(operand, np.zeros(n)) + one
                    apart[operand] = np.where(total == 0, 0.0, np.nextafter(total, _INF))
        return rounding

    def _choices(self, last: int) -> Array:
        """The outcomes of the decisions that the result depends on; 0 for the others."""
        n = self.lo.size
        needed: dict[str, Array] = {f"t{last}": np.ones(n, bool)}
        columns: list[Array] = []
        for i in range(last, -1, -1):
            mine = needed.pop(f"t{i}", np.zeros(n, bool))
            columns += [np.where(mine, c, 0) for c in reversed(self.decisions.get(i, []))]
            operation, *operands = self.program.instructions[i]
            shares = [mine] * len(operands)
            if operation == "select":
                yes = self.values[operands[0]].may
                shares = [mine, mine & yes, mine & ~yes]
            if is_choice(self.program, self.program.instructions[i]):
                operands, shares = [], []
            elif i in self.routes:  # the integers between are not built
                operands = [name for name, _ in self.routes[i]]
                shares = [mine & (factor[0] != 0) for _, factor in self.routes[i]]
            for operand, share in zip(operands, shares, strict=True):
                if operand.startswith("t"):
                    needed[operand] = needed.get(operand, np.zeros(n, bool)) | share
        return np.stack(columns[::-1], 1) if columns else np.zeros((n, 0), np.int64)


_ONE = (1.0, 1.0)
_ZERO = (0.0, 0.0)


def _times(a: Any, b: Any) -> tuple[Array, Array]:
    products = [a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1]]
    # 0 * inf is 0 here: the infinite end is a bound, never a value.
    products = [np.where(np.isnan(p), 0.0, p) for p in products]
    return np.minimum.reduce(products), np.maximum.reduce(products)


def _product(adjoint: Any, slope: Any) -> tuple[Array, Array]:
    """An adjoint times a slope, rounded outwards; an exact zero (thrown away by a select) stays."""
    lo, hi = _times(adjoint, slope)
    null = (lo == 0) & (hi == 0)
    return np.where(null, 0.0, np.nextafter(lo, -_INF)), np.where(null, 0.0, np.nextafter(hi, _INF))


def _magnitude(a: tuple[Array, Array]) -> Array:
    return np.maximum(np.abs(a[0]), np.abs(a[1]))


def _indefinite(a: Reals, b: Reals) -> Array:
    """Where a product of zero and infinity is possible."""
    infinite, null = (
        (np.isinf(v.lo) | np.isinf(v.hi) for v in (a, b)),
        ((v.lo <= 0) & (v.hi >= 0) for v in (b, a)),
    )
    return np.logical_or.reduce([i & z for i, z in zip(infinite, null, strict=True)])


def _is_power(a: Reals) -> Array:
    """Where a register is plus or minus one power of two."""
    return (a.lo == a.hi) & (np.abs(np.frexp(a.lo)[0]) == 0.5)


def _square(a: Reals) -> tuple[Array, Array]:
    small, large = _smallest(a.lo, a.hi), np.maximum(np.abs(a.lo), np.abs(a.hi))
    return small * small, large * large


def _negated(a: Any) -> tuple[Array, Array]:
    return -a[1], -a[0]


def _widened(a: tuple[Array, Array]) -> tuple[Array, Array]:
    return np.nextafter(a[0], -_INF), np.nextafter(a[1], _INF)


def _sum(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    lo, hi = _widened((a[0] + b[0], a[1] + b[1]))
    null = (a[0] == 0) & (a[1] == 0) & (b[0] == 0) & (b[1] == 0)
    return np.where(null, 0.0, lo), np.where(null, 0.0, hi)


def _unless_zero(lo: Array, hi: Array, grid: Array) -> Array:
    """The grid of a sum; a sum that is exactly zero is a multiple of everything."""
    return np.where((lo == 0) & (hi == 0), _INF, grid)


def _outwards(lo: Array, hi: Array, grid: Array) -> tuple[Array, Array]:
    """One step outwards, but for an exact zero."""
    zero = grid == _INF
    return (
        np.where(zero, lo, np.nextafter(lo, -_INF)),
        np.where(zero, hi, np.nextafter(hi, _INF)),
    )


def _smallest(lo: Array, hi: Array) -> Array:
    """The smallest magnitude in [lo, hi]."""
    return np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(np.abs(lo), np.abs(hi)))


def _exponent(v: Array) -> Array:
    """floor(log2 |v|); very low at 0."""
    return np.where(v == 0, -5000.0, np.frexp(v)[1] - 1.0)


def _clipped(exponent: Array) -> Array:
    return np.clip(np.nan_to_num(exponent, nan=-2000.0), -2000, 2000).astype(np.int64)


def half_spacing(form: Format, lo: Array, hi: Array) -> Array:
    """The largest rounding error of any real number in [lo, hi].

    Just past a power of two the spacing doubles, but a number that reaches only a little beyond it
    is rounded by no more than that little.
    """
    size = np.maximum(np.abs(lo), np.abs(hi))
    exponent = np.clip(_exponent(size), form.emin, form.emax).astype(np.int64)
    half = np.ldexp(0.5, exponent - form.precision + 1)
    edge = np.ldexp(1.0, exponent)
    beyond = np.nextafter(size - edge, _INF)
    straddles = (_smallest(lo, hi) < edge) & (size >= edge) & (exponent > form.emin)
    return np.where(straddles, np.maximum(half / 2, np.minimum(half, beyond)), half)


def _integer(v: Array) -> Array:
    return np.clip(np.nan_to_num(v), -(2.0**62), 2.0**62).astype(np.int64)


def _trailing(value: Fraction) -> float:
    """The exponent of the lowest set bit of a dyadic number."""
    if value == 0:
        return _INF
    n, d = value.numerator, value.denominator
    return float((n & -n).bit_length() - 1 - (d.bit_length() - 1))


def _trailing_zeros(n: Array) -> Array:
    lowest = n & -n
    return np.where(n == 0, _INF, np.frexp(np.abs(lowest).astype(float))[1] - 1.0)


# ----------------------------------------------------------------- sums that are integer steps


def large(program: Program, name: str, register: Format) -> bool:
    """Whether an operand is 1.5 * 2^k: what is added to it is rounded to a fixed grid."""
    value = program.constants.get(name)
    if not isinstance(value, Fraction) or value == 0:
        return False
    return abs(value) == 3 * Fraction(2) ** int(_trailing(value)) and (
        shift_step(value, register) >= Fraction(1, 256)
    )


def shift_step(value: Constant, register: Format) -> Fraction:
    """The spacing of the registers at a number."""
    return register.spacing(Fraction(value))


def is_shift(program: Program, instruction: Instruction, register: Format) -> bool:
    """Whether a sum is an integer step: a constant 1.5 * 2^k plus something small."""
    operation, *operands = instruction
    summands = {"add": operands, "fma": operands[2:]}.get(operation, [])
    return any(large(program, o, register) for o in summands)


def real_sources(program: Program) -> list[str]:
    """The real registers whose bits are taken."""
    return [i[1] for i in program.instructions if i[0] == "bits"]


@lru_cache(maxsize=64)
def routed(program: Program) -> frozenset[str]:
    """Integer registers that hold a real register's bits, plus a constant, and nothing else.

    Only those of which nothing is asked than to become a real again, or parts that are constant on
    an interval: sign and exponent.
    """
    held: list[str] = []
    users: dict[str, list[Instruction]] = {}
    for i, (operation, *operands) in enumerate(program.instructions):
        for o in operands:
            users.setdefault(o, []).append((operation, f"t{i}", *operands))
        origins = [o in held for o in operands]
        integers = operation == "select" and program.kinds[f"t{i}"] == "i"
        added = operation == "iadd" and sum(origins) == 1
        one = added or (operation == "isub" and origins == [True, False])
        if operation == "bits" or one or (integers and any(origins)):
            held.append(f"t{i}")
    good = set(held)
    while True:  # nothing may be lost on the way, from either end
        operands = {n: program.instructions[int(n[1:])][1:] for n in good}
        bad = {
            n
            for n in good
            if any(o in held and o not in good for o in operands[n])
            or not all(_harmless(program, use, good) for use in users.get(n, []))
        }
        if not bad:
            return frozenset(good)
        good -= bad


def is_choice(program: Program, instruction: Instruction) -> bool:
    """Whether an instruction's value, once decided, is a constant whatever its operands are."""
    operation, *operands = instruction
    if operation == "iand":
        return _splits_high(program, operands)
    return operation in ("round", "to_int", "ishr", "lt", "le", "eq", "lookup")


def _splits_high(program: Program, operands: list[str]) -> bool:
    """Whether a mask keeps the high bits only."""
    mask = next((program.constants[o] for o in operands if o in program.constants), None)
    if not isinstance(mask, int):
        return False
    # Masks are written with or without the sign: the top bit of the register decides.
    width = program.format.computing.bits
    signed = (mask + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))
    return signed < 0 and (~signed & (~signed + 1)) == 0


def _harmless(program: Program, use: Instruction, good: set[str]) -> bool:
    operation, result, *operands = use
    if operation in ("iadd", "isub", "select"):
        return result in good
    if operation == "iand":
        return _splits_high(program, operands)
    return operation in ("from_bits", "ishr", "lt", "le", "eq")


def _from_pattern(bits: Array, form: Format) -> Array:
    """The numbers with these bits."""
    return bits.astype(form.integer).view(form.dtype).astype(np.float64)


def _grid_of(x: Array) -> Array:
    """The exponent of the lowest set bit of numbers."""
    mantissa, power = np.frexp(np.where(np.isfinite(x), x, 0.0).astype(np.float64))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    return np.where(whole == 0, _INF, power - 53.0 + _trailing_zeros(whole))


def _fields(v: Reals) -> tuple[Array, Array, Array, Array]:
    return v.lo, v.hi, v.grid, v.product


def decisions(program: Program, instruction: Instruction, register: Format) -> int:
    """How many outcomes the analysis records for an instruction."""
    operation = instruction[0]
    if operation in ("iadd", "isub", "ishl"):
        return 1 if register.bits == 32 else 0
    return _DECISIONS.get(operation, int(is_shift(program, instruction, register)))


_DECISIONS = dict.fromkeys(
    ("abs", "round", "to_int", "bits", "ishr", "iand", "lt", "le", "eq", "lookup"), 1
) | {"from_bits": 2}


# ------------------------------------------------------------------- the program of one interval


def specialise(program: Program, choices: Array, register: Format) -> Program | None:
    """The real program that a machine program is where its decisions have these outcomes.

    `None` where the result is an infinity. `choices` is a row of `Analysis.choices`.
    """
    return _Specialiser(program, register, list(map(int, choices))).program_of()


class _Specialiser:
    """Builds what the result depends on, with the decisions that the analysis recorded."""

    def __init__(self, program: Program, register: Format, choices: list[int]) -> None:
        self.source, self.form, self.routed = program, register, routed(program)
        self.builder = Builder("real")
        self.values: dict[str, Any] = {"x": self.builder.x, **program.constants}
        self.recorded: dict[int, list[int]] = {}
        remaining = choices[::-1]
        for i, instruction in enumerate(program.instructions):
            count = decisions(program, instruction, register)
            if instruction[0] == "bits" and f"t{i}" in self.routed:
                count = 0
            elif instruction[0] == "from_bits" and instruction[1] in self.routed:
                count = 5
            self.recorded[i] = [remaining.pop() for _ in range(count)]

    def program_of(self) -> Program | None:
        last = len(self.source.instructions) - 1
        for i in self._needed(last):
            operation, *operands = self.source.instructions[i]
            self.choices = self.recorded[i][::-1]
            if operation == "lookup":
                result = self.source.tables[operands[0]][self.choices.pop()]
            elif is_choice(self.source, self.source.instructions[i]):
                result = self.choices.pop()
                result = Fraction(result) if operation == "round" else result
            elif operation == "select":
                condition, a, b = operands
                result = self.values[a if self.values[condition] else b]
            elif is_shift(self.source, (operation, *operands), self.form):
                constant = next(c for c in reversed(operands) if large(self.source, c, self.form))
                result = self.choices.pop() * shift_step(self.source.constants[constant], self.form)
            elif operation == "from_bits" and operands[0] in self.routed:
                result = self._moved()
            else:
                handler = getattr(self, f"_{operation}", None)
                arguments = [self.values[o] for o in operands]
                result = handler(*arguments) if handler else self._real(operation, arguments)
            self.values[f"t{i}"] = result
        result = self.values[f"t{last}"]
        if isinstance(result, float):
            return None
        return self.builder.program(self.builder.constant(_exact(result), "r"))

    def _needed(self, last: int) -> list[int]:
        """The instructions that the result depends on, in order."""
        pending, seen = [last], {last}
        while pending:
            i = pending.pop()
            operation, *operands = self.source.instructions[i]
            if operation == "select":
                condition, a, b = operands
                operands = [condition, a if self.recorded[int(condition[1:])][0] else b]
            if is_choice(self.source, self.source.instructions[i]):
                operands = []
            elif operation == "from_bits" and operands[0] in self.routed:
                source = self.recorded[i][1]  # the integers between are not built
                operands = [real_sources(self.source)[source]] if source >= 0 else []
            fresh = {int(o[1:]) for o in operands if o.startswith("t")} - seen
            seen |= fresh
            pending += fresh
        return sorted(seen)

    def _real(self, operation: str, arguments: list[Any]) -> Any:
        if any(isinstance(a, float) for a in arguments):
            return float("inf")  # an infinity stays one, or the analysis has given up before
        if all(isinstance(a, int | Fraction) for a in arguments) and operation in _FOLDED:
            return _FOLDED[operation](*map(Fraction, arguments))
        return self.builder.apply(operation, *(_exact(a) for a in arguments))

    def _abs(self, a: Any) -> Any:
        return -a if self.choices.pop() else a

    def _to_float(self, a: Any) -> Any:
        return _exact(a)

    def _bits(self, a: Any) -> Any:
        field = self.choices.pop()
        form, hidden = self.form, 1 << (self.form.precision - 1)
        biased = abs(field) - 1
        step = Fraction(2) ** (max(biased, 1) + form.emin - form.precision)
        offset = (biased - 1) * hidden if biased else 0
        if field < 0:
            return self._linear(a, -1 / step, offset - 2 ** (form.bits - 1))
        return self._linear(a, 1 / step, offset)

    def _moved(self) -> Any:
        _, source, k, flips, bits = (self.choices.pop() for _ in range(5))
        if source < 0:
            number = float(_from_pattern(np.array([k]), self.form)[0])
            return Fraction(number) if np.isfinite(number) else number
        factor = Fraction(2) ** k * (-1 if flips else 1)
        value = self.values[real_sources(self.source)[source]]
        offset = Fraction(float(np.array([bits]).view(np.float64)[0]))
        return value if (factor, offset) == (1, 0) else self._linear(value, factor, offset)

    def _from_bits(self, a: Any) -> Any:
        first, negative = self.choices.pop(), self.choices.pop()
        form, hidden = self.form, 1 << (self.form.precision - 1)
        step = Fraction(2) ** (max(first, 1) + form.emin - form.precision)
        offset = ((1 - first) * hidden if first else 0) + (2 ** (form.bits - 1) if negative else 0)
        sign = -1 if negative else 1
        return self._linear(a, sign * step, sign * step * offset)

    def _linear(self, a: Any, factor: Fraction, offset: Fraction | int) -> Any:
        if isinstance(a, Node):
            return self.builder.fma(a, Fraction(factor), Fraction(offset))
        return Fraction(a) * factor + offset

    def _iadd(self, a: Any, b: Any) -> Any:
        return self._unwrapped(self._real("add", [a, b]))

    def _isub(self, a: Any, b: Any) -> Any:
        return self._unwrapped(self._real("sub", [a, b]))

    def _ishl(self, a: Any, b: Any) -> Any:
        return self._unwrapped(self._linear(a, Fraction(2) ** int(b), 0))

    def _unwrapped(self, a: Any) -> Any:
        if self.form.bits != 32:
            return a
        return self._linear(a, Fraction(1), -self.choices.pop() * 2**32)

    def _iand(self, a: Any, b: Any) -> Any:
        """A mask of low bits: what lies above them was decided."""
        value = b if isinstance(b, Node) else a
        base = self.choices.pop()
        mask = a if isinstance(b, Node) else b
        if not isinstance(mask, int) or mask & (mask + 1):
            return base  # another mask of a constant
        return self._linear(value, Fraction(1), -base)


def _exact(value: Any) -> Any:
    return Fraction(value) if isinstance(value, int) else value


_FOLDED: Mapping[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
    "neg": lambda a: -a,
}
