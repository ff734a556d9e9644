"""How wrong a program is: measured by a dense search, or proven by ball arithmetic.

`measure` looks everywhere an error is likely to be largest, `prove` bounds it; what is in between
is the gap that a user must know about, so results say which of the two they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from flint import arb, ctx

from nearly.core.errors import InputError, NotProven
from nearly.core.store import Store, digest_of, file_digest, source_digest
from nearly.functions.balls import exact
from nearly.functions.formats import Format
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.proof import Proof, prove
from nearly.functions.reference import (
    errors_at,
    format_ends,
    nearest,
    numbers,
    pattern_ranges,
    reference,
    widened,
)
from nearly.functions.user import Compiled

__all__ = ["Measured", "Proof", "measure", "prove"]

GRID = 384  # points of the first search over the reals
SAMPLE = 1 << 19  # numbers of a narrow format, whose truth is a table
WIDE_SAMPLE = 1 << 14  # numbers of float64, whose truth is ball arithmetic


@dataclass(frozen=True)
class Measured:
    """The result of a dense search.

    **Arguments:**

    - `error`: the largest error found, in the function's measure and norm (for the l2 norm the
      same number as `l2`).
    - `at`: where the largest error was found.
    - `l2`: root mean square of the error over the domain.
    - `points`: how many points were tried.
    """

    error: float
    at: float
    l2: float
    points: int


def measure(function: Function, program: Program | Compiled) -> Measured:
    """Search for the largest error of a program.

    **Arguments:**

    - `function`: what it approximates; its `error` and `norm` say what is measured.
    - `program`: over `"real"` it is evaluated in exact arithmetic (a few hundred bits); in a
      machine format bit for bit as it computes, on half a million numbers of a narrow format or
      2^14 of float64, with a closer look around the worst.

    **Returns:** a `Measured`: a lower bound that is usually within 1e-4 of the true supremum over
    the reals, and within a few per cent of the worst case of a machine program. An error that is
    infinite (a pole between two points, a NaN, a zero of the function missed) is found by the sign
    changes of denominators and by following local maxima.

    Cost: 10 to 30 ms over the reals; in a machine format 50 ms, after about a second, once per
    function, for the truth.
    """
    if isinstance(program, Program) and program.format.is_real:
        return _measure_real(function, program)
    if program.dtype != function.dtype:
        raise InputError(
            f"the program computes in {program.dtype}, the function is asked for in "
            f"{function.dtype}: use program.in_format({function.dtype!r})"
        )
    return _measure_machine(function, program)


# --------------------------------------------------------------------------------------- the reals


class _Grid(NamedTuple):
    """Points of the domain at angles theta, from its lower end (0) to its upper (pi)."""

    angles: np.ndarray
    points: list[arb]
    truth: list[arb]


class _Point(NamedTuple):
    error: float  # signed; infinite where it is not finite
    relative_radius: float  # of the ball it came from
    denominators: tuple[float, ...]  # 0 where the sign is undecided


def _measure_real(function: Function, program: Program) -> Measured:
    bits = 256
    while True:
        with ctx.workprec(bits):
            grid = _grid(function, bits)
            found = [
                _error_at(function, program, x, f)
                for x, f in zip(grid.points, grid.truth, strict=True)
            ]
            doubtful = any(p.relative_radius > 1e-6 for p in found if math.isfinite(p.error))
            if not doubtful or bits >= 4096:
                return _searched(function, program, grid, found)
        bits *= 2


@lru_cache(maxsize=64)
def _grid(function: Function, bits: int) -> _Grid:
    angles = np.linspace(0.0, np.pi, GRID + 1)
    with ctx.workprec(bits):
        points = [_place(function, float(angle)) for angle in angles]
        truth = [_truth(function, x) for x in points]
        # Where the function itself has no value (log at 0), one-sided: a hair inside.
        for k in (0, GRID):
            if not truth[k].is_finite():
                points[k] = points[k] + (points[GRID // 2] - points[k]) * arb(2) ** -80
                truth[k] = _truth(function, points[k])
    return _Grid(angles, points, truth)


def _place(function: Function, angle: float) -> arb:
    lo, hi = function.ends
    if angle <= 0 or angle >= np.pi:
        return lo if angle <= 0 else hi
    return (lo + hi) / 2 - (hi - lo) / 2 * arb(math.cos(angle))


def _truth(function: Function, x: arb) -> arb:
    try:
        return function.oracle.value(x)
    except (ValueError, ZeroDivisionError):
        return arb.nan()


def _error_at(function: Function, program: Program, x: arb, truth: arb) -> _Point:
    denominators: list[float] = []

    def divide(a: arb, b: arb) -> arb:
        denominators.append(0.0 if b.contains(0) else float(b))
        return a / b

    y = program.run(x, {**_EXACT, "div": divide}, _constant)
    difference = y - truth
    if function.error == "ulp":
        size = nearest(abs(truth))
        error = difference / arb(float(function.format.ulps(np.array(size))))
    elif function.error == "relative" and not difference.is_zero():
        error = difference / truth
    else:
        error = difference
    if not error.is_finite():
        return _Point(math.inf, 0.0, tuple(denominators))
    value, radius = nearest(error), float(error.rad())
    # Two values that agree to all digits have no error that matters.
    if abs(value) + radius < 2.0 ** -(ctx.prec - 40):
        return _Point(0.0, 0.0, tuple(denominators))
    return _Point(value, radius / abs(value) if value else math.inf, tuple(denominators))


_EXACT: Mapping[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "fma": lambda a, b, c: a * b + c,
    "sqrt": lambda a: a.sqrt(),
    "neg": lambda a: -a,
    "abs": abs,
}


def _constant(value: Any) -> arb:
    return exact(value) if not isinstance(value, float) else arb(value)


def _searched(function: Function, program: Program, grid: _Grid, found: list[_Point]) -> Measured:
    evaluate = _Evaluation(function, program)
    errors = np.array([p.error for p in found])
    for k in np.flatnonzero(~np.isfinite(errors)):
        errors[k] = evaluate.beside(float(grid.angles[k])).error
    best, angle = _follow(evaluate, grid.angles, errors)
    pole = _pole(evaluate, grid.angles, found, best)
    if pole is not None:
        best, angle = math.inf, pole
    at = nearest(_place(function, angle))
    l2 = _root_mean_square(errors) if math.isfinite(best) else math.inf
    error = l2 if function.norm == "l2" else best
    return Measured(error, at, l2, GRID + 1 + evaluate.count)


@dataclass
class _Evaluation:
    """The error as a function of the angle; counts what it costs."""

    function: Function
    program: Program
    count: int = 0

    def __call__(self, angle: float) -> _Point:
        return self.at(_place(self.function, min(max(angle, 0.0), math.pi)))

    def at(self, x: arb) -> _Point:
        self.count += 1
        return _error_at(self.function, self.program, x, _truth(self.function, x))

    def beside(self, angle: float) -> _Point:
        """A hair inside the domain: the one-sided limit at a removable singularity."""
        lo, hi = self.function.ends
        hair = (hi - lo) * arb(2) ** -(ctx.prec // 3)
        x = _place(self.function, angle)
        return self.at(x + hair if angle < math.pi / 2 else x - hair)


def _follow(evaluate: _Evaluation, angles: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """The largest |error|: grid points, and parabolas through the largest local extrema."""
    sizes = np.abs(errors)
    top = int(np.argmax(sizes))
    best, where = float(sizes[top]), float(angles[top])
    if not math.isfinite(best):
        return best, where
    inner = np.flatnonzero((sizes[1:-1] >= sizes[:-2]) & (sizes[1:-1] >= sizes[2:])) + 1
    inner = inner[sizes[inner] >= 0.9 * best]
    for k in inner[np.argsort(-sizes[inner])][:40]:
        triple = [(float(angles[j]), float(errors[j])) for j in (k - 1, k, k + 1)]
        for _ in range(60):
            vertex = _vertex(triple)
            if vertex is None:
                break
            value = evaluate(vertex).error
            if abs(value) > best:
                best, where = abs(value), vertex
            grown = abs(value) / max(abs(triple[1][1]), 1e-300)
            triple = _narrowed(triple, (vertex, value))
            if not math.isfinite(value) or grown < 1 + 1e-6:
                break
        if best > 1e30:
            return math.inf, where
    return best, where


def _vertex(triple: list[tuple[float, float]]) -> float | None:
    """Where the parabola through three points is extreme, kept inside them."""
    (a, p), (b, q), (c, r) = triple
    if not all(map(math.isfinite, (p, q, r))) or not a < b < c:
        return None
    left, right = (b - a) * (q - r), (b - c) * (q - p)
    if left == right:
        return None
    vertex = b - 0.5 * ((b - a) * left - (b - c) * right) / (left - right)
    if not a < vertex < c or vertex == b:
        return None
    # A sharp peak (a near pole) is off the parabola: never jump to the edge of the bracket.
    return min(max(vertex, a + 0.05 * (b - a)), c - 0.05 * (c - b))


def _narrowed(
    triple: list[tuple[float, float]], new: tuple[float, float]
) -> list[tuple[float, float]]:
    ordered = sorted([*triple, new])
    middle = max((1, 2), key=lambda k: abs(ordered[k][1]))
    return ordered[middle - 1 : middle + 2]


def _pole(
    evaluate: _Evaluation, angles: np.ndarray, found: list[_Point], best: float
) -> float | None:
    """An angle near which a denominator vanishes and the error explodes."""
    rows = [p.denominators for p in found]
    for i in range(min(map(len, rows))):
        values = np.array([row[i] for row in rows])
        signs = np.sign(values)
        for k in np.flatnonzero(signs[1:] * signs[:-1] < 0):
            a, b = (_place(evaluate.function, float(angles[j])) for j in (k, k + 1))
            if _explodes(evaluate, a, b, i, float(signs[k]), best):
                return float(angles[k])
        sizes = np.abs(values)
        dips = np.flatnonzero((sizes[1:-1] < sizes[:-2]) & (sizes[1:-1] < sizes[2:])) + 1
        for k in dips[np.argsort(sizes[dips])][:8]:
            angle = _bottom(evaluate, angles[k - 1 : k + 2], values[k - 1 : k + 2], i)
            if abs(evaluate(angle).error) > 2.0**20 * best + 2.0**-60:
                return angle
    return None


def _bottom(evaluate: _Evaluation, angles: np.ndarray, values: np.ndarray, i: int) -> float:
    """Where a denominator that keeps its sign comes nearest to zero."""
    triple = [(float(a), -abs(float(v))) for a, v in zip(angles, values, strict=True)]
    for _ in range(40):
        vertex = _vertex(triple)
        if vertex is None:
            break
        triple = _lowered(triple, (vertex, -abs(evaluate(vertex).denominators[i])))
    return triple[1][0]


def _lowered(
    triple: list[tuple[float, float]], new: tuple[float, float]
) -> list[tuple[float, float]]:
    ordered = sorted([*triple, new])
    middle = max((1, 2), key=lambda k: ordered[k][1])
    return ordered[middle - 1 : middle + 2]


def _explodes(evaluate: _Evaluation, a: arb, b: arb, i: int, sign: float, best: float) -> bool:
    for _ in range(ctx.prec // 3):
        middle = ((a + b) / 2).mid()
        value = evaluate.at(middle).denominators[i]
        if value == 0:
            return False  # hit exactly: `beside` has looked at the limit
        a, b = (middle, b) if value * sign > 0 else (a, middle)
    return max(abs(evaluate.at(x.mid()).error) for x in (a, b)) > 2.0**20 * best + 2.0**-60


def _root_mean_square(errors: np.ndarray) -> float:
    """Clenshaw-Curtis quadrature of the squares at Chebyshev points."""
    n = len(errors) - 1
    k = np.arange(n // 2 + 1)
    weights = np.zeros(n + 1)
    factors = np.where((k == 0) | (2 * k == n), 1.0, 2.0) / (1 - 4.0 * k * k)
    weights = np.cos(2 * np.pi * np.outer(np.arange(n + 1), k) / n) @ factors * 2 / n
    weights[[0, -1]] /= 2
    scale = float(np.max(np.abs(errors))) or 1.0
    return scale * math.sqrt(float(weights @ (errors / scale) ** 2) / 2)


# -------------------------------------------------------------------------------- machine formats


def _measure_machine(function: Function, program: Program | Compiled) -> Measured:
    patterns, x, high, low = _sample(function)
    errors = errors_at(function, high, low, program(x))
    worst = int(np.argmax(errors))
    best, at = float(errors[worst]), float(x[worst])
    around = _around(function, patterns[np.argsort(-errors)[:8]])
    near = numbers(function.format, around)
    near_high, near_low = _truths(function, around)
    closer = errors_at(function, near_high, near_low, program(near))
    if closer.size and closer.max() > best:
        best, at = float(closer.max()), float(near[int(np.argmax(closer))])
    l2 = math.sqrt(float(np.mean(np.square(errors)))) if math.isfinite(best) else math.inf
    error = l2 if function.norm == "l2" else best
    return Measured(error, at, l2, x.size + near.size)


@lru_cache(maxsize=8)
def _sample(function: Function) -> tuple[np.ndarray, ...]:
    """Bit patterns, their numbers, and the truth at them, computed once and kept in the store."""
    patterns = _patterns(function)
    place = (function.name, function.domain, function.dtype, file_digest(function.name))
    digest = digest_of("truth of a scalar function", *place, patterns, source_digest())
    assert digest is not None  # strings and numbers always have one
    truth = Store().truth(
        digest, lambda: dict(zip(("high", "low"), _truths(function, patterns), strict=True))
    )
    return patterns, numbers(function.format, patterns), truth["high"], truth["low"]


def _patterns(function: Function) -> np.ndarray:
    format = function.format
    ranges = pattern_ranges(function)
    total = sum(stop - start for start, stop in ranges)
    wanted = SAMPLE if format.bits <= 32 else WIDE_SAMPLE
    if total <= wanted:
        return np.concatenate([np.arange(start, stop) for start, stop in ranges])
    random = np.random.default_rng(20)
    parts = [
        random.integers(start, stop, 1 + wanted // 2 * (stop - start) // total, dtype=np.int64)
        if stop < 1 << 63
        else random.integers(
            start, stop, 1 + wanted // 2 * (stop - start) // total, dtype=np.uint64
        )
        for start, stop in ranges
    ]
    lo, hi = (np.clip(end, -1e300, 1e300) for end in format_ends(function))
    with np.errstate(over="ignore"):
        uniform = (lo + (hi - lo) * random.random(wanted // 2)).astype(format.dtype)
    parts.append(_as_patterns(format, uniform))
    parts.append(_edges(format))
    chosen = np.unique(np.concatenate([p.astype(np.uint64) for p in parts]))
    inside = np.zeros(chosen.shape, bool)
    for start, stop in ranges:
        inside |= (chosen >= start) & (chosen <= stop - 1)
    return chosen[inside]


def _as_patterns(format: Format, x: np.ndarray) -> np.ndarray:
    return x.view(np.dtype(f"uint{format.bits}")).astype(np.uint64)


def _edges(format: Format) -> np.ndarray:
    """Zeros, infinities, NaN, subnormals, and the neighbours of all powers of two."""
    step = 1 << (format.precision - 1)
    count = format.emax - format.emin + 2
    powers = np.arange(0, count + 1, dtype=np.uint64) * np.uint64(step)
    around = np.concatenate([powers[1:] - np.uint64(1), powers, powers + np.uint64(1)])
    return np.concatenate([around, around + np.uint64(1 << (format.bits - 1))])


def _around(function: Function, worst: np.ndarray) -> np.ndarray:
    """The numbers next to the worst ones."""
    reach = 64 if function.format.bits == 64 else 2048
    ranges = pattern_ranges(function)
    near = []
    for pattern in worst.tolist():
        start, stop = next(r for r in ranges if r[0] <= pattern < r[1])
        near.append(
            np.arange(max(start, pattern - reach), min(stop, pattern + reach), dtype=np.uint64)
        )
    return np.unique(np.concatenate(near))


def _truths(function: Function, patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if function.format.bits <= 32 and function.provable:
        try:
            return _tabulated(function, patterns)
        except NotProven:
            pass  # oscillates faster than a table can follow: point by point
    return function.oracle.table(widened(numbers(function.format, patterns)))


def _tabulated(function: Function, patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high, doubt = reference(function).at(patterns)
    low = np.zeros_like(high)
    # Near a zero of the function the table's absolute error is many ULP.
    unsure = doubt > 2.0**-10 * function.format.ulps(high)
    x = widened(numbers(function.format, patterns[unsure]))
    high[unsure], low[unsure] = function.oracle.table(x)
    return high, low
