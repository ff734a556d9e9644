"""Solver runs in other processes: tasks as references, results in order, deaths survived.

A thread of the parent keeps a window of tasks in flight on anything with `.submit` (spawned
processes, a Dask cluster) and puts their samples in a queue. It stops handing out tasks while the
queue is full, so solvers that are faster than the trainer wait instead of filling the memory.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from nearly.core.catalogue import Reference
from nearly.core.errors import NearlyError
from nearly.core.executors import ATTEMPTS, Submitter, worker_died

Samples = list[np.ndarray]  # the leaves of a pytree of arrays [samples, ...]

IDLE = 0.005  # seconds between two looks at what is in flight


@dataclass(frozen=True)
class Order:
    """Runs to be solved, as a reference: what a worker rebuilds.

    **Arguments:**

    - `problem`: names an object with a `simulation` (`key -> samples`) and a `dtype`.
    - `key`: the words of a random key; run i has the key `fold_in(key, i)`.
    - `first`, `count`: the runs.
    """

    problem: Reference
    key: tuple[int, ...]
    first: int
    count: int


@dataclass(frozen=True)
class Solved:
    """What an order brings: the samples of its runs one after the other, and the seconds taken."""

    samples: Samples
    seconds: float


def solve_order(order: Order) -> Solved:
    """Solve an order's runs, in the process that is asked to."""
    begun = time.perf_counter()
    problem, program = _program(order.problem)
    with jax.enable_x64(problem.dtype == "float64"):
        key = jax.random.wrap_key_data(jnp.asarray(order.key, jnp.uint32))
        runs = jnp.arange(order.first, order.first + order.count)
        found = program(problem.simulation, key, runs)
        samples = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    return Solved(samples, time.perf_counter() - begun)


@lru_cache(4)
def _program(reference: Reference) -> tuple[Any, Any]:
    return reference.build(), eqx.filter_jit(_runs)


def _runs(simulation: Any, key: Any, runs: Any) -> Any:
    samples = jax.vmap(lambda i: simulation(jax.random.fold_in(key, i)))(runs)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), samples)


class Feeder:
    """A thread that keeps solvers busy and hands their samples over in the order of the runs.

    **Arguments:**

    - `submitter`: where the orders run. `orders`: which, in order.
    - `window`: orders in flight at once. `stock`: finished orders kept before handing out stops.

    An order whose worker died is handed out again; after `ATTEMPTS` deaths, or any other error,
    `take` raises. The order in which samples arrive does not depend on which worker was faster.
    """

    def __init__(
        self, submitter: Submitter, orders: Iterator[Order], window: int, stock: int
    ) -> None:
        self.busy = 0.0  # seconds that workers have solved
        self._submitter, self._orders, self._window = submitter, orders, window
        self._ready: queue.Queue[Solved | BaseException] = queue.Queue(stock)
        self._stopped = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nearly-feeder", daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Whether all orders have been solved and taken."""
        return self._ended.is_set() and self._ready.empty()

    def take(self, wait: float = 0.0) -> Solved | None:
        """The next finished order; None if there is none within `wait` seconds."""
        try:
            found = self._ready.get(timeout=wait) if wait else self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def stop(self) -> None:
        """Hand out nothing more; what is in flight is dropped."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            self._feed()
        except BaseException as error:
            self._offer(error)
        self._ended.set()

    def _feed(self) -> None:
        flying: deque[tuple[Order, int, Any]] = deque()
        more = True
        while (more or flying) and not self._stopped.is_set():
            while more and len(flying) < self._window:
                order = next(self._orders, None)
                more = order is not None
                if order is not None:
                    flying.append((order, 1, self._submitter.submit(solve_order, order)))
            if flying and flying[0][2].done():
                self._settle(flying)
            else:
                time.sleep(IDLE)

    def _settle(self, flying: deque[tuple[Order, int, Any]]) -> None:
        order, attempt, future = flying.popleft()
        try:
            solved: Solved = future.result()
        except Exception as error:
            if not worker_died(error):
                raise
            if attempt == ATTEMPTS:
                raise NearlyError(
                    f"the worker that solved runs {order.first} to {order.first + order.count - 1} "
                    f"died {ATTEMPTS} times: see what kills it (memory?), or use fewer workers"
                ) from error
            flying.appendleft((order, attempt + 1, self._submitter.submit(solve_order, order)))
            return
        self.busy += solved.seconds
        self._offer(solved)

    def _offer(self, found: Solved | BaseException) -> None:
        """Into the queue as soon as there is room, unless nobody wants it any more."""
        while not self._stopped.is_set():
            try:
                return self._ready.put(found, timeout=0.05)
            except queue.Full:
                continue
