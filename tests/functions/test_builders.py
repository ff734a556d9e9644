"""Builders: what each form costs and reaches for 2^x on [0, 1], dials, formats, reasons."""

from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions import builders
from nearly.functions.builders import degrees, parsed_type, types
from nearly.functions.function import Function
from nearly.functions.program import Program

EXP2 = Function("exp2")
BALLS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}


def relative_error(function: Function, program: Program, points: int = 400) -> float:
    """The largest seen at points that are dense towards the ends."""
    worst = 0.0
    with ctx.workprec(400):
        low, high = (arb(e.numerator) / e.denominator for e in function.interval)
        for i in range(1, points):
            x = ((low + high) / 2 - (high - low) / 2 * (arb(i) / points).cos_pi()).mid()
            y = program.run(x, BALLS, lambda c: arb(c.numerator) / c.denominator)
            worst = max(worst, abs(float(y / function.oracle.value(x) - 1)))
    return worst


# Operations and relative errors on (0, 1]: what the classical forms cost and reach.
CLASSICAL = [
    ("minimax", 1, 2, 2.98e-2),
    ("minimax", 2, 4, 1.72e-3),
    ("minimax", 3, 6, 7.48e-5),
    ("minimax", 4, 8, 2.59e-6),
    ("minimax", 5, 10, 7.49e-8),
    ("minimax", 6, 12, 1.86e-9),
    ("minimax_knuth_eve", 5, 9, 7.49e-8),
    ("minimax_knuth_eve", 6, 11, 1.86e-9),
    ("rational_two_horner", "1/1", 4, 8.67e-4),
    ("rational_two_horner", "2/1", 6, 2.50e-5),
    ("rational_two_horner", "3/2", 10, 7.52e-9),
    ("rational_two_horner", "3/3", 12, 9.31e-11),
    ("rational_continued_fraction", "1/1", 3, 8.67e-4),
    ("rational_continued_fraction", "2/2", 6, 4.34e-7),
    ("rational_continued_fraction", "3/3", 9, 9.31e-11),
    ("rational_even", "4/4", 10, 1.11e-14),
]


@pytest.mark.parametrize(("name", "dial", "operations", "error"), CLASSICAL)
def test_the_classical_forms_of_exp2(name, dial, operations, error):
    program = getattr(builders, name)(EXP2, dial)
    assert program.dtype == "real"
    assert program.cost.ops == operations
    assert relative_error(EXP2, program) == pytest.approx(error, rel=4e-3)


REAL = [
    name
    for name, value in vars(builders).items()
    if hasattr(value, "dials") and not isinstance(value, type)
]


@pytest.mark.parametrize("name", REAL)
def test_dials_go_from_cheap_to_dear_and_to_small_errors(name):
    build = getattr(builders, name)
    dials = build.dials(EXP2)
    programs = [build(EXP2, dial) for dial in (*dials[:4], dials[-1])]
    operations = [program.cost.ops for program in programs]
    assert operations == sorted(operations)
    assert relative_error(EXP2, programs[-1], 100) < 1e-11
    assert not any("fma" in i for program in programs for i in program.instructions)


@pytest.mark.parametrize(
    "function",
    [
        Function("sin", ("0", "pi/2")),
        Function("log2", ("1", "2")),
        Function("log1p", ("0", "1")),
        Function("cos", ("0", "pi/4")),
        Function("erf", ("-1", "1")),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", REAL)
def test_other_functions(name, function):
    build = getattr(builders, name)
    if "origin" in name and function.name == "log2":
        with pytest.raises(InputError, match="no Taylor series"):
            build(function, build.dials(function)[2])
        return
    dials = build.dials(function)
    if not dials:
        assert name == "rational_even"
        return
    errors = [relative_error(function, build(function, dial), 60) for dial in (dials[1], dials[5])]
    assert errors[1] < errors[0] / 30 or "taylor" in name or "pade" in name


def test_constants_are_no_longer_than_their_effect():
    program = builders.minimax(EXP2, 3)
    longest = max(c.numerator.bit_length() for c in program.constants.values())
    assert longest <= 64 + 2 * 14 + 2  # an error of 2^-14


def test_machine_formats_get_fma_and_rounded_coefficients():
    function = Function("exp2", dtype="float32", error="ulp")
    program = builders.minimax(function, 5)
    assert program.dtype == "float32"
    assert [i[0] for i in program.instructions] == ["fma"] * 5
    assert all(Fraction(float(np.float32(float(c)))) == c for c in program.constants.values())


def test_powers_are_of_x_minus_a_centre_far_from_zero():
    function = Function("exp2", ("10", "11"), "float32", "ulp")
    program = builders.minimax(function, 3)
    assert program.instructions[0][0] == "sub"
    assert abs(program.constants[program.instructions[0][2]] - Fraction(21, 2)) <= Fraction(1, 8)


def test_dials_of_a_machine_format_end_where_it_cannot_tell():
    narrow = degrees(Function("exp2", dtype="bfloat16", error="ulp"))
    wide = degrees(Function("exp2", dtype="float32", error="ulp"))
    assert narrow[0] == wide[0] == 1
    assert len(narrow) < len(wide) < 9
    assert types(Function("exp2", dtype="float32", error="relative"))[-1] in ("2/2", "3/2", "3/3")


def test_dials_follow_the_parity():
    assert degrees(Function("sin", ("0", "1")))[:3] == [1, 3, 5]
    assert degrees(Function("cos", ("0", "1")))[:3] == [2, 4, 6]
    assert types(Function("sin", ("0", "1")))[:3] == ["1/2", "3/2", "5/2"]


@pytest.mark.parametrize("dial", ["3", "a/b", "1/2/3", "-1/2"])
def test_a_malformed_type_is_refused(dial):
    with pytest.raises(InputError, match="its type, as '3/2'"):
        parsed_type(dial)


@pytest.mark.parametrize("dial", [-1, 100])
def test_a_malformed_degree_is_refused(dial):
    with pytest.raises(InputError, match="whole number"):
        builders.minimax(EXP2, dial)


def test_the_even_form_gives_a_reason():
    with pytest.raises(InputError, match="equal degrees"):
        builders.rational_even(EXP2, "3/2")
    with pytest.raises(InputError, match="neither even nor odd"):
        builders.rational_even(Function("log1p"), "2/2")
