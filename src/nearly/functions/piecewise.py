"""Tables: a polynomial per piece of the domain, or a table of values and one short correction.

Both index a table by integer steps, so they need a machine format. `fma` is written throughout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from flint import ctx

from nearly.core.errors import InputError
from nearly.functions import polynomial
from nearly.functions.balls import exact, to_fraction
from nearly.functions.formats import exponent
from nearly.functions.function import Function
from nearly.functions.named import ALIASES
from nearly.functions.polynomial import Polynomial
from nearly.functions.program import Builder, Node, Program
from nearly.functions.rounding import round_coefficients
from nearly.functions.target import canonical, target

_MOST_BITS = 10
_DEFAULT_BITS = 6  # of the largest table offered unasked: its fits take some seconds


@dataclass(frozen=True)
class TableBuilder:
    """A polynomial per piece: the dial `"4x3"` is 2^4 equal pieces of degree 3.

    Each piece has its own centre, a short number, so that x - centre is exact; its minimax
    coefficients are rounded together to the registers. A piece with a zero of the function is
    centred there. Where the function vanishes at a number its format does not hold, and over real
    numbers, `InputError`; real numbers have no dials.

    Costs a minimax fit and a rounding per piece, some 50 ms each, and degree + 2 numbers of memory
    per piece.
    """

    def __call__(self, function: Function, dial: str) -> Program:
        _need_format(function)
        bits, degree = parsed(dial)
        count = 1 << bits
        register = function.format.computing
        low, high = function.interval
        start = register.round(low)
        # A trifle less than count / width: the last number of the domain is in the last piece.
        slack = Fraction(8, 2**register.precision)
        scale = register.round(count / (high - start) * (1 - slack))
        width = 1 / scale
        edges = [start + i * width for i in range(count + 1)]
        # The step to an index rounds, so a piece must serve a little beyond its edges.
        ends = [
            (max(low, a - slack * (abs(a) + width)), min(high, b + slack * (abs(b) + width)))
            for a, b in pairwise(edges)
        ]
        ends[0], ends[-1] = (low, ends[0][1]), (ends[-1][0], high)
        pieces = [_piece(function, a, b, degree) for a, b in ends]
        builder = Builder(function.dtype)
        steps = (builder.x - start if start else builder.x) * scale
        index = builder.iand(builder.to_int(steps), count - 1)
        z = builder.x - builder.lookup(builder.table(p.centre for p in pieces), index)
        columns = [builder.table(_coefficient(p, e) for p in pieces) for e in range(degree + 1)]
        return builder.program(_horner(builder, z, [builder.lookup(c, index) for c in columns]))

    def dials(self, function: Function) -> Sequence[str]:
        return _dials(function)


@dataclass(frozen=True)
class ExponentialTableBuilder:
    """b^x = b^(i/2^k) b^r with a table of b^(i/2^k), for exp2, exp and exp10: the dial `"5x3"`.

    That is 2^5 table entries per unit of x, and b^r by degree 3 with a leading 1. Entries are the
    sums of two numbers, and the correction is added to the larger last, so that the result is
    hardly worse than correctly rounded. Other functions raise `InputError` and have no dials, as do
    real numbers.
    """

    def __call__(self, function: Function, dial: str) -> Program:
        _need_format(function)
        if _name(function) not in EXPONENTIALS:
            raise InputError(
                f"no table identity is known for {function.name!r}; known: "
                f"{', '.join(EXPONENTIALS)}; use table"
            )
        bits, degree = parsed(dial)
        if not degree:
            raise InputError(f"dial {dial!r}: the correction of a table has degree 1 at least")
        step = Fraction(1, 1 << bits)
        low, high = function.interval
        first, last = round(low / step), round(high / step)
        size = 1 << (last - first).bit_length()
        if size > 1 << 16:
            raise InputError(
                f"dial {dial!r} needs a table of {size} entries on [{float(low):g}, "
                f"{float(high):g}]: take fewer bits or a reduced domain"
            )
        heads, tails = _entries(function, [min(first + i, last) * step for i in range(size)])
        correction = _correction(function, step, degree)
        builder = Builder(function.dtype)
        nearest = builder.round(builder.x * (1 / step))
        r = builder.fma(nearest, -step, builder.x)
        index = builder.iand(builder.isub(builder.to_int(nearest), first), size - 1)
        head, tail = (
            builder.lookup(builder.table(heads), index),
            builder.lookup(builder.table(tails), index),
        )
        q = _horner(builder, r, correction[1:]) * r
        return builder.program(builder.fma(head, q, tail) + head)

    def dials(self, function: Function) -> Sequence[str]:
        if _name(function) not in EXPONENTIALS:
            return []
        return [d for d in _dials(function) if parsed(d)[1]]


# The natural logarithm of each base.
EXPONENTIALS: Mapping[str, str] = {"exp2": "log(2)", "exp": "1", "exp10": "log(10)"}

table = TableBuilder()
exponential_table = ExponentialTableBuilder()


def parsed(dial: str) -> tuple[int, int]:
    """The bits and the degree in `"4x3"`; raises `InputError` for anything else."""
    found = re.fullmatch(r"\s*(\d{1,2})\s*x\s*(\d{1,2})\s*", str(dial))
    if not found or int(found[1]) > _MOST_BITS or int(found[2]) > 30:
        raise InputError(
            f"dial {dial!r}: a table's dial is bits and degree, as '4x3' for 2^4 pieces of degree "
            f"3; at most {_MOST_BITS} bits, degree 30"
        )
    return int(found[1]), int(found[2])


def _need_format(function: Function) -> None:
    if function.format.is_real:
        raise InputError(
            "a table is read by an integer index, so it needs a machine format: give "
            "a dtype, as float32"
        )


def _name(function: Function) -> str:
    return ALIASES.get(function.name.strip(), function.name.strip())


def _dials(function: Function) -> list[str]:
    """Degrees with as many pieces as bring a function like exp to half, or all, of the precision.

    On a piece of width h the minimax error is about h^(d+1) / (2^(2d+1) (d+1)!).
    """
    if function.format.is_real:
        return []
    found: set[tuple[int, int]] = set()
    for wanted in ((function.format.precision + 3) / 2, function.format.precision + 3):
        for degree in range(1, 16):
            gained = 2 * degree + 1 + math.log2(math.factorial(degree + 1))
            bits = math.ceil((wanted - gained) / (degree + 1))
            if 1 <= bits <= _DEFAULT_BITS:
                found.add((degree, bits))
    return [f"{bits}x{degree}" for degree, bits in sorted(found)]


def _horner(builder: Builder, z: Node, coefficients: Sequence[Node | Fraction]) -> Node:
    value = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        value = builder.fma(value, z, c)
    return builder.constant(value, "r")


def _coefficient(piece: Polynomial, power: int) -> Fraction:
    terms: Mapping[int, Fraction] = dict(zip(piece.exponents, piece.coefficients, strict=True))
    return terms.get(power, Fraction(0))


def _piece(function: Function, low: Fraction, high: Fraction, degree: int) -> Polynomial:
    """The rounded polynomial of one piece, about a number of the registers."""
    local = replace(function, domain=(str(low), str(high)))
    problem = target(canonical(local), parity=False)
    if any(zero.at for zero in problem.zeros):
        found = polynomial.minimax(local, degree).polynomial
        centre = problem.centre
    else:
        powers = range(problem.offset, degree + 1)
        if not powers:
            raise InputError(
                f"degree {degree}: {function.name} has a zero of order {problem.offset} in its "
                "domain, so a table of its pieces needs that degree at least"
            )
        found = polynomial.minimax(local, exponents=powers).polynomial
        centre = Fraction(0) if low <= 0 <= high else _short(low, high)
        found = found.about(centre)
    register = function.format.computing
    if register.round(centre) != centre:
        raise InputError(
            f"{function.name} vanishes at x = {float(centre):.9g}, which is no number of "
            f"{register.name}: a table cannot follow it there; take a domain without that point"
        )
    rounded = round_coefficients(local, found.exponents, found.coefficients, centre=centre)
    return replace(found, coefficients=rounded)


def _short(low: Fraction, high: Fraction) -> Fraction:
    """A number of few bits near the middle."""
    step = Fraction(2) ** (exponent(high - low) - 3)
    return round((low + high) / 2 / step) * step


def _entries(
    function: Function, points: Sequence[Fraction]
) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...]]:
    """The function at the points, as numbers of the registers and what they leave."""
    register = function.format.computing
    with ctx.workprec(4 * register.precision):
        values = [to_fraction(function.oracle.at(exact(x), 3 * register.precision)) for x in points]
    heads = tuple(register.round(v) for v in values)
    return heads, tuple(register.round(v - h) for v, h in zip(values, heads, strict=True))


def _correction(function: Function, step: Fraction, degree: int) -> tuple[Fraction, ...]:
    """b^r about r = 0 with a constant term of 1."""
    # Half a step, and what rounding to the nearest step may add to it.
    reach = step / 2 * (1 + Fraction(1, 2**20))
    local = replace(function, domain=(str(-reach), str(reach)), error="relative")
    # With the 1 pinned, (b^r - 1) / r is what is left to fit.
    base = EXPONENTIALS[_name(function)]
    rest = replace(local, name=f"expm1({base}*x)/x", dtype="real")
    found = polynomial.minimax(rest, exponents=range(degree), weight=f"x*exp(-{base}*x)").polynomial
    coefficients = (Fraction(1), *found.coefficients)
    return round_coefficients(local, range(degree + 1), coefficients, pinned={0: Fraction(1)})
