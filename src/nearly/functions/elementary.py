"""Rules of the named functions: an enclosure of the value, and of the Taylor coefficients.

Every rule takes a ball and gives balls that contain the true number for *every* point of the
argument: over a wide ball the k-th coefficient bounds the Taylor remainder of order k. Where Arb
has no power series (Bessel, inverse erf, digamma, tanh, asinh …) the coefficients come from the
differential equation or from a formula for the derivatives. The forms are chosen so that the terms
have one sign where that is possible: then a wide argument does not blow up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from flint import arb, arb_series, ctx, fmpq, fmpz

Coefficients = Callable[[arb, int], list[arb]]


@contextmanager
def uncapped() -> Iterator[None]:
    """Lift flint's global cap on the length of series, which would silently drop coefficients.

    Inside, every series must be made with its own `prec`.
    """
    cap = ctx.cap
    ctx.cap = 1 << 20
    try:
        yield
    finally:
        ctx.cap = cap


@dataclass(frozen=True)
class Points:
    """The points `(first + k*step) * unit` for every integer k; a step of 0 is a single point."""

    first: Fraction
    step: Fraction = Fraction(0)
    unit: str = "1"

    def within(self, low: arb, high: arb, most: int) -> Iterator[str]:
        """The points in [low, high], as constant expressions; at most `most`, the inner ones."""
        unit = arb.pi() if self.unit == "pi" else arb(1)
        a, b = low / unit, high / unit
        for k in self._indices(a, b, most):
            point = self.first + k * self.step
            if not (_ball(point) < a or _ball(point) > b):
                yield self._text(point)

    def _indices(self, a: arb, b: arb, most: int) -> range:
        if not self.step:
            return range(1)
        first, step = _ball(self.first), _ball(self.step)
        start = math.ceil(float(((a - first) / step).lower()))
        stop = math.floor(float(((b - first) / step).upper()))
        if stop - start >= most:
            start = min(max(start, -most // 2), stop - most)
            stop = start + most
        return range(start, stop + 1)

    def _text(self, point: Fraction) -> str:
        if self.unit == "1" or point == 0:
            return str(point)
        return (
            "pi"
            if point == 1
            else f"{point.numerator}*pi"
            + (f"/{point.denominator}" if point.denominator > 1 else "")
        )


def _at(*points: int) -> tuple[Points, ...]:
    return tuple(Points(Fraction(p)) for p in points)


@dataclass(frozen=True)
class Rule:
    """What is known about a named function.

    **Arguments:**

    - `value`: ball -> ball.
    - `coefficients`: (ball, n) -> its first n Taylor coefficients.
    - `parity`: `"odd"`, `"even"` or `None`.
    - `zeros`: where it is exactly zero (all such points that are rational or multiples of pi).
    - `special`: IEEE results where there is no finite value: at infinities and at poles.
    """

    value: Callable[[arb], arb]
    coefficients: Coefficients
    parity: str | None = None
    zeros: tuple[Points, ...] = ()
    special: Mapping[float, float] | None = None


def _ball(number: Fraction | int) -> arb:
    return arb(fmpq(number.numerator, number.denominator))


def _convolved(a: Sequence[arb], b: Sequence[arb], k: int) -> arb:
    """The k-th coefficient of a product."""
    return sum((a[i] * b[k - i] for i in range(k + 1)), arb(0))


def _integral(constant: arb, derivative: Sequence[arb]) -> list[arb]:
    return [constant, *(c / (k + 1) for k, c in enumerate(derivative))]


def _native(name: str) -> Coefficients:
    """Arb's own power series."""

    def coefficients(x: arb, n: int) -> list[arb]:
        with uncapped():
            series = getattr(arb_series([x, 1], prec=n), name)()
        return [series[k] for k in range(n)]

    return coefficients


def _monotone(
    f: Callable[[arb], arb], low: int | None = None, high: int | None = None
) -> Callable[[arb], arb]:
    """A monotone function whose domain [low, high] a ball may touch.

    Balls round outwards, so one meant to end at 0 reaches 2^-30 of its radius below it: that much
    is cut off, more is not.
    """

    def value(x: arb) -> arb:
        plain = f(x)
        if plain.is_finite() or x.is_exact() or not x.is_finite():
            return plain
        excess = x.rad() / (1 << 25)
        ends = [x.lower(), x.upper()]
        if low is not None and low - excess <= ends[0] <= low:
            ends[0] = arb(low)
        if high is not None and high <= ends[1] <= high + excess:
            ends[1] = arb(high)
        return f(ends[0]).union(f(ends[1]))

    return value


# ------------------------------------------------------------------ exponentials and logarithms


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
        return x ** _ball(exponent) if x > 0 else arb.nan()

    return _monotone(plain, low=0)


_POWERS: Mapping[Fraction, Callable[[arb], arb]] = {
    Fraction(1, 2): _monotone(arb.sqrt, low=0),
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


_CBRT = _monotone(_cbrt_at)


# --------------------------------------------------------------- circular and hyperbolic functions


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


def _tan(x: arb, n: int) -> list[arb]:
    y = [x.tan()]  # y' = 1 + y^2: all terms of one sign
    for k in range(n - 1):
        y.append((_convolved(y, y, k) + (k == 0)) / (k + 1))
    return y


def _tanh(x: arb, n: int) -> list[arb]:
    # y' = s, s' = -2 y s with s = sech^2, so that the tails keep their relative accuracy.
    y, s = [x.tanh()], [x.sech() ** 2]
    for k in range(n - 1):
        y.append(s[k] / (k + 1))
        s.append(-2 * _convolved(y, s, k) / (k + 1))
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


_ASIN = _monotone(arb.asin, -1, 1)
_ACOS = _monotone(arb.acos, -1, 1)


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


_ACOSH = _monotone(arb.acosh, low=1)


def _atanh(x: arb, n: int) -> list[arb]:
    below, above = 1 / (1 - x), 1 / (1 + x)
    result, p, q = [x.atanh()], arb(1), arb(-1)
    for k in range(1, n):
        p, q = p * below, -q * above
        result.append((p + q) / (2 * k))
    return result


# ------------------------------------------------------------------------------ error functions


def _gaussian(x: arb, n: int) -> list[arb]:
    """The density of erf: 2/sqrt(pi) exp(-x^2)."""
    g = [2 * (-x * x).exp() / arb.const_sqrt_pi()]
    for k in range(n - 1):
        previous = g[k - 1] if k else arb(0)
        g.append(-2 * (x * g[k] + previous) / (k + 1))
    return g


def _erf(x: arb, n: int) -> list[arb]:
    return _integral(x.erf(), _gaussian(x, n - 1) if n > 1 else [])


def _erfc(x: arb, n: int) -> list[arb]:
    return _integral(x.erfc(), [-c for c in _gaussian(x, n - 1)] if n > 1 else [])


def _erfinv(x: arb, n: int) -> list[arb]:
    # y' = g with g = sqrt(pi)/2 exp(y^2), g' = (y^2)' g: for x >= 0 all terms are positive.
    if x < 0:
        return [c if k % 2 else -c for k, c in enumerate(_erfinv(-x, n))]
    y = [x.erfinv()]
    g = [arb.const_sqrt_pi() / 2 * (y[0] * y[0]).exp()]
    slope: list[arb] = []  # of y^2
    for k in range(n - 1):
        y.append(g[k] / (k + 1))
        slope.append((k + 1) * _convolved(y, y, k + 1))
        g.append(_convolved(slope, g, k) / (k + 1))
    return y


# ------------------------------------------------------------------------------- gamma functions


def _lgamma_at(x: arb) -> arb:
    """log |Gamma(x)|, as C's lgamma: the reflection formula left of 0."""
    if not x < 0:
        return x.lgamma()
    return (arb.pi() / abs(x.sin_pi())).log() - (1 - x).lgamma()


def _lgamma(x: arb, n: int) -> list[arb]:
    if x > 0:
        return _native("lgamma")(x, n)
    right = [c if k % 2 else -c for k, c in enumerate(_lgamma(1 - x, n))] if x < 0 else []
    if not right:
        return [arb.nan()] * n
    with uncapped():
        logarithm = -arb_series([*_sinus(x, n)], prec=n).log()
    return [_lgamma_at(x), *(logarithm[k] + right[k] for k in range(1, n))]


def _sinus(x: arb, n: int) -> list[arb]:
    """|sin(pi x)| away from the integers."""
    coefficients = _circular_pi(_sin_pi)(x, n)
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


# ---------------------------------------------------------------------- activation functions etc.


def _sigmoid_at(x: arb) -> arb:
    if x < 0:  # so that exp cannot overflow
        e = x.exp()
        return e / (1 + e)
    return 1 / (1 + (-x).exp())


def _sigmoid(x: arb, n: int) -> list[arb]:
    y, z = [_sigmoid_at(x)], [_sigmoid_at(-x)]  # y' = y z, z = 1 - y
    for k in range(n - 1):
        y.append(_convolved(y, z, k) / (k + 1))
        z.append(-y[-1])
    return y


def _softplus_at(x: arb) -> arb:
    return x + (-x).exp().log1p() if x > 0 else x.exp().log1p()


def _softplus(x: arb, n: int) -> list[arb]:
    return _integral(_softplus_at(x), _sigmoid(x, n - 1) if n > 1 else [])


def _times_x(x: arb, coefficients: Sequence[arb]) -> list[arb]:
    pairs = zip(coefficients, [arb(0), *coefficients], strict=False)
    return [x * c + previous for c, previous in pairs]


def _silu(x: arb, n: int) -> list[arb]:
    return _times_x(x, _sigmoid(x, n))


def _normal_cdf(x: arb, n: int) -> list[arb]:
    scale, result, power = -arb(2).rsqrt(), [], arb(fmpq(1, 2))
    for c in _erfc(x * scale, n):
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
    return [_lambertw_at(x), *_native("lambertw")(x, n)[1:]]


def _abs(x: arb, n: int) -> list[arb]:
    if x > 0 or x < 0:
        return [abs(x), arb(1 if x > 0 else -1), *[arb(0)] * n][:n]
    return [abs(x), *[arb.nan()] * (n - 1)]


def _first(coefficients: Coefficients) -> Callable[[arb], arb]:
    return lambda x: coefficients(x, 1)[0]


_INF = math.inf
_NAN = math.nan
_ODD, _EVEN = "odd", "even"
_WHOLE = {-_INF: _NAN, _INF: _NAN}  # no limit


def _limits(low: float, high: float) -> dict[float, float]:
    return {-_INF: low, _INF: high}


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


_SINE = (Points(Fraction(0), Fraction(1), "pi"),)
_COSINE = (Points(Fraction(1, 2), Fraction(1), "pi"),)
_INTEGERS = (Points(Fraction(0), Fraction(1)),)
_HALVES = (Points(Fraction(1, 2), Fraction(1)),)
_ORIGIN = _at(0)
_ONE = _at(1)

RULES: Mapping[str, Rule] = {
    "exp": Rule(arb.exp, _exponential(lambda: arb(1), arb.exp), special=_limits(0.0, _INF)),
    "exp2": Rule(_exp2, _exponential(arb.const_log2, _exp2), special=_limits(0.0, _INF)),
    "exp10": Rule(_exp10, _exponential(arb.const_log10, _exp10), special=_limits(0.0, _INF)),
    "expm1": Rule(arb.expm1, _expm1, None, _ORIGIN, _limits(-1.0, _INF)),
    "log": Rule(
        arb.log, _logarithm(None, arb.log), None, _ONE, {**_limits(_NAN, _INF), 0.0: -_INF}
    ),
    "log2": Rule(
        _log2,
        _logarithm(lambda: arb(2), _log2),
        None,
        _ONE,
        {**_limits(_NAN, _INF), 0.0: -_INF},
    ),
    "log10": Rule(
        _log10,
        _logarithm(lambda: arb(10), _log10),
        None,
        _ONE,
        {**_limits(_NAN, _INF), 0.0: -_INF},
    ),
    "log1p": Rule(arb.log1p, _log1p, None, _ORIGIN, {**_limits(_NAN, _INF), -1.0: -_INF}),
    "sqrt": Rule(_POWERS[Fraction(1, 2)], _root(Fraction(1, 2)), special=_limits(_NAN, _INF)),
    "rsqrt": Rule(arb.rsqrt, _root(Fraction(-1, 2)), special={**_limits(_NAN, 0.0), 0.0: _INF}),
    "cbrt": Rule(_CBRT, _cbrt, _ODD, special=_limits(-_INF, _INF)),
    "sin": Rule(arb.sin, _cycle(_sin), _ODD, _SINE, _WHOLE),
    "cos": Rule(arb.cos, _cycle(_cos), _EVEN, _COSINE, _WHOLE),
    "tan": Rule(arb.tan, _tan, _ODD, _SINE, _WHOLE),
    "sinpi": Rule(arb.sin_pi, _circular_pi(_sin_pi), _ODD, _INTEGERS, _WHOLE),
    "cospi": Rule(arb.cos_pi, _circular_pi(_cos_pi), _EVEN, _HALVES, _WHOLE),
    "asin": Rule(_ASIN, _asin, _ODD, _ORIGIN, _WHOLE),
    "acos": Rule(_ACOS, _acos, None, (), _WHOLE),
    "atan": Rule(arb.atan, _atan, _ODD, _ORIGIN, _limits(-math.pi / 2, math.pi / 2)),
    "sinh": Rule(arb.sinh, _cycle(lambda x: x.sinh_cosh()), _ODD, _ORIGIN, _limits(-_INF, _INF)),
    "cosh": Rule(arb.cosh, _cycle(lambda x: x.sinh_cosh()[::-1]), _EVEN, (), _limits(_INF, _INF)),
    "tanh": Rule(arb.tanh, _tanh, _ODD, _ORIGIN, _limits(-1.0, 1.0)),
    "asinh": Rule(arb.asinh, _asinh, _ODD, _ORIGIN, _limits(-_INF, _INF)),
    "acosh": Rule(_ACOSH, _acosh, None, (), _limits(_NAN, _INF)),
    "atanh": Rule(arb.atanh, _atanh, _ODD, _ORIGIN, {**_WHOLE, 1.0: _INF, -1.0: -_INF}),
    "erf": Rule(arb.erf, _erf, _ODD, _ORIGIN, _limits(-1.0, 1.0)),
    "erfc": Rule(arb.erfc, _erfc, None, (), _limits(2.0, 0.0)),
    "erfinv": Rule(arb.erfinv, _erfinv, _ODD, _ORIGIN, {**_WHOLE, 1.0: _INF, -1.0: -_INF}),
    "gamma": Rule(arb.gamma, _native("gamma"), None, (), {**_limits(_NAN, _INF), 0.0: _INF}),
    "lgamma": Rule(
        _lgamma_at,
        _lgamma,
        None,
        _at(1, 2),
        _AndNegativeIntegers({**_limits(_INF, _INF), 0.0: _INF}, _INF),
    ),
    "digamma": Rule(arb.digamma, _digamma, None, (), {**_limits(_NAN, _INF), 0.0: -_INF}),
    "bessel_j0": Rule(
        _bessel_at("bessel_j", 0), _bessel("bessel_j", 0, (1, -1), -1), _EVEN, (), _limits(0.0, 0.0)
    ),
    "bessel_j1": Rule(
        _bessel_at("bessel_j", 1),
        _bessel("bessel_j", 1, (1, -1), -1),
        _ODD,
        _ORIGIN,
        _limits(-0.0, 0.0),
    ),
    "bessel_y0": Rule(
        _bessel_at("bessel_y", 0),
        _bessel("bessel_y", 0, (1, -1), -1),
        None,
        (),
        {**_limits(_NAN, 0.0), 0.0: -_INF},
    ),
    "bessel_i0": Rule(
        _bessel_at("bessel_i", 0),
        _bessel("bessel_i", 0, (1, 1), 1),
        _EVEN,
        (),
        _limits(_INF, _INF),
    ),
    "bessel_i1": Rule(
        _bessel_at("bessel_i", 1),
        _bessel("bessel_i", 1, (1, 1), 1),
        _ODD,
        _ORIGIN,
        _limits(-_INF, _INF),
    ),
    "bessel_k0": Rule(
        _bessel_at("bessel_k", 0),
        _bessel("bessel_k", 0, (-1, 1), 1),
        None,
        (),
        {**_limits(_NAN, 0.0), 0.0: _INF},
    ),
    "airy_ai": Rule(arb.airy_ai, _native("airy_ai"), None, (), _limits(0.0, 0.0)),
    "lambertw": Rule(_lambertw_at, _lambertw, None, _ORIGIN, _limits(_NAN, _INF)),
    "sigmoid": Rule(_sigmoid_at, _sigmoid, None, (), _limits(0.0, 1.0)),
    "softplus": Rule(_softplus_at, _softplus, None, (), _limits(0.0, _INF)),
    "silu": Rule(_first(_silu), _silu, None, _ORIGIN, _limits(-0.0, _INF)),
    "gelu": Rule(_first(_gelu), _gelu, None, _ORIGIN, _limits(-0.0, _INF)),
    "ndtr": Rule(_first(_normal_cdf), _normal_cdf, None, (), _limits(0.0, 1.0)),
    "reciprocal": Rule(lambda x: 1 / x, _reciprocal, _ODD, (), {**_limits(-0.0, 0.0), 0.0: _INF}),
    "square": Rule(lambda x: x**2, _square, _EVEN, _ORIGIN, _limits(_INF, _INF)),
    "abs": Rule(abs, _abs, _EVEN, (), _limits(_INF, _INF)),
}
