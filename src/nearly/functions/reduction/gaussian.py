"""exp(-rate a^2 - q(a)), a >= 0, with q smooth and slow: the tails of erfc and of gelu.

With a = h + l, h on a grid so coarse that products of two of its numbers are exact, and q near a
parabola of short coefficients, q(a) = c0 + c1 a + c2 a^2 + p(a), the exponent is head + tail:

    head = h ((rate + c2) h + c1) + c0,   tail = l ((rate + c2) (a + h) + c1) + p(a).

The head is exact, the tail is small, and its roundings count little. On two pieces, each with its
own parabola, p is within 0.1, nearly level, and a polynomial in reach. With k the integer nearest
to (head + tail)/log 2 and r = head + tail - k log 2,

    exp(-head - tail) = 2^-k (1 - s),   s = (head - k L1) + (tail - k L2 - r^2 g(r)),

L1 being log 2 in few bits: the first part is exact, and so is 1 less it. What is rounded at the
size of the result is one sum, and what precedes it costs a quarter of an ULP.

Exact steps: h; rate h, c2 h and their sums with c1 and c0, all multiples of 2^-(p-8) below 2^7;
k L1; head - k L1, a multiple of that too and below 1/2; 1 less it.

Not usual: the logarithm of the smooth factor is added to the exponent, where it costs neither a
division nor a rounding of its own, as a factor would.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.exponential import subnormal_bits
from nearly.functions.reduction.layout import Layout, real, short

REACH = "0.3471"  # log(2)/2, and what k may be rounded wrongly by


class Gaussian(NamedTuple):
    """What decays.

    **Arguments:**

    - `rest`: q as an expression, its variable written `{x}`.
    - `rate`: of the square.
    - `joint`: where the pieces meet.
    - `end`: from where on the result is 0.
    """

    rest: str
    rate: Fraction
    joint: Fraction
    end: Fraction

    @property
    def pieces(self) -> tuple[Piece, Piece]:
        """The two pieces."""
        return self._piece(Fraction(0), self.joint), self._piece(self.joint, self.end)

    def _piece(self, low: Fraction, high: Fraction) -> Piece:
        """The parabola that leaves least of q, nearly."""
        points = [low + (high - low) * i / 8 for i in range(9)]
        values = [real(self.rest.format(x=f"({x})")) for x in points]
        bend = _short(2 * (values[0] - 2 * values[4] + values[8]) / (high - low) ** 2, 16)
        straight = [v - bend * x * x for x, v in zip(points, values, strict=True)]
        slope = _short((straight[8] - straight[0]) / (high - low), 64)
        level = [v - slope * x for x, v in zip(points, straight, strict=True)]
        return Piece(low, high, bend, slope, _short((min(level) + max(level)) / 2, 64))


def _short(value: Fraction, parts: int) -> Fraction:
    return Fraction(round(value * parts), parts)


class Piece(NamedTuple):
    """Part of the range of a, and `level + slope a + bend a^2`, which is near q there."""

    low: Fraction
    high: Fraction
    bend: Fraction
    slope: Fraction
    level: Fraction

    @property
    def centre(self) -> Fraction:
        """Of the powers: left of the middle, for q bends more there."""
        return _short(self.low + (self.high - self.low) * Fraction(2, 5), 8)


class Decay(NamedTuple):
    """2^-k (1 - high - low): 1 - high is exact, low small; the low bits of `power` hold k."""

    high: Node
    low: Node
    power: Node


def gaussian_cores(gaussian: Gaussian, dtype: str) -> tuple[Function, ...]:
    """What `decayed` needs: p on both pieces, and the exponential."""
    cores = []
    for piece in gaussian.pieces:
        point = f"(x+{piece.centre})"
        parabola = f"{piece.level}+{piece.slope}*{point}+({piece.bend})*{point}^2"
        text = f"{gaussian.rest.format(x=point)}-({parabola})"
        domain = str(piece.low - piece.centre), str(piece.high - piece.centre)
        cores.append(Function(text, domain, dtype, "absolute"))
    exponential = Function("(exp(-x)-1+x)/x^2", (f"-{REACH}", REACH), dtype, "absolute")
    return (*cores, exponential)


def decayed(
    b: Builder, place: Layout, gaussian: Gaussian, size: Node, programs: tuple[Program, ...]
) -> Decay:
    """The decay at 0 <= size <= end."""
    near_core, far_core, core = programs
    near, far = gaussian.pieces
    is_near = b.lt(size, gaussian.joint)

    def chosen(if_near: Node | Fraction, if_far: Node | Fraction) -> Node:
        return b.select(is_near, if_near, if_far)

    # Coarse: the product that is the head is exact.
    grid = place.magic / 2 ** (place.precision // 2 - 1 - int(gaussian.end).bit_length())
    h = b.sub(b.add(size, grid), grid)
    rate = chosen(near.bend + gaussian.rate, far.bend + gaussian.rate)
    steep = b.fma(h, rate, chosen(near.slope, far.slope))
    head = b.fma(h, steep, chosen(near.level, far.level))
    rest = chosen(
        b.inline(near_core, b.sub(size, near.centre)), b.inline(far_core, b.sub(size, far.centre))
    )
    tail = b.fma(b.sub(size, h), b.fma(size, rate, steep), rest)
    power = b.fma(b.add(head, tail), real("1/log(2)"), place.magic)
    k = b.sub(power, place.magic)
    two = real("log(2)")
    coarse = short(two, place.precision - (place.unit + 2).bit_length())
    high = b.fma(k, -coarse, head)
    low = b.fma(k, coarse - two, tail)
    r = b.add(high, low)
    return Decay(high, b.sub(low, b.mul(b.mul(r, r), b.inline(core, r))), power)


def lowered(b: Builder, place: Layout, bits: Node, power: Node) -> Node:
    """The bits of a positive number times 2^-k, k held by the low bits of `power`."""
    scaled = b.isub(bits, b.ishl(b.bits(power), place.mantissa))
    if not place.has_subnormals:
        return scaled
    return b.select(b.lt(scaled, place.hidden), subnormal_bits(b, place, scaled), scaled)


def lifted(b: Builder, place: Layout, size: Node, bits: Node, scale: Fraction) -> Node:
    """`scale` times a >= 0, also where a is subnormal; where a is 0, next to nothing.

    A scale of 2^(3p) keeps that from being subnormal itself, and flushed.

    The bits are a's own: XLA's minimum, which may have held the number, flushes subnormal ones.
    """
    # Added to no number but 0 it counts, and keeps 0 away, whose exponent could not be lowered.
    nothing = scale * place.storage.spacing(Fraction(0)) / 2 ** (place.precision + 2)
    if not place.has_subnormals:
        return b.fma(size, scale, nothing)
    counted = b.fma(b.to_float(bits), scale / Fraction(2) ** place.unit, nothing)
    return b.select(b.lt(bits, place.hidden), counted, b.mul(size, scale))


def at_most(b: Builder, size: Node, end: Fraction) -> Node:
    """The smaller one; NaN stays."""
    return b.select(b.lt(b.constant(end), size), b.constant(end), size)


def past(falling: str, enough: Fraction) -> Fraction:
    """Where an expression in `{x}` is below `enough`, rounded up to sixteenths."""
    sixteenths = 16
    while real(falling.format(x=f"({sixteenths}/16)")) > enough:
        sixteenths += 1
    return Fraction(sixteenths, 16)
