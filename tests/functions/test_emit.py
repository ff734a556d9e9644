"""C and NumPy emission against the program, bit for bit, under many flags; headers and refusals."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs import assert_same, every_kind_of_number, open_values, random_program

from nearly.core.errors import InputError, MissingDependency, UnknownName
from nearly.functions.compiler import array_function, find_compiler, shared_object
from nearly.functions.emit import ErrorStatement, emit
from nearly.functions.emit_c import storage_type
from nearly.functions.evaluate import evaluate
from nearly.functions.program import Builder, Program

HEADER = ErrorStatement(
    "PROVEN", "exp2(x)", "[0, 1]", "0.75 ulp", "nearly within 1ulp exp2 --to c", ("gcc -O2",)
)
WARNINGS = ("-Wall", "-Wextra", "-pedantic", "-Werror")
FLAGS = (
    ("-O0", "-std=c99"),
    ("-O2", "-std=c99"),
    ("-O3", "-march=native", "-std=gnu17"),
    ("-O3", "-march=native", "-std=gnu17", "-ffp-contract=fast"),
    ("-O2", "-mno-fma", "-std=gnu17"),
)


def has_compiler() -> bool:
    try:
        find_compiler()
    except MissingDependency:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C compiler")

# A user's own loop around the scalar function, under the user's flags.
CALLER = """
void {name}_called(const {T} *x, {T} *y, size_t n);
void {name}_called(const {T} *x, {T} *y, size_t n)
{{
    for (size_t i = 0; i < n; ++i)
        y[i] = {name}(x[i]);
}}
"""


def hardware_fma(flags: tuple[str, ...], program: Program) -> bool:
    letter = "F" if storage_type(program.dtype) != "double" else ""
    known = f"defined(FP_FAST_FMA{letter}) || defined(__FMA__)"
    probe = f"#include <math.h>\n#if {known}\nint yes = 1;\n#endif\nint no = 1;\n"
    return hasattr(shared_object(probe, flags), "yes")


def output(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def check_c(program: Program, library: ctypes.CDLL, name: str, fused: bool) -> None:
    x = every_kind_of_number(program.format.dtype, 4000, 1)
    meant = program if fused else program.unfused()
    wanted = evaluate(meant, x)
    for entry in (f"{name}_array", f"{name}_called"):
        found = array_function(library, entry, program.format)(x)
        assert_same(found, wanted, open_values(meant, x))


@needs_compiler
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_c_is_the_program_bit_for_bit(dtype: str, flags: tuple[str, ...]) -> None:
    programs = [random_program(random.Random(seed), dtype) for seed in range(12)]
    texts = [
        emit(p, "c", name=f"p{i}", header=HEADER)
        + CALLER.format(name=f"p{i}", T=storage_type(dtype))
        for i, p in enumerate(programs)
    ]
    library = shared_object("".join(texts), (*flags, *WARNINGS))
    for i, program in enumerate(programs):
        check_c(program, library, f"p{i}", hardware_fma(flags, program))


@needs_compiler
@settings(max_examples=12, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["float64", "float32"]))
def test_contraction_cannot_change_c(rng: random.Random, dtype: str) -> None:
    names = ("add", "sub", "mul", "fma", "neg")
    program = random_program(rng, dtype, names)
    text = emit(program, "c", name="f", header=HEADER)
    flags = ("-O3", "-march=native", "-ffp-contract=fast")
    caller = CALLER.format(name="f", T=storage_type(dtype))
    check_c(program, shared_object(text + caller, flags), "f", hardware_fma(flags, program))


@needs_compiler
def test_without_our_pragma_contraction_would_change_c() -> None:
    # The test above could not fail on a machine whose compiler never contracts.
    b = Builder("float32")
    program = b.program(b.x * b.x - 1)
    flags = ("-O3", "-march=native", "-ffp-contract=fast")
    if not hardware_fma(flags, program):
        pytest.skip("this processor has no fma")
    text = emit(program, "c", name="f", header=HEADER)
    x = every_kind_of_number(np.dtype(np.float32), 4000, 2)
    wanted = evaluate(program, x)
    assert_same(array_function(shared_object(text, flags), "f_array", program.format)(x), wanted)
    stripped = text.replace('#pragma GCC optimize ("fp-contract=off", "no-trapping-math")', "")
    assert stripped != text
    if "gcc" not in output([*find_compiler(), "-v"]).stderr:
        pytest.skip("only gcc contracts across statements")
    found = array_function(shared_object(stripped, flags), "f_array", program.format)(x)
    with pytest.raises(AssertionError):
        assert_same(found, wanted)


@needs_compiler
def test_every_sixteen_bit_pattern_goes_in_and_out() -> None:
    flags = ("-O3", "-march=native", *WARNINGS, "-std=c99")
    for dtype in ("float16", "bfloat16"):
        b = Builder(dtype)
        program = b.program(b.x * Fraction(3, 4) + Fraction(1, 2**20))
        library = shared_object(emit(program, "c", name="f", header=HEADER), flags)
        x = np.arange(2**16, dtype=np.uint16).view(program.format.dtype)
        assert_same(array_function(library, "f_array", program.format)(x), evaluate(program, x))


@needs_compiler
def test_the_array_function_is_vectorised() -> None:
    b = Builder("float32")
    n = b.round(b.x * Fraction(3, 2))
    r = b.fma(n, Fraction(-2, 3), b.x)
    y = b.fma(b.fma(r, Fraction(1, 6), Fraction(1, 2)), r * r, r) + 1
    scale = b.from_bits(b.ishl(b.iadd(b.to_int(n), 127), 23))
    scaled = b.select(b.lt(b.x, 88), y * scale / (r + 2), float("inf"))
    table = b.lookup(b.table(range(8)), b.iand(b.to_int(n), 7))
    text = emit(b.program(scaled + table), "c", name="f", header=HEADER)
    flags = ["-O3", "-march=native", "-fopt-info-vec", "-x", "c", "-c", "-o", "/dev/null", "-"]
    made = output([*find_compiler(), *flags], text)
    if made.returncode != 0:
        pytest.skip("the compiler does not report what it vectorises")
    assert "loop vectorized" in made.stderr


@needs_compiler
@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only"])
def test_flags_that_void_the_bound_are_refused(flag: str) -> None:
    b = Builder("float32")
    text = emit(b.program(b.x + 1), "c", name="f", header=HEADER)
    with pytest.raises(InputError, match="void the error bound"):
        shared_object(text, ("-O2", flag))


@needs_compiler
def test_in_place() -> None:
    b = Builder("float32")
    program = b.program(b.x * b.x + 1)
    library = shared_object(emit(program, "c", name="f", header=HEADER))
    x = np.linspace(0, 1, 1001, dtype=np.float32)
    y = x.copy()
    symbol = library["f_array"]
    symbol.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    symbol(y.ctypes.data, y.ctypes.data, y.size)
    assert_same(y, evaluate(program, x))


@settings(max_examples=60, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from(["float64", "float32", "float16", "bfloat16"]),
)
def test_numpy_source_is_the_program_bit_for_bit(rng: random.Random, dtype: str) -> None:
    program = random_program(rng, dtype)
    namespace: dict[str, object] = {}
    exec(emit(program, "numpy", name="f", header=HEADER), namespace)
    x = every_kind_of_number(program.format.dtype, 500, 3)
    with np.errstate(all="ignore"):
        assert_same(namespace["f"](x), evaluate(program, x))


def test_numpy_source_stands_alone(tmp_path: Path) -> None:
    b = Builder("bfloat16")
    program = b.program(b.fma(b.x, b.x, Fraction(1, 3)))
    (tmp_path / "alone.py").write_text(emit(program, "numpy", name="f", header=HEADER))
    script = (
        "import sys, numpy as np, alone; print(alone.f(np.array([0x3f80], np.uint16))[0]);"
        "print(sorted(m for m in sys.modules if m in ('nearly', 'jax', 'ml_dtypes')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    # 1 + 1/3 = 1.3333..., in bfloat16 1.0101011b = 1.3359375 = 0x3fab.
    assert run.stdout.split("\n")[:2] == [str(0x3FAB), "[]"]


def test_header_comes_first_and_cannot_break_out() -> None:
    b = Builder("float32")
    sly = ErrorStatement("MEASURED", "*/ int x; /*", "[0, 1]", "2 ulp", 'a """ b \\', (), ("note",))
    program = b.program(b.x + 1)
    c = emit(program, "c", name="f", header=sly)
    assert c.startswith("/* MEASURED")
    assert c.count("*/") == c.count("/*")
    assert c.index("*/") > c.index("command:")
    assert emit(program, "c", name="f", header=HEADER).splitlines()[:5] == [
        "/* PROVEN exp2(x): error <= 0.75 ulp",
        " * error:   0.75 ulp",
        " * domain:  [0, 1]",
        " * checked: gcc -O2",
        " * command: nearly within 1ulp exp2 --to c",
    ]
    for form in ("numpy", "jax"):
        text = emit(program, form, name="f", header=sly)
        assert text.startswith('"""MEASURED')
        compile(text, "emitted", "exec")


@pytest.mark.parametrize("name", ["1x", "x-y", "float", "exp2", "sinf", "main", "", "é"])
def test_names_that_c_cannot_have(name: str) -> None:
    b = Builder("float32")
    with pytest.raises(InputError, match="name"):
        emit(b.program(b.x + 1), "c", name=name, header=HEADER)


def test_refusals_name_the_remedy() -> None:
    real = Builder()
    with pytest.raises(InputError, match="--dtype"):
        emit(real.program(real.x + 1), "c", name="f", header=HEADER)
    b = Builder("float32")
    program = b.program(b.x + 1)
    with pytest.raises(UnknownName, match="'numpy'"):
        emit(program, "numpi", name="f", header=HEADER)
    with pytest.raises(InputError, match="only the jax form"):
        emit(program, "c", name="f", header=HEADER, derivative="1")
    with pytest.raises(InputError, match="another name"):
        emit(program, "jax", name="lambda", header=HEADER)


def test_no_compiler_is_a_missing_dependency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(MissingDependency, match="install gcc or clang"):
        find_compiler()
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(MissingDependency, match="no-such-compiler"):
        find_compiler()
