"""Oracles against mpmath (an independent implementation), and the promises of an enclosure."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from flint import arb, arb_series, ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from nearly.core.errors import NotProven
from nearly.functions.balls import compose, to_fraction
from nearly.functions.expressions import parse
from nearly.functions.named import ELEMENTARY
from nearly.functions.oracle import Oracle

mp = mpmath.mp

# name -> (mpmath's function, an interval inside its domain)
REFERENCES = {
    "exp": (mpmath.exp, (-5, 5)),
    "exp2": (lambda x: mpmath.power(2, x), (-5, 5)),
    "exp10": (lambda x: mpmath.power(10, x), (-3, 3)),
    "expm1": (mpmath.expm1, (-2, 2)),
    "log": (mpmath.log, (0.01, 9)),
    "log2": (lambda x: mpmath.log(x) / mpmath.log(2), (0.01, 9)),
    "log10": (lambda x: mpmath.log(x) / mpmath.log(10), (0.01, 9)),
    "log1p": (mpmath.log1p, (-0.9, 5)),
    "sqrt": (mpmath.sqrt, (0.01, 9)),
    "rsqrt": (lambda x: 1 / mpmath.sqrt(x), (0.01, 9)),
    "cbrt": (lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x)), (-5, 5)),
    "sin": (mpmath.sin, (-9, 9)),
    "cos": (mpmath.cos, (-9, 9)),
    "tan": (mpmath.tan, (-1.5, 1.5)),
    "sinpi": (mpmath.sinpi, (-3, 3)),
    "cospi": (mpmath.cospi, (-3, 3)),
    "asin": (mpmath.asin, (-0.95, 0.95)),
    "acos": (mpmath.acos, (-0.95, 0.95)),
    "atan": (mpmath.atan, (-9, 9)),
    "sinh": (mpmath.sinh, (-4, 4)),
    "cosh": (mpmath.cosh, (-4, 4)),
    "tanh": (mpmath.tanh, (-9, 9)),
    "asinh": (mpmath.asinh, (-9, 9)),
    "acosh": (mpmath.acosh, (1.1, 9)),
    "atanh": (mpmath.atanh, (-0.95, 0.95)),
    "erf": (mpmath.erf, (-4, 4)),
    "erfc": (mpmath.erfc, (-4, 8)),
    "erfinv": (mpmath.erfinv, (-0.95, 0.95)),
    "gamma": (mpmath.gamma, (0.1, 6)),
    "lgamma": (lambda x: mpmath.log(abs(mpmath.gamma(x))), (-2.9, -2.1)),
    "digamma": (mpmath.digamma, (0.1, 6)),
    "bessel_j0": (lambda x: mpmath.besselj(0, x), (-9, 9)),
    "bessel_j1": (lambda x: mpmath.besselj(1, x), (-9, 9)),
    "bessel_y0": (lambda x: mpmath.bessely(0, x), (0.1, 9)),
    "bessel_i0": (lambda x: mpmath.besseli(0, x), (-9, 9)),
    "bessel_i1": (lambda x: mpmath.besseli(1, x), (-9, 9)),
    "bessel_k0": (lambda x: mpmath.besselk(0, x), (0.1, 9)),
    "airy_ai": (mpmath.airyai, (-5, 5)),
    "lambertw": (lambda x: mpmath.lambertw(x).real, (-0.3, 9)),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), (-9, 9)),
    "softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), (-9, 9)),
    "silu": (lambda x: x / (1 + mpmath.exp(-x)), (-9, 9)),
    "gelu": (lambda x: x * mpmath.ncdf(x), (-6, 6)),
    "ndtr": (mpmath.ncdf, (-6, 6)),
    "reciprocal": (lambda x: 1 / x, (0.1, 9)),
    "square": (lambda x: x * x, (-9, 9)),
    "abs": (abs, (0.1, 9)),
    "sinc": (lambda x: mpmath.sin(x) / x, (0.1, 9)),
    "sec": (mpmath.sec, (-1.5, 1.5)),
    "csc": (mpmath.csc, (0.1, 3)),
    "cot": (mpmath.cot, (0.1, 3)),
    "coth": (mpmath.coth, (0.1, 9)),
    "logit": (lambda x: mpmath.log(x / (1 - x)), (0.05, 0.95)),
    "log_sigmoid": (lambda x: -mpmath.log1p(mpmath.exp(-x)), (-9, 9)),
    "mish": (lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))), (-9, 9)),
}


def _k0_coefficient(x: mpmath.mpf, k: int) -> mpmath.mpf:
    """From K0(x) = int_0^inf exp(-x cosh t) dt; mpmath's numerical derivatives take a minute."""

    def integrand(t: mpmath.mpf) -> mpmath.mpf:
        return (-mpmath.cosh(t)) ** k * mpmath.exp(-x * mpmath.cosh(t)) / mpmath.factorial(k)

    return mpmath.quad(integrand, [0, 1, 2, 4, 8])


def reference_coefficients(name: str, x: mpmath.mpf, n: int) -> list[mpmath.mpf]:
    if name == "bessel_k0":
        return [_k0_coefficient(x, k) for k in range(n)]
    return mpmath.taylor(REFERENCES[name][0], x, n - 1)


NAMES = sorted(REFERENCES)


def test_every_named_function_has_a_reference():
    assert set(REFERENCES) == set(ELEMENTARY)


def points(name: str, count: int) -> list[Fraction]:
    low, high = REFERENCES[name][1]
    generator = random.Random(name)
    return [Fraction(generator.uniform(low, high)) for _ in range(count)]


def as_mpf(x: Fraction) -> mpmath.mpf:
    return mpmath.mpf(x.numerator) / x.denominator


def from_mpf(x: mpmath.mpf) -> arb:
    """An mpmath number exactly (flint reads its sign, mantissa and exponent)."""
    mantissa, exponent = int(x.man), int(x.exp)
    return arb(mantissa if x >= 0 else -abs(mantissa)) * arb(2) ** exponent


def assert_close(ball: arb, truth: mpmath.mpf, digits: int) -> None:
    with ctx.workprec(600):
        reference = from_mpf(truth)
        slack = abs(reference) * arb(10) ** -digits + arb(10) ** -(digits + 10)
        assert abs(ball - reference) < slack, f"{ball} is not {mpmath.nstr(truth, 30)}"


@pytest.mark.parametrize("name", NAMES)
def test_values_agree_with_mpmath_to_50_digits(name):
    reference, _ = REFERENCES[name]
    for x in points(name, 12):
        with mpmath.workdps(70):
            truth = mpmath.mpf(reference(as_mpf(x)))
        ball = ELEMENTARY[name].at(x, 180)
        assert ball.rel_accuracy_bits() >= 180
        assert_close(ball, truth, 50)


@pytest.mark.parametrize("name", NAMES)
def test_series_agree_with_mpmath(name):
    n = 4 if name == "bessel_y0" else 7  # mpmath needs seconds for more
    for x in points(name, 2):
        with mpmath.workdps(40):
            truth = reference_coefficients(name, as_mpf(x), n)
        with ctx.workprec(300):
            argument = arb_series([arb(x.numerator) / x.denominator, 1], prec=n)
            found = ELEMENTARY[name].series(argument)
        assert found.prec == n
        for k in range(n):
            # mpmath differentiates numerically: its own error is what limits the agreement.
            assert_close(found[k], mpmath.mpf(mpmath.re(truth[k])), 12)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    at=st.fractions(0, 1, max_denominator=10**6),
    inner=st.fractions(-1, 1, max_denominator=10**6),
    width=st.sampled_from([1e-9, 1e-3, 0.1, 1.0]),
)
def test_enclosures_over_wide_balls_contain_the_truth(name, at, inner, width):
    low, high = (Fraction(end) for end in REFERENCES[name][1])
    middle = Fraction(float(low + at * (high - low)))
    point = middle + inner * Fraction(width)
    f = ELEMENTARY[name]
    with ctx.workprec(100):
        ball = arb(float(middle), width * (1 + 1e-9))
        value, taylor = f.value(ball), f.taylor(ball, 5)
        if not value.is_finite():
            return  # a pole within reach
        with ctx.workprec(250):
            inside = arb(point.numerator) / point.denominator
            assert ball.contains(inside)
            exact = f.coefficients(inside, 5)
            assert value.contains(exact[0].mid())
            for k in range(5):
                assert not taylor[k].is_finite() or taylor[k].contains(exact[k].mid()), k


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"abs", "square"}))
def test_enclosures_are_tight_over_balls_of_width_a_thousandth(name):
    """The radius of the 10th coefficient is near what the next coefficient explains."""
    x, radius = points(name, 1)[0], 5e-4
    f = ELEMENTARY[name]
    with ctx.workprec(200):
        at = arb(x.numerator) / x.denominator
        near = f.coefficients(at.mid(), 14)
        wide = f.taylor(arb(at.mid(), radius), 11)[10]
        explained = sum(
            (abs(near[10 + j]) * math.comb(10 + j, j) * arb(radius) ** j for j in range(1, 4)),
            arb(0),
        )
        assert wide.rad() < 1.5 * explained + abs(near[10]) * 1e-6


def test_a_removable_singularity_has_values():
    for text, limit in [
        ("log1p(x)/x", 1),
        ("sin(x)/x", 1),
        ("expm1(x)/x", 1),
        ("(1-cos(x))/x**2", Fraction(1, 2)),
        ("(exp(x)-1)/sin(x)", 1),
        ("1/tan(x) - 1/x", 0),
        ("sinh(x)*x**-1", 1),
        ("-1/x + 1/tanh(x)", 0),
    ]:
        f = parse(text)
        with ctx.workprec(150):
            assert f.value(arb(0)).contains(arb(limit.numerator) / limit.denominator)
            ball = f.value(arb(0, 1e-3))
            assert ball.rad() < 4e-3, text
            assert ball.contains(arb(limit.numerator) / limit.denominator)


def test_the_series_of_a_removable_singularity_is_known_in_closed_form():
    # log(1+x)/x = sum (-x)^k/(k+1)
    f = parse("log1p(x)/x")
    with ctx.workprec(150):
        exact = f.series(arb_series([0, 1], prec=12))
        wide = f.series(arb_series([arb(0, 1e-3), 1], prec=12))
        beside = f.series(arb_series([arb(2e-3, 1e-3), 1], prec=12))
        for k in range(12):
            truth = arb((-1) ** k) / (k + 1)
            assert exact[k].contains(truth)
            assert exact[k].rad() < 1e-40
            assert wide[k].contains(truth)
            assert wide[k].rad() < 0.05
            assert beside[k].is_finite()
            assert beside[k].rad() < 0.05


def test_a_removable_singularity_elsewhere():
    # log(x)/(x-1) at 1 is 1, and 1 - (x-1)/2 + ... around it
    f = parse("log(x)/(x-1)")
    assert f.at(1).contains(1)
    with ctx.workprec(100):
        assert f.taylor(arb(1), 2)[1].contains(arb(-1) / 2)
        assert f.value(arb(1, 1e-4)).rad() < 1e-3


def test_near_a_removable_singularity_the_digits_are_certain():
    ball = parse("(1-cos(x))/x**2").at(Fraction(1, 10**40), 100)
    assert ball.contains(arb(1) / 2) or abs(ball - arb(1) / 2) < arb(10) ** -70
    assert ball.rel_accuracy_bits() >= 100


def test_a_pole_is_not_cancelled():
    with ctx.workprec(100):
        assert not parse("cos(x)/x").value(arb(0)).is_finite()
        assert not parse("cos(x)/x").value(arb(0, 1e-3)).is_finite()


def test_series_lifts_the_cap_of_flint_and_restores_it():
    before = ctx.cap
    found = ELEMENTARY["tanh"].series(arb_series([arb(0.5), 1], prec=40))
    assert found.prec == 40
    assert found[39] != 0
    assert ctx.cap == before


def test_series_composes():
    # exp(sin t) = 1 + t + t^2/2 - t^4/8 - t^5/15 - ...
    with ctx.workprec(150):
        inner = ELEMENTARY["sin"].series(arb_series([0, 1], prec=6))
        outer = ELEMENTARY["exp"].series(inner)
        expected = [Fraction(1), Fraction(1), Fraction(1, 2), 0, Fraction(-1, 8), Fraction(-1, 15)]
        for k, c in enumerate(map(Fraction, expected)):
            assert abs(outer[k] - arb(c.numerator) / c.denominator) < arb(10) ** -40


def test_composition_with_a_scaled_argument():
    s = compose([arb(1), arb(2), arb(3)], arb_series([5, 10], prec=3))
    assert [int(s[k].unique_fmpz()) for k in range(3)] == [1, 20, 300]


def test_at_raises_where_there_is_no_value():
    for text, x in [("log", 0), ("log", -1), ("1/x", 0), ("sqrt", -1), ("gamma", -2)]:
        with pytest.raises(NotProven, match=r"x = "):
            parse(text).at(Fraction(x), 60)


def test_at_copes_with_huge_and_tiny_values():
    assert ELEMENTARY["exp"].at(Fraction(10**30)) > arb(2) ** 4096
    assert abs(ELEMENTARY["exp"].at(Fraction(-(10**300)))) < arb(2) ** -4096
    assert ELEMENTARY["exp"].at(Fraction(0)) == 1
    assert ELEMENTARY["softplus"].at(Fraction(10**300), 100).overlaps(arb(10) ** 300)


def test_a_zero_that_cannot_be_decided_is_a_tiny_ball():
    ball = parse("sin(x)**2 + cos(x)**2 - 1").at(Fraction(1), 60)
    assert ball.contains(0)
    assert abs(ball) < arb(2) ** -4000


def test_exact_zeros_are_exact():
    for name, x in [("log2", 1), ("log10", 1), ("lgamma", 2), ("sin", 0), ("tanh", 0), ("gelu", 0)]:
        assert ELEMENTARY[name].at(Fraction(x)).is_zero(), name


def test_exact_values_of_logarithms():
    assert ELEMENTARY["log2"].value(arb(2) ** -5) == -5
    assert ELEMENTARY["log10"].value(arb(1000)) == 3
    assert not ELEMENTARY["log10"].value(arb(1001)).is_exact()


def test_functions_reach_the_end_of_their_domain():
    with ctx.workprec(80):
        for name, ball, ends in [
            ("sqrt", arb(0.5, 0.5), (0, 1)),
            ("asin", arb(0.5, 0.5), (0, math.pi / 2 - 1e-9)),
            ("acosh", arb(1.5, 0.5), (0, 1.31)),
        ]:
            value = ELEMENTARY[name].value(ball)
            assert all(value.contains(arb(end)) for end in ends), name
        assert not ELEMENTARY["sqrt"].value(arb(0.5, 0.6)).is_finite()


def test_table_is_correctly_rounded_with_a_rest():
    x = np.random.default_rng(0).uniform(0.1, 1.5, 300)
    high, low = ELEMENTARY["lgamma"].table(x)
    with mpmath.workdps(60):
        truth = [mpmath.loggamma(mpmath.mpf(t)) for t in x.tolist()]
        rounded = np.array([float(t) for t in truth])
        rest = np.array([float(t - r) for t, r in zip(truth, rounded.tolist(), strict=True)])
    np.testing.assert_array_equal(high, rounded)
    np.testing.assert_allclose(low, rest, rtol=1e-12, atol=1e-40)


def test_table_knows_infinities_poles_and_undefined_points():
    x = np.array([[-1.0, 0.0, np.inf], [-np.inf, np.nan, 1e300]])
    high, low = ELEMENTARY["log"].table(x)
    np.testing.assert_array_equal(
        high, [[np.nan, -np.inf, np.inf], [np.nan, np.nan, math.log(1e300)]]
    )
    assert low[0, 1] == 0
    np.testing.assert_array_equal(
        ELEMENTARY["exp"].table(np.array([-np.inf, -1e5, 1e5, np.inf]))[0], [0, 0, np.inf, np.inf]
    )


def test_table_is_right_where_the_truth_is_subnormal():
    x = np.array([-1040.5, -1070.25])
    with mpmath.workdps(40):
        truth = np.array([float(mpmath.power(2, t)) for t in x.tolist()])
    np.testing.assert_array_equal(ELEMENTARY["exp2"].table(x)[0], truth)


@pytest.mark.parametrize("name", NAMES)
def test_parity_is_true(name):
    f: Oracle = ELEMENTARY[name]
    reference, (low, high) = REFERENCES[name]
    if low != -high:
        return
    with mpmath.workdps(30):
        a, b = reference(mpmath.mpf("0.7")), reference(mpmath.mpf("-0.7"))
        found = "even" if abs(a - b) < 1e-20 else "odd" if abs(a + b) < 1e-20 else None
    assert f.parity == found


def test_to_fraction_is_exact():
    assert to_fraction(arb(0.1)) == Fraction(0.1)
    assert to_fraction(arb(-3) * arb(2) ** 70) == -3 * 2**70
