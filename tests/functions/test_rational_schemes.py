"""Schemes of rationals: exact values, and the operations that are counted by hand."""

from dataclasses import replace
from fractions import Fraction

import pytest

from nearly.functions.program import Program
from nearly.functions.rational import BestQuotient, Rational
from nearly.functions.rational_schemes import (
    continued_fraction,
    full_continued_fraction,
    odd_quotient,
    two_horner,
)

EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}
POINTS = (Fraction(-2, 3), Fraction(1, 7), Fraction(5, 4))


def value(program: Program, x: Fraction) -> Fraction:
    return program.run(x, EXACT, lambda constant: constant)


def some(degree: int, seed: int) -> tuple[Fraction, ...]:
    """Coefficients with no common factors by accident."""
    return tuple(Fraction((seed * (k + 2) ** 3) % 101 + 1, k + 1) for k in range(degree + 1))


def pade_of_exp(n: int) -> Rational:
    """Type n/n: symmetric, so that it is an odd quotient."""
    coefficients = [Fraction(1)]
    for k in range(n):
        coefficients.append(coefficients[-1] * (n - k) / ((2 * n - k) * (k + 1)))
    return Rational(tuple(coefficients), tuple(c * (-1) ** k for k, c in enumerate(coefficients)))


TYPES = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), (0, 3), (1, 4), (3, 3), (4, 2), (6, 6)]


@pytest.mark.parametrize(("m", "n"), TYPES)
def test_two_horners(m, n):
    rational = Rational(some(m, 7), some(n, 13))
    program = two_horner(rational)
    assert [value(program, x) for x in POINTS] == [rational(x) for x in POINTS]
    assert program.cost.ops == 2 * m + 2 * n  # Q is monic: 2n - 1; and the division


@pytest.mark.parametrize(("m", "n"), TYPES)
def test_continued_fractions(m, n):
    rational = Rational(some(m, 7), some(n, 13))
    program = continued_fraction(rational)
    for x in POINTS:
        assert abs(value(program, x) - rational(x)) < Fraction(1, 2**1000)
    # Three operations per stage and two per degree of a polynomial part, of r or of 1/r.
    low, high = sorted((m, n))
    assert program.cost.ops == 3 * low + 2 * (high - low)


@pytest.mark.parametrize("scheme", [two_horner, continued_fraction])
def test_odd_rationals_are_evaluated_in_the_square(scheme):
    zero = Fraction(0)
    odd = Rational((zero, Fraction(2), zero, Fraction(3)), (Fraction(5), zero, Fraction(7)))
    program = scheme(odd)
    for x in POINTS:
        assert abs(value(program, x) - odd(x)) < Fraction(1, 2**1000)
    # x^2; x (q + K / (x^2 + a)): three and the product. Two Horners: 2 and a product, 1, division.
    assert program.cost.ops == {two_horner: 6, continued_fraction: 5}[scheme]


def test_a_centre_costs_one_operation():
    rational = Rational(some(2, 7), some(2, 13), Fraction(1, 2))
    assert two_horner(rational).cost.ops == 9
    assert value(two_horner(rational), POINTS[1]) == rational(POINTS[1])


# n: operations; n = 2b has z, z^2, 3b - 2 for the fraction, and four; n = 2b + 1 two more; n = 1
# is K / (B - x) - c. About the centre 0 there is no subtraction, but for n = 1, which has none.
QUOTIENTS = {1: 3, 2: 7, 3: 9, 4: 10, 5: 12, 6: 13, 8: 16}


@pytest.mark.parametrize(("n", "operations"), QUOTIENTS.items())
@pytest.mark.parametrize("centre", [Fraction(0), Fraction(1, 2)])
def test_odd_quotients(n, operations, centre):
    pade = pade_of_exp(n)
    quotient = BestQuotient(
        pade.numerator[1::2], pade.numerator[::2], Fraction(3, 2), centre, Fraction(1), ()
    )
    program = odd_quotient(quotient)
    for x in POINTS:
        expected = Fraction(3, 2) * pade(x - centre)
        assert quotient(x) == expected
        assert abs(value(program, x) - expected) < Fraction(1, 2**1000)
    assert program.cost.ops == operations - (centre == 0 and n > 1)


def test_what_is_zero_but_for_rounding_costs_nothing():
    # Pade's r(x) r(-x) = 1 leaves no constant beside x in the innermost quotient of type 2/2.
    exact = pade_of_exp(2)
    noisy = Rational(tuple(c + Fraction(1, 2**500) for c in exact.numerator), exact.denominator)
    program = continued_fraction(noisy)
    assert program.cost.ops == 5
    assert abs(value(program, POINTS[0]) - exact(POINTS[0])) < Fraction(1, 2**250)


def test_the_full_continued_fraction_saves_an_operation_at_odd_type_one_two():
    # K x / (x^2 + d) is K / (x + d / x).
    rational = Rational((Fraction(0), Fraction(3)), (Fraction(2), Fraction(0), Fraction(1)))
    program = full_continued_fraction(rational)
    assert [value(program, x) for x in POINTS] == [rational(x) for x in POINTS]
    assert program.cost.ops == 3
    assert continued_fraction(rational).cost.ops == 4


def test_a_zero_at_the_centre_is_a_factor():
    """z (1 + z) / (3 + 5z + z^2) about 1 is z / (4 + z - 1 / (z + 1))."""
    numerator = (Fraction(0), Fraction(1), Fraction(1))
    denominator = (Fraction(3), Fraction(5), Fraction(1))
    program = continued_fraction(Rational(numerator, denominator, Fraction(1)))
    assert program.cost.ops == 6
    moved = {name: Fraction(v) * Fraction(9, 8) for name, v in program.constants.items() if v != 1}
    assert value(replace(program, constants={**program.constants, **moved}), Fraction(1)) == 0
