"""Training beside running solvers: nothing is lost to death or interruption, nobody waits idly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from nearly.core.catalogue import Reference
from nearly.core.errors import InputError, Interrupted, NearlyError
from nearly.core.executors import Pool
from nearly.operators.live import train_live
from nearly.operators.online import solve
from nearly.operators.problems.online import heat_plate
from nearly.operators.reservoir import FIFO, FIRO, Reservoir
from nearly.operators.solver_workers import Feeder, Order, Solved, solve_order

SMALL = {"points": 3, "frames": 4, "width": 8, "batch": 8}
REFERENCE = Reference("online-heat", tuple(sorted(SMALL.items())))
KEY = jax.random.key(5)


class Here:
    """Runs what is submitted at once, in the thread that submits."""

    def __init__(self) -> None:
        self.orders: list[Order] = []

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        self.orders.append(args[0])
        future: Future[Any] = Future()
        try:
            future.set_result(self.run(function, args[0]))
        except Exception as error:
            future.set_exception(error)
        return future

    def run(self, function: Callable[..., Any], order: Order) -> Any:
        return function(order)


class Mortal(Here):
    """Dies under the first attempts of some orders."""

    def __init__(self, deaths: dict[int, int]) -> None:
        super().__init__()
        self.deaths = deaths

    def run(self, function: Callable[..., Any], order: Order) -> Any:
        if self.deaths.get(order.first, 0) > 0:
            self.deaths[order.first] -= 1
            raise BrokenProcessPool("killed")
        return function(order)


def train(**options: Any) -> Any:
    given = {"steps": 30, "key": KEY, "executor": Here(), "policy": Reservoir(64, 16)}
    given |= {"runs_at_once": 8, "between": 16} | options
    return train_live("online-heat", **(SMALL | given))


def words(key: Any) -> tuple[int, ...]:
    return tuple(int(word) for word in np.asarray(jax.random.key_data(key)))


def orders(count: int, runs: int = 2) -> Any:
    return (Order(REFERENCE, words(KEY), i * runs, runs) for i in range(count))


def taken(feeder: Feeder) -> list[Solved]:
    found = []
    while not feeder.ended:
        solved = feeder.take(0.05)
        found += [solved] if solved else []
    return found


# ---- the feeder


def test_a_worker_solves_the_runs_of_its_reference() -> None:
    solved = solve_order(Order(REFERENCE, words(KEY), 3, 2))
    everything = solve(heat_plate(**SMALL).simulation, 4 * 5, KEY)
    for found, expected in zip(solved.samples, everything, strict=True):
        np.testing.assert_allclose(found, expected[12:20], atol=1e-6)


def test_samples_come_in_the_order_of_the_runs_whoever_is_faster() -> None:
    def slow_first(order: Order) -> Solved:
        time.sleep(0.05 * (3 - order.first % 4))
        return Solved([np.full((1, 1), order.first)], 0.0)

    class Threads:
        pool = ThreadPoolExecutor(4)

        def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
            return self.pool.submit(slow_first, *args)

    feeder = Feeder(Threads(), orders(12, 1), window=4, stock=2)
    assert [int(s.samples[0][0, 0]) for s in taken(feeder)] == list(range(12))


def test_an_order_whose_worker_dies_is_handed_out_again() -> None:
    mortal = Mortal({2: 2})
    found = taken(Feeder(mortal, orders(4), window=2, stock=8))
    expected = taken(Feeder(Here(), orders(4), window=2, stock=8))
    assert len(found) == 4
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.samples[1], b.samples[1])
    assert [order.first for order in mortal.orders].count(2) == 3


def test_what_kills_every_worker_is_an_error() -> None:
    feeder = Feeder(Mortal({0: 9}), orders(2), window=1, stock=8)
    with pytest.raises(NearlyError, match="runs 0 to 1 died 3 times"):
        taken(feeder)


def test_a_full_stock_stops_the_solvers() -> None:
    here = Here()
    feeder = Feeder(here, orders(50), window=2, stock=3)
    time.sleep(0.5)
    assert len(here.orders) <= 3 + 2 + 1  # in stock, in flight, and one waiting to be offered
    feeder.stop()


# ---- training


@pytest.mark.parametrize("policy", (FIFO(64), FIRO(64, 16), Reservoir(64, 16)))
def test_live_training_learns(policy: Any) -> None:
    trained = train(policy=policy, steps=600, width=64)
    assert trained.status == "done"
    assert trained.steps == 600
    assert trained.losses[-50:].mean() < 0.6 * trained.losses[:50].mean()


def test_utilisation_is_reported() -> None:
    spent = train().utilisation
    assert spent.steps == 30
    assert spent.runs > 0
    assert spent.training > 0
    assert spent.training + spent.feeding + spent.waiting <= spent.seconds
    assert "trainer" in str(spent) and "solver runs" in str(spent)


@pytest.mark.parametrize("policy", (FIFO(64), FIRO(64, 16), Reservoir(64, 16)))
def test_the_buffer_drains_when_the_solvers_end(policy: Any) -> None:
    # Ten runs of four frames; a batch has eight.
    trained = train(policy=policy, steps=10_000, runs=10)
    assert trained.status == "drained"
    assert trained.utilisation.runs == 10
    assert trained.steps >= 5
    if not isinstance(policy, Reservoir):
        assert trained.steps == 5


def test_an_interrupted_run_is_taken_up_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "live.npz"

    class Interrupting(Here):
        def run(self, function: Callable[..., Any], order: Order) -> Any:
            if order.first == 160:  # far beyond what fits in the buffer and the queue
                os.kill(os.getpid(), signal.SIGINT)
            return function(order)

    with pytest.raises(Interrupted, match="the same call takes up") as caught:
        train(policy=FIFO(64), steps=100_000, executor=Interrupting(), checkpoint=path)
    first = caught.value.done
    assert 0 < first.steps < 100_000
    here = Here()
    second = train(policy=FIFO(64), steps=first.steps + 20, executor=here, checkpoint=path)
    assert second.steps == first.steps + 20
    assert second.losses.size == 20
    # The runs whose samples had arrived are not solved again, and none is left out.
    assert here.orders[0].first <= first.utilisation.runs < here.orders[0].first + 8


def test_a_checkpoint_of_another_key_is_refused(tmp_path: Path) -> None:
    train(steps=3, checkpoint=tmp_path / "a.npz")
    with pytest.raises(InputError, match="written with another key"):
        train(steps=3, checkpoint=tmp_path / "a.npz", key=jax.random.key(6))


def test_what_a_solver_raises_reaches_the_caller() -> None:
    class Broken(Here):
        def run(self, function: Callable[..., Any], order: Order) -> Any:
            raise ZeroDivisionError("in the solver")

    with pytest.raises(ZeroDivisionError, match="in the solver"):
        train(executor=Broken())


def test_errors_name_the_value_and_the_remedy() -> None:
    with pytest.raises(InputError, match="steps=0 must be at least 1"):
        train(steps=0)
    with pytest.raises(InputError, match="workers=0 must be at least 1"):
        train(executor=None, workers=0)
    with pytest.raises(InputError, match="capacity=4 must hold a batch: at least 8"):
        train(policy=FIFO(4))
    with pytest.raises(InputError, match="has no simulation"):
        train_live("exp2", steps=3, key=KEY)


@pytest.mark.slow
def test_spawned_workers_feed_the_trainer_and_one_may_be_killed() -> None:
    # Two real processes; one is killed while it solves, and the run does not notice.
    killed: list[int] = []

    class Killing(Pool):
        def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
            if args[0].first == 48 and not killed:
                victim = next(iter(self._pool._processes))  # pyright: ignore
                killed.append(victim)
                os.kill(victim, signal.SIGKILL)
            return super().submit(function, *args)

    pool = Killing(2)
    try:
        trained = train(executor=pool, workers=2, policy=FIFO(64), steps=10_000, runs=200)
    finally:
        pool.close()
    assert killed
    assert trained.status == "drained"
    assert trained.utilisation.runs == 200
    assert trained.steps == 100
