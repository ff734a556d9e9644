"""What a fit sees of a function: zeros factored out, parity used, the error measure as a weight.

A relative error is finite at a zero of the function only if the approximant vanishes there too, and
to the same order. So f = D g with D the product of the zeros' factors; the fit approximates the
smooth, nowhere vanishing g, and D is multiplied back. An even or odd function on a domain that is
symmetric, or starts at 0, is fitted on one side, in powers of x^2 (an odd one as x times those).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, partial
from typing import NamedTuple

from flint import arb, arb_series, ctx

from nearly.core.errors import InputError
from nearly.functions.balls import exact, to_fraction
from nearly.functions.elementary.rule import uncapped
from nearly.functions.formats import exponent
from nearly.functions.function import Function

ANALYSIS_BITS = 320  # precision at which zeros and symmetries are looked for
BINADES = 8  # below so many binades under the largest value, ULPs count as at their finest


class Zero(NamedTuple):
    """A zero of the function, and its order."""

    at: Fraction
    order: int


class Piece(NamedTuple):
    """A part of the domain on which the weight is smooth; `ulp` is the spacing there, if fixed."""

    low: Fraction
    high: Fraction
    ulp: Fraction | None = None


@dataclass(frozen=True)
class Target:
    """A weighted approximation problem: minimise the largest |q(x) - g(x)| W(x).

    **Arguments:**

    - `pieces`: the parts of the domain of the fit.
    - `centre`, `step`: q is a polynomial (or rational) in z^step, z = x - centre.
    - `zeros`: the zeros factored out; the approximant of f is q times their factors.
    - `sample`: (point, piece) -> the pair (g, W) there, at the working precision.
    """

    pieces: tuple[Piece, ...]
    centre: Fraction
    step: int
    zeros: tuple[Zero, ...]
    sample: Callable[[arb, Piece], tuple[arb, arb]]

    @property
    def interval(self) -> tuple[Fraction, Fraction]:
        return self.pieces[0].low, self.pieces[-1].high

    @property
    def offset(self) -> int:
        """The power of z that the zero at the centre contributes; 0 if there is none."""
        return next((zero.order for zero in self.zeros if zero.at == self.centre), 0)


def target(function: Function, parity: bool = True, weight: str | None = None) -> Target:
    """The approximation problem that `function` poses.

    **Arguments:**

    - `function`: its domain must be finite, its error says what is minimised.
    - `parity`: whether an even or odd function may be fitted on one side of 0.
    - `weight`: an expression in x; the error is then (p - f) times it, whatever `function.error`.

    Raises `InputError` for a pole, or a zero that no polynomial can follow (that of sqrt at 0).
    """
    return _target(canonical(function, weight), parity, weight)


@lru_cache(maxsize=256)
def canonical(function: Function, weight: str | None = None) -> Function:
    """The function without what plays no part in a fit, so that formats share their fits.

    Raises `InputError` for an infinite domain.
    """
    function.interval  # noqa: B018 - a fit needs one that is finite
    dtype = function.dtype if function.error == "ulp" and weight is None else "real"
    return replace(function, dtype=dtype, norm="sup")


@lru_cache(maxsize=256)
def _target(function: Function, parity: bool, weight: str | None) -> Target:
    with ctx.workprec(ANALYSIS_BITS):
        step, odd = symmetry(function) if parity else (1, 0)
        low, high = function.interval
        if step == 2:
            low, high = Fraction(0), max(abs(low), abs(high))
        values = _samples(function, low, high)
        if weight is None and function.error != "absolute":
            zeros = _zeros(function, values)
        else:
            zeros = (Zero(Fraction(0), 1),) if odd else ()
        if step == 2:  # the factors have to keep the parity
            zeros += tuple(Zero(-zero.at, zero.order) for zero in zeros if zero.at)
        pieces: tuple[Piece, ...] = (Piece(low, high),)
        if weight is None and function.error == "ulp":
            pieces = _binades(function, values)
        centre = zeros[0].at if len(zeros) == 1 else Fraction(0)
    local = {zero.at: _local(function, zeros, zero) for zero in zeros}
    quotient = partial(_quotient, function, zeros, local)
    measure = _measure(function, weight)

    def sample(x: arb, piece: Piece) -> tuple[arb, arb]:
        g, factor, f = quotient(x)
        return g, measure(x, g, factor, f, piece)

    return Target(pieces, centre, step, zeros, sample)


def midpoint(low: Fraction, high: Fraction) -> Fraction:
    """A number of few digits within an eighth of the middle of an interval."""
    middle, slack = (low + high) / 2, (high - low) / 8
    step = Fraction(2) ** exponent(slack)
    return round(middle / step) * step


def symmetry(function: Function) -> tuple[int, int]:
    """(2, 0) for an even, (2, 1) for an odd function on a domain symmetric about or from 0.

    (1, 0) otherwise. Decided at five points to 200 bits, which no function falsifies by accident.
    """
    low, high = function.interval
    # The two ends of a symmetric domain, if irrational, are each rounded.
    symmetric = abs(low + high) <= (high - low) / 2**280
    if not symmetric and 0 not in (low, high):
        return 1, 0
    with ctx.workprec(ANALYSIS_BITS):
        radius = exact(max(abs(low), abs(high)))
        points = [radius * numerator / 64 for numerator in (7, 19, 33, 50, 61)]
        pairs = [(function.oracle.value(x), function.oracle.value(-x)) for x in points]
        if all(_vanishes(a - b, a) for a, b in pairs):
            return 2, 0
        if all(_vanishes(a + b, a) for a, b in pairs):
            return 2, 1
    return 1, 0


def _vanishes(difference: arb, scale: arb) -> bool:
    """Whether a ball is zero to 200 bits of `scale` (False for a NaN)."""
    bound = difference.abs_upper()
    return bool(difference.is_finite() and bound <= abs(scale) * arb(2) ** -200)


def _samples(function: Function, low: Fraction, high: Fraction) -> list[tuple[Fraction, arb]]:
    """The function on a grid that is dense towards the ends, and at 0 and 1 if they are inside."""
    count = 96
    nodes = [(1 - (arb(i) / count).cos_pi()) / 2 for i in range(1, count)]
    inside = {low + (high - low) * Fraction(round(float(t) * 2**30), 2**30) for t in nodes}
    inside |= {x for x in (Fraction(0), Fraction(1)) if low < x < high}
    points = [low, *sorted(inside), high]
    values = [(x, function.oracle.value(exact(x))) for x in points]
    for x, value in values:
        if not value.is_finite():
            raise InputError(
                f"{function.name} has no finite value at x = {float(x):.6g}: "
                "choose a domain without that point"
            )
    return values


def _zeros(function: Function, values: list[tuple[Fraction, arb]]) -> tuple[Zero, ...]:
    scale = max(abs(value).mid() for _, value in values)
    at = [x for x, value in values if _vanishes(value, scale)]
    if len(at) > 4:
        raise InputError(
            f"{function.name} vanishes on a part of its domain, where a relative error means "
            "nothing: use the absolute error"
        )

    def positive_at(x: Fraction) -> bool:
        return bool(function.oracle.value(exact(x)).mid() > 0)

    signed = [(x, bool(value.mid() > 0)) for x, value in values if x not in at]
    for (a, positive), (b, other) in itertools.pairwise(signed):
        if positive != other and not any(a < x < b for x in at):
            at.append(_bisect(positive_at, a, b, ANALYSIS_BITS))
    return tuple(Zero(x, _order(function, x, scale)) for x in sorted(at))


def _bisect(
    above: Callable[[Fraction], bool], low: Fraction, high: Fraction, bits: int
) -> Fraction:
    """Where a predicate changes between low and high, to `bits`; a short fraction if one fits.

    A predicate that jumps in between (a pole) gives the place of the jump.
    """
    start = above(low)
    width = (high - low) / 2**bits
    while high - low > width:
        middle = (low + high) / 2
        short = middle.limit_denominator(2**16)
        if low < short < high and high - low < Fraction(1, 2**40):
            middle = short
        if above(middle) == start:
            low = middle
        else:
            high = middle
    short = low.limit_denominator(2**16)
    # The last bits are the rounding of the values, not the place of the change.
    return short if abs(short - low) <= 2**24 * width else low


def _order(function: Function, x: Fraction, scale: arb) -> int:
    if not _vanishes(function.oracle.value(exact(x)) * arb(2) ** -80, scale):
        raise InputError(
            f"{function.name} has a pole or jumps at x = {float(x):.6g}: "
            "choose a domain without that point"
        )
    coefficients = function.oracle.taylor(exact(x), 8)
    for order, coefficient in enumerate(coefficients):
        if not coefficient.is_finite():
            break
        if order and bool(abs(coefficient).mid() > scale * arb(2) ** -100):
            return order
    raise InputError(
        f"{function.name} vanishes at x = {float(x):.6g} unlike any polynomial, so a relative "
        "error is at least 1 there: use the absolute error or a domain without that point"
    )


def _binades(function: Function, values: list[tuple[Fraction, arb]]) -> tuple[Piece, ...]:
    """The domain cut where |f| crosses a power of two, so that one ULP is one number per piece."""
    precision = function.format.precision
    top = max(exponent(to_fraction(value)) for _, value in values)
    bottom = max(top - BINADES, function.format.emin)

    def power(x: Fraction) -> int:
        return max(exponent(to_fraction(function.oracle.value(exact(x)))), bottom)

    cuts: list[Fraction] = []
    for (a, at_a), (b, at_b) in itertools.pairwise(values):
        ends = sorted(max(exponent(to_fraction(v)), bottom) for v in (at_a, at_b))
        for k in range(ends[0] + 1, ends[1] + 1):
            cuts.append(_bisect(lambda x, k=k: power(x) >= k, a, b, 64))
    edges = sorted({values[0][0], *cuts, values[-1][0]})

    def piece(low: Fraction, high: Fraction) -> Piece:
        k = power((low + high) / 2)
        return Piece(low, high, Fraction(2) ** (k - precision + 1) if k > bottom else None)

    return tuple(piece(a, b) for a, b in itertools.pairwise(edges))


def factors(zeros: tuple[Zero, ...], x: arb) -> arb:
    """The product of (x - zero)^order."""
    product = arb(1)
    for zero in zeros:
        product *= (x - exact(zero.at)) ** zero.order
    return product


def _local(function: Function, zeros: tuple[Zero, ...], zero: Zero) -> tuple[arb, ...]:
    """Taylor coefficients of g at a zero of f, where f/D is 0/0."""
    with ctx.workprec(2 * ANALYSIS_BITS):
        return tuple(series_without(function, zeros, zero.at, 16))


def series_without(
    function: Function, zeros: tuple[Zero, ...], centre: Fraction, length: int
) -> list[arb]:
    """Taylor coefficients at `centre` of the function divided by the factors of its zeros."""
    order = next((zero.order for zero in zeros if zero.at == centre), 0)
    coefficients = function.oracle.taylor(exact(centre), length + order)[order:]
    if not all(c.is_finite() for c in coefficients):
        raise InputError(
            f"{function.name} has no Taylor series at {float(centre):.6g}: choose another centre"
        )
    with uncapped():
        series = arb_series(coefficients, prec=length)
        for zero in zeros:
            if zero.at != centre:
                factor = arb_series([exact(centre - zero.at), 1], prec=length)
                for _ in range(zero.order):
                    series = series / factor
        return [series[k] for k in range(length)]


def _quotient(
    function: Function,
    zeros: tuple[Zero, ...],
    local: dict[Fraction, tuple[arb, ...]],
    x: arb,
) -> tuple[arb, arb, arb]:
    """g, D and f at a point."""
    factor = factors(zeros, x)
    for zero in zeros:
        distance = x - exact(zero.at)
        if bool(abs(distance) < arb(2) ** -36):
            g = arb(0)
            for coefficient in reversed(local[zero.at]):
                g = g * distance + coefficient
            return g, factor, g * factor
    f = function.oracle.value(x)
    return f / factor, factor, f


def _measure(function: Function, weight: str | None) -> Callable[[arb, arb, arb, arb, Piece], arb]:
    """W as a function of the point, g, D, f and the piece."""
    if weight is not None:
        oracle = Function(weight, function.domain).oracle
        return lambda x, g, factor, f, piece: abs(factor * oracle.value(x))
    if function.error == "absolute":
        return lambda x, g, factor, f, piece: abs(factor)
    if function.error == "relative":
        return lambda x, g, factor, f, piece: 1 / abs(g)
    finest = Fraction(2) ** function.format.precision

    def ulps(x: arb, g: arb, factor: arb, f: arb, piece: Piece) -> arb:
        return exact(finest) / abs(g) if piece.ulp is None else abs(factor) / exact(piece.ulp)

    return ulps
