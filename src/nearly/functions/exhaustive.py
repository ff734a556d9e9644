"""Every input of a narrow format tried: no sample, no model of the compiler, no luck."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import no_type_check

import numba
import numpy as np
from numba.extending import intrinsic

from nearly.core.errors import InputError, NotProven
from nearly.functions.candidates import FLAGS, Values, candidates, scalar_function
from nearly.functions.formats import Format
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.reference import (
    Reference,
    error_in_ulps,
    numbers,
    reference,
    widened,
)

__all__ = ["FLAGS", "Exhaustive", "check", "check_library", "exhaustive"]

Progress = Callable[[int, int], None]

CHUNK = 1 << 20
BLOCK = 2048
KEPT = 8  # worst inputs kept per chunk, to be computed again in ball arithmetic


@dataclass(frozen=True)
class Exhaustive:
    """What trying every input found.

    **Arguments:**

    - `worst_ulp`: the largest error in ULP, exact to its last digit: the worst inputs are computed
      again in ball arithmetic. Infinite where a NaN, an infinity or a finite number is wrong.
    - `worst_input`: an input at which it occurs.
    - `count`: how many inputs were tried.
    - `total`: how many inputs the domain has.
    - `failures`: how many of those tried are off by more than the tolerance.
    - `seconds`: wall time, all flag sets tried together.
    - `flags`: the flag set or mode under which this was found.
    """

    worst_ulp: float
    worst_input: float
    count: int
    total: int
    failures: int
    seconds: float
    flags: str

    @property
    def complete(self) -> bool:
        """Whether every input of the domain was tried."""
        return self.count == self.total


def exhaustive(
    function: Function,
    program: Program,
    form: str = "c",
    flags: Sequence[str] | None = None,
    *,
    tolerance: float = 1.0,
    every: int = 1,
    workers: int = 2,
    progress: Progress | None = None,
    patience: float = math.inf,
) -> tuple[Exhaustive, ...]:
    """Try every number of the function's domain.

    **Arguments:**

    - `function`: in float32, bfloat16 or float16.
    - `program`: in the same format.
    - `form`: `"c"` (the emitted source, compiled), `"numpy"` or `"jax"`.
    - `flags`: for C, flag sets as one string each (default: `FLAGS`); for JAX, of
      `("jit", "unfused", "eager")`, by default the first two. `"unfused"` is compiled without
      contraction: what `"eager"` gives, bit for bit, at a fraction of the time.
    - `tolerance`: in ULP: what counts as a failure.
    - `every`: try one chunk in `every`, of 2^20 / `every` numbers but at least 2^14; the result
      says how many were tried.
    - `workers`: threads.
    - `progress`: called with (inputs done, inputs in all) after each chunk.
    - `patience`: how many failures of a flag set to bear. With more the pass ends after the chunk,
      and the result is not `complete`.

    **Returns:** an `Exhaustive` per flag set, all from one pass. Special values count: where the
    truth is NaN only NaN is right, where it overflows only infinity.

    **Raises:** `MissingDependency` without a C compiler, `InputError` for a format with too many
    numbers, `NotProven` where no fast truth can be built. Ctrl-C stops between two chunks.

    Cost: about 2 ns per input of C, 5 of JAX, all flag sets together and the functions' own
    time included; 2^32 inputs take 15 to 60 s on two cores.
    Unlike the usual check against the C library's double function, the truth comes from ball
    arithmetic through a table checked against it, so no library's error has to be believed.
    """
    if program.dtype != function.dtype:
        raise InputError(
            f"the program computes in {program.dtype}, the function is asked for in "
            f"{function.dtype}: use program.in_format({function.dtype!r})"
        )
    tried = candidates(program, form, flags)
    return check(
        function,
        tried,
        tolerance=tolerance,
        every=every,
        workers=workers,
        progress=progress,
        patience=patience,
    )


def check_library(
    path: str | Path,
    symbol: str,
    function: Function,
    *,
    tolerance: float = 1.0,
    every: int = 1,
    workers: int = 2,
    progress: Progress | None = None,
) -> Exhaustive:
    """Try every input on `T symbol(T x)` of a user's shared library; T is float for float32.

    A 16-bit format goes in and comes out as `uint16_t`. Arguments, result and errors as for
    `exhaustive`; raises `InputError` where the library or the symbol cannot be loaded.
    """
    try:
        entry = getattr(ctypes.CDLL(str(Path(path).resolve())), symbol)
    except OSError as error:
        raise InputError(f"cannot load {path}: {error}") from None
    except AttributeError:
        raise InputError(f"{path} has no symbol {symbol!r}; is it static or mangled?") from None
    values = scalar_function(entry, function.format)
    (result,) = check(
        function,
        {f"{Path(path).name}:{symbol}": values},
        tolerance=tolerance,
        every=every,
        workers=workers,
        progress=progress,
    )
    return result


def check(
    function: Function,
    values: Mapping[str, Values],
    *,
    tolerance: float = 1.0,
    every: int = 1,
    workers: int = 2,
    progress: Progress | None = None,
    patience: float = math.inf,
    least: float = 0.0,
) -> tuple[Exhaustive, ...]:
    """Try every input on functions of NumPy arrays; see `exhaustive`.

    An ULP is not taken smaller than at `least`: near a zero of the function the error is absolute.
    """
    begun = time.perf_counter()
    emin = max(function.format.emin, math.frexp(least)[1] - 1) if least else function.format.emin
    truth = reference(function)
    # A part is tried in shorter chunks, so that it is spread over all binades.
    size = max(CHUNK // every, 1 << 14)
    chunks = [
        (start, min(start + size, stop))
        for first, stop in truth.ranges
        for start in range(first, stop, size)
    ][::every]
    done, failures = 0, np.zeros(len(values), np.int64)
    found: list[list[_Found]] = []
    # The largest error seen so far: what lies below it for certain need not be kept.
    floors = [np.zeros(1) for _ in values]
    work = partial(_try_chunk, truth, values, floors, tolerance, emin)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for chunk, result in zip(chunks, pool.map(work, chunks), strict=True):
                found.append(result)
                done += chunk[1] - chunk[0]
                failures += [f.failures for f in result]
                if progress is not None:
                    progress(done, sum(stop - start for start, stop in chunks))
                if max(failures, default=0) > patience:
                    pool.shutdown(cancel_futures=True)
                    break
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return tuple(
        _summary(function, [f[i] for f in found], flags, done, truth.count, tolerance, least, begun)
        for i, flags in enumerate(values)
    )


@dataclass(frozen=True)
class _Found:
    """In one chunk: the worst inputs with an upper bound on their error, and the failures."""

    worst: np.ndarray  # bit patterns
    worst_values: np.ndarray
    bounds: np.ndarray
    failures: int
    doubtful: np.ndarray  # bit patterns too near to the tolerance to decide in float64
    doubtful_values: np.ndarray


def _try_chunk(
    truth: Reference,
    values: Mapping[str, Values],
    floors: Sequence[np.ndarray],
    tolerance: float,
    emin: int,
    chunk: tuple[int, int],
) -> list[_Found]:
    start, stop = chunk
    unsigned = np.dtype(f"uint{truth.format.bits}")
    x = numbers(truth.format, np.arange(stop - start, dtype=unsigned) + unsigned.type(start))
    exact, doubt = np.empty(x.size), np.empty(x.size)
    truth.fill(_single(x), start, exact, doubt)
    return [
        _compare_chunk(truth.format, start, _single(f(x)), exact, doubt, tolerance, emin, floor)
        for f, floor in zip(values.values(), floors, strict=True)
    ]


def _single(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.ascontiguousarray(x.astype(np.float32, copy=False))


def _compare_chunk(
    format: Format,
    start: int,
    y: np.ndarray,
    exact: np.ndarray,
    doubt: np.ndarray,
    tolerance: float,
    emin: int,
    floor: np.ndarray,
) -> _Found:
    worst, bounds = np.full(KEPT, -1, np.int64), np.full(KEPT, floor[0])
    doubtful = np.empty(1 << 12, np.int64)
    failures, undecided, seen = _compare(
        y, exact, exact.view(np.int64), doubt, start, format.precision, emin, format.emax,
        float(format.largest), tolerance, worst, bounds, doubtful,
    )  # fmt: skip
    floor[0] = max(floor[0], seen)  # a lost update between threads only costs time
    if undecided > doubtful.size:
        raise NotProven(
            f"{undecided} inputs lie too near to {tolerance} ULP to be decided; "
            "use a slightly different tolerance"
        )
    kept = worst >= 0
    worst, bounds, doubtful = worst[kept], bounds[kept], doubtful[:undecided]
    return _Found(worst, y[worst - start], bounds, failures, doubtful, y[doubtful - start])


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
@no_type_check
def _suspects(y, exact, words, doubt, low, high, shift, threshold):
    """How many of a block may be off by more than the threshold (NaN counts)."""
    count = 0
    for j in range(y.size):
        field = (words[j] >> 52) & 0x7FF
        field = min(max(field, low), high)
        scale = _as_float((shift - field) << 52)
        bound = (abs(np.float64(y[j]) - exact[j]) + doubt[j]) * scale
        count += not bound <= threshold
    return count


@intrinsic
@no_type_check
def _as_float(typingctx, value):
    """The float64 with these bits."""
    signature = numba.types.float64(numba.types.int64)

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(numba.types.float64))

    return signature, generate


@numba.njit(cache=True, nogil=True)
@no_type_check
def _error(v, t, precision, emin, emax, largest, spacing):
    """|v - t| in ULP; a wrong NaN or infinity is infinitely wrong."""
    if np.isnan(t):
        return 0.0 if np.isnan(v) else np.inf
    if np.isnan(v):
        return np.inf
    top = 2.0 ** (emax - precision + 1)
    if np.isinf(v):
        if (v > 0) != (t > 0) or abs(t) <= largest:
            return np.inf
        # The number after the largest rounds to infinity, and so does what is half way to it.
        return max(0.0, (largest + top - abs(t)) / top) if abs(t) < largest + top / 2 else 0.0
    return abs(v - t) / spacing


@numba.njit(cache=True, nogil=True)
@no_type_check
def _compare(
    y, exact, words, doubt, start, precision, emin, emax, largest, tolerance, worst, bounds,
    doubtful,
):  # fmt: skip
    low, high = emin + 1023, emax + 1023
    shift = 2046 + precision - 1
    failures, undecided = 0, 0
    least = 0
    seen = 0.0
    for begin in range(0, y.size, BLOCK):
        end = min(begin + BLOCK, y.size)
        threshold = min(bounds[least], tolerance)
        if (
            _suspects(
                y[begin:end], exact[begin:end], words[begin:end], doubt[begin:end], low, high,
                shift, threshold,
            )
            == 0
        ):  # fmt: skip
            continue
        for j in range(begin, end):
            field = min(max((words[j] >> 52) & 0x7FF, low), high)
            scale = _as_float((shift - field) << 52)
            if (abs(np.float64(y[j]) - exact[j]) + doubt[j]) * scale <= threshold:
                continue
            spacing = 1.0 / scale
            error = _error(np.float64(y[j]), exact[j], precision, emin, emax, largest, spacing)
            slack = doubt[j] / spacing
            seen = max(seen, error - slack)
            if error - slack > tolerance:
                failures += 1
            elif error + slack > tolerance:
                if undecided < doubtful.size:
                    doubtful[undecided] = start + j
                undecided += 1
            if error + slack > bounds[least]:
                bounds[least] = error + slack
                worst[least] = start + j
                least = np.argmin(bounds)
    return failures, undecided, seen


def _summary(
    function: Function,
    found: Sequence[_Found],
    flags: str,
    count: int,
    total: int,
    tolerance: float,
    least: float,
    begun: float,
) -> Exhaustive:
    bounds = np.concatenate([f.bounds for f in found])
    inputs = widened(numbers(function.format, np.concatenate([f.worst for f in found])))
    values = np.concatenate([f.worst_values for f in found]).astype(np.float64)
    worst, where = 0.0, math.nan
    # Of equal errors that nearest to 0 is reported, whichever thread came first.
    for k in np.argsort(-bounds, kind="stable"):
        if bounds[k] < worst or math.isinf(worst):
            break
        x = float(inputs[k])
        error = error_in_ulps(function, x, float(values[k]), least)
        if error > worst or (error == worst and (abs(x), -x) < (abs(where), -where)):
            worst, where = error, x
    failures = sum(f.failures for f in found)
    for f in found:
        points = widened(numbers(function.format, f.doubtful))
        pairs = zip(points.tolist(), f.doubtful_values.tolist(), strict=True)
        failures += sum(error_in_ulps(function, x, y, least) > tolerance for x, y in pairs)
    seconds = time.perf_counter() - begun
    return Exhaustive(worst, where, count, total, failures, seconds, flags)
