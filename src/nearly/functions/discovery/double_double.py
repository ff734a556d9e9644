"""Gauss-Newton beyond float64: programs evaluated in double-double arithmetic, about 31 digits.

Only the error has to be known that well. Its derivatives in float64 lead each step to a few digits
of where it should, whatever the size of the error, so that this costs little more than float64.
Products are split (Dekker, Veltkamp) rather than fused, so that every machine gives the same bits.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from nearly.functions.discovery import kernels
from nearly.functions.discovery.kernels import (
    ADD,
    DEPENDENT,
    DIV,
    MUL,
    PATIENCE,
    REACH,
    SQRT,
    SUB,
    compiled,
    damped,
    differentiate,
    least_squares,
    row,
)

SPLIT = 134217729.0  # 2^27 + 1
HALVINGS = 1100  # from any bracket to two neighbouring float64 numbers
WORTH = 0.9  # an error not below this part of the best is no progress


@compiled
@no_type_check
def two_sum(a, b):
    """a + b and what rounding it lost."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


@compiled
@no_type_check
def two_product(a, b):
    """a * b and what rounding it lost; wrong where a factor exceeds 2^996."""
    p = a * b
    s = SPLIT * a
    a_high = s - (s - a)
    a_low = a - a_high
    s = SPLIT * b
    b_high = s - (s - b)
    b_low = b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


@compiled
@no_type_check
def normal(high, low):
    """The same sum with |low| at most half a unit in the last place of high."""
    s = high + low
    return s, low - (s - high)


@compiled
@no_type_check
def add(a, a_low, b, b_low):
    s, e = two_sum(a, b)
    t, f = two_sum(a_low, b_low)
    s, e = normal(s, e + t)
    return normal(s, e + f)


@compiled
@no_type_check
def multiply(a, a_low, b, b_low):
    p, e = two_product(a, b)
    return normal(p, e + (a * b_low + a_low * b))


@compiled
@no_type_check
def divide(a, a_low, b, b_low):
    q = a / b
    p, e = multiply(q, 0.0, b, b_low)
    r, f = add(a, a_low, -p, -e)
    t = r / b
    p, e = multiply(t, 0.0, b, b_low)
    r, f = add(r, f, -p, -e)
    q, t = normal(q, t)
    return normal(q, t + r / b)


@compiled
@no_type_check
def square_root(a, a_low):
    y = np.sqrt(a)
    if not y > 0:
        return y, 0.0
    p, e = two_product(y, y)
    r, f = add(a, a_low, -p, -e)
    return normal(y, (r + f) / (2 * y))


@compiled
@no_type_check
def evaluate(operations, left, right, high, low, points, values, lows):
    """`kernels.evaluate` into `values` + `lows` (m + 1 + n, N), for constants high + low."""
    m = high.size
    for k in range(m):
        values[k, :] = high[k]
        lows[k, :] = low[k]
    values[m, :] = points
    lows[m, :] = 0.0
    for i in range(operations.size):
        operation = operations[i]
        first, second = row(left[i], m), row(right[i], m)
        a, c, b, d = values[first], lows[first], values[second], lows[second]
        y, z = values[m + 1 + i], lows[m + 1 + i]
        if operation == ADD:
            for p in range(y.size):
                y[p], z[p] = add(a[p], c[p], b[p], d[p])
        elif operation == SUB:
            for p in range(y.size):
                y[p], z[p] = add(a[p], c[p], -b[p], -d[p])
        elif operation == MUL:
            for p in range(y.size):
                y[p], z[p] = multiply(a[p], c[p], b[p], d[p])
        elif operation == DIV:
            for p in range(y.size):
                y[p], z[p] = divide(a[p], c[p], b[p], d[p])
        elif operation == SQRT:
            for p in range(y.size):
                y[p], z[p] = square_root(a[p], c[p])
        else:
            for p in range(y.size):
                y[p], z[p] = -a[p], -c[p]


@compiled
@no_type_check
def residual(result, result_low, truth, truth_low, weights, out):
    """The weighted error, into `out`; the largest, infinite if any is not finite."""
    largest = 0.0
    for p in range(out.size):
        difference, rest = add(result[p], result_low[p], -truth[p], -truth_low[p])
        out[p] = (difference + rest) * weights[p]
        if not abs(out[p]) <= largest:
            largest = abs(out[p])
    return largest if largest < np.inf else np.inf


@compiled
@no_type_check
def refine(operations, left, right, high, low, samples, steps):
    """`kernels.fit` from constants high + low, (m,) each; the error, and the best of them.

    For errors below about 1e-11, where rounding is what keeps float64 from the optimum.
    """
    m, n, count = high.size, operations.size, samples.points.size
    values, lows = np.empty((m + 1 + n, count)), np.empty((m + 1 + n, count))
    adjoints = np.empty((m + 1 + n, count))
    columns, goal = np.empty((m, count + m)), np.empty(count + m)
    error, step = np.empty(count), np.empty(m)
    high, low = high.copy(), low.copy()
    best, best_high, best_low = np.inf, high.copy(), low.copy()
    idle = 0
    for _ in range(steps + 1):
        evaluate(operations, left, right, high, low, samples.points, values, lows)
        largest = residual(
            values[m + n], lows[m + n], samples.values, samples.values_low, samples.weights, error
        )
        idle = 0 if largest < WORTH * best else idle + 1
        if largest < best:
            best = largest
            best_high[:], best_low[:] = high, low
        if not largest < np.inf or idle > PATIENCE:
            break
        differentiate(operations, left, right, m, samples.weights, values, adjoints)
        damped(adjoints, error, high, REACH, columns, goal)
        if least_squares(columns, goal, DEPENDENT, step) < 1:
            break
        for k in range(m):
            high[k], low[k] = add(high[k], low[k], -step[k], 0.0)
    return best, best_high, best_low


@compiled
@no_type_check
def worst(operations, left, right, high, low, samples):
    """The largest weighted error on the fine grid; infinite if there is a pole between its points.

    A denominator that changes sign is followed to its zero; the program has a pole there unless its
    values on both sides stay near the function's (as with x + d/x at 0).
    """
    m, n, count = high.size, operations.size, samples.fine.size
    values, lows = np.empty((m + 1 + n, count)), np.empty((m + 1 + n, count))
    error = np.empty(count)
    evaluate(operations, left, right, high, low, samples.fine, values, lows)
    largest = residual(
        values[m + n], lows[m + n], samples.fine_values, samples.fine_low, samples.fine_weights,
        error,
    )  # fmt: skip
    for i in range(n):
        if operations[i] != DIV:
            continue
        denominator = row(right[i], m)
        for p in range(1, count):
            if (values[denominator, p - 1] > 0) != (values[denominator, p] > 0):
                jump = jumps(operations, left, right, high, samples, denominator, p)
                if not jump < max(2 * largest, 2.0**-20):
                    return np.inf
    return largest


@compiled
@no_type_check
def jumps(operations, left, right, constants, samples, denominator, p):
    """How far the program is from the function, relatively, beside the zero of a denominator.

    In float64, whose infinities pass through x + d/x and its like as they should.
    """
    m, n = constants.size, operations.size
    values, table = np.empty((m + 1 + n, 1)), np.empty((m + 1 + n, 2))
    ends, middle = samples.fine[p - 1 : p + 1].copy(), np.empty(1)
    kernels.evaluate(operations, left, right, constants, ends, table)
    positive = table[denominator, 0] > 0
    for _ in range(HALVINGS):
        middle[0] = ends[0] + (ends[1] - ends[0]) / 2
        if middle[0] == ends[0] or middle[0] == ends[1]:
            break
        kernels.evaluate(operations, left, right, constants, middle, values)
        ends[0 if (values[denominator, 0] > 0) == positive else 1] = middle[0]
    kernels.evaluate(operations, left, right, constants, ends, table)
    below = abs(table[m + n, 0] - samples.fine_values[p - 1]) * samples.fine_weights[p - 1]
    above = abs(table[m + n, 1] - samples.fine_values[p]) * samples.fine_weights[p]
    return below + above  # not a number if one is
