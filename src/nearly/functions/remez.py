"""The Remez exchange, for polynomials and rationals alike, in extended precision.

How it differs from the textbook: everything runs in ball arithmetic at a precision that is raised
until the levelled error is certain to 40 bits, so neither the basis of powers nor errors far under
2^-53 are a problem; a rational is found by Newton's method to convergence on a fixed reference
before points are exchanged (Cody, Fraser and Hart), starting from a rational interpolant whose
nodes are moved, where Chebyshev's do not serve, until its error is about level (as in BRASIL).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from flint import arb, arb_poly, ctx

from nearly.core.errors import InputError
from nearly.functions.balls import exact, to_fraction
from nearly.functions.error_curve import Extremum, alternating, extrema_of
from nearly.functions.levelled import (
    Fit,
    Imprecise,
    Point,
    Space,
    Stuck,
    is_nothing,
    is_optimal,
    solve,
)
from nearly.functions.remez_start import starts
from nearly.functions.target import Target

PRECISIONS = (192, 384, 768, 1536)
LEVEL = 1e-7  # how nearly the extrema must agree, relatively
EXCHANGES = 40


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
    space = Space(
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
            except Imprecise:
                continue
            except Stuck as reason:
                raise InputError(_advice(space, str(reason))) from None
    raise InputError(_advice(space, "the equations stay singular at any precision"))


def _advice(space: Space, reason: str) -> str:
    if space.denominator:
        zeros = sum(zero.order for zero in space.target.zeros)
        kind = f"type {max(space.numerator) + zeros}/{max(space.denominator)}"
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


def _exchange(space: Space) -> tuple[Fit, list[Extremum]]:
    reason = Stuck("no start was found")
    for fit, reference in starts(space):
        try:
            return _levelling(space, fit, reference)
        except Stuck as stuck:
            reason = stuck
    raise reason


def _levelling(space: Space, fit: Fit, reference: list[Point]) -> tuple[Fit, list[Extremum]]:
    """Solve on a reference, move it to the extrema of the error, until those are level."""
    density, excess = 6, 0.0
    for _ in range(EXCHANGES):
        fit = solve(space, reference, fit)
        extrema = alternating(extrema_of(space, fit, reference, density), space.unknowns + 1)
        largest = max((abs(extremum.error).mid() for extremum in extrema), default=arb(0))
        if is_nothing(largest):
            return fit, [Extremum(point, arb(0)) for point in reference]
        # A symmetry may level the error at 0 on a reference, and not elsewhere: then exchange.
        by_chance = bool(largest > fit.level.abs_upper() * 2**20)
        if fit.level.rel_accuracy_bits() < 40 and not by_chance:
            raise Imprecise
        if len(extrema) <= space.unknowns:
            few = f"the error has {len(extrema)} extrema, not {space.unknowns + 1}"
            raise Stuck(few) if space.denominator else Imprecise
        reference = [extremum.point for extremum in extrema]
        excess = float("inf") if by_chance else float(largest / abs(fit.level).mid()) - 1
        if excess < LEVEL and density > 6:
            if not space.denominator and not is_optimal(space, reference):
                raise Stuck("the powers are no Chebyshev system on the domain")
            return fit, extrema
        if excess < LEVEL:
            density = 24  # look once more, finely, for extrema that the search passed over
    raise Stuck(f"the extrema still differ by {excess:.1e} after {EXCHANGES} exchanges")


def _levelled(space: Space, fit: Fit, extrema: list[Extremum]) -> Levelled:
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


def _require_no_pole(space: Space, fit: Fit) -> None:
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
            raise Stuck("its denominator vanishes inside the domain")
        pending += [(a, middle, depth + 1), (middle, b, depth + 1)]
