"""The Remez exchange, for polynomials and rationals alike, in extended precision.

How it differs from the textbook: everything runs in ball arithmetic at a precision that is raised
until the levelled error is certain to 40 bits, so neither the basis of powers nor errors far under
2^-53 are a problem; a rational is found by Newton's method to convergence on a fixed reference
before points are exchanged (Cody, Fraser and Hart), starting from a rational interpolant whose
nodes are moved, where Chebyshev's do not serve, until its error is about level (as in BRASIL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import NamedTuple

from flint import arb, arb_mat, arb_poly, ctx

from nearly.core.errors import InputError
from nearly.functions.oracle import exact, to_fraction
from nearly.functions.target import Piece, Target

PRECISIONS = (192, 384, 768, 1536)
FLAT = 1e-9  # a peak is found when a step changes its height by less, relatively
LEVEL = 1e-7  # how nearly the extrema must agree, relatively
EXCHANGES = 40
REBALANCINGS = 80
NOTHING = 500  # an error below 2 to the minus this is none


class _Imprecise(Exception):
    """The working precision does not carry the computation."""


class _Stuck(Exception):
    """Newton's method or the exchange does not converge from here."""


class Point(NamedTuple):
    """A point of the domain; a piece, because at a joint the weight has two values."""

    x: arb
    piece: Piece


class Extremum(NamedTuple):
    point: Point
    error: arb  # signed, weighted


@dataclass(frozen=True)
class Levelled:
    """A best approximation: coefficients in z = x - centre, by exponent, and its error curve.

    The denominator's constant coefficient is 1 and not listed. `error` is the largest weighted
    error; 0 means: below 2^-500. `extrema` are the points where it is attained, with alternating
    signs.
    """

    numerator: tuple[Fraction, ...]
    denominator: tuple[Fraction, ...]
    error: Fraction
    extrema: tuple[Fraction, ...]


@dataclass(frozen=True)
class _Space:
    target: Target
    numerator: tuple[int, ...]
    denominator: tuple[int, ...]
    pinned: tuple[tuple[int, Fraction], ...]
    scale: Fraction  # a power of two: the powers are of z / scale, at most 1 in size

    @property
    def unknowns(self) -> int:
        return len(self.numerator) + len(self.denominator)

    def variable(self, x: arb) -> arb:
        return (x - exact(self.target.centre)) / exact(self.scale)


@dataclass(frozen=True)
class _Fit:
    numerator: arb_poly
    denominator: arb_poly
    level: arb


def remez(
    target: Target,
    numerator: Sequence[int],
    denominator: Sequence[int] = (),
    pinned: Mapping[int, Fraction] | None = None,
) -> Levelled:
    """The minimax approximation of a target by a polynomial, or a quotient of two.

    **Arguments:**

    - `target`: what is approximated, and in which weight.
    - `numerator`: the exponents of z whose coefficients are free.
    - `denominator`: exponents likewise; the constant coefficient is 1 and not among them.
    - `pinned`: exponent -> coefficient of the numerator that is given.

    Raises `InputError` if the error curve never alternates often enough: the best approximation is
    of a lower type, or the powers chosen do not form a Chebyshev system on the domain.
    Costs about 10 ms for ten coefficients of an elementary function, a second or two for 26.
    """
    low, high = target.interval
    reach = max(abs(low - target.centre), abs(high - target.centre))
    space = _Space(
        target,
        tuple(numerator),
        tuple(denominator),
        tuple(sorted((pinned or {}).items())),
        _power_above(reach),
    )
    for bits in PRECISIONS:
        with ctx.workprec(bits):
            try:
                return _levelled(space, *_exchange(space))
            except _Imprecise:
                continue
            except _Stuck as reason:
                raise InputError(_advice(space, str(reason))) from None
    raise InputError(_advice(space, "the equations stay singular at any precision"))


def _advice(space: _Space, reason: str) -> str:
    if space.denominator:
        kind = f"type {max(space.numerator)}/{max(space.denominator)}"
        remedy = "the function is of a lower type or has no best one here: take a lower type"
    else:
        kind = f"the powers {', '.join(map(str, space.numerator))}"
        remedy = "take all powers up to a degree, or a domain on one side of 0"
    return f"no minimax approximation with {kind}: {reason}; {remedy}"


def _power_above(value: Fraction) -> Fraction:
    power = Fraction(1)
    while power < value:
        power *= 2
    while power / 2 >= value:
        power /= 2
    return power


# ------------------------------------------------------------------ the exchange


def _exchange(space: _Space) -> tuple[_Fit, list[Extremum]]:
    reason = _Stuck("no start was found")
    for fit, reference in _starts(space):
        try:
            return _levelling(space, fit, reference)
        except _Stuck as stuck:
            reason = stuck
    raise reason


def _levelling(
    space: _Space, fit: _Fit, reference: list[Point]
) -> tuple[_Fit, list[Extremum]]:
    """Solve on a reference, move it to the extrema of the error, until those are level."""
    density, excess = 6, 0.0
    for _ in range(EXCHANGES):
        fit = _solve(space, reference, fit)
        if _is_nothing(fit.level):
            return fit, [Extremum(point, arb(0)) for point in reference]
        if fit.level.rel_accuracy_bits() < 40:
            raise _Imprecise
        extrema = _alternating(_extrema(space, fit, reference, density), space.unknowns + 1)
        if len(extrema) <= space.unknowns:
            raise _Stuck(f"the error has {len(extrema)} extrema, not {space.unknowns + 1}")
        reference = [extremum.point for extremum in extrema]
        largest = max(abs(extremum.error).mid() for extremum in extrema)
        excess = float(largest / abs(fit.level).mid()) - 1
        if excess < LEVEL and density > 6:
            return fit, extrema
        if excess < LEVEL:
            density = 24  # look once more, finely, for extrema that the search passed over
    raise _Stuck(f"the extrema still differ by {excess:.1e} after {EXCHANGES} exchanges")


def _is_nothing(error: arb) -> bool:
    """Whether an error counts as none at all: the function itself is of the form fitted."""
    return bool(error.abs_upper() < arb(2) ** -NOTHING)


def _starts(space: _Space) -> Iterator[tuple[_Fit, list[Point]]]:
    if space.denominator:
        yield from _rational_starts(space)
    else:
        one = arb_poly([1])
        yield _Fit(one, one, arb(0)), _chebyshev_reference(space)


def _chebyshev_reference(space: _Space) -> list[Point]:
    # Not quite to the ends: every power may vanish at one, and the first exchange finds them.
    count = space.unknowns + 1
    shrunk = 1 - arb(1) / (8 * count * count)
    nodes = [-(arb(i) / (count - 1)).cos_pi() * shrunk for i in range(count)]
    return [_point(space, x) for x in _mapped(space, nodes)]


def _chebyshev_zeros(space: _Space, count: int) -> list[arb]:
    return _mapped(space, [-(arb(2 * i + 1) / (2 * count)).cos_pi() for i in range(count)])


def _mapped(space: _Space, nodes: Sequence[arb]) -> list[arb]:
    low, high = map(exact, space.target.interval)
    return [(low + (high - low) * (1 + t) / 2).mid() for t in nodes]


def _point(space: _Space, x: arb) -> Point:
    pieces = space.target.pieces
    inside = (p for p in pieces if bool(x < exact(p.high)))
    return Point(x, next(inside, pieces[-1]))


def _levelled(space: _Space, fit: _Fit, extrema: list[Extremum]) -> Levelled:
    _require_no_pole(space, fit)
    pinned = dict(space.pinned)
    error = max(to_fraction(abs(extremum.error)) for extremum in extrema)
    # An exact fit is known to the last precision's half: what lies under it is noise.
    noise = Fraction(1, 2**600) if error == 0 else Fraction(0)

    def coefficient(polynomial: arb_poly, e: int) -> Fraction:
        value = to_fraction(polynomial[e])
        return (round(value / noise) * noise if noise else value) / space.scale**e

    return Levelled(
        tuple(coefficient(fit.numerator, e) for e in space.numerator if e not in pinned),
        tuple(coefficient(fit.denominator, e) for e in space.denominator),
        error,
        tuple(to_fraction(extremum.point.x) for extremum in extrema),
    )


# ------------------------------------------------------------------ the levelled equations


def _solve(space: _Space, reference: Sequence[Point], fit: _Fit) -> _Fit:
    """The fit whose weighted error is +E, -E, … on the reference: linear, or Newton from `fit`."""
    samples = [space.target.sample(*point) for point in reference]
    variables = [space.variable(point.x) for point in reference]
    if not space.denominator:
        return _newton_step(space, variables, samples, fit)
    previous = fit
    for _ in range(16):
        previous = fit
        fit = _newton_step(space, variables, samples, previous)
        if _is_nothing(fit.level) or _is_level(variables, samples, fit):
            return fit
        if fit.level.rel_accuracy_bits() < 40:
            raise _Imprecise
    change = abs(fit.level - previous.level).mid()
    if bool(change < abs(fit.level).mid() * arb(2) ** -40):
        raise _Imprecise  # it has converged, and yet the curve is not level
    raise _Stuck("Newton's method does not converge on the reference")


def _is_level(variables: Sequence[arb], samples: Sequence[tuple[arb, arb]], fit: _Fit) -> bool:
    """Whether the error is +E, -E, … on the reference; the level alone converges much sooner."""
    small = abs(fit.level).mid() * arb(2) ** -32
    for i, (z, (g, weight)) in enumerate(zip(variables, samples, strict=True)):
        error = (fit.numerator(z) / fit.denominator(z) - g) * weight
        if not bool(abs(error - (1 - 2 * (i % 2)) * fit.level.mid()) < small):
            return False
    return True


def _newton_step(
    space: _Space, variables: Sequence[arb], samples: Sequence[tuple[arb, arb]], fit: _Fit
) -> _Fit:
    """One step on P - Q (g + s E / W) = 0 in the coefficients and the level E, rows times W."""
    level = fit.level.mid()
    rows: list[list[arb]] = []
    right: list[arb] = []
    for i, (z, (g, weight)) in enumerate(zip(variables, samples, strict=True)):
        sign = 1 - 2 * (i % 2)
        powers = _powers(z, space)
        g = g - sum((c * powers[e] for e, c in _pinned(space)), arb(0))
        goal = weight * g + sign * level
        rows.append(
            [weight * powers[e] for e in space.numerator]
            + [-goal * powers[e] for e in space.denominator]
            + [-sign * fit.denominator(z)]
        )
        right.append(goal - sign * level * fit.denominator(z))
    solution = _solution(rows, right)
    numerator, denominator = _polynomials(space, solution)
    return _Fit(numerator, denominator, solution[-1])


def _interpolate(space: _Space, nodes: Sequence[arb]) -> _Fit:
    """The quotient that agrees with g at as many nodes as it has coefficients."""
    rows: list[list[arb]] = []
    right: list[arb] = []
    for x in nodes:
        g, weight = space.target.sample(*_point(space, x))
        powers = _powers(space.variable(x), space)
        rows.append(
            [weight * powers[e] for e in space.numerator]
            + [-weight * g * powers[e] for e in space.denominator]
        )
        right.append(weight * g)
    return _Fit(*_polynomials(space, _solution(rows, right)), arb(0))


def _solution(rows: list[list[arb]], right: list[arb]) -> list[arb]:
    try:
        solution = arb_mat(rows).solve(arb_mat(len(right), 1, right)).entries()
    except ZeroDivisionError:
        raise _Imprecise from None
    if not all(value.is_finite() for value in solution):
        raise _Imprecise
    return solution


def _polynomials(space: _Space, solution: Sequence[arb]) -> tuple[arb_poly, arb_poly]:
    middle = [value.mid() for value in solution]
    numerator = dict(zip(space.numerator, middle, strict=False)) | dict(_pinned(space))
    denominator = {0: arb(1)} | dict(
        zip(space.denominator, middle[len(space.numerator) :], strict=False)
    )
    return _dense(numerator), _dense(denominator)


def _dense(coefficients: Mapping[int, arb]) -> arb_poly:
    return arb_poly([coefficients.get(e, arb(0)) for e in range(max(coefficients) + 1)])


def _powers(z: arb, space: _Space) -> list[arb]:
    exponents = (*space.numerator, *space.denominator, *(e for e, _ in space.pinned))
    powers = [arb(1)]
    for _ in range(max(exponents, default=0)):
        powers.append(powers[-1] * z)
    return powers


def _pinned(space: _Space) -> list[tuple[int, arb]]:
    return [(e, exact(c * space.scale**e)) for e, c in space.pinned]


# ------------------------------------------------------------------ the error curve


def _curve(space: _Space, fit: _Fit, point: Point) -> arb:
    """The weighted error at a point; a pole met on the way is an infinite error."""
    z = space.variable(point.x)
    g, weight = space.target.sample(*point)
    denominator = fit.denominator(z)
    if not bool(denominator > 0):
        raise _Stuck("the denominator vanishes inside the domain")
    return ((fit.numerator(z) / denominator - g) * weight).mid()


def _extrema(
    space: _Space, fit: _Fit, reference: Sequence[Point], density: int
) -> list[Extremum]:
    """The local extrema of the error, from `density` samples between points of the reference."""
    found: list[Extremum] = []
    for piece in space.target.pieces:
        inside = [point.x for point in reference if point.piece == piece]
        points = [Point(x, piece) for x in _grid(piece, inside, density)]
        values = [_curve(space, fit, point) for point in points]
        found += _peaks(points, values, lambda point: _curve(space, fit, point))
    return found


def _grid(piece: Piece, inside: Sequence[arb], density: int) -> list[arb]:
    low, high = exact(piece.low).mid(), exact(piece.high).mid()
    small = (high - low) * arb(2) ** -80
    knots = [low, *(x for x in inside if bool(x - low > small) and bool(high - x > small)), high]
    grid = [
        (a + (b - a) * i / density).mid()
        for a, b in zip(knots, knots[1:], strict=False)
        for i in range(density)
    ]
    return [*grid, high]


def _peaks(
    points: Sequence[Point], values: Sequence[arb], curve: Callable[[Point], arb]
) -> Iterator[Extremum]:
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


def _alternating(extrema: Sequence[Extremum], count: int) -> list[Extremum]:
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


# ------------------------------------------------------------------ rationals


def _rational_starts(space: _Space) -> Iterator[tuple[_Fit, list[Point]]]:
    """Interpolants whose error may be level enough for Newton's method, and its extrema.

    Chebyshev's nodes serve most smooth functions; for the others the intervals between nodes are
    shrunk where the error is large and stretched where it is small.
    """
    nodes = _chebyshev_zeros(space, space.unknowns)
    for attempt in range(REBALANCINGS):
        fit = _interpolate(space, nodes)
        heights = _heights(space, fit, nodes)
        finite = [height for height in heights if height is not None]
        if attempt % 8 == 0 and len(finite) == len(heights):
            if _is_nothing(max(finite)):
                yield fit, _chebyshev_reference(space)
            else:
                yield from _prepared(space, fit, nodes)
        nodes = _rebalanced(space, nodes, heights)


def _prepared(
    space: _Space, fit: _Fit, nodes: Sequence[arb]
) -> Iterator[tuple[_Fit, list[Point]]]:
    """The interpolant with its extrema as reference and their mean as level, if it has no pole."""
    try:
        extrema = _extrema(space, fit, [_point(space, x) for x in nodes], 6)
    except _Stuck:
        return
    extrema = _alternating(extrema, space.unknowns + 1)
    if len(extrema) <= space.unknowns:
        raise _Imprecise  # an interpolant's error changes sign at every node
    mean = sum((abs(extremum.error) for extremum in extrema), arb(0)) / len(extrema)
    if bool(mean < arb(2) ** (20 - ctx.prec)):
        raise _Imprecise
    sign = 1 if bool(extrema[0].error > 0) else -1
    reference = [extremum.point for extremum in extrema]
    yield _Fit(fit.numerator, fit.denominator, (sign * mean).mid()), reference


def _heights(space: _Space, fit: _Fit, nodes: Sequence[arb]) -> list[arb | None]:
    """The largest error seen between neighbouring nodes; None where there is a pole."""
    low, high = map(exact, space.target.interval)
    knots = [low, *nodes, high]

    def height(a: arb, b: arb) -> arb | None:
        points = [_point(space, (a + (b - a) * i / 5).mid()) for i in range(1, 5)]
        try:
            return max(abs(_curve(space, fit, point)).mid() for point in points)
        except _Stuck:
            return None

    return [height(a, b) for a, b in zip(knots, knots[1:], strict=False)]


def _rebalanced(
    space: _Space, nodes: Sequence[arb], heights: Sequence[arb | None]
) -> list[arb]:
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


def _require_no_pole(space: _Space, fit: _Fit) -> None:
    """Prove the denominator positive on the domain, by balls over ever shorter intervals."""
    low, high = map(exact, space.target.interval)
    pending = [(space.variable(low), space.variable(high), 0)]
    while pending:
        a, b, depth = pending.pop()
        middle = ((a + b) / 2).mid()
        slope = fit.denominator.derivative()((a).union(b))
        if bool(fit.denominator(middle) + slope * (a.union(b) - middle) > 0):
            continue
        if depth > 24:
            raise _Stuck("its denominator vanishes inside the domain")
        pending += [(a, middle, depth + 1), (middle, b, depth + 1)]
