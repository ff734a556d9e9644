"""Selection: fronts and crowding by hand, generations without elitism, an archive that records."""

from __future__ import annotations

import numpy as np
import pytest

from nearly.core.errors import InputError
from nearly.functions.discovery.archive import ALIKE, OPERATIONS
from nearly.functions.discovery.kernels import target
from nearly.functions.discovery.mutation import PAPER, Mutation
from nearly.functions.discovery.random_numbers import stream_of
from nearly.functions.discovery.selection import (
    AGAIN,
    NEW,
    NOTHING,
    NonDominatedSorting,
    QualityDiversity,
    Selection,
    State,
    crowding,
    fronts,
    propose,
)
from nearly.functions.discovery.trial import Effort, run_round, settle
from nearly.functions.function import Function

EXP2 = Function("exp2", ("0", "1"))


def bred(selection: Selection, mutation: Mutation, children: int) -> State:
    state = selection.state(6, 5)
    samples = target(EXP2, points=24, fine=64)
    rule = selection.rule(OPERATIONS)
    run_round(state, rule, samples, mutation.rates, Effort(), stream_of(1), children)
    return state


def test_constants_all_but_whole_become_so() -> None:
    high, low = np.array([-1.0 - 1e-9, 1.2, 1e-9, 3.0]), np.array([1e-20, 1e-20, 0.0, 1e-6])
    assert settle(high, low)
    assert high.tolist() == [-1.0, 1.2, 1e-9, 3.0]
    assert low.tolist() == [0.0, 1e-20, 0.0, 1e-6]
    assert not settle(np.array([0.5]), np.zeros(1))


def test_fronts_by_hand() -> None:
    costs = np.array([1.0, 2.0, 3.0, 2.0, 3.0])
    errors = np.array([9.0, 4.0, 1.0, 5.0, 9.0])
    assert fronts(costs, errors).tolist() == [0, 0, 0, 1, 2]


def test_equal_programs_share_a_front() -> None:
    assert fronts(np.ones(3), np.ones(3)).tolist() == [0, 0, 0]


def test_the_ends_of_a_front_are_loneliest() -> None:
    costs = np.array([1.0, 2.0, 3.0, 8.0])
    lonely = crowding(costs, 10.0**-costs, np.zeros(4, np.int64))
    assert np.isinf(lonely[[0, 3]]).all()
    assert lonely[1] == pytest.approx(2 + 2)
    assert lonely[2] == pytest.approx(6 + 6)


def test_quality_diversity_finds_the_best_small_programs() -> None:
    state = bred(QualityDiversity(), Mutation(), 20_000)
    error = state.archive.error[:, 0]
    # Least squares on Chebyshev points is within a factor of 1.5 of the optimum, 8.67e-4.
    assert error[3] < 1.3e-3
    assert all(row.tolist() == sorted(row.tolist()) for row in state.archive.error)


def test_what_is_proposed_is_new_or_another_start() -> None:
    state, rates, stream = (
        bred(QualityDiversity(), Mutation(), 3000),
        Mutation().rates,
        stream_of(2),
    )
    rule = QualityDiversity(again=0.3).rule(OPERATIONS)
    kinds = [propose(state, rule, rates, stream).kind for _ in range(300)]
    assert set(kinds) == {NOTHING, NEW, AGAIN}
    assert 50 < kinds.count(AGAIN) < 130


def test_a_generation_is_born_of_the_last_one_alone() -> None:
    selection = NonDominatedSorting()
    state = bred(selection, PAPER, 400)
    assert state.turn[0] == 400
    parents = state.population.error[0, : selection.parents]
    assert np.isfinite(parents).all()
    assert state.archive.length[0, 0] == 0  # nothing but x costs nothing
    # No elitism: what the archive remembers need not live on.
    assert state.archive.error[1:, 0].min() <= parents.min() * (1 + ALIKE)


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="places"):
        QualityDiversity(places=1)
    with pytest.raises(InputError, match="parents"):
        NonDominatedSorting(parents=11)
