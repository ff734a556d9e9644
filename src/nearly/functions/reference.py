"""Truth in float64 for every number of a narrow format, fast enough to check all 2^32 of them.

Per piece of the format's bit patterns one short polynomial, interpolated from ball arithmetic and
checked against it: about a nanosecond per value where the C library needs ten, for any function
that ball arithmetic knows, and independent of any library whose error we would have to believe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import no_type_check

import numba
import numpy as np
from flint import arb, ctx

from nearly.core.errors import InputError, NotProven
from nearly.functions.far import FUNCTIONS, Far
from nearly.functions.formats import Format
from nearly.functions.function import Function
from nearly.functions.taylor_bound import spacing_at

DEGREE = 11
NODES = np.cos(np.pi * (2 * np.arange(DEGREE + 1) + 1) / (2 * DEGREE + 2))
PROBES = np.array([-0.97, 0.31])  # where each polynomial is checked against ball arithmetic
BITS = 128
FAR_BITS = 320  # for |x| > 2^30, where neighbouring points are to be told apart
LIMIT = 1 << 15  # pieces
TINY = 2048  # pieces of at most four numbers: more of them means that a table is no help


@dataclass(frozen=True, eq=False)
class Reference:
    """A function on all numbers of a format in its domain, within a known distance.

    **Arguments:**

    - `ranges`: the bit patterns of the domain, as half-open ranges.
    - `starts`, `stops`: the pieces, in increasing order of bit patterns.
    - `centres`, `scales`: t = (x - centre) * scale runs through [-1, 1] on a piece.
    - `coefficients`: (pieces, DEGREE + 1), highest power of t first.
    - `uncertainty`: how far, absolutely, a piece may be off.
    - `far`: the function far out, where it oscillates too fast for pieces.
    """

    format: Format
    ranges: tuple[tuple[int, int], ...]
    starts: np.ndarray
    stops: np.ndarray
    centres: np.ndarray
    scales: np.ndarray
    coefficients: np.ndarray
    uncertainty: np.ndarray
    far: Far | None = None

    @property
    def count(self) -> int:
        """How many inputs there are."""
        return sum(stop - start for start, stop in self.ranges)

    def at(self, patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Truth and its uncertainty at any bit patterns of the domain."""
        piece = np.searchsorted(self.starts, patterns, side="right") - 1
        x = widened(numbers(self.format, patterns))
        with np.errstate(invalid="ignore", over="ignore"):
            t = np.where(self.scales[piece] == 0, 0.0, (x - self.centres[piece]))
            t = t * self.scales[piece]
            truth = np.zeros_like(t)
            for k in range(DEGREE + 1):
                truth = truth * t + self.coefficients[piece, k]
        doubt = self.uncertainty[piece]
        self._fill_far(x, truth, doubt)
        return truth, doubt

    def fill(self, x: np.ndarray, start: int, truth: np.ndarray, doubt: np.ndarray) -> None:
        """Truth and uncertainty at the consecutive patterns from `start`, whose numbers are `x`."""
        _fill(
            x, start, self.starts, self.stops, self.centres, self.scales, self.coefficients,
            self.uncertainty, truth, doubt,
        )  # fmt: skip
        self._fill_far(x, truth, doubt)

    def _fill_far(self, x: np.ndarray, truth: np.ndarray, doubt: np.ndarray) -> None:
        if self.far is None:
            return
        reached = self.far.reaches(x)
        if np.any(reached):
            truth[reached], doubt[reached] = self.far(x[reached].astype(np.float64))


@numba.njit(cache=True, nogil=True, fastmath={"contract"}, boundscheck=False)
@no_type_check
def _polynomial(x, centre, scale, coefficients, out):
    a, b, c, d = coefficients[0], coefficients[1], coefficients[2], coefficients[3]
    e, f, g, h = coefficients[4], coefficients[5], coefficients[6], coefficients[7]
    k, p, q, r = coefficients[8], coefficients[9], coefficients[10], coefficients[11]
    for j in range(out.size):
        t = (np.float64(x[j]) - centre) * scale
        high = ((((a * t + b) * t + c) * t + d) * t + e) * t + f
        low = ((((g * t + h) * t + k) * t + p) * t + q) * t + r
        cube = t * t * t
        out[j] = high * (cube * cube) + low


@numba.njit(cache=True, nogil=True)
@no_type_check
def _fill(x, start, starts, stops, centres, scales, coefficients, uncertainty, truth, doubt):
    n = x.size
    piece = np.searchsorted(starts, start, side="right") - 1
    i = 0
    while i < n:
        end = min(n, stops[piece] - start)
        doubt[i:end] = uncertainty[piece]
        if scales[piece] == 0.0:
            truth[i:end] = coefficients[piece, -1]
        else:
            _polynomial(x[i:end], centres[piece], scales[piece], coefficients[piece], truth[i:end])
        i = end
        piece += 1


@lru_cache(maxsize=16)
def reference(function: Function) -> Reference:
    """Build the reference of a function whose format has at most 32 bits.

    Takes about a second for 2^32 inputs. Raises `InputError` for a wider format and `NotProven`
    where the function oscillates faster than the format resolves (sin beyond 2^20).
    """
    format = function.format
    if format.bits not in (16, 32):
        raise InputError(
            f"{format.name} has too many numbers to try each; use float32, bfloat16 or float16"
        )
    ranges = pattern_ranges(function)
    pieces: list[_Piece] = []
    half = 1 << (format.bits - 1)
    mirrored = function.parity_on_domain
    far = FUNCTIONS.get(function.name)
    for start, stop in ranges:
        for lo, hi in _binades(format, start, stop):
            if mirrored and lo >= half:
                continue
            last = widened(numbers(format, np.array([hi - 1])))
            first = abs(last[0])
            if far is not None and far.reaches(last)[0]:
                pieces.append(_constant(lo, hi, math.nan, 0.0))
                continue
            with ctx.workprec(BITS if first < 2.0**30 else FAR_BITS):
                _subdivide(function, lo, hi, pieces)
    if mirrored:
        pieces += [_mirror(p, half, mirrored) for p in pieces]
    return Reference(
        format,
        ranges,
        np.array([p.start for p in pieces], np.int64),
        np.array([p.stop for p in pieces], np.int64),
        np.array([p.centre for p in pieces]),
        np.array([p.scale for p in pieces]),
        np.array([p.coefficients for p in pieces]),
        np.array([p.uncertainty for p in pieces]),
        _checked(function, far, ranges) if far is not None else None,
    )


def _checked(function: Function, far: Far, ranges: tuple[tuple[int, int], ...]) -> Far:
    """`far`, if it agrees with ball arithmetic at random points of the domain."""
    random = np.random.default_rng(7)
    patterns = np.concatenate([random.integers(start, stop, 4000) for start, stop in ranges])
    x = widened(numbers(function.format, patterns))
    x = x[far.reaches(x)][:2000]
    truth, (values, doubt) = function.oracle.table(x)[0], far(x)
    agree = (values == truth) | (np.isnan(values) & np.isnan(truth))
    with np.errstate(invalid="ignore"):
        off = ~(agree | (np.abs(values - truth) <= doubt))
    if np.any(off):
        raise NotProven(
            f"the library's {function.name} is wrong at x = {float(x[off][0])!r}, so that there is "
            f"no fast truth beyond {far.start:g}: narrow the domain"
        )
    return far


def numbers(format: Format, patterns: np.ndarray) -> np.ndarray:
    """The numbers of a format with these bit patterns."""
    unsigned = np.dtype(f"uint{format.bits}")
    return np.asarray(patterns).astype(unsigned, copy=False).view(format.dtype)


def widened(x: np.ndarray) -> np.ndarray:
    """Numbers of a narrow format as float64; a signalling NaN does not warn."""
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


def pattern(format: Format, x: float) -> int:
    """The bit pattern of a number of the format."""
    return int(np.asarray([x]).astype(format.dtype).view(np.dtype(f"uint{format.bits}"))[0])


def pattern_ranges(function: Function) -> tuple[tuple[int, int], ...]:
    """The bit patterns of a function's domain: those of all numbers between its ends.

    For the domain ("-inf", "inf") every pattern, NaN included.
    """
    format = function.format
    half = 1 << (format.bits - 1)
    lo, hi = format_ends(function)
    if math.isinf(lo) and math.isinf(hi):
        return ((0, 2 * half),)
    ranges = []
    if hi >= 0:
        ranges.append((pattern(format, max(lo, 0.0)), pattern(format, hi) + 1))
    if lo <= 0:
        ranges.append((half + pattern(format, max(-hi, 0.0)), half + pattern(format, abs(lo)) + 1))
    return tuple(ranges)


def format_ends(function: Function) -> tuple[float, float]:
    """The smallest and the largest number of the format in the domain (float64)."""
    lo, hi = function.ends
    return _inward(function.format, lo, 1), _inward(function.format, hi, -1)


def _inward(format: Format, end: arb, sign: int) -> float:
    if not end.is_finite():
        return float(end)
    nearest = float(np.asarray(float(end)).astype(format.dtype))
    outside = arb(nearest) < end if sign > 0 else arb(nearest) > end
    if not outside:
        return nearest
    one = np.asarray(nearest).astype(format.dtype)
    return float(np.nextafter(one, np.asarray(sign * math.inf).astype(format.dtype)))


def truth_at(function: Function, x: float) -> float:
    """The correctly rounded float64 of f(x); NaN where f is undefined."""
    return float(function.oracle.table(np.array([x]))[0][0])


def error_in_ulps(function: Function, x: float, y: float, least: float = 0.0) -> float:
    """|y - f(x)| over the format's spacing at f(x), by ball arithmetic; for a number y.

    The spacing is not taken smaller than at `least`. 0 where both are NaN, or where the truth
    rounds to the infinity y; infinite where only one is NaN or an infinity is wrong. An infinity
    counts as the number after the largest.
    """
    format = function.format
    truth = _settled(function, x)
    if truth is None:
        return 0.0 if math.isnan(y) else math.inf
    if math.isnan(y):
        return math.inf
    with ctx.workprec(FAR_BITS):
        largest = arb(float(format.largest))
        top = arb(2) ** (format.emax - format.precision + 1)
        if not truth.is_finite() and math.isfinite(y):
            return math.inf
        if math.isinf(y):
            if bool(truth > 0) != (y > 0) or abs(truth) <= largest:
                return math.inf
            return (
                float((largest + top - abs(truth)) / top) if abs(truth) < largest + top / 2 else 0.0
            )
        size = abs(truth).mid().max(arb(least))
        return nearest(abs(arb(y) - truth) / arb(spacing_at(format, size)))


def errors_at(
    function: Function, high: np.ndarray, low: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """The errors of computed values in the function's measure; truth is `high + low`.

    Two NaNs agree; so do an infinity and a truth that rounds to it. Otherwise an infinity counts
    as the number after the largest if the truth is past the largest; if not, it is infinitely
    wrong.
    """
    format = function.format
    with np.errstate(all="ignore"):
        y = values.astype(np.float64)
        largest = float(format.largest)
        top = math.ldexp(1.0, format.emax - format.precision + 1)
        beyond = np.isinf(y) & (np.sign(y) == np.sign(high)) & (np.abs(high) > largest)
        excess = (np.abs(high) - largest) / top
        # In float64 the truth past the largest number is infinite, and so is its excess.
        gap = np.where(excess >= 0.5, 0.0, (1 - excess) * top)
        difference = np.where(beyond, gap, np.abs((y - high) - low))
        agree = (np.isnan(y) & np.isnan(high)) | (y == high) & (low == 0)
        if function.error == "ulp":
            scale = format.ulps(high)
        elif function.error == "relative":
            scale = np.abs(high)
        else:
            scale = np.ones_like(high)
        errors = np.where(agree | (difference == 0), 0.0, difference / scale)
    return np.where(np.isnan(errors), math.inf, errors)


def _settled(function: Function, x: float) -> arb | None:
    """The truth, None where it is undefined."""
    if math.isnan(x):
        return None
    special = function.oracle.special.get(x)
    if special is not None:
        return None if math.isnan(special) else arb(special)
    if not math.isfinite(x):
        value = truth_at(function, x)
        return None if math.isnan(value) else arb(value)
    try:
        return function.oracle.at(arb(x), 100)
    except NotProven:
        return None


def nearest(ball: arb) -> float:
    """A ball's midpoint in float64, rounded to nearest: `float` truncates."""
    truncated = float(ball)
    return truncated + float(ball - truncated) if math.isfinite(truncated) else truncated


@dataclass(frozen=True)
class _Piece:
    start: int
    stop: int
    centre: float
    scale: float
    coefficients: np.ndarray
    uncertainty: float


def _constant(start: int, stop: int, value: float, uncertainty: float) -> _Piece:
    coefficients = np.zeros(DEGREE + 1)
    coefficients[-1] = value
    return _Piece(start, stop, 0.0, 0.0, coefficients, uncertainty)


def _binades(format: Format, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Split a range at the powers of two, and set zeros, infinities and NaNs apart."""
    half, step = 1 << (format.bits - 1), 1 << (format.precision - 1)
    infinity = (format.emax - format.emin + 2) * step
    marks = {start, stop}
    for sign in (0, half):
        marks |= {sign, sign + 1, sign + infinity, sign + infinity + 1, sign + half}
        marks |= set(range(sign + step, sign + infinity, step))
    inside = sorted(m for m in marks if start <= m <= stop)
    yield from pairwise(inside)


def _mirror(piece: _Piece, half: int, parity: str) -> _Piece:
    """The piece at the negative numbers of an even or odd function."""
    return _Piece(
        piece.start + half,
        piece.stop + half,
        -piece.centre,
        -piece.scale,
        piece.coefficients if parity == "even" else -piece.coefficients,
        piece.uncertainty,
    )


def _subdivide(function: Function, start: int, stop: int, pieces: list[_Piece]) -> None:
    stack = [(start, stop)]
    tiny = 0
    width = stop - start  # of the last piece that was accurate: the next ones are hardly wider
    while stack:
        lo, hi = stack.pop()
        if hi - lo > 2 * max(width, 4):
            middle = (lo + hi) // 2
            stack += [(middle, hi), (lo, middle)]
            continue
        piece = _fit(function, lo, hi)
        if piece is not None:
            pieces.append(piece)
            width = hi - lo
            tiny += width <= 4
            if len(pieces) > LIMIT or tiny > TINY:
                raise NotProven(
                    f"{function.name} varies too fast for a table over this domain; narrow it"
                )
            continue
        middle = (lo + hi) // 2
        stack += [(middle, hi), (lo, middle)]


def _fit(function: Function, start: int, stop: int) -> _Piece | None:
    """A piece that is accurate, or None if it must be halved."""
    format = function.format
    first, last = widened(numbers(format, np.array([start, stop - 1])))
    if math.isnan(first):
        return _constant(start, stop, math.nan, 0.0)
    if stop - start == 1 or not math.isfinite(first):
        value = truth_at(function, float(first))
        return _constant(start, stop, value, abs(value) * 2.0**-52 if math.isfinite(value) else 0.0)
    whole = _enclosed(function, arb(first).union(arb(last)))
    negligible = arb(2) ** (format.emin - format.precision - 40)
    if whole.is_finite() and whole.abs_upper() < negligible:
        return _constant(start, stop, 0.0, float(negligible))
    return _interpolated(function, start, stop, first, last)


def _enclosed(function: Function, x: arb) -> arb:
    try:
        return function.oracle.value(x)
    except (ValueError, ZeroDivisionError, NotProven):
        return arb.nan()


def _interpolated(
    function: Function, start: int, stop: int, first: float, last: float
) -> _Piece | None:
    format = function.format
    centre, half = first + (last - first) / 2, abs(last - first) / 2
    if stop - start == 2:
        return None
    points = [arb(centre) + arb(half) * arb(t) for t in (*NODES, *PROBES, -1.0, 1.0)]
    balls = [_enclosed(function, x) for x in points]
    if not any(b.is_finite() for b in balls):
        low, high = (truth_at(function, float(x)) for x in (first, last))
        same = low == high or (math.isnan(low) and math.isnan(high))
        return _constant(start, stop, low, 0.0) if same else None
    if not all(b.is_finite() and (b.rel_accuracy_bits() > 60 or b.is_zero()) for b in balls):
        return None
    values = np.array([nearest(b) for b in balls])
    size = np.max(np.abs(values))
    huge = math.ldexp(1.0, format.emax + 2)
    if np.min(values) > huge or np.max(values) < -huge:  # balls about such values contain zero
        return _constant(start, stop, math.copysign(math.inf, values[0]), 0.0)
    if not size < 4 * huge:
        return None
    chebyshev = _TO_CHEBYSHEV @ values[: DEGREE + 1].astype(np.longdouble)
    monomial = (_TO_MONOMIAL @ chebyshev)[::-1].astype(np.float64)
    probed = np.polyval(monomial, (*PROBES, -1.0, 1.0))
    error = max(np.max(np.abs(chebyshev[-2:])), np.max(np.abs(probed - values[-4:])))
    uncertainty = size * 2.0**-49
    finest = format.ulps(np.min(np.abs(values)))
    # Near a zero inside the piece only few inputs are in doubt, and they are computed exactly.
    crosses = np.min(values) < 0 < np.max(values)
    precise = uncertainty <= 2.0**-12 * finest or stop - start <= 1024 or crosses
    if error > size * 2.0**-50 or not precise:
        return None
    return _Piece(start, stop, centre, 1 / half, monomial, float(uncertainty))


def _chebyshev_transform() -> np.ndarray:
    n = DEGREE + 1
    angles = 4 * np.arctan(np.longdouble(1)) * (2 * np.arange(n, dtype=np.longdouble) + 1) / (2 * n)
    matrix = np.cos(np.arange(n)[:, None] * angles[None, :]) * 2 / n
    matrix[0] /= 2
    return matrix


def _chebyshev_to_monomial() -> np.ndarray:
    columns = [np.polynomial.chebyshev.cheb2poly([0] * k + [1]) for k in range(DEGREE + 1)]
    matrix = np.zeros((DEGREE + 1, DEGREE + 1), np.longdouble)
    for k, column in enumerate(columns):
        matrix[: len(column), k] = column
    return matrix


_TO_CHEBYSHEV = _chebyshev_transform()
_TO_MONOMIAL = _chebyshev_to_monomial()
