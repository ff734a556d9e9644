"""sin, cos and tan: by Cody and Waite on bounded domains, by Payne and Hanek on whole formats.

With k the integer nearest to 2x/pi and r = x - k pi/2 = h + l, |r| <= pi/4, by the last two bits
of k the result is +-sin r or +-cos r. Both are computed, by

    sin r = h + (h^3 S(h) + l),                    S(x) = (sin x - x)/x^3,
    cos r = first + (error + (h^4 C(h) - h l)),    C(x) = (cos x - 1 + x^2/2)/x^4,

first + error being 1 - h^2/2 (Fast2Sum): h^2's own rounding is all that counts beside the last.

k is a number rounded by adding 3*2^(p-2), so its last bits lie at the end of that number.

Near a multiple of pi/2, r is small and needs far more bits of pi/2 than k times a rounded constant
gives: pi/2 = C1 + C2 + ... in parts of p - bits(k) bits, so that every k*Ci is exact without fma
too; the number of parts follows from the domain. Exact steps: k*Ci; x - k C1 - ..., as long as
Ci's last place is at least 2^-p (x and all k*Ci are multiples of it, and the difference is below
1); the differences after that up to an error term which is itself exact: h' = h - w and
(h - h') - w, for either |h| >= |w|, or h - w is exact. See `payne_hanek` for unbounded domains.

tan is the quotient of the two: three roundings, 2 ULP.

Infinity and NaN are selected to give NaN.
"""

from __future__ import annotations

import math
from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import (
    Layout,
    keep_tiny,
    layout,
    nearest_integer,
    real,
    short,
)
from nearly.functions.reduction.payne_hanek import Angle, payne_hanek
from nearly.functions.reduction.scheme import Reduction

QUARTER = ("-0.7855", "0.7855")  # pi/4 and what k may be rounded wrongly by


def trigonometric(function: Function) -> Reduction:
    """The reduction of sin, cos or tan."""
    place = layout(function)
    sine = Function("(sin(x)-x)/x^3", QUARTER, function.dtype, "absolute")
    cosine = Function("(cos(x)-1+x^2/2)/x^4", QUARTER, function.dtype, "absolute")

    def wrap(sine_core: Program, cosine_core: Program) -> Program:
        b = Builder(function.dtype)
        angle = _reduced(b, place)
        sine = _sine(b, angle, sine_core)
        cosine = _cosine(b, angle, cosine_core)
        result = _turned(b, place, function.name, angle.k, sine, cosine)
        size = b.abs(b.x)
        if place.magnitude is None:
            result = b.select(b.lt(size, math.inf), result, b.constant(math.nan))
        if function.name != "cos":
            result = keep_tiny(b, place, size, b.x, result)
        return b.program(result)

    return Reduction(function, (sine, cosine), wrap, bound=2.5 if function.name == "tan" else 1.0)


def _turned(b: Builder, place: Layout, name: str, k: Node, sine: Node, cosine: Node) -> Node:
    """The function of r + k pi/2 from sin r and cos r."""
    if name == "tan":
        is_odd = b.eq(b.iand(k, 1), 1)
        numerator = b.select(is_odd, b.neg(cosine), sine)
        return b.div(numerator, b.select(is_odd, sine, cosine))
    turns = b.iadd(k, 1) if name == "cos" else k
    is_odd = b.eq(b.iand(turns, 1), 1)
    sign = b.ishl(b.iand(turns, 2), place.register.bits - 2)
    chosen = b.bits(b.select(is_odd, cosine, sine))
    return b.from_bits(b.iadd(chosen, sign))  # flips the sign: its carry is lost


def _sine(b: Builder, angle: Angle, core: Program) -> Node:
    h = angle.high
    cube = b.mul(h, b.mul(h, h))
    return b.add(h, b.fma(cube, b.inline(core, h), angle.low))


def _cosine(b: Builder, angle: Angle, core: Program) -> Node:
    """1 - h^2/2 with its rounding error, and the rest."""
    square = b.mul(angle.high, angle.high)
    half = b.mul(square, Fraction(1, 2))
    first = b.sub(1, half)
    error = b.sub(b.sub(1, first), half)
    lost = b.neg(b.mul(angle.high, angle.low))
    rest = b.fma(b.mul(square, square), b.inline(core, angle.high), lost)
    return b.add(first, b.add(error, rest))


def _reduced(b: Builder, place: Layout) -> Angle:
    largest = place.magnitude
    if largest is None or largest > Fraction(2) ** (place.precision // 2 + 2):
        return payne_hanek(b, place)
    return cody_waite(b, place, largest)


def cody_waite(b: Builder, place: Layout, largest: Fraction) -> Angle:
    """The reduced argument of any |x| <= largest."""
    parts, count = quarter_turns(place, largest)
    shifted, minus_k = nearest_integer(b, place, b.x, real("2/pi"))
    high = b.x
    for part in parts[:count]:
        high = b.fma(minus_k, part, high)
    errors = []
    for part in parts[count:-1]:
        product = b.mul(minus_k, part)
        lower = b.add(high, product)
        errors.append(b.add(b.sub(high, lower), product))
        high = lower
    low = b.mul(minus_k, parts[-1])
    for error in reversed(errors):
        low = b.add(error, low)
    return Angle(b.bits(shifted), high, low)


def quarter_turns(place: Layout, largest: Fraction) -> tuple[tuple[Fraction, ...], int]:
    """pi/2 in parts, each exact times k but the last, and how many of them leave x - k C exact."""
    rest = real("pi/2")
    turns = int(largest / rest) + 1
    width = place.precision - turns.bit_length()
    # The closest of the format's numbers to a multiple of pi/2 is about 2^-p from it: an error of
    # 2^-2p, and some bits, is small against that.
    enough = Fraction(2) ** (-2 * place.precision - 8)
    parts: list[Fraction] = []
    while rest * turns / 2**place.precision > enough:
        parts.append(short(rest, width))
        rest -= parts[-1]
    last_place = Fraction(1, 2**place.precision)
    count = sum((part / last_place).denominator == 1 for part in parts)
    return (*parts, place.register.round(rest)), count
