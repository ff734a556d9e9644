"""Evaluation schemes: exact values, and the operations that are counted by hand."""

from fractions import Fraction
from math import log2

import pytest

from nearly.core.errors import InputError
from nearly.functions.polynomial import Polynomial
from nearly.functions.program import Builder, Program
from nearly.functions.schemes import (
    clenshaw,
    estrin,
    even_odd,
    horner,
    knuth_eve,
    paterson_stockmeyer,
    polynomial_program,
)

EXACT = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
}
POINTS = (Fraction(-2, 3), Fraction(1, 7), Fraction(5, 4))


def value(program: Program, x: Fraction) -> Fraction:
    return program.run(x, EXACT, lambda constant: constant)


def exponential(degree: int) -> Polynomial:
    """3/7 of the Taylor polynomial of exp: all of its roots but at most one are complex."""
    coefficients, factorial = [], 1
    for k in range(degree + 1):
        factorial *= max(k, 1)
        coefficients.append(Fraction(3, 7 * factorial))
    return Polynomial(tuple(range(degree + 1)), tuple(coefficients))


@pytest.mark.parametrize("scheme", [horner, estrin, even_odd, paterson_stockmeyer])
@pytest.mark.parametrize("degree", range(13))
def test_schemes_are_exact(scheme, degree):
    polynomial = exponential(degree)
    program = polynomial_program(scheme, polynomial)
    assert [value(program, x) for x in POINTS] == [polynomial(x) for x in POINTS]
    unfused = program.unfused()
    assert unfused.cost.ops == program.cost.ops
    assert [value(unfused, x) for x in POINTS] == [polynomial(x) for x in POINTS]


@pytest.mark.parametrize("degree", range(1, 13))
def test_operations_of_dense_polynomials(degree):
    polynomial = exponential(degree)
    # Horner: n products, n sums. Estrin: the same, and the squarings x^2, x^4, … below x^(n+1).
    assert polynomial_program(horner, polynomial).cost.ops == 2 * degree
    squarings = int(log2(degree))
    assert polynomial_program(estrin, polynomial).cost.ops == 2 * degree + squarings
    assert polynomial_program(estrin, polynomial).cost.depth == squarings + 1
    # One squaring beside Horner's operations.
    split = 2 * degree + (degree > 1)
    assert polynomial_program(even_odd, polynomial).cost.ops == split


def test_paterson_stockmeyer_has_few_products_of_variables():
    # Degree 8, blocks of three: x^2, x^3 and two products by x^3.
    program = polynomial_program(paterson_stockmeyer, exponential(8)).unfused()
    products = [
        i for i in program.instructions if i[0] == "mul" and not any(o[0] == "c" for o in i[1:])
    ]
    assert len(products) == 4


# n: (products, sums), from Knuth, The Art of Computer Programming 2, section 4.6.4.
KNUTH = {4: (3, 5), 5: (4, 5), 6: (4, 7), 7: (5, 7), 8: (6, 8), 9: (6, 9), 10: (7, 10), 12: (8, 12)}


@pytest.mark.parametrize(("degree", "counts"), KNUTH.items())
def test_knuth_eve(degree, counts):
    polynomial = exponential(degree)
    program = polynomial_program(knuth_eve, polynomial)
    operations = [name for name, *_ in program.unfused().instructions]
    sums = operations.count("add") + operations.count("sub")
    assert (operations.count("mul"), sums) == counts
    assert program.cost.ops == sum(counts)
    for x in POINTS:
        assert abs(value(program, x) - polynomial(x)) < Fraction(1, 2**200)


def test_knuth_eve_with_real_roots():
    # (x-1)(x-2)(x-3)(x-4)(x-5): the shift lies between the two outermost roots.
    polynomial = Polynomial(tuple(range(6)), tuple(map(Fraction, (-120, 274, -225, 85, -15, 1))))
    program = polynomial_program(knuth_eve, polynomial)
    # A leading coefficient of 1 saves no product here: fma(y, 1, d) is counted as it is written.
    assert program.cost.ops <= 9
    for x in POINTS:
        assert abs(value(program, x) - polynomial(x)) < Fraction(1, 2**200)


def test_knuth_eve_refuses_where_it_saves_nothing_or_does_not_exist():
    with pytest.raises(InputError, match="saves nothing at degree 3"):
        polynomial_program(knuth_eve, exponential(3))
    builder = Builder()
    coefficients = [Fraction(c) for c in (1, 5, 10, 10, 5, 1)]  # (x + 1)^5
    with pytest.raises(InputError, match="no real constants"):
        knuth_eve(builder, builder.x, coefficients)


@pytest.mark.parametrize("scheme", [horner, estrin, even_odd, paterson_stockmeyer])
def test_odd_and_even_polynomials_are_evaluated_in_the_square(scheme):
    odd = Polynomial((1, 3, 5, 7), tuple(map(Fraction, (2, -3, 5, 7))))
    program = polynomial_program(scheme, odd)
    assert [value(program, x) for x in POINTS] == [odd(x) for x in POINTS]
    assert polynomial_program(horner, odd).cost.ops == 8  # x^2, 3 products, 3 sums, x
    even = Polynomial((0, 2, 4), tuple(map(Fraction, (2, -3, 5))))
    assert polynomial_program(horner, even).cost.ops == 5
    assert [value(polynomial_program(scheme, even), x) for x in POINTS] == [even(x) for x in POINTS]


def test_gaps_and_centres():
    polynomial = Polynomial((0, 1, 5), tuple(map(Fraction, (2, -3, 5))), Fraction(1, 2))
    program = polynomial_program(horner, polynomial)
    assert [value(program, x) for x in POINTS] == [polynomial(x) for x in POINTS]
    assert program.cost.ops == 1 + 2 + 4  # x - 1/2; z^2, z^4; two products, two sums


def test_a_constant_is_a_program():
    program = polynomial_program(horner, Polynomial((0,), (Fraction(3),)))
    assert value(program, Fraction(2)) == 3
    assert program.cost.ops == 0


@pytest.mark.parametrize("degree", range(1, 8))
def test_clenshaw_evaluates_the_chebyshev_series(degree):
    coefficients = [Fraction(k + 1, 3) for k in range(degree + 1)]
    builder = Builder()
    program = builder.program(clenshaw(builder, builder.x, coefficients))
    for t in POINTS:
        basis = [Fraction(1), t]
        for _ in range(degree - 1):
            basis.append(2 * t * basis[-1] - basis[-2])
        expected = sum(c * v for c, v in zip(coefficients, basis, strict=True))
        assert value(program, t) == expected
