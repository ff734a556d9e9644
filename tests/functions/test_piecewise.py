"""Tables: bounds on every number of a short format, ends, zeros, and what they refuse."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.functions.formats import FORMATS
from nearly.functions.function import Function
from nearly.functions.piecewise import exponential_table, parsed, table


def numbers(dtype: str, low: float, high: float) -> np.ndarray:
    """Every number of a 16-bit format in [low, high]."""
    form = FORMATS[dtype]
    with np.errstate(invalid="ignore"):  # NaN among them
        every = np.arange(2**16, dtype=np.uint16).view(form.dtype).astype(np.float64)
    return np.sort(every[(every >= low) & (every <= high)]).astype(form.dtype)


def worst_ulps(function: Function, program, x: np.ndarray) -> float:
    y = program(x)
    assert y.dtype == function.format.dtype
    high, low = function.oracle.table(x.astype(np.float64))
    error = (y.astype(np.float64) - high) - low
    return float(np.abs(error / function.format.ulps(high)).max())


@pytest.mark.parametrize(
    ("name", "domain", "dtype", "dial", "bound"),
    [
        ("exp2", (0.0, 1.0), "bfloat16", "3x1", 0.65),
        ("exp2", (-0.5, 0.5), "float16", "2x2", 0.65),
        ("sin", (0.0, 0.75), "float16", "2x4", 0.65),
        ("log2", (0.75, 1.5), "float16", "2x5", 0.65),
    ],
)
def test_every_number_of_a_short_format(name, domain, dtype, dial, bound):
    function = Function(name, tuple(map(str, domain)), dtype, "ulp")
    program = table(function, dial)
    assert worst_ulps(function, program, numbers(dtype, *domain)) <= bound


def test_float32_and_its_ends():
    function = Function("exp2", ("-1/2", "1/2"), "float32", "ulp")
    program = table(function, "3x4")
    end = np.float32(0.5)
    near = [np.nextafter(end, np.float32(0)), -end, np.nextafter(-end, np.float32(0)), end]
    edges = np.arange(-4, 5, dtype=np.float32) / 8
    beside = [np.nextafter(edges, np.float32(side)) for side in (-1, 1)]
    x = np.concatenate([np.linspace(-0.5, 0.5, 20001, dtype=np.float32), near, edges, *beside])
    x = x[np.abs(x) <= 0.5]
    assert worst_ulps(function, program, x) <= 1.1


def test_the_error_falls_with_the_pieces():
    """Twice the pieces of degree 1 quarter the error."""
    x = np.linspace(0, 1, 4001)

    def error(dial: str) -> float:
        program = table(Function("exp2", ("0", "1"), "float64", "relative"), dial)
        return float(np.abs(program(x) / np.exp2(x) - 1).max())

    # A piece of width h: (h log 2)^2 / 16.
    for bits in (1, 3):
        assert error(f"{bits}x1") == pytest.approx((np.log(2) / 2**bits) ** 2 / 16, rel=0.05)


def test_a_table_has_what_its_dial_says():
    program = table(Function("exp2", ("0", "1"), "bfloat16", "ulp"), "2x1")
    assert sorted(map(len, program.tables.values())) == [4, 4, 4]


@pytest.mark.parametrize(
    ("name", "domain", "dtype", "dial"),
    [
        ("exp2", (-0.5, 0.5), "float32", "4x3"),
        ("exp", (-0.35, 0.35), "float64", "6x5"),
        ("exp10", (0.0, 0.25), "float32", "5x3"),
        ("exp2", (0.0, 1.0), "float16", "3x2"),
    ],
)
def test_an_exponential_table_is_nearly_correctly_rounded(name, domain, dtype, dial):
    function = Function(name, tuple(map(str, domain)), dtype, "ulp")
    program = exponential_table(function, dial)
    x = np.linspace(*domain, 20001).astype(function.format.dtype)
    assert worst_ulps(function, program, x) <= 0.75


def test_table_entries_are_the_function():
    program = exponential_table(Function("exp2", ("0", "1"), "float32", "ulp"), "1x3")
    heads = max(program.tables.values(), key=sum)
    assert heads[:3] == (1, FORMATS["float32"].round(Fraction(2**0.5)), 2)


def test_dials():
    assert table.dials(Function("exp2", ("0", "1"))) == []
    dials = table.dials(Function("exp2", ("0", "1"), "float32"))
    degrees = [parsed(d)[1] for d in dials]
    assert degrees == sorted(degrees)
    assert "4x3" in dials
    assert exponential_table.dials(Function("sin", ("0", "1"), "float32")) == []


@pytest.mark.parametrize("builder", [table, exponential_table])
def test_real_numbers_and_dials_are_refused(builder):
    with pytest.raises(InputError, match="needs a machine format"):
        builder(Function("exp2", ("0", "1")), "3x2")
    function = Function("exp2", ("0", "1"), "float32")
    for dial in ("3", "3^2", "99x1", "-1x2"):
        with pytest.raises(InputError, match="as '4x3'"):
            builder(function, dial)


def test_what_a_table_cannot_do():
    with pytest.raises(InputError, match=r"vanishes at x = 3\.14159265.*no number of float32"):
        table(Function("sin", ("3", "4"), "float32", "relative"), "0x4")
    with pytest.raises(InputError, match="needs that degree at least"):
        table(Function("sin", ("0", "1"), "float32", "relative"), "1x0")
    with pytest.raises(InputError, match="no table identity is known for 'sin'"):
        exponential_table(Function("sin", ("0", "1"), "float32"), "3x2")
    with pytest.raises(InputError, match="degree 1 at least"):
        exponential_table(Function("exp2", ("0", "1"), "float32"), "3x0")
    with pytest.raises(InputError, match="fewer bits or a reduced domain"):
        exponential_table(Function("exp2", ("-126", "127"), "float32"), "9x2")
