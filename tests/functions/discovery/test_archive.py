"""The archive: costs by hand, order, one program for each error, a memory that counts."""

from __future__ import annotations

import numpy as np

from nearly.functions.discovery.archive import (
    DEPTH,
    OPERATIONS,
    WEIGHTED,
    Pools,
    cost_of,
    insert,
    known,
    memory,
    migrate,
    pools,
    remember,
)
from nearly.functions.discovery.kernels import ADD, DIV, MUL

# t0 = x * x, t1 = c0 / t0, t2 = x + t1
TAPE = (
    np.array([MUL, DIV, ADD], np.int8),
    np.array([-1, -2, -1], np.int16),
    np.array([-1, 0, 1], np.int16),
)


def keep(pool: Pools, cost: int, error: float, digest: int) -> bool:
    constants = np.array([error])
    return bool(insert(pool, cost, *TAPE, constants, np.zeros(1), error, np.uint64(digest)))


def test_costs_by_hand() -> None:
    assert cost_of(*TAPE, OPERATIONS) == 3
    assert cost_of(*TAPE, WEIGHTED) == 1 + 6 + 1
    assert cost_of(*TAPE, DEPTH) == 3
    flat = (TAPE[0], TAPE[1], np.array([-1, -1, 1], np.int16))
    assert cost_of(*flat, DEPTH) == 2


def test_pools_hold_the_best_in_order() -> None:
    pool = pools(5, 3, 4)
    for digest, error in enumerate((0.5, 0.1, 0.3, 0.2), 1):
        assert keep(pool, 3, error, digest)
    assert pool.error[3].tolist() == [0.1, 0.2, 0.3]
    assert pool.high[3, :, 0].tolist() == [0.1, 0.2, 0.3]
    assert pool.digest[3].tolist() == [2, 4, 3]
    assert np.array_equal(pool.operations[3, 0, :3], TAPE[0])


def test_a_structure_has_one_place_and_only_gets_better() -> None:
    pool = pools(5, 3, 4)
    keep(pool, 3, 0.1, 1)
    keep(pool, 3, 0.5, 7)
    assert not keep(pool, 3, 0.6, 7)
    assert keep(pool, 3, 0.05, 7)
    assert pool.error[3].tolist() == [0.05, 0.1, np.inf]


def test_an_error_known_at_less_cost_is_no_news() -> None:
    pool = pools(5, 3, 4)
    keep(pool, 3, 0.1, 1)
    assert known(pool, 4, 0.1001)
    assert known(pool, 3, 0.1)
    assert not known(pool, 2, 0.1)
    assert not known(pool, 4, 0.11)


def test_migrants_come_in_if_they_are_better() -> None:
    here, there = pools(5, 2, 4), pools(5, 2, 4)
    for digest, error in enumerate((0.3, 0.4), 1):
        keep(here, 3, error, digest)
    for digest, error in enumerate((0.1, 0.2, 0.9), 11):
        keep(there, 3, error, digest)
    migrate(here, there, 1)
    assert here.error[3].tolist() == [0.1, 0.3]


def test_the_memory_counts_meetings() -> None:
    table = memory()
    met = [remember(table, np.uint64(12345678901), 2) for _ in range(4)]
    assert met == [False, False, True, True]
    assert not remember(table, np.uint64(98765432109), 2)


def test_a_full_memory_is_wiped() -> None:
    table = np.zeros(64, dtype=np.uint64)
    words = [(k * 0x9E3779B97F4A7C15) % 2**64 for k in range(1, 66)]
    for word in words:
        remember(table, np.uint64(word), 1)
    assert np.count_nonzero(table) <= 1
