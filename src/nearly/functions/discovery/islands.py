"""A search in rounds on islands: the same archive wherever its rounds run, and however often.

A round of an island is a pure function of the search's settings, the island's state, its number
and the round's. So a round that dies with its worker is run again, rounds run in any order on any
machine, and the islands exchange programs only between rounds, all at once. What is saved after
each round is all there is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nearly.core.errors import InputError, StoreError, UnknownName
from nearly.core.executors import ATTEMPTS, Submitter
from nearly.functions.discovery.archive import OBJECTIVES, migrate
from nearly.functions.discovery.covariance import run_covariance_round
from nearly.functions.discovery.kernels import Samples, target
from nearly.functions.discovery.mutation import LARGEST, Mutation
from nearly.functions.discovery.random_numbers import stream_of
from nearly.functions.discovery.selection import QualityDiversity, Selection, State
from nearly.functions.discovery.trial import Effort, run_round
from nearly.functions.function import Function

FITTERS = ("gauss-newton", "cma")
SPARE = 2  # costs above the dearest that is asked for: what is bred there may shrink
DEEPEST = 24  # operations where depth or weight is what counts
CALL = 25_000  # children of one compiled call: between calls a Ctrl-C is heard


@dataclass(frozen=True)
class Search:
    """All settings of a search: with the number of rounds they determine its archive, to the bit.

    **Arguments:**

    - `function`: over the reals, on a bounded domain, in the relative or absolute error.
    - `most`: the dearest program wanted, in units of `objective`: `"operations"`, `"weighted"`
      (a division counts six) or `"depth"`.
    - `seed`: of all randomness.
    - `islands`: archives that grow apart; every `migration` rounds each takes in the best
      `migrants` programs of each cost from the one before it.
    - `children`: bred on each island in a round.
    - `selection`, `mutation`, `effort`: who breeds, how children differ, what a fit may cost.
    - `fitter`: `"gauss-newton"`, or `"cma"`, the paper's own, four hundred times slower.
    """

    function: Function
    most: int = 10
    objective: str = "operations"
    seed: int = 0
    islands: int = 4
    migration: int = 8
    migrants: int = 2
    children: int = 25_000
    selection: Selection = field(default_factory=QualityDiversity)
    mutation: Mutation = field(default_factory=Mutation)
    effort: Effort = field(default_factory=Effort)
    fitter: str = "gauss-newton"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise UnknownName("objective", self.objective, OBJECTIVES)
        if self.fitter not in FITTERS:
            raise UnknownName("fitter", self.fitter, FITTERS)
        if not self.function.format.is_real:
            raise InputError(
                f"a search is over the reals, not {self.function.dtype}: ask for dtype='real' and "
                "round what it finds"
            )
        if not 1 <= self.most <= (LARGEST if self.objective != "weighted" else 6 * LARGEST):
            raise InputError(f"most={self.most} must lie between 1 and {LARGEST} operations")
        if min(self.islands, self.migration, self.children) < 1 or self.migrants < 0:
            raise InputError("islands, migration, children must be 1 or more, migrants 0 or more")

    @property
    def costs(self) -> int:
        return self.most + SPARE + 1

    @property
    def instructions(self) -> int:
        """How long a program may be."""
        return self.most + SPARE if self.objective == "operations" else DEEPEST

    @property
    def digest(self) -> str:
        """The settings as text, to tell one search's saved state from another's."""
        return json.dumps({**asdict(self), "kind": type(self.selection).__name__})


class Progressed(NamedTuple):
    """A search after some rounds."""

    rounds: int
    states: tuple[State, ...]


@lru_cache(maxsize=8)
def samples_of(function: Function) -> Samples:
    """What fits see of a function: 32 points, which is four for each constant of 8; 160 check."""
    return target(function, points=32, fine=160)


def run_island(search: Search, state: State, island: int, turn: int) -> State:
    """One round of one island; the state after it. What is sent to a worker."""
    rule = search.selection.rule(OBJECTIVES.index(search.objective))
    stream = stream_of(search.seed, island, turn)
    samples, rates = samples_of(search.function), search.mutation.rates
    state = copied(state)
    left = search.children
    while left:
        count = min(left, CALL)
        if search.fitter == "cma":
            run_covariance_round(state, rule, samples, rates, stream, count)
        else:
            run_round(state, rule, samples, rates, search.effort, stream, count)
        left -= count
    return state


def copied(state: State) -> State:
    """The same arrays elsewhere, so that a round leaves what it started from alone."""
    return rebuilt({name: array.copy() for name, array in arrays_of(state).items()}, state)


def arrays_of(state: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """A state as named arrays."""
    found: dict[str, np.ndarray] = {}
    for name, value in zip(state._fields, state, strict=True):
        if isinstance(value, np.ndarray):
            found[prefix + name] = value
        else:
            found |= arrays_of(value, f"{prefix}{name}.")
    return found


def rebuilt(arrays: Mapping[str, np.ndarray], like: Any, prefix: str = "") -> Any:
    """The state of named arrays, in the shape of another one."""
    values = (
        arrays[prefix + name]
        if isinstance(value, np.ndarray)
        else rebuilt(arrays, value, f"{prefix}{name}.")
        for name, value in zip(like._fields, like, strict=True)
    )
    return type(like)(*values)


def began(search: Search) -> Progressed:
    """The search before its first round."""
    empty = search.selection.state(search.costs, search.instructions)
    return Progressed(0, tuple(copied(empty) for _ in range(search.islands)))


def rounds(search: Search, so_far: Progressed, submitter: Submitter | None) -> Iterator[Progressed]:
    """Round after round, without end; `submitter` None runs them here."""
    turn, states = so_far
    while True:
        tasks = [(search, state, i, turn) for i, state in enumerate(states)]
        done = [run_island(*t) for t in tasks] if submitter is None else _sent(submitter, tasks)
        turn += 1
        if turn % search.migration == 0 and search.islands > 1:
            done = _migrated(done, search.migrants)
        states = tuple(done)
        yield Progressed(turn, states)


def _migrated(states: Sequence[State], migrants: int) -> list[State]:
    """Each island with the best of the one before it, as that was before anyone moved."""
    before = [copied(state) for state in states]
    for i, state in enumerate(states):
        migrate(state.archive, before[i - 1].archive, migrants)
    return list(states)


def _sent(submitter: Submitter, tasks: Sequence[tuple[Any, ...]]) -> list[State]:
    """Run tasks elsewhere; one whose worker dies is handed out again."""
    futures = [submitter.submit(run_island, *task) for task in tasks]
    done: list[State] = []
    for task, future in zip(tasks, futures, strict=True):
        for attempt in range(ATTEMPTS):
            try:
                done.append(future.result())
                break
            except Exception as error:
                if not _died(error) or attempt == ATTEMPTS - 1:
                    raise
                future = submitter.submit(run_island, *task)
    return done


def _died(error: Exception) -> bool:
    return isinstance(error, BrokenProcessPool) or type(error).__name__ == "KilledWorker"


def until(
    steps: Iterator[Progressed], start: Progressed, most: int | None, minutes: float | None
) -> Iterator[Progressed]:
    """The rounds up to a number of them, or until so many minutes have passed."""
    begun = time.monotonic()
    current = start
    while (most is None or current.rounds < most) and (
        minutes is None or current.rounds == start.rounds or time.monotonic() - begun < 60 * minutes
    ):
        current = next(steps)
        yield current


# ---------------------------------------------------------------------------------- saved searches


def save(path: Path, search: Search, so_far: Progressed) -> None:
    """Write a search's state: arrays alone, and by one renaming, so that a kill leaves a whole one.

    Raises `StoreError` where it cannot be written.
    """
    named = {
        f"{i}.{name}": array
        for i, state in enumerate(so_far.states)
        for name, array in arrays_of(state).items()
    }
    named["search"] = np.frombuffer(search.digest.encode(), dtype=np.uint8)
    named["rounds"] = np.array(so_far.rounds)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            np.savez(file, **named)  # pyright: ignore[reportArgumentType]
        part.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}") from error


def resumed(path: Path, search: Search) -> Progressed:
    """Read a saved search; the beginning where there is none.

    Raises `InputError` for the state of a search with other settings, `StoreError` for a file that
    is no state.
    """
    start = began(search)
    if not path.exists():
        return start
    try:
        with np.load(path, allow_pickle=False) as arrays:
            text = arrays["search"].tobytes().decode()
            if text != search.digest:
                raise InputError(
                    f"{path} holds a search with other settings; remove it, or give another folder"
                )
            states = [
                rebuilt(_Prefixed(arrays, f"{i}."), state) for i, state in enumerate(start.states)
            ]
            return Progressed(int(arrays["rounds"]), tuple(states))
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise StoreError(f"{path} is no saved search: {error}; remove it") from error


class _Prefixed(dict[str, np.ndarray]):
    """Some arrays of a file, under names without their prefix."""

    def __init__(self, arrays: Any, prefix: str) -> None:
        super().__init__(
            {n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)}
        )


def best_errors(states: Sequence[State]) -> dict[int, float]:
    """The smallest fitted error for each cost that any island has, where it beats cheaper ones."""
    found: dict[int, float] = {}
    least = math.inf
    lowest = np.min([state.archive.error[:, 0] for state in states], axis=0)
    for cost, error in enumerate(lowest.tolist()):
        if cost and error < least:
            found[cost] = least = error
    return found
