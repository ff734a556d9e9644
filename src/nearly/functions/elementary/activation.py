"""Activation functions of networks, and rational functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flint import arb, fmpq

from nearly.functions.elementary.rule import (
    EVEN,
    INF,
    ODD,
    ORIGIN,
    Coefficients,
    Rule,
    convolved,
    integral,
    limits,
)
from nearly.functions.elementary.special import erfc_coefficients


def _sigmoid_at(x: arb) -> arb:
    if x < 0:  # so that exp cannot overflow
        e = x.exp()
        return e / (1 + e)
    return 1 / (1 + (-x).exp())


def _sigmoid(x: arb, n: int) -> list[arb]:
    y, z = [_sigmoid_at(x)], [_sigmoid_at(-x)]  # y' = y z, z = 1 - y
    for k in range(n - 1):
        y.append(convolved(y, z, k) / (k + 1))
        z.append(-y[-1])
    return y


def _softplus_at(x: arb) -> arb:
    return x + (-x).exp().log1p() if x > 0 else x.exp().log1p()


def _softplus(x: arb, n: int) -> list[arb]:
    return integral(_softplus_at(x), _sigmoid(x, n - 1) if n > 1 else [])


def _times_x(x: arb, coefficients: Sequence[arb]) -> list[arb]:
    pairs = zip(coefficients, [arb(0), *coefficients], strict=False)
    return [x * c + previous for c, previous in pairs]


def _silu(x: arb, n: int) -> list[arb]:
    return _times_x(x, _sigmoid(x, n))


def _normal_cdf(x: arb, n: int) -> list[arb]:
    scale, result, power = -arb(2).rsqrt(), [], arb(fmpq(1, 2))
    for c in erfc_coefficients(x * scale, n):
        result.append(c * power)
        power = power * scale
    return result


def _gelu(x: arb, n: int) -> list[arb]:
    return _times_x(x, _normal_cdf(x, n))


def _reciprocal(x: arb, n: int) -> list[arb]:
    inverse = 1 / x
    result = [inverse]
    for _ in range(1, n):
        result.append(-result[-1] * inverse)
    return result


def _square(x: arb, n: int) -> list[arb]:
    return [x**2, 2 * x, arb(1), *[arb(0)] * n][:n]


def _abs(x: arb, n: int) -> list[arb]:
    if x > 0 or x < 0:
        return [abs(x), arb(1 if x > 0 else -1), *[arb(0)] * n][:n]
    return [abs(x), *[arb.nan()] * (n - 1)]


def _first(coefficients: Coefficients) -> Callable[[arb], arb]:
    return lambda x: coefficients(x, 1)[0]


ACTIVATION: Mapping[str, Rule] = {
    "sigmoid": Rule(_sigmoid_at, _sigmoid, None, (), limits(0.0, 1.0)),
    "softplus": Rule(_softplus_at, _softplus, None, (), limits(0.0, INF)),
    "silu": Rule(_first(_silu), _silu, None, ORIGIN, limits(-0.0, INF)),
    "gelu": Rule(_first(_gelu), _gelu, None, ORIGIN, limits(-0.0, INF)),
    "ndtr": Rule(_first(_normal_cdf), _normal_cdf, None, (), limits(0.0, 1.0)),
    "reciprocal": Rule(lambda x: 1 / x, _reciprocal, ODD, (), {**limits(-0.0, 0.0), 0.0: INF}),
    "square": Rule(lambda x: x**2, _square, EVEN, ORIGIN, limits(INF, INF)),
    "abs": Rule(abs, _abs, EVEN, (), limits(INF, INF)),
}
