"""Where the Remez exchange begins: a reference, and for rationals a fit that is nearly level."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from flint import arb, arb_poly, ctx

from nearly.functions.balls import exact
from nearly.functions.error_curve import alternating, curve, extrema_of
from nearly.functions.levelled import (
    Fit,
    Imprecise,
    Point,
    Space,
    Stuck,
    interpolate,
    is_nothing,
    mapped,
    point_at,
)

REBALANCINGS = 80


def starts(space: Space) -> Iterator[tuple[Fit, list[Point]]]:
    if space.denominator:
        yield from _rational_starts(space)
    else:
        one = arb_poly([1])
        yield Fit(one, one, arb(0)), _chebyshev_reference(space)


def _chebyshev_reference(space: Space) -> list[Point]:
    # Not quite to the ends: every power may vanish at one, and the first exchange finds them.
    count = space.unknowns + 1
    shrunk = 1 - arb(1) / (8 * count * count)
    nodes = [-(arb(i) / (count - 1)).cos_pi() * shrunk for i in range(count)]
    return [point_at(space, x) for x in mapped(space, nodes)]


def _chebyshev_zeros(space: Space, count: int) -> list[arb]:
    return mapped(space, [-(arb(2 * i + 1) / (2 * count)).cos_pi() for i in range(count)])


def _rational_starts(space: Space) -> Iterator[tuple[Fit, list[Point]]]:
    """Interpolants whose error may be level enough for Newton's method, and its extrema.

    Chebyshev's nodes serve most smooth functions; for the others the intervals between nodes are
    shrunk where the error is large and stretched where it is small.
    """
    nodes = _chebyshev_zeros(space, space.unknowns)
    for attempt in range(REBALANCINGS):
        fit = interpolate(space, nodes)
        heights = _heights(space, fit, nodes)
        finite = [height for height in heights if height is not None]
        if attempt % 8 == 0 and len(finite) == len(heights):
            if is_nothing(max(finite)):
                yield fit, _chebyshev_reference(space)
            else:
                yield from _prepared(space, fit, nodes)
        nodes = _rebalanced(space, nodes, heights)


def _prepared(space: Space, fit: Fit, nodes: Sequence[arb]) -> Iterator[tuple[Fit, list[Point]]]:
    """The interpolant with its extrema as reference and their mean as level, if it has no pole."""
    try:
        extrema = extrema_of(space, fit, [point_at(space, x) for x in nodes], 6)
    except Stuck:
        return
    extrema = alternating(extrema, space.unknowns + 1)
    if len(extrema) <= space.unknowns:
        raise Imprecise  # an interpolant's error changes sign at every node
    mean = sum((abs(extremum.error) for extremum in extrema), arb(0)) / len(extrema)
    if bool(mean < arb(2) ** (20 - ctx.prec)):
        raise Imprecise
    sign = 1 if bool(extrema[0].error > 0) else -1
    reference = [extremum.point for extremum in extrema]
    yield Fit(fit.numerator, fit.denominator, (sign * mean).mid()), reference


def _heights(space: Space, fit: Fit, nodes: Sequence[arb]) -> list[arb | None]:
    """The largest error seen between neighbouring nodes; None where there is a pole."""
    low, high = map(exact, space.target.interval)
    knots = [low, *nodes, high]

    def height(a: arb, b: arb) -> arb | None:
        points = [point_at(space, (a + (b - a) * i / 5).mid()) for i in range(1, 5)]
        try:
            return max(abs(curve(space, fit, point)).mid() for point in points)
        except Stuck:
            return None

    return [height(a, b) for a, b in itertools.pairwise(knots)]


def _rebalanced(space: Space, nodes: Sequence[arb], heights: Sequence[arb | None]) -> list[arb]:
    low, high = map(exact, space.target.interval)
    knots = [low, *nodes, high]
    logs = [float(max(h, arb(2) ** -2000).log()) for h in heights if h is not None]
    mean = sum(logs) / max(len(logs), 1)
    lengths = [
        (b - a) * (0.7 if h is None else _shrinkage(float(max(h, arb(2) ** -2000).log()) - mean))
        for a, b, h in zip(knots, knots[1:], heights, strict=False)
    ]
    total = sum(lengths, arb(0))
    moved: list[arb] = []
    position = low
    for length in lengths[:-1]:
        position = (position + length * (high - low) / total).mid()
        moved.append(position)
    return moved


def _shrinkage(excess: float) -> float:
    """The factor for an interval whose error is e^excess times the (geometric) mean."""
    return 2.0 ** (-0.25 * max(-1.5, min(1.5, excess)))
