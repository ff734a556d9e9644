"""Measuring one method at one dial: build once, apply compiled, count, judge, time.

Error and stand-in come from the clean program, work from the counted one; seconds are taken apart
from both (`stopwatch`), in the parent process, when nothing else runs.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.errors import NearlyError
from nearly.core.problem import Host, Problem, Tuned
from nearly.core.run import Dial, Trial
from nearly.core.tally import clean, tally

TUNING_SEED = 2**20  # tuning keys are drawn where no measured seed lies


@dataclass(frozen=True)
class _Static:
    """The part of (problem, stand-in) that selects a compiled program: all but its arrays."""

    structure: Any
    leaves: tuple[Any, ...]

    def join(self, arrays: Sequence[Any]) -> tuple[Problem, Any]:
        fresh = iter(arrays)
        leaves = [next(fresh) if leaf is _ARRAY else leaf for leaf in self.leaves]
        problem, standin = jax.tree.unflatten(self.structure, leaves)
        return problem, standin


class _Array:
    """Stands where an array was taken out."""

    def __repr__(self) -> str:
        return "array"


_ARRAY = _Array()


def _split(problem: Problem, standin: Any) -> tuple[_Static, list[Any]]:
    leaves, structure = jax.tree.flatten((problem, standin))
    arrays = [leaf for leaf in leaves if isinstance(leaf, (jax.Array, np.ndarray))]
    kept = (_ARRAY if isinstance(x, (jax.Array, np.ndarray)) else x for x in leaves)
    return _Static(structure, tuple(kept)), arrays


def _apply(static: _Static, arrays: Sequence[Any], key: Any) -> Any:
    problem, standin = static.join(arrays)
    return problem.apply(standin, key=key)


_jitted = jax.jit(_apply, static_argnums=0)
_compiled: dict[Any, Any] = {}


def clear_compiled() -> None:
    """Forget every compiled program: ours and JAX's."""
    _compiled.clear()
    jax.clear_caches()


@dataclass(frozen=True)
class Use:
    """A stand-in ready to be applied: `use()` runs it once and blocks until it is done."""

    call: Callable[[], Any]
    compile_seconds: float = math.nan
    bytes: float | None = None

    def __call__(self) -> Any:
        return jax.block_until_ready(self.call())


def prepare(problem: Problem, standin: Any, key: Any, *, counted: bool = False) -> Use:
    """Compile one use of a stand-in, or reuse the program that differs only in its arrays.

    The dial is an array of the stand-in wherever its protocol allows, so changing it, or
    repeating a run, compiles nothing. Unless it is `counted`, inside a tally, the oracles' marks
    are not even traced: what is timed is the bare program.
    """
    marks = nullcontext if counted else clean
    if on_host(standin):
        return Use(partial(_apply_on_host, problem, standin, key, marks))
    static, arrays = _split(problem, standin)
    shapes = tuple((a.shape, str(a.dtype), getattr(a, "weak_type", False)) for a in arrays)
    signature = (static, shapes, counted, jax.config.read("jax_enable_x64"))
    if signature not in _compiled:
        start = time.perf_counter()
        with marks():
            program = _jitted.lower(static, arrays, key).compile()
        _compiled[signature] = (program, time.perf_counter() - start, _bytes(program))
    program, seconds, size = _compiled[signature]
    return Use(lambda: program(arrays, key), seconds, size)


def _apply_on_host(problem: Problem, standin: Any, key: Any, marks: Any) -> Any:
    with marks():
        return problem.apply(standin, key=key)


def _bytes(program: Any) -> float | None:
    analysis = program.memory_analysis()
    if analysis is None:
        return None
    return float(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def on_host(standin: Any) -> bool:
    """Whether a stand-in holds a `Host`: then it is called, not compiled."""
    leaves = jax.tree.leaves(standin, is_leaf=lambda x: isinstance(x, Host))
    return any(isinstance(leaf, Host) for leaf in leaves)


def precision(problem: Problem) -> Any:
    """The context of a problem's whole life: x64 exactly when its dtype is float64."""
    return jax.enable_x64(problem.dtype == "float64")


def run_trial(problem: Problem, method: Any, dial: Dial, seed: int) -> tuple[Trial, Any]:
    """One method, one dial, one seed: the trial and the stand-in, never an exception.

    Whatever goes wrong inside the method is a result: a trial with a status and a reason.
    """
    with precision(problem):
        try:
            return _trial(problem, method, dial, seed)
        except FloatingPointError as error:
            return Trial(seed, "diverged", str(error)), None
        except Exception as error:
            return Trial(seed, "failed", reason_of(error)), None


def reason_of(error: BaseException) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    message = lines[0][:300] if lines else ""
    return message if isinstance(error, NearlyError) else f"{type(error).__name__}: {message}"


@lru_cache(64)  # making them is compiled, and forgotten between two methods
def keys(seed: int) -> tuple[Any, Any]:
    """The keys of build and apply: the same for every method of one seed."""
    build, apply = jax.random.split(jax.random.key(seed))
    return build, apply


def _trial(problem: Problem, method: Any, dial: Dial, seed: int) -> tuple[Trial, Any]:
    start = time.perf_counter()
    with tally() as setup:
        standin, note = make(problem, method, dial, seed)
    setup_seconds = time.perf_counter() - start + problem.spent(method, dial)
    _, key = keys(seed)
    use = prepare(problem, standin, key)
    value = to_host(use())
    errors = {n: float(e) for n, e in problem.errors(value).items()}
    with tally() as counts:
        prepare(problem, standin, key, counted=True)()
    work = {**_used(counts.read()), **problem.work(standin)}
    trial = Trial(
        seed,
        "ok",
        errors=errors,
        work=work,
        setup_seconds=setup_seconds,
        setup_work=_used(setup.read()),
        compile_seconds=use.compile_seconds,
        bytes=use.bytes,
        note=note,
    )
    first = next(iter(errors.values()))
    if not math.isfinite(first):
        reason = problem.trouble(value) or f"the error is {first}"
        trial = replace(trial, status="diverged", reason=reason)
    return trial, standin


def _used(counts: Mapping[str, float]) -> dict[str, float]:
    """The units that were used at all: a method that never called an oracle has no work on it."""
    return {unit: count for unit, count in counts.items() if count}


def make(problem: Problem, method: Any, dial: Dial, seed: int) -> tuple[Any, str]:
    """Build the stand-in, tuned first if the method asks for it.

    With a note on what tuning chose, and on what the method warned of.
    """
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if isinstance(method, Tuned):
            method, note = _tune(problem, method, dial)
            notes.append(note)
        standin = problem.build(method, dial, key=keys(seed)[0])
    notes += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return standin, "; ".join(dict.fromkeys(notes))


def _tune(problem: Problem, tuned: Tuned, dial: Dial) -> tuple[Any, str]:
    choices = [
        dict(zip(tuned.grid, values, strict=True))
        for values in itertools.product(*tuned.grid.values())
    ]
    methods = [tuned.factory(**choice) for choice in choices]
    errors = problem.trials(methods, dial, key=keys(TUNING_SEED)[1])
    if errors is None:
        errors = [_tuning_error(problem, method, dial) for method in methods]
    errors = [error if math.isfinite(error) else math.inf for error in errors]
    best = choices[int(np.argmin(errors))]
    if not math.isfinite(min(errors)):
        return tuned.factory(**best), "tuning found no setting that works"
    edges = [
        name
        for name, values in tuned.grid.items()
        if len(values) > 1 and best[name] in (values[0], values[-1])
    ]
    chosen = ", ".join(f"{n}={v}" for n, v in best.items())
    edge = f" (at the grid's edge: {', '.join(edges)})" if edges else ""
    return tuned.factory(**best), f"tuned {chosen}{edge}"


def _tuning_error(problem: Problem, method: Any, dial: Dial) -> float:
    """The error of one build and use, its work left to the set-up's tally; inf if it fails."""
    build_key, key = keys(TUNING_SEED)
    try:
        standin = problem.build(method, dial, key=build_key)
        value = prepare(problem, standin, key, counted=True)()
        error = float(next(iter(problem.errors(to_host(value)).values())))
    except Exception:
        return math.inf
    return error if math.isfinite(error) else math.inf


def to_host(value: Any) -> Any:
    """A value with its JAX arrays as NumPy arrays: what leaves the x64 context."""

    def leave(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return np.asarray(jax.random.key_data(leaf))
        return np.asarray(leaf)

    return jax.tree.map(leave, value)


def stopwatch(
    use: Callable[[], Any], *, budget: float = 0.5, least: int = 5, most: int = 100
) -> list[float]:
    """Seconds of repeated uses, after one that is not counted.

    Stops after `most` uses, or once `budget` seconds have passed and `least` uses were timed; a
    use that alone exceeds the budget is timed three times.
    """
    use()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < most:
        begin = time.perf_counter()
        use()
        now = time.perf_counter()
        samples.append(now - begin)
        enough = least if samples[0] < budget else 3
        if now - started > budget and len(samples) >= enough:
            break
    return samples


def rebuild(problem: Problem, method: Any, dial: Dial, seed: int) -> Any:
    """The stand-in of a trial that another process, or an earlier sweep, has run."""
    with precision(problem):
        return make(problem, method, dial, seed)[0]


def time_standin(problem: Problem, standin: Any, seed: int) -> Sequence[float]:
    """Samples of the seconds of one use; in the parent process only, nothing else running."""
    with precision(problem):
        use = prepare(problem, standin, keys(seed)[1])
        return problem.seconds(use, standin)
