"""Any finite argument modulo a quarter turn, after Payne and Hanek, without long integers.

With c = p/2 rounded down, x = y 2^j where y is a multiple of `unit`, and multiples of four quarter
turns do not matter, so only R = 2^j 2/pi modulo 4/unit does:

    x 2/pi = y R (mod 4),   R = P0 + P1 + P2 + P3,

each P of 2c bits, P0 a multiple of q = 4/(unit 2^(2c)) or of 2q, P1 one of 2^(-2c) that, and so on.
The first three are split into a head and a tail of c bits each; y = A + B, A a multiple of 2^c unit
and |B| half of that at most. A head0 is a multiple of 4. So

    y R = (B head0 + A tail0) + (B tail0 + A head1) + (B head1 + A tail1) + ...  (mod 4),

where every parenthesis, a level, is by 2^c below the last one. How R comes from the exponent of x:

- float32 has eight groups of 16 exponents for x >= 2. j is 16 times the group, subtracted from the
  exponent's bits; each P is selected from eight by three bits of the exponent. That is cheaper by
  far than reading a table, of which few machines read several entries at once. The last place of y
  is 2^n unit, n < 16, so the levels' sizes vary, and the last level is 2^-31 at most.
- float64 has too many exponents: j is the exponent of the last place, y an integer, and P0 ... P3
  are four entries of one table, because what W(j), R rounded to a multiple of q, leaves of R is
  2^(-2c) R(j + 2c).

Exact steps, with fma or without: j, A, B, heads, tails, and products (2c bits); each level but the
last is a multiple of B's last place times that of a head or tail, and has p bits as a sum too. The
integer nearest to the first level is taken off: beyond 2^(p-2) it is the nearest multiple of some
power of two, which is an integer all the same; it is counted by conversion. Then the integer
nearest to the sum of three levels is taken off (that sum may be wrong by 2^-8, so the fraction may
exceed 1/2 by as much), and the second level added, which is exact, then the third. What the sums
from here on lose is kept (Fast2Sum holds where the first summand is a multiple of the second's last
place). The nearer x is to a multiple of pi/2, the more of these sums cancel, and they are then
exact: the error is that of the last level, below 2^-55 of a quarter turn, or 2^-(5c-1) where y is
an integer. No number of the format is nearer to a multiple of pi/2 than 2^-30 (float32) or 2^-62
(float64).

The fraction becomes an angle by pi/2 = C1 + C2, C1 and the fraction's head in c bits, so that their
product is exact.

How it differs from the usual implementations: those multiply long integers, or read words that
straddle bits; this needs no integer product, and vectorises.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from nearly.functions.formats import format_named
from nearly.functions.program import Builder, Node
from nearly.functions.reduction.layout import Layout, real, short, upper_half

DIGITS = 4
GROUP_BITS, GROUPS = 4, 3  # 2^4 exponents in each of 2^3 groups
MANY_EXPONENTS = 1 << 8  # more than so many: a table instead of groups


class Angle(NamedTuple):
    """x = k pi/2 + high + low, k in the low bits of an integer."""

    k: Node
    high: Node
    low: Node


class Scaled(NamedTuple):
    """y, and P0 ... P3; `finest` is q, of which P0 is a multiple."""

    y: Node
    digits: Sequence[Node]
    finest: Fraction


class Halves(NamedTuple):
    """A number as the sum of two with half the bits."""

    head: Node
    tail: Node


def payne_hanek(b: Builder, place: Layout, turn: str = "pi/2") -> Angle:
    """The reduced argument of any finite x, modulo `turn`."""
    grouped = 2 * place.register.emax + 2 <= MANY_EXPONENTS
    y, digits, finest = _selected(b, place, turn) if grouped else _looked_up(b, place, turn)
    levels = _levels(b, place, y, digits, finest)
    magic, double = b.constant(place.magic), b.constant(2 * place.magic)
    whole = b.sub(b.add(levels[0], double), double)
    first = b.sub(levels[0], whole)
    shifted = b.add(b.add(b.add(first, levels[1]), levels[2]), magic)
    fraction = b.add(b.sub(first, b.sub(shifted, magic)), levels[1])
    low = levels[5]
    for level in levels[2:5]:
        total = b.add(fraction, level)
        low = b.add(low, b.add(b.sub(fraction, total), level))
        fraction = total
    k = b.iadd(b.to_int(whole), b.bits(shifted))
    return Angle(k, *_radians(b, place, turn, fraction, low))


def _levels(
    b: Builder, place: Layout, y: Node, digits: Sequence[Node], finest: Fraction
) -> list[Node]:
    c = place.precision // 2
    m = _halves(b, place, y)
    *leading, last = digits
    unit = finest * 2**c
    parts = [_split(b, place, digit, unit / 2 ** (2 * c * i)) for i, digit in enumerate(leading)]
    flat = [half for part in parts for half in part]
    levels = [b.fma(m.tail, left, b.mul(m.head, right)) for left, right in pairwise(flat)]
    return [*levels, b.fma(m.tail, flat[-1], b.mul(y, last))]


def _halves(b: Builder, place: Layout, y: Node) -> Halves:
    c = place.precision // 2
    head = b.from_bits(b.iand(b.iadd(b.bits(y), 1 << (c - 1)), -1 << c))
    return Halves(head, b.sub(y, head))


def _split(b: Builder, place: Layout, digit: Node, unit: Fraction) -> Halves:
    """The multiple of `unit` nearest to a digit, and the rest."""
    magic = b.constant(place.magic * unit)
    head = b.sub(b.add(digit, magic), magic)
    return Halves(head, b.sub(digit, head))


def _radians(b: Builder, place: Layout, turn: str, high: Node, low: Node) -> Halves:
    """(high + low) turns as a sum of two."""
    angle = real(turn)
    head = upper_half(b, place, high)
    tail = b.add(b.sub(high, head), low)
    leading = short(angle, place.precision // 2)
    main = b.mul(head, leading)
    rest = b.fma(head, angle - leading, b.mul(tail, angle))
    total = b.add(main, rest)
    return Halves(total, b.add(b.sub(main, total), rest))


# ------------------------------------------------------------------ by groups of exponents


def _selected(b: Builder, place: Layout, turn: str) -> Scaled:
    """x 2^-(16 group), and digits selected by the group; numbers below 2 are of the first one."""
    size, two = b.abs(b.x), b.constant(Fraction(2))
    bits = b.bits(b.select(b.lt(size, two), two, size))
    lowest = place.mantissa + GROUP_BITS
    tests = [b.eq(b.iand(bits, 1 << (lowest + i)), 0) for i in range(GROUPS)]
    y = b.from_bits(b.isub(b.bits(b.x), b.iand(bits, ((1 << GROUPS) - 1) << lowest)))
    groups, finest = _by_group(place.register.name, turn)
    digits = [_choose(b, tests, column) for column in zip(*groups, strict=True)]
    return Scaled(y, digits, finest)


def _choose(b: Builder, is_zero: Sequence[Node], values: Sequence[Fraction]) -> Node:
    """The value whose index has 0 where a test holds, lowest bit first."""
    nodes = [b.constant(value) for value in values]
    for test in is_zero:
        pairs = zip(nodes[::2], nodes[1::2], strict=True)
        nodes = [b.select(test, even, odd) for even, odd in pairs]
    return nodes[0]


@lru_cache
def _by_group(register: str, turn: str) -> tuple[list[list[Fraction]], Fraction]:
    """P0 ... P3 of each group, and q."""
    form = format_named(register)
    modulus = Fraction(2) ** form.precision  # the last place of 2 is 4/modulus
    # Twice as coarse as it may be: where |y| < 1/2, a sum slightly beyond 1/2 has p bits then.
    finest = 2 * modulus / 2 ** (2 * (form.precision // 2))
    scales = (2 ** (i << GROUP_BITS) for i in range(1 << GROUPS))
    return [_digits(scale / real(turn), modulus, finest) for scale in scales], finest


def _digits(value: Fraction, modulus: Fraction, finest: Fraction) -> list[Fraction]:
    rest = value - modulus * round(value / modulus)
    digits: list[Fraction] = []
    unit = finest
    for _ in range(DIGITS):
        digits.append(round(rest / unit) * unit)
        rest -= digits[-1]
        unit *= finest / (2 * modulus)
    return digits


# ------------------------------------------------------------------ by a table


def _looked_up(b: Builder, place: Layout, turn: str) -> Scaled:
    """The significand as an integer with the sign of x, and digits for the exponent."""
    c = place.precision // 2
    bits = b.bits(b.x)
    kept = b.iand(bits, place.sign + place.hidden - 1)
    y = b.from_bits(b.iadd(kept, place.bits(Fraction(place.hidden))))
    table = b.table(turns(place.register.name, turn))
    exponent = b.iand(b.ishr(bits, place.mantissa), 2 * place.register.emax + 1)
    first = b.lookup(table, exponent)
    others = [
        b.mul(b.lookup(table, b.iadd(exponent, 2 * c * i)), Fraction(1, 2 ** (2 * c * i)))
        for i in range(1, DIGITS)
    ]
    return Scaled(y, [first, *others], Fraction(4, 2 ** (2 * c)))


@lru_cache
def turns(register: str, turn: str) -> tuple[Fraction, ...]:
    """W by the exponent's bits, and as far beyond them as the entries reach."""
    form = format_named(register)
    c = form.precision // 2
    rate = 1 / real(turn)
    unit = Fraction(4, 2 ** (2 * c))
    table = []
    for biased in range(2 * form.emax + 2 + 2 * c * (DIGITS - 1)):
        scaled = rate * Fraction(2) ** (biased - form.emax - form.precision + 1)
        rest = scaled - 4 * round(scaled / 4)
        table.append(round(rest / unit) * unit)
    return tuple(table)
