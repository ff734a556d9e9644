"""The derivative of a `Program`, as a `Program`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

from nearly.core.errors import InputError
from nearly.functions.formats import format_named
from nearly.functions.program import Builder, Node, Program


class Dual(NamedTuple):
    """A value and its slope: a node, a number, or None for zero. Integers' slopes count in binades.

    `number` is the value itself where it is a constant.
    """

    value: Any
    slope: Any = None
    number: Any = None

    @property
    def factor(self) -> Any:
        """The value as a factor of a slope: the number of a constant, else the node."""
        return self.value if self.number is None else self.number


class _Staircase:
    """The slope of an integer that lost the last bits of x: no derivative can be read from it."""


STAIRCASE = _Staircase()


def differentiate(program: Program) -> Program:
    """The derivative of the function that a program computes, almost everywhere.

    Where a program takes numbers apart, the integers are differentiated too: between two powers of
    two the bits of x are a linear function of x, so exponent arithmetic (`x * 2^-e` by subtraction
    in the exponent field) keeps its slope. `round`, `to_int`, comparisons and table indices are
    steps, with slope zero, and so are sums with a constant whose last place is 1 or more: that is
    how a range reduction rounds.

    **Returns:** a program of the same format. It approximates the derivative of the truth to the
    program's order, less about one; where that is too little, give the derivative itself.

    **Raises:** `InputError` where the bits of x are shifted right within the significand and
    become a number again: what that means for the slope cannot be told from the program.
    """
    rules = _Rules(Builder(program.dtype))
    b = rules.builder
    result = program.run(Dual(b.x, Fraction(1)), rules.table(), rules.constant)
    return b.program(b.constant(Fraction(0) if result.slope is None else result.slope))


class _Rules:
    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        register = format_named(builder.dtype).computing
        self.field = register.precision - 1  # bits below the exponent
        self.width = register.bits

    def constant(self, value: Any) -> Dual:
        return Dual(self.builder.constant(value), None, value)

    def table(self) -> Mapping[str, Callable[..., Dual]]:
        own = {
            "add": lambda a, b: self._unrounded(a, b, self._sum(a.slope, b.slope)),
            "sub": lambda a, b: self._unrounded(a, b, self._sum(a.slope, self._negative(b.slope))),
            "mul": self._product,
            "fma": lambda a, b, c: self._unrounded(c, c, self._sum(self._product(a, b), c.slope)),
            "neg": lambda a: self._negative(a.slope),
            "bits": self._to_bits,
            "iadd": lambda a, b: self._sum(a.slope, b.slope),
            "isub": lambda a, b: self._sum(a.slope, self._negative(b.slope)),
            "ishl": self._left,
            "ishr": self._right,
            "iand": self._mask,
            "to_float": self._to_float,
            "select": self._select,
        }
        of_result = {
            "div": self._quotient,
            "sqrt": lambda y, a: self._over(self._times(a.slope, Fraction(1, 2)), y),
            "abs": lambda y, a: self._times(a.slope, self._sign(a.value, y)),
            "from_bits": self._from_bits,
        }
        steps = ("round", "to_int", "lt", "le", "eq", "lookup")
        return (
            {name: self._rule(name, slope) for name, slope in own.items()}
            | {name: self._rule_of_result(name, slope) for name, slope in of_result.items()}
            | {name: self._rule(name, lambda *_: None) for name in steps}
        )

    def _rule(self, name: str, slope: Callable[..., Any]) -> Callable[..., Dual]:
        return lambda *a: Dual(self.builder.apply(name, *(d.value for d in a)), slope(*a))

    def _rule_of_result(self, name: str, slope: Callable[..., Any]) -> Callable[..., Dual]:
        def rule(*operands: Dual) -> Dual:
            value = self.builder.apply(name, *(d.value for d in operands))
            return Dual(value, slope(value, *operands))

        return rule

    def _unrounded(self, a: Dual, b: Dual, slope: Any) -> Any:
        """The slope of a sum, zero where one summand is a constant that rounds it to an integer."""
        if self.builder.dtype == "real":
            return slope
        large = 1 << self.field
        numbers = (d.number for d in (a, b) if isinstance(d.number, Fraction))
        return None if any(abs(number) >= large for number in numbers) else slope

    def _sum(self, p: Any, q: Any) -> Any:
        if p is None or q is None:
            return q if p is None else p
        return STAIRCASE if STAIRCASE in (p, q) else p + q

    def _negative(self, slope: Any) -> Any:
        return slope if slope is None or slope is STAIRCASE else -slope

    def _times(self, slope: Any, factor: Any) -> Any:
        if slope is None or slope is STAIRCASE:
            return slope
        if factor == 1 or slope == 1:
            return slope if factor == 1 else factor
        return slope * factor

    def _over(self, slope: Any, node: Any) -> Any:
        return slope if slope is None or slope is STAIRCASE else slope / node

    def _product(self, a: Dual, b: Dual) -> Any:
        return self._sum(self._times(a.slope, b.factor), self._times(b.slope, a.factor))

    def _quotient(self, y: Node, a: Dual, b: Dual) -> Any:
        lower = self._negative(self._times(b.slope, y))
        return self._over(self._sum(a.slope, lower), b.factor)

    def _sign(self, value: Node, magnitude: Node) -> Node:
        if self.builder.dtype == "real":
            return value / magnitude
        one = self.builder.constant(1, "r")
        return self.builder.select(self.builder.lt(value, 0), -one, one)

    def _binade(self, value: Node) -> Node:
        """The power of two at or below |value|, with its sign; at least the smallest normal."""
        b = self.builder
        bits = b.bits(value)
        exponent = b.iand(bits, ((1 << (self.width - 1 - self.field)) - 1) << self.field)
        exponent = b.select(b.eq(exponent, 0), 1 << self.field, exponent)
        return b.from_bits(b.iadd(exponent, b.iand(bits, -(1 << (self.width - 1)))))

    def _to_bits(self, a: Dual) -> Any:
        return self._over(a.slope, self._binade(a.value))

    def _from_bits(self, y: Node, a: Dual) -> Any:
        self._demand(a.slope)
        return self._times(a.slope, self._binade(y))

    def _to_float(self, a: Dual) -> Any:
        self._demand(a.slope)
        return self._times(a.slope, Fraction(2) ** self.field)

    def _demand(self, slope: Any) -> None:
        if slope is STAIRCASE:
            raise InputError(
                "the derivative of this program cannot be read from its integer steps; "
                "give derivative= as an expression in x and y (the value), like 'y*log(2)'"
            )

    def _left(self, a: Dual, shift: Dual) -> Any:
        if a.slope is None:
            return None
        return self._times(a.slope, self.builder.to_float(self.builder.ishl(1, shift.value)))

    def _right(self, a: Dual, shift: Dual) -> Any:
        return None if a.slope is None or (shift.number or 0) >= self.field else STAIRCASE

    def _mask(self, a: Dual, b: Dual) -> Any:
        if a.slope is not None and b.slope is not None:
            return STAIRCASE
        kept, mask = (a, b) if b.slope is None else (b, a)
        # A mask without the last bit leaves steps: a leading part, split off exactly.
        return kept.slope if (mask.number or 0) & 1 else None

    def _select(self, condition: Dual, a: Dual, b: Dual) -> Any:
        if a.slope is None and b.slope is None:
            return None
        if STAIRCASE in (a.slope, b.slope):
            return STAIRCASE
        zero = Fraction(0)
        return self.builder.select(
            condition.value,
            zero if a.slope is None else a.slope,
            zero if b.slope is None else b.slope,
        )
