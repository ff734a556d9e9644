"""Which instructions of a program are integer steps, and what the analysis decides of them."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from nearly.functions.formats import Format
from nearly.functions.program import Constant, Instruction, Program
from nearly.functions.roundoff.enclosures import trailing


def large(program: Program, name: str, register: Format) -> bool:
    """Whether an operand is 1.5 * 2^k: what is added to it is rounded to a fixed grid."""
    value = program.constants.get(name)
    if not isinstance(value, Fraction) or value == 0:
        return False
    return abs(value) == 3 * Fraction(2) ** int(trailing(value)) and (
        shift_step(value, register) >= Fraction(1, 256)
    )


def shift_step(value: Constant, register: Format) -> Fraction:
    """The spacing of the registers at a number."""
    return register.spacing(Fraction(value))


def is_shift(program: Program, instruction: Instruction, register: Format) -> bool:
    """Whether a sum is an integer step: a constant 1.5 * 2^k plus something small."""
    operation, *operands = instruction
    summands = {"add": operands, "fma": operands[2:]}.get(operation, [])
    return any(large(program, o, register) for o in summands)


def real_sources(program: Program) -> list[str]:
    """The real registers whose bits are taken."""
    return [i[1] for i in program.instructions if i[0] == "bits"]


@lru_cache(maxsize=64)
def routed(program: Program) -> frozenset[str]:
    """Integer registers that hold a real register's bits, plus a constant, and nothing else.

    Only those of which nothing is asked than to become a real again, or parts that are constant on
    an interval: sign and exponent.
    """
    held: list[str] = []
    users: dict[str, list[Instruction]] = {}
    for i, (operation, *operands) in enumerate(program.instructions):
        for o in operands:
            users.setdefault(o, []).append((operation, f"t{i}", *operands))
        origins = [o in held for o in operands]
        integers = operation == "select" and program.kinds[f"t{i}"] == "i"
        added = operation == "iadd" and sum(origins) == 1
        one = added or (operation == "isub" and origins == [True, False])
        if operation == "bits" or one or (integers and any(origins)):
            held.append(f"t{i}")
    good = set(held)
    while True:  # nothing may be lost on the way, from either end
        operands = {n: program.instructions[int(n[1:])][1:] for n in good}
        bad = {
            n
            for n in good
            if any(o in held and o not in good for o in operands[n])
            or not all(_harmless(program, use, good) for use in users.get(n, []))
        }
        if not bad:
            return frozenset(good)
        good -= bad


def is_choice(program: Program, instruction: Instruction) -> bool:
    """Whether an instruction's value, once decided, is a constant whatever its operands are."""
    operation, *operands = instruction
    if operation == "iand":
        return _splits_high(program, operands)
    return operation in ("round", "to_int", "ishr", "lt", "le", "eq", "lookup")


def _splits_high(program: Program, operands: list[str]) -> bool:
    """Whether a mask keeps the high bits only."""
    mask = next((program.constants[o] for o in operands if o in program.constants), None)
    if not isinstance(mask, int):
        return False
    # Masks are written with or without the sign: the top bit of the register decides.
    width = program.format.computing.bits
    signed = (mask + (1 << (width - 1))) % (1 << width) - (1 << (width - 1))
    return signed < 0 and (~signed & (~signed + 1)) == 0


def _harmless(program: Program, use: Instruction, good: set[str]) -> bool:
    operation, result, *operands = use
    if operation in ("iadd", "isub", "select"):
        return result in good
    if operation == "iand":
        return _splits_high(program, operands)
    return operation in ("from_bits", "ishr", "lt", "le", "eq")


def decisions(program: Program, instruction: Instruction, register: Format) -> int:
    """How many outcomes the analysis records for an instruction."""
    operation = instruction[0]
    if operation in ("iadd", "isub", "ishl"):
        return 1 if register.bits == 32 else 0
    return _DECISIONS.get(operation, int(is_shift(program, instruction, register)))


_DECISIONS = dict.fromkeys(
    ("abs", "round", "to_int", "bits", "ishr", "iand", "lt", "le", "eq", "lookup"), 1
) | {"from_bits": 2}
