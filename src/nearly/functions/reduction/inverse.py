"""atan and asin over a whole format.

atan: up to 1, t = x; above, t = -1/a and base pi/2 (a = |x|, the sign given back at the end). With
A(t) = atan(t)/t - 1,

    atan a = base + t + t A(t),   high = base + t,   low = (base - high) + t,

and `low` and the last bits of pi/2 join the small term: the sum is rounded once at full size.

asin: up to 1/2, x + x^3 A(x) with A(t) = (asin t - t)/t^3; above, with z = (1 - a)/2 and
s = sqrt z, asin a = pi/2 - 2 (s + s z A(s)). s = d + c, d in half the bits so that d^2 is exact and
c = (z - d^2)/(s + d) is what s lacks: half an ULP of the result, otherwise.

Exact steps: z; 2d, d^2 and z - d^2 (multiples of one last place, cancelling); `low` by Fast2Sum.
"""

from __future__ import annotations

from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import Layout, give_sign, keep_tiny, layout, real
from nearly.functions.reduction.scheme import Reduction


def atan(function: Function) -> Reduction:
    """The reduction of atan."""
    place = layout(function)
    core = Function("atan(x)/x-1", ("-1", "1"), function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        is_far = b.lt(1, size)
        head, rest = _right_angle(place)
        t = b.select(is_far, b.div(-1, size), size)
        base = b.select(is_far, b.constant(head), b.constant(Fraction(0)))
        base_rest = b.select(is_far, b.constant(rest), b.constant(Fraction(0)))
        result = _sum(b, base, t, b.fma(t, b.inline(program, t), base_rest))
        signed = give_sign(b, place, result, b.x)
        return b.program(keep_tiny(b, place, size, b.x, signed))

    return Reduction(function, (core,), wrap, bound=1.25)


def asin(function: Function) -> Reduction:
    """The reduction of asin."""
    place = layout(function)
    core = Function("(asin(x)-x)/x^3", ("-1/2", "1/2"), function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        is_far = b.lt(Fraction(1, 2), size)
        z = b.mul(b.sub(1, size), Fraction(1, 2))
        s = b.sqrt(z)
        t = b.select(is_far, s, size)
        square = b.select(is_far, z, b.mul(size, size))
        curved = b.mul(b.mul(t, square), b.inline(program, t))
        near = b.add(size, curved)
        far = _complement(b, place, z, s, curved)
        signed = give_sign(b, place, b.select(is_far, far, near), b.x)
        valid = b.select(b.le(size, 1), signed, b.constant(float("nan")))
        return b.program(keep_tiny(b, place, size, b.x, valid))

    return Reduction(function, (core,), wrap)


def _complement(b: Builder, place: Layout, z: Node, s: Node, curved: Node) -> Node:
    """pi/2 - 2 (sqrt z + curved)."""
    d = b.from_bits(b.iand(b.bits(s), -1 << (place.precision // 2)))
    # z = 0 must not divide 0 by 0; any other z is so large that this constant vanishes.
    divisor = b.add(b.add(s, d), Fraction(1, 2 ** (3 * place.precision)))
    c = b.div(b.sub(z, b.mul(d, d)), divisor)
    head, rest = _right_angle(place)
    return _sum(b, b.constant(head), b.mul(d, -2), b.fma(b.add(c, curved), -2, rest))


def _right_angle(place: Layout) -> tuple[Fraction, Fraction]:
    """pi/2 and what its rounding leaves."""
    quarter = real("pi/2")
    head = place.register.round(quarter)
    return head, place.register.round(quarter - head)


def _sum(b: Builder, base: Node, first: Node, small: Node) -> Node:
    """base + first + small, rounded once; base is 0 or larger than first."""
    high = b.add(base, first)
    low = b.add(b.sub(base, high), first)
    return b.add(high, b.add(low, small))
