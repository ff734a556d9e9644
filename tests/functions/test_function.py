"""`Function`: what it accepts, what it refuses and how, and what it knows about its domain."""

from __future__ import annotations

import dataclasses
import math
import pickle
import subprocess
import sys
from fractions import Fraction

import pytest
from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions.function import Function


def test_it_is_hashable_picklable_and_replaceable():
    function = Function("log1p(x)/x", ("0", "1"), "float32", "ulp")
    assert function.oracle.provable  # fills the cache, which must not be pickled
    again = pickle.loads(pickle.dumps(function))
    assert again == function
    assert hash(again) == hash(function)
    assert again.oracle.at(0).contains(1)
    wider = dataclasses.replace(function, domain=("0", "2"))
    assert wider.interval == (0, 2)
    assert wider != function


def test_ends_are_decimal():
    assert Function("exp", ("-0.1", "0.1")).interval == (Fraction(-1, 10), Fraction(1, 10))


def test_the_interval_contains_an_irrational_domain_closely():
    low, high = Function("sin", ("-pi/4", "pi/4")).interval
    with ctx.workprec(600):
        exact = arb.pi() / 4
        excess = arb(high.numerator) / high.denominator - exact
        assert 0 < excess < arb(2) ** -300
    assert low == -high


def test_ends_follow_the_working_precision():
    function = Function("sin", ("0", "pi/4"))
    with ctx.workprec(500):
        assert function.ends[1].rel_accuracy_bits() > 480
    assert Function("exp", ("-inf", "inf"), "float32").ends[0] == arb.neg_inf()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domain": ("1", "0")}, "empty"),
        ({"domain": ("1", "1")}, "empty"),
        ({"domain": ("pi", "3")}, "empty"),
        ({"domain": ("inf", "-inf"), "dtype": "float32"}, "empty"),
        ({"domain": ("nan", "1")}, "NaN"),
        ({"domain": ("0", "x")}, "depends on x"),
        ({"domain": ("0", "1/0")}, "division by zero"),
        ({"domain": ("0", "inf")}, "unbounded"),
        ({"domain": ("-inf", "inf"), "dtype": "float32", "norm": "l2"}, "l2 norm"),
        ({"dtype": "float31"}, "did you mean 'float32'"),
        ({"error": "relativ"}, "did you mean 'relative'"),
        ({"norm": "max"}, "unknown norm"),
        ({"error": "ulp"}, "no ULP"),
        ({"name": "exq"}, "did you mean 'exp'"),
        ({"name": "log1p(x/x"}, "never closed"),
        ({"name": "", "domain": ("0", "1")}, "empty"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(InputError, match=message) as caught:
        Function(**{"name": "exp", **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "domain", "message"),
    [
        ("tan", ("0", "2"), "tan has a pole at x = 1.570796327"),
        ("log", ("-1", "1"), "log is not defined at x = -1"),
        ("log", ("0", "1"), "log has a pole at x = 0 "),
        ("1/x", ("-1", "2"), "has a pole at x = 0 "),
        ("1/(3*x - 1)", ("0", "1"), "has a pole at x = 0.3333333333 "),
        ("sqrt(x**2 - 1)", ("-2", "2"), "is not defined at x = 0 "),
        ("sqrt(x)", ("-1", "1"), "is not defined at x = -1"),
        ("lgamma", ("-1.5", "2"), "has a pole"),
        ("atanh", ("0", "1"), "has a pole at x = 1 "),
        ("asin", ("-2", "0"), "is not defined at x = -2"),
        ("log(abs(x))", ("-1", "2"), "pole at x = 0 "),
        ("sin(x)/(x - pi)", ("3", "4"), "no value that can be decided at x = 3.141592654"),
        ("1/(x - x)", ("0", "1"), "at x = 0 in the domain"),
    ],
)
def test_poles_and_undefined_parts_are_named(name, domain, message):
    with pytest.raises(InputError, match=message):
        Function(name, domain)


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("sqrt", ("0", "4")),
        ("acos", ("-1", "1")),
        ("acosh", ("1", "2")),
        ("lambertw", ("-exp(-1)", "1")),
        ("log1p(x)/x", ("-0.5", "1")),
        ("1/tan(x) - 1/x", ("-1", "1")),
        ("x**0.5*exp(x)", ("0", "1")),
        ("abs(x)", ("-1", "2")),
        ("cbrt", ("-1", "2")),
        ("1/(x**2 - 2*x + 1.001)", ("-50", "50")),
        ("exp", ("-1000", "1000")),
        ("tan", ("-1.5707", "1.5707")),
    ],
)
def test_what_is_defined_is_accepted(name, domain):
    assert Function(name, domain).oracle.provable


def test_an_unbounded_domain_may_hold_poles():
    assert Function("log2", ("-inf", "inf"), "float32", "ulp").oracle.provable
    assert not Function("tan", ("-inf", "inf"), "float32").is_bounded


@pytest.mark.parametrize(
    ("name", "domain", "parity"),
    [
        ("sin", ("-pi/2", "pi/2"), "odd"),
        ("sin", ("0", "pi/2"), None),
        ("cos", ("-0.1", "0.1"), "even"),
        ("cos", ("-0.1", "0.11"), None),
        ("exp", ("-1", "1"), None),
        ("sin(x)/x", ("-1", "1"), "even"),
    ],
)
def test_parity_on_the_domain(name, domain, parity):
    assert Function(name, domain).parity_on_domain == parity
    assert Function("erf", ("-inf", "inf"), "float32").parity_on_domain == "odd"
    assert Function("erf", ("0", "inf"), "float32").parity_on_domain is None


@pytest.mark.parametrize(
    ("name", "domain", "zeros"),
    [
        ("exp", ("-1", "1"), []),
        ("sin", ("-1", "1"), [("0", 1)]),
        ("sin", ("0.1", "7"), [("pi", 1), ("2*pi", 1)]),
        ("sin", ("0", "pi"), [("0", 1), ("pi", 1)]),
        ("cos", ("0", "5"), [("1*pi/2", 1), ("3*pi/2", 1)]),
        ("cospi", ("0", "2"), [("1/2", 1), ("3/2", 1)]),
        ("log2", ("0.5", "2"), [("1", 1)]),
        ("log2", ("2", "4"), []),
        ("lgamma", ("0.5", "3"), [("1", 1), ("2", 1)]),
        ("square", ("-1", "1"), [("0", 2)]),
        ("sqrt", ("0", "1"), [("0", 0)]),
        ("acos", ("0", "1"), [("1", 0)]),
        ("x**3*(x - 1)", ("-1", "2"), [("0", 3), ("1", 1)]),
        ("1 - cos(x)", ("-1", "1"), [("0", 2)]),
        ("1/tan(x) - 1/x", ("-1", "1"), [("0", 1)]),
        ("x**2 - 0.25", ("0", "0.5"), [("1/2", 1)]),
    ],
)
def test_zeros(name, domain, zeros):
    found = Function(name, domain).zeros
    assert [(zero.text, zero.order) for zero in found] == zeros
    with ctx.workprec(200):
        for zero in found:
            assert Function(name, domain).oracle.value(zero.point()).contains(0)
            assert (zero.exact is None) == ("pi" in zero.text)


def test_a_function_with_very_many_zeros():
    zeros = Function("sin", ("-inf", "inf"), "float32", "ulp").zeros
    assert 150 < len(zeros) <= 201
    points = [float(zero.point()) for zero in zeros]
    assert points == sorted(points)
    assert 0 in points
    assert min(points) > -100.5 * math.pi


def test_a_domain_of_another_type_is_refused():
    """In a process of its own: here the run-time type checker would refuse it first."""
    code = """
from nearly.errors import InputError
from nearly.functions.function import Function
for domain in [(0, 1), ("0",), "01", None, ["0", "1"]]:
    try:
        Function("exp", domain)
    except InputError as error:
        assert "two texts" in str(error)
    else:
        raise AssertionError(domain)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_jax_is_not_imported():
    code = (
        "import sys; from nearly.functions.function import Function; "
        "Function('gelu', ('-1', '1')).oracle.at(1); "
        "assert not {'jax', 'scipy', 'equinox', 'matplotlib'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
