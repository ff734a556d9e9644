"""The archive of a search: for each cost the best programs of different errors, in flat arrays.

Quality-diversity over the cost: a program competes with programs of its own cost only, and a pool
keeps one program for each value of the error, so that the many ways to write one function, or to
write it with an idle operation, do not crowd out what differs.
"""

from __future__ import annotations

from typing import NamedTuple, no_type_check

import numba
import numpy as np

from nearly.functions.discovery.mutation import DIV

OPERATIONS, WEIGHTED, DEPTH = range(3)
OBJECTIVES = ("operations", "weighted", "depth")
DIVISION = 6  # additions, as `Program.cost.weighted` has it
ALIKE = 3e-3  # errors that differ by less, relatively, are of one function
TABLE = 1 << 16  # structures remembered at least before the memory is wiped


class Pools(NamedTuple):
    """Programs by cost, best first: C costs, P places, up to L instructions and L + 1 constants.

    A place that is free has an infinite error. The empty program x stands at cost 0.
    """

    operations: np.ndarray  # int8 (C, P, L)
    left: np.ndarray  # int16 (C, P, L)
    right: np.ndarray  # int16 (C, P, L)
    high: np.ndarray  # float64 (C, P, L + 1): the constants
    low: np.ndarray  # float64 (C, P, L + 1): what is to be added to them
    length: np.ndarray  # int64 (C, P): instructions
    constants: np.ndarray  # int64 (C, P)
    error: np.ndarray  # float64 (C, P)
    digest: np.ndarray  # uint64 (C, P)


def pools(costs: int, places: int, instructions: int) -> Pools:
    """Empty pools for costs 0 … `costs` - 1, but for the program x."""
    shape = (costs, places)
    made = Pools(
        np.zeros((*shape, instructions), dtype=np.int8),
        np.zeros((*shape, instructions), dtype=np.int16),
        np.zeros((*shape, instructions), dtype=np.int16),
        np.zeros((*shape, instructions + 1)),
        np.zeros((*shape, instructions + 1)),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape, dtype=np.int64),
        np.full(shape, np.inf),
        np.zeros(shape, dtype=np.uint64),
    )
    made.error[0, 0] = np.finfo(float).max  # x itself: any program is better
    return made


def memory() -> np.ndarray:
    """A table of the structures that were fitted, none yet."""
    return np.zeros(4 * TABLE, dtype=np.uint64)


@numba.njit(cache=True, nogil=True)
@no_type_check
def cost_of(operations, left, right, objective):
    """What a program costs: operations, weighted operations or depth."""
    count = operations.size
    if objective == OPERATIONS:
        return count
    if objective == WEIGHTED:
        total = 0
        for i in range(count):
            total += DIVISION if operations[i] == DIV else 1
        return total
    depths = np.zeros(count, dtype=np.int64)
    deepest = 0
    for i in range(count):
        a = depths[left[i]] if left[i] >= 0 else 0
        b = depths[right[i]] if right[i] >= 0 else 0
        depths[i] = 1 + max(a, b)
        deepest = max(deepest, depths[i])
    return deepest


@numba.njit(cache=True, nogil=True)
@no_type_check
def remember(table, digest, most):
    """Count a structure; whether it was met `most` times before.

    The top two bits of a word count. A table that is half full is wiped: forgetting costs a few
    fits that were made before, while a growing table would cost every round its transfer.
    """
    mask = np.uint64(table.size - 1)
    key = digest >> np.uint64(2)
    place = digest & mask
    for _ in range(64):
        word = table[place]
        if word == 0:
            table[place] = key | (np.uint64(1) << np.uint64(62))
            return False
        if (word & ((np.uint64(1) << np.uint64(62)) - np.uint64(1))) == key:
            met = word >> np.uint64(62)
            if met >= most:
                return True
            table[place] = word + (np.uint64(1) << np.uint64(62))
            return False
        place = (place + np.uint64(1)) & mask
    table[:] = 0
    return False


@numba.njit(cache=True, nogil=True)
@no_type_check
def bar_of(pools, cost):
    """The error that a program has to beat to be kept at a cost."""
    return pools.error[cost, -1]


@numba.njit(cache=True, nogil=True)
@no_type_check
def known(pools, cost, error):
    """Whether a program as cheap has this error: the same function, most likely."""
    for c in range(cost + 1):
        for p in range(pools.error.shape[1]):
            other = pools.error[c, p]
            if not other < np.inf:
                break
            if abs(other - error) <= ALIKE * error:
                return True
    return False


@numba.njit(cache=True, nogil=True)
@no_type_check
def insert(pools, cost, operations, left, right, high, low, error, digest):
    """Keep a program where it belongs in its pool; the caller has compared it with `bar_of`.

    A dearer program of the same error is dropped; one of the same structure is replaced.
    """
    places = pools.error.shape[1]
    at = places - 1
    for p in range(places):
        if pools.digest[cost, p] == digest and pools.error[cost, p] < np.inf:
            if pools.error[cost, p] <= error:
                return False
            at = p
    while at > 0 and pools.error[cost, at - 1] > error:
        copy_place(pools, cost, at - 1, cost, at)
        at -= 1
    write(pools, cost, at, operations, left, right, high, low)
    pools.error[cost, at] = error
    pools.digest[cost, at] = digest
    return True


@numba.njit(cache=True, nogil=True)
@no_type_check
def write(pools, cost, place, operations, left, right, high, low):
    """Write a program into a place, but for its error and digest."""
    count, constants = operations.size, high.size
    pools.operations[cost, place, :count] = operations
    pools.left[cost, place, :count] = left
    pools.right[cost, place, :count] = right
    pools.high[cost, place, :constants] = high
    pools.low[cost, place, :constants] = low
    pools.length[cost, place] = count
    pools.constants[cost, place] = constants


@numba.njit(cache=True, nogil=True)
@no_type_check
def copy_place(pools, cost, place, to_cost, to_place):
    """Write a program over another one."""
    pools.operations[to_cost, to_place] = pools.operations[cost, place]
    pools.left[to_cost, to_place] = pools.left[cost, place]
    pools.right[to_cost, to_place] = pools.right[cost, place]
    pools.high[to_cost, to_place] = pools.high[cost, place]
    pools.low[to_cost, to_place] = pools.low[cost, place]
    pools.length[to_cost, to_place] = pools.length[cost, place]
    pools.constants[to_cost, to_place] = pools.constants[cost, place]
    pools.error[to_cost, to_place] = pools.error[cost, place]
    pools.digest[to_cost, to_place] = pools.digest[cost, place]


@numba.njit(cache=True, nogil=True)
@no_type_check
def migrate(pools, guests, count):
    """Take in the best `count` programs of each cost of another island."""
    for cost in range(1, pools.error.shape[0]):
        for place in range(min(count, pools.error.shape[1])):
            error = guests.error[cost, place]
            if not error < bar_of(pools, cost) or known(pools, cost, error):
                continue
            n, m = guests.length[cost, place], guests.constants[cost, place]
            insert(
                pools,
                cost,
                guests.operations[cost, place, :n],
                guests.left[cost, place, :n],
                guests.right[cost, place, :n],
                guests.high[cost, place, :m],
                guests.low[cost, place, :m],
                error,
                guests.digest[cost, place],
            )
