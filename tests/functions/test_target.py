"""What a fit sees of a function: zeros, symmetry, weights, poles."""

from fractions import Fraction

import pytest
from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions.function import Function
from nearly.functions.target import Zero, canonical, midpoint, symmetry, target


@pytest.mark.parametrize(
    ("name", "domain", "zeros"),
    [
        ("exp2", ("0", "1"), ()),
        ("sin", ("0", "1"), (Zero(Fraction(0), 1),)),
        ("1-cos(x)", ("-1", "1"), (Zero(Fraction(0), 2),)),
        ("x-sin(x)", ("0", "1"), (Zero(Fraction(0), 3),)),
        ("log2", ("1/2", "2"), (Zero(Fraction(1), 1),)),
        ("x^2-1/9", ("0.1", "1"), (Zero(Fraction(1, 3), 1),)),
    ],
)
def test_zeros_are_found_exactly_with_their_order(name, domain, zeros):
    assert target(Function(name, domain)).zeros == zeros


def test_an_irrational_zero_is_found_to_many_bits():
    (zero,) = target(Function("sin", ("1", "4"))).zeros
    with ctx.workprec(400):
        assert bool(abs(arb(zero.at.numerator) / zero.at.denominator - arb.pi()) < arb(2) ** -300)


@pytest.mark.parametrize(
    ("name", "domain", "expected"),
    [
        ("sin", ("-pi/2", "pi/2"), (2, 1)),
        ("sin", ("0", "1"), (2, 1)),
        ("cos", ("-1", "0"), (2, 0)),
        ("cos", ("1", "2"), (1, 0)),
        ("sin", ("-1", "2"), (1, 0)),
        ("exp2", ("-1", "1"), (1, 0)),
        ("log1p", ("0", "4"), (1, 0)),
    ],
)
def test_symmetry(name, domain, expected):
    assert symmetry(Function(name, domain)) == expected


def test_the_quotient_is_smooth_at_the_zero():
    problem = target(Function("sin", ("0", "1")))
    piece = problem.pieces[0]
    with ctx.workprec(200):
        at_zero, weight = problem.sample(arb(0), piece)
        near, _ = problem.sample(arb(2) ** -50, piece)
    assert (float(at_zero), float(weight)) == (1.0, 1.0)
    # sin(x)/x = 1 - x^2/6 + …
    with ctx.workprec(200):
        assert float((1 - near) * arb(2) ** 100) == pytest.approx(1 / 6, rel=1e-10)


def test_ulps_cut_the_domain_at_powers_of_two():
    problem = target(Function("exp2", ("0", "3"), "float32", "ulp"))
    inner = [piece.high for piece in problem.pieces[:-1]]
    assert [float(x) for x in inner] == pytest.approx([1.0, 2.0], abs=1e-15)
    assert [piece.ulp for piece in problem.pieces[1:]] == [Fraction(1, 2**22), Fraction(1, 2**21)]


@pytest.mark.parametrize(
    ("name", "domain", "error", "message"),
    [
        ("sqrt", ("0", "1"), "relative", "unlike any polynomial"),
        ("x*0", ("0", "1"), "relative", "vanishes on a part"),
    ],
)
def test_what_has_no_relative_error_is_refused(name, domain, error, message):
    with pytest.raises(InputError, match=message):
        target(Function(name, domain, error=error))


def test_formats_share_a_target_but_for_ulps():
    assert canonical(Function("exp2", dtype="float32")) == Function("exp2")
    ulps = Function("exp2", dtype="float32", error="ulp")
    assert canonical(ulps) == ulps


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 2), (Fraction(1, 3), Fraction(7, 5))])
def test_the_midpoint_is_short_and_near_the_middle(low, high):
    low, high = Fraction(low), Fraction(high)
    found = midpoint(low, high)
    assert abs(found - (low + high) / 2) <= (high - low) / 8
    assert found.denominator <= 16
