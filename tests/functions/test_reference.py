"""Fast truth against mpmath, and the bit patterns of a domain."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from nearly.core.errors import InputError, NotProven
from nearly.functions.far import FUNCTIONS
from nearly.functions.function import Function
from nearly.functions.reference import (
    error_in_ulps,
    errors_at,
    numbers,
    pattern_ranges,
    reference,
    truth_at,
)


@pytest.mark.parametrize(
    ("name", "truth"),
    [("exp2", lambda x: mpmath.mpf(2) ** x), ("log", mpmath.log), ("erf", mpmath.erf),
     ("tanh", mpmath.tanh), ("x*sin(x)", lambda x: x * mpmath.sin(x))],
)  # fmt: skip
def test_table_agrees_with_mpmath(name: str, truth) -> None:
    domain = ("-inf", "inf") if "sin" not in name else ("-50", "50")
    function = Function(name, domain, "float32", "ulp")
    table = reference(function)
    random = np.random.default_rng(1)
    start, stop = table.ranges[0]
    patterns = random.integers(start, min(stop, 0x42C80000), 300)  # positive, up to 100
    found, doubt = table.at(patterns)
    x = numbers(function.format, patterns).astype(np.float64)
    with mpmath.workdps(40):
        for k in range(300):
            assert abs(mpmath.mpf(found[k]) - truth(mpmath.mpf(x[k]))) <= doubt[k]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_number_of_a_short_format(dtype: str) -> None:
    function = Function("sin", ("-8", "8"), dtype, "ulp")
    table = reference(function)
    patterns = np.concatenate([np.arange(*r) for r in table.ranges])
    found, doubt = table.at(patterns)
    x = numbers(function.format, patterns).astype(np.float64)
    np.testing.assert_array_less(np.abs(found - np.sin(x)), doubt + 1e-15)


def test_consecutive_values_are_those_at_single_patterns() -> None:
    table = reference(Function("exp2", ("-inf", "inf"), "float32", "ulp"))
    for start in (0, 0x3F7FFF00, 0x42FFFF00, 0x7F7FFF00, 0x80000000, 0xC3000000):
        patterns = np.arange(start, start + 1000, dtype=np.int64)
        x = numbers(table.format, patterns)
        truth, doubt = np.empty(1000), np.empty(1000)
        table.fill(x, start, truth, doubt)
        expected, uncertainty = table.at(patterns)
        np.testing.assert_allclose(truth, expected, rtol=1e-15)
        np.testing.assert_array_equal(doubt, uncertainty)


def test_domain_of_bit_patterns() -> None:
    def count(*domain: str, dtype: str = "float32") -> int:
        return sum(b - a for a, b in pattern_ranges(Function("exp", domain, dtype, "ulp")))

    assert count("-inf", "inf") == 2**32
    assert count("-inf", "inf", dtype="bfloat16") == 2**16
    assert count("1", "2") == 2**23 + 1
    assert count("0", "1") == 127 * 2**23 + 1 + 1  # and the negative zero
    assert count("-2", "-1") == 2**23 + 1
    assert count("-1", "1") == 2 * (127 * 2**23 + 1)
    assert count("1.00000001", "1.00000015") == 1  # one number above 1 lies inside


def test_wide_format_is_refused() -> None:
    with pytest.raises(InputError, match="float64"):
        reference(Function("exp", ("0", "1"), "float64", "ulp"))


def test_oscillation_beyond_the_format_is_refused() -> None:
    with pytest.raises(NotProven, match="narrow"):
        reference(Function("sin(x+1)", ("2^30", "2^40"), "float32", "ulp"))


def test_circular_functions_of_huge_arguments() -> None:
    function = Function("cos", ("-inf", "inf"), "float32", "ulp")
    table = reference(function)
    patterns = np.random.default_rng(5).integers(0x44800000, 0x7F800000, 200)
    found, doubt = table.at(patterns)
    x = numbers(function.format, patterns).astype(np.float64)
    with mpmath.workdps(80):
        for k in range(200):
            assert abs(mpmath.mpf(found[k]) - mpmath.cos(mpmath.mpf(x[k]))) <= doubt[k]
    assert np.all(np.isnan(table.at(np.array([0x7F800000, 0xFF800000, 0x7FC00000]))[0]))


def test_errors_of_special_values() -> None:
    function = Function("exp", ("-inf", "inf"), "float32", "ulp")
    largest = float(function.format.largest)
    top = 2.0**104
    truth = np.array([math.nan, math.nan, largest + top, largest + 0.4 * top, 1.0, 0.0, math.inf])
    value = np.array([math.nan, 1.0, math.inf, math.inf, math.inf, -0.0, largest], np.float32)
    errors = errors_at(function, truth, np.zeros(7), value)
    np.testing.assert_allclose(errors, [0, math.inf, 0, 0.6, math.inf, 0, math.inf])


def test_exact_error_of_one_number() -> None:
    function = Function("exp2", ("-inf", "inf"), "float32", "ulp")
    assert error_in_ulps(function, 1.0, 2.0) == 0
    assert error_in_ulps(function, 1.0, 2.0 - 2**-23) == 0.5  # one ULP at 2 is 2^-22
    assert error_in_ulps(function, 0.5, 1.5) == pytest.approx((1.5 - math.sqrt(2)) * 2**23)
    assert error_in_ulps(function, 128.0, math.inf) == 0
    assert error_in_ulps(function, 127.0, math.inf) == math.inf
    assert error_in_ulps(function, math.inf, math.inf) == 0
    assert error_in_ulps(function, math.nan, math.nan) == 0
    assert error_in_ulps(function, math.nan, 0.0) == math.inf
    assert error_in_ulps(function, -math.inf, 0.0) == 0


@pytest.mark.parametrize("name", ["sin", "tan", "lgamma", "digamma"])
def test_far_out_truth_is_that_of_ball_arithmetic(name: str) -> None:
    x = np.array([-1e7, -70000.4, -12345.678, -65.7, -64, 66.6, 1e20], np.float32)
    far = FUNCTIONS[name]
    x = x[far.reaches(x)].astype(np.float64)
    assert (x < -60).sum() == 5
    values, doubt = far(x)
    truth = Function(name, ("-inf", "inf"), "float32", "ulp").oracle.table(x)[0]
    with np.errstate(invalid="ignore"):
        near = (values == truth) | (np.abs(values - truth) <= doubt)
    assert (near | (np.isnan(values) & np.isnan(truth))).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sin", "cos", "tan", "lgamma", "digamma"])
def test_truth_over_the_whole_format(name: str) -> None:
    function = Function(name, ("-inf", "inf"), "float32", "ulp")
    x = np.array([-1e7, -70000.4, -65.7, -17, -16.00001, -15.7, -2.4, -0.3, 1.9, 66], np.float32)
    values, doubt = reference(function).at(x.view(np.uint32).astype(np.int64))
    truth = function.oracle.table(x.astype(np.float64))[0]
    with np.errstate(invalid="ignore"):
        near = (values == truth) | (np.abs(values - truth) <= doubt)
    assert (near | (np.isnan(values) & np.isnan(truth))).all()


def test_lgamma_is_infinite_at_its_poles() -> None:
    function = Function("lgamma", ("-inf", "inf"), "float32", "ulp")
    assert truth_at(function, -3.0) == truth_at(function, -1e20) == np.inf
    assert np.isnan(truth_at(Function("digamma", ("-inf", "inf"), "float32", "ulp"), -3.0))
