"""digamma over a whole format.

With a = |x|, on the right:

    psi a = t + G(t),                         1 <= a < 2, t = a - 3/2,
    psi a = t + G(t) - 1/a,                   a < 1,      t = a - 1/2: the recurrence,
    psi a = log a - z/2 + z^2 W(z), z = 1/a,  a >= 2.

G is within 0.08. W is what Stirling's series becomes when it has to serve from a = 2 on: a
polynomial of low degree. The logarithm is a sum of two numbers, as in `logarithm`. On the left, by
reflection, with d the distance of a from the nearest integer, signed, which is exact,

    psi(-a) = psi(a) + 1/a + pi cot(pi d),    pi cot(pi d) = 1/d - d Q(d^2)  or  g T(g^2),

the latter where |d| > 5/16, with g = 1/2 - |d| and d's sign; for a < 1 the recurrence cancels 1/a.
So the result is a head, which is t or the rounded logarithm, and perhaps a pole, the reciprocal of
a or d; and smaller terms. The reciprocal is a sum too, its first part being short, so that what it
leaves of 1 is exact. The sum of head and pole is exact, or as large as the result: the head of the
logarithm has few places. 1/x is finite for some subnormal numbers, so that divisors are taken times
2^3p.

psi has a zero at 1.46 and one between any two poles on the left: near them the error is absolute.
At the poles left of 0 it is NaN, for the limits from both sides differ; at 0 it is -infinity.
"""

from __future__ import annotations

import math
from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.gaussian import at_most, lifted
from nearly.functions.reduction.layout import Layout, layout
from nearly.functions.reduction.scheme import Reduction
from nearly.functions.reduction.two_parts import (
    Sum,
    logarithm_core,
    logarithm_in_parts,
    reciprocal_in_parts,
)

LEFT = ("-1/2", "1/2")
ROOT = "(x+1/32)^(1/2)"
# Not from -1/32: to the eye of ball arithmetic the root is singular there. The cores are smooth.
LOW = "-127/4096"
POLAR = Fraction(5, 16)
POLE = f"(1-pi*{ROOT}*cospi({ROOT})/sinpi({ROOT}))/(x+1/32)"
TANGENT = f"pi*sinpi({ROOT})/({ROOT}*cospi({ROOT}))"


def digamma(function: Function) -> Reduction:
    """The reduction of digamma."""
    place = layout(function)
    middle = Function("digamma(x+3/2)-x", LEFT, function.dtype, "absolute")
    series = Function(
        "(digamma(1/x)+log(x)+x/2)/x^2", ("1/10000", "1/2"), function.dtype, "absolute"
    )
    logarithm = logarithm_core(function.dtype)
    pole = Function(POLE, (LOW, str(POLAR**2 - Fraction(1, 32))), function.dtype, "absolute")
    tangent = Function(
        TANGENT,
        (LOW, str((Fraction(1, 2) - POLAR) ** 2 - Fraction(1, 32))),
        function.dtype,
        "absolute",
    )

    def wrap(
        middle_core: Program,
        series_core: Program,
        log_core: Program,
        pole_core: Program,
        tangent_core: Program,
    ) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        zero, half, one = (b.constant(Fraction(n, 2)) for n in (0, 1, 2))
        is_left, is_small = on_the_left(b, b.x), b.lt(size, 1)

        d = b.sub(size, b.round(size))
        scale = Fraction(2) ** (3 * place.precision)
        scaled = lifted(
            b,
            place,
            at_most(b, size, 1 / Fraction(2) ** place.register.emin / scale),
            b.bits(size),
            scale,
        )
        nearest = b.select(b.lt(size, half), scaled, b.mul(d, scale))
        divisor = b.select(is_left, nearest, scaled)
        is_polar = b.le(b.abs(d), POLAR)
        sign = b.select(
            is_left,
            b.select(is_polar, one, zero),
            b.select(is_small, b.constant(Fraction(-1)), zero),
        )
        pole = reciprocal_in_parts(b, place, divisor, scale)
        first = b.mul(sign, b.select(b.eq(divisor, 0), b.constant(math.nan), pole.high))
        g = b.sub(b.select(b.lt(d, 0), b.neg(half), half), d)
        bend = b.select(is_polar, _odd(b, b.neg(d), pole_core), _odd(b, g, tangent_core))

        t = b.sub(size, b.select(is_small, half, b.constant(Fraction(3, 2))))
        log = _coarsened(b, place, logarithm_in_parts(b, place, b.bits(size), log_core))
        z = b.div(1, size)
        series = b.fma(b.mul(z, z), b.inline(series_core, z), b.mul(z, Fraction(-1, 2)))
        is_near = b.lt(size, 2)
        head = b.select(is_near, t, log.high)
        tail = b.select(is_near, b.inline(middle_core, t), b.add(log.low, series))
        shift = b.select(is_left, b.add(b.select(is_small, zero, z), bend), zero)
        rest = b.fma(sign, pole.low, b.add(tail, shift))
        result = b.add(b.add(head, first), rest)
        return b.program(b.select(b.lt(size, math.inf), result, b.add(b.x, first)))

    return Reduction(function, (middle, series, logarithm, pole, tangent), wrap, bound=2.0)


def _coarsened(b: Builder, place: Layout, log: Sum) -> Sum:
    """The same sum with multiples of 2^-12 in front, which sums with a short reciprocal hold."""
    magic = place.magic / 2**12
    coarse = b.sub(b.add(log.high, magic), magic)
    return Sum(coarse, b.add(b.sub(log.high, coarse), log.low))


def _odd(b: Builder, x: Node, core: Program) -> Node:
    """x times a core in x^2 - 1/32."""
    return b.mul(x, b.inline(core, b.sub(b.mul(x, x), Fraction(1, 32))))


def on_the_left(b: Builder, x: Node) -> Node:
    """Whether x < 0, subnormal numbers included, which XLA's comparison takes for 0."""
    return b.lt(b.isub(b.bits(x), 1), -1)
