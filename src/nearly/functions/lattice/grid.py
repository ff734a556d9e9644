"""Where the errors of candidates are known, and their norms there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np
from flint import arb, ctx

from nearly.core.errors import InputError, NotProven
from nearly.functions.balls import exact
from nearly.functions.function import Function
from nearly.functions.target import Piece, target

# Bits of the arithmetic in which errors are known before they become doubles: twice those of a
# double-double, so that an error of 2^-106 still has 53 good bits, and room for the conditioning.
BITS = 320
_POINTS = 96  # points of the grid per degree of freedom


@dataclass(frozen=True)
class Grid:
    """Points with the weight of an error there, and the truth times that weight.

    `segments` are the slices on which the error is smooth, equally spaced in the angle of
    Chebyshev's points; `measure` is each point's share of the domain, for the root mean square.
    """

    points: list[arb]
    weights: list[arb]
    truth: list[arb]
    measure: np.ndarray
    segments: tuple[slice, ...]

    def where(self, keep: Sequence[bool]) -> Grid:
        def kept(values: list[arb]) -> list[arb]:
            return [v for v, k in zip(values, keep, strict=True) if k]

        if sum(keep) < len(keep) // 2:
            raise InputError("the program has no finite value on half of the domain")
        counts = [sum(keep[s]) for s in self.segments]
        return Grid(
            kept(self.points),
            kept(self.weights),
            kept(self.truth),
            self.measure[np.array(keep)],
            _slices(counts),
        )


def _slices(counts: Sequence[int]) -> tuple[slice, ...]:
    ends = list(accumulate(counts, initial=0))
    return tuple(slice(a, b) for a, b in pairwise(ends) if b > a)


def chebyshev_grid(function: Function, freedom: int) -> Grid:
    """Extremal points of Chebyshev polynomials, the ends among them."""
    low, high = function.interval
    # One ULP jumps at the powers of two: there the error has two values, and each is looked at.
    by_binade = function.error == "ulp"
    pieces = target(function, parity=False).pieces if by_binade else (Piece(low, high),)
    found: list[tuple[arb, arb, arb, float]] = []
    counts: list[int] = []
    with ctx.workprec(BITS):
        for piece in pieces:
            share = _angle(piece.high, low, high) - _angle(piece.low, low, high)
            count = max(24, math.ceil(_POINTS * (freedom + 1) * share))
            points = list(_weighed(function, piece, count))
            counts.append(len(points))
            found += points
    if not found:
        raise InputError(f"{function.name} has no finite value in its domain")
    measure = np.array([p[3] for p in found])
    return Grid(
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
            truth = function.oracle.at(x.mid(), BITS - 64)
            if truth.is_zero():
                # A relative error has a limit at a zero: this close, it is that limit.
                x = x + (middle - x) / arb(2) ** 70
                truth = function.oracle.at(x.mid(), BITS - 64)
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


def powers_on(grid: Grid, exponents: Sequence[int], centre: Fraction) -> list[list[arb]]:
    with ctx.workprec(BITS):
        shift = exact(centre)
        return [[(x - shift) ** e for e in exponents] for x in grid.points]


def _sup(errors: np.ndarray, grid: Grid) -> np.ndarray:
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


def peaks_of(errors: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
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


def _root_mean_square(errors: np.ndarray, grid: Grid) -> np.ndarray:
    return np.sqrt(errors**2 @ grid.measure)


NORMS = {"sup": _sup, "l2": _root_mean_square}
