"""The equations that a levelled error satisfies on a reference, and their solution.

Everything is in ball arithmetic at the working precision: what a solution is not certain of shows
in its radius, and `Imprecise` asks the caller for more bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from flint import arb, arb_mat, arb_poly

from nearly.functions.balls import exact
from nearly.functions.target import Piece, Target

NOTHING = 500  # an error below 2 to the minus this is none


class Imprecise(Exception):
    """The working precision does not carry the computation."""


class Stuck(Exception):
    """Newton's method or the exchange does not converge from here."""


class Point(NamedTuple):
    """A point of the domain; a piece, because at a joint the weight has two values."""

    x: arb
    piece: Piece


@dataclass(frozen=True)
class Space:
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
class Fit:
    numerator: arb_poly
    denominator: arb_poly
    level: arb


def is_nothing(error: arb) -> bool:
    """Whether an error counts as none at all: the function itself is of the form fitted."""
    return bool(error.abs_upper() < arb(2) ** -NOTHING)


def solve(space: Space, reference: Sequence[Point], fit: Fit) -> Fit:
    """The fit whose weighted error is +E, -E, … on the reference: linear, or Newton from `fit`."""
    samples = [space.target.sample(*point) for point in reference]
    variables = [space.variable(point.x) for point in reference]
    if not space.denominator:
        return _newton_step(space, variables, samples, fit)
    previous = fit
    for _ in range(16):
        previous = fit
        fit = _newton_step(space, variables, samples, previous)
        if is_nothing(fit.level) or _is_level(variables, samples, fit):
            return fit
        if fit.level.rel_accuracy_bits() < 40:
            raise Imprecise
    change = abs(fit.level - previous.level).mid()
    if bool(change < abs(fit.level).mid() * arb(2) ** -40):
        raise Imprecise  # it has converged, and yet the curve is not level
    raise Stuck("Newton's method does not converge on the reference")


def _is_level(variables: Sequence[arb], samples: Sequence[tuple[arb, arb]], fit: Fit) -> bool:
    """Whether the error is +E, -E, … on the reference; the level alone converges much sooner."""
    small = abs(fit.level).mid() * arb(2) ** -32
    for i, (z, (g, weight)) in enumerate(zip(variables, samples, strict=True)):
        error = (fit.numerator(z) / fit.denominator(z) - g) * weight
        if not bool(abs(error - (1 - 2 * (i % 2)) * fit.level.mid()) < small):
            return False
    return True


def _newton_step(
    space: Space, variables: Sequence[arb], samples: Sequence[tuple[arb, arb]], fit: Fit
) -> Fit:
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
    return Fit(numerator, denominator, solution[-1])


def is_optimal(space: Space, reference: Sequence[Point]) -> bool:
    """Whether no other polynomial is better on the reference alone, its error being level there.

    It is so if the functional that annihilates the basis on the reference alternates as the error
    does, which it always does for a Chebyshev system: all powers, or any on one side of 0.
    """
    columns: list[list[arb]] = []
    for i, point in enumerate(reference):
        _, weight = space.target.sample(*point)
        powers = _powers(space.variable(point.x), space)
        columns.append([weight * powers[e] for e in space.numerator] + [arb(1 - 2 * (i % 2))])
    rows = [list(row) for row in zip(*columns, strict=True)]
    weights = _solution(rows, [arb(0)] * len(space.numerator) + [arb(1)])
    return all(bool(w * (1 - 2 * (i % 2)) > 0) for i, w in enumerate(weights))


def interpolate(space: Space, nodes: Sequence[arb]) -> Fit:
    """The quotient that agrees with g at as many nodes as it has coefficients."""
    rows: list[list[arb]] = []
    right: list[arb] = []
    for x in nodes:
        g, weight = space.target.sample(*point_at(space, x))
        powers = _powers(space.variable(x), space)
        rows.append(
            [weight * powers[e] for e in space.numerator]
            + [-weight * g * powers[e] for e in space.denominator]
        )
        right.append(weight * g)
    return Fit(*_polynomials(space, _solution(rows, right)), arb(0))


def _solution(rows: list[list[arb]], right: list[arb]) -> list[arb]:
    try:
        solution = arb_mat(rows).solve(arb_mat(len(right), 1, right)).entries()
    except ZeroDivisionError:
        raise Imprecise from None
    if not all(value.is_finite() for value in solution):
        raise Imprecise
    return solution


def _polynomials(space: Space, solution: Sequence[arb]) -> tuple[arb_poly, arb_poly]:
    middle = [value.mid() for value in solution]
    numerator = dict(zip(space.numerator, middle, strict=False)) | dict(_pinned(space))
    denominator = {0: arb(1)} | dict(
        zip(space.denominator, middle[len(space.numerator) :], strict=False)
    )
    return _dense(numerator), _dense(denominator)


def _dense(coefficients: Mapping[int, arb]) -> arb_poly:
    return arb_poly([coefficients.get(e, arb(0)) for e in range(max(coefficients) + 1)])


def _powers(z: arb, space: Space) -> list[arb]:
    exponents = (*space.numerator, *space.denominator, *(e for e, _ in space.pinned))
    powers = [arb(1)]
    for _ in range(max(exponents, default=0)):
        powers.append(powers[-1] * z)
    return powers


def _pinned(space: Space) -> list[tuple[int, arb]]:
    return [(e, exact(c * space.scale**e)) for e, c in space.pinned]


def mapped(space: Space, nodes: Sequence[arb]) -> list[arb]:
    low, high = map(exact, space.target.interval)
    return [(low + (high - low) * (1 + t) / 2).mid() for t in nodes]


def point_at(space: Space, x: arb) -> Point:
    pieces = space.target.pieces
    inside = (p for p in pieces if bool(x < exact(p.high)))
    return Point(x, next(inside, pieces[-1]))
