"""`evolve`: programs for a function bred from the empty program (`autonumerics-zero`).

How it differs from the paper, each difference a setting (`Mutation`, `Selection`, `fitter`):

- constants by damped Gauss-Newton in float64 and double-double instead of CMA-ES: microseconds
  instead of seconds, and errors down to 1e-28; from a few starts, because fits have local optima;
- an archive per cost instead of a population of five: what is mediocre now may be the parent of
  what is best;
- canonical forms: a structure is fitted a few times at most, however often it is bred;
- what is returned is polished in extended precision and proven by ball arithmetic.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearly.core.errors import InputError
from nearly.core.executors import connect
from nearly.core.progress import Progress, silent
from nearly.functions.discovery.certificate import Found, best_of, candidates, costs_of
from nearly.functions.discovery.islands import (
    Progressed,
    Search,
    began,
    best_errors,
    resumed,
    rounds,
    save,
    until,
)
from nearly.functions.discovery.selection import COUNTS


@dataclass(frozen=True)
class Discovery:
    """What a search found.

    **Arguments:**

    - `search`: its settings. `rounds`: how many it took; both together give the same result again.
    - `candidates`: all programs that were polished and proven, a few of each cost.
    - `frontier`: those of them that are best, cheap to dear, each better than all before it.
    - `counts`: children bred, fits and so on, over all islands and rounds (`COUNTS`).
    - `seconds`: of this call's rounds, without proofs.
    - `state`: all islands, to go on from.
    """

    search: Search
    rounds: int
    candidates: tuple[Found, ...]
    frontier: tuple[Found, ...]
    counts: dict[str, int]
    seconds: float
    state: Progressed


def evolve(
    search: Search,
    *,
    most_rounds: int | None = None,
    minutes: float | None = None,
    workers: int = 0,
    executor: Any = None,
    state: Path | None = None,
    progress: Progress = silent,
) -> Discovery:
    """Breed programs for a function, from the empty program.

    **Arguments:**

    - `search`: the function and all settings.
    - `most_rounds`: after which the search ends. `minutes`: it ends after the round in which they
      have passed. One of the two is needed; with the number of rounds that a search of some minutes
      took, it can be repeated to the bit.
    - `workers`, `executor`: where islands run: processes of this machine, a Dask scheduler's
      address, anything with `.submit`; by default here, one after the other.
    - `state`: a file that is written after each round, and taken up where it exists.
    - `progress`: told after each round how far it is and what the frontier is.

    **Returns:** a `Discovery`. **Raises:** `InputError` without an end, or where the file holds
    another search; `KeyboardInterrupt` leaves the file at the last whole round.

    Cost: about 30,000 children a second and core, of which a third have a structure that is new and
    fitted; memory 3 MB an island; half a minute of compiling on the first use. Rounds of one island
    are never parallel: more workers than islands idle.

    Paper: `autonumerics-zero`.
    """
    if most_rounds is None and minutes is None:
        raise InputError("a search needs an end: give most_rounds or minutes")
    start = resumed(state, search) if state else began(search)
    progress(start.rounds, most_rounds or start.rounds, "starting (compiled on first use)")
    current, begun = start, time.perf_counter()
    with connect(workers, executor) as submitter:
        for current in until(rounds(search, start, submitter), start, most_rounds, minutes):
            if state:
                save(state, search, current)
            progress(current.rounds, most_rounds or current.rounds, described(current))
    seconds = time.perf_counter() - begun
    archives = [island.archive for island in current.states]
    found = candidates(search.function, archives, search.most, progress)
    front = best_of(found, lambda program: costs_of(program)[search.objective])
    totals = np.sum([island.counts for island in current.states], axis=0).tolist()
    counts: dict[str, int] = dict(zip(COUNTS, totals, strict=True))
    return Discovery(search, current.rounds, found, front, counts, seconds, current)


def described(current: Progressed) -> str:
    """The errors so far, by cost, on one line."""
    errors = best_errors(current.states)
    return " ".join(f"{cost}:{error:.0e}" for cost, error in errors.items() if error < math.inf)
