"""erfinv, the inverse of erf, over a whole format.

By a = |x|. Up to 45/64, erfinv a = a + a P(a^2), P(u) = erfinv(sqrt u)/sqrt u - 1, computed in the
variable u - 1/4. Above, with y = 1 - a, which is exact,

    erfinv a = s - 5/16 + R(s),   s = sqrt(-log y),

for erfc falls like exp(-s^2), and R is smooth, and below 0.07. s has to be better than a
number of the format. The logarithm is a sum of two numbers, -e log 2 and -log m for y = 2^e m with
m in [2/3, 4/3), and so is its root: h, the upper half of the root of the rounded sum, and what is
left of the sum after h^2, which is exact, over h + s. Then h - 5/16 is exact, and adding what is
left is the one rounding at the size of the result.

Near 0, erfinv x = sqrt(pi) x/2, for subnormal numbers as well; see `proportional`. At 1 it is
infinite, beyond it is NaN.
"""

from __future__ import annotations

import math
from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.error_function import proportional
from nearly.functions.reduction.layout import Layout, layout, real, short, upper_half
from nearly.functions.reduction.logarithm import split
from nearly.functions.reduction.scheme import Reduction

JOINT = Fraction(45, 64)
SQUARE = "(x+1/4)^(1/2)"
# Not from -1/4: to the eye of ball arithmetic the root is singular there. The core is smooth.
NEAR = ("-255/1024", "1/4")
FIRST = Fraction(11, 10)  # less than the s of the joint
CENTRE = Fraction(7, 4)
SHIFT = Fraction(5, 16)


def erfinv(function: Function) -> Reduction:
    """The reduction of erfinv."""
    place = layout(function)
    last = Fraction(math.ceil(16 * math.sqrt(place.precision * math.log(2))), 16)
    near = Function(f"erfinv({SQUARE})/{SQUARE}-1", NEAR, function.dtype, "absolute")
    far_domain = (str(FIRST - CENTRE), str(last - CENTRE))
    far_text = f"erfinv(1-exp(-(x+{CENTRE})^2))-(x+{CENTRE})+{SHIFT}"
    far = Function(far_text, far_domain, function.dtype, "absolute")
    logarithm = Function("0-log(1+x)", ("-1/3", "1/3"), function.dtype, "absolute")

    def wrap(near_core: Program, far_core: Program, log_core: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        tail = b.inline(near_core, b.sub(b.mul(size, size), Fraction(1, 4)))
        small = proportional(b, place, size, tail, real("pi^0.5/2"))
        s, high, low = _root(b, place, b.sub(1, size), log_core)
        rest = b.add(low, b.inline(far_core, b.sub(s, CENTRE)))
        large = b.add(b.sub(high, SHIFT), rest)
        result = b.from_bits(b.select(b.lt(size, JOINT), small, b.bits(large)))
        outside = b.select(b.eq(size, 1), b.constant(math.inf), b.constant(math.nan))
        result = b.bits(b.select(b.lt(size, 1), result, outside))
        return b.program(b.from_bits(b.iadd(result, b.iand(b.bits(b.x), place.sign))))

    return Reduction(function, (near, far, logarithm), wrap)


def _root(b: Builder, place: Layout, y: Node, core: Program) -> tuple[Node, Node, Node]:
    """sqrt(-log y): rounded, and as a sum of which the first is short."""
    e, m = split(b, place, b.bits(y))
    two = real("log(2)")
    head = short(two, place.precision - place.precision.bit_length())
    whole = b.mul(e, -head)
    part = b.inline(core, b.sub(m, 1))
    total = b.add(whole, part)
    lost = b.fma(e, head - two, b.add(b.sub(whole, total), part))
    s = b.apply("sqrt", total)
    high = upper_half(b, place, s)
    left = b.add(b.sub(total, b.mul(high, high)), lost)
    return s, high, b.div(left, b.add(high, s))
