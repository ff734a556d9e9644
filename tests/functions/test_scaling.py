"""Argument scaling: the composed error is the least there is, and alternates."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from flint import arb, ctx, fmpq

from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.polynomial import minimax
from nearly.functions.scaling import IDENTITIES, parsed, scaling

DOMAINS = {"sin": ("0", "pi/2"), "cos": ("0", "1"), "tan": ("0", "pi/4"), "sinh": ("-1", "1")}
DEGREES = {"cos": 4, "cosh": 4, "sin": 3, "sinh": 3, "tan": 3, "tanh": 3}


def errors(function: Function, program, count: int = 1500) -> list[float]:
    """Signed errors in the function's measure, on points close at the ends, in 256-bit balls."""
    low, high = function.interval
    found = []
    with ctx.workprec(256):
        for i in range(count + 1):
            x = low + (high - low) * Fraction(float(np.sin(np.pi * i / (2 * count)) ** 2))
            truth = function.oracle.at(x, 200)
            if truth.is_zero():
                continue
            y = program.run(arb(fmpq(x.numerator, x.denominator)), BALLS, constant)
            scale = truth if function.error == "relative" else arb(1)
            found.append(float((y - truth) / scale))
    return found


BALLS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def constant(value: Fraction) -> arb:
    return arb(fmpq(value.numerator, value.denominator))


def alternations(values: list[float]) -> int:
    """How many extrema of alternating sign come within a thousandth of the largest."""
    level = 0.999 * max(map(abs, values))
    signs = [v > 0 for v in values if abs(v) > level]
    return 1 + sum(a != b for a, b in pairwise(signs))


@pytest.mark.parametrize("name", sorted(IDENTITIES))
@pytest.mark.parametrize("steps", [1, 2])
def test_the_composed_error_alternates_as_often_as_the_best_must(name, steps):
    degree = DEGREES.get(name, 2)
    function = Function(name, DOMAINS.get(name, ("0", "1")))
    program = scaling(function, f"{degree}^{steps}")
    free = {"expm1": 2, "cos": 2, "cosh": 2, "sin": 2, "sinh": 2, "tan": 2, "tanh": 2}.get(name, 3)
    extrema = free + 1
    if name == "sinh":
        extrema = 2 * extrema - 1  # an even error on a symmetric domain, with one extremum at 0
    assert alternations(errors(function, program)) >= extrema


def test_the_absolute_error_is_levelled_too():
    function = Function("cos", ("0", "2"), error="absolute")  # through the zero at pi/2
    assert alternations(errors(function, scaling(function, "4^1"))) >= 3


@pytest.mark.parametrize(("degree", "steps"), [(2, 1), (3, 2), (4, 3)])
def test_squaring_has_the_error_that_theory_gives(degree, steps):
    """Scaled by s, p with a relative error up to E has (s(1 + E))^n - 1 = 1 - (s(1 - E))^n."""
    n = 2**steps
    function = Function("exp2", ("0", "1"))
    inner = float(minimax(Function("exp2", ("0", f"1/{n}")), degree).error)
    above, below = (1 + inner) ** n, (1 - inner) ** n
    composed = (above - below) / (above + below)
    found = max(map(abs, errors(function, scaling(function, f"{degree}^{steps}"))))
    assert found == pytest.approx(composed, rel=1e-4)


def test_operations():
    function = Function("exp2", ("0", "1"))
    assert scaling(function, "3^2").cost.ops == 2 * 3 + 2
    cosine = Function("cos", ("0", "1"))
    assert scaling(cosine, "4^2").cost.ops == 4 + 2 * 2 + 2  # x^2 (a + b x^2); u (4 - u); 1 - u/2


def test_cosine_in_float32_does_not_lose_what_squarings_of_exp_do():
    x = np.linspace(0, 1, 20001, dtype=np.float32)
    function = Function("cos", ("0", "1"), "float32", "ulp")
    y = scaling(function, "6^2")(x)
    truth = np.cos(x.astype(np.float64))
    assert y.dtype == np.float32
    assert np.abs((y - truth) / function.format.ulps(truth)).max() < 2


def test_exp_in_float32():
    x = np.linspace(0, 1, 20001, dtype=np.float32)
    function = Function("exp", ("0", "1"), "float32", "relative")
    y = scaling(function, "5^1")(x)
    assert np.abs(y / np.exp(x.astype(np.float64)) - 1).max() < 2.0**-21


def test_dials():
    function = Function("tanh", ("0", "1"))
    dials = scaling.dials(function)
    assert dials
    costs = [scaling(function, d).cost.weighted for d in dials[:4]]
    assert all(parsed(d) for d in dials)
    assert costs[0] <= costs[-1]
    assert scaling.dials(Function("erf", ("0", "1"))) == []


def test_input_errors():
    with pytest.raises(InputError, match="no scaling identity is known for 'erf'"):
        scaling(Function("erf", ("0", "1")), "3^1")
    function = Function("exp2", ("0", "1"))
    for dial in ("3", "3^0", "x^2", "3^99"):
        with pytest.raises(InputError, match="as '3\\^2'"):
            scaling(function, dial)
    with pytest.raises(InputError, match="degree 1: what is scaled for cos has degree 2 at least"):
        scaling(Function("cos", ("0", "1")), "1^1")
    with pytest.raises(InputError, match="zeros away from 0"):
        scaling(Function("cos", ("0", "2")), "4^1")
