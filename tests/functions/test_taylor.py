"""Taylor polynomials: known series, centres, zeros."""

from fractions import Fraction

import pytest

from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.taylor import taylor


def test_the_series_of_sin():
    polynomial = taylor(Function("sin", ("0", "pi/2")), 7)
    assert polynomial.exponents == (1, 3, 5, 7)
    assert polynomial.centre == 0
    expected = [1, -1 / 6, 1 / 120, -1 / 5040]
    assert [float(c) for c in polynomial.coefficients] == pytest.approx(expected, rel=1e-15)


def test_the_default_centre_is_the_middle():
    polynomial = taylor(Function("exp", ("0", "1")), 4)
    assert polynomial.centre == Fraction(1, 2)
    expected = [1.6487212707001282 / d for d in (1, 1, 2, 6, 24)]
    assert [float(c) for c in polynomial.coefficients] == pytest.approx(expected, rel=1e-15)


def test_any_centre():
    polynomial = taylor(Function("exp", ("0", "1")), 2, Fraction(0))
    assert [float(c) for c in polynomial.coefficients] == pytest.approx([1, 1, 0.5], rel=1e-15)


def test_the_series_begins_at_a_zero_of_the_function():
    polynomial = taylor(Function("log", ("1/2", "2")), 3)
    assert (polynomial.centre, polynomial.exponents) == (1, (1, 2, 3))
    assert [float(c) for c in polynomial.coefficients] == pytest.approx([1, -1 / 2, 1 / 3])


def test_a_polynomial_is_its_own_series():
    function = Function("1 + x^3/4", ("0", "1"), error="absolute")
    polynomial = taylor(function, 3)
    assert polynomial(Fraction(2)) == 3


def test_a_singular_centre_is_refused():
    with pytest.raises(InputError, match="no Taylor series at 0"):
        taylor(Function("log2", ("1/2", "3/4")), 3, Fraction(0))
