"""The dense search, against errors known by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program
from nearly.functions.verify import measure


def program(make, dtype: str = "real") -> Program:
    b = Builder(dtype)
    return b.program(make(b, b.x))


def test_error_and_root_mean_square_of_a_parabola() -> None:
    function = Function("x^2", ("0", "1"), error="absolute")
    found = measure(function, program(lambda b, x: x + 0))
    assert found.error == pytest.approx(0.25, rel=1e-9)  # x - x^2 at 1/2
    assert found.at == pytest.approx(0.5, abs=1e-4)
    assert found.l2 == pytest.approx(math.sqrt(1 / 30), rel=1e-9)
    l2 = Function("x^2", ("0", "1"), error="absolute", norm="l2")
    assert measure(l2, program(lambda b, x: x + 0)).error == found.l2


def test_maximum_between_grid_points() -> None:
    # |sin(40 x) - 0|: maxima of height 1 everywhere, none of them on the grid.
    function = Function("sin(40*x)", ("0", "1"), error="absolute")
    zero = program(lambda b, x: x - x)
    assert measure(function, zero).error == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize(
    "make",
    [
        lambda b, x: 1 / (x - Fraction(1, 3)),
        lambda b, x: 1 + Fraction(1, 10**9) / ((x - Fraction(1, 3)) * (x - Fraction(1, 3))),
        lambda b, x: b.sqrt(x - Fraction(1, 3)),
        lambda b, x: 1 / x,
    ],
    ids=["pole", "double pole", "root of a negative number", "pole at the end"],
)
def test_poles_are_found(make) -> None:
    assert measure(Function("exp2", ("0", "1")), program(make)).error > 1e20


def test_removable_singularities_are_not_poles() -> None:
    third = Fraction(1, 3)
    inside = program(lambda b, x: 1 + (x - third) / (x - third))
    assert measure(Function("exp2", ("0", "1")), inside).error == pytest.approx(1, rel=1e-9)
    # 12/s (x + 12/(s^2 x) - 6/s)^-1 + 1 with s = log 2 rounded: finite at 0, where d/x is not.
    s = Fraction(math.log(2))
    at_zero = program(lambda b, x: 12 / s / (x + 12 / s**2 / x - 6 / s) + 1)
    expected = abs(12 / s / (1 + 12 / s**2 - 6 / s) + 1) / 2 - 1
    found = measure(Function("exp2", ("0", "1")), at_zero).error
    assert found == pytest.approx(abs(float(expected)), rel=1e-9)


def test_zero_that_is_shared_and_one_that_is_not() -> None:
    function = Function("sin", ("0", "1"))
    cubic = program(lambda b, x: x * (1 - x * x * Fraction(1, 6)))
    expected = abs(mpmath.mpf(5) / 6 / mpmath.sin(1) - 1)
    assert measure(function, cubic).error == pytest.approx(float(expected), rel=1e-9)
    assert measure(function, program(lambda b, x: x + Fraction(1, 10**9))).error > 1e10


def test_small_errors_are_resolved() -> None:
    with mpmath.workdps(80):
        scale = Fraction(mpmath.nstr(1 + mpmath.mpf(10) ** -60, 75))
    found = measure(Function("x", ("1", "2")), program(lambda b, x: x * scale))
    assert found.error == pytest.approx(1e-60, rel=1e-6)


def test_correctly_rounded_root_has_half_an_ulp() -> None:
    function = Function("sqrt", ("1", "4"), "float32", "ulp")
    found = measure(function, program(lambda b, x: b.sqrt(x), "float32"))
    assert 0.499 < found.error <= 0.5
    assert found.points > 500_000


def test_whole_short_format_is_tried_with_its_special_values() -> None:
    function = Function("sqrt", ("-inf", "inf"), "float16", "ulp")
    found = measure(function, program(lambda b, x: b.sqrt(x), "float16"))
    assert found.points >= 2**16
    assert found.error <= 0.5


def test_truth_is_exact_at_a_zero_of_the_function() -> None:
    function = Function("log", ("1/2", "2"), "float32", "ulp")
    away = program(
        lambda b, x: b.select(b.eq(x, Fraction(1)), Fraction(2) ** -140, x - x), "float32"
    )
    exactly = measure(function, away)
    assert exactly.error >= 2**22  # log(0.5) = -0.69 against 0: 0.69 * 2^24 ULP
    at_one = program(lambda b, x: x - 1, "float32")
    assert np.isfinite(measure(function, at_one).error)


def test_measured_in_float64() -> None:
    function = Function("x", ("1", "2"), "float64", "ulp")
    found = measure(function, program(lambda b, x: x * Fraction(3) / 3, "float64"))
    assert 0 < found.error <= 1


def test_another_format_is_refused() -> None:
    with pytest.raises(InputError, match="in_format"):
        measure(
            Function("exp", ("0", "1"), "float32", "ulp"), program(lambda b, x: x + 1, "float64")
        )
