"""tanh over a whole format.

By a = |x|, up to 1 (odd, small): tanh a = a + a^3 q(a), q(x) = (tanh x - x)/x^3. Above:

    tanh a = 1 - 2/(e^(2a) + 1) = 1 - 2 * 2^-k / ((1 + 2^-k) + s),   e^(2a) = 2^k (1 + s),

with s = r + r g(r) as in `exponential`. Dividing numerator and denominator by 2^k keeps them near
1 for every a and saves the rounding of 1 + s. The quotient is below 1/4, so its errors count a
quarter. a is held at a value from which tanh rounds to 1; NaN passes through.

Exact steps: 2a, -k, k*L1, 2a - k*L1 and powers of two as in `exponential`. 1 + 2^-k is rounded
only for k >= p, where it has no effect.
"""

from __future__ import annotations

from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.exponential import BASES, reduced_argument, tail_sum
from nearly.functions.reduction.layout import (
    Layout,
    give_sign,
    keep_tiny,
    layout,
    nearest_integer,
    real,
)
from nearly.functions.reduction.scheme import Reduction

JOINT = Fraction(3, 4)


def tanh(function: Function) -> Reduction:
    """The reduction of tanh."""
    place, base = layout(function), BASES["exp"]
    joint = str(JOINT)
    near = Function("(tanh(x)-x)/x^3", (f"-{joint}", joint), function.dtype, "absolute")
    far = Function("(exp(x)-1)/x-1", (f"-{base.half}", base.half), function.dtype, "absolute")

    def wrap(near_core: Program, far_core: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        cube = b.mul(b.x, b.mul(b.x, b.x))
        small = b.fma(cube, b.inline(near_core, b.x), b.x)
        large = give_sign(b, place, _saturating(b, place, size, far_core), b.x)
        result = b.select(b.lt(size, JOINT), small, large)
        return b.program(keep_tiny(b, place, size, b.x, result))

    return Reduction(function, (near, far), wrap)


def _saturating(b: Builder, place: Layout, size: Node, core: Program) -> Node:
    """1 - 2/(e^(2a) + 1)."""
    rate = real(BASES["exp"].binary)
    # 2 e^(-2a) < 2^-(p+2): a > (p+3) log(2)/2
    end = b.constant(Fraction(round((place.precision + 4) / (2 * rate))))
    held = b.select(b.lt(end, size), end, size)
    twice = b.add(held, held)
    shifted, minus_k = nearest_integer(b, place, twice, rate)
    s = tail_sum(b, Fraction(1), reduced_argument(b, place, twice, minus_k, rate), core)
    power = b.ishl(b.bits(shifted), place.mantissa)
    one = place.register.emax << place.mantissa
    inverse = b.from_bits(b.isub(one, power))
    nearly_doubled = b.from_bits(b.isub(one + place.hidden - 1, power))
    divisor = b.add(b.add(inverse, 1), s)
    return b.div(b.sub(divisor, nearly_doubled), divisor)
