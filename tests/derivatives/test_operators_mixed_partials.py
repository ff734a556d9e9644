"""Jets for mixed partials: isolation, polarisation, and both against nested differentiation."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from nearly.core.errors import InputError
from nearly.derivatives.mixed_partials import (
    Jet,
    isolating_orders,
    polarised,
    shaped,
)
from nearly.derivatives.operators import D, Operator, identity, power_sum
from nearly.derivatives.stde import exact


@pytest.fixture(autouse=True)
def float64() -> Any:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("exponents", "orders"),
    # By hand: 5 = 2 + 3 only; 7 = 2·2 + 3 only; 13 = 3·3 + 4 only, but 11 = 3·2 + 5 only as well.
    [((1, 1), (2, 3)), ((2, 1), (2, 3)), ((1, 2), (3, 2)), ((3, 1), (2, 5)), ((4,), (1,))],
)
def test_smallest_isolating_jet(exponents: tuple[int, ...], orders: tuple[int, ...]) -> None:
    assert isolating_orders(exponents) == orders


@pytest.mark.parametrize("exponents", [(1, 1), (2, 1), (2, 2), (1, 1, 1), (2, 1, 1)])
def test_isolating_orders_isolate_and_no_smaller_jet_does(exponents: tuple[int, ...]) -> None:
    orders = isolating_orders(exponents)
    total = sum(a * o for a, o in zip(exponents, orders, strict=True))
    assert _solutions(orders, total) == [exponents]
    for smaller in itertools.product(range(1, total), repeat=len(exponents)):
        reached = sum(a * o for a, o in zip(exponents, smaller, strict=True))
        if reached < total and len(set(smaller)) == len(smaller):
            assert len(_solutions(smaller, reached)) > 1


def _solutions(orders: tuple[int, ...], total: int) -> list[tuple[int, ...]]:
    ranges = (range(total // o + 1) for o in orders)
    found = itertools.product(*ranges)
    return [n for n in found if sum(a * b for a, b in zip(n, orders, strict=True)) == total]


def test_polarisation_shares_directions_between_monomials() -> None:
    mixed = polarised([(2, 2)])
    assert len(mixed) == 4
    assert len(polarised([(2, 2), (1, 1), (2, 0), (4, 0)])) == 4
    assert polarised([(3,)]) == (Jet(((1, (Fraction(1),)),), ((3, (1.0,)),)),)


def test_polarisation_is_an_identity_of_polynomials() -> None:
    """A contraction with x^p is a product of powers, so the jets must sum to the monomial."""
    point = (1.7, -0.4, 2.3)
    for exponents in itertools.product(range(4), repeat=3):
        value = 0.0
        for jet in polarised([exponents]):
            inner = sum(float(h) * v for _, mix in jet.inputs for h, v in zip(mix, point))
            value += sum(weights[0] * inner**order for order, weights in jet.reads)
        truth = 1.0
        for a, v in zip(exponents, point, strict=True):
            truth *= v**a
        assert value == pytest.approx(truth, rel=1e-12)


def _function(x: Any) -> Any:
    return jnp.sin(x[0] * x[1]) * jnp.exp(x[2] / 2) + jnp.tanh(x[0] + 2 * x[1] - x[2])


def _partial(axes: tuple[int, ...]) -> Callable[[Any], Any]:
    f = _function
    for axis in axes:
        f = (lambda g, i: lambda x: jax.grad(g)(x)[i])(f, axis)
    return f


@pytest.mark.parametrize("pushforward", [polarised, shaped])
@pytest.mark.parametrize("axes", [(0, 0, 1), (0, 1, 2)])
def test_partials_agree_with_nested_grad(pushforward: Any, axes: tuple[int, ...]) -> None:
    x = jnp.array([0.3, -0.6, 0.9])
    operator = identity()
    for axis in axes:
        operator = operator * D(axis)
    found = jax.jit(exact(operator, pushforward=pushforward)(_function))(x)
    assert found == pytest.approx(float(_partial(axes)(x)), rel=1e-9)


@pytest.mark.parametrize("pushforward", [polarised, shaped])
def test_a_sum_of_partials_and_powers(pushforward: Any) -> None:
    x = jnp.array([0.3, -0.6, 0.9])
    operator: Operator = D(0) * D(1) - 2 * D(2) ** 2 + 5
    truth = _partial((0, 1))(x) - 2 * _partial((2, 2))(x) + 5 * _function(x)
    found = jax.jit(exact(operator, pushforward=pushforward)(_function))(x)
    assert found == pytest.approx(float(truth), rel=1e-10)


def test_coinciding_vectors_are_fine() -> None:
    """In the square of a sum both indices meet: d_i d_i counts as the second derivative."""
    x = jnp.array([0.3, -0.6, 0.9])
    truth = jax.hessian(_function)(x).sum()
    found = jax.jit(exact(power_sum(1) ** 2)(_function))(x)
    assert found == pytest.approx(float(truth), rel=1e-12)


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match="use polarised"):
        isolating_orders((3, 3, 3))
    with pytest.raises(InputError, match="of one length"):
        polarised([(1,), (1, 1)])
