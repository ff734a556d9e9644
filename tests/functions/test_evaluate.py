"""Evaluation in NumPy: each operation by hand, formats, and what must not warn."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from nearly.functions.evaluate import BLOCK, evaluate
from nearly.functions.program import Builder

F32 = np.float32


def one(dtype: str, build, x):
    b = Builder(dtype)
    return evaluate(b.program(build(b, b.x)), x)


def test_a_real_program_is_evaluated_in_float64() -> None:
    b = Builder()
    got = evaluate(b.program(b.x / 3 + Fraction(1, 7)), [1.0, 2.0])
    assert got.dtype == np.float64
    assert got.tolist() == [1.0 / 3.0 + 1 / 7, 2.0 / 3.0 + 1 / 7]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_are_rounded_once(dtype: str) -> None:
    storage = np.dtype(dtype if dtype == "float16" else ml_dtypes.bfloat16)
    x = np.arange(2**16, dtype=np.uint16).view(storage)
    got = one(dtype, lambda b, x: x * x - Fraction(1, 3), x)
    with np.errstate(all="ignore"):
        wide = x.astype(F32)
        wanted = (wide * wide - F32(1 / 3)).astype(storage)
        twice = x * x - storage.type(1 / 3)
    assert got.dtype == storage
    np.testing.assert_array_equal(got.astype(F32), wanted.astype(F32))
    assert (got.view(np.int16) != twice.view(np.int16)).sum() > 100  # rounding each step differs


def test_fma_rounds_once() -> None:
    x = F32(1 + 2.0**-12)  # x^2 = 1 + 2^-11 + 2^-24: the last term is below float32's spacing
    assert one("float32", lambda b, x: b.fma(x, x, -1), x) == F32(2.0**-11 + 2.0**-24)
    assert one("float32", lambda b, x: x * x - 1, x) == F32(2.0**-11)
    y = 1 + 2.0**-27
    assert one("float64", lambda b, x: b.fma(x, x, -1), y) == 2.0**-26 + 2.0**-54


def test_rounding_and_conversion() -> None:
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.7], F32)
    assert one("float32", lambda b, x: b.round(x), x).tolist() == [0, 2, 2, -0.0, -2]
    assert one("float32", lambda b, x: b.to_float(b.to_int(x)), x).tolist() == [0, 1, 2, 0, -1]


def test_integers_wrap_and_shift() -> None:
    def build(b: Builder, x):
        i = b.iadd(b.to_int(x), 2**31 - 1)  # 1 + 2^31-1 wraps to -2^31
        return b.to_float(b.ishr(i, 4))

    assert one("float32", build, F32(1)) == -(2.0**27)
    assert one("float32", lambda b, x: b.to_float(b.ishl(b.to_int(x), 31)), F32(3)) == -(2.0**31)
    assert one("float32", lambda b, x: b.to_float(b.iand(b.to_int(x), 6)), F32(11)) == 2
    wide = one("float64", lambda b, x: b.to_float(b.isub(b.to_int(x), 2**40)), 1.0)
    assert wide == 1 - 2.0**40


def test_bits_go_both_ways_and_reach_subnormals() -> None:
    x = np.array([1.0, -0.0, 1e-45, np.inf], F32)
    one_down = one("float32", lambda b, x: b.from_bits(b.isub(b.bits(x), 1)), x)
    assert one_down[0] == np.nextafter(F32(1), F32(0))
    assert np.isnan(one_down[1])  # 0x7fffffff
    assert one_down[2] == 0  # the number below the least
    assert one_down[3] == np.finfo(F32).max


def test_selection_comparison_and_tables() -> None:
    def build(b: Builder, x):
        table = b.table([10, 20, 30, 40])
        return b.select(b.le(x, 2), b.lookup(table, b.iand(b.to_int(x), 3)), -x)

    x = np.array([0, 1, 2, 3, np.nan], F32)
    got = one("float32", build, x)
    assert got[:4].tolist() == [10, 20, 30, -3]
    assert np.isnan(got[4])


def test_nothing_warns_whatever_comes() -> None:
    # Warnings are errors in this suite.
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 3e38, 1e-45], F32)
    big = one("float32", lambda b, x: b.to_float(b.to_int(x * x)) / x + b.sqrt(-x), x)
    assert big.shape == x.shape
    assert one("float16", lambda b, x: x * x, 1e9).dtype == np.float16
    overflow = one("float32", lambda b, x: x * 0 + b.mul(b.constant(3e38), 3e38), F32(1))
    assert overflow == np.inf


def test_shapes_and_blocks() -> None:
    b = Builder("float32")
    program = b.program(b.fma(b.x, b.x, 1))
    x = np.linspace(-1, 1, 2 * BLOCK + 3, dtype=F32)
    whole = program(x)
    pieces = np.concatenate([evaluate(program, part) for part in np.array_split(x, 7)])
    np.testing.assert_array_equal(whole, pieces)
    assert evaluate(program, np.zeros((2, 0, 3), F32)).shape == (2, 0, 3)
    assert evaluate(program, 2.0).shape == ()
    assert evaluate(program, 2.0) == 5
    constant = b.program(b.constant(Fraction(1, 4)))
    assert evaluate(constant, x.reshape(-1, 1)).shape == (x.size, 1)


def test_fusing_a_program_changes_its_instructions_and_not_its_values() -> None:
    b = Builder("real")
    shared = b.x * 3
    horner = b.program((shared + 2) * b.x + shared)
    fused = horner.fused()
    assert [name for name, *_ in fused.instructions].count("fma") == 2
    assert fused.cost.instructions == 3
    ratio = b.program((b.x * 5) / (b.x * b.x + 1))
    assert [name for name, *_ in ratio.fused().instructions] == ["fma", "mul", "div"]
    x = np.arange(-8.0, 9.0)
    for program in (horner, ratio):
        assert np.array_equal(program.fused()(x), program(x))
        assert np.array_equal(program.fused().unfused()(x), program(x))
