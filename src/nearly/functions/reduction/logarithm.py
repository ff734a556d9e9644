"""log2, log, log10 and log1p over a whole format.

x = 2^e m with m in [2/3, 4/3), f = m - 1, and log_B(x) = e log_B(2) + log_B(1 + f), where

    log_B(1 + f) = lead f - (bend f) f + f g(f),   g(f) = log_B(1 + f)/f - lead + bend f,

`lead` and `bend` of at most two bits. Then lead f and bend f are exact, f g is tiny, and with
e log_B(2) = e L1 + e L2

    high = e L1 + lead f,   low = ((e L1 - high) + lead f) + e L2,
    result = high + (f g + low - (bend f) f)

keeps full relative accuracy at x near 1, where e = 0 and high = lead f is exact, and costs 0.6 ULP
elsewhere. Without `bend` the unfused sums inside g would lose 1.06 ULP, and with the usual interval
[sqrt(1/2), sqrt 2) 1.14 ULP, for f near sqrt(2) - 1.

Exact steps: the exponent's split (integers); f (Sterbenz, m being within [1/2, 2]); lead*f and
bend*f, for f is a multiple of 2^-p below 1/3; e*L1, L1 = log_B(2) in p - bits(e) bits; `low`
without e L2, since e = 0 or |e L1| > |lead f| (Fast2Sum). It is written `e L1 - high` because XLA
simplifies `high - e L1`.

log1p: the exponent e is that of 1 + x rounded, so that 1 + x = 2^e (1 + f) with f in [-1/4, 1/2),

    f = x 2^-e + (2^-e - 1),

and f is exact: for e = 0 it is x itself, so that tiny x keep their accuracy; for e = 1 the two
terms are within a factor of two (this is why the interval ends at 1/2); otherwise f is smaller than
x 2^-e and a multiple of its last place. (The usual way takes f from 1 + x rounded and adds the
rounding error divided by 1 + x.) 2^-e - 1 is rounded for e > p, where f has no such bits. 2^-e is
computed as 4 2^-e and x/4, since 2^-e may be subnormal. The interval of a positive x begins one
last place later, or a 1 + x rounded up to 3/2 would have e = 1.

A subnormal x is converted as an integer, x * 2^unit, whose exponent is then lowered. One unsigned
comparison, written with signed numbers, finds everything that is not positive and finite.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import Layout, layout, real, short
from nearly.functions.reduction.scheme import Reduction

REDUCED = (Fraction(2, 3), Fraction(4, 3))
LOWEST = Fraction(3, 4)  # 1 + f of log1p


class Base(NamedTuple):
    """The base of a logarithm: the exact first two coefficients, and the logarithm of 2."""

    lead: Fraction
    bend: Fraction
    two: str


BASES = {
    "log2": Base(Fraction(3, 2), Fraction(3, 4), "1"),
    "log": Base(Fraction(1), Fraction(1, 2), "log(2)"),
    "log10": Base(Fraction(3, 8), Fraction(3, 16), "log(2)/log(10)"),
}


def logarithm(function: Function) -> Reduction:
    """The reduction of log2, log or log10."""
    place, base = layout(function), BASES[function.name]
    tail = f"{function.name}(1+x)/x-{base.lead}+{base.bend}*x"
    core = Function(tail, ("-1/3", "1/3"), function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        return b.program(_logarithm(b, place, base, program))

    return Reduction(function, (core,), wrap)


def _logarithm(b: Builder, place: Layout, base: Base, core: Program) -> Node:
    given = b.bits(b.x)
    e, m = split(b, place, normalised(b, place, given))
    result = _sum(b, place, base, core, e, b.sub(m, 1))
    if place.low is not None and place.low > 0 and place.high is not None:
        return result
    return b.select(is_positive_finite(b, place, given), result, _special(b, given))


def _sum(b: Builder, place: Layout, base: Base, core: Program, e: Node, f: Node) -> Node:
    """e log_B(2) + log_B(1 + f)."""
    two = real(base.two)
    head = short(two, place.precision - place.unit.bit_length())
    whole = e if head == 1 else b.mul(e, head)
    first = f if base.lead == 1 else b.mul(f, base.lead)
    high = b.add(whole, first)
    low = b.add(b.sub(whole, high), first)
    if two != head:
        low = b.fma(e, two - head, low)
    rest = b.fma(f, b.inline(core, f), low)
    return b.add(high, b.fma(b.mul(f, -base.bend), f, rest))


def log1p(function: Function) -> Reduction:
    """The reduction of log(1 + x)."""
    place, base = layout(function), BASES["log"]
    core = Function("log(1+x)/x-1+x/2", ("-1/4", "1/2"), function.dtype, "absolute")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        is_negative = b.ishr(b.bits(b.x), place.register.bits - 1)  # 0 or -1
        start = b.iadd(is_negative, place.bits(LOWEST) + 1)
        e = b.ishr(b.isub(b.bits(b.add(b.x, 1)), start), place.mantissa)
        four = (place.register.emax + 2) << place.mantissa
        scale = b.from_bits(b.isub(four, b.ishl(e, place.mantissa)))
        quarter = Fraction(1, 4)
        f = b.fma(b.mul(b.x, quarter), scale, b.fma(scale, quarter, -1))
        result = _sum(b, place, base, program, b.to_float(e), f)
        return b.program(_unless_special(b, place, result))

    return Reduction(function, (core,), wrap)


def _unless_special(b: Builder, place: Layout, result: Node) -> Node:
    """x itself where it is tiny, infinite or NaN; -inf at -1 and NaN below."""
    given = b.bits(b.x)
    size = b.isub(given, b.iand(given, place.sign))
    tiny = place.bits(Fraction(1, 2 ** (place.precision + 1)))
    infinity = (2 * place.register.emax + 1) << place.mantissa
    # The order of unsigned numbers, as in `is_positive_finite`.
    half = 1 << (place.register.bits - 1)
    usual = b.lt(b.iadd(size, half - tiny), infinity - tiny - half)
    inside = b.select(usual, result, b.x)
    if not place.reaches(Fraction(-1)):
        return inside
    outside = b.select(b.eq(b.x, -1), b.constant(-math.inf), b.constant(math.nan))
    return b.select(b.le(b.x, -1), outside, inside)


def normalised(b: Builder, place: Layout, bits: Node) -> Node:
    """The bits of x > 0 with a leading one also where x is subnormal: then in exponents <= 0."""
    smallest = Fraction(2) ** place.register.emin
    if not place.has_subnormals or (place.low is not None and place.low >= smallest):
        return bits
    lowered = b.isub(b.bits(b.to_float(bits)), place.unit << place.mantissa)
    return b.select(b.lt(bits, place.hidden), lowered, bits)


def split(b: Builder, place: Layout, bits: Node) -> tuple[Node, Node]:
    """e, as a number, and m in [2/3, 4/3) of x = 2^e m."""
    e = b.ishr(b.isub(bits, place.bits(REDUCED[0])), place.mantissa)
    return b.to_float(e), b.from_bits(b.isub(bits, b.ishl(e, place.mantissa)))


def is_positive_finite(b: Builder, place: Layout, bits: Node) -> Node:
    """Whether bits - 1, read as an unsigned number, is below those of infinity less one."""
    infinity = ((2 * place.register.emax + 1) << place.mantissa) - 1
    half = 1 << (place.register.bits - 1)
    return b.lt(b.iadd(bits, half - 1), infinity - half)


def _special(b: Builder, bits: Node) -> Node:
    """-inf at both zeros, NaN below, and x itself at infinity and NaN.

    No comparison asks for a zero: LLVM would make a comparison of floats of it, and under XLA that
    takes subnormal numbers for zeros. Less 1, the integer -0 wraps to the largest one, +0 to -1.
    """
    infinite = b.select(b.lt(bits, 1), b.constant(-math.inf), b.x)
    return b.select(b.lt(b.isub(bits, 1), -1), b.constant(math.nan), infinite)
