"""Random programs over every operation, and which of their values the format leaves open."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import numpy as np

from nearly.functions.evaluate import as_constant, operations
from nearly.functions.program import OPERATIONS, Builder, Node, Program

SPECIAL = (0, 1, -1, Fraction(1, 3), Fraction(2) ** 120, Fraction(-3, 2) / 2**130, float("inf"))


ROUNDED = ("add", "sub", "mul", "fma", "fma")


def random_program(
    rng: random.Random, dtype: str, names: tuple[str, ...] = tuple(OPERATIONS), length: int = 24
) -> Program:
    """A program of about so many instructions; every shift and index is within its range."""
    b = Builder(dtype)
    arithmetic = [name for name in ROUNDED if name in names]
    pools: dict[str, list[Node]] = {"r": [b.x], "i": [], "b": []}
    for _ in range(length):
        # Mostly arithmetic: anything else forgets quickly what was computed before.
        name = rng.choice(names if rng.random() < 0.5 else arithmetic)
        kind = rng.choice("ri")  # of the operands of a comparison or selection
        node = _apply(b, rng, name, kind, pools)
        if node is not None:
            pools[OPERATIONS[name].gives.replace("a", kind)].append(node)
    return b.program(pools["r"][-1])


def _apply(
    b: Builder, rng: random.Random, name: str, kind: str, pools: dict[str, list[Node]]
) -> Node | None:
    """The operation on random operands, or nothing where there are none of the right kind."""
    if name == "lookup" and pools["i"]:
        table = b.table([Fraction(rng.randint(-99, 99), 7) for _ in range(16)])
        return b.lookup(table, b.iand(rng.choice(pools["i"]), 15))
    if name in ("ishl", "ishr") and pools["i"]:
        return b.apply(name, rng.choice(pools["i"]), rng.randrange(32))
    if name in ("lookup", "ishl", "ishr") or (name == "select" and not pools["b"]):
        return None
    takes = OPERATIONS[name].takes.replace("a", kind)
    operands = [_operand(b, rng, k, pools) for k in takes]
    return b.apply(name, *operands)


def _operand(b: Builder, rng: random.Random, kind: str, pools: dict[str, list[Node]]) -> Node:
    pool = pools[kind]
    if pool and (kind == "b" or rng.random() < 0.75):
        return rng.choice(pool[-6:])
    if kind == "i":
        wide = rng.random() < 0.5
        return b.constant(rng.randint(-(2**31), 2**31 - 1) if wide else rng.randint(-200, 200))
    special = rng.random() < 0.3
    return b.constant(rng.choice(SPECIAL) if special else Fraction(rng.uniform(-4, 4)), "r")


def open_values(program: Program, x: np.ndarray) -> np.ndarray:
    """Where the result hangs on a NaN's bits, or on an integer from a number that has none."""
    register = program.format.computing
    real = operations(register)
    half = 2.0 ** (register.bits - 1)

    def lifted(name: str) -> Any:
        def apply(*operands: tuple[Any, Any]) -> tuple[Any, Any]:
            values = [v for v, _ in operands]
            tainted = np.zeros(x.shape, bool)
            for _, t in operands:
                tainted = tainted | t
            if name == "bits":
                tainted = tainted | np.isnan(values[0])
            if name == "to_int":
                tainted = tainted | ~((values[0] >= -half) & (values[0] < half))
            return real[name](*values), tainted

        return apply

    arithmetic = {name: lifted(name) for name in OPERATIONS}
    with np.errstate(all="ignore"):
        _, tainted = program.run(
            (x.astype(register.dtype), False),
            arithmetic,
            lambda value: (as_constant(value, register), False),
        )
    return np.broadcast_to(tainted, x.shape)


def every_kind_of_number(dtype: np.dtype[Any], count: int, seed: int) -> np.ndarray:
    """Random bit patterns: half of them from all, half of moderate size."""
    rng = np.random.default_rng(seed)
    integer = np.dtype(f"int{8 * dtype.itemsize}")
    limits = np.iinfo(integer)
    wild = rng.integers(limits.min, limits.max, count // 2, integer, endpoint=True).view(dtype)
    return np.concatenate([wild, rng.uniform(-8, 8, count - count // 2).astype(dtype)])


def assert_same(found: np.ndarray, wanted: np.ndarray, ignored: Any = False) -> None:
    """Equal bit for bit, one NaN as good as another."""
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    integer = np.dtype(f"int{8 * wanted.dtype.itemsize}")
    with np.errstate(all="ignore"):
        nan = np.isnan(wanted.astype(np.float64)) & np.isnan(found.astype(np.float64))
    differ = (found.view(integer) != wanted.view(integer)) & ~nan & ~np.asarray(ignored)
    assert not differ.any(), (found[differ][:3], wanted[differ][:3])
