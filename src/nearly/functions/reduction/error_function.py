"""erf over a whole format.

By a = |x|, up to 1: erf a = a + a P(a^2), P(u) = erf(sqrt u)/sqrt u - 1. Above, erf a is a short
constant plus a small rest, and a is held where erf rounds to 1. Both cores are polynomials in
reach, and together cheaper than an exponential. The variable of the first is u - 1/2, that of the
second a - c with c left of the middle: about these points the terms cancel least, which without fma
makes the difference between 1.1 and 0.95 ULP. Below 1, a has a finer last place: u - 1/2 is exact
from u = 1/4 on, and matters nowhere else; above 1, a - c is exact, and not below: hence the joint.

Near 0, erf x = 2x/sqrt(pi): subnormal numbers are not mapped to themselves, and a*P may be
subnormal where the result is not. So tiny a are multiplied by 2^unit, in integers, before the
arithmetic and brought back, in integers, after it; a subnormal result is rounded to an integer by
adding 2^(p-1). NaN passes through.
"""

from __future__ import annotations

from fractions import Fraction

from nearly.functions.function import Function
from nearly.functions.program import Builder, Node, Program
from nearly.functions.reduction.layout import Layout, layout, real
from nearly.functions.reduction.scheme import Reduction

SQUARE = "(x+1/2)^(1/2)"
# Not from -1/2: to the eye of ball arithmetic the root is singular there. The core is smooth.
NEAR = ("-127/256", "1/2")

# Between erf 1 and 1, and nearer to 1 where more roundings meet: the last sum but one is small.
LEVEL = Fraction(61, 64)


def erf(function: Function) -> Reduction:
    """The reduction of erf."""
    place = layout(function)
    end = _saturation(place)
    centre = Fraction(round(4 + 1.7 * (end - 1)), 4)
    near = Function(f"erf({SQUARE})/{SQUARE}-1", NEAR, function.dtype, "absolute")
    far_domain = (str(1 - centre), str(end - centre))
    far = Function(f"erf(x+{centre})-{LEVEL}", far_domain, function.dtype, "absolute")

    def wrap(near_core: Program, far_core: Program) -> Program:
        b = Builder(function.dtype)
        given = b.bits(b.x)
        sign = b.iand(given, place.sign)
        size_bits = b.isub(given, sign)
        size = b.from_bits(size_bits)
        held = b.select(b.lt(b.constant(end), size), b.constant(end), size)
        large = b.add(LEVEL, b.inline(far_core, b.sub(held, centre)))
        small = _small(b, place, size_bits, size, near_core)
        result = b.select(b.lt(size, 1), small, b.bits(large))
        return b.program(b.from_bits(b.iadd(result, sign)))

    return Reduction(function, (near, far), wrap)


def _small(b: Builder, place: Layout, bits: Node, size: Node, core: Program) -> Node:
    """The bits of a + a P(a)."""
    tail = b.inline(core, b.sub(b.mul(size, size), Fraction(1, 2)))
    if not place.has_subnormals:
        return b.bits(b.fma(size, tail, size))
    shift = place.unit << place.mantissa
    # From 2^(emin + p + 6) on neither a*P nor anything else here is subnormal.
    safe = (place.precision + 7) << place.mantissa
    offset = b.select(b.lt(bits, safe), b.constant(shift), b.constant(0))
    raised = b.from_bits(b.iadd(bits, offset))
    scaled = b.select(b.lt(bits, place.hidden), b.to_float(bits), raised)
    value = b.fma(scaled, tail, scaled)
    result = b.isub(b.bits(value), offset)
    integer = Fraction(place.hidden)
    rounded = b.isub(b.bits(b.add(value, integer)), place.bits(integer))
    first_normal = int(place.hidden / real("2/pi^0.5"))
    return b.select(b.lt(bits, first_normal), rounded, result)


def _saturation(place: Layout) -> Fraction:
    """Where 1 - erfc rounds to 1 and erfc may be a little wrong, rounded up to sixteenths."""
    enough = Fraction(5, 8) / 2 ** (place.precision + 1)
    sixteenths = 16
    while real(f"erfc({sixteenths}/16)") > enough:
        sixteenths += 1
    return Fraction(sixteenths, 16)
