"""sqrt, rsqrt and cbrt over a whole format.

sqrt is an instruction; what is left are subnormal arguments, which become normal as integers:
x = 2^-(unit + 1) * 2n for an odd unit.

rsqrt: x = 4^h m with m in [1, 4); subnormal x have a negative exponent field, see `normalised`. A
first guess y of 1/sqrt m comes from half of m's bits, read as an integer, and is cut to p/2 bits,
so that y^2 is exact. Then m y^2 = 1 + d, and 1/sqrt m = y + y d g(d) with the core
g(d) = ((1 + d)^(-1/2) - 1)/d: the correction is small, and the sum is rounded once. The guess is
low on purpose, -0.12 <= d <= 0: m y^2 is then rounded below 1, where numbers are twice as close,
and costs a quarter of an ULP; the difference to 1 is exact. The two roundings of a square root and
a division are worth 1.5 ULP, and mending them is dearer than doing without both.

cbrt: a first guess y of few bits comes from a third of x's bits, read as an integer (a linear
interpolation of the logarithm, right to a twentieth), cut to p/3 bits so that y^3 is exact. Then
x = y^3 (1 + d), and cbrt x = y + y d g(d), g(d) = ((1 + d)^(1/3) - 1)/d: the correction is small,
and the sum is rounded once, at 0.6 ULP. Exact: y^3, x - y^3 (x is between half and twice y^3).
Everything is done at a distance from subnormal numbers and overflow, x * 2^(3m), and scaled back.
"""

from __future__ import annotations

import math
from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import Layout, give_sign, layout
from nearly.functions.reduction.logarithm import is_positive_finite, normalised
from nearly.functions.reduction.scheme import Reduction

THIRD = Fraction(1, 3)


def sqrt(function: Function) -> Reduction:
    """sqrt over a whole format: correctly rounded; no core."""
    place = layout(function)

    def wrap() -> Program:
        b = Builder(function.dtype)
        value = _scaled_root(b, place) if place.has_subnormals else b.sqrt(b.x)
        return b.program(b.select(b.eq(b.bits(b.x), place.sign), b.x, value))

    return Reduction(function, (), wrap, bound=0.5)


def _scaled_root(b: Builder, place: Layout) -> Node:
    """The root of x, where x is subnormal by that of 2^(unit + 1) x."""
    bits = b.bits(b.x)
    is_small = b.lt(bits, place.hidden)  # negative numbers too, whose integer has no root either
    doubled = b.mul(b.to_float(bits), 2 ** (1 + (place.unit + 1) % 2))
    half = (place.unit + 2) // 2
    scale = b.select(is_small, b.constant(Fraction(1, 2**half)), b.constant(Fraction(1)))
    return b.mul(b.sqrt(b.select(is_small, doubled, b.x)), scale)


def rsqrt(function: Function) -> Reduction:
    """The reduction of rsqrt, which is +inf at both zeros, as its limit is."""
    place = layout(function)
    core = Function("((1+x)^(-1/2)-1)/x", ("-0.12", "0.001"), function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        given = b.bits(b.x)
        bits = normalised(b, place, given)
        one = place.register.emax << place.mantissa
        scale = b.iand(b.isub(bits, one), -2 << place.mantissa)
        quarter = b.isub(bits, scale)
        guess = _reciprocal_guess(b, place, quarter)
        d = b.fma(b.from_bits(quarter), b.mul(guess, guess), -1)
        root = b.fma(b.mul(guess, d), b.inline(program, d), guess)
        value = b.from_bits(b.isub(b.bits(root), b.ishr(scale, 1)))
        special = _reciprocal_special(b, place, given)
        return b.program(b.select(is_positive_finite(b, place, given), value, special))

    return Reduction(function, (core,), wrap)


def _reciprocal_guess(b: Builder, place: Layout, bits: Node) -> Node:
    """1/sqrt x for x in [1, 4), at most 6.3% below, in p/2 bits."""
    # As in `_guess`: log2(y sqrt x) = e(y) + e(x)/2 - offset, and e(y) + e(x)/2 is at most 0.119.
    level = Fraction(3, 2) * place.register.emax - Fraction(119, 1000)
    guess = b.isub(int(level * place.hidden), b.ishr(bits, 1))
    return b.from_bits(b.iand(guess, -1 << (place.precision - place.precision // 2)))


def _reciprocal_special(b: Builder, place: Layout, bits: Node) -> Node:
    """+inf at both zeros, 0 at infinity, NaN elsewhere; see `logarithm` on comparisons."""
    infinity = (2 * place.register.emax + 1) << place.mantissa
    # Between them the bits of infinity and NaN are the other way round.
    mirrored = b.isub(infinity, b.isub(bits, b.iand(bits, place.sign)))
    is_negative = b.lt(b.isub(bits, 1), -1)
    return b.select(is_negative, b.constant(math.nan), b.from_bits(mirrored))


def cbrt(function: Function) -> Reduction:
    """The reduction of cbrt."""
    place = layout(function)
    core = Function("((1+x)^(1/3)-1)/x", ("-0.15", "0.15"), function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        given = b.bits(b.x)
        size_bits = b.isub(given, b.iand(given, place.sign))
        scaled, scale = _moved(b, place, size_bits)
        guess = _guess(b, place, scaled)
        cube = b.mul(guess, b.mul(guess, guess))
        d = b.div(b.sub(scaled, cube), cube)
        root = b.fma(b.mul(guess, d), b.inline(program, d), guess)
        signed = give_sign(b, place, b.mul(root, scale), b.x)
        return b.program(b.select(is_positive_finite(b, place, size_bits), signed, b.x))

    return Reduction(function, (core,), wrap)


def _moved(b: Builder, place: Layout, bits: Node) -> tuple[Node, Node]:
    """a * 2^(3m) and 2^-m: up where a is small, elsewhere down, as y^3 may exceed it."""
    third = -(-(place.unit + 2 * place.precision) // 3)
    is_small = b.lt(bits, place.bits(Fraction(2) ** (place.register.emin + 2 * place.precision)))
    up, down = (b.constant((3 * m) << place.mantissa) for m in (third, -1))
    scale = b.select(is_small, b.constant(Fraction(1, 2**third)), b.constant(Fraction(2)))
    moved = b.from_bits(b.iadd(bits, b.select(is_small, up, down)))
    if place.has_subnormals:
        subnormal = b.mul(b.to_float(bits), Fraction(2) ** (3 * third - place.unit))
        moved = b.select(b.lt(bits, place.hidden), subnormal, moved)
    return moved, scale


def _guess(b: Builder, place: Layout, x: Node) -> Node:
    """cbrt x to a twentieth, in p/3 bits."""
    # bits(x) / 2^mantissa = log2 x + bias - e(x) with 0 <= e <= 0.087. So a third of it and two
    # thirds of the bias are bits(y) of a y with log2(y / cbrt x) = e(y) - e(x)/3, in [-0.03, 0.09]
    # and by cutting y 0.012 lower. The middle of that is taken off: |d| <= 0.15.
    offset = Fraction(2, 3) * place.register.emax - Fraction(3, 128)
    approximate = b.fma(b.to_float(b.bits(x)), THIRD, offset * place.hidden)
    return b.from_bits(
        b.iand(b.to_int(approximate), -1 << (place.precision - place.precision // 3))
    )
