"""erf and erfc over a whole format.

erf, by a = |x|, up to 1: erf a = a + a P(a^2), P(u) = erf(sqrt u)/sqrt u - 1. Above:
erf a = 1 - R(a)^2, R the square root of erfc, which a polynomial of half the degree approximates as
well as one does erfc itself: it falls off half as fast. Both cores are polynomials in reach, and
together cheaper than an exponential. The variable of the first is u - 1/2, about which the terms
cancel least; that of the second a - 1, for it is there that R counts: an error of R counts R times
in R^2. That is why R's own domain ends before a is held, where erf rounds to 1.

Near 0, erf x = 2x/sqrt(pi): subnormal numbers are not mapped to themselves, and a*P may be
subnormal where the result is not; see `proportional`. NaN passes through.

erfc, by a = |x|: exp(-a^2 - q(a)), by `gaussian`, and 2 less it for negative x.
"""

from __future__ import annotations

from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.gaussian import (
    Gaussian,
    at_most,
    decayed,
    gaussian_cores,
    lifted,
    lowered,
    past,
)
from nearly.functions.reduction.layout import Layout, layout, real
from nearly.functions.reduction.scheme import Reduction

SQUARE = "(x+1/2)^(1/2)"
# Not from -1/2: to the eye of ball arithmetic the root is singular there. The core is smooth.
NEAR = ("-127/256", "1/2")


def erf(function: Function) -> Reduction:
    """The reduction of erf."""
    place = layout(function)
    # From here on 1 - erfc rounds to 1, though erfc be a little wrong.
    end = past("erfc({x})", Fraction(5, 16) / 2**place.precision)
    near = Function(f"erf({SQUARE})/{SQUARE}-1", NEAR, function.dtype, "absolute")
    far_domain = ("0", str(end - 1 - Fraction(9, place.precision)))
    far = Function("erfc(x+1)^(1/2)", far_domain, function.dtype, "absolute")

    def wrap(near_core: Program, far_core: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        held = at_most(b, size, end)
        root = b.inline(far_core, b.sub(held, 1))
        large = b.sub(1, b.mul(root, root))
        tail = b.inline(near_core, b.sub(b.mul(size, size), Fraction(1, 2)))
        small = proportional(b, place, size, tail, real("2/pi^0.5"))
        result = b.select(b.lt(size, 1), small, b.bits(large))
        return b.program(b.from_bits(b.iadd(result, b.iand(b.bits(b.x), place.sign))))

    return Reduction(function, (near, far), wrap)


def proportional(b: Builder, place: Layout, size: Node, tail: Node, slope: Fraction) -> Node:
    """The bits of a + a tail, a >= 0, where that is near slope * a for small a.

    It is computed times a power of two; where it is subnormal, counted in smallest numbers.
    """
    power = 2 * ((place.precision + 1) // 2)
    scaled = lifted(b, place, size, b.bits(size), Fraction(2) ** power)
    value = b.fma(scaled, tail, scaled)
    result = b.bits(b.mul(value, Fraction(1, 2**power)))
    if not place.has_subnormals:
        return result
    integer = Fraction(place.hidden)  # its ulp is 1
    counted = b.fma(value, Fraction(2) ** (place.unit - power), integer)
    is_subnormal = b.lt(b.bits(size), int(place.hidden / slope) + 1)
    return b.select(is_subnormal, b.isub(b.bits(counted), place.bits(integer)), result)


def erfc(function: Function) -> Reduction:
    """The reduction of erfc."""
    place = layout(function)
    end = past("erfc({x})", place.storage.spacing(Fraction(0)) / 4)
    tail = Gaussian("0-log(erfc({x}))-{x}^2", Fraction(1), Fraction(3), end)

    def wrap(*programs: Program) -> Program:
        b = Builder(function.dtype)
        size = at_most(b, b.abs(b.x), end)
        decay = decayed(b, place, tail, size, programs)
        value = b.bits(b.sub(b.sub(1, decay.high), decay.low))
        right = b.from_bits(lowered(b, place, value, decay.power))
        result = b.select(b.lt(b.x, 0), b.sub(2, right), right)
        return b.program(b.select(b.eq(b.x, b.x), result, b.x))

    return Reduction(function, gaussian_cores(tail, function.dtype), wrap)
