"""Constants rounded into a machine format so that the function they make stays as accurate.

Rounding each constant to its nearest neighbour moves them independently and loses up to some bits;
the errors of well chosen neighbours cancel. The search is for a lattice point: with one spacing per
constant, the errors that rounded constants can make are `start + B z` with integer `z`, and we want
the one of least sup norm.

How it differs from the textbook (Brisebarre and Chevillard, "Efficient polynomial
L-infinity-approximations", 2007; Sollya's `fpminimax`):

- after LLL, not one nearest plane but beams of them: the closest few thousand lattice points in
  the mean square, and in the shape that the sup norm has about a minimax error; the best by the sup
  norm then descend along the *reduced* vectors, whose steps change the error little where a step
  of one constant alone changes it a lot;
- everything is in the error, linearised in the constants about a start whose error is exact, so
  double precision compares candidates whose errors are far below one unit of double precision;
- so any program will do, not polynomials only: its columns are derivatives by the constants;
- the naively rounded constants are always among the candidates.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, combinations, islice, pairwise

import numpy as np
from flint import arb, ctx, fmpz, fmpz_mat

from nearly.core.errors import InputError, NotProven
from nearly.functions.formats import Format
from nearly.functions.function import Function
from nearly.functions.oracle import exact
from nearly.functions.program import Program
from nearly.functions.target import Piece, target

# Bits of the arithmetic in which errors are known before they become doubles: twice those of a
# double-double, so that an error of 2^-106 still has 53 good bits, and room for the conditioning.
_BITS = 320
_POINTS = 96  # points of the grid per degree of freedom
_STRIDE = 12  # one point of the grid in so many makes a coordinate of the lattice
_BEAM = 3000
_SHORTLIST = 512  # of its points
_DESCENTS = 3  # from each beam
_CHOICES = np.arange(-6, 7)  # about the best integer of each coordinate
_SHARES = (0.02, 0.1)  # of the excess of the start that the best may still have
_CLIMBS = 60  # steps of a descent
_CLOSE = 8  # moves of a step that are looked at closely
_FINALISTS = 3  # rounded points of each search whose errors are computed anew
_SPACINGS = 6  # choices of the spacings that are tried

Values = tuple[Fraction, ...]


def doubled(register: Format) -> Format:
    """The format of a coefficient held as the unevaluated sum of two registers (double-double)."""
    return replace(
        register,
        name=f"double-{register.name}",
        precision=2 * register.precision,
        emin=register.emin + register.precision,
    )


def parts(value: Fraction, register: Format) -> tuple[Fraction, Fraction]:
    """A number of `doubled(register)` as its head and its tail, both numbers of `register`."""
    head = register.round(value)
    return head, register.round(value - head)


def round_coefficients(
    function: Function,
    exponents: Sequence[int],
    coefficients: Sequence[Fraction],
    *,
    pinned: Mapping[int, Fraction] = {},
    formats: Mapping[int, Format] = {},
    centre: Fraction = Fraction(0),
) -> Values:
    """Coefficients of a polynomial in the registers of a format, of nearly the least error there.

    **Arguments:**

    - `function`: what the polynomial sum of `c (x - centre)^e` stands for; its format, its error
      and its norm are those that count. Its domain must be finite.
    - `exponents`: the powers, each once, in any order.
    - `coefficients`: the best real ones (a minimax fit's), in that order. What is 0 stays 0.
    - `pinned`: power -> the value its coefficient must have, a number of its format.
    - `formats`: power -> the format of its coefficient where that is not the registers':
      `doubled(register)` for a head held as two numbers.
    - `centre`: what is subtracted from x.

    **Returns:** the coefficients in the order given. Never worse than rounding each one. Over
    the reals the coefficients as they are. A 16-bit format computes in float32, whose rounding is
    far below its own: there each one is rounded by itself.

    **Raises:** `InputError` for a pinned value its format does not hold, a power given twice, a
    coefficient that overflows.

    Costs a lattice reduction in as many dimensions as there are free coefficients, a few times:
    tens of milliseconds for four of them, a second for fifteen.
    """
    exponents = tuple(exponents)
    if len(set(exponents)) != len(exponents) or len(exponents) != len(coefficients):
        raise InputError(f"powers {exponents}: each once, with one coefficient each")
    register = function.format.computing
    chosen = [formats.get(e, register) for e in exponents]
    unknown = (set(pinned) | set(formats)) - set(exponents)
    if unknown:
        raise InputError(f"the polynomial has no power {min(unknown)}: its powers are {exponents}")
    for e, form in zip(exponents, chosen, strict=True):
        if e in pinned and not _holds(form, pinned[e]):
            raise InputError(
                f"the coefficient of power {e} is pinned to {float(pinned[e])!r}, which is no "
                f"number of {form.name}; pin {float(form.round(pinned[e]))!r}"
            )
    wanted = tuple(Fraction(pinned.get(e, c)) for e, c in zip(exponents, coefficients, strict=True))
    free = [j for j, e in enumerate(exponents) if e not in pinned and wanted[j]]
    if register.is_real or not free:
        return wanted
    naive = tuple(form.round(c) for form, c in zip(chosen, wanted, strict=True))
    if function.format != register:
        return naive
    grid = _grid(function, len(exponents))
    powers = _powers(grid, exponents, centre)

    def errors(values: Values) -> list[arb]:
        balls = [exact(v) for v in values]
        return [
            _dot(row, balls) * weight - weighted
            for row, weight, weighted in zip(powers, grid.weights, grid.truth, strict=True)
        ]

    def slopes(_: Values, steps: Values) -> list[list[arb]]:
        scaled = [(j, exact(step)) for j, step in zip(free, steps, strict=True)]
        return [
            [row[j] * w * step for row, w in zip(powers, grid.weights, strict=True)]
            for j, step in scaled
        ]

    family = _Family(errors, slopes, tuple(chosen), tuple(free), grid, function.norm)
    return _best(family, wanted, naive, (math.inf,))


def round_program(function: Function, program: Program) -> Program:
    """A real program in the function's format, its constants rounded together.

    **Arguments:**

    - `function`: what the program stands for; its format, error and norm are those that count.
    - `program`: a program over the reals. Constants that are numbers of the registers' format as
      they are (1, 2, a scale) stay.

    **Returns:** the program in `function.dtype`. Its error in real arithmetic is never more than
    that of `program.in_format(function.dtype)`.

    **Raises:** `InputError` for a program that is not over the reals, or a constant that
    overflows.

    The constants' effect is linearised about the best point found, twice, and every point that
    wins is measured without the linearisation. Costs one run of the program in ball arithmetic
    per constant and point of the grid: a second for ten constants.
    """
    if program.dtype != "real":
        raise InputError(
            f"constants are rounded from a program over the reals, not {program.dtype}"
        )
    rounded = program.in_format(function.dtype)
    register = function.format.computing
    names = [
        n
        for n, v in program.constants.items()
        if isinstance(v, Fraction) and not _holds(register, v)
    ]
    if register.is_real or function.format != register or not names:
        return rounded
    grid = _grid(function, len(names) + 4)
    wanted = tuple(Fraction(program.constants[n]) for n in names)
    fixed = {n: v for n, v in program.constants.items() if n not in names}

    def outputs(values: Values) -> list[arb]:
        trial = replace(program, constants=fixed | dict(zip(names, values, strict=True)))
        with ctx.workprec(_BITS):
            return trial.run(grid.points, _COLUMNS, lambda c: [exact(c)] * len(grid.points))

    grid = grid.where([y.is_finite() for y in outputs(wanted)])

    def errors(values: Values) -> list[arb]:
        return [
            y * w - t for y, w, t in zip(outputs(values), grid.weights, grid.truth, strict=True)
        ]

    def slopes(values: Values, steps: Values) -> list[list[arb]]:
        # A difference quotient in 320 bits: 60 good bits are left on either side.
        here, columns = outputs(values), []
        for j, step in enumerate(steps):
            there = outputs(tuple(v + step / 2**60 * (i == j) for i, v in enumerate(values)))
            pairs = zip(here, there, grid.weights, strict=True)
            columns.append([(b - a) * w * 2**60 for a, b, w in pairs])
        return columns

    family = _Family(
        errors, slopes, (register,) * len(names), tuple(range(len(names))), grid, function.norm
    )
    naive = tuple(register.round(v) for v in wanted)
    # Near, where the linearisation holds for any program, then about the best of that farther out.
    reaches = (2.0 ** (register.precision // 2), 2.0 ** (register.precision - 4))
    best = _best(family, wanted, naive, reaches)
    return replace(rounded, constants={**rounded.constants, **dict(zip(names, best, strict=True))})


def _elementwise(operation: Callable[..., arb]) -> Callable[..., list[arb]]:
    return lambda *columns: list(map(operation, *columns))


# The reals' operations on columns of balls, so that the program is interpreted once for all points.
_COLUMNS: Mapping[str, Callable[..., list[arb]]] = {
    "add": _elementwise(operator.add),
    "sub": _elementwise(operator.sub),
    "mul": _elementwise(operator.mul),
    "div": _elementwise(operator.truediv),
    "fma": _elementwise(lambda a, b, c: a * b + c),
    "sqrt": _elementwise(arb.sqrt),
    "neg": _elementwise(lambda a: -a),
    "abs": _elementwise(lambda a: abs(a)),
}


def _holds(form: Format, value: Fraction) -> bool:
    return form.is_real or (abs(value) <= form.largest and form.round(value) == value)


def _dot(row: Sequence[arb], values: Sequence[arb]) -> arb:
    total = arb(0)
    for a, b in zip(row, values, strict=True):
        total += a * b
    return total


# --- the grid ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Points with the weight of an error there, and the truth times that weight.

    `segments` are the slices on which the error is smooth, equally spaced in the angle of
    Chebyshev's points; `measure` is each point's share of the domain, for the root mean square.
    """

    points: list[arb]
    weights: list[arb]
    truth: list[arb]
    measure: np.ndarray
    segments: tuple[slice, ...]

    def where(self, keep: Sequence[bool]) -> _Grid:
        def kept(values: list[arb]) -> list[arb]:
            return [v for v, k in zip(values, keep, strict=True) if k]

        if sum(keep) < len(keep) // 2:
            raise InputError("the program has no finite value on half of the domain")
        counts = [sum(keep[s]) for s in self.segments]
        return _Grid(
            kept(self.points),
            kept(self.weights),
            kept(self.truth),
            self.measure[np.array(keep)],
            _slices(counts),
        )


def _slices(counts: Sequence[int]) -> tuple[slice, ...]:
    ends = list(accumulate(counts, initial=0))
    return tuple(slice(a, b) for a, b in pairwise(ends) if b > a)


def _grid(function: Function, freedom: int) -> _Grid:
    """Extremal points of Chebyshev polynomials, the ends among them."""
    low, high = function.interval
    # One ULP jumps at the powers of two: there the error has two values, and each is looked at.
    by_binade = function.error == "ulp"
    pieces = target(function, parity=False).pieces if by_binade else (Piece(low, high),)
    found: list[tuple[arb, arb, arb, float]] = []
    counts: list[int] = []
    with ctx.workprec(_BITS):
        for piece in pieces:
            share = _angle(piece.high, low, high) - _angle(piece.low, low, high)
            count = max(24, math.ceil(_POINTS * (freedom + 1) * share))
            points = list(_weighed(function, piece, count))
            counts.append(len(points))
            found += points
    if not found:
        raise InputError(f"{function.name} has no finite value in its domain")
    measure = np.array([p[3] for p in found])
    return _Grid(
        [p[0] for p in found],
        [p[1] for p in found],
        [p[2] for p in found],
        measure / measure.sum(),
        _slices(counts),
    )


def _angle(x: Fraction, low: Fraction, high: Fraction) -> float:
    """Where x is between the ends, in the angle of Chebyshev's points: from 0 to 1."""
    return math.acos(max(-1.0, min(1.0, 1 - 2 * float((x - low) / (high - low))))) / math.pi


def _weighed(function: Function, piece: Piece, count: int) -> Iterator[tuple[arb, arb, arb, float]]:
    """Points of a piece: the point, the weight, the weighted truth, its share of the domain."""
    start, width = exact(piece.low), exact(piece.high - piece.low)
    middle = start + width / 2
    for i in range(count + 1):
        angle = i * math.pi / (2 * count)
        # sin^2 keeps the relative precision of points near the lower end, where that end is 0.
        x = (start + width * arb(math.sin(angle)) ** 2).mid() if i < count else start + width
        try:
            truth = function.oracle.at(x.mid(), _BITS - 64)
            if truth.is_zero():
                # A relative error has a limit at a zero: this close, it is that limit.
                x = x + (middle - x) / arb(2) ** 70
                truth = function.oracle.at(x.mid(), _BITS - 64)
        except NotProven:
            continue
        weight = _WEIGHTS[function.error](function, piece, truth)
        if weight.is_finite():
            share = math.sin(2 * angle) * float(width) / count
            yield x.mid(), weight, truth * weight, share


def _per_ulp(function: Function, piece: Piece, truth: arb) -> arb:
    if piece.ulp is None:  # far below the largest value: as if each were at the end of its binade
        return arb(2) ** function.format.precision / abs(truth)
    return 1 / exact(piece.ulp)


_WEIGHTS: Mapping[str, Callable[[Function, Piece, arb], arb]] = {
    "relative": lambda _, __, truth: 1 / truth,
    "absolute": lambda _, __, ___: arb(1),
    "ulp": _per_ulp,
}


def _powers(grid: _Grid, exponents: Sequence[int], centre: Fraction) -> list[list[arb]]:
    with ctx.workprec(_BITS):
        shift = exact(centre)
        return [[(x - shift) ** e for e in exponents] for x in grid.points]


def _sup(errors: np.ndarray, grid: _Grid) -> np.ndarray:
    """The sup norms of rows of errors, peaks interpolated to about 1e-12 of their height."""
    segments = [np.abs(errors[:, s]) for s in grid.segments]
    return np.max([_highest(size) for size in segments], axis=0)


def _highest(size: np.ndarray) -> np.ndarray:
    """The largest value of each row, peaks interpolated."""
    largest = size.max(axis=1)
    row, _, top = _tops(size, 0.99 * largest)
    np.maximum.at(largest, row, top)
    return largest


def _tops(size: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inner peaks above `least`: their rows, columns, and heights by a quartic through five points.

    Where that is no smooth peak (a kink, noise) the height is the largest value itself.
    """
    if size.shape[1] < 5:
        empty = np.zeros(0, int)
        return empty, empty, np.zeros(0)
    inner = size[:, 1:-1]
    peak = (inner >= size[:, :-2]) & (inner >= size[:, 2:]) & (inner > least[:, None])
    row, column = np.nonzero(peak)
    column += 1
    at = np.clip(column, 2, size.shape[1] - 3)
    a, b, c, d, e = (size[row, at + k] for k in (-2, -1, 0, 1, 2))
    first, second = (a - 8 * b + 8 * d - e) / 12, (-a + 16 * b - 30 * c + 16 * d - e) / 24
    third, fourth = (-a + 2 * b - 2 * d + e) / 12, (a - 4 * b + 6 * c - 4 * d + e) / 24
    place = (column - at).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(3):  # Newton's method for the zero of the slope
            slope = first + place * (2 * second + place * (3 * third + place * 4 * fourth))
            bend = 2 * second + place * (6 * third + place * 12 * fourth)
            place = place - slope / bend
        top = c + place * (first + place * (second + place * (third + place * fourth)))
    height = size[row, column]
    smooth = (np.abs(place) <= 2) & (top < 1.01 * height)
    return row, column, np.where(smooth, np.maximum(top, height), height)


def _peaks(errors: np.ndarray, grid: _Grid) -> tuple[np.ndarray, np.ndarray]:
    """The peaks of one error curve and its ends: places, and what their true tops add there.

    Where a curve changes little, its peaks' heights change as its values at these places do.
    """
    places, lifts = [], []
    for s in grid.segments:
        size = np.abs(errors[None, s])
        _, column, top = _tops(size, np.zeros(1))
        column = np.concatenate([[0], column, [size.shape[1] - 1]])
        top = np.concatenate([size[0, :1], top, size[0, -1:]])
        places.append(s.start + column)
        lifts.append(np.sign(errors[s][column]) * (top - size[0, column]))
    return np.concatenate(places), np.concatenate(lifts)


def _root_mean_square(errors: np.ndarray, grid: _Grid) -> np.ndarray:
    return np.sqrt(errors**2 @ grid.measure)


_NORMS = {"sup": _sup, "l2": _root_mean_square}


# --- the search -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Family:
    """What there is to search: errors as a function of the constants.

    `errors(values)` is the weighted error at each point of the grid; `slopes(values, steps)` its
    change for a step of each constant that may move; `free` are the indices of those.
    """

    errors: Callable[[Values], list[arb]]
    slopes: Callable[[Values, Values], list[list[arb]]]
    formats: tuple[Format, ...]
    free: tuple[int, ...]
    grid: _Grid
    norm: str

    def floats(self, values: Values) -> np.ndarray:
        with ctx.workprec(_BITS):
            return np.array([float(e) for e in self.errors(values)])

    def norms(self, errors: np.ndarray) -> np.ndarray:
        return _NORMS[self.norm](np.atleast_2d(errors), self.grid)

    def spacings(self, values: Values, at_zero: Values) -> Values:
        """The spacing of each free constant's format there; at 0 that tells nothing."""
        pairs = zip(self.free, at_zero, strict=True)
        return tuple(self.formats[j].spacing(values[j]) if values[j] else s for j, s in pairs)

    def holds(self, values: Values) -> bool:
        return all(_holds(self.formats[j], values[j]) for j in self.free)


def _best(family: _Family, wanted: Values, naive: Values, reaches: Sequence[float]) -> Values:
    """The best rounding found, over several choices of the spacings.

    `reaches` are the spacings that a constant may move for as much of a penalty as the error
    there is: infinite where errors are linear in the constants.
    """
    found = {naive: float(family.norms(family.floats(naive))[0])}
    goal = family.floats(wanted)
    for reach in reaches:
        pending = [tuple(family.formats[j].spacing(wanted[j]) for j in family.free)]
        seen: set[Values] = set()
        while pending and len(seen) < _SPACINGS:
            steps = pending.pop(0)
            seen.add(steps)
            near = _neighbours(family, _least(found), steps, goal, reach)
            # A coefficient that left its binade may use the finer or must use the coarser spacing.
            natural = dict.fromkeys(family.spacings(values, steps) for values in near)
            pending += [n for n in natural if n not in seen and n not in pending]
            held = (v for v in near if v not in found and family.holds(v))
            for values in islice(held, _FINALISTS):
                found[values] = float(family.norms(family.floats(values))[0])
    return _least(found)


def _least(found: Mapping[Values, float]) -> Values:
    return min(found, key=lambda values: found[values])


def _neighbours(
    family: _Family, start: Values, steps: Values, goal: np.ndarray, reach: float
) -> list[Values]:
    """Lattice points about `start` in order of their (linearised) norm, the best few descended.

    Most are numbers of their formats; some are not.
    """
    base = [round(start[j] / step) for j, step in zip(family.free, steps, strict=True)]
    start = _moved(start, family.free, [m * s for m, s in zip(base, steps, strict=True)])
    errors = family.floats(start)
    lattice = _Lattice.reduced(family, start, steps, reach, float(family.norms(errors)[0]))
    ends: list[tuple[float, np.ndarray]] = []
    for beam in _beams(family, lattice, errors, goal):
        ends += _ends(family, lattice, errors, goal, beam)
    ends.sort(key=lambda end: end[0])
    points = [lattice.mantissas(z[None])[0] for _, z in ends]
    values = [[int(m) * s for m, s in zip(point, steps, strict=True)] for point in points]
    return list(dict.fromkeys(_moved(start, family.free, v) for v in values))


def _ends(
    family: _Family, lattice: _Lattice, errors: np.ndarray, goal: np.ndarray, beam: np.ndarray
) -> Iterator[tuple[float, np.ndarray]]:
    """The best of a beam, and where descents from the very best end, each with its norm."""
    # Where errors are far larger than what rounding does to them, the peaks of all candidates are
    # those of the unrounded one, to the second order; elsewhere a coarse grid tells them apart.
    peaks, lifts = _peaks(goal, family.grid)
    tops = np.abs(errors[peaks] + lifts + beam @ lattice.basis[peaks].T).max(axis=1)
    coarse = np.maximum(tops, np.abs(errors[::4] + beam @ lattice.basis[::4].T).max(axis=1))
    beam = beam[np.argsort(coarse, kind="stable")[:_SHORTLIST]]
    fits = lattice.fits(beam)
    inside, outside = beam[fits][: _SHORTLIST // 8], beam[~fits][: _SHORTLIST // 32]
    norms = family.norms(errors + inside @ lattice.basis.T)
    for i in np.argsort(norms, kind="stable")[:_DESCENTS]:
        yield lattice.descend(family, errors, inside[i])
    yield from zip(norms.tolist(), inside, strict=True)
    # These show which other spacings to try.
    yield from zip(family.norms(errors + outside @ lattice.basis.T).tolist(), outside, strict=True)


def _moved(values: Values, free: Sequence[int], moved: Sequence[Fraction]) -> Values:
    result = list(values)
    for j, value in zip(free, moved, strict=True):
        result[j] = value
    return tuple(result)


def _beams(
    family: _Family, lattice: _Lattice, errors: np.ndarray, goal: np.ndarray
) -> Iterator[np.ndarray]:
    """Candidates near the unrounded point, in the mean square and in the shape of the sup norm.

    To first order the points whose sup norm exceeds that of a minimax error by at most `excess`
    form a simplex, long and thin: one face a_i . d <= excess for each peak. With weights w_i for
    which sum of w_i a_i = 0, the w_i (excess - a_i . d) are barycentric coordinates of it, in which
    it is as round as can be, and about whose centre there is more to find than about the unrounded
    point.
    """
    yield lattice.nearest(lattice.basis[lattice.sample], (goal - errors)[lattice.sample])
    peaks, lifts = _alternation(goal, family.grid)
    if family.norm != "sup" or len(peaks) != lattice.basis.shape[1] + 1:
        return
    signs = np.sign(goal[peaks])
    faces = signs[:, None] * lattice.basis[peaks]
    weights = np.linalg.svd(faces.T)[2][-1]
    weights = weights / weights.sum()
    if not (weights > 0).all():
        return
    level = float(family.norms(goal)[0])
    excess = float(family.norms(errors)[0]) - level
    offset = weights * (level - signs * (errors[peaks] + lifts))
    for share in _SHARES:
        middle = share * excess * (weights - 1 / len(peaks))
        yield lattice.nearest(weights[:, None] * faces, offset + middle)


def _alternation(errors: np.ndarray, grid: _Grid) -> tuple[np.ndarray, np.ndarray]:
    """The largest peaks, one of each run of equal sign, as `_peaks` gives them."""
    places, lifts = _peaks(errors, grid)
    tops = errors[places] + lifts
    high = np.flatnonzero(np.abs(tops) > 0.99 * np.abs(tops).max())
    runs = np.split(high, np.flatnonzero(np.diff(np.sign(tops[high]))) + 1)
    best = np.array([run[np.argmax(np.abs(tops[run]))] for run in runs])
    return places[best], lifts[best]


@dataclass(frozen=True)
class _Lattice:
    """A reduced basis of the changes of the error.

    `basis[:, i]` is the change of the error at each point for one step along reduced vector `i`,
    `turn[i]` that step in spacings of each constant, `base` the constants at
    z = 0 in spacings and `limits` what these may reach, `sample` the rows that measure distance.
    """

    basis: np.ndarray
    turn: np.ndarray
    base: np.ndarray
    limits: np.ndarray
    sample: np.ndarray
    penalty: np.ndarray

    @staticmethod
    def reduced(
        family: _Family, start: Values, steps: Values, reach: float, error: float
    ) -> _Lattice:
        with ctx.workprec(_BITS):
            columns = family.slopes(start, steps)
            largest = [max(float(abs(c).mid()) for c in column) for column in columns]
            # 160 bits for the shortest column: reduced vectors are shorter still by the basis'
            # condition, and must keep the 53 bits of a double.
            shift = 160 - math.frexp(min(largest))[1]
            scaled = fmpz_mat([[_integer(c, shift) for c in column] for column in columns])
        count = len(columns)
        picked = list(range(0, scaled.ncols(), _STRIDE))
        # Where the error hardly depends on some combination, nothing else keeps it from running
        # off to where the linearisation is worthless.
        weight = int(math.ldexp(error * math.sqrt(len(picked)) / reach, shift))
        rows = [
            [scaled[i, k] for k in picked] + [fmpz(weight * (i == k)) for k in range(count)]
            for i in range(count)
        ]
        _, turn = fmpz_mat(rows).lll(transform=True)  # pyright: ignore[reportCallIssue]
        product = np.array([float(v) for v in (turn * scaled).entries()])
        basis = np.ldexp(product, -shift).reshape(count, -1).T.copy()
        turns = [int(v) for v in turn.entries()]
        penalty = np.array(turns, float).reshape(count, count).T
        limits = [2 ** family.formats[j].precision for j in family.free]
        base = [round(start[j] / step) for j, step in zip(family.free, steps, strict=True)]
        # Products wrap, sums of them come back into range: the machine's integers are exact where
        # mantissas fit in them.
        whole = object if max(*limits, *map(abs, base)) > 2**60 else np.int64
        if whole is np.int64:
            turns = [(v + 2**63) % 2**64 - 2**63 for v in turns]
        return _Lattice(
            basis,
            np.array(turns, whole).reshape(count, count),
            np.array(base, whole),
            np.array(limits, whole),
            np.array(picked),
            penalty * (error * math.sqrt(len(picked)) / reach),
        )

    def mantissas(self, points: np.ndarray) -> np.ndarray:
        """The constants at rows of z, in spacings, exactly."""
        return points.astype(np.int64).astype(self.turn.dtype) @ self.turn + self.base

    def fits(self, points: np.ndarray) -> np.ndarray:
        """Whether all mantissas at rows of z are short enough for their formats."""
        mantissas = self.mantissas(points)
        last = np.maximum(mantissas & -mantissas, 1)  # the last bit that is set
        return np.all(np.abs(mantissas) // last <= self.limits, axis=1)

    def nearest(self, rows: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The integer z, one per row, for which `rows @ z` is nearest to the target, by a beam."""
        matrix = np.vstack([rows, self.penalty])
        q, r = np.linalg.qr(matrix)
        rest = q.T @ np.concatenate([target, np.zeros(len(self.penalty))])
        count = matrix.shape[1]
        points, cost = np.zeros((1, count)), np.zeros(1)
        for i in reversed(range(count)):
            centre = (rest[i] - points @ r[i]) / r[i, i]
            choice = np.rint(centre)[:, None] + _CHOICES
            total = cost[:, None] + (r[i, i] * (choice - centre[:, None])) ** 2
            kept = np.argsort(total, axis=None, kind="stable")[:_BEAM]
            points = points[kept // len(_CHOICES)]
            points[:, i] = choice.ravel()[kept]
            cost = total.ravel()[kept]
        return points

    def descend(
        self, family: _Family, errors: np.ndarray, z: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Go to the best neighbour along one or two vectors that fits, as long as that helps."""
        steps = _moves(len(z))
        here = errors + self.basis @ z
        norm = float(family.norms(here)[0])
        for _ in range(_CLIMBS):
            # The tops of today's peaks foretell the norm: one matrix of moves by peaks leaves few
            # moves to look at closely.
            peaks, lifts = _peaks(here, family.grid)
            bounds = np.abs(here[peaks] + lifts + steps @ self.basis[peaks].T).max(axis=1)
            close = np.argsort(bounds, kind="stable")[: 4 * _CLOSE]
            close = close[bounds[close] < norm]
            close = close[self.fits(z + steps[close])][:_CLOSE]
            if not len(close):
                break
            norms = family.norms(here + steps[close] @ self.basis.T)
            best = int(np.argmin(norms))
            if not norms[best] < norm:
                break
            norm, z = float(norms[best]), z + steps[close[best]]
            here = errors + self.basis @ z
        return norm, z


def _moves(count: int) -> np.ndarray:
    """One step or two along one axis, and one along each of two."""
    unit = np.eye(count)
    single = [s * unit[i] for i in range(count) for s in (-2, -1, 1, 2)]
    double = [
        s * unit[i] + t * unit[j]
        for i, j in combinations(range(count), 2)
        for s in (-1, 1)
        for t in (-1, 1)
    ]
    return np.array(single + double)


def _integer(value: arb, shift: int) -> int:
    mantissa, power = value.mid().man_exp()
    places = int(power) + shift
    return int(mantissa) << places if places >= 0 else int(mantissa) >> -places
