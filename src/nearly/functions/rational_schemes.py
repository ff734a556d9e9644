"""Evaluation schemes of rationals: from coefficients to a `Program`, and what each form costs.

Operations for type m/n (+ - * / on values that depend on x):

| scheme | operations | for |
|---|---|---|
| two Horners | 2m + 2n | one division |
| continued fraction | 3n + 2(m - n) for m >= n | the fewest operations of a general rational |
| odd quotient | 3n/2 + 4 for even n, one less about 0 | exponentials, type n/n |

Even and odd rationals are evaluated in x^2, which halves their degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from flint import fmpq_poly

from nearly.functions.polynomial import from_fmpq, significant, to_fmpq, to_fractions
from nearly.functions.program import Builder, Node, Program
from nearly.functions.rational import BestQuotient, Rational, exact_polynomial
from nearly.functions.schemes import horner, multiply_add, power, product

STAGE_BITS = 1536
NEGLIGIBLE = Fraction(1, 2**256)

RationalScheme = Callable[[Rational], Program]


class Stage(NamedTuple):
    """One partial quotient: `above` over a monic polynomial (over anything, for the first)."""

    above: Fraction
    quotient: tuple[Fraction, ...]


class _Reduced(NamedTuple):
    """The rational as z^offset above(u) / below(u), with u = z or z^2, and a builder with both."""

    builder: Builder
    z: Node
    u: Node
    offset: int
    above: tuple[Fraction, ...]
    below: tuple[Fraction, ...]


def two_horner(rational: Rational) -> Program:
    """P(x) / Q(x), each by Horner's scheme, Q monic to save a product."""
    builder, z, u, offset, above, below = _reduced(rational)
    lead = below[-1]
    p = horner(builder, u, [c / lead for c in above])
    q = horner(builder, u, [c / lead for c in below])
    return builder.program(builder.apply("div", _times_power(builder, p, z, offset), q))


def continued_fraction(rational: Rational) -> Program:
    """q0 + K1 / (m1 + K2 / (m2 + …)) with monic m: three operations per degree of Q.

    The partial quotients are Euclid's, exactly; of an odd rational either those of r / x or, where
    that takes fewer operations, those of x / r. An inner denominator may vanish inside the domain
    (that of type 2/2 for an exponential does, in its middle), although the rational has no pole:
    there the value is the limit, which IEEE division reaches through infinity.
    """
    direct = _direct(*_reduced(rational))
    inverse = _inverse(*_reduced(rational))
    return min(direct, inverse, key=lambda program: program.cost.ops)


def full_continued_fraction(rational: Rational) -> Program:
    """The continued fraction in z itself, also of an even or odd rational: K / (z + d / (z + …)).

    Fewer operations than in z^2 for the lowest types: 1/2 takes three instead of four.
    """
    direct = _direct(*_as_it_is(rational))
    inverse = _inverse(*_as_it_is(rational))
    return min(direct, inverse, key=lambda program: program.cost.ops)


def _direct(
    builder: Builder,
    z: Node,
    u: Node,
    offset: int,
    above: tuple[Fraction, ...],
    below: tuple[Fraction, ...],
) -> Program:
    value = _evaluate(builder, u, stages(exact_polynomial(above), exact_polynomial(below)))
    return builder.program(_times_power(builder, value, z, offset))


def _inverse(
    builder: Builder,
    z: Node,
    u: Node,
    offset: int,
    above: tuple[Fraction, ...],
    below: tuple[Fraction, ...],
) -> Program:
    value = _evaluate(builder, u, stages(exact_polynomial(below), exact_polynomial(above)))
    numerator = power(builder, z, offset) if offset else Fraction(1)
    return builder.program(builder.apply("div", numerator, value))


def _times_power(builder: Builder, value: Any, z: Node, offset: int) -> Any:
    return product(builder, value, power(builder, z, offset)) if offset else value


def odd_quotient(best: BestQuotient) -> Program:
    """f(c) (1 + T) / (1 - T) as K / (B - z / C(z^2)) - f(c), C a continued fraction.

    T = s z / C with C's leading coefficient 1, so K = 2 f(c) / s and B = 1 / s. Type n/n costs
    3n/2 + 4 operations for even n, 3(n-1)/2 + 6 for odd n, one less about the centre 0.
    """
    builder = Builder()
    inverse = stages(exact_polynomial(best.denominator), exact_polynomial(best.numerator))
    lead = inverse[0].quotient[-1]
    pole, constant = lead, 2 * best.value * lead
    if len(best.denominator) == 1 and len(best.numerator) == 1:
        # T is s z itself, and the centre goes into the constant.
        below = builder.apply("sub", pole + best.centre, builder.x)
        return builder.program(builder.apply("div", constant, below) - best.value)
    z = builder.x - best.centre if best.centre else builder.x
    # Dividing the whole fraction by `lead` divides the first quotient and the first numerator.
    first = Stage(Fraction(1), tuple(c / lead for c in inverse[0].quotient))
    second = [stage._replace(above=stage.above / lead) for stage in inverse[1:2]]
    t = z / _evaluate(builder, z * z, [first, *second, *inverse[2:]])
    below = builder.apply("sub", pole, t)
    return builder.program(builder.apply("div", constant, below) - best.value)


def stages(above: fmpq_poly, below: fmpq_poly) -> list[Stage]:
    """Euclid's partial quotients of above / below, the first one as it is, the others monic."""
    quotient, rest = divmod(above, below)
    found = [Stage(Fraction(1), tuple(to_fractions(quotient)))]
    scale = to_fmpq(_lead(below))
    below, rest = below / scale, _cleaned(rest / scale, above / scale)
    while rest.degree() >= 0:
        # rest / below = K / (below / monic rest)
        lead = _lead(rest)
        monic = rest / to_fmpq(lead)
        quotient, remainder = divmod(below, monic)
        # Exact quotients grow without bound; so many bits of them are exact enough for anybody.
        short = tuple(
            significant(c, STAGE_BITS) for c in to_fractions(_cleaned(quotient, quotient))
        )
        found.append(Stage(significant(lead, STAGE_BITS), short))
        below, rest = monic, _cleaned(remainder, below)
    return found


def _cleaned(polynomial: fmpq_poly, scale: fmpq_poly) -> fmpq_poly:
    """Coefficients that are nothing beside the largest of `scale` made 0: rounding of zeros."""
    least = max(map(abs, to_fractions(scale)), default=Fraction(0)) * NEGLIGIBLE
    kept = (c if abs(c) > least else Fraction(0) for c in to_fractions(polynomial))
    return exact_polynomial(tuple(kept))


def _lead(polynomial: fmpq_poly) -> Fraction:
    return from_fmpq(polynomial[polynomial.degree()])


def _evaluate(builder: Builder, u: Node, fraction: list[Stage]) -> Any:
    """The value of a continued fraction, from its innermost stage outwards."""
    tail: Node | None = None
    for stage in reversed(fraction[1:]):
        tail = builder.apply("div", stage.above, _with_tail(builder, u, stage.quotient, tail))
    return _with_tail(builder, u, fraction[0].quotient, tail)


def _with_tail(builder: Builder, u: Node, quotient: tuple[Fraction, ...], tail: Node | None) -> Any:
    """quotient(u) + tail, the tail added to the constant coefficient."""
    if not any(quotient):
        return tail
    if tail is None:
        return horner(builder, u, quotient)
    low = tail if not quotient[0] else builder.apply("add", quotient[0], tail)
    if len(quotient) == 1:
        return low
    return multiply_add(builder, horner(builder, u, quotient[1:]), u, low)


def _reduced(rational: Rational) -> _Reduced:
    """An even or odd rational in the square of its variable, any other in the variable itself."""
    builder = Builder()
    z = builder.x - rational.centre if rational.centre else builder.x
    above = {e: c for e, c in enumerate(rational.numerator) if c} or {0: Fraction(0)}
    below = {e: c for e, c in enumerate(rational.denominator) if c}
    parity = {e % 2 for e in above}
    step = 2 if len(parity) == 1 and not any(e % 2 for e in below) else 1
    # A zero at the centre stays one in its factor; in a continued fraction rounding would shift it.
    offset = min(parity) if step == 2 else min(above)
    return _Reduced(
        builder,
        z,
        power(builder, z, step),
        offset,
        _dense({(e - offset) // step: c for e, c in above.items()}),
        _dense({e // step: c for e, c in below.items()}),
    )


def _as_it_is(rational: Rational) -> _Reduced:
    builder = Builder()
    z = builder.x - rational.centre if rational.centre else builder.x
    return _Reduced(builder, z, z, 0, rational.numerator, rational.denominator)


def _dense(coefficients: Mapping[int, Fraction]) -> tuple[Fraction, ...]:
    return tuple(coefficients.get(e, Fraction(0)) for e in range(max(coefficients) + 1))
