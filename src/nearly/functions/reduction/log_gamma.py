"""lgamma, the logarithm of |Gamma|, over a whole format.

With a = |x|, on the right:

    lgamma a = a G(a) - log a,                          a < 5/8,     G(w) = lgamma(1 + w)/w,
    lgamma a = w G(w), w = a - 1,                       a < 3/2,
    lgamma a = w H(w), w = a - 2,                       a < 3,       H(w) = lgamma(2 + w)/w,
    lgamma a = (a - 1/2)(log a - 1) + c + z K(z), z = 1/a,           beyond,

c = log(2 pi)/2 - 1/2. The zeros at 1 and 2 are factors, so that the error is relative there. K is
what Stirling's series becomes when it has to serve from a = 3 on. On the left, by reflection, with
d the distance of a from the nearest integer, which is exact, and s = |sin(pi d)|/pi,

    lgamma(-a) = -log s - lgamma(1 + a),

which is -a G(a), -log a - lgamma a in the middle, -(a + 1/2)(log a - 1) - c - 1 - z K(z) beyond: so
one logarithm is enough beside Stirling's, that of s, of a s, of a, or of 1, where none is wanted.

Logarithms are sums of two numbers. The result is the sum of a product, which is exact beyond 3, and
a logarithm, whose sum is exact where they cancel; and of small terms. On the left are zeros, two
between every other pair of poles: near them the error is absolute. At the poles and at both
infinities the result is infinity.
"""

from __future__ import annotations

import math
from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import Layout, layout, real, upper_half
from nearly.functions.reduction.logarithm import normalised
from nearly.functions.reduction.scheme import Reduction
from nearly.functions.reduction.two_parts import Sum, logarithm_core, logarithm_in_parts

SMALL, MIDDLE, LARGE = Fraction(5, 8), Fraction(3, 2), Fraction(3)
ABOUT_ONE, ABOUT_TWO = Fraction(1, 4), Fraction(-1, 8)  # centres in w: where the product is small
STIRLING = "(lgamma(1/x)-(1/x-1/2)*(-log(x)-1)-log(2*pi)/2+1/2)/x"
ROOT = "(x+1/8)^(1/2)"
# Not from -1/8: to the eye of ball arithmetic the root is singular there. The core is smooth.
SINE = (f"sinpi({ROOT})/(pi*{ROOT})", ("-127/1024", "1/8"))


def lgamma(function: Function) -> Reduction:
    """The reduction of lgamma."""
    place, dtype = layout(function), function.dtype
    cores = (
        _factored(1, SMALL - 1, SMALL, ABOUT_ONE, dtype),
        _factored(2, MIDDLE - 2, LARGE - 2, ABOUT_TWO, dtype),
        logarithm_core(dtype),
        Function(STIRLING, ("1/10000", "1/3"), dtype, "absolute"),
        Function(*SINE, dtype, "absolute"),
    )

    def wrap(
        one: Program, two: Program, log_core: Program, series: Program, sine: Program
    ) -> Program:
        b = Builder(dtype)
        size = b.abs(b.x)
        is_left = b.lt(b.x, 0)
        product = _chosen(
            b,
            b.lt(size, LARGE),
            Sum(_about_zeros(b, size, one, two), b.constant(Fraction(0))),
            _stirling(b, place, size, is_left, log_core, series),
        )
        argument = b.bits(_argument(b, size, is_left, sine))
        log = logarithm_in_parts(b, place, normalised(b, place, argument), log_core)
        sign = b.select(is_left, b.constant(Fraction(-1)), b.constant(Fraction(1)))
        head = b.sub(b.mul(sign, product.high), log.high)
        result = b.add(head, b.sub(b.mul(sign, product.low), log.low))
        result = b.select(b.lt(argument, 1), b.constant(math.inf), result)
        return b.program(b.select(b.lt(size, math.inf), result, size))

    return Reduction(function, cores, wrap, bound=2.0)


def _factored(zero: int, low: Fraction, high: Fraction, centre: Fraction, dtype: str) -> Function:
    """lgamma(zero + w)/w, in the variable w - centre."""
    w = f"(x+({centre}))"
    domain = (str(low - centre), str(high - centre))
    return Function(f"lgamma({zero}+{w})/{w}", domain, dtype, "absolute")


def _chosen(b: Builder, condition: Node, first: Sum, second: Sum) -> Sum:
    return Sum(
        b.select(condition, first.high, second.high), b.select(condition, first.low, second.low)
    )


def _about_zeros(b: Builder, size: Node, one: Program, two: Program) -> Node:
    """lgamma(a + 1) or lgamma a, for a < 3."""
    w = b.select(b.lt(size, SMALL), size, b.sub(size, 1))
    v = b.sub(size, 2)
    about_one = b.mul(w, b.inline(one, b.sub(w, ABOUT_ONE)))
    about_two = b.mul(v, b.inline(two, b.sub(v, ABOUT_TWO)))
    return b.select(b.lt(size, MIDDLE), about_one, about_two)


def _stirling(
    b: Builder, place: Layout, size: Node, is_left: Node, log_core: Program, series: Program
) -> Sum:
    """lgamma a, or on the left lgamma(1 + a)."""
    log = logarithm_in_parts(b, place, b.bits(size), log_core, less=1)
    half = b.select(is_left, b.constant(Fraction(1, 2)), b.constant(Fraction(-1, 2)))
    c = real("log(2*pi)/2-1/2")
    level = b.select(is_left, b.constant(c + 1), b.constant(c))
    z = b.div(1, size)
    less_one = b.add(log.high, log.low)
    # a (log a - 1) as an exact product of halves, and what they leave. (a ± 1/2 may be no number.)
    first, major = upper_half(b, place, size), upper_half(b, place, less_one)
    minor = b.add(b.sub(log.high, major), log.low)
    small = b.fma(z, b.inline(series, z), b.fma(half, less_one, level))
    rest = b.fma(size, minor, small)
    return Sum(b.mul(first, major), b.fma(b.sub(size, first), major, rest))


def _argument(b: Builder, size: Node, is_left: Node, sine: Program) -> Node:
    """Whose logarithm is subtracted; a itself, without arithmetic, where sin(pi a) is pi a."""
    d = b.sub(size, b.round(size))
    s = b.mul(b.abs(d), b.inline(sine, b.sub(b.mul(d, d), Fraction(1, 8))))
    is_small, is_large = b.lt(size, SMALL), b.le(b.constant(LARGE), size)
    one = b.constant(Fraction(1))
    reflected = b.mul(s, b.select(is_small, one, b.select(is_large, one, size)))
    usual = b.select(is_left, reflected, b.select(is_small, size, one))
    tiny = b.lt(size, Fraction(1, 1 << 13))
    return b.select(tiny, size, usual)
