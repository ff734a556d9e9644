"""Our float32 functions beside XLA's, and their C beside glibc's and SLEEF's: seconds and errors.

Each pair runs in one process and on one core, alternating, inside a compiled loop over 1024 typical
arguments that stay in the cache; the loop's own time is subtracted. Ratios are medians with 95%
intervals: how many times as long the other takes. In C everything is compiled with gcc -O3
-march=native, the libraries' vector functions are called a vector at a time. XLA's errors over all
inputs change with its version alone: `--exhaustive` finds them anew and keeps them beside this
file; its figures leave out the inputs where argument or result is subnormal, which XLA flushes to
zero, and count them.

    python benchmarks/float32.py [--only NAME...] [--markdown PATH] [--exhaustive [--every N]]
"""

from __future__ import annotations

import argparse
import ctypes.util
import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nearly.core.errors import MissingDependency
from nearly.functions import float32
from nearly.functions.candidates import Values
from nearly.functions.compiler import FAST
from nearly.functions.emit import emit
from nearly.functions.exhaustive import check
from nearly.functions.float32.drop_in import measured
from nearly.functions.float32.recipes import RECIPES
from nearly.functions.function import Function
from nearly.functions.reference import reference
from nearly.functions.statement import ErrorStatement
from nearly.functions.timing import Comparison, Ratio, compare_c, compare_jax

KNOWN = Path(__file__).with_name("float32.json")
SUBNORMAL = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Case:
    """A function, XLA's own, typical arguments, and what C libraries call it."""

    xla: Callable[[Any], Any]
    points: np.ndarray
    glibc: str = ""
    sleef: str = ""


def _uniform(low: float, high: float) -> np.ndarray:
    return np.random.default_rng(3).uniform(low, high, 1024).astype(np.float32)


def _logarithmic(low: float, high: float) -> np.ndarray:
    return np.exp(_uniform(math.log(low), math.log(high)))


CASES: Mapping[str, Case] = {
    "exp2": Case(jnp.exp2, _uniform(-20, 20), "exp2f", "exp2f_u10"),
    "exp": Case(jnp.exp, _uniform(-20, 20), "expf", "expf_u10"),
    "expm1": Case(jnp.expm1, _uniform(-3, 3), "expm1f", "expm1f_u10"),
    "log2": Case(jnp.log2, _logarithmic(0.01, 100), "log2f", "log2f_u10"),
    "log": Case(jnp.log, _logarithmic(0.01, 100), "logf", "logf_u10"),
    "log1p": Case(jnp.log1p, _uniform(-0.9, 10), "log1pf", "log1pf_u10"),
    "sin": Case(jnp.sin, _uniform(-10, 10), "sinf", "sinf_u10"),
    "cos": Case(jnp.cos, _uniform(-10, 10), "cosf", "cosf_u10"),
    "tan": Case(jnp.tan, _uniform(-10, 10), "tanf", "tanf_u10"),
    "atan": Case(jnp.arctan, _uniform(-10, 10), "atanf", "atanf_u10"),
    "asin": Case(jnp.arcsin, _uniform(-1, 1), "asinf", "asinf_u10"),
    "acos": Case(jnp.arccos, _uniform(-1, 1), "acosf", "acosf_u10"),
    "cbrt": Case(jnp.cbrt, _uniform(-100, 100), "cbrtf", "cbrtf_u10"),
    "rsqrt": Case(lax.rsqrt, _logarithmic(0.01, 100)),
    "erf": Case(lax.erf, _uniform(-3, 3), "erff", "erff_u10"),
    "erfc": Case(lax.erfc, _uniform(-3, 6), "erfcf", "erfcf_u15"),
    "erf_inv": Case(lax.erf_inv, _uniform(-1, 1)),
    "tanh": Case(jnp.tanh, _uniform(-5, 5), "tanhf", "tanhf_u10"),
    "sigmoid": Case(jax.nn.sigmoid, _uniform(-10, 10)),
    "gelu": Case(lambda x: jax.nn.gelu(x, approximate=False), _uniform(-5, 5)),
    "lgamma": Case(lax.lgamma, _uniform(0.1, 20), sleef="lgammaf_u10"),
    "digamma": Case(lax.digamma, _uniform(0.1, 20)),
}


@dataclass(frozen=True)
class Row:
    """One function: the comparisons (a speed-up is `other / ours`) and both worst errors."""

    name: str
    xla: Comparison
    glibc: Comparison | str
    sleef: Comparison | str
    ours_ulp: float
    xla_ulp: float

    @property
    def meets(self) -> bool:
        """At least 0.95 times XLA's speed, where XLA is within 1 ULP."""
        return self.xla_ulp > 1 or self.xla.ratio.median >= 0.95


def row(name: str, xla_errors: Mapping[str, Any]) -> Row:
    case = CASES[name]
    ours = emit(RECIPES[name].program(), "c", name="kernel", header=UNSTATED)
    return Row(
        name,
        compare_jax(case.xla, getattr(float32, name), case.points),
        in_c(ours, case, "glibc"),
        in_c(ours, case, "sleef"),
        measured()[name]["worst_ulp"],
        float(xla_errors.get(name, {}).get("worst_ulp", math.nan)),
    )


# The widest vectors that the processor has, as both libraries name their functions.
VECTORS = """
#include <immintrin.h>
#include <stddef.h>
#if defined(__AVX512F__)
#define LANES 16
typedef __m512 vector;
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define GLIBC(name) _ZGVeN16v_##name
#define SLEEF_HEAD(name) Sleef_##name##f16_
#else
#define LANES 8
typedef __m256 vector;
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define GLIBC(name) _ZGVdN8v_##name
#define SLEEF_HEAD(name) Sleef_##name##f8_
#endif
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define SLEEF(name, bound) JOIN(SLEEF_HEAD(name), bound)
vector SYMBOL(vector);
void kernel_array(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i += LANES)
        STORE(y + i, SYMBOL(LOAD(x + i)));
}
"""


def in_c(ours: str, case: Case, library: str) -> Comparison | str:
    """The C library's function against our emitted C; or why it was not run."""
    called = getattr(case, library)
    if not called:
        return "has none"
    link = {"glibc": "mvec", "sleef": "sleef"}[library]
    if ctypes.util.find_library(link) is None:
        return "not installed"
    stem, _, bound = called.partition("f_")
    symbol = f"SLEEF({stem}, {bound})" if library == "sleef" else f"GLIBC({called})"
    theirs = VECTORS.replace("SYMBOL(", f"{symbol}(")
    flags = (*FAST, "-Wl,--no-as-needed", f"-l{link}")
    try:
        return compare_c(theirs, ours, case.points, flags)
    except (MissingDependency, OSError) as error:
        return str(error)


UNSTATED = ErrorStatement("MEASURED", "a kernel being timed", "-", "not stated", "-")


def spared(function: Function, values: Values) -> Values:
    """The same values, but right where the argument or the truth is subnormal."""
    truth = reference(function)

    def normal(x: np.ndarray) -> np.ndarray:
        y = values(x)
        exact, doubt = np.empty(x.size), np.empty(x.size)
        truth.fill(x, int(x.view(np.uint32)[0]), exact, doubt)
        with np.errstate(invalid="ignore", over="ignore"):
            flushed = (np.abs(x) < SUBNORMAL) | (np.abs(exact) < SUBNORMAL)
            return np.where(flushed, exact.astype(np.float32), y)

    return normal


def exhaustive_xla(name: str, every: int) -> dict[str, Any]:
    """XLA's worst error where nothing is subnormal, and how many inputs it flushes wrongly.

    Of one input in `every`; a count less than 2^32 is told.
    """
    function, recipe = RECIPES[name].function, RECIPES[name]
    compiled = jax.jit(CASES[name].xla)

    def values(x: np.ndarray) -> np.ndarray:
        return np.asarray(compiled(x))

    all_of_them, normal = check(
        function,
        {"every": values, "normal": spared(function, values)},
        least=recipe.floor,
        every=every,
        workers=os.cpu_count() or 1,
    )
    return {
        "worst_ulp": repr(normal.worst_ulp),
        "worst_input": repr(normal.worst_input),
        "above_1_ulp": normal.failures,
        "flushed": all_of_them.failures - normal.failures,
        "inputs": normal.count,
        "jax": jax.__version__,
    }


HEADER = "| function | ours, ns | XLA, ns | speed-up | ours, ULP | XLA, ULP | glibc, C | SLEEF, C |"
RULE = "|---|--:|--:|--:|--:|--:|--:|--:|"


def line(row: Row) -> str:
    theirs, ours = row.xla.first.median * 1e9, row.xla.second.median * 1e9
    return (
        f"| {row.name} | {ours:.2f} | {theirs:.2f} | {_interval(row.xla.ratio)} | "
        f"{row.ours_ulp:.3g} | {row.xla_ulp:.3g} | {_cell(row.glibc)} | {_cell(row.sleef)} |"
    )


def _interval(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _cell(found: Comparison | str) -> str:
    return found if isinstance(found, str) else _interval(found.ratio)


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """The bars: the mean; no loss where XLA is accurate; the four that XLA computes slowly."""
    mean = math.exp(np.mean([math.log(r.xla.ratio.median) for r in rows]))
    yield f"geometric mean of the speed-ups against XLA: {mean:.2f}"
    slower = [r.name for r in rows if not r.meets]
    yield f"below 0.95 where XLA is within 1 ULP: {', '.join(slower) or 'none'}"
    five = [r for r in rows if r.name in ("cbrt", "acos", "asin", "atan")]
    for r in five:
        yield f"{r.name}: {_interval(r.xla.ratio)}"


PAGE = """\
# float32 functions: speed and errors

Written by `python benchmarks/float32.py --markdown`. Nanoseconds per element, inside one compiled
loop over 1024 typical arguments in the cache, on one core ({machine}, jax {jax}). Speed-ups are
medians of alternating pairs with their 95% intervals: how many times as long the other takes, XLA
against our JAX function, the C libraries' vector functions against our C. ULP: the worst error over
all inputs; XLA's leaves out the inputs where argument or result is subnormal: the last column says
for how many of those it is off by more than 1 ULP.
"""


def page(rows: Sequence[Row]) -> str:
    """The table as a page of the documentation."""
    known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    head = PAGE.format(machine=_processor(), jax=jax.__version__)
    lines = [f"{line(r)} {known.get(r.name, {}).get('flushed', '?')} |" for r in rows]
    table = [f"{HEADER} XLA, flushed |", f"{RULE}--:|", *lines]
    return "\n".join([head, *table, "", *(f"- {text}" for text in summary(rows))]) + "\n"


def _processor() -> str:
    names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def use_one_core() -> None:
    """Equal threads: XLA would split the larger kernels, and not the others, over its own."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    parser.add_argument("--exhaustive", action="store_true", help="try XLA's on every input anew")
    parser.add_argument("--every", type=int, default=1, help="or one input in so many of them")
    options = parser.parse_args()
    names = [name for name in CASES if name in options.only]
    known = json.loads(KNOWN.read_text()) if KNOWN.exists() else {}
    if options.exhaustive:
        for name in names:
            known[name] = exhaustive_xla(name, options.every)
            print(name, known[name], flush=True)
            KNOWN.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
        return
    use_one_core()
    print(HEADER, RULE, sep="\n")
    rows = []
    for name in names:
        rows.append(row(name, known))
        print(line(rows[-1]), flush=True)
        jax.clear_caches()
    print(*summary(rows), sep="\n")
    if options.markdown:
        options.markdown.write_text(page(rows))


if __name__ == "__main__":
    main()
