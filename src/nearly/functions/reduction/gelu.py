"""gelu, x/2 (1 + erf(x/sqrt 2)), over a whole format: the exact one, not the formula with tanh.

With a = |x|, the tail is T = a/2 erfc(a/sqrt 2) = a exp(-a^2/2 - q(a)), by `gaussian`, and

    gelu x = x - T for positive x,   -T for the others.

T is 2^-k a (1 - s), 1 - s being the exact sum of two numbers, the second below an ULP of the first:
with the product of halves exact too, T's error is below 0.9 ULP. The difference is exact where T
is as large as x/2, and adds half an ULP only where T's error has become less than that. Next to 0,
x/2 is all there is of either, and -T with x's sign serves for both: so the difference never flushes
a subnormal number. T is computed times a power of two, which is taken off in integers, so that
nothing before it is subnormal.
"""

from __future__ import annotations

from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.gaussian import (
    Decay,
    Gaussian,
    at_most,
    decayed,
    gaussian_cores,
    lifted,
    lowered,
    past,
)
from nearly.functions.reduction.layout import Layout, layout, upper_half
from nearly.functions.reduction.scheme import Reduction

REST = "0-log(erfc({x}/2^(1/2))/2)-{x}^2/2"
JOINT = Fraction(4)


def gelu(function: Function) -> Reduction:
    """The reduction of gelu."""
    place = layout(function)
    end = past("{x}*erfc({x}/2^(1/2))/2", place.storage.spacing(Fraction(0)) / 4)
    tail = Gaussian(REST, Fraction(1, 2), JOINT, end)

    def wrap(*programs: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        held = at_most(b, size, end)
        decay = decayed(b, place, tail, held, programs)
        scale = Fraction(2) ** (3 * place.precision)
        value = b.bits(_product(b, place, lifted(b, place, held, b.bits(size), scale), decay))
        bits = b.isub(value, 3 * place.precision << place.mantissa)
        left = lowered(b, place, bits, decay.power)
        negative = b.from_bits(b.iadd(left, b.iand(b.bits(b.x), place.sign)))
        large = b.lt(b.constant(Fraction(1, 2 ** (place.precision + 3))), b.x)
        result = b.select(large, b.sub(b.x, b.from_bits(left)), negative)
        return b.program(b.select(b.eq(b.x, b.x), result, b.x))

    return Reduction(function, gaussian_cores(tail, function.dtype), wrap)


def _product(b: Builder, place: Layout, a: Node, decay: Decay) -> Node:
    """a (1 - high - low): a number of the format and what it leaves out, times a, in halves.

    The halves' product is exact and the rest so small that one rounding of the result's size is
    left, the last sum.
    """
    exact = b.sub(1, decay.high)
    factor = b.sub(exact, decay.low)
    left_out = b.sub(b.sub(exact, factor), decay.low)
    first, major = upper_half(b, place, a), upper_half(b, place, factor)
    small = b.fma(first, b.sub(factor, major), b.mul(a, left_out))
    return b.fma(first, major, b.fma(b.sub(a, first), factor, small))
