"""How numbers lie in a register, and the steps on bits that all reductions share."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from flint import arb, ctx

from nearly.functions.balls import to_fraction
from nearly.functions.expressions import parse_constant
from nearly.functions.formats import Format, exponent
from nearly.functions.function import Function
from nearly.functions.program import Builder, Node

_BITS = 2400  # of 2/pi: as far as float64's exponents reach


@dataclass(frozen=True)
class Layout:
    """The registers of a format and the part of them that a domain uses.

    **Arguments:**

    - `storage`: the format of the inputs and the result.
    - `low`, `high`: the domain; `None` where it is unbounded on that side, and then the infinity
      and NaN belong to it.
    """

    storage: Format
    low: Fraction | None
    high: Fraction | None

    @property
    def register(self) -> Format:
        return self.storage.computing

    @property
    def precision(self) -> int:
        return self.register.precision

    @property
    def mantissa(self) -> int:
        """Bits of the stored significand: how far the exponent is shifted."""
        return self.register.precision - 1

    @property
    def is_wide(self) -> bool:
        """Whether the registers are so much finer than the result that their rounding vanishes."""
        return self.register != self.storage

    @property
    def has_subnormals(self) -> bool:
        """Whether subnormal numbers of the format are subnormal in the registers too."""
        return self.storage.emin == self.register.emin

    @property
    def unit(self) -> int:
        """-log2 of the smallest positive number of the registers."""
        return self.mantissa - self.register.emin

    @property
    def hidden(self) -> int:
        """The bits of the smallest normal number: the lowest place of the exponent."""
        return 1 << self.mantissa

    @property
    def sign(self) -> int:
        """The bits of -0."""
        return -(1 << (self.register.bits - 1))

    @property
    def magic(self) -> Fraction:
        """Added to |x| < 2^(mantissa-1), it rounds x to an integer, held by the low bits."""
        return Fraction(3 << (self.mantissa - 1))

    def bits(self, value: Fraction) -> int:
        """The bits of a positive normal number."""
        power = exponent(value)
        significand = self.register.round(value) / Fraction(2) ** (power - self.mantissa)
        return ((power + self.register.emax - 1) << self.mantissa) + int(significand)

    def at_least(self, value: Fraction) -> Fraction:
        """The smallest number of the registers that is not below `value`."""
        rounded = self.register.round(value)
        return rounded if rounded >= value else rounded + self.register.spacing(rounded)

    def reaches(self, value: Fraction) -> bool:
        """Whether the domain holds numbers at or past `value`, on its side of zero."""
        if value > 0:
            return self.high is None or self.high >= value
        return self.low is None or self.low <= value

    @property
    def magnitude(self) -> Fraction | None:
        """The largest |x| of the domain."""
        return None if self.low is None or self.high is None else max(-self.low, self.high)


def layout(function: Function) -> Layout:
    """The registers of a function's format and its domain."""
    with ctx.workprec(64):
        low, high = (to_fraction(e) if e.is_finite() else None for e in function.ends)
    if function.is_bounded:
        low, high = function.interval
    return Layout(function.format, low, high)


@lru_cache
def real(expression: str) -> Fraction:
    """A constant expression, to 2400 bits."""
    with ctx.workprec(_BITS):
        ball: arb = parse_constant(expression)()
        return to_fraction(ball)


def short(value: Fraction, bits: int) -> Fraction:
    """The nearest number with a significand of `bits` bits."""
    unit = Fraction(2) ** (exponent(value) - bits + 1)
    return round(value / unit) * unit


def nearest_integer(b: Builder, layout: Layout, x: Node, rate: Fraction) -> tuple[Node, Node]:
    """k = the integer nearest to rate * x, up to rounding: as low bits of a number, and -k.

    `magic + rate*x` is rounded to an integer by the addition. -k = magic - (magic + k) is exact
    (Sterbenz). Written as this difference and not as `(x + magic) - magic`: XLA would simplify
    that to x.
    """
    magic = b.constant(layout.magic)
    shifted = b.add(x, magic) if rate == 1 else b.fma(x, rate, magic)
    return shifted, b.sub(magic, shifted)


def give_sign(b: Builder, layout: Layout, magnitude: Node, x: Node) -> Node:
    """A number >= 0 with the sign of x: its sign bit is 0, so adding the sign's sets it."""
    sign = b.iand(b.bits(x), layout.sign)
    return b.from_bits(b.iadd(b.bits(magnitude), sign))


def keep_tiny(b: Builder, layout: Layout, size: Node, x: Node, result: Node) -> Node:
    """x itself where |x| < 2^-(p/2+1): for f(x) = x + O(x^3) that is right to 2^-p.

    It keeps the sign of zero, and subnormal numbers where arithmetic would flush them.
    """
    threshold = Fraction(1, 2 ** (layout.precision // 2 + 1))
    return b.select(b.lt(size, threshold), x, result)


def upper_half(b: Builder, layout: Layout, x: Node) -> Node:
    """x cut to half the bits or one less, so that the product of two such numbers is exact."""
    return b.from_bits(b.iand(b.bits(x), -1 << (layout.precision // 2)))
