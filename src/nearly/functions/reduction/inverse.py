"""atan, asin and acos over a whole format.

atan: up to 1/2, between 1/2 and 2, and above, a = |x| is tan of an angle away from 0, pi/4 or pi/2:

    atan a = base + atan(n/d),   n/d = a/1, (a - 1)/(a + 1) or -1/a.

With A(t) = atan(t)/t - 1 that is base + t + t A(t). The quotient is known as q + w: q is t cut to
half the bits, w = (n - q d)/d is what it lacks; d too is split, so that the large product is exact.
What is lost by base + q (Fast2Sum), w, and the last bits of the base join the small term: the sum
is rounded once at full size. The division has its operands selected, not its result: a compiler
that finds a division whose result may be unused makes it a branch, and no longer works on several
elements at once.

asin and acos: up to 1/2, t = s = a (for acos, -x); above, t = w = sqrt v with v = 2 (1 - a), for
acos with the sign of x, and s = w/2. With A(s) = (asin s - s)/s^3,

    asin a = t + t s^2 A(s)   or   pi/2 - (t + t s^2 A(s)),
    acos x = base + t + t s^2 A(s),   base = pi/2, 0 or pi.

w is rounded, which counts half an ULP of the result beside the last sum's. Most of it is brought
back: with w = h + l, h in half the bits, r = v - w^2 = (v - h^2) - l (w + h) to many digits, and w
lacks r/(2w), for which a straight line in the place of 1/(2w) is enough: it is right to 7 % where
w >= 0.56, and too small below, where asin x > 1 has a coarser last place, and where acos x = w
but for less and less, whose error then is the root's and nothing else. Beyond 1 the root is NaN,
and so is all that follows.

Exact steps: v; h^2 and v - h^2 (multiples of one last place, cancelling); a - 1
and what a + 1 loses; q d and n - q d.
"""

from __future__ import annotations

from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import (
    Layout,
    give_sign,
    keep_tiny,
    layout,
    real,
    upper_half,
)
from nearly.functions.reduction.scheme import Reduction

# 1/(2w) ~ first - slope w for w from 0.56 to 1.
FIRST, SLOPE = Fraction(43, 32), Fraction(27, 32)


def atan(function: Function) -> Reduction:
    """The reduction of atan."""
    place = layout(function)
    core = Function("atan(x)/x-1", ("-1/2", "1/2"), function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        given, large = b.abs(b.x), b.constant(Fraction(2) ** (2 * place.precision))
        size = b.select(b.lt(large, given), large, given)  # infinity times 0 would be NaN
        is_near, is_far = b.lt(size, Fraction(1, 2)), b.lt(2, size)

        def choose(near: Node | Fraction, middle: Node | Fraction, far: Node | Fraction) -> Node:
            beyond = b.select(is_far, b.constant(far), b.constant(middle))
            return b.select(is_near, b.constant(near), beyond)

        one, zero = Fraction(1), Fraction(0)
        above = b.add(size, 1)
        numerator = choose(size, b.sub(size, 1), -one)
        divisor = choose(one, above, size)
        lost = choose(zero, b.sub(size, b.sub(above, 1)), zero)
        inverse = b.div(1, divisor)
        t = b.mul(numerator, inverse)
        q, d = upper_half(b, place, t), upper_half(b, place, divisor)
        rest = b.add(b.sub(divisor, d), lost)
        left = b.sub(b.sub(numerator, b.mul(q, d)), b.mul(q, rest))
        middle, far = _in_two(place, "pi/4"), _in_two(place, "pi/2")
        base, base_rest = (choose(zero, middle[i], far[i]) for i in range(2))
        small = b.fma(t, b.inline(program, t), b.fma(left, inverse, base_rest))
        signed = give_sign(b, place, _sum(b, base, q, small), b.x)
        return b.program(keep_tiny(b, place, given, b.x, signed))

    return Reduction(function, (core,), wrap)


def asin(function: Function) -> Reduction:
    """The reduction of asin."""
    place = layout(function)

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        is_far = b.lt(Fraction(1, 2), size)
        v = _double_complement(b, size)
        w = b.sqrt(v)
        curved = _curved(b, program, is_far, size, w)
        head, rest = _in_two(place, "pi/2")
        small = b.sub(rest, _with_lost(b, place, v, w, curved, b.constant(FIRST)))
        far = _sum(b, b.constant(head), b.neg(w), small)
        result = b.select(is_far, far, b.add(size, curved))
        return b.program(keep_tiny(b, place, size, b.x, give_sign(b, place, result, b.x)))

    return Reduction(function, (_arc_core(function),), wrap)


def acos(function: Function) -> Reduction:
    """The reduction of acos."""
    place = layout(function)

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        is_far, is_negative = b.lt(Fraction(1, 2), size), b.lt(b.x, 0)
        v = _double_complement(b, size)
        w = give_sign(b, place, b.sqrt(v), b.x)
        near = b.neg(b.x)
        curved = _curved(b, program, is_far, near, w)
        first = b.select(is_negative, b.constant(-FIRST), b.constant(FIRST))
        small = b.select(is_far, _with_lost(b, place, v, w, curved, first), curved)
        quarter, half = _in_two(place, "pi/2"), _in_two(place, "pi")

        def base(part: int) -> Node:
            far = b.select(is_negative, b.constant(half[part]), b.constant(Fraction(0)))
            return b.select(is_far, far, b.constant(quarter[part]))

        t = b.select(is_far, w, near)
        return b.program(_sum(b, base(0), t, b.add(small, base(1))))

    return Reduction(function, (_arc_core(function),), wrap)


def _arc_core(function: Function) -> Function:
    return Function("(asin(x)-x)/x^3", ("-1/2", "1/2"), function.dtype, "absolute")


def _double_complement(b: Builder, size: Node) -> Node:
    return b.mul(b.sub(1, size), 2)


def _curved(b: Builder, core: Program, is_far: Node, near: Node, w: Node) -> Node:
    """t s^2 A(s)."""
    t = b.select(is_far, w, near)
    s = b.select(is_far, b.mul(w, Fraction(1, 2)), near)
    return b.mul(b.mul(t, b.mul(s, s)), b.inline(core, s))


def _with_lost(b: Builder, place: Layout, v: Node, w: Node, small: Node, first: Node) -> Node:
    """`small` and what w lacks of a root of v; `first` has the sign of w."""
    h = upper_half(b, place, w)
    lost = b.sub(b.sub(v, b.mul(h, h)), b.mul(b.sub(w, h), b.add(w, h)))
    return b.fma(lost, b.sub(first, b.mul(w, SLOPE)), small)


def _in_two(place: Layout, angle: str) -> tuple[Fraction, Fraction]:
    """An angle as a number of the format and what its rounding leaves."""
    exact = real(angle)
    head = place.register.round(exact)
    return head, place.register.round(exact - head)


def _sum(b: Builder, base: Node, first: Node, small: Node) -> Node:
    """base + first + small, rounded once; base is 0 or larger than first."""
    high, low = _fast_sum(b, base, first)
    return b.add(high, b.add(low, small))


def _fast_sum(b: Builder, large: Node, small: Node) -> tuple[Node, Node]:
    """large + small, rounded, and what the rounding has lost; large is 0 or larger than small."""
    total = b.add(large, small)
    return total, b.add(b.sub(large, total), small)
