"""Any finite argument modulo pi/2, after Payne and Hanek, in floating point without long integers.

x = M 2^s with an integer |M| < 2^p. Multiples of four quarter turns do not matter, so

    x 2/pi = M R(s)  (mod 4),   R(s) = 2^s 2/pi mod 4 in [-2, 2].

A table holds W(s), which is R(s) rounded to a multiple of 2^(2-2c), c = p/2 rounded down. What W(s)
leaves, times 2^(2c), is R(s + 2c) again, so the one table serves for all of R: four entries of it.
An entry is split into a head, a multiple of 2^(2-c), and a tail, of c bits each; M = A + B with
A a multiple of 2^c and |B| <= 2^(c-1). Products of these are exact, and with |A| < 2^p

    x 2/pi = (B head + A tail) + (B tail + A' head') + (B' head' + A' tail') + ...  (mod 4),

' standing for the next entry and a factor 2^(-2c), so that every parenthesis, a level, is by 2^c
below the last one. Exact steps: A, B, heads, tails, products; the levels but the last, being sums
of two products of at most 2^(p-1) units; the nearest integers taken off the first two levels; the
sum of these two, a multiple of 2^(2-2c) below 4; the third and the fourth level's sums with their
error terms (Fast2Sum holds where the first summand is a multiple of the second's last place). Two
more levels are rounded; what is left out is below 2^-(5c-1) of a quarter turn, whereas no number of
the format is nearer to a multiple of pi/2 than 2^-30 (float32) or 2^-62 (float64).

The fraction becomes an angle by pi/2 = P1 + P2, P1 and the fraction's head in c bits, so that their
product is exact.

How it differs from the usual implementations: those multiply long integers, or read words that
straddle bits; this needs no integer product, vectorises, and reads four table entries.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from nearly.functions.formats import format_named
from nearly.functions.program import Builder, Node
from nearly.functions.reduction.layout import Layout, real, short

ENTRIES = 4


class Angle(NamedTuple):
    """x = k pi/2 + high + low, k in the low bits of an integer."""

    k: Node
    high: Node
    low: Node


class Halves(NamedTuple):
    """A number as the sum of two with half the bits."""

    head: Node
    tail: Node


def payne_hanek(b: Builder, place: Layout) -> Angle:
    """The reduced argument of any finite x."""
    c = place.precision // 2
    bits = b.bits(b.x)
    m = _integer(b, place, bits)
    *entries, fourth = _entries(b, place, bits)
    first, second, third = (_split(b, place, entry) for entry in entries)
    m1, m2 = (_scaled(b, m, Fraction(1, 2 ** (2 * c * j))) for j in (1, 2))
    last = b.mul(b.mul(m.head, Fraction(1, 2 ** (6 * c))), fourth)
    levels = [
        b.fma(m.tail, first.head, b.mul(m.head, first.tail)),
        b.fma(m.tail, first.tail, b.mul(m1.head, second.head)),
        b.fma(m1.tail, second.head, b.mul(m1.head, second.tail)),
        b.fma(m1.tail, second.tail, b.mul(m2.head, third.head)),
        b.fma(m2.tail, third.head, b.mul(m2.head, third.tail)),
        b.fma(m2.tail, third.tail, last),
    ]
    shifted, fraction = _nearest(b, place, levels[0])
    shifted_again, high = _nearest(b, place, b.add(fraction, levels[1]))
    low = b.add(levels[4], levels[5])
    errors = []
    for level in levels[2:4]:
        total = b.add(high, level)
        errors.append(b.add(b.sub(high, total), level))
        high = total
    for error in reversed(errors):
        low = b.add(error, low)
    k = b.iadd(b.bits(shifted), b.bits(shifted_again))
    return Angle(k, *_radians(b, place, high, low))


def _integer(b: Builder, place: Layout, bits: Node) -> Halves:
    """M, with the sign of x: its significand in the binade of 2^(p-1)."""
    c = place.precision // 2
    kept = b.iand(bits, place.sign + place.hidden - 1)
    integer = b.iadd(kept, place.bits(Fraction(place.hidden)))
    head = b.from_bits(b.iand(b.iadd(integer, 1 << (c - 1)), -1 << c))
    return Halves(head, b.sub(b.from_bits(integer), head))


def _scaled(b: Builder, halves: Halves, factor: Fraction) -> Halves:
    return Halves(b.mul(halves.head, factor), b.mul(halves.tail, factor))


def _entries(b: Builder, place: Layout, bits: Node) -> list[Node]:
    """The table's entries at s, s + 2c, s + 4c, ..."""
    c = place.precision // 2
    table = b.table(quarter_turns(place.register.name))
    exponent = b.iand(b.ishr(bits, place.mantissa), 2 * place.register.emax + 1)
    indices = (b.iadd(exponent, 2 * c * j) if j else exponent for j in range(ENTRIES))
    return [b.lookup(table, index) for index in indices]


def _split(b: Builder, place: Layout, entry: Node) -> Halves:
    """An entry at its place 2^(2-c)."""
    magic = place.magic * Fraction(4, 2 ** (place.precision // 2))
    minus_head = b.sub(magic, b.add(entry, magic))
    return Halves(b.neg(minus_head), b.add(entry, minus_head))


def _nearest(b: Builder, place: Layout, x: Node) -> tuple[Node, Node]:
    """magic + the nearest integer, and what that leaves of x."""
    shifted = b.add(x, place.magic)
    return shifted, b.add(x, b.sub(place.magic, shifted))


def _radians(b: Builder, place: Layout, high: Node, low: Node) -> Halves:
    """(high + low) pi/2 as a sum of two."""
    c = place.precision // 2
    quarter = real("pi/2")
    head = b.from_bits(b.iand(b.bits(high), -1 << c))
    tail = b.add(b.sub(high, head), low)
    leading = short(quarter, c)
    main = b.mul(head, leading)
    rest = b.fma(head, quarter - leading, b.mul(tail, quarter))
    total = b.add(main, rest)
    return Halves(total, b.add(b.sub(main, total), rest))


@lru_cache
def quarter_turns(register: str) -> tuple[Fraction, ...]:
    """W(s) by the exponent's bits, and as far beyond them as the entries reach."""
    form = format_named(register)
    c = form.precision // 2
    two_over_pi = real("2/pi")
    unit = Fraction(4, 2 ** (2 * c))
    table = []
    for biased in range(2 * form.emax + 2 + 2 * c * (ENTRIES - 1)):
        scaled = two_over_pi * Fraction(2) ** (biased - form.emax - form.precision + 1)
        rest = scaled - 4 * round(scaled / 4)
        table.append(round(rest / unit) * unit)
    return tuple(table)
