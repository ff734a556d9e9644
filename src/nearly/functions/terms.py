"""Compositions of functions, with Taylor coefficients through removable singularities."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

from flint import arb, arb_series, ctx

from nearly.functions.balls import compose, exact, is_narrow, meet
from nearly.functions.elementary.exponential import power_coefficients, power_value
from nearly.functions.elementary.rule import Coefficients, Points, uncapped
from nearly.functions.oracle import Oracle

Constant = Callable[[], arb]


class Zero(NamedTuple):
    """A point where a function is exactly zero.

    **Arguments:**

    - `text`: the point as a constant expression, `"3*pi"`.
    - `order`: of the zero; 0 where it is no integer (`sqrt` at 0).
    - `point`: the point at the working precision.
    - `exact`: the point as a Fraction, `None` where it is irrational.
    """

    text: str
    order: int
    point: Constant
    exact: Fraction | None


class Base(NamedTuple):
    """Where a composition is expanded: about every point of `x`, to `length` coefficients."""

    x: arb
    length: int


@dataclass(frozen=True, eq=False)
class Term:
    """A node of a composition; Python's arithmetic on terms makes further ones.

    A quotient whose numerator and denominator vanish at the same point is expanded from the
    Taylor coefficients there: with w = (x - x0)^v, the k-th coefficient of f/w lies in the
    (v+k)-th coefficient of f over a ball that contains x0 (the mean value theorem of divided
    differences). So `log1p(x)/x` has a value at 0 and tight enclosures around it.
    """

    text: str
    rule: Callable[..., arb_series]
    operands: tuple[Term, ...] = ()
    parity: str | None = None
    number: Fraction | None = None
    removable: tuple[tuple[Constant, int], ...] = ()
    poles: tuple[Fraction, ...] = ()

    def __add__(self, other: Term) -> Term:
        return _sum("+", operator.add, self, other)

    def __sub__(self, other: Term) -> Term:
        return _sum("-", operator.sub, self, other)

    def __mul__(self, other: Term) -> Term:
        return _product(self, other)

    def __truediv__(self, other: Term) -> Term:
        return _quotient(self, other)

    def __neg__(self) -> Term:
        if self.number is not None:
            return constant(-self.number)
        if isinstance(self, Quotient):
            return _quotient(-self.operands[0], self.operands[1])
        return Term(_shown(f"-({self.text})"), lambda _, a: -a, (self,), self.parity)

    @cached_property
    def order(self) -> tuple[Term, ...]:
        """Every term below this one, operands first."""
        done: dict[int, Term] = {}
        stack: list[tuple[Term, bool]] = [(self, False)]
        while stack:
            term, ready = stack.pop()
            if id(term) in done:
                continue
            if ready:
                done[id(term)] = term
            else:
                stack.append((term, True))
                stack.extend((operand, False) for operand in term.operands)
        return tuple(done.values())

    @cached_property
    def singular(self) -> tuple[tuple[Constant, int], ...]:
        return tuple(point for term in self.order for point in term.removable)

    @property
    def is_constant(self) -> bool:
        return VARIABLE not in self.order

    def coefficients(self, x: arb, n: int) -> list[arb]:
        """The first n Taylor coefficients over the ball `x`."""
        result = self._over(x, n)
        if is_narrow(x):
            return result
        for point, _ in self.singular:
            # Beside a removable singularity a wide quotient is poor; over the hull it is not.
            apart = abs(x.mid() - point())
            if not x.overlaps(point()) and apart < 8 * x.rad():
                wider = self._over(x.union(point()), n)
                result = [meet(a, b) for a, b in zip(result, wider, strict=True)]
        return result

    def _over(self, x: arb, n: int) -> list[arb]:
        length = n
        for _ in self.singular:  # a union may reach the next point
            for point, _ in self.singular:
                if x.overlaps(point()) and not x.contains(point()):
                    x = x.union(point())
        length += sum(v for point, v in self.singular if x.overlaps(point()))
        base = Base(x, length)
        jets: dict[int, arb_series] = {}
        with uncapped():
            for term in self.order:
                jets[id(term)] = term.rule(base, *(jets[id(o)] for o in term.operands))
        jet = jets[id(self)]
        return [jet[k] for k in range(n)]


def _joint(a: str | None, b: str | None) -> str | None:
    """Parity of a product."""
    if a is None or b is None:
        return None
    return "even" if a == b else "odd"


def _shown(text: str) -> str:
    """Shared operands are written out at each use: without a limit texts would explode."""
    return text if len(text) <= 200 else text[:199] + "…"


def _dyadic(number: Fraction | None) -> bool:
    if number is None:
        return False
    power_of_two = number.denominator & (number.denominator - 1) == 0
    return power_of_two and max(abs(number.numerator), number.denominator).bit_length() <= 60


def _variable(base: Base) -> arb_series:
    return arb_series([base.x, 1], prec=base.length)


VARIABLE = Term("x", _variable, parity="odd")


def constant(number: Fraction | int, text: str = "") -> Term:
    """A rational constant, taken exactly."""
    number = Fraction(number)
    return Term(
        text or (f"({number})" if number < 0 or number.denominator > 1 else str(number)),
        lambda base: arb_series([exact(number)], prec=base.length),
        parity="even",
        number=number,
    )


def named_constant(text: str, value: Constant) -> Term:
    """An irrational constant, enclosed at the working precision."""
    return Term(text, lambda base: arb_series([value()], prec=base.length), parity="even")


def _sum(sign: str, apply: Callable[[Any, Any], Any], left: Term, right: Term) -> Term:
    if left.number is not None and right.number is not None:
        return constant(apply(left.number, right.number))
    if set(left.poles) & set(right.poles):  # 1/tan(x) - 1/x: the poles may cancel
        a, b = left.operands
        c, d = right.operands
        return _quotient(_sum(sign, apply, a * d, c * b), b * d)
    parity = left.parity if left.parity == right.parity else None
    text = _shown(f"({left.text} {sign} {right.text})")
    return Term(text, lambda _, a, b: apply(a, b), (left, right), parity)


@dataclass(frozen=True, eq=False)
class Quotient(Term):
    """A term that divides its two operands."""


def _divided(numerator: arb_series, denominator: arb_series) -> arb_series:
    length = min(numerator.prec, denominator.prec)
    if denominator[0].contains(0):
        return arb_series([arb.nan()] * length, prec=length)
    return numerator / denominator


def _cancelled(points: tuple[tuple[Constant, int], ...]) -> Callable[..., arb_series]:
    def rule(base: Base, numerator: arb_series, denominator: arb_series) -> arb_series:
        shift = sum(v for point, v in points if base.x.overlaps(point()))
        return _divided(_shifted(numerator, shift), _shifted(denominator, shift))

    return rule


def _shifted(jet: arb_series, shift: int) -> arb_series:
    if not shift:
        return jet
    return arb_series([jet[k] for k in range(shift, jet.prec)], prec=jet.prec - shift)


def _product(left: Term, right: Term) -> Term:
    if left.number is not None and right.number is not None:
        return constant(left.number * right.number)
    # Quotients are moved outwards, so that x * (1/x) finds its common zero.
    if isinstance(left, Quotient):
        a, b = left.operands
        return _quotient(a * right, b)
    if isinstance(right, Quotient):
        a, b = right.operands
        return _quotient(left * a, b)
    text = _shown(f"{left.text}*{right.text}")
    return Term(text, lambda _, a, b: a * b, (left, right), _joint(left.parity, right.parity))


def _quotient(left: Term, right: Term) -> Term:
    if left.number is not None and right.number:
        return constant(left.number / right.number)
    if isinstance(left, Quotient):
        a, b = left.operands
        return _quotient(a, b * right)
    if isinstance(right, Quotient):
        a, b = right.operands
        return _quotient(left * b, a)
    removable, poles = _common_zeros(left, right)
    return Quotient(
        _shown(f"{left.text}/({right.text})"),
        _cancelled(removable),
        (left, right),
        _joint(left.parity, right.parity),
        None,
        removable,
        poles,
    )


_MOST_CANDIDATES = 8
_ORDERS = 12  # zeros of higher order are not looked for


def _common_zeros(
    numerator: Term, denominator: Term
) -> tuple[tuple[tuple[Constant, int], ...], tuple[Fraction, ...]]:
    """The exact points where both vanish, with their order; and those where only one does."""
    removable, poles = [], []
    for point in candidates(numerator, denominator):
        order = leading_zeros(denominator.coefficients, point)
        if 0 < order < _ORDERS:
            if leading_zeros(numerator.coefficients, point) >= order:
                removable.append((_fixed(point), order))
            else:
                poles.append(point)
    return tuple(removable), tuple(poles)


def _fixed(point: Fraction) -> Constant:
    return lambda: exact(point)


def candidates(*terms: Term) -> list[Fraction]:
    """Points where a composition is likely to be exactly zero: 0, ±1 and ± its own constants.

    Of very many constants, the smallest.
    """
    numbers = {t.number for term in terms for t in term.order if _dyadic(t.number)}
    known = {Fraction(0), Fraction(1)} | {abs(n) for n in numbers if n is not None}
    nearest = sorted(known)[:_MOST_CANDIDATES]
    return sorted({sign * n for n in nearest for sign in (1, -1)})


def leading_zeros(coefficients: Coefficients, point: Fraction) -> int:
    """How many Taylor coefficients at a dyadic point are exactly zero before the first other."""
    with ctx.workprec(64):
        if not coefficients(exact(point), 1)[0].is_zero():
            return 0
        found = coefficients(exact(point), _ORDERS)
    return next((k for k, c in enumerate(found) if not c.is_zero()), _ORDERS)


def call(f: Oracle, argument: Term) -> Term:
    """The function of a term."""

    def rule(base: Base, jet: arb_series) -> arb_series:
        if jet.prec == 1:
            return arb_series([f.value(jet[0])], prec=1)
        return compose(f.coefficients(jet[0], jet.prec), jet)

    inner = argument.parity
    parity = "even" if inner == "even" else f.parity if inner == "odd" else None
    return Term(_shown(f"{f.text}({argument.text})"), rule, (argument,), parity)


def power(base: Term, exponent: Fraction) -> Term:
    """A term to a constant rational power."""
    text = _shown(f"{base.text}**({exponent})")
    if exponent.denominator > 1:
        f = Oracle(
            text,
            lambda x: power_value(x, exponent),
            lambda x, n: power_coefficients(x, exponent, n),
        )
        return Term(text, call(f, base).rule, (base,), "even" if base.parity == "even" else None)
    whole = int(exponent)
    if whole < 0:
        return constant(1) / power(base, -exponent)
    if whole == 1:
        return base
    f = Oracle(text, lambda x: x**whole, lambda x, n: _monomial(x, whole, n))
    parity = "even" if whole % 2 == 0 and base.parity else base.parity
    return Term(text, call(f, base).rule, (base,), parity)


def _monomial(x: arb, power: int, n: int) -> list[arb]:
    result, binomial = [], 1
    for k in range(min(n, power + 1)):
        result.append(binomial * x ** (power - k))
        binomial = binomial * (power - k) // (k + 1)
    return result + [arb(0)] * (n - len(result))


def oracle(term: Term, text: str = "") -> Oracle:
    """The oracle of a composition."""
    return Oracle(
        text or term.text,
        lambda x: term.coefficients(x, 1)[0],
        term.coefficients,
        term.parity,
        tuple(Points(p) for p in candidates(term) if leading_zeros(term.coefficients, p)),
    )
