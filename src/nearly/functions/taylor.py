"""Taylor polynomials, about any point."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from flint import ctx

from nearly.functions.balls import to_fraction
from nearly.functions.function import Function
from nearly.functions.polynomial import Polynomial, check_degree, powers_up_to, with_zeros
from nearly.functions.target import midpoint, series_without, target

BITS = 640


def taylor(function: Function, degree: int, centre: Fraction | None = None) -> Polynomial:
    """The Taylor polynomial of a function.

    **Arguments:**

    - `function`: any; its domain must be finite.
    - `degree`: that of the polynomial.
    - `centre`: where the series is taken. By default 0 for an even or odd function on a domain
      that is symmetric or begins there, the function's only zero if it has one and the error is
      relative (the polynomial must vanish there), the middle of the domain otherwise: there the
      error is least, by far.

    **Returns:** a `Polynomial` in powers of (x - centre). Zeros of the function elsewhere are kept
    (the series is that of the function divided by their factors), so that the relative error
    stays finite.

    Raises `InputError` for a pole. Costs milliseconds.
    """
    check_degree(degree)
    problem = target(function)
    if centre is None:
        natural = problem.step == 2 or len(problem.zeros) == 1
        centre = problem.centre if natural else midpoint(*problem.interval)
    problem = replace(problem, centre=centre, step=problem.step if centre == 0 else 1)
    exponents = powers_up_to(problem, degree)
    with ctx.workprec(BITS):
        last = exponents[-1] - problem.offset
        series = series_without(function, problem.zeros, centre, last + 1)
        coefficients = tuple(to_fraction(series[e - problem.offset]) for e in exponents)
    return with_zeros(Polynomial(exponents, coefficients, centre), problem)
