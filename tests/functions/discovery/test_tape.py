"""Tapes and their canonical form: the same function, and one hash for all disguises of it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.functions.discovery.tape import Tape
from nearly.functions.program import Builder, Program

X = np.linspace(0.1, 0.9, 7)


def random_tape(rng: np.random.Generator, size: int, constants: int = 4) -> Tape:
    def operand(i: int) -> int:
        kind = rng.random()
        if kind < 0.25:
            return -1
        if kind < 0.55 or i == 0:
            return -2 - int(rng.integers(constants))
        return int(rng.integers(max(0, i - 3), i))

    operations = rng.integers(0, 4, size).astype(np.int8)
    left, right = (np.array([operand(i) for i in range(size)], np.int16) for _ in range(2))
    values = rng.choice([-1, 1], constants) * rng.uniform(0.5, 2, constants)
    return Tape(operations, left, right, values)


def disguised(rng: np.random.Generator, tape: Tape) -> Tape:
    """The same with operands of sums and products swapped, constants and instructions renumbered.

    A dead instruction is put in front.
    """
    order = rng.permutation(tape.constants.size)
    swapped = (rng.random(tape.operations.size) < 0.5) & (tape.operations % 2 == 0)

    def renumbered(operands: np.ndarray) -> np.ndarray:
        constant = np.clip(-2 - operands, 0, None)
        moved = np.where(operands <= -2, -2 - order[constant], operands + (operands >= 0))
        return np.concatenate([[-1], moved]).astype(np.int16)

    values = np.empty(tape.constants.size)
    values[order] = tape.constants
    return Tape(
        np.concatenate([[2], tape.operations]).astype(np.int8),
        renumbered(np.where(swapped, tape.right, tape.left)),
        renumbered(np.where(swapped, tape.left, tape.right)),
        values,
    )


def values(tape: Tape) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(tape.program()(X))


def test_programs_come_back() -> None:
    b = Builder()
    y = b.sqrt(b.fma(b.x, Fraction(3), Fraction(2))) / (-b.x - Fraction(1, 3))
    program = b.program(y)
    tape = Tape.from_program(program)
    assert tape.operations.size == 6  # the fma is two
    back = tape.program(list(program.constants.values()))
    np.testing.assert_allclose(back(X), program(X), rtol=1e-14)


@pytest.mark.parametrize("seed", range(3))
def test_the_canonical_form_computes_the_same_and_is_canonical(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(150):
        tape = random_tape(rng, int(rng.integers(2, 12)))
        short = tape.canonical()
        other = disguised(rng, tape).canonical()
        assert other.digest == short.digest
        assert short.operations.size <= tape.operations.size
        if not short.operations.size:
            flat = values(tape)
            assert not np.all(np.isfinite(flat)) or np.ptp(flat) <= 1e-6 * np.abs(flat).max()
            continue
        assert short.canonical().digest == short.digest
        expected = values(tape)
        if np.all(np.abs(expected) < 1e6):
            np.testing.assert_allclose(values(short), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "one, other",
    [
        (lambda x: 2.0 * (3.0 * x) + 1.0, lambda x: (x + 5.0) * 7.0),
        (lambda x: 2.0 / (3.0 * x + 1.0), lambda x: 4.0 / (x + 6.0)),
        (lambda x: (x - 2.0) - 3.0 * x, lambda x: (x - x * 3.0) + 5.0),
        (lambda x: 2.0 - (3.0 - x), lambda x: x + 1.5),
        (lambda x: (2.0 / x) / (3.0 * x), lambda x: 4.0 / (x * x)),
        (lambda x: x * (2.0 / (x + 3.0)), lambda x: (x / (3.0 + x)) * 5.0),
        (lambda x: (x + 2.0) + x * x, lambda x: x * x + x + 9.0),
    ],
)
def test_gauges_are_removed(one: object, other: object) -> None:
    """Two ways to write the same family of functions have one canonical structure."""
    tapes = []
    for write in (one, other):
        b = Builder()
        tapes.append(Tape.from_program(b.program(write(b.x))).canonical())  # type: ignore[operator]
    assert tapes[0].digest == tapes[1].digest


def test_shared_constants_and_order_matter() -> None:
    def tape(write: object) -> Tape:
        b = Builder()
        return Tape.from_program(b.program(write(b.x))).canonical()  # type: ignore[operator]

    shared = tape(lambda x: (x + 2.0) / (x * x + 2.0))
    apart = tape(lambda x: (x + 2.0) / (x * x + 3.0))
    reversed_ = tape(lambda x: (x * x + 3.0) / (x + 2.0))
    assert len({shared.digest, apart.digest, reversed_.digest}) == 3


def test_what_is_constant_is_empty() -> None:
    b = Builder()
    assert Tape.from_program(b.program((b.x - b.x) * 2.0)).canonical().operations.size == 0


def test_errors_name_the_remedy() -> None:
    with pytest.raises(InputError, match="over the reals, this one is in float32"):
        Tape.from_program(Program((("add", "x", "x"),), dtype="float32"))
    with pytest.raises(InputError, match="a tape has no abs"):
        Tape.from_program(Program((("abs", "x"),)))
