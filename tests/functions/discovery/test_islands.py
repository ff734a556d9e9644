"""Searches in rounds: the same archive whatever runs them, dies under them or stops them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nearly.core.errors import InputError, StoreError, UnknownName
from nearly.core.executors import connect
from nearly.functions.discovery.archive import ALIKE
from nearly.functions.discovery.evolve import evolve
from nearly.functions.discovery.islands import (
    Progressed,
    Search,
    arrays_of,
    began,
    best_errors,
    resumed,
    rounds,
    run_island,
    save,
)
from nearly.functions.discovery.mutation import PAPER
from nearly.functions.discovery.selection import NonDominatedSorting
from nearly.functions.function import Function

EXP2 = Function("exp2", ("0", "1"))
SMALL = Search(EXP2, most=4, islands=2, migration=1, children=2000, seed=3)


def after(search: Search, count: int, submitter: Any = None) -> Progressed:
    return list(islice(rounds(search, began(search), submitter), count))[-1]


def same(a: Progressed, b: Progressed) -> bool:
    pairs = zip(map(arrays_of, a.states), map(arrays_of, b.states), strict=True)
    return a.rounds == b.rounds and all(
        np.array_equal(first[name], second[name], equal_nan=True)
        for first, second in pairs
        for name in first
        if not name.startswith("work.")
    )


class Here:
    """Runs what is submitted at once; the first `deaths` submissions die with their worker."""

    def __init__(self, deaths: int = 0) -> None:
        self.deaths = deaths

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.deaths -= 1
        if self.deaths >= 0:
            future.set_exception(BrokenProcessPool("killed"))
        else:
            future.set_result(function(*args))
        return future


def test_equal_settings_give_equal_archives_and_others_others() -> None:
    assert same(after(SMALL, 2), after(SMALL, 2))
    assert not same(after(SMALL, 2), after(replace(SMALL, seed=4), 2))


def test_a_round_leaves_its_start_alone() -> None:
    start = began(SMALL).states[0]
    before = {name: array.copy() for name, array in arrays_of(start).items()}
    run_island(SMALL, start, 0, 0)
    assert all(np.array_equal(before[n], a) for n, a in arrays_of(start).items())


def test_a_round_that_dies_is_run_again() -> None:
    assert same(after(SMALL, 2), after(SMALL, 2, Here(deaths=2)))


def test_a_round_that_always_dies_ends_the_search() -> None:
    with pytest.raises(BrokenProcessPool):
        after(SMALL, 1, Here(deaths=100))


def test_islands_learn_from_each_other() -> None:
    together = after(replace(SMALL, migrants=40), 1)
    apart = after(replace(SMALL, migrants=0), 1)
    for cost, error in best_errors(apart.states).items():
        for state in together.states:
            here = min(e for c, e in best_errors([state]).items() if c <= cost)
            assert here <= error * (1 + ALIKE)


def test_a_saved_search_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    assert same(resumed(path, SMALL), began(SMALL))
    save(path, SMALL, after(SMALL, 1))
    read = resumed(path, SMALL)
    assert same(read, after(SMALL, 1))
    assert same(next(rounds(SMALL, read, None)), after(SMALL, 2))


def test_state_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save(path, SMALL, began(SMALL))
    with pytest.raises(InputError, match="other settings"):
        resumed(path, replace(SMALL, seed=4))
    path.write_bytes(b"PK no")
    with pytest.raises(StoreError, match="no saved search"):
        resumed(path, SMALL)


def test_an_interrupted_search_keeps_its_last_round(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"

    def stop(done: int, total: int, text: str) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evolve(SMALL, most_rounds=2, state=path, progress=stop)
    assert resumed(path, SMALL).rounds == 1
    found = evolve(SMALL, most_rounds=2, state=path)
    assert same(found.state, after(SMALL, 2))


def test_the_frontier_falls() -> None:
    errors = list(best_errors(after(SMALL, 1).states).values())
    assert errors == sorted(errors, reverse=True)
    assert errors


@pytest.mark.parametrize("objective", ["weighted", "depth"])
def test_other_objectives(objective: str) -> None:
    found = after(replace(SMALL, objective=objective, most=8, islands=1), 1).states[0].archive
    assert np.isfinite(found.error[2:, 0]).any()


def test_nsga_runs_on_islands_too() -> None:
    search = replace(SMALL, selection=NonDominatedSorting(), mutation=PAPER, children=300)
    assert same(after(search, 1), after(search, 1))


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UnknownName, match="objective"):
        replace(SMALL, objective="speed")
    with pytest.raises(UnknownName, match="fitter"):
        replace(SMALL, fitter="adam")
    with pytest.raises(InputError, match="over the reals"):
        replace(SMALL, function=Function("exp2", ("0", "1"), "float32"))
    with pytest.raises(InputError, match="most=0"):
        replace(SMALL, most=0)


@pytest.mark.slow
def test_processes_give_the_archive_of_one() -> None:
    with connect(2, None) as pool:
        assert same(after(SMALL, 2), after(SMALL, 2, pool))


def _killed_once(flag: str, *task: Any) -> Any:
    """`run_island` in a worker that is killed the first time."""
    if not os.path.exists(flag):
        open(flag, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_island(*task)


class Killing:
    """A pool of processes whose first worker is killed in the middle of its round."""

    def __init__(self, pool: Any, flag: Path) -> None:
        self.pool, self.flag = pool, str(flag)

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return self.pool.submit(_killed_once, self.flag, *args)


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    with connect(2, None) as pool:
        assert same(after(SMALL, 2), after(SMALL, 2, Killing(pool, tmp_path / "killed")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask's own
def test_a_cluster_gives_the_archive_of_one_process() -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        connect(0, cluster.scheduler_address) as client,
    ):
        assert same(after(SMALL, 2), after(SMALL, 2, client))
