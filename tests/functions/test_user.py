"""The user's own approximation: every way to bring one, and what is said of what cannot be."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_programs import assert_same
from test_emit import needs_compiler

from nearly.core.errors import InputError
from nearly.functions.compiler import find_compiler
from nearly.functions.evaluate import evaluate
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program
from nearly.functions.user import Compiled, as_program

F32 = np.float32
SINGLE = Function("exp2", ("0", "1"), "float32")
REAL = Function("exp2", ("0", "1"))
X = np.linspace(-4, 4, 2001).astype(F32)


def test_coefficients_over_the_reals_are_exact() -> None:
    p = as_program([1, 0.1, "1/3", Fraction(1, 7)], REAL)
    exact = p.run(
        Fraction(2), {"mul": lambda a, b: a * b, "add": lambda a, b: a + b}, lambda value: value
    )
    assert exact == 1 + 2 * Fraction(0.1) + Fraction(4, 3) + Fraction(8, 7)


def test_coefficients_in_a_format_are_rounded_aloud() -> None:
    with pytest.warns(UserWarning, match="2 of 3 constants are no float32 numbers"):
        p = as_program(np.array([0.1, 0.5, 0.3]), SINGLE)
    y = F32(0.3) * np.float64(F32(2)) + 0.5
    assert evaluate(p, F32(2)) == F32(F32(y) * np.float64(2) + np.float64(F32(0.1)))
    as_program(np.array([0.1, 0.5, 0.3], F32), SINGLE)  # already float32: nothing to say
    as_program(["0x1.8p-3", "0.5"], SINGLE)


@pytest.mark.parametrize("bad", [[], [[1, 2]], [1, float("nan")], [1, None], ["one"], [1j]])
def test_coefficients_that_are_none(bad) -> None:
    with pytest.raises(InputError, match="coefficient"):
        as_program(bad, SINGLE)


def test_a_numpy_function() -> None:
    def f(x):
        return np.sqrt(abs(x)) * F32(2) + np.rint(x) / 4 - x**2 + np.negative(x) ** -1

    x = X[X != 0]
    wanted = np.sqrt(abs(x)) * F32(2) + np.rint(x) / F32(4) - x * x + F32(1) / -x
    assert_same(evaluate(as_program(f, SINGLE), x), wanted)


def jax_function(x):
    y = jnp.where(x < 0, x**2, jnp.sqrt(x)) * 2.0 + x**3
    y = jnp.clip(y, -1, 1) + jnp.rint(x) + jnp.floor(x) - jnp.ceil(x) + jnp.abs(x)
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    y = y + ((bits >> 23) & 255).astype(jnp.float32)
    y = jax.nn.relu(y) + jnp.polyval(jnp.array([1.0, 2.0, 3.0]), x)
    inside = ((x > 0) & (x <= 3)) | ~(x == 1) | (x >= 3.5) | (x != 2)
    return jnp.minimum(y, 50) + jnp.sign(x) + jnp.reciprocal(x) + jnp.where(inside, 1, 2)


def test_a_jax_function() -> None:
    p = as_program(jax_function, SINGLE)
    x = X[X != 0]
    wanted = np.asarray(jax.jit(jax_function)(x))
    np.testing.assert_allclose(evaluate(p, x), wanted, rtol=1e-6)  # XLA contracts


def test_a_loop_of_fixed_length_is_unrolled() -> None:
    p = as_program(lambda x: jax.lax.fori_loop(0, 4, lambda i, y: y * x + i, x), SINGLE)
    wanted = X
    for i in range(4):
        wanted = wanted * X + F32(i)
    assert_same(evaluate(p, X), wanted)


def test_nan_goes_through_the_maximum() -> None:
    p = as_program(lambda x: jnp.maximum(x, 1.0), SINGLE)
    got = evaluate(p, np.array([np.nan, 0, 2], F32))
    assert np.isnan(got[0])
    assert got[1:].tolist() == [1, 2]


def test_a_jax_function_in_float64_and_over_the_reals() -> None:
    f = lambda x: jnp.sqrt(x + 0.1) / 3  # noqa: E731
    wide = as_program(f, Function("exp2", ("0", "1"), "float64"))
    assert evaluate(wide, 2.0) == np.sqrt(2.1) / 3
    assert as_program(f, REAL).dtype == "real"


@pytest.mark.parametrize(
    ("f", "reason"),
    [
        (lambda x: jnp.exp(x), "JAX's exp"),
        (lambda x: np.exp(x), "np.exp"),
        (lambda x: x if x > 0 else -x, "boolean"),
        (lambda x: jnp.stack([x, x]), "broadcast_in_dim|stack|concatenate"),
        (lambda x: "text", "returned str"),
        (lambda x: x.astype(jnp.float16) * 2, "float16"),
        (lambda x: jax.lax.while_loop(lambda y: y < 9, lambda y: y * 2, x), "JAX's while"),
        (lambda x: 1 / 0, "division by zero"),
        (3, "int is not"),
        ({"a": 1}, "dict is not"),
        ("p.txt", "neither"),
        ("nowhere.json", "cannot be read"),
    ],
)
def test_what_cannot_be_translated_is_said_clearly(f, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        as_program(f, SINGLE)
    assert "\n" not in str(caught.value)


def test_a_constant_function() -> None:
    assert evaluate(as_program(lambda x: 1.5, SINGLE), X).tolist() == [1.5] * X.size
    assert evaluate(as_program(lambda x: jnp.float32(1.5), SINGLE), X).tolist() == [1.5] * X.size


def test_program_files(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    p = as_program([1, 0.5, 0.25], REAL)
    path.write_text(json.dumps(p.to_json()))
    assert as_program(str(path), REAL) == p
    assert as_program(path, SINGLE) == p.in_format("float32")
    for text, reason in (
        ("{", "not JSON"),
        ("[]", "not a program"),
        ('{"constants": {}}', "instructions"),
        ('{"constants": {}, "instructions": [["exp", "x"]]}', "unknown operation"),
        ('{"constants": {"c0": "one"}, "instructions": [["add", "x", "c0"]]}', "one"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=reason):
            as_program(str(path), REAL)


def test_a_program_of_another_format() -> None:
    b = Builder("float64")
    with pytest.raises(InputError, match="--dtype float64"):
        as_program(b.program(b.x + 1), SINGLE)
    real = Builder()
    with pytest.warns(UserWarning, match="0.333"):
        assert as_program(real.program(real.x / 3 + Fraction(1, 3)), SINGLE).dtype == "float32"


@needs_compiler
def test_a_symbol_of_a_library(tmp_path: Path) -> None:
    source, library = tmp_path / "u.c", tmp_path / "u.so"
    source.write_text(
        "#include <stdint.h>\nfloat f(float x) { return 1.0f + x; }\n"
        "uint16_t h(uint16_t x) { return x ^ 0x8000u; }\n"
    )
    build = [*find_compiler(), "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(build, check=True)
    f = as_program(f"{library}:f", SINGLE)
    assert isinstance(f, Compiled)
    assert_same(f(X), F32(1) + X)
    half = as_program(f"{library}:h", Function("exp2", ("0", "1"), "float16"))
    assert_same(half(X.astype(np.float16)), -X.astype(np.float16))
    for text, function, reason in (
        (f"{library}:g", SINGLE, "no symbol 'g'"),
        (f"{library}:f", REAL, "--dtype"),
        (f"{tmp_path}/v.so:f", SINGLE, "cannot be loaded"),
    ):
        with pytest.raises(InputError, match=reason):
            as_program(text, function)


def test_what_is_a_program_already_stays() -> None:
    p = as_program([1, 2], SINGLE)
    assert as_program(p, SINGLE) is p
    assert isinstance(p, Program)
