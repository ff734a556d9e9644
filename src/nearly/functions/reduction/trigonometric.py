"""sin, cos and tan: by Cody and Waite on bounded domains, by Payne and Hanek on whole formats.

With k the integer nearest to 2x/pi and r = x - k pi/2 = h + l, |r| <= pi/4, by the last two bits
of k, sin x and cos x are +-sin r or +-cos r. Both are computed:

    sin r = h + (h^3 S(h) + l),                       S(x) = (sin x - x)/x^3,
    cos r = first + (error + (h^2 C(h) - h l)),       C(x) = (cos x - 1 + x^2/2)/x^2,

first + error being 1 - h^2/2 (Fast2Sum): h^2's own rounding is all that counts beside the last.

tan: k is the integer nearest to 4x/pi, r = x - k pi/4, |r| <= pi/8, and

    t = tan r = h + (h^3 T(h) + l (1 + h^2)),         T(x) = (tan x - x)/x^3.

tan x is t, (1 + t)/(1 - t), -1/t or -(1 - t)/(1 + t) by the last two bits of k, the last being the
second of -t but for its sign. t, 1 + t and 1 - t are kept as sums of two (Fast2Sum), and the
quotient of two such sums n + n' and d + d' is found in half the bits first, q, and then

    q + (n - q d + n')/(d + d'),   n - q (d + d') = (n - q u) - q ((d - u) + d'),

u being d cut to half the bits: q u is exact, and so is n - q u, which cancels. Only the last sum is
rounded at the size of the result.

k is a number rounded by adding 3*2^(p-2), so its last bits lie at the end of that number.

Near a multiple of pi/2, r is small and needs far more bits of pi/2 than k times a rounded constant
gives: pi/2 = C1 + C2 + ... in parts of p - bits(k) bits, so that every k*Ci is exact without fma
too; the number of parts follows from the domain. Exact steps: k*Ci; x - k C1 - ..., as long as
Ci's last place is at least 2^-p (x and all k*Ci are multiples of it, and the difference is below
1); the differences after that up to an error term which is itself exact: h' = h - w and
(h - h') - w, for either |h| >= |w|, or h - w is exact. See `payne_hanek` for unbounded domains.

Infinity and NaN are selected to give NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import NamedTuple

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import (
    Layout,
    keep_tiny,
    layout,
    nearest_integer,
    real,
    short,
    upper_half,
)
from nearly.functions.reduction.payne_hanek import Angle, payne_hanek
from nearly.functions.reduction.scheme import Reduction

NEAR = Fraction(10000)


def trigonometric(function: Function) -> Reduction:
    """The reduction of sin or cos."""
    place = layout(function)
    sine = _core(function, "(sin(x)-x)/x^3")
    cosine = _core(function, "(cos(x)-1+x^2/2)/x^2")

    def assemble(largest: Fraction | None, sine_core: Program, cosine_core: Program) -> Program:
        b = Builder(function.dtype)
        angle = _reduced(b, place, "pi/2", largest)
        sine = _sine(b, angle, sine_core)
        cosine = _cosine(b, angle, cosine_core)
        turns = b.iadd(angle.k, 1) if function.name == "cos" else angle.k
        sign = b.ishl(b.iand(turns, 2), place.register.bits - 2)
        chosen = b.bits(b.select(_is_odd(b, turns), cosine, sine))
        # Adding the sign's bit flips the sign: its carry is lost.
        result = b.from_bits(b.iadd(chosen, sign))
        return b.program(_special(b, place, function, largest, result))

    return _reduction(function, (sine, cosine), assemble)


def tangent(function: Function) -> Reduction:
    """The reduction of tan."""
    place = layout(function)
    core = _core(function, "(tan(x)-x)/x^3", 2)

    def assemble(largest: Fraction | None, program: Program) -> Program:
        b = Builder(function.dtype)
        value = _tangent(b, place, _reduced(b, place, "pi/4", largest), program)
        return b.program(_special(b, place, function, largest, value))

    return _reduction(function, (core,), assemble)


def _reduction(
    function: Function, cores: tuple[Function, ...], assemble: Callable[..., Program]
) -> Reduction:
    """The reduction, and the cheaper one that numbers as they usually are would do with."""
    largest = _short_domain(layout(function))
    near = None if largest else (float(NEAR), partial(assemble, NEAR))
    return Reduction(function, cores, partial(assemble, largest), near=near)


def _core(function: Function, expression: str, part: int = 1) -> Function:
    """Up to pi/4, or a part of it, and what k may be rounded wrongly by."""
    reach = Fraction("0.7855" if _short_domain(layout(function)) else "0.7916") / part
    return Function(expression, (str(-reach), str(reach)), function.dtype, "absolute")


def _special(
    b: Builder, place: Layout, function: Function, largest: Fraction | None, value: Node
) -> Node:
    """NaN at infinity, and tiny arguments as they are."""
    size = b.abs(b.x)
    if largest is None and place.magnitude is None:
        value = b.select(b.lt(size, math.inf), value, b.constant(math.nan))
    return value if function.name == "cos" else keep_tiny(b, place, size, b.x, value)


def _is_odd(b: Builder, k: Node) -> Node:
    return b.eq(b.iand(k, 1), 1)


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
    rest = b.sub(b.mul(square, b.inline(core, angle.high)), b.mul(angle.high, angle.low))
    return b.add(first, b.add(error, rest))


def _tangent(b: Builder, place: Layout, angle: Angle, core: Program) -> Node:
    h = angle.high
    cube = b.mul(h, b.mul(h, h))
    small = b.fma(cube, b.inline(core, h), b.fma(b.mul(h, h), angle.low, angle.low))
    is_odd = b.eq(b.iand(angle.k, 1), 1)
    is_upper = b.eq(b.iand(angle.k, 2), 2)
    sign = b.select(b.eq(b.iand(angle.k, 3), 3), b.constant(Fraction(-1)), b.constant(Fraction(1)))
    t = _fast_sum(b, b.mul(h, sign), b.mul(small, sign))
    one, zero = b.constant(Fraction(1)), b.constant(Fraction(0))
    above, below = _fast_sum(b, one, t.head), _fast_sum(b, one, b.neg(t.head))
    above = Sum(above.head, b.add(above.tail, t.tail))
    below = Sum(below.head, b.sub(below.tail, t.tail))

    def choose(odd: Node, upper: Node, lower: Node) -> Node:
        return b.select(is_odd, odd, b.select(is_upper, upper, lower))

    top = Sum(choose(above.head, b.neg(one), t.head), choose(above.tail, zero, t.tail))
    bottom = Sum(choose(below.head, t.head, one), choose(below.tail, t.tail, zero))
    return b.mul(sign, _quotient(b, place, top, bottom))


class Sum(NamedTuple):
    """A number as the sum of two, the second being what the rounding of the first has lost."""

    head: Node
    tail: Node


def _fast_sum(b: Builder, large: Node, small: Node) -> Sum:
    head = b.add(large, small)
    return Sum(head, b.add(b.sub(large, head), small))


def _quotient(b: Builder, place: Layout, top: Sum, bottom: Sum) -> Node:
    """top/bottom, rounded once."""
    inverse = b.div(1, bottom.head)
    short = upper_half(b, place, b.mul(top.head, inverse))
    divisor = upper_half(b, place, bottom.head)
    rest = b.add(b.sub(bottom.head, divisor), bottom.tail)
    left = b.sub(b.sub(top.head, b.mul(short, divisor)), b.mul(short, rest))
    return b.fma(b.add(left, top.tail), inverse, short)


def _short_domain(place: Layout) -> Fraction | None:
    """The largest |x|, where it is so small that few parts of pi/2 do."""
    largest = place.magnitude
    if largest is None or largest > Fraction(2) ** (place.precision // 2 + 2):
        return None
    return largest


def _reduced(b: Builder, place: Layout, turn: str, largest: Fraction | None) -> Angle:
    if largest is None:
        return payne_hanek(b, place, turn)
    return cody_waite(b, place, largest, turn)


def cody_waite(b: Builder, place: Layout, largest: Fraction, turn: str = "pi/2") -> Angle:
    """The reduced argument of any |x| <= largest, modulo `turn`."""
    parts, count = in_parts(place, largest, turn)
    shifted, minus_k = nearest_integer(b, place, b.x, 1 / real(turn))
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


def in_parts(
    place: Layout, largest: Fraction, turn: str = "pi/2"
) -> tuple[tuple[Fraction, ...], int]:
    """A turn in parts, each exact times k but the last, and how many leave x - k C exact."""
    rest = real(turn)
    turns = int(largest / rest) + 1
    width = place.precision - turns.bit_length()
    # The closest of the format's numbers to a multiple of pi/2 is about 2^-p from it: an error of
    # 2^-2p, and some bits, is small against that.
    enough = Fraction(2) ** (-2 * place.precision - 8)
    parts: list[Fraction] = []
    while abs(rest) * turns > enough * 2**place.precision:
        parts.append(short(rest, width))
        rest -= parts[-1]
    last_place = Fraction(1, 2**place.precision)
    count = sum((part / last_place).denominator == 1 for part in parts)
    return (*parts, place.register.round(rest)), count
