"""exp2, exp, exp10 over a whole format.

With base B and k = the integer nearest to x log2(B), r = x - k log_B(2):

    B^x = 2^k B^r,   B^r = 1 + (lead r + r^n g(r)),   g(r) = (B^r - 1 - lead r)/r^n,

where `lead` is a power of two, so that `lead r` is exact and `r^n g` is small; n is 2 for exp, for
which `lead` is the whole slope, and 1 for the others. What is rounded at the
size of the result is the last sum alone, and what precedes it costs a quarter of an ULP. (A Horner
scheme for B^r rounds its last product and the sum before it at the same size: 1.02 ULP without fma
however high the degree.) Registers wider than the format need none of this: their core is B^r.

Exact steps: -k (see `nearest_integer`); r for exp2, since x and k are multiples of ulp(x) and the
difference is at most 1/2 >= |x|'s own binade allows; k*L1 for the others, L1 being log_B(2) in
p - bits(k) bits; high = x - k*L1 (a multiple of ulp(x) or of L1's last place, below 1); lead times
anything. low = k*L2 is rounded, far below; r = high + low is used in `r^n g(r)` alone, and the sum
is lead high + (r^n g + lead low).

2^k is added to the exponent's bits: no product that could overflow on the way. A result below the
smallest normal number is scaled by 2^unit instead, rounded to an integer by adding 2^(p-1), and
that integer is its bits: so it is rounded once, also where arithmetic flushes subnormal numbers.
Overflow, infinity and NaN all are x * 2^(emax). Not usual: no branch, no table, no double.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import Layout, layout, nearest_integer, real, short
from nearly.functions.reduction.scheme import Reduction


class Base(NamedTuple):
    """A base: the reduced domain's end, the exact leading coefficient, log2 of the base, n."""

    half: str
    lead: Fraction
    binary: str
    order: int


BASES = {
    "exp2": Base("1/2", Fraction(1, 2), "1", 1),
    "exp": Base("0.3466", Fraction(1), "1/log(2)", 2),
    "exp10": Base("0.15053", Fraction(2), "log(10)/log(2)", 1),
}


def exponential(function: Function) -> Reduction:
    """The reduction of exp2, exp or exp10."""
    place, base = layout(function), BASES[function.name]
    core = tail_core(function, function.name)
    if place.is_wide:
        core = Function(function.name, core.domain, function.dtype, "relative")

    def wrap(program: Program) -> Program:
        b = Builder(function.dtype)
        return b.program(_power(b, place, base, program))

    return Reduction(function, (core,), wrap)


def tail_core(function: Function, name: str) -> Function:
    """g of the exponential called `name`, in the format of `function`."""
    base = BASES[name]
    tail = f"({name}(x)-1-{base.lead}*x)/x^{base.order}"
    return Function(tail, (f"-{base.half}", base.half), function.dtype, "absolute")


def _power(b: Builder, place: Layout, base: Base, core: Program) -> Node:
    rate = real(base.binary)
    # Below `lowest` the result is 0: held there, the integer k stays in range.
    underflows = place.reaches(place.register.emin / rate)
    least = -place.unit - 2 if place.has_subnormals else place.register.emin
    lowest = b.constant(place.register.round(least / rate))
    x = b.select(b.lt(b.x, lowest), lowest, b.x) if underflows else b.x
    shifted, minus_k = nearest_integer(b, place, x, rate)
    value = _reduced_power(b, place, base, x, minus_k, core)
    scaled = b.iadd(b.bits(value), b.ishl(b.bits(shifted), place.mantissa))
    overflow = (place.register.emax + 1) / rate
    if place.reaches(overflow):
        huge = b.mul(b.x, Fraction(2) ** place.register.emax)
        scaled = b.select(b.lt(b.x, place.at_least(overflow)), scaled, b.bits(huge))
    if underflows and place.has_subnormals:
        # Asked of x and not of the bits, which are those of any NaN.
        is_small = b.lt(b.x, place.at_least(place.register.emin / rate))
        scaled = b.select(is_small, subnormal_bits(b, place, scaled), scaled)
    return b.from_bits(scaled)


def _reduced_power(
    b: Builder, place: Layout, base: Base, x: Node, minus_k: Node, core: Program
) -> Node:
    """B^r from the core."""
    rate = real(base.binary)
    if rate == 1:
        r = b.add(x, minus_k)
        if place.is_wide:
            return b.inline(core, r)
        return b.add(1, b.fma(r, b.inline(core, r), _led(b, base, r)))
    parts = reduced_argument(b, place, x, minus_k, rate)
    if place.is_wide:
        return b.inline(core, parts.r)
    head, tail = less_one(b, base, parts, core)
    return b.add(1, b.add(head, tail))


class Argument(NamedTuple):
    """r = x - k log_B(2): rounded, and as a sum of which `high` is exact."""

    r: Node
    high: Node
    low: Node


def reduced_argument(b: Builder, place: Layout, x: Node, minus_k: Node, rate: Fraction) -> Argument:
    """x - k/rate, with 1/rate in two parts."""
    head = short(1 / rate, place.precision - (place.unit + 1).bit_length())
    high = b.fma(minus_k, head, x)
    low = b.mul(minus_k, 1 / rate - head)
    return Argument(b.add(high, low), high, low)


def less_one(b: Builder, base: Base, parts: Argument, core: Program) -> tuple[Node, Node]:
    """B^r - 1 = lead*high + (r^n g(r) + lead*low): an exact head and a small tail."""
    factor = parts.r if base.order == 1 else b.mul(parts.r, parts.r)
    tail = b.fma(factor, b.inline(core, parts.r), _led(b, base, parts.low))
    return _led(b, base, parts.high), tail


def _led(b: Builder, base: Base, node: Node) -> Node:
    return node if base.lead == 1 else b.mul(node, base.lead)


def subnormal_bits(b: Builder, place: Layout, scaled: Node) -> Node:
    """The bits of a number whose exponent has run below the lowest one."""
    integer = place.hidden  # 2^mantissa: its ulp is 1
    lifted = b.from_bits(b.iadd(scaled, place.unit << place.mantissa))
    return b.isub(b.bits(b.add(lifted, integer)), place.bits(Fraction(integer)))
