"""The inner loop of the search: the constants of one small structure, in microseconds (float64).

Numba, because the loops run over short rows (tens of points, about ten instructions) where NumPy's
cost per call is a hundred times the arithmetic, and because the search itself is compiled, so that
mutation and fit never meet the interpreter; it needs no compiler on the user's machine. Run with
`NUMBA_DISABLE_JIT=1` the same functions are plain NumPy: right, and a thousand times slower.

What the rest of the search calls, from Python or from compiled code alike (arrays are C-ordered):

- `samples = target(function, points=48)`: once for each function; a `Samples` of arrays.
- `fit(operations, left, right, constants, samples, promising, steps) -> (error, found)`: Gauss and
  Newton's method from one start. `operations` int8 (n,), `left`, `right` int16 (n,), `constants`
  float64 (m,); `promising`: the error hoped for, a fit that is not on its way there being given up
  (`inf`: never); `steps`: at most, 30 to 60; `found` float64 (m,). `error` is the largest weighted
  error at the sample points, `inf` where no finite value was met.
- `fit_within(…, steps, reach)`: the same with another reach, the size up to which constants move
  freely: 30 finds the optimum of four constants twice as often, 300 that of some with squarings.
- `fit_starts(operations, left, right, starts, samples, promising, steps)`: the best of several
  starts, float64 (k, m).
- `double_double.refine(operations, left, right, high, low, samples, steps) -> (error, high, low)`,
  in the module beside: the same in double-double arithmetic, from the constants that `fit` found
  (and `low` 0); worth its time where `error < NEAR_FLOOR`.
- `double_double.worst(operations, left, right, high, low, samples) -> error`: on the fine grid,
  infinite if there is a pole between its points.

An instruction is `(operation, left, right)` with an operation of `ADD, SUB, MUL, DIV, SQRT, NEG`
(the last two read `left` alone) and operands coded as >= 0: that instruction; -1: x; -2 - k: the
constant k. The last instruction is the result. See `nearly.functions.discovery.tape`.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numba
import numpy as np

from nearly.core.errors import InputError
from nearly.functions.function import Function

ADD, SUB, MUL, DIV, SQRT, NEG = range(6)

NEAR_FLOOR = 1e-11  # below this, float64 may be what limits a fit
ON_ITS_WAY = 60  # steps in which a fit's error falls to what is hoped for, evenly in its logarithm
GRACE = 16  # steps before a fit has to be on its way
PATIENCE = 12  # steps without progress before a fit ends: on the way the error often rises
GAIN = 0.99  # an error not below this part of the best is no progress
SETTLED = 1e-4  # a relative change of the mean square error that ends a fit
CAUTION = 0.1  # how strongly a step is held back, for its error
REACH = 100.0  # the size up to which constants move as freely as if they were so large
DEPENDENT = 1e-14  # a scaled column shorter than this depends on those before it

# What the cache holds of a function follows changes of its own file only: after one here, touch the
# modules that call it, or they keep what they were compiled with.
compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


class Samples(NamedTuple):
    """A function at the points of a fit, and at those of a finer grid that checks it.

    **Arguments:**

    - `points`: (N,) float64, Chebyshev's on the domain: never its ends, where a program may have a
      removable singularity.
    - `values`, `values_low`: (N,) the function there as an unevaluated sum.
    - `weights`: (N,) what multiplies the difference: 1 / |f|, or 1.
    - `fine`, `fine_values`, `fine_low`, `fine_weights`: the same on the fine grid, ascending.
    """

    points: np.ndarray
    values: np.ndarray
    values_low: np.ndarray
    weights: np.ndarray
    fine: np.ndarray
    fine_values: np.ndarray
    fine_low: np.ndarray
    fine_weights: np.ndarray


def target(function: Function, *, points: int = 48, fine: int = 256) -> Samples:
    """Sample a function for `fit`.

    **Arguments:**

    - `function`: on a bounded domain; its error is `"relative"` or `"absolute"`.
    - `points`: how many points a fit sees; four for each constant is plenty.
    - `fine`: how many points check it.

    Raises `InputError` for an error in ULP. Costs 10 to 50 microseconds a point.
    """
    grid = np.concatenate([chebyshev_points(function, points), _fine(function, fine)])
    high, low = function.oracle.table(grid)
    weights = _weights(function, high)
    ours = (grid[:points], high[:points], low[:points], weights[:points])
    return Samples(*ours, grid[points:], high[points:], low[points:], weights[points:])


def chebyshev_points(function: Function, count: int) -> np.ndarray:
    """Chebyshev's points of the first kind on the domain, ascending."""
    low, high = map(float, function.interval)
    angles = (2 * np.arange(count, 0, -1) - 1) * (np.pi / (2 * count))
    return (low + high) / 2 + (high - low) / 2 * np.cos(angles)


def _fine(function: Function, count: int) -> np.ndarray:
    """Chebyshev's points and two more near each end, where an error may grow without bound."""
    low, high = map(float, function.interval)
    near = (high - low) * np.array([2.0**-24, 2.0**-18])
    return np.concatenate([low + near, chebyshev_points(function, count - 4), high - near[::-1]])


def _weights(function: Function, values: np.ndarray) -> np.ndarray:
    if function.error == "absolute":
        return np.ones_like(values)
    if function.error != "relative":
        raise InputError(
            f"error={function.error!r}: programs over the reals are fitted to the relative or the "
            "absolute error; give error='relative'"
        )
    if np.any(values == 0):
        at = float(np.argmax(values == 0))
        raise InputError(
            f"{function.name} is 0 at sample {at:.0f}, where no relative error is finite: shorten "
            "the domain or give error='absolute'"
        )
    return 1 / np.abs(values)


@compiled
@no_type_check
def evaluate(operations, left, right, constants, points, values):
    """Fill `values` (m + 1 + n, N): a row for each constant, for x, for each instruction."""
    m = constants.size
    for k in range(m):
        values[k, :] = constants[k]
    values[m, :] = points
    for i in range(operations.size):
        operation = operations[i]
        a, b, out = values[row(left[i], m)], values[row(right[i], m)], values[m + 1 + i]
        if operation == ADD:
            for p in range(out.size):
                out[p] = a[p] + b[p]
        elif operation == SUB:
            for p in range(out.size):
                out[p] = a[p] - b[p]
        elif operation == MUL:
            for p in range(out.size):
                out[p] = a[p] * b[p]
        elif operation == DIV:
            for p in range(out.size):
                out[p] = a[p] / b[p]
        elif operation == SQRT:
            for p in range(out.size):
                out[p] = np.sqrt(a[p])
        else:
            for p in range(out.size):
                out[p] = -a[p]


@compiled
@no_type_check
def row(operand, constants):
    """The row of an operand in a table of values."""
    if operand >= 0:
        return constants + 1 + operand
    return constants if operand == -1 else -2 - operand


@compiled
@no_type_check
def differentiate(operations, left, right, constants, weights, values, adjoints):
    """Fill `adjoints` (m + 1 + n, N); its first m rows are the columns of the Jacobian.

    Backwards, because one sweep then gives all columns at the cost of about three evaluations.
    """
    m, n = constants, operations.size
    adjoints[: m + n, :] = 0.0
    adjoints[m + n, :] = weights
    for i in range(n - 1, -1, -1):
        operation = operations[i]
        g, y = adjoints[m + 1 + i], values[m + 1 + i]
        first, second = row(left[i], m), row(right[i], m)
        da, db, a, b = adjoints[first], adjoints[second], values[first], values[second]
        if operation == ADD:
            for p in range(g.size):
                da[p] += g[p]
            for p in range(g.size):
                db[p] += g[p]
        elif operation == SUB:
            for p in range(g.size):
                da[p] += g[p]
            for p in range(g.size):
                db[p] -= g[p]
        elif operation == MUL:
            for p in range(g.size):
                da[p] += g[p] * b[p]
            for p in range(g.size):
                db[p] += g[p] * a[p]
        elif operation == DIV:
            for p in range(g.size):
                g[p] /= b[p]
            for p in range(g.size):
                da[p] += g[p]
            for p in range(g.size):
                db[p] -= g[p] * y[p]
        elif operation == SQRT:
            for p in range(g.size):
                da[p] += g[p] * (0.5 / y[p])
        else:
            for p in range(g.size):
                da[p] -= g[p]


@compiled
@no_type_check
def dot(a, b):
    """Four partial sums: as fast as reassociated code, and the same bits on every machine."""
    s, t, u, v = 0.0, 0.0, 0.0, 0.0
    whole = a.size - a.size % 4
    for p in range(0, whole, 4):
        s += a[p] * b[p]
        t += a[p + 1] * b[p + 1]
        u += a[p + 2] * b[p + 2]
        v += a[p + 3] * b[p + 3]
    for p in range(whole, a.size):
        s += a[p] * b[p]
    return (s + t) + (u + v)


@compiled
@no_type_check
def least_squares(columns, goal, dependent, solution):
    """Minimise |sum_k solution_k columns_k - goal|; the rank. Overwrites `columns` and `goal`.

    Modified Gram-Schmidt with column pivoting, the goal as one more column (backward stable, unlike
    the normal equations, and the condition here is up to 1e12). Columns are scaled to length 1; one
    that is shorter than `dependent` when its turn comes depends on the others: its unknown is 0.
    """
    m = columns.shape[0]
    upper = np.zeros((m, m))
    scales, norms = np.zeros(m), np.zeros(m)
    order = np.arange(m)
    heads = np.zeros(m)
    solution[:] = 0.0
    for k in range(m):
        length = np.sqrt(dot(columns[k], columns[k]))
        if not length < np.inf:
            return -1
        scales[k] = 1 / length if length > 0 else 0.0
        norms[k] = 1.0 if length > 0 else 0.0
        columns[k] *= scales[k]
    rank = 0
    for k in range(m):
        best = k
        for j in range(k + 1, m):
            if norms[order[j]] > norms[order[best]]:
                best = j
        for i in range(k):
            upper[i, k], upper[i, best] = upper[i, best], upper[i, k]
        order[k], order[best] = order[best], order[k]
        q = columns[order[k]]
        length = np.sqrt(dot(q, q))
        if not length > dependent:
            break
        upper[k, k] = length
        q /= length
        for j in range(k + 1, m):
            other = columns[order[j]]
            share = dot(q, other)
            upper[k, j] = share
            for p in range(q.size):
                other[p] -= share * q[p]
            norms[order[j]] = dot(other, other)
        heads[k] = dot(q, goal)
        for p in range(q.size):
            goal[p] -= heads[k] * q[p]
        rank += 1
    for k in range(rank - 1, -1, -1):
        for j in range(k + 1, rank):
            heads[k] -= upper[k, j] * heads[j]
        heads[k] /= upper[k, k]
        solution[order[k]] = heads[k] * scales[order[k]]
    return rank


@compiled
@no_type_check
def residual(result, samples, out):
    """The weighted error at the points, into `out`; the largest, infinite if any is not finite."""
    largest = 0.0
    for p in range(out.size):
        out[p] = ((result[p] - samples.values[p]) - samples.values_low[p]) * samples.weights[p]
    for p in range(out.size):
        size = abs(out[p])
        if not size <= largest:
            largest = size
    return largest if largest < np.inf else np.inf


@compiled
@no_type_check
def fit(operations, left, right, constants, samples, promising, steps):
    """`fit_within` a reach that serves most structures."""
    return fit_within(operations, left, right, constants, samples, promising, steps, REACH)


@compiled
@no_type_check
def fit_within(operations, left, right, constants, samples, promising, steps, reach):
    """The best constants that Gauss-Newton steps from a start meet, and their error.

    The constants that the result is linear in are solved for first. A step is damped in proportion
    to the error it starts from (as Yamashita and Fukushima do), and taken whether the error falls
    or not: in the curved and narrow valleys of composed programs, monotone and line-searched steps
    stall, and undamped ones leave the valley that they start in. One that leads nowhere finite is
    shortened.
    """
    m, n, count = constants.size, operations.size, samples.points.size
    values, adjoints = np.empty((m + 1 + n, count)), np.empty((m + 1 + n, count))
    columns, goal = np.empty((m, count + m)), np.empty(count + m)
    error, step, current = np.empty(count), np.empty(m), constants.copy()
    linear = linear_constants(operations, left, right, m)
    evaluate(operations, left, right, current, samples.points, values)
    largest = residual(values[m + n], samples, error)
    best, found = largest, current.copy()
    idle, square = 0, np.inf
    hope = np.log(promising) / ON_ITS_WAY if promising < 1.0 else 0.0
    for taken in range(steps + 1):
        previous, square = square, dot(error, error)
        late = taken > GRACE and best > np.exp(hope * taken) and promising < 1.0
        if late or idle > PATIENCE or not abs(square - previous) > SETTLED * square:
            break
        if taken == steps or not largest < np.inf:
            break
        differentiate(operations, left, right, m, samples.weights, values, adjoints)
        damped(adjoints, error, current, reach, columns, goal)
        if taken == 0 and linear.any():
            only(linear, columns, count)
        if least_squares(columns, goal, DEPENDENT, step) < 1:
            break
        for _ in range(4):
            evaluate(operations, left, right, current - step, samples.points, values)
            largest = residual(values[m + n], samples, error)
            if largest < np.inf:
                break
            step *= 0.25
        current -= step
        idle = 0 if largest < GAIN * best else idle + 1
        if largest < best:
            best = largest
            found[:] = current
    return best, found


@compiled
@no_type_check
def damped(adjoints, error, constants, reach, columns, goal):
    """The equations of a step, with one more for each constant that asks it to stay."""
    m, count = constants.size, error.size
    strength = CAUTION * np.sqrt(dot(error, error))
    columns[:, count:] = 0.0
    goal[:count] = error
    goal[count:] = 0.0
    for k in range(m):
        columns[k, :count] = adjoints[k]
        columns[k, count + k] = strength / max(abs(constants[k]), reach)


@compiled
@no_type_check
def only(chosen, columns, count):
    """Leave an undamped problem in the chosen unknowns."""
    columns[:, count:] = 0.0
    for k in range(chosen.size):
        if not chosen[k]:
            columns[k, :] = 0.0


@compiled
@no_type_check
def linear_constants(operations, left, right, constants):
    """Constants in which, jointly, the result is linear: terms and factors on the way to it."""
    n = operations.size
    chosen, uses = np.zeros(constants, np.bool_), np.zeros(constants + 1 + n, np.int64)
    for i in range(n):
        uses[row(left[i], constants)] += 1
        uses[row(right[i], constants)] += operations[i] < SQRT
    pending = np.empty(2 * n + 1, np.int64)
    pending[0] = n - 1
    top = 0
    while top >= 0:
        operand = pending[top]
        top -= 1
        if operand == -1 or uses[row(operand, constants)] > 1:
            continue
        if operand <= -2:
            chosen[-2 - operand] = True
            continue
        operation, a, b = operations[operand], left[operand], right[operand]
        if operation == MUL and b <= -2:
            a = b
        if operation != SQRT:
            top += 1
            pending[top] = a
        if operation <= SUB:
            top += 1
            pending[top] = b
    return chosen


@compiled
@no_type_check
def fit_starts(operations, left, right, starts, samples, promising, steps):
    """The best of `fit` from several starts (k, m); each has to promise more than the last best."""
    best, found = np.inf, starts[0].copy()
    for k in range(starts.shape[0]):
        error, constants = fit(
            operations, left, right, starts[k], samples, min(promising, best), steps
        )
        if error < best:
            best, found = error, constants
    return best, found
