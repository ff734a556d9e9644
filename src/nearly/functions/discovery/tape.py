"""`Tape`: a program's structure as small integer arrays, and its canonical form.

The search breeds structures by the million, most of them old ones in disguise: with dead
instructions, operands the other way round, or one constant too many, as in c * (c' * x). The
canonical form removes those disguises, so that its hash tells new structures from old ones, and no
constant is fitted that another one already stands for. What is left of redundant constants (three
that act like two only together) is left to the numerical rank of the fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from nearly.core.errors import InputError
from nearly.functions.discovery.canonical import canonical, digest
from nearly.functions.discovery.kernels import NEG, SQRT
from nearly.functions.program import Instruction, Program

NAMES = ("add", "sub", "mul", "div", "sqrt", "neg")
UNARY = (SQRT, NEG)
X = -1


@dataclass(frozen=True, eq=False)
class Tape:
    """The structure of a program over the reals, and values for its constants.

    **Arguments:**

    - `operations`: (n,) int8, indices into `NAMES`.
    - `left`, `right`: (n,) int16 operands: >= 0 an earlier instruction, -1 x, -2 - k the constant
      k. A `sqrt` or `neg` has the same operand twice. The last instruction is the result.
    - `constants`: (m,) float64.
    """

    operations: np.ndarray
    left: np.ndarray
    right: np.ndarray
    constants: np.ndarray

    @staticmethod
    def from_program(program: Program) -> Tape:
        """The tape of a real program; an fma becomes two instructions.

        Constants are numbered in the order of `program.constants`. Raises `InputError` for a
        program in a machine format, and for `abs`.
        """
        if not program.format.is_real:
            raise InputError(
                f"a tape holds a program over the reals, this one is in {program.dtype}: "
                "use the program that it was made from"
            )
        flat = program.unfused() if any(i[0] == "fma" for i in program.instructions) else program
        codes = {name: -2 - k for k, name in enumerate(flat.constants)} | {"x": X}
        rows: list[tuple[int, int, int]] = []
        for i, (name, *operands) in enumerate(flat.instructions):
            if name not in NAMES:
                raise InputError(f"instruction {i}: a tape has no {name}, only {', '.join(NAMES)}")
            rows.append((NAMES.index(name), codes[operands[0]], codes[operands[-1]]))
            codes[f"t{i}"] = i
        operations, left, right = np.array(rows, np.int16).T
        values = np.array([float(value) for value in flat.constants.values()], np.float64)
        return Tape(operations.astype(np.int8), left.copy(), right.copy(), values)

    def program(self, constants: Sequence[Fraction] | None = None) -> Program:
        """The program, with constants of its own or with those given."""
        values = self.constants.tolist() if constants is None else constants
        instructions = tuple(
            self._instruction(*each)
            for each in zip(self.operations, self.left, self.right, strict=True)
        )
        named = {f"c{k}": Fraction(value) for k, value in enumerate(values)}
        return Program(instructions, named)

    def _instruction(self, operation: np.int8, left: np.int16, right: np.int16) -> Instruction:
        name = NAMES[operation]
        operands = (left,) if operation in UNARY else (left, right)
        return (name, *(_name(int(operand)) for operand in operands))

    def canonical(self) -> Tape:
        """The canonical form: it computes the same, with no more instructions and constants.

        Dead instructions are dropped, equal ones merged, constants of constants folded, differences
        and quotients by a constant written as sums and products, constant terms and factors pulled
        out until they meet others, operands of sums and products ordered by what they are, and
        instructions and constants numbered in the order of their first use. Empty if the program
        is a constant.
        """
        return Tape(*canonical(self.operations, self.left, self.right, self.constants))

    @property
    def digest(self) -> int:
        """64 bits that two tapes share, but by chance, only if they are equal but for constants."""
        return int(digest(self.operations, self.left, self.right))


def _name(operand: int) -> str:
    if operand >= 0:
        return f"t{operand}"
    return "x" if operand == X else f"c{-2 - operand}"
