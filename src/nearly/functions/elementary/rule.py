"""What is known about a named function, and what the families of functions share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from flint import arb, arb_series, ctx, fmpq

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
            if not (ball(point) < a or ball(point) > b):
                yield self._text(point)

    def _indices(self, a: arb, b: arb, most: int) -> range:
        if not self.step:
            return range(1)
        first, step = ball(self.first), ball(self.step)
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


def at(*points: int) -> tuple[Points, ...]:
    """Single points."""
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


def ball(number: Fraction | int) -> arb:
    """A rational number at the working precision."""
    return arb(fmpq(number.numerator, number.denominator))


def convolved(a: Sequence[arb], b: Sequence[arb], k: int) -> arb:
    """The k-th coefficient of a product."""
    return sum((a[i] * b[k - i] for i in range(k + 1)), arb(0))


def integral(constant: arb, derivative: Sequence[arb]) -> list[arb]:
    """The coefficients of an antiderivative."""
    return [constant, *(c / (k + 1) for k, c in enumerate(derivative))]


def native(name: str) -> Coefficients:
    """Arb's own power series."""

    def coefficients(x: arb, n: int) -> list[arb]:
        with uncapped():
            series = getattr(arb_series([x, 1], prec=n), name)()
        return [series[k] for k in range(n)]

    return coefficients


def monotone(
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


INF = math.inf
NAN = math.nan
ODD = "odd"
EVEN = "even"
NO_LIMIT = {-INF: NAN, INF: NAN}
ORIGIN = at(0)
ONE = at(1)


def limits(low: float, high: float) -> dict[float, float]:
    """Special values at the infinities."""
    return {-INF: low, INF: high}
