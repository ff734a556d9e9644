"""Minimax polynomials: levelled errors, Sollya's figures, bases, zeros, degenerate cases."""

import csv
import itertools
import random
from fractions import Fraction
from pathlib import Path

import pytest
from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.polynomial import Polynomial, minimax

REFERENCE = Path(__file__).parent / "reference" / "polynomials.csv"


def sollya() -> list[tuple[str, str, str, tuple[int, ...], float]]:
    rows = csv.reader(REFERENCE.read_text().splitlines())
    return [
        (name, low, high, tuple(map(int, powers.split())), float(error))
        for name, low, high, powers, error in rows
    ]


def relative_error(function: Function, polynomial: Polynomial, x: Fraction) -> float:
    """p(x) / f(x) - 1 by a path that shares nothing with the fit's own."""
    truth = function.oracle.at(x, 200)
    with ctx.workprec(256):
        value = polynomial(x)
        return float(arb(value.numerator) / value.denominator / truth - 1)


@pytest.mark.parametrize(("name", "low", "high", "powers", "error"), sollya())
def test_errors_are_those_of_sollya(name, low, high, powers, error):
    best = minimax(Function(name, (low, high)), powers[-1])
    assert best.polynomial.exponents == powers
    assert float(best.error) == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize(("name", "domain"), [("exp2", ("0", "1")), ("sin", ("0", "pi/2"))])
@pytest.mark.parametrize("degree", [3, 7])
def test_the_error_alternates_and_is_level(name, domain, degree):
    function = Function(name, domain)
    best = minimax(function, degree)
    inside = [x for x in best.extrema if x]
    errors = [relative_error(function, best.polynomial, x) for x in inside]
    assert len(best.extrema) == len(best.polynomial.coefficients) + 1
    assert all(a * b < 0 for a, b in itertools.pairwise(errors))
    assert max(map(abs, errors)) == pytest.approx(float(best.error), rel=1e-6)
    assert min(map(abs, errors)) == pytest.approx(float(best.error), rel=1e-3)


def test_no_point_has_a_larger_error():
    function = Function("exp2")
    best = minimax(function, 6)
    draw = random.Random(1)
    points = [Fraction(draw.random()) for _ in range(300)]
    assert max(abs(relative_error(function, best.polynomial, x)) for x in points) <= best.error


def test_degree_one_has_its_closed_form():
    # The best line to e^x on [0, 1] in the absolute error has slope e - 1, and is level at 0, at 1
    # and where the slopes agree, x = log(e - 1): E = (2 - e + (e - 1) log(e - 1)) / 2.
    with ctx.workprec(200):
        e = arb(1).exp()
        expected = (2 - e + (e - 1) * (e - 1).log()) / 2
    best = minimax(Function("exp", ("0", "1"), error="absolute"), 1)
    assert float(best.error) == pytest.approx(float(expected), rel=1e-7)
    assert float(best.polynomial.coefficients[1]) == pytest.approx(float(e - 1), rel=1e-12)


def test_the_absolute_error_of_a_power_is_chebyshevs():
    # x^5 less its best approximation of degree 4 on [-1, 1] is T_5 / 16; by parity it is odd.
    best = minimax(Function("x^5", ("-1", "1"), error="absolute"), 4)
    assert best.polynomial.exponents == (1, 3)
    assert float(best.error) == pytest.approx(1 / 16, rel=1e-6)
    assert [float(c) for c in best.polynomial.coefficients] == pytest.approx([-5 / 16, 20 / 16])


def test_a_symmetric_domain_gives_the_fit_of_its_half():
    half = minimax(Function("cos", ("0", "1")), 6)
    whole = minimax(Function("cos", ("-1", "1")), 7)
    assert whole.polynomial == half.polynomial


def test_a_weight_replaces_the_measure():
    # f times 1/f is the relative error.
    weighted = minimax(Function("exp2", error="absolute"), 4, weight="1/exp2(x)")
    relative = minimax(Function("exp2"), 4)
    assert float(weighted.error) == pytest.approx(float(relative.error), rel=1e-6)


def test_ulps_are_absolute_where_one_binade_holds_all_values():
    ulps = minimax(Function("exp2", dtype="float32", error="ulp"), 5)
    absolute = minimax(Function("exp2", error="absolute"), 5)
    # 2^x runs through [1, 2), where one ULP is 2^-23 but at the point 1 itself.
    assert float(ulps.error) == pytest.approx(float(absolute.error) * 2**23, rel=1e-4)


def test_ulps_change_their_weight_where_the_binade_changes():
    function = Function("exp2", ("0", "2"), "float32", "ulp")
    best = minimax(function, 5)
    below, above = ([x for x in best.extrema if (x > 1) == side] for side in (False, True))
    assert below and above
    sizes = [
        abs(relative_error(function, best.polynomial, x)) * 2 ** float(x) for x in best.extrema
    ]
    for x, size in zip(best.extrema, sizes, strict=True):
        if x != 1:
            ulp = 2.0**-22 if x > 1 else 2.0**-23
            assert size / ulp == pytest.approx(float(best.error), rel=1e-3)


def test_pinned_coefficients_stay_and_cost_accuracy():
    function = Function("exp2")
    free = minimax(function, 4)
    pinned = minimax(function, exponents=range(5), pinned={0: Fraction(1)})
    assert pinned.polynomial.coefficients[0] == 1
    assert free.error < pinned.error < 8 * free.error
    assert len(pinned.extrema) == 5
    by_degree = minimax(function, 4, pinned={0: Fraction(1)})
    assert by_degree.polynomial == pinned.polynomial


def test_any_powers_may_be_chosen():
    best = minimax(Function("exp2"), exponents=(0, 1, 3))
    errors = [relative_error(Function("exp2"), best.polynomial, x) for x in best.extrema]
    assert best.polynomial.exponents == (0, 1, 3)
    assert len(errors) == 4
    assert [abs(e) for e in errors] == pytest.approx([float(best.error)] * 4, rel=1e-5)


def test_a_zero_inside_the_domain_is_kept():
    function = Function("log2", ("1/2", "2"))
    best = minimax(function, 6)
    assert best.polynomial(Fraction(1)) == 0
    assert best.polynomial.centre == 1
    near = [relative_error(function, best.polynomial, 1 + Fraction(k, 10**9)) for k in (-1, 1)]
    assert max(map(abs, near)) <= float(best.error) * (1 + 1e-6)


def test_several_zeros_are_kept():
    function = Function("sin", ("-1", "4"))
    best = minimax(function, 8)
    for x in (Fraction(1, 10**6), Fraction(31415926, 10**7)):
        assert abs(relative_error(function, best.polynomial, x)) <= float(best.error) * 1.00001


def test_a_polynomial_is_found_exactly():
    best = minimax(Function("1 + x^3/4", ("0", "1")), 5)
    assert best.error == 0
    assert best.polynomial(Fraction(1, 3)) == 1 + Fraction(1, 108)


def test_fits_are_shared_between_formats():
    assert minimax(Function("exp2"), 7) is minimax(Function("exp2", dtype="float32"), 7)


def test_moving_the_centre_changes_no_value():
    polynomial = minimax(Function("exp2"), 5).polynomial
    moved = polynomial.about(Fraction(1, 3))
    assert moved.centre == Fraction(1, 3)
    assert moved(Fraction(5, 7)) == polynomial(Fraction(5, 7))
    assert moved.about(Fraction(0)) == polynomial


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (Function("sqrt", ("0", "1")), {"degree": 3}, "unlike any polynomial"),
        (Function("sin", ("0", "1")), {"exponents": (0, 1, 3)}, "drop it"),
        (Function("exp2"), {"degree": -1}, "degree -1"),
        (Function("exp2"), {"exponents": (0,), "pinned": {0: Fraction(1)}}, "pinned"),
        (Function("exp2", ("-1", "2")), {"exponents": (1, 3)}, "no minimax"),
        (Function("exp2"), {}, "either a degree or exponents"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_a_reason(function, arguments, message):
    with pytest.raises(InputError, match=message):
        minimax(function, **arguments)


def test_an_unbounded_domain_is_refused():
    with pytest.raises(InputError, match="unbounded"):
        minimax(Function("exp2", ("-inf", "inf"), "float32", "ulp"), 3)


def test_values_are_exact():
    polynomial = Polynomial((0, 2), (Fraction(1, 3), Fraction(2)), Fraction(1))
    assert polynomial(Fraction(4)) == Fraction(1, 3) + 18


def test_a_symmetric_error_does_not_pass_for_none():
    # gelu(x) - x/2 is even, so on a symmetric reference of ten points the levelled error is 0.
    # Sollya 8.0, remez(x*(1+erf(x/sqrt(2)))/2, 8, [-4;4]): dirtyinfnorm of the error.
    best = minimax(Function("gelu", ("-4", "4"), error="absolute"), 8)
    assert float(best.error) == pytest.approx(9.786578e-3, rel=1e-4)


def test_a_zero_of_an_even_function_is_kept_on_both_sides():
    function = Function("bessel_j0", ("-3", "3"))
    best = minimax(function, 8)
    assert {e % 2 for e in best.polynomial.exponents} == {0}
    assert len(best.extrema) == 5  # two of the ten free powers follow the zeros at ±2.4048
    sizes = [abs(relative_error(function, best.polynomial, x)) for x in best.extrema]
    assert sizes == pytest.approx([float(best.error)] * 5, rel=1e-4)


def test_a_domain_far_from_zero():
    # 2^(x + 1000) = 2^1000 2^x.
    far, near = (minimax(Function("exp2", domain), 8) for domain in (("1000", "1001"), ("0", "1")))
    assert float(far.error) == pytest.approx(float(near.error), rel=1e-6)
