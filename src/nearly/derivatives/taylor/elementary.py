"""Rules for elementary functions: recurrences from the differential equation each one solves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import JaxprEqn

from nearly.derivatives.taylor.interpreter import RULES, bind, rule
from nearly.derivatives.taylor.series import (
    Series,
    Term,
    Value,
    add,
    antiderivative,
    compose,
    convolution,
    derivative,
    divide,
    exponential,
    from_terms,
    integer_power,
    mapped,
    multiply,
    negative,
    order_of,
    power,
    primal,
    shifted,
    solve_ode,
    square,
    square_term,
    terms_of,
    total,
    truncated,
)

# From the value at t = 0 and the argument's series to the function's.
Elementary: TypeAlias = Callable[[Any, Series], Value]


def _elementary(*names: str) -> Callable[[Elementary], Elementary]:
    def register(function: Elementary) -> Elementary:
        def apply(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
            (x,) = arguments
            return [function(bind(equation, [x.primal])[0], x)]

        for name in names:
            RULES[name] = apply
        return function

    return register


def _integral(first: Any, x: Series, slope: Callable[[Value], Value]) -> Value:
    """The f with f'(x) = slope(x), a function that does not contain f."""
    rate = multiply(derivative(x), slope(truncated(x, x.order - 1)))
    return antiderivative(first, rate, x.order)


# ---- exponentials and logarithms

_elementary("exp")(exponential)


@_elementary("exp2")
def exp2(first: Any, x: Series) -> Value:
    return exponential(first, mapped(lambda c: c * math.log(2), x))


@_elementary("expm1")
def expm1(first: Any, x: Series) -> Value:
    # The zeroth coefficient of the slope is exp(x) itself: first + 1 would be rounded.
    start = jnp.exp(x.primal)
    return solve_ode(first, x, lambda y, k: y[k] if k else start)


@_elementary("log")
def log(first: Any, x: Series) -> Value:
    u = x.terms
    y: list[Term] = [first]
    for k in range(1, x.order + 1):
        speeds = [None if c is None else j * c for j, c in enumerate(y)]
        rest = convolution(speeds, u, k, start=1, stop=k)
        top = total([u[k], None if rest is None else rest / -k])
        y.append(None if top is None else top / u[0])
    return from_terms(y)


@_elementary("log1p")
def log1p(first: Any, x: Series) -> Value:
    moved = log(first, Series((1 + x.primal, *x.terms[1:])))
    return moved


# ---- powers


@_elementary("sqrt")
def sqrt(first: Any, x: Series) -> Value:
    u = x.terms
    y: list[Term] = [first]
    for k in range(1, x.order + 1):
        inner = [None, *y[1:], None]
        rest = square_term(inner, k)
        top = total([u[k], None if rest is None else -rest])
        y.append(None if top is None else top / (2 * first))
    return from_terms(y)


@_elementary("rsqrt")
def rsqrt(first: Any, x: Series) -> Value:
    return power(first, x, -0.5)


@_elementary("cbrt")
def cbrt(first: Any, x: Series) -> Value:
    return power(first, x, 1 / 3)


@_elementary("square")
def _square(first: Any, x: Series) -> Value:
    return square(x)


@rule("integer_pow")
def _integer_pow(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    return [integer_power(arguments[0], equation.params["y"])]


@rule("pow")
def _pow(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    x, exponent = arguments
    first = bind(equation, [primal(x), primal(exponent)])[0]
    if isinstance(exponent, Series):
        logarithm = log(jnp.log(x.primal), x) if isinstance(x, Series) else jnp.log(x)
        return [exponential(first, multiply(exponent, logarithm))]
    known = _whole(exponent)
    if known is not None:
        return [integer_power(x, known)]
    if jnp.issubdtype(jnp.result_type(exponent), jnp.integer):
        exponent = jnp.asarray(exponent, x.primal.dtype)
    safe = jnp.where(x.primal == 0, 1, x.primal)
    moved = power(jnp.where(x.primal == 0, 1, first), Series((safe, *x.terms[1:])), exponent)
    return [_select(x.primal == 0, _pow_at_zero(first, x, exponent), moved)]


def _whole(exponent: Any) -> int | None:
    """The exponent, if it is known while tracing and a whole number of moderate size."""
    if isinstance(exponent, Tracer) or jnp.ndim(exponent) or jnp.iscomplexobj(exponent):
        return None
    number = float(exponent)
    return int(number) if number.is_integer() and abs(number) <= 64 else None


def _pow_at_zero(first: Any, x: Series, exponent: Any) -> Value:
    """x^r where x starts at 0: derivative k is r(r-1)…(r-k+1) 0^(r-k), 0 once the factor is."""
    falling = jnp.ones_like(first)
    derivatives = [first]
    for k in range(1, x.order + 1):
        falling = falling * (exponent - (k - 1))
        safe = jnp.where(falling == 0, 1, exponent - k)
        powers = jnp.where(safe > 0, 0.0, jnp.where(safe == 0, 1.0, jnp.inf)).astype(first.dtype)
        derivatives.append(jnp.where(falling == 0, 0, falling * powers))
    zero = Series((jnp.zeros_like(x.primal), *x.terms[1:]))
    return compose(derivatives, zero)


def _select(where: Any, chosen: Value, other: Value) -> Value:
    order = order_of(chosen, other)
    pairs = zip(terms_of(chosen, order), terms_of(other, order), strict=True)
    return from_terms([_select_term(where, a, b) for a, b in pairs])


def _select_term(where: Any, a: Term, b: Term) -> Term:
    if a is None and b is None:
        return None
    return jnp.where(where, 0 if a is None else a, 0 if b is None else b)


@rule("div")
def _div(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    return [divide(*arguments)]


# ---- circular and hyperbolic functions


def _sine_and_cosine(sine: Any, cosine: Any, x: Series, sign: int) -> tuple[Value, Value]:
    """s' = c x', c' = sign * s x'."""
    speeds = [None if c is None else j * c for j, c in enumerate(x.terms)]
    s: list[Term] = [sine]
    c: list[Term] = [cosine]
    for k in range(1, x.order + 1):
        up, down = (convolution(speeds, other, k, start=1) for other in (c, s))
        s.append(None if up is None else up / k)
        c.append(None if down is None else down / (sign * k))
    return from_terms(s), from_terms(c)


@_elementary("sin")
def sin(first: Any, x: Series) -> Value:
    return _sine_and_cosine(first, jnp.cos(x.primal), x, -1)[0]


@_elementary("cos")
def cos(first: Any, x: Series) -> Value:
    return _sine_and_cosine(jnp.sin(x.primal), first, x, -1)[1]


@_elementary("sinh")
def sinh(first: Any, x: Series) -> Value:
    return _sine_and_cosine(first, jnp.cosh(x.primal), x, 1)[0]


@_elementary("cosh")
def cosh(first: Any, x: Series) -> Value:
    return _sine_and_cosine(jnp.sinh(x.primal), first, x, 1)[1]


def _one_plus(term: Term, k: int) -> Term:
    if k:
        return term
    return None if term is None else 1 + term


@_elementary("tan")
def tan(first: Any, x: Series) -> Value:
    return solve_ode(first, x, lambda y, k: _one_plus(square_term(y, k), k))


def _negated(term: Term) -> Term:
    return None if term is None else -term


@_elementary("tanh")
def tanh(first: Any, x: Series) -> Value:
    return solve_ode(first, x, lambda y, k: _one_plus(_negated(square_term(y, k)), k))


@_elementary("logistic")
def logistic(first: Any, x: Series) -> Value:
    return solve_ode(first, x, lambda y, k: total([y[k], _negated(square_term(y, k))]))


@_elementary("asin")
def asin(first: Any, x: Series) -> Value:
    return _integral(first, x, lambda u: _inverse_root(shifted(negative(square(u)), 1)))


@_elementary("acos")
def acos(first: Any, x: Series) -> Value:
    return _integral(first, x, lambda u: negative(_inverse_root(shifted(negative(square(u)), 1))))


@_elementary("asinh")
def asinh(first: Any, x: Series) -> Value:
    return _integral(first, x, lambda u: _inverse_root(shifted(square(u), 1)))


@_elementary("acosh")
def acosh(first: Any, x: Series) -> Value:
    # The factors apart, as for negative x the square would choose the other branch.
    return _integral(
        first, x, lambda u: multiply(_inverse_root(shifted(u, -1)), _inverse_root(shifted(u, 1)))
    )


@_elementary("atan")
def atan(first: Any, x: Series) -> Value:
    return _integral(first, x, lambda u: _reciprocal(shifted(square(u), 1)))


@_elementary("atanh")
def atanh(first: Any, x: Series) -> Value:
    return _integral(first, x, lambda u: _reciprocal(shifted(negative(square(u)), 1)))


def _inverse_root(x: Value) -> Value:
    return power(jax.lax.rsqrt(primal(x)), x, -0.5)


def _reciprocal(x: Value) -> Value:
    return divide(jnp.ones_like(primal(x)), x)


@rule("atan2")
def _atan2(equation: JaxprEqn, arguments: Sequence[Value]) -> list[Value]:
    y, x = arguments
    order = order_of(y, x)
    first = bind(equation, [primal(y), primal(x)])[0]
    a, b = truncated(y, order - 1), truncated(x, order - 1)
    turning = add(multiply(b, derivative(y)), negative(multiply(a, derivative(x))))
    return [antiderivative(first, divide(turning, add(square(a), square(b))), order)]


# ---- error functions


@_elementary("erf")
def erf(first: Any, x: Series) -> Value:
    return _integral(first, x, lambda u: _bell(u, 2 / math.sqrt(math.pi)))


@_elementary("erfc")
def erfc(first: Any, x: Series) -> Value:
    return _integral(first, x, lambda u: _bell(u, -2 / math.sqrt(math.pi)))


def _bell(x: Value, height: float) -> Value:
    argument = negative(square(x))
    return mapped(lambda c: height * c, exponential(jnp.exp(primal(argument)), argument))


@_elementary("erf_inv")
def erf_inv(first: Any, x: Series) -> Value:
    # y' = sqrt(pi)/2 exp(y^2) x'; the exponential's series grows along with y's.
    bell: list[Term] = [math.sqrt(math.pi) / 2 * jnp.exp(first * first)]
    speeds: list[Term] = [None]

    def slope(y: list[Term], k: int) -> Term:
        if k:
            squared = square_term(y, k)
            speeds.append(None if squared is None else k * squared)
            rate = convolution(speeds, bell, k, start=1)
            bell.append(None if rate is None else rate / k)
        return bell[k]

    return solve_ode(first, x, slope)
