"""Circular and hyperbolic functions and their inverses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from flint import arb, fmpz

from nearly.functions.elementary.rule import (
    EVEN,
    INF,
    NAN,
    NO_LIMIT,
    ODD,
    ORIGIN,
    Coefficients,
    Points,
    Rule,
    convolved,
    limits,
    monotone,
)


def _cycle(derivatives: Callable[[arb], Sequence[arb]]) -> Coefficients:
    """A function whose derivatives repeat."""

    def coefficients(x: arb, n: int) -> list[arb]:
        cycle = derivatives(x)
        return [cycle[k % len(cycle)] / arb(fmpz(math.factorial(k))) for k in range(n)]

    return coefficients


def _sin(x: arb) -> Sequence[arb]:
    s, c = x.sin_cos()
    return (s, c, -s, -c)


def _cos(x: arb) -> Sequence[arb]:
    s, c = x.sin_cos()
    return (c, -s, -c, s)


def _circular_pi(derivatives: Callable[[arb], Sequence[arb]]) -> Coefficients:
    inner = _cycle(derivatives)

    def coefficients(x: arb, n: int) -> list[arb]:
        pi, scale, result = arb.pi(), arb(1), []
        for c in inner(x, n):
            result.append(c * scale)
            scale = scale * pi
        return result

    return coefficients


def _sin_pi(x: arb) -> Sequence[arb]:
    s, c = x.sin_cos_pi()
    return (s, c, -s, -c)


def _cos_pi(x: arb) -> Sequence[arb]:
    s, c = x.sin_cos_pi()
    return (c, -s, -c, s)


sine_of_pi = _circular_pi(_sin_pi)


def _tan(x: arb, n: int) -> list[arb]:
    y = [x.tan()]  # y' = 1 + y^2: all terms of one sign
    for k in range(n - 1):
        y.append((convolved(y, y, k) + (k == 0)) / (k + 1))
    return y


def _tanh(x: arb, n: int) -> list[arb]:
    # y' = s, s' = -2 y s with s = sech^2, so that the tails keep their relative accuracy.
    y, s = [x.tanh()], [x.sech() ** 2]
    for k in range(n - 1):
        y.append(s[k] / (k + 1))
        s.append(-2 * convolved(y, s, k) / (k + 1))
    return y


def _atan(x: arb, n: int) -> list[arb]:
    # The k-th derivative is a power of 1/sqrt(1+x^2) times a sine of a multiple of acot x.
    angle, radius = arb.atan2(arb(1), x), 1 / (1 + x * x).sqrt()
    result, power = [x.atan()], arb(-1)
    for k in range(1, n):
        power = -power * radius
        result.append(power * (k * angle).sin() / k)
    if x.is_zero():
        result[::2] = [arb(0)] * len(result[::2])
    return result


def _asin(x: arb, n: int) -> list[arb]:
    # (1-x^2) y'' = x y': for x >= 0 all terms are positive.
    if x < 0:
        return [c if k % 2 else -c for k, c in enumerate(_asin(-x, n))]
    rest = (1 - x) * (1 + x)
    y = [_ASIN(x), rest.rsqrt()][:n]
    for k in range(n - 2):
        y.append((x * (2 * k + 1) * (k + 1) * y[k + 1] + k * k * y[k]) / (rest * (k + 1) * (k + 2)))
    return y


_ASIN = monotone(arb.asin, -1, 1)
_ACOS = monotone(arb.acos, -1, 1)


def _acos(x: arb, n: int) -> list[arb]:
    return [_ACOS(x), *(-c for c in _asin(x, n)[1:])]


def _asinh(x: arb, n: int) -> list[arb]:
    return _inverse_hyperbolic(x, x.asinh(), 1 + x * x, n)


def _acosh(x: arb, n: int) -> list[arb]:
    return _inverse_hyperbolic(x, _ACOSH(x), (x - 1) * (x + 1), n)


def _inverse_hyperbolic(x: arb, value: arb, rest: arb, n: int) -> list[arb]:
    """(x^2 +- 1) y'' = -x y'."""
    y = [value, rest.rsqrt()][:n]
    for k in range(n - 2):
        terms = x * (2 * k + 1) * (k + 1) * y[k + 1] + k * k * y[k]
        y.append(-terms / (rest * (k + 1) * (k + 2)))
    return y


_ACOSH = monotone(arb.acosh, low=1)


def _atanh(x: arb, n: int) -> list[arb]:
    below, above = 1 / (1 - x), 1 / (1 + x)
    result, p, q = [x.atanh()], arb(1), arb(-1)
    for k in range(1, n):
        p, q = p * below, -q * above
        result.append((p + q) / (2 * k))
    return result


_SINE = (Points(Fraction(0), Fraction(1), "pi"),)
_COSINE = (Points(Fraction(1, 2), Fraction(1), "pi"),)
_INTEGERS = (Points(Fraction(0), Fraction(1)),)
_HALVES = (Points(Fraction(1, 2), Fraction(1)),)


CIRCULAR: Mapping[str, Rule] = {
    "sin": Rule(arb.sin, _cycle(_sin), ODD, _SINE, NO_LIMIT),
    "cos": Rule(arb.cos, _cycle(_cos), EVEN, _COSINE, NO_LIMIT),
    "tan": Rule(arb.tan, _tan, ODD, _SINE, NO_LIMIT),
    "sinpi": Rule(arb.sin_pi, sine_of_pi, ODD, _INTEGERS, NO_LIMIT),
    "cospi": Rule(arb.cos_pi, _circular_pi(_cos_pi), EVEN, _HALVES, NO_LIMIT),
    "asin": Rule(_ASIN, _asin, ODD, ORIGIN, NO_LIMIT),
    "acos": Rule(_ACOS, _acos, None, (), NO_LIMIT),
    "atan": Rule(arb.atan, _atan, ODD, ORIGIN, limits(-math.pi / 2, math.pi / 2)),
    "sinh": Rule(arb.sinh, _cycle(lambda x: x.sinh_cosh()), ODD, ORIGIN, limits(-INF, INF)),
    "cosh": Rule(arb.cosh, _cycle(lambda x: x.sinh_cosh()[::-1]), EVEN, (), limits(INF, INF)),
    "tanh": Rule(arb.tanh, _tanh, ODD, ORIGIN, limits(-1.0, 1.0)),
    "asinh": Rule(arb.asinh, _asinh, ODD, ORIGIN, limits(-INF, INF)),
    "acosh": Rule(_ACOSH, _acosh, None, (), limits(NAN, INF)),
    "atanh": Rule(arb.atanh, _atanh, ODD, ORIGIN, {**NO_LIMIT, 1.0: INF, -1.0: -INF}),
}
