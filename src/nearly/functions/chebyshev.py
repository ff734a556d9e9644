"""Chebyshev series: truncated, or interpolating at Chebyshev's points."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from flint import arb, ctx, fmpq_poly

from nearly.core.errors import InputError
from nearly.functions.balls import exact, to_fraction
from nearly.functions.function import Function
from nearly.functions.polynomial import (
    Polynomial,
    check_degree,
    from_exact,
    powers_up_to,
    to_fmpq,
    zero_factors,
)
from nearly.functions.target import Target, canonical, target

BITS = 448
LONGEST = 1024  # terms of a series


@dataclass(frozen=True)
class ChebyshevSeries:
    """D(x) times the sum of `coefficients[k]` T_k(t), t running from -1 to 1 as u = z^step does.

    **Arguments:**

    - `coefficients`: exact.
    - `interval`: the range of u.
    - `problem`: the target; its centre gives z = x - centre, its zeros give D.
    """

    coefficients: tuple[Fraction, ...]
    interval: tuple[Fraction, Fraction]
    problem: Target

    @property
    def map(self) -> tuple[Fraction, Fraction]:
        """(a, b) with t = a u + b."""
        low, high = self.interval
        return 2 / (high - low), -(high + low) / (high - low)

    def polynomial(self) -> Polynomial:
        """The same in powers of x - centre, exactly."""
        a, b = self.map
        t = fmpq_poly([to_fmpq(b), to_fmpq(a)])
        previous, current = fmpq_poly([1]), t
        total = previous * to_fmpq(self.coefficients[0])
        for c in self.coefficients[1:]:
            total += current * to_fmpq(c)
            previous, current = current, 2 * t * current - previous
        step, centre = self.problem.step, self.problem.centre
        in_z = total(fmpq_poly([0] * step + [1]))
        return from_exact(in_z * zero_factors(self.problem.zeros, centre), centre)


def truncation(function: Function, degree: int) -> ChebyshevSeries:
    """The Chebyshev series up to a degree: near-best in the absolute error.

    **Arguments:**

    - `function`: its domain must be finite. An even or odd one is expanded in x^2, one with zeros
      and a relative error divided by their factors first.
    - `degree`: that of the polynomial it makes.

    Raises `InputError` for a pole, or a series that does not end within 1024 terms at 2^-64.
    Costs some milliseconds: as many evaluations as the series has terms before its plateau.
    """
    check_degree(degree)
    problem, length = _problem(function, degree)
    coefficients = full_series(canonical(function))
    return ChebyshevSeries(coefficients[:length], _range(problem), problem)


def interpolation(function: Function, degree: int) -> ChebyshevSeries:
    """The polynomial that agrees with the function at Chebyshev's points of the first kind.

    Arguments and errors as `truncation`; costs one evaluation per coefficient.
    """
    check_degree(degree)
    problem, length = _problem(function, degree)
    with ctx.workprec(BITS):
        return ChebyshevSeries(_interpolated(problem, length), _range(problem), problem)


def _problem(function: Function, degree: int) -> tuple[Target, int]:
    problem = target(canonical(function))
    return problem, len(powers_up_to(problem, degree))


def _range(problem: Target) -> tuple[Fraction, Fraction]:
    """The interval of u = (x - centre)^step."""
    low, high = (end - problem.centre for end in problem.interval)
    return low**problem.step, high**problem.step


@lru_cache(maxsize=64)
def full_series(function: Function) -> tuple[Fraction, ...]:
    """The Chebyshev coefficients down to the plateau where only noise would follow.

    As many points as it takes for the last quarter of the coefficients to be 2^-64 times smaller
    than the largest; what they are then off by (aliasing) is as small.
    """
    problem = target(function)
    length = 32
    while length <= LONGEST:
        with ctx.workprec(BITS):
            coefficients = _interpolated(problem, length)
        largest = max(map(abs, coefficients))
        if max(map(abs, coefficients[-length // 4 :])) * 2**64 <= largest:
            return coefficients
        length *= 2
    raise InputError(
        f"the Chebyshev series of {function.name} does not end within {LONGEST} terms: "
        "interpolate, or shorten the domain"
    )


def _interpolated(problem: Target, count: int) -> tuple[Fraction, ...]:
    """The coefficients of the interpolant, by the discrete cosine transform of g."""
    low, high = map(exact, _range(problem))
    cosines = [(arb(k) / (2 * count)).cos_pi() for k in range(4 * count)]
    values: list[arb] = []
    for j in range(count):
        u = (low + high) / 2 + (high - low) / 2 * cosines[2 * j + 1]
        x = (u.sqrt() if problem.step == 2 else u) + exact(problem.centre)
        g, _ = problem.sample(x.mid(), problem.pieces[0])
        values.append(g)

    def coefficient(k: int) -> Fraction:
        terms = (g * cosines[k * (2 * j + 1) % (4 * count)] for j, g in enumerate(values))
        return to_fraction(sum(terms, arb(0)) * (2 if k else 1) / count)

    return tuple(coefficient(k) for k in range(count))
