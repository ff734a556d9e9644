"""Rounding constants together: brute force on tiny formats, Sollya as peer, never worse."""

from __future__ import annotations

import shutil
import subprocess
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from flint import arb, ctx, fmpq
from hypothesis import given, settings
from hypothesis import strategies as st

from nearly.core.errors import InputError
from nearly.functions.formats import FORMATS, Format
from nearly.functions.function import Function
from nearly.functions.polynomial import minimax
from nearly.functions.program import Builder, Program
from nearly.functions.rounding import doubled, parts, round_coefficients, round_program

SINGLE = FORMATS["float32"]

needs_sollya = pytest.mark.skipif(shutil.which("sollya") is None, reason="Sollya is not installed")


def tiny(precision: int) -> Format:
    return Format(f"{precision} bits", precision, -126, 127, "float32")


def relative_error(function: Function, exponents, coefficients, points: int = 2001) -> float:
    """The largest relative error on equal steps, in 256-bit balls: independent of the module."""
    low, high = function.interval
    worst = 0.0
    with ctx.workprec(256):
        for i in range(points):
            x = low + (high - low) * Fraction(i, points - 1)
            if x == 0 and 0 not in exponents:
                continue
            value = sum(
                (c * x**e for e, c in zip(exponents, coefficients, strict=True)), Fraction(0)
            )
            truth = function.oracle.at(x, 200)
            ball = arb(fmpq(value.numerator, value.denominator))
            worst = max(worst, abs(float(ball / truth - 1)))
    return worst


def brute_force(truth, exponents, centres, precision, reach: int) -> float:
    """The least relative error over all coefficients within `reach` spacings of the centres."""
    x = np.linspace(0, 1, 501)
    form = tiny(precision)
    choices = []
    for c in centres:
        near = form.round(c)
        steps = range(-reach, reach + 1)
        values = {form.round(near + k * form.spacing(near)) for k in steps}
        choices.append(sorted(values))
    powers = [x**e / truth(x) for e in exponents]
    best = np.inf
    for values in product(*choices):
        error = sum(float(c) * p for c, p in zip(values, powers, strict=True)) - 1
        best = min(best, float(np.abs(error).max()))
    return best


@pytest.mark.parametrize(
    ("degree", "precision", "reach"), [(1, 3, 6), (1, 5, 12), (2, 4, 8), (2, 6, 10)]
)
def test_the_best_of_all_roundings_is_found(degree, precision, reach):
    function = Function("exp2", ("0", "1"), "float32", "relative")
    best = minimax(function, degree).polynomial
    formats = dict.fromkeys(best.exponents, tiny(precision))
    found = round_coefficients(function, best.exponents, best.coefficients, formats=formats)
    assert all(tiny(precision).round(c) == c for c in found)
    ours = relative_error(function, best.exponents, found, 501)
    optimum = brute_force(np.exp2, best.exponents, best.coefficients, precision, reach)
    assert ours == pytest.approx(optimum, rel=1e-9)


def test_a_case_by_hand():
    """c0 + x for x + 0.3 on [0, 1], absolute, two bits: the neighbours of 0.3 are 1/4 and 3/8."""
    function = Function("x+3/10", ("0", "1"), "float32", "absolute")
    two = tiny(2)
    found = round_coefficients(
        function, (0, 1), (Fraction(3, 10), Fraction(1)), formats={0: two, 1: two}
    )
    assert found == (Fraction(1, 4), Fraction(1))


def test_a_large_error_of_one_coefficient_is_made_up_for_by_the_others():
    function = Function("exp2", ("0", "1"), "float32", "relative")
    best = minimax(function, 6)
    p = best.polynomial
    naive = [SINGLE.round(c) for c in p.coefficients]
    found = round_coefficients(function, p.exponents, p.coefficients)
    assert all(SINGLE.round(c) == c for c in found)
    ours = relative_error(function, p.exponents, found)
    assert relative_error(function, p.exponents, naive) > 3 * ours
    assert ours < 1.2 * float(best.error)


@settings(max_examples=5, deadline=None)
@given(
    name=st.sampled_from(["exp2", "cos", "sqrt(x+1)", "log(x+2)"]),
    error=st.sampled_from(["relative", "absolute", "ulp"]),
    norm=st.sampled_from(["sup", "l2"]),
    degree=st.integers(1, 3),
)
def test_never_worse_than_rounding_each(name, error, norm, degree):
    function = Function(name, ("1/8", "1"), "float32", error, norm)
    p = minimax(function, degree).polynomial
    naive = tuple(SINGLE.round(c) for c in p.coefficients)
    found = round_coefficients(function, p.exponents, p.coefficients)
    ours, theirs = (measured(function, p.exponents, c) for c in (found, naive))
    assert ours <= theirs * (1 + 1e-3)  # the two grids differ


def measured(function: Function, exponents, coefficients) -> float:
    low, high = map(float, function.interval)
    x = np.linspace(low, high, 4001)
    head, tail = function.oracle.table(x)
    value = sum(
        float(c) * x.astype(np.longdouble) ** e
        for e, c in zip(exponents, coefficients, strict=True)
    )
    error = np.abs((value - head) - tail)
    if function.error == "relative":
        error = error / np.abs(head)
    if function.error == "ulp":
        error = error / function.format.ulps(head)
    return float(np.sqrt((error**2).mean()) if function.norm == "l2" else error.max())


def test_pinned_coefficients_stay():
    function = Function("exp2", ("-1/2", "1/2"), "float64", "relative")
    p = minimax(function, 8).polynomial
    found = round_coefficients(
        function, p.exponents, p.coefficients, pinned={0: Fraction(1), 8: Fraction(1, 2**20)}
    )
    assert found[0] == 1
    assert found[8] == Fraction(1, 2**20)


def test_an_absent_power_stays_absent():
    function = Function("cos", ("-1", "1"), "float64", "relative")
    p = minimax(function, 4).polynomial
    c0, c2, c4 = p.coefficients
    found = round_coefficients(function, range(5), (c0, Fraction(0), c2, Fraction(0), c4))
    assert found[1] == found[3] == 0
    assert relative_error(function, (0, 2, 4), found[::2]) < 1.0001 * float(
        minimax(function, 4).error
    )


def test_a_double_head_is_the_sum_of_two_numbers():
    function = Function("exp2", ("-1/2", "1/2"), "float32", "relative")
    p = minimax(function, 7).polynomial
    plain = round_coefficients(function, p.exponents, p.coefficients)
    found = round_coefficients(
        function, p.exponents, p.coefficients, formats={0: doubled(SINGLE), 1: doubled(SINGLE)}
    )
    for c in found[:2]:
        head, tail = parts(c, SINGLE)
        assert head + tail == c
        assert SINGLE.round(head) == head
        assert SINGLE.round(tail) == tail
    assert relative_error(function, p.exponents, found) < 0.5 * relative_error(
        function, p.exponents, plain
    )


def test_a_centre_is_subtracted():
    function = Function("log2", ("3/4", "3/2"), "float32", "relative")
    p = minimax(function, 6).polynomial
    assert p.centre == 1
    found = round_coefficients(function, p.exponents, p.coefficients, centre=p.centre)
    x = np.linspace(0.75, 1.5, 2000)
    x = x[x != 1]
    value = sum(float(c) * (x - 1) ** e for e, c in zip(p.exponents, found, strict=True))
    bound = float(minimax(function, 6).error)
    assert np.abs(value / np.log2(x) - 1).max() < 1.1 * bound


def test_over_the_reals_nothing_is_rounded():
    function = Function("exp2", ("0", "1"))
    coefficients = (Fraction(1, 3), Fraction(2, 3))
    assert round_coefficients(function, (0, 1), coefficients) == coefficients


def test_a_short_format_rounds_to_its_registers():
    """bfloat16 computes in float32, so that is where its coefficients live."""
    function = Function("exp2", ("0", "1"), "bfloat16")
    third = Fraction(1, 3)
    assert round_coefficients(function, (0, 1), (third, third)) == (SINGLE.round(third),) * 2


def test_input_errors():
    function = Function("exp2", ("0", "1"), "float32")
    thirds = (Fraction(1), Fraction(1, 3))
    with pytest.raises(InputError, match=r"pinned to 0\.333.*no number of float32; pin 0\.333"):
        round_coefficients(function, (0, 1), thirds, pinned={1: Fraction(1, 3)})
    with pytest.raises(InputError, match="no power 4"):
        round_coefficients(function, (0, 1), thirds, pinned={4: Fraction(1)})
    with pytest.raises(InputError, match="each once"):
        round_coefficients(function, (0, 0), thirds)
    with pytest.raises(InputError, match="overflows float32"):
        round_coefficients(function, (0, 1), (Fraction(1), Fraction(10) ** 40))


# ------------------------------------------------------------------ programs


def quotient(k: int) -> Program:
    """2^x as (K / (x + d/x - B) + 1)^(2^k) of truncated hyperbolic cotangents: 5 + k operations."""
    log2 = Fraction(693147180559945309417232121458, 10**30)
    s = log2 / 2**k
    b = Builder()
    y = Fraction(12) / s / (b.x + Fraction(12) / s**2 / b.x - Fraction(6) / s) + 1
    for _ in range(k):
        y = y * y
    return b.program(y)


def program_error(function: Function, program: Program) -> float:
    worst = 0.0
    with ctx.workprec(256):
        for i in range(1, 1200):
            x = Fraction(i, 1200)
            y = exactly(program, x)
            truth = function.oracle.at(x, 200)
            worst = max(worst, abs(float(arb(fmpq(y.numerator, y.denominator)) / truth - 1)))
    return worst


def exactly(program: Program, x: Fraction) -> Fraction:
    arithmetic = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
    }
    return program.run(x, arithmetic, lambda c: c)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_programs_constants_are_rounded_together(dtype):
    function = Function("exp2", ("0", "1"), dtype, "relative")
    program = quotient(3)
    found = round_program(function, program)
    register = FORMATS[dtype]
    assert found.instructions == program.instructions
    assert found.dtype == dtype
    assert all(register.round(c) == c for c in found.constants.values())
    assert 1 in found.constants.values()
    ours = program_error(function, found)
    assert ours <= program_error(function, program.in_format(dtype)) * (1 + 1e-9)


def test_a_program_of_a_polynomial_is_rounded_as_well_as_its_coefficients():
    function = Function("exp2", ("0", "1"), "float32", "relative")
    p = minimax(function, 5).polynomial
    b = Builder()
    value = b.constant(p.coefficients[-1])
    for c in reversed(p.coefficients[:-1]):
        value = value * b.x + c
    found = round_program(function, b.program(value))
    direct = round_coefficients(function, p.exponents, p.coefficients)
    assert program_error(function, found) <= 1.02 * relative_error(function, p.exponents, direct)


def test_redundant_constants_do_not_run_away():
    """a (b + x): only a and a b matter, so one combination of the two is free."""
    function = Function("3*x+2", ("0", "1"), "float32", "relative")
    b = Builder()
    program = b.program((b.x + Fraction(2, 3)) * (Fraction(3) + Fraction(1, 10**30)))
    found = round_program(function, program)
    assert program_error(function, found) <= 2.0**-24
    assert all(0.5 < float(c) < 4 for c in found.constants.values())


def test_program_input_errors():
    function = Function("exp2", ("0", "1"), "float32")
    with pytest.raises(InputError, match="over the reals, not float64"):
        round_program(function, quotient(0).in_format("float64"))
    b = Builder()
    with pytest.raises(InputError, match="overflows float32"):
        round_program(function, b.program(b.x * Fraction(10) ** 40))


def test_numbers_of_the_format_stay_as_they_are():
    function = Function("exp2", ("0", "1"), "float32")
    b = Builder()
    program = b.program(b.x * Fraction(3, 4) + 1)
    assert round_program(function, program) == program.in_format("float32")


# ------------------------------------------------------------------ the peer


@needs_sollya
@pytest.mark.parametrize(
    ("name", "sollya", "domain", "dtype", "exponents", "heads"),
    [
        ("exp2", "2^x", ("-1/2", "1/2"), "float32", range(7), 0),
        ("sin", "sin(x)", ("0", "pi/4"), "float64", range(1, 12, 2), 0),
        ("exp2", "2^x", ("-1/2", "1/2"), "float64", range(13), 1),
    ],
)
def test_at_least_as_accurate_as_fpminimax(name, sollya, domain, dtype, exponents, heads):
    function = Function(name, domain, dtype, "relative")
    p = minimax(function, exponents=exponents).polynomial
    formats = {e: doubled(FORMATS[dtype]) for e in p.exponents[:heads]}
    ours = round_coefficients(function, p.exponents, p.coefficients, formats=formats)
    names = ["DD"] * heads + [{"float32": "SG", "float64": "D"}[dtype]]
    script = (
        f"prec=300!; verbosity=0!; f={sollya}; I=[{domain[0]};{domain[1]}];"
        f"p=fpminimax(f,[|{','.join(map(str, exponents))}|],[|{','.join(names)}...|],I,"
        "relative,floating); q="
        + "+".join(f"({c})*x^{e}" for e, c in zip(p.exponents, ours, strict=True))
        + "; for r in [|q,p|] do print(sup(supnorm(r,f,I,relative,2^(-40)))); quit;"
    )
    done = subprocess.run(["sollya"], input=script, capture_output=True, text=True, check=True)
    mine, theirs = map(float, done.stdout.split())
    assert mine <= theirs * (1 + 2**-36)
