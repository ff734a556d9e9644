"""Chebyshev series against closed forms and interpolation conditions."""

from fractions import Fraction
from math import cos, pi

import pytest
from mpmath import besseli, mp

from nearly.core.errors import InputError
from nearly.functions.chebyshev import interpolation, truncation
from nearly.functions.function import Function


def test_the_series_of_exp_has_bessel_coefficients():
    # exp(t) on [-1, 1] is I_0(1) + 2 sum of I_k(1) T_k(t).
    series = truncation(Function("exp", ("-1", "1"), error="absolute"), 9)
    with mp.workdps(30):
        expected = [float((2 if k else 1) * besseli(k, 1)) for k in range(10)]
    assert [float(c) for c in series.coefficients] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("degree", [1, 4, 9])
def test_interpolation_agrees_at_chebyshevs_points(degree):
    function = Function("exp", ("0", "3"), error="absolute")
    polynomial = interpolation(function, degree).polynomial()
    for j in range(degree + 1):
        x = Fraction(1.5 + 1.5 * cos((2 * j + 1) * pi / (2 * degree + 2)))
        assert float(polynomial(x)) == pytest.approx(float(function.oracle.at(x)), rel=1e-13)


@pytest.mark.parametrize("build", [truncation, interpolation])
def test_a_polynomial_is_reproduced(build):
    function = Function("1 + x^3/4", ("0", "2"), error="absolute")
    polynomial = build(function, 5).polynomial()
    assert float(polynomial(Fraction(1, 3))) == pytest.approx(1 + 1 / 108, rel=1e-15)


@pytest.mark.parametrize("build", [truncation, interpolation])
def test_zeros_and_parity_are_kept(build):
    odd = build(Function("sin", ("-1", "1")), 7).polynomial()
    assert odd.exponents == (1, 3, 5, 7)
    zero = build(Function("log1p", ("0", "1")), 5).polynomial()
    assert zero.exponents[0] == 1
    assert float(zero(Fraction(1, 2))) == pytest.approx(0.4054651081, rel=1e-4)


def test_a_series_without_an_end_is_refused():
    with pytest.raises(InputError, match="does not end"):
        truncation(Function("sqrt", ("0", "1"), error="absolute"), 5)
    # Interpolation needs no more of the series than its degree.
    assert interpolation(Function("sqrt", ("0", "1"), error="absolute"), 5).coefficients
