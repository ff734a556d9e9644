"""Polynomials of several variables, sparse, with coefficients of any kind of number.

A vector field that is written by arithmetic alone becomes polynomials by being called with them:

    x, y = variables(2)
    field((x, y))

so one definition serves JAX, floats and exact rationals. NumPy's polynomials are of one variable
or dense, python-flint's have rational coefficients only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nearly.core.errors import InputError

Exponent = tuple[int, ...]


@dataclass(frozen=True)
class Polynomial:
    """A sum of coefficients times monomials in `size` variables.

    `terms` maps the exponents of a monomial to its coefficient: an int, float, `Fraction` or
    anything else with arithmetic. Zero coefficients are left out.
    """

    size: int
    terms: Mapping[Exponent, Any]

    @staticmethod
    def of(size: int, terms: Iterable[tuple[Exponent, Any]]) -> Polynomial:
        """The sum of terms, which may repeat a monomial."""
        total: dict[Exponent, Any] = {}
        for exponent, coefficient in terms:
            total[exponent] = total.get(exponent, 0) + coefficient
        return Polynomial(size, {e: c for e, c in total.items() if c != 0})

    @property
    def degree(self) -> int:
        """The largest total degree of a monomial; 0 for a constant and for zero."""
        return max((sum(e) for e in self.terms), default=0)

    def __add__(self, other: Any) -> Polynomial:
        return Polynomial.of(self.size, [*self.terms.items(), *self._cast(other).terms.items()])

    __radd__ = __add__

    def __neg__(self) -> Polynomial:
        return self.map(lambda c: -c)

    def __sub__(self, other: Any) -> Polynomial:
        return self + -self._cast(other)

    def __rsub__(self, other: Any) -> Polynomial:
        return self._cast(other) + -self

    def __mul__(self, other: Any) -> Polynomial:
        others = self._cast(other).terms.items()
        return Polynomial.of(
            self.size,
            ((times(e, g), c * d) for e, c in self.terms.items() for g, d in others),
        )

    __rmul__ = __mul__

    def __truediv__(self, number: Any) -> Polynomial:
        if isinstance(number, Polynomial):
            raise InputError("a polynomial over a polynomial is none: the field must be polynomial")
        return self.map(lambda c: c / number)

    def __pow__(self, power: int) -> Polynomial:
        if power < 0 or power != int(power):
            raise InputError(f"the power {power} of a polynomial must be a whole number from 0 on")
        product = self._cast(1)
        for _ in range(int(power)):
            product = product * self
        return product

    def _cast(self, other: Any) -> Polynomial:
        if isinstance(other, Polynomial):
            return other
        return Polynomial.of(self.size, [((0,) * self.size, other)])

    def map(self, change: Callable[[Any], Any]) -> Polynomial:
        """With every coefficient changed."""
        return Polynomial.of(self.size, ((e, change(c)) for e, c in self.terms.items()))

    def derivative(self, index: int) -> Polynomial:
        """With respect to one variable."""
        unit = tuple(int(i == index) for i in range(self.size))
        return Polynomial.of(
            self.size,
            (
                (tuple(a - b for a, b in zip(e, unit, strict=True)), c * e[index])
                for e, c in self.terms.items()
                if e[index]
            ),
        )

    def along(self, field: Sequence[Polynomial]) -> Polynomial:
        """Its rate of change along a vector field: the sum of `f_i` times its derivatives."""
        total = self._cast(0)
        for index, component in enumerate(field):
            total = total + component * self.derivative(index)
        return total


def times(a: Exponent, b: Exponent) -> Exponent:
    """The exponents of a product of two monomials."""
    return tuple(i + j for i, j in zip(a, b, strict=True))


def variables(size: int) -> list[Polynomial]:
    """The coordinates, as polynomials."""
    return [Polynomial(size, {tuple(int(i == j) for j in range(size)): 1}) for i in range(size)]


def monomials(size: int, degree: int) -> list[Exponent]:
    """The exponents of all monomials up to a total degree, in order of degree.

    **Cost:** binomial(size + degree, degree) of them.
    """
    return [
        tuple(chosen.count(i) for i in range(size))
        for total in range(degree + 1)
        for chosen in combinations_with_replacement(range(size), total)
    ]


class PolynomialFunction(eqx.Module):
    """A polynomial in `(y - centre) / scale`, as a function of y that JAX can trace.

    **Arguments:** `exponents`: [terms, size], static. `coefficients`: [terms].
    """

    exponents: tuple[Exponent, ...] = eqx.field(static=True)
    coefficients: np.ndarray
    centre: np.ndarray
    scale: np.ndarray

    @staticmethod
    def of(polynomial: Polynomial, centre: Any, scale: Any) -> PolynomialFunction:
        """Of the terms of a polynomial, their coefficients rounded to float64."""
        found = sorted(polynomial.terms.items()) or [((0,) * polynomial.size, 0)]
        return PolynomialFunction(
            tuple(e for e, _ in found),
            np.array([float(c) for _, c in found]),
            np.asarray(centre, np.float64),
            np.asarray(scale, np.float64),
        )

    def __call__(self, y: Float[Array, " size"]) -> Float[Array, ""]:
        table = np.asarray(self.exponents)
        u = (y - jnp.asarray(self.centre, y.dtype)) / jnp.asarray(self.scale, y.dtype)
        # Powers by multiplication: the derivative of u ** 0 at 0 is not a number.
        powers = [jnp.ones_like(u)]
        for _ in range(int(table.max())):
            powers.append(powers[-1] * u)
        of_power = jnp.stack(powers)
        product = jnp.asarray(self.coefficients, y.dtype)
        for index in range(table.shape[1]):
            product = product * of_power[table[:, index], index]
        return jnp.sum(product)
