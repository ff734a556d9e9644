"""lgamma and digamma over float32: relative accuracy, near zeros absolute; poles, infinities."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import scipy.special

from nearly.functions.builders import minimax
from nearly.functions.formats import FORMATS
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.reduction import reduction

INF, NAN = math.inf, math.nan
FORM = FORMATS["float32"]
DEGREES = {"lgamma": (12, 10, 8, 4, 5), "digamma": (11, 5, 8, 5, 7)}
TRUTH = {"lgamma": scipy.special.gammaln, "digamma": scipy.special.digamma}
# Where the truth is smaller, near zeros on the left, the error is that of a number of this size.
FLOOR = {"lgamma": 4.0, "digamma": 2.0}
SPECIAL = {
    "lgamma": [
        *[(0.0, INF), (-0.0, INF), (1.0, 0.0), (2.0, 0.0), (-3.0, INF), (-1e9, INF)],
        *[(INF, INF), (-INF, INF), (4.1e36, INF), (NAN, NAN)],
    ],
    "digamma": [
        *[(0.0, -INF), (-0.0, -INF), (-3.0, NAN), (-1e9, NAN), (INF, INF), (-INF, NAN)],
        *[(1e-45, -INF), (-1e-45, INF), (NAN, NAN)],
    ],
}


@functools.cache
def whole(name: str) -> Program:
    found = reduction(Function(name, ("-inf", "inf"), "float32", "ulp"))
    assert found is not None
    return found.wrap(*map(minimax, found.cores, DEGREES[name]))


def errors(name: str, x: np.ndarray, y: np.ndarray, floor: float) -> np.ndarray:
    """In ULP of the truth, or of `floor` where the truth is smaller."""
    truth = TRUTH[name](x.astype(np.float64))
    return np.abs(y - truth) / FORM.ulps(np.maximum(np.abs(truth), floor))


def points() -> np.ndarray:
    random = np.random.default_rng(5)
    sizes = [random.uniform(0, 4, 4000), random.uniform(4, 60, 2000), random.uniform(1, 2, 2000)]
    powers = 2.0 ** random.uniform(-126, 100, 2000)
    return np.concatenate([*sizes, powers]).astype(np.float32)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "digamma" else n for n in DEGREES]
)
@pytest.mark.parametrize("fused", [True, False])
def test_on_both_sides_of_zero(name, fused):
    program = whole(name) if fused else whole(name).unfused()
    x = points()
    assert errors(name, x, program(x), 2.0**-4).max() <= 2
    left = -x[x < 1e6]
    left = left[left != np.rint(left)]
    assert errors(name, left, program(left), FLOOR[name]).max() <= 2


def test_the_error_of_lgamma_is_relative_at_one_and_two():
    near = 1 + np.concatenate([[-1, 1]] * 20) * np.repeat(2.0 ** -np.arange(2, 22), 2)
    for x in (near.astype(np.float32), (near + 1).astype(np.float32)):
        assert errors("lgamma", x, whole("lgamma")(x), 0.0).max() <= 2


def test_reflection():
    x = np.random.default_rng(1).uniform(0.01, 0.49, 500).astype(np.float32)
    program = whole("digamma")
    difference = program(1 - x).astype(float) - program(x)
    one_less = (1 - x).astype(float)  # rounded, and so is its function's argument
    expected = math.pi / np.tan(math.pi * x) + (one_less - 1 + x) * 2
    np.testing.assert_allclose(difference, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name):
    given, wanted = (np.array(column, np.float32) for column in zip(*SPECIAL[name], strict=True))
    for program in (whole(name), whole(name).unfused()):
        np.testing.assert_array_equal(program(given), wanted)


@pytest.mark.parametrize("name", DEGREES)
def test_under_xla(name):
    """Subnormal numbers have logarithms, and some of them reciprocals."""
    jax = pytest.importorskip("jax")
    from nearly.functions.emit_jax import to_jax

    given = np.array([2.0**-126, 2.0**-127, 1.5 * 2.0**-128, 0.7, 3.3, 40.0], np.float32)
    x = np.concatenate([given, -given[:5]])
    function = jax.jit(to_jax(whole(name)))
    given, wanted = (np.array(column, np.float32) for column in zip(*SPECIAL[name], strict=True))
    np.testing.assert_array_equal(np.asarray(function(given)), wanted)
    y = np.asarray(function(x))
    assert errors(name, x, y, FLOOR[name]).max() <= 2
