"""Bounds on the error of a program that are proven, for the program as it is evaluated."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, NamedTuple

import numpy as np
from flint import arb, ctx

from nearly.core.errors import InputError, NotProven
from nearly.functions.formats import Format
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.reference import errors_at, format_ends, numbers
from nearly.functions.roundoff.analysis import Analysis, analyse
from nearly.functions.roundoff.enclosures import half_spacing
from nearly.functions.roundoff.integer_steps import is_shift
from nearly.functions.roundoff.specialise import specialise
from nearly.functions.taylor_bound import Bound, Piece, bound_error, down, up

Contraction = Literal["as written", "any"]

ROWS = 300_000  # intervals at most
SHARP = 1.02  # a rounding bound this near to that at single points is good enough
_FAR = 2.0**30
EARLY = 16  # bits into an interval after which an integer's two values are just both allowed

# On these, enclosures on an interval come from its ends.
_INCREASING = (
    {"exp", "exp2", "exp10", "expm1", "log", "log2", "log10", "log1p", "sqrt", "cbrt"}
    | {"asin", "atan", "sinh", "tanh", "asinh", "acosh", "atanh"}
    | {"erf", "erfinv", "sigmoid", "softplus", "ndtr"}
)
_DEFINED_ON_AN_INTERVAL = _INCREASING | {"rsqrt", "acos"}


@dataclass(frozen=True)
class Proof:
    """A guaranteed bound on the error of a program over the whole domain.

    **Arguments:**

    - `total`: no error is larger, in the function's measure.
    - `approximation`: bound on the error in exact arithmetic.
    - `rounding`: bound on what rounding adds; 0 over the reals. The two largest values need not
      occur together, so `total` may be below their sum.
    - `ulp`: `total` in ULP; `None` over the reals.
    - `pieces`: into how many intervals the domain was cut.
    - `seconds`: what the proof took.
    - `contraction`: whether it holds for the operations as written, or for any contraction of a
      product with a sum.
    """

    total: float
    approximation: float
    rounding: float
    ulp: float | None
    pieces: int
    seconds: float
    contraction: str


def prove(
    function: Function, program: Program, *, contraction: Contraction = "as written"
) -> Proof:
    """Prove a bound on a program's error.

    **Arguments:**

    - `function`: what the program approximates, where, and the measure of the error.
    - `program`: over `"real"`, or in the function's format.
    - `contraction`: `"as written"`: every operation rounds, an fma once. `"any"`: each product,
      fma's included, may or may not be rounded before it is added: what XLA and compilers with
      `-ffp-contract=fast` do, and C code without an fma instruction.

    **Returns:** a `Proof`. Over the reals the bound lies within 0.05% above an error that occurs.

    **Raises:** `NotProven`, with what stood in the way and where: a pole, a zero of the function
    that the program does not share, an integer step that the analysis cannot follow. It says
    nothing about the program being wrong.

    Cost: about 0.1 s over the reals, below 1 s on a reduced domain of a machine format, minutes at
    most over a whole format (thousands of pieces, one for each value of a range reduction's
    integer). Unlike Gappa or Fluctuat no hints are needed, and the approximation error is bounded
    by the same call.
    """
    begun = time.perf_counter()
    if not function.provable:
        raise NotProven(f"{function.name} is known only through its float64 values")
    if program.format.is_real:
        bound = _real(function, program)
        seconds = time.perf_counter() - begun
        return Proof(bound.upper, bound.upper, 0.0, None, len(bound.pieces), seconds, "as written")
    if program.dtype != function.dtype:
        raise InputError(
            f"the program computes in {program.dtype}, the function is asked for in "
            f"{function.dtype}: use program.in_format({function.dtype!r})"
        )
    if contraction == "any":
        program = program.unfused()
    rows = _Rounding(function, program, contraction == "any").run()
    measures = _bounded(function, program, rows)
    in_ulp = measures
    if function.error != "ulp":
        in_ulp = _bounded(replace(function, error="ulp"), program, rows)
    return Proof(
        measures.total,
        measures.approximation,
        measures.rounding,
        in_ulp.total,
        rows.lo.size,
        time.perf_counter() - begun,
        contraction,
    )


def _real(function: Function, program: Program) -> Bound:
    lo, hi = function.interval
    digits = 64
    while True:
        floor = 2.0 ** (-1.5 * digits)
        bound = bound_error(function, [Piece(lo, hi, program)], expected=2.0**-digits, floor=floor)
        if bound.upper > floor or digits >= 512:
            return bound
        digits *= 2


# -------------------------------------------------------------------------------- machine formats


class _Rows(NamedTuple):
    """Intervals of the domain on which every decision is made, and the bounds there."""

    lo: np.ndarray
    hi: np.ndarray
    rounding: np.ndarray  # absolute
    truth_low: np.ndarray  # smallest and largest |f|
    truth_high: np.ndarray
    infinite: np.ndarray  # program and function both overflow, or both are undefined
    choices: np.ndarray
    special: float  # the error at zero, infinities and NaN, in ULP


@dataclass(frozen=True)
class _Work:
    """Intervals between two numbers of one sign, by their bit patterns without the sign."""

    sign: np.ndarray
    first: np.ndarray
    last: np.ndarray
    forced: dict[int, tuple[np.ndarray, np.ndarray]]

    def take(self, index: np.ndarray) -> _Work:
        forced = {i: (a[index], b[index]) for i, (a, b) in self.forced.items()}
        return _Work(self.sign[index], self.first[index], self.last[index], forced)

    @staticmethod
    def joined(parts: Sequence[_Work]) -> _Work:
        keys = sorted({i for p in parts for i in p.forced})
        forced = {}
        for i in keys:
            bounds = [p.forced.get(i, _free(p.first.size)) for p in parts]
            forced[i] = tuple(np.concatenate([b[k] for b in bounds]) for k in (0, 1))
        return _Work(
            np.concatenate([p.sign for p in parts]),
            np.concatenate([p.first for p in parts]),
            np.concatenate([p.last for p in parts]),
            forced,
        )


def _free(n: int) -> tuple[np.ndarray, np.ndarray]:
    wide = np.int64(1) << np.int64(62)
    return np.full(n, -wide), np.full(n, wide)


class _Rounding:
    """Cuts the domain until every decision is made and the rounding bound is sharp."""

    def __init__(self, function: Function, program: Program, contracted: bool) -> None:
        self.function, self.program, self.contracted = function, program, contracted
        self.format = function.format

    def run(self) -> _Rows:
        special = self._special()
        done: list[tuple[_Work, Analysis]] = []
        pending = self._binades()
        while pending.first.size:
            analysis = self._analyse(pending)
            settled = analysis.undecided < 0
            done.append((pending.take(settled), _select_rows(analysis, settled)))
            pending = self._split(pending.take(~settled), _select_rows(analysis, ~settled))
            if sum(w.first.size for w, _ in done) + pending.first.size > ROWS:
                raise NotProven(f"more than {ROWS} pieces are needed for {self.function}")
        return self._sharpened(_Work.joined([w for w, _ in done]), special)

    def _analyse(self, work: _Work) -> Analysis:
        lo, hi = self._ends(work)
        return analyse(self.program, self.format, lo, hi, work.forced, self.contracted)

    def _ends(self, work: _Work) -> tuple[np.ndarray, np.ndarray]:
        a, b = (
            numbers(self.format, p).astype(np.float64) * work.sign for p in (work.first, work.last)
        )
        return np.minimum(a, b), np.maximum(a, b)

    def _binades(self) -> _Work:
        """The binades of the domain, subnormal numbers as one; zero is apart."""
        step = 1 << (self.format.precision - 1)
        top = (self.format.emax - self.format.emin + 2) * step
        lo, hi = format_ends(self.function)
        signs, firsts, lasts = [], [], []
        for sign, near, far in ((1.0, max(lo, 0.0), hi), (-1.0, max(-hi, 0.0), -lo)):
            if far <= 0:
                continue
            first, last = (min(_magnitude(self.format, end), top - 1) for end in (near, far))
            first = max(first, 1)
            marks = [m for m in range(step, top, step) if first < m <= last]
            starts = [first, *marks]
            stops = [*(m - 1 for m in marks), last]
            signs += [sign] * len(starts)
            firsts += starts
            lasts += stops
        return _Work(np.array(signs), np.array(firsts, np.int64), np.array(lasts, np.int64), {})

    def _special(self) -> float:
        """The error at zeros, infinities and NaN, which are evaluated as they are."""
        lo, hi = format_ends(self.function)
        points = [p for p in (0.0, -0.0) if lo <= 0 <= hi]
        points += [p for p in (-math.inf, math.inf) if lo <= p <= hi]
        if math.isinf(lo) and math.isinf(hi):
            points.append(math.nan)
        if not points:
            return 0.0
        x = np.array(points)
        high, low = self.function.oracle.table(x)
        values = self.program(x.astype(self.format.dtype))
        return float(errors_at(self.function, high, low, values).max())

    def _split(self, work: _Work, analysis: Analysis) -> _Work:
        possible = analysis.low_outcome <= analysis.high_outcome
        work, analysis = work.take(possible), _select_rows(analysis, possible)
        narrow = work.last - work.first < max(1, 1 << max(0, self.format.precision - 1 - EARLY))
        two = analysis.high_outcome - analysis.low_outcome == 1
        whole = self._integer_steps()[analysis.undecided] & two & narrow
        branch = whole | (work.first == work.last)
        halves = work.take(~branch)
        middle = halves.first + (halves.last - halves.first) // 2
        parts = [replace(halves, last=middle), replace(halves, first=middle + 1)]
        return _Work.joined([*parts, *self._branches(work.take(branch), analysis, branch)])

    def _integer_steps(self) -> np.ndarray:
        register = self.format.computing
        return np.array(
            [
                i[0] in ("round", "to_int") or is_shift(self.program, i, register)
                for i in self.program.instructions
            ]
        )

    def _branches(self, work: _Work, analysis: Analysis, branch: np.ndarray) -> list[_Work]:
        chosen = _select_rows(analysis, branch)
        parts = []
        for i in np.unique(chosen.undecided):
            mine = chosen.undecided == i
            rows = work.take(mine)
            low, high = chosen.low_outcome[mine], chosen.high_outcome[mine]
            count = int(np.max(high - low)) + 1
            if count > 8:
                where = float(self._ends(rows)[0][np.argmax(high - low)])
                raise NotProven(
                    f"instruction {i} ({' '.join(self.program.instructions[i])}) cannot be decided "
                    f"at x = {where!r}"
                )
            for k in range(count):
                mine = low + k <= high
                part = rows.take(mine)
                outcome = (low + k)[mine]
                part.forced[int(i)] = (outcome, outcome)
                parts.append(part)
        return parts

    def _sharpened(self, work: _Work, special: float) -> _Rows:
        """Halve the intervals whose bound is far above that at single numbers."""
        kept: list[_Work] = []
        best = 0.0
        for _ in range(64):
            analysis = self._analyse(work)
            points = replace(work, last=work.first)
            bound = self._measured(work, analysis)
            single = self._analyse(points)
            at_point = self._measured(points, single)
            # A forced outcome need not be possible at this very point.
            counts = np.isfinite(at_point) & (single.undecided < 0)
            best = max(best, float(at_point[counts].max(initial=0.0)))
            loose = ~(bound <= SHARP * best) & (work.first < work.last)
            kept.append(work.take(~loose))
            work = work.take(loose)
            if not work.first.size:
                return self._rows(_Work.joined(kept), special)
            middle = work.first + (work.last - work.first) // 2
            work = _Work.joined([replace(work, last=middle), replace(work, first=middle + 1)])
            if sum(w.first.size for w in kept) + work.first.size > ROWS:
                break
        raise NotProven(f"the rounding bound of {self.function} needs more than {ROWS} pieces")

    def _measured(self, work: _Work, analysis: Analysis) -> np.ndarray:
        """The rounding bound in the function's measure."""
        low, _ = self._truth(work)
        absolute = analysis.rounding + _stored(self.format, analysis)
        infinite = ~np.isfinite(analysis.lo)
        return np.where(infinite, 0.0, _in_measure(self.function, absolute, low))

    def _truth(self, work: _Work) -> tuple[np.ndarray, np.ndarray]:
        lo, hi = self._ends(work)
        # Enough to tell exp2(x) from 1 for the smallest x: the spacing differs below and above.
        with ctx.workprec(64 + self.format.precision - self.format.emin):
            return _enclosures(self.function, lo, hi)

    def _rows(self, work: _Work, special: float) -> _Rows:
        analysis = self._analyse(work)
        lo, hi = self._ends(work)
        low, high = self._truth(work)
        edge = float(self.format.largest) * (1 + 2.0 ** -(self.format.precision + 1))
        stored_low = np.where(analysis.lo > 0, analysis.lo, -analysis.hi)
        infinite = (stored_low > edge) & (low > edge)
        infinite |= self._undefined(lo, hi, np.isnan(analysis.lo))
        wrong = ~np.isfinite(analysis.lo) & ~infinite
        if np.any(wrong):
            at = int(np.argmax(wrong))
            raise NotProven(
                f"the program gives {float(analysis.lo[at])} at x = {float(lo[at])!r}, and that "
                "the function does so too could not be shown"
            )
        rounding = analysis.rounding + _stored(self.format, analysis)
        return _Rows(lo, hi, rounding, low, high, infinite, analysis.choices, special)

    def _undefined(self, lo: np.ndarray, hi: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        """Where the function is undefined on a whole interval, of those asked for."""
        result = np.zeros(lo.size, bool)
        rows = np.flatnonzero(candidates)
        if rows.size and self.function.name in _DEFINED_ON_AN_INTERVAL:
            # An interval of one sign within a binade, both ends outside: so is all between them.
            ends = [self.function.oracle.table(end[rows])[0] for end in (lo, hi)]
            result[rows] = np.isnan(ends[0]) & np.isnan(ends[1])
        return result


def _select_rows(analysis: Analysis, index: np.ndarray) -> Analysis:
    return Analysis(
        analysis.rounding[index],
        analysis.lo[index],
        analysis.hi[index],
        analysis.undecided[index],
        analysis.low_outcome[index],
        analysis.high_outcome[index],
        analysis.choices[index],
    )


def _magnitude(format: Format, x: float) -> int:
    """The bit pattern of |x|."""
    return int(np.asarray([abs(x)]).astype(format.dtype).view(f"uint{format.bits}")[0])


def _stored(format: Format, analysis: Analysis) -> np.ndarray:
    """What the last rounding to a 16-bit storage adds."""
    if format.register == format.name:
        return np.zeros(analysis.lo.size)
    finite = np.isfinite(analysis.lo) & np.isfinite(analysis.hi)
    lo, hi = (np.where(finite, end, 0.0) for end in (analysis.lo, analysis.hi))
    return half_spacing(format, lo, hi)


def _in_measure(function: Function, error: np.ndarray, truth_low: np.ndarray) -> np.ndarray:
    """An upper bound on an absolute error in the function's measure."""
    if function.error == "absolute":
        return error
    if function.error == "relative":
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error == 0, 0.0, np.nextafter(error / truth_low, math.inf))
    return error / function.format.ulps(np.where(np.isfinite(truth_low), truth_low, 0.0))


def _enclosures(
    function: Function, lo: np.ndarray, hi: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on |f| over the intervals."""
    enclose = _between_ends if function.name in _INCREASING else _in_a_ball
    bounds = [enclose(function, a, b) for a, b in zip(lo.tolist(), hi.tolist(), strict=True)]
    lows, highs = zip(*bounds, strict=True)
    return np.array(lows), np.array(highs)


def _least(function: Function, ball: arb) -> float:
    """The smallest magnitude; infinite where it rounds to an infinity of the format."""
    if ball.is_finite() and ball.abs_lower() >= arb(2) ** (function.format.emax + 1):
        return math.inf
    return down(ball)


def _in_a_ball(function: Function, a: float, b: float) -> tuple[float, float]:
    ball = function.oracle.value(arb(a).union(arb(b)))
    return _least(function, ball), up(ball)


def _between_ends(function: Function, a: float, b: float) -> tuple[float, float]:
    at_a, at_b = (function.oracle.value(arb(x)) for x in (a, b))
    if not at_a.is_finite():  # an exponential so far out overflows even the exponents of balls
        at_a = function.oracle.value(arb(min(a, _FAR)))
    if at_a > 0:
        return _least(function, at_a), up(at_b)
    if at_b < 0:
        return _least(function, at_b), up(at_a)
    return 0.0, max(up(at_a), up(at_b))


class _Measures(NamedTuple):
    total: float
    approximation: float
    rounding: float


def _bounded(function: Function, program: Program, rows: _Rows) -> _Measures:
    """Approximation and rounding together, in the function's measure."""
    finite = np.flatnonzero(~rows.infinite)
    rounding = _in_measure(function, rows.rounding[finite], rows.truth_low[finite])
    order = finite[np.argsort(rows.lo[finite], kind="stable")]
    pieces, owner = _pieces(program, rows, order)
    floor = 1e-4 if function.error == "ulp" else 2.0 ** -(function.format.precision + 13)
    if function.error == "absolute":
        floor *= float(np.max(rows.truth_high[finite], initial=0.0)) or 1.0
    bound = bound_error(function, pieces, expected=2.0**-64, slack=2e-3, floor=floor)
    approximation = _over_rows(bound, rows, finite, owner)
    total = float(np.max(np.nextafter(approximation + rounding, math.inf), initial=0.0))
    special = rows.special
    return _Measures(
        max(total, special),
        bound.upper,
        float(np.max(rounding, initial=0.0)),
    )


def _pieces(
    program: Program, rows: _Rows, order: np.ndarray
) -> tuple[list[Piece], dict[int, Program]]:
    """Neighbouring rows with the same outcomes as one piece; and the program of every row."""
    register = program.format.computing
    keys, group = np.unique(rows.choices[order], axis=0, return_inverse=True)
    group = group.reshape(-1)
    programs = [specialise(program, key, register) for key in keys]
    pieces: list[Piece] = []
    latest: dict[int, int] = {}
    owner: dict[int, Program] = {}
    step = 2.0**-20
    for row, g in zip(order.tolist(), group.tolist(), strict=True):
        own = programs[g]
        if own is None:
            raise NotProven(
                f"the program gives an infinity at x = {float(rows.lo[row])!r}, where "
                "the function is finite"
            )
        owner[row] = own
        lo, hi = Fraction(float(rows.lo[row])), Fraction(float(rows.hi[row]))
        known = latest.get(g)
        near = known is not None and lo - pieces[known].hi <= step * max(abs(lo), abs(hi))
        if known is not None and near:
            pieces[known] = pieces[known]._replace(hi=max(hi, pieces[known].hi))
        else:
            latest[g] = len(pieces)
            pieces.append(Piece(lo, hi, own))
    return pieces, owner


def _over_rows(
    bound: Bound, rows: _Rows, finite: np.ndarray, owner: dict[int, Program]
) -> np.ndarray:
    """For each row the largest approximation bound of the pieces of its program that it meets."""
    of_program: dict[int, list[int]] = {}
    for k, piece in enumerate(bound.pieces):
        of_program.setdefault(id(piece.program), []).append(k)
    result = np.zeros(finite.size)
    for mine in of_program.values():
        mine.sort(key=lambda k: bound.pieces[k].lo)
    tables = {
        key: (
            np.array([float(bound.pieces[k].lo) for k in mine]),
            np.array([float(bound.pieces[k].hi) for k in mine]),
            np.array([bound.uppers[k] for k in mine]),
        )
        for key, mine in of_program.items()
    }
    for j, row in enumerate(finite.tolist()):
        lows, highs, uppers = tables[id(owner[row])]
        with np.errstate(over="ignore"):  # the neighbour of the largest number
            lowest, highest = (
                np.nextafter(rows.lo[row], -math.inf),
                np.nextafter(rows.hi[row], math.inf),
            )
        meets = (lows <= highest) & (highs >= lowest)
        result[j] = uppers[meets].max()
    return result
