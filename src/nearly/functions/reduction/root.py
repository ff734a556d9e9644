"""sqrt, rsqrt and cbrt over a whole format.

sqrt and rsqrt are instructions; what is left are subnormal arguments, which become normal as
integers: x = 2^-(unit + 1) * 2n for an odd unit.

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
from nearly.functions.reduction.logarithm import is_positive_finite
from nearly.functions.reduction.scheme import Reduction

THIRD = Fraction(1, 3)


def sqrt(function: Function) -> Reduction:
    """sqrt over a whole format: correctly rounded; no core."""
    place = layout(function)

    def wrap() -> Program:
        b = Builder(function.dtype)
        root, scale = _root(b, place, -1)
        value = root if scale is None else b.mul(root, scale)
        return b.program(_unless_minus_zero(b, place, b.x, value))

    return Reduction(function, (), wrap, bound=0.5)


def rsqrt(function: Function) -> Reduction:
    """1/sqrt over a whole format, two roundings; no core. +inf at both zeros, as its limit is."""
    place = layout(function)

    def wrap() -> Program:
        b = Builder(function.dtype)
        root, scale = _root(b, place, 1)
        value = b.div(1, root)
        value = value if scale is None else b.mul(value, scale)
        return b.program(_unless_minus_zero(b, place, b.constant(math.inf), value))

    return Reduction(function, (), wrap, bound=1.5)


def _unless_minus_zero(b: Builder, place: Layout, there: Node, value: Node) -> Node:
    return b.select(b.eq(b.bits(b.x), place.sign), there, value)


def _root(b: Builder, place: Layout, power: int) -> tuple[Node, Node | None]:
    """The root of x, or of 2^(unit + 1) x where x is subnormal, and what then scales its power."""
    if not place.has_subnormals:
        return b.sqrt(b.x), None
    bits = b.bits(b.x)
    is_small = b.lt(bits, place.hidden)  # negative numbers too, whose integer has no root either
    doubled = b.mul(b.to_float(bits), 2 ** (1 + (place.unit + 1) % 2))
    half = (place.unit + 2) // 2
    one = b.constant(Fraction(1))
    scale = b.select(is_small, b.constant(Fraction(2) ** (power * half)), one)
    return b.sqrt(b.select(is_small, doubled, b.x)), scale


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
