"""JAX and StableHLO emission: values, derivatives, and what XLA must not rearrange."""

from __future__ import annotations

import dataclasses
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend import mlir
from jaxlib.mlir.dialects import stablehlo
from random_programs import assert_same, open_values, random_program

from nearly.core.errors import InputError, PrecisionError
from nearly.functions.emit import ErrorStatement, emit
from nearly.functions.emit_jax import Near, expression_source, to_jax, to_source
from nearly.functions.evaluate import evaluate
from nearly.functions.program import OPERATIONS, Builder, Node, Program

HEADER = ErrorStatement("PROVEN", "exp(x)", "[-1, 1]", "1 ulp", "nearly within 1ulp exp --to jax")
F32 = np.float32


def program(build: Callable[[Builder, Node], Node], dtype: str = "float32") -> Program:
    b = Builder(dtype)
    return b.program(build(b, b.x))


def exp_like(dtype: str = "float32") -> Program:
    """exp by Cody and Waite's reduction and a Taylor polynomial; about 1e-6."""

    def build(b: Builder, x: Node) -> Node:
        n = b.round(x * Fraction(1 / math.log(2)))
        r = b.fma(n, Fraction(-math.log(2)), x)
        y = b.constant(Fraction(1, 5040))
        for k in range(6, -1, -1):
            y = b.fma(y, r, Fraction(1, math.factorial(k)))
        field = 23 if dtype != "float64" else 52
        bias = 127 if dtype != "float64" else 1023
        return y * b.from_bits(b.ishl(b.iadd(b.to_int(n), bias), field))

    return program(build, dtype)


def log2_like() -> Program:
    """log2 from the exponent field and the series in m - 1; about 1e-3 at its worst."""

    def build(b: Builder, x: Node) -> Node:
        bits = b.bits(x)
        e = b.ishr(b.isub(bits, 0x3F3504F3), 23)
        r = b.from_bits(b.isub(bits, b.ishl(e, 23))) - 1
        y = b.constant(Fraction(-1, 12))
        for k in range(11, 0, -1):
            y = b.fma(y, r, Fraction((-1) ** (k + 1), k))
        return b.fma(y * r, Fraction(1 / math.log(2)), b.to_float(e))

    return program(build)


# Each is rearranged by XLA if nothing is done, and none has a product in a sum.
REARRANGED = {
    "division by a constant": lambda b, x: x / 3,
    "two divisions": lambda b, x: (x / (x + 1)) / (x + 3),
    "division by a quotient": lambda b, x: x / ((x + 1) / (x + 3)),
    "two factors": lambda b, x: (x * Fraction(11, 10)) * Fraction(7, 10),
    "two terms": lambda b, x: (x + Fraction(11, 10)) + Fraction(7, 10),
    "rounding by a large number": lambda b, x: (x + 3 * 2**22) - 3 * 2**22,
    "quotient by a root": lambda b, x: x / b.sqrt(x + 1),
    "a reciprocal's reciprocal": lambda b, x: 1 / (1 / x),
    "constant over a quotient": lambda b, x: Fraction(11, 10) / (Fraction(7, 10) / x),
    "division by a computed constant": lambda b, x: x / b.add(b.constant(2, "r"), 1),
    "minus zero plus zero": lambda b, x: -(x - x) + 0,
    "a term lost and taken back": lambda b, x: (x + 2**20) - x,
}


@pytest.mark.parametrize("name", REARRANGED)
@pytest.mark.parametrize("mode", ["eager", "jit", "vmap of jit", "jit of vmap", "inside"])
def test_xla_rearranges_nothing(name: str, mode: str) -> None:
    p = program(REARRANGED[name])
    f = to_jax(p)
    x = np.random.default_rng(0).uniform(0.01, 100, 3000).astype(F32)
    modes = {
        "eager": f,
        "jit": jax.jit(f),
        "vmap of jit": jax.vmap(jax.jit(f)),
        "jit of vmap": jax.jit(jax.vmap(f)),
        # Neighbours in the user's program must not be drawn in either.
        "inside": jax.jit(lambda x: f((x * 2) / 2 + 0) * 4 / 4),
    }
    assert_same(np.asarray(modes[mode](x)), evaluate(p, x))


def test_a_plain_jax_function_would_be_rearranged() -> None:
    # The test above could not fail on an XLA that leaves things alone.
    x = np.random.default_rng(0).uniform(0.01, 100, 3000).astype(F32)
    plain = jax.jit(lambda x: (x + F32(3 * 2**22)) - F32(3 * 2**22))(x)
    assert (np.asarray(plain) != np.rint(x)).any()


def test_no_division_by_a_constant_is_left_to_xla() -> None:
    text = emit(program(lambda b, x: x / 3 + x / 8), "jax", name="f", header=HEADER)
    assert "/ opaque(np.float32(3.0), x)" in text
    assert "* np.float32(0.125)" in text
    least = program(lambda b, x: x / Fraction(2) ** 127)  # the reciprocal is subnormal
    assert "opaque" in emit(least, "jax", name="f", header=HEADER).split("def f_value")[1]


@pytest.mark.parametrize("seed", range(6))
def test_random_programs_without_contraction(seed: int) -> None:
    """All operations but a product (or fma): what is left XLA must compute exactly."""
    names = tuple(name for name in OPERATIONS if name not in ("mul", "fma"))
    p = random_program(random.Random(seed), "float32", names, length=14)
    x = np.random.default_rng(seed).uniform(-8, 8, 500).astype(F32)
    wanted = evaluate(p, x)
    # XLA flushes subnormal numbers, and converts what no integer holds in its own way.
    left_open = open_values(p, x) | flushes(p, x)
    for f in (to_jax(p), jax.jit(to_jax(p))):
        assert_same(np.asarray(f(x)), wanted, left_open)


def flushes(p: Program, x: np.ndarray) -> np.ndarray:
    """Where any number on the way is subnormal."""
    seen = np.zeros(x.shape, bool)
    for i in range(1, len(p.instructions) + 1):
        if p.kinds[f"t{i - 1}"] == "r":
            part = Program(p.instructions[:i], p.constants, p.tables, p.dtype)
            value = np.abs(evaluate(part, x))
            seen |= (value > 0) & (value < np.finfo(F32).smallest_normal)
    return seen


def test_contracted_or_not_the_bound_holds() -> None:
    """Horner's rule within Higham's gamma_2n of the exact value, for any contraction."""
    coefficients = [Fraction(float(F32(1 / math.factorial(k)))) for k in range(8)]

    def build(b: Builder, x: Node) -> Node:
        y = b.constant(coefficients[-1])
        for c in coefficients[-2::-1]:
            y = b.fma(y, x, c)
        return y

    p = program(build)
    x = np.random.default_rng(1).uniform(-2, 2, 200).astype(F32)
    n = 14 * Fraction(1, 2**24)
    gamma = n / (1 - n)
    for f in (to_jax(p), jax.jit(to_jax(p)), jax.jit(jax.vmap(to_jax(p)))):
        for point, value in zip(x, np.asarray(f(x)), strict=True):
            t = Fraction(float(point))
            exact = sum(c * t**k for k, c in enumerate(coefficients))
            size = sum(abs(c * t**k) for k, c in enumerate(coefficients))
            assert abs(Fraction(float(value)) - exact) <= gamma * size


def test_bits_of_subnormal_numbers_survive() -> None:
    def build(b: Builder, x: Node) -> Node:
        shifted = b.from_bits(b.iadd(b.bits(x), 5))
        return b.select(b.lt(b.bits(x), 1000), shifted, b.from_bits(77))

    p = program(build)
    x = np.arange(0, 2000, 7, dtype=np.int32).view(F32)
    for f in (to_jax(p), jax.jit(to_jax(p)), jax.jit(jax.vmap(to_jax(p)))):
        assert_same(np.asarray(f(x)), evaluate(p, x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits(dtype: str) -> None:
    p = program(lambda b, x: b.sqrt(b.abs(x) + 1) / (x - Fraction(1, 3)), dtype)
    x = np.arange(2**16, dtype=np.uint16).view(p.format.dtype)
    with np.errstate(all="ignore"):
        wide = np.abs(x.astype(F32))
    for f in (to_jax(p), jax.jit(to_jax(p))):
        got = np.asarray(f(x))
        assert_same(got, evaluate(p, x), (wide > 0) & (wide < np.finfo(F32).smallest_normal))
    assert jax.grad(to_jax(p))(jnp.asarray(1, dtype)).dtype == p.format.dtype


@pytest.mark.parametrize("wide", [False, True])
def test_float32_does_not_depend_on_x64(wide: bool) -> None:
    x = np.linspace(-5, 5, 1001).astype(F32)
    with jax.enable_x64(wide):
        y = jax.jit(to_jax(exp_like()))(x)
        slope = jax.vmap(jax.grad(to_jax(exp_like())))(x)
        assert to_jax(exp_like())(1.0).dtype == F32
    assert y.dtype == F32
    np.testing.assert_allclose(y, np.exp(x.astype(float)), rtol=3e-6)
    np.testing.assert_allclose(slope, np.exp(x.astype(float)), rtol=2e-5)


def test_float64_needs_x64() -> None:
    f = to_jax(exp_like("float64"))
    with pytest.raises(PrecisionError, match="jax_enable_x64"):
        f(1.0)
    with pytest.raises(PrecisionError):
        jax.jit(f)(1.0)
    with jax.enable_x64(True):
        assert f(1.0).dtype == np.float64
        assert abs(float(jax.jit(f)(1.0)) / math.e - 1) < 1e-7
    namespace: dict[str, object] = {}
    exec(emit(exp_like("float64"), "jax", name="f", header=HEADER), namespace)
    with pytest.raises(RuntimeError, match="enable_x64"):
        namespace["f"](1.0)


def test_derivatives_of_the_program() -> None:
    """Against central differences of the program in float64."""
    p = exp_like("float64")
    x, h = np.linspace(-3, 3, 50), 1e-6
    difference = (evaluate(p, x + h) - evaluate(p, x - h)) / (2 * h)
    with jax.enable_x64(True):
        f = to_jax(p)
        np.testing.assert_allclose(jax.vmap(jax.grad(f))(x), difference, rtol=1e-7)
        forward = jax.jvp(f, (x,), (np.ones_like(x),))[1]
        np.testing.assert_allclose(forward, difference, rtol=1e-7)
        second = jax.vmap(jax.grad(jax.grad(f)))(x)
        assert np.abs(second / np.exp(x) - 1).max() < 1e-3


def test_derivatives_through_the_exponent_field() -> None:
    x = np.linspace(0.02, 300, 999).astype(F32)
    f = to_jax(log2_like())
    slope = jax.vmap(jax.grad(f))(x)
    assert np.abs(slope * x * math.log(2) - 1).max() < 0.01  # the series at r = 0.41
    curvature = jax.vmap(jax.grad(jax.grad(f)))(x)
    assert np.abs(curvature * x * x * math.log(2) + 1).max() < 0.1
    with pytest.raises(NotImplementedError, match="derivative="):
        jax.grad(jax.grad(jax.grad(f)))(2.0)


def test_derivative_of_the_truth() -> None:
    f = to_jax(log2_like(), "1 / (x * log(2))")
    assert abs(float(jax.grad(f)(3.0)) - 1 / (3 * math.log(2))) < 1e-6
    third = jax.grad(jax.grad(jax.grad(f)))(3.0)
    assert abs(float(third) - 2 / (27 * math.log(2))) < 1e-6
    with_value = to_jax(exp_like(), "y")
    assert jax.grad(with_value)(1.5) == with_value(1.5)
    own = to_jax(exp_like(), program(lambda b, x: x * 0 + 7))
    assert jax.grad(own)(1.5) == 7


@pytest.mark.parametrize(
    "text", ["import os", "x.real", "open(1)", "x if y else 1", "z", "exp(x, y)"]
)
def test_only_expressions_make_derivatives(text: str) -> None:
    with pytest.raises(InputError):
        expression_source(text)


def test_one_large_number_chooses_the_program_of_its_array() -> None:
    near = Near(program(lambda b, x: x + 1), 2.0)
    namespace: dict = {}
    exec(to_source(program(lambda b, x: x + 2), "f", None, "2*x", near), namespace)
    f = namespace["f"]
    for each in (f, jax.jit(f), jax.vmap(f)):
        assert each(F32([1, -2])).tolist() == [2, -1]
        assert each(F32([1, -3])).tolist() == [3, -1]
        assert np.isnan(each(F32([1, math.nan]))[1])
    rows = F32([[1, 1], [5, 1]])
    # A batch is one array: it is asked once, and not for every row.
    assert jax.vmap(f)(rows).tolist() == [[3, 3], [7, 3]]
    assert "select_n" not in str(jax.make_jaxpr(jax.vmap(f))(rows))
    assert jax.vmap(jax.grad(f))(F32([1, 5])).tolist() == [2, 10]
    assert jax.grad(jax.grad(f))(F32(5)) == 2


def test_derivatives_of_the_gamma_functions_hold_on_both_sides() -> None:
    # Slopes alone: x is the value, digamma the derivative. The figures are mpmath's.
    f = to_jax(program(lambda b, x: x + 0), "digamma(x)")
    for x, first, second in ((-20.3, 5.3175499, 15.0313460), (3.75, 1.1825374, 0.3053399)):
        assert float(jax.grad(f)(F32(x))) == pytest.approx(first, rel=1e-4)
        assert float(jax.grad(jax.grad(f))(F32(x))) == pytest.approx(second, rel=1e-4)
    g = to_jax(program(lambda b, x: x + 0), "clip(x,-1,2)*trigamma(x)")
    assert float(jax.grad(g)(F32(3))) == pytest.approx(2 * 0.3949341, rel=1e-5)


def test_a_smooth_program_has_every_derivative() -> None:
    f = to_jax(program(lambda b, x: x * x * x * x / 24))
    third = jax.grad(jax.grad(jax.grad(f)))
    assert abs(float(third(2.0)) - 2) < 1e-5
    hessian = jax.hessian(lambda v: f(v).sum())(jnp.ones(3, F32))
    np.testing.assert_allclose(hessian, np.eye(3) / 2, rtol=1e-6)


def test_source_and_function_are_one_and_stand_alone(tmp_path: Path) -> None:
    p = exp_like()
    (tmp_path / "alone.py").write_text(emit(p, "jax", name="f", header=HEADER))
    script = "import sys, alone; print(float(alone.f(1.5)).hex(), 'nearly' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [float(to_jax(p)(1.5)).hex(), "False"]
    again = pickle.loads(pickle.dumps(to_jax(p, "y")))
    assert again == to_jax(p, "y")
    assert float(again(1.5)) == float(to_jax(p)(1.5))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_stablehlo(dtype: str) -> None:
    p = exp_like(dtype)
    text = emit(p, "stablehlo", name="f", header=HEADER)
    assert text.startswith("// PROVEN exp(x)")
    assert "module @jit_f" in text
    assert "stablehlo.optimization_barrier" in text
    assert ".py" not in text  # no file of this machine
    # The text itself is compiled and run, in place of the module exported from the function.
    artifact = mlir.serialize_portable_artifact(text, stablehlo.get_minimum_version())
    with jax.enable_x64(dtype == "float64"):
        f = jax.jit(to_jax(p))
        (n,) = export.symbolic_shape("n")
        exported = export.export(f)(jax.ShapeDtypeStruct((n,), p.format.dtype))
        read = dataclasses.replace(exported, mlir_module_serialized=artifact)
        for size in (1, 7, 1000):
            x = np.linspace(-4, 4, size).astype(p.format.dtype)
            assert_same(np.asarray(read.call(x)), np.asarray(f(x)))


def test_a_constant_program_keeps_the_shape() -> None:
    p = program(lambda b, x: b.constant(Fraction(1, 4)) + 1)
    assert np.asarray(jax.jit(to_jax(p))(np.zeros((2, 3), F32))).tolist() == [[1.25] * 3] * 2
    assert jax.grad(to_jax(p))(1.0) == 0


def test_a_real_program_is_refused() -> None:
    with pytest.raises(InputError, match="in_format"):
        to_jax(program(lambda b, x: x + 1, "real"))
