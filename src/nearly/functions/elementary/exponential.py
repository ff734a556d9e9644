"""Exponentials, logarithms, powers and roots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

from flint import arb

from nearly.functions.elementary.rule import (
    INF,
    NAN,
    ODD,
    ONE,
    ORIGIN,
    Coefficients,
    Rule,
    ball,
    limits,
    monotone,
)


def _exponential(base: Callable[[], arb], value: Callable[[arb], arb]) -> Coefficients:
    def coefficients(x: arb, n: int) -> list[arb]:
        rate = base()
        result = [value(x)]
        for k in range(1, n):
            result.append(result[-1] * rate / k)
        return result

    return coefficients


def _exp2(x: arb) -> arb:
    return arb(2) ** x


def _exp10(x: arb) -> arb:
    return arb(10) ** x


def _expm1(x: arb, n: int) -> list[arb]:
    return [x.expm1(), *_exponential(lambda: arb(1), arb.exp)(x, n)[1:]]


def _logarithm(base: Callable[[], arb] | None, value: Callable[[arb], arb]) -> Coefficients:
    def coefficients(x: arb, n: int) -> list[arb]:
        scale = arb(1) if base is None else 1 / base().log()
        step, power = -1 / x, -scale
        result = [value(x)]
        for k in range(1, n):
            power = power * step
            result.append(power / k)
        return result

    return coefficients


def _log2(x: arb) -> arb:
    if x.is_exact() and x > 0:
        mantissa, power = x.man_exp()
        if mantissa == 1:
            return arb(power)
    return x.log() / arb.const_log2()


def _log10(x: arb) -> arb:
    if x.is_exact() and 1 <= x < arb(10) ** 30:
        exact = _exact_power_of_ten(x)
        if exact is not None:
            return arb(exact)
    return x.log() / arb.const_log10()


def _exact_power_of_ten(x: arb) -> int | None:
    number = x.unique_fmpz() if x.is_integer() else None
    if number is None:
        return None
    digits = str(number)
    return len(digits) - 1 if digits == "1" + "0" * (len(digits) - 1) else None


def _log1p(x: arb, n: int) -> list[arb]:
    return [x.log1p(), *_logarithm(None, arb.log)(1 + x, n)[1:]]


def power_coefficients(x: arb, exponent: Fraction, n: int) -> list[arb]:
    """Taylor coefficients of x^exponent for a non-integer exponent, x > 0."""
    result = [power_value(x, exponent)]
    for k in range(1, n):
        factor = exponent - k + 1
        result.append(result[-1] * factor.numerator / (k * factor.denominator) / x)
    return result


def power_value(x: arb, exponent: Fraction) -> arb:
    """x^exponent for a non-integer exponent: NaN where x < 0; a ball may reach 0 from above."""
    return _POWERS.get(exponent, _any_power(exponent))(x)


def _any_power(exponent: Fraction) -> Callable[[arb], arb]:
    def plain(x: arb) -> arb:
        if x.is_zero():
            return arb(0) if exponent > 0 else arb.nan()
        return x ** ball(exponent) if x > 0 else arb.nan()

    return monotone(plain, low=0)


_POWERS: Mapping[Fraction, Callable[[arb], arb]] = {
    Fraction(1, 2): monotone(arb.sqrt, low=0),
    Fraction(-1, 2): arb.rsqrt,
}


def _root(exponent: Fraction) -> Coefficients:
    return lambda x, n: power_coefficients(x, exponent, n)


def _cbrt_at(x: arb) -> arb:
    return -(-x).root(3) if x < 0 else x.root(3)


def _cbrt(x: arb, n: int) -> list[arb]:
    if x < 0:
        return [c if k % 2 else -c for k, c in enumerate(_cbrt(-x, n))]
    result = [_CBRT(x)]
    for k in range(1, n):
        result.append(result[-1] * (4 - 3 * k) / (3 * k) / x)
    return result


_CBRT = monotone(_cbrt_at)

EXPONENTIAL: Mapping[str, Rule] = {
    "exp": Rule(arb.exp, _exponential(lambda: arb(1), arb.exp), special=limits(0.0, INF)),
    "exp2": Rule(_exp2, _exponential(arb.const_log2, _exp2), special=limits(0.0, INF)),
    "exp10": Rule(_exp10, _exponential(arb.const_log10, _exp10), special=limits(0.0, INF)),
    "expm1": Rule(arb.expm1, _expm1, None, ORIGIN, limits(-1.0, INF)),
    "log": Rule(arb.log, _logarithm(None, arb.log), None, ONE, {**limits(NAN, INF), 0.0: -INF}),
    "log2": Rule(
        _log2,
        _logarithm(lambda: arb(2), _log2),
        None,
        ONE,
        {**limits(NAN, INF), 0.0: -INF},
    ),
    "log10": Rule(
        _log10,
        _logarithm(lambda: arb(10), _log10),
        None,
        ONE,
        {**limits(NAN, INF), 0.0: -INF},
    ),
    "log1p": Rule(arb.log1p, _log1p, None, ORIGIN, {**limits(NAN, INF), -1.0: -INF}),
    "sqrt": Rule(_POWERS[Fraction(1, 2)], _root(Fraction(1, 2)), special=limits(NAN, INF)),
    "rsqrt": Rule(arb.rsqrt, _root(Fraction(-1, 2)), special={**limits(NAN, 0.0), 0.0: INF}),
    "cbrt": Rule(_CBRT, _cbrt, ODD, special=limits(-INF, INF)),
}
