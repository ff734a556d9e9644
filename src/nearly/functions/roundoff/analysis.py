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

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from nearly.functions.formats import Format
from nearly.functions.program import Program
from nearly.functions.roundoff.enclosures import (
    INF,
    ZERO,
    Array,
    Integers,
    Reals,
    Truths,
    exponent_of,
    magnitude,
    product,
    smallest_in,
    sum_of,
    trailing,
)
from nearly.functions.roundoff.integer_steps import is_choice, is_shift
from nearly.functions.roundoff.integers import IntegerPass
from nearly.functions.roundoff.reals import Forced


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
        forward = _Analyser(program, storage, lo, hi, forced, contracted)
        forward.run()
        return forward.result()


class _Analyser(IntegerPass):
    """Forwards over all instructions, what chooses among them, then backwards."""

    def run(self) -> None:
        n = self.lo.size
        smallest = smallest_in(self.lo, self.hi)
        grid = np.maximum(exponent_of(smallest), self.storage.emin) - self.storage.precision + 1.0
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

    # --------------------------------------------------------------------------- choosing

    def _outcome(self, may: Array, may_not: Array) -> Truths:
        low, high = self._decide((~may_not).astype(np.int64), may.astype(np.int64))
        self.slopes[self.index] = (ZERO, ZERO)
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
        self.slopes[self.index] = (ZERO, (one, one), (zero, zero))
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
        grid = np.array([float(trailing(v)) for v in table])[entry]
        self.slopes[self.index] = (ZERO, ZERO)
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
                size = uses if split else magnitude(adjoint)
                none = (self.deltas[i] == 0) | (size == 0)
                rounding = rounding + np.where(none, 0.0, size * self.deltas[i])
            partial = [*zip(operands, self.slopes[i], strict=True), *self.routes.get(i, [])]
            for operand, slope in partial:
                if operand.startswith("t") and slope is not ZERO:
                    term = product(adjoint, slope)
                    known = adjoints.get(operand)
                    adjoints[operand] = term if known is None else sum_of(known, term)
                    one = uses if operation == "neg" else magnitude(term)
                    total = apart.get(operand, np.zeros(n)) + one
                    apart[operand] = np.where(total == 0, 0.0, np.nextafter(total, INF))
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
