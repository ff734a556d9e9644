"""What is needed to more than a format's precision: logarithms and reciprocals in two parts."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import Layout, real, short, upper_half
from nearly.functions.reduction.logarithm import split


class Sum(NamedTuple):
    """A number as the sum of a rounded one and a small one."""

    high: Node
    low: Node


def logarithm_core(dtype: str) -> Function:
    """(log(1 + f) - f)/f^2: what `logarithm_in_parts` needs."""
    return Function("(log(1+x)-x)/x^2", ("-1/3", "1/3"), dtype, "absolute")


def logarithm_in_parts(b: Builder, place: Layout, bits: Node, core: Program, less: int = 0) -> Sum:
    """log a - less, from the bits of a normal a > 0; for less = 1, of a >= 8/3."""
    e, m = split(b, place, bits)
    f = b.sub(m, 1)
    two = real("log(2)")
    head = short(two, place.precision - place.unit.bit_length())
    whole = b.fma(e, head, Fraction(-less)) if less else b.mul(e, head)
    high = b.add(whole, f)
    low = b.fma(e, two - head, b.add(b.sub(whole, high), f))
    return Sum(high, b.fma(b.mul(f, f), b.inline(core, f), low))


def reciprocal_in_parts(b: Builder, place: Layout, divisor: Node, scale: Fraction) -> Sum:
    """scale / divisor in two parts of one sign, the first short: what it leaves of 1 is exact."""
    inverse = b.div(1, divisor)
    high, first = upper_half(b, place, inverse), upper_half(b, place, divisor)
    left = b.sub(b.sub(1, b.mul(high, first)), b.mul(high, b.sub(divisor, first)))
    return Sum(b.mul(high, scale), b.mul(b.mul(left, inverse), scale))
