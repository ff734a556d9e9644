"""The real program that a machine program is where its decisions are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from nearly.functions.formats import Format
from nearly.functions.program import Builder, Node, Program
from nearly.functions.roundoff.enclosures import Array, from_pattern
from nearly.functions.roundoff.integer_steps import (
    decisions,
    is_choice,
    is_shift,
    large,
    real_sources,
    routed,
    shift_step,
)


def specialise(program: Program, choices: Array, register: Format) -> Program | None:
    """The real program that a machine program is where its decisions have these outcomes.

    `None` where the result is an infinity. `choices` is a row of `Analysis.choices`.
    """
    return _Specialiser(program, register, list(map(int, choices))).program_of()


class _Specialiser:
    """Builds what the result depends on, with the decisions that the analysis recorded."""

    def __init__(self, program: Program, register: Format, choices: list[int]) -> None:
        self.source, self.form, self.routed = program, register, routed(program)
        self.builder = Builder("real")
        self.values: dict[str, Any] = {"x": self.builder.x, **program.constants}
        self.recorded: dict[int, list[int]] = {}
        remaining = choices[::-1]
        for i, instruction in enumerate(program.instructions):
            count = decisions(program, instruction, register)
            if instruction[0] == "bits" and f"t{i}" in self.routed:
                count = 0
            elif instruction[0] == "from_bits" and instruction[1] in self.routed:
                count = 5
            self.recorded[i] = [remaining.pop() for _ in range(count)]

    def program_of(self) -> Program | None:
        last = len(self.source.instructions) - 1
        for i in self._needed(last):
            operation, *operands = self.source.instructions[i]
            self.choices = self.recorded[i][::-1]
            if operation == "lookup":
                result = self.source.tables[operands[0]][self.choices.pop()]
            elif is_choice(self.source, self.source.instructions[i]):
                result = self.choices.pop()
                result = Fraction(result) if operation == "round" else result
            elif operation == "select":
                condition, a, b = operands
                result = self.values[a if self.values[condition] else b]
            elif is_shift(self.source, (operation, *operands), self.form):
                constant = next(c for c in reversed(operands) if large(self.source, c, self.form))
                result = self.choices.pop() * shift_step(self.source.constants[constant], self.form)
            elif operation == "from_bits" and operands[0] in self.routed:
                result = self._moved()
            else:
                handler = getattr(self, f"_{operation}", None)
                arguments = [self.values[o] for o in operands]
                result = handler(*arguments) if handler else self._real(operation, arguments)
            self.values[f"t{i}"] = result
        result = self.values[f"t{last}"]
        if isinstance(result, float):
            return None
        return self.builder.program(self.builder.constant(_exact(result), "r"))

    def _needed(self, last: int) -> list[int]:
        """The instructions that the result depends on, in order."""
        pending, seen = [last], {last}
        while pending:
            i = pending.pop()
            operation, *operands = self.source.instructions[i]
            if operation == "select":
                condition, a, b = operands
                operands = [condition, a if self.recorded[int(condition[1:])][0] else b]
            if is_choice(self.source, self.source.instructions[i]):
                operands = []
            elif operation == "from_bits" and operands[0] in self.routed:
                source = self.recorded[i][1]  # the integers between are not built
                operands = [real_sources(self.source)[source]] if source >= 0 else []
            fresh = {int(o[1:]) for o in operands if o.startswith("t")} - seen
            seen |= fresh
            pending += fresh
        return sorted(seen)

    def _real(self, operation: str, arguments: list[Any]) -> Any:
        if any(isinstance(a, float) for a in arguments):
            return float("inf")  # an infinity stays one, or the analysis has given up before
        if all(isinstance(a, int | Fraction) for a in arguments) and operation in _FOLDED:
            return _FOLDED[operation](*map(Fraction, arguments))
        return self.builder.apply(operation, *(_exact(a) for a in arguments))

    def _abs(self, a: Any) -> Any:
        return -a if self.choices.pop() else a

    def _to_float(self, a: Any) -> Any:
        return _exact(a)

    def _bits(self, a: Any) -> Any:
        field = self.choices.pop()
        form, hidden = self.form, 1 << (self.form.precision - 1)
        biased = abs(field) - 1
        step = Fraction(2) ** (max(biased, 1) + form.emin - form.precision)
        offset = (biased - 1) * hidden if biased else 0
        if field < 0:
            return self._linear(a, -1 / step, offset - 2 ** (form.bits - 1))
        return self._linear(a, 1 / step, offset)

    def _moved(self) -> Any:
        _, source, k, flips, bits = (self.choices.pop() for _ in range(5))
        if source < 0:
            number = float(from_pattern(np.array([k]), self.form)[0])
            return Fraction(number) if np.isfinite(number) else number
        factor = Fraction(2) ** k * (-1 if flips else 1)
        value = self.values[real_sources(self.source)[source]]
        offset = Fraction(float(np.array([bits]).view(np.float64)[0]))
        return value if (factor, offset) == (1, 0) else self._linear(value, factor, offset)

    def _from_bits(self, a: Any) -> Any:
        first, negative = self.choices.pop(), self.choices.pop()
        form, hidden = self.form, 1 << (self.form.precision - 1)
        step = Fraction(2) ** (max(first, 1) + form.emin - form.precision)
        offset = ((1 - first) * hidden if first else 0) + (2 ** (form.bits - 1) if negative else 0)
        sign = -1 if negative else 1
        return self._linear(a, sign * step, sign * step * offset)

    def _linear(self, a: Any, factor: Fraction, offset: Fraction | int) -> Any:
        if isinstance(a, Node):
            return self.builder.fma(a, Fraction(factor), Fraction(offset))
        return Fraction(a) * factor + offset

    def _iadd(self, a: Any, b: Any) -> Any:
        return self._unwrapped(self._real("add", [a, b]))

    def _isub(self, a: Any, b: Any) -> Any:
        return self._unwrapped(self._real("sub", [a, b]))

    def _ishl(self, a: Any, b: Any) -> Any:
        return self._unwrapped(self._linear(a, Fraction(2) ** int(b), 0))

    def _unwrapped(self, a: Any) -> Any:
        if self.form.bits != 32:
            return a
        return self._linear(a, Fraction(1), -self.choices.pop() * 2**32)

    def _iand(self, a: Any, b: Any) -> Any:
        """A mask of low bits: what lies above them was decided."""
        value = b if isinstance(b, Node) else a
        base = self.choices.pop()
        mask = a if isinstance(b, Node) else b
        if not isinstance(mask, int) or mask & (mask + 1):
            return base  # another mask of a constant
        return self._linear(value, Fraction(1), -base)


def _exact(value: Any) -> Any:
    return Fraction(value) if isinstance(value, int) else value


_FOLDED: Mapping[str, Callable[..., Fraction]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "fma": lambda a, b, c: a * b + c,
    "neg": lambda a: -a,
}
