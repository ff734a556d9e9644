"""Quotients of polynomials: the best of a type in the sup norm, and Pade's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from flint import arb, arb_mat, ctx, fmpq_poly

from nearly.core.errors import InputError
from nearly.functions.balls import exact, to_fraction
from nearly.functions.function import Function
from nearly.functions.polynomial import shifted, to_fmpq, to_fractions, zero_factors
from nearly.functions.remez import Levelled, remez
from nearly.functions.target import Piece, Target, canonical, midpoint, series_without, target

PADE_BITS = 768


@dataclass(frozen=True)
class Rational:
    """A quotient of polynomials in z = x - centre, dense and exact, lowest coefficients first."""

    numerator: tuple[Fraction, ...]
    denominator: tuple[Fraction, ...]
    centre: Fraction = Fraction(0)

    def __call__(self, x: Fraction) -> Fraction:
        """The exact value; raises `ZeroDivisionError` at a pole."""
        z = x - self.centre
        above, below = (
            sum((c * z**e for e, c in enumerate(part)), Fraction(0))
            for part in (self.numerator, self.denominator)
        )
        return above / below

    def about(self, centre: Fraction) -> Rational:
        """The same quotient in powers of (x - centre), exactly."""
        if centre == self.centre:
            return self
        by = centre - self.centre
        above = shifted(exact_polynomial(self.numerator), by)
        return from_parts(above, shifted(exact_polynomial(self.denominator), by), centre)


@dataclass(frozen=True)
class BestRational:
    """A minimax rational, its error in the function's measure, and where that is attained."""

    rational: Rational
    error: Fraction
    extrema: tuple[Fraction, ...]


@dataclass(frozen=True)
class BestQuotient:
    """The best f(centre) (1 + T) / (1 - T) with an odd rational T of z = x - centre.

    `numerator` / `denominator` are those of T / z, dense in z^2. `error` is the relative error.
    """

    numerator: tuple[Fraction, ...]
    denominator: tuple[Fraction, ...]
    value: Fraction
    centre: Fraction
    error: Fraction
    extrema: tuple[Fraction, ...]

    def __call__(self, x: Fraction) -> Fraction:
        """The exact value."""
        z = x - self.centre
        t = z * Rational(self.numerator, self.denominator)(z * z)
        return self.value * (1 + t) / (1 - t)


def minimax(
    function: Function, numerator: int, denominator: int, *, weight: str | None = None
) -> BestRational:
    """The rational of least sup error among those of a type, by the Remez exchange.

    **Arguments:**

    - `function`: what is approximated; its domain must be finite, its `error` is minimised.
    - `numerator`, `denominator`: the degrees allowed. Of an even or odd function on a domain that
      is symmetric or begins at 0, the result has its parity: degrees that the parity does not use
      are dropped.
    - `weight`: an expression in x; minimise the largest (r - f) times it instead.

    **Returns:** a `BestRational` in powers of (x - z) if the error is relative and the function
    has just one zero z, of x otherwise. Its denominator is proven free of zeros on the domain.

    **Raises:** `InputError` for a type in which the best approximation is degenerate (the function
    is itself of a lower type), and as `polynomial.minimax` does.

    Costs 10 ms for type 4/4 and 100 ms for 12/12 of an elementary function; up to seconds where
    the function is nearly singular on the domain. Fits are cached, and shared by all formats.

    Differs from the usual implementation: no SVD in double precision (AAA) starts it, which ends
    at errors of 1e-13, but interpolation in extended precision, which has no such floor.
    """
    check_type(numerator, denominator)
    if denominator == 0:
        raise InputError(f"type {numerator}/0 is a polynomial: use the minimax polynomial")
    return _minimax(canonical(function, weight), numerator, denominator, weight)


def check_type(numerator: object, denominator: object) -> None:
    for degree in (numerator, denominator):
        if not isinstance(degree, int) or not 0 <= degree <= 32:
            raise InputError(f"type {numerator}/{denominator}: degrees are 0 to 32")


@lru_cache(maxsize=256)
def _minimax(
    function: Function, numerator: int, denominator: int, weight: str | None
) -> BestRational:
    problem = inner(target(function, weight=weight))
    above, below = _free_degrees(problem, numerator, denominator)
    step = problem.step
    best = remez(problem, range(0, above * step + 1, step), range(step, below * step + 1, step))
    rational = _with_zeros(best, problem, step)
    return BestRational(rational, best.error, best.extrema)


def inner(problem: Target) -> Target:
    """The target in powers about a point of its domain, where no denominator vanishes."""
    low, high = problem.interval
    if low <= problem.centre <= high and (problem.offset or problem.step == 2):
        return problem
    return replace(problem, centre=midpoint(low, high))


def _free_degrees(problem: Target, numerator: int, denominator: int) -> tuple[int, int]:
    """The degrees in z^step that remain beside the factors of the zeros."""
    taken = sum(zero.order for zero in problem.zeros)
    above, below = (numerator - taken) // problem.step, denominator // problem.step
    if above < 0 or below < 1:
        least = f"{taken}/{problem.step}"
        raise InputError(
            f"type {numerator}/{denominator}: a rational with the zeros and the symmetry of this "
            f"function is of type {least} at least"
        )
    return above, below


def _with_zeros(best: Levelled, problem: Target, step: int) -> Rational:
    above = spread(best.numerator, step) * zero_factors(problem.zeros, problem.centre)
    below = spread((Fraction(1), *best.denominator), step)
    centre = problem.zeros[0].at if len(problem.zeros) == 1 else Fraction(0)
    return from_parts(above, below, problem.centre).about(centre)


def exact_polynomial(coefficients: Sequence[Fraction]) -> fmpq_poly:
    return fmpq_poly([to_fmpq(c) for c in coefficients])


def spread(coefficients: Sequence[Fraction], step: int) -> fmpq_poly:
    """The polynomial with these coefficients in powers of z^step."""
    return exact_polynomial(coefficients)(fmpq_poly([0] * step + [1]))


def from_parts(above: fmpq_poly, below: fmpq_poly, centre: Fraction) -> Rational:
    return Rational(tuple(to_fractions(above)), tuple(to_fractions(below)), centre)


# ------------------------------------------------------------------ Pade


def pade(
    function: Function, numerator: int, denominator: int, centre: Fraction | None = None
) -> Rational:
    """The Pade approximant: the quotient that agrees with the Taylor series as far as it can.

    **Arguments:**

    - `function`: what is approximated.
    - `numerator`, `denominator`: its type, of which an even or odd function uses the degrees of
      its parity, as `minimax` does.
    - `centre`: where the series is taken; by default the function's only zero, 0 for an even or
      odd function, the middle of the domain for all others.

    Raises `InputError` if the linear system is singular: the entry of the Pade table belongs to a
    block of a lower type. Costs milliseconds.
    """
    check_type(numerator, denominator)
    problem = target(function, parity=centre is None)
    problem = inner(problem) if centre is None else replace(problem, centre=centre)
    taken, step = sum(zero.order for zero in problem.zeros), problem.step
    above, below = (numerator - taken) // step, denominator // step
    if above < 0:
        raise InputError(
            f"type {numerator}/{denominator}: the numerator has {taken} zeros at least"
        )
    with ctx.workprec(PADE_BITS):
        length = step * (above + below) + 1
        series = series_without(function, problem.zeros, problem.centre, length)[::step]
        p, q = _pade(series, above, below)
    best = Levelled(p, q, Fraction(0), ())
    return _with_zeros(best, problem, step)


def _pade(
    series: Sequence[arb], above: int, below: int
) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    """P and Q without its leading 1, from Q series = P up to the order above + below."""

    def term(k: int) -> arb:
        return series[k] if k >= 0 else arb(0)

    q: list[arb] = []
    if below:
        rows = [[term(above + i - j) for j in range(1, below + 1)] for i in range(1, below + 1)]
        right = [-term(above + i) for i in range(1, below + 1)]
        try:
            q = arb_mat(rows).solve(arb_mat(below, 1, right)).entries()
        except ZeroDivisionError:
            raise InputError(
                "this entry of the Pade table belongs to a lower type: lower both degrees"
            ) from None
    full = [arb(1), *q]
    p = [
        sum((full[j] * term(i - j) for j in range(min(i, below) + 1)), arb(0))
        for i in range(above + 1)
    ]
    return tuple(map(to_fraction, p)), tuple(map(to_fraction, q))


# ------------------------------------------------------------------ functions like exp


def minimax_quotient(function: Function, degree: int) -> BestQuotient:
    """The best f(c) (1 + T) / (1 - T), T odd in z = x - c with degrees up to `degree`.

    For functions with f(c + z) f(c - z) = f(c)^2 about the middle c of the domain, as exponentials
    have: there the best rational of type degree/degree is of this form, up to the square of its
    error, and has half as many constants. T approximates (f - f(c)) / (f + f(c)), weighted so that
    the relative error of the quotient is levelled, whatever error `function` measures.

    Raises `InputError` for a function without that symmetry.
    """
    check_type(degree, degree)
    if degree < 1:
        raise InputError("a quotient of odd and even parts has degree 1 at least")
    function = canonical(replace(function, error="relative"))
    if not is_exponential(function):
        raise InputError(
            f"{function.name} is no exponential about the middle of its domain: "
            "take another form of the rational"
        )
    return _minimax_quotient(function, degree)


@lru_cache(maxsize=256)
def _minimax_quotient(function: Function, degree: int) -> BestQuotient:
    low, high = function.interval
    centre = (low + high) / 2
    with ctx.workprec(PADE_BITS):
        value = to_fraction(function.oracle.value(exact(centre)))
        logarithmic = function.oracle.taylor(exact(centre), 2)
        slope = (logarithmic[1] / logarithmic[0] / 2).mid()

    def sample(z: arb, piece: Piece) -> tuple[arb, arb]:
        f, middle = function.oracle.value(exact(centre) + z), exact(value)
        t = (f - middle) / (f + middle)
        g = t / z if bool(abs(z) > arb(2) ** -64) else slope
        return g, abs(z) * 2 / (1 - t * t)

    problem = Target((Piece(Fraction(0), high - centre),), Fraction(0), 2, (), sample)
    above, below = (degree - 1) // 2, degree // 2
    best = remez(problem, range(0, 2 * above + 1, 2), range(2, 2 * below + 1, 2))
    return BestQuotient(
        best.numerator, (Fraction(1), *best.denominator), value, centre, best.error, best.extrema
    )


def is_exponential(function: Function) -> bool:
    """Whether f(c + z) f(c - z) = f(c)^2 about the middle c, to 200 bits at five points."""
    low, high = function.interval
    with ctx.workprec(320):
        centre, radius = exact((low + high) / 2), exact((high - low) / 2)
        square = function.oracle.value(centre) ** 2
        offsets = [radius * k / 64 for k in (7, 19, 33, 50, 61)]
        value = function.oracle.value
        products = [value(centre + z) * value(centre - z) for z in offsets]
        if not all(p.is_finite() and bool(p > 0) for p in products):
            return False
        return all(bool(abs(p / square - 1) < arb(2) ** -200) for p in products)
