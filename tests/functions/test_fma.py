"""fma in NumPy against exact rational arithmetic, rounded by a few lines of its own."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearly.functions.fma import fma32, fma64


def rounded(value: Fraction, precision: int, emin: int, emax: int) -> float:
    """To nearest, ties to even: found by searching the exponent, in exact integers."""
    sign, size = (-1 if value < 0 else 1), abs(value)
    power = max(emin, size.numerator.bit_length() - size.denominator.bit_length() - 1)
    while size >= Fraction(2) ** (power + 1):
        power += 1
    step = Fraction(2) ** (power - precision + 1)
    whole, rest = divmod(size, step)
    whole += rest * 2 > step or (rest * 2 == step and whole % 2 == 1)
    if whole * step >= Fraction(2) ** (emax + 1):
        return sign * math.inf
    return math.copysign(float(whole * step), sign)


def expected(a: float, b: float, c: float, format_: tuple[int, int, int]) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact != 0:
        return rounded(exact, *format_)
    with np.errstate(all="ignore"):
        return float(np.float64(a) * np.float64(b) + np.float64(c))  # the sign of a zero


SINGLE, DOUBLE = (24, -126, 127), (53, -1022, 1023)
EDGES64 = (5e-324, 2.0**-1022, 1.5 * 2.0**-1023, 1.0, 1 - 2.0**-53, 1 + 2.0**-52, 2.0**1023)
EDGES32 = (2.0**-149, 2.0**-126, 1.5 * 2.0**-127, 1.0, 1 - 2.0**-24, 1 + 2.0**-23, 2.0**127)


def numbers(width: int) -> st.SearchStrategy[float]:
    edges = EDGES64 if width == 64 else EDGES32
    near = st.builds(lambda e, k: e * k, st.sampled_from(edges), st.sampled_from((1.0, -1.0)))
    return st.floats(allow_nan=False, allow_infinity=False, width=width) | near


@settings(max_examples=400, deadline=None)
@given(numbers(32), numbers(32), numbers(32))
def test_float32_is_correctly_rounded(a: float, b: float, c: float) -> None:
    got = fma32(np.float32(a), np.float32(b), np.float32(c))
    assert got.dtype == np.float32
    assert float(got).hex() == expected(a, b, c, SINGLE).hex()


@settings(max_examples=400, deadline=None)
@given(numbers(64), numbers(64), numbers(64))
def test_float64_is_correctly_rounded(a: float, b: float, c: float) -> None:
    got = fma64(np.float64(a), np.float64(b), np.float64(c))
    assert float(got).hex() == expected(a, b, c, DOUBLE).hex()


@pytest.mark.parametrize(
    ("fused", "dtype", "format_"), [(fma32, np.float32, SINGLE), (fma64, np.float64, DOUBLE)]
)
def test_cancellation_and_subnormal_ties(fused, dtype, format_) -> None:
    rng = np.random.default_rng(0)
    least = float(np.finfo(dtype).smallest_subnormal)
    a, b = rng.standard_normal((2, 500)).astype(dtype)
    near = -(a * b) * (1 + rng.integers(-3, 4, 500) * np.finfo(dtype).eps).astype(dtype)
    # Products of eighths with a few of the smallest numbers: halfway cases by the dozen.
    e = (rng.integers(-64, 64, 500) / 8).astype(dtype)
    few = (rng.integers(-20, 20, (2, 500)) * least).astype(dtype)
    wide = rng.uniform(-4, 4, (2, 500)).astype(dtype) * np.finfo(dtype).smallest_normal
    a, b, c = (
        np.concatenate(v).astype(dtype)
        for v in ((a, e, a), (b, few[0], wide[0]), (near, few[1], wide[1]))
    )
    got = fused(a, b, c)
    wanted = [expected(*map(float, t), format_) for t in zip(a, b, c, strict=True)]
    assert [float(g).hex() for g in got] == [w.hex() for w in wanted]


@pytest.mark.parametrize(("fused", "dtype"), [(fma32, np.float32), (fma64, np.float64)])
def test_infinities_and_nan(fused, dtype) -> None:
    inf, nan, large = dtype(np.inf), dtype(np.nan), np.finfo(dtype).max
    assert fused(large, large, -inf) == -inf  # the product is finite, however large
    assert fused(large, large, dtype(1)) == inf
    assert fused(inf, dtype(2), large) == inf
    assert np.isnan(fused(inf, dtype(0), dtype(1)))
    assert np.isnan(fused(inf, dtype(1), -inf))
    assert np.isnan(fused(nan, dtype(1), dtype(1)))
    assert np.isnan(fused(dtype(1), dtype(1), nan))
    assert fused(large, dtype(2), -large) == large
