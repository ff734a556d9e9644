"""Polynomials with exact coefficients, and the best of them in the sup norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from flint import fmpq, fmpq_poly

from nearly.core.errors import InputError
from nearly.functions.formats import exponent
from nearly.functions.function import Function
from nearly.functions.remez import remez
from nearly.functions.target import Target, Zero, canonical, midpoint, target


@dataclass(frozen=True)
class Polynomial:
    """The sum of `coefficients[j] * (x - centre) ** exponents[j]`, all exact.

    **Arguments:**

    - `exponents`: increasing.
    - `coefficients`: one each.
    - `centre`: what is subtracted from x.
    """

    exponents: tuple[int, ...]
    coefficients: tuple[Fraction, ...]
    centre: Fraction = Fraction(0)

    def __call__(self, x: Fraction) -> Fraction:
        """The exact value."""
        z = x - self.centre
        terms = zip(self.exponents, self.coefficients, strict=True)
        return sum((c * z**e for e, c in terms), Fraction(0))

    @property
    def degree(self) -> int:
        return max(self.exponents)

    def about(self, centre: Fraction) -> Polynomial:
        """The same polynomial in powers of (x - centre), exactly."""
        if centre == self.centre:
            return self
        return from_exact(shifted(to_exact(self), centre - self.centre), centre)


@dataclass(frozen=True)
class BestPolynomial:
    """A minimax polynomial, its error in the function's measure, and where that is attained.

    An error of 0 means that the function itself is such a polynomial, to 2^-500.
    """

    polynomial: Polynomial
    error: Fraction
    extrema: tuple[Fraction, ...]


def minimax(
    function: Function,
    degree: int | None = None,
    *,
    exponents: Sequence[int] | None = None,
    pinned: Mapping[int, Fraction] | None = None,
    weight: str | None = None,
) -> BestPolynomial:
    """The polynomial of least sup error, by the Remez exchange.

    **Arguments:**

    - `function`: what is approximated; its domain must be finite, its `error` is minimised.
    - `degree`: all powers up to it; of an even or odd function on a domain that is symmetric or
      begins at 0, those of its parity.
    - `exponents`: the powers, instead of a degree: any set.
    - `pinned`: power -> the coefficient it must have. Its powers are added to the others.
    - `weight`: an expression in x; minimise the largest (p - f) times it instead.

    **Returns:** a `BestPolynomial`, in powers of (x - z) if the error is relative and the function
    has just one zero z, of x otherwise.

    **Raises:** `InputError` where there is no finite error (a pole in the domain, a relative error
    at a zero that the powers cannot follow), or no alternation (powers that are no Chebyshev
    system on the domain).

    Costs about 10 ms for degree 10. Fits are cached, and shared by all formats.

    Differs from the usual implementation: coefficients are good to about 200 bits, so that they
    may be rounded to anything; zeros are factored out, so a relative error is finite there.
    """
    if (degree is None) == (exponents is None):
        raise InputError("minimax takes either a degree or exponents")
    if degree is not None:
        check_degree(degree)
    powers = None if exponents is None else tuple(sorted({*exponents, *(pinned or {})}))
    fixed = tuple(sorted((e, Fraction(c)) for e, c in (pinned or {}).items()))
    return _minimax(canonical(function, weight), degree, powers, fixed, weight)


def check_degree(degree: object) -> None:
    if not isinstance(degree, int) or not 0 <= degree <= 64:
        raise InputError(f"degree {degree!r}: a polynomial's dial is a whole number from 0 to 64")


@lru_cache(maxsize=512)
def _minimax(
    function: Function,
    degree: int | None,
    exponents: tuple[int, ...] | None,
    pinned: tuple[tuple[int, Fraction], ...],
    weight: str | None,
) -> BestPolynomial:
    problem = _problem(function, exponents, weight)
    if exponents is None:
        powers = powers_up_to(problem, int(degree or 0))
        exponents = tuple(sorted({*powers, *(e for e, _ in pinned)}))
        if problem.step == 1 and not problem.offset and not pinned:
            # All powers: about the middle of the domain they are best conditioned.
            middle = midpoint(*problem.interval)
            best = remez(replace(problem, centre=middle), exponents)
            found = Polynomial(exponents, best.numerator, middle)
            found = with_zeros(found, replace(problem, centre=middle)).about(problem.centre)
            return BestPolynomial(found, best.error, best.extrema)
    shift = problem.offset
    fixed = dict(pinned)
    free = [e for e in exponents if e not in fixed]
    if not free:
        raise InputError("every coefficient is pinned; leave at least one power free")
    wrong = [e for e in exponents if e < shift]
    if wrong:
        raise InputError(
            f"{function.name} has a zero of order {shift} at x = {float(problem.centre):g}, where "
            f"the power {wrong[0]} makes the relative error infinite: drop it"
        )
    best = remez(problem, [e - shift for e in free], (), {e - shift: c for e, c in fixed.items()})
    coefficients = fixed | dict(zip(free, best.numerator, strict=True))
    polynomial = Polynomial(exponents, tuple(coefficients[e] for e in exponents), problem.centre)
    return BestPolynomial(with_zeros(polynomial, problem), best.error, best.extrema)


def _problem(function: Function, exponents: tuple[int, ...] | None, weight: str | None) -> Target:
    """The target; with powers given, a symmetry is used only if they have it too."""
    problem = target(function, weight=weight)
    if exponents is None:
        return problem
    if problem.step == 2 and len({(e - problem.offset) % 2 for e in exponents} - {0}) == 0:
        return problem
    problem = target(function, parity=False, weight=weight)
    if any(zero.at for zero in problem.zeros):
        raise InputError(
            f"{function.name} has zeros away from 0, where a polynomial with chosen powers cannot "
            "follow it: take the absolute error"
        )
    return problem


def powers_up_to(problem: Target, degree: int) -> tuple[int, ...]:
    """The powers of z, that of the zero at the centre included, for a total degree."""
    others = sum(zero.order for zero in problem.zeros if zero.at != problem.centre)
    powers = tuple(range(problem.offset, degree - others + 1, problem.step))
    if not powers:
        lowest = problem.offset + others
        raise InputError(
            f"degree {degree}: a polynomial with the zeros of this function has degree {lowest} "
            "at least"
        )
    return powers


def with_zeros(polynomial: Polynomial, problem: Target) -> Polynomial:
    """The polynomial times the factors of the zeros away from the centre."""
    others = [zero for zero in problem.zeros if zero.at != problem.centre]
    if not others:
        return polynomial
    product = to_exact(polynomial) * zero_factors(others, polynomial.centre)
    return from_exact(product, polynomial.centre)


def zero_factors(zeros: Sequence[Zero], centre: Fraction) -> fmpq_poly:
    """The product of (x - zero)^order in powers of z = x - centre."""
    product = fmpq_poly([1])
    for zero in zeros:
        product *= fmpq_poly([to_fmpq(centre - zero.at), 1]) ** zero.order
    return product


# ------------------------------------------------------------------ exact arithmetic


def to_fmpq(value: Fraction) -> fmpq:
    return fmpq(value.numerator, value.denominator)


def from_fmpq(value: fmpq) -> Fraction:
    return Fraction(int(value.p), int(value.q))


def significant(value: Fraction, bits: int) -> Fraction:
    """The value rounded to so many significant bits."""
    if not value:
        return value
    step = Fraction(2) ** (exponent(value) - bits + 1)
    return round(value / step) * step


def to_exact(polynomial: Polynomial) -> fmpq_poly:
    """The dense coefficients in powers of (x - centre), for exact arithmetic."""
    dense = [fmpq(0)] * (polynomial.degree + 1)
    for e, c in zip(polynomial.exponents, polynomial.coefficients, strict=True):
        dense[e] = to_fmpq(c)
    return fmpq_poly(dense)


def to_fractions(polynomial: fmpq_poly) -> list[Fraction]:
    return [from_fmpq(c) for c in polynomial.coeffs()]


def from_exact(polynomial: fmpq_poly, centre: Fraction) -> Polynomial:
    """A `Polynomial` of the non-zero coefficients."""
    terms = [(e, c) for e, c in enumerate(to_fractions(polynomial)) if c] or [(0, Fraction(0))]
    return Polynomial(tuple(e for e, _ in terms), tuple(c for _, c in terms), centre)


def shifted(polynomial: fmpq_poly, by: Fraction) -> fmpq_poly:
    """p(z + by), exactly: from powers of (x - c) to those of (x - c - by)."""
    return polynomial(fmpq_poly([to_fmpq(by), 1]))
