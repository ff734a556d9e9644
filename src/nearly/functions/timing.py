"""Seconds per element of a program in its emitted form, and ratios of two.

A kernel of a few nanoseconds is timed inside one compiled loop over data that stay in the cache;
the same loop around a copy is timed too and subtracted. Only the parent process measures, one thing
at a time: what else runs on the machine widens the quartiles, not the claim.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from nearly.core.errors import InputError, UnknownName
from nearly.functions.compiler import FAST, shared_object
from nearly.functions.emit import emit
from nearly.functions.program import Builder, Program
from nearly.functions.statement import ErrorStatement

ELEMENTS = 1024  # of the longest type, in and out, 16 KiB: half of a small first-level cache
SAMPLES = 31
SAMPLE_SECONDS = 0.001  # within a scheduler's time slice: few samples are interrupted

_UNSTATED = ErrorStatement("MEASURED", "a kernel being timed", "-", "not stated", "-")

# The memory clobber keeps the compiler from running the passes as one.
_LOOP = """
void {name}_repeat(const {T} *x, {T} *y, size_t n, size_t repeats)
{{
    for (size_t i = 0; i < repeats; ++i) {{
        {name}_array(x, y, n);
        __asm__ volatile("" ::: "memory");
    }}
}}
"""


class Timing(NamedTuple):
    """Seconds per element: the median, the quartiles and all samples, loop overhead subtracted."""

    median: float
    quartiles: tuple[float, float]
    samples: tuple[float, ...]


class Ratio(NamedTuple):
    """How many times as long one takes as another: the median and its 95% interval."""

    median: float
    low: float
    high: float
    samples: tuple[float, ...]


Repeat = Callable[[int], object]  # runs the kernel over all elements so many times


def seconds_per_element(program: Program, form: str, points: Any = None) -> Timing:
    """How long one element takes in the emitted form, in seconds.

    **Arguments:**

    - `program`: in a machine format; over the reals there is nothing to time.
    - `form`: `"c"` (gcc -O3 -march=native, the array function), `"jax"` or `"stablehlo"` (a jitted
      `fori_loop`) or `"numpy"` (one call over the block: dispatch and memory are part of what
      NumPy costs).
    - `points`: arguments from the domain; by default 1024 numbers from 0.5 to 1. Few programs
      depend on them: subnormal numbers are slow.

    **Raises:** `MissingDependency` without a C compiler, `InputError` for a real program.
    Cost: about 0.25 s in C (half of it gcc), 0.5 s in JAX.
    """
    kernel, copy = _prepared(program, form, points)
    repeats = _enough(kernel.repeat)
    samples, overheads = [], []
    for _ in range(SAMPLES):
        samples.append(_clock(kernel.repeat, repeats))
        overheads.append(_clock(copy.repeat, repeats))
    overhead = float(np.median(overheads))
    scale = 1 / (repeats * kernel.elements)
    # A kernel as cheap as the copy hides in its memory traffic: what is left may not be negative.
    net = np.maximum(np.array(samples) - overhead, 0.0) * scale
    return _timing(net)


def ratio(
    program: Program, other: Program, form: str, points: Any = None, pairs: int = 31
) -> Ratio:
    """How many times as long `program` takes as `other`, from alternating pairs.

    The interval is the one of order statistics that covers the median with 95% confidence,
    whatever the distribution. Loop overhead is left in both: it draws the ratio towards 1.
    Arguments and errors as in `seconds_per_element`; `pairs` of samples, six at least.
    """
    _check_pairs(pairs)
    first, second = _prepared(program, form, points)[0], _prepared(other, form, points)[0]
    own, others = _enough(first.repeat), _enough(second.repeat)
    samples = []
    for i in range(pairs):
        timed = [(first.repeat, own), (second.repeat, others)]
        order = timed if i % 2 == 0 else timed[::-1]
        seconds = [_clock(repeat, count) / count for repeat, count in order]
        a, b = seconds if i % 2 == 0 else seconds[::-1]
        samples.append(a / b)
    return _ratio(np.array(samples))


def _check_pairs(pairs: int) -> None:
    if pairs < 6:
        raise InputError(f"{pairs} pairs cannot give a 95% interval; use 6 or more")


def _timing(samples: np.ndarray) -> Timing:
    low, median, high = (float(q) for q in np.quantile(samples, (0.25, 0.5, 0.75)))
    return Timing(median, (low, high), tuple(map(float, samples)))


def _ratio(samples: np.ndarray) -> Ratio:
    ordered = np.sort(samples)
    outside = _ranks_outside(samples.size)
    low, high = ordered[outside], ordered[samples.size - 1 - outside]
    return Ratio(float(np.median(ordered)), float(low), float(high), tuple(map(float, samples)))


def _ranks_outside(count: int) -> int:
    """How many of the smallest samples lie below the 95% interval of the median."""
    below, tail = 0, 0.0
    while (tail := tail + math.comb(count, below) / 2**count) <= 0.025:
        below += 1
    return below - 1


class Comparison(NamedTuple):
    """Two functions timed in alternating pairs: each one's seconds, and the ratio of the pairs."""

    first: Timing
    second: Timing
    ratio: Ratio


def compare_jax(
    first: Callable[[Any], Any], second: Callable[[Any], Any], points: Any, pairs: int = 31
) -> Comparison:
    """How long one JAX function of float32 takes in terms of another, and both in seconds.

    **Arguments:**

    - `first`, `second`: elementwise functions of a float32 array, ours or anybody's.
    - `points`: arguments; repeated or cut to 1024 of them.
    - `pairs`: of samples, six at least.

    Each runs inside one compiled loop on data that stay in the cache. The loop around a copy is
    timed beside every pair, and its least time subtracted from all samples: unlike in `ratio`,
    what is compared are the functions, not the loops, and a busy machine does not subtract more. A
    function as cheap as the copy counts as a hundredth of it. The interval is that of `ratio`.

    **Raises:** `InputError` for fewer than six pairs. Cost: about 0.1 s and three compilations.
    """
    x = _singles(points)
    return _compared([_jax_kernel(f, x, wide=False) for f in (first, second, operator.neg)], pairs)


def compare_c(
    first: str, second: str, points: Any, flags: tuple[str, ...] = FAST, pairs: int = 31
) -> Comparison:
    """As `compare_jax`, for two C sources.

    - `first`, `second`: each defines `void kernel_array(const float *x, float *y, size_t n)`,
      as emitted code called `kernel` does; it is compiled with `flags`.

    Raises besides: `MissingDependency` without a compiler, `InputError` where it refuses.
    """
    x = _singles(points)
    copy = emit(_copy("float32"), "c", name="kernel", header=_UNSTATED)
    return _compared([_c_kernel(s, x, "float32", flags) for s in (first, second, copy)], pairs)


def _singles(points: Any) -> np.ndarray:
    return np.resize(np.ravel(points), ELEMENTS).astype(np.float32)


def _compared(kernels: Sequence[_Kernel], pairs: int) -> Comparison:
    """Two kernels, and a copy whose time is subtracted."""
    _check_pairs(pairs)
    counts = [_enough(kernel.repeat) for kernel in kernels]
    samples = np.empty((pairs, 3))
    for i in range(pairs):
        for k in (0, 1, 2) if i % 2 == 0 else (1, 0, 2):
            samples[i, k] = _clock(kernels[k].repeat, counts[k]) / (counts[k] * ELEMENTS)
    overhead = float(np.min(samples[:, 2]))
    net = np.maximum(samples[:, :2] - overhead, overhead / 100)
    return Comparison(_timing(net[:, 0]), _timing(net[:, 1]), _ratio(net[:, 0] / net[:, 1]))


class _Kernel(NamedTuple):
    repeat: Repeat
    elements: int


def _prepared(program: Program, form: str, points: Any) -> tuple[_Kernel, _Kernel]:
    """The kernel, and a copy of the same type: the overhead of the loop around it."""
    if program.format.is_real:
        raise InputError("a program over the real numbers takes no time; give it a --dtype")
    makers = {"c": _c, "jax": _jax, "stablehlo": _jax, "numpy": _numpy}
    if form not in makers:
        raise UnknownName("form to time", form, makers)
    given = np.linspace(0.5, 1.0, ELEMENTS) if points is None else np.ravel(points)
    x = np.resize(given, ELEMENTS).astype(program.format.dtype)
    return makers[form](program, x), makers[form](_copy(program.dtype), x)


@lru_cache(maxsize=8)
def _copy(dtype: str) -> Program:
    builder = Builder(dtype)
    return builder.program(-builder.x)


def _c(program: Program, x: np.ndarray) -> _Kernel:
    source = emit(program, "c", name="kernel", header=_UNSTATED)
    return _c_kernel(source, x, program.dtype, FAST)


def _c_kernel(source: str, x: np.ndarray, dtype: str, flags: tuple[str, ...]) -> _Kernel:
    import ctypes

    from nearly.functions.emit_c import storage_type

    loop = _LOOP.format(name="kernel", T=storage_type(dtype))
    symbol = shared_object(source + loop, flags)["kernel_repeat"]
    symbol.restype = None
    symbol.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    y = np.empty_like(x)

    def repeat(count: int) -> None:
        # x and y are named here, so they live as long as their addresses are used.
        symbol(x.ctypes.data, y.ctypes.data, x.size, count)

    return _Kernel(repeat, x.size)


def _jax(program: Program, x: np.ndarray) -> _Kernel:
    from nearly.functions.emit_jax import to_jax

    return _jax_kernel(to_jax(program), x, wide=program.dtype == "float64")


def _jax_kernel(function: Callable[[Any], Any], x: np.ndarray, *, wide: bool) -> _Kernel:
    import jax
    import jax.numpy as jnp

    def body(_: Any, carried: tuple[Any, Any]) -> tuple[Any, Any]:
        point, never = carried
        value = function(point)
        # The next argument depends on this value, so no pass can be left out or moved. One
        # application a pass: of several, XLA would fuse some kernels into one chain, whose latency
        # counted, and others not.
        return jnp.where(value == never, value, point), never

    @jax.jit
    def loop(count: Any, point: Any, never: Any) -> Any:
        return jax.lax.fori_loop(0, count, body, (point, never))

    never = x.dtype.type(jnp.finfo(x.dtype).max)

    def repeat(count: int) -> None:
        with jax.enable_x64(wide):
            jax.block_until_ready(loop(np.int32(count), x, never))

    return _Kernel(repeat, x.size)


def _numpy(program: Program, x: np.ndarray) -> _Kernel:
    namespace: dict[str, Any] = {}
    exec(emit(program, "numpy", name="kernel", header=_UNSTATED), namespace)
    kernel = namespace["kernel"]

    def repeat(count: int) -> None:
        for _ in range(count):
            kernel(x)

    return _Kernel(repeat, x.size)


def _enough(repeat: Repeat) -> int:
    """How many passes fill a sample; the first one compiles and warms the cache."""
    repeat(1)
    count = 1
    while True:
        seconds = min(_clock(repeat, count) for _ in range(3))  # one may have been interrupted
        if seconds >= SAMPLE_SECONDS / 4:
            return max(1, round(count * SAMPLE_SECONDS / seconds))
        count *= 4


def _clock(repeat: Repeat, count: int) -> float:
    start = time.perf_counter()
    repeat(count)
    return time.perf_counter() - start
