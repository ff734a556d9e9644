"""Error functions, gamma functions, Bessel's, Airy's and Lambert's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from flint import arb, arb_series, ctx, fmpq

from nearly.functions.elementary.circular import sine_of_pi
from nearly.functions.elementary.rule import (
    EVEN,
    INF,
    NAN,
    NO_LIMIT,
    ODD,
    ORIGIN,
    Coefficients,
    Rule,
    at,
    convolved,
    integral,
    limits,
    native,
    uncapped,
)


def _gaussian(x: arb, n: int) -> list[arb]:
    """The density of erf: 2/sqrt(pi) exp(-x^2)."""
    g = [2 * (-x * x).exp() / arb.const_sqrt_pi()]
    for k in range(n - 1):
        previous = g[k - 1] if k else arb(0)
        g.append(-2 * (x * g[k] + previous) / (k + 1))
    return g


def _erf(x: arb, n: int) -> list[arb]:
    return integral(x.erf(), _gaussian(x, n - 1) if n > 1 else [])


def erfc_coefficients(x: arb, n: int) -> list[arb]:
    return integral(x.erfc(), [-c for c in _gaussian(x, n - 1)] if n > 1 else [])


def _erfinv(x: arb, n: int) -> list[arb]:
    # y' = g with g = sqrt(pi)/2 exp(y^2), g' = (y^2)' g: for x >= 0 all terms are positive.
    if x < 0:
        return [c if k % 2 else -c for k, c in enumerate(_erfinv(-x, n))]
    y = [x.erfinv()]
    g = [arb.const_sqrt_pi() / 2 * (y[0] * y[0]).exp()]
    slope: list[arb] = []  # of y^2
    for k in range(n - 1):
        y.append(g[k] / (k + 1))
        slope.append((k + 1) * convolved(y, y, k + 1))
        g.append(convolved(slope, g, k) / (k + 1))
    return y


# ------------------------------------------------------------------------------- gamma functions


def _lgamma_at(x: arb) -> arb:
    """log |Gamma(x)|, as C's lgamma: the reflection formula left of 0."""
    if not x < 0:
        return x.lgamma()
    return (arb.pi() / abs(x.sin_pi())).log() - (1 - x).lgamma()


def _lgamma(x: arb, n: int) -> list[arb]:
    if x > 0:
        return native("lgamma")(x, n)
    right = [c if k % 2 else -c for k, c in enumerate(_lgamma(1 - x, n))] if x < 0 else []
    if not right:
        return [arb.nan()] * n
    with uncapped():
        logarithm = -arb_series([*_sinus(x, n)], prec=n).log()
    return [_lgamma_at(x), *(logarithm[k] + right[k] for k in range(1, n))]


def _sinus(x: arb, n: int) -> list[arb]:
    """|sin(pi x)| away from the integers."""
    coefficients = sine_of_pi(x, n)
    return coefficients if coefficients[0] > 0 else [-c for c in coefficients]


def _digamma(x: arb, n: int) -> list[arb]:
    inner = _lgamma(x, n + 1)
    return [x.digamma(), *((k + 1) * inner[k + 1] for k in range(1, n))]


# ---------------------------------------------------------------------------- Bessel and others


def _bessel(kind: str, order: int, signs: tuple[int, int], mirror: int) -> Coefficients:
    """By C^(k) = 2^-k sum_i binomial(k,i) outer^k inner^i C_(order-k+2i), good at 0 too.

    `signs` are (outer, inner); C_(-m) = mirror^m C_m.
    """
    outer, inner = signs

    def coefficients(x: arb, n: int) -> list[arb]:
        known = [getattr(x, kind)(m) for m in range(order + n)]

        def at(m: int) -> arb:
            return known[m] if m >= 0 else known[-m] * mirror ** (-m)

        result = []
        for k in range(n):
            terms = (math.comb(k, i) * inner**i * at(order - k + 2 * i) for i in range(k + 1))
            scale = fmpq(outer**k, math.factorial(k) * 2**k)
            result.append(sum(terms, arb(0)) * arb(scale))
        return result

    return coefficients


def _bessel_at(kind: str, order: int) -> Callable[[arb], arb]:
    return lambda x: getattr(x, kind)(order)


def _lambertw_at(x: arb) -> arb:
    plain = x.lambertw()
    if plain.is_finite() or not x.is_finite():
        return plain
    branch = -(-arb(1)).exp()
    excess = (x.rad() / (1 << 25)).max(arb(2) ** (8 - ctx.prec))
    if x.lower() < branch - excess:
        return plain
    top = x.upper().max((branch + excess).upper())
    return top.lambertw().union(arb(-1))


def _lambertw(x: arb, n: int) -> list[arb]:
    return [_lambertw_at(x), *native("lambertw")(x, n)[1:]]


class _AndNegativeIntegers(Mapping[float, float]):
    """Special values, and one more at every negative integer."""

    def __init__(self, known: Mapping[float, float], value: float) -> None:
        self.known, self.value = known, value

    def __getitem__(self, x: float) -> float:
        return self.value if x < 0 and math.isfinite(x) and x == math.floor(x) else self.known[x]

    def __iter__(self) -> Iterator[float]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


SPECIAL: Mapping[str, Rule] = {
    "erf": Rule(arb.erf, _erf, ODD, ORIGIN, limits(-1.0, 1.0)),
    "erfc": Rule(arb.erfc, erfc_coefficients, None, (), limits(2.0, 0.0)),
    "erfinv": Rule(arb.erfinv, _erfinv, ODD, ORIGIN, {**NO_LIMIT, 1.0: INF, -1.0: -INF}),
    "gamma": Rule(arb.gamma, native("gamma"), None, (), {**limits(NAN, INF), 0.0: INF}),
    "lgamma": Rule(
        _lgamma_at,
        _lgamma,
        None,
        at(1, 2),
        _AndNegativeIntegers({**limits(INF, INF), 0.0: INF}, INF),
    ),
    "digamma": Rule(arb.digamma, _digamma, None, (), {**limits(NAN, INF), 0.0: -INF}),
    "bessel_j0": Rule(
        _bessel_at("bessel_j", 0), _bessel("bessel_j", 0, (1, -1), -1), EVEN, (), limits(0.0, 0.0)
    ),
    "bessel_j1": Rule(
        _bessel_at("bessel_j", 1),
        _bessel("bessel_j", 1, (1, -1), -1),
        ODD,
        ORIGIN,
        limits(-0.0, 0.0),
    ),
    "bessel_y0": Rule(
        _bessel_at("bessel_y", 0),
        _bessel("bessel_y", 0, (1, -1), -1),
        None,
        (),
        {**limits(NAN, 0.0), 0.0: -INF},
    ),
    "bessel_i0": Rule(
        _bessel_at("bessel_i", 0),
        _bessel("bessel_i", 0, (1, 1), 1),
        EVEN,
        (),
        limits(INF, INF),
    ),
    "bessel_i1": Rule(
        _bessel_at("bessel_i", 1),
        _bessel("bessel_i", 1, (1, 1), 1),
        ODD,
        ORIGIN,
        limits(-INF, INF),
    ),
    "bessel_k0": Rule(
        _bessel_at("bessel_k", 0),
        _bessel("bessel_k", 0, (-1, 1), 1),
        None,
        (),
        {**limits(NAN, 0.0), 0.0: INF},
    ),
    "airy_ai": Rule(arb.airy_ai, native("airy_ai"), None, (), limits(0.0, 0.0)),
    "lambertw": Rule(_lambertw_at, _lambertw, None, ORIGIN, limits(NAN, INF)),
}
