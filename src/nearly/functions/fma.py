"""Fused multiply-add in NumPy, correctly rounded: `a*b + c` with one rounding.

NumPy has no fma. These functions are also the text that NumPy emission prints into generated code,
so each stands on nothing but `numpy` and the functions of this file.

The float64 version is the method of Boldo and Melquiond: error-free product and sums, the tail
rounded to odd so that the last rounding sees every bit. What is added here: operands are scaled by
their exponents first, so that nothing overflows or underflows on the way, and a result among the
subnormal numbers is rounded at their spacing, not twice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["fma32", "fma64"]


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def odd_sum(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64, rounded to odd: an inexact sum keeps its last bit set."""
    s, error = two_sum(a, b)
    bits = s.view(np.int64)
    inexact = (np.abs(error) > 0) & (bits & 1 == 0)
    step = np.where((error > 0) == (s > 0), 1, -1)
    return (bits + np.where(inexact, step, 0)).view(np.float64)


def fma32(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
    with np.errstate(all="ignore"):
        # The product of two float32 numbers is exact in float64.
        shape = np.broadcast(a, b, c).shape
        a, b, c = (np.atleast_1d(np.asarray(v, np.float64)) for v in (a, b, c))
        return odd_sum(a * b, c).astype(np.float32).reshape(shape)


def fma64(a: ArrayLike, b: ArrayLike, c: ArrayLike) -> np.ndarray:
    with np.errstate(all="ignore"):
        shape = np.broadcast(a, b, c).shape
        a, b, c = (np.atleast_1d(np.asarray(v, np.float64)) for v in (a, b, c))
        plain = np.where(np.isfinite(a) & np.isfinite(b) & ~np.isfinite(c), c, a * b + c)
        regular = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0)
        (a, i), (b, j), (c, k) = np.frexp(a), np.frexp(b), np.frexp(c)
        k = np.where(c == 0, -9999, k)
        top = np.maximum(i + j, k)
        # Past 200 binades apart the smaller one only breaks ties.
        a = np.ldexp(a, np.maximum(i + j - top, -200))
        c = np.ldexp(c, np.maximum(k - top, -200))
        high_a, high_b = a * 134217729.0, b * 134217729.0
        high_a, high_b = high_a - (high_a - a), high_b - (high_b - b)
        low_a, low_b = a - high_a, b - high_b
        product = a * b
        rest = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
        middle, tail = two_sum(c, rest)
        head, next_tail = two_sum(product, middle)
        tail = odd_sum(tail, next_tail)
        total = head + tail
        result = np.ldexp(total, top)
        tiny = regular & (np.frexp(total)[1] + top <= -1022)
        if np.any(tiny):
            # Among numbers from 2^52 steps of 2^-1074 on the hardware rounds at that step.
            base = np.copysign(np.ldexp(1.0, np.minimum(52 - 1074 - top, 300)), total)
            whole, part = two_sum(base, head)
            rounded = np.ldexp((whole + odd_sum(part, tail)) - base, top)
            result = np.where(tiny, np.copysign(rounded, total), result)
        return np.where(regular, result, plain).reshape(shape)
