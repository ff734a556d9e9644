"""The search's inner loop: derivatives, least squares, double-double, poles, and no compiler."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from flint import ctx

from nearly.core.errors import InputError
from nearly.functions.balls import exact
from nearly.functions.discovery import double_double, kernels
from nearly.functions.discovery.extended import Curve, largest
from nearly.functions.discovery.tape import Tape
from nearly.functions.function import Function
from nearly.functions.program import Builder, Node

EXP2 = Function("exp2", ("0", "1"))


def taped(write: object) -> Tape:
    b = Builder()
    return Tape.from_program(b.program(write(b.x)))  # type: ignore[operator]


def arrays(tape: Tape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tape.operations, tape.left, tape.right


def coth(x: Node) -> Node:
    return 34.6 / ((x + 100.0 / x) - 17.3) + 1.0


@pytest.fixture(scope="module")
def samples() -> kernels.Samples:
    return kernels.target(EXP2, points=24)


def test_samples_are_inside_and_true(samples: kernels.Samples) -> None:
    for points, values in ((samples.points, samples.values), (samples.fine, samples.fine_values)):
        assert np.all(np.diff(points) > 0)
        assert 0 < points[0] < points[-1] < 1
        np.testing.assert_allclose(values, 2**points, rtol=1e-15)
    np.testing.assert_allclose(samples.weights * samples.values, 1)


def test_derivatives_are_those_of_differences(samples: kernels.Samples) -> None:
    tape = taped(lambda x: -(((x * 0.7 - 2.0) / (1.5 + x)) * (x * 0.7 - 2.0)) - (x + 0.3))
    m, n = tape.constants.size, tape.operations.size
    values = np.empty((m + 1 + n, samples.points.size))
    adjoints = np.empty_like(values)
    kernels.evaluate(*arrays(tape), tape.constants, samples.points, values)
    kernels.differentiate(*arrays(tape), m, samples.weights, values, adjoints)
    for k in range(m):
        ends = []
        for sign in (-1, 1):
            moved = tape.constants.copy()
            moved[k] += sign * 1e-5
            table = np.empty_like(values)
            kernels.evaluate(*arrays(tape), moved, samples.points, table)
            ends.append(table[-1])
        slope = (ends[1] - ends[0]) / 2e-5 * samples.weights
        np.testing.assert_allclose(adjoints[k], slope, atol=1e-8)


def test_least_squares_of_full_and_of_lower_rank() -> None:
    rng = np.random.default_rng(0)
    columns, goal = rng.normal(size=(4, 20)), rng.normal(size=20)
    columns[2] *= 1e-9
    solution = np.empty(4)
    assert kernels.least_squares(columns.copy(), goal.copy(), 1e-13, solution) == 4
    np.testing.assert_allclose(solution, np.linalg.lstsq(columns.T, goal)[0], rtol=1e-6)
    columns[3] = 2 * columns[0] - columns[1]
    assert kernels.least_squares(columns.copy(), goal.copy(), 1e-13, solution) == 3
    three = columns[:3].T * [1, 1, 1e9]
    expected = np.linalg.norm(three @ np.linalg.pinv(three) @ goal - goal)
    assert np.linalg.norm(columns.T @ solution - goal) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "write, expected",
    [
        (lambda x: 2.0 / (x + 3.0) + 4.0, [False, True, True]),
        (lambda x: (x * 2.0 + 3.0) * 4.0, [False, False, True]),
        (lambda x: (x * 2.0 + 3.0) * x - 4.0, [True, True, True]),
        (lambda x: (x + 2.0) * (x + 2.0), [False]),
        (lambda x: (x * 2.0) / (x + 3.0), [True, False]),
    ],
)
def test_constants_that_the_result_is_linear_in(write: object, expected: list[bool]) -> None:
    tape = taped(write)
    found = kernels.linear_constants(*arrays(tape), tape.constants.size)
    assert found.tolist() == expected


def test_fits_from_anywhere(samples: kernels.Samples) -> None:
    """2^x by K/(x + d/x - B) + c; its optimum in the largest error is 4.34e-6."""
    tape = taped(coth)
    rng = np.random.default_rng(0)
    starts = rng.choice([-1, 1], (80, 4)) * 10 ** rng.uniform(-1, 3, (80, 4))
    error, found = kernels.fit_starts(*arrays(tape), starts, samples, math.inf, 60)
    assert 4.34e-6 < error < 4.34e-6 * 1.1
    values = np.empty((4 + 1 + 5, 24))
    kernels.evaluate(*arrays(tape), found, samples.points, values)
    reached = np.abs((values[-1] - samples.values) * samples.weights).max()
    assert reached == pytest.approx(error, rel=1e-6)
    one, _ = kernels.fit(*arrays(tape), found, samples, 1e-9, 60)
    assert one <= error * 1.001


def test_redundant_constants_do_not_hurt(samples: kernels.Samples) -> None:
    tape = taped(lambda x: ((x * 0.33 + 1.0) / (x * -0.32 + 1.01)) * 1.1)
    error, found = kernels.fit(*arrays(tape), tape.constants, samples, math.inf, 60)
    assert error < 8.68e-4 * 1.1
    assert np.all(np.abs(found) < 1e4)


def test_double_double_has_thirty_digits() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        a, b = (10 ** rng.uniform(-8, 8, 2) * rng.choice([-1, 1], 2)).tolist()
        a_low, b_low = a * 2.0**-54 * rng.uniform(-1, 1), b * 2.0**-54 * rng.uniform(-1, 1)
        x, y = Fraction(a) + Fraction(a_low), Fraction(b) + Fraction(b_low)
        for operation, true, scale in (
            (double_double.add, x + y, max(abs(x), abs(y)) * 2**20),
            (double_double.multiply, x * y, 0),
            (double_double.divide, x / y, 0),
        ):
            high, low = operation(a, a_low, b, b_low)
            error = abs(Fraction(high) + Fraction(low) - true)
            assert error <= Fraction(1, 2**100) * max(abs(true), scale * Fraction(1, 2**24))
        high, low = double_double.square_root(abs(a), math.copysign(a_low, a * a_low))
        square = (Fraction(high) + Fraction(low)) ** 2
        assert abs(square / abs(Fraction(abs(a)) + Fraction(math.copysign(a_low, a * a_low))) - 1) < Fraction(1, 2**98)  # fmt: skip  # noqa: E501


def test_refine_goes_below_double_precision(samples: kernels.Samples) -> None:
    """A coth doubled twice and squared: 9.1e-17 at best; what refine says is checked in balls."""
    s = math.log(2) / 8
    b = Builder()
    y: Node = b.x + 12 / s**2 / b.x
    for k in range(2):
        y = y + (6 / s * 2**k) ** 2 / y
    y = 48 / s / (y - 24 / s) + 1.0
    tape = Tape.from_program(b.program(y * y))
    error, high, low = double_double.refine(*arrays(tape), tape.constants, np.zeros(6), samples, 60)
    assert 9.1e-17 < error < 9.1e-17 * 1.3
    with ctx.workprec(400):
        curve = Curve(EXP2, tape.program())
        constants = [exact(Fraction(h) + Fraction(r)) for h, r in zip(high, low, strict=True)]
        points = [curve.sample(exact(Fraction(x))) for x in samples.points.tolist()]
        true = largest([curve.error(constants, point) for point in points])
    assert error == pytest.approx(float(true), rel=1e-6)
    fine = double_double.worst(*arrays(tape), high, low, samples)
    assert error * 0.9 < fine < error * 1.2


def test_poles_are_found_and_removable_singularities_are_none() -> None:
    function = Function("exp(x)", ("-1", "1"), error="absolute")
    samples = kernels.target(function, points=16)
    pole = taped(lambda x: x + 1.0 + 1e-14 / (x - 0.1234567))
    removable = taped(lambda x: 3.0 / (x + 3.0 / x))
    errors = [
        double_double.worst(*arrays(tape), tape.constants, np.zeros_like(tape.constants), samples)
        for tape in (pole, removable)
    ]
    assert errors[0] == math.inf
    assert errors[1] < 3


def test_plain_numpy_does_the_same(samples: kernels.Samples) -> None:
    code = (
        "import numpy as np; np.seterr(all='ignore')\n"
        "from nearly.functions.discovery import kernels, double_double, tape\n"
        "from nearly.functions.function import Function\n"
        "from nearly.functions.program import Builder\n"
        "samples = kernels.target(Function('exp2', ('0', '1')), points=24)\n"
        "b = Builder(); y = b.program(34.6 / ((b.x + 100.0 / b.x) - 17.3) + 1.0)\n"
        "t = tape.Tape.from_program(y)\n"
        "s = t.operations, t.left, t.right\n"
        "e, c = kernels.fit(*s, t.constants, samples, np.inf, 4)\n"
        "r = double_double.refine(*s, c, np.zeros(4), samples, 2)\n"
        "print(e.hex(), r[0].hex(), [v.hex() for v in [*r[1], *r[2]]], t.canonical().digest)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},
    )
    tape = taped(coth)
    error, found = kernels.fit(*arrays(tape), tape.constants, samples, math.inf, 4)
    best, high, low = double_double.refine(*arrays(tape), found, np.zeros(4), samples, 2)
    digits = [float(v).hex() for v in [*high, *low]]
    expected = f"{float(error).hex()} {float(best).hex()} {digits} {tape.canonical().digest}"
    assert out.stdout.strip() == expected


def test_errors_name_the_remedy() -> None:
    with pytest.raises(InputError, match="give error='relative'"):
        kernels.target(Function("exp2", ("0", "1"), "float32", "ulp"))
    with pytest.raises(InputError, match="give error='absolute'"):
        kernels.target(Function("0*x", ("0", "1")))
