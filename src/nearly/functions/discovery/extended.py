"""A program's error and its derivatives by the constants, in extended precision, and least squares.

Everything runs on midpoints of balls at a working precision far above what the error needs: twice
the digits of the smallest error make even the normal equations harmless, whose condition is the
square of one that is easily 1e12.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from flint import arb, arb_mat

from nearly.core.errors import InputError
from nearly.functions.balls import exact
from nearly.functions.discovery.kernels import ADD, DIV, MUL, NEG, SQRT, SUB, chebyshev_points
from nearly.functions.discovery.tape import Tape
from nearly.functions.error_curve import peaks
from nearly.functions.function import Function
from nearly.functions.levelled import Point
from nearly.functions.program import Program
from nearly.functions.target import Piece

CAUTION = Fraction(1, 10)  # how strongly a step is held back, for its error
LARGEST = 2**256  # constants stay below this
INSET = 64  # how near to the domain's ends errors are looked at, in halvings of its length

_APPLY: dict[int, Callable[[arb, arb], arb]] = {
    ADD: operator.add,
    SUB: operator.sub,
    MUL: operator.mul,
    DIV: operator.truediv,
    SQRT: lambda a, _: a.sqrt(),
    NEG: lambda a, _: -a,
}


class Sample(NamedTuple):
    """The truth at a point, and what multiplies a difference from it."""

    x: arb
    truth: arb
    weight: arb


class Curve:
    """The weighted error of a program as a function of x and of its constants.

    **Arguments:**

    - `function`: what is approximated; its error is `"relative"` or `"absolute"`.
    - `program`: over the reals; its constants' values play no part.

    Constants are lists of `arb`, in the order of `program.constants`. A curve belongs to the
    working precision at which it was made.
    """

    def __init__(self, function: Function, program: Program) -> None:
        if function.error == "ulp":
            raise InputError(
                "error='ulp': constants are fitted to the relative or the absolute error; give "
                "error='relative'"
            )
        tape = Tape.from_program(program)
        rows = zip(tape.operations, tape.left, tape.right, strict=True)
        self.function = function
        self.rows = [(int(o), int(a), int(b)) for o, a, b in rows]
        self.low, self.high = map(exact, function.interval)
        self.inset = (self.high - self.low) * arb(2) ** -INSET

    def sample(self, x: arb) -> Sample:
        truth = self.function.oracle.value(x).mid()
        weight = (1 / abs(truth)).mid() if self.function.error == "relative" else arb(1)
        return Sample(x, truth, weight)

    def near(self, constants: Sequence[arb], x: arb) -> Sample:
        """The sample at x, or beside it where the function is 0 or the program undefined at x."""
        sample = self.sample(x)
        if self.error(constants, sample).is_finite():
            return sample
        return self.sample((x + self.inset).mid())

    def grid(self, count: int) -> list[Sample]:
        """Chebyshev's points, and points almost at the ends and at zeros of the function.

        Not there: a program may have a removable singularity, a relative error is 0/0.
        """
        low, high = (self.low + self.inset).mid(), (self.high - self.inset).mid()
        points = [low, *(arb(x) for x in chebyshev_points(self.function, count).tolist()), high]
        zeros = self.function.zeros if self.function.error == "relative" else ()
        for zero in zeros:
            beside = (zero.point() - self.inset, zero.point() + self.inset)
            points += [x.mid() for x in beside if bool(x > low) and bool(x < high)]
        return [self.sample(x) for x in sorted(points, key=float)]

    def error(self, constants: Sequence[arb], sample: Sample) -> arb:
        """The signed error."""
        value = self._forward(constants, sample.x)[len(self.rows) - 1]
        return ((value - sample.truth) * sample.weight).mid()

    def gradient(self, constants: Sequence[arb], sample: Sample) -> tuple[arb, list[arb]]:
        """The signed error and its derivative by each constant."""
        slots = self._forward(constants, sample.x)
        last = len(self.rows) - 1
        adjoints = [arb(0)] * len(slots)
        adjoints[last] = sample.weight
        for i in range(last, -1, -1):
            operation, a, b = self.rows[i]
            g = adjoints[i]
            if operation <= SUB:
                adjoints[a] += g
                adjoints[b] += g if operation == ADD else -g
            elif operation == MUL:
                adjoints[a] += g * slots[b]
                adjoints[b] += g * slots[a]
            elif operation == DIV:
                g = g / slots[b]
                adjoints[a] += g
                adjoints[b] -= g * slots[i]
            elif operation == SQRT:
                adjoints[a] += g / (2 * slots[i])
            else:
                adjoints[a] -= g
        error = ((slots[last] - sample.truth) * sample.weight).mid()
        return error, [adjoints[-2 - k].mid() for k in range(len(constants))]

    def has_pole(self, constants: Sequence[arb], grid: Sequence[Sample]) -> bool:
        """Whether the error is large, twice that on the grid, where a denominator all but vanishes.

        Looked at are its zeros and the least of its sizes between points of the grid. A zero that
        numerator and denominator share does no harm.
        """
        height = largest([self.error(constants, sample) for sample in grid])
        tables = [self._forward(constants, sample.x) for sample in grid]
        for operation, _, slot in self.rows:
            if operation == DIV:
                small = self._smallest(constants, slot, grid, [values[slot] for values in tables])
                beside = largest([self.error(constants, self.near(constants, x)) for x in small])
                if not bool(beside <= 2 * height):
                    return True
        return False

    def _smallest(
        self, constants: Sequence[arb], slot: int, grid: Sequence[Sample], values: Sequence[arb]
    ) -> list[arb]:
        """Where a value, known on the grid, changes sign, or is smallest between its neighbours."""
        found: list[arb] = []
        for i in range(1, len(grid)):
            if bool(values[i - 1] > 0) != bool(values[i] > 0):
                found += self._zero(constants, slot, grid[i - 1].x, grid[i].x)
        whole = Piece(*self.function.interval)
        points = [Point(sample.x, whole) for sample in grid]

        def size(point: Point) -> arb:
            return -abs(self._forward(constants, point.x)[slot]).mid()

        shifted = [-abs(value).mid() for value in values]
        floor = min(shifted, key=float)
        # Above a floor all are positive, so that the largest is where the value is smallest.
        lifted = peaks(points, [v - floor for v in shifted], lambda point: size(point) - floor)
        return found + [e.point.x for e in lifted]

    def _zero(self, constants: Sequence[arb], slot: int, low: arb, high: arb) -> list[arb]:
        """Two points, near each other, between which a value changes sign."""
        sign = bool(self._forward(constants, low)[slot] > 0)
        for _ in range(INSET):
            middle = ((low + high) / 2).mid()
            same = bool(self._forward(constants, middle)[slot] > 0) == sign
            low, high = (middle, high) if same else (low, middle)
        return [low, high]

    def _forward(self, constants: Sequence[arb], x: arb) -> list[arb]:
        """The values by operand: instructions from the start, x and the constants from the end."""
        slots = [*(x for _ in self.rows), *reversed(constants), x]
        for i, (operation, a, b) in enumerate(self.rows):
            slots[i] = _APPLY[operation](slots[a], slots[b])
        return slots


def largest(errors: Sequence[arb]) -> arb:
    """The largest error in size; infinite if one is not finite."""
    if not all(error.is_finite() for error in errors):
        return arb.pos_inf()
    return max((abs(error).mid() for error in errors), default=arb(0))


def independent(columns: arb_mat, free: Sequence[int], bits: int) -> list[int]:
    """Which free columns are linearly independent to `bits` bits, the largest remainder first.

    A constant whose column depends on the others does nothing that those cannot do: it stays.
    """
    gram = (columns.transpose() * columns).tolist()
    m = len(gram)
    scale = [1 / gram[k][k].sqrt() if bool(gram[k][k] > 0) else arb(0) for k in range(m)]
    rest = [[(gram[i][j] * scale[i] * scale[j]).mid() for j in range(m)] for i in range(m)]
    chosen: list[int] = []
    while len(chosen) < len(free):
        left = [k for k in free if k not in chosen]
        best = max(left, key=lambda k: float(rest[k][k]))
        pivot = rest[best][best]
        if not bool(pivot > arb(2) ** (-2 * bits)):
            break
        chosen.append(best)
        row = [value / pivot for value in rest[best]]
        for i in left:
            factor = rest[i][best]
            rest[i] = [(a - factor * b).mid() for a, b in zip(rest[i], row, strict=True)]
    return sorted(chosen)


def least_squares(
    curve: Curve,
    samples: Sequence[Sample],
    start: Sequence[arb],
    active: Sequence[int],
    steps: int = 80,
) -> list[arb]:
    """The best constants, in the largest error at the samples, that Gauss-Newton steps meet.

    Only the `active` constants move. A step is damped in proportion to the error it starts from,
    and taken whether the error falls or not: monotone methods stall in the narrow valleys of
    composed programs.
    """
    current, best = list(start), list(start)
    least, idle, previous = arb.pos_inf(), 0, arb.pos_inf()
    for _ in range(steps if active else 0):
        pairs = [curve.gradient(current, sample) for sample in samples]
        errors = [error for error, _ in pairs]
        height = largest(errors)
        if not height.is_finite():
            break
        idle = 0 if bool(height < least * arb("0.9999")) else idle + 1
        if bool(height < least):
            least, best = height, current
        total = sum((error * error for error in errors), arb(0)).mid()
        settled = bool(abs(total - previous) < total * arb(2) ** -20)
        if idle > 12 or settled or bool(total == 0):
            break
        previous = total
        rows = [[row[k] for k in active] for _, row in pairs]
        step = damped_step(rows, errors, sizes([current[k] for k in active]))
        if step is None:
            break
        current = moved(current, active, step)
    return best


def moved(constants: Sequence[arb], active: Sequence[int], step: Sequence[arb]) -> list[arb]:
    """The constants less a step in the active ones; as they are, if one would exceed `LARGEST`.

    Where the optimum lies at infinity the constants would run there, and out of float64.
    """
    result = list(constants)
    for k, value in zip(active, step, strict=True):
        result[k] = (result[k] - value).mid()
    return result if bool(largest(result) < LARGEST) else list(constants)


def sizes(constants: Sequence[arb]) -> list[arb]:
    """What a damped step is measured by: the constants' sizes, or 1 for small ones."""
    return [max(abs(constant).mid(), arb(1), key=float) for constant in constants]


def damped_step(
    rows: Sequence[Sequence[arb]], errors: Sequence[arb], scales: Sequence[arb]
) -> list[arb] | None:
    """The step s that minimises |rows s - errors|^2 + |CAUTION errors|^2 |s / scales|^2.

    The damping vanishes with the errors, so that convergence on a solvable system is quadratic, and
    lets the step be the shortest one where the system does not determine it. `None` if singular.
    """
    columns = arb_mat([list(row) for row in rows])
    transposed = columns.transpose()
    normal, right = transposed * columns, transposed * arb_mat(len(errors), 1, list(errors))
    damping = sum((error * error for error in errors), arb(0)) * exact(CAUTION**2)
    for k, scale in enumerate(scales):
        normal[k, k] = normal[k, k] + damping / scale**2
    try:
        solution = _midpoints(normal).solve(_midpoints(right)).entries()
    except ZeroDivisionError:
        return None
    step = [value.mid() for value in solution]
    return step if all(value.is_finite() for value in step) else None


def _midpoints(matrix: arb_mat) -> arb_mat:
    return arb_mat(matrix.nrows(), matrix.ncols(), [value.mid() for value in matrix.entries()])
