"""Evaluation schemes of polynomials: from coefficients to a `Program`, and what each form costs.

Every scheme is a function `(builder, x, coefficients) -> node` of dense coefficients, lowest first.
`polynomial_program` calls one in the right variable: x - centre, or its square for even and odd
polynomials. Products and the sums they enter are written as fma; `Program.unfused` splits them,
which changes neither the count of operations nor, over the reals, the value.

Operations for degree n (additions and multiplications on values that depend on x):

| scheme | operations | for |
|---|---|---|
| Horner | 2n | the fewest constants, n fma in a chain |
| Estrin | 2n + log2(n) | the shortest chain: log2(n) fma |
| even/odd | 2n + 1 | two chains of half the length |
| Paterson-Stockmeyer | 2n + ~2 sqrt(n) | ~2 sqrt(n) products of two variables |
| Knuth-Eve | 3n/2 + 2 | the fewest operations; needs preconditioned constants |
| Clenshaw | 3n + 3 | a Chebyshev series as it stands |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from flint import acb_poly, arb, ctx, fmpq_poly

from nearly.core.errors import InputError
from nearly.functions.balls import to_fraction
from nearly.functions.polynomial import Polynomial, from_fmpq, shifted, to_fmpq, to_fractions
from nearly.functions.program import Builder, Node, Program

Scheme = Callable[[Builder, Node, Sequence[Fraction]], Node]
Value = Node | Fraction  # a constant stays one until it meets a variable

_NO_CONSTANTS = "Knuth-Eve finds no real constants for this polynomial: take Horner or Estrin"

ROOT_BITS = 640  # precision of the roots that Knuth-Eve needs


def polynomial_program(scheme: Scheme, polynomial: Polynomial) -> Program:
    """The real program, fma included, that evaluates a polynomial by a scheme.

    Costs one operation more for a centre that is not 0; a polynomial in every second power costs
    a squaring and what half the degree costs, and one more operation if it is odd.
    """
    builder = Builder()
    z = builder.x - polynomial.centre if polynomial.centre else builder.x
    return builder.program(_in_powers(builder, z, polynomial, scheme))


def _in_powers(builder: Builder, z: Node, polynomial: Polynomial, scheme: Scheme) -> Node:
    offset, step, coefficients = common_power(polynomial.exponents, polynomial.coefficients)
    u = power(builder, z, step)
    value = scheme(builder, u, coefficients) if any(coefficients[1:]) else coefficients[0]
    if offset:
        return product(builder, value, power(builder, z, offset))
    return value if isinstance(value, Node) else builder.constant(value, "r")


def common_power(
    exponents: Sequence[int], coefficients: Sequence[Fraction]
) -> tuple[int, int, list[Fraction]]:
    """(offset, step, dense): the polynomial is z^offset times the dense one in z^step."""
    offset = min(exponents)
    step = math.gcd(*(e - offset for e in exponents)) or 1
    dense = [Fraction(0)] * ((max(exponents) - offset) // step + 1)
    for e, c in zip(exponents, coefficients, strict=True):
        dense[(e - offset) // step] = c
    return offset, step, dense


def power(builder: Builder, x: Node, exponent: int) -> Node:
    """x^exponent by repeated squaring; the builder shares what it has computed before."""
    if exponent == 1:
        return x
    half = power(builder, x, exponent // 2)
    square = half * half
    return square * x if exponent % 2 else square


def multiply_add(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """a b + c, without the operations that a constant 0 or 1 makes needless."""
    if not isinstance(a, Node) and not isinstance(b, Node):
        return _sum(builder, a * b, c)
    if 0 in (a, b):
        return c
    if 1 in (a, b):
        return _sum(builder, b if a == 1 else a, c)
    if c == 0:
        return product(builder, a, b)
    return builder.apply("fma", a, b, c)


def product(builder: Builder, a: Value, b: Value) -> Any:
    if 1 in (a, b):
        return b if a == 1 else a
    return a * b if isinstance(a, Node) else builder.apply("mul", a, b)


def _sum(builder: Builder, a: Value, b: Value) -> Value:
    if not isinstance(a, Node) and not isinstance(b, Node):
        return a + b
    if 0 in (a, b):
        return b if a == 0 else a
    return builder.apply("add", a, b)


# ------------------------------------------------------------------ the schemes


def horner(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Any:
    """c0 + x (c1 + x (c2 + …)): n products, n sums; a gap of absent powers costs one product."""
    terms = [(e, c) for e, c in enumerate(coefficients) if c] or [(0, Fraction(0))]
    exponent, value = terms[-1][0], terms[-1][1]
    result: Value = value
    for lower, coefficient in reversed(terms[:-1]):
        result = multiply_add(builder, result, power(builder, x, exponent - lower), coefficient)
        exponent = lower
    return product(builder, result, power(builder, x, exponent)) if exponent else result


def estrin(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Any:
    """Neighbours are paired in x, pairs in x^2, …: a chain of only log2(n) fma."""
    values: list[Value] = list(coefficients)
    while len(values) > 1:
        pairs = [
            multiply_add(builder, high, x, low)
            for low, high in zip(values[::2], values[1::2], strict=False)
        ]
        values = [*pairs, *values[2 * len(pairs) :]]
        if len(values) > 1:
            x = x * x
    return values[0]


def even_odd(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Any:
    """E(x^2) + x O(x^2): two chains of half the length."""
    if len(coefficients) < 3:
        return horner(builder, x, coefficients)
    square = x * x
    even = horner(builder, square, coefficients[::2])
    odd = horner(builder, square, coefficients[1::2])
    return multiply_add(builder, odd, x, even)


def paterson_stockmeyer(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Any:
    """Blocks of about sqrt(n) terms, by Horner in the power of the block's length."""
    length = max(1, round(math.sqrt(len(coefficients))))
    powers = [x]
    while len(powers) < length:
        powers.append(powers[-1] * x)
    result: Value = Fraction(0)
    for start in reversed(range(0, len(coefficients), length)):
        block: Value = coefficients[start]
        for c, x_power in zip(coefficients[start + 1 : start + length], powers, strict=False):
            block = multiply_add(builder, c, x_power, block)
        result = multiply_add(builder, result, powers[-1], block)
    return result


def clenshaw(builder: Builder, t: Node, coefficients: Sequence[Fraction]) -> Any:
    """The Chebyshev series sum of c_k T_k(t) by Clenshaw's recurrence, t in [-1, 1]."""
    if len(coefficients) < 3:
        return horner(builder, t, coefficients)
    double = t + t
    later: Value = Fraction(0)
    value: Value = coefficients[-1]
    for c in reversed(coefficients[1:-1]):
        low = c if later == 0 else builder.apply("sub", c, later)
        value, later = multiply_add(builder, value, double, low), value
    return multiply_add(builder, value, t, builder.apply("sub", coefficients[0], later))


# ------------------------------------------------------------------ Knuth and Eve


def knuth_eve(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Any:
    """Preconditioned evaluation: degree 4 in 3 products and 5 sums, 6 in 4 and 7, n in n/2+2 and n.

    Knuth's forms for degrees 4 and 6, which exist for all real coefficients; Eve's for the others.
    Raises `InputError` under degree 4, where nothing is saved, and for a polynomial with multiple
    roots: a shift that makes all of Eve's constants real always exists, but is not found then.
    """
    degree = len(coefficients) - 1
    if degree < 4:
        raise InputError(f"Knuth-Eve saves nothing at degree {degree}: take Horner's scheme")
    if not coefficients[-1]:
        return knuth_eve(builder, x, coefficients[:-1])
    forms: dict[int, Scheme] = {4: _knuth_four, 6: _knuth_six}
    return forms.get(degree, _eve)(builder, x, coefficients)


def _knuth_four(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Node:
    lead = coefficients[4]
    u0, u1, u2, u3 = (c / lead for c in coefficients[:4])
    a0 = (u3 - 1) / 2
    b = u2 - a0 * (a0 + 1)
    a1 = u1 - a0 * b
    a2 = b - 2 * a1
    a3 = u0 - a1 * (a1 + a2)
    y = (x + a0) * x + a1
    return ((y + x + a2) * y + a3) * lead


def _knuth_six(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Node:
    """((w + z + a4) w + a5) a6 with z = (x + a0) x + a1 and w = (x + a2) z + a3.

    With w = x^3 + p x^2 + q x + r, comparing coefficients leaves p known, q linear and r quadratic
    in a0, and one cubic for a0, which has a real root.
    """
    lead = coefficients[6]
    u0, u1, u2, u3, u4, u5 = (c / lead for c in coefficients[:6])
    p = (u5 - 1) / 2
    a = fmpq_poly([0, 1])
    exact_p, exact_u2, exact_u3 = to_fmpq(p), to_fmpq(u2), to_fmpq(u3)
    q = (to_fmpq(u4 - p * p - p) - a) / 2
    r = exact_u2 - (
        q * q + q * a + exact_p * exact_u3 - 2 * exact_p**2 * q - exact_p**2 * a - exact_p * q
    )
    cubic = r * a + q * (exact_u3 - 2 * exact_p * q - exact_p * a - q) - to_fmpq(u1)
    real = [root for root, imaginary in _roots(cubic) if not imaginary]
    if not real:
        raise InputError("Knuth's form of degree 6 does not exist here: take Horner's scheme")
    a0 = min(real, key=abs)
    q0, r0 = (_value(polynomial, a0) for polynomial in (q, r))
    a2 = p - a0
    a1 = q0 - a0 * a2
    a3 = r0 - a1 * a2
    a4 = u3 - 2 * r0 - 2 * p * q0 - a1 - p * a0 - q0
    a5 = u0 - r0 * (r0 + a1 + a4)
    z = (x + a0) * x + a1
    w = (x + a2) * z + a3
    return ((w + z + a4) * w + a5) * lead


def _eve(builder: Builder, x: Node, coefficients: Sequence[Fraction]) -> Node:
    """With y = x - shift and w = y^2 the odd part's roots a_i are real: divide by all (w - a_i).

    The shift is the centre of a pair of roots, so that the pair's w is a root of both parts, and
    the remainder of the first division vanishes: that saves the addition which the shift costs.
    """
    polynomial = fmpq_poly([to_fmpq(c) for c in coefficients])
    for shift, pair in _pairs(_roots(polynomial)):
        moved = shifted(polynomial, shift)
        odd = fmpq_poly(moved.coeffs()[1::2])
        roots = _roots(odd)
        if all(not imaginary for _, imaginary in roots):
            others = sorted((root for root, _ in roots), key=lambda root: abs(root - pair))[1:]
            return _eve_steps(builder, x - shift, moved, [pair, *sorted(others)])
    raise InputError(_NO_CONSTANTS)


def _pairs(roots: Sequence[tuple[Fraction, Fraction]]) -> list[tuple[Fraction, Fraction]]:
    """(shift, w) of the pairs of roots that lie outermost: at most one root is further out."""
    pairs = [(real, -(imaginary**2)) for real, imaginary in roots if imaginary > 0]
    alone = sorted(real for real, imaginary in roots if not imaginary)
    neighbours = [(alone[:2]), (alone[-2:])] if len(alone) > 1 else []
    pairs += [((a + b) / 2, ((b - a) / 2) ** 2) for a, b in neighbours]
    return sorted(pairs, key=lambda pair: -abs(pair[0] - sum(r for r, _ in roots) / len(roots)))


def _eve_steps(builder: Builder, y: Node, moved: fmpq_poly, roots: Sequence[Fraction]) -> Node:
    even, odd = fmpq_poly(moved.coeffs()[::2]), fmpq_poly(moved.coeffs()[1::2])
    steps: list[tuple[Fraction, Fraction]] = []
    for i, root in enumerate(roots):
        factor = fmpq_poly([to_fmpq(-root), 1])
        even, remainder = divmod(even, factor)
        odd = divmod(odd, factor)[0]
        # The pair's remainder vanishes but for the rounding of the shift.
        steps.append((root, from_fmpq(remainder[0]) if i else Fraction(0)))
    constant, *square = to_fractions(even)
    linear = to_fractions(odd)[0]
    w = y * y
    if square:
        value: Any = builder.apply("fma", (y + linear / square[0]) * y, square[0], constant)
    else:
        value = builder.apply("fma", y, linear, constant)
    for root, remainder_ in reversed(steps):
        value = multiply_add(builder, value, w - root, remainder_)
    return value


def _roots(polynomial: fmpq_poly) -> list[tuple[Fraction, Fraction]]:
    """(real, imaginary) of all roots, to about 2^-300; an imaginary part below 2^-250 is 0."""
    with ctx.workprec(ROOT_BITS):
        balls = acb_poly([arb(c) for c in polynomial.coeffs()])
        try:
            roots = balls.roots(tol=arb(2) ** -300, maxprec=4 * ROOT_BITS)
        except ValueError:
            raise InputError(_NO_CONSTANTS) from None
        small = arb(2) ** -250
        return [
            (
                to_fraction(root.real),
                Fraction(0) if bool(abs(root.imag).mid() < small) else to_fraction(root.imag),
            )
            for root in roots
        ]


def _value(polynomial: fmpq_poly, x: Fraction) -> Fraction:
    return from_fmpq(polynomial(to_fmpq(x)))
