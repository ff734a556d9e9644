"""What instructions on integers and bits do to enclosures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nearly.functions.roundoff.enclosures import (
    ONE,
    ZERO,
    Array,
    Integers,
    Reals,
    exponent_of,
    fields_of,
    from_pattern,
    grid_of,
    smallest_in,
    trailing_zeros,
)
from nearly.functions.roundoff.reals import RealPass


class IntegerPass(RealPass):
    """The instructions on integers, and between integers and reals."""

    def _bits(self, a: Reals) -> Integers:
        self._open((a.lo < 0) & (a.hi >= 0))
        negative = a.hi < 0
        step, field = self._binade(a)
        small, large = smallest_in(a.lo, a.hi), np.maximum(np.abs(a.lo), np.abs(a.hi))
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
            self.slopes[self.index] = (ZERO,)
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
        exponent = np.where(v == 0, form.emin - 1.0, exponent_of(np.abs(v)))
        field = np.clip(exponent - form.emin + 1, 0, form.emax - form.emin + 2) + 1
        return np.where(v < 0, -field, field).astype(np.int64)

    def _pattern(self, size: Array, to: Callable[..., Array]) -> Array:
        """The bits of a non-negative number, rounded to one of the format."""
        form, hidden = self.format, np.int64(1) << (self.format.precision - 1)
        exponent = np.clip(exponent_of(size), form.emin, form.emax + 1).astype(np.int64)
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
        same = np.where(low == high, grid + trailing_zeros(low + offset), grid)
        return Reals(lo, hi, same, same)

    def _moved(self, a: Integers) -> Reals:
        """A register whose exponent and sign were changed by integer steps: v times +-2^k.

        No binade need be decided for that, which a value near a power of two could not do.
        """
        form, shift = self.format, self.format.precision - 1
        top = np.int64(-(2 ** (form.bits - 1)))
        v, source = self._gathered(a)
        first = self._pattern(smallest_in(v.lo, v.hi), np.floor)
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
        begin, base = (from_pattern(np.maximum(p, 0), form) for p in (start, first))
        offset = np.where(whole, 0.0, begin - scale * base)
        flips, sign = negative != after, np.where(after, -1.0, 1.0)
        source = np.where(few, -1, source)
        number = np.where(few, chosen + np.where(after, top, 0), a.lo)
        self._record(source)
        self._record(np.where(source < 0, number, k))
        self._record(flips)
        self._record((sign * offset).astype(np.float64).view(np.int64))
        factor = np.where(flips, -scale, scale)
        self.slopes[self.index] = (ZERO,)
        self.routes[self.index] = []
        for i in np.unique(source[source >= 0]):
            mine = np.where(source == i, factor, 0.0)
            self.routes[self.index].append((self.sources[i], (mine, mine)))
        lo, hi = v.lo * factor + sign * offset, v.hi * factor + sign * offset
        grid = np.where(whole, v.grid + k, binades[2] + form.emin - 1.0 - shift)
        point = from_pattern(number, form)
        lo, hi = (np.where(few, point, end) for end in (np.minimum(lo, hi), np.maximum(lo, hi)))
        grid = np.where(few, grid_of(point), grid)
        return Reals(lo, hi, grid, grid)

    def _gathered(self, a: Integers) -> tuple[Reals, Array]:
        """The real registers that integers were made from; numbers where they are constants."""
        point = np.where(a.lo == a.hi, a.lo, 0)
        number = from_pattern(point, self.format).astype(self.lo.dtype)
        none = np.full(number.shape, -1)
        v, source = Reals(number, number, grid_of(number), grid_of(number)), none
        origin = none if a.source is None else a.source
        for i in np.unique(origin[origin >= 0]):
            real, mine = self.values[self.sources[i]], origin == i
            fields = zip(fields_of(v), fields_of(real), strict=True)
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
        self.slopes[self.index] = (ONE, ONE)
        sum_ = self._wrapped(a.lo + b.lo, a.hi + b.hi)
        return Integers(sum_.lo, sum_.hi, b.source if a.source is None else a.source)

    def _isub(self, a: Integers, b: Integers) -> Integers:
        self.slopes[self.index] = (ONE, (-1.0, -1.0))
        difference = self._wrapped(a.lo - b.hi, a.hi - b.lo)
        return Integers(difference.lo, difference.hi, a.source)

    def _ishl(self, a: Integers, b: Integers) -> Integers:
        self._open(b.lo != b.hi)
        factor = np.ldexp(1.0, b.lo)
        self.slopes[self.index] = ((factor, factor), ZERO)
        return self._wrapped(a.lo << b.lo, a.hi << b.lo)

    def _ishr(self, a: Integers, b: Integers) -> Integers:
        self._open(b.lo != b.hi)
        self.slopes[self.index] = (ZERO, ZERO)
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
        self.slopes[self.index] = (ZERO, (one, one)) if swap else ((one, one), ZERO)
        return Integers(
            np.where(low_bits, value.lo - base, base), np.where(low_bits, value.hi - base, base)
        )
