"""Textbook forms: what they cost by hand, what they reach, and that the two baselines differ."""

from __future__ import annotations

from fractions import Fraction

import pytest
from flint import arb, ctx

from nearly.core.errors import InputError
from nearly.functions.balls import exact
from nearly.functions.classical import best, forms, published
from nearly.functions.function import Function
from nearly.functions.proof import prove

EXP2 = Function("exp2", ("0", "1"))
TAN = Function("tan", ("0", "pi/4"))
SIGMOID = Function("sigmoid", ("0", "4"))
SLOW = pytest.mark.slow
GELU = Function("gelu", ("-4", "4"), error="absolute")


def test_published_and_fair_baseline_of_the_paper_at_ten_operations():
    # Its comparison is [3/2] as two Horners; [4/4] fits into as many in the centred form.
    theirs, fair = published(EXP2, 10), best(EXP2, 10)
    assert (theirs.form, theirs.type, theirs.ops) == ("two Horners", "3/2", 10)
    assert (fair.form, fair.type, fair.ops) == ("odd quotient", "4/4", 10)
    assert float(theirs.error) == pytest.approx(7.52e-9, rel=1e-2)
    assert float(fair.error) == pytest.approx(1.109e-14, rel=1e-2)


def test_lowest_odd_type_takes_three_operations_in_x():
    # K / (x + d / x) is K x / (x^2 + d).
    form = best(TAN, 3)
    assert (form.form, form.type, form.ops) == ("continued fraction in x", "1/2", 3)


@pytest.mark.parametrize(
    ("function", "ops"),
    [(EXP2, 9), (TAN, 8), *(pytest.param(f, 9, marks=SLOW) for f in (SIGMOID, GELU))],
)
def test_the_stated_error_is_that_of_the_program(function, ops):
    form = best(function, ops)
    assert form.ops == form.program.cost.ops <= ops
    assert prove(function, form.program).total == pytest.approx(float(form.error), rel=1e-3)


@pytest.mark.parametrize(
    ("function", "simple"), [(SIGMOID, "0.5"), pytest.param(GELU, "0.5 x", marks=SLOW)]
)
def test_centred_forms_keep_the_symmetry(function, simple):
    """f(x) + f(-x) = 1 for the sigmoid, f(x) - f(-x) = x for gelu: exactly, so are the forms."""
    form = best(function, 12)
    assert form.form.startswith("centred")
    x = Fraction(3, 7)
    with ctx.workprec(600):
        plus, minus = (form.program.run(exact(z), BALLS, exact) for z in (x, -x))
        found = plus + minus - 1 if simple == "0.5" else plus - minus - exact(x)
        assert abs(found) < arb(2) ** -500


BALLS = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def test_more_operations_are_never_worse():
    errors = [best(TAN, ops).error for ops in range(3, 15)]
    assert errors == sorted(errors, reverse=True)
    assert all(best(TAN, ops).error <= published(TAN, ops).error for ops in range(3, 15))


def test_a_polynomial_is_its_own_best_form():
    found = best(Function("3*x^2 - x + 1", ("1", "2")), 4)
    assert found.error == 0
    assert found.ops == 4


def test_counts_without_a_form_are_refused():
    with pytest.raises(InputError, match="no textbook form of exp2 takes 1 operations"):
        best(EXP2, 1)
    with pytest.raises(InputError, match="25 operations: textbook forms are listed for 1 to 24"):
        forms(EXP2, 25)
