"""Balls and power series of them: exact points, and what two enclosures leave."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from flint import arb, arb_series, ctx, fmpq

from nearly.functions.elementary.rule import uncapped


def exact(x: arb | Fraction | int) -> arb:
    """A Fraction as a ball of the working precision; a ball as it is."""
    return arb(fmpq(x.numerator, x.denominator)) if isinstance(x, Fraction) else arb(x)


def to_fraction(ball: arb) -> Fraction:
    """The midpoint of a ball, exactly."""
    mantissa, power = ball.mid().man_exp()
    return Fraction(int(mantissa)) * Fraction(2) ** int(power)


def is_narrow(x: arb) -> bool:
    """Whether a ball is a point up to rounding."""
    return x.is_exact() or not x.is_finite() or x.rel_accuracy_bits() > ctx.prec // 2


def meet(a: arb, b: arb) -> arb:
    """What two enclosures of one number leave."""
    if not a.is_finite():
        return b
    return a.intersection(b) if b.is_finite() else a


def compose(coefficients: Sequence[arb], s: arb_series) -> arb_series:
    """sum_k c_k (s - s_0)^k, of the length of `s`."""
    n = s.prec
    if s.length() <= 2:
        slope, power, scaled = s[1] if n > 1 else arb(0), arb(1), []
        for c in coefficients:
            scaled.append(c * power)
            power = power * slope
        return arb_series(scaled, prec=n)
    with uncapped():
        rest = arb_series([arb(0), *(s[k] for k in range(1, n))], prec=n)
        total = arb_series([coefficients[-1]], prec=n)
        for c in reversed(coefficients[:-1]):
            total = total * rest + arb_series([c], prec=n)
    return total
