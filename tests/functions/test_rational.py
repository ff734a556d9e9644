"""Rationals: an independent solution's figures, levelled errors, Pade's closed form, degeneracy."""

import csv
import itertools
import math
from fractions import Fraction
from pathlib import Path

import pytest
from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.rational import Rational, minimax, minimax_quotient, pade

REFERENCE = Path(__file__).parent / "reference" / "rationals.csv"
ALL = list(csv.reader(REFERENCE.read_text().splitlines()))


def relative_error(function: Function, value: Fraction, x: Fraction) -> float:
    truth = function.oracle.at(x, 300)
    with ctx.workprec(400):
        return float(arb(value.numerator) / value.denominator / truth - 1)


@pytest.mark.parametrize(("name", "variable", "low", "high", "m", "n", "error"), ALL)
def test_errors_are_those_of_the_independent_solution(name, variable, low, high, m, n, error):
    above, below = int(m), int(n)
    if variable == "u":  # x times a rational in x^2
        above, below = 2 * above + 1, 2 * below
    best = minimax(Function(name, (low, high)), above, below)
    assert float(best.error) == pytest.approx(float(error), rel=1e-4)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (6, 6)])
def test_the_error_alternates_and_is_level(m, n):
    function = Function("exp2")
    best = minimax(function, m, n)
    errors = [relative_error(function, best.rational(x), x) for x in best.extrema]
    assert len(errors) == m + n + 2
    assert all(a * b < 0 for a, b in itertools.pairwise(errors))
    assert [abs(e) for e in errors] == pytest.approx([float(best.error)] * len(errors), rel=1e-3)


@pytest.mark.parametrize(
    ("name", "domain", "m", "n"),
    [
        ("exp2", ("0", "1"), 12, 12),
        ("erf", ("0", "4"), 13, 12),
        ("tanh", ("-20", "20"), 13, 12),
        ("log2", ("1/2", "2"), 12, 12),
        ("exp(-x^2)", ("-4", "4"), 12, 12),
    ],
)
def test_type_twelve_is_reached(name, domain, m, n):
    function = Function(name, domain)
    best = minimax(function, m, n)
    inside = [x for x in best.extrema if x]
    errors = [abs(relative_error(function, best.rational(x), x)) for x in inside]
    assert min(errors) == pytest.approx(max(errors), rel=1e-3)
    assert max(errors) == pytest.approx(float(best.error), rel=1e-3)


def test_a_branch_point_at_the_end_needs_moved_nodes():
    # |x| on [-1, 1] by type 2n/2n is sqrt(u) on [0, 1] by n/n: Varga, Ruttan and Carpenter give
    # E = 7.3656e-4 for type 8/8 (Numerical results on best uniform rational approximation, 1993).
    best = minimax(Function("sqrt", ("0", "1"), error="absolute"), 4, 4)
    assert float(best.error) == pytest.approx(7.365636e-4, rel=1e-5)


def test_an_odd_function_gets_an_odd_rational():
    best = minimax(Function("tanh", ("-1", "1")), 4, 3)
    assert [bool(c) for c in best.rational.numerator] == [False, True, False, True]
    assert [bool(c) for c in best.rational.denominator] == [True, False, True]


def test_a_rational_is_found_exactly():
    best = minimax(Function("1/(x+2)", ("0", "1")), 0, 1)
    assert best.error == 0
    assert float(best.rational(Fraction(1, 3))) == pytest.approx(3 / 7, rel=1e-15)


@pytest.mark.parametrize(
    ("function", "m", "n", "message"),
    [
        (Function("1/(x+2)"), 2, 2, "lower type"),
        (Function("exp2"), 3, 0, "is a polynomial"),
        (Function("exp2"), -1, 2, "degrees are"),
        (Function("tanh"), 0, 2, "at least"),
        (Function("tanh"), 3, 1, "at least"),
    ],
)
def test_types_that_do_not_exist_are_refused(function, m, n, message):
    with pytest.raises(InputError, match=message):
        minimax(function, m, n)


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 2), (3, 2), (0, 3), (4, 4)])
def test_pade_of_exp_has_its_closed_form(m, n):
    def part(top: int, other: int, sign: int) -> list[Fraction]:
        return [
            Fraction(
                math.factorial(top + other - k) * math.factorial(top) * sign**k,
                math.factorial(top + other) * math.factorial(k) * math.factorial(top - k),
            )
            for k in range(top + 1)
        ]

    found = pade(Function("exp", ("0", "1")), m, n, Fraction(0))
    for ours, theirs in ((found.numerator, part(m, n, 1)), (found.denominator, part(n, m, -1))):
        assert [float(c) for c in ours] == pytest.approx([float(c) for c in theirs], rel=1e-14)


def test_pade_about_the_middle_is_better_on_the_domain():
    function = Function("exp2")
    middle, origin = pade(function, 3, 3), pade(function, 3, 3, Fraction(0))
    x = Fraction(1)
    assert abs(relative_error(function, middle(x), x)) < abs(
        relative_error(function, origin(x), x) / 50
    )


def test_pade_of_tan_is_odd_and_known():
    # tan x = x (1 - x^2/15) / (1 - 6 x^2/15) + O(x^7)
    found = pade(Function("tan", ("0", "1/2")), 3, 2)
    assert [float(c) for c in found.numerator] == pytest.approx([0, 1, 0, -1 / 15])
    assert [float(c) for c in found.denominator] == pytest.approx([1, 0, -6 / 15])


def test_pade_refuses_a_block_of_the_table():
    with pytest.raises(InputError, match="lower type"):
        pade(Function("1/(x+2)"), 2, 2)


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 6])
def test_the_quotient_of_an_exponential_is_the_best_rational(degree):
    function = Function("exp2")
    quotient, best = minimax_quotient(function, degree), minimax(function, degree, degree)
    assert float(quotient.error) == pytest.approx(float(best.error), rel=2e-3)
    errors = [
        relative_error(function, quotient(x + quotient.centre), x + quotient.centre)
        for x in quotient.extrema
    ]
    assert max(map(abs, errors)) == pytest.approx(float(quotient.error), rel=2e-3)


def test_the_quotient_is_refused_to_others():
    with pytest.raises(InputError, match="no exponential"):
        minimax_quotient(Function("cos"), 2)


def test_values_are_exact():
    rational = Rational((Fraction(1), Fraction(2)), (Fraction(1), Fraction(-3)), Fraction(1, 2))
    assert rational(Fraction(1)) == Fraction(2) / Fraction(-1, 2)
    assert rational.about(Fraction(0))(Fraction(1)) == rational(Fraction(1))
