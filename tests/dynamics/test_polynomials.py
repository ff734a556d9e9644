"""Polynomials against arithmetic by hand and automatic differentiation."""

from fractions import Fraction

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nearly.dynamics.polynomials import Polynomial, PolynomialFunction, monomials, variables
from nearly.errors import InputError


def test_arithmetic_by_hand():
    x, y = variables(2)
    product = (x + 2 * y - 1) * (1 - x) / 2
    assert product.terms == {
        (1, 0): 1,
        (2, 0): -0.5,
        (0, 1): 1,
        (1, 1): -1,
        (0, 0): -0.5,
    }
    assert product.degree == 2
    assert (x - x).terms == {} and (x - x).degree == 0
    assert (3 - x).terms == {(0, 0): 3, (1, 0): -1}
    assert (x**3).terms == {(3, 0): 1} and (x**0).terms == {(0, 0): 1}


def test_fractions_stay_exact():
    (x,) = variables(1)
    third = Fraction(1, 3) * x + Fraction(2, 3)
    assert (third**2).terms == {(2,): Fraction(1, 9), (1,): Fraction(4, 9), (0,): Fraction(4, 9)}


def test_the_rate_along_a_field_is_the_chain_rule():
    x, y = variables(2)
    rate = (x**2 * y).along([y, -x])
    assert rate.terms == {(1, 2): 2, (3, 0): -1}


def test_monomials_are_all_there_once():
    found = monomials(3, 4)
    assert len(set(found)) == len(found) == 35
    assert found[0] == (0, 0, 0)
    assert [sum(e) for e in found] == sorted(sum(e) for e in found)


def test_a_function_of_the_box_and_its_gradient():
    x, y = variables(2)
    function = PolynomialFunction.of(2 * x**3 - x * y + 1, (1.0, 0.0), (2.0, 4.0))
    with jax.enable_x64(True):
        point = jnp.asarray([3.0, 0.0])  # u = (1, 0)
        # d/dx: (6 u^2 - v) / 2; d/dv: -u / 4, at a zero of v where a power has no derivative.
        points = jnp.stack([point, jnp.asarray([1.0, 0.0])])
        values, slopes = jax.jit(jax.vmap(jax.value_and_grad(lambda y: function(y))))(points)
        np.testing.assert_allclose(values, [3.0, 1.0])
        np.testing.assert_allclose(slopes, [[3.0, -0.25], [0.0, 0.0]])


def test_zero_is_a_function_too():
    zero = PolynomialFunction.of(Polynomial(2, {}), (0.0, 0.0), (1.0, 1.0))
    assert float(eqx.filter_jit(zero)(jnp.ones(2))) == 0


def test_what_is_no_polynomial_is_refused():
    (x,) = variables(1)
    with pytest.raises(InputError, match="polynomial over a polynomial"):
        _ = x / x
    with pytest.raises(InputError, match="power -1"):
        _ = x**-1
