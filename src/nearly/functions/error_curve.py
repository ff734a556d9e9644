"""The error curve of a fit: its values and its extrema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from flint import arb

from nearly.functions.balls import exact
from nearly.functions.levelled import Fit, Point, Space, Stuck
from nearly.functions.target import Piece

FLAT = 1e-9  # a peak is found when a step changes its height by less, relatively


class Extremum(NamedTuple):
    point: Point
    error: arb  # signed, weighted


def curve(space: Space, fit: Fit, point: Point) -> arb:
    """The weighted error at a point; a pole met on the way is an infinite error."""
    z = space.variable(point.x)
    g, weight = space.target.sample(*point)
    denominator = fit.denominator(z)
    if not bool(denominator > 0):
        raise Stuck("the denominator vanishes inside the domain")
    return ((fit.numerator(z) / denominator - g) * weight).mid()


def extrema_of(space: Space, fit: Fit, reference: Sequence[Point], density: int) -> list[Extremum]:
    """The local extrema of the error, from `density` samples between points of the reference."""
    found: list[Extremum] = []
    for piece in space.target.pieces:
        inside = [point.x for point in reference if point.piece == piece]
        points = [Point(x, piece) for x in _grid(piece, inside, density)]
        values = [curve(space, fit, point) for point in points]
        found += peaks(points, values, lambda point: curve(space, fit, point))
    return found


def _grid(piece: Piece, inside: Sequence[arb], density: int) -> list[arb]:
    low, high = exact(piece.low).mid(), exact(piece.high).mid()
    small = (high - low) * arb(2) ** -80
    knots = [low, *(x for x in inside if bool(x - low > small) and bool(high - x > small)), high]
    grid = [(a + (b - a) * i / density).mid() for a, b in pairwise(knots) for i in range(density)]
    # Next to 0 a function such as expm1(x)/x loses all precision; at 0 itself its limit is known.
    tiny = (high - low) * arb(2) ** -40
    return [arb(0) if bool(abs(x) < tiny) and bool(low * high < 0) else x for x in (*grid, high)]


def peaks(
    points: Sequence[Point], values: Sequence[arb], curve: Callable[[Point], arb]
) -> Iterator[Extremum]:
    """The local extrema of a curve that was sampled at ascending points, refined between them."""
    last = len(points) - 1
    for i, value in enumerate(values):
        sign = 1 if bool(value > 0) else -1
        height = value * sign
        left = values[i - 1] * sign if i else -height
        right = values[i + 1] * sign if i < last else -height
        if bool(left > height) or bool(right >= height):
            continue
        if 0 < i < last:
            yield _refine(points[i - 1 : i + 2], (left, height, right), sign, curve)
        else:
            yield Extremum(points[i], value)


def _refine(
    points: Sequence[Point],
    heights: tuple[arb, arb, arb],
    sign: int,
    curve: Callable[[Point], arb],
) -> Extremum:
    """The peak between three points: parabolas, or a golden section where those lead outside."""
    (left, middle, right), piece = (point.x for point in points), points[0].piece
    unit, scale = right - left, heights[1]
    best = middle, heights[1]
    # The shape of a peak needs no more than double precision, once scaled by its height.
    known = [
        (float((x - middle) / unit), float((h - scale) / scale))
        for x, h in zip((left, middle, right), heights, strict=True)
    ]
    for _ in range(12):
        known.sort()
        top = max(range(1, len(known) - 1), key=lambda i: known[i][1])
        (a, _), (b, height_b), (c, _) = around = known[top - 1 : top + 2]
        t = _vertex(around)
        if not a < t < c:
            t = b + 0.38 * max(c - b, a - b, key=abs)
        if abs(t - b) < 1e-5 * (c - a):
            t = b + 1e-2 * max(c - b, a - b, key=abs)  # the far end of the bracket has to come near
        x = (middle + unit * t).mid()
        height = curve(Point(x, piece)) * sign
        known.append((t, float((height - scale) / scale)))
        if bool(height > best[1]):
            best = x, height
        if abs(known[-1][1] - height_b) < FLAT and (c - a) < 0.5:
            break
    return Extremum(Point(best[0], piece), best[1] * sign)


def _vertex(known: Sequence[tuple[float, float]]) -> float:
    """Where the parabola through three points has its vertex; NaN if they are on a line."""
    (a, fa), (b, fb), (c, fc) = known
    below = (b - a) * (fb - fc) - (b - c) * (fb - fa)
    if below == 0:
        return float("nan")
    return b - ((b - a) ** 2 * (fb - fc) - (b - c) ** 2 * (fb - fa)) / (2 * below)


def alternating(extrema: Sequence[Extremum], count: int) -> list[Extremum]:
    """`count` extrema of alternating sign, the largest among them, as large as may be."""
    runs = groupby(extrema, key=lambda extremum: bool(extremum.error > 0))
    chosen = [max(run, key=lambda extremum: abs(extremum.error).mid()) for _, run in runs]
    while len(chosen) > count:
        sizes = [abs(extremum.error).mid() for extremum in chosen]
        if len(chosen) == count + 1:
            del chosen[0 if bool(sizes[0] < sizes[-1]) else -1]
            continue
        weakest = min(range(len(chosen)), key=sizes.__getitem__)
        if weakest in (0, len(chosen) - 1):
            del chosen[weakest]
            continue
        # Its neighbours now meet with one sign: the smaller of them goes too.
        first = weakest - 1 if bool(sizes[weakest - 1] < sizes[weakest + 1]) else weakest
        del chosen[first : first + 2]
    return chosen
