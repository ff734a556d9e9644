"""Writes `nearly.functions.float32`: the code of each function, and what trying every input found.

    python scripts/float32.py [NAME...] [--every N]

From `recipes.py`: range reduction, cores fitted and rounded, a `Program`, its JAX source. The text
is then compiled as on a processor with fused multiply-adds and as on one without, where every
operation is rounded on its own as it is without `jit`, and each is tried on all 2^32 inputs. The
figures stand in `errors.json` and in the header of `generated/NAME.py`. Running it again gives the
same bytes on the same kind of processor (x86-64 with FMA) and version of JAX. All functions take
about ten minutes on two cores. `--every N` tries one input in N: the header then says MEASURED.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from nearly.functions.emit_jax import to_source
from nearly.functions.exhaustive import check
from nearly.functions.float32.recipes import RECIPES, Recipe
from nearly.functions.statement import ErrorStatement

PACKAGE = Path(__file__).parents[1] / "src" / "nearly" / "functions" / "float32"
# XLA fixes the instruction set once per process: each way to compile has a process of its own.
PROCESSORS: Mapping[str, str] = {
    "fused": "",
    "unfused": "--xla_cpu_max_isa=AVX",  # the newest one without fused multiply-adds
}


def source(recipe: Recipe, found: Mapping[str, Any] | None) -> str:
    """The module of a function; with what was found in its header, if anything was."""
    header = _statement(recipe, found) if found else None
    near = recipe.near_program()
    return to_source(recipe.program(), recipe.name, header, recipe.derivative, near)


def _statement(recipe: Recipe, found: Mapping[str, Any]) -> ErrorStatement:
    notes = [
        f"known by: {found['inputs']:,} of 2^32 inputs tried on an x86-64 processor; "
        f"the worst is x = {found['worst_input']}",
        f"method:  {', '.join(recipe.methods)} at {recipe.dial}",
    ]
    if recipe.floor:
        notes.insert(
            0,
            f"zeros:   where |{recipe.name}(x)| < {recipe.floor:g} the absolute error is below "
            f"{recipe.absolute(found):.3g}",
        )
    return ErrorStatement(
        "PROVEN" if found["inputs"] == 2**32 else "MEASURED",
        recipe.name,
        "every float32",
        f"{found['worst_ulp']:.6g} ulp",
        f"python scripts/float32.py {recipe.name}",
        (f"jax {found['jax']} with fused multiply-adds", "without"),
        tuple(notes),
    )


def measure(recipe: Recipe, text: str, every: int) -> dict[str, Any]:
    """Every input tried on the text, in a process for each kind of processor."""
    with ThreadPoolExecutor() as pool:
        found = pool.map(partial(_measured_apart, recipe, text, every), PROCESSORS.values())
        results = dict(zip(PROCESSORS, found, strict=True))
    worst = max(results.values(), key=lambda r: r["worst_ulp"])
    return {
        "worst_ulp": worst["worst_ulp"],
        "worst_input": worst["worst_input"],
        "inputs": worst["inputs"],
        "failures": max(r["failures"] for r in results.values()),
        "jax": jax.__version__,
        **results,
    }


def _measured_apart(recipe: Recipe, text: str, every: int, flags: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--measure", recipe.name, "--every", str(every)],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )
    if done.returncode:
        raise RuntimeError(f"{recipe.name} {flags}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def try_all(recipe: Recipe, text: str, every: int) -> dict[str, Any]:
    """Every input, or one in `every`, tried on the text as this process compiles it."""
    namespace: dict[str, Any] = {}
    exec(compile(text, recipe.name, "exec"), namespace)
    # An array with a large number in it goes another way than one without: both are tried.
    names = [n for n in (recipe.name, f"{recipe.name}_everywhere") if n in namespace]
    results = check(
        recipe.function,
        {name: partial(_values, jax.jit(namespace[name])) for name in names},
        tolerance=recipe.tolerance,
        least=recipe.floor,
        every=every,
        workers=os.cpu_count() or 1,
    )
    worst = max(results, key=lambda found: found.worst_ulp)
    return {
        "worst_ulp": worst.worst_ulp,
        "worst_input": repr(worst.worst_input),
        "inputs": worst.count,
        "failures": max(found.failures for found in results),
    }


def _values(compiled: Callable[[Any], Any], x: np.ndarray) -> np.ndarray:
    return np.asarray(compiled(x))


def write(recipe: Recipe, every: int) -> dict[str, Any]:
    """Make, measure and write one function; what was found."""
    found = measure(recipe, source(recipe, None), every)
    (PACKAGE / "generated" / f"{recipe.name}.py").write_text(source(recipe, found))
    path = PACKAGE / "errors.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known[recipe.name] = found
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RECIPES)}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--every", type=int, default=1, help="try one input in so many")
    options = parser.parse_args(arguments)
    if options.measure:
        found = try_all(RECIPES[options.measure], sys.stdin.read(), options.every)
        print(json.dumps(found))
        return 0
    unknown = set(options.names) - set(RECIPES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RECIPES)}")
    missed = 0
    for name in options.names or RECIPES:
        begun = time.perf_counter()
        recipe = RECIPES[name]
        found = write(recipe, options.every)
        late = found["failures"] > 0
        missed += late
        print(
            f"{name:8} {found['worst_ulp']:.4f} ulp at {found['worst_input']}"
            f"{f'  ABOVE {recipe.tolerance:g}' if late else ''}"
            f"  ({time.perf_counter() - begun:.0f} s)",
            flush=True,
        )
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
