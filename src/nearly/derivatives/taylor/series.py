"""Truncated power series and their arithmetic: what flows through the interpreter.

A value is either an array, which does not depend on t, or a `Series`, c_0 + c_1 t + … + c_K t^K.
A coefficient that is known to be zero is `None` and costs nothing: a straight line x + t v has
none but the first two, and a product with a constant weight takes K + 1 products, not
(K + 1)(K + 2)/2. Inside the package coefficients are those of t^k; factorials are put in and taken
out at its face.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

# A coefficient: None, or an array (jax.Array, NumPy's, or a literal of a jaxpr).
Term: TypeAlias = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Series:
    """Coefficients of t^0 … t^K, K >= 1; the zeroth is always an array."""

    terms: tuple[Any, ...]

    @property
    def primal(self) -> jax.Array:
        return self.terms[0]

    @property
    def order(self) -> int:
        return len(self.terms) - 1


# A `Series`, or an array, which does not depend on t.
Value: TypeAlias = Any


def primal(x: Value) -> Any:
    """The value at t = 0."""
    return x.primal if isinstance(x, Series) else x


def order_of(*values: Value) -> int:
    """The order to which the values are known; 0 if none depends on t."""
    return max((x.order for x in values if isinstance(x, Series)), default=0)


def terms_of(x: Value, order: int) -> list[Term]:
    """The coefficients of t^0 … t^order of a value."""
    return list(x.terms) if isinstance(x, Series) else [x, *[None] * order]


def from_terms(terms: Sequence[Term]) -> Value:
    """A value from its coefficients: an array if all but the zeroth are known to be zero."""
    return Series(tuple(terms)) if any(c is not None for c in terms[1:]) else terms[0]


def filled(x: Value, order: int) -> Series:
    """The same value with its zeros written out, for the carry of a loop."""
    zeros = jnp.zeros_like(primal(x))
    return Series(tuple(zeros if c is None else c for c in terms_of(x, order)))


def truncated(x: Value, order: int) -> Value:
    """The value up to t^order."""
    return from_terms(x.terms[: order + 1]) if isinstance(x, Series) else x


def shifted(x: Value, change: Any) -> Value:
    """x + change, the change constant: only the zeroth coefficient moves."""
    return Series((x.primal + change, *x.terms[1:])) if isinstance(x, Series) else x + change


def mapped(function: Callable[[Any], Any], x: Value) -> Value:
    """A linear function of one operand, coefficient by coefficient."""
    if not isinstance(x, Series):
        return function(x)
    return Series(tuple(None if c is None else function(c) for c in x.terms))


def derivative(x: Value) -> Value:
    """dx/dt, of one order less."""
    if not isinstance(x, Series):
        return jnp.zeros_like(x)
    scaled = [None if c is None else k * c for k, c in enumerate(x.terms)][1:]
    first = jnp.zeros_like(x.primal) if scaled[0] is None else scaled[0]
    return from_terms([first, *scaled[1:]])


def antiderivative(first: Any, slope: Value, order: int) -> Value:
    """The value that starts at `first` and has the given derivative of order `order` - 1."""
    slopes = terms_of(slope, order - 1)
    return from_terms([first, *(None if c is None else c / (k + 1) for k, c in enumerate(slopes))])


def total(parts: Iterable[Term]) -> Term:
    """Sum of those that are not known to be zero."""
    found = [p for p in parts if p is not None]
    if not found:
        return None
    result = found[0]
    for part in found[1:]:
        result = result + part
    return result


def convolution(
    a: Sequence[Term],
    b: Sequence[Term],
    k: int,
    *,
    start: int = 0,
    stop: int | None = None,
    product: Callable[[Any, Any], Any] = jnp.multiply,
) -> Term:
    """Sum of a_j b_(k-j) over start <= j < stop (by default all j up to k)."""
    pairs = ((a[j], b[k - j]) for j in range(start, k + 1 if stop is None else stop))
    return total(product(x, y) for x, y in pairs if x is not None and y is not None)


def multiply(x: Value, y: Value, product: Callable[[Any, Any], Any] = jnp.multiply) -> Value:
    """Any bilinear product of two values: (K + 1)(K + 2)/2 products at most."""
    if x is y and product is jnp.multiply:
        return square(x)
    order = order_of(x, y)
    a, b = terms_of(x, order), terms_of(y, order)
    return from_terms([convolution(a, b, k, product=product) for k in range(order + 1)])


def square(x: Value) -> Value:
    """x^2: each pair of coefficients is multiplied once."""
    if not isinstance(x, Series):
        return x * x
    a = x.terms
    return from_terms([_square_term(a, k) for k in range(len(a))])


def _square_term(a: Sequence[Term], k: int) -> Term:
    pairs = convolution(a, a, k, stop=(k + 1) // 2)
    doubled = None if pairs is None else 2 * pairs
    middle = a[k // 2] if k % 2 == 0 else None
    return total([doubled, None if middle is None else middle * middle])


def add(x: Value, y: Value) -> Value:
    """x + y of one shape."""
    order = order_of(x, y)
    return from_terms([total(pair) for pair in zip(terms_of(x, order), terms_of(y, order))])


def negative(x: Value) -> Value:
    """-x."""
    return mapped(jnp.negative, x)


def divide(x: Value, y: Value) -> Value:
    """x / y; where y is constant, one division a coefficient."""
    if not isinstance(y, Series):
        return mapped(lambda c: c / y, x)
    a, b = terms_of(x, y.order), y.terms
    quotient: list[Term] = [a[0] / b[0]]
    for k in range(1, y.order + 1):
        rest = convolution(b, quotient, k, start=1)
        top = total([a[k], None if rest is None else -rest])
        quotient.append(None if top is None else top / b[0])
    return from_terms(quotient)


def power(first: Any, x: Value, exponent: Any) -> Value:
    """x^r for constant r, `first` being its value at t = 0 (the branch): x y' = r x' y.

    Infinite or NaN where x starts at zero, as the derivatives are, or as their formula is.
    """
    if not isinstance(x, Series):
        return first
    u = x.terms
    y: list[Term] = [first]
    for k in range(1, x.order + 1):
        weighted = [
            (exponent * j - (k - j)) * (c * y[k - j])
            for j, c in enumerate(u[: k + 1])
            if j and c is not None and y[k - j] is not None
        ]
        top = total(weighted)
        y.append(None if top is None else top / (k * u[0]))
    return from_terms(y)


def integer_power(x: Value, exponent: int) -> Value:
    """x^n by repeated squaring, so that it is exact where x starts at zero."""
    if exponent < 0:
        inverse = integer_power(x, -exponent)
        return divide(jnp.ones_like(primal(inverse)), inverse)
    if exponent == 0:
        return jnp.ones_like(primal(x))
    result = None
    while exponent:
        if exponent & 1:
            result = x if result is None else multiply(result, x)
        exponent >>= 1
        x = square(x) if exponent else x
    return result


def exponential(first: Any, x: Value) -> Value:
    """exp(x), `first` at t = 0: y' = x' y."""
    return solve_ode(first, x, lambda y, k: y[k])


def solve_ode(first: Any, x: Value, slope: Callable[[list[Term], int], Term]) -> Value:
    """The y with y' = g(y, x) x' that starts at `first`.

    `slope(y, k)` is coefficient k of g, made from the coefficients of y up to k, which are known
    when it is called, once for each k in turn. O(K^2) products beside those of `slope`.
    """
    if not isinstance(x, Series):
        return first
    speeds = [None if c is None else j * c for j, c in enumerate(x.terms)]
    y: list[Term] = [first]
    slopes: list[Term] = []
    for k in range(1, x.order + 1):
        slopes.append(slope(y, k - 1))
        rate = convolution(speeds, slopes, k, start=1)
        y.append(None if rate is None else rate / k)
    return from_terms(y)


def square_term(y: Sequence[Term], k: int) -> Term:
    """Coefficient k of y^2, for a slope that is quadratic in y."""
    return _square_term(y, k)


def compose(derivatives: Sequence[Any], x: Series) -> Value:
    """f(x) from f, f', …, f^(K) at t = 0, by Horner's rule: O(K^3) products."""
    step: list[Term] = [None, *x.terms[1:]]
    coefficients = [d / math.factorial(k) for k, d in enumerate(derivatives)]
    result: list[Term] = [coefficients[-1], *[None] * x.order]
    for coefficient in reversed(coefficients[:-1]):
        result = [convolution(result, step, k) for k in range(x.order + 1)]
        result[0] = coefficient
    return from_terms(result)
