"""From an archive to a frontier: constants polished to the optimum, and each bound proven."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from nearly.core.errors import InputError, NotProven
from nearly.core.progress import Progress, silent
from nearly.functions.discovery.archive import DIVISION, Pools
from nearly.functions.discovery.minimax import minimax
from nearly.functions.discovery.tape import Tape
from nearly.functions.function import Function
from nearly.functions.program import Program
from nearly.functions.proof import Proof, prove

TRIED = 3  # programs of each cost that are polished
HOPELESS = 1.0  # a larger relative error is none worth proving


@dataclass(frozen=True)
class Found:
    """A program of a search with its certificate.

    **Arguments:**

    - `program`: over the reals, with the best constants of its structure.
    - `bound`: on its error on the whole domain, proven by ball arithmetic.
    - `proof`: the certificate.
    - `levelled`: whether the constants are optimal, as far as a level error tells.
    """

    program: Program
    bound: float
    proof: Proof
    levelled: bool


def programs_at(archives: Sequence[Pools], cost: int) -> list[Program]:
    """The best programs of one cost on all islands, each structure once, best first."""
    ranked: dict[int, tuple[float, Pools, int]] = {}
    for pools in archives:
        for place in range(pools.error.shape[1]):
            error, digest = float(pools.error[cost, place]), int(pools.digest[cost, place])
            if error < math.inf and pools.length[cost, place]:
                known = ranked.get(digest)
                if known is None or error < known[0]:
                    ranked[digest] = (error, pools, place)
    best = sorted(ranked.values(), key=lambda entry: entry[0])
    return [program_of(pools, cost, place) for _, pools, place in best]


def program_of(pools: Pools, cost: int, place: int) -> Program:
    """The program in a place of an archive, its constants exactly as they are there."""
    n, m = int(pools.length[cost, place]), int(pools.constants[cost, place])
    high, low = pools.high[cost, place, :m], pools.low[cost, place, :m]
    tape = Tape(
        pools.operations[cost, place, :n].copy(),
        pools.left[cost, place, :n].copy(),
        pools.right[cost, place, :n].copy(),
        high.copy(),
    )
    exact = [Fraction(a) + Fraction(b) for a, b in zip(high.tolist(), low.tolist(), strict=True)]
    return tape.program(exact)


def certified(function: Function, program: Program) -> Found | None:
    """A program polished and proven; `None` where nothing can be proven of it (a pole, say).

    Cost: 10 ms to half a second.
    """
    polished, levelled = program, False
    try:
        fit = minimax(program, function)
        polished, levelled = fit.program, fit.levelled
    except InputError:  # no start without a pole: the proof below will say so
        pass
    for candidate in (polished, program):
        try:
            proof = prove(function, candidate)
        except NotProven:
            continue
        return Found(candidate, proof.total, proof, levelled and candidate is polished)
    return None


def candidates(
    function: Function,
    archives: Sequence[Pools],
    most: int,
    progress: Progress = silent,
    tried: int = TRIED,
) -> tuple[Found, ...]:
    """The best programs of each cost that could be proven, cheap to dear.

    **Arguments:**

    - `archives`: of the islands, all of the same shape.
    - `most`: the dearest cost that is looked at.
    - `tried`: how many programs of each cost are polished and proven.
    """
    kept: list[Found] = []
    for cost in range(1, most + 1):
        progress(cost, most, "proving")
        tries = (certified(function, p) for p in programs_at(archives, cost)[:tried])
        found = [f for f in tries if f is not None]
        kept += [f for f in found if function.error == "absolute" or f.bound < HOPELESS]
    return tuple(kept)


def best_of(found: Sequence[Found], cost: Callable[[Program], float]) -> tuple[Found, ...]:
    """Those that no other one beats in cost and bound; cheap to dear."""
    kept: list[Found] = []
    for each in sorted(found, key=lambda f: (cost(f.program), f.bound)):
        if not kept or each.bound < kept[-1].bound:
            kept.append(each)
    return tuple(kept)


def costs_of(program: Program) -> dict[str, int]:
    """What a program costs under each objective of the search."""
    names = [name for name, *_ in program.instructions]
    weighted = sum(DIVISION if name == "div" else 1 for name in names)
    return {"operations": len(names), "weighted": weighted, "depth": program.cost.depth}
