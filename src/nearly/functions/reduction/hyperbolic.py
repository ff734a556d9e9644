"""tanh, sinh, cosh, expm1 and sigmoid over a whole format: what is made of e^x.

By a = |x|, up to 1 (odd, small): tanh a = a + a^3 q(a), q(x) = (tanh x - x)/x^3. Above:

    tanh a = (d - 2 2^-k)/d,   d = (1 + 2^-k) + s,   e^(2a) = 2^k (1 + s),

with s = r + r^2 g(r) as in `exponential`. The difference is exact, so d's rounding is the only one
beside the quotient's, and counts a third of itself because it cancels. Powers of two keep d near 1
for every a. Where 2^-k reaches the last place of d the difference would be a tie and could fall the
wrong way: 2 2^-k is taken one last place too small. a is held where tanh rounds to 1.

sinh and cosh: e^a = 2^k (1 + s) and e^-a = 2^-k / (1 + s), so 2^(1-k) times them is
1 + (s -+ q), q = 2^-2k / (1 + s), the tail of s and q added first; sinh up to 1 is odd and small,
a + a^3 q(a).

expm1 is 2^k - 1 + 2^k s, the error of the first sum added to the tail. Here k is the integer
nearest to x log2(e) - 0.085, so that k = 0 from expm1 = -1/4 to 1/2: with the usual middle, results
below 1/2 would come with k = 1 from terms of twice their size.

sigmoid(x) = 2^k / D, D = 2^k + e^-r, x = k log(2) + r. A rounded D, and then a rounded quotient,
would be two roundings of the result's size: 1.5 ULP. So D = c + l, c about 2^k + 1 - r + r^2/2 in
the leading half of the bits, y the leading half of the quotient 1/c, d = 1 - y c - y l (y c is
exact), and 1/D = y + y (d + d^2 + d^3), rounded once. As c needs no core, the division is done
beside it.

Exact steps: 2a, -k, k*L1, x - k*L1 and powers of two as in `exponential`; d - 2 2^-k (both are
multiples of d's last place and the difference is smaller); 1 + 2^-k is rounded only for k >= p,
where it has no effect; 2^k - 1 for 0 <= k <= p, and beyond it the error is added to the tail.
NaN passes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.exponential import (
    BASES,
    Argument,
    less_one,
    reduced_argument,
    tail_core,
)
from nearly.functions.reduction.layout import (
    Layout,
    give_sign,
    keep_tiny,
    layout,
    nearest_integer,
    real,
)
from nearly.functions.reduction.scheme import Reduction

EXP = BASES["exp"]
JOINT = Fraction(3, 4)  # of tanh
OFFSET = Fraction(-87, 1024)  # of expm1, near log2(4/3) - 1/2


def tanh(function: Function) -> Reduction:
    """The reduction of tanh."""
    place = layout(function)
    joint = str(JOINT)
    near = Function("(tanh(x)-x)/x^3", (f"-{joint}", joint), function.dtype, "absolute")

    def wrap(near_core: Program, far_core: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        cube = b.mul(b.x, b.mul(b.x, b.x))
        small = b.fma(cube, b.inline(near_core, b.x), b.x)
        large = give_sign(b, place, _saturating(b, place, size, far_core), b.x)
        result = b.select(b.lt(size, JOINT), small, large)
        return b.program(keep_tiny(b, place, size, b.x, result))

    return Reduction(function, (near, tail_core(function, "exp")), wrap)


def _saturating(b: Builder, place: Layout, size: Node, core: Program) -> Node:
    """(e^(2a) - 1)/(e^(2a) + 1), a > 1/2."""
    rate = real(EXP.binary)
    # 2 e^(-2a) < 2^-(p+2): a > (p+3) log(2)/2
    held = _at_most(b, size, Fraction(round((place.precision + 4) / (2 * rate))))
    shifted, parts = _argument(b, place, b.add(held, held))
    s = b.add(*less_one(b, EXP, parts, core))
    power = b.ishl(b.bits(shifted), place.mantissa)
    inverse = b.from_bits(b.isub(_one(place), power))
    nearly_doubled = b.from_bits(b.isub(_one(place) + place.hidden - 1, power))
    divisor = b.add(b.add(inverse, 1), s)
    return b.div(b.sub(divisor, nearly_doubled), divisor)


def sinh(function: Function) -> Reduction:
    """The reduction of sinh."""
    place = layout(function)
    near = Function("(sinh(x)-x)/x^3", ("-1", "1"), function.dtype, "absolute")

    def wrap(near_core: Program, far_core: Program) -> Program:
        b = Builder(function.dtype)
        size = b.abs(b.x)
        cube = b.mul(b.x, b.mul(b.x, b.x))
        small = b.fma(cube, b.inline(near_core, b.x), b.x)
        large = give_sign(b, place, _half_sum(b, place, size, far_core, b.sub), b.x)
        result = b.select(b.lt(size, 1), small, large)
        return b.program(keep_tiny(b, place, size, b.x, result))

    return Reduction(function, (near, tail_core(function, "exp")), wrap)


def cosh(function: Function) -> Reduction:
    """The reduction of cosh."""
    place = layout(function)

    def wrap(core: Program) -> Program:
        b = Builder(function.dtype)
        return b.program(_half_sum(b, place, b.abs(b.x), core, b.add))

    return Reduction(function, (tail_core(function, "exp"),), wrap, bound=1.25)


def _half_sum(
    b: Builder, place: Layout, size: Node, core: Program, combine: Callable[[Node, Node], Node]
) -> Node:
    """(e^a + e^-a)/2, or with `sub` the difference."""
    overflow = place.at_least((place.register.emax + 2) / real(EXP.binary))
    shifted, parts = _argument(b, place, _at_most(b, size, overflow))
    head, tail = less_one(b, EXP, parts, core)
    k = b.isub(b.bits(shifted), place.bits(place.magic))
    # Beyond k = p the smaller exponential does not count, and 2^-2k would leave the format.
    capped = b.select(b.lt(k, place.precision), k, b.constant(place.precision))
    square = b.from_bits(b.isub(_one(place), b.ishl(capped, place.mantissa + 1)))
    smaller = b.div(square, b.add(1, b.add(head, tail)))
    value = b.add(1, b.add(head, combine(tail, smaller)))
    scaled = b.iadd(b.bits(value), b.ishl(b.isub(k, 1), place.mantissa))
    huge = b.mul(size, Fraction(2) ** place.register.emax)
    return b.select(b.lt(size, overflow), b.from_bits(scaled), huge)


def expm1(function: Function) -> Reduction:
    """The reduction of expm1."""
    place, rate = layout(function), real(EXP.binary)
    reduced = (Fraction(-1, 2) - OFFSET) / rate, (Fraction(1, 2) - OFFSET) / rate
    domain = (f"{float(reduced[0]):.3f}", f"{float(reduced[1]):.3f}")
    core = Function(tail_core(function, "exp").name, domain, function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        held = _at_least(b, b.x, Fraction(-round((place.precision + 2) / rate)))
        shifted = b.add(b.fma(held, rate, OFFSET), place.magic)
        minus_k = b.sub(b.constant(place.magic), shifted)
        parts = reduced_argument(b, place, held, minus_k, rate)
        head, tail = less_one(b, EXP, parts, program)
        power = b.ishl(b.bits(shifted), place.mantissa)
        # Half of everything, so that 2^k does not overflow before the result does.
        scale = b.from_bits(b.iadd(_one(place) - place.hidden, power))
        whole = b.sub(scale, Fraction(1, 2))
        first = b.mul(scale, head)
        high = b.add(whole, first)
        lost = b.sub(b.sub(scale, whole), Fraction(1, 2))  # of 2^k - 1, from k = p + 1 on
        low = b.fma(scale, tail, b.add(b.add(b.sub(whole, high), first), lost))
        result = b.mul(b.add(high, low), 2)
        fits = b.lt(b.x, place.at_least((place.register.emax + 1) / rate))
        huge = b.mul(b.x, Fraction(2) ** place.register.emax)
        tiny = b.lt(b.abs(b.x), Fraction(1, 2 ** (place.precision + 1)))
        return b.program(b.select(tiny, b.x, b.select(fits, result, huge)))

    return Reduction(function, (core,), wrap)


def sigmoid(function: Function) -> Reduction:
    """The reduction of sigmoid."""
    place = layout(function)
    rate = real(EXP.binary)
    core = Function("(exp(-x)-1+x)/x^2", (f"-{EXP.half}", EXP.half), function.dtype, "absolute")
    # Below the first the result is 0, or at least below the format's numbers; above the second 1.
    smallest = place.unit + 3 if place.has_subnormals else -place.register.emin - 1
    least, most = Fraction(-int(smallest / rate)), Fraction(round((place.precision + 2) / rate))

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        held = _at_least(b, _at_most(b, b.x, most), least)
        shifted, parts = _argument(b, place, held)
        k = b.ishl(b.bits(shifted), place.mantissa)
        power = b.from_bits(_not_negative(b, b.iadd(_one(place), k)))
        reciprocal = _reciprocal_of_sum(b, place, power, parts, program)
        result = b.mul(reciprocal, power)
        if not place.has_subnormals:
            return b.program(result)
        # A subnormal result is rounded to a multiple of the smallest number, by an addition.
        unit = b.from_bits(b.iadd((place.register.emax + place.unit) << place.mantissa, k))
        counted = b.bits(b.fma(reciprocal, unit, place.hidden))
        gradual = b.isub(counted, place.bits(Fraction(place.hidden)))
        normal = place.at_least(place.register.emin / rate)
        return b.program(b.from_bits(b.select(b.lt(b.x, normal), gradual, b.bits(result))))

    return Reduction(function, (core,), wrap)


def _reciprocal_of_sum(
    b: Builder, place: Layout, power: Node, parts: Argument, core: Program
) -> Node:
    """1/(power + e^-r), rounded once."""
    square = b.mul(parts.r, parts.r)
    tail = b.fma(square, b.inline(core, parts.r), b.neg(parts.low))
    rough = b.fma(square, Fraction(1, 2), b.neg(parts.high))
    divisor = _cut(b, place, b.add(b.add(1, power), rough))
    guess = _cut(b, place, b.div(1, divisor))
    left = b.add(b.sub(b.add(b.sub(1, divisor), power), parts.high), tail)
    d = b.sub(b.sub(1, b.mul(guess, divisor)), b.mul(guess, left))
    inner = b.add(1, d)
    for _ in range(_terms(place) - 3):
        inner = b.fma(d, inner, 1)
    return b.fma(guess, b.fma(b.mul(d, d), inner, d), guess)


def _terms(place: Layout) -> int:
    """How many powers of d count: it is below 1/96, about r^3/6."""
    return 3 + max(0, math.ceil((place.precision + 2) / math.log2(96) - 4))


def _cut(b: Builder, place: Layout, value: Node) -> Node:
    """The leading half of the bits."""
    return b.from_bits(b.iand(b.bits(value), -1 << (place.precision - place.precision // 2)))


def _argument(b: Builder, place: Layout, x: Node) -> tuple[Node, Argument]:
    """k in the low bits of a number, and x - k log 2."""
    rate = real(EXP.binary)
    shifted, minus_k = nearest_integer(b, place, x, rate)
    return shifted, reduced_argument(b, place, x, minus_k, rate)


def _at_most(b: Builder, size: Node, end: Fraction) -> Node:
    """The smaller one; NaN stays."""
    return b.select(b.lt(b.constant(end), size), b.constant(end), size)


def _at_least(b: Builder, value: Node, end: Fraction) -> Node:
    """The larger one; NaN stays."""
    return b.select(b.lt(value, end), b.constant(end), value)


def _not_negative(b: Builder, bits: Node) -> Node:
    return b.select(b.lt(bits, 0), b.constant(0), bits)


def _one(place: Layout) -> int:
    """The bits of 1."""
    return place.register.emax << place.mantissa
