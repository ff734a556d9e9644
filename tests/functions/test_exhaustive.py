"""Every input of short formats, and binades of float32."""

from __future__ import annotations

import math
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from nearly.core.errors import InputError, MissingDependency, UnknownName
from nearly.functions.candidates import candidates
from nearly.functions.compiler import find_compiler
from nearly.functions.exhaustive import FLAGS, check, check_library, exhaustive
from nearly.functions.function import Function
from nearly.functions.program import Builder, Program

try:
    COMPILER = find_compiler()
except MissingDependency:
    COMPILER = []
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler")
FORMS = [pytest.param("c", marks=needs_compiler), "numpy", "jax"]


def root(dtype: str) -> Program:
    b = Builder(dtype)
    return b.program(b.sqrt(b.x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_correctly_rounded_function(dtype: str, form: str) -> None:
    # From 2^-14: XLA flushes subnormal numbers of float32, and reciprocals of roots are not exact.
    function = Function("sqrt", ("2^-14", "2^15"), dtype, "ulp")
    for found in exhaustive(function, root(dtype), form):
        assert found.worst_ulp <= 0.5 or (form == "jax" and found.worst_ulp < 0.51)
        assert found.complete
        assert found.failures == 0


def test_special_values_of_a_whole_format() -> None:
    function = Function("sqrt", ("-inf", "inf"), "float16", "ulp")
    (found,) = exhaustive(function, root("float16"), "numpy")
    assert found.count == found.total == 2**16
    assert found.worst_ulp <= 0.5


@needs_compiler
def test_a_binade_of_single_precision_under_all_flags() -> None:
    function = Function("sqrt", ("1", "2"), "float32", "ulp")
    done: list[tuple[int, int]] = []
    results = exhaustive(function, root("float32"), progress=lambda a, b: done.append((a, b)))
    assert [r.flags for r in results] == list(FLAGS)
    for found in results:
        assert found.count == found.total == 2**23 + 1
        assert 0.4999 < found.worst_ulp <= 0.5
    assert done[-1] == (2**23 + 1, 2**23 + 1)


@pytest.mark.parametrize(
    ("wrong", "error"), [(Fraction(3, 2), None), (math.nan, math.inf), (math.inf, math.inf)]
)
def test_one_wrong_value_among_millions_is_found(wrong, error) -> None:
    b = Builder("float32")
    place = Fraction(np.float32(1.23456789).item())
    program = b.program(b.select(b.eq(b.x, place), b.constant(wrong), b.sqrt(b.x)))
    (found,) = exhaustive(Function("sqrt", ("1", "2"), "float32", "ulp"), program, "numpy")
    assert found.worst_input == float(place)
    assert found.failures == 1
    expected = abs(1.5 - math.sqrt(place)) * 2**23 if error is None else error
    assert found.worst_ulp == pytest.approx(expected, rel=1e-12)


def test_failures_are_counted_against_the_tolerance() -> None:
    # x (1 + 2^-23), rounded: one ULP off everywhere on [1, 2), and exact arithmetic decides.
    b = Builder("float16")
    step = Fraction(1, 2**10)
    program = b.program(b.x + step)
    function = Function("x", ("1", "1.5"), "float16", "ulp")
    (strict,) = exhaustive(function, program, "numpy", tolerance=0.5)
    assert (strict.failures, strict.worst_ulp) == (strict.total, 1.0)
    (lax,) = exhaustive(function, program, "numpy", tolerance=1.0)
    assert lax.failures == 0


def test_zero_of_the_function_is_decided_exactly() -> None:
    b = Builder("float32")
    tiny = b.program(b.select(b.eq(b.x, Fraction(1)), Fraction(2) ** -140, b.x - b.x))
    function = Function("log", ("1", "1.0000002"), "float32", "ulp")
    (found,) = exhaustive(function, tiny, "numpy")
    # At 1: 2^-140 / 2^-149 = 512. At 1 + 2^-23: 0 against about 2^-23, that is 2^24 ULP.
    assert found.failures == found.total == 2
    assert found.worst_input == 1 + 2**-23


def test_part_of_the_inputs_is_called_a_part() -> None:
    function = Function("sqrt", ("1", "2"), "float32", "ulp")
    (found,) = exhaustive(function, root("float32"), "jax", ("jit",), every=4)
    assert 0 < found.count < found.total
    assert not found.complete


def test_patience_ends_after_the_chunk_that_exceeds_it() -> None:
    function = Function("x", ("0.01", "0.1"), "float32", "ulp")
    b = Builder("float32")
    wrong = b.program(b.select(b.lt(b.x, Fraction(1, 64)), b.x, b.x + b.x))
    (hasty,) = exhaustive(function, wrong, "numpy", patience=3)
    (thorough,) = exhaustive(function, wrong, "numpy")
    assert thorough.complete
    assert not hasty.complete
    assert 3 < hasty.failures < thorough.failures
    (content,) = exhaustive(function, wrong, "numpy", patience=thorough.failures)
    assert content.complete


def test_unfused_is_eager_bit_for_bit() -> None:
    # x*x - c: contracted, the difference shows the rounding error of the product.
    b = Builder("float32")
    program = b.program(b.sub(b.mul(b.x, b.x), Fraction(3, 2)))
    eager, unfused = (candidates(program, "jax", (mode,))[mode] for mode in ("eager", "unfused"))
    x = np.linspace(1.2, 1.25, 4099, dtype=np.float32)
    assert eager(x).tobytes() == unfused(x).tobytes()
    assert eager(x).tobytes() == program(x).tobytes()


def test_of_equal_errors_the_input_nearest_to_zero_is_reported() -> None:
    b = Builder("float16")
    far = b.program(b.x + b.x)
    function = Function("x", ("-4", "4"), "float16", "ulp")
    (found,) = exhaustive(function, far, "numpy")
    # |2x - x| over the spacing at x is largest where all bits of the significand are ones.
    assert found.worst_input == 2**-13 * (1 - 2**-11)
    assert found.worst_ulp == 2**11 - 1


def test_near_a_zero_the_error_is_absolute() -> None:
    # 2^-12 off everywhere: 1/4 of an ULP of float16 at 1, and no more where x is smaller.
    def off(x: np.ndarray) -> np.ndarray:
        return (x.astype(np.float32) + np.float32(2**-12)).astype(np.float32)

    function = Function("x", ("0", "2"), "float16", "ulp")
    (found,) = check(function, {"off": off}, least=1.0)
    assert found.worst_ulp == 0.25
    (relative,) = check(function, {"off": off})
    assert relative.worst_ulp == 2**12


def test_wrong_arguments() -> None:
    function = Function("sqrt", ("1", "2"), "float32", "ulp")
    with pytest.raises(InputError, match="in_format"):
        exhaustive(function, root("float64"))
    with pytest.raises(UnknownName, match="form"):
        exhaustive(function, root("float32"), "fortran")
    with pytest.raises(InputError, match="flags"):
        exhaustive(function, root("float32"), "numpy", ("-O2",))
    with pytest.raises(InputError, match="float64"):
        exhaustive(Function("sqrt", ("1", "2"), "float64", "ulp"), root("float64"), "numpy")


def test_interruption_stops_between_chunks() -> None:
    def interrupt(x: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(Function("sqrt", ("1", "2"), "float32", "ulp"), {"mine": interrupt})


@needs_compiler
def test_library_of_the_user(tmp_path) -> None:
    source = tmp_path / "mine.c"
    source.write_text("#include <math.h>\nfloat mine(float x) { return sqrtf(x); }\n")
    library = tmp_path / "mine.so"
    subprocess.run([*COMPILER, "-O2", "-shared", "-fPIC", "-o", library, source, "-lm"], check=True)
    function = Function("sqrt", ("1", "1.5"), "float32", "ulp")
    found = check_library(library, "mine", function)
    assert found.worst_ulp <= 0.5
    assert found.flags == "mine.so:mine"
    with pytest.raises(InputError, match="no symbol"):
        check_library(library, "yours", function)
    with pytest.raises(InputError, match="cannot load"):
        check_library(tmp_path / "none.so", "mine", function)
