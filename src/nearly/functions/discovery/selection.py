"""Who breeds and who stays: quality-diversity over cost, and the paper's NSGA-II.

Both are settings with a compiled rule to propose a child and one to admit it; `trial.py` fits what
lies between. Their state is arrays, so that a round of a search can be sent anywhere and saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol, no_type_check, runtime_checkable

import numba
import numpy as np

from nearly.core.errors import InputError
from nearly.functions.discovery.archive import (
    Pools,
    bar_of,
    copy_place,
    cost_of,
    insert,
    known,
    memory,
    pools,
    remember,
    write,
)
from nearly.functions.discovery.canonical import digest
from nearly.functions.discovery.mutation import Graph, child, graph, start, start_all
from nearly.functions.discovery.random_numbers import below, uniform

NOTHING, NEW, AGAIN, COPY = range(4)  # what is proposed: a structure, new constants, a copy
DUPLICATES = 16  # mutations until a child that does not differ from its parent is given up
COUNTS = ("children", "duplicates", "too dear", "fits", "refits", "kept")

CROWDED, SORTED = range(2)  # the rules


class State(NamedTuple):
    """All that a search carries from one child to the next."""

    archive: Pools
    population: Pools  # of NSGA-II: parents first, then children; all in pool 0
    memory: np.ndarray  # uint64: structures that were fitted
    counts: np.ndarray  # int64, by `COUNTS`
    turn: np.ndarray  # int64 (1,): children since the search began
    work: Graph


class Rule(NamedTuple):
    """A selection as compiled code takes it."""

    kind: int
    objective: int
    parents: int
    children: int
    copy: float
    again: float
    elite: float
    tries: int


class Proposal(NamedTuple):
    """A child to be fitted, and the error that it has to beat."""

    kind: int
    cost: int
    operations: np.ndarray
    left: np.ndarray
    right: np.ndarray
    constants: np.ndarray
    digest: int
    bar: float


@runtime_checkable
class Selection(Protocol):
    """Settings from which a search's empty state and its compiled rule are made."""

    def state(self, costs: int, instructions: int) -> State: ...

    def rule(self, objective: int) -> Rule: ...


@dataclass(frozen=True)
class QualityDiversity:
    """A pool for each cost; all pools breed.

    **Arguments:**

    - `places`: programs per cost.
    - `again`: the share of children that are a program of the archive with other constants: all
      drawn anew, or each moved by some powers of 2 with probability 0.4 and one often drawn anew
      (the paper's anchored constants; a fit has local optima, and most structures are in one).
    - `elite`: parents are drawn at rank u^elite of their pool, u uniform.
    - `tries`: how often a structure is fitted afresh, from different parents.
    """

    places: int = 40
    again: float = 0.05
    elite: float = 2.0
    tries: int = 2

    def __post_init__(self) -> None:
        if self.places < 2 or not 0 <= self.again < 1 or self.elite <= 0 or not 1 <= self.tries < 4:
            raise InputError(
                "places must be 2 or more, again in [0, 1), elite above 0, tries 1, 2 or 3"
            )

    def state(self, costs: int, instructions: int) -> State:
        return _state(costs, self.places, instructions, 1)

    def rule(self, objective: int) -> Rule:
        return Rule(CROWDED, objective, 1, 1, 0.0, self.again, self.elite, self.tries)


@dataclass(frozen=True)
class NonDominatedSorting:
    """NSGA-II as the paper runs it: (cost, error), crowding distance, no elitism.

    **Arguments:**

    - `parents`, `children`: of a generation, 5 and 10 in the paper. Parents take turns.
    - `copy`: the probability that a child is its parent unchanged, which is what keeps a front
      alive without elitism.

    The archive beside it only records the best of all generations; nothing is bred from it. Every
    child is fitted, known or not, as in the paper.
    """

    parents: int = 5
    children: int = 10
    copy: float = 0.5

    def __post_init__(self) -> None:
        if not (1 <= self.parents <= self.children and 0 <= self.copy < 1):
            raise InputError("parents must lie between 1 and children, copy in [0, 1)")

    def state(self, costs: int, instructions: int) -> State:
        made = _state(costs, 2, instructions, self.parents + self.children)
        made.population.error[0, : self.parents] = np.finfo(float).max
        return made

    def rule(self, objective: int) -> Rule:
        return Rule(SORTED, objective, self.parents, self.children, self.copy, 0.0, 1.0, 1)


def _state(costs: int, places: int, instructions: int, population: int) -> State:
    return State(
        pools(costs, places, instructions),
        pools(1, population, instructions),
        memory(),
        np.zeros(len(COUNTS), dtype=np.int64),
        np.zeros(1, dtype=np.int64),
        graph(),
    )


@numba.njit(cache=True, nogil=True)
@no_type_check
def propose(state, rule, rates, stream):
    """The next child, to be fitted; NOTHING where it is known or too dear."""
    state.counts[0] += 1
    if rule.kind == SORTED:
        place = state.turn[0] % rule.children % rule.parents
        if uniform(stream) < rule.copy and state.population.length[0, place] > 0:
            found = _member(state.population, 0, place, COPY, np.inf)
            price = cost_of(found.operations, found.left, found.right, rule.objective)
            return _priced(found, price)
        return _bred(state, rule, state.population, 0, place, rates, stream)
    cost = below(stream, state.archive.error.shape[0])
    filled = _filled(state.archive, cost)
    if filled == 0:
        return _nothing(state)
    place = np.int64(uniform(stream) ** rule.elite * filled)
    if uniform(stream) < rule.again and cost > 0:
        found = _member(state.archive, cost, place, AGAIN, state.archive.error[cost, place])
        _move(found.constants, rates, stream)
        return found
    return _bred(state, rule, state.archive, cost, place, rates, stream)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _filled(pool, cost):
    count = 0
    while count < pool.error.shape[1] and pool.error[cost, count] < np.inf:
        count += 1
    return count


@numba.njit(cache=True, nogil=True)
@no_type_check
def _nothing(state):
    return _member(state.archive, 0, 0, NOTHING, 0.0)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _member(pool, cost, place, kind, bar):
    n, m = pool.length[cost, place], pool.constants[cost, place]
    return Proposal(
        kind,
        cost,
        pool.operations[cost, place, :n].copy(),
        pool.left[cost, place, :n].copy(),
        pool.right[cost, place, :n].copy(),
        pool.high[cost, place, :m].copy(),
        pool.digest[cost, place],
        bar,
    )


@numba.njit(cache=True, nogil=True)
@no_type_check
def _priced(found, cost):
    return Proposal(
        found.kind,
        cost,
        found.operations,
        found.left,
        found.right,
        found.constants,
        found.digest,
        found.bar,
    )


@numba.njit(cache=True, nogil=True)
@no_type_check
def _move(constants, rates, stream):
    """Move the constants of a program, or draw them anew, to fit them again from elsewhere."""
    if uniform(stream) < 0.25:
        start_all(constants, rates, stream)
        return
    for k in range(constants.size):
        if uniform(stream) < 0.4:
            bell = uniform(stream) + uniform(stream) + uniform(stream) - 1.5
            constants[k] *= 2.0 ** (3.0 * bell)
    if constants.size and uniform(stream) < 0.3:
        constants[below(stream, constants.size)] = start(rates, stream)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _bred(state, rule, pool, cost, place, rates, stream):
    """A mutated program; mutated on until it differs from its parent."""
    parent = pool.digest[cost, place]
    n, m = pool.length[cost, place], pool.constants[cost, place]
    made = (
        pool.operations[cost, place, :n],
        pool.left[cost, place, :n],
        pool.right[cost, place, :n],
        pool.high[cost, place, :m],
    )
    word = parent
    for _ in range(DUPLICATES):
        made = child(state.work, made[0], made[1], made[2], made[3], rates, stream)
        word = digest(made[0], made[1], made[2])
        if word != parent or made[0].size > pool.operations.shape[2]:
            break
    count, room = made[0].size, pool.operations.shape[2]
    if count == 0 or count > room:
        state.counts[2] += count > 0
        return _nothing(state)
    price = cost_of(made[0], made[1], made[2], rule.objective)
    if price >= state.archive.error.shape[0]:
        state.counts[2] += 1
        return _nothing(state)
    bar = np.inf
    if rule.kind == CROWDED:
        if word == parent or remember(state.memory, word, rule.tries):
            state.counts[1] += 1
            return _nothing(state)
        bar = bar_of(state.archive, price)
    return Proposal(NEW, price, made[0], made[1], made[2], made[3], word, bar)


@numba.njit(cache=True, nogil=True)
@no_type_check
def admit(state, rule, proposal, error, high, low):
    """Let a fitted child in where the rule has a place for it."""
    if proposal.kind != NOTHING:
        state.counts[3] += proposal.kind == NEW
        state.counts[4] += proposal.kind == AGAIN
        better = error < bar_of(state.archive, proposal.cost)
        if better and not known(state.archive, proposal.cost, error):
            state.counts[5] += _insert(state.archive, proposal, error, high, low)
    if rule.kind == SORTED:
        _reproduce(state, rule, proposal, error, high, low)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _insert(pool, proposal, error, high, low):
    return insert(
        pool,
        proposal.cost,
        proposal.operations,
        proposal.left,
        proposal.right,
        high,
        low,
        error,
        proposal.digest,
    )


# ---------------------------------------------------------------------------------------- NSGA-II


@numba.njit(cache=True, nogil=True)
@no_type_check
def _reproduce(state, rule, proposal, error, high, low):
    """Put a child beside its generation; after the last one, its best are the next parents."""
    population, born = state.population, state.turn[0] % rule.children
    place = rule.parents + born
    if proposal.kind == NOTHING:  # x, a constant, or too dear: the child is its parent
        copy_place(population, 0, born % rule.parents, 0, place)
    else:
        operations, left, right = proposal.operations, proposal.left, proposal.right
        write(population, 0, place, operations, left, right, high, low)
        population.error[0, place] = error
        population.digest[0, place] = proposal.digest
    state.turn[0] += 1
    if born == rule.children - 1:
        _survive(population, rule)


@numba.njit(cache=True, nogil=True)
@no_type_check
def _survive(population, rule):
    """The children that make the next parents: by front, then by how alone they are in it."""
    count = rule.children
    costs, errors = np.empty(count), population.error[0, rule.parents :].copy()
    for i in range(count):
        place = rule.parents + i
        n = population.length[0, place]
        costs[i] = cost_of(
            population.operations[0, place, :n],
            population.left[0, place, :n],
            population.right[0, place, :n],
            rule.objective,
        )
    front = fronts(costs, errors)
    lonely = crowding(costs, errors, front)
    taken = np.zeros(count, dtype=np.bool_)
    for parent in range(rule.parents):
        best = -1
        for i in range(count):
            if taken[i]:
                continue
            if (
                best < 0
                or front[i] < front[best]
                or (front[i] == front[best] and lonely[i] > lonely[best])
            ):
                best = i
        taken[best] = True
        copy_place(population, 0, rule.parents + best, 0, parent)


@numba.njit(cache=True, nogil=True)
@no_type_check
def fronts(costs, errors):
    """0 for those that no other one is better than in both, 1 for those after them, …"""
    count = costs.size
    front = np.full(count, -1)
    level, left = 0, count
    while left:
        for i in range(count):
            if front[i] >= 0:
                continue
            dominated = False
            for j in range(count):
                if j == i or 0 <= front[j] < level:
                    continue
                no_worse = costs[j] <= costs[i] and errors[j] <= errors[i]
                if no_worse and (costs[j] < costs[i] or errors[j] < errors[i]):
                    dominated = True
            if not dominated:
                front[i] = level
                left -= 1
        level += 1
    return front


@numba.njit(cache=True, nogil=True)
@no_type_check
def crowding(costs, errors, front):
    """Half the circumference of the box between the neighbours in a front; infinite at its ends."""
    count = costs.size
    lonely = np.zeros(count)
    heights = np.log10(np.maximum(np.minimum(errors, 1e300), 1e-300))
    for axis in range(2):
        values = costs if axis == 0 else heights
        for i in range(count):
            below_, above = -np.inf, np.inf
            for j in range(count):
                if j == i or front[j] != front[i]:
                    continue
                if values[j] < values[i] or (values[j] == values[i] and j < i):
                    below_ = max(below_, values[j])
                else:
                    above = min(above, values[j])
            lonely[i] += above - below_
    return lonely
