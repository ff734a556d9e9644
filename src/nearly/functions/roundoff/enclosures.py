"""Enclosures of registers on many intervals at once, and arithmetic with them.

Intervals are rounded outwards by one step of a longer format than the program's.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from nearly.functions.formats import Format

Array = np.ndarray
INF = np.inf
ONE = (1.0, 1.0)
ZERO = (0.0, 0.0)


@dataclass
class Reals:
    """Enclosures [lo, hi] of a register, of which every computed value is a multiple of 2^grid.

    `product` is the grid if the product that made this register is contracted into a sum.
    """

    lo: Array
    hi: Array
    grid: Array
    product: Array


@dataclass
class Integers:
    """Enclosures of an integer register.

    `source` is the place in `_Forward.sources` of the real register whose bits it holds, plus a
    constant; -1 where there is none.
    """

    lo: Array
    hi: Array
    source: Array | None = None


@dataclass
class Truths:
    """Which outcomes of a comparison are possible."""

    may: Array
    may_not: Array


def times(a: Any, b: Any) -> tuple[Array, Array]:
    products = [a[0] * b[0], a[0] * b[1], a[1] * b[0], a[1] * b[1]]
    # 0 * inf is 0 here: the infinite end is a bound, never a value.
    products = [np.where(np.isnan(p), 0.0, p) for p in products]
    return np.minimum.reduce(products), np.maximum.reduce(products)


def product(adjoint: Any, slope: Any) -> tuple[Array, Array]:
    """An adjoint times a slope, rounded outwards; an exact zero (thrown away by a select) stays."""
    lo, hi = times(adjoint, slope)
    null = (lo == 0) & (hi == 0)
    return np.where(null, 0.0, np.nextafter(lo, -INF)), np.where(null, 0.0, np.nextafter(hi, INF))


def magnitude(a: tuple[Array, Array]) -> Array:
    return np.maximum(np.abs(a[0]), np.abs(a[1]))


def indefinite(a: Reals, b: Reals) -> Array:
    """Where a product of zero and infinity is possible."""
    infinite, null = (
        (np.isinf(v.lo) | np.isinf(v.hi) for v in (a, b)),
        ((v.lo <= 0) & (v.hi >= 0) for v in (b, a)),
    )
    return np.logical_or.reduce([i & z for i, z in zip(infinite, null, strict=True)])


def is_power(a: Reals) -> Array:
    """Where a register is plus or minus one power of two."""
    return (a.lo == a.hi) & (np.abs(np.frexp(a.lo)[0]) == 0.5)


def square(a: Reals) -> tuple[Array, Array]:
    small, large = smallest_in(a.lo, a.hi), np.maximum(np.abs(a.lo), np.abs(a.hi))
    return small * small, large * large


def negated(a: Any) -> tuple[Array, Array]:
    return -a[1], -a[0]


def widened(a: tuple[Array, Array]) -> tuple[Array, Array]:
    return np.nextafter(a[0], -INF), np.nextafter(a[1], INF)


def sum_of(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    lo, hi = widened((a[0] + b[0], a[1] + b[1]))
    null = (a[0] == 0) & (a[1] == 0) & (b[0] == 0) & (b[1] == 0)
    return np.where(null, 0.0, lo), np.where(null, 0.0, hi)


def unless_zero(lo: Array, hi: Array, grid: Array) -> Array:
    """The grid of a sum; a sum that is exactly zero is a multiple of everything."""
    return np.where((lo == 0) & (hi == 0), INF, grid)


def outwards(lo: Array, hi: Array, grid: Array) -> tuple[Array, Array]:
    """One step outwards, but for an exact zero."""
    zero = grid == INF
    return (
        np.where(zero, lo, np.nextafter(lo, -INF)),
        np.where(zero, hi, np.nextafter(hi, INF)),
    )


def smallest_in(lo: Array, hi: Array) -> Array:
    """The smallest magnitude in [lo, hi]."""
    return np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(np.abs(lo), np.abs(hi)))


def exponent_of(v: Array) -> Array:
    """floor(log2 |v|); very low at 0."""
    return np.where(v == 0, -5000.0, np.frexp(v)[1] - 1.0)


def clipped(exponent: Array) -> Array:
    return np.clip(np.nan_to_num(exponent, nan=-2000.0), -2000, 2000).astype(np.int64)


def half_spacing(form: Format, lo: Array, hi: Array) -> Array:
    """The largest rounding error of any real number in [lo, hi].

    Just past a power of two the spacing doubles, but a number that reaches only a little beyond it
    is rounded by no more than that little.
    """
    size = np.maximum(np.abs(lo), np.abs(hi))
    exponent = np.clip(exponent_of(size), form.emin, form.emax).astype(np.int64)
    half = np.ldexp(0.5, exponent - form.precision + 1)
    edge = np.ldexp(1.0, exponent)
    beyond = np.nextafter(size - edge, INF)
    straddles = (smallest_in(lo, hi) < edge) & (size >= edge) & (exponent > form.emin)
    return np.where(straddles, np.maximum(half / 2, np.minimum(half, beyond)), half)


def integer(v: Array) -> Array:
    return np.clip(np.nan_to_num(v), -(2.0**62), 2.0**62).astype(np.int64)


def trailing(value: Fraction) -> float:
    """The exponent of the lowest set bit of a dyadic number."""
    if value == 0:
        return INF
    n, d = value.numerator, value.denominator
    return float((n & -n).bit_length() - 1 - (d.bit_length() - 1))


def trailing_zeros(n: Array) -> Array:
    lowest = n & -n
    return np.where(n == 0, INF, np.frexp(np.abs(lowest).astype(float))[1] - 1.0)


def from_pattern(bits: Array, form: Format) -> Array:
    """The numbers with these bits."""
    return bits.astype(form.integer).view(form.dtype).astype(np.float64)


def grid_of(x: Array) -> Array:
    """The exponent of the lowest set bit of numbers."""
    mantissa, power = np.frexp(np.where(np.isfinite(x), x, 0.0).astype(np.float64))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    return np.where(whole == 0, INF, power - 53.0 + trailing_zeros(whole))


def fields_of(v: Reals) -> tuple[Array, Array, Array, Array]:
    return v.lo, v.hi, v.grid, v.product
