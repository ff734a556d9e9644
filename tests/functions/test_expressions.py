"""Expressions are read exactly, refused clearly, and never run."""

from __future__ import annotations

import contextlib
import math
from fractions import Fraction

import mpmath
import pytest
from flint import arb, ctx
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nearly.core.errors import InputError, UnknownName
from nearly.functions.balls import to_fraction
from nearly.functions.expressions import constant_number, parse, parse_constant
from nearly.functions.named import ELEMENTARY


@pytest.mark.parametrize(
    ("text", "x", "truth"),
    [
        ("x", 0.3, 0.3),
        ("2*x**3 - x/4 + 1", 0.5, 2 * 0.125 - 0.125 + 1),
        ("-x**2", 3.0, -9.0),
        ("2**-1*x", 3.0, 1.5),
        ("x^2", 3.0, 9.0),
        ("x**0.5", 2.25, 1.5),
        ("x**(-3/2)", 4.0, 0.125),
        ("2**x", 3.0, 8.0),
        ("x**x", 3.0, 27.0),
        ("pow(x, 3)", 2.0, 8.0),
        ("exp(sin(pi*x))", 0.5, math.e),
        ("ln(e*x)", 1.0, 1.0),
        ("arctan(x)", 1.0, math.pi / 4),
        ("x**2000", 1.0, 1.0),
        (" ( x + 1e-1 ) ", 0.5, 0.6),
        ("+x - -x", 2.0, 4.0),
        ("(x/2)/(3/x)", 6.0, 6.0),
    ],
)
def test_values(text, x, truth):
    assert abs(float(parse(text).at(Fraction(x))) - truth) < 1e-14


def test_numbers_are_decimal_not_binary():
    assert constant_number("0.1") == Fraction(1, 10)
    assert constant_number("1e-3 + 1/3") == Fraction(1, 1000) + Fraction(1, 3)
    assert constant_number("2**-10") == Fraction(1, 1024)
    assert constant_number("pi") is None
    assert constant_number("x") is None
    # x + 0.1 at 0 is a tenth to the last bit, not the float64 0.1
    ball = parse("x + 0.1").at(Fraction(0), 200)
    assert abs(to_fraction(ball) - Fraction(1, 10)) < Fraction(1, 10**55)


def test_a_composition_agrees_with_mpmath():
    f = parse("exp(-x**2/2)*erf(x)/(1 + log1p(x)**2)")
    with mpmath.workdps(50):
        x = mpmath.mpf(0.75)
        truth = mpmath.exp(-(x**2) / 2) * mpmath.erf(x) / (1 + mpmath.log1p(x) ** 2)
    ball = f.at(Fraction(3, 4), 140)
    assert ball.overlaps(arb(mpmath.nstr(truth, 45)) + arb(0, 1e-40))
    with mpmath.workdps(40):
        slope = mpmath.diff(
            lambda t: mpmath.exp(-(t**2) / 2) * mpmath.erf(t) / (1 + mpmath.log1p(t) ** 2), 0.75
        )
    with ctx.workprec(150):
        assert abs(f.taylor(arb(0.75), 3)[1] - arb(mpmath.nstr(slope, 25))) < 1e-20


@pytest.mark.parametrize(
    ("text", "parity"),
    [
        ("x", "odd"),
        ("sin(x)/x", "even"),
        ("x*cos(x) + x**3", "odd"),
        ("exp(x**2)", "even"),
        ("x + 1", None),
        ("tanh(sin(x))", "odd"),
        ("abs(x)**0.5", "even"),
        ("x**-3", "odd"),
        ("sqrt(x)", None),
        ("1/tan(x) - 1/x", "odd"),
        ("cosh(2*x) - 3", "even"),
        ("cos(x + x**2)", None),
    ],
)
def test_parity(text, parity):
    assert parse(text).parity == parity


def test_a_name_alone_is_the_named_function():
    assert parse("exp2") is ELEMENTARY["exp2"]
    assert parse(" arcsin ") is ELEMENTARY["asin"]


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("pi/4", math.pi / 4),
        ("log(2)/2", math.log(2) / 2),
        ("-sqrt(2)", -math.sqrt(2)),
        ("1e4", 1e4),
        ("-inf", -math.inf),
        (" +Infinity", math.inf),
    ],
)
def test_constants(text, truth):
    with ctx.workprec(100):
        assert float(parse_constant(text)()) == pytest.approx(truth, rel=1e-15)


def test_a_constant_follows_the_working_precision():
    pi = parse_constant("pi/4")
    with ctx.workprec(400):
        assert pi().rel_accuracy_bits() > 380


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("log(x", "never closed"),
        ("x +", "invalid syntax at its end"),
        ("x +* 2", r"character 4"),
        ("sinn(x)", "did you mean 'sin'"),
        ("y + 1", "variable is x"),
        ("sin + x", "needs an argument"),
        ("sin(x, x)", "takes one argument"),
        ("sin(x=2)", "takes one argument"),
        ("x.real", "attribute is not allowed"),
        ("[x]", "list is not allowed"),
        ("'a'*x", "not a decimal"),
        ("0x10*x", "not a decimal"),
        ("True*x", "not a decimal"),
        ("1j*x", "not a decimal"),
        ("x/0", "division by zero"),
        ("0**-1 + x", "zero to a power"),
        ("x % 2", "operator mod"),
        ("x if x else 1", "ifexp"),
        ("lambda: x", "lambda"),
        ("(x:=3)", "namedexpr"),
        ("__import__('os')", "unknown function"),
        ("1e999999999*x", "exponent is beyond"),
        ("x(x + 1)", "for a product"),
        ("sin(x)(x)", "only named functions"),
        ("inf*x", "no number"),
        ("x" * 2000, "characters"),
        ("(" * 300 + "x" + ")" * 300, "nested|parenthes"),
        ("-" * 990 + "x", "nested"),
    ],
)
def test_errors(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_unknown_names_carry_the_near_ones():
    with pytest.raises(UnknownName) as caught:
        parse("bessel_j(x)")
    assert "bessel_j0" in caught.value.close


@pytest.mark.parametrize("text", ["x", "1/0", "log(-1)", "1/(1-1)", "nan", "tan(pi/2)"])
def test_what_is_no_constant(text):
    with pytest.raises(InputError):
        parse_constant(text)


TOKENS = [
    *"xxx+-*/()(),.0123^=:;[]{}'\"#@%!~é",
    *["**", "0.5", "1e3", "1e-9", "pi", "e", "inf"],
    *[
        "sin",
        "log1p",
        "sqrt",
        "pow",
        "lambda",
        "not",
        "if",
        "0x1",
        "1j",
        "exp(",
        "tan(x)",
        "\n",
        "\0",
        " ",
    ],
]


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(TOKENS), max_size=12).map("".join), st.text(max_size=30)))
@example("9**9**9**9")
@example("x**-0")
@example("0**0")
@example("1/(x-x)")
@example("(x-x)/(x-x)")
def test_the_parser_raises_nothing_but_input_errors(text):
    for read in (parse, parse_constant):
        with contextlib.suppress(InputError):
            read(text)


SHAPES = st.recursive(
    st.sampled_from(["x", "1", "0", "2", "0.5", "pi", "-3"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "**"]), inner).map(
            lambda t: f"({t[0]}){t[1]}({t[2]})"
        ),
        st.tuples(st.sampled_from(["sin", "exp", "log", "sqrt", "tanh", "abs"]), inner).map(
            lambda t: f"{t[0]}({t[1]})"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.sampled_from([-1.5, 0.0, 0.3, 2.0]))
def test_well_formed_expressions_have_sound_enclosures(text, x):
    """The value over a ball contains the value at a point of it, and mpmath agrees."""
    try:
        f = parse(text)
    except InputError:
        return
    with ctx.workprec(200):
        point = f.value(arb(x))
        wide = f.value(arb(x - 0.01, 0.02))
        if wide.is_finite() and point.is_finite():
            assert wide.contains(point.mid()) or wide.overlaps(point)
        if point.is_finite() and point.rel_accuracy_bits() > 100:
            with mpmath.workdps(60):
                truth = _mpmath(text, x)
            if truth is not None:
                distance = abs(point - arb(mpmath.nstr(truth, 50)))
                assert distance <= abs(point) * 1e-20 + 1e-20


def _mpmath(text: str, x: float) -> mpmath.mpf | None:
    names = {n: getattr(mpmath, n) for n in ("sin", "exp", "log", "sqrt", "tanh", "pi")}
    scope = {**names, "x": mpmath.mpf(x), "abs": abs, "mpf": mpmath.mpf, "__builtins__": {}}
    for number in ("0.5", "2", "3", "1", "0"):
        text = text.replace(f"({number})", f"(mpf('{number}'))")
        text = text.replace(f"(-{number})", f"(-mpf('{number}'))")
    try:
        result = eval(text, scope)  # our own generated text, as an independent reading of it
    except (ZeroDivisionError, ValueError, OverflowError, TypeError):
        return None
    return (
        mpmath.mpf(result) if isinstance(result, mpmath.mpf) and mpmath.isfinite(result) else None
    )
