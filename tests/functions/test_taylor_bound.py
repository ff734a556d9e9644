"""Bounds over the reals, against errors computed by mpmath or by hand."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import pytest
from flint import arb_series, ctx

from nearly.core.errors import NotProven
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program
from nearly.functions.proof import prove
from nearly.functions.taylor_bound import Piece, bound_error, series_length, simplest


def doubling(j: int, k: int) -> tuple[Program, mpmath.mpf]:
    """2^x by coth doubling with analytic constants, and its largest relative error by mpmath."""
    with mpmath.workdps(60):
        s = mpmath.log(2) / 2 ** (j + k)
        d, pole, scale = 12 / s**2, 6 / s, 12 / s
        kappas = []
        for _ in range(j):
            kappas.append(pole**2)
            pole, scale = 2 * pole, 4 * pole
        exact = [Fraction(mpmath.nstr(v, 50)) for v in (d, pole, scale, *kappas)]

        def evaluate(x, constants):
            d, pole, scale, *kappas = constants
            c = x + d / x
            for kappa in kappas:
                c = c + kappa / c
            y = scale / (c - pole) + 1
            for _ in range(k):
                y = y * y
            return y

        b = Builder()
        program = b.program(evaluate(b.x, exact))
        numbers = [mpmath.mpf(v.numerator) / v.denominator for v in exact]
        worst = max(
            abs(evaluate(x, numbers) / mpmath.mpf(2) ** x - 1)
            for x in (mpmath.mpf(i) / 2000 for i in range(1, 2001))
        )
    return program, worst


@pytest.mark.parametrize(("j", "k"), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)])
def test_bound_is_tight_where_the_singularity_at_zero_is_removable(j: int, k: int) -> None:
    program, worst = doubling(j, k)
    proof = prove(Function("exp2", ("0", "1")), program)
    assert worst <= proof.total <= worst * 1.001
    assert proof.rounding == 0


def test_a_constant_numerator_of_an_inner_quotient_counts() -> None:
    """x / (d / x) is x^2 / d; the error of c - x^2/d against cos, by mpmath."""
    b = Builder()
    c, d = Fraction(998, 1000), Fraction(211, 100)
    program = b.program(c - b.x / (d / b.x))
    worst = max(
        abs((0.998 - x**2 / 2.11) / mpmath.cos(x) - 1)
        for x in (mpmath.mpf(i) / 2000 for i in range(1501))
    )
    proof = prove(Function("cos", ("0", "3/4")), program)
    assert worst * (1 - 1e-12) <= proof.total <= worst * 1.001


def cubic(name: str = "real") -> Program:
    b = Builder(name)
    return b.program(b.x * (1 - b.x * b.x * Fraction(1, 6)))


@pytest.mark.parametrize("error", ["relative", "absolute"])
def test_alternating_series_has_its_largest_error_at_the_end(error: str) -> None:
    # sin x - x + x^3/6 grows with x, and so does its quotient by sin x on (0, 1].
    absolute = mpmath.sin(1) - mpmath.mpf(5) / 6
    expected = float(absolute if error == "absolute" else absolute / mpmath.sin(1))
    total = prove(Function("sin", ("-1", "1"), error=error), cubic()).total
    assert expected <= total <= expected * 1.001


def test_zero_of_the_function_inside_the_domain_is_divided_out() -> None:
    b = Builder()
    u = b.x - 1
    program = b.program(u * (1 - u * Fraction(1, 2)))
    # log(x)/(u - u^2/2) differs most from 1 at x = 1/2: u = -1/2.
    expected = float(abs(mpmath.mpf(-5) / 8 / mpmath.log(mpmath.mpf(1) / 2) - 1))
    total = prove(Function("log", ("1/2", "5/4")), program).total
    assert expected <= total <= expected * 1.001


@pytest.mark.parametrize(
    "make",
    [
        lambda b: 1 / (b.x - Fraction(1, 3)),
        lambda b: Fraction(1, 10**12) / ((b.x - Fraction(1, 3)) * (b.x - Fraction(1, 3))) + 1,
        lambda b: b.sqrt(b.x - Fraction(1, 3)),
    ],
    ids=["pole", "double pole", "root of a negative number"],
)
def test_program_without_a_bound_is_refused(make) -> None:
    b = Builder()
    with pytest.raises(NotProven, match="x ="):
        prove(Function("exp2", ("0", "1")), b.program(make(b)))


def test_zero_that_the_program_misses_is_refused() -> None:
    b = Builder()
    with pytest.raises(NotProven, match="zero of the function"):
        prove(Function("sin", ("0", "1")), b.program(b.x + Fraction(1, 10**9)))


def test_wrong_constant_shows_in_the_bound() -> None:
    b = Builder()
    wrong = b.program(b.x * (1 - b.x * b.x * Fraction(1, 5)))
    expected = float(abs(mpmath.mpf(4) / 5 / mpmath.sin(1) - 1))
    assert prove(Function("sin", ("0", "1")), wrong).total >= expected


def test_ulp_doubles_where_the_binade_changes() -> None:
    # p = f + 2^-20 x: in [1/2, 1) one ULP is 2^-24, below 2^-25; f = x.
    b = Builder()
    program = b.program(b.x * (1 + Fraction(1, 2**20)))
    function = Function("x", ("1/4", "3/4"), "float32", "ulp")
    bound = bound_error(function, [Piece(Fraction(1, 4), Fraction(3, 4), program)], expected=1.0)
    # Just below 1/2: 2^-21 / 2^-25 = 16; at 3/4: 0.75 * 2^-20 / 2^-24 = 12.
    assert 16 <= bound.upper <= 16 * 1.001


def test_series_are_not_truncated_and_the_cap_is_restored() -> None:
    before = ctx.cap
    with series_length(30):
        assert arb_series([1, 1], prec=20).exp().prec == 20
    assert ctx.cap == before


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [("1/3", "1/2", "1/2"), ("-1/3", "1/2", "0"), ("3", "7/2", "3"), ("-7/5", "-4/3", "-4/3")],
)
def test_simplest_fraction(lo: str, hi: str, expected: str) -> None:
    assert simplest(Fraction(lo), Fraction(hi)) == Fraction(expected)
