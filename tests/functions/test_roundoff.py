"""The rounding bound holds for what programs compute, and is not absurdly loose."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from random import Random
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearly.functions.builders import minimax
from nearly.functions.formats import FORMATS
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program
from nearly.functions.proof import _Rounding, prove
from nearly.functions.reduction import reduction
from nearly.functions.roundoff.analysis import analyse
from nearly.functions.roundoff.specialise import specialise
from nearly.functions.verify import measure

SINGLE = FORMATS["float32"]

EXACT: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
    "neg": lambda a: -a,
    "abs": abs,
}


def in_exact_arithmetic(program: Program, x: float) -> Fraction:
    return program.run(Fraction(x), EXACT, lambda v: Fraction(v))


def contracted(program: Program, x: float, choice: Callable[[], bool]) -> Fraction:
    """The program with each product rounded, or not, before it is added: as a compiler likes."""

    def rounded(v: Any) -> Fraction:
        return SINGLE.round(v[0]) if isinstance(v, tuple) else v  # a pending product

    def summand(v: Any) -> Fraction:
        return v[0] if isinstance(v, tuple) and choice() else rounded(v)

    arithmetic = {
        "add": lambda a, b: SINGLE.round(summand(a) + rounded(b)),
        "sub": lambda a, b: SINGLE.round(rounded(a) - summand(b)),
        "mul": lambda a, b: (rounded(a) * rounded(b),),
        "div": lambda a, b: SINGLE.round(rounded(a) / rounded(b)),
        "neg": lambda a: -rounded(a),
    }
    return rounded(program.run(Fraction(x), arithmetic, lambda v: Fraction(v)))


def random_program(seed: int, operations: tuple[str, ...]) -> Program:
    """Up to eight operations on x, constants of either sign and earlier results."""
    rng, b = Random(seed), Builder("float32")
    values: list[Any] = [b.x]
    for _ in range(rng.randint(1, 8)):
        name = rng.choice(operations)
        operands = [
            rng.choice(values) if rng.random() < 0.6 else Fraction(rng.uniform(-4, 4))
            for _ in range({"neg": 0, "abs": 0, "fma": 2}.get(name, 1))
        ]
        values.append(b.apply(name, rng.choice(values), *operands))
    return b.program(values[-1])


points = st.floats(2**-6, 16, width=32)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**40), points, st.integers(0, 6))
def test_bound_holds_for_the_program_as_written(seed: int, x: float, spread: int) -> None:
    program = random_program(seed, ("add", "sub", "mul", "div", "fma", "neg", "abs"))
    ends = np.array([x]), np.array([np.float32(x * (1 + 2.0**-spread))], np.float64)
    analysis = analyse(program, SINGLE, *ends, {}, False)
    if analysis.undecided[0] >= 0:  # a denominator may vanish, a sign is open
        return
    for point in np.linspace(*ends, 5).ravel().astype(np.float32):
        inside = float(min(max(point, ends[0][0]), ends[1][0]))
        difference = Fraction(float(program(np.float32(inside)))) - in_exact_arithmetic(
            program, inside
        )
        assert abs(difference) <= Fraction(float(analysis.rounding[0]))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**40), points)
def test_bound_holds_for_any_contraction(seed: int, x: float) -> None:
    program, random = random_program(seed, ("add", "sub", "mul", "div", "neg")), Random(seed)
    ends = np.array([x]), np.array([x])
    analysis = analyse(program, SINGLE, *ends, {}, True)
    if analysis.undecided[0] >= 0:
        return
    exact = in_exact_arithmetic(program, x)
    for _ in range(4):
        value = contracted(program, x, lambda: random.random() < 0.5)
        assert abs(value - exact) <= Fraction(float(analysis.rounding[0]))


def horner(dtype: str, degree: int) -> Program:
    b = Builder(dtype)
    y: Any = b.constant(Fraction(0))
    with mpmath.workdps(40):
        for i in range(degree, -1, -1):
            coefficient = mpmath.log(2) ** i / mpmath.factorial(i)
            y = b.fma(y, b.x, Fraction(mpmath.nstr(coefficient, 35)))
    return b.program(y)


@pytest.mark.parametrize(
    ("dtype", "degree", "domain"),
    [("float32", 9, ("0", "1")), ("float32", 8, ("-1/2", "1/2")), ("float64", 17, ("0", "1"))],
)
def test_horner_is_bounded_within_a_third(dtype: str, degree: int, domain: Any) -> None:
    function = Function("exp2", domain, dtype, "ulp")
    program = horner(dtype, degree)
    proof = prove(function, program)
    measured = measure(function, program).error
    assert measured <= proof.total <= 1.34 * measured
    assert proof.ulp == proof.total
    assert proof.total <= (proof.approximation + proof.rounding) * (1 + 1e-15)
    assert prove(function, program, contraction="any").total >= proof.total


def test_relative_bound_covers_the_storage_rounding_of_16_bits() -> None:
    function = Function("exp2", ("0", "1"), "bfloat16", "relative")
    program = horner("bfloat16", 6)
    proof = prove(function, program)
    assert 2.0**-9 * 0.99 < measure(function, program).error <= proof.total < 2.0**-8 * 1.01


def test_cody_waite_reduction_is_recognised_as_exact() -> None:
    b = Builder("float32")
    k = b.round(b.x * Fraction(1.4426950408889634))
    program = b.program(b.x - k * Fraction(0.69314575))  # 15 bits of log 2 times a small integer
    lo = np.array([10.0])
    analysis = analyse(program, SINGLE, lo, lo, {}, False)
    assert analysis.undecided[0] < 0
    assert analysis.rounding[0] == 0


def test_product_that_is_not_short_is_not_called_exact() -> None:
    b = Builder("float32")
    program = b.program(b.x * Fraction(0.1))
    x = np.array([1.1], np.float32).astype(np.float64)
    assert analyse(program, SINGLE, x, x, {}, False).rounding[0] > 0


# Degrees are small on purpose: what is tested is the rounding, not how good the cores are.
@pytest.mark.parametrize(
    ("name", "dial"),
    [
        ("exp", 3),
        ("tanh", 3),
        pytest.param("log2", 4, marks=pytest.mark.slow),
        pytest.param("erf", 5, marks=pytest.mark.slow),
    ],
)
def test_whole_format_programs_stay_within_their_bound(name: str, dial: int) -> None:
    """Each computed value lies within the bound of its interval's real program."""
    function = Function(name, ("-inf", "inf"), "float32", "ulp")
    reduced = reduction(function)
    assert reduced is not None
    program = reduced.wrap(*(minimax(core, dial) for core in reduced.cores))
    rows = _Rounding(function, program, False).run()
    random = np.random.default_rng(3)
    chosen = random.choice(np.flatnonzero(~rows.infinite), 400, replace=False)
    for row in chosen.tolist():
        real = specialise(program, rows.choices[row], SINGLE)
        assert real is not None
        x = np.float32(random.uniform(rows.lo[row], rows.hi[row]))
        x = float(min(max(float(x), rows.lo[row]), rows.hi[row]))
        difference = Fraction(float(program(np.float32(x)))) - in_exact_arithmetic(real, x)
        # Where a boundary was crossed by rounding, neighbouring intervals hold either program.
        covering = np.flatnonzero((rows.lo <= x) & (x <= rows.hi))
        if covering.size == 1:
            assert abs(difference) <= Fraction(float(rows.rounding[row])), x
