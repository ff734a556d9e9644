"""The best constants of a structure: known optima, invariance, redundant constants, errors."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions import builders, polynomial, rational
from nearly.functions.balls import exact
from nearly.functions.discovery.extended import Curve
from nearly.functions.discovery.minimax import format_decimal, minimax
from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.proof import prove

EXP2 = Function("exp2", ("0", "1"))


def coth(doublings: int, squarings: int) -> Program:
    """(2^x) from a truncated coth, doubled and squared; constants from the identities.

    coth(z/2) is about 6/z (x + (12/s^2)/x) s/6 with z = s x; coth doubles by y + kappa/y.
    """
    b = Builder()
    s = math.log(2) / 2 ** (doublings + squarings)
    y: Node = b.x + 12 / s**2 / b.x
    edge = 6 / s
    for _ in range(doublings):
        y = y + edge**2 / y
        edge *= 2
    y = 2 * edge / (y - edge) + 1.0
    for _ in range(squarings):
        y = y * y
    return b.program(y)


@pytest.mark.parametrize(
    "doublings, squarings, bound",
    [
        (0, 0, 4.4e-6),
        (0, 1, 2.8e-7),
        (1, 0, 5.7e-10),
        (1, 1, 9.0e-12),
        (2, 0, 2.4e-14),
        (2, 1, 9.2e-17),
        (3, 0, 1.2e-19),
        (3, 1, 1.2e-22),
    ],
)
def test_composed_programs_reach_their_optimum(
    doublings: int, squarings: int, bound: float
) -> None:
    program = coth(doublings, squarings)
    fitted = minimax(program, EXP2)
    assert program.cost.ops == 5 + 2 * doublings + squarings
    assert fitted.levelled
    assert fitted.rank == 4 + doublings == len(fitted.reference) - 1
    assert fitted.error * (1 - 1e-6) <= prove(EXP2, fitted.program).total <= bound


@pytest.mark.parametrize("squarings, bound", [(0, 8.7e-4), (1, 2.2e-4)])
def test_the_smallest_programs_reach_their_optimum(squarings: int, bound: float) -> None:
    """K/(a - x) + c, from its Taylor series at 0, and its square for half the argument."""
    b = Builder()
    s = math.log(2) / 2**squarings
    y: Node = 4 / s / (2 / s - b.x) - 1.0
    for _ in range(squarings):
        y = y * y
    fitted = minimax(b.program(y), EXP2)
    assert fitted.levelled
    assert fitted.program.cost.ops == 3 + squarings
    assert prove(EXP2, fitted.program).total <= bound


@pytest.mark.parametrize("name, degree", [("exp2", 4), ("exp", 3), ("sigmoid", 5)])
def test_polynomials_are_those_of_remez(name: str, degree: int) -> None:
    function = Function(name, ("0", "1"), error="absolute")
    best = polynomial.minimax(function, degree)
    b = Builder()
    y: Node = b.constant(Fraction(1, 3))
    for k in range(degree):
        y = y * b.x + Fraction(1, k + 5)
    fitted = minimax(b.program(y), function)
    assert fitted.levelled
    assert fitted.error == pytest.approx(float(best.error), rel=1e-6)


@pytest.mark.parametrize("name, dial", [("exp2", "2/2"), ("log1p", "3/2"), ("erf", "3/2")])
def test_rationals_are_those_of_remez(name: str, dial: str) -> None:
    function = Function(name, ("0", "1"))
    best = rational.minimax(function, *map(int, dial.split("/")))
    program = builders.rational_two_horner(function, dial)
    moved = {k: v * Fraction(1001, 1000) for k, v in program.constants.items()}
    fitted = minimax(replace(program, constants=moved), function)
    assert fitted.levelled
    assert fitted.error == pytest.approx(float(best.error), rel=1e-6)


def test_redundant_constants_do_not_hurt() -> None:
    """(a x + b) / (c x + d) k has three constants that count, and the error of type 1/1."""
    b = Builder()
    y = (b.x * Fraction(1, 3) + 1.0) / (b.x * Fraction(-1, 3) + 1.01) * 1.1
    fitted = minimax(b.program(y), EXP2)
    assert fitted.rank == 3
    assert len(fitted.program.constants) == 5
    assert fitted.levelled
    assert fitted.error == pytest.approx(float(rational.minimax(EXP2, 1, 1).error), rel=1e-6)


def test_no_chebyshev_system_is_needed() -> None:
    """The even part alone on a symmetric domain: exp by a x^2 + b errs by sinh(1) whatever b."""
    b = Builder()
    program = b.program(b.x * b.x * Fraction(1, 2) + Fraction(1))
    fitted = minimax(program, Function("exp", ("-1", "1"), error="absolute"))
    assert fitted.levelled
    assert fitted.error == pytest.approx(math.sinh(1), rel=1e-12)


def test_best_constant_by_hand() -> None:
    """The best c x for x^2 on [0, 1] in absolute error: c^2/4 = 1 - c at c = 2 (sqrt 2 - 1)."""
    b = Builder()
    fitted = minimax(b.program(b.x * 0.5), Function("x^2", ("0", "1"), error="absolute"))
    c = 2 * (math.sqrt(2) - 1)
    assert float(fitted.program.constants["c0"]) == pytest.approx(c, rel=1e-9)
    assert fitted.error == pytest.approx(1 - c, rel=1e-9)
    np.testing.assert_allclose([float(x) for x in fitted.reference], [c / 2, 1], rtol=1e-4)


def test_a_zero_of_the_function_is_met_exactly() -> None:
    b = Builder()
    program = b.program((b.x - 1.0) * 3.0 / (b.x + 1.25))
    function = Function("log2", ("1", "2"))
    fitted = minimax(program, function)
    assert fitted.program.constants["c0"] == 1
    assert fitted.rank == 2
    assert prove(function, fitted.program).total == pytest.approx(fitted.error, rel=1e-3)


def test_an_extremum_at_a_zero_of_the_function_counts() -> None:
    """x p(x^2) for sin on both sides of 0: its error at 0 is p(0) - 1, a limit."""
    b = Builder()
    u = b.x * b.x
    program = b.program(b.x * (0.99 - u * (0.16 - u * 0.008)))
    function = Function("sin", ("-1", "1"))
    fitted = minimax(program, function)
    best = polynomial.minimax(function, 5)
    assert fitted.error == pytest.approx(float(best.error), rel=1e-6)
    assert any(abs(x) < 1e-9 for x in fitted.reference)


def test_zeros_inside_the_domain_are_met_exactly() -> None:
    b = Builder()
    y = (b.x - 1.0) * (b.x - 2.0) * (b.x * 0.3 + 0.1) / (b.x * 0.2 + 3.0)
    function = Function("lgamma", ("1/2", "3"))
    fitted = minimax(b.program(y), function)
    assert {1, 2} <= set(fitted.program.constants.values())
    assert prove(function, fitted.program).total == pytest.approx(fitted.error, rel=1e-3)


def test_what_is_exact_has_no_error() -> None:
    b = Builder()
    fitted = minimax(b.program(b.x * 2.0 + 1.0), Function("3*x + 5", ("0", "1")))
    assert fitted.error == 0
    assert fitted.levelled
    assert set(fitted.program.constants.values()) == {3, 5}


def test_starts_are_tried_and_poles_refused() -> None:
    b = Builder()
    program = b.program(1.0 / (b.x - 0.5) + 0.25)
    poor = Function("1/(3 - x)", ("0", "1"))
    fitted = minimax(program, poor, starts=[(-1.0, 3.1, 0.01)])
    assert fitted.error < 1e-15
    b = Builder()
    stuck = b.program(1e9 / ((b.x - 0.5) * 1e9))
    with pytest.raises(InputError, match="without a pole"):
        minimax(replace(stuck, constants=stuck.constants | {}), Function("1/(x+9)^9", ("0", "1")))


def test_constants_do_not_run_to_infinity() -> None:
    """sqrt(x + a) b + c has its best approximation of a convex function at a = infinity."""
    b = Builder()
    program = b.program(b.sqrt(b.x + 2.0) * 0.5 + 0.25)
    fitted = minimax(program, EXP2)
    assert not fitted.levelled
    assert all(abs(value) < 2**256 for value in fitted.program.constants.values())
    line = float(polynomial.minimax(EXP2, 1).error)
    assert line < fitted.error < line * 1.2


def test_constants_have_the_digits_asked_for() -> None:
    fitted = minimax(coth(0, 0), EXP2, digits=9)
    for value in fitted.program.constants.values():
        assert value == Fraction(format_decimal(Fraction(value), 9))
    assert format_decimal(Fraction(-99999, 100), 3) == "-100e1"
    assert format_decimal(Fraction(1, 3), 4) == "3333e-4"
    assert format_decimal(Fraction(0), 4) == "0"


def test_default_digits_leave_the_error_as_it_is() -> None:
    fitted = minimax(coth(1, 1), EXP2)
    assert prove(EXP2, fitted.program).total <= fitted.error * (1 + 6e-4)


def test_derivatives_are_those_of_differences() -> None:
    b = Builder()
    y = b.sqrt(b.x + 2.0) / (3.0 - b.x * 1.5) - b.x
    program = b.program(-y * y)
    curve = Curve(EXP2, program)
    with ctx.workprec(512):
        constants = [exact(Fraction(value)) for value in program.constants.values()]
        sample = curve.sample(arb("0.3"))
        error, slopes = curve.gradient(constants, sample)
        assert bool(abs(error - curve.error(constants, sample)) < arb(2) ** -400)
        step = arb(2) ** -100
        for k, slope in enumerate(slopes):
            moved = list(constants)
            moved[k] = moved[k] + step
            difference = (curve.error(moved, sample) - error) / step
            assert float(difference) == pytest.approx(float(slope), rel=1e-12)


def test_errors_name_the_remedy() -> None:
    program = coth(0, 0)
    with pytest.raises(InputError, match="a start of 1 values for the 4 constants"):
        minimax(program, EXP2, starts=[(1.0,)])
    with pytest.raises(InputError, match="c1 starts at inf: give a number below 1e"):
        minimax(program, EXP2, starts=[(1.0, math.inf, 1.0, 1.0)])
    with pytest.raises(InputError, match="give error='relative'"):
        minimax(program, Function("exp2", ("0", "1"), "float32", "ulp"))
