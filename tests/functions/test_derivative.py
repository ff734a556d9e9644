"""The derivative of a program: rules by hand, over the reals and through integer steps."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.functions.builders import minimax
from nearly.functions.derivative import differentiate
from nearly.functions.evaluate import evaluate
from nearly.functions.function import Function
from nearly.functions.program import Builder
from nearly.functions.reduction import reduction


def slope(build, x, dtype: str = "float64"):
    b = Builder(dtype)
    return evaluate(differentiate(b.program(build(b, b.x))), x)


X = np.array([-2.0, -0.5, 0.75, 3.0])


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (lambda b, x: x * x * x - x / 4 + 7, 3 * X**2 - 0.25),
        (lambda b, x: (x - 1) / (x * x + 1), (1 + 2 * X - X**2) / (X**2 + 1) ** 2),
        (lambda b, x: 5 / x, -5 / X**2),
        (lambda b, x: b.sqrt(x * x + 1), X / np.sqrt(X**2 + 1)),
        (lambda b, x: b.fma(x, x, -x), 2 * X - 1),
        (lambda b, x: abs(x) * x, 2 * np.abs(X)),
        (lambda b, x: b.constant(Fraction(3)) + 1, 0 * X),
    ],
)
@pytest.mark.parametrize("dtype", ["real", "float64"])
def test_rules(build, wanted, dtype: str) -> None:
    np.testing.assert_allclose(slope(build, X, dtype), wanted, rtol=1e-14)


def test_pieces_steps_and_tables() -> None:
    def build(b, x):
        piece = b.select(b.lt(x, 0), x * x, x * 3)
        table = b.lookup(b.table([1, 5]), b.iand(b.to_int(x), 1))
        return piece + b.round(x) * x + table

    assert slope(build, X).tolist() == [-4 - 2, -1 - 0, 3 + 1, 3 + 3]


def test_scaling_in_the_exponent_field_keeps_its_slope() -> None:
    eighth = slope(lambda b, x: b.from_bits(b.isub(b.bits(x), 3 << 52)), X)
    assert eighth.tolist() == [0.125] * 4
    mantissa = slope(
        lambda b, x: b.from_bits(b.iadd(b.iand(b.bits(x), (1 << 52) - 1), 1023 << 52)),
        np.array([0.75, 1.5, 3.0, 6.5]),
    )
    assert mantissa.tolist() == [2, 1, 0.5, 0.25]
    magnitude = slope(lambda b, x: b.from_bits(b.iand(b.bits(x), 2**63 - 1)), X)
    assert magnitude.tolist() == [-1, -1, 1, 1]
    # 2^-52 times the bits is a broken line through log2, of slope 2^-floor(log2 x).
    line = slope(lambda b, x: b.to_float(b.bits(x)) * Fraction(1, 2**52), np.array([0.75, 1, 3, 9]))
    assert line.tolist() == [2, 1, 0.5, 0.125]


def test_a_leading_part_is_a_step() -> None:
    def rest(b, x):
        leading = b.from_bits(b.iand(b.bits(x), -(1 << 30)))
        return (x - leading) * 8 + leading

    assert slope(rest, X).tolist() == [8] * 4


def test_rounding_by_a_large_constant_is_a_step() -> None:
    magic = 3 << 51

    def sawtooth(b, x):
        return x * 2 - b.sub(b.add(x * 2, magic), magic) + b.sub(magic, b.fma(x, 2, magic))

    assert slope(sawtooth, X).tolist() == [2] * 4
    assert slope(lambda b, x: (x + (1 << 52)) * 1, X, "real").tolist() == [1] * 4


@pytest.mark.parametrize(
    ("name", "derivative"),
    [
        ("exp2", lambda x: np.log(2) * 2**x),
        ("sin", np.cos),
        ("tan", lambda x: 1 / np.cos(x) ** 2),
        ("atan", lambda x: 1 / (1 + x * x)),
    ],
)
def test_through_a_range_reduction(name: str, derivative) -> None:
    found = reduction(Function(name, ("-inf", "inf"), "float32", "ulp"))
    assert found is not None
    program = found.wrap(*(minimax(core, 10) for core in found.cores))
    x = np.linspace(-9.7, 9.9, 50)
    slopes = evaluate(differentiate(program), x.astype(np.float32))
    np.testing.assert_allclose(slopes, derivative(x), rtol=1e-4)


def test_what_cannot_be_told_is_refused() -> None:
    with pytest.raises(InputError, match="derivative="):
        slope(lambda b, x: b.from_bits(b.isub(0x5FE6EB50C7B537A9, b.ishr(b.bits(x), 1))), X)
    # The same shift as the index of a table is a step like any other.
    indexed = slope(
        lambda b, x: b.lookup(b.table(range(4)), b.iand(b.ishr(b.bits(x), 50), 3)) + x, X
    )
    assert indexed.tolist() == [1] * 4
